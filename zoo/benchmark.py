"""
Compare methods over environments and seeds.

    python zoo/benchmark.py --suite point --methods none,her_future,hipi --seeds 5 --jobs 2

Every cell (method, environment, seed) is a run of ``zoo/train.py`` in a process of its own with one thread. Finished cells are
not run again, so that an interrupted benchmark goes on where it was; a cell that breaks is reported, does not stop the
others, and is tried again next time. All evaluations are gathered in one CSV, and a table compares the methods by
interquartile mean with bootstrap intervals (rliable: Agarwal et al., NeurIPS 2021, arXiv 2108.13264).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import gymnasium as gym
import numpy as np
import pandas as pd

import hipi_sb3  # noqa: F401  registers the environments
from zoo.errors import ConfigurationError, check_name, exit_with_error

ROOT = Path(__file__).resolve().parent.parent

#: Environments of a suite.
KEY_TO_SUITE: dict[str, list[str]] = {
    "point": ["PointFourRooms-v0"],
    "point-paper": ["PointFourRoomsPaper-v0"],
}


@dataclass(frozen=True)
class Method:
    """
    A way of relabeling, run through the same code as all others.

    :param relabel: options of ``zoo/train.py --relabel``
    :param algo: algorithm of the launcher
    """

    relabel: tuple[str, ...] = ()
    algo: str = "hipi_sac"


KEY_TO_METHOD: dict[str, Method] = {
    "none": Method(("strategy=none",)),
    "random": Method(("strategy=random",)),
    "her_final": Method(("strategy=final",)),
    "her_future": Method(("strategy=future",)),
    "hipi": Method(),
    # As the authors released it: commanded tasks of the batch as candidates, with -log pi in the score.
    "hipi_released": Method(("score=paper", "candidates=batch")),
    "max_reward": Method(("strategy=max_reward",)),
    "air": Method(("strategy=air",)),
    "advantage": Method(("strategy=advantage",)),
    "map": Method(("strategy=map",)),
    # One factor varied at a time from "hipi": share of relabeled rows (and HER with the same share), ...
    "hipi_p08": Method(("relabel_prob=0.8",)),
    "her_future_p08": Method(("strategy=future", "relabel_prob=0.8")),
    # ... uses of a label, ...
    "hipi_reuse8": Method(("label_reuse=8",)),
    # ... candidates, ...
    "hipi_commanded": Method(("candidates=batch",)),
    "hipi_achieved": Method(("candidates=achieved",)),
    "hipi_own_future": Method(("candidates={future: 0.75, batch: 0.25}", "log_partition=running")),
    # ... score, ...
    "hipi_q": Method(("score=q",)),
    "hipi_advantage": Method(("score=advantage",)),
    "hipi_paper": Method(("score=paper",)),
    # ... temperature, ...
    "hipi_t01": Method(("temperature=0.1",)),
    "hipi_t5": Method(("temperature=5.0",)),
    "hipi_auto": Method(("temperature=auto",)),
    "hipi_ess8": Method(("temperature=ess:8",)),
    # ... and log Z.
    "hipi_none": Method(("log_partition=none",)),
    "hipi_mean": Method(("log_partition=mean",)),
    "hipi_running": Method(("log_partition=running",)),
    "hipi_sinkhorn": Method(("log_partition=sinkhorn",)),
}


@dataclass(frozen=True)
class Cell:
    """One run: a method in an environment with a seed."""

    method: str
    env: str
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run, relative to that of the benchmark."""
        return f"{self.env}/{self.method}/seed{self.seed}"


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: command line; that of the process if None
    """
    args = make_parser().parse_args(arguments)
    try:
        cells = make_cells(args)
        folder = Path(args.folder)
        broken = run_cells(cells, folder, args)
        frame = gather(cells, folder)
    except ConfigurationError as error:
        exit_with_error("benchmark.py", error)
    write_atomically(folder / "evaluations.csv", frame.to_csv(index=False))
    summary = summarize(frame, args.threshold)
    write_atomically(folder / "summary.json", json.dumps({**describe_run(args), "results": summary}, indent=1) + "\n")
    print(format_table(summary, args.threshold))
    print(f"All evaluations: {folder / 'evaluations.csv'}; summary: {folder / 'summary.json'}")
    for cell, reason in broken:
        print(f"broken: {cell.name}: {reason}", file=sys.stderr)
    if broken:
        sys.exit(1)


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    :return: parser
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", help=f"environments: {', '.join(KEY_TO_SUITE)}")
    parser.add_argument("--envs", default="", help="environments by id, separated by commas, instead of a suite")
    parser.add_argument("--methods", default="none,her_future,hipi", help=f"separated by commas: {', '.join(KEY_TO_METHOD)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("-n", "--n-timesteps", type=int, help="steps of a run; those of the YAML file if not given")
    parser.add_argument("--eval-freq", type=int, default=2500, help="steps between evaluations (default: 2500)")
    parser.add_argument("--eval-tasks", type=int, default=50, help="tasks of an evaluation (default: 50)")
    parser.add_argument("--threshold", type=float, default=0.5, help="success whose first step is reported (default: 0.5)")
    parser.add_argument("--folder", default="logs/benchmark", help="where runs and results go (default: %(default)s)")
    return parser


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """
    List the cells of the matrix.

    :param args: command line
    :return: cells, seed by seed, so that an interrupted benchmark has all methods
    :raises ConfigurationError: when a name is unknown
    """
    if args.envs:
        envs = args.envs.split(",")
        for env in envs:
            check_name("environment", env, gym.registry)
    else:
        suite = args.suite or "point"
        check_name("suite", suite, KEY_TO_SUITE)
        envs = KEY_TO_SUITE[suite]
    methods = args.methods.split(",")
    for method in methods:
        check_name("method", method, KEY_TO_METHOD)
    if args.seeds < 1 or args.jobs < 1:
        raise ConfigurationError(f"--seeds and --jobs must be at least 1, not {args.seeds} and {args.jobs}.")
    return [Cell(method, env, seed) for seed in range(args.seeds) for env in envs for method in methods]


# -- running ---------------------------------------------------------------------------------------------------------------


def run_cells(cells: list[Cell], folder: Path, args: argparse.Namespace) -> list[tuple[Cell, str]]:
    """
    Run the cells that are not finished.

    :param cells: cells
    :param folder: folder of the benchmark
    :param args: command line
    :return: cells that broke, with the reason
    """
    missing = [cell for cell in cells if not (folder / cell.name / "cell.json").is_file()]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before; {args.jobs} at a time")
    broken = []
    start = time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_cell, cell, folder, args): cell for cell in missing}
        for done, future in enumerate(as_completed(futures), start=1):
            cell, reason = futures[future], future.result()
            if reason is not None:
                broken.append((cell, reason))
            minutes = (time.perf_counter() - start) / 60
            print(f"[{done}/{len(missing)}, {minutes:.1f} min] {cell.name} {'broken' if reason else 'finished'}", flush=True)
    return broken


def run_cell(cell: Cell, folder: Path, args: argparse.Namespace) -> str | None:
    """
    Run one cell in a process of its own.

    :param cell: the cell
    :param folder: folder of the benchmark
    :param args: command line
    :return: why it broke, or None
    """
    method = KEY_TO_METHOD[cell.method]
    run_folder = folder / cell.name
    run_folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "zoo" / "train.py"), "--algo", method.algo, "--env", cell.env]
    command += ["--seed", str(cell.seed), "--eval-freq", str(args.eval_freq), "--eval-tasks", str(args.eval_tasks)]
    command += ["--log-folder", str(run_folder / "logs"), "--verbose", "0", "-uuid"]
    command += ["-n", str(args.n_timesteps)] if args.n_timesteps else []
    command += ["--relabel", *method.relabel] if method.relabel else []
    start = time.perf_counter()
    with open(run_folder / "output.txt", "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    results = sorted((run_folder / "logs").glob("*/*/evaluations.npz"), key=lambda path: path.stat().st_mtime)
    if process.returncode != 0 or not results:
        return f"exit code {process.returncode}; its last words are in {run_folder / 'output.txt'}"
    values = {
        "command": command[1:],
        "evaluations": str(results[-1].relative_to(run_folder)),
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    write_atomically(run_folder / "cell.json", json.dumps(values, indent=1) + "\n")
    return None


def gather(cells: Iterable[Cell], folder: Path) -> pd.DataFrame:
    """
    Gather the evaluations of all finished cells.

    :param cells: cells
    :param folder: folder of the benchmark
    :return: one row an evaluation: method, env, seed, timesteps, mean return, success rate, wall and CPU seconds of the run
    :raises ConfigurationError: when no cell is finished
    """
    rows = []
    for cell in cells:
        path = folder / cell.name / "cell.json"
        if not path.is_file():
            continue
        run = json.loads(path.read_text())
        with np.load(path.parent / run["evaluations"]) as data:
            successes = data["successes"] if "successes" in data else np.full_like(data["results"], np.nan)
            for step, returns, success in zip(data["timesteps"], data["results"], successes, strict=True):
                rows.append(
                    {
                        "method": cell.method,
                        "env": cell.env,
                        "seed": cell.seed,
                        "timesteps": int(step),
                        "mean_return": float(returns.mean()),
                        "success": float(np.mean(success)),
                        "wall_seconds": run["wall_seconds"],
                        "cpu_seconds": run["cpu_seconds"],
                    }
                )
    if not rows:
        raise ConfigurationError(f"no cell of the benchmark in {folder} was finished; see output.txt in its folders.")
    return pd.DataFrame(rows)


# -- comparing -------------------------------------------------------------------------------------------------------------


def summarize(frame: pd.DataFrame, threshold: float) -> list[dict[str, Any]]:
    """
    Compare the methods in each environment.

    :param frame: evaluations, see :func:`gather`
    :param threshold: success whose first step is reported
    :return: one entry an environment and method
    """
    from rliable import library, metrics

    summary = []
    for env, of_env in frame.groupby("env", sort=False):
        metric = "success" if of_env["success"].notna().all() else "mean_return"
        # (n_seeds, n_evaluations) of each method
        curves = {
            str(method): of_method.pivot(index="seed", columns="timesteps", values=metric)
            for method, of_method in of_env.groupby("method", sort=False)
        }
        final = {method: curve.iloc[:, -1:].to_numpy() for method, curve in curves.items()}
        aggregate: Callable[[np.ndarray], np.ndarray] = lambda scores: np.array(  # noqa: E731
            [metrics.aggregate_iqm(scores), metrics.aggregate_mean(scores)]
        )
        points, intervals = library.get_interval_estimates(final, aggregate, reps=5000, random_state=np.random.RandomState(0))
        for method, curve in curves.items():
            of_method = of_env[of_env["method"] == method]
            reached = [
                next((int(step) for step, value in row.items() if value >= threshold), None) for _, row in curve.iterrows()
            ]
            summary.append(
                {
                    "env": str(env),
                    "method": method,
                    "metric": metric,
                    "timesteps": int(curve.columns[-1]),
                    "final": [round(float(value), 4) for value in final[method][:, 0]],
                    "iqm": float(points[method][0]),
                    "iqm_interval": [float(bound) for bound in intervals[method][:, 0]],
                    "mean": float(points[method][1]),
                    "mean_interval": [float(bound) for bound in intervals[method][:, 1]],
                    "area": float(curve.to_numpy().mean()),
                    "steps_to_threshold": reached,
                    "wall_seconds": float(of_method.groupby("seed")["wall_seconds"].first().mean()),
                    "cpu_seconds": float(of_method.groupby("seed")["cpu_seconds"].first().mean()),
                    "differences": {other: difference(final[method], final[other]) for other in final if other != method},
                }
            )
    return summary


def difference(ours: np.ndarray, theirs: np.ndarray, n_resamples: int = 5000) -> dict[str, Any]:
    """
    How far one method is ahead of another at the end.

    :param ours: final score of each seed, (n_seeds, 1)
    :param theirs: final score of each seed, (n_seeds, 1)
    :param n_resamples: bootstrap samples
    :return: difference of the means with its 95 % bootstrap interval over seeds, and the probability of improvement
    """
    from rliable import metrics

    rng = np.random.default_rng(0)
    resampled = [
        rng.choice(scores[:, 0], size=(n_resamples, len(scores))).mean(axis=1) for scores in (ours, theirs)
    ]  # over seeds
    low, high = np.percentile(resampled[0] - resampled[1], [2.5, 97.5])
    return {
        "mean": float(ours.mean() - theirs.mean()),
        "interval": [float(low), float(high)],
        "probability_of_improvement": float(metrics.probability_of_improvement(ours, theirs)),
    }


def format_table(summary: list[dict[str, Any]], threshold: float) -> str:
    """
    Format the comparison for a terminal.

    :param summary: see :func:`summarize`
    :param threshold: success whose first step is reported
    :return: table
    """
    lines = []
    for env in dict.fromkeys(entry["env"] for entry in summary):
        entries = [entry for entry in summary if entry["env"] == env]
        first = entries[0]
        lines.append(f"\n{env}: {first['metric']} after {first['timesteps']} steps, {len(first['final'])} seeds")
        lines.append(
            f"{'method':16s} {'IQM [95 %]':>18s} {'mean [95 %]':>18s} {'area':>6s} {f'steps to {threshold:g}':>14s} "
            f"{'wall s':>7s} {'CPU s':>7s}"
        )
        for entry in entries:
            low, high = entry["iqm_interval"]
            iqm = f"{entry['iqm']:.2f} [{low:.2f}, {high:.2f}]"
            low, high = entry["mean_interval"]
            mean = f"{entry['mean']:.2f} [{low:.2f}, {high:.2f}]"
            reached = [steps for steps in entry["steps_to_threshold"] if steps is not None]
            steps = f"{np.median(reached):.0f} ({len(reached)}/{len(entry['final'])})" if reached else "never"
            lines.append(
                f"{entry['method']:16s} {iqm:>18s} {mean:>18s} {entry['area']:6.2f} {steps:>14s} "
                f"{entry['wall_seconds']:7.0f} {entry['cpu_seconds']:7.0f}"
            )
        hipi = next((entry for entry in entries if entry["method"] == "hipi"), None)
        for other, ahead in (hipi["differences"] if hipi else {}).items():
            low, high = ahead["interval"]
            lines.append(
                f"hipi - {other}: {ahead['mean']:+.2f} [{low:+.2f}, {high:+.2f}], "
                f"probability of improvement {ahead['probability_of_improvement']:.2f}"
            )
    return "\n".join(lines)


# -- files -----------------------------------------------------------------------------------------------------------------


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """
    Say how and where the numbers were made.

    :param args: command line
    :return: command, commit, machine
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    options = [f"--{name.replace('_', '-')} {value}" for name, value in vars(args).items() if value and name != "folder"]
    return {
        "command": " ".join(["python zoo/benchmark.py", *options]),
        "commit": commit.stdout.strip(),
        "machine": f"{cpu or platform.machine()}, {os.cpu_count()} cores, one thread a run",
    }


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file that is complete or as it was before, whenever the process is killed.

    :param path: file
    :param text: its new content
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
