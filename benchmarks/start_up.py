"""How long until something happens: ``--help``, the first step of a training, ten cells of a benchmark.

    git worktree add ../before ec4b06c
    python benchmarks/start_up.py --before ../before --json benchmarks/results/start_up.json

Each is measured against another checkout, whose turns stand between those of this one. The time of a first step is that
from the start of the process to the first action in a training environment. Ten cells: two methods, five seeds, 2000 steps of
PointFourRooms-v0 one after another, the benchmark's own start among it.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, ratio, run, show
from zoo.provenance import ROOT

#: Imported by ``--gym-packages``, when everything else is.
PROBE = """
import os, time
from stable_baselines3.common.vec_env import VecEnv

def step(self, actions):
    print("FIRST STEP", time.time(), flush=True)
    os._exit(0)

VecEnv.step = step
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--before", type=pathlib.Path, required=True, help="checkout to compare with")
    options.add_argument("--turns", type=int, default=7, help="turns of --help and of the first step (default: 7)")
    options.add_argument("--cell-turns", type=int, default=2, help="turns of the ten cells (default: 2)")
    args = options.parse_args()
    if args.quick:
        args.turns = args.cell_turns = 1
    run("start_up.py", args, lambda: measure(args))


def measure(args: Any) -> dict[str, Any]:
    """Time all three in turns; seconds, and the ratio of now to before."""
    checkouts = {"before": args.before.resolve(), "now": ROOT}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "first_step.py").write_text(PROBE)
        cases = {
            "help": (args.turns, lambda root: seconds_of(root, folder, "train.py", "--help")),
            "first_step": (args.turns, lambda root: first_step(root, folder)),
            "ten_cells": (args.cell_turns, lambda root: ten_cells(root, 50 if args.quick else 2000)),
        }
        for name, (turns, seconds) in cases.items():
            for root in checkouts.values() if name != "ten_cells" else []:
                seconds(root)  # files into memory
            taken = {key: np.zeros(turns) for key in checkouts}
            for turn in range(turns):
                for key, root in checkouts.items():
                    taken[key][turn] = seconds(root)
            results[name] = {key: interval_of_median(values) for key, values in taken.items()}
            results[name]["ratio"] = ratio(taken["now"], taken["before"])
            for key, value in results[name].items():
                show(f"{name}, {key}", value, unit="" if key == "ratio" else " s")
    return {"seconds_until": results}


def environment(root: pathlib.Path, *more_paths: str) -> dict[str, str]:
    """Variables of a command of a checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *more_paths]), "OMP_NUM_THREADS": "1"}


def seconds_of(root: pathlib.Path, folder: str, script: str, *arguments: str) -> float:
    """Wall time of a command of a checkout, run in a folder."""
    command = [sys.executable, str(root / "zoo" / script), *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(root, folder), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step(root: pathlib.Path, folder: str) -> float:
    """Wall time from the start of a training to its first action."""
    command = [sys.executable, str(root / "zoo" / "train.py"), "--gym-packages", "first_step", "--seed", "0"]
    start = time.time()
    shown = subprocess.run(command, cwd=folder, env=environment(root, folder), capture_output=True, text=True, check=True)
    return float(shown.stdout.rsplit("FIRST STEP", 1)[1]) - start


def ten_cells(root: pathlib.Path, n_steps: int) -> float:
    """Wall time of ten cells, one at a time, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--suite", "point", "--methods", "none,hipi", "--seeds", "5", "-n", str(n_steps), "--folder", folder]
        return seconds_of(root, folder, "benchmark.py", *options)


if __name__ == "__main__":
    main()
