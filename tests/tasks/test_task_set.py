"""Tasks of a finite family, looked up by value; families of very many."""

import pickle
from copy import deepcopy
from tracemalloc import get_traced_memory, start, stop
from types import SimpleNamespace

import numpy as np
import pytest
from line_walk import GOALS, LineWalk
from numpy.testing import assert_array_equal

from hipi_sb3 import HIPISAC, DiscreteTasks, FiniteTasks, MultiTaskWrapper
from hipi_sb3.relabel.candidates import CandidateSampler
from hipi_sb3.relabel.defaults import MANY_TASKS, default_candidates
from hipi_sb3.relabel.log_partition import RunningLogPartition
from hipi_sb3.tasks.task_set import MANY, TaskSet, is_identity, one_hot_tasks


def by_comparison(members, tasks):
    equal = np.all(np.asarray(tasks)[..., None, :] == members, axis=-1)
    return np.where(equal.any(axis=-1), np.argmax(equal, axis=-1), -1)


@pytest.mark.parametrize("members", [np.eye(5), np.array([[1.0, 2], [0, 3], [1, 2], [-0.0, 0.25]]), np.eye(3)[[1, 0, 2]]])
def test_a_task_is_found_where_a_comparison_with_all_finds_it(members):
    members = members.astype(np.float32)
    near = members + np.float32(1e-6)
    tasks = np.stack([members, members[::-1], near, -members, np.zeros_like(members), 2 * members])
    task_set = TaskSet(members)
    assert_array_equal(task_set.index(tasks), by_comparison(members, tasks))
    assert task_set.index(members[1]).shape == () and task_set.index(members[1]) == by_comparison(members, members[1])
    values = np.arange(len(members), dtype=float)
    found = by_comparison(members, tasks)
    assert_array_equal(task_set.values(tasks, values), np.where(found >= 0, values[found], -np.inf))


def test_a_number_between_two_of_float32_is_in_no_set():
    members = np.array([[0.1], [0.5]], dtype=np.float32)
    assert TaskSet(members).index(np.array([[0.1], [0.5], [np.float64(members[0, 0])]])).tolist() == [-1, 1, 0]


def test_two_ones_are_no_one_hot_task():
    assert TaskSet(np.eye(3)).index(np.array([[1, 1, 0], [0, 0, 1], [0, 0.5, 0]])).tolist() == [-1, 2, -1]


@pytest.mark.parametrize("n_tasks", [1, 7, MANY, MANY + 1])
def test_one_hot_tasks_are_the_identity(n_tasks):
    assert_array_equal(one_hot_tasks(n_tasks), np.eye(n_tasks))
    assert is_identity(one_hot_tasks(n_tasks)) and not is_identity(2 * np.eye(3)) and not is_identity(np.ones((2, 3)))
    assert not is_identity(np.array([[1.0, 1], [0, 1]]))


def ten_thousand():
    return FiniteTasks(GOALS, np.linspace(-1, 1, 10_000)[:, None])


def test_ten_thousand_tasks_take_the_memory_of_a_few():
    start()
    family = ten_thousand()
    copy = deepcopy(family)
    family.check()
    peak = get_traced_memory()[1]
    stop()
    assert peak < 20e6  # one matrix of them takes 400e6
    assert len(pickle.dumps(family)) < 1e6
    assert_array_equal(copy.tasks[9_999, -2:], [0, 1])
    assert family.log_prior(family.tasks[[3, 9_999]]).tolist() == [-np.log(10_000)] * 2


def test_candidates_of_many_tasks_are_drawn():
    few, many = (FiniteTasks(GOALS, np.linspace(-1, 1, n)[:, None]) for n in (MANY_TASKS, MANY_TASKS + 1))
    assert default_candidates(few) == "all" and default_candidates(many) == "prior"
    assert len(CandidateSampler(few, "all", 32)(None, np.random.default_rng(0)).tasks) == MANY_TASKS
    drawn = CandidateSampler(many, "prior", 32)(SimpleNamespace(family=many), np.random.default_rng(0))
    assert 25 < len(drawn.tasks) <= 32 and np.exp(drawn.log_weights).sum() == pytest.approx(32)


def test_ten_thousand_tasks_train_by_defaults():
    env = MultiTaskWrapper(LineWalk(), ten_thousand())
    model = HIPISAC("MultiInputPolicy", env, learning_starts=20, batch_size=8, policy_kwargs={"net_arch": [4]}, seed=0)
    model.replay_buffer.relabeler.warmup_updates = 2
    model.learn(30)
    assert model._n_updates == 10 and model.observation_space["task"].shape == (10_000,)


class Calls:
    """A reward that counts its calls."""

    def __init__(self, value):
        self.value, self.n = value, 0

    def __call__(self, features):
        self.n += 1
        return features[..., 0] * self.value


def first(env, obs, action, next_obs, reward, info):
    return next_obs[:1]


def test_only_the_rewards_of_tasks_that_are_asked_for_are_computed():
    rewards = [Calls(k) for k in range(50)]
    family = DiscreteTasks(rewards, features=first, feature_dim=1)
    tasks = family.tasks[[4, 7, 4]]
    assert family.reward(np.array([[[1.0]], [[2.0]]]), tasks).tolist() == [[4, 7, 4], [8, 14, 8]]
    assert [k for k, reward in enumerate(rewards) if reward.n > 0] == [4, 7] and rewards[4].n == 1


def test_running_log_z_of_candidates_by_row_is_that_of_each_task_by_itself():
    members = np.linspace(-1, 1, 400)[:, None].astype(np.float32)
    rng = np.random.default_rng(0)
    rows, scores = rng.integers(400, size=(64, 8)), rng.normal(size=(64, 8)) * 5
    scores[rows == rows[0, 0]] = -np.inf  # impossible everywhere
    estimator = RunningLogPartition()
    estimator.setup(None, members)
    estimator.update(members[rows], scores)
    used = np.unique(rows[rows != rows[0, 0]])
    expected = [np.log(np.mean(np.exp(scores[rows == k]))) for k in used]
    np.testing.assert_allclose(estimator(members, None, None)[used], expected, rtol=1e-12)
    assert estimator(members, None, None)[rows[0, 0]] == 0
    with pytest.raises(KeyError, match="none of the family's tasks"):
        estimator(np.array([[0.123456]]), None, None)
