"""
Compare methods over environments and seeds.

    python zoo/benchmark.py --suite point --methods none,her_future,hipi --seeds 5 --jobs 2

Every cell (method, environment, seed) is a run of ``zoo/train.py`` in a process of its own with one thread, forked from one
that has imported everything (``--engine fresh`` starts each anew, with the same results). Finished cells are
not run again, so that an interrupted benchmark goes on where it was; a cell that breaks is reported, does not stop the
others, and is tried again next time. All evaluations are gathered in one CSV, and a table compares the methods by
interquartile mean with bootstrap intervals (rliable: Agarwal et al., NeurIPS 2021, arXiv 2108.13264).
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import gymnasium as gym
import numpy as np
import pandas as pd
import yaml

import hipi_sb3  # noqa: F401  registers the environments
from hipi_sb3.experience.whole import NotWritten
from zoo.comparison import format_table, summarize, write_atomically
from zoo.errors import ConfigurationError, check_name, exit_with_error
from zoo.methods import KEY_TO_METHOD
from zoo.provenance import commit, describe_run
from zoo.suites import KEY_TO_SUITE, has_goals, packages_of
from zoo.warm import WarmProcess

ROOT = Path(__file__).resolve().parent.parent


#: Processes of this process, to end with it.
_RUNNING: set["subprocess.Popen[bytes] | WarmProcess"] = set()

#: The process that the cells of a thread are forked from.
_THREAD = threading.local()


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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cells are ended in either case
    try:
        cells = make_cells(args)
        folder = Path(args.folder)
        broken = run_cells(cells, folder, args)
        frame = gather(cells, folder)
    except (ConfigurationError, NotWritten) as error:
        exit_with_error("benchmark.py", error)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on with the cells that are not finished.", file=sys.stderr)
        sys.exit(130)
    write_atomically(folder / "evaluations.csv", frame.to_csv(index=False))
    summary = summarize(frame, args.threshold)
    # A benchmark that was interrupted may have gone on with later code: the commits are those of its runs.
    said = describe_run(args) | {"commit": " ".join(sorted(set(frame["commit"])))}
    write_atomically(folder / "summary.json", json.dumps({**said, "results": summary}, indent=1) + "\n")
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
    parser.add_argument("--engine", default="processes", help=f"what runs the cells: {', '.join(KEY_TO_ENGINE)}")
    parser.add_argument("--ray-address", help="of a Ray cluster that shares the folder (default: one on this machine)")
    parser.add_argument("-n", "--n-timesteps", type=int, help="steps of a run; those of the YAML file if not given")
    parser.add_argument("--eval-freq", type=int, default=2500, help="steps between evaluations (default: 2500)")
    parser.add_argument("--eval-tasks", type=int, default=50, help="tasks of an evaluation (default: 50)")
    parser.add_argument("--eval-envs", type=int, default=25, help="environments that share these tasks (default: 25)")
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
    suite = args.suite or "point"
    check_name("suite", suite, KEY_TO_SUITE)
    envs = list(dict.fromkeys(args.envs.split(","))) if args.envs else KEY_TO_SUITE[suite]
    for env in envs:
        for package in packages_of(env):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ConfigurationError(f"{env} needs {package}: pip install {package.replace('_', '-')}") from error
        check_name("environment", env, gym.registry)
    methods = list(dict.fromkeys(args.methods.split(",")))
    for method in methods:
        check_name("method", method, KEY_TO_METHOD)
        if KEY_TO_METHOD[method].algo == "sac":
            entries = yaml.safe_load((ROOT / "hyperparams" / "sac.yml").read_text())
            without = [env for env in envs if entries.get(env, {}).get("replay_buffer_class") != "HerReplayBuffer"]
            if without:
                raise ConfigurationError(
                    f"{method} is stable-baselines3's own HerReplayBuffer, for which hyperparams/sac.yml has no entry of "
                    f"{', '.join(without)}. Use her_future, which is HER in HIPI's buffer."
                )
    check_name("engine", args.engine, KEY_TO_ENGINE)
    if args.seeds < 1 or args.jobs < 1:
        raise ConfigurationError(f"--seeds and --jobs must be at least 1, not {args.seeds} and {args.jobs}.")
    her = [method for method in methods if KEY_TO_METHOD[method].needs_goals]
    without = [env for env in envs if not has_goals(env)] if her else []
    if without:
        print(f"Left out: {', '.join(her)} in {', '.join(without)}, whose tasks are no goals, which HER needs.")
    pairs = [(env, method) for env in envs for method in methods if not (method in her and env in without)]
    if not pairs:
        raise ConfigurationError("no cell is left. Add a method that needs no goals, such as hipi or random.")
    return [Cell(method, env, seed) for seed in range(args.seeds) for env, method in pairs]


# -- running ----------------------------------------------------------------------------------------------------------


def run_cells(cells: list[Cell], folder: Path, args: argparse.Namespace) -> list[tuple[Cell, str]]:
    """
    Run the cells that are not finished.

    :param cells: cells
    :param folder: folder of the benchmark
    :param args: command line
    :return: cells that broke, with the reason
    :raises ConfigurationError: when cells were run before with other options
    """
    missing = []
    for cell in cells:
        path = folder / cell.name / "cell.json"
        if not path.is_file():
            missing.append(cell)
            continue
        options = cell_options(cell, args)
        before = json.loads(path.read_text()).get("options", options)
        if before != options:
            raise ConfigurationError(
                f"{cell.name} in {folder} was run with other options ({' '.join(before)}): results of different runs would "
                "stand in one table. Choose another --folder."
            )
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before; {args.jobs} at a time")
    finished = [json.loads((folder / cell.name / "cell.json").read_text()) for cell in cells if cell not in missing]
    if others := {run["commit"] for run in finished if "commit" in run} - {commit()}:
        print(f"Those are of other code ({', '.join(sorted(others))}); another --folder runs them anew.")
    broken = []
    start, load = time.perf_counter(), os.getloadavg()[0]
    ended = KEY_TO_ENGINE[args.engine](missing, folder, args) if missing else iter(())
    for done, (cell, reason) in enumerate(ended, start=1):
        if reason is not None:
            broken.append((cell, reason))
        said = "finished" if reason is None else f"broken: {reason}"
        print(f"[{done}/{len(missing)}, {(time.perf_counter() - start) / 60:.1f} min] {cell.name} {said}", flush=True)
    paths = [path for cell in missing if (path := folder / cell.name / "cell.json").is_file()]
    if paths:
        cpu_seconds = sum(json.loads(path.read_text())["cpu_seconds"] for path in paths)
        print(
            f"{len(paths)} cells in {time.perf_counter() - start:.0f} s of wall time and {cpu_seconds:.0f} s of CPU time, "
            f"{args.jobs} at a time; load of the machine before: {load:.2f}"
        )
    return broken


def cell_options(cell: Cell, args: argparse.Namespace) -> list[str]:
    """
    List the options of ``zoo/train.py`` that decide what a cell gives.

    :param cell: the cell
    :param args: command line
    :return: options
    """
    method, packages = KEY_TO_METHOD[cell.method], packages_of(cell.env)
    options = ["--algo", method.algo, "--env", cell.env, "--seed", str(cell.seed)]
    options += ["--eval-freq", str(args.eval_freq), "--eval-tasks", str(args.eval_tasks)]
    options += ["--n-eval-envs", str(args.eval_envs)]
    options += ["-n", str(args.n_timesteps)] if args.n_timesteps else []
    options += ["--gym-packages", *packages] if packages else []
    options += ["--relabel", *method.relabel] if method.relabel else []
    options += ["--hyperparams", *method.hyperparams] if method.hyperparams else []
    return options


def run_cell(cell: Cell, folder: Path, args: argparse.Namespace) -> str | None:
    """
    Run one cell in a process of its own.

    :param cell: the cell
    :param folder: folder of the benchmark
    :param args: command line
    :return: why it broke, or None
    """
    run_folder = folder / cell.name
    run_folder.mkdir(parents=True, exist_ok=True)
    options = cell_options(cell, args)
    # A cell that breaks is run again from its start.
    command = [sys.executable, str(ROOT / "zoo" / "train.py")]
    command += ["--checkpoint-freq", "0", "--verbose", "0", "-uuid", "--no-picture"]
    command += ["--log-folder", str(run_folder / "logs"), *options]
    # What an earlier try left does not count, whatever the clock says of its age.
    before = set((run_folder / "logs").glob("*/*/evaluations.npz"))
    commit_before = commit()
    runs = run_forked if args.engine == "processes" and hasattr(os, "fork") else run_fresh
    exit_code, wall_seconds, cpu_seconds = runs(command, run_folder / "output.txt")
    results = [path for path in (run_folder / "logs").glob("*/*/evaluations.npz") if path not in before]
    if exit_code != 0 or not results:
        last_line = (run_folder / "output.txt").read_text().rstrip().rpartition("\n")[2]
        return f"exit code {exit_code}; {last_line} ({run_folder / 'output.txt'})"
    values = {
        "command": command[1:],
        "options": options,
        "evaluations": str(results[-1].relative_to(run_folder)),
        "commit": commit_before,
        "wall_seconds": wall_seconds,
        "cpu_seconds": cpu_seconds,
    }
    write_atomically(run_folder / "cell.json", json.dumps(values, indent=1) + "\n")
    return None


def run_fresh(command: list[str], output: Path) -> tuple[int, float, float]:
    """
    Run a command in a new process.

    :param command: command
    :param output: file for what it prints
    :return: exit code, seconds, and seconds of processor time
    """
    start = time.perf_counter()
    with open(output, "w") as file:
        # In a session of its own: Ctrl-C would end a training early, and it would look finished.
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        _RUNNING.add(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _RUNNING.discard(process)
    return process.returncode, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def run_forked(command: list[str], output: Path) -> tuple[int, float, float]:
    """
    Run a command of ``zoo/train.py`` in a fork of the process that this thread has warmed.

    :param command: command
    :param output: file for what it prints
    :return: exit code, seconds, and seconds of processor time, without those of the imports
    """
    if not hasattr(_THREAD, "warm"):
        _THREAD.warm = WarmProcess()
        _RUNNING.add(_THREAD.warm)
    try:
        return _THREAD.warm.run(command[2:], output)
    except RuntimeError as error:  # this cell is broken; the next one gets another process
        _RUNNING.discard(_THREAD.warm)
        del _THREAD.warm
        with open(output, "a") as file:
            file.write(f"\n{error}\n")
        return 1, 0.0, 0.0


def run_on_ray(cells: list[Cell], folder: Path, args: argparse.Namespace) -> Iterator[tuple[Cell, str | None]]:
    """
    Run cells on a Ray cluster: that of ``--ray-address``, or one on this machine with ``--jobs`` processors.

    :param cells: cells
    :param folder: folder of the benchmark, which all machines of the cluster share
    :param args: command line
    :return: cells as they end, with the reason if they broke
    :raises ConfigurationError: when Ray is not installed
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("--engine ray needs Ray: pip install 'hipi_sb3[ray]'") from error
    here = {"num_cpus": args.jobs, "include_dashboard": False} if args.ray_address is None else {}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ray.init(address=args.ray_address, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, **here)
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(run_cell)
        running = {task.remote(cell, folder.resolve(), args): cell for cell in cells}
        while running:
            for reference in ray.wait(list(running))[0]:
                cell = running.pop(reference)
                try:
                    yield cell, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield cell, " ".join(str(error).split())[:300]
    finally:
        ray.shutdown()


