"""Candidate tasks: sources, mixtures, weights."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from line_walk import GOALS, directions
from numpy.testing import assert_allclose
from scipy.special import softmax

from hipi_sb3 import TargetVelocity
from hipi_sb3.relabel.candidates import CandidateSampler, split_by_share
from hipi_sb3.relabel.defaults import default_candidates
from hipi_sb3.relabel.posterior import task_posterior

COMMANDED = np.linspace(-1, -0.5, 64, dtype=np.float32)[:, None]
FEATURES = np.linspace(0.5, 1, 64, dtype=np.float32)[:, None]
SPEEDS = TargetVelocity(low=0.0, high=3.0)


def batch(commanded: np.ndarray, features: np.ndarray, family: Any = GOALS) -> Any:
    """A batch of transitions whose own futures are the goals 0.1, 0.2, ..., two rows of which are to be relabeled."""

    def future_tasks(n: int) -> np.ndarray:
        return np.tile(0.1 * np.arange(1.0, n + 1)[:, None], (2, 1, 1))

    return SimpleNamespace(family=family, batch_tasks=commanded, batch_features=features, future_tasks=future_tasks)


def draw(candidates: str | Mapping[str, float], n_tasks: int = 32, family: Any = GOALS, seed: int = 0) -> Any:
    return CandidateSampler(family, candidates, n_tasks)(batch(COMMANDED, FEATURES, family), np.random.default_rng(seed))


def is_from(tasks: np.ndarray, source: np.ndarray) -> np.ndarray:
    return np.isin(tasks[:, 0], source[:, 0])


def test_batch_draws_commanded_tasks_without_repetition() -> None:
    tasks = draw("batch").tasks
    assert tasks.shape == (32, 1)
    assert is_from(tasks, COMMANDED).all()


def test_achieved_draws_reached_goals() -> None:
    tasks = draw("achieved").tasks
    assert tasks.shape == (32, 1)
    assert is_from(tasks, FEATURES).all()


def test_prior_draws_fresh_tasks_of_the_family() -> None:
    tasks = draw("prior", n_tasks=1000).tasks
    assert tasks.shape == (1000, 1)
    assert tasks.min() >= -1 and tasks.max() <= 1
    assert abs(tasks.mean()) < 4 * np.sqrt(1 / 3 / 1000)  # variance of a uniform draw from [-1, 1]


@pytest.mark.parametrize("n_tasks", [1, 10, 33])
def test_a_mixture_gives_each_source_its_share(n_tasks: int) -> None:
    tasks = draw({"batch": 0.3, "achieved": 0.7}, n_tasks).tasks
    assert len(tasks) == n_tasks
    assert is_from(tasks, FEATURES).sum() == round(0.7 * n_tasks)


def test_shares_are_split_into_whole_numbers_that_sum_to_the_total() -> None:
    assert split_by_share(32, {"a": 0.5, "b": 0.5}) == {"a": 16, "b": 16}
    assert split_by_share(10, {"a": 0.25, "b": 0.75}) in ({"a": 2, "b": 8}, {"a": 3, "b": 7})
    assert split_by_share(1, {"a": 0.4, "b": 0.6}) == {"a": 0, "b": 1}
    assert sum(split_by_share(100, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}).values()) == 100


def test_all_holds_every_task_weighted_by_the_prior() -> None:
    candidates = draw("all", n_tasks=1, family=directions(prior=[0.5, 0.3, 0.2]))
    assert_allclose(candidates.tasks, np.eye(3))
    assert_allclose(candidates.log_weights, np.log([0.5, 0.3, 0.2]), rtol=1e-6)


def test_more_candidates_than_rows_repeat_rows_and_merge_them() -> None:
    candidates = draw("batch", n_tasks=500)
    assert len(candidates.tasks) <= len(COMMANDED)
    assert_allclose(np.exp(candidates.log_weights).sum(), 500)


def test_draws_from_the_prior_get_no_further_weight() -> None:
    candidates = draw("prior", family=SPEEDS)
    assert_allclose(candidates.log_weights, np.zeros(32))


def test_merging_duplicates_changes_no_posterior() -> None:
    rng = np.random.default_rng(0)
    commanded = np.array([[0.1], [0.2], [0.1], [0.3], [0.1], [0.3]], dtype=np.float32)
    merged = CandidateSampler(GOALS, "batch", n_tasks=6)(batch(commanded, commanded), rng)
    assert_allclose(merged.tasks[:, 0], [0.1, 0.2, 0.3])
    assert_allclose(np.exp(merged.log_weights), [3, 1, 2])

    scores = rng.standard_normal((5, 3))  # of the distinct tasks
    log_z = rng.standard_normal(3)
    column = np.array([0, 1, 0, 2, 0, 2])
    apart = softmax((scores - log_z)[:, column], axis=1)  # over all six, duplicates included
    summed = np.stack([apart[:, column == j].sum(axis=1) for j in range(3)], axis=1)
    assert_allclose(task_posterior(scores, log_z, merged.log_weights), summed, rtol=1e-12)


def test_own_futures_give_each_row_candidates_of_its_own() -> None:
    candidates = draw({"future": 0.75, "batch": 0.25}, n_tasks=4)
    assert candidates.tasks.shape == (2, 4, 1)
    assert_allclose(np.sort(candidates.tasks[:, :, 0], axis=1)[:, 1:], [[0.1, 0.2, 0.3]] * 2, rtol=1e-6)
    assert is_from(candidates.tasks.reshape(-1, 1), COMMANDED).sum() == 2
    assert_allclose(candidates.log_weights, 0.0)


def test_a_share_too_small_for_one_task_of_the_own_future_leaves_shared_candidates() -> None:
    assert draw({"future": 0.01, "batch": 0.99}, n_tasks=4).tasks.shape == (4, 1)


def test_defaults_fit_the_family() -> None:
    assert default_candidates(directions()) == "all"
    assert default_candidates(GOALS) == {"batch": 0.5, "achieved": 0.5}
    assert default_candidates(SPEEDS) == "prior"
    assert default_candidates(GOALS, by_row=True) == {"batch": 0.125, "achieved": 0.125, "future": 0.75}
    tasks = draw(default_candidates(GOALS)).tasks
    assert is_from(tasks, COMMANDED).sum() == is_from(tasks, FEATURES).sum() == 16


def test_the_same_generator_draws_the_same_candidates() -> None:
    mixture = {"batch": 0.4, "prior": 0.3, "achieved": 0.3}
    assert_allclose(draw(mixture, seed=7).tasks, draw(mixture, seed=7).tasks)
    assert not np.array_equal(draw(mixture, seed=7).tasks, draw(mixture, seed=8).tasks)


@pytest.mark.parametrize(
    ("candidates", "family", "message"),
    [
        ("bacth", GOALS, r"Unknown candidate source 'bacth'. Did you mean 'batch'\?"),
        ({"batch": 0.5, "achievd": 0.5}, GOALS, r"Unknown candidate source 'achievd'. Did you mean 'achieved'\?"),
        ("all", GOALS, r"needs a finite family, but GoalReaching has infinitely many tasks"),
        ("future", SPEEDS, r"'future' needs a goal family, but no transition fulfils a task of TargetVelocity"),
        ("achieved", SPEEDS, r"needs a goal family, but no transition fulfils a task of TargetVelocity"),
        ({"all": 0.5, "batch": 0.5}, directions(), r"cannot be mixed"),
        ({"batch": 0.5, "achieved": 0.6}, GOALS, r"must sum to 1"),
        ({"batch": 1.5, "achieved": -0.5}, GOALS, r"must not be negative"),
        ({}, GOALS, r"must sum to 1"),
    ],
)
def test_candidates_that_do_not_exist_are_refused_with_what_to_do(candidates: Any, family: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateSampler(family, candidates, 32)


def test_no_candidates_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="n_candidate_tasks must be at least 1, not 0"):
        CandidateSampler(GOALS, "batch", n_tasks=0)


@pytest.mark.parametrize(
    "candidates", ["batch", "prior", "achieved", "future", "all", {"future": 0.333333, "batch": 0.333333, "prior": 0.333333}]
)
def test_one_each_is_a_draw_by_weight_from_the_candidates(candidates: Any) -> None:
    """Means and squares of many such draws, row by row, against those of all candidates with their weights."""
    family = directions([0.5, 0.3, 0.2]) if candidates == "all" else GOALS
    sampler, rng = CandidateSampler(family, candidates, 9), np.random.default_rng(0)
    n_draws, task_dim = 6000, family.task_dim

    def future_tasks(n: int) -> np.ndarray:
        """Goals around 0 for the first row, around 2 for the second."""
        return np.array([0.0, 2.0])[:, None, None] + rng.uniform(-0.5, 0.5, (2, n, task_dim))

    rows = batch(COMMANDED, FEATURES, family)
    rows.future_tasks = future_tasks
    one = np.array([sampler.one_each(rows, 2, rng) for _ in range(n_draws)])
    assert one.shape == (n_draws, 2, task_dim) and one.dtype == np.float32
    expected = np.zeros((2, 2, task_dim))
    for _ in range(n_draws // 9):
        drawn = sampler(rows, rng)
        weights = softmax(np.broadcast_to(drawn.log_weights, (2, drawn.tasks.shape[-2])), axis=1)[..., None]
        of_rows = np.broadcast_to(drawn.tasks, (2, *drawn.tasks.shape[-2:]))
        expected += np.array([(weights * of_rows**power).sum(axis=1) for power in (1, 2)]) / (n_draws // 9)
    found = np.array([(one**power).mean(axis=0) for power in (1, 2)])
    assert_allclose(found, expected, atol=0.08)
