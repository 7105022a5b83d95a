"""What collecting costs beside the simulator, and what updates during slow steps gain.

    OMP_NUM_THREADS=1 python benchmarks/collecting.py --json benchmarks/results/collecting.json

*Outside*: HIPISAC collects in 64 half cheetahs with tasks in one process, with its policy and without updates; the share of
the time that is not spent in Gymnasium's own ``HalfCheetah-v5``. By part: policy, MultiTaskWrapper, the copies that
stable-baselines3's ``DummyVecEnv`` makes of every info, buffer, and the rest, vectorization and callbacks.

*Slow steps*: environments in processes of their own whose step takes five milliseconds (they sleep), and one update a step;
environment steps a second with ``update_while_stepping`` and without, in turns.
"""

import pathlib
import sys
import time
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, dummy_vec_env

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import GOALS, Noise
from benchmarks.measuring import Clock, interval_of_median, parser, ratio, run, show
from hipi_sb3 import HIPISAC, MultiTaskWrapper, TargetVelocity

#: Seconds of a slow step.
SLOW = 0.005


class SlowNoise(Noise):
    """Noise of a half cheetah's size whose step takes its time."""

    def step(self, action: np.ndarray) -> Any:
        time.sleep(SLOW)
        return super().step(action)


def make_cheetah(clocked: Clock) -> gym.Env:
    """A half cheetah with target velocities: the steps of both are clocked, and what the simulator takes to reset."""
    simulator: Any = gym.make("HalfCheetah-v5")
    simulator.step = clocked("simulator", simulator.step)
    simulator.reset = clocked("simulator", simulator.reset)
    env: Any = MultiTaskWrapper(simulator, TargetVelocity(0.0, 3.0))
    env.step = clocked("tasks", env.step)
    return env


def make_slow() -> gym.Env:
    """Slow noise with goals."""
    return MultiTaskWrapper(SlowNoise(), GOALS)


def measure_outside(n_envs: int, turns: int, n_rounds: int) -> dict[str, Any]:
    """Share of the time of a collected step by part."""
    clocked = Clock()
    vec_env = DummyVecEnv([partial(make_cheetah, clocked)] * n_envs)
    # Nets of 256 units, no updates.
    model: Any = HIPISAC("MultiInputPolicy", vec_env, learning_starts=0, gradient_steps=0, buffer_size=1_000_000, seed=0)
    model._sample_action = clocked("policy", model._sample_action)
    model._store_transition = clocked("buffer", model._store_transition)
    model.learn(n_envs * n_rounds, log_interval=None)  # warm up
    shares: dict[str, list[float]] = {}
    with patch.object(dummy_vec_env, "deepcopy", clocked("copies", deepcopy)):
        for _ in range(turns):
            clocked.seconds.clear()
            start = time.perf_counter()
            model.learn(n_envs * n_rounds, log_interval=None, reset_num_timesteps=False)
            whole, spent = time.perf_counter() - start, clocked.seconds
            outside = whole - spent["simulator"]
            parts = {"policy": spent["policy"], "wrapper": spent["tasks"] - spent["simulator"], "copies": spent["copies"]}
            parts["buffer"] = spent["buffer"]
            for name, seconds in {"outside": outside, **parts, "rest": outside - sum(parts.values())}.items():
                shares.setdefault(name, []).append(seconds / whole)
    print(f"\nHalf cheetah with tasks, {n_envs} environments, collected by the policy: shares of the time")
    result = {name: interval_of_median(np.array(values)) for name, values in shares.items()}
    for name, value in result.items():
        show(f"  {name}", value, "under 0.2" if name == "outside" else "")
    return result


def measure_slow(n_envs: int, turns: int, n_rounds: int) -> dict[str, Any]:
    """Steps a second with and without updates during the steps."""
    models = {}
    for name in ("afterwards", "while_stepping"):
        vec_env = SubprocVecEnv([make_slow] * n_envs)
        model = HIPISAC("MultiInputPolicy", vec_env, learning_starts=500, gradient_steps=1, buffer_size=100_000, seed=0)
        model.update_while_stepping = name == "while_stepping"
        models[name] = model.learn(500 + 10 * n_envs, log_interval=None)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(turns):
        for name, model in models.items():
            start = time.perf_counter()
            model.learn(n_envs * n_rounds, log_interval=None, reset_num_timesteps=False)
            rates[name].append(n_envs * n_rounds / (time.perf_counter() - start))
    for model in models.values():
        assert model.env is not None
        model.env.close()
    arrays = {name: np.array(values) for name, values in rates.items()}
    result = {f"{name}_per_second": interval_of_median(values) for name, values in arrays.items()}
    result["ratio"] = ratio(arrays["while_stepping"], arrays["afterwards"])
    print(f"\nSteps of {1000 * SLOW:.0f} ms, {n_envs} environments in processes of their own: steps/s")
    for name, value in result.items():
        show(f"  {name}", value)
    return result


def measure(quick: bool) -> dict[str, Any]:
    """All of it."""
    # A process for each environment takes seconds to start.
    turns, n_rounds, n_outside, n_slow = (2, 5, 4, (1,)) if quick else (9, 60, 64, (1, 4))
    return {
        "outside": {"n_envs": n_outside, **measure_outside(n_outside, turns, n_rounds)},
        "slow": [{"n_envs": n_envs, **measure_slow(n_envs, turns, 2 * n_rounds)} for n_envs in n_slow],
    }


def main() -> None:
    """Run the command line."""
    options = parser(__doc__).parse_args()
    run("collecting.py", options, lambda: measure(options.quick))


if __name__ == "__main__":
    main()