def run_in_threads(cells: list[Cell], folder: Path, args: argparse.Namespace) -> Iterator[tuple[Cell, str | None]]:
    """
    Run cells on this machine, ``--jobs`` at a time.

    :param cells: cells
    :param folder: folder of the benchmark
    :param args: command line
    :return: cells as they end, with the reason if they broke
    """
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_cell, cell, folder, args): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_RUNNING):
                with suppress(ProcessLookupError):  # ended by itself
                    process.kill()
            raise
    for process in [process for process in _RUNNING if isinstance(process, WarmProcess)]:
        process.close()
        _RUNNING.discard(process)


KEY_TO_ENGINE: dict[str, Callable[..., Iterator[tuple[Cell, str | None]]]] = {
    "processes": run_in_threads,
    "fresh": run_in_threads,
    "ray": run_on_ray,
}


def gather(cells: Iterable[Cell], folder: Path) -> pd.DataFrame:
    """
    Gather the evaluations of all finished cells.

    :param cells: cells
    :param folder: folder of the benchmark
    :return: one row an evaluation: method, env, seed, timesteps, mean return, success rate, wall and CPU seconds and commit of
        the run
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
                        "commit": run.get("commit", ""),
                    }
                )
    if not rows:
        raise ConfigurationError(f"no cell of the benchmark in {folder} was finished; see output.txt in its folders.")
    return pd.DataFrame(rows)


if __name__ == "__main__":
    # Under its own name, by which Ray's workers find what is sent to them.
    importlib.import_module("zoo.benchmark").main()
