"""Benchmark, plots, report and enjoy, as a user runs them."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from browser import FLAGS, chromium
from conftest import require
from numpy.testing import assert_allclose

require("rl_zoo3")
require("rliable")

from hipi_sb3 import HIPISAC, GoalReaching, LinearReward
from zoo import benchmark, comparison, enjoy, plots, report, suites
from zoo.comparison import area_under, format_table, steps_to, summarize
from zoo.methods import KEY_TO_METHOD, Method
from zoo.warm import WarmProcess

ROOT = Path(__file__).parents[2]


# -- benchmark -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals from few bootstrap samples: none of them is looked at closely here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(comparison, "N_RESAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A benchmark of two methods, one of which breaks: folder, how it ended, what it said of errors."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KEY_TO_METHOD, "broken", Method(("strategy=nonesuch",)))
        with pytest.raises(SystemExit) as exit_info, contextlib.redirect_stderr(io.StringIO()) as said:
            run_benchmark(folder, "none,hipi,broken", "--jobs", "2")
    return folder, exit_info.value.code, said.getvalue()


def benchmark_arguments(folder, methods, *arguments):
    few = ["--seeds", "1", "-n", "120", "--eval-freq", "60", "--eval-tasks", "3", "--folder", str(folder)]
    return ["--suite", "point", "--methods", methods, *few, *arguments]


def run_benchmark(folder, methods, *arguments):
    benchmark.main(benchmark_arguments(folder, methods, *arguments))


def test_a_broken_cell_does_not_stop_the_others(compared):
    folder, code, said = compared
    assert code == 1
    frame = pd.read_csv(folder / "evaluations.csv")
    assert set(frame["method"]) == {"none", "hipi"} and set(frame["timesteps"]) == {60, 120}
    assert "Did you mean 'none'?" in (folder / "PointFourRooms-v0/broken/seed0/output.txt").read_text()
    assert "Did you mean 'none'?" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"].startswith("python zoo/benchmark.py --suite point") and "torch" in summary["versions"]
    assert {"iqm", "area", "steps_to_threshold", "wall_seconds", "cpu_seconds"} <= set(summary["results"][0])


def test_a_cell_draws_no_picture_and_reports_its_last_evaluation(compared):
    cell = compared[0] / "PointFourRooms-v0/hipi/seed0"
    assert not list(cell.rglob("trajectories.png"))
    report = json.loads(next(cell.rglob("task_evaluation.json")).read_text())
    with np.load(next(cell.rglob("evaluations.npz"))) as data:
        assert data["timesteps"].tolist() == [60, 120]
        assert np.ravel(report["returns"]).tolist() == data["results"][-1].tolist()


def test_the_summary_names_the_commits_of_the_runs(compared):
    frame = pd.read_csv(compared[0] / "evaluations.csv", keep_default_na=False)
    summary = json.loads((compared[0] / "summary.json").read_text())
    assert summary["commit"] == " ".join(sorted(set(frame["commit"])))


def test_finished_cells_are_not_run_again_and_broken_ones_are(compared, monkeypatch, capsys):
    folder, _, _ = compared
    ran = []

    def run_cell(cell, folder, args):
        ran.append(cell.name)
        return "exit code 2"

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    monkeypatch.setitem(KEY_TO_METHOD, "broken", Method())
    with pytest.raises(SystemExit):
        run_benchmark(folder, "none,hipi,broken")
    assert ran == ["PointFourRooms-v0/broken/seed0"]
    output = capsys.readouterr()
    assert "3 cells, 2 of them finished before" in output.out
    assert "broken: PointFourRooms-v0/broken/seed0: exit code 2" in output.err


def test_cells_of_another_benchmark_are_not_taken_for_finished(compared, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_benchmark(compared[0], "none,hipi", "-n", "130")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "PointFourRooms-v0/none/seed0" in error and "-n 120" in error and error.count("\n") == 1


def test_the_same_cells_run_on_ray(tmp_path, compared):
    require("ray")
    # As a command, not in this process: what the main module has cannot be sent to Ray's workers.
    command = [sys.executable, str(ROOT / "zoo" / "benchmark.py")]
    command += benchmark_arguments(tmp_path, "none", "--engine", "ray", "--jobs", "2")
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    columns = ["method", "env", "seed", "timesteps", "mean_return", "success"]
    here, there = (pd.read_csv(folder / "evaluations.csv")[columns] for folder in (compared[0], tmp_path))
    pd.testing.assert_frame_equal(here[here["method"] == "none"].reset_index(drop=True), there)


def test_forked_cells_have_the_results_of_fresh_ones(tmp_path, compared):
    run_benchmark(tmp_path, "none,hipi", "--engine", "fresh")
    columns = ["method", "env", "seed", "timesteps", "mean_return", "success"]
    forked, fresh = (pd.read_csv(folder / "evaluations.csv")[columns] for folder in (compared[0], tmp_path))
    pd.testing.assert_frame_equal(forked, fresh)


def test_runs_forked_one_after_another_learn_what_a_fresh_one_learns(tmp_path):
    arguments = ["--seed", "3", "-n", "120", "--eval-freq", "60", "--eval-tasks", "3", "--no-picture", "-f"]
    params = [
        "-params",
        "learning_starts:20",
        "policy_kwargs:dict(net_arch=[16])",
        "replay_buffer_kwargs:dict(warmup_updates=20)",
    ]
    command = [sys.executable, str(ROOT / "zoo" / "train.py"), *arguments, str(tmp_path / "fresh"), *params]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    warm = WarmProcess()
    for name in ("first", "second"):
        assert warm.run([*arguments, str(tmp_path / name), *params], tmp_path / "output.txt")[0] == 0
    warm.close()
    fresh, *forked = (next((tmp_path / name).rglob("PointFourRooms-v0.zip")) for name in ("fresh", "first", "second"))
    expected = HIPISAC.load(fresh)
    assert expected._n_updates > 20
    for path in forked:
        for name, value in HIPISAC.load(path).policy.state_dict().items():
            assert th.equal(value, expected.policy.state_dict()[name]), name
        with np.load(path.parent / "evaluations.npz") as now, np.load(fresh.parent / "evaluations.npz") as then:
            assert now["results"].tolist() == then["results"].tolist()


def test_a_process_that_runs_are_forked_from_says_what_became_of_them(tmp_path):
    warm = WarmProcess()
    try:
        start = time.perf_counter()
        exit_code, wall_seconds, _ = warm.run(["--env", "NoSuchEnv-v0"], tmp_path / "output.txt")
        # The imports, which take seconds, are no part of the run.
        assert exit_code == 2 and 0 < wall_seconds < 0.5 * (time.perf_counter() - start)
        assert "unknown environment 'NoSuchEnv-v0'" in (tmp_path / "output.txt").read_text()
        assert warm.run(["--help"], tmp_path / "help.txt")[0] == 0
    finally:
        warm.kill()
    with pytest.raises(RuntimeError, match="has ended"):
        warm.run(["--help"], tmp_path / "help.txt")


def test_a_cell_whose_process_ends_is_broken_and_the_next_one_gets_another(tmp_path):
    output = tmp_path / "output.txt"
    assert benchmark.run_forked(["python", "zoo/train.py", "--help"], output)[0] == 0
    try:
        benchmark._THREAD.warm.kill()
        assert benchmark.run_forked(["python", "zoo/train.py", "--help"], output)[0] == 1
        assert "The process that runs are forked from has ended" in output.read_text()
        assert benchmark.run_forked(["python", "zoo/train.py", "--help"], output)[0] == 0
    finally:
        benchmark._THREAD.warm.close()
        benchmark._RUNNING.discard(benchmark._THREAD.warm)
        del benchmark._THREAD.warm


@pytest.mark.expensive
def test_two_jobs_take_at_most_three_fifths_of_the_time(tmp_path):
    """Needs two idle cores."""
    load = os.getloadavg()[0]
    if load > 0.5:
        pytest.skip(f"the machine is not idle: its load over the last minute is {load:.2f}, not at most 0.5")
    seconds = []
    for jobs in (1, 2):
        start = time.perf_counter()
        arguments = ["--suite", "point", "--methods", "none,hipi", "--seeds", "5", "-n", "2000", "--eval-tasks", "3"]
        benchmark.main([*arguments, "--folder", str(tmp_path / str(jobs)), "--jobs", str(jobs)])
        seconds.append(time.perf_counter() - start)
    print(f"one job {seconds[0]:.1f} s, two jobs {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.2f} of the time")
    assert seconds[1] <= 0.6 * seconds[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "piont"], "unknown suite 'piont'. Did you mean 'point'?"),
        (["--methods", "none,hippi"], "unknown method 'hippi'. Did you mean 'hipi'?"),
        (["--envs", "PointFourRoms-v0"], "unknown environment 'PointFourRoms-v0'. Did you mean 'PointFourRooms-v0'?"),
        (["--engine", "rya"], "unknown engine 'rya'. Did you mean 'ray'?"),
        (["--seeds", "0"], "--seeds and --jobs must be at least 1, not 0 and 1."),
        (
            ["--methods", "hipi,her_sb3", "--envs", "PointFourRooms-v0,PointFixedGoals-v0"],
            "her_sb3 is stable-baselines3's own HerReplayBuffer, for which hyperparams/sac.yml has no entry of "
            "PointFourRooms-v0, PointFixedGoals-v0. Use her_future, which is HER in HIPI's buffer.",
        ),
        (
            ["--methods", "her_future", "--envs", "PointFixedGoals-v0"],
            "no cell is left. Add a method that needs no goals, such as hipi or random.",
        ),
        (["--suite", "goalenv"], "FetchReach-v4 needs no_such_package: pip install no-such-package"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(suites.SUITE_TO_PACKAGE, "goalenv", "no_such_package")
    monkeypatch.delitem(suites.SUITE_TO_PACKAGE, "fetch-reach")
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main([*arguments, "--folder", str(tmp_path)])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"benchmark.py: error: {message}\n"


def test_a_name_that_is_given_twice_is_one_cell():
    given = ["--envs", "PointFourRooms-v0,PointFourRooms-v0", "--methods", "none,hipi,none", "--seeds", "1"]
    cells = benchmark.make_cells(benchmark.make_parser().parse_args(given))
    assert [cell.name for cell in cells] == ["PointFourRooms-v0/none/seed0", "PointFourRooms-v0/hipi/seed0"]


def test_her_is_left_out_where_tasks_are_no_goals(capsys):
    given = ["--envs", "PointMassLinear-v0,PointFourRooms-v0", "--methods", "her_future,her_final,hipi", "--seeds", "1"]
    cells = benchmark.make_cells(benchmark.make_parser().parse_args(given))
    assert [(cell.env, cell.method) for cell in cells] == [
        ("PointMassLinear-v0", "hipi"),
        *(("PointFourRooms-v0", method) for method in ("her_future", "her_final", "hipi")),
    ]
    said = "Left out: her_future, her_final in PointMassLinear-v0, whose tasks are no goals, which HER needs."
    assert said in capsys.readouterr().out


def test_a_goal_env_has_goals():
    require("gymnasium_robotics")
    assert suites.has_goals("FetchReach-v4")


# -- arithmetic ------------------------------------------------------------------------------------------------------------


def made_up(envs=("A", "B")):
    """Two methods whose success grows linearly to 0.8 and 0.4, five seeds apart by 0.02."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "env": env,
                "seed": seed,
                "timesteps": step,
                "mean_return": -step / 100.0,
                "success": top * step / 1000 + 0.02 * seed,
                "wall_seconds": 10.0,
                "cpu_seconds": 9.0,
            }
            for env in envs
            for method, top in (("hipi", 0.8), ("none", 0.4))
            for seed in range(5)
            for step in (0, 250, 500, 1000)
        ]
    )


