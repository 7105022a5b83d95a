"""Does HIPI learn in fewer steps? The paper's eight tasks and five of Generalized Hindsight's, with it and without.

    python benchmarks/paper_suite.py --jobs 2      # some 14 CPU hours for five seeds; killed, it goes on where it was
    python benchmarks/paper_suite.py --seeds 2     # the first two seeds of every task and method
    python benchmarks/paper_suite.py --show        # the committed results as Markdown, and the figure

Cells that ``benchmarks/results/paper_suite.csv`` or the folder of the runs has are not run again: where the defaults have
changed, delete their rows, and give another ``--folder``.
Every method learns with the same settings of SAC (``hyperparams/hipi_sac.yml``) and is evaluated greedily on 50 tasks; where
these are not stable-baselines3's, ``..._plain`` has its networks and one update a step instead. Options were chosen on seeds
from 100 on, results are of seeds 0 to 4. What a table compares is *today* (HER's future goals where there are goals, random
labels elsewhere, plain), the same with windows of five steps by HIPI's settings, and HIPI by its defaults.
"""

import argparse
import itertools
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pandas as pd

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import interval_of_difference  # noqa: E402
from zoo import benchmark  # noqa: E402
from zoo.comparison import area_under, bootstrap, curves_of, interval_estimates, write_atomically  # noqa: E402
from zoo.methods import KEY_TO_METHOD  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

#: Tasks with goals, where HER applies, and others.
GOAL_TASKS = (
    "SawyerReach-v0",
    "QuadrupedGoal-v0",
    "ReacherGoal-v0",
    "FingerGoal-v0",
    "SawyerReachMargin-v0",
    "PointFourRoomsPaper-v0",
)
OTHER_TASKS = (
    "ReacherDiscrete-v0",
    "WalkerLinear-v0",
    "PointMassLinear-v0",
    "ReacherEnergy-v0",
    "HalfCheetahVelocity-v0",
    "HalfCheetahMix-v0",
    "AntDirection-v0",
)
#: Where tasks are fulfilled at some moment, and HIPI has windows.
WINDOW_TASKS = (*GOAL_TASKS, "ReacherDiscrete-v0")
#: Where the settings are not those of stable-baselines3.
OTHER_SETTINGS = (*WINDOW_TASKS, "PointMassLinear-v0")
#: Run first, all seeds of them, ...
METHODS = ("hipi", "her_future_plain", "random_plain", "random", "random_n5", "her_future", "her_future_n5")
#: ... and afterwards these.
MORE_METHODS = ("none", "max_reward", "air", "hipi_released")

N_TIMESTEPS, EVAL_FREQ = 15_000, 1500
#: Bootstrap samples of what is said over all tasks.
N_RESAMPLES = 2000


def make_cells(seeds: int, methods: tuple[str, ...]) -> list[benchmark.Cell]:
    """Cells of some methods, seed by seed."""
    return [
        benchmark.Cell(method, env, seed)
        for seed in range(seeds)
        for env in (*GOAL_TASKS, *OTHER_TASKS)
        for method in methods
        if applies(method, env)
    ]


def applies(method: str, env: str) -> bool:
    """Whether a method is one of its own in an environment."""
    has_goals = env in GOAL_TASKS or not KEY_TO_METHOD[method].needs_goals
    return has_goals and (env in OTHER_SETTINGS or not method.endswith("_plain"))


def run(seeds: int, jobs: int, folder: pathlib.Path, methods: tuple[str, ...] | None) -> None:
    """Run what neither the results nor the folder has, and write the evaluations of what is there."""
    args = benchmark.make_parser().parse_args(
        ["-n", str(N_TIMESTEPS), "--eval-freq", str(EVAL_FREQ), "--jobs", str(jobs), "--folder", str(folder)]
    )
    results, broken = RESULTS / "paper_suite.csv", []
    before = pd.read_csv(results) if results.is_file() else pd.DataFrame(columns=["method", "env", "seed"])
    finished = set(before[["method", "env", "seed"]].itertuples(index=False, name=None))
    for some in (METHODS, MORE_METHODS) if methods is None else (methods,):
        missing = [cell for cell in make_cells(seeds, some) if (cell.method, cell.env, cell.seed) not in finished]
        # Task by task, so that what is committed grows with what is finished; of one method seed by seed, for all jobs to do.
        for _, cells in itertools.groupby(missing, key=lambda cell: (cell.seed, cell.env if len(some) > 1 else "")):
            of_task = list(cells)
            broken += benchmark.run_cells(of_task, folder, args)
            if any((folder / cell.name / "cell.json").is_file() for cell in of_task):
                new = benchmark.gather(of_task, folder).drop(columns="wall_seconds").round(4)
                before = pd.concat([before, new], ignore_index=True)
                write_atomically(results, before.to_csv(index=False))
    for cell, reason in broken:
        print(f"broken: {cell.name}: {reason}", file=sys.stderr)


