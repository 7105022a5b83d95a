"""Posterior, temperatures and estimators against the same definitions in arithmetic of fifty digits, at extremes."""

import warnings
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from numpy.testing import assert_allclose

from hipi_sb3.relabel.log_partition import SinkhornLogPartition, make_log_partition
from hipi_sb3.relabel.posterior import MIN_TEMPERATURE, TaskInference, effective_tasks, task_posterior

#: Batches of the normal suite. ``N_CASES * 50`` are drawn under ``expensive``.
N_CASES = 150
EPSILON = np.finfo(np.float64).eps

Matrix = list[list[mpf]]


@pytest.fixture(autouse=True)
def fifty_digits() -> Any:
    with mpmath.workdps(50):
        yield


def extreme_scores(rng: np.random.Generator) -> np.ndarray:
    """Scores between 1e-3 and 1e6, tasks of different scale and offset, ties, and -inf here and there, by row or by column."""
    n_rows, n_tasks = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    scores = 10.0 ** rng.uniform(-3, 6) * 10.0 ** rng.uniform(-3, 0, n_tasks) * rng.standard_normal((n_rows, n_tasks))
    scores += 10.0 ** rng.uniform(-3, 6) * rng.standard_normal(n_tasks) * rng.integers(2)
    kind = rng.integers(6)
    if kind == 1:
        scores[rng.random(scores.shape) < rng.random()] = -np.inf
    elif kind == 2:
        scores[rng.integers(n_rows)] = -np.inf
    elif kind == 3:
        scores[:, rng.integers(n_tasks)] = -np.inf
    elif kind == 4:
        scores = np.round(scores / np.abs(scores).max() * 2)
    elif kind == 5:
        scores[:] = rng.choice([-np.inf, 0.0, 1e6])
    return scores


def cases(seed: int, n: int) -> Any:
    """Scores, log weights and the generator that they were drawn from."""
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        scores = extreme_scores(rng)
        weights = rng.choice([0.0, 1.0, 30.0]) * rng.standard_normal(scores.shape[1])
        yield scores, weights, rng


# -- the definitions --------------------------------------------------------------------------------------------------


def exact(values: Any) -> Any:
    return [exact(value) for value in values] if np.ndim(values) else mpf(float(values))


def exact_posterior(scores: Matrix, prices: list[mpf], log_weights: list[mpf]) -> Matrix:
    """p(psi) exp(R - log Z) / its sum over tasks; zeros where no task is possible."""
    rows = []
    for row in scores:
        odds = [mpmath.exp(r - z + w) for r, z, w in zip(row, prices, log_weights, strict=True)]
        total = sum(odds)
        rows.append([value / total if total else mpf(0) for value in odds])
    return rows


def exact_log_mean_exp(scores: Matrix) -> list[mpf]:
    """Log of the mean of exp(R) over rows; 0 for a task that is possible nowhere."""
    sums = [sum(map(mpmath.exp, column)) for column in zip(*scores, strict=True)]
    return [mpmath.log(total / len(scores)) if total else mpf(0) for total in sums]


def exact_effective(row: list[mpf]) -> mpf:
    return 1 / sum(value**2 for value in row)


def exact_effective_at(row: list[mpf], temperature: float) -> mpf:
    nothing = [mpf(0)] * len(row)
    return exact_effective(exact_posterior([[value / temperature for value in row]], nothing, nothing)[0])


def exact_spread(scores: Matrix) -> mpf:
    """Standard deviation of the scores less the mean of each task, impossible ones aside."""
    squares: list[mpf] = []
    for column in zip(*scores, strict=True):
        finite = [value for value in column if value != -mpmath.inf]
        squares += [(value - sum(finite) / len(finite)) ** 2 for value in finite]
    return mpmath.sqrt(sum(squares) / len(squares)) if squares else mpf(0)


def exact_sinkhorn(scores: Matrix, log_weights: list[mpf], tolerance: float, max_rounds: int) -> tuple[list[mpf], mpf]:
    """Prices, and how far the marginal of the labels is from the prior with them."""
    prices = exact_log_mean_exp(scores)
    possible = [row for row in scores if any(value != -mpmath.inf for value in row)]
    supplied = [j for j in range(len(prices)) if any(row[j] != -mpmath.inf for row in possible)]
    if not supplied:
        return prices, mpf(0)
    total = sum(mpmath.exp(log_weights[j]) for j in supplied)
    prior = {j: mpmath.exp(log_weights[j]) / total for j in supplied}
    for _ in range(max_rounds):
        posterior = exact_posterior(possible, prices, log_weights)
        marginal = {j: sum(row[j] for row in posterior) / len(possible) for j in supplied}
        error = max(abs(marginal[j] - prior[j]) for j in supplied)
        if error <= tolerance:
            break
        factors = {j: prior[j] / max(marginal[j], mpf("1e-12")) for j in supplied}
        largest = max(factors.values())
        for j in supplied:
            prices[j] -= mpmath.log(factors[j] / largest)
    return prices, error


