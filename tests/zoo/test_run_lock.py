"""Two runs in one folder: the second is told who has it, and a killed owner does not keep it."""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require

require("rl_zoo3")

from test_resume import ENV, FEW, NET, start, wait_for

from zoo.checkpoints import checkpoints
from zoo.errors import ConfigurationError
from zoo.run_lock import LOCK, RunLock, process_start

HOLD = "import sys; from zoo.run_lock import RunLock; RunLock(sys.argv[1]); print('locked', flush=True); sys.stdin.read()"


@pytest.fixture
def hold(tmp_path):
    """Lock the folder from another process."""
    processes = []

    def start_one():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        processes.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def owner(folder):
    return json.loads((folder / LOCK).read_text())


def test_the_second_one_is_told_who_has_the_folder_and_what_to_do(tmp_path, hold):
    process = hold()
    before = (tmp_path / LOCK).read_text()
    since = owner(tmp_path)["since"]
    with pytest.raises(ConfigurationError) as error:
        RunLock(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} belongs to a run of process {process.pid} on {platform.node()}, since {since}. Wait until it ends, or "
        f"end it there (kill {process.pid}), then do the same again. If that host is gone, delete {tmp_path / LOCK}."
    )
    assert (tmp_path / LOCK).read_text() == before


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, hold, capsys):
    process = hold()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # A zombie: it has its number still, as in a container in which nobody waits for it.
    os.kill(process.pid, 0)
    lock = RunLock(tmp_path)
    assert f"was left by process {process.pid}, which is gone" in capsys.readouterr().out
    assert owner(tmp_path)["pid"] == os.getpid()
    lock.release()
    process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_got_the_number_of_the_killed_one_does_not_keep_the_folder(tmp_path, hold):
    hold().kill()
    values = owner(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({**values, "pid": os.getpid(), "started": "1"}))
    RunLock(tmp_path)
    assert owner(tmp_path)["started"] == process_start(os.getpid()) != "1"


def test_nobody_takes_over_what_another_host_has(tmp_path, hold):
    process = hold()
    process.kill()
    process.wait()
    (tmp_path / LOCK).write_text(json.dumps({**owner(tmp_path), "host": "elsewhere"}))
    with pytest.raises(
        ConfigurationError, match=rf"process {process.pid} on elsewhere.*If that host is gone, delete .*{LOCK}"
    ):
        RunLock(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": 1e999, "host": "", "since": ""}', "[" * 9000, "\0"])
def test_a_lock_that_was_being_written_when_the_power_went_is_nobodys(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    RunLock(tmp_path)
    assert owner(tmp_path)["pid"] == os.getpid()


def test_only_the_owner_gives_the_folder_back(tmp_path, hold):
    mine = RunLock(tmp_path)
    (tmp_path / LOCK).unlink()
    hold()
    theirs = (tmp_path / LOCK).read_text()
    mine.release()
    assert (tmp_path / LOCK).read_text() == theirs


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path, hold):
    dead = hold()
    dead.kill()
    dead.wait()
    children = []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                RunLock(tmp_path)
                signal.pause()  # has it
            except ConfigurationError:
                os._exit(7)
            finally:
                os._exit(1)
        children.append(child)
    # All but one end by themselves.
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in children[1:]]
    assert codes == [7] * 11
    winner = owner(tmp_path)["pid"]
    assert winner in children
    os.kill(winner, signal.SIGKILL)
    assert os.waitpid(winner, 0)[1] == signal.SIGKILL


# -- the launcher -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(main, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return main


def test_a_run_is_not_resumed_while_it_runs_and_is_when_it_was_killed(run, tmp_path, capsys):
    folder = tmp_path / "logs/hipi_sac/SlowWalk-v0_1"
    process = start(tmp_path, *ENV, *FEW, *NET, step_seconds=0.02)
    try:
        wait_for(lambda: checkpoints(folder / "checkpoints"), process)
        # What the run is writing now must not be taken for the remains of one that was killed.
        (folder / "checkpoints/writing-9999").mkdir()
        with pytest.raises(SystemExit) as exit_info:
            run("--resume", folder)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert f"{folder} belongs to a run of process {process.pid} on {platform.node()}" in error and error.count("\n") == 1
        assert (folder / "checkpoints/writing-9999").is_dir()
    finally:
        process.kill()
        process.wait()
    assert owner(folder)["pid"] == process.pid
    output = run("--resume", folder)
    assert f"was left by process {process.pid}, which is gone" in output and "after 240 steps" in output
    assert not (folder / LOCK).exists()


def test_two_runs_that_start_at_once_have_a_folder_each(run, tmp_path, monkeypatch):
    """Both have looked for the next number before either makes its folder."""
    monkeypatch.setattr("rl_zoo3.exp_manager.get_latest_run_id", lambda *args: 0)
    for _ in range(2):
        run(*ENV, *FEW, *NET, "-n", 20, "--eval-freq", 0)
    for number in (1, 2):
        folder = tmp_path / f"logs/hipi_sac/SlowWalk-v0_{number}"
        assert (folder / "SlowWalk-v0/run.yml").is_file() and (folder / "SlowWalk-v0.zip").is_file()
        assert not (folder / LOCK).exists()


def test_a_run_that_cannot_begin_leaves_the_folders_of_others_alone(run, tmp_path, monkeypatch):
    run(*ENV, *FEW, *NET, "-n", 20, "--eval-freq", 0)
    before = sorted(tmp_path.glob("logs/**/*"))
    monkeypatch.setattr("rl_zoo3.exp_manager.get_latest_run_id", lambda *args: 0)
    with pytest.raises(SystemExit):
        run(*ENV, *FEW, "-params", "nonsense:1")
    assert sorted(tmp_path.glob("logs/**/*")) == before