# -- what it says -----------------------------------------------------------------------------------------------------


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """The seeds of each task for which HIPI and today's method are there, of a suite that is not finished."""
    is_compared = (frame["method"] == "hipi") | (frame["method"] == frame["env"].map(today_in))
    n_there = frame[is_compared].groupby(["env", "seed"])["method"].nunique().rename("n").reset_index()
    return frame.merge(n_there[n_there["n"] == 2][["env", "seed"]], on=["env", "seed"])


def today_in(env: str) -> str:
    """The method that users of stable-baselines3 have for an environment."""
    return ("her_future" if env in GOAL_TASKS else "random") + ("_plain" if env in OTHER_SETTINGS else "")


def windows_in(env: str) -> str:
    """The same labels in windows of five steps, by the settings that HIPI has."""
    return "her_future_n5" if env in GOAL_TASKS else "random_n5"


def random_in(env: str) -> str:
    """Random labels by the settings and the windows that HIPI has."""
    return "random_n5" if env in WINDOW_TASKS else "random"


def steps_to_reach(curve: pd.DataFrame, value: float) -> float | None:
    """
    First evaluation at which the mean over the seeds reaches a value for good: its mean from there on does, too, and that of
    the last two. An ant that stands still, before it has learned anything, is rewarded more than one that walks.

    :param curve: evaluations, a row a seed
    :param value: value to reach
    :return: its step, or None
    """
    mean = curve.mean(axis=0)
    from_there_on = mean[::-1].expanding().mean()[::-1]
    reached = mean.index[(mean >= value) & (from_there_on >= value)]
    return float(reached[0]) if len(reached) and mean.iloc[-2:].mean() >= value else None


def compare(frame: pd.DataFrame) -> dict[str, Any]:
    """
    Compare HIPI with what there is without it.

    :param frame: evaluations, see :func:`zoo.benchmark.gather`
    :return: by task: metric, seeds, area and final value of each method, its difference from HIPI on the seeds that both have,
        with its interval, and the share of the steps after which HIPI has the final value of the method of today, and of the
        best of all others
    """
    tasks: dict[str, Any] = {}
    for env, of_env in frame.groupby("env", sort=False):
        metric, curves = curves_of(of_env)
        if "hipi" not in curves:
            continue
        today = today_in(env)
        methods = {}
        for method, curve in curves.items():
            final = curve.iloc[:, -2:].mean(axis=1).to_numpy()
            both = curves["hipi"].index.intersection(curve.index)
            methods[method] = {
                "seeds": len(curve),
                "final": float(final.mean()),
                "area": float(area_under(curve).mean()),
                "common_seeds": len(both),
                "hipi_area_minus_this": interval_of_difference(
                    area_under(curves["hipi"].loc[both]), area_under(curve.loc[both])
                ),
                "cpu_seconds": float(of_env[of_env["method"] == method]["cpu_seconds"].mean()),
            }
        others = {method: entry["final"] for method, entry in methods.items() if not method.startswith("hipi")}
        best = max(others, key=lambda method: others[method])
        shares = {}
        for name, rival in (("today", today), ("best", best)):
            if rival in methods:
                both = curves["hipi"].index.intersection(curves[rival].index)
                steps = steps_to_reach(curves["hipi"].loc[both], float(curves[rival].loc[both].iloc[:, -2:].mean(axis=None)))
                shares[name] = None if steps is None else steps / N_TIMESTEPS
        tasks[str(env)] = {"metric": metric, "today": today, "best": best, "share_of_steps": shares, "methods": methods}
    return tasks


