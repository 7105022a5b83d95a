"""Time to save and load a full replay buffer as files, with pickle's time beside it.

    OMP_NUM_THREADS=1 python benchmarks/buffer_files.py --json benchmarks/results/buffer_files.json

The two ways take turns. ``save`` writes checksums and waits for the disk (fsync), which pickle does not; ``load`` compares the
checksums. Files are in the page cache when they are loaded.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from core_speed import FETCH_GOALS, commit, full_buffers, interval_of_median, machine, show
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

from hipi_sb3 import HIPIReplayBuffer


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def megabytes(path: pathlib.Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000, help="size of the buffers")
    parser.add_argument("--turns", type=int, default=10, help="turns that each way gets")
    parser.add_argument("--folder", type=pathlib.Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    args = parser.parse_args()
    th.set_num_threads(1)
    here = machine()
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    buffers = full_buffers(args.transitions)
    ours, plain = buffers["hipi_future"], buffers["dict"]
    assert isinstance(ours, HIPIReplayBuffer)
    del buffers
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, pickled, plain_pickled = (pathlib.Path(name) / part for part in ("buffer", "buffer.pkl", "plain.pkl"))
        ways: dict[str, Callable[[], Any]] = {
            "save files": lambda: ours.save(folder),
            "save pickle": lambda: save_to_pkl(pickled, ours),
            "save DictReplayBuffer's pickle": lambda: save_to_pkl(plain_pickled, plain),
            "load files": lambda: HIPIReplayBuffer.load(folder, family=FETCH_GOALS, device="cpu"),
            "load files, mapped": lambda: HIPIReplayBuffer.load(folder, family=FETCH_GOALS, device="cpu", mmap=True),
            "load pickle": lambda: load_from_pkl(pickled),
            "load DictReplayBuffer's pickle": lambda: load_from_pkl(plain_pickled),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.turns):
            for way, function in ways.items():
                times[way].append(seconds(function))
        sizes = {path.name: megabytes(path) for path in (folder, pickled, plain_pickled)}
    print(
        f"\n{args.transitions:,} transitions on FetchReach's spaces; MB: { {key: round(size) for key, size in sizes.items()} }"
    )
    found = {way: interval_of_median(np.array(values)) for way, values in times.items()}
    for way, value in found.items():
        show(f"  {way}", value, "", " s")
    if args.json is not None:
        result = {
            "command": " ".join(["python", "benchmarks/buffer_files.py", *sys.argv[1:]]),
            "commit": commit(),
            "machine": here,
            "transitions": args.transitions,
            "turns": args.turns,
            "megabytes": sizes,
            "bytes_per_transition": ours.nbytes / args.transitions,
            "seconds": found,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
