"""Logged steps without an environment: what becomes of them, and what is refused."""

import numpy as np
import pytest
from conftest import require
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal

from hipi_sb3 import HIPIBC, GoalReaching, LinearReward, TrajectoryDataset

GOALS = GoalReaching([-9, -9], [9, 9], radius=0.5)
#: Two episodes, of three steps and of two.
LOG = {
    "observations": np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [5.0, 5.0], [5.0, 4.0]]),
    "actions": np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5], [0.0, -1.0], [0.5, 0.5]]),
    "episodes": np.array([7, 7, 7, 3, 3]),
}
TASKS = np.array([[1.0, 2.0]] * 3 + [[5.0, 4.0]] * 2)


def test_the_last_step_of_an_episode_is_left_out_where_nothing_says_where_it_led():
    dataset = TrajectoryDataset.from_arrays(GOALS, **LOG, tasks=TASKS, terminated=[False, False, True, False, False])
    assert_array_equal(dataset.lengths, [2, 1])
    assert_array_equal(dataset.observations, [[0, 0], [1, 0], [5, 5]])
    assert_array_equal(dataset.actions, [[1, 0], [0, 2], [0, -1]])
    # The goal that a step reaches is the next observation of its own episode.
    assert_array_equal(dataset.features, [[1, 0], [1, 2], [5, 4]])
    assert_array_equal(dataset.tasks, [[1, 2], [5, 4]])
    assert_array_equal(dataset.env_terminated, [True, False])
    assert dataset.observations.dtype == dataset.features.dtype == np.float32
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert dataset.action_space == spaces.Box(np.float32([0, -1]), np.float32([1, 2]))


def test_every_step_is_kept_where_next_observations_are_logged():
    after = LOG["observations"] + 0.25
    dataset = TrajectoryDataset.from_arrays(GOALS, **LOG, next_observations=after)
    assert_array_equal(dataset.lengths, [3, 2])
    assert_allclose(dataset.features, after)
    assert dataset.tasks is None and not dataset.env_terminated.any()
    # The smallest box around all that was done.
    assert_array_equal(dataset.action_space.low, [-1, -1])
    assert_array_equal(dataset.action_space.high, [1, 2])


def test_features_that_were_logged_are_taken_as_they_are():
    features = np.arange(10).reshape(5, 2)
    dataset = TrajectoryDataset.from_arrays(GOALS, **LOG, features=features)
    assert_array_equal(dataset.lengths, [3, 2])
    assert_array_equal(dataset.features, features)


def _reward_as_feature(env, obs, action, next_obs, reward, info):
    return np.array([reward])


def test_rewards_reach_a_family_that_reads_them():
    family = LinearReward([-1], [1], features=_reward_as_feature)
    dataset = TrajectoryDataset.from_arrays(family, **LOG, rewards=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert_array_equal(dataset.features[:, 0], [1, 2, 4])


def test_whole_numbers_are_discrete_actions():
    log = LOG | {"actions": np.array([0, 2, 1, 0, 0])}
    dataset = TrajectoryDataset.from_arrays(GOALS, **log)
    assert dataset.action_space == spaces.Discrete(2 + 1)
    assert_array_equal(dataset.actions, [0, 2, 0])


def test_columns_of_a_table_are_arrays():
    pd = require("pandas")
    table = pd.DataFrame({"x": LOG["observations"][:, 0], "y": LOG["observations"][:, 1], "run": ["b", "b", "b", "a", "a"]})
    table[["dx", "dy"]] = LOG["actions"]
    dataset = TrajectoryDataset.from_arrays(GOALS, table[["x", "y"]], table[["dx", "dy"]], table["run"])
    expected = TrajectoryDataset.from_arrays(GOALS, **LOG)
    for name, array in expected.arrays().items():
        assert_array_equal(dataset.arrays()[name], array)
    assert_array_equal(dataset.lengths, expected.lengths)


def test_what_was_logged_is_cloned_saved_and_loaded(tmp_path):
    dataset = TrajectoryDataset.from_arrays(GOALS, **LOG)
    dataset.save(tmp_path / "log.npz")
    loaded = TrajectoryDataset.load(tmp_path / "log.npz", GOALS)
    assert loaded.action_space == dataset.action_space and loaded.observation_space == dataset.observation_space
    model = HIPIBC("MultiInputPolicy", seed=0).fit(loaded, n_epochs=1)
    action, _ = model.predict({"observation": np.zeros(2, np.float32), "task": np.ones(2, np.float32)}, deterministic=True)
    assert dataset.action_space.contains(action)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": LOG["actions"][:4]}, "actions has 4 rows, observations have 5"),
        ({"episodes": np.array([7, 7, 3, 3, 7])}, "the steps of episode 7 do not stand one after another. Sort the rows"),
        ({"episodes": np.array([7, 7, 7, 7, 3])}, "episode 3 has one step.*Pass next_observations"),
        ({"episodes": np.zeros((5, 1))}, r"episodes must have shape \(n_steps,\)"),
        ({"actions": np.zeros((5, 1))}, r"no bounds can be read.*Pass action_space=Box"),
        ({"actions": np.array([0, -1, 0, 0, 0])}, "numbered from 0, but -1"),
        ({"actions": np.zeros(5)}, r"actions must have shape \(n_steps, action_dim\)"),
    ],
)
def test_logs_that_cannot_be_read_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDataset.from_arrays(GOALS, **(LOG | change))
