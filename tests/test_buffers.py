"""The replay buffer, filled by hand: what is stored, what is sampled, what is recomputed. Training is in test_algorithms."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import (
    ACTIONS,
    DICT_SPACE,
    FLAT_SPACE,
    GOALS,
    Step,
    add_step,
    directions,
    fill,
    goal_buffer,
    observation,
    one_task,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chi2_contingency
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from hipi_sb3 import HIPIReplayBuffer, TargetVelocity
from hipi_sb3.experience.layout import TaskLayout
from hipi_sb3.relabel.posterior import Inference
from hipi_sb3.relabel.strategies import RelabelRows, Strategy

#: Seven transitions of one environment: an episode that reaches its goal, one that the environment ends, one that the time
#: limit ends at 0.5, and the start of another. (position reached, commanded goal, how it ended)
SEVEN: list[list[Step]] = [
    [(0.1, 0.3, "")],
    [(0.3, 0.3, "task")],
    [(0.9, -0.9, "")],
    [(0.7, -0.9, "env")],
    [(0.4, -0.5, "")],
    [(0.5, -0.5, "limit")],
    [(0.0, 0.8, "")],
]


class AssignTask(Strategy):
    """Relabels every row with one given task."""

    needs_candidates = False

    def __init__(self, task: float) -> None:
        self.task = task

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return np.full_like(rows.commanded, self.task)


def all_rows(buffer: HIPIReplayBuffer) -> Any:
    """Samples of every row in the order in which they are stored; one environment."""
    assert buffer.n_envs == 1
    return buffer._get_samples(np.arange(buffer.size()))


def split(obs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inner observation and task of sampled observations, Dict or flat."""
    if isinstance(obs, dict):
        return obs["observation"].numpy(), obs["task"].numpy()
    return obs[:, :-1].numpy(), obs[:, -1:].numpy()


# -- what a relabeled row says -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_rows_that_are_not_relabeled_are_what_happened(flat: bool) -> None:
    buffer = goal_buffer(flat=flat)
    fill(buffer, SEVEN, flat)
    rows = all_rows(buffer)
    inner, task = split(rows.observations)
    next_inner, next_task = split(rows.next_observations)
    assert_allclose(inner, [[0, clock] for clock in range(7)])
    assert_allclose(next_inner[:, 1], [1, 1.5, 3, 3.5, 5, 5.5, 7])
    assert_allclose(task[:, 0], [0.3, 0.3, -0.9, -0.9, -0.5, -0.5, 0.8])
    assert_array_equal(task, next_task)
    assert_allclose(rows.actions[:, 0], 0.01 * np.arange(7))
    assert_allclose(rows.rewards[:, 0], [-1, 0, -1, -1, -1, -1, -1])
    assert_allclose(rows.dones[:, 0], [0, 1, 0, 1, 0, 0, 0])  # the time limit bootstraps
    for array in (rows.rewards, rows.dones):
        assert array.shape == (7, 1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("task", "rewards", "dones"),
    [
        # Row 1 ended because it reached 0.3, not because of the environment: for another goal it goes on.
        (-0.9, [-1, -1, -1, -1, -1, -1, -1], [0, 0, 0, 1, 0, 0, 0]),
        # Rows 4 and 5 (truncated by the time limit) fulfil 0.45; row 3 ends in any case.
        (0.45, [-1, 0, -1, -1, 0, 0, -1], [0, 1, 0, 1, 1, 1, 0]),
        # Row 3, which the environment ended, fulfils 0.7 too.
        (0.7, [-1, -1, -1, 0, -1, -1, -1], [0, 0, 0, 1, 0, 0, 0]),
        (0.05, [0, -1, -1, -1, -1, -1, 0], [1, 0, 0, 1, 0, 0, 1]),
    ],
)
def test_reward_and_termination_are_those_of_the_new_task(
    flat: bool, task: float, rewards: list[float], dones: list[float]
) -> None:
    buffer = goal_buffer(flat=flat, strategy=AssignTask(task))
    fill(buffer, SEVEN, flat)
    rows = all_rows(buffer)
    assert_allclose(rows.rewards[:, 0], rewards)
    assert_allclose(rows.dones[:, 0], dones)
    # The task of obs and next_obs is the new one, and nothing else of them changes.
    for obs, clock in ((rows.observations, np.arange(7)), (rows.next_observations, [1, 1.5, 3, 3.5, 5, 5.5, 7])):
        inner, label = split(obs)
        assert_allclose(label, np.full((7, 1), task))
        assert_allclose(inner[:, 1], clock)


