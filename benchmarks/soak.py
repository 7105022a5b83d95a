"""
A long run of the launcher, looked at from outside: does its memory grow, do files stay open, is anything left behind?

    python benchmarks/soak.py --trials 0 --json benchmarks/results/soak.json
    python benchmarks/soak.py --steps 0 --json benchmarks/results/soak_search.json

A run with environments in processes of their own, a ring that is full early, checkpoints and evaluations all the way, and a
search of short trials. Memory (PSS of all processes) and open files are read every second; the slope is fitted to the second
half, in means of blocks, for neighbouring seconds are alike. Beside the run, others are ended in the middle, by Ctrl-C, by
SIGTERM to their whole group and by the death of a worker, and what is left of their sessions is counted. Linux only: it reads
/proc.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import parser, run
from zoo.provenance import ROOT

N_BLOCKS = 20

PROC = pathlib.Path("/proc")


def processes(session: int) -> list[int]:
    """Living processes of a session; those of which nothing but the exit code is left do not count."""
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def look(session: int) -> dict[str, int]:
    """What a session has at the moment: memory in KiB, open files, threads, processes."""
    seen = {"memory": 0, "files": 0, "threads": 0, "processes": 0}
    for pid in processes(session):
        try:
            rollup = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            files, threads = (len(os.listdir(PROC / str(pid) / name)) for name in ("fd", "task"))
        except OSError:
            continue
        memory = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        for name, value in {"memory": memory, "files": files, "threads": threads, "processes": 1}.items():
            seen[name] += value
    return seen


def start(folder: str, *arguments: str) -> subprocess.Popen:
    """Begin a command of the launcher, with small networks and a small ring, in a session of its own."""
    command = [sys.executable, str(ROOT / "zoo/train.py"), "--env", "PointFixedGoals-v0", "--seed", "0", "--eval-tasks", "4"]
    command += ["--no-picture", "-f", folder, *arguments, "policy_kwargs:dict(net_arch=[16, 16])"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(pathlib.Path(folder) / "output.txt", "a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def start_run(folder: str, n_steps: int, checkpoint_freq: int) -> subprocess.Popen:
    """Begin a run with environments in processes of their own, a ring that is full early, checkpoints and evaluations."""
    options = ["-n", str(n_steps), "--vec-env", "subproc", "--checkpoint-freq", str(checkpoint_freq)]
    options += ["--eval-freq", str(5 * checkpoint_freq)]
    options += ["-params", "n_envs:4", "buffer_size:8000", "batch_size:64", "train_freq:8", "gradient_steps:1"]
    return start(folder, *options, "learning_starts:500")


def start_search(folder: str, n_trials: int) -> subprocess.Popen:
    """Begin a search with short trials."""
    options = ["-optimize", "-n", "300", "--n-trials", str(n_trials), "--sampler", "random", "--pruner", "none"]
    options += ["--n-evaluations", "1", "--search-space", "small", "-params", "n_envs:1", "buffer_size:8000"]
    return start(folder, *options, "learning_starts:100")


def slope(values: np.ndarray) -> dict[str, float]:
    """Growth over the whole of the values by a line through the means of blocks, with its 95 % interval."""
    means = np.array([block.mean() for block in np.array_split(values, N_BLOCKS)])
    fit = stats.linregress(np.arange(N_BLOCKS) / N_BLOCKS, means)
    half = stats.t.ppf(0.975, N_BLOCKS - 2) * fit.stderr
    return {"median": fit.slope, "low": fit.slope - half, "high": fit.slope + half}


def watched(begin: Callable[[str], subprocess.Popen], unit: str, amount: float, every: float) -> dict[str, Any]:
    """
    Memory and open files of a command from its beginning to its end.

    :param begin: starts it in a folder
    :param unit: what growth is given by
    :param amount: how many of these there are in all
    :param every: seconds between two looks
    :return: what was seen in the second half
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = begin(folder)
        seen = []
        while process.poll() is None:
            seen.append(look(process.pid))
            time.sleep(every)
        seconds, left = time.monotonic() - began, len(processes(process.pid))
        if process.returncode != 0:
            raise RuntimeError(f"It ended with {process.returncode}: {(pathlib.Path(folder) / 'output.txt').read_text()}")
    # The last look may meet a run that is closing.
    second_half = {name: np.array([one[name] for one in seen[len(seen) // 2 : -5]]) for name in seen[0]}
    growth = {key: value / 1024 / (amount / 2) for key, value in slope(second_half["memory"]).items()}
    quarters = {
        name: [float(np.median(part)) for part in np.array_split(second_half[name], 4)] for name in ("files", "threads")
    }
    print(f"{seconds:.0f} s, {len(seen)} looks, {left} processes left, memory {second_half['memory'].mean() / 1024:.0f} MiB")
    print(f"growth in the second half, MiB per {unit}: {growth['median']:.2f} [{growth['low']:.2f}, {growth['high']:.2f}]")
    print(f"open files, by quarter: {quarters['files']}")
    return {
        "seconds_of_run": round(seconds),
        "looks": len(seen),
        "processes_left": left,
        "memory_mib": second_half["memory"].mean() / 1024,
        f"mib_per_{unit.replace(' ', '_')}": growth,
        "open_files_by_quarter": quarters["files"],
        "threads_by_quarter": quarters["threads"],
    }


def kill_a_worker(process: subprocess.Popen) -> None:
    """What the system does where memory is short, to the first process of an environment: its parent is not the run itself."""
    parents = {pid: (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1] for pid in processes(process.pid)}
    os.kill(min(pid for pid, parent in parents.items() if int(parent) in parents.keys() - {process.pid}), signal.SIGKILL)


ENDINGS: dict[str, Callable[[subprocess.Popen], None]] = {
    "Ctrl-C": lambda process: os.killpg(process.pid, signal.SIGINT),
    "SIGTERM to the group": lambda process: os.killpg(process.pid, signal.SIGTERM),
    "SIGTERM to the run": lambda process: process.terminate(),
    "a worker is killed": kill_a_worker,
}


def ended(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """End a run in the middle, and count what is left of its session."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_run(folder, 10**7, args.checkpoint_freq)
        while not list(pathlib.Path(folder).glob("*/*/checkpoints/[0-9]*")):
            if process.poll() is not None:
                raise RuntimeError((pathlib.Path(folder) / "output.txt").read_text())
            time.sleep(0.1)
        before = look(process.pid)
        began = time.monotonic()
        ENDINGS[name](process)
        try:
            code: int | None = process.wait(60)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - began
        time.sleep(1)
        left = processes(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        checkpoints = len(list(pathlib.Path(folder).glob("*/*/checkpoints/[0-9]*")))
    print(f"{name:<24} exit code {code}, {seconds:.1f} s, {before['processes']} processes before, {len(left)} left")
    return {
        "exit_code": code,
        "seconds": seconds,
        "processes_before": before["processes"],
        "processes_left": len(left),
        "checkpoints": checkpoints,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for."""
    result: dict[str, Any] = {}
    if args.steps:
        result["endings"] = {name: ended(name, args) for name in ENDINGS}
        print(f"a run of {args.steps} steps")
        begin = partial(start_run, n_steps=args.steps, checkpoint_freq=args.checkpoint_freq)
        result |= {"steps": args.steps, **watched(begin, "100k steps", args.steps / 1e5, args.every)}
    if args.trials:
        print(f"a search of {args.trials} trials")
        begin = partial(start_search, n_trials=args.trials)
        result["search"] = {"trials": args.trials, **watched(begin, "100 trials", args.trials / 100, args.every)}
    return result


def main() -> None:
    """Run it."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=1_000_000, help="environment steps of the long run; 0 for none")
    options.add_argument("--trials", type=int, default=100, help="trials of the search; 0 for none")
    options.add_argument("--checkpoint-freq", type=int, default=2000, help="steps between two checkpoints")
    options.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.steps, arguments.trials, arguments.checkpoint_freq, arguments.every = 3000, 3, 500, 0.1
    run("soak.py", arguments, lambda: measure(arguments))


if __name__ == "__main__":
    main()
