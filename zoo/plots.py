"""
Draw what a benchmark found: learning curves, bars by task, performance profiles, sample-efficiency ratios.

    python zoo/plots.py --folder logs/benchmark
    python zoo/plots.py --folder benchmarks/results --csv point.csv --out docs/point

Every figure is written as PNG and as SVG. Methods differ by colour (Okabe and Ito's, which all can tell apart), by line style
and by marker, so that they also do in black and white.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hipi_sb3.evaluation import task_labels
from hipi_sb3.experience.whole import NotWritten, remedy_named, whole_file
from zoo.comparison import ALL, curve_estimates, curves_of
from zoo.errors import ConfigurationError, check_name, exit_with_error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

#: More tasks than that are drawn as a sorted curve rather than as bars with labels.
MAX_BARS = 24


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: command line; that of the process if None
    """
    args = make_parser().parse_args(arguments)
    folder = Path(args.folder)
    try:
        frame = read_evaluations(folder / args.csv, args.methods)
        for path in save_all(frame, read_tasks(folder, frame), Path(args.out) if args.out else folder / "figures"):
            print(path)
    except (ConfigurationError, NotWritten) as error:
        exit_with_error("plots.py", error)


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    :return: parser
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="logs/benchmark", help="results of zoo/benchmark.py (default: %(default)s)")
    parser.add_argument("--csv", default="evaluations.csv", help="file with the evaluations (default: %(default)s)")
    parser.add_argument("--out", help="folder of the figures (default: figures in the folder of the results)")
    parser.add_argument("--methods", help="only these, separated by commas")
    return parser


