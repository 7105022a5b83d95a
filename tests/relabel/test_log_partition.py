"""Estimators of log Z."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from reference_example import LOG_SUM_EXP_PAPER, PAPER_SCORES

from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION, BatchLogPartition, make_log_partition
from hipi_sb3.relabel.posterior import TaskInference, task_posterior

TASKS = np.arange(3.0)[:, None]
NO_WEIGHTS = np.zeros(3)
#: Estimators without state, in which a column is one task.
STATELESS = ["none", "mean", "batch"]


def test_batch_is_log_mean_exp_over_the_rows() -> None:
    log_z = make_log_partition("batch")(TASKS, PAPER_SCORES, NO_WEIGHTS)
    assert_allclose(log_z, np.log(np.mean(np.exp(PAPER_SCORES), axis=0)), rtol=1e-6)


def test_batch_is_the_log_sum_exp_of_the_reference_example_less_log_three() -> None:
    log_z = make_log_partition("batch")(TASKS, PAPER_SCORES, NO_WEIGHTS)
    assert_allclose(log_z + np.log(3), LOG_SUM_EXP_PAPER, atol=1e-5)


def test_a_shift_of_all_log_z_changes_no_posterior() -> None:
    mean_based = task_posterior(PAPER_SCORES, LOG_SUM_EXP_PAPER - np.log(3))
    assert_allclose(mean_based, task_posterior(PAPER_SCORES, LOG_SUM_EXP_PAPER), rtol=1e-12)


def test_mean_is_the_mean_over_the_rows() -> None:
    assert_allclose(make_log_partition("mean")(TASKS, PAPER_SCORES, NO_WEIGHTS), PAPER_SCORES.mean(axis=0), rtol=1e-12)


def test_none_is_zero() -> None:
    assert_allclose(make_log_partition("none")(TASKS, PAPER_SCORES, NO_WEIGHTS), np.zeros(3))


@pytest.mark.parametrize("name", STATELESS)
def test_scores_of_thousands_do_not_overflow(name: str) -> None:
    scores = PAPER_SCORES * 1e5
    log_z = make_log_partition(name)(TASKS, scores, NO_WEIGHTS)
    assert np.isfinite(log_z).all()
    assert np.isfinite(task_posterior(scores, log_z)).all()


@pytest.mark.parametrize("name", STATELESS)
def test_a_task_impossible_for_every_row_has_a_finite_price_and_stays_excluded(name: str) -> None:
    scores = PAPER_SCORES.copy()
    scores[:, 1] = -np.inf
    log_z = make_log_partition(name)(TASKS, scores, NO_WEIGHTS)
    assert np.isfinite(log_z).all()
    posterior = task_posterior(scores, log_z)
    assert_allclose(posterior[:, 1], 0.0)
    assert_allclose(posterior.sum(axis=1), 1.0)


def test_rows_for_which_a_task_is_impossible_lower_its_batch_price_but_not_its_mean() -> None:
    scores = np.array([[1.0, 0.0], [-np.inf, 0.0]])
    assert_allclose(make_log_partition("batch")(TASKS[:2], scores, NO_WEIGHTS[:2]), [1.0 - np.log(2), 0.0])
    assert_allclose(make_log_partition("mean")(TASKS[:2], scores, NO_WEIGHTS[:2]), [1.0, 0.0])


def test_estimators_without_state_save_none() -> None:
    for name in STATELESS:
        assert make_log_partition(name).state_dict() == {}


def test_an_estimator_given_as_object_is_used_as_it_is() -> None:
    estimator = BatchLogPartition()
    assert make_log_partition(estimator) is estimator


def test_an_unknown_name_suggests_the_nearest_and_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown log partition 'bach'. Did you mean 'batch'\?") as error:
        make_log_partition("bach")
    assert all(repr(name) in str(error.value) for name in KEY_TO_LOG_PARTITION)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("none", [0, 0, 1, 0]), ("mean", [0.15, 0.16, 0.27, 0.42]), ("batch", [0.53, 0.35, 0.10, 0.02])],
)
def test_share_of_labels_that_tasks_of_different_scale_and_offset_get(name: str, expected: list[float]) -> None:
    # 256 rows of standard normal scores, four tasks that scale them by 0.1 / 1 / 3 / 10 and add 0 / -5 / 20 / -50.
    rng = np.random.default_rng(0)
    inference = TaskInference(make_log_partition(name), temperature=1.0)
    shares = []
    for _ in range(40):
        scores = rng.standard_normal((256, 4)) * [0.1, 1, 3, 10] + [0, -5, 20, -50]
        shares.append(inference(np.arange(4.0)[:, None], scores, np.zeros(4)).posterior.mean(axis=0))
    # Expected shares are given to two digits; 40 x 256 rows leave a standard error below 0.005.
    assert_allclose(np.mean(shares, axis=0), expected, atol=0.02)
