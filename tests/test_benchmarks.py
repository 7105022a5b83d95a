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
from zoo import benchmark
from zoo.comparison import summarize

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
BENCHMARKS = re.search(r"^BENCHMARKS := (.+)$", MAKEFILE, re.MULTILINE).group(1).split()

#: What each file has to have, as a path of keys.
KEYS = {
    "core_speed": ["sampling", "1000", "her_over_hipi", "median"],
    "buffer_files": ["times", "save files", "median"],
    "gradient_speed": ["fetch_reach_sizes", "her", "over_sac", "low"],
    "relabel_cost": ["cells", "4 candidates, batch 8", "scored_us_a_row", "median"],
    "end_to_end": ["authors_setting", "batch 32, 32 candidates", "steps_per_cpu_second", "median"],
    "vector_env": ["points", "PointFourRooms-v0", "vector_over_single", "high"],
    "footprint": ["peak_mebibytes", "sac", "median"],
    "env_speed": ["environments", "PointFourRooms-v0", "steps_per_second", "median"],
}

#: Tables of learning, and what needs more than this checkout: SBX, another checkout, Ray.
LEFT_OUT = ["bc_table", "bc_speed", "ablation", "against_sbx", "start_up", "ray_vec_env"]


# Importing takes longer than tiny sizes do, so these run in this process; footprint and scaling start others.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.expensive if name in ("footprint", "scaling") else ()) for name in BENCHMARKS],
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
        assert set(matrix.methods) <= set(benchmark.KEY_TO_METHOD)
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
