"""A run that is killed and resumed ends as one that never was: same curve, same weights, same log."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from conftest import require
from numpy.testing import assert_array_equal

require("rl_zoo3")

from rl_zoo3.utils import ALGOS
from walks import walks

from zoo import train
from zoo.checkpoints import ResumableCallback, checkpoints, find_damage, last_checkpoint, new_checkpoint, trim_monitor_files
from zoo.cloning import CloningCheckpoints

ROOT = Path(__file__).parents[2]
ENV = ["--env", "SlowWalk-v0", "--gym-packages", "slow_tasks"]
FEW = ["--seed", "3", "-n", "240", "--eval-freq", "50", "--eval-tasks", "3", "--n-eval-envs", "2", "--checkpoint-freq", "40"]
NET = ["-params", "learning_starts:30", "policy_kwargs:dict(net_arch=[8])"]


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """Run train.py in this process, and give what it printed."""
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    monkeypatch.syspath_prepend(ROOT / "tests")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        train.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return call


def start(folder, *arguments, step_seconds=0.0):
    """Start train.py in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "STEP_SECONDS": str(step_seconds)}
    command = [sys.executable, str(ROOT / "zoo" / "train.py"), *map(str, arguments)]
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def assert_same_run(one: Path, other: Path, algo: str = "hipi_sac") -> None:
    """Same evaluations, same final weights, same log of episodes."""
    env_id = next(one.glob("*/run.yml")).parent.name
    with np.load(one / "evaluations.npz") as a, np.load(other / "evaluations.npz") as b:
        assert set(a) == set(b)
        for name in a:
            assert_array_equal(a[name], b[name])
    models = [ALGOS[algo].load(folder / f"{env_id}.zip", device="cpu", buffer_size=1) for folder in (one, other)]
    parameters = [model.get_parameters() for model in models]
    for name, values in parameters[0].items():
        for a, b in zip(_tensors(values), _tensors(parameters[1][name]), strict=True):
            assert th.equal(a, b), name
    assert models[0].num_timesteps == models[1].num_timesteps and models[0]._n_updates == models[1]._n_updates
    for path in one.glob("*.monitor.csv"):
        rows = [[line.split(",")[:2] for line in (folder / path.name).read_text().splitlines()[1:]] for folder in (one, other)]
        assert rows[0] == rows[1]


def _tensors(values):
    if isinstance(values, th.Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


# -- killed runs ------------------------------------------------------------------------------------------------------


def kill_and_resume(folder, uninterrupted, n_kills, step_seconds=0.02):
    """Kill a run at random moments, resume it each time, and compare it with one that nobody killed."""
    run_folder = folder / "killed/hipi_sac/SlowWalk-v0_1"
    rng = random.Random(0)
    process = start(folder, *ENV, *FEW, "-f", "killed", *NET, step_seconds=step_seconds)
    resumed_at, steps_before = [], 0  # where the run went on, and its last checkpoint
    for kill in range(n_kills):
        n_before = _n_resumed(run_folder)
        try:
            if kill > 0 and rng.random() < 0.3:
                time.sleep(rng.uniform(0.0, 4.0))  # before it trains, as a rule
            else:
                # Let it start, train for a while (half a checkpoint's distance to one and a half), and go.
                wait_for(lambda n=n_before: _n_resumed(run_folder) != n, process)
                time.sleep(rng.uniform(0.0, 60 * step_seconds + 0.5))
            assert process.poll() is None, "the run ended by itself"
        finally:
            process.kill()
            process.wait()
        # Nothing but the steps since the last checkpoint is lost: there the process before this one had gone on.
        if kill > 0 and _n_resumed(run_folder) != n_before:
            resumed_at.append(steps_before)
        steps_before = _last_step(run_folder)
        assert steps_before >= max(resumed_at, default=0)
        process = start(folder, "--resume", run_folder, step_seconds=step_seconds if kill < n_kills - 1 else 0.0)
    assert process.wait(timeout=120) == 0
    resumed = yaml.safe_load(next(run_folder.glob("*/run.yml")).read_text())["resumed"]
    assert [entry["step"] for entry in resumed] == [*resumed_at, steps_before]
    assert_same_run(uninterrupted, run_folder)


def _n_resumed(run_folder):
    paths = list(run_folder.glob("*/run.yml"))
    return len(yaml.safe_load(paths[0].read_text())["resumed"]) if paths else None


def _last_step(run_folder):
    folders = checkpoints(run_folder / "checkpoints")
    return int(folders[-1].name) if folders else 0


@pytest.fixture
def uninterrupted(main, tmp_path):
    main(*ENV, *FEW, "-f", "whole", *NET)
    return tmp_path / "whole/hipi_sac/SlowWalk-v0_1"


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path, uninterrupted):
    kill_and_resume(tmp_path, uninterrupted, n_kills=1)