def numbers(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def rounding(scores: np.ndarray, *others: Any) -> float:
    """What rounding numbers of this size may change in a sum of a few of them, and so by what factor in its exponential."""
    finite = [np.abs(np.asarray(values)[np.isfinite(values)]).max(initial=1.0) for values in (scores, *others)]
    return 16 * EPSILON * max(finite)


def assert_close(found: np.ndarray, expected: Any, tolerance: float) -> None:
    assert_allclose(found, numbers(expected), rtol=tolerance, atol=1e-300 + tolerance)


# -- against the code -------------------------------------------------------------------------------------------------


def check_posteriors(seed: int, n: int) -> None:
    for scores, weights, rng in cases(seed, n):
        prices = rng.choice([0.0, 1.0, 1e5]) * rng.standard_normal(scores.shape[1])
        found = task_posterior(scores, prices, weights)
        assert_close(found, exact_posterior(exact(scores), exact(prices), exact(weights)), rounding(scores, prices))


def check_estimators(seed: int, n: int) -> None:
    for scores, weights, _ in cases(seed, n):
        tasks = np.arange(float(scores.shape[1]))[:, None]
        expected = exact_log_mean_exp(exact(scores))
        assert_close(make_log_partition("batch")(tasks, scores, weights), expected, rounding(scores))
        finite = [[value for value in column if np.isfinite(value)] for column in scores.T]
        means = [sum(exact(column)) / max(len(column), 1) for column in finite]
        assert_close(make_log_partition("mean")(tasks, scores, weights), means, rounding(scores))


def check_temperatures(seed: int, n: int) -> None:
    for scores, weights, rng in cases(seed, n):
        tasks, exact_scores = np.arange(float(scores.shape[1]))[:, None], exact(scores)
        number = float(10.0 ** rng.uniform(-12, 6)) * float(rng.integers(4) > 0)
        spreads = float(rng.choice([0.0, 1e-6, 0.5, 10.0]))
        by_spread = spreads * exact_spread(exact_scores)
        for temperature, alpha, expected in (
            (number, None, mpf(number)),
            ("auto", number, mpf(number)),
            (f"spread:{spreads}", None, by_spread),
        ):
            found = TaskInference(make_log_partition("batch"), temperature)(tasks, scores, weights, alpha=alpha)
            assert_close(found.temperature, expected, max(rounding(scores), 1e-10))
            # The rest at the temperature that was found: a last digit of it is many of the posterior when it is small.
            divisor = max(mpf(float(found.temperature)), mpf(MIN_TEMPERATURE))
            scaled = [[value / divisor for value in row] for row in exact_scores]
            prices = exact_log_mean_exp(scaled)
            tolerance = rounding(numbers(scaled), numbers(prices))
            assert_close(found.log_partition, prices, tolerance)
            assert_close(found.posterior, exact_posterior(scaled, prices, exact(weights)), 4 * tolerance)


def check_effective_numbers(seed: int, n: int) -> int:
    n_found = 0
    for scores, weights, rng in cases(seed, n):
        weights = np.zeros_like(weights)  # the weights alone can already leave fewer tasks than are asked for
        tasks, target = np.arange(float(scores.shape[1]))[:, None], float(rng.uniform(1.2, 4))
        inference = TaskInference(make_log_partition("none"), f"ess:{target}")
        found = inference(tasks, scores, weights)
        assert np.isfinite(found.temperature).all()
        for row, temperature, posterior in zip(exact(scores), found.temperature[:, 0], found.posterior, strict=True):
            finite = [value for value in row if value != -mpmath.inf]
            if not finite:
                assert not posterior.any()
                continue
            n_best = sum(value == max(finite) for value in finite)
            if n_best >= target or len(finite) <= target or max(finite) - min(finite) < 1e-5:
                continue  # no temperature gives that many
            # Within a thousandth of the temperature lies the one that does.
            low, high = (exact_effective_at(row, float(temperature) * factor) for factor in (0.999, 1.001))
            if float(temperature) < 1.001e-3 * np.std(numbers(finite)):  # the lower end of the range
                assert low > target
                continue
            assert low <= target <= high, (row, temperature, target)
            n_found += 1
            assert effective_tasks(posterior[None])[0] == pytest.approx(target, rel=1e-2)
    return n_found


def check_sinkhorn(seed: int, n: int) -> int:
    n_matched = 0
    for scores, weights, rng in cases(seed, n):
        tasks, max_rounds = np.arange(float(scores.shape[1]))[:, None], int(rng.choice([1, 3, 20]))
        estimator = SinkhornLogPartition(max_rounds=max_rounds)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = estimator(tasks, scores, weights)
        expected, error = exact_sinkhorn(exact(scores), exact(weights), estimator.tolerance, max_rounds)
        assert np.isfinite(found).all()
        # What all tasks cost alike changes no label.
        difference = (found - numbers(expected))[np.isfinite(scores).any(axis=0)]
        assert len(difference) == 0 or np.ptp(difference) < 1e-9 + 1000 * rounding(scores, found)
        stopped = error <= estimator.tolerance
        assert bool(caught) == (not stopped), (caught, error)
        n_matched += bool(stopped)
    return n_matched


def test_posteriors() -> None:
    check_posteriors(1, N_CASES)


def test_estimators() -> None:
    check_estimators(2, N_CASES)


def test_temperatures() -> None:
    check_temperatures(3, N_CASES)


def test_effective_numbers_of_tasks() -> None:
    assert check_effective_numbers(4, N_CASES) > N_CASES / 4


def test_sinkhorn() -> None:
    assert check_sinkhorn(5, N_CASES) > N_CASES / 10


@pytest.mark.expensive
@pytest.mark.parametrize(
    "check", [check_posteriors, check_estimators, check_temperatures, check_effective_numbers, check_sinkhorn]
)
def test_many_more_of_each(check: Any) -> None:
    check(6, 50 * N_CASES)