def test_area_and_steps_to_a_threshold_on_uneven_steps():
    curve = pd.DataFrame([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]], columns=[0, 100, 400])
    # (100 * 0 + 300 * 0.5) / 400 and (100 * 0.5 + 300) / 400
    assert_allclose(area_under(curve), [0.375, 0.875])
    assert steps_to(curve, 1.0) == [400, 100]
    assert steps_to(curve, 1.1) == [None, None]


def test_the_summary_of_made_up_curves():
    entries = {(entry["env"], entry["method"]): entry for entry in summarize(made_up(), threshold=0.5)}
    hipi = entries["A", "hipi"]
    assert_allclose(hipi["final"], [0.8, 0.82, 0.84, 0.86, 0.88])
    # Of five seeds, the quarter that is cut off at either end is one.
    assert_allclose([hipi["iqm"], hipi["mean"], hipi["area"]], [0.84, 0.84, 0.44])
    assert hipi["iqm_interval"][0] <= 0.84 <= hipi["iqm_interval"][1]
    assert hipi["steps_to_threshold"] == [1000, 1000, 1000, 1000, 1000]
    assert_allclose(hipi["differences"]["none"]["mean"], 0.4)
    assert hipi["differences"]["none"]["probability_of_improvement"] == 1.0
    assert_allclose(entries["all environments", "none"]["mean"], 0.44)