def aggregate(frame: pd.DataFrame) -> dict[str, Any]:
    """
    Over all tasks: the normalised area under the curve (0 is a task's worst method, 1 its best) as interquartile mean,
    and how probably HIPI improves on what there is, both with 95 % bootstrap intervals (rliable, arXiv 2108.13264). A method
    that has a single seed in common with HIPI somewhere is left out: there would be no intervals.

    :param frame: evaluations
    :return: by method
    """
    from rliable import metrics

    seeds = frame.groupby(["env", "method"])["seed"].agg(set)
    asked = {"today": today_in, "windows of 5": windows_in, "hipi": lambda env: "hipi"}
    for name, key_in in list(asked.items()):
        both = [seeds[env, key_in(env)] & seeds[env, "hipi"] for env in frame["env"].unique() if (env, key_in(env)) in seeds]
        if min(map(len, both)) < 2:
            del asked[name]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in asked}
    for env, of_env in frame.groupby("env", sort=False):
        _, curves = curves_of(of_env)
        keys = {name: key_in(env) for name, key_in in asked.items()}
        if not all(key in curves for key in keys.values()):
            continue
        common = sorted(set.intersection(*(set(curves[key].index) for key in keys.values())))
        areas = {name: area_under(curves[key].loc[common]) for name, key in keys.items()}
        low, high = (bound(values.mean() for values in areas.values()) for bound in (min, max))
        for name, values in areas.items():
            columns[name].append((values - low) / max(high - low, 1e-9))
    # As many of each task as the task with the fewest has.
    n_seeds = min(len(values) for column in columns.values() for values in column)
    scores = {name: np.stack([column[:n_seeds] for column in values], axis=1) for name, values in columns.items()}
    point, interval = interval_estimates(scores, N_RESAMPLES)
    pairs = {f"hipi,{name}": (scores["hipi"], scores[name]) for name in scores if name != "hipi"}
    improves, bounds = bootstrap(pairs, metrics.probability_of_improvement, N_RESAMPLES)
    return {
        "n_tasks": scores["hipi"].shape[1],
        "n_seeds": n_seeds,
        "normalised_area": {name: [float(point[name][0]), *map(float, interval[name][:, 0])] for name in scores},
        "probability_of_improvement": {
            name.split(",", 1)[1]: [float(np.ravel(improves[name])[0]), *map(float, np.ravel(bounds[name]))] for name in pairs
        },
    }


def ahead_of(entry: dict[str, Any], digits: int) -> str:
    """How far HIPI is ahead of a method on the seeds that both have, with the interval; of one seed there is none."""
    mean, low, high = entry["hipi_area_minus_this"]
    return f"{mean:+.{digits}f}" + (f" [{low:+.{digits}f}, {high:+.{digits}f}]" if entry["common_seeds"] > 1 else "")


