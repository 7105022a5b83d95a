"""Buffers in files: the same buffer comes back, whatever is broken is named, and a kill leaves what was there before."""

import json
import multiprocessing
import os
import pathlib
import shutil
import time
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import DICT_SPACE, FLAT_SPACE, GOALS, LineWalk, directions, fill, goal_buffer, make_line_walk
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from test_observations import IMAGES, add_random_steps, assert_same_rows, pair

from hipi_sb3 import HIPISAC, GoalReaching, HIPIReplayBuffer
from hipi_sb3.experience.files import read_state, space_from_json, space_to_json, write_state
from hipi_sb3.relabel.strategies import RandomTask


def arrays_of(folder: pathlib.Path) -> pathlib.Path:
    (arrays,) = folder.glob("arrays-*")
    return arrays


# -- the same buffer comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [DICT_SPACE, FLAT_SPACE, IMAGES], ids=["Dict", "flat", "images"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n", [1, 20, 47])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_loaded_buffer_goes_on_as_the_saved_one(
    space: spaces.Space, n_envs: int, n: int, mmap: bool, tmp_path: pathlib.Path
) -> None:
    ours, theirs = pair(space, 20, n_envs)
    add_random_steps([ours, theirs], space, n_envs, n, np.random.default_rng(0), 0.1, 0.05)
    ours.save(tmp_path / "buffer")
    loaded = HIPIReplayBuffer.load(tmp_path / "buffer", family=GOALS, mmap=mmap, device="cpu")
    assert_same_rows(loaded, theirs)
    assert_array_equal(loaded.episodes.end, ours.episodes.end)
    for mine, saved in zip(loaded.episodes.recent(), ours.episodes.recent(), strict=True):
        assert_array_equal(mine, saved)
    add_random_steps([ours, loaded, theirs], space, n_envs, 30, np.random.default_rng(1), 0.1, 0.05)
    assert_same_rows(loaded, theirs)
    assert_same_rows(ours, theirs)


def test_a_mapped_buffer_reads_from_the_file_and_never_writes_to_it(tmp_path: pathlib.Path) -> None:
    ours, theirs = pair(DICT_SPACE, 10_000, 1)
    add_random_steps([ours, theirs], DICT_SPACE, 1, 10, np.random.default_rng(0), 0.0, 0.0)
    ours.pos, ours.full, ours.episodes.n_added = 0, True, 10_000  # as if it were full
    ours.save(tmp_path)
    before = {path.name: path.read_bytes() for path in arrays_of(tmp_path).iterdir()}
    mapped = HIPIReplayBuffer.load(tmp_path, family=GOALS, mmap=True)
    assert isinstance(mapped.experience.store.rows["observation"], np.memmap)
    add_random_steps([mapped], DICT_SPACE, 1, 50, np.random.default_rng(1), 0.0, 0.0)
    assert {path.name: path.read_bytes() for path in arrays_of(tmp_path).iterdir()} == before


def test_the_arrays_are_plain_npy_files_without_objects(tmp_path: pathlib.Path) -> None:
    ours, theirs = pair(DICT_SPACE, 50, 2)
    add_random_steps([ours, theirs], DICT_SPACE, 2, 30, np.random.default_rng(0), 0.0, 0.0)
    ours.save(tmp_path)
    files = list(arrays_of(tmp_path).iterdir())
    assert {path.suffix for path in files} == {".npy"}
    for path in files:
        assert np.load(path, mmap_mode="r", allow_pickle=False).dtype != object
    stored = np.load(arrays_of(tmp_path) / "observations.rows.observation.npy", mmap_mode="r")
    assert_array_equal(stored, theirs.observations["observation"][:30])


@pytest.mark.parametrize("strategy", ["future", "random"])
def test_relabeling_goes_on_with_the_same_random_numbers(strategy: str, tmp_path: pathlib.Path) -> None:
    buffer = goal_buffer(strategy=strategy, relabel_prob=0.5, candidates={"batch": 0.25, "prior": 0.75})
    fill(buffer, [[(0.1 * t, 0.9, "")] for t in range(8)])
    buffer.sample(10)
    buffer.save(tmp_path)
    loaded = HIPIReplayBuffer.load(tmp_path, family=GOALS, device="cpu")
    assert loaded.relabeler.candidates == buffer.relabeler.candidates and loaded.relabeler.relabel_prob == 0.5
    tasks = []
    for each in (buffer, loaded):
        np.random.seed(0)
        tasks.append(each.sample(50).observations["task"])
    assert_array_equal(*tasks)


def small(algorithm: type[SAC] = HIPISAC, env: Any = None, **kwargs: Any) -> SAC:
    options = {"learning_starts": 20, "batch_size": 8, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [16]}}
    return algorithm("MultiInputPolicy", make_line_walk() if env is None else env, **{"buffer_size": 200, **options, **kwargs})


