"""How the benchmarks measure: candidates that take turns in one process, medians with intervals, JSON that says of what.

What is compared takes turns (A, B, C, A, B, C, ...), so that whatever else the machine does meets all of them alike. A ratio
is the median over the turns, with the 95 % bootstrap interval of that median.
"""

import argparse
import collections
import gc
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from zoo.provenance import commit


class Clock:
    """
    Adds up the time in functions, by name.

    :param clock: clock in seconds
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is added to that of the name."""

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += self.clock() - start

        return clocked


def take_turns(
    functions: dict[str, Callable[[], Any]],
    turns: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """
    Time of a call, measured in turns.

    :param functions: what to measure
    :param turns: turns of each
    :param calls: calls a turn
    :param clock: clock in seconds, ``time.process_time`` for processor time
    :return: seconds a call, (turns,) each
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    gc.disable()
    try:
        for _ in range(turns):
            for name, function in functions.items():
                start = clock()
                for _ in range(calls):
                    function()
                times[name].append((clock() - start) / calls)
    finally:
        gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def interval_of_median(values: np.ndarray) -> dict[str, float]:
    """Median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def interval_of_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of two samples of seeds, and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [rng.choice(values, (4000, len(values))).mean(axis=1) for values in (a, b)]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return float(a.mean() - b.mean()), float(low), float(high)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Ratio of two measurements, turn by turn."""
    return interval_of_median(numerator / denominator)


def show(label: str, value: dict[str, float], target: str = "", unit: str = "") -> None:
    """Print a measurement as one line."""
    interval = f"[{value['low']:.2f}, {value['high']:.2f}]"
    print(f"{label:<62}{value['median']:10.2f}{unit} {interval:<20} {target}", flush=True)


def machine() -> dict[str, Any]:
    """Where this ran."""
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "threads": th.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": th.__version__,
        "numpy": np.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "gymnasium": gym.__version__,
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs: its numbers mean nothing")
    options.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    return options


def run(name: str, args: argparse.Namespace, measure: Callable[[], dict[str, Any]]) -> None:
    """
    Measure on one thread, and write what was measured where and of which commit.

    :param name: file name of the benchmark
    :param args: what :func:`parser` returned, parsed
    :param measure: returns the numbers
    """
    th.set_num_threads(1)
    started, measured_commit, here = time.perf_counter(), commit() or "none", machine()
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    values = {"command": " ".join(["python", f"benchmarks/{name}", *sys.argv[1:]]), "commit": measured_commit, "machine": here}
    values |= {"quick": args.quick, **measure()}
    values["seconds"] = round(time.perf_counter() - started)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(values, indent=2) + "\n")
        print(f"\nwritten to {args.json}")