def test_both_sides_of_the_radius() -> None:
    # In float32, as stored: 0.25 + 0.125 lies within a radius of 0.15, 0.25 + 0.1875 does not.
    buffer = goal_buffer(strategy=AssignTask(0.25))
    fill(buffer, [[(0.25 + 0.125, -0.5, "limit")], [(0.25 + 0.1875, -0.5, "limit")]])
    rows = all_rows(buffer)
    assert_allclose(rows.rewards[:, 0], [0, -1])
    assert_allclose(rows.dones[:, 0], [1, 0])


def test_an_environment_that_ends_where_the_task_does_stays_ended() -> None:
    buffer = goal_buffer(strategy=AssignTask(-0.9))
    fill(buffer, [[(0.3, 0.3, "task+env")], [(0.3, 0.3, "task")]])
    assert_allclose(all_rows(buffer).dones[:, 0], [1, 0])


def test_an_end_that_no_one_explains_is_taken_as_the_environments() -> None:
    # A wrapper outside MultiTaskWrapper ended the episode: neither the task nor the time limit nor the inner environment.
    buffer = goal_buffer(strategy=AssignTask(-0.9))
    obs = {key: value[None] for key, value in observation(0, 0, 0.3, flat=False).items()}
    buffer.add(obs, obs, np.zeros((1, 1)), np.array([-1.0]), np.array([True]), [{"task_features": np.array([0.8])}])
    assert_allclose(all_rows(buffer).dones, 1)


def test_without_timeout_handling_the_time_limit_ends_whatever_the_task() -> None:
    for strategy in ("none", AssignTask(-0.9)):
        buffer = goal_buffer(strategy=strategy, handle_timeout_termination=False)
        fill(buffer, SEVEN)
        assert all_rows(buffer).dones[5] == 1


def test_relabeling_overwrites_nothing() -> None:
    buffer = goal_buffer(strategy=AssignTask(0.45))
    fill(buffer, SEVEN)
    before = copy.deepcopy(buffer)
    for _ in range(3):
        buffer.sample(50)
    for key in ("observations", "next_observations"):
        assert_array_equal(getattr(buffer, key)["task"], getattr(before, key)["task"])
    for key in ("rewards", "dones", "timeouts", "env_terminated", "features"):
        assert_array_equal(getattr(buffer, key), getattr(before, key))
    assert_array_equal(buffer.episodes.end, before.episodes.end)


def test_sampled_tensors_share_no_memory_with_the_buffer() -> None:
    buffer = goal_buffer()
    fill(buffer, SEVEN)
    all_rows(buffer).observations["task"].fill_(99)
    all_rows(buffer).rewards.fill_(99)
    assert buffer.rewards.max() == 0 and buffer.observations["task"].max() < 1


@pytest.mark.parametrize("flat", [False, True])
def test_layout_reads_and_replaces_the_task_of_single_and_batched_observations(flat: bool) -> None:
    layout = TaskLayout(None if flat else "task", 1)
    single = observation(0, 3.0, 0.5, flat)
    assert_array_equal(layout.get(single), np.float32([0.5]))
    assert_array_equal(layout.get(layout.put(single, np.float32([0.7]))), np.float32([0.7]))
    assert_array_equal(layout.get(single), np.float32([0.5]))


# -- the ring, several environments, episodes ----------------------------------------------------------------------


def walk(n_envs: int, lengths: list[list[int]], total: int) -> list[list[Step]]:
    """
    ``total`` steps of environments whose episodes have the given lengths; the position reached at clock t is 0.01 t, the
    commanded goal -0.9. Episodes end by the time limit.
    """
    ends = [set(np.cumsum(length) - 1) for length in lengths]
    return [[(0.01 * clock, -0.9, "limit" if clock in ends[e] else "") for e in range(n_envs)] for clock in range(total)]


