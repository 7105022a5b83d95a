"""Data sets of trajectories: where they come from, and what is refused."""

import errno
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from gymnasium import spaces
from line_walk import ACTIONS, GOALS, Step, directions, fill, goal_buffer, make_line_walk
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.envs import BitFlippingEnv
from walks import INNER, walks

from hipi_sb3 import HIPIBC, HIPIReplayBuffer, TargetVelocity, TaskFamily, TrajectoryDataset
from hipi_sb3.cloning.recordings import compute_features
from hipi_sb3.experience import whole
from hipi_sb3.experience.whole import NotWritten

#: Two environments: an episode that reaches its goal and one that goes on; one that falls off, and one at the time limit.
STEPS: list[list[Step]] = [
    [(0.1, 0.3, ""), (0.9, -0.9, "")],
    [(0.3, 0.3, "task"), (0.7, -0.9, "env")],
    [(0.2, -0.8, ""), (0.4, -0.5, "")],
    [(0.1, -0.8, ""), (0.5, -0.5, "limit")],
]


def assert_same(first: TrajectoryDataset, second: TrajectoryDataset) -> None:
    assert first.observation_space == second.observation_space and first.action_space == second.action_space
    assert first.arrays().keys() == second.arrays().keys()
    for name, array in first.arrays().items():
        assert_array_equal(array, second.arrays()[name])
    for name in ("lengths", "tasks", "env_terminated"):
        assert_array_equal(getattr(first, name), getattr(second, name))


