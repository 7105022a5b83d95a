"""Every benchmark runs, with tiny sizes, and writes what it measured, where and of which commit."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ablation, measuring
from zoo.comparison import summarize
from zoo.methods import KEY_TO_METHOD

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
BENCHMARKS = re.search(r"^BENCHMARKS := (.+)$", MAKEFILE, re.MULTILINE).group(1).split()

#: What each file has to have, as a path of keys.
KEYS = {
    "core_speed": ["sampling", "1000", "her_over_hipi", "median"],
    "add_speed": ["goal_env_over_her", "median"],
    "buffer_files": ["times", "save files", "median"],
    "gradient_speed": ["fetch_reach_sizes", "her", "over_sac", "low"],
    "relabel_cost": ["cells", "4 candidates, batch 8", "scored_us_a_row", "median"],
    "end_to_end": ["authors_setting", "batch 32, 32 candidates", "steps_per_cpu_second", "median"],
    "vector_env": ["points", "PointFourRooms-v0", "vector_over_single", "high"],
    "footprint": ["peak_mebibytes", "sac", "median"],
    "compiled_update": ["128 x 128, batch 64", "torch.jit", "speed_up", "median"],
    "collecting": ["outside", "copies", "median"],
    "env_speed": ["environments", "PointFourRooms-v0", "steps_per_second", "median"],
}

#: Tables of learning, and what needs more than this checkout: SBX, another checkout, Ray.
LEFT_OUT = ["bc_table", "bc_speed", "ablation", "against_sbx", "start_up", "ray_vec_env", "gpu_limit", "paper_suite", "soak"]
LEFT_OUT += ["bfloat16", "paper_labels"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals from few bootstrap samples: none of them is looked at closely here."""
    monkeypatch.setattr("zoo.comparison.N_RESAMPLES", 200)
    monkeypatch.setattr("benchmarks.paper_suite.N_RESAMPLES", 200)


#: Those that start other processes or wait for a compiler.
SLOW = ("footprint", "scaling", "compiled_update")


# Importing takes longer than tiny sizes do, so these run in this process.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.expensive if name in SLOW else ()) for name in BENCHMARKS],
)
def test_it_runs_and_says_what_it_measured(name, tmp_path, monkeypatch):
    options = ["--envs", "PointFourRooms-v0"] if name == "env_speed" else []
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--json", str(path), *options])
    importlib.import_module(f"benchmarks.{name}").main()
    result = json.loads(path.read_text())
    assert result["quick"] and result["commit"] and result["machine"]["threads"] == 1
    assert result["command"].startswith(f"python benchmarks/{name}.py --quick")
    value = result
    for key in KEYS.get(name, []):
        value = value[key]
    assert name not in KEYS or np.isfinite(value)


def test_products_are_a_share_of_an_update():
    [share] = importlib.import_module("benchmarks.products").measure_share(quick=True)["share_of_products"].values()
    assert 0 < share["median"] < 1


def test_make_bench_runs_every_benchmark_but_those_that_are_left_out():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"measuring", *LEFT_OUT}
    assert set(BENCHMARKS) == scripts


