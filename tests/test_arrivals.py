"""Steps that wait until they are stored: what is stored in the end is what storing each at once would have stored."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import ACTIONS, DICT_SPACE, FLAT_SPACE, GOALS
from numpy.testing import assert_array_equal

from hipi_sb3 import GoalReaching, HIPIReplayBuffer, arrivals

Step = tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


class ReadFromObservation(GoalReaching):
    """As the tasks of a GoalEnv: what a reward depends on is a part of the next observation."""

    task_key = "desired_goal"
    features_key = "achieved_goal"


GOAL_SPACE = spaces.Dict(
    observation=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    achieved_goal=spaces.Box(-1.0, 1.0, (1,), np.float32),
    desired_goal=GOALS.task_space,
)
KINDS: dict[str, tuple[GoalReaching, spaces.Space]] = {
    "Dict": (GOALS, DICT_SPACE),
    "flat": (GOALS, FLAT_SPACE),
    "GoalEnv": (ReadFromObservation([-1.0], [1.0], 0.15), GOAL_SPACE),
}


def make_buffer(kind: str, n_envs: int = 1, size: int = 200, **options: Any) -> HIPIReplayBuffer:
    family, space = KINDS[kind]
    options = {"strategy": "none", "family": copy.copy(family), **options}
    return HIPIReplayBuffer(size * n_envs, space, ACTIONS, "cpu", n_envs=n_envs, **options)


def observations(kind: str, places: np.ndarray, clock: np.ndarray, tasks: np.ndarray) -> Any:
    inner = np.stack([places, clock], axis=1).astype(np.float32)
    if kind == "flat":
        return np.concatenate([inner, tasks], axis=1)
    if kind == "Dict":
        return {"observation": inner, "task": tasks}
    return {"observation": inner, "achieved_goal": places[:, None].astype(np.float32), "desired_goal": tasks}


def walk(kind: str, n: int, n_envs: int = 1, seed: int = 0, p_left: float = 0.05) -> Iterator[Step]:
    """Steps of environments that end at different steps, and are sometimes left in the middle of an episode."""
    rng = np.random.default_rng(seed)
    places, clock, tasks = rng.uniform(-1, 1, n_envs), np.zeros(n_envs), GOALS.sample(rng, n_envs)
    for _ in range(n):
        after = np.clip(places + rng.normal(0, 0.2, n_envs), -1, 1)
        features = after[:, None].astype(np.float32)
        terminated = GOALS.terminated(features, tasks) | (rng.random(n_envs) < 0.05)
        truncated = ~terminated & (rng.random(n_envs) < 0.1)
        infos = [{"task_features": f, "TimeLimit.truncated": bool(t)} for f, t in zip(features, truncated, strict=True)]
        yield (
            observations(kind, places, clock, tasks),
            observations(kind, after, clock + 1, tasks),
            rng.uniform(-1, 1, (n_envs, 1)).astype(np.float32),
            GOALS.reward(features, tasks),
            terminated | truncated,
            infos,
        )
        anew = terminated | truncated | (rng.random(n_envs) < p_left)
        places, clock = np.where(anew, rng.uniform(-1, 1, n_envs), after), np.where(anew, 0, clock + 1)
        tasks = np.where(anew[:, None], GOALS.sample(rng, n_envs), tasks)


def assert_same(a: HIPIReplayBuffer, b: HIPIReplayBuffer) -> None:
    """All that two buffers hold is the same, also which rows belong together and which episodes are recent."""
    assert (a.pos, a.full, a.size()) == (b.pos, b.full, b.size())
    for name in ("actions", "rewards", "dones", "timeouts", "env_terminated", "features", "observations", "next_observations"):
        mine, other = getattr(a, name), getattr(b, name)
        for key in mine if isinstance(mine, dict) else [...]:
            assert_array_equal(mine[key], other[key], err_msg=name)
    assert_array_equal(a.episodes.end, b.episodes.end)
    at = np.indices((a.size(), a.n_envs))
    for mine, other in zip(a.episodes.bounds(tuple(at)), b.episodes.bounds(tuple(at)), strict=True):
        assert_array_equal(mine, other)
    assert_array_equal(a.episodes.recent(), b.episodes.recent())


# -- many at a time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 150])
def test_who_reads_seldom_finds_what_who_reads_each_step_does(kind: str, n_envs: int, size: int) -> None:
    each, seldom, never = (make_buffer(kind, n_envs, size) for _ in range(3))
    for number, step in enumerate(walk(kind, 400, n_envs)):
        for buffer in (each, seldom, never):
            buffer.add(*step)
        assert len(each.experience) == each.size()
        assert (each.pos, each.full) == (seldom.pos, seldom.full) == (never.pos, never.full)
        if number % 37 == 0:
            assert_same(each, seldom)
            seldom = pickle.loads(pickle.dumps(seldom)) if number % 2 else copy.deepcopy(seldom)
    assert_same(each, seldom)
    assert_same(each, never)


def n_waiting(buffer: HIPIReplayBuffer) -> int:
    return len(buffer._arrivals._rows)


def test_64_steps_are_stored_at_once_and_whatever_reads_stores_them(tmp_path: Any) -> None:
    buffer, waiting = make_buffer("Dict", size=1000), []
    for step in walk("Dict", 400):
        buffer.add(*step)
        waiting.append(n_waiting(buffer))
    assert max(waiting) == 63 and waiting[:4] == [0, 0, 1, 0] and waiting.count(0) < 15
    assert n_waiting(buffer) > 0 and buffer.size() == 400
    for read in (
        lambda: buffer.sample(3),
        lambda: buffer.rewards,
        lambda: buffer.nbytes,
        lambda: pickle.dumps(buffer),
        lambda: copy.deepcopy(buffer),
        lambda: buffer.save(tmp_path / "buffer"),
        lambda: buffer.preview(3),
    ):
        for step in walk("Dict", 2):
            buffer.add(*step)
        assert n_waiting(buffer) > 0
        read()
        assert n_waiting(buffer) == 0


def test_a_buffer_that_an_earlier_version_pickled_is_refused() -> None:
    buffer = make_buffer("Dict")
    state = buffer.__getstate__() | {"experience": buffer.experience}
    with pytest.raises(ValueError, match=r"earlier version.*buffer\.save\(folder\).*HIPIReplayBuffer\.load"):
        buffer.__setstate__(state)


def test_large_observations_do_not_wait() -> None:
    space = spaces.Dict(camera=spaces.Box(0, 255, (3, 300, 300), np.uint8), task=GOALS.task_space)
    buffer = HIPIReplayBuffer(50, space, ACTIONS, "cpu", family=GOALS, strategy="none")
    for number in range(20):
        obs, next_obs = ({"camera": np.full((1, 3, 300, 300), n, np.uint8), "task": np.ones((1, 1))} for n in (0, number))
        infos = [{"task_features": np.zeros(1)}]
        buffer.add(obs, next_obs, np.zeros((1, 1)), np.array([-1.0]), np.array([False]), infos)
        assert n_waiting(buffer) < 2
    assert buffer.next_observations["camera"][:20, 0, 0, 0, 0].tolist() == list(range(20))


def test_tasks_that_must_be_asked_at_once_are() -> None:
    buffer = make_buffer("GoalEnv")
    assert buffer.family is not None
    buffer.family.can_wait = False
    for step in walk("GoalEnv", 50):
        buffer.add(*step)
        assert n_waiting(buffer) == 0


# -- copies ---------------------------------------------------------------------------------------------------------


def used_again(steps: Iterator[Step]) -> Iterator[Step]:
    """The same steps, in arrays and infos that are the same objects each time."""
    held: list[Any] = []

    def write(mine: Any, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                if isinstance(part, np.ndarray):
                    write(mine[key], part)
                else:
                    mine[key] = part
        elif isinstance(value, list):
            for one, other in zip(mine, value, strict=True):
                write(one, other)
        else:
            mine[...] = value

    for step in steps:
        held = held or [copy.deepcopy(part) for part in step]
        for mine, value in zip(held, step, strict=True):
            write(mine, value)
        yield tuple(held)  # type: ignore[misc]


def filled(kind: str, steps: Iterator[Step]) -> HIPIReplayBuffer:
    buffer = make_buffer(kind, 2)
    for step in steps:
        buffer.add(*step)
    return buffer


@pytest.mark.parametrize("kind", KINDS)
def test_environments_may_use_their_arrays_and_infos_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = filled(kind, walk(kind, 130, 2))
    assert_same(filled(kind, used_again(walk(kind, 130, 2))), expected)
    monkeypatch.setattr(arrivals, "_TO_BYTES", memoryview)  # without a copy it would show
    with pytest.raises((AssertionError, ValueError)):
        assert_same(filled(kind, used_again(walk(kind, 130, 2))), expected)


# -- faults ---------------------------------------------------------------------------------------------------------


def changed(step: Step, fault: str) -> Step:
    obs, next_obs, action, reward, done, infos = copy.deepcopy(step)
    if fault == "shape":
        obs["observation"] = obs["observation"][:, :1]
    elif fault == "NaN":
        action[0] = np.nan
    elif fault == "action":
        action = np.zeros((1, 2), np.float32)
    elif fault == "rewards":
        reward = np.zeros(2, np.float32)
    elif fault == "dones":
        done = np.zeros(2, dtype=bool)
    elif fault == "features":
        del infos[0]["task_features"]
    elif fault == "size of features":
        infos[0]["task_features"] = np.zeros(3, np.float32)
    else:
        next_obs["desired_goal"] = obs["desired_goal"] + 0.1
    return obs, next_obs, action, reward, done, infos


FAULTS = {
    "shape": ("Dict", r"cannot reshape array of size 1 into shape \(1,2\)"),
    "NaN": ("Dict", "An action is NaN"),
    "action": ("Dict", "actions must hold 1 numbers for each of 1 environments"),
    "rewards": ("Dict", "reward must hold one number an environment"),
    "dones": ("Dict", "done must say of each environment whether its episode ended"),
    "features": ("Dict", "info has no 'task_features'"),
    "size of features": ("Dict", r"cannot reshape array of size 3 into shape \(1,\)"),
    "goal": ("GoalEnv", "desired_goal of environment 0 changed within an episode"),
}


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_with_a_fault_is_refused_at_once_and_the_others_are_stored(fault: str, reads: bool) -> None:
    kind, message = FAULTS[fault]
    buffer, expected = make_buffer(kind), make_buffer(kind)
    for number, step in enumerate(walk(kind, 60)):
        if number in (0, 1, 13, 50):
            with pytest.raises(ValueError, match=message):
                buffer.add(*changed(step, fault))
            assert buffer.size() == number
        buffer.add(*step)
        expected.add(*step)
        if reads:
            assert len(buffer.experience) == number + 1
    assert_same(buffer, expected)


def test_steps_of_another_type_are_stored_with_those_before_them() -> None:
    buffer, expected = make_buffer("Dict"), make_buffer("Dict")
    for number, (obs, next_obs, action, reward, done, infos) in enumerate(walk("Dict", 90)):
        expected.add(obs, next_obs, action, reward, done, infos)
        if number % 20 > 10:
            obs, next_obs = ({key: part.astype(np.float64) for key, part in parts.items()} for parts in (obs, next_obs))
            reward, done, action = reward.tolist(), done.astype(int), action.tolist()
        buffer.add(obs, next_obs, action, reward, done, infos)
    assert_same(buffer, expected)


class Fails(GoalReaching):
    """Cannot say what a step in a certain place is worth."""

    def features_of_steps(self, next_obs: Any, tasks: Any, rewards: Any, from_infos: Any) -> np.ndarray:
        if (from_infos > 1).any():
            raise RuntimeError("too far")
        return super().features_of_steps(next_obs, tasks, rewards, from_infos)


@pytest.mark.parametrize("reads", [False, True])
def test_tasks_that_fail_leave_all_that_came_before(reads: bool) -> None:
    buffer, expected = make_buffer("Dict", family=Fails([-1.0], [1.0], 0.15)), make_buffer("Dict")
    with pytest.raises(RuntimeError, match="too far"):
        for number, step in enumerate(walk("Dict", 100)):
            if number == 45:
                step[-1][0]["task_features"] = np.full(1, 2.0, np.float32)
            buffer.add(*step)
            if number < 45:
                expected.add(*step)
            if number == 50 and reads:
                assert buffer.size() == 51
                buffer.sample(2)
    assert_same(buffer, expected)
    for step in walk("Dict", 20, seed=1):
        buffer.add(*step)
        expected.add(*step)
    assert_same(buffer, expected)


def test_an_observation_that_is_nan_continues_what_led_to_it() -> None:
    buffer = make_buffer("Dict", 2)
    for clock in range(6):  # environment 1 begins a new episode, which must not break that of environment 0
        obs, next_obs = (
            observations("Dict", np.array([np.nan, 0.1 * (k % 3)]), np.array([np.nan, k]), np.full((2, 1), 0.9, np.float32))
            for k in (clock, clock + 1)
        )
        infos = [{"task_features": np.zeros(1, np.float32)}] * 2
        done = np.array([False, clock % 3 == 2])
        buffer.add(obs, next_obs, np.zeros((2, 1), np.float32), np.full(2, -1.0, np.float32), done, infos)
    assert buffer.episodes.ahead((np.zeros(2, int), np.arange(2))).tolist() == [5, 2]