@pytest.mark.expensive
def test_a_run_may_be_killed_ten_times(tmp_path, uninterrupted):
    kill_and_resume(tmp_path, uninterrupted, n_kills=10)


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        pytest.param(signal.SIGINT, ["--vec-env", "subproc"], marks=pytest.mark.expensive),
    ],
    ids=["SIGTERM", "Ctrl-C", "Ctrl-C, environments in processes of their own"],
)
def test_a_signal_writes_a_checkpoint_and_names_the_command_to_resume(main, tmp_path, number, options):
    run_folder = tmp_path / "logs/hipi_sac/SlowWalk-v0_1"
    process = start(tmp_path, *ENV, *FEW, *options, *NET, step_seconds=0.01)
    wait_for(lambda: checkpoints(run_folder / "checkpoints"), process)
    first = _last_step(run_folder)
    time.sleep(0.2)
    if options:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    last_line = (tmp_path / "output.txt").read_text().splitlines()[-1]
    command = "python zoo/train.py --resume logs/hipi_sac/SlowWalk-v0_1"
    assert last_line == f"Stopped by {number.name} after {_last_step(run_folder)} steps. To go on: {command}"
    assert _last_step(run_folder) > first
    assert "hipi_sac on SlowWalk-v0 after 240 steps" in main(*command.split()[2:])