def test_candidates_take_turns_and_ratios_have_intervals_around_the_median():
    order, clock = [], iter(range(100))
    functions = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = measuring.take_turns(functions, turns=3, calls=2, clock=lambda: next(clock))
    assert "".join(order) == "ab" + 3 * "aabb"
    assert times["a"].tolist() == times["b"].tolist() == [0.5] * 3
    interval = measuring.ratio(np.array([2.0, 4.0, 3.0, 9.0]), np.ones(4))
    assert interval["low"] <= interval["median"] == 3.5 <= interval["high"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_make_bench_leaves_out_says_what_it_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main()
    assert re.search("--json|--show", capsys.readouterr().out)


def test_the_ablation_varies_methods_of_the_launcher_and_says_what_they_are():
    for matrix in ablation.MATRICES.values():
        assert set(matrix.methods) <= set(ablation.LABELS) and "hipi" in matrix.methods
        assert set(matrix.methods) <= set(KEY_TO_METHOD)
        assert matrix.n_timesteps % matrix.eval_freq == 0  # so that the last evaluation is that of the end


def test_the_table_of_the_ablation_marks_differences_whose_interval_leaves_out_zero():
    steps, seeds = (5, 10), range(5)
    frame = pd.DataFrame(
        {
            "method": method,
            "env": "E",
            "seed": seed,
            "timesteps": step,
            "success": value + 0.01 * seed * step,
            "mean_return": 0.0,
        }
        | {"wall_seconds": 1.0, "cpu_seconds": 1.0}
        for method, value in (("none", 0.0), ("hipi", 0.5), ("hipi_q", 0.51))
        for seed in seeds
        for step in steps
    )
    rows = {line.split("|")[1].strip(): line for line in ablation.markdown(summarize(frame, 0.5)).splitlines()}
    assert "| 0.70 [" in rows["**HIPI** (the defaults)"] and "| 0.65 |" in rows["**HIPI** (the defaults)"]
    assert "**-0.50 [" in rows["no relabeling"] and "| +0.01 [" in rows["score: q"]


def test_the_paper_suite_counts_the_steps_that_hipi_needs():
    from benchmarks import paper_suite

    steps = np.arange(1500, 15001, 1500)

    def rows(method, env, seed, success):
        metric = {"mean_return": np.nan, "success": success, "wall_seconds": 1.0, "cpu_seconds": 2.0, "commit": "abc"}
        index = {"method": method, "env": env, "seed": seed, "timesteps": steps}
        return pd.DataFrame({**index, **metric})

    ramp = np.linspace(0.1, 1.0, 10)
    slow, fast = 0.5 * ramp, np.minimum(2 * ramp, 1.0)
    frame = pd.concat(
        [
            rows(method, env, seed, success)
            for env, today in (("SawyerReach-v0", "her_future"), ("ReacherDiscrete-v0", "random"))
            for seed in (0, 1)
            for method, success in ((f"{today}_plain", slow), (f"{today}_n5", ramp), ("hipi", fast))
        ]
    )
    tasks = paper_suite.compare(frame)
    sawyer = tasks["SawyerReach-v0"]
    # The last two evaluations of "today" are 0.45 and 0.5, which "hipi" passes at the third, 0.6: 4500 of 15 000 steps.
    assert sawyer["methods"]["her_future_plain"]["final"] == pytest.approx(0.475)
    assert sawyer["share_of_steps"] == {"today": pytest.approx(0.3), "best": pytest.approx(0.5)}
    assert sawyer["best"] == "her_future_n5" and tasks["ReacherDiscrete-v0"]["best"] == "random_n5"
    mean, low, high = sawyer["methods"]["her_future_plain"]["hipi_area_minus_this"]
    assert low == pytest.approx(mean) == high and mean > 0.4  # seeds that are all alike
    over_all = paper_suite.aggregate(frame)
    assert over_all["n_tasks"] == over_all["n_seeds"] == 2
    assert over_all["normalised_area"]["hipi"][0] == pytest.approx(1) and over_all["normalised_area"]["today"][
        0
    ] == pytest.approx(0)
    assert over_all["probability_of_improvement"]["today"][0] == 1
    table = paper_suite.as_markdown(tasks).splitlines()
    assert len(table) == 4 and "| 30% | 50% (her_future_n5) |" in table[2]
    assert len({line.count("|") for line in table}) == 1
    header, discrete = ([cell.strip() for cell in line.split("|")] for line in (table[0], table[3]))
    # Of the discrete reacher random labels in windows, (0.1 + 1) / 2 high, are the same as windows of five.
    shown = dict(zip(header, discrete, strict=True))
    assert shown["minus random labels'"] == shown["minus windows of 5's"] and shown["minus random labels'"].startswith("+0.2")
    page = paper_suite.as_page(tasks)
    assert "## ReacherDiscrete-v0" in page and "| `her_future_plain` | 2 | 0.28 | 0.47 | +0.5" in page


def test_the_paper_suite_asks_for_plain_settings_where_there_are_others():
    from benchmarks.paper_suite import METHODS, make_cells

    methods = {
        env: {cell.method for cell in make_cells(1, METHODS) if cell.env == env}
        for env in ("SawyerReach-v0", "ReacherDiscrete-v0", "WalkerLinear-v0")
    }
    assert {"her_future", "her_future_plain", "random_plain"} <= methods["SawyerReach-v0"]
    assert methods["ReacherDiscrete-v0"] == {"hipi", "random", "random_plain", "random_n5"}
    assert methods["WalkerLinear-v0"] == {"hipi", "random", "random_n5"}


def test_what_is_unlearned_at_once_does_not_count_as_reached():
    from benchmarks.paper_suite import steps_to_reach

    curve = pd.DataFrame([[980.0, 100.0, 200.0, 300.0, 420.0, 400.0, 460.0]], columns=range(1500, 12000, 1500))
    assert steps_to_reach(curve, 410.0) == 7500  # 420, 400 and 460 from there on
    assert steps_to_reach(curve, 450.0) is None  # the last two do not


def test_the_paper_suite_compares_on_the_seeds_that_both_methods_have():
    from benchmarks import paper_suite

    heights = {"hipi": (0.4, 0.6, 0.2), "random": (0.3, 0.5, 0.4), "random_n5": (0.2, 0.4)}
    frame = pd.DataFrame(
        [
            {"method": method, "env": "WalkerLinear-v0", "seed": seed, "timesteps": step, "mean_return": height}
            | {"success": np.nan, "wall_seconds": 1.0, "cpu_seconds": 2.0, "commit": "abc"}
            for method, of_seeds in heights.items()
            for seed, height in enumerate(of_seeds)
            for step in range(1500, 15001, 1500)
        ]
    )
    task = paper_suite.compare(frame)["WalkerLinear-v0"]
    assert task["methods"]["random"]["hipi_area_minus_this"][0] == pytest.approx(0.0)
    assert task["methods"]["random_n5"]["hipi_area_minus_this"][0] == pytest.approx(0.2)  # without HIPI's third seed
    assert task["best"] == "random" and task["share_of_steps"]["best"] == pytest.approx(0.1)
    row = paper_suite.as_markdown({"WalkerLinear-v0": task}).splitlines()[2]
    assert "| 3 | 0.4 / 0.4 | 0.3 / 0.3 (2 seeds) | 0.4 / 0.4 |" in row
    over_all = paper_suite.aggregate(frame)
    # Of the two seeds that all have, the worst mean is 0.3 and the best 0.5.
    assert over_all["n_seeds"] == 2
    assert over_all["normalised_area"]["windows of 5"][0] == pytest.approx(0.0)
    assert over_all["normalised_area"]["hipi"][0] == pytest.approx(1.0)
    # With one seed of them there are no intervals.
    few = frame[(frame["method"] != "random_n5") | (frame["seed"] == 0)]
    over_all = paper_suite.aggregate(few)
    assert over_all["n_seeds"] == 3 and set(over_all["normalised_area"]) == {"today", "hipi"}


def test_the_labels_of_the_suite_are_those_of_the_last_policy(tmp_path, monkeypatch, capsys):
    from benchmarks import paper_labels
    from hipi_sb3 import HIPISAC

    run = tmp_path / "runs" / "PointMassLinear-v0" / "hipi" / "seed0" / "logs" / "hipi_sac" / "PointMassLinear-v0_1"
    run.mkdir(parents=True)
    HIPISAC("MultiInputPolicy", "PointMassLinear-v0", learning_starts=50).learn(60).save(run / "PointMassLinear-v0.zip")
    picture, path = tmp_path / "labels.png", tmp_path / "labels.json"
    options = ["--quick", "--runs", str(tmp_path / "runs"), "--picture", str(picture), "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["paper_labels.py", *options])
    paper_labels.main()
    assert picture.stat().st_size > 1000
    said, errors = capsys.readouterr()
    assert "SawyerReach-v0: no finished run" in errors and "| PointMassLinear-v0 | " in said
    [numbers] = json.loads(path.read_text())["tasks"].values()
    assert 1 <= numbers["effective tasks"] <= numbers["of candidates"] == 32 and numbers["ends, label"] == 0
    monkeypatch.setattr(sys, "argv", ["paper_labels.py", "--quick", "--runs", str(tmp_path / "nothing")])
    with pytest.raises(FileNotFoundError, match="has no run of HIPI"):
        paper_labels.main()
