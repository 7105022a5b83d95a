"""Strategies that look at trajectories and rewards, reuse of labels, and looking at what relabeling does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from line_walk import GOALS, NoCritic, directions, goal_buffer, make_line_walk, walked
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal

from hipi_sb3 import HIPISAC, FiniteTasks, GoalReaching, LinearReward
from hipi_sb3.callbacks import RelabelSnapshotCallback, draw_labels
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.relabel.candidates import Candidates
from hipi_sb3.relabel.pool import MAX_BYTES, N_BATCHES, LabelPool
from hipi_sb3.relabel.relabeler import Relabeled, Relabeler
from hipi_sb3.relabel.rows import RelabelBatch
from hipi_sb3.relabel.strategies import HIPI, ApproximateIRL, MaximumAdvantage, MaximumReward, RandomTask, Strategy
from hipi_sb3.relabel.windows import Windows

TASKS = np.arange(3.0)[:, None]


def some_steps(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ring and environment indices of n of the first fifty steps of one environment."""
    return rng.integers(50, size=n), np.zeros(n, dtype=int)


class GivenRows:
    """Rows whose scores and returns are given."""

    def __init__(self, returns: Any = None, recent: Any = None, **scores: Any) -> None:
        self.returns, self.recent, self.by_name = returns, recent, {key: np.array(value) for key, value in scores.items()}
        self.commanded = np.full((len(next(iter(self.by_name.values()))), 1), -1.0)

    def candidates(self) -> Candidates:
        return Candidates(TASKS, np.zeros(3))

    def scores(self, tasks: np.ndarray, score: str | None = None) -> np.ndarray:
        assert score is not None
        return self.by_name[score]

    def trajectory_returns(self, tasks: np.ndarray) -> np.ndarray:
        return np.array(self.returns)

    def recent_returns(self, tasks: np.ndarray) -> np.ndarray:
        return np.array(self.recent)


def assign(strategy: Any, rows: Any, seed: int = 0) -> list[float]:
    return strategy.assign(rows, np.random.default_rng(seed))[:, 0].tolist()


