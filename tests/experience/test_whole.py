"""Nothing is lost: a write that is killed or fails at any moment leaves what was there before or the new one, whole."""

import os
import pathlib
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import torch as th
from disks import assert_survives_power_cuts, failure, in_child, killed_at, on_full_disk, recorded
from line_walk import GOALS, fill, goal_buffer, make_line_walk
from stable_baselines3 import SAC

from hipi_sb3 import HIPIReplayBuffer
from hipi_sb3.callbacks import TaskEvalCallback, save_evaluations
from hipi_sb3.evaluation import TaskEvaluation
from hipi_sb3.experience.whole import whole_file

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks at the operations of a forked process")


def buffer_of(n_rows: int) -> HIPIReplayBuffer:
    buffer = goal_buffer()
    fill(buffer, [[(0.1 * t, 0.9, "")] for t in range(n_rows)])
    return buffer


def evaluations(n: int) -> tuple[list[int], list[TaskEvaluation]]:
    one = TaskEvaluation(np.ones((3, 1), np.float32), np.full((3, 2), 0.5), np.full((3, 2), 7), np.ones((3, 2), bool))
    return list(range(n)), [one] * n


def write_text(path: pathlib.Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text)


# -- killed -----------------------------------------------------------------------------------------------------------


def test_a_buffer_survives_a_kill_at_every_operation_of_saving_over_it(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "buffer"
    buffer_of(3).save(folder)
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    new = buffer_of(5)
    operations = recorded(lambda: new.save(folder), tmp_path)
    kinds = [kind for kind, _ in operations]
    arrays = len(list(folder.glob("arrays-*/*.npy")))
    # A file an array and the header; each is flushed, and so are three folders, one of them again after the renaming.
    assert kinds.count("write") == arrays + 1 and kinds.count("fsync") == arrays + 1 + 4 and kinds.count("rename") == 1
    assert kinds.count("unlink") == arrays and kinds.count("rmdir") == 1 and kinds.count("mkdir") >= 1
    sizes = set()
    for number, (kind, _) in enumerate(operations):
        for in_the_midst in (False, True) if kind == "write" else (False,):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            code = killed_at(number, in_the_midst, lambda: new.save(folder), tmp_path)
            assert code == (-signal.SIGXFSZ if in_the_midst else -signal.SIGKILL)
            size = HIPIReplayBuffer.load(folder, family=GOALS).size()
            assert size == (5 if number > kinds.index("rename") else 3), operations[number]
            sizes.add(size)
            # The next one goes on from there, and leaves nothing of the killed one.
            buffer_of(7).save(folder)
            assert HIPIReplayBuffer.load(folder, family=GOALS).size() == 7 and len(list(folder.iterdir())) == 2
    assert sizes == {3, 5}


def test_a_file_survives_a_kill_at_every_operation(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "what was there")
    operations = recorded(lambda: write_text(path, "what is new"), tmp_path)
    assert [kind for kind, _ in operations] == ["write", "fsync", "rename", "fsync"]
    for number, in_the_midst in ((0, False), (0, True), (1, False), (2, False), (3, False)):
        write_text(path, "what was there")
        assert killed_at(number, in_the_midst, lambda: write_text(path, "what is new"), tmp_path) < 0
        assert path.read_text() == ("what is new" if number == 3 else "what was there")


# -- power cuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [True, False])
def test_the_disk_has_a_buffer_before_its_name_and_the_name_before_the_old_one_goes(
    tmp_path: pathlib.Path, is_new: bool
) -> None:
    if not is_new:
        buffer_of(3).save(tmp_path / "buffer")
    new = buffer_of(5)
    assert_survives_power_cuts(recorded(lambda: new.save(tmp_path / "buffer"), tmp_path))


def test_the_check_of_the_order_sees_what_is_wrong() -> None:
    right = [("write", "/d/w"), ("fsync", "/d/w"), ("rename", "/d/w -> /d/f"), ("fsync", "/d"), ("unlink", "/d/old")]
    assert_survives_power_cuts(right)
    for missing, message in ((1, "/d/f was given its name before"), (3, "/d/old was deleted before")):
        with pytest.raises(AssertionError, match=message):
            assert_survives_power_cuts([operation for k, operation in enumerate(right) if k != missing])
    with pytest.raises(AssertionError, match="the disk never has"):
        assert_survives_power_cuts(right[:3])
    with pytest.raises(AssertionError, match=r"before the disk had .*/e/array"):
        assert_survives_power_cuts([("write", "/e/array"), *right])


# -- full disks and folders that cannot be written to -----------------------------------------------------------------


def small_model() -> SAC:
    return SAC("MultiInputPolicy", make_line_walk(), policy_kwargs={"net_arch": [16]}, buffer_size=10, device="cpu")


def write_parameters(path: pathlib.Path) -> None:
    """By PyTorch's own writer, whose errors have no number."""
    with whole_file(path) as file:
        th.save({"weights": th.zeros(20_000)}, file)


@pytest.mark.parametrize("n_bytes", [0, 100, 200, 400])
@pytest.mark.parametrize("what", ["buffer", "evaluations", "model", "parameters"])
def test_on_a_full_disk_the_old_file_stays_and_the_message_names_file_and_remedy(
    tmp_path: pathlib.Path, what: str, n_bytes: int
) -> None:
    model = small_model()
    path = tmp_path / {"buffer": "buffer", "evaluations": "e.npz", "model": "m.zip", "parameters": "p.pt"}[what]

    def write(n: int) -> None:
        if what == "buffer":
            buffer_of(n).save(path)
        elif what == "evaluations":
            save_evaluations(path, *evaluations(n))
        elif what == "model":
            with whole_file(path) as file:
                model.save(file)
        else:
            write_parameters(path)

    write(3)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    message = on_full_disk(lambda: write(5), n_bytes)
    assert message.startswith(f"NotWritten: {path}") and "cannot be written: " in message
    assert "What was there before is as it was. " in message and message.count("\n") == 0
    if what != "parameters":
        assert "File too large. " in message or "requested and" in message
    assert "ulimit -f" in message or "Make room on its disk, then do the same again." in message
    left = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert before.items() <= left.items()
    assert what == "buffer" or left == before  # nothing half-written takes up room
    write(5)  # there is room again
    assert what != "buffer" or HIPIReplayBuffer.load(path, family=GOALS).size() == 5


def test_the_best_model_is_replaced_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    model = small_model()
    callback = TaskEvalCallback(make_line_walk(), n_tasks=2, best_model_save_path=str(tmp_path), eval_freq=1)
    callback.init_callback(model)
    model.learn(1)  # sets the logger up
    callback.on_step()
    best = tmp_path / "best_model.zip"
    before = best.read_bytes()

    def again() -> None:
        callback.best_mean_reward = -np.inf
        callback.on_step()

    operations = recorded(again, tmp_path)
    assert [kind for kind, _ in operations] == ["write", "fsync", "rename", "fsync"]
    assert_survives_power_cuts(operations)
    before = best.read_bytes()
    message = on_full_disk(again, 1000)
    assert message.startswith(f"NotWritten: {best} cannot be written: File too large. ")
    assert best.read_bytes() == before and list(tmp_path.iterdir()) == [best]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: pathlib.Path) -> None:
    """Root may write anywhere: this is a place in which nobody can."""
    (tmp_path / "logs").write_text("mine")
    writers: list[Any] = [
        lambda: buffer_of(3).save(tmp_path / "logs/buffer"),
        lambda: save_evaluations(tmp_path / "logs/e.npz", *evaluations(2)),
    ]
    for write in writers:
        message = failure(write)
        assert message.startswith(f"NotWritten: {tmp_path}/logs/")
        assert "Not a directory. " in message and "Move away what is in the place of its folder" in message
    assert (tmp_path / "logs").read_text() == "mine"


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: pathlib.Path) -> None:
    buffer_of(3).save(tmp_path / "buffer")
    for path, mode in ((tmp_path, 0o755), (tmp_path / "buffer", 0o555)):
        path.chmod(mode)

    def write_as_somebody() -> str:
        os.chdir(tmp_path)
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        return failure(lambda: buffer_of(5).save("buffer"))

    try:
        code, message = in_child(write_as_somebody)
    finally:
        (tmp_path / "buffer").chmod(0o755)
    assert code == 0 and message.startswith("NotWritten: buffer cannot be written: Permission denied. ")
    assert "Make it writable, or choose another folder, then do the same again." in message
    assert HIPIReplayBuffer.load(tmp_path / "buffer", family=GOALS).size() == 3


def test_other_mistakes_are_left_as_they_are(tmp_path: pathlib.Path) -> None:
    write_text(tmp_path / "a", "what was there")
    for error in (RuntimeError("shapes differ"), ValueError("no number")):
        with pytest.raises(type(error), match=str(error)), whole_file(tmp_path / "a") as file:
            file.write_text("half")
            raise error
        assert (tmp_path / "a").read_text() == "what was there" and len(list(tmp_path.iterdir())) == 1
