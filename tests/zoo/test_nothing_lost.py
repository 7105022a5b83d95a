"""Whatever happens while the launcher writes, what was there before is whole, and the message names the remedy."""

import argparse
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

require("rl_zoo3")

from disks import assert_survives_power_cuts, killed_at, on_full_disk, recorded
from slow_tasks import make_slow_walk
from test_resume import ENV, FEW, NET, start, wait_for

from hipi_sb3 import HIPISAC
from zoo import benchmark, report
from zoo.checkpoints import ResumableCallback, checkpoints, find_damage, last_checkpoint, new_checkpoint, read_state
from zoo.experiment import WholeEvalCallback

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks at the operations of a forked process")


@pytest.fixture
def saving(tmp_path):
    """A run that has two checkpoints, after 10 and 20 steps, and writes the third when it is called."""
    folder = tmp_path / "run/checkpoints"
    options = {"buffer_size": 60, "learning_starts": 5, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    model = HIPISAC("MultiInputPolicy", make_slow_walk(), device="cpu", seed=0, **options)
    model.set_logger(configure(None, []))
    callback = ResumableCallback(folder, 10, 0, [])
    for _ in range(2):
        model.learn(10, callback=callback, reset_num_timesteps=False)
        callback._save()
    model.learn(10, reset_num_timesteps=False)
    assert [path.name for path in checkpoints(folder)] == ["10", "20"]
    return callback._save, folder


def assert_loads(checkpoint):
    """All of it is there, and it is of its step."""
    assert find_damage(checkpoint) is None
    model = HIPISAC.load(checkpoint / "model.zip", env=make_slow_walk(), device="cpu")
    model.load_replay_buffer(checkpoint / "replay_buffer")
    steps = int(checkpoint.name)
    assert model.num_timesteps == steps == model.replay_buffer.size() == read_state(checkpoint)["counters"]["num_timesteps"]


def test_a_run_survives_a_kill_at_every_operation_of_a_checkpoint(saving, tmp_path, capsys):
    save, folder = saving
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    operations = recorded(save, tmp_path)
    assert_loads(folder / "30")
    kinds = [kind for kind, _ in operations]
    files = [path for path in (folder / "30").rglob("*") if path.is_file()]
    assert len(files) >= 10 and kinds.count("write") == len(files) and kinds.count("rename") == 2
    assert kinds.count("unlink") == len(files)  # the oldest one had as many
    commit = operations.index(("rename", f"{folder}/writing-30 -> {folder}/30"))
    latest, loaded = [], set()
    for number, (kind, _) in enumerate(operations):
        for in_the_midst in (False, True) if kind == "write" else (False,):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            code = killed_at(number, in_the_midst, save, tmp_path)
            assert code == (-signal.SIGXFSZ if in_the_midst else -signal.SIGKILL)
            latest.append(last_checkpoint(folder))
            assert latest[-1] == folder / ("30" if number > commit else "20"), operations[number]
            assert find_damage(latest[-1]) is None
            sums = (latest[-1] / "checksums.json").read_text()
            if sums not in loaded:
                assert_loads(latest[-1])  # once is enough for the same bytes
                loaded.add(sums)
    assert {path.name for path in latest} == {"20", "30"} and len(loaded) >= 2
    assert "damaged" not in capsys.readouterr().out


def test_writing_a_damaged_checkpoint_again_survives_a_kill_too(tmp_path):
    def write(step, text):
        with new_checkpoint(tmp_path / "c", step) as path:
            (path / "model.zip").write_text(text)

    def fresh():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        write(10, "before")
        write(20, "damaged")
        (tmp_path / "c/20/model.zip").write_text("damage")

    fresh()
    operations = recorded(lambda: write(20, "new"), tmp_path)
    texts = []
    for number in range(len(operations)):
        fresh()
        assert killed_at(number, False, lambda: write(20, "new"), tmp_path) == -signal.SIGKILL
        found = last_checkpoint(tmp_path / "c")
        texts.append((found / "model.zip").read_text())
    assert set(texts) == {"before", "new"} and texts == sorted(texts)


def test_the_disk_has_a_checkpoint_before_its_name_and_the_name_before_the_old_one_goes(saving, tmp_path):
    save, folder = saving
    assert_survives_power_cuts(recorded(save, tmp_path))
    shutil.rmtree(folder)
    assert_survives_power_cuts(recorded(save, tmp_path))  # with the folder of checkpoints


@pytest.mark.parametrize("n_bytes", [0, 300, 3000, 12_000])
def test_on_a_full_disk_the_checkpoints_before_stay(saving, n_bytes):
    save, folder = saving
    message = on_full_disk(save, n_bytes)
    assert message.startswith(f"NotWritten: {folder}/") and " cannot be written: " in message
    assert "What was there before is as it was. " in message and "then do the same again." in message
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]  # and nothing takes up room
    for step in (10, 20):
        assert_loads(folder / str(step))
    save()
    assert_loads(folder / "30")


