"""Peak memory of a training and the time of the import, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/footprint.py --json benchmarks/results/footprint.json

Peak memory is the largest resident set of a process that collects 2000 transitions and makes 20 updates (batch 256, nets of
256 x 256): what the update and the scoring need. What a full buffer needs is in ``core_speed.py``, as bytes a transition.
"""

import pathlib
import resource
import subprocess
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import interval_of_median, parser, ratio, run, show  # noqa: E402

#: Learners, and the options of their buffer.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "sac_hipi, 32": ("sac_hipi", {"n_candidate_tasks": 32}),
    "hipisac, 32": ("hipisac", {"n_candidate_tasks": 32}),
    "hipisac, 256": ("hipisac", {"n_candidate_tasks": 256}),
    "hipisac, 1024": ("hipisac", {"n_candidate_tasks": 1024}),
}


def peak_mebibytes() -> float:
    """Largest resident set of this process."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # of this program alone; ru_maxrss starts from what the parent had
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(case: str, n_transitions: int, n_updates: int, batch_size: int) -> None:
    """Run one case in this process and print its peak."""
    from benchmarks.gradient_speed import learner

    kind, options = CASES[case]
    learner(kind, n_transitions, **options).train(n_updates, batch_size=batch_size)
    print(peak_mebibytes())


def in_a_process(code: str) -> float:
    """The number that a program prints."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])


def import_seconds(module: str) -> float:
    """Processor time of an import."""
    return in_a_process(f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)")


def measure(turns: int, sizes: tuple[int, int, int], cases: list[str]) -> dict[str, Any]:
    """Peaks and import times."""
    print("\npeak resident memory of a training")
    peaks = {}
    for case in cases:
        peak = [
            in_a_process(f"from benchmarks.footprint import train; train({case!r}, *{sizes})") for _ in range(min(turns, 3))
        ]
        peaks[case] = interval_of_median(np.array(peak))
        show(f"  {case}", peaks[case], unit=" MiB")
    modules = ("stable_baselines3", "hipi_sb3")
    times: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(turns):
        for module in modules:
            times[module].append(import_seconds(module))
    print("\nprocessor time of the import")
    seconds = {module: np.array(values) for module, values in times.items()}
    for module, values in seconds.items():
        show(f"  {module}", interval_of_median(values), unit=" s")
    over = ratio(seconds["hipi_sb3"], seconds["stable_baselines3"])
    show("  hipi_sb3 over stable_baselines3 alone", over)
    return {
        "peak_mebibytes": peaks,
        "import_cpu_seconds": {module: interval_of_median(values) for module, values in seconds.items()},
        "import_hipi_sb3_over_stable_baselines3": over,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=5, help="imports of each, and at most three trainings")
    args = options.parse_args()
    turns, sizes, cases = (1, (50, 1, 8), ["sac"]) if args.quick else (args.turns, (2000, 20, 256), list(CASES))
    run("footprint.py", args, lambda: measure(turns, sizes, cases))


if __name__ == "__main__":
    main()
