"""What storing a step costs, against stable-baselines3's buffers: ``add`` of recorded steps of FetchReach.

    OMP_NUM_THREADS=1 python benchmarks/add_speed.py --json benchmarks/results/add_speed.json

As a GoalEnv, against HerReplayBuffer; with the task and its features as MultiTaskWrapper gives them, against DictReplayBuffer.
In processor time. See :mod:`benchmarks.measuring`.
"""

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.core_speed import FETCH_GOALS
from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import HIPIReplayBuffer

BUFFER_SIZE = 100_000


def recorded_steps(env: DummyVecEnv, n: int) -> list[tuple[Any, ...]]:
    """Arguments of ``add``, as an off-policy algorithm has them."""
    env.seed(0)
    env.action_space.seed(0)
    obs: Any = env.reset()
    steps = []
    for _ in range(n):
        action = env.action_space.sample()[None]
        new_obs: Any
        new_obs, reward, done, infos = env.step(action)
        next_obs = {key: value.copy() for key, value in new_obs.items()}
        if done[0]:
            next_obs = {key: value[None] for key, value in infos[0]["terminal_observation"].items()}
        steps.append((obs, next_obs, action, reward, done, infos))
        obs = new_obs
    return steps


def with_task(step: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same step as MultiTaskWrapper gives it."""
    obs, next_obs, action, _, done, infos = step
    task = obs["desired_goal"].astype(np.float32)
    features = next_obs["achieved_goal"].astype(np.float32)
    info = {**infos[0], "task": task[0], "task_features": features[0], "env_terminated": False}
    shown = ({"observation": part["observation"], "task": task} for part in (obs, next_obs))
    return *shown, action, FETCH_GOALS.reward(features, task), done, [info]


def adding(buffer: Any, steps: list[tuple[Any, ...]]) -> Callable[[], None]:
    def add_all() -> None:
        for step in steps:
            buffer.add(*step)

    return add_all


def measure(n: int, turns: int) -> dict[str, Any]:
    gym.register_envs(gymnasium_robotics)
    env = DummyVecEnv([lambda: gym.make("FetchReach-v4")])
    space: Any = env.observation_space
    task_space = spaces.Dict(observation=space["observation"], task=FETCH_GOALS.task_space)
    steps = recorded_steps(env, n)
    task_steps = [with_task(step) for step in steps]
    options: dict[str, Any] = {"device": "cpu", "strategy": "future"}
    functions = {
        "her": adding(HerReplayBuffer(BUFFER_SIZE, space, env.action_space, env, device="cpu"), steps),
        "hipi_goal_env": adding(HIPIReplayBuffer(BUFFER_SIZE, space, env.action_space, env=env, **options), steps),
        "dict": adding(DictReplayBuffer(BUFFER_SIZE, task_space, env.action_space, device="cpu"), task_steps),
        "hipi_wrapped": adding(
            HIPIReplayBuffer(BUFFER_SIZE, task_space, env.action_space, family=FETCH_GOALS, **options), task_steps
        ),
    }
    times = take_turns(functions, turns, calls=1, clock=time.process_time)
    for name, seconds in times.items():
        show(f"  {name}", interval_of_median(1e6 * seconds / n), "", " us a step")
    result = {
        "steps": n,
        "turns": turns,
        "us_a_step": {name: interval_of_median(1e6 * seconds / n) for name, seconds in times.items()},
        "goal_env_over_her": ratio(times["hipi_goal_env"], times["her"]),
        "wrapped_over_dict": ratio(times["hipi_wrapped"], times["dict"]),
    }
    show("  ours in a GoalEnv / HerReplayBuffer", result["goal_env_over_her"], "at most 2")
    show("  ours with MultiTaskWrapper / DictReplayBuffer", result["wrapped_over_dict"], "at most 1.5")
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=1000, help="steps a turn")
    options.add_argument("--turns", type=int, default=20, help="turns that each candidate gets")
    args = options.parse_args()
    run("add_speed.py", args, lambda: measure(*((100, 2) if args.quick else (args.steps, args.turns))))


if __name__ == "__main__":
    main()
