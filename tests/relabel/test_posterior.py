"""The posterior and the strategies, on arrays."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal
from reference_example import (
    PAPER_SCORES,
    POSTERIOR_PAPER_BATCH,
    POSTERIOR_PAPER_NONE,
    POSTERIOR_TD_BATCH,
    TD_SCORES,
)
from scipy.special import logsumexp

from hipi_sb3.relabel.candidates import Candidates
from hipi_sb3.relabel.log_partition import make_log_partition
from hipi_sb3.relabel.posterior import (
    Inference,
    TaskInference,
    common_temperature,
    effective_tasks,
    label_divergence,
    mean_effective_tasks,
    sample_rows,
    task_posterior,
)
from hipi_sb3.relabel.strategies import HIPI, KEY_TO_STRATEGY, MaximumAPosteriori, make_strategy

TASKS = np.arange(3.0)[:, None]
NO_WEIGHTS = np.zeros(3)


def infer(scores: np.ndarray, log_partition: str = "batch", temperature: Any = 1.0, **kwargs: Any) -> Inference:
    n_tasks = scores.shape[1]
    inference = TaskInference(make_log_partition(log_partition), temperature)
    return inference(np.arange(float(n_tasks))[:, None], scores, np.zeros(n_tasks), **kwargs)


# -- the posterior --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "log_partition", "expected"),
    [
        (PAPER_SCORES, "batch", POSTERIOR_PAPER_BATCH),
        (PAPER_SCORES, "none", POSTERIOR_PAPER_NONE),
        (TD_SCORES, "batch", POSTERIOR_TD_BATCH),
    ],
    ids=["paper-batch", "paper-none", "td-batch"],
)
def test_the_reference_example_is_reproduced(scores: np.ndarray, log_partition: str, expected: np.ndarray) -> None:
    assert_allclose(infer(scores, log_partition).posterior, expected, atol=1e-5)


def test_the_posterior_is_prior_times_exp_score_over_z() -> None:
    rng = np.random.default_rng(0)
    scores, log_z, prior = rng.standard_normal((6, 4)), rng.standard_normal(4), np.array([0.1, 0.2, 0.3, 0.4])
    unnormalised = prior * np.exp(scores) / np.exp(log_z)
    expected = unnormalised / unnormalised.sum(axis=1, keepdims=True)
    assert_allclose(task_posterior(scores, log_z, np.log(prior)), expected, rtol=1e-6)


def test_weights_need_no_normalisation_and_prices_may_differ_by_row() -> None:
    rng = np.random.default_rng(1)
    scores, log_z, weights = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    by_row = np.concatenate([task_posterior(scores[i : i + 1], log_z[i], weights[i] + 7.0) for i in range(5)])
    assert_allclose(task_posterior(scores, log_z, weights), by_row, rtol=1e-12)


def test_scores_are_divided_by_the_temperature_before_log_z() -> None:
    scaled = PAPER_SCORES / 0.25
    expected = np.exp(scaled) / np.exp(scaled).mean(axis=0)
    expected /= expected.sum(axis=1, keepdims=True)
    found = infer(PAPER_SCORES, temperature=0.25)
    assert_allclose(found.posterior, expected, rtol=1e-6)
    assert_allclose(found.log_partition, np.log(np.exp(scaled).mean(axis=0)), rtol=1e-6)


def test_a_score_of_minus_infinity_excludes_the_task_from_its_row_only() -> None:
    scores = PAPER_SCORES.copy()
    scores[0, 2] = -np.inf
    posterior = infer(scores, "none").posterior
    assert posterior[0, 2] == 0.0
    assert_allclose(posterior[0, :2], np.exp(scores[0, :2]) / np.exp(scores[0, :2]).sum(), rtol=1e-6)
    assert_allclose(posterior[1:], POSTERIOR_PAPER_NONE[1:], atol=1e-5)


def test_a_row_without_a_possible_task_is_all_zero() -> None:
    scores = PAPER_SCORES.copy()
    scores[1] = -np.inf
    posterior = infer(scores).posterior
    assert_allclose(posterior[1], 0.0)
    assert_allclose(posterior[[0, 2]].sum(axis=1), 1.0)


def test_a_nan_score_is_an_error_that_names_row_and_task() -> None:
    scores = PAPER_SCORES.copy()
    scores[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 for candidate task 1 is NaN"):
        infer(scores)


def test_one_task_is_certain() -> None:
    assert_allclose(infer(PAPER_SCORES[:, :1]).posterior, np.ones((3, 1)))


# -- temperature ----------------------------------------------------------------------------------------------------


def test_a_temperature_of_zero_is_the_argmax() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 6))
    posterior = infer(scores, "none", temperature=0.0).posterior
    assert_array_equal(posterior, np.eye(6)[np.argmax(scores, axis=1)])


@pytest.mark.parametrize("log_partition", ["none", "mean", "batch"])
def test_a_falling_temperature_tends_to_the_most_probable_task(log_partition: str) -> None:
    scores = np.random.default_rng(0).standard_normal((50, 6))
    cold = infer(scores, log_partition, temperature=1e-4)
    mode = np.argmax(scores / 1e-4 - cold.log_partition, axis=1)
    assert_array_equal(np.argmax(cold.posterior, axis=1), mode)
    assert np.isclose(cold.posterior.max(axis=1), 1.0).mean() > 0.9
    assert np.isfinite(infer(scores, log_partition, temperature=0.0).posterior).all()


def test_auto_uses_the_live_alpha_of_the_call() -> None:
    for alpha in (1.0, 0.2, 0.05):
        found = infer(PAPER_SCORES, temperature="auto", alpha=alpha)
        assert_allclose(found.posterior, infer(PAPER_SCORES, temperature=alpha).posterior, rtol=1e-12)
        assert_allclose(found.temperature, alpha)


def test_auto_with_an_alpha_of_zero_is_the_argmax() -> None:
    posterior = infer(PAPER_SCORES, "none", temperature="auto", alpha=0.0).posterior
    assert_array_equal(posterior, np.eye(3)[np.argmax(PAPER_SCORES, axis=1)])


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("target", [2, 8, 20.5])
def test_ess_hits_the_effective_number_of_tasks(target: float, scale: float) -> None:
    scores = scale * np.random.default_rng(0).standard_normal((40, 32))
    found = infer(scores, "none", temperature=f"ess:{target}")
    assert_allclose(effective_tasks(found.posterior), target, rtol=1e-3)
    assert found.temperature.shape == (40, 1)


def test_ess_hits_it_nearly_with_the_batch_estimate_of_log_z() -> None:
    scores = np.random.default_rng(0).standard_normal((64, 32)) * 5
    found = infer(scores, "batch", temperature="ess:8")
    assert abs(np.median(effective_tasks(found.posterior)) - 8) < 1


def test_ess_beyond_the_number_of_tasks_is_uniform() -> None:
    scores = np.random.default_rng(0).standard_normal((10, 4))
    assert_allclose(infer(scores, "none", temperature="ess:100").posterior, 0.25, atol=1e-2)


def test_ess_of_equal_scores_is_uniform() -> None:
    assert_allclose(infer(np.zeros((3, 4)), temperature="ess:2").posterior, 0.25)


@pytest.mark.filterwarnings("error")
def test_ess_leaves_excluded_tasks_out_and_warns_of_nothing() -> None:
    scores = np.random.default_rng(0).standard_normal((6, 10))
    scores[:, 0] = -np.inf
    scores[2] = -np.inf
    posterior = infer(scores, "none", temperature="ess:4").posterior
    assert_allclose(posterior[:, 0], 0.0)
    assert_allclose(effective_tasks(posterior[[0, 1, 3, 4, 5]]), 4, rtol=1e-3)


@pytest.mark.parametrize(
    "temperature", ["warm", "ess", "ess:", "ess:0", "ess:many", "ess:-2", "ess:nan", "autoo", "spread:", "spread:-1"]
)
def test_temperatures_that_mean_nothing_are_refused(temperature: str) -> None:
    with pytest.raises(ValueError, match="a number >= 0, 'auto', 'spread:x' with x >= 0"):
        TaskInference(make_log_partition("batch"), temperature)


@pytest.mark.parametrize("temperature", [-0.1, float("nan")])
def test_negative_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature .*must (not be negative|be a number, not NaN)"):
        TaskInference(make_log_partition("batch"), temperature)


# -- draws ----------------------------------------------------------------------------------------------------------


def test_columns_are_drawn_with_their_probability() -> None:
    probabilities = np.array([0.5, 0.0, 0.2, 0.3])
    columns = sample_rows(np.tile(probabilities, (20_000, 1)), np.random.default_rng(0))
    frequencies = np.bincount(columns, minlength=4) / 20_000
    assert frequencies[1] == 0
    # Four standard deviations of a binomial share.
    assert np.all(np.abs(frequencies - probabilities) <= 4 * np.sqrt(probabilities * (1 - probabilities) / 20_000))


def test_each_row_is_drawn_from_its_own_probabilities() -> None:
    probabilities = np.eye(5)[[3, 0, 4, 2, 1]]
    assert_array_equal(sample_rows(probabilities, np.random.default_rng(0)), [3, 0, 4, 2, 1])


def test_a_column_of_probability_zero_is_never_drawn_not_even_at_the_edge() -> None:
    class Zeros:
        def random(self, n: int) -> np.ndarray:
            return np.zeros(n)

    edge: Any = Zeros()
    assert_array_equal(sample_rows(np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 0.5]]), edge), [2, 1])


def test_effective_tasks_runs_from_one_to_the_number_of_tasks() -> None:
    assert_allclose(effective_tasks(np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])), [1, 4, 2])


def test_label_divergence_is_the_kl_of_the_marginal_from_the_prior() -> None:
    posterior = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    prior, marginal = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    assert_allclose(label_divergence(posterior, np.log(prior) + 3.0), np.sum(marginal * np.log(marginal / prior)), rtol=1e-6)
    assert label_divergence(np.full((4, 3), 1 / 3), NO_WEIGHTS) == pytest.approx(0.0, abs=1e-12)


# -- the lemmas -----------------------------------------------------------------------------------------------------


def joint_kl(labels: np.ndarray, scores: np.ndarray, prior: np.ndarray, log_z: np.ndarray) -> float:
    """KL(q(tau, psi) || p(tau, psi)) on a finite set of equally likely trajectories with p(tau | psi) = exp(R) / Z / n."""
    n = len(scores)
    joint = labels / n
    log_target = np.log(prior) + scores - log_z - np.log(n)
    return float(np.sum(np.where(joint > 0, joint * (np.log(np.maximum(joint, 1e-300)) - log_target), 0.0)))


def test_relabeling_with_the_exact_z_lowers_the_joint_kl_by_the_kl_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores, prior = 3 * rng.standard_normal((30, 5)) + 10 * rng.standard_normal(5), rng.dirichlet(np.ones(5))
    exact = logsumexp(scores, axis=0) - np.log(30)
    assert_allclose(make_log_partition("batch")(TASKS, scores, np.log(prior)), exact, rtol=1e-12)
    before = rng.dirichlet(np.ones(5), size=30)
    after = task_posterior(scores, exact, np.log(prior))
    label_kl = np.mean(np.sum(before * np.log(before / after), axis=1))
    decrease = joint_kl(before, scores, prior, exact) - joint_kl(after, scores, prior, exact)
    assert decrease == pytest.approx(label_kl, abs=1e-10)

    without_z = task_posterior(scores, 0.0, np.log(prior))
    largest_reward = np.eye(5)[np.argmax(scores, axis=1)]
    best = joint_kl(after, scores, prior, exact)
    assert joint_kl(without_z, scores, prior, exact) > best + 0.1
    assert joint_kl(largest_reward, scores, prior, exact) > best + 0.1


def test_rewards_of_minus_infinity_unless_the_trajectory_ends_in_the_task_make_her_final() -> None:
    ends = np.array([2, 0, 1, 1, 2])
    scores = np.where(ends[:, None] == np.arange(3), 0.0, -np.inf)
    assert_array_equal(infer(scores).posterior, np.eye(3)[ends])


# -- strategies -----------------------------------------------------------------------------------------------------


class Rows:
    """Rows to be relabeled whose candidates and posterior are given."""

    def __init__(self, candidates: Candidates, posterior: np.ndarray | None = None) -> None:
        self._candidates, self._posterior = candidates, posterior
        n_rows = 4 if posterior is None else len(posterior)
        self.commanded = np.full((n_rows, 1), -1.0)

    def candidates(self) -> Candidates:
        return self._candidates

    def infer(self) -> Inference:
        assert self._posterior is not None, "this strategy must not look at the critic"
        return Inference(self._posterior, np.zeros(1), np.ones(1))

    def final_tasks(self) -> np.ndarray:
        return np.full_like(self.commanded, 50.0)

    def future_tasks(self, n: int | None = None) -> np.ndarray:
        return np.full_like(self.commanded, 60.0)

    def scores(self, tasks: np.ndarray, score: str | None = None) -> np.ndarray:
        raise AssertionError("this strategy must not look at the critic")

    def trajectory_returns(self, tasks: np.ndarray) -> np.ndarray:
        raise AssertionError("this strategy looks at no trajectory")

    recent_returns = trajectory_returns


SHARED = Candidates(np.array([[10.0], [20.0], [30.0]]), NO_WEIGHTS)


def assign(name: str, rows: Rows, seed: int = 0) -> np.ndarray:
    return make_strategy(name).assign(rows, np.random.default_rng(seed))


def test_none_keeps_the_commanded_task() -> None:
    rows = Rows(SHARED)
    assert_array_equal(assign("none", rows), rows.commanded)


def test_final_and_future_take_the_goals_of_the_own_trajectory() -> None:
    assert_array_equal(assign("final", Rows(SHARED)), np.full((4, 1), 50.0))
    assert_array_equal(assign("future", Rows(SHARED)), np.full((4, 1), 60.0))


def test_hipi_draws_from_the_posterior() -> None:
    posterior = np.tile([0.1, 0.2, 0.7], (20_000, 1))
    tasks = assign("hipi", Rows(SHARED, posterior))
    for value, share in ((10.0, 0.1), (20.0, 0.2), (30.0, 0.7)):
        assert abs(np.mean(tasks == value) - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_map_takes_the_mode_of_the_posterior() -> None:
    posterior = np.array([[0.4, 0.35, 0.25], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])
    assert_array_equal(assign("map", Rows(SHARED, posterior)), [[10.0], [30.0], [20.0]])


@pytest.mark.parametrize("name", ["hipi", "map"])
def test_a_row_with_no_candidate_left_keeps_its_commanded_task(name: str) -> None:
    posterior = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert_array_equal(assign(name, Rows(SHARED, posterior)), [[20.0], [-1.0]])


@pytest.mark.parametrize("strategy", [HIPI(), MaximumAPosteriori()])
def test_candidates_may_differ_from_row_to_row(strategy: Any) -> None:
    candidates = Candidates(np.array([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]]), np.zeros((3, 2)))
    posterior = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert_array_equal(strategy.assign(Rows(candidates, posterior), np.random.default_rng(0)), [[2.0], [3.0], [6.0]])


def test_a_strategy_given_as_object_is_used_as_it_is() -> None:
    strategy = HIPI()
    assert make_strategy(strategy) is strategy


def test_an_unknown_strategy_suggests_the_nearest_and_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown strategy 'futur'. Did you mean 'future'\?") as error:
        make_strategy("futur")
    assert all(repr(name) in str(error.value) for name in KEY_TO_STRATEGY)


@pytest.mark.parametrize("scale", [0.01, 100.0])
@pytest.mark.parametrize("temperature", ["spread:1", "spread:2", "ess:4"])
@pytest.mark.parametrize("by_row", [False, True], ids=["shared tasks", "tasks by row"])
def test_rewards_of_another_scale_give_the_same_posterior(temperature: str, scale: float, by_row: bool) -> None:
    """A critic of rewards that are all multiplied by a number gives scores that are: no option has to be touched."""
    scores = np.random.default_rng(0).gumbel(size=(40, 12)) * np.linspace(0.2, 3, 12)
    scores[3, 4], scores[:, 7] = -np.inf, -np.inf
    estimator = "none" if by_row else "running"
    tasks = np.zeros((40, 12, 1)) if by_row else np.linspace(-1, 1, 12, dtype=np.float32)[:, None]

    def posterior(scores: np.ndarray) -> np.ndarray:
        partition = make_log_partition(estimator)
        partition.setup(spaces.Box(-1, 1, (1,)), None if by_row else tasks)
        return TaskInference(partition, temperature)(tasks, scores, np.zeros(12)).posterior

    np.testing.assert_allclose(posterior(scale * scores), posterior(scores), atol=1e-6)
    assert 1.5 < effective_tasks(posterior(scores)).mean() < 11


def test_a_spread_is_that_of_the_scores_within_each_task() -> None:
    scores = np.array([[1.0, 10.0], [3.0, 10.0], [2.0, -np.inf]])
    # Without the means 2 and 10: -1, 1, 0 and 0, 0; five possible pairs.
    expected = 0.5 * np.sqrt(2 / 5)
    tasks = np.array([[0.0], [1.0]])
    found = TaskInference(make_log_partition("none"), "spread:0.5")(tasks, scores, np.zeros(2))
    assert found.temperature == pytest.approx(expected)
    np.testing.assert_allclose(found.posterior, task_posterior(scores / expected))
    # Where nothing differs every task is as good.
    np.testing.assert_allclose(
        TaskInference(make_log_partition("none"), "spread:1")(tasks, np.ones((3, 2)), np.zeros(2)).posterior, 0.5
    )


def test_effective_tasks_of_a_row_without_a_possible_task_are_none() -> None:
    posterior = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert effective_tasks(posterior).tolist() == [2.0, 0.0, 1.0]
    assert mean_effective_tasks(posterior) == 1.5 and mean_effective_tasks(posterior[1:2]) == 0.0
    assert label_divergence(posterior[:2], np.log([0.5, 0.5, 1e-9])) == pytest.approx(0.0, abs=1e-6)
    # So the temperature that is asked for in effective tasks is found as without such a row.
    scores = np.random.default_rng(0).normal(size=(20, 8))
    centered = np.vstack([scores, np.full((1, 8), -np.inf)])
    uniform = np.zeros(8)
    assert common_temperature(centered, uniform, 4.0) == pytest.approx(common_temperature(scores, uniform, 4.0), rel=1e-6)
