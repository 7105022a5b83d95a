"""HIPI-BC against plain behaviour cloning and other labels, on three families of tasks.

    OMP_NUM_THREADS=1 python benchmarks/bc_table.py --json benchmarks/results/bc_table.json

For each family a commanded policy is trained for a while; before, during and after the training its stages are rolled out on
tasks from the prior, so that the data are of mixed quality. All variants clone the same data, with several seeds. No variant
but plain cloning sees for which task an episode was collected. They are evaluated on the same tasks, greedily.
"""

import argparse
import json
import pathlib
import platform
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
from rliable import library, metrics
from stable_baselines3.common.base_class import BaseAlgorithm

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hipi_sb3 import HIPIBC, HIPISAC, DiscreteTasks, MultiTaskWrapper, TaskFamily, TrajectoryDataset  # noqa: E402
from hipi_sb3.envs.point import PointEnv  # noqa: E402
from hipi_sb3.evaluation import bootstrap_interval, evaluate_tasks, evaluation_tasks  # noqa: E402

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

#: Seeds of the data and of the evaluation tasks. The options in SETTINGS were chosen with others: data seed 0, task seed 0.
DATA_SEED = 1
TASK_SEED = 1


@dataclass(frozen=True)
class Setting:
    """
    A family of tasks, and how it is trained.

    :param make_env: makes the environment
    :param n_steps: environment steps of the commanded policy's training
    :param n_episodes: episodes that each stage is rolled out for
    :param metric: what is compared: ``"success"``, or ``"return"``
    :param labels: options of the labels, for all variants
    :param learner: options of the commanded policy's training
    """

    make_env: Callable[[], gym.Env]
    n_steps: int
    n_episodes: int
    metric: str
    labels: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


# -- a finite set of directions --------------------------------------------------------------------------------------------

N_DIRECTIONS = 8


