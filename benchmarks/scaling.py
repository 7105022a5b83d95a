"""How cost grows: steps a second and memory against what a user may make large, one thing at a time.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json --picture docs/scaling.png

End-to-end HIPISAC with its defaults on random observations, batch 64, nets of 64 x 64, one thread, each point in a process of
its own, and all of them again in each round. The buffer's size is its capacity; a few hundred rows or, with many environments,
a few thousand are in it, but for *rows* and *mapped rows*: there a buffer of that capacity is full, in memory or in files that
are mapped into it, and updates are timed without steps. Images are square and have three colours; they go through NatureCNN.
Steps a second are those after the first updates; memory is the largest resident size of the process. Each figure is the median
of the rounds, with the smallest and the largest.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import parser, run, show  # noqa: E402

#: What is varied, with its values; all else as in ``DEFAULTS``.
AXES: dict[str, list[int]] = {
    "candidates": [8, 32, 128, 512, 4096],
    "finite_tasks": [4, 32, 256, 257, 1000, 10_000],
    "task_dim": [1, 8, 64, 512],
    "observation_size": [10, 100, 1000, 10_000, 100_000],
    "buffer_size": [10_000, 100_000, 1_000_000, 10_000_000],
    "environments": [1, 4, 16, 64, 256],
    "n_steps": [1, 2, 5, 10, 20],
    "image_size": [36, 64, 84],
    "rows": [10_000, 100_000, 1_000_000],
    "mapped_rows": [10_000, 100_000, 1_000_000],
}
DEFAULTS = {
    "candidates": 32,
    "finite_tasks": 0,
    "task_dim": 2,
    "observation_size": 20,
    "buffer_size": 5_000,
    "environments": 1,
    "n_steps": 1,
    "image_size": 0,
    "rows": 0,
    "mapped_rows": 0,
}
#: Environments that fill a buffer.
N_FILLING = 50


def point(axis: str, value: int, n_updates: int) -> dict[str, float]:
    """
    Measure one point, in this process.

    :param axis: what is varied
    :param value: its value
    :param n_updates: updates that are timed
    :return: steps and updates a second, and memory in MB
    """
    import gymnasium as gym
    import torch as th
    from stable_baselines3.common.vec_env import DummyVecEnv

    from hipi_sb3 import HIPISAC, FiniteTasks, GoalReaching, MultiTaskWrapper

    th.set_num_threads(1)
    sizes = {**DEFAULTS, axis: value}
    n_rows = sizes["rows"] or sizes["mapped_rows"]
    if n_rows:
        sizes |= {"buffer_size": n_rows, "environments": N_FILLING}
    rng = np.random.default_rng(0)
    task_dim = sizes["task_dim"]
    family: Any = GoalReaching(
        low=[-3.0] * task_dim,
        high=[3.0] * task_dim,
        radius=0.3,
        position=beside_image if sizes["image_size"] else None,
    )
    if sizes["finite_tasks"]:
        family = FiniteTasks(family, rng.uniform(-3, 3, (sizes["finite_tasks"], task_dim)))

    class Noise(gym.Env):
        """Random observations, as large as asked for and at least as large as a goal, or images with such a vector."""

        vectors = gym.spaces.Box(-np.inf, np.inf, (max(sizes["observation_size"], task_dim),), np.float32)
        images = gym.spaces.Box(0, 255, (sizes["image_size"], sizes["image_size"], 3), np.uint8)
        observation_space = gym.spaces.Dict(vector=vectors, image=images) if sizes["image_size"] else vectors
        action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            return self._obs(), {}

        def step(self, action: np.ndarray) -> Any:
            return self._obs(), 0.0, False, bool(self.np_random.random() < 0.01), {}

        def _obs(self) -> Any:
            vector = self.np_random.standard_normal(self.vectors.shape, dtype=np.float32)
            if not sizes["image_size"]:
                return vector
            return {"vector": vector, "image": self.np_random.integers(0, 256, self.images.shape, dtype=np.uint8)}

    if sizes["image_size"]:
        n_updates = min(n_updates, 48)  # seconds each on large images
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
    if n_rows:
        return {**updates_alone(model, n_rows, bool(sizes["mapped_rows"]), n_updates), "megabytes": peak_memory()}
    before, start = model.num_timesteps, time.perf_counter()
    model.learn(n_updates * n_envs, reset_num_timesteps=False, log_interval=None)
    seconds = time.perf_counter() - start
    return {
        "steps_per_second": (model.num_timesteps - before) / seconds,
        "updates_per_second": n_updates / seconds,
        "megabytes": peak_memory(),
    }


def beside_image(*step: Any) -> np.ndarray:
    """Where a goal of two numbers is read when observations have an image: in the vector of the next observation."""
    return np.asarray(step[3]["vector"][:2])


def updates_alone(model: Any, n_rows: int, mapped: bool, n_updates: int) -> dict[str, float]:
    """
    Fill the buffer, put it into files if asked for, and time updates without steps.

    :param model: HIPISAC
    :param n_rows: capacity of its buffer
    :param mapped: whether the buffer lies in files that are mapped into memory
    :param n_updates: updates that are timed
    :return: updates a second
    """
    learning_starts, model.learning_starts = model.learning_starts, model.num_timesteps + n_rows
    model.learn(n_rows, reset_num_timesteps=False, log_interval=None)
    model.learning_starts = learning_starts
    assert model.replay_buffer.full
    with tempfile.TemporaryDirectory() as folder:
        if mapped:
            path = pathlib.Path(folder) / "buffer"
            model.replay_buffer.save(path)
            model.replay_buffer = type(model.replay_buffer).load(path, model=model, mmap=True)
        model.train(32, batch_size=64)
        start = time.perf_counter()
        model.train(n_updates, batch_size=64)
        return {"updates_per_second": n_updates / (time.perf_counter() - start)}


def peak_memory() -> float:
    """Largest resident size of this process so far, in MB; pages of mapped files that were read are in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_point(axis: str, value: int, n_updates: int) -> dict[str, float]:
    """Measure one point in a process of its own, see :func:`point`."""
    command = [sys.executable, __file__, "--point", axis, str(value), "--updates", str(n_updates)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if result.returncode != 0:
        raise RuntimeError(f"{axis}={value} failed:\n{result.stderr[-2000:]}")
    return dict(json.loads(result.stdout.splitlines()[-1]))


def measure(args: Any) -> dict[str, Any]:
    """All points of the axes that were asked for, in rounds."""
    axes = {axis: values[:2] if args.quick else values for axis, values in AXES.items() if not args.axes or axis in args.axes}
    n_rounds, n_updates = (1, 2) if args.quick else (args.rounds, args.updates)
    points = [(axis, value) for axis, values in axes.items() for value in values]
    rounds = [{at: measure_point(*at, n_updates) for at in points} for _ in range(n_rounds)]
    curves: dict[str, list[dict[str, Any]]] = {axis: [] for axis in axes}
    for axis, value in points:
        found: dict[str, Any] = {"value": value}
        for key in rounds[0][axis, value]:
            figures = sorted(each[axis, value][key] for each in rounds)
            found[key] = {"median": statistics.median(figures), "low": figures[0], "high": figures[-1]}
        curves[axis].append(found)
        show(f"{axis} {value}: updates a second", found["updates_per_second"])
        show(f"{axis} {value}: memory", found["megabytes"], unit=" MB")
    if args.picture is not None:
        draw(curves, args.picture)
    return {"updates": n_updates, "rounds": n_rounds, "defaults": DEFAULTS, "curves": curves}


def draw(curves: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """Draw updates a second and memory, two panels an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n_columns = min(5, len(curves))
    n_lines = -(-len(curves) // n_columns)
    shape = {"figsize": (2.4 * n_columns, 4.6 * n_lines), "squeeze": False}
    figure, panels = plt.subplots(2 * n_lines, n_columns, sharey=False, **shape)
    for place in range(n_lines * n_columns):
        line, column = divmod(place, n_columns)
        for row, (key, label) in enumerate((("updates_per_second", "updates/s"), ("megabytes", "MB"))):
            panel = panels[2 * line + row, column]
            if place >= len(curves):
                panel.set_axis_off()
                continue
            axis, points = list(curves.items())[place]
            middle, low, high = (np.array([each[key][name] for each in points]) for name in ("median", "low", "high"))
            values = [each["value"] for each in points]
            panel.errorbar(values, middle, [middle - low, high - middle], fmt="o-", capsize=3, color="#0072B2")
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_ylim((1, 1500) if row == 0 else (150, 3000))
            panel.grid(alpha=0.3)
            panel.set_xlabel(axis.replace("_", " ") if row == 1 else "")
            panel.set_ylabel(label if column == 0 else "")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--updates", type=int, default=200, help="updates that are timed at each point (default: 200)")
    options.add_argument("--rounds", type=int, default=3, help="how often each point is measured (default: 3)")
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