def test_max_reward_takes_the_task_that_rewards_the_step_most() -> None:
    rows = GivenRows(reward=[[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert assign(MaximumReward(), rows) == [1, 0]


def test_equal_rewards_are_broken_at_random() -> None:
    rows = GivenRows(reward=np.zeros((3000, 3)))
    counts = np.bincount(np.array(assign(MaximumReward(), rows), dtype=int), minlength=3)
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(3000 * 2 / 9))


def test_advantage_takes_the_largest_advantage() -> None:
    assert assign(MaximumAdvantage(), GivenRows(advantage=[[-3.0, -0.5, -1.0], [0.1, 0.0, -9.0]])) == [1, 0]


def test_air_ranks_the_trajectory_among_recent_ones_not_by_its_return() -> None:
    # Task 0 pays much to everybody, task 2 little to everybody but this trajectory.
    recent = [[100.0, 0.0, 0.0], [300.0, 2.0, 0.1], [200.0, 1.0, 0.2]]
    rows = GivenRows(returns=[[150.0, 1.5, 0.3]], recent=recent, advantage=[[0.0, 0.0, 0.0]])
    assert assign(ApproximateIRL(), rows) == [2]


def test_air_breaks_ties_by_advantage() -> None:
    recent = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    rows = GivenRows(returns=[[2.0, 2.0, -1.0]] * 2, recent=recent, advantage=[[1.0, 2.0, 9.0], [2.0, 1.0, 9.0]])
    assert assign(ApproximateIRL(), rows) == [1, 0]


def test_air_keeps_the_commanded_task_until_an_episode_has_ended() -> None:
    rows = GivenRows(returns=[[0.0] * 3], recent=np.zeros((0, 3)), advantage=[[0.0] * 3])
    assert assign(ApproximateIRL(), rows) == [-1]


def test_air_refuses_candidates_that_differ_from_row_to_row() -> None:
    with pytest.raises(ValueError, match=r"ApproximateIRL.*differ from row to row"):
        goal_buffer(strategy="air", candidates="future", log_partition="running")


# -- returns from the buffer -----------------------------------------------------------------------------------------


def test_returns_are_those_of_the_stored_trajectories_up_to_the_end_of_the_task() -> None:
    """Against a plain loop over a real walk, with the ring buffer wrapped."""
    experience = walked(100, buffer_size=40, max_steps=6, seed=1)
    at = (np.arange(40), np.zeros(40, dtype=int))
    relabeler = Relabeler()
    relabeler.setup(GOALS)
    batch = relabeler._rows(experience, at, np.arange(40), None, None)
    features = experience.features(at)
    tasks = np.array([[0.3], [-0.4], [0.9]], dtype=np.float32)

    def loop(rows: list[int]) -> list[float]:
        totals = []
        for task in tasks:
            total = 0.0
            for row in rows:
                total += float(GOALS.reward(features[row], task))
                if GOALS.terminated(features[row], task):
                    break
            totals.append(total)
        return totals

    oldest = experience.pos
    order = [(oldest + k) % 40 for k in range(40)]
    episodes: list[list[int]] = [[]]
    for row in order:
        episodes[-1].append(row)
        if experience.dones[row, 0]:
            episodes.append([])
    of_row = {row: episode for episode in episodes for row in episode}
    found = batch.trajectory_returns(tasks)
    for row in range(40):
        np.testing.assert_allclose(found[row], loop(of_row[row]), rtol=1e-6)
    whole = [episode for k, episode in enumerate(episodes) if episode and experience.dones[episode[-1], 0] and k > 0]
    assert len(whole) > 2
    recent = {tuple(values) for values in batch.recent_returns(tasks).round(4).tolist()}
    assert {tuple(np.round(loop(episode), 4)) for episode in whole} <= recent


# -- labels that are used several times ------------------------------------------------------------------------------


def test_reused_labels_are_inferred_once_in_so_many_batches() -> None:
    experience, rng = walked(60, buffer_size=100), np.random.default_rng(0)
    relabeler: Any = Relabeler(label_reuse=5, relabel_prob=0.5, prior_share=0.0, n_candidate_tasks=4)
    relabeler.setup(GOALS)
    calls = []
    original = relabeler._assign
    relabeler._assign = lambda batch, *rest: calls.append(len(batch.commanded)) or original(batch, *rest)
    for _ in range(N_BATCHES + 100):
        rows = relabeler(experience, some_steps(32, rng), NoCritic())
        assert_array_equal(rows.obs["task"], rows.next_obs["task"])
    # The pool fills up with a batch's relabeled rows each time, then every fifth batch.
    assert set(calls) == {16} and abs(len(calls) - N_BATCHES - 100 / 5) <= 3


def test_a_label_is_used_so_often_in_the_mean_and_spread_over_many_batches() -> None:
    pool, rng, batch = LabelPool(n_rows=8, n_labels=1, task_dim=1, n_uses=4), np.random.default_rng(0), 8
    used: dict[float, list[int]] = {}
    names = iter(range(10**6))
    for k in range(2000):
        if pool.is_due(batch):
            new = np.array([next(names) for _ in range(8)])
            pool.add((new, np.zeros(8, dtype=int)), new[:, None, None].astype(np.float32))
        (steps, _), tasks = pool.draw(batch, rng)
        assert_array_equal(steps, tasks[:, 0])
        for name in tasks[:, 0]:
            used.setdefault(name, []).append(k)
    n_labels = next(names)
    assert n_labels == 8 * (N_BATCHES + (2000 - N_BATCHES) // 4)
    middle = [used.get(float(name), []) for name in range(8 * N_BATCHES, n_labels - 8 * N_BATCHES)]
    counts = np.array([len(batches) for batches in middle])
    assert abs(counts.mean() - 4) < 4 * 2 / np.sqrt(len(counts)) + 0.05  # Poisson: standard deviation 2
    assert max(batches[-1] - batches[0] for batches in middle if batches) <= 4 * N_BATCHES
    assert np.mean([len(set(batches)) == len(batches) for batches in middle]) > 0.9


def test_each_use_of_a_scored_row_takes_one_of_its_labels() -> None:
    pool = LabelPool(n_rows=4, n_labels=3, task_dim=1, n_uses=2)
    rows = np.arange(4)
    pool.add((rows, rows % 2), (10.0 * rows[:, None] + np.arange(3))[..., None].astype(np.float32))
    (steps, env_indices), tasks = pool.draw(3000, np.random.default_rng(0))
    assert_array_equal(tasks[:, 0] // 10, steps)
    assert_array_equal(env_indices, steps % 2)
    counts = np.unique(tasks, return_counts=True)[1]
    assert len(counts) == 12 and abs(counts - 250).max() < 5 * np.sqrt(250)


@pytest.mark.parametrize(("task_dim", "n_labels"), [(2, 16), (1000, 16), (84 * 84 * 3, 3), (10**5, 1)])
def test_a_pool_of_large_tasks_keeps_fewer_labels(task_dim: int, n_labels: int) -> None:
    pool = LabelPool(n_rows=32, n_labels=16, task_dim=task_dim, n_uses=16)
    assert pool.n_labels == n_labels == pool.tasks.shape[1]
    assert pool.tasks.nbytes <= MAX_BYTES or n_labels == 1
    pool.add((np.arange(32), np.zeros(32, dtype=int)), np.ones((32, n_labels, task_dim), dtype=np.float32))
    assert (pool.draw(8, np.random.default_rng(0))[1] == 1).all()


def test_the_labels_of_a_pooled_row_are_draws_from_its_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    relabeler = Relabeler(label_reuse=400, relabel_prob=1.0, prior_share=0.0, n_candidate_tasks=4, candidates="batch")
    relabeler.setup(GOALS)
    batches: list[RelabelBatch] = []
    original = relabeler._assign
    monkeypatch.setattr(relabeler, "_assign", lambda batch, *rest: batches.append(batch) or original(batch, *rest))
    relabeler(walked(50, buffer_size=100), some_steps(200, np.random.default_rng(0)), NoCritic())
    (batch,), pool = (batches, relabeler.pool)
    assert pool is not None
    tasks, posterior = batch.candidates().tasks, batch.infer().posterior
    drawn = (pool.tasks[: len(posterior), :, None, 0] == tasks[:, 0]).mean(axis=1)
    # 400 draws a row: a binomial share has a standard deviation of at most 0.025.
    assert abs(drawn - posterior).max() < 6 * 0.025 and np.abs(drawn - posterior).mean() < 0.025
    assert ((0.1 < posterior) & (posterior < 0.9)).mean() > 0.1  # there is something to draw


def test_labels_of_overwritten_transitions_are_dropped() -> None:
    pool = LabelPool(n_rows=1, n_labels=1, task_dim=1, n_uses=2)
    for step in range(N_BATCHES):
        assert pool.is_due(1)
        pool.add((np.array([step]), np.array([step % 2])), np.array([[[step]]], dtype=np.float32))
    for step in range(1, N_BATCHES):
        pool.forget(step)
    (steps, env_indices), tasks = pool.draw(20, np.random.default_rng(0))
    assert not steps.any() and not env_indices.any() and not tasks.any()
    pool.forget(0)
    assert pool.is_due(0)


def test_rows_with_reused_labels_are_judged_by_their_label() -> None:
    relabeler = Relabeler(label_reuse=3, relabel_prob=1.0, n_steps=1)
    relabeler.setup(GOALS)
    experience = walked(60, buffer_size=100)
    rows = relabeler(experience, some_steps(200, np.random.default_rng(0)), NoCritic())
    judged = rows.judged
    found = judged.windows.outcomes(judged.rewards, judged.terminated, 0.9).rewards
    # In this walk the feature is the position, the first entry of the next observation.
    features = rows.next_obs["observation"][:, :1]
    assert_array_equal(found, GOALS.reward(features, rows.obs["task"]))
    assert judged.is_new.all() and (found == 0).any()


def test_reuse_of_one_is_no_pool_and_zero_is_refused() -> None:
    buffer = goal_buffer(label_reuse=1)
    assert buffer.relabeler.pool is None
    with pytest.raises(ValueError, match="label_reuse must be at least 1"):
        goal_buffer(label_reuse=0)


# -- labels from the prior -------------------------------------------------------------------------------------------


class SomeAreImpossible(GoalReaching):
    """Goals on the left are impossible for what happened on the right."""

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.where((tasks[..., 0] < 0) & (features[..., 0] > 0), -np.inf, super().reward(features, tasks))


def relabelings(relabeler: Relabeler, n_samples: int = 100, batch_size: int = 200) -> Iterator[tuple[Experience, Relabeled]]:
    """Batches of a walk, relabeled after the pool has filled up."""
    experience, rng = walked(60, buffer_size=100), np.random.default_rng(0)
    for k in range(N_BATCHES + n_samples):
        relabeled = relabeler(experience, some_steps(batch_size, rng), NoCritic())
        if k >= N_BATCHES:
            yield experience, relabeled


class SameSide(GoalReaching):
    """Pays 1 on the side of the goal, and -1 on the other."""

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.where((tasks[..., 0] < 0) == (features[..., 0] < 0), 1.0, -1.0)

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.zeros(np.broadcast_shapes(features.shape, tasks.shape)[:-1], dtype=bool)


@pytest.mark.parametrize("label_reuse", [1, 4])
@pytest.mark.parametrize("prior_share", [0.0, 0.4, 1.0])
def test_a_share_of_the_labels_comes_from_the_prior(label_reuse: int, prior_share: float) -> None:
    family = SameSide(low=[-1.0], high=[1.0], radius=0.15)
    options: dict[str, Any] = {"candidates": "prior", "temperature": 0.0, "score": "reward", "n_steps": 1}
    relabeler = Relabeler(prior_share=prior_share, label_reuse=label_reuse, relabel_prob=0.5, **options)
    relabeler.setup(family)
    n_new, n_other = 0, 0
    for experience, relabeled in relabelings(relabeler):
        new = relabeled.judged.is_new
        n_new += np.count_nonzero(new)
        n_other += np.count_nonzero(family.reward(experience.features(relabeled.at), relabeled.tasks)[new] < 0)
        assert_array_equal(relabeled.obs["task"], relabeled.tasks)
        assert_array_equal(relabeled.next_obs["task"][new], relabeled.tasks[new])
    assert abs(n_new / 20_000 - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    # At T = 0 the posterior has the goals of the row's own side alone; half of the prior's are on the other.
    assert abs(n_other / n_new - 0.5 * prior_share) <= 0.03 * (prior_share > 0)


def test_rows_with_a_label_of_the_prior_are_not_scored() -> None:
    relabeler: Any = Relabeler(label_reuse=5, relabel_prob=0.5, prior_share=0.75, n_candidate_tasks=4)
    relabeler.setup(GOALS)
    scored: list[int] = []
    original = relabeler._assign

    def watched(batch: RelabelBatch, strategy: Strategy, *rest: Any) -> np.ndarray:
        if isinstance(strategy, HIPI):
            scored.append(len(batch.commanded))
        return original(batch, strategy, *rest)

    relabeler._assign = watched
    for _ in relabelings(relabeler, 100, batch_size=80):
        pass
    assert set(scored) == {10} and abs(len(scored) - N_BATCHES - 100 / 5) <= 3


@pytest.mark.parametrize("label_reuse", [1, 4])
def test_random_candidates_are_drawn_among_commanded_tasks_not_among_labels(label_reuse: int) -> None:
    relabeler: Any = Relabeler(label_reuse=label_reuse, relabel_prob=0.8, prior_share=0.5, candidates="prior")
    relabeler.setup(GOALS)
    given: list[np.ndarray] = []
    original = relabeler._assign

    def watched(batch: RelabelBatch, strategy: Strategy, *rest: Any) -> np.ndarray:
        if isinstance(strategy, RandomTask):
            given.append(batch.batch_tasks.copy())
        return original(batch, strategy, *rest)

    relabeler._assign = watched
    for experience, relabeled in relabelings(relabeler, 3):
        assert_array_equal(given[-1], experience.layout.get(experience.transitions(relabeled.at)[0]))
        assert (relabeled.tasks != given[-1]).any()


@pytest.mark.parametrize("score", [None, "advantage", "q", "mixed"])
@pytest.mark.parametrize("strategy", ["hipi", "map", "random", "max_reward", "advantage", "air"])
def test_a_task_that_is_impossible_for_a_row_leaves_it_its_own(strategy: str, score: str | None) -> None:
    family = SomeAreImpossible(low=[-1.0], high=[1.0], radius=0.15)
    options: dict[str, Any] = {"relabel_prob": 1.0, "n_candidate_tasks": 2, "candidates": "prior", "n_steps": 3}
    relabeler = Relabeler(strategy, score=score, prior_share=0.3, label_reuse=4, **options)
    relabeler.setup(family)
    kept = 0
    for experience, relabeled in relabelings(relabeler, 10):
        commanded = experience.layout.get(experience.transitions(relabeled.at)[0])
        changed = (relabeled.tasks != commanded).any(axis=1)
        assert_array_equal(relabeled.obs["task"], relabeled.tasks)
        # Of the steps that count, none is judged by a task that is impossible for it.
        windows = Windows(experience, relabeled.at, 3)
        rewards, terminated = (array[..., 0] for array in windows.judged(family, relabeled.tasks[:, None]))
        assert (windows.outcomes(rewards, terminated, 1.0).rewards[changed] > -np.inf).all()
        assert_array_equal(changed & ~relabeled.judged.is_new, np.zeros(len(changed), dtype=bool))
        kept += np.count_nonzero(~changed)
    assert kept > 0


def test_by_default_labels_come_from_the_prior_where_its_tasks_teach() -> None:
    finite_goals = FiniteTasks(GOALS, [[-0.5], [0.5]])
    weights = LinearReward([-1.0, -1.0], [1.0, 1.0], speed)
    for family, share in ((GOALS, 0.5), (weights, 0.875), (directions(), 0.875), (finite_goals, 0.0)):
        for asked, expected in ((None, share), (0.25, 0.25)):
            relabeler = Relabeler(prior_share=asked)
            relabeler.setup(family)
            assert relabeler.prior_share == expected
            assert relabeler.options()["prior_share"] == asked
    # What is no draw from the posterior has no share of the prior either.
    for strategy in ("map", "random", "future", "none"):
        relabeler = Relabeler(strategy, prior_share=0.5)
        relabeler.setup(GOALS)
        assert relabeler.prior_share == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "half"])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="prior_share is a number from 0 to 1"):
        Relabeler(prior_share=share)


# -- looking ---------------------------------------------------------------------------------------------------------


def learned(folder: Path | None, env: gym.Env, **kwargs: Any) -> HIPISAC:
    model = HIPISAC(
        "MultiInputPolicy", env, learning_starts=20, batch_size=16, seed=0, policy_kwargs={"net_arch": [16]}, **kwargs
    )
    callback = None if folder is None else RelabelSnapshotCallback(folder, freq=30, batch_size=20)
    return model.learn(70, callback=callback)


def speed(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    return np.array([next_obs[0] - obs[0], float(np.dot(action, action)), next_obs[0]])


FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "goals": (GOALS, {}),
    "finite": (directions(), {"log_partition": "running"}),
    "one-hot goals": (FiniteTasks(GOALS, [[-0.5], [0.5]]), {"log_partition": "sinkhorn"}),
    "linear": (LinearReward([-1.0] * 3, [1.0] * 3, speed), {"temperature": "ess:4"}),
    "HER": (GOALS, {"strategy": "future"}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_snapshots_are_written_and_change_nothing_of_the_training(name: str, tmp_path: Path) -> None:
    family, options = FAMILIES[name]
    watched = learned(tmp_path, make_line_walk(family), replay_buffer_kwargs=options)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "relabel_30.npz",
        "relabel_30.png",
        "relabel_60.npz",
        "relabel_60.png",
    ]
    with np.load(tmp_path / "relabel_60.npz") as arrays:
        assert arrays["commanded"].shape == arrays["assigned"].shape == (20, family.task_dim)
        if name != "HER":
            assert arrays["effective_tasks"].shape == (20,)
            assert arrays["steps"].tolist() == [30, 60]
            assert arrays["log_partition"].shape[-1] == arrays["candidates"].shape[-2]
    alone = learned(None, make_line_walk(family), replay_buffer_kwargs=options)
    for mine, theirs in zip(watched.policy.parameters(), alone.policy.parameters(), strict=True):
        assert th.equal(mine, theirs)


def test_arrows_between_tasks_that_are_no_goals_are_not_called_goals() -> None:
    tasks = np.zeros((3, 2), dtype=np.float32)
    goals, weights = GoalReaching([-1.0] * 2, [1.0] * 2, 0.1), LinearReward([-1.0] * 2, [1.0] * 2, speed)
    for family, name in ((goals, "goals"), (weights, "tasks")):
        axes = Figure().subplots()
        draw_labels(axes, family, tasks, tasks + 0.5)
        assert axes.get_title() == f"from commanded to assigned {name}"


def test_a_preview_relabels_every_row_and_of_an_empty_buffer_is_refused() -> None:
    buffer = goal_buffer(strategy="random", relabel_prob=0.1)
    with pytest.raises(RuntimeError, match="empty"):
        buffer.preview(3)
    relabeler = Relabeler(relabel_prob=0.1)
    relabeler.setup(GOALS)
    batch = relabeler.preview(walked(70, buffer_size=100), 50, NoCritic())
    assert batch.assigned is not None and batch.assigned.shape == (50, 1)
    assert np.mean(batch.assigned != batch.commanded) > 0.5


def test_a_training_that_goes_on_takes_snapshots_at_the_same_steps(tmp_path: Path) -> None:
    model = learned(None, make_line_walk())
    model.learn(70, callback=RelabelSnapshotCallback(tmp_path, freq=30, batch_size=5), reset_num_timesteps=False)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["relabel_120.png", "relabel_90.png"]


def test_a_snapshot_of_another_buffer_is_refused(tmp_path: Path) -> None:
    from stable_baselines3 import SAC

    with pytest.raises(ValueError, match="needs a HIPIReplayBuffer, but the buffer is DictReplayBuffer"):
        SAC("MultiInputPolicy", make_line_walk()).learn(1, callback=RelabelSnapshotCallback(tmp_path))
