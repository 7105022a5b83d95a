"""What MultiTaskWrapper adds to HalfCheetah-v5, and how much faster 64 points step together than one after the other.

    OMP_NUM_THREADS=1 python benchmarks/vector_env.py --json benchmarks/results/vector_env.json

The wrapper: ``gymnasium.make("HalfCheetah-v5")`` with and without MultiTaskWrapper around it, from the same states with the
same actions. The points: random actions, with the resets that follow from them, against the single environment and, for
stable-baselines3, PointVecEnv against DummyVecEnv of as many. Processor time, in turns.
"""

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import MultiTaskWrapper, TargetVelocity
from hipi_sb3.envs import registered_env_ids
from hipi_sb3.vec_env import PointVecEnv

TASKS = TargetVelocity(0.0, 3.0)


def measure_wrapper(turns: int, n_steps: int) -> dict[str, Any]:
    """Time of a step with the wrapper over that without."""
    envs = {
        "bare": gym.make("HalfCheetah-v5"),
        "wrapped": MultiTaskWrapper(gym.make("HalfCheetah-v5"), TASKS),
        "registered": gym.make("HalfCheetahVelocity-v0"),
    }
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in envs}
    for turn in range(turns + 1):
        actions = rng.uniform(-1, 1, (n_steps, 6)).astype(np.float32)
        # Another one begins each time: the first of a turn meets colder caches.
        for name in np.roll(list(envs), turn):
            envs[name].reset(seed=turn)
            start = time.process_time()
            for action in actions:
                envs[name].step(action)
            times[name].append((time.process_time() - start) / n_steps)
    seconds = {name: np.array(values[1:]) for name, values in times.items()}  # the first turn warms up
    result: dict[str, Any] = {f"{name}_us": interval_of_median(1e6 * values) for name, values in seconds.items()}
    result["wrapped_over_bare"] = ratio(seconds["wrapped"], seconds["bare"])
    result["registered_over_bare"] = ratio(seconds["registered"], seconds["bare"])
    print("\nHalfCheetah-v5, a step")
    for name in envs:
        show(f"  {name}", result[f"{name}_us"], unit=" us")
    show("  with MultiTaskWrapper / without", result["wrapped_over_bare"], "at most 1.1")
    show(
        "  HalfCheetahVelocity-v0 / HalfCheetah-v5, as gymnasium.make gives them",
        result["registered_over_bare"],
        "at most 1.1",
    )
    return result


def steps_of_one(env: gym.Env, n_steps: int) -> Callable[[], None]:
    """Random steps of one environment, with its resets."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(n_steps)]

    def function() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return function


def steps_of_many(env: Any, actions: list[np.ndarray]) -> Callable[[], None]:
    """Steps of a vector environment, which resets by itself."""

    def function() -> None:
        for action in actions:
            env.step(action)

    return function


def measure_points(env_ids: list[str], turns: int, n_steps: int, num_envs: int) -> dict[str, Any]:
    """Steps a second of many points over those of one."""
    results: dict[str, Any] = {}
    print(f"\n{num_envs} points, environment steps a second")
    for env_id in env_ids:
        vector = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point")
        ours = PointVecEnv(gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point"))
        dummy = DummyVecEnv([lambda env_id=env_id: gym.make(env_id)] * num_envs)
        for env in (ours, dummy):
            env.seed(0)
            env.reset()
        vector.reset(seed=0)
        vector.action_space.seed(0)
        actions = [vector.action_space.sample() for _ in range(n_steps)]
        functions = {
            "single": steps_of_one(gym.make(env_id), 4 * n_steps),
            "vector": steps_of_many(vector, actions),
            "sb3": steps_of_many(ours, actions),
            "dummy": steps_of_many(dummy, actions[: max(1, n_steps // 10)]),
        }
        n = {"single": 4 * n_steps, "vector": n_steps * num_envs, "sb3": n_steps * num_envs}
        n["dummy"] = max(1, n_steps // 10) * num_envs
        times = take_turns(functions, turns, calls=1, clock=time.process_time)
        a_step = {name: times[name] / n[name] for name in functions}
        result = {f"{name}_steps_per_second": interval_of_median(1 / seconds) for name, seconds in a_step.items()}
        result["vector_over_single"] = ratio(a_step["single"], a_step["vector"])
        result["sb3_over_single"] = ratio(a_step["single"], a_step["sb3"])
        result["sb3_over_dummy_vec_env"] = ratio(a_step["dummy"], a_step["sb3"])
        results[env_id] = result
        show(f"  {env_id}: one", result["single_steps_per_second"], unit=" /s")
        show(f"  {env_id}: together", result["vector_steps_per_second"], unit=" /s")
        show("    over one", result["vector_over_single"], "at least 10")
        show("    PointVecEnv over DummyVecEnv", result["sb3_over_dummy_vec_env"])
        show("    PointVecEnv over one", result["sb3_over_single"])
    return results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=25)
    options.add_argument("--num-envs", type=int, default=64)
    args = options.parse_args()
    env_ids = [env_id for env_id in registered_env_ids() if gym.spec(env_id).vector_entry_point is not None]
    turns, n_steps, num_envs, env_ids = (2, 10, 4, env_ids[:1]) if args.quick else (args.turns, 150, args.num_envs, env_ids)

    def measure() -> dict[str, Any]:
        wrapper = measure_wrapper(turns, min(n_steps, 50))
        return {"turns": turns, "wrapper": wrapper, "points": measure_points(env_ids, turns, n_steps, num_envs)}

    run("vector_env.py", args, lambda: {"num_envs": num_envs, **measure()})


if __name__ == "__main__":
    main()
