"""The command line of ``train.py``: its own options, and rl_zoo3's, read without importing rl_zoo3.

Importing rl_zoo3 takes seconds, most of them PyTorch's, and ``--help`` needs nothing of it but the calls that describe its
options. They are read from its source, where they stand in one function.
"""

import argparse
import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

#: Options of rl_zoo3 that have other defaults here. They stand first, so those of the user win.
DEFAULTS = ["--num-threads", "1", "--eval-freq", "5000", "--eval-episodes", "1", "--n-eval-envs", "5", "--n-evaluations", "5"]

#: What ``--relabel`` sets: as :func:`zoo.experiment.relabel_options` lists them, in the order of HIPIReplayBuffer.
RELABEL_OPTIONS = (
    "strategy",
    "score",
    "log_partition",
    "temperature",
    "candidates",
    "n_candidate_tasks",
    "relabel_prob",
    "prior_share",
    "warmup_updates",
    "label_reuse",
    "n_steps",
)

#: The algorithms that :func:`zoo.plugin.register` adds to those of rl_zoo3, in its order.
ALGORITHMS = ("hipi_sac", "hipi_td3", "hipi_ddpg", "hipi_dqn", "hipi_tqc", "hipi_crossq", "hipi_qrdqn", "hipi_bc")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """
    Make the parser of the options that rl_zoo3 has not, or whose mistakes it answers with a traceback.

    :param description: what train.py is
    :return: parser
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, then the options of rl_zoo3")
    parser.add_argument("--algo", default="hipi_sac", help="algorithm (default: %(default)s)")
    parser.add_argument("--env", default="PointFourRooms-v0", help="environment id (default: %(default)s)")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import, which register environments"
    )
    parser.add_argument(
        "--relabel",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="set single options of HIPIReplayBuffer and leave the others as in the YAML file: "
        f"{', '.join(RELABEL_OPTIONS)}; for instance strategy=none or 'candidates={{batch: 0.5, achieved: 0.5}}'",
    )
    parser.add_argument(
        "--dataset",
        metavar="PATH",
        help="with --algo hipi_bc: clone this data set (.npz, folder of .npy, Minari id or path) for -n minibatches, "
        "instead of "
        "collecting in the environment",
    )
    parser.add_argument(
        "--eval-tasks", type=int, default=20, metavar="N", help="tasks to evaluate on, --eval-episodes each (default: 20)"
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no trajectories.png at the end")
    parser.add_argument(
        "--checkpoint-freq",
        type=int,
        default=10_000,
        metavar="STEPS",
        help="between two checkpoints (with --dataset minibatches), the last two of which are kept; 0: none (default: 10000)",
    )
    parser.add_argument("--resume", metavar="RUN_FOLDER", help="go on with a run that was killed; -n may be larger")
    parser.add_argument(
        "--trust", action="store_true", help="read what is pickled in a run or a pretrained agent too: it can run any code"
    )
    parser.add_argument(
        "--search-space", default="default", help="what -optimize samples from: default, or small for trials of minutes"
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=60,
        metavar="SECONDS",
        help="between two signs of life of a worker of a search; after two without one its trial is run again (default: 60)",
    )
    return parser


def print_help(description: str | None) -> None:
    """
    Print the options of ``train.py``, then those of rl_zoo3.

    :param description: what train.py is
    """
    make_parser(description).print_help()
    print(f"\nOptions of rl_zoo3, with the defaults {' '.join(DEFAULTS)}:\n")
    rl_zoo3_parser().print_help()


def rl_zoo3_parser(store_dict: type[argparse.Action] = argparse.Action) -> argparse.ArgumentParser:
    """
    Make the parser of rl_zoo3's ``train.py`` from its source: the statements of ``train()`` before the command line is parsed.

    :param store_dict: reads options that are ``key:value`` pairs; help needs none
    :return: parser
    """
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    algorithms = {
        key.value: None for key in _assigned_dict(folder / "utils.py", "ALGOS").keys if isinstance(key, ast.Constant)
    }
    source = ast.parse((folder / "train.py").read_text())
    train = next(node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    described: list[ast.stmt] = []
    for statement in train.body:
        if "parse_args" in ast.unparse(statement):
            break
        described.append(statement)
    names: dict[str, Any] = {
        "argparse": argparse,
        "ALGOS": algorithms | dict.fromkeys(ALGORITHMS),
        "StoreDict": store_dict,
    }
    exec(compile(ast.Module(described, []), str(folder / "train.py"), "exec"), names)
    return names["parser"]


def _assigned_dict(path: Path, name: str) -> ast.Dict:
    """The dict display that a module assigns to a name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            if re.match(rf"{name}\b", ast.unparse(node)):
                return node.value
    raise LookupError(f"{path} assigns no dict to {name}.")