def read_evaluations(path: Path, methods: str | None = None) -> pd.DataFrame:
    """
    Read the evaluations of a benchmark.

    :param path: CSV file, see :func:`zoo.benchmark.gather`
    :param methods: names separated by commas; all if None
    :return: evaluations
    :raises ConfigurationError: when there are none, or none of a method
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no {path}. Make it with python zoo/benchmark.py --folder {path.parent}")
    try:
        frame = pd.read_csv(path)
    except ValueError as error:  # those of pandas are ValueErrors
        raise ConfigurationError(f"{path} is no CSV file: {' '.join(str(error).split())}") from error
    for name in ("wall_seconds", "cpu_seconds"):  # results that were gathered elsewhere may not have both
        if name not in frame:
            frame[name] = np.nan
    missing = {"method", "env", "seed", "timesteps", "mean_return", "success"} - set(frame)
    if missing or len(frame) == 0:
        raise ConfigurationError(f"{path} has no evaluations{f': no {sorted(missing)[0]}' if missing else ''}.")
    if methods is None:
        return frame
    for method in methods.split(","):
        check_name("method", method, list(dict.fromkeys(frame["method"])))
    return frame[frame["method"].isin(methods.split(","))]


def read_tasks(folder: Path, frame: pd.DataFrame) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """
    Read the last evaluation of every cell task by task.

    :param folder: folder of the benchmark
    :param frame: its evaluations
    :return: tasks, (n_tasks, task_dim), and scores, (n_seeds, n_tasks), by environment and method; cells whose files are gone
        are left out
    """
    found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for (env, method), rows in frame.groupby(["env", "method"], sort=False):
        tasks, scores = None, []
        for seed in rows["seed"].unique():
            path = folder / str(env) / str(method) / f"seed{seed}" / "cell.json"
            if not path.is_file():
                continue
            with np.load(path.parent / json.loads(path.read_text())["evaluations"]) as data:
                if "tasks" not in data:
                    continue
                # Every task stands once for each of its episodes.
                unique, first, index = np.unique(data["tasks"], axis=0, return_index=True, return_inverse=True)
                values = (data["successes"] if "successes" in data else data["results"])[-1].astype(float)
                order = np.argsort(first)  # as they were evaluated
                tasks = unique[order]
                scores.append((np.bincount(index.ravel(), values) / np.bincount(index.ravel()))[order])
        if tasks is not None:
            found[str(env), str(method)] = tasks, np.stack(scores)
    return found


def save_all(frame: pd.DataFrame, tasks: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], folder: Path) -> list[Path]:
    """
    Draw and save all figures.

    :param frame: evaluations
    :param tasks: scores by task, see :func:`read_tasks`
    :param folder: where to write
    :return: files
    """
    with remedy_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in all_figures(frame, tasks).items():
        for suffix in ("png", "svg"):
            paths.append(folder / f"{name}.{suffix}")
            with whole_file(paths[-1]) as file:
                figure.savefig(file, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return paths


def all_figures(frame: pd.DataFrame, tasks: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]) -> dict[str, Figure]:
    """
    Draw all figures.

    :param frame: evaluations
    :param tasks: scores by task, see :func:`read_tasks`
    :return: figures by name: kind and environment
    """
    looks = Looks(list(dict.fromkeys(frame["method"])))
    figures: dict[str, Figure] = {}

    def add(kind: str, env: str, draw: Callable[..., None], *values: Any, width: float = 6.0) -> None:
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        axes = figure.subplots()
        draw(axes, *values, looks)
        axes.set_title(f"{env}\n{TITLES[kind]}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        figures[f"{kind}_{env}"] = figure

    of_envs = {str(env): curves_of(of_env) for env, of_env in frame.groupby("env", sort=False)}
    for env, (metric, curves) in of_envs.items():
        label = "success rate" if metric == "success" else "mean return"
        add("curves", env, draw_curves, curves, label)
        of_tasks = {method: tasks[env, method] for method in curves if (env, method) in tasks}
        add("profile", env, draw_profile, {method: curve.iloc[:, -1:] for method, curve in curves.items()}, label)
        if len(curves) > 1:
            add("efficiency", env, draw_efficiency, curves, label)
        if of_tasks:
            n_bars = sum(len(found[0]) for found in of_tasks.values() if len(found[0]) <= MAX_BARS)
            add("tasks", env, draw_tasks, of_tasks, label, width=9.0 if n_bars > 24 else 6.0)
    if len(of_envs) > 1 and all(metric == "success" for metric, _ in of_envs.values()):
        finals = [{method: curve.iloc[:, -1] for method, curve in curves.items()} for _, curves in of_envs.values()]
        common = [method for method in finals[0] if all(method in final for final in finals)]
        joint = {method: pd.concat([final[method] for final in finals], axis=1).dropna() for method in common}
        joint = {method: final for method, final in joint.items() if len(final) > 0}
        if joint:
            add("profile", ALL, draw_profile, joint, "success rate")
    return figures


TITLES = {
    "curves": "learning curves, IQM over seeds with 95 % bootstrap interval",
    "profile": "performance profile, share of runs above a final score",
    "efficiency": "sample efficiency: steps to a score, over those of each other method",
    "tasks": "task by task at the end, mean over seeds with the range",
}


class Looks:
    """
    What methods look like, the same in all figures: "hipi" is the solid line.

    :param methods: names
    """

    def __init__(self, methods: list[str]) -> None:
        self.index = {method: k for k, method in enumerate(sorted(methods, key=lambda method: method != "hipi"))}

    def color(self, method: str) -> str:
        """Colour of a method."""
        return COLORS[self.index[method] % len(COLORS)]

    def line(self, method: str) -> dict[str, Any]:
        """Options of a line; its group in an SVG is named after the method, for the filter of the report."""
        k = self.index[method]
        return {
            "color": self.color(method),
            # The ninth has the colour of the first, but not its line.
            "linestyle": LINES[(k + k // len(COLORS)) % len(LINES)],
            "marker": MARKERS[k % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.6,
            "gid": f"method:{method}",
        }

    def legend(self, axes: Axes, methods: list[str]) -> None:
        """Draw the legend beside the axes."""
        handles = [Line2D([], [], label=method, **self.line(method)) for method in methods]
        legend = axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for text, handle, method in zip(legend.get_texts(), legend.legend_handles, methods, strict=True):
            text.set_gid(f"method:{method}")
            assert handle is not None
            handle.set_gid(f"method:{method}")


def draw_curves(axes: Axes, curves: dict[str, pd.DataFrame], label: str, looks: Looks) -> None:
    """
    Draw learning curves.

    :param axes: where to draw
    :param curves: curves of each method, a row a seed
    :param label: name of the score
    :param looks: what methods look like
    """
    for method, curve in curves.items():
        steps = curve.columns.to_numpy(dtype=float)
        middle, (low, high) = curve_estimates(curve)
        axes.fill_between(steps, low, high, color=looks.color(method), alpha=0.18, linewidth=0, gid=f"method:{method}")
        axes.plot(steps, middle, **looks.line(method))
    axes.set(xlabel="environment steps", ylabel=label, xlim=(0, None))
    if label == "success rate":
        axes.set_ylim(-0.02, 1.02)
    looks.legend(axes, list(curves))


def draw_profile(axes: Axes, finals: dict[str, pd.DataFrame], label: str, looks: Looks) -> None:
    """
    Draw performance profiles of the final scores.

    :param axes: where to draw
    :param finals: final scores of each method: a row a seed, a column an environment
    :param label: name of the score
    :param looks: what methods look like
    """
    from rliable import library

    final = {method: values.to_numpy() for method, values in finals.items()}
    scores = np.concatenate(list(final.values()))
    low, high = (0.0, 1.0) if label == "success rate" else (float(scores.min()), float(scores.max()))
    taus = np.linspace(low, high, 101)

    def share_above(scores: np.ndarray, taus: np.ndarray) -> np.ndarray:
        return np.mean(scores.reshape(-1, 1) > taus, axis=0)  # rliable's own is a loop over taus

    profiles, intervals = library.create_performance_profile(final, taus, custom_profile_func=share_above)
    for method in final:
        axes.fill_between(taus, *intervals[method], color=looks.color(method), alpha=0.12, linewidth=0, gid=f"method:{method}")
        axes.plot(taus, profiles[method], markevery=10, **looks.line(method))
    axes.set(xlabel=f"final {label}", ylabel="share of runs above", ylim=(-0.02, 1.02))
    looks.legend(axes, list(final))


def draw_efficiency(axes: Axes, curves: dict[str, pd.DataFrame], label: str, looks: Looks) -> None:
    """
    Draw how many steps "hipi" (or the first method) needs for a score, over those that another method needs.

    Below one it needs fewer. A method that never reaches the score is given its last step, so that its true ratio is smaller
    still: such points are hollow.

    :param axes: where to draw
    :param curves: curves of each method, a row a seed
    :param label: name of the score
    :param looks: what methods look like
    """
    ours = "hipi" if "hipi" in curves else next(iter(curves))
    means = {method: curve.mean() for method, curve in curves.items()}
    low, high = min(mean.min() for mean in means.values()), means[ours].max()
    scores = np.linspace(low, high, 9)[1:]
    for method, mean in means.items():
        if method == ours:
            continue
        points = [(score, *_ratio(means[ours], mean, score)) for score in scores]
        x, ratio, reached = (np.array(values) for values in zip(*points, strict=True))
        look = looks.line(method)
        axes.plot(x, ratio, **{**look, "marker": None})
        axes.plot(x[reached], ratio[reached], **{**look, "linestyle": "none"})
        axes.plot(x[~reached], ratio[~reached], **{**look, "linestyle": "none", "markerfacecolor": "white"})
    axes.axhline(1.0, color="#555555", linewidth=0.8)
    axes.set(
        xlabel=f"{label} to reach, mean over seeds (hollow: the other never does)",
        ylabel=f"steps of {ours} / steps of the other",
    )
    axes.set_ylim(0, None)
    looks.legend(axes, [method for method in curves if method != ours])


def _ratio(ours: pd.Series, theirs: pd.Series, score: float) -> tuple[float, bool]:
    """Ratio of the steps to a score, and whether the other method reaches it."""
    own, other = _crossing(ours, score), _crossing(theirs, score)
    return own / (theirs.index[-1] if other is None else other), other is not None  # type: ignore[operator]


def _crossing(mean: pd.Series, score: float) -> float | None:
    """Steps at which a mean curve first reaches a score, between evaluations linearly; None if it never does."""
    steps, values = mean.index.to_numpy(dtype=float), np.maximum.accumulate(mean.to_numpy())
    if values[-1] < score - 1e-9:
        return None
    k = int(np.argmax(values >= score - 1e-9))
    if k == 0:
        return float(steps[0])
    share = (score - values[k - 1]) / max(values[k] - values[k - 1], 1e-12)
    return float(steps[k - 1] + min(share, 1.0) * (steps[k] - steps[k - 1]))


def draw_tasks(axes: Axes, tasks: dict[str, tuple[np.ndarray, np.ndarray]], label: str, looks: Looks) -> None:
    """
    Draw the final score of every task: bars, or sorted curves where there are many.

    :param axes: where to draw
    :param tasks: tasks, (n_tasks, task_dim), and scores, (n_seeds, n_tasks), of each method
    :param label: name of the score
    :param looks: what methods look like
    """
    n_tasks = len(next(iter(tasks.values()))[0])
    width = 0.8 / len(tasks)
    for k, (method, (_, scores)) in enumerate(tasks.items()):
        mean, low, high = scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0)
        if n_tasks > MAX_BARS:
            share, order = np.linspace(0, 1, n_tasks), np.argsort(mean)
            axes.plot(share, mean[order], markevery=max(n_tasks // 10, 1), **looks.line(method))
            axes.fill_between(share, low[order], high[order], color=looks.color(method), alpha=0.15, linewidth=0)
            continue
        # A marker on every bar says in print what its colour says on a screen.
        x = np.arange(n_tasks) + (k - (len(tasks) - 1) / 2) * width
        for i in range(n_tasks):
            axes.bar(x[i], mean[i], width, color=looks.color(method), gid=f"method:{method}", edgecolor="white", linewidth=0.4)
        look = {**looks.line(method), "linestyle": "none", "markersize": 3, "markeredgecolor": "black", "markeredgewidth": 0.4}
        axes.vlines(x, low, high, color="black", linewidth=0.7, gid=f"method:{method}")
        axes.plot(x, mean, **look)
    if n_tasks > MAX_BARS:
        axes.set(xlabel="tasks, of each method its hardest first", ylabel=label)
    else:
        labels = task_labels(next(iter(tasks.values()))[0])
        axes.set_xticks(np.arange(n_tasks), labels, rotation=60, ha="right", fontsize=7)
        axes.set(ylabel=label)
    looks.legend(axes, list(tasks))


if __name__ == "__main__":
    main()
