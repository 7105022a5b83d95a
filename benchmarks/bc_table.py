"""HIPI-BC against plain behaviour cloning and other labels, on three families of tasks.

    OMP_NUM_THREADS=1 python benchmarks/bc_table.py --json benchmarks/results/bc_table.json

For each family a commanded policy is trained for a while; before, during and after the training its stages are rolled out on
tasks from the prior, so that the data are of mixed quality. All variants clone the same data, with several seeds. No variant
but plain cloning sees for which task an episode was collected. They are evaluated on the same tasks, greedily.

The intervals are 95 % bootstrap intervals over seeds and tasks; they say nothing of other data sets. The options in SETTINGS
were chosen with ``--data-seed 0 --seeds 0 --task-seed 0``.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.base_class import BaseAlgorithm

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import machine  # noqa: E402
from hipi_sb3 import HIPIBC, HIPISAC, DiscreteTasks, MultiTaskWrapper, TaskFamily, TrajectoryDataset  # noqa: E402
from hipi_sb3.envs.point import PointEnv  # noqa: E402
from hipi_sb3.evaluation import TaskEvaluation, evaluate_tasks, evaluation_tasks  # noqa: E402
from zoo.provenance import commit  # noqa: E402

#: The labels that are compared: options of HIPIBC.
VARIANTS: dict[str, dict[str, Any]] = {
    "HIPI-BC": {"strategy": "hipi"},
    "HIPI-BC, no log Z": {"strategy": "hipi", "log_partition": "none"},
    "plain BC": {"strategy": "none"},
    "random": {"strategy": "random"},
    "max reward": {"strategy": "max_reward"},
    "top 10 %": {"strategy": "top_k"},
    "final (GCSL)": {"strategy": "final"},
}

N_EVALUATION_TASKS = 32

#: Resamples of a bootstrap interval.
N_RESAMPLES = 10_000


def successes(evaluation: TaskEvaluation) -> np.ndarray:
    """1 where the goal was reached, (n_tasks,)."""
    assert evaluation.successes is not None
    return evaluation.successes[:, 0].astype(float)


def returns(evaluation: TaskEvaluation) -> np.ndarray:
    """Return of each task, (n_tasks,)."""
    return evaluation.returns[:, 0]


@dataclass(frozen=True)
class Setting:
    """
    A family of tasks, and how it is trained.

    :param make_env: makes the environment
    :param n_steps: environment steps of the commanded policy's training
    :param n_episodes: episodes that each stage is rolled out for
    :param metric: what is compared, in words
    :param score: the same as a function, (n_tasks,)
    :param labels: options of the labels, for all variants
    :param learner: options of the commanded policy's training
    """

    make_env: Callable[[], gym.Env]
    n_steps: int
    n_episodes: int
    metric: str
    score: Callable[[TaskEvaluation], np.ndarray]
    labels: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


# -- a finite set of directions --------------------------------------------------------------------------------------------

N_DIRECTIONS = 8


def moved(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """How far the step went, (2,)."""
    return next_obs - obs


#: Each direction rewards progress on another scale, from 0.25 to 4.
SCALES = np.array([4.0 ** (2 * ((3 * k) % N_DIRECTIONS) / (N_DIRECTIONS - 1) - 1) for k in range(N_DIRECTIONS)])


def along(direction: int, features: np.ndarray) -> np.ndarray:
    """Progress in one of eight directions, on its scale."""
    angle = 2 * np.pi * direction / N_DIRECTIONS
    return SCALES[direction] * (features[..., 0] * np.cos(angle) + features[..., 1] * np.sin(angle))


def progress(evaluation: TaskEvaluation) -> np.ndarray:
    """How far each task went in its direction: the return without the scale, so that all tasks count alike, (n_tasks,)."""
    return returns(evaluation) / (evaluation.tasks @ SCALES)


def make_directions() -> gym.Env:
    """A point in the middle of an open field: run in one of eight directions for 20 steps."""
    walls = np.zeros((17, 17))
    family = DiscreteTasks([partial(along, k) for k in range(N_DIRECTIONS)], moved, feature_dim=2)
    return MultiTaskWrapper(TimeLimit(PointEnv(walls, start=(25.5, 25.5)), 20), family)


SETTINGS: dict[str, Setting] = {
    "goals (PointFourRooms-v0)": Setting(
        partial(gym.make, "PointFourRooms-v0"),
        n_steps=15_000,
        n_episodes=300,
        metric="success",
        score=successes,
        labels={"n_candidate_tasks": 512, "temperature": "ess:8"},
        learner={"replay_buffer_kwargs": {"strategy": "future", "relabel_prob": 0.8}, "gamma": 0.98},
    ),
    "velocities (HalfCheetahVelocity-v0)": Setting(
        partial(gym.make, "HalfCheetahVelocity-v0", max_episode_steps=200),
        n_steps=36_000,
        n_episodes=60,
        metric="return",
        score=returns,
        labels={"temperature": "ess:8"},
        # The cheetah learns to run late: half as many updates as steps, of plain SAC, are the cheapest way there.
        learner={"replay_buffer_kwargs": {"strategy": "none"}, "gamma": 0.98, "batch_size": 128, "train_freq": 2},
    ),
    "directions (open field)": Setting(
        make_directions, n_steps=3_000, n_episodes=250, metric="distance in the direction asked for", score=progress
    ),
}


# -- the data --------------------------------------------------------------------------------------------------------------


def make_dataset(setting: Setting, n_stages: int, seed: int) -> tuple[TrajectoryDataset, list[float]]:
    """
    Train a commanded policy and roll its stages out.

    :param setting: the setting
    :param n_stages: number of trained stages, beside the untrained one
    :param seed: seed
    :return: data set, and the mean return of each stage
    """
    env = setting.make_env()
    model = HIPISAC(
        "MultiInputPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=1000,
        policy_kwargs={"net_arch": [128, 128]},
        seed=seed,
        device="cpu",
        **{"batch_size": 64, **setting.learner},
    )
    env = setting.make_env()
    env.reset(seed=seed)
    episodes: list[dict[str, Any]] = []
    mean_returns = []
    for stage in range(n_stages + 1):
        if stage > 0:
            model.learn(setting.n_steps // n_stages, reset_num_timesteps=stage == 1)
        rolled_out = [roll_out(model, env) for _ in range(setting.n_episodes)]
        mean_returns.append(float(np.mean([episode["rewards"].sum() for episode in rolled_out])))
        episodes += rolled_out
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    dataset = TrajectoryDataset(
        env.get_wrapper_attr("task_family"),
        space["observation"],
        env.action_space,
        *(np.concatenate([episode[name] for episode in episodes]) for name in ("observations", "actions", "features")),
        lengths=np.array([len(episode["rewards"]) for episode in episodes]),
        tasks=np.stack([episode["task"] for episode in episodes]),
        env_terminated=np.array([episode["env_terminated"] for episode in episodes]),
    )
    return dataset, mean_returns


def roll_out(model: BaseAlgorithm, env: gym.Env) -> dict[str, Any]:
    """One episode of the exploring policy, with a task from the prior."""
    obs, info = env.reset()
    task, done = info["task"], False
    steps: dict[str, list[Any]] = {"observations": [], "actions": [], "features": [], "rewards": []}
    while not done:
        action, _ = model.predict(obs)
        steps["observations"].append(obs["observation"])
        obs, reward, terminated, truncated, info = env.step(action)
        for name, value in (("actions", action), ("features", info["task_features"]), ("rewards", reward)):
            steps[name].append(value)
        done = terminated or truncated
    arrays: dict[str, Any] = {name: np.array(values, dtype=np.float32) for name, values in steps.items()}
    return {**arrays, "task": task, "env_terminated": info["env_terminated"]}


# -- the comparison --------------------------------------------------------------------------------------------------------


def run(
    setting: Setting, dataset: TrajectoryDataset, options: dict[str, Any], n_updates: int, seed: int, task_seed: int
) -> np.ndarray:
    """Clone with one variant: what each evaluation task gets, (n_tasks,)."""
    model = HIPIBC(
        "MultiInputPolicy", seed=seed, device="cpu", policy_kwargs={"net_arch": [128, 128]}, **{**setting.labels, **options}
    )
    model.fit(dataset, n_updates=n_updates)
    tasks = evaluation_tasks(dataset.family, N_EVALUATION_TASKS, task_seed)
    return setting.score(evaluate_tasks(model, setting.make_env(), tasks, seed=task_seed))


def is_possible(family: TaskFamily, options: dict[str, Any]) -> bool:
    """Whether a variant exists for a family: final states are tasks of goal families only."""
    return options["strategy"] != "final" or family.reaches_goals


def summarize(scores: dict[str, np.ndarray], reference: str = "HIPI-BC") -> dict[str, Any]:
    """
    Means with intervals.

    A policy is evaluated on all tasks, and all policies are evaluated on the same ones. So a resample draws tasks, and with
    them for every variant its seeds: whole rows and columns.

    :param scores: scores by variant, (n_seeds, n_tasks)
    :param reference: the variant that the others are compared with
    :return: by variant, ``mean`` and its 95 % interval, and ``behind``, by how much it is behind the reference, with its 95 %
        interval
    """
    rng = np.random.default_rng(0)
    n_seeds, n_tasks = scores[reference].shape
    tasks = rng.integers(n_tasks, size=(N_RESAMPLES, 1, n_tasks))
    resampled = {
        name: values[rng.integers(n_seeds, size=(N_RESAMPLES, n_seeds, 1)), tasks].mean(axis=(1, 2))  # over seeds and tasks
        for name, values in scores.items()
    }
    return {
        name: {
            "mean": float(values.mean()),
            "interval": _interval(resampled[name]),
            "behind": float(scores[reference].mean() - values.mean()),
            "behind_interval": _interval(resampled[reference] - resampled[name]) if name != reference else [0.0, 0.0],
            "scores": values.round(4).tolist(),
        }
        for name, values in scores.items()
    }


def _interval(resampled: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(resampled, [2.5, 97.5])]


def table(name: str, setting: Setting, summary: dict[str, Any]) -> str:
    """Format the results of one setting."""
    lines = [f"\n{name}: {setting.metric}", f"{'':20s} {'mean':>8s}   {'95 %':^19s} {'behind HIPI-BC':>15s}   {'95 %':^19s}"]
    for variant, row in summary.items():
        low, high = row["interval"]
        behind_low, behind_high = row["behind_interval"]
        behind = "" if variant == "HIPI-BC" else f" {row['behind']:15.2f}   [{behind_low:8.2f},{behind_high:8.2f}]"
        lines.append(f"{variant:20s} {row['mean']:8.2f}   [{low:8.2f},{high:8.2f}]{behind}")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Format the results of all settings, two columns a setting."""
    heads = " | ".join(f"{name}: {result['metric']} | behind" for name, result in results.items())
    lines = [f"| | {heads} |", "|---" * (2 * len(results) + 1) + "|"]
    for variant in VARIANTS:
        cells = []
        for result in results.values():
            row = result["variants"].get(variant)
            cells += ["", ""] if row is None else [_with_interval(row, "mean"), _with_interval(row, "behind")]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(row: dict[str, Any], name: str) -> str:
    low, high = row["interval" if name == "mean" else f"{name}_interval"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Make the data, train all variants, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="file for the results; those of other settings in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data-seed", type=int, default=1, help="seed of the commanded policy and of its episodes")
    parser.add_argument("--task-seed", type=int, default=1, help="seed of the evaluation tasks")
    parser.add_argument("--stages", type=int, default=3, help="trained stages of the commanded policy")
    parser.add_argument("--updates", type=int, default=1500, help="minibatches of 256 steps")
    parser.add_argument("--data", type=pathlib.Path, help="folder to keep the data sets in")
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--show", action="store_true", help="run nothing, print what is in --json as Markdown")
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(args.json.read_text())))
        return
    th.set_num_threads(1)
    for name, setting in SETTINGS.items():
        if args.only and args.only not in name:
            continue
        result = compare(name, setting, args)
        print(table(name, setting, result["variants"]))
        print(
            f"{result['cpu_seconds']['data']} CPU seconds for the data, {result['cpu_seconds']['cloning']} for cloning",
            flush=True,
        )
        if args.json:
            results = json.loads(args.json.read_text()) if args.json.is_file() else {}
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({**results, name: result}, indent=1) + "\n")


