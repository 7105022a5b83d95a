"""Time to save and load a full replay buffer as files, with pickle's time beside it.

    OMP_NUM_THREADS=1 python benchmarks/buffer_files.py --json benchmarks/results/buffer_files.json

The two ways take turns. ``save`` writes checksums and waits for the disk (fsync), which pickle does not; ``load`` compares the
checksums. Files are in the page cache when they are loaded.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.core_speed import FETCH_GOALS, full_buffers
from benchmarks.measuring import interval_of_median, parser, run, show, take_turns
from hipi_sb3 import HIPIReplayBuffer


def megabytes(path: pathlib.Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def measure(n_transitions: int, turns: int) -> dict[str, Any]:
    """Seconds to save and to load, and megabytes."""
    buffers = full_buffers(n_transitions)
    ours, plain = buffers["hipi_future"], buffers["dict"]
    assert isinstance(ours, HIPIReplayBuffer)
    del buffers
    with tempfile.TemporaryDirectory() as name:
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
        times = take_turns(ways, turns, calls=1)
        sizes = {path.name: megabytes(path) for path in (folder, pickled, plain_pickled)}
    print(f"\n{n_transitions:,} transitions on FetchReach's spaces; MB: { {key: round(size) for key, size in sizes.items()} }")
    found = {way: interval_of_median(values) for way, values in times.items()}
    for way, value in found.items():
        show(f"  {way}", value, unit=" s")
    return {
        "transitions": n_transitions,
        "turns": turns,
        "megabytes": sizes,
        "bytes_per_transition": ours.nbytes / n_transitions,
        "times": found,
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    run("buffer_files.py", args, lambda: measure(2_000 if args.quick else 1_000_000, 2 if args.quick else 5))


if __name__ == "__main__":
    main()