def test_intervals_are_the_same_every_time_and_leave_the_global_generator_alone():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 5, 2))
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    found = []
    for scores, aggregate in (({"a": ours}, np.mean), ({"a": (ours, theirs)}, lambda one, other: np.mean(one > other))):
        first, second = (comparison.bootstrap(scores, aggregate, 200) for _ in range(2))
        assert_allclose(first[1]["a"], second[1]["a"], rtol=0)
        assert first[1]["a"][0] < first[0]["a"] < first[1]["a"][1]
        found.append(np.random.random(2))
    assert_allclose(np.ravel(found), expected)


def test_the_table_says_steps_and_seeds_of_each_method_where_they_differ():
    frame = made_up(["A"])
    table = format_table(summarize(frame, 0.5), 0.5)
    assert "A: success after 1000 steps, 5 seeds\n" in table and "steps to 0.5" in table
    shorter = frame[(frame["method"] == "hipi") | ((frame["timesteps"] < 1000) & (frame["seed"] < 3))]
    table = format_table(summarize(shorter, 0.5), 0.5)
    assert "A: success at the end of each run\n" in table
    assert [line.rpartition(" after ")[2] for line in table.splitlines()[3:5]] == ["1000 steps, 5 seeds", "500 steps, 3 seeds"]
    returns = format_table(summarize(frame.assign(success=np.nan), 0.5), 0.5)
    assert "A: mean_return" in returns and "steps to" not in returns and "never" not in returns
    for success, shown in ((frame["success"], True), (np.nan, False)):
        page = report.table(summarize(frame.assign(success=success), 0.5), 0.5)
        assert ("steps to 0.5" in page) == shown
        assert page.count("</td>") == page.count("</th>") * (page.count("<tr") - 1)


