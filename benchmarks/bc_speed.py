"""Time and memory of HIPI-BC on large data sets: labelling against cloning, and streaming from disk.

    OMP_NUM_THREADS=1 python benchmarks/bc_speed.py --json benchmarks/results/bc_speed.json

Labelling and one epoch of cloning are timed in the same ``fit``, with its progress bars, where cloning is cheapest: with one
label a step. The data are random numbers in the shape of HalfCheetahVelocity-v0: 17 numbers an observation, 6 an action,
trajectories of 1000 steps.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import tracemalloc
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import machine  # noqa: E402
from hipi_sb3 import HIPIBC, TargetVelocity, TrajectoryDataset  # noqa: E402
from zoo.provenance import commit  # noqa: E402

FAMILY = TargetVelocity(low=0.0, high=3.0)
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (6,), np.float32)
LENGTH = 1000


class Clock(BaseCallback):
    """Notes when labelling is over and cloning begins, in seconds of wall and processor time."""

    began: np.ndarray

    def _on_training_start(self) -> None:
        self.began = now()

    def _on_step(self) -> bool:
        return True


def now() -> np.ndarray:
    """Wall and processor time, (2,), seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def write_random(folder: pathlib.Path, n_steps: int) -> TrajectoryDataset:
    """Write random trajectories to a folder, and map them into memory."""
    sizes = {"observations": OBSERVATIONS.shape, "actions": ACTIONS.shape, "features": (FAMILY.feature_dim,)}
    rng = np.random.default_rng(0)
    for name, shape in sizes.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(n_steps, *shape))
        for first in range(0, n_steps, 100_000):
            array[first : first + 100_000] = rng.uniform(-1, 1, size=array[first : first + 100_000].shape)
    np.save(folder / "lengths.npy", np.full(n_steps // LENGTH, LENGTH))
    return TrajectoryDataset.load(folder, FAMILY, observation_space=OBSERVATIONS, action_space=ACTIONS)


def measure_time(dataset: TrajectoryDataset) -> dict[str, float]:
    """Label a data set and clone it once."""
    model = HIPIBC("MultiInputPolicy", n_labels=1, seed=0, device="cpu")
    clock, start = Clock(), now()
    model.fit(dataset, n_epochs=1, callback=clock, progress_bar=True)
    seconds = {"labelling": clock.began - start, "cloning": now() - clock.began}
    return {
        f"{part}_{kind}_seconds": round(float(values[at]), 2)
        for part, values in seconds.items()
        for at, kind in enumerate(("wall", "cpu"))
    } | {"labelling_share_of_cloning": round(float(seconds["labelling"][1] / seconds["cloning"][1]), 4)}


def measure_memory(dataset: TrajectoryDataset, n_updates: int = 50) -> dict[str, float]:
    """Label a data set and clone a few minibatches, with the memory that is allocated for it."""
    model = HIPIBC("MultiInputPolicy", seed=0, device="cpu")
    tracemalloc.start()
    model.fit(dataset, n_updates=n_updates, progress_bar=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(array.nbytes for array in dataset.arrays().values())
    return {"data_mb": round(size / 1e6), "peak_mb": round(peak / 1e6), "updates": n_updates}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps of the data set that is timed")
    parser.add_argument("--large", type=int, default=10_000_000, help="steps of the data set that is streamed")
    args = parser.parse_args()
    th.set_num_threads(1)
    here = {
        "command": " ".join(["python", "benchmarks/bc_speed.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
    }
    results: dict[str, Any] = {}
    for n_steps in (args.steps, args.large):
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_random(pathlib.Path(folder), n_steps)
            measure = measure_time if n_steps == args.steps else measure_memory
            results[f"{n_steps} steps"] = measure(dataset)
            print(n_steps, results[f"{n_steps} steps"], flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**here, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