def sampled_clocks(buffer: HIPIReplayBuffer, n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Environment, clock of the row, and clock at which its label was achieved, of many samples."""
    rows = buffer.sample(n)
    inner, task = split(rows.observations)
    return inner[:, 0].astype(int), inner[:, 1].astype(int), np.rint(100 * task[:, 0]).astype(int)


def last_of_episode(length: list[int], clock: int, total: int) -> int:
    ends = np.cumsum(length) - 1
    later = ends[ends >= clock]
    return min(int(later[0]) if len(later) else total - 1, total - 1)


@pytest.mark.parametrize("strategy", ["final", "future"])
@pytest.mark.parametrize("total", [5, 8, 10, 13, 27])
def test_goals_come_from_the_own_episode_and_never_from_the_past(strategy: str, total: int) -> None:
    # Ten slots for each of three environments: not yet full, exactly full, wrapped once and twice; some episodes unfinished.
    lengths = [[3, 4, 5, 6, 7, 8], [10, 2, 2, 9, 9], [1, 1, 1, 6, 4, 4, 4, 4, 4]]
    buffer = goal_buffer(buffer_size=10, n_envs=3, strategy=strategy)
    fill(buffer, walk(3, lengths, total))
    envs, clocks, goals = sampled_clocks(buffer)
    last = np.array([last_of_episode(lengths[e], clock, total) for e, clock in zip(envs, clocks, strict=True)])
    if strategy == "final":
        assert_array_equal(goals, last)
    else:
        assert np.all((goals >= clocks) & (goals <= last))
        pairs = {(e, c, g) for e, c, g in zip(envs, clocks, goals, strict=True)}
        possible = {
            (e, c, g)
            for e in range(3)
            for c in range(max(0, total - 10), total)
            for g in range(c, last_of_episode(lengths[e], c, total) + 1)
        }
        assert pairs == possible  # every own future, the present included, unfinished episodes too
    assert set(clocks) == set(range(max(0, total - 10), total))  # the last ten, no others


def test_with_three_environments_rows_keep_to_their_environment() -> None:
    buffer = goal_buffer(buffer_size=4, n_envs=3, strategy=AssignTask(0.25))
    steps: list[list[Step]] = [
        [(0.3, 0.3, "task"), (0.1, 0.9, ""), (0.9, -0.9, "env")],
        [(-0.5, 0.3, ""), (0.2, 0.9, "limit"), (0.3, -0.9, "")],
    ]
    fill(buffer, steps)
    rows = buffer.sample(300)
    inner, _ = split(rows.observations)
    expected_reward = np.array([[0, 0, -1], [-1, 0, 0]])
    expected_done = np.array([[1, 1, 1], [0, 1, 1]])
    env_index, clock = inner[:, 0].astype(int), inner[:, 1].astype(int)
    assert {(e, c) for e, c in zip(env_index, clock, strict=True)} == {(e, c) for e in range(3) for c in range(2)}
    assert_allclose(rows.rewards[:, 0], expected_reward[clock, env_index])
    assert_allclose(rows.dones[:, 0], expected_done[clock, env_index])


def test_an_episode_longer_than_the_buffer_keeps_its_last_rows() -> None:
    buffer = goal_buffer(buffer_size=5, strategy="final")
    fill(buffer, walk(1, [[13]], total=13))
    _, clocks, goals = sampled_clocks(buffer, 200)
    assert set(clocks) == {8, 9, 10, 11, 12}
    assert set(goals) == {12}
    fill(buffer, walk(1, [[13, 2]], total=15)[13:], start=13)
    _, clocks, goals = sampled_clocks(buffer, 200)
    assert {(c, g) for c, g in zip(clocks, goals, strict=True)} == {(10, 12), (11, 12), (12, 12), (13, 14), (14, 14)}


def test_an_episode_that_was_left_in_the_middle_ends_there() -> None:
    # learn() starts anew after clock 2: the observation at 10 does not continue the one at 3, and there was no done.
    buffer = goal_buffer(strategy="final")
    fill(buffer, walk(1, [[100]], total=3))
    assert set(sampled_clocks(buffer)[2]) == {2}
    fill(buffer, [[(0.5, -0.9, "")], [(0.6, -0.9, "")]], start=10)
    rows = all_rows(buffer)
    assert_allclose(split(rows.observations)[1][:, 0], [0.02, 0.02, 0.02, 0.6, 0.6], rtol=1e-6)
    assert not buffer.dones.any()  # left, not terminated


def test_only_the_environment_that_was_left_ends() -> None:
    buffer = goal_buffer(n_envs=2, strategy="final")
    fill(buffer, walk(2, [[100], [100]], total=3))

    def add_with_first_restarted(obs: Any, *args: Any) -> None:
        obs["observation"][0, 1] = 50.0
        buffer.add(obs, *args)

    add_step(add_with_first_restarted, 3, [(0.7, -0.9, ""), (0.8, -0.9, "")])
    assert_array_equal(buffer.episodes.end[:4], [[2, -1], [2, -1], [2, -1], [-1, -1]])


def test_a_new_task_in_the_same_place_is_a_new_episode() -> None:
    buffer = goal_buffer(strategy="final")
    fill(buffer, [[(0.1, -0.9, "")], [(0.2, 0.9, "")]])
    assert_array_equal(buffer.episodes.end[:2, 0], [0, -1])


def test_reset_forgets_transitions_and_open_episodes() -> None:
    buffer = goal_buffer(strategy="final")
    fill(buffer, walk(1, [[100]], total=3))
    buffer.reset()
    with pytest.raises(RuntimeError, match="replay buffer is empty"):
        buffer.sample(1)
    fill(buffer, walk(1, [[100]], total=2))
    assert set(sampled_clocks(buffer)[2]) == {1}
    assert_array_equal(buffer.episodes.end[:2, 0], -1)


def test_a_buffer_is_divided_among_its_environments() -> None:
    assert goal_buffer(buffer_size=10, n_envs=3).observations["task"].shape == (10, 3, 1)
    buffer = HIPIReplayBuffer(2, DICT_SPACE, ACTIONS, n_envs=3, family=GOALS)
    assert buffer.buffer_size == 1


# -- equivalence with stable-baselines3 ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("total", [6, 25])
@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize(
    ("flat", "reference", "space"), [(False, DictReplayBuffer, DICT_SPACE), (True, ReplayBuffer, FLAT_SPACE)]
)
def test_no_relabeling_equals_the_buffer_of_sb3(
    flat: bool, reference: type[ReplayBuffer], space: spaces.Space, n_envs: int, total: int, timeouts: bool
) -> None:
    steps = walk(n_envs, [[3, 5, 4, 6, 7], [2, 2, 9, 9], [1, 7, 7, 7]][:n_envs], total)
    mine = goal_buffer(10, n_envs, flat, handle_timeout_termination=timeouts)
    theirs = reference(10 * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs, handle_timeout_termination=timeouts)
    fill(mine, steps, flat)
    fill(theirs, steps, flat)
    for seed in range(3):
        samples = []
        for buffer in (mine, theirs):
            np.random.seed(seed)
            samples.append(buffer.sample(40))
            samples.append(np.random.randint(2**31))  # the global generator is left in the same state
        assert samples[1] == samples[3]
        for name in ("observations", "actions", "next_observations", "dones", "rewards"):
            a, b = getattr(samples[0], name), getattr(samples[2], name)
            for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
                assert x.dtype == y.dtype
                assert_array_equal(x, y)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("total", [6, 10, 25])
def test_n_step_returns_without_relabeling_equal_those_of_sb3(n_envs: int, total: int) -> None:
    steps = walk(n_envs, [[3, 5, 4, 6, 7], [2, 2, 9, 9], [1, 7, 7, 7]][:n_envs], total)
    for clock, env_index, end in ((4, 0, "env"), (12, 0, "task")):  # so that not every end is a time limit
        if clock < total:
            steps[clock][env_index] = (0.3, 0.3 if end == "task" else -0.9, end)
    mine = goal_buffer(10, n_envs, flat=True, n_steps=3, gamma=0.9)
    theirs = NStepReplayBuffer(10 * n_envs, FLAT_SPACE, ACTIONS, device="cpu", n_envs=n_envs, n_steps=3, gamma=0.9)
    fill(mine, steps, flat=True)
    fill(theirs, steps, flat=True)
    samples: list[Any] = []
    for buffer in (mine, theirs):
        np.random.seed(0)
        samples.append(buffer.sample(200))
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        assert_allclose(getattr(samples[0], name), getattr(samples[1], name), rtol=1e-6)
    going_on = samples[0].dones == 0  # a terminated window has nothing to discount
    assert_allclose(samples[0].discounts[going_on], samples[1].discounts[going_on], rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "returns", "dones", "next_clock", "discounts"),
    [
        # Nothing but the environment's end of row 3 terminates; rows 1 and 5 end their episodes.
        (
            -0.9,
            [-1.5, -1, -1.5, -1, -1.5, -1, -1],
            [0, 0, 1, 1, 0, 0, 0],
            [1.5, 1.5, 3.5, 3.5, 5.5, 5.5, 7],
            [2, 1, 0, 0, 2, 1, 1],
        ),
        # Rows 1, 4 and 5 fulfil 0.45: windows end there.
        (0.45, [-1, 0, -1.5, -1, 0, 0, -1], [1, 1, 1, 1, 1, 1, 0], [1.5, 1.5, 3.5, 3.5, 5, 5.5, 7], [0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_a_window_of_n_steps_is_judged_by_its_new_task_as_a_whole(
    task: float, returns: list[float], dones: list[float], next_clock: list[float], discounts: list[int]
) -> None:
    buffer = goal_buffer(strategy=AssignTask(task), n_steps=3, gamma=0.5)
    fill(buffer, SEVEN)
    rows = all_rows(buffer)
    assert_allclose(rows.rewards[:, 0], returns)
    assert_allclose(rows.dones[:, 0], dones)
    inner, label = split(rows.next_observations)
    assert_allclose(inner[:, 1], next_clock)
    assert_allclose(label, np.full((7, 1), task))
    for done, found, n_steps in zip(dones, rows.discounts[:, 0], discounts, strict=True):
        assert done or found == 0.5**n_steps


@pytest.mark.parametrize("options", [{"relabel_prob": 0.0, "strategy": "future"}, {"relabel_prob": 1.0, "strategy": "none"}])
def test_relabeling_no_row_is_no_relabeling(options: dict[str, Any]) -> None:
    expected, found = goal_buffer(), goal_buffer(**options)
    for buffer in (expected, found):
        fill(buffer, SEVEN)
    np.random.seed(0)
    a = expected.sample(30)
    np.random.seed(0)
    b = found.sample(30)
    assert_array_equal(a.observations["task"], b.observations["task"])
    assert_array_equal(a.rewards, b.rewards)


def her_buffer(buffer_size: int, strategy: str) -> HerReplayBuffer:
    """SB3's HER, whose desired goal is the task and whose achieved goal is the position."""
    goal = GOALS.task_space
    space = spaces.Dict({"observation": DICT_SPACE["observation"], "achieved_goal": goal, "desired_goal": goal})
    no_env: Any = None
    return HerReplayBuffer(buffer_size, space, ACTIONS, no_env, device="cpu", goal_selection_strategy=strategy)


def add_to_her(her: HerReplayBuffer) -> Any:
    def add(obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        reached = np.stack([info["task_features"] for info in infos])
        both = [
            {"observation": o["observation"], "achieved_goal": reached, "desired_goal": o["task"]} for o in (obs, next_obs)
        ]
        her.add(*both, action, reward, done, infos)

    return add


@pytest.mark.parametrize("total", [10, 15, 23])
@pytest.mark.parametrize("strategy", ["final", "future", "episode"])
def test_goals_are_drawn_with_the_frequencies_of_sb3s_her(strategy: str, total: int) -> None:
    # Episodes of 4, 6, 5, 8 steps in 15 slots; at 23 steps the ring has wrapped.
    lengths, n_draws = [4, 6, 5, 8], 3000
    steps = walk(1, [lengths], total)
    mine, her = goal_buffer(15, strategy=strategy), her_buffer(15, strategy)
    for clock, step in enumerate(steps):
        add_step(mine.add, clock, step)
        add_step(add_to_her(her), clock, step)
    np.random.seed(0)
    finished = np.flatnonzero(her.ep_length[: mine.size(), 0] > 0)
    assert len(finished) >= 10
    p_values = []
    for row in finished:
        rows = np.full(n_draws, row)
        theirs = np.rint(100 * her._sample_goals(rows, np.zeros_like(rows))[:, 0]).astype(int)
        ours = np.rint(100 * split(mine._get_samples(rows).observations)[1][:, 0]).astype(int)
        values = np.unique(theirs)
        assert_array_equal(np.unique(ours), values)  # the same goals, the present step included
        if len(values) > 1:
            table = [[np.sum(goals == value) for value in values] for goals in (ours, theirs)]
            p_values.append(chi2_contingency(table).pvalue)
    if p_values:
        assert min(p_values) > 0.01 / len(p_values)  # Bonferroni: 1 % for all rows together


# -- how many, and which -------------------------------------------------------------------------------------------


def test_relabel_prob_is_the_share_of_rows_that_are_relabeled() -> None:
    buffer = goal_buffer(strategy=AssignTask(0.45), relabel_prob=0.25)
    fill(buffer, SEVEN)
    np.random.seed(0)
    changed = split(buffer.sample(10_000).observations)[1][:, 0] == np.float32(0.45)
    assert abs(changed.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 10_000)  # four standard deviations of a binomial share


def test_rows_that_keep_their_task_keep_everything() -> None:
    buffer = goal_buffer(strategy=AssignTask(0.45), relabel_prob=0.5)
    fill(buffer, SEVEN)
    rows = buffer._get_samples(np.tile(np.arange(7), 50))
    inner, task = split(rows.observations)
    kept = task[:, 0] != np.float32(0.45)
    clock = inner[:, 1].astype(int)
    assert 100 < kept.sum() < 250
    assert_allclose(rows.rewards[kept, 0], np.array([-1, 0, -1, -1, -1, -1, -1])[clock[kept]])
    assert_allclose(rows.rewards[~kept, 0], np.array([-1, 0, -1, -1, 0, 0, -1])[clock[~kept]])
    assert_allclose(rows.dones[kept, 0], np.array([0, 1, 0, 1, 0, 0, 0])[clock[kept]])
    assert_allclose(rows.dones[~kept, 0], np.array([0, 1, 0, 1, 1, 1, 0])[clock[~kept]])


def finite_buffer(family: Any, strategy: Any) -> HIPIReplayBuffer:
    """Six transitions, each commanded with task ``clock % n_tasks``; reached positions 0, 0.1, ..."""
    n_tasks = len(family.tasks)
    space = spaces.Dict({"observation": DICT_SPACE["observation"], "task": family.task_space})
    buffer = HIPIReplayBuffer(10, space, ACTIONS, device="cpu", family=family, strategy=strategy, relabel_prob=1.0)
    for clock in range(6):
        task = np.eye(n_tasks, dtype=np.float32)[clock % n_tasks]
        features = np.array([0.1 * clock], dtype=np.float32)
        obs, next_obs = ({"observation": np.array([[0, c]], dtype=np.float32), "task": task[None]} for c in (clock, clock + 1))
        reward = family.reward(features, task)
        buffer.add(obs, next_obs, np.zeros((1, 1)), np.array([reward]), np.array([False]), [{"task_features": features}])
    return buffer


def test_random_labels_of_a_finite_family_follow_its_prior() -> None:
    prior = np.array([0.5, 0.3, 0.2])
    buffer = finite_buffer(directions(prior), "random")
    np.random.seed(0)
    rows = buffer.sample(10_000)
    share = rows.observations["task"].numpy().mean(axis=0)
    assert np.all(np.abs(share - prior) < 4 * np.sqrt(prior * (1 - prior) / 10_000))
    position = 0.1 * rows.observations["observation"][:, 1].numpy()
    by_task = np.stack([position, -position, -np.abs(position)], axis=1)
    assert_allclose(rows.rewards[:, 0], np.sum(by_task * rows.observations["task"].numpy(), axis=1), rtol=1e-6)


def test_with_one_task_nothing_changes() -> None:
    samples = []
    for strategy in ("none", "random"):
        buffer = finite_buffer(one_task(), strategy)
        np.random.seed(0)
        samples.append(buffer.sample(50))
    for name in ("observations", "next_observations"):
        for key in ("observation", "task"):
            assert_array_equal(getattr(samples[0], name)[key], getattr(samples[1], name)[key])
    for name in ("actions", "rewards", "dones"):
        assert_array_equal(getattr(samples[0], name), getattr(samples[1], name))


@pytest.mark.parametrize("strategy", ["future", "random"])
def test_two_buffers_with_one_seed_sample_the_same(strategy: str) -> None:
    samples = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        buffer = goal_buffer(strategy=strategy, relabel_prob=0.5)
        fill(buffer, SEVEN)
        samples.append([buffer.sample(50).observations["task"].numpy() for _ in range(3)])
    assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


def test_samples_before_and_after_a_pickle_go_on_alike() -> None:
    buffer = goal_buffer(strategy="future")
    fill(buffer, SEVEN)
    buffer.sample(10)
    restored = pickle.loads(pickle.dumps(buffer))
    np.random.seed(0)
    a = buffer.sample(50)
    np.random.seed(0)
    b = restored.sample(50)
    assert_array_equal(a.observations["task"], b.observations["task"])


class Recorder(Strategy):
    """Keeps the task, and remembers which rows it was shown."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        self.seen.append(rows.candidates().tasks)
        return rows.commanded


def test_candidates_come_from_the_whole_batch_not_only_from_the_relabeled_rows() -> None:
    recorder = Recorder()
    buffer = goal_buffer(strategy=recorder, relabel_prob=0.1, candidates="achieved", n_candidate_tasks=200)
    fill(buffer, SEVEN)
    np.random.seed(0)
    buffer.sample(200)
    assert_allclose(np.unique(recorder.seen[0]), np.unique([step[0][0] for step in SEVEN]), rtol=1e-6)


@pytest.mark.parametrize("candidates", ["batch", "achieved", "prior", {"batch": 0.2, "achieved": 0.3, "prior": 0.5}])
def test_every_source_of_candidates_relabels_from_the_buffer(candidates: Any) -> None:
    buffer = goal_buffer(strategy="random", candidates=candidates)
    fill(buffer, SEVEN)
    commanded, reached = np.float32([s[0][1] for s in SEVEN]), np.float32([s[0][0] for s in SEVEN])
    labels = split(buffer.sample(500).observations)[1][:, 0]
    drawn = {"batch": np.isin(labels, commanded), "achieved": np.isin(labels, reached)}
    drawn["prior"] = ~drawn["batch"] & ~drawn["achieved"]
    if isinstance(candidates, str):
        assert drawn[candidates].all()
    else:
        assert all(share.any() for share in drawn.values())


# -- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [4, 10, 17])
@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_copies_hold_the_same_transitions_and_go_their_own_way(make_copy: Any, total: int) -> None:
    lengths = [[3, 4, 20], [5, 1, 20]]
    buffer = goal_buffer(10, n_envs=2, strategy="final")
    fill(buffer, walk(2, lengths, total))
    twin = make_copy(buffer)
    np.random.seed(0)
    a = buffer.sample(60)
    np.random.seed(0)
    b = twin.sample(60)
    assert_array_equal(a.observations["task"], b.observations["task"])
    assert_array_equal(a.next_observations["observation"], b.next_observations["observation"])
    before = buffer.observations["observation"].copy()
    fill(twin, walk(2, lengths, total + 3)[total:], start=total)  # goes on in the same episodes
    assert_array_equal(buffer.observations["observation"], before)
    fill(buffer, walk(2, lengths, total + 3)[total:], start=total)
    assert_array_equal(twin.episodes.end, buffer.episodes.end)
    assert twin.pos == buffer.pos and twin.full == buffer.full


def test_rows_that_were_never_written_are_not_saved() -> None:
    buffer = goal_buffer(100_000)
    fill(buffer, SEVEN)
    assert len(pickle.dumps(buffer)) < 20_000
    assert pickle.loads(pickle.dumps(buffer)).observations["task"].shape == (100_000, 1, 1)


def test_wide_observations_are_stored_as_the_networks_read_them() -> None:
    space = spaces.Dict({"observation": spaces.Box(-1, 1, (4,), np.float64), "task": GOALS.task_space})
    buffer = HIPIReplayBuffer(10, space, ACTIONS, family=GOALS)
    assert buffer.observations["observation"].dtype == np.float32
    images = spaces.Dict({"observation": spaces.Box(0, 255, (3, 8, 8), np.uint8), "task": GOALS.task_space})
    assert HIPIReplayBuffer(10, images, ACTIONS, family=GOALS).observations["observation"].dtype == np.uint8


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "hippi"}, r"Unknown strategy 'hippi'. Did you mean 'hipi'\?"),
        ({"score": "tdd"}, r"Unknown score 'tdd'. Did you mean 'td'\?"),
        ({"log_partition": "batsh"}, r"Unknown log partition 'batsh'. Did you mean 'batch'\?"),
        ({"candidates": "achieve"}, r"Unknown candidate source 'achieve'. Did you mean 'achieved'\?"),
        ({"candidates": "all"}, r"candidates='all' needs a finite family"),
        ({"candidates": {"batch": 0.5}}, r"must sum to 1"),
        ({"n_candidate_tasks": 0}, r"n_candidate_tasks must be at least 1"),
        ({"temperature": "hot"}, r"a number >= 0, 'auto', 'spread:x' with x >= 0 spreads of the scores or 'ess:n'"),
        ({"temperature": -1.0}, r"must not be negative"),
        ({"relabel_prob": 1.5}, r"share of rows that are relabeled, not 1.5"),
        ({"relabel_prob": -0.1}, r"share of rows that are relabeled, not -0.1"),
        ({"warmup_updates": -1}, r"warmup_updates must be at least 0, not -1"),
        ({"n_steps": 0}, r"n_steps must be at least 1, not 0"),
        ({"n_steps": 2.5}, r"n_steps must be a whole number, at least 1, not 2\.5"),
        ({"n_steps": "five"}, r"n_steps must be a whole number, at least 1, not 'five'"),
        ({"label_reuse": "often"}, r"label_reuse must be a whole number, at least 1, how often a label is used, not 'often'"),
        ({"warmup_updates": "few"}, r"warmup_updates must be a whole number, at least 0, not 'few'"),
        ({"n_candidate_tasks": "many"}, r"n_candidate_tasks must be a whole number, at least 1, not 'many'"),
        ({"relabel_prob": "half"}, r"relabel_prob is a number from 0 to 1, the share of rows that are relabeled, not 'half'"),
        ({"optimize_memory_usage": True}, r"does not support optimize_memory_usage"),
    ],
)
def test_options_that_do_not_exist_are_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        goal_buffer(**options)


def speed_buffer(**kwargs: Any) -> HIPIReplayBuffer:
    family = TargetVelocity(low=0.0, high=3.0)
    space = spaces.Dict({"observation": DICT_SPACE["observation"], "task": family.task_space})
    return HIPIReplayBuffer(10, space, ACTIONS, family=family, **kwargs)


@pytest.mark.parametrize("strategy", ["final", "future"])
def test_goal_strategies_are_refused_for_families_without_goals(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"no transition fulfils a task of TargetVelocity. Use 'hipi' or 'random'"):
        speed_buffer(strategy=strategy)


def test_achieved_candidates_are_refused_for_families_without_goals() -> None:
    with pytest.raises(ValueError, match=r"'achieved' needs a goal family"):
        speed_buffer(candidates="achieved")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"observation": DICT_SPACE["observation"]}),
        spaces.Box(0, 1, (1,)),
        spaces.Box(0, 1, (3, 3)),
    ],
)
def test_an_observation_without_room_for_the_task_is_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"no room for a task of 1 numbers.*Use MultiTaskWrapper"):
        HIPIReplayBuffer(10, space, ACTIONS, family=GOALS)


def test_sampling_an_empty_buffer_says_that_it_is_empty() -> None:
    with pytest.raises(RuntimeError, match=r"replay buffer is empty.*learning_starts"):
        goal_buffer().sample(1)


def test_a_detached_buffer_names_attach() -> None:
    buffer = goal_buffer(strategy="hipi")
    fill(buffer, SEVEN)
    with pytest.raises(RuntimeError, match=r"buffer\.attach\(model\)"):
        buffer.sample(8)
    without_family = HIPIReplayBuffer(10, DICT_SPACE, ACTIONS)
    with pytest.raises(RuntimeError, match=r"buffer\.attach\(model\)"):
        fill(without_family, SEVEN)


def test_a_step_without_features_is_refused_and_nothing_is_stored() -> None:
    buffer = goal_buffer()
    obs = {key: value[None] for key, value in observation(0, 0, 0.3, flat=False).items()}
    with pytest.raises(ValueError, match=r"info has no 'task_features'.*MultiTaskWrapper"):
        buffer.add(obs, obs, np.zeros((1, 1)), np.array([-1.0]), np.array([False]), [{}])
    assert buffer.size() == 0


@pytest.mark.parametrize("first", [1, 2, 3, 40, 200])
def test_a_reward_that_is_not_the_familys_is_found_within_64_steps(first: int) -> None:
    buffer = goal_buffer()
    for step in range(first + 64):
        obs, next_obs = (
            {key: value[None] for key, value in observation(k, 0, 0.3, flat=False).items()} for k in (step, step + 1)
        )
        infos = [{"task": np.array([0.3]), "task_features": np.array([0.9], np.float32), "env_terminated": False}]
        reward = np.array([-0.5 if step + 1 == first else -1.0])
        try:
            buffer.add(obs, next_obs, np.zeros((1, 1)), reward, np.array([False]), infos)
        except ValueError as error:
            assert "returned reward -0.5" in str(error) and "GoalReaching gives -1" in str(error)
            assert first <= step + 1 < first + 64 and step + 1 <= 2 * first
            return
    raise AssertionError("It was not found.")


def test_a_reward_that_is_not_the_familys_is_refused_and_nothing_is_stored() -> None:
    buffer = goal_buffer(n_envs=2)

    def add_scaled(obs: Any, next_obs: Any, action: Any, reward: np.ndarray, done: Any, infos: Any) -> None:
        reward[1] *= 0.1  # as a wrapper outside MultiTaskWrapper would
        buffer.add(obs, next_obs, action, reward, done, infos)

    with pytest.raises(
        ValueError, match=r"Environment 1 returned reward -0.1.* GoalReaching gives -1.*inside MultiTaskWrapper"
    ):
        add_step(add_scaled, 0, [(0.0, 0.9, ""), (0.0, 0.9, "")])
    assert buffer.size() == 0


class NaNPosterior(Strategy):
    """Asks for the posterior of scores that are NaN."""

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        found: Inference = rows.infer()
        return found.posterior


def test_a_failed_sample_leaves_the_buffer_usable() -> None:
    buffer = goal_buffer(strategy=NaNPosterior())
    fill(buffer, SEVEN)
    with pytest.raises(RuntimeError, match="attach"):
        buffer.sample(8)
    buffer.relabeler.strategy = AssignTask(0.45)
    assert len(buffer.sample(8).rewards) == 8