@pytest.mark.parametrize("options", [{"log_partition": "running"}, {"label_reuse": 4}, {"temperature": "ess:2", "n_steps": 2}])
@pytest.mark.parametrize("family", [GOALS, directions()], ids=["goals", "finite"])
def test_training_goes_on_from_files_as_without_them(options: dict[str, Any], family: Any, tmp_path: pathlib.Path) -> None:
    kwargs = {**options, **({"candidates": "prior"} if "log_partition" in options and family is GOALS else {})}
    model = small(env=make_line_walk(family), replay_buffer_kwargs=kwargs)
    model.learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = HIPISAC.load(tmp_path / "model", env=make_line_walk(family))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.model is loaded  # type: ignore[union-attr]
    for m in (model, loaded):
        m.set_env(make_line_walk(family), force_reset=True)
        m.set_random_seed(5)
        m.learn(30, reset_num_timesteps=False)
    for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert_array_equal(a.detach(), b.detach())


def test_plain_sac_saves_and_loads_files_by_hand(tmp_path: pathlib.Path) -> None:
    model = small(SAC, replay_buffer_class=HIPIReplayBuffer)
    model.learn(30)
    model.replay_buffer.save(tmp_path / "buffer")  # type: ignore[union-attr]
    other = small(SAC, replay_buffer_class=HIPIReplayBuffer)
    other.replay_buffer = HIPIReplayBuffer.load(tmp_path / "buffer", other)
    assert other.replay_buffer.model is other and other.replay_buffer.size() == 30
    other.learn(30, reset_num_timesteps=False)


def test_what_is_loaded_with_other_options_chooses_by_these_from_the_first_batch_on(tmp_path: pathlib.Path) -> None:
    model = small()
    model.learn(100)
    model.save_replay_buffer(tmp_path / "buffer")
    same = HIPIReplayBuffer.load(tmp_path / "buffer", small())
    assert same.relabeler.pool is not None and same.relabeler.options() == model.replay_buffer.relabeler.options()  # type: ignore[union-attr]
    others: list[dict[str, Any]] = [{"strategy": "map"}, {"score": "q"}, {"candidates": "batch"}, {"temperature": 1.0}]
    for options in others:
        assert HIPIReplayBuffer.load(tmp_path / "buffer", small(), **options).relabeler.pool is None


def test_what_was_left_to_the_tasks_is_left_to_them_when_loaded(tmp_path: pathlib.Path) -> None:
    model = small(replay_buffer_kwargs={"strategy": "future"})
    model.learn(30)
    model.save_replay_buffer(tmp_path / "buffer")
    loaded, new = HIPIReplayBuffer.load(tmp_path / "buffer", small(), strategy="hipi"), small().replay_buffer
    for name in ("score", "prior_share", "n_steps"):
        assert getattr(loaded.relabeler, name) == getattr(new.relabeler, name)  # type: ignore[union-attr]
    assert loaded.relabeler.inference.temperature == new.relabeler.inference.temperature  # type: ignore[union-attr]


def test_a_strategy_of_ones_own_comes_from_the_algorithm_or_the_caller(tmp_path: pathlib.Path) -> None:
    model = small(replay_buffer_kwargs={"strategy": OwnStrategy()})
    model.learn(30)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(model.replay_buffer.relabeler.strategy, OwnStrategy)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"OwnStrategy as its strategy, and code is not saved. Pass strategy="):
        small().load_replay_buffer(tmp_path / "buffer")
    loaded = HIPIReplayBuffer.load(tmp_path / "buffer", small(), strategy=OwnStrategy())
    assert isinstance(loaded.relabeler.strategy, OwnStrategy)


class OwnStrategy(RandomTask):
    """Has no name."""


@pytest.mark.parametrize("space", [DICT_SPACE, IMAGES, spaces.Discrete(4, start=2), LineWalk.action_space])
def test_spaces_come_back_equal(space: spaces.Space) -> None:
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


# -- what is refused ----------------------------------------------------------------------------------------------


def saved(folder: pathlib.Path) -> pathlib.Path:
    buffer = goal_buffer()
    fill(buffer, [[(0.1 * t, 0.9, "")] for t in range(8)])
    buffer.save(folder)
    return folder


