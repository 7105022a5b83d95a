"""Where transitions are kept: each observation once, whatever is added, and nothing that a sample shows is lost by it."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import ACTIONS, DICT_SPACE, FLAT_SPACE, GOALS, fill, goal_buffer
from numpy.testing import assert_array_equal
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from hipi_sb3 import GoalReaching, HIPIReplayBuffer
from hipi_sb3.experience.episodes import EpisodeIndex

IMAGES = spaces.Dict(
    camera=spaces.Box(0, 255, (3, 4, 4), np.uint8), speed=spaces.Box(-1, 1, (2,), np.float64), task=GOALS.task_space
)


def random_observations(space: spaces.Space, n_envs: int, rng: np.random.Generator, tasks: np.ndarray) -> Any:
    """Observations of all environments with given tasks, (n_envs, 1)."""
    if isinstance(space, spaces.Dict):
        parts = {}
        for key, part in space.spaces.items():
            is_image = part.dtype == np.uint8
            values = rng.integers(256, size=(n_envs, *part.shape)) if is_image else rng.normal(size=(n_envs, *part.shape))  # type: ignore
            parts[key] = tasks.copy() if key == "task" else values.astype(part.dtype)
        return parts
    return np.concatenate([rng.normal(size=(n_envs, space.shape[0] - 1)), tasks], axis=1).astype(np.float32)  # type: ignore


def select(which: np.ndarray, chosen: Any, others: Any) -> Any:
    """Observations of the chosen environments from one batch, of the others from another."""
    if isinstance(chosen, dict):
        return {key: select(which, chosen[key], others[key]) for key in chosen}
    return np.where(which.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, others)


def add_random_steps(
    buffers: list[Any], space: spaces.Space, n_envs: int, n: int, rng: np.random.Generator, p_break: float, p_task: float
) -> None:
    """
    The same random stream into several buffers.

    :param p_break: probability that a next observation is not the following observation, without an end of the episode
    :param p_task: probability that the task changes within an episode
    """
    tasks = GOALS.sample(rng, n_envs)
    obs = random_observations(space, n_envs, rng, tasks)
    for _ in range(n):
        changes = rng.random((n_envs, 1)) < p_task
        next_tasks = np.where(changes, GOALS.sample(rng, n_envs), tasks)
        next_obs = random_observations(space, n_envs, rng, next_tasks)
        features = GOALS.sample(rng, n_envs)
        rewards, terminated = GOALS.reward(features, tasks), GOALS.terminated(features, tasks)
        truncated = ~terminated & (rng.random(n_envs) < 0.1)
        infos = [{"task_features": f, "TimeLimit.truncated": bool(t)} for f, t in zip(features, truncated, strict=True)]
        actions = rng.uniform(-1, 1, size=(n_envs, 1)).astype(np.float32)
        done = terminated | truncated
        for buffer in buffers:
            buffer.add(*copy.deepcopy((obs, next_obs, actions, rewards, done, infos)))
        breaks = done | (rng.random(n_envs) < p_break)
        tasks = np.where(breaks[:, None], GOALS.sample(rng, n_envs), next_tasks)
        obs = select(breaks, random_observations(space, n_envs, rng, tasks), next_obs)


def assert_same_rows(ours: HIPIReplayBuffer, theirs: ReplayBuffer) -> None:
    """Every row of every environment, as both sample it."""
    rows = np.tile(np.arange(ours.size()), 8 * ours.n_envs)
    samples = []
    for buffer in (ours, theirs):
        np.random.seed(0)
        samples.append(buffer._get_samples(rows))
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        a, b = getattr(samples[0], name), getattr(samples[1], name)
        if isinstance(a, dict):
            assert list(a) == list(b)
        for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
            assert x.dtype == y.dtype or y.dtype.is_floating_point
            assert_array_equal(x.numpy(), y.numpy().astype(x.numpy().dtype))


def pair(space: spaces.Space, size: int, n_envs: int, **kwargs: Any) -> tuple[HIPIReplayBuffer, ReplayBuffer]:
    """An empty buffer of ours and one of stable-baselines3."""
    reference = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
    return (
        HIPIReplayBuffer(size * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs, family=GOALS, strategy="none", **kwargs),
        reference(size * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs),
    )


# -- equality with two arrays of observations -------------------------------------------------------------------------


@pytest.mark.parametrize("space", [DICT_SPACE, FLAT_SPACE, IMAGES], ids=["Dict", "flat", "images"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("p_break", "p_task"), [(0.0, 0.0), (0.2, 0.0), (1.0, 0.0), (0.1, 0.2)])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_every_row_is_what_a_buffer_with_two_arrays_returns(
    space: spaces.Space, n_envs: int, p_break: float, p_task: float, size: int
) -> None:
    rng = np.random.default_rng(size)
    ours, theirs = pair(space, size, n_envs)
    for n in (1, 7, 9, 1, 40):  # not full, full at once, wrapped, wrapped several times
        add_random_steps([ours, theirs], space, n_envs, n, rng, p_break, p_task)
        assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
        assert_same_rows(ours, theirs)
        assert_same_rows(copy.deepcopy(ours), theirs)
        assert_same_rows(pickle.loads(pickle.dumps(ours)), theirs)
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            assert_array_equal(ours.observations[key], theirs.observations[key].astype(ours.observations[key].dtype))
            assert_array_equal(
                ours.next_observations[key], theirs.next_observations[key].astype(ours.next_observations[key].dtype)
            )


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_copy_goes_on_as_the_original(n_envs: int) -> None:
    ours, theirs = pair(DICT_SPACE, 20, n_envs)
    add_random_steps([ours, theirs], DICT_SPACE, n_envs, 33, np.random.default_rng(0), 0.1, 0.0)
    twin = pickle.loads(pickle.dumps(ours))
    add_random_steps([ours, theirs, twin], DICT_SPACE, n_envs, 50, np.random.default_rng(1), 0.1, 0.0)
    assert_same_rows(ours, theirs)
    assert_same_rows(twin, theirs)
    assert_array_equal(ours.episodes.end, twin.episodes.end)


def test_what_the_caller_does_with_its_arrays_later_does_not_reach_the_buffer() -> None:
    buffer, obs = goal_buffer(), {"observation": np.ones((1, 2), np.float32), "task": np.ones((1, 1), np.float32)}
    buffer.add(obs, obs, np.zeros((1, 1)), np.array([-1.0]), np.array([False]), [{"task_features": np.zeros(1)}])
    obs["observation"][:] = obs["task"][:] = 7
    for stored in (buffer.observations, buffer.next_observations):
        assert stored["observation"][0].max() == stored["task"][0].max() == 1


def test_looking_at_all_rows_is_read_only_so_that_nothing_written_is_lost() -> None:
    buffer = goal_buffer(6)
    fill(buffer, [[(0.1, 0.9, "")], [(0.2, 0.9, "limit")]])
    assert buffer.observations["observation"].shape == (6, 1, 2) and buffer.features.shape == (6, 1, 1)
    for array in (buffer.observations["task"], buffer.next_observations["observation"], buffer.features):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# -- episodes -----------------------------------------------------------------------------------------------------


def test_a_task_that_changes_within_an_episode_begins_another_one() -> None:
    # "future" must not take goals from beyond: an episode has one task.
    ours, theirs = pair(DICT_SPACE, 30, 1)
    add_random_steps([ours, theirs], DICT_SPACE, 1, 30, np.random.default_rng(0), 0.0, 0.4)
    tasks, next_tasks = ours.observations["task"][:, 0, 0], ours.next_observations["task"][:, 0, 0]
    changes = np.flatnonzero(tasks != next_tasks)
    assert len(changes) > 3
    assert_array_equal(ours.episodes.end[changes, 0], changes)


def naive_bounds(episode: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows of the same episode before and after each row; the rows are in the order in which they were added."""
    n = len(episode)
    before = [sum(1 for j in range(i) if episode[j] == episode[i]) for i in range(n)]
    return before, [sum(1 for j in range(i + 1, n) if episode[j] == episode[i]) for i in range(n)]


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_bounds_are_those_of_counting_and_slots_are_used_again(size: int) -> None:
    rng, n_envs = np.random.default_rng(size), 2
    index, number = EpisodeIndex(size, n_envs), np.zeros(n_envs, dtype=int)
    history: list[np.ndarray] = []
    for added in range(1, 150):
        index.add()
        history.append(number.copy())
        for env_index in np.flatnonzero(rng.random(n_envs) < 0.3):
            index.finish(env_index)
            number[env_index] += 1
        stored = np.array(history[-size:])
        rows = np.arange(max(0, added - size), added) % size
        for env_index in range(n_envs):
            found = index.bounds((rows, np.full(len(rows), env_index)))
            for mine, counted in zip(found, naive_bounds(stored[:, env_index]), strict=True):
                assert_array_equal(mine, counted)
        if added % 40 == 0:
            index = pickle.loads(pickle.dumps(index))
    assert index.n_used <= n_envs * (size + 1)


