"""What a step through RayVecEnv costs, and what it gains with a simulator that takes its time.

    python benchmarks/ray_vec_env.py --json benchmarks/results/ray_vec_env.json

Two actors on this machine against ``DummyVecEnv``, in turns: PointFourRooms-v0, whose step takes microseconds, so that the
difference is the overhead of a step of all environments; then the same with 5 ms of waiting in every step of an environment.
"""

import pathlib
import sys
import time
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, run, show, take_turns
from hipi_sb3.ray_vec_env import RayVecEnv


class Slow(gym.Wrapper):
    """
    An environment whose step takes longer.

    :param env: environment
    :param seconds: to wait in each step
    """

    def __init__(self, env: gym.Env, seconds: float) -> None:
        super().__init__(env)
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        if self.seconds > 0:
            time.sleep(self.seconds)
        return self.env.step(action)


def make_env(seconds: float) -> gym.Env:
    """Four rooms; in an actor too."""
    import hipi_sb3  # noqa: F401  registers it

    return Slow(gym.make("PointFourRooms-v0"), seconds)


def main() -> None:
    args = parser(__doc__).parse_args()
    run("ray_vec_env.py", args, lambda: measure(args.quick))


def measure(quick: bool) -> dict[str, Any]:
    """Milliseconds a step of all environments."""
    results: dict[str, Any] = {}
    for seconds in (0.0, 0.005):
        for n_envs in (2, 16, 64):
            functions = [partial(make_env, seconds)] * n_envs
            kinds: dict[str, VecEnv] = {
                "dummy": DummyVecEnv(functions),
                "ray, two actors": RayVecEnv(functions, envs_per_actor=n_envs // 2),
            }
            if n_envs == 2:
                kinds["subproc"] = SubprocVecEnv(functions)
            actions = np.zeros((n_envs, 2), dtype=np.float32)
            for env in kinds.values():
                env.seed(0)
                env.reset()
            steps = {name: partial(env.step, actions) for name, env in kinds.items()}
            times = take_turns(steps, turns=2 if quick else 15, calls=2 if quick or seconds else 50)
            for env in kinds.values():
                env.close()
            key = f"{n_envs} environments, {seconds * 1000:g} ms of simulator"
            results[key] = {name: interval_of_median(1000 * values) for name, values in times.items()}
            for name, value in results[key].items():
                show(f"{key}, {name}", value, unit=" ms")
    return {"milliseconds_a_step_of_all": results}


if __name__ == "__main__":
    main()
