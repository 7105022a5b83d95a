"""
Compare methods by what they reached: interquartile means with bootstrap intervals, area under the curve, steps to a threshold,
probability of improvement (rliable: Agarwal et al., NeurIPS 2021, arXiv 2108.13264).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import trim_mean

from hipi_sb3.experience.whole import remedy_named, whole_file

#: What a table over several environments is called.
ALL = "all environments"

#: Bootstrap samples of an interval.
N_RESAMPLES = 5000


def curves_of(of_env: pd.DataFrame) -> tuple[str, dict[str, pd.DataFrame]]:
    """
    Arrange the evaluations of one environment by method.

    :param of_env: evaluations, see :func:`zoo.benchmark.gather`
    :return: metric (success where there is one, else the return), and of each method its curves: seeds are rows, steps columns
    """
    metric = "success" if of_env["success"].notna().all() else "mean_return"
    curves = {}
    for method, of_method in of_env.groupby("method", sort=False):
        curve = of_method.pivot(index="seed", columns="timesteps", values=metric)
        curves[str(method)] = curve.dropna(axis="columns")  # evaluations that all of its seeds have
    return metric, curves


def area_under(curve: pd.DataFrame) -> np.ndarray:
    """
    Mean height of each curve over the steps: its area by the trapezoid rule, divided by their range.

    :param curve: curves, a row a seed
    :return: area of each seed, (n_seeds,)
    """
    steps, values = curve.columns.to_numpy(dtype=float), curve.to_numpy()
    if len(steps) == 1:
        return values[:, 0]
    return np.trapezoid(values, steps, axis=1) / (steps[-1] - steps[0])


def steps_to(curve: pd.DataFrame, threshold: float) -> list[int | None]:
    """
    Find the first evaluation of each seed that reaches a threshold.

    :param curve: curves, a row a seed
    :param threshold: value to reach
    :return: steps of each seed; None where it never does
    """
    return [next((int(step) for step, value in row.items() if value >= threshold), None) for _, row in curve.iterrows()]


def summarize(frame: pd.DataFrame, threshold: float) -> list[dict[str, Any]]:
    """
    Compare the methods in each environment, and over all of them where all are measured by success.

    :param frame: evaluations, see :func:`zoo.benchmark.gather`
    :param threshold: success whose first step is reported
    :return: one entry an environment and method
    """
    summary, finals = [], {}
    for env, of_env in frame.groupby("env", sort=False):
        metric, curves = curves_of(of_env)
        # (n_seeds, 1) of each method: rliable takes (n_seeds, n_environments)
        final = {method: curve.iloc[:, -1:].to_numpy() for method, curve in curves.items()}
        finals[str(env)] = (metric, {method: curve.iloc[:, -1] for method, curve in curves.items()})
        areas = {method: area_under(curve)[:, None] for method, curve in curves.items()}
        area_intervals = interval_estimates(areas, N_RESAMPLES // 5)[1]
        for entry in _entries(str(env), metric, final):
            method = entry["method"]
            of_method = of_env[of_env["method"] == method].groupby("seed")
            summary.append(
                entry
                | {
                    "timesteps": int(curves[method].columns[-1]),
                    "area": float(areas[method].mean()),
                    "area_interval": [float(bound) for bound in area_intervals[method][:, 1]],
                    "steps_to_threshold": steps_to(curves[method], threshold),
                    "wall_seconds": float(of_method["wall_seconds"].first().mean()),
                    "cpu_seconds": float(of_method["cpu_seconds"].first().mean()),
                }
            )
    return summary + _over_all(finals)


def interval_estimates(scores: dict[str, np.ndarray], n_resamples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    Interquartile mean and mean with their 95 % bootstrap intervals, stratified by environment.

    :param scores: scores of each method, (n_seeds, n_environments)
    :param n_resamples: bootstrap samples
    :return: point estimates, (2,), and intervals, (2, 2): rows are lower and upper ends
    """
    from rliable import metrics

    def aggregate(values: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(values), metrics.aggregate_mean(values)])

    return bootstrap(scores, aggregate, n_resamples)