# -- memory -------------------------------------------------------------------------------------------------------


def test_a_transition_of_fetchreach_takes_less_than_84_bytes() -> None:
    # 10 observations, 4 actions, 3 features and a reward are 72 of them, three flags 3, the number of the episode 4.
    space = spaces.Dict(observation=spaces.Box(-np.inf, np.inf, (10,)), task=spaces.Box(-1.0, 1.0, (3,)))
    family = GoalReaching(low=[-1.0] * 3, high=[1.0] * 3, radius=0.05, terminate=False)
    actions = spaces.Box(-1.0, 1.0, (4,))
    buffer = HIPIReplayBuffer(5000, space, actions, device="cpu", family=family, strategy="none")
    rng = np.random.default_rng(0)
    for step in range(6000):
        if step % 50 == 0:
            obs = {"observation": rng.normal(size=(1, 10)), "task": family.sample(rng, 1)}
        next_obs = {"observation": rng.normal(size=(1, 10)), "task": obs["task"]}
        done = np.array([step % 50 == 49])
        info = {"task_features": np.zeros(3), "TimeLimit.truncated": bool(done[0])}
        buffer.add(obs, next_obs, np.zeros((1, 4)), family.reward(np.zeros((1, 3)), obs["task"]), done, [info])
        obs = next_obs
    assert 79 < buffer.nbytes / 5000 < 84