# -- plots and report ------------------------------------------------------------------------------------------------------


def test_plots_are_written_as_png_and_svg(compared, tmp_path, capsys):
    plots.main(["--folder", str(compared[0]), "--out", str(tmp_path)])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert {path.stem for path in paths} == {
        f"{kind}_PointFourRooms-v0" for kind in ("curves", "tasks", "profile", "efficiency")
    }
    for path in paths:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start
    assert "<dc:date>" not in (tmp_path / "curves_PointFourRooms-v0.svg").read_text()


def test_scores_by_task_are_those_of_the_last_evaluation(compared):
    frame = plots.read_evaluations(compared[0] / "evaluations.csv")
    tasks, scores = plots.read_tasks(compared[0], frame)["PointFourRooms-v0", "hipi"]
    assert tasks.shape == (3, 2) and scores.shape == (1, 3)
    last = frame[(frame["method"] == "hipi") & (frame["timesteps"] == 120)]
    assert_allclose(scores.mean(), last["success"].mean())


def test_sample_efficiency_is_a_ratio_of_steps():
    ours = pd.Series([0.0, 0.4, 0.8], index=[0, 100, 200])
    theirs = pd.Series([0.0, 0.1, 0.4], index=[0, 200, 400])
    ratio, reached = plots._ratio(ours, theirs, 0.2)
    assert_allclose(ratio, 50 / (200 + 200 / 3)) and reached
    ratio, reached = plots._ratio(ours, theirs, 0.6)
    assert ratio == 150 / 400 and not reached


