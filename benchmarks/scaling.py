"""How cost grows: steps a second and memory against what a user may make large, one thing at a time.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json --picture docs/scaling.png

End-to-end HIPISAC with its defaults on random observations, batch 64, nets of 64 x 64, one thread, each point in a process of
its own. The buffer's size is its capacity; a few hundred rows or, with many environments, a few thousand are in it. Steps a
second are those after the first updates; memory is the largest resident size of the process.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

#: What is varied, with its values; all else as in ``DEFAULTS``.
AXES: dict[str, list[int]] = {
    "candidates": [8, 32, 128, 512, 4096],
    "finite_tasks": [4, 32, 256, 257, 1000, 10_000],
    "task_dim": [1, 8, 64, 512],
    "observation_size": [10, 100, 1000, 10_000, 100_000],
    "buffer_size": [10_000, 100_000, 1_000_000, 10_000_000],
    "environments": [1, 4, 16, 64, 256],
    "n_steps": [1, 2, 5, 10, 20],
}
DEFAULTS = {
    "candidates": 32,
    "finite_tasks": 0,
    "task_dim": 2,
    "observation_size": 20,
    "buffer_size": 5_000,
    "environments": 1,
    "n_steps": 1,
}


def point(axis: str, value: int, n_updates: int) -> dict[str, float]:
    """
    Measure one point, in this process.

    :param axis: what is varied
    :param value: its value
    :param n_updates: updates that are timed
    :return: steps and updates a second, and memory in MB
    """
    import gymnasium as gym
    import numpy as np
    import torch as th
    from stable_baselines3.common.vec_env import DummyVecEnv

    from hipi_sb3 import HIPISAC, FiniteTasks, GoalReaching, MultiTaskWrapper

    th.set_num_threads(1)
    sizes = {**DEFAULTS, axis: value}
    rng = np.random.default_rng(0)
    task_dim = sizes["task_dim"]
    family: Any = GoalReaching(low=[-3.0] * task_dim, high=[3.0] * task_dim, radius=0.3)
    if sizes["finite_tasks"]:
        family = FiniteTasks(family, rng.uniform(-3, 3, (sizes["finite_tasks"], task_dim)))

    class Noise(gym.Env):
        """Random observations, as large as asked for and at least as large as a goal."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (max(sizes["observation_size"], task_dim),), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            return self._obs(), {}

        def step(self, action: np.ndarray) -> Any:
            return self._obs(), 0.0, False, bool(self.np_random.random() < 0.01), {}

        def _obs(self) -> np.ndarray:
            return self.np_random.standard_normal(self.observation_space.shape, dtype=np.float32)

    n_envs = sizes["environments"]
    env = DummyVecEnv([lambda: MultiTaskWrapper(Noise(), family)] * n_envs)
    options: dict[str, Any] = {"n_candidate_tasks": sizes["candidates"], "warmup_updates": 4, "n_steps": sizes["n_steps"]}
    model = HIPISAC(
        "MultiInputPolicy",
        env,
        learning_starts=200,
        batch_size=64,
        buffer_size=sizes["buffer_size"],
        n_steps=sizes["n_steps"],
        policy_kwargs={"net_arch": [64, 64]},
        replay_buffer_kwargs=options,
        train_freq=1,
        gradient_steps=1,
        seed=0,
    )
    model.learn(200 + 32 * n_envs, log_interval=None)
    before, start = model.num_timesteps, time.perf_counter()
    model.learn(n_updates * n_envs, reset_num_timesteps=False, log_interval=None)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "steps_per_second": (model.num_timesteps - before) / seconds,
        "updates_per_second": n_updates / seconds,
        "megabytes": memory,
    }


def measure(args: Any) -> dict[str, Any]:
    """All points of the axes that were asked for."""
    axes = {axis: values[:2] if args.quick else values for axis, values in AXES.items() if not args.axes or axis in args.axes}
    curves: dict[str, list[dict[str, float]]] = {}
    for axis, values in axes.items():
        curves[axis] = []
        for value in values:
            command = [
                sys.executable,
                __file__,
                "--point",
                axis,
                str(value),
                "--updates",
                str(2 if args.quick else args.updates),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
            if result.returncode != 0:
                raise RuntimeError(f"{axis}={value} failed:\n{result.stderr[-2000:]}")
            measured = {"value": value, **json.loads(result.stdout.splitlines()[-1])}
            curves[axis].append(measured)
            print(
                f"{axis:<18}{value:>10}  {measured['steps_per_second']:8.1f} steps/s  "
                f"{measured['updates_per_second']:8.1f} updates/s  {measured['megabytes']:8.0f} MB",
                flush=True,
            )
    if args.picture is not None:
        draw(curves, args.picture)
    return {"updates": args.updates, "defaults": DEFAULTS, "curves": curves}


def draw(curves: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    """Draw updates a second and memory, a panel an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(curves), figsize=(2.4 * len(curves), 4.6), sharey="row", squeeze=False)
    for column, (axis, points) in enumerate(curves.items()):
        for row, (key, label) in enumerate((("updates_per_second", "updates/s"), ("megabytes", "MB"))):
            panel = panels[row, column]
            panel.loglog([each["value"] for each in points], [each[key] for each in points], "o-", color="#0072B2")
            panel.grid(alpha=0.3)
            panel.set_xlabel(axis.replace("_", " ") if row == 1 else "")
            panel.set_ylabel(label if column == 0 else "")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    from benchmarks.measuring import parser, run

    options = parser(__doc__)
    options.add_argument("--updates", type=int, default=200, help="updates that are timed at each point (default: 200)")
    options.add_argument("--axes", nargs="*", default=[], help=f"only these of {', '.join(AXES)}")
    options.add_argument("--picture", type=pathlib.Path, help="also draw the curves to this file")
    options.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help="measure one point here and print it as JSON")
    args = options.parse_args()
    if args.point is not None:
        print(json.dumps(point(args.point[0], int(args.point[1]), args.updates)))
        return
    run("scaling.py", args, lambda: measure(args))


if __name__ == "__main__":
    main()