def compare(name: str, setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Make the data of a setting and clone them with all variants, with all seeds."""
    here = {
        "command": " ".join(["python", "benchmarks/bc_table.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
    }
    start = time.process_time()
    dataset, stages = make_dataset(setting, args.stages, args.data_seed)
    if args.data:
        args.data.mkdir(parents=True, exist_ok=True)
        dataset.save(args.data / f"{name.split()[0]}_{args.data_seed}.npz")
    data = {"seed": args.data_seed, "episodes": dataset.n_trajectories, "steps": dataset.n_steps, "return_of_stages": stages}
    print(f"\n{name}: {data}", flush=True)
    made = time.process_time()
    scores: dict[str, np.ndarray] = {}
    for variant, options in VARIANTS.items():
        if is_possible(dataset.family, options):
            rows = [run(setting, dataset, options, args.updates, seed, args.task_seed) for seed in args.seeds]
            scores[variant] = np.stack(rows)
            print(f"  {variant}: {', '.join(f'{row.mean():.3f}' for row in rows)}", flush=True)
    seconds = {"data": round(made - start), "cloning": round(time.process_time() - made)}
    return {
        **here,
        "metric": setting.metric,
        "labels": setting.labels,
        "updates": args.updates,
        "cpu_seconds": seconds,
        "data": data,
        "variants": summarize(scores),
    }


if __name__ == "__main__":
    main()