def test_the_axis_of_sample_efficiency_says_mean_once():
    axes = plots.Figure().add_subplot()
    curves = {name: pd.DataFrame({0: [0.0], 100: [1.0]}) for name in ("none", "hipi")}
    plots.draw_efficiency(axes, curves, "mean return", plots.Looks(["none", "hipi"]))
    assert axes.get_xlabel().startswith("mean return to reach, mean over seeds")


def test_thirty_methods_look_different():
    looks = plots.Looks([f"method {k}" for k in range(30)])
    lines = [looks.line(method) for method in looks.index]
    assert len({(line["color"], line["linestyle"], line["marker"]) for line in lines}) == 30


def test_many_tasks_are_drawn_with_their_range():
    axes = plots.Figure().add_subplot()
    scores = np.random.default_rng(0).random((3, 50))
    plots.draw_tasks(axes, {"hipi": (np.zeros((50, 1)), scores)}, "success", plots.Looks(["hipi"]))
    (band,) = axes.collections
    bounds = band.get_paths()[0].vertices[:, 1]
    assert_allclose([bounds.min(), bounds.max()], [scores.min(), scores.max()])


@pytest.fixture(scope="module")
def page(compared, tmp_path_factory):
    """A report of made-up results in two environments and of a run."""
    folder = tmp_path_factory.mktemp("report")
    made_up().to_csv(folder / "evaluations.csv", index=False)
    shutil.copy(compared[0] / "summary.json", folder)
    run = folder / "A_1"
    (run / "A").mkdir(parents=True)
    values = {"algo": "hipi_sac", "env": "A", "seed": 0, "num_timesteps": 5, "mean_return": -1.0, "success_rate": None}
    values |= {"mean_return_interval": [-2.0, 0.0], "success_rate_interval": None}
    (run / "task_evaluation.json").write_text(json.dumps(values))
    (run / "A/run.yml").write_text("command: python zoo/train.py --env A\nresumed:\n- step: 2\n- step: 3\n")
    report.main(["--folder", str(folder), "--runs", str(run), "--out", str(folder / "report.html")])
    return folder / "report.html"


def test_the_report_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=\"(?!data:)", text)
    assert "@import" not in text and "url(http" not in text
    assert text.count("<svg") == 7 and text.count("</html>") == 1
    assert (
        "python zoo/benchmark.py --suite point" in text
        and "python zoo/train.py --env A (gone on with --resume from step 2, 3)" in text
    )
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def look(page, tmp_path, script, hash_=""):
    """Open a copy of the page in Chromium, run a script in it, and give what it wrote, and what the console said."""
    copy = tmp_path / "copy.html"
    errors = "<script>window.problems = []; window.onerror = m => { window.problems.push(m); };</script>"
    result = f"<script>const out = (() => {{ {script} }})(); document.title = JSON.stringify([out, window.problems]);</script>"
    copy.write_text(page.read_text().replace("<head>", f"<head>{errors}").replace("</body>", f"{result}</body>"))
    command = [chromium(), *FLAGS]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{copy}{hash_}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found, problems = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1).replace("&quot;", '"'))
    return found, problems + console


SHOWN = """
const shown = part => part.getClientRects().length > 0;
const count = selector => [...document.querySelectorAll(selector)].filter(shown).length;
const state = () => ({figures: count("figure svg"), a: count('section[data-env="A"]'), b: count('section[data-env="B"]'),
  rows: count('tr[data-method="none"]'), lines: count('svg [data-method="none"]'), runs: count('tr[data-env="A"]')});
const click = name => document.querySelector(`input[value="${name}"]`).click();
"""


def test_the_report_opens_in_a_browser_and_its_filters_work(page, tmp_path):
    script = SHOWN + 'const s = [state()]; click("none"); s.push(state()); click("A"); s.push(state()); '
    script += 'click("none"); click("A"); s.push(state()); return [s, location.hash];'
    (states, hash_), problems = look(page, tmp_path, script)
    assert problems == []
    everything, without_none, without_both, again = states
    assert everything["figures"] == 7 and everything["rows"] == 3 and everything["lines"] > 0 and everything["runs"] == 1
    assert without_none == everything | {"rows": 0, "lines": 0}
    assert without_both == without_none | {"figures": 4, "a": 0, "runs": 0}
    assert again == everything and hash_ == ""