# -- from a replay buffer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_a_buffer_gives_its_episodes_environment_by_environment(flat: bool) -> None:
    buffer = goal_buffer(n_envs=2, flat=flat)
    fill(buffer, STEPS, flat)
    dataset = TrajectoryDataset.from_buffer(buffer)
    assert_array_equal(dataset.lengths, [2, 2, 2, 2])
    assert_allclose(dataset.features[:, 0], [0.1, 0.3, 0.2, 0.1, 0.9, 0.7, 0.4, 0.5])
    assert_array_equal(dataset.observations[:, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert_array_equal(dataset.observations[:, 1], [0, 1, 2, 3, 0, 1, 2, 3])
    assert dataset.tasks is not None
    assert_allclose(dataset.tasks[:, 0], [0.3, -0.8, -0.9, -0.5])
    assert_array_equal(dataset.env_terminated, [False, False, True, False])
    assert flat or dataset.task_space() == buffer.observation_space


def test_a_buffer_that_has_wrapped_gives_what_is_left_oldest_first() -> None:
    buffer = goal_buffer(buffer_size=3)
    fill(buffer, [[step[0]] for step in STEPS])
    dataset = TrajectoryDataset.from_buffer(buffer)
    assert_array_equal(dataset.lengths, [1, 2])
    assert_allclose(dataset.features[:, 0], [0.3, 0.2, 0.1])


def test_actions_of_a_buffer_get_the_units_of_the_environment_again() -> None:
    wide = spaces.Box(-2.0, 4.0, (1,), np.float32)
    space = spaces.Dict(observation=INNER, task=GOALS.task_space)
    buffer = HIPIReplayBuffer(5, space, wide, device="cpu", family=GOALS, strategy="none")
    fill(buffer, [[(0.1, 0.8, "")], [(0.2, 0.8, "")]])
    buffer.actions[:2, 0, 0] = [-1.0, 0.5]
    assert_allclose(TrajectoryDataset.from_buffer(buffer).actions[:, 0], [-2.0, 2.5])


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.npz", "data"])
@pytest.mark.parametrize("action_space", [ACTIONS, spaces.Discrete(2)])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str, action_space: spaces.Space) -> None:
    dataset = walks([3, 5], action_space=action_space, tasks=np.array([[0.1], [0.2]]), env_terminated=np.array([True, False]))
    dataset.save(tmp_path / name)
    assert_same(dataset, TrajectoryDataset.load(tmp_path / name, GOALS))


def test_dict_observations_are_saved_and_loaded(tmp_path: Path) -> None:
    parts = {"observation": np.arange(6.0).reshape(3, 2), "achieved_goal": np.ones((3, 1))}
    space = spaces.Dict({name: spaces.Box(-10, 10, part.shape[1:], np.float64) for name, part in parts.items()})
    dataset = TrajectoryDataset(GOALS, space, ACTIONS, parts, np.zeros((3, 1)), np.zeros((3, 1)), np.array([1, 2]))
    for name in ("data.npz", "data"):
        dataset.save(tmp_path / name)
        assert_same(dataset, TrajectoryDataset.load(tmp_path / name, GOALS))


def test_a_folder_is_mapped_into_memory_and_not_loaded(tmp_path: Path) -> None:
    walks([3, 5]).save(tmp_path / "data")
    dataset = TrajectoryDataset.load(tmp_path / "data", GOALS)
    assert all(isinstance(array, np.memmap) for array in dataset.arrays().values())


@pytest.mark.parametrize("name", ["data.npz", "data"])
def test_a_data_set_may_be_saved_over_the_one_that_it_was_loaded_from(tmp_path: Path, name: str) -> None:
    dataset = walks([3, 5], tasks=np.array([[0.1], [0.2]]))
    dataset.save(tmp_path / name)
    loaded = TrajectoryDataset.load(tmp_path / name, GOALS)
    loaded.save(tmp_path / name)
    assert_same(dataset, loaded)
    assert_same(dataset, TrajectoryDataset.load(tmp_path / name, GOALS))


def test_nothing_of_an_older_data_set_is_left_in_a_folder_and_no_other_folder_is_replaced(tmp_path: Path) -> None:
    walks([3, 5], tasks=np.array([[0.1], [0.2]])).save(tmp_path / "data")
    walks([3, 5]).save(tmp_path / "data")
    assert TrajectoryDataset.load(tmp_path / "data", GOALS).tasks is None
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds something else\. Choose another path"):
        walks([2]).save(tmp_path / "data")
    assert (tmp_path / "data" / "notes.txt").is_file()


@pytest.mark.parametrize("name", ["replaced-data", "writing-data"])
def test_a_folder_of_ones_own_beside_a_data_set_is_never_removed(tmp_path: Path, name: str) -> None:
    walks([3, 5]).save(tmp_path / "data")
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    TrajectoryDataset.load(tmp_path / "data", GOALS)
    with pytest.raises(FileExistsError, match=rf"{name} exists and holds something else"):
        walks([2]).save(tmp_path / "data")
    assert (tmp_path / name / "notes.txt").read_text() == "mine"
    assert_same(walks([3, 5]), TrajectoryDataset.load(tmp_path / "data", GOALS))


@pytest.mark.parametrize("killed_before", ["flush", "rename", "second rename"])
def test_a_folder_whose_saving_is_killed_holds_the_old_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Killed

    old = walks([3, 5])
    old.save(tmp_path / "data")
    rename = Path.rename
    if killed_before == "flush":
        monkeypatch.setattr(whole, "flush", die)
    else:
        survives = "nothing" if killed_before == "rename" else "data"
        monkeypatch.setattr(Path, "rename", lambda path, to: rename(path, to) if path.name == survives else die())
    with pytest.raises(Killed):
        walks([2, 2]).save(tmp_path / "data")
    monkeypatch.undo()
    assert (tmp_path / "data").is_dir() == (killed_before != "second rename")
    assert_same(old, TrajectoryDataset.load(tmp_path / "data", GOALS))
    walks([2, 2]).save(tmp_path / "data")
    assert_same(walks([2, 2]), TrajectoryDataset.load(tmp_path / "data", GOALS))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_features_are_computed_from_next_observations_where_they_are_missing(tmp_path: Path) -> None:
    observations = np.array([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]], dtype=np.float32)
    np.savez(
        tmp_path / "data.npz",
        observations=observations,
        next_observations=observations + 0.1,
        actions=np.zeros((3, 1), dtype=np.float32),
        lengths=[3],
    )
    dataset = TrajectoryDataset.from_npz(tmp_path / "data.npz", GOALS, INNER, ACTIONS)
    assert_allclose(dataset.features[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)


def test_files_that_lack_something_say_what(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", observations=np.zeros((3, 2)), actions=np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"does not say its spaces. Pass observation_space"):
        TrajectoryDataset.load(tmp_path / "data.npz", GOALS)
    with pytest.raises(ValueError, match="has no lengths, only actions, observations"):
        TrajectoryDataset.load(tmp_path / "data.npz", GOALS, observation_space=INNER, action_space=ACTIONS)
    np.savez(tmp_path / "data.npz", observations=np.zeros((3, 2)), actions=np.zeros((3, 1)), lengths=[3])
    with pytest.raises(ValueError, match=r"has no features \(or next_observations\)"):
        TrajectoryDataset.load(tmp_path / "data.npz", GOALS, observation_space=INNER, action_space=ACTIONS)


# -- Minari -----------------------------------------------------------------------------------------------------------


# Minari warns of everything that a published data set should say about itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Minari, with an empty folder for its data sets."""
    module = require("minari")
    require("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


def record(env: gym.Env, n_episodes: int, infos: tuple[str, ...] = (), with_reset: bool = False) -> list[Any]:
    """Episodes of random actions as Minari buffers."""
    from minari.data_collector import EpisodeBuffer

    env.action_space.seed(0)
    buffers = []
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=episode)
        data: dict[str, list[Any]] = {name: [] for name in ("actions", "rewards", "terminations", "truncations")}
        seen, kept, done = [obs], {name: [] for name in infos}, False
        while not done:
            action = env.action_space.sample()
            obs, reward, terminated, truncated, info = env.step(action)
            seen.append(obs)
            for name, value in zip(data, (action, reward, terminated, truncated), strict=True):
                data[name].append(value)
            for name in infos:
                kept[name].append(info[name])
            done = terminated or truncated
        if with_reset:
            kept = {name: [np.zeros_like(values[0]), *values] for name, values in kept.items()}
        is_dict = isinstance(obs, dict)
        observations: Any = {key: np.stack([o[key] for o in seen]) for key in obs} if is_dict else np.stack(seen)
        arrays = {name: np.array(values) for name, values in kept.items()}
        buffers.append(EpisodeBuffer(id=episode, observations=observations, infos=arrays, **data))
    return buffers


@pytest.mark.parametrize("with_reset", [False, True])
def test_minari_episodes_of_the_wrapper_bring_features_and_tasks(minari: Any, with_reset: bool) -> None:
    env = make_line_walk()
    episodes = record(env, 6, ("task_features",), with_reset)
    minari.create_dataset_from_buffers(
        "walk/random-v0", episodes, observation_space=env.observation_space, action_space=env.action_space
    )
    dataset = TrajectoryDataset.load("walk/random-v0", GOALS)
    assert_array_equal(dataset.lengths, [len(episode) for episode in episodes])
    assert_array_equal(dataset.observations, np.concatenate([e.observations["observation"][:-1] for e in episodes]))
    assert_array_equal(dataset.features[:, 0], np.concatenate([e.observations["observation"][1:, 0] for e in episodes]))
    assert_array_equal(dataset.actions, np.concatenate([e.actions for e in episodes]))
    assert dataset.tasks is not None
    assert_array_equal(dataset.tasks, [e.observations["task"][0] for e in episodes])
    # Of the terminations the task's own are left out; what is left is the fall at 1.2.
    last = [abs(float(e.observations["observation"][-1, 0])) for e in episodes]
    assert_array_equal(dataset.env_terminated, np.array(last) > 1.2)
    assert dataset.observation_space == INNER


def test_minari_episodes_without_tasks_get_the_features_of_the_family(minari: Any, tmp_path: Path) -> None:
    from line_walk import LineWalk

    env = gym.wrappers.TimeLimit(LineWalk(), 5)
    episodes = record(env, 4)
    minari.create_dataset_from_buffers(
        "walk/raw-v0", episodes, observation_space=env.observation_space, action_space=env.action_space
    )
    dataset = TrajectoryDataset.load(tmp_path / "minari" / "walk" / "raw-v0", directions())  # by path
    assert dataset.tasks is None
    assert_array_equal(dataset.features[:, 0], np.concatenate([e.observations[1:, 0] for e in episodes]))
    # Into a folder, and from there again.
    in_folder = TrajectoryDataset.from_minari("walk/raw-v0", directions(), folder=tmp_path / "arrays")
    assert isinstance(in_folder.observations, np.memmap)
    again = TrajectoryDataset.load(tmp_path / "arrays", directions())
    for name, array in dataset.arrays().items():
        assert_array_equal(array, again.arrays()[name])
    with pytest.raises(ValueError, match=r"reads what was not recorded .*x_velocity.*GoalReaching\(position="):
        TrajectoryDataset.load("walk/raw-v0", TargetVelocity(0.0, 3.0))
    with pytest.raises(ValueError, match=r"nor a local Minari data set. Local ones: walk/raw-v0."):
        TrajectoryDataset.load("walk/other-v0", directions())


def test_minari_episodes_of_a_goal_env_keep_everything_but_the_desired_goal(minari: Any) -> None:
    from minari.data_collector import EpisodeBuffer

    class Goals(type(GOALS)):  # type: ignore[misc]
        task_key = "desired_goal"

        def features(self, env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> Any:
            return next_obs["achieved_goal"]

    family = Goals(low=[-1.0], high=[1.0], radius=0.15)
    space = spaces.Dict(
        {name: spaces.Box(-9, 9, (1,), np.float64) for name in ("observation", "achieved_goal", "desired_goal")}
    )
    parts = {"observation": [[0.0], [1.0], [2.0]], "achieved_goal": [[0.0], [0.1], [0.2]], "desired_goal": [[0.7]] * 3}
    episode = EpisodeBuffer(
        observations={name: np.array(values) for name, values in parts.items()},
        actions=np.zeros((2, 1), dtype=np.float32),
        rewards=[-1.0, -1.0],
        terminations=[False, False],
        truncations=[False, True],
    )
    minari.create_dataset_from_buffers("reach/one-v0", [episode], observation_space=space, action_space=ACTIONS)
    dataset = TrajectoryDataset.load("reach/one-v0", family)
    assert_allclose(dataset.features, [[0.1], [0.2]], rtol=1e-6)
    assert_allclose(dataset.tasks, [[0.7]], rtol=1e-6)
    assert dataset.observations.keys() == {"observation", "achieved_goal"}
    assert dataset.task_space().keys() == space.keys()


class ReadsTheSimulator(type(GOALS)):  # type: ignore[misc]
    def features(self, env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> Any:
        return env.unwrapped.data.qpos[:1]


def test_a_family_that_reads_the_simulator_is_told_which_can_do_without() -> None:
    family: TaskFamily = ReadsTheSimulator(low=[-1.0], high=[1.0], radius=0.15)
    with pytest.raises(
        ValueError, match=r"ReadsTheSimulator reads the simulator \(unwrapped\).*record through MultiTaskWrapper"
    ):
        compute_features(family, np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 2)))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["observations", "actions", "features"])
def test_a_number_that_is_none_is_found_by_trajectory_and_step(name: str) -> None:
    dataset = walks([3, 5, 4])
    dataset.arrays()[name][3 + 2, 0] = np.nan
    with pytest.raises(ValueError, match=f"{name} of trajectory 1, step 2 are .*nan.*not a finite number"):
        dataset.check()


def test_arrays_that_do_not_fit_are_refused() -> None:
    dataset = walks([3, 5])
    arrays: dict[str, Any] = {**dataset.arrays(), "lengths": dataset.lengths}
    for name, wrong in (("observations", np.zeros((8, 3))), ("lengths", np.array([3, 4])), ("features", np.zeros((8, 2)))):
        with pytest.raises(ValueError, match=r"must have shape \((7|8), .*for 2 trajectories of (7|8) steps"):
            TrajectoryDataset(GOALS, INNER, ACTIONS, **{**arrays, name: wrong})
    for lengths in ([8, 0], [], [np.nan, 8], [np.inf, 8], [4.5, 3.5]):
        with pytest.raises(ValueError, match="none without steps: lengths are whole numbers"):
            TrajectoryDataset(GOALS, INNER, ACTIONS, **{**arrays, "lengths": np.array(lengths)})
    with pytest.raises(ValueError, match="must be Box or Discrete"):
        TrajectoryDataset(GOALS, INNER, spaces.MultiBinary(3), **arrays)


def test_no_policy_for_flat_observations_clones_dict_ones() -> None:
    space = spaces.Dict(observation=INNER, achieved_goal=INNER)
    parts = {"observation": np.zeros((3, 2)), "achieved_goal": np.zeros((3, 2))}
    dataset = TrajectoryDataset(GOALS, space, ACTIONS, parts, np.zeros((3, 1)), np.zeros((3, 1)), np.array([3]))
    with pytest.raises(ValueError, match="Use MultiInputPolicy"):
        dataset.task_space(flat=True)


@pytest.mark.parametrize("kind", [{}, {"continuous": True}, {"discrete_obs_space": True}])
def test_goal_envs_without_a_residual_are_cloned(kind: dict[str, Any]) -> None:
    """What follows the goal in the features is not stored while it is 0."""
    options: dict[str, Any] = {"learning_starts": 20, "train_freq": 20, "gradient_steps": 2, "seed": 0, "device": "cpu"}
    model = HIPIBC("MultiInputPolicy", BitFlippingEnv(n_bits=3, **kind), **options).learn(60)
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    dataset = TrajectoryDataset.from_buffer(model.replay_buffer)
    assert dataset.n_steps == 60 and dataset.features.shape == (60, dataset.family.feature_dim)
    stored = model.replay_buffer.experience.features((np.arange(60), np.zeros(60, dtype=int)))
    assert stored.shape[1] < dataset.family.feature_dim
    assert_array_equal(dataset.features[:, : stored.shape[1]], stored)
    assert not dataset.features[:, stored.shape[1] :].any()


def test_a_data_set_for_which_there_is_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing into a mapped file on a full disk would end the process without an error."""
    dataset = walks([3, 4])
    dataset.save(tmp_path / "data")

    def no_room(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(NotWritten, match="No space left on device"):
        walks([5]).save(tmp_path / "data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert TrajectoryDataset.load(tmp_path / "data", dataset.family).n_steps == 7
