"""
Look at a trained policy: run it on tasks, print what came out, draw it.

    python zoo/enjoy.py --algo hipi_sac --env PointFourRooms-v0 --plot
    python zoo/enjoy.py --algo hipi_sac --env PointFourRooms-v0 --task 20 30 --task 5 25 --no-render

The run is found as rl_zoo3's enjoy.py finds it: the latest of the log folder, unless --exp-id says which.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # As in train.py: one name a module, one thread.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, StoreDict, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks, save_trajectory_plot
from zoo import plugin
from zoo.errors import ConfigurationError, check_name, configuration_errors, exit_with_error
from zoo.search import TASK_SEED


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command.

    :param arguments: command line; that of the process if None
    """
    plugin.register()
    args = make_parser().parse_args(arguments)
    try:
        enjoy(args)
    except ConfigurationError as error:
        exit_with_error("enjoy.py", error)


def enjoy(args: argparse.Namespace) -> None:
    """
    Load a run, roll its policy out and show the result.

    :param args: arguments of :func:`make_parser`
    :raises ConfigurationError: when there is no such run, or a task is none of its environment
    """
    with configuration_errors(args.verbose):
        for module in args.gym_packages:
            importlib.import_module(module)
        check_name("algorithm", args.algo, ALGOS)
        check_name("environment", args.env, gym.registry)
        set_random_seed(args.seed)
        model_path, run_folder = find_run(args)
        render = not args.no_render and has_display()
        env = make_env(args, run_folder, render)
        if not env.has_attr("task_family"):
            raise ConfigurationError(f"{args.env} has no task family; look at its policy with rl_zoo3's enjoy.py.")
        tasks = chosen_tasks(args, env)
    print(f"Loading {model_path}")
    algorithm_class = ALGOS[args.algo]
    # Nothing is trained, so there is nothing to store.
    kwargs: dict[str, Any] = {"buffer_size": 1} if issubclass(algorithm_class, OffPolicyAlgorithm) else {}
    model = algorithm_class.load(model_path, device=args.device, **kwargs)
    evaluation = evaluate_tasks(
        model,
        env,
        tasks,
        n_episodes=args.episodes,
        deterministic=not args.stochastic,
        seed=args.seed,
        record_observations=args.plot is not None,
        render=render,
    )
    print(f"\n{args.algo} on {args.env}, task by task:\n")
    print(evaluation.table())
    if args.plot is not None:
        picture = Path(args.plot or Path(run_folder) / "enjoy.png")
        if save_trajectory_plot(env, evaluation, picture):
            print(f"\nTrajectories to {len(tasks)} tasks: {picture}")
        else:
            print(f"\nNo picture: {args.env} is not one that can draw trajectories.")
    env.close()


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser; options that rl_zoo3's enjoy.py has are named as there.

    :return: parser
    """
    parser = argparse.ArgumentParser(
        prog="enjoy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--algo", default="hipi_sac", help="algorithm (default: %(default)s)")
    parser.add_argument("--env", default="PointFourRooms-v0", help="environment id (default: %(default)s)")
    parser.add_argument("-f", "--folder", default="logs", help="log folder (default: %(default)s)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: 0, the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best model of the evaluations instead of the last one")
    parser.add_argument("--load-checkpoint", type=int, metavar="STEPS", help="the checkpoint after so many steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    parser.add_argument(
        "--task",
        type=float,
        nargs="+",
        action="append",
        metavar="X",
        help="a task; again for more (default: see --eval-tasks)",
    )
    parser.add_argument(
        "--eval-tasks", type=int, default=20, metavar="N", help="without --task: as many as train.py evaluates (default: 20)"
    )
    parser.add_argument("--episodes", type=int, default=1, help="episodes of each task (default: 1)")
    parser.add_argument(
        "--plot", nargs="?", const="", metavar="PNG", help="draw the trajectories (default: enjoy.png in the run)"
    )
    parser.add_argument("--no-render", action="store_true", help="do not open a window")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--stochastic", action="store_true", help="sample the actions")
    parser.add_argument("--seed", type=int, default=TASK_SEED, help="seed of the environments (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="PyTorch device (default: %(default)s)")
    parser.add_argument("--verbose", type=int, default=1, help="2: errors with their traceback (default: 1)")
    parser.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import first")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, key:value")
    return parser


def find_run(args: argparse.Namespace) -> tuple[str, str]:
    """
    Find the run that the arguments mean.

    :param args: arguments of :func:`make_parser`
    :return: path of the model, folder of the run
    :raises ConfigurationError: when there is none
    """
    try:
        _, model_path, run_folder = get_model_path(
            args.exp_id,
            args.folder,
            args.algo,
            EnvironmentName(args.env),
            args.load_best,
            args.load_checkpoint,
            args.load_last_checkpoint,
        )
    except (AssertionError, ValueError) as error:
        raise ConfigurationError(
            f"{error}. Train one: python zoo/train.py --algo {args.algo} --env {args.env} -f {args.folder}"
        ) from error
    return model_path, run_folder


def make_env(args: argparse.Namespace, run_folder: str, render: bool) -> VecEnv:
    """
    Make the environment of a run, with the arguments and the normalisation that it was trained with.

    :param args: arguments of :func:`make_parser`
    :param run_folder: folder of the run
    :param render: whether to open a window
    :return: environment
    """
    saved = os.path.join(run_folder, EnvironmentName(args.env))
    hyperparams, stats_path = get_saved_hyperparams(saved, test_mode=True)
    env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    args_path = Path(saved) / "args.yml"
    if args_path.is_file():
        # Written by train.py, with Python's own types in it.
        env_kwargs.update(yaml.load(args_path.read_text(), Loader=yaml.UnsafeLoader).get("env_kwargs") or {})
    env_kwargs.update(args.env_kwargs or {})
    return create_test_env(
        args.env,
        n_envs=args.n_envs,
        stats_path=stats_path,
        seed=args.seed,
        should_render=render,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        vec_env_cls=ExperimentManager.default_vec_env_cls,
    )


def chosen_tasks(args: argparse.Namespace, env: VecEnv) -> np.ndarray:
    """
    Choose the tasks: those of ``--task``, or those that train.py evaluates.

    :param args: arguments of :func:`make_parser`
    :param env: environment
    :return: tasks, (n_tasks, task_dim)
    :raises ValueError: when a task is none of the environment's
    """
    family = env.get_attr("task_family", indices=[0])[0]
    if args.task is None:
        return evaluation_tasks(family, args.eval_tasks, TASK_SEED)
    return np.stack([family.check_task(task) for task in args.task])


def has_display() -> bool:
    """
    Say whether a window can be opened.

    :return: False on a Linux machine without a display
    """
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return True
    print("There is no display: nothing is rendered. Try --plot for a picture.")
    return False


if __name__ == "__main__":
    main()