def test_a_filtered_view_is_a_link(page, tmp_path):
    state, problems = look(page, tmp_path, SHOWN + "return state();", "#env=B&method=none")
    assert problems == [] and (state["a"], state["b"], state["rows"]) == (1, 0, 0)


def test_results_without_seconds_are_reported(tmp_path):
    made_up().drop(columns="wall_seconds").to_csv(tmp_path / "evaluations.csv", index=False)
    report.main(["--folder", str(tmp_path), "--out", str(tmp_path / "report.html")])
    assert "<td></td><td>9</td></tr>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("main", [plots.main, report.main])
def test_results_that_are_not_there_are_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--folder", str(tmp_path)])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "Make it with python zoo/benchmark.py" in error and error.count("\n") == 1


def test_an_unknown_method_and_a_broken_file_are_one_line(tmp_path, capsys):
    made_up().to_csv(tmp_path / "evaluations.csv", index=False)
    (tmp_path / "half.csv").write_text("method,env\nhipi,A\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "summary.json").write_text('{"date": ')
    for main, arguments, message in (
        (plots.main, ["--methods", "hipi,non"], "unknown method 'non'. Did you mean 'none'?"),
        (plots.main, ["--csv", "half.csv"], "half.csv has no evaluations: no mean_return."),
        (plots.main, ["--csv", "empty.csv"], "empty.csv is no CSV file: No columns to parse from file"),
        (report.main, [], "Expecting value"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["--folder", str(tmp_path), *arguments])
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


# -- enjoy -----------------------------------------------------------------------------------------------------------------


def test_a_grid_of_tasks_lies_evenly_over_what_the_prior_allows():
    grid = enjoy.grid_tasks(LinearReward([0.0, 0.0], [1.0, 2.0], plots.read_tasks), 9)  # its features are never asked for
    assert_allclose(grid, [[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 1.0, 2.0)])
    assert_allclose(enjoy.grid_tasks(GoalReaching([-1.0], [1.0], radius=0.1), 5)[:, 0], np.linspace(-1, 1, 5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training in the folder that is returned."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(ROOT / "zoo" / "train.py"), "-n", "60", "--eval-tasks", "2", "--eval-freq", "-1"]
    command += ["-params", "learning_starts:100", "policy_kwargs:dict(net_arch=[8])"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment, timeout=300)
    return folder


def test_where_mujoco_cannot_draw_it_is_said_what_to_install(capsys, monkeypatch):
    def fails(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(enjoy, "create_test_env", fails)
    with pytest.raises(SystemExit):
        enjoy.main(["--pretrained", "--env", "SawyerReach-v0", "--record", "a.gif"])
    assert "apt-get install libegl1" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_enjoy_records_a_video_without_a_display(trained, monkeypatch, capsys, suffix):
    imageio = require("imageio.v2")
    monkeypatch.chdir(trained)
    monkeypatch.delenv("DISPLAY", raising=False)
    enjoy.main(["--tasks", "grid", "--eval-tasks", "2", "--record", f"video{suffix}"])
    output = capsys.readouterr().out
    assert "mean of 2 tasks" in output
    n_frames = int(re.search(rf"Video of 2 episodes, (\d+) frames: video{suffix}", output).group(1))
    frames = imageio.mimread(trained / f"video{suffix}", memtest=False)
    # A GIF shows equal pictures, of a policy that stands still, as one for longer.
    # A goal that is reached ends its episode, which hangs on the last digits of a short training.
    assert 4 <= n_frames <= 152 and len(frames) >= (2 if suffix == ".gif" else 0.9 * n_frames)
    assert np.std(frames[0]) > 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "grd"], "unknown --tasks 'grd'. Did you mean 'grid'?"),
        (["--tasks", "all"], "--tasks all needs a finite family, but MazeGoals has infinitely many. Use grid."),
        (["--tasks", "grid", "--task", "1", "2"], "give either --task or --tasks, not both."),
        (["--record", "video.mp3"], "unknown kind of video '.mp3'. Did you mean '.mp4'?"),
    ],
)
def test_a_mistake_with_enjoy_is_one_line(trained, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit) as exit_info:
        enjoy.main([*arguments, "--no-render"])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