def living_processes(session):
    """States of the processes of a session, but for those of which nothing but the exit code is left."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):  # a small system has no ps
        with suppress(OSError):  # it has just ended
            state, _, _, of_process, *_ = path.read_text().rpartition(")")[2].split()
            states += [state] * (int(of_process) == session and state not in "ZX")
    return states


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_to_the_environments_too_names_the_command_to_resume_from_the_last_checkpoint(main, tmp_path):
    """As a scheduler sends it, to all processes: those of the environments are gone before a checkpoint can be written."""
    run_folder = tmp_path / "logs/hipi_sac/SlowWalk-v0_1"
    process = start(tmp_path, *ENV, *FEW, "--vec-env", "subproc", *NET, step_seconds=0.01)
    wait_for(lambda: checkpoints(run_folder / "checkpoints"), process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    output = (tmp_path / "output.txt").read_text()
    command = "python zoo/train.py --resume logs/hipi_sac/SlowWalk-v0_1"
    stopped = f"Stopped by SIGTERM after {_last_step(run_folder)} steps. To go on: {command}"
    assert stopped in output and "Traceback" not in output.rpartition(stopped)[2]
    end = time.monotonic() + 20
    while living_processes(process.pid):
        assert time.monotonic() < end, "processes are left"
        time.sleep(0.1)
    assert "hipi_sac on SlowWalk-v0 after 240 steps" in main(*command.split()[2:])


class Killed(BaseException):
    """Ends a run in this process where SIGKILL would end the process."""


@contextmanager
def killed_after_two_checkpoints(callback_class, n_steps):
    """A run in this process that is killed some steps after its second checkpoint: what it logs until then is to be undone."""
    save, on_step, saved = callback_class._save, callback_class._on_step, []

    def save_and_note(callback):
        save(callback)
        saved.append(callback.model.num_timesteps)

    def step_or_die(callback):
        if len(saved) >= 2 and callback.model.num_timesteps >= saved[1] + n_steps:
            raise Killed
        return on_step(callback)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(callback_class, "_save", save_and_note)
        patch.setattr(callback_class, "_on_step", step_or_die)
        yield


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("hipi_sac", ["n_envs:2", "normalize:True", "train_freq:4", "gradient_steps:2"]),
        (
            "hipi_sac",
            ["use_sde:True", "replay_buffer_kwargs:dict(strategy='hipi', log_partition='running', candidates='prior')"],
        ),
        ("hipi_td3", ["noise_type:'ornstein-uhlenbeck'", "noise_std:0.3"]),
        ("hipi_tqc", []),
        ("hipi_crossq", []),
        ("hipi_qrdqn", ["exploration_fraction:0.9"]),
        ("hipi_bc", ["train_freq:20", "n_candidate_tasks:4"]),
    ],
    ids=[
        "several normalised environments",
        "gSDE and a learned log Z",
        "correlated noise",
        "TQC",
        "CrossQ",
        "QR-DQN",
        "HIPI-BC",
    ],
)
def test_whatever_a_run_depends_on_is_in_its_checkpoints(main, tmp_path, algo, options):
    env = ["--env", "PointFourRoomsGrid-v0"] if algo == "hipi_qrdqn" else ENV
    arguments = ["--algo", algo, *env, *FEW, *NET, *options]
    main(*arguments, "-f", "whole")
    with killed_after_two_checkpoints(ResumableCallback, n_steps=25):
        main(*arguments, "-f", "killed")
    name = f"{algo}/{env[1]}_1"
    main("--resume", f"killed/{name}")
    assert_same_run(tmp_path / "whole" / name, tmp_path / "killed" / name, algo)


def test_cloning_a_data_set_goes_on_from_its_checkpoints(main, tmp_path):
    walks([20] * 10).save(tmp_path / "data.npz")
    arguments = ["--algo", "hipi_bc", "--dataset", "data.npz", *ENV, *FEW, "-params", "policy_kwargs:dict(net_arch=[8])"]
    main(*arguments, "n_candidate_tasks:4", "-f", "whole")
    with killed_after_two_checkpoints(CloningCheckpoints, n_steps=25):
        main(*arguments, "n_candidate_tasks:4", "-f", "killed")
    name = "hipi_bc/SlowWalk-v0_1"
    assert [path.name for path in checkpoints(tmp_path / "killed" / name / "checkpoints")] == ["40", "80"]
    main("--resume", f"killed/{name}")
    assert_same_run(tmp_path / "whole" / name, tmp_path / "killed" / name, "hipi_bc")


def test_tensorboard_shows_one_run_and_every_value_once(main, tmp_path):
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with killed_after_two_checkpoints(ResumableCallback, n_steps=25):
        main(*ENV, *FEW, "-tb", "tb", *NET)
    main(*ENV, *FEW, "-f", "other", "-tb", "tb", *NET)  # begins after it, in the folder beside
    main("--resume", "logs/hipi_sac/SlowWalk-v0_1")
    folders = sorted(tmp_path.glob("tb/SlowWalk-v0/*"))
    assert [folder.name for folder in folders] == ["SAC_1", "SAC_2"]
    resumed, whole = (EventAccumulator(str(folder)).Reload() for folder in folders)
    for tag in ("eval/mean_reward", "rollout/ep_rew_mean"):
        values = [[(event.step, event.value) for event in run.Scalars(tag)] for run in (resumed, whole)]
        assert len(values[0]) >= 4 and values[0] == values[1]


# -- checkpoints ------------------------------------------------------------------------------------------------------


def write(folder, step, text="x"):
    with new_checkpoint(folder, step) as path:
        (path / "model.zip").write_text(text)


def test_without_any_checkpoint_the_run_starts_anew_and_says_so(tmp_path, capsys):
    write(tmp_path, 10)
    (tmp_path / "10/model.zip").unlink()
    assert last_checkpoint(tmp_path) is None
    assert f"There is no checkpoint in {tmp_path}: starting from the first step." in capsys.readouterr().out


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (90, 100, 1000):
        write(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["100", "1000"]


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    write(tmp_path, 10)
    with pytest.raises(Killed), new_checkpoint(tmp_path, 20) as path:
        (path / "model.zip").write_text("half")
        raise Killed
    assert last_checkpoint(tmp_path) == tmp_path / "10"
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "model.zip").write_text("y"), "model.zip has another checksum"),
        (lambda path: (path / "model.zip").unlink(), "model.zip is missing"),
        (lambda path: (path / "checksums.json").write_text('{"model'), "checksums.json cannot be read"),
        (lambda path: (path / "checksums.json").unlink(), "checksums.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(tmp_path, capsys, damage, message):
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert find_damage(tmp_path / "20") is None
    damage(tmp_path / "20")
    assert last_checkpoint(tmp_path) == tmp_path / "10"
    assert f"The checkpoint after 20 steps is damaged ({message})" in capsys.readouterr().out


def test_a_run_with_a_damaged_checkpoint_ends_the_same_too(main, tmp_path, uninterrupted, monkeypatch):
    """It was finished: what is written again from an earlier checkpoint is the same again."""
    before = tmp_path / "before"
    uninterrupted.rename(before)
    subprocess.run(["cp", "-r", before, uninterrupted], check=True)
    run_file = next(uninterrupted.glob("*/run.yml"))
    run_file.write_text(run_file.read_text().replace("finished: 240\n", ""))
    last = checkpoints(uninterrupted / "checkpoints")[-1]
    damaged = next(last.glob("replay_buffer/arrays-*/transitions.actions.npy"))
    with open(damaged, "r+b") as file:
        file.seek(200)
        file.write(b"damage")
    output = main("--resume", uninterrupted)
    assert f"The checkpoint after {last.name} steps is damaged ({damaged.relative_to(last)} has another checksum)" in output
    assert_same_run(before, uninterrupted)


def test_the_log_of_a_killed_run_is_cut_at_the_checkpoint(tmp_path):
    path = tmp_path / "0.monitor.csv"
    path.write_text('#{"t_start": 1}\nr,l,t\n-1.0,8,0.1\n-1.0,8,0.2\n-1.0,8,0.3\n-1.0,')
    trim_monitor_files(tmp_path, {"0.monitor.csv": len('#{"t_start": 1}\nr,l,t\n-1.0,8,0.1\n-1.0,8,0.2\n')})
    assert path.read_text() == '#{"t_start": 1}\nr,l,t\n-1.0,8,0.1\n-1.0,8,0.2\n'
    # What is shorter, because the disk was full, or gone is left as it is.
    trim_monitor_files(tmp_path, {"0.monitor.csv": 1000, "1.monitor.csv": 10})
    assert path.stat().st_size == 44 and not (tmp_path / "1.monitor.csv").exists()


# -- the run folder and mistakes --------------------------------------------------------------------------------------


def test_a_run_folder_explains_itself(uninterrupted):
    run = yaml.safe_load((uninterrupted / "SlowWalk-v0/run.yml").read_text())
    assert run["command"].startswith("python zoo/train.py --env SlowWalk-v0 ")
    assert run["seed"] == 3 and run["finished"] == 240
    assert set(run["versions"]) >= {"python", "torch", "stable_baselines3", "gymnasium"}
    assert "cores" in run["machine"] and "commit" in run
    assert {path.name for path in (uninterrupted / "SlowWalk-v0").iterdir()} >= {"config.yml", "args.yml", "command.txt"}
    sums = json.loads((checkpoints(uninterrupted / "checkpoints")[-1] / "checksums.json").read_text())
    assert {name.partition("/")[0] for name in sums} == {"model.zip", "replay_buffer", "state.json", "state.npz"}
    assert "replay_buffer/buffer.json" in sums


def test_mistakes_with_resume_are_one_line(main, uninterrupted, capsys):
    for arguments, message in (
        (["--resume", uninterrupted], "is finished, after 240 steps. To go on, add -n."),
        (["--resume", f"{uninterrupted}0"], "there is no run in"),
        (
            ["--resume", uninterrupted, "-n", 300, "--relabel", "strategy=future"],
            "and --relabel would change them. Leave it out",
        ),
        (["--resume", uninterrupted, "-n", 300, "-params", "gamma:0.5"], "and -params would change them. Leave it out"),
        (["--resume", uninterrupted, "-n", 300, "--hyper", "gamma:0.5"], "and --hyper would change them. Leave it out"),
        # -n is of the whole run: an older checkpoint must not take the place of what was trained.
        (
            ["--resume", uninterrupted, "-n", 60],
            "is finished, after 240 steps, and -n 60 counts these. For as many more, -n 300.",
        ),
        (["--resume", uninterrupted, "--n-timesteps=240"], "and -n 240 counts these"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(*arguments)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    # More steps than before are no mistake, nor is another number of callbacks.
    assert "hipi_sac on SlowWalk-v0 after 280 steps" in main("--resume", uninterrupted, "-n", 280)
    run = yaml.safe_load((uninterrupted / "SlowWalk-v0" / "run.yml").read_text())
    assert run["arguments"][-2:] == ["-n", "280"] and run["finished"] == 280  # stopped on its way, it goes on to these
    assert "hipi_sac on SlowWalk-v0 after 320 steps" in main("--resume", uninterrupted, "-n", 320, "--save-freq", 10, "-P")
    run = yaml.safe_load((uninterrupted / "SlowWalk-v0" / "run.yml").read_text())
    assert run["arguments"].count("-n") == 3


def test_the_steps_of_a_resumed_run_are_recorded_once(main, tmp_path):
    main("-n", 60, "--eval-tasks", 2, "--eval-freq", -1, "--seed", 0, "--no-picture", "-params", "learning_starts:100")
    folder = tmp_path / "logs/hipi_sac/PointFourRooms-v0_1"
    path = folder / "PointFourRooms-v0/run.yml"
    run = yaml.safe_load(path.read_text())
    del run["finished"]  # as if it had been killed before
    path.write_text(yaml.safe_dump(run))
    main("--resume", folder, "-n", 60)
    assert yaml.safe_load(path.read_text())["arguments"] == run["arguments"]