def test_a_file_in_the_place_of_the_checkpoints_is_named(saving):
    save, folder = saving
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(OSError, match=rf"{folder}/30 cannot be written: Not a directory.*Move away what is in the place"):
        save()
    assert folder.read_text() == "mine"


def test_a_run_whose_disk_is_full_says_how_to_go_on_and_does(main, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    folder = tmp_path / "logs/hipi_sac/SlowWalk-v0_1"
    process = start(tmp_path, *ENV, *FEW, *NET, "--verbose", 0, step_seconds=0.01)
    wait_for(lambda: checkpoints(folder / "checkpoints"), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8000, 8000))
    assert process.wait(timeout=60) == 1
    *_, error, command = (tmp_path / "output.txt").read_text().splitlines()
    assert error.startswith("train.py: error: logs/hipi_sac/SlowWalk-v0_1/") and "File too large" in error
    assert "Raise the limit of the size of files (ulimit -f), then do the same again." in error
    assert command == "To go on: python zoo/train.py --resume logs/hipi_sac/SlowWalk-v0_1"
    assert find_damage(checkpoints(folder / "checkpoints")[-1]) is None
    main(*command.split()[5:])
    with np.load(folder / "evaluations.npz") as evaluations:
        assert_array_equal(evaluations["timesteps"], [50, 100, 150, 200, 240])


# -- evaluations and reports ------------------------------------------------------------------------------------------


def evaluating(kind, folder):
    """A callback of that class that has evaluated once, and its model."""
    model = SAC("MlpPolicy", gym.make("Pendulum-v1"), policy_kwargs={"net_arch": [8]}, buffer_size=10, device="cpu", seed=0)
    model.set_logger(configure(None, []))
    callback = kind(
        Monitor(gym.make("Pendulum-v1")),
        n_eval_episodes=2,
        eval_freq=2,
        log_path=folder,
        best_model_save_path=folder,
        verbose=0,
    )
    callback.init_callback(model)
    callback.eval_env.seed(3)
    for steps in (1, 2):
        model.num_timesteps = steps
        assert callback.on_step()
    return callback


def test_evaluations_of_an_environment_without_a_family_are_those_of_stable_baselines3(tmp_path):
    ours, theirs = (evaluating(kind, str(tmp_path / kind.__name__)) for kind in (WholeEvalCallback, EvalCallback))
    assert ours.best_mean_reward == theirs.best_mean_reward > -np.inf
    with np.load(f"{ours.log_path}.npz") as a, np.load(f"{theirs.log_path}.npz") as b:
        assert set(a) == set(b) == {"timesteps", "results", "ep_lengths"}
        for name in a:
            assert_array_equal(a[name], b[name])
    names = [sorted(path.name for path in Path(c.best_model_save_path).iterdir()) for c in (ours, theirs)]
    assert names[0] == names[1] == ["best_model.zip", "evaluations.npz"]
    assert SAC.load(tmp_path / "WholeEvalCallback/best_model.zip", device="cpu").num_timesteps == 2