def curve_estimates(curve: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """
    Interquartile mean over the seeds at every step, with its 95 % bootstrap interval.

    :param curve: curves, a row a seed
    :return: means, (n_steps,), and intervals, (2, n_steps)
    """
    points, intervals = bootstrap({"": curve.to_numpy()}, partial(trim_mean, proportiontocut=0.25, axis=0), N_RESAMPLES // 5)
    return points[""], intervals[""]


def bootstrap(
    scores: dict[str, Any], aggregate: Callable[..., Any], n_resamples: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    What is said of scores, with its 95 % bootstrap interval, stratified by environment.

    :param scores: scores of each method, (n_seeds, n_environments), or pairs of such
    :param aggregate: takes one of these
    :param n_resamples: bootstrap samples
    :return: what it says of each, (n,), and intervals, (2, n): rows are lower and upper ends
    """
    from rliable import library

    # rliable draws from NumPy's global generator, whatever its random_state is.
    before = np.random.get_state()
    np.random.seed(0)
    try:
        return library.get_interval_estimates(scores, aggregate, reps=n_resamples)
    finally:
        np.random.set_state(before)


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """
    How far one method is ahead of another at the end.

    :param ours: final score of each seed, (n_seeds, n_environments)
    :param theirs: final score of each seed, (n_seeds, n_environments)
    :return: difference of the means with its 95 % bootstrap interval over seeds, and the probability of improvement
    """
    from rliable import metrics

    rng = np.random.default_rng(0)
    resampled = [
        scores[rng.integers(len(scores), size=(N_RESAMPLES, len(scores)))].mean(axis=(1, 2)) for scores in (ours, theirs)
    ]  # over seeds
    low, high = np.percentile(resampled[0] - resampled[1], [2.5, 97.5])
    return {
        "mean": float(ours.mean() - theirs.mean()),
        "interval": [float(low), float(high)],
        "probability_of_improvement": float(metrics.probability_of_improvement(ours, theirs)),
    }


def _entries(env: str, metric: str, final: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What is said of each method in a table, from final scores, (n_seeds, n_environments)."""
    points, intervals = interval_estimates(final, N_RESAMPLES)
    return [
        {
            "env": env,
            "method": method,
            "metric": metric,
            "final": [round(float(value), 4) for value in scores.mean(axis=1)],
            "iqm": float(points[method][0]),
            "iqm_interval": [float(bound) for bound in intervals[method][:, 0]],
            "mean": float(points[method][1]),
            "mean_interval": [float(bound) for bound in intervals[method][:, 1]],
            "differences": {other: difference(scores, final[other]) for other in final if other != method},
        }
        for method, scores in final.items()
    ]


def _over_all(finals: dict[str, tuple[str, dict[str, pd.Series]]]) -> list[dict[str, Any]]:
    """One table over all environments: methods and seeds that all of them have; success is on one scale, returns are not."""
    if len(finals) < 2 or any(metric != "success" for metric, _ in finals.values()):
        return []
    of_envs = [final for _, final in finals.values()]
    common = [method for method in of_envs[0] if all(method in final for final in of_envs)]
    scores = {method: pd.concat([final[method] for final in of_envs], axis=1).dropna().to_numpy() for method in common}
    scores = {method: values for method, values in scores.items() if len(values) > 0}
    return _entries(ALL, "success", scores) if scores else []


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
        extents = [_extent(entry) for entry in entries]
        is_same = len(set(extents)) == 1
        lines.append(f"\n{env}: {first['metric']}{extents[0] if is_same else ' at the end of each run'}")
        columns = [f"{'method':16s}", f"{'IQM [95 %]':>18s}", f"{'mean [95 %]':>18s}"]
        if "area" in first:
            reached = f"steps to {threshold:g}" if first["metric"] == "success" else ""
            columns += [f"{'area':>6s}", f"{reached:>14s}", f"{'wall s':>7s}", f"{'CPU s':>7s}"]
        lines.append(" ".join(columns))
        lines += [_row(entry) + ("" if is_same else extent) for entry, extent in zip(entries, extents, strict=True)]
        hipi = next((entry for entry in entries if entry["method"] == "hipi"), None)
        for other, ahead in (hipi["differences"] if hipi else {}).items():
            low, high = ahead["interval"]
            lines.append(
                f"hipi - {other}: {ahead['mean']:+.2f} [{low:+.2f}, {high:+.2f}], "
                f"probability of improvement {ahead['probability_of_improvement']:.2f}"
            )
    return "\n".join(lines)


def with_interval(entry: dict[str, Any], name: str) -> str:
    """
    Format a value of :func:`summarize` with its interval.

    :param entry: entry of the summary
    :param name: ``iqm``, ``mean`` or ``area``
    :return: text
    """
    low, high = entry[f"{name}_interval"]
    return f"{entry[name]:.2f} [{low:.2f}, {high:.2f}]"


def median_steps(entry: dict[str, Any]) -> str:
    """
    Format the steps to the threshold.

    :param entry: entry of the summary
    :return: median over the seeds that reach it, and how many those are
    """
    reached = [steps for steps in entry["steps_to_threshold"] if steps is not None]
    return f"{np.median(reached):.0f} ({len(reached)}/{len(entry['final'])})" if reached else "never"


def _extent(entry: dict[str, Any]) -> str:
    """After how many steps and of how many seeds an entry is."""
    steps = f" after {entry['timesteps']} steps" if "timesteps" in entry else ""
    return f"{steps}, {len(entry['final'])} seeds"


def _row(entry: dict[str, Any]) -> str:
    cells = [f"{entry['method']:16s}", f"{with_interval(entry, 'iqm'):>18s}", f"{with_interval(entry, 'mean'):>18s}"]
    if "area" in entry:
        # The threshold is one of success.
        cells += [f"{entry['area']:6.2f}", f"{median_steps(entry) if entry['metric'] == 'success' else '':>14s}"]
        cells += [f"{entry['wall_seconds']:7.0f}", f"{entry['cpu_seconds']:7.0f}"]
    return " ".join(cells)


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file that is complete or as it was before, whenever the process is killed.

    :param path: file
    :param text: its new content
    """
    with remedy_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text)
