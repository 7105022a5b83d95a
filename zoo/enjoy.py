"""
Look at a trained policy: run it on tasks, print what came out, draw it.

    python zoo/enjoy.py --pretrained --env PointFourRooms-v0 --tasks grid --plot
    python zoo/enjoy.py --pretrained --env PointFourRooms-v0 --interactive
    python zoo/enjoy.py --algo hipi_sac --env PointFourRooms-v0 --plot
    python zoo/enjoy.py --algo hipi_sac --env PointFourRooms-v0 --task 25 30 --task 5 25 --no-render
    python zoo/enjoy.py --algo hipi_sac --env HalfCheetahVelocity-v0 --tasks grid --record run.mp4
    python zoo/enjoy.py --algo hipi_sac --env ReacherDiscrete-v0 --tasks all

The run is found as rl_zoo3's enjoy.py finds it: the latest of the log folder, unless --exp-id says which.
"""

import argparse
import contextlib
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
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, create_test_env, get_latest_run_id, get_model_path
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from hipi_sb3 import TaskFamily, pretrained
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks, save_trajectory_plot
from hipi_sb3.tasks.goal_env import is_goal_space
from zoo import plugin
from zoo.checkpoints import CHECKPOINTS, STATE, read_state
from zoo.configuration import StoreExpressions, check_classes, check_links, evaluated, read_yaml
from zoo.errors import ConfigurationError, check_counts, check_name, configuration_errors, exit_with_error
from zoo.interactive import Stage, make_server
from zoo.normalization import NORMALIZATION, load_normalization, make_normalization, statistics_from_json
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
        check_counts(args, "episodes", "eval_tasks", "n_envs", "fps")
        for module in args.gym_packages:
            importlib.import_module(module)
        check_name("algorithm", args.algo, ALGOS)
        check_name("environment", args.env, gym.registry)
        set_random_seed(args.seed)
        model_path, run_folder = ("", "") if args.pretrained else find_run(args)
        if run_folder and not args.trust:
            check_links(run_folder)
        render = not (args.no_render or args.interactive) and args.record is None and has_display()
        env = make_env(args, run_folder, render, Path(model_path).parent)
        tasks = chosen_tasks(args, env)
    recorder = None
    if args.record is not None:
        with configuration_errors(args.verbose):
            env = recorder = VideoRecorder(env, args.record, args.fps)
    with configuration_errors(args.verbose):
        model = load_pretrained(args) if args.pretrained else load_model(args, model_path)
    if args.interactive:
        with configuration_errors(args.verbose):
            title = f"{'Pretrained' if args.pretrained else args.algo} on {args.env}"
            stage = Stage(model, env, title, deterministic=not args.stochastic)
        serve(stage, args.port)
        return
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
    print(f"\n{'pretrained' if args.pretrained else args.algo} on {args.env}, task by task:\n")
    print(evaluation.table())
    if recorder is not None:
        recorder.save()
        print(f"\nVideo of {evaluation.returns.size} episodes, {len(recorder.frames)} frames: {recorder.path}")
    if args.plot is not None:
        picture = Path(args.plot or Path(run_folder) / "enjoy.png")
        if save_trajectory_plot(env, evaluation, picture):
            print(f"\nTrajectories to {len(evaluation.tasks)} tasks: {picture}")
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
    parser.add_argument("--pretrained", action="store_true", help="a policy that comes with hipi_sb3; no run is needed")
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
        "--tasks",
        help="instead of --task: grid (evenly over the task space, --eval-tasks of them), all (of a finite family), or prior",
    )
    parser.add_argument("--trust", action="store_true", help="read what is pickled in the run too: it can run any code")
    parser.add_argument("--record", metavar="FILE", help="write a video, .mp4 or .gif; needs no display")
    parser.add_argument("--fps", type=int, default=30, help="frames of the video a second (default: 30)")
    parser.add_argument(
        "--eval-tasks", type=int, default=20, metavar="N", help="without --task: as many as train.py evaluates (default: 20)"
    )
    parser.add_argument("--episodes", type=int, default=1, help="episodes of each task (default: 1)")
    parser.add_argument(
        "--plot", nargs="?", const="", metavar="PNG", help="draw the trajectories (default: enjoy.png in the run)"
    )
    parser.add_argument("--interactive", action="store_true", help="set tasks on a page in the browser, and watch")
    parser.add_argument("--port", type=int, default=0, help="port of that page on this machine (default: any that is free)")
    parser.add_argument("--no-render", action="store_true", help="do not open a window")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--stochastic", action="store_true", help="sample the actions")
    parser.add_argument("--seed", type=int, default=TASK_SEED, help="seed of the environments (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="PyTorch device (default: %(default)s)")
    parser.add_argument("--verbose", type=int, default=1, help="2: errors with their traceback (default: 1)")
    parser.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import first")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreExpressions, help="arguments of the environment, key:value")
    return parser


def find_run(args: argparse.Namespace) -> tuple[str, str]:
    """
    Find the run that the arguments mean.

    :param args: arguments of :func:`make_parser`
    :return: path of the model, folder of the run
    :raises ConfigurationError: when there is none
    """
    name = EnvironmentName(args.env)
    if not args.load_best and (args.load_checkpoint is not None or args.load_last_checkpoint):
        algo_folder = Path(args.folder) / args.algo
        run_folder = algo_folder / f"{name}_{args.exp_id or get_latest_run_id(str(algo_folder), name)}"
        return str(find_checkpoint(run_folder, args.load_checkpoint)), str(run_folder)
    try:
        _, model_path, folder = get_model_path(args.exp_id, args.folder, args.algo, name, args.load_best)
    except (AssertionError, ValueError) as error:
        raise ConfigurationError(
            f"{error}. Train one: python zoo/train.py --algo {args.algo} --env {args.env} -f {args.folder}"
        ) from error
    return model_path, folder


def find_checkpoint(run_folder: Path, steps: int | None) -> Path:
    """
    Find a model that was saved on the way: for ``--resume``, or by ``--save-freq``.

    :param run_folder: folder of the run
    :param steps: after so many steps; the last one if None
    :return: path of the model
    :raises ConfigurationError: when there is none
    """
    saved = {int(path.stem.split("_")[-2]): path for path in run_folder.glob("rl_model_*_steps.zip")}
    saved |= {int(path.parent.name): path for path in run_folder.glob(f"{CHECKPOINTS}/[0-9]*/model.zip")}
    steps = max(saved, default=None) if steps is None else steps
    if steps not in saved:
        which = "" if steps is None else f" after {steps} steps"
        there_are = f"there are some after {', '.join(map(str, sorted(saved)))}" if saved else "there are none"
        raise ConfigurationError(f"no checkpoint{which} in {run_folder}: {there_are}.")
    return saved[steps]


def load_model(args: argparse.Namespace, model_path: str) -> PolicyPredictor:
    """
    Load the model of a run.

    :param args: arguments of :func:`make_parser`
    :param model_path: path of the model
    :return: model
    """
    print(f"Loading {model_path}")
    algorithm_class = ALGOS[args.algo]
    # Nothing is trained, so there is nothing to store.
    kwargs: dict[str, Any] = {"buffer_size": 1} if issubclass(algorithm_class, OffPolicyAlgorithm) else {}
    return algorithm_class.load(model_path, device=args.device, trust=args.trust, **kwargs)


def load_pretrained(args: argparse.Namespace) -> PolicyPredictor:
    """
    Load a policy that comes with the package, and say where it comes from.

    :param args: arguments of :func:`make_parser`
    :return: policy
    """
    policy = pretrained(args.env, device=args.device)
    print(f"A policy that comes with hipi_sb3, trained at {policy.card['commit']} by\n    {policy.card['command']}")
    return policy


def make_env(args: argparse.Namespace, run_folder: str, render: bool, model_folder: Path) -> VecEnv:
    """
    Make the environment of a run, with the arguments and the normalisation that it was trained with.

    :param args: arguments of :func:`make_parser`
    :param run_folder: folder of the run
    :param render: whether to open a window
    :param model_folder: folder of the model; that of a checkpoint holds the normalisation at that time
    :return: environment
    """
    saved = Path(run_folder) / EnvironmentName(args.env)
    hyperparams: dict[str, Any] = {}
    env_kwargs: dict[str, Any] = {}
    if (saved / "config.yml").is_file():
        hyperparams = read_yaml(saved / "config.yml")
        if not args.trust:
            check_classes(hyperparams, run_folder)
        env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    if (saved / "args.yml").is_file():
        env_kwargs.update(read_yaml(saved / "args.yml").get("env_kwargs") or {})
    env_kwargs.update(args.env_kwargs or {})
    if args.record is not None or args.interactive:
        env_kwargs["render_mode"] = "rgb_array"
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
    env = create_test_env(
        args.env,
        n_envs=1 if args.record is not None else args.n_envs,
        seed=args.seed,
        should_render=render,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        vec_env_cls=ExperimentManager.default_vec_env_cls,
    )
    if hyperparams.get("normalize"):
        normalized: VecNormalize | None
        if (model_folder / STATE).is_file():
            settings = evaluated(hyperparams["normalize"], "normalize")
            normalized = make_normalization(env, **(settings if isinstance(settings, dict) else {}))
            statistics_from_json(normalized, read_state(model_folder)["normalize"])
        else:
            normalized = load_normalization(saved, env, args.trust)
        if normalized is None:
            raise ConfigurationError(f"the run normalised its observations, but there is no {saved / NORMALIZATION}.")
        env, normalized.training, normalized.norm_reward = normalized, False, False
    n_stack = hyperparams.get("frame_stack", 0)
    return VecFrameStack(env, n_stack) if n_stack > 0 else env


def chosen_tasks(args: argparse.Namespace, env: VecEnv) -> np.ndarray | int:
    """
    Choose the tasks: those of ``--task``, or those that train.py evaluates.

    :param args: arguments of :func:`make_parser`
    :param env: environment
    :return: tasks, (n_tasks, task_dim); their number where a GoalEnv draws its goals itself
    :raises ConfigurationError: when the environment has no tasks, or none can be chosen
    :raises ValueError: when a task is none of the environment's
    """
    if not env.has_attr("task_family"):
        if not is_goal_space(env.observation_space):
            raise ConfigurationError(
                f"{args.env} has no tasks: it has no task family, and is no GoalEnv. Load its policy in Python, such as "
                "SAC.load(path, custom_objects=hipi_sb3.saved_models.plain_objects(path))."
            )
        if args.task is not None or args.tasks is not None or args.interactive:
            raise ConfigurationError(
                f"{args.env} draws its goals itself, and none can be chosen: leave out --task, --tasks and --interactive. "
                "--eval-tasks says how many, and --seed which."
            )
        return args.eval_tasks
    family = env.get_attr("task_family", indices=[0])[0]
    if args.task is not None:
        if args.tasks is not None:
            raise ConfigurationError("give either --task or --tasks, not both.")
        return np.stack([family.check_task(task) for task in args.task])
    if args.tasks is None:
        return evaluation_tasks(family, args.eval_tasks, TASK_SEED)
    check_name("--tasks", args.tasks, KEY_TO_TASKS)
    return KEY_TO_TASKS[args.tasks](family, args.eval_tasks)


def all_tasks(family: TaskFamily, n_tasks: int) -> np.ndarray:
    """
    List the tasks of a finite family.

    :param family: the tasks
    :param n_tasks: not needed
    :return: tasks, (n_tasks, task_dim)
    :raises ConfigurationError: when the family is not finite
    """
    if family.tasks is None:
        raise ConfigurationError(
            f"--tasks all needs a finite family, but {type(family).__name__} has infinitely many. Use grid."
        )
    return family.tasks.copy()


def grid_tasks(family: TaskFamily, n_tasks: int) -> np.ndarray:
    """
    Lay a grid over the task space, and keep what the prior allows. A finite family is a grid already.

    :param family: the tasks
    :param n_tasks: how many are wanted, about
    :return: tasks, (n_tasks, task_dim)
    """
    if family.tasks is not None:
        return family.tasks.copy()
    low, high = family.task_space.low, family.task_space.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigurationError(f"--tasks grid needs a bounded task space, not {family.task_space}. Use prior.")
    # A prior that excludes a part of the space (walls, say) leaves fewer: refine until there are enough.
    allowed = np.empty((0, family.task_dim), dtype=np.float32)
    side = max(int(np.ceil(n_tasks ** (1 / family.task_dim))), 2)
    while len(allowed) < n_tasks and side**family.task_dim <= 1_000_000:
        axes = [np.linspace(a, b, side) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, family.task_dim).astype(np.float32)
        allowed = grid[np.isfinite(family.log_prior(grid))]
        side += 1
    if len(allowed) == 0:
        raise ConfigurationError("--tasks grid: no point of the grid has a prior probability. Use prior.")
    # Evenly from among them, where the last refinement gave too many.
    return allowed[np.linspace(0, len(allowed) - 1, min(n_tasks, len(allowed))).round().astype(int)]


def prior_tasks(family: TaskFamily, n_tasks: int) -> np.ndarray:
    """
    Draw from the prior, as train.py does for its evaluations.

    :param family: the tasks
    :param n_tasks: how many
    :return: tasks, (n_tasks, task_dim)
    """
    return family.sample(np.random.default_rng(TASK_SEED), n_tasks)


KEY_TO_TASKS = {"grid": grid_tasks, "all": all_tasks, "prior": prior_tasks}


class VideoRecorder(VecEnvWrapper):
    """
    Keeps a picture of every step.

    :param venv: one environment with ``render_mode="rgb_array"``
    :param path: file to write, ``.mp4`` or ``.gif``
    :param fps: frames a second
    :raises ConfigurationError: when the file is of another kind, or the environment draws nothing
    """

    def __init__(self, venv: VecEnv, path: str, fps: int) -> None:
        super().__init__(venv)
        self.path, self.fps = Path(path), fps
        check_name("kind of video", self.path.suffix, [".mp4", ".gif"])
        self.frames: list[np.ndarray] = []

    def reset(self) -> Any:
        """Reset, and draw the first picture."""
        obs = self.venv.reset()
        self._draw()
        return obs

    def step_wait(self) -> Any:
        """Step, and draw what came of it."""
        results = self.venv.step_wait()
        self._draw()
        return results

    def _draw(self) -> None:
        frame = self.venv.render("rgb_array")
        if frame is None:
            raise ConfigurationError("--record: the environment draws nothing with render_mode='rgb_array'.")
        # The codec wants even sizes.
        self.frames.append(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2].astype(np.uint8))

    def save(self) -> None:
        """Write the video."""
        import imageio.v2 as imageio

        self.path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"fps": self.fps} if self.path.suffix == ".mp4" else {"duration": 1000 / self.fps, "loop": 0}
        if self.path.suffix == ".mp4":
            options["macro_block_size"] = 2
        imageio.mimwrite(self.path, self.frames, **options)  # type: ignore[arg-type]


def serve(stage: Stage, port: int) -> None:
    """
    Show a policy on a page until Ctrl-C.

    :param stage: what is shown
    :param port: port on this machine, any that is free if 0
    """
    server = make_server(stage, port)
    print(f"{stage.title}: open http://127.0.0.1:{server.server_port}/ in a browser. Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt), server:
        server.serve_forever()


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