def test_its_files_are_whole_whenever_the_run_is_killed(tmp_path):
    callback = evaluating(WholeEvalCallback, str(tmp_path))

    def again():
        callback.best_mean_reward = -np.inf
        callback.on_step(), callback.on_step()

    operations = recorded(again, tmp_path)
    assert [kind for kind, _ in operations] == ["write", "fsync", "rename", "fsync"] * 2
    assert_survives_power_cuts(operations)
    for number in range(len(operations)):
        assert killed_at(number, False, again, tmp_path) == -signal.SIGKILL
        with np.load(tmp_path / "evaluations.npz") as evaluations:
            assert evaluations["results"].shape[1] == 2
        assert SAC.load(tmp_path / "best_model.zip", device="cpu").num_timesteps == 2
    message = on_full_disk(again, 100)
    assert message.startswith(f"NotWritten: {tmp_path / 'evaluations.npz'} cannot be written: File too large. ")
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert len(evaluations["results"]) == 2


def test_a_report_that_cannot_be_written_leaves_the_old_one_and_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "make_page", lambda *args: "new" * 1000)
    (tmp_path / "report.html").write_text("old")

    def make(out):
        with pytest.raises(SystemExit) as exit_info:
            report.main(["--out", str(out)])
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert on_full_disk(lambda: report.write_atomically(tmp_path / "report.html", "new" * 1000), 1000).startswith(
        f"NotWritten: {tmp_path / 'report.html'} cannot be written: File too large. "
    )
    assert (tmp_path / "report.html").read_text() == "old"
    error = make(tmp_path / "report.html/report.html")
    assert error.startswith(f"report.py: error: {tmp_path}/report.html/report.html cannot be written: ")
    assert "Move away what is in" in error
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and (tmp_path / "report.html").read_text() == "old"


# -- clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards_does_not_change_which_checkpoint_is_the_last(tmp_path):
    for age, step in enumerate((90, 100, 1000)):
        with new_checkpoint(tmp_path, step) as path:
            (path / "model.zip").write_text("x")
        for path in (tmp_path / str(step), tmp_path / str(step) / "model.zip"):
            os.utime(path, (10**9 - age, 10**9 - age))
    assert [path.name for path in checkpoints(tmp_path)] == ["100", "1000"]  # the lowest step went, not the oldest file
    assert last_checkpoint(tmp_path) == tmp_path / "1000"


def test_a_cell_of_a_benchmark_takes_the_evaluations_of_its_own_try(tmp_path, monkeypatch):
    cell = benchmark.Cell("hipi", "PointFixedGoals-v0", 0)
    logs = tmp_path / cell.name / "logs/hipi_sac"
    for name in ("PointFixedGoals-v0_1_broken", "PointFixedGoals-v0_1_new"):
        (logs / name).mkdir(parents=True)
    (logs / "PointFixedGoals-v0_1_broken/evaluations.npz").write_bytes(b"of a try that broke")

    def run(command, output):
        path = logs / "PointFixedGoals-v0_1_new/evaluations.npz"
        path.write_bytes(b"of this one")
        os.utime(path, (0, 0))
        return 0, 1.0, 1.0

    monkeypatch.setattr(benchmark, "run_forked", run)
    numbers = {"eval_freq": 10, "eval_tasks": 2, "eval_envs": 1, "n_timesteps": 20}
    assert benchmark.run_cell(cell, tmp_path, argparse.Namespace(engine="processes", **numbers)) is None
    values = json.loads((tmp_path / cell.name / "cell.json").read_text())
    assert values["evaluations"] == "logs/hipi_sac/PointFixedGoals-v0_1_new/evaluations.npz"