def overwrite(path: pathlib.Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (arrays_of(f) / "transitions.rewards.npy").unlink(),
            r"rewards.npy is missing, but buffer.json names it",
        ),
        (lambda f: truncate(arrays_of(f) / "transitions.rewards.npy"), r"rewards.npy is damaged: its SHA-256 .* earlier copy"),
        (lambda f: overwrite(arrays_of(f) / "transitions.rewards.npy", -1), r"rewards.npy is damaged: its SHA-256"),
        (lambda f: overwrite(arrays_of(f) / "transitions.rewards.npy", 20), r"rewards.npy is damaged: its SHA-256"),
        (lambda f: shutil.rmtree(arrays_of(f)), r"npy is missing"),
        (lambda f: (f / "buffer.json").unlink(), r"buffer.json does not exist.*Give the path that was passed to save"),
        (lambda f: truncate(f / "buffer.json"), r"buffer.json is damaged"),
        (lambda f: (f / "buffer.json").write_text("[]"), r"buffer.json is damaged"),
        (
            lambda f: change(f, lambda text: text.replace('"pos",\n', '"pas",\n')),
            r"buffer.json is damaged: it has",
        ),
        (lambda f: change(f, lambda text: text.replace('"version": 1', '"version": 7')), r"version 7, but .* reads version 1"),
    ],
)
def test_every_kind_of_damage_names_the_file(damage: Any, message: str, tmp_path: pathlib.Path) -> None:
    damage(saved(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        HIPIReplayBuffer.load(tmp_path, family=GOALS)


def change(folder: pathlib.Path, function: Any) -> None:
    text = (folder / "buffer.json").read_text()
    (folder / "buffer.json").write_text(function(text))


def test_other_tasks_and_no_tasks_are_refused(tmp_path: pathlib.Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"needs its task family, and code is not saved. Pass family="):
        HIPIReplayBuffer.load(tmp_path)
    with pytest.raises(ValueError, match=r"holds transitions of tasks in Box\(-1.0, 1.0.*Use the family"):
        HIPIReplayBuffer.load(tmp_path, family=GoalReaching(low=[-2.0], high=[2.0], radius=0.15))


def test_a_model_with_other_spaces_is_refused(tmp_path: pathlib.Path) -> None:
    model = small()
    model.learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = small(env=make_line_walk(directions()))
    before = other.replay_buffer
    with pytest.raises(ValueError, match=r"buffer's observation_space is .* but the algorithm's is .*same environment"):
        other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer is before


def test_nothing_else_is_overwritten(tmp_path: pathlib.Path) -> None:
    buffer = goal_buffer()
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match=r"is not the folder of a replay buffer. Choose another path"):
            buffer.save(path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_no_file_can_hold_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"a.b.1 is function, which is neither an array nor a plain value"):
        write_state(tmp_path / "state", {"a": {"b": [1, lambda: None]}})
    assert not (tmp_path / "state").exists()


# -- killed while saving ------------------------------------------------------------------------------------------


def save_for_ever(folder: pathlib.Path, started: Any, finished: Any) -> None:
    for number in range(started.value + 1, 10**6):
        started.value = number
        write_state(folder, {"number": number, "arrays": [np.full(20_000, number) for _ in range(4)]})
        finished.value = number


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_kill_while_saving_leaves_the_old_state_or_the_new_one(tmp_path: pathlib.Path) -> None:
    folder, rng, context = tmp_path / "state", np.random.default_rng(0), multiprocessing.get_context("fork")
    started, finished = context.Value("i", 0, lock=False), context.Value("i", 0, lock=False)
    for _ in range(10):
        before = finished.value
        process = context.Process(target=save_for_ever, args=(folder, started, finished))
        process.start()
        while finished.value == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        state = read_state(folder)
        assert state["number"] in (finished.value, started.value)
        assert len(state["arrays"]) == 4 and all((array == state["number"]).all() for array in state["arrays"])


def test_a_failed_save_leaves_the_old_buffer_and_the_next_one_cleans_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    buffer = goal_buffer()
    fill(buffer, [[(0.5, 0.9, "")]])

    def fail(*args: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "replace", fail)
        buffer.save(tmp_path)
    assert HIPIReplayBuffer.load(tmp_path, family=GOALS).size() == 8
    assert len(list(tmp_path.glob("arrays-*"))) == 2
    buffer.save(tmp_path)
    assert HIPIReplayBuffer.load(tmp_path, family=GOALS).size() == 1
    assert len(list(tmp_path.glob("arrays-*"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"buffer.json", arrays_of(tmp_path).name}


def test_what_was_left_to_the_algorithm_is_the_one_that_loads(tmp_path: pathlib.Path) -> None:
    """The discount and the windows of one that has others; what was given stays."""

    def learner(discount: float, **options: Any) -> HIPISAC:
        small: dict[str, Any] = {"learning_starts": 5, "batch_size": 8, "device": "cpu", "seed": 0}
        return HIPISAC("MultiInputPolicy", make_line_walk(), gamma=discount, replay_buffer_kwargs=options, **small)

    learner(0.95).learn(20).save_replay_buffer(tmp_path / "buffer")
    model = learner(0.98)
    model.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(model.replay_buffer, HIPIReplayBuffer) and model.replay_buffer.gamma == 0.98
    model.learn(20, reset_num_timesteps=False)
    assert HIPIReplayBuffer.load(tmp_path / "buffer", family=GOALS).gamma == 0.95  # nobody else says one
    learner(0.95, gamma=0.95, n_steps=3).learn(20).save_replay_buffer(tmp_path / "given")
    with pytest.raises(ValueError, match=r"n_steps=3 and gamma=0\.95"):
        model.load_replay_buffer(tmp_path / "given")
    her = HIPIReplayBuffer.load(tmp_path / "buffer", model, n_sampled_goal=4)
    assert her.relabeler.relabel_prob == pytest.approx(0.8) and not her.relabeler.strategy.needs_posterior


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_discrete_spaces_keep_their_type(dtype: Any) -> None:
    space = spaces.Discrete(3, start=1, dtype=dtype)
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space
    assert space_from_json({"n": 3, "start": 1}) == spaces.Discrete(3, start=1)  # as it was written once