def as_markdown(tasks: dict[str, Any]) -> str:
    """The table of all tasks."""
    lines = [
        "| task | seeds | today | windows of 5 | HIPI | HIPI's area minus today's | minus windows of 5's "
        "| minus random labels' | minus no relabeling's | steps to today's end | steps to the best other's end |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for env, task in tasks.items():
        methods, today, windows = task["methods"], task["today"], windows_in(env)
        randomly, none = (m if m in methods else f"{m}_plain" for m in (random_in(env), "none"))
        digits = 2 if task["metric"] == "success" else 1

        def both(method: str, methods: Any = methods, digits: int = digits) -> str:
            entry = methods.get(method)
            if entry is None:
                return ""
            of = "" if entry["seeds"] == methods["hipi"]["seeds"] else f" ({entry['seeds']} seed{'s' * (entry['seeds'] > 1)})"
            return f"{entry['area']:.{digits}f} / {entry['final']:.{digits}f}{of}"

        def minus(method: str, methods: Any = methods, digits: int = digits) -> str:
            return ahead_of(methods[method], digits) if method in methods else ""

        shares = {key: "never" if share is None else f"{share:.0%}" for key, share in task["share_of_steps"].items()}
        lines.append(
            f"| {env} | {methods['hipi']['seeds']} | {both(today)} | {both(windows)} | {both('hipi')} | {minus(today)} "
            f"| {minus(windows)} | {minus(randomly)} | {minus(none)} "
            f"| {shares.get('today', '')} | {shares.get('best', '')} ({task['best']}) |"
        )
    return "\n".join(lines)


def as_page(tasks: dict[str, Any]) -> str:
    """A page with a table of each task: every method that has run there."""
    lines = [
        "# Every task of the suite",
        "",
        "Written by `python benchmarks/paper_suite.py --show` from",
        "[`paper_suite.csv`](../benchmarks/results/paper_suite.csv); [Results](results.md#the-papers-suite) say more.",
        "*Height* is the mean of the curve, *end* that of the last two of its ten evaluations; intervals are of the",
        "difference of the heights on the seeds that both have, 95 % bootstrap over these. CPU seconds are those of a run",
        "on one core, some of them on other machines than the rest. `hipi_posterior` is HIPI with all labels from the",
        "posterior, `hipi_prior` with none, `random_commanded` draws random labels among the tasks that were commanded in",
        "the batch; `..._plain` has the networks of stable-baselines3 and one update a step.",
    ]
    for env, task in tasks.items():
        digits = 2 if task["metric"] == "success" else 1
        lines += ["", f"## {env}", "", f"By {task['metric'].replace('_', ' ')}, after {N_TIMESTEPS} steps.", ""]
        lines += [
            "| method | seeds | height | end | HIPI's height minus this one's | CPU seconds |",
            "|---|---|---|---|---|---|",
        ]
        for method, entry in sorted(task["methods"].items(), key=lambda item: -item[1]["area"]):
            ahead = "" if method == "hipi" else ahead_of(entry, digits)
            lines.append(
                f"| {'**hipi**' if method == 'hipi' else f'`{method}`'} | {entry['seeds']} | {entry['area']:.{digits}f} "
                f"| {entry['final']:.{digits}f} | {ahead} | {entry['cpu_seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def draw(frame: pd.DataFrame, path: pathlib.Path) -> None:
    """Every task's curves: means over the seeds, and each seed as a thin line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    envs = list(dict.fromkeys(frame["env"]))
    figure, axes = plt.subplots(-(-len(envs) // 4), 4, figsize=(14, 2.9 * -(-len(envs) // 4)), layout="constrained")
    styles = {
        "none": ("#CC79A7", ":", "no relabeling"),
        "none_plain": ("#CC79A7", ":", "no relabeling"),
        "random_commanded": ("#999999", ":", "random labels among commanded tasks"),
        "random": ("#999999", "-", "random labels"),
        "random_plain": ("#999999", "-", "random labels"),
        "random_n5": ("#999999", "--", "random labels, windows of 5"),
        "her_future_plain": ("#E69F00", "-", "HER, future, as in stable-baselines3"),
        "her_future_n5": ("#E69F00", "--", "HER, future, windows of 5"),
        "hipi_plain": ("#0072B2", ":", "HIPI, networks and updates as in stable-baselines3"),
        "hipi": ("#0072B2", "-", "HIPI"),
    }
    handles: dict[str, Any] = {}
    for ax, env in zip(axes.ravel(), envs, strict=False):
        metric, curves = curves_of(frame[frame["env"] == env])
        for method, (color, line, label) in styles.items():
            if method not in curves:
                continue
            curve = curves[method]
            for _, seed in curve.iterrows():
                ax.plot(curve.columns, seed, color=color, linestyle=line, linewidth=0.6, alpha=0.35)
            [handles[label]] = ax.plot(curve.columns, curve.mean(axis=0), color=color, linestyle=line, linewidth=2)
        ax.set(title=env, ylabel="success" if metric == "success" else "return")
        ax.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g} k")
    for ax in axes.ravel()[len(envs) :]:
        ax.axis("off")
    figure.legend(handles.values(), handles.keys(), loc="lower right", bbox_to_anchor=(0.99, 0.05), fontsize=11)
    figure.savefig(path, dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("--methods", help=f"instead of all: {', '.join((*METHODS, *MORE_METHODS))}")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "logs" / "paper_suite", help="where runs go")
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.show:
        run(args.seeds, args.jobs, args.folder, args.methods and tuple(args.methods.split(",")))
    frame = compared(pd.read_csv(RESULTS / "paper_suite.csv"))
    tasks = compare(frame)
    result = {
        "commits": sorted(set(frame["commit"])),
        "n_timesteps": N_TIMESTEPS,
        "over_all": aggregate(frame),
        "tasks": tasks,
    }
    write_atomically(RESULTS / "paper_suite.json", json.dumps(result, indent=1) + "\n")
    write_atomically(ROOT / "docs" / "paper_suite_tables.md", as_page(tasks))
    draw(frame, ROOT / "docs" / "paper_suite.png")
    print(as_markdown(tasks), "\n")
    print(json.dumps(result["over_all"], indent=1))
    for key in ("today", "best"):
        shares = [task["share_of_steps"].get(key) for task in tasks.values()]
        values = [1.0 if value is None else value for value in shares]
        print(f"median share of the steps to the end of {key}: {np.median(values):.2f} (never counts as 1)")


if __name__ == "__main__":
    main()
