"""
Train a policy for a family of tasks, or search its hyperparameters.

    python zoo/train.py --algo hipi_sac --env PointFourRooms-v0 -P
    python zoo/train.py --algo hipi_sac --env PointFourRooms-v0 --relabel strategy=future      (HER)
    python zoo/train.py --algo hipi_sac --env PointFourRooms-v0 -optimize --n-trials 20
    python zoo/train.py --algo hipi_bc --env PointFourRooms-v0 --dataset goals.npz             (cloning)
    python zoo/train.py --resume logs/hipi_sac/PointFourRooms-v0_1

It is rl_zoo3's train.py and takes all of its options, with HIPI's algorithms, this repository's hyperparams/ and evaluation
task by task.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts zoo/ first: the modules in it are to be zoo.plugin and so on, under one name each.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # One thread: the networks are small, and two runs share a machine better than two thread pools. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import rl_zoo3.train
from rl_zoo3.utils import ALGOS

from zoo import plugin
from zoo.checkpoints import RunStopped
from zoo.cloning import LauncherBC
from zoo.errors import ConfigurationError, check_name, exit_with_error
from zoo.experiment import TaskExperimentManager, parse_relabel, recorded_arguments, relabel_options
from zoo.provenance import command_line

#: Options of rl_zoo3 that have other defaults here. They stand first, so those of the user win.
DEFAULTS = ["--num-threads", "1", "--eval-freq", "5000", "--eval-episodes", "1", "--n-eval-envs", "5", "--n-evaluations", "5"]


def main(arguments: list[str] | None = None) -> None:
    """
    Run the launcher.

    :param arguments: command line; that of the process if None
    :raises SystemExit: when the user made a mistake, with code 2
    """
    plugin.register()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    args, rl_zoo3_arguments = parser.parse_known_args(arguments)
    if args.resume is not None:
        try:
            arguments = resumed_arguments(args.resume, arguments)
        except ConfigurationError as error:
            exit_with_error("train.py", error)
        args, rl_zoo3_arguments = parser.parse_known_args(arguments)
    if args.dataset is not None:
        # Cloning has bars of its own, for its labels too.
        rl_zoo3_arguments = [argument for argument in rl_zoo3_arguments if argument not in ("-P", "--progress")]
    if args.help:
        parser.print_help()
        print(f"\nOptions of rl_zoo3, with the defaults {' '.join(DEFAULTS)}:\n")
    managers: list[TaskExperimentManager] = []

    def make_manager(*manager_args: Any, **manager_kwargs: Any) -> TaskExperimentManager:
        manager = TaskExperimentManager(
            *manager_args,
            arguments=arguments,
            relabel=relabel,
            n_eval_tasks=args.eval_tasks,
            draws_picture=not args.no_picture,
            small_search=args.search_space == "small",
            heartbeat=args.heartbeat,
            checkpoint_freq=args.checkpoint_freq,
            resume=args.resume,
            **manager_kwargs,
        )
        managers.append(manager)
        return manager

    try:
        relabel = check_arguments(args)
        for_rl_zoo3 = ["--algo", args.algo, "--env", args.env, *DEFAULTS, *rl_zoo3_arguments]
        sys.argv = [sys.argv[0], *for_rl_zoo3, *(["--help"] if args.help else [])]
        rl_zoo3.train.ExperimentManager = make_manager  # type: ignore[misc,assignment]
        rl_zoo3.train.train()
    except ConfigurationError as error:
        exit_with_error("train.py", error)
    except RunStopped as stopped:
        folder = managers[0].save_path
        print(f"\nStopped by {stopped}. To go on: {command_line('train.py', ['--resume', folder])}", flush=True)
        sys.exit(128 + stopped.signal_number)
    except (SyntaxError, NameError, ValueError, AssertionError, ImportError) as error:
        # Before there is a manager, rl_zoo3 does nothing but read the command line.
        if managers:
            raise
        if isinstance(error, SyntaxError | NameError):
            exit_with_error(
                "train.py", ConfigurationError(f"{error}. Write options as key:value, such as learning_rate:0.001.")
            )
        exit_with_error("train.py", error)


def resumed_arguments(run_folder: str, arguments: list[str]) -> list[str]:
    """
    Put the command line of a resumed run together.

    :param run_folder: folder of the run
    :param arguments: command line with ``--resume``; what else is in it goes before what the run was started with
    :return: command line
    """
    has_n_timesteps = any(argument in ("-n", "--n-timesteps") for argument in arguments)
    return [*recorded_arguments(run_folder, has_n_timesteps), *arguments]


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the options that rl_zoo3 has not, or whose mistakes it answers with a traceback.

    :return: parser
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
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
        f"{', '.join(relabel_options())}; for instance strategy=none or 'candidates={{batch: 0.5, achieved: 0.5}}'",
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


def check_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """
    Check what can be checked before anything is set up.

    :param args: arguments of :func:`make_parser`
    :return: options of relabeling
    :raises ConfigurationError: when one is wrong
    """
    for module in args.gym_packages:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigurationError(f"--gym-packages {module}: {error}") from error
    check_name("algorithm", args.algo, ALGOS)
    check_name("environment", args.env, gym.registry)
    check_name("search space", args.search_space, ["default", "small"])
    for name in ("eval_tasks", "heartbeat"):
        if getattr(args, name) < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}.")
    if args.dataset is not None and args.algo != "hipi_bc":
        raise ConfigurationError(f"--dataset is for --algo hipi_bc, not for {args.algo}.")
    LauncherBC.dataset_path = args.dataset
    return parse_relabel(args.relabel)


if __name__ == "__main__":
    main()
