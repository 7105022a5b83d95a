"""Estimators of log Z that carry a state or iterate: running and Sinkhorn."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.testing import assert_allclose

from hipi_sb3.relabel.log_partition import BatchLogPartition, RunningLogPartition, SinkhornLogPartition, linex_loss
from hipi_sb3.relabel.posterior import task_posterior

TASKS = np.eye(4, dtype=np.float32)
ONE_HOT = spaces.Box(0.0, 1.0, (4,), np.float32)
UNIFORM = np.full(4, -np.log(4))
#: Four tasks that scale standard normal scores and shift them.
SCALE, SHIFT = np.array([0.1, 1.0, 3.0, 10.0]), np.array([0.0, -5.0, 20.0, -50.0])


def four_scales(rng: np.random.Generator, n: int = 256) -> np.ndarray:
    return rng.standard_normal((n, 4)) * SCALE + SHIFT


def running(tasks: np.ndarray | None = TASKS, space: spaces.Box = ONE_HOT, **kwargs: Any) -> RunningLogPartition:
    estimator = RunningLogPartition(**kwargs)
    estimator.setup(space, tasks)
    return estimator


# -- Sinkhorn --------------------------------------------------------------------------------------------------------


def test_sinkhorn_gives_every_task_its_share_whatever_its_scale() -> None:
    for seed in range(5):
        scores = four_scales(np.random.default_rng(seed))
        posterior = task_posterior(scores, SinkhornLogPartition()(TASKS, scores, UNIFORM), UNIFORM)
        # The batch's own marginal is what is matched: no sampling error, only the tolerance.
        assert_allclose(posterior.mean(axis=0), 0.25, atol=1.5e-3)


def test_sinkhorn_matches_a_prior_that_is_not_uniform() -> None:
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    scores = np.random.default_rng(1).standard_normal((200, 4)) * 2
    # Weights need not be normalised.
    log_weights = np.log(7 * prior)
    posterior = task_posterior(scores, SinkhornLogPartition()(TASKS, scores, log_weights), log_weights)
    assert_allclose(posterior.mean(axis=0), prior, atol=1.5e-3)


def test_no_round_of_sinkhorn_is_the_batch_estimate() -> None:
    scores = four_scales(np.random.default_rng(2))
    with pytest.warns(UserWarning, match="stopped after 0 rounds"):
        price = SinkhornLogPartition(max_rounds=0)(TASKS, scores, UNIFORM)
    assert_allclose(price, BatchLogPartition()(TASKS, scores, UNIFORM), rtol=1e-12)


def test_sinkhorn_says_once_that_it_reached_the_cap() -> None:
    scores = four_scales(np.random.default_rng(3))
    estimator = SinkhornLogPartition(max_rounds=2)
    with pytest.warns(UserWarning, match="2 rounds.*temperature"):
        estimator(TASKS, scores, UNIFORM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(TASKS, scores, UNIFORM)


def test_sinkhorn_leaves_out_impossible_tasks_and_rows() -> None:
    scores = np.random.default_rng(4).standard_normal((50, 4))
    scores[:, 2] = -np.inf
    scores[7] = -np.inf
    posterior = task_posterior(scores, SinkhornLogPartition()(TASKS, scores, UNIFORM), UNIFORM)
    possible = np.delete(posterior, 7, axis=0)
    assert_allclose(possible.mean(axis=0), [1 / 3, 1 / 3, 0, 1 / 3], atol=1.5e-3)


# -- running, finite families ----------------------------------------------------------------------------------------


def test_running_averages_the_exponentials_not_their_logs() -> None:
    """
    Scores of spread 3: log Z is 4.5 + the shift. Batches of 256 rows estimate it with a spread, so that the average of
    their logs is biased low by about 0.4; the average of the exponentials is not.
    """
    rng = np.random.default_rng(0)
    estimator = running(rate=0.002, jump=50.0)
    logs = []
    for _ in range(3000):
        scores = np.broadcast_to(3.0 * rng.standard_normal((256, 1)), (256, 4))
        estimator.update(TASKS, scores)
        logs.append(np.log(np.mean(np.exp(scores[:, 0]))))
    found = estimator(TASKS, scores, UNIFORM)[0]
    # 768 000 rows, of which the last 500 batches weigh most: the estimate has a standard error of about 0.2.
    assert abs(found - 4.5) < 0.5
    assert np.mean(logs) < 4.3 and abs(found - 4.5) < abs(np.mean(logs) - 4.5) + 0.1


def test_running_gives_the_labels_of_the_batch_estimate_on_average() -> None:
    rng = np.random.default_rng(1)
    estimator = running(rate=0.05)
    shares = []
    for _ in range(200):
        scores = four_scales(rng)
        estimator.update(TASKS, scores)
        shares.append(task_posterior(scores, estimator(TASKS, scores, UNIFORM), UNIFORM).mean(axis=0))
    # Task 3, of spread 10, is priced by its rarest scores: its share is small with either estimate.
    assert_allclose(np.mean(shares[100:], axis=0)[:3], [0.55, 0.36, 0.08], atol=0.08)


def test_running_prices_tasks_in_any_order_and_row_by_row() -> None:
    scores = four_scales(np.random.default_rng(2))
    estimator = running()
    estimator.update(TASKS, scores)
    in_order = estimator(TASKS, scores, UNIFORM)
    assert_allclose(in_order, BatchLogPartition()(TASKS, scores, UNIFORM))
    order = np.array([2, 0])
    assert_allclose(estimator(TASKS[order], scores[:, order], UNIFORM[order]), in_order[order])
    by_row = np.array([[0, 3], [1, 1], [2, 0]])
    assert_allclose(estimator(TASKS[by_row], np.zeros((3, 2)), np.zeros(2)), in_order[by_row])


def test_a_jump_of_the_level_is_followed_at_once_and_counted() -> None:
    scores = np.random.default_rng(3).standard_normal((256, 4))
    estimator = running(rate=0.01)
    for _ in range(20):
        estimator.update(TASKS, scores)
    assert estimator.n_resets == 0
    estimator.update(TASKS, scores + np.array([0.0, 100.0, 0.0, -100.0]))
    assert estimator.n_resets == 2
    expected = BatchLogPartition()(TASKS, scores, UNIFORM) + np.array([0, 100, 0, -100])
    assert_allclose(estimator(TASKS, scores, UNIFORM), expected, atol=1e-6)


# -- running, continuous families ------------------------------------------------------------------------------------

INTERVAL = spaces.Box(-1.0, 1.0, (1,), np.float32)


def gaussian_scores(rng: np.random.Generator, tasks: np.ndarray, spread: float, n: int = 256) -> np.ndarray:
    """Normal scores with mean 3 sin(2 psi) and standard deviation spread * (0.6 + 0.4 psi), (n, n_tasks)."""
    psi = tasks[:, 0]
    return 3 * np.sin(2 * psi) + spread * (0.6 + 0.4 * psi) * rng.standard_normal((n, len(psi)))


def gaussian_log_z(tasks: np.ndarray, spread: float) -> np.ndarray:
    """Closed form: mean plus half the variance, (n_tasks,)."""
    psi = tasks[:, 0]
    return 3 * np.sin(2 * psi) + (spread * (0.6 + 0.4 * psi)) ** 2 / 2


@pytest.mark.parametrize("start", [0.0, -30.0])
def test_the_network_follows_a_known_log_z_while_the_spread_grows_tenfold(start: float) -> None:
    rng = np.random.default_rng(0)
    estimator = running(None, INTERVAL)
    network: Any = estimator._estimator
    network.level = start
    grid = np.linspace(-1, 1, 41, dtype=np.float32)[:, None]
    errors = []
    for step in range(2000):
        spread = 0.2 + 1.8 * step / 2000
        tasks = rng.uniform(-1, 1, (32, 1)).astype(np.float32)
        estimator.update(tasks, gaussian_scores(rng, tasks, spread))
        if step % 250 == 249 and step > 500:
            errors.append(np.abs(estimator(grid, np.zeros((1, 41)), np.zeros(41)) - gaussian_log_z(grid, spread)).mean())
    assert max(errors) < 0.1, errors
    assert estimator.n_resets == (1 if start else 0)


def test_beyond_its_bound_the_loss_goes_on_with_the_same_slope() -> None:
    z = th.tensor([7.9, 8.0, 8.1, 30.0], requires_grad=True)
    linex_loss(z, bound=8.0).backward()
    assert z.grad is not None
    slopes = 4 * z.grad.numpy()  # the loss is a mean over four
    assert_allclose(slopes, np.exp([7.9, 8.0, 8.0, 8.0]) - 1, rtol=1e-5)
    assert_allclose(float(linex_loss(th.tensor([1.5]), 8.0)), np.exp(1.5) - 1.5 - 1, rtol=1e-6)


@pytest.mark.parametrize("tasks", [TASKS, None], ids=["finite", "continuous"])
def test_the_state_goes_on_after_saving(tasks: np.ndarray | None) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((32, 4)) for _ in range(6)]
    first = running(tasks)
    for scores in batches[:3]:
        first.update(TASKS, scores)
    state = copy.deepcopy(first.state_dict())
    pickled = pickle.loads(pickle.dumps(first))
    second = running(tasks)
    second.load_state_dict(state)
    for scores in batches[3:]:
        for estimator in (first, second, pickled):
            estimator.update(TASKS, scores)
    expected = first(TASKS, batches[0], UNIFORM)
    assert_allclose(second(TASKS, batches[0], UNIFORM), expected, rtol=1e-6)
    assert_allclose(pickled(TASKS, batches[0], UNIFORM), expected, rtol=1e-6)


def test_the_network_leaves_the_random_numbers_of_the_training_alone() -> None:
    th.manual_seed(0)
    expected = th.rand(3)
    th.manual_seed(0)
    running(None, INTERVAL).update(np.zeros((4, 1), dtype=np.float32), np.zeros((8, 4)))
    assert th.equal(th.rand(3), expected)


def test_the_network_leaves_the_random_numbers_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(th.cuda, "manual_seed_all", seeded.append)
    th.manual_seed(7)
    assert seeded == [7]  # that is how PyTorch seeds them
    running(None, INTERVAL)
    assert seeded == [7]


@pytest.mark.parametrize("tasks", [None, TASKS])
def test_rows_that_may_not_have_a_task_count_as_zero_in_its_mean(tasks: np.ndarray | None) -> None:
    candidates = np.array([[-0.5], [0.5]]) if tasks is None else TASKS[:2]
    estimator = running(tasks, INTERVAL if tasks is None else ONE_HOT)
    scores = np.zeros((16, 2))
    for k in range(3000 if tasks is None else 500):
        scores[:, 1] = -np.inf
        if k % 2 == 0:  # in every other batch nobody may have the second task, in the rest a quarter
            scores[:4, 1] = 0.0
        estimator.update(candidates.astype(np.float32), scores)
    found = estimator(candidates.astype(np.float32), scores, np.zeros(2))
    assert_allclose(found, [0.0, np.log(1 / 8)], atol=0.15)


def test_tasks_without_bounds_have_prices() -> None:
    for low, high in ((-np.inf, np.inf), (-3e38, 3e38)):
        estimator = running(None, spaces.Box(low, high, (1,), np.float32))
        tasks = np.array([[-1.0], [2.0]], dtype=np.float32)
        estimator.update(tasks, np.ones((4, 2)))
        assert np.isfinite(estimator(tasks, np.ones((4, 2)), np.zeros(2))).all()


def test_an_estimator_that_knows_no_tasks_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        RunningLogPartition().update(TASKS, np.zeros((2, 4)))
