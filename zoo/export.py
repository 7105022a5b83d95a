"""
Export a trained policy from a run folder, without pickle: parameters as .npz; command, commit and result as a card in JSON.

    python zoo/export.py logs/hipi_sac/PointFixedGoals-v0_1
    python zoo/export.py logs/hipi_sac/PointFixedGoals-v0_1 --out policies

hipi_sb3.pretrained(env_id) and zoo/enjoy.py --pretrained read those of the package.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from stable_baselines3.sac.policies import Actor

from hipi_sb3 import HIPISAC
from hipi_sb3.shipped.policies import FOLDER, KEY_TO_ACTIVATION, PretrainedPolicy
from zoo.configuration import read_yaml
from zoo.errors import ConfigurationError, exit_with_error
from zoo.normalization import NORMALIZATION, PICKLED

#: Bytes of the parameters, at most.
MAX_BYTES = 300_000


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command.

    :param arguments: command line; that of the process if None
    """
    args = make_parser().parse_args(arguments)
    try:
        path = export(Path(args.run), Path(args.out))
    except ConfigurationError as error:
        exit_with_error("export.py", error)
    print(f"Policy: {path} ({path.stat().st_size / 1e3:.0f} kB); card: {path.with_suffix('.json')}")


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    :return: parser
    """
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a finished run of zoo/train.py")
    parser.add_argument("--out", default=FOLDER, help="folder of the two files (default: that of the package)")
    return parser


#: Algorithms of the launcher whose policy is SAC's.
WITH_SACS_ACTOR = ("hipi_sac", "sac")


def export(run: Path, out: Path) -> Path:
    """
    Write the policy of a run and its card.

    :param run: folder of a finished run
    :param out: folder of the two files
    :return: path of the parameters
    :raises ConfigurationError: when it is no such folder, or its policy cannot be written as arrays alone
    """
    evaluation = run / "task_evaluation.json"
    if not evaluation.is_file():
        raise ConfigurationError(f"{run} is no folder of a finished run: there is no {evaluation.name} in it.")
    result = json.loads(evaluation.read_text())
    env_id = result["env"]
    if any((run / env_id / name).exists() for name in (NORMALIZATION, PICKLED)):
        raise ConfigurationError(
            f"{run}: the observations were normalised, and their statistics would be missing. Train without normalize."
        )
    if result["algo"] not in WITH_SACS_ACTOR:
        raise ConfigurationError(
            f"{run} is of {result['algo']}; only policies of {' and '.join(WITH_SACS_ACTOR)} are exported."
        )
    policy = policy_of(HIPISAC.load(run / f"{env_id}.zip", device="cpu", buffer_size=1))
    policy.card = card_of(result, read_yaml(run / env_id / "run.yml"))
    with tempfile.TemporaryDirectory() as scratch:  # what is in its place stays if it is too large
        n_bytes = policy.write(scratch, env_id).stat().st_size
    if n_bytes > MAX_BYTES:
        raise ConfigurationError(
            f"the policy of {run} has {n_bytes} bytes, more than {MAX_BYTES}. Train smaller layers (net_arch)."
        )
    return policy.write(out, env_id)


def policy_of(model: HIPISAC) -> PretrainedPolicy:
    """
    Take the policy out of a learner.

    :param model: learner
    :return: the policy
    :raises ConfigurationError: when it is more than the layers of an actor
    """
    actor = model.actor
    names = {function: name for name, function in KEY_TO_ACTIVATION.items()}
    if not isinstance(actor, Actor) or actor.use_sde or actor.activation_fn not in names:
        raise ConfigurationError(f"only SAC's actor without gSDE, with {', '.join(KEY_TO_ACTIVATION)}, can be exported.")
    policy = PretrainedPolicy(model.observation_space, model.action_space, list(actor.net_arch), names[actor.activation_fn])
    missing = policy.load_state_dict({f"actor.{key}": value for key, value in actor.state_dict().items()}, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise ConfigurationError(f"the actor has parts that cannot be exported: {missing}.")
    return policy


def card_of(result: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """
    Say where a policy comes from, and what it can do.

    :param result: what train.py wrote into task_evaluation.json
    :param about: what it wrote into run.yml
    :return: card
    """
    kept = ("mean_return", "mean_return_interval", "success_rate", "success_rate_interval", "interval")
    return {
        **{name: result[name] for name in ("env", "algo", "seed", "num_timesteps")},
        "result": {"n_tasks": len(result["tasks"]), **{name: result[name] for name in kept}},
        **{name: about[name] for name in ("command", "commit", "date", "versions", "machine")},
        "license": "MIT",
    }


if __name__ == "__main__":
    main()
