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

from zoo.deferred import defer_imports
from zoo.options import DEFAULTS, make_parser, print_help

if __name__ == "__main__" and not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
    # Before anything that takes seconds to import.
    print_help(__doc__)
    sys.exit(0)
defer_imports()

import gymnasium as gym
import rl_zoo3.train
from rl_zoo3.utils import ALGOS

from hipi_sb3.experience.whole import NotWritten
from zoo import plugin
from zoo.checkpoints import CHECKPOINTS, RunStopped
from zoo.cloning import LauncherBC
from zoo.configuration import StoreExpressions
from zoo.errors import ConfigurationError, check_counts, check_name, exit_with_error, mistake_in_command_line, say_last
from zoo.experiment import TaskExperimentManager, given_steps, parse_relabel, recorded_arguments
from zoo.provenance import command_line

#: Options that say what is learned: a run that goes on has its own.
FIXED = ("--relabel", "-params", "--hyperparams", "-conf", "--conf-file")


def main(arguments: list[str] | None = None) -> None:
    """
    Run the launcher.

    :param arguments: command line; that of the process if None
    :raises SystemExit: when the user made a mistake, with code 2
    """
    plugin.register()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(__doc__)
    args, rl_zoo3_arguments = parser.parse_known_args(arguments)
    trust = args.trust  # what the user says: a run folder cannot ask for it
    if args.resume is not None:
        try:
            arguments = resumed_arguments(args.resume, arguments, trust)
        except ConfigurationError as error:
            exit_with_error("train.py", error)
        args, rl_zoo3_arguments = parser.parse_known_args(arguments)
    if args.dataset is not None:
        # Cloning has bars of its own, for its labels too.
        rl_zoo3_arguments = [argument for argument in rl_zoo3_arguments if argument not in ("-P", "--progress")]
    if args.help:
        print_help(__doc__)
        sys.exit(0)
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
            trust=trust,
            **manager_kwargs,
        )
        managers.append(manager)
        return manager

    try:
        relabel = check_arguments(args)
        for_rl_zoo3 = ["--algo", args.algo, "--env", args.env, *DEFAULTS, *rl_zoo3_arguments]
        sys.argv = [sys.argv[0], *for_rl_zoo3]
        rl_zoo3.train.ExperimentManager = make_manager  # type: ignore[misc,assignment]
        rl_zoo3.train.StoreDict = StoreExpressions  # type: ignore[misc,assignment]
        rl_zoo3.train.train()
    except ConfigurationError as error:
        exit_with_error("train.py", error)
    except NotWritten as error:
        say_last(f"train.py: error: {error}")
        resumable = managers and (Path(managers[0].save_path) / CHECKPOINTS).is_dir()
        if resumable:
            say_last(f"To go on: {command_line('train.py', ['--resume', managers[0].save_path])}")
        sys.exit(1)
    except RunStopped as stopped:
        folder = managers[0].save_path
        print(f"\nStopped by {stopped}. To go on: {command_line('train.py', ['--resume', folder])}", flush=True)
        sys.exit(128 + stopped.signal_number)
    except Exception as error:
        # Before there is a manager, rl_zoo3 does nothing but read the command line and ask Weights & Biases.
        mistake = None if managers else mistake_in_command_line(error)
        if mistake is None:
            raise
        exit_with_error("train.py", mistake)
    finally:
        for manager in managers:
            if manager.lock is not None:
                manager.lock.release()


def resumed_arguments(run_folder: str, arguments: list[str], trust: bool) -> list[str]:
    """
    Put the command line of a resumed run together.

    :param run_folder: folder of the run
    :param arguments: command line with ``--resume``; what else is in it goes before what the run was started with
    :param trust: see :func:`~zoo.experiment.recorded_arguments`
    :return: command line
    :raises ConfigurationError: when it has an option that a run cannot change on its way
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        # argparse takes the beginning of a long option for it.
        if name in FIXED or (len(name) > 3 and any(option.startswith(name) for option in FIXED if option.startswith("--"))):
            raise ConfigurationError(
                f"--resume goes on with the hyperparameters of the run, and {argument} would change them. Leave it out, or "
                "start a run of its own with it."
            )
    return [*recorded_arguments(run_folder, given_steps(arguments), trust), *arguments]


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
    check_counts(args, "eval_tasks", "heartbeat")
    if args.checkpoint_freq < 0:
        raise ConfigurationError(
            f"--checkpoint-freq must not be negative (0: no checkpoints), but it is {args.checkpoint_freq}."
        )
    if args.dataset is not None and args.algo != "hipi_bc":
        raise ConfigurationError(f"--dataset is for --algo hipi_bc, not for {args.algo}.")
    LauncherBC.dataset_path = args.dataset
    return parse_relabel(args.relabel)


if __name__ == "__main__":
    main()