def moved(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """How far the step went, (2,)."""
    return next_obs - obs


def along(direction: int, features: np.ndarray) -> np.ndarray:
    """Progress in one of eight directions. Each rewards it on another scale, from 0.25 to 4."""
    angle = 2 * np.pi * direction / N_DIRECTIONS
    scale = 4.0 ** (2 * ((3 * direction) % N_DIRECTIONS) / (N_DIRECTIONS - 1) - 1)
    return scale * (features[..., 0] * np.cos(angle) + features[..., 1] * np.sin(angle))


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
        labels={"n_candidate_tasks": 512, "temperature": "ess:8"},
        learner={"replay_buffer_kwargs": {"strategy": "future", "relabel_prob": 0.8}, "gamma": 0.98},
    ),
    "velocities (HalfCheetahVelocity-v0)": Setting(
        partial(gym.make, "HalfCheetahVelocity-v0", max_episode_steps=200),
        n_steps=12_000,
        n_episodes=75,
        metric="return",
        labels={"temperature": "ess:8"},
    ),
    "directions (open field)": Setting(make_directions, n_steps=3_000, n_episodes=250, metric="return"),
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
        batch_size=64,
        learning_starts=1000,
        policy_kwargs={"net_arch": [128, 128]},
        seed=seed,
        device="cpu",
        **setting.learner,
    )
    env = setting.make_env()
    env.reset(seed=seed)
    episodes: list[dict[str, Any]] = []
    returns = []
    for stage in range(n_stages + 1):
        if stage > 0:
            model.learn(setting.n_steps // n_stages, reset_num_timesteps=stage == 1)
        rolled_out = [roll_out(model, env) for _ in range(setting.n_episodes)]
        returns.append(float(np.mean([episode["rewards"].sum() for episode in rolled_out])))
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
    return dataset, returns


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


def run(setting: Setting, dataset: TrajectoryDataset, options: dict[str, Any], n_updates: int, seed: int) -> np.ndarray:
    """Clone with one variant: what each evaluation task gets, (n_tasks,)."""
    env = setting.make_env()
    model = HIPIBC(
        "MultiInputPolicy", seed=seed, device="cpu", policy_kwargs={"net_arch": [128, 128]}, **{**setting.labels, **options}
    )
    model.fit(dataset, n_updates=n_updates)
    evaluation = evaluate_tasks(model, env, evaluation_tasks(dataset.family, N_EVALUATION_TASKS, TASK_SEED), seed=TASK_SEED)
    if setting.metric == "success":
        assert evaluation.successes is not None
        return evaluation.successes[:, 0].astype(float)
    return evaluation.returns[:, 0]


def is_possible(family: TaskFamily, options: dict[str, Any]) -> bool:
    """Whether a variant exists for a family: final states are tasks of goal families only."""
    return options["strategy"] != "final" or family.reaches_goals


def summarize(scores: dict[str, np.ndarray], reference: str = "HIPI-BC") -> dict[str, Any]:
    """
    Means with intervals.

    :param scores: scores by variant, (n_seeds, n_tasks)
    :param reference: the variant that the others are compared with
    :return: by variant, ``mean`` and its 95 % interval (rliable's bootstrap over seeds and tasks), and ``behind``, by how
        much it is behind the reference, with the 95 % bootstrap interval over tasks (seeds of a task stay together)
    """
    means, intervals = library.get_interval_estimates(
        scores, lambda values: np.array([metrics.aggregate_mean(values)]), reps=5000, task_bootstrap=True
    )
    summary = {}
    for name, values in scores.items():
        difference = (scores[reference] - values).T
        summary[name] = {
            "mean": float(means[name][0]),
            "interval": [float(bound) for bound in intervals[name][:, 0]],
            "behind": float(difference.mean()),
            "behind_interval": list(bootstrap_interval(difference)),
            "by_seed": values.mean(axis=1).tolist(),
        }
    return summary


def table(name: str, setting: Setting, summary: dict[str, Any]) -> str:
    """Format the results of one setting."""
    lines = [f"\n{name}: {setting.metric}", f"{'':20s} {'mean':>8s}   {'95 %':^19s} {'behind HIPI-BC':>15s}   {'95 %':^19s}"]
    for variant, row in summary.items():
        low, high = row["interval"]
        behind_low, behind_high = row["behind_interval"]
        behind = "" if variant == "HIPI-BC" else f" {row['behind']:15.2f}   [{behind_low:8.2f},{behind_high:8.2f}]"
        lines.append(f"{variant:20s} {row['mean']:8.2f}   [{low:8.2f},{high:8.2f}]{behind}")
    return "\n".join(lines)


def main() -> None:
    """Make the data, train all variants, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, default=3, help="trained stages of the commanded policy")
    parser.add_argument("--updates", type=int, default=1500, help="minibatches of 256 steps")
    parser.add_argument("--data", type=pathlib.Path, help="folder to keep the data sets in")
    parser.add_argument("--only", help="settings whose name contains this")
    args = parser.parse_args()
    th.set_num_threads(1)
    results: dict[str, Any] = {}
    begin = time.process_time()
    for name, setting in SETTINGS.items():
        if args.only and args.only not in name:
            continue
        start = time.process_time()
        dataset, returns = make_dataset(setting, args.stages, DATA_SEED)
        if args.data:
            args.data.mkdir(parents=True, exist_ok=True)
            dataset.save(args.data / f"{name.split()[0]}.npz")
        stages = ", ".join(f"{value:.1f}" for value in returns)
        print(f"\n{name}: {dataset.n_trajectories} episodes, {dataset.n_steps} steps, mean return of the stages {stages}")
        print(f"data in {time.process_time() - start:.0f} CPU seconds", flush=True)
        start = time.process_time()
        possible = {variant: options for variant, options in VARIANTS.items() if is_possible(dataset.family, options)}
        scores = {
            variant: np.stack([run(setting, dataset, options, args.updates, seed) for seed in range(args.seeds)])
            for variant, options in possible.items()
        }
        summary = summarize(scores)
        print(table(name, setting, summary))
        print(f"cloned in {time.process_time() - start:.0f} CPU seconds", flush=True)
        results[name] = {
            "metric": setting.metric,
            "n_episodes": dataset.n_trajectories,
            "n_steps": dataset.n_steps,
            "returns_of_stages": returns,
            "variants": summary,
        }
    if args.json:
        settings = {"seeds": args.seeds, "stages": args.stages, "updates": args.updates, "tasks": N_EVALUATION_TASKS}
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": th.__version__}
        values = {"cpu_seconds": round(time.process_time() - begin), **settings, **machine, "results": results}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(values, indent=1) + "\n")
        print(f"\nResults: {args.json}")


if __name__ == "__main__":
    main()
