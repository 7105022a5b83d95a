"""Labels of trajectories: the arithmetic by hand and by brute force, and what log Z is for."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import ACTIONS, GOALS, directions, position_of
from numpy.testing import assert_allclose, assert_array_equal
from walks import INNER, walks

from hipi_sb3 import CallableTasks, DiscreteTasks, TrajectoryDataset
from hipi_sb3.cloning.labels import Labels, Segments, TrajectoryLabeler, keep_largest, segment_returns


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def label(dataset: TrajectoryDataset, strategy: str = "hipi", **options: Any) -> Labels:
    return TrajectoryLabeler(strategy, **options)(dataset, rng())


def positions(values: list[list[float]], family: Any = GOALS, **kwargs: Any) -> TrajectoryDataset:
    """Trajectories that reach these positions, one after another."""
    features = np.concatenate(values)[:, None].astype(np.float32)
    n = len(features)
    lengths = np.array([len(steps) for steps in values])
    return TrajectoryDataset(
        family, INNER, ACTIONS, np.zeros((n, 2), np.float32), np.zeros((n, 1), np.float32), features, lengths, **kwargs
    )


def dense(labels: Labels, n_tasks: int) -> np.ndarray:
    """Weight of every task, (n_rows, n_tasks)."""
    weights = np.zeros((len(labels.weights), n_tasks))
    np.put_along_axis(weights, labels.columns, labels.weights, axis=1)
    return weights


# -- the posterior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, [0.5, 0.3, 0.2]])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_weights_equal_brute_force(prior: list[float] | None, temperature: float) -> None:
    family = directions(prior)
    dataset = walks([4] * 6, family)
    # q(psi | tau) = p(psi) exp(R / T) / Z(psi) / sum_psi ..., with Z(psi) = mean_tau exp(R / T): loops, no package.
    expected = np.zeros((6, 3))
    for trajectory in range(6):
        for task in range(3):
            steps = [float(dataset.features[4 * trajectory + t, 0]) for t in range(4)]
            total = sum((position, -position, -abs(position))[task] for position in steps)
            expected[trajectory, task] = np.exp(total / temperature)
    expected /= expected.mean(axis=0)
    expected *= [1 / 3, 1 / 3, 1 / 3] if prior is None else prior
    expected /= expected.sum(axis=1, keepdims=True)
    labels = label(dataset, temperature=temperature, n_labels=3)
    assert_allclose(dense(labels, 3), expected, rtol=1e-5)
    # In blocks of any size.
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("hipi_sb3.cloning.labels._BLOCK_REWARDS", 5)
        assert_allclose(dense(label(dataset, temperature=temperature, n_labels=3), 3), expected, rtol=1e-5)


def test_the_largest_weights_are_kept_and_sum_to_one() -> None:
    posterior = np.array([[0.5, 0.1, 0.3, 0.1], [0.0, 0.0, 0.0, 0.0]])
    columns, weights, share = keep_largest(posterior, 2)
    assert_allclose(sorted(zip(columns[0], weights[0], strict=True)), [(0, 0.625), (2, 0.375)])
    assert_allclose(share, [0.8, 0.0])
    assert_array_equal(weights[1], [0.0, 0.0])  # a row without a possible task has no label


def test_effective_tasks_are_those_that_the_temperature_asks_for() -> None:
    labels = label(walks([6] * 40, directions()), temperature="ess:2", n_labels=3)
    effective = 1 / np.sum(labels.weights**2, axis=1)
    assert_allclose(np.median(effective), 2.0, rtol=0.02)
    assert labels.diagnostics["effective_tasks"] == pytest.approx(effective.mean(), rel=1e-4)


def ends_there(features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """0 where the task is reached, -inf elsewhere."""
    return np.where(np.abs(features[..., 0] - tasks[..., 0]) < 1e-6, 0.0, -np.inf)


def test_impossible_other_goals_make_it_her_final() -> None:
    """With r_psi = -inf unless the row ends in psi, the posterior is 1[psi = s_T]."""
    goals = np.array([[-1.0], [0.0], [1.0]], dtype=np.float32)
    box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    family = CallableTasks(box, 1, position_of, ends_there, tasks=goals)
    dataset = positions([[0.0], [1.0], [-1.0], [0.5]], family)
    labels = label(dataset, n_labels=3)
    assert_allclose(dense(labels, 3), [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])


def scaled(scale: float, offset: float, column: int, features: np.ndarray) -> np.ndarray:
    return scale * features[..., column] + offset


def four_features(env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> np.ndarray:
    return np.zeros(4)


def test_tasks_with_large_rewards_swallow_the_data_without_log_z_and_not_with_it() -> None:
    scales, offsets = (0.1, 1.0, 3.0, 10.0), (0.0, -5.0, 20.0, -50.0)
    rewards = [partial(scaled, scale, offset, k) for k, (scale, offset) in enumerate(zip(scales, offsets, strict=True))]
    family = DiscreteTasks(rewards, four_features, feature_dim=4)
    features = rng().standard_normal((512, 4)).astype(np.float32)
    n = len(features)
    dataset = TrajectoryDataset(
        family, INNER, ACTIONS, np.zeros((n, 2), np.float32), np.zeros((n, 1), np.float32), features, np.full(n, 1)
    )
    shares = {
        name: dense(label(dataset, strategy, n_labels=4, log_partition=log_partition), 4).mean(axis=0)
        for name, strategy, log_partition in (
            ("batch", "hipi", "batch"),
            ("sinkhorn", "hipi", "sinkhorn"),
            ("none", "hipi", "none"),
        )
    }
    assert shares["none"].max() > 0.99, shares  # the task with +20 on every step
    assert shares["batch"].max() < 0.6, shares
    assert_allclose(shares["sinkhorn"], 0.25, atol=2e-3)
    best = label(dataset, "max_reward")
    assert np.mean(np.argmax(best.tasks[best.columns[:, 0]], axis=1) == 2) > 0.95


# -- returns ----------------------------------------------------------------------------------------------------------


def test_a_return_ends_with_the_task() -> None:
    dataset = positions([[0.0, 0.5, 0.9, 0.5], [0.2, 0.3]])
    goals = np.array([[0.5], [0.9], [-0.9]], dtype=np.float32)
    segments = Segments.of(dataset)
    assert_allclose(segment_returns(dataset, segments, goals, "sum"), [[-1, -2, -4], [-2, -2, -2]])


def test_short_rows_are_continued_unless_the_task_or_the_environment_ended_them() -> None:
    values = [[0.0, 0.5, 0.9, 0.5], [0.2, 0.5], [0.2, 0.3], [0.2, 0.3]]
    dataset = positions(values, env_terminated=np.array([False, False, False, True]))
    goals = np.array([[0.5], [-0.9]], dtype=np.float32)
    segments = Segments.of(dataset)
    # The goal was reached in two steps; nowhere in two of what would have been four; fell off after two.
    assert_allclose(segment_returns(dataset, segments, goals, "extended"), [[-1, -4], [-1, -4], [-4, -4], [-2, -2]])
    assert_allclose(segment_returns(dataset, segments, goals, "sum"), [[-1, -4], [-1, -2], [-2, -2], [-2, -2]])
    assert_allclose(segment_returns(dataset, segments, goals, "mean"), [[-2, -4], [-2, -4], [-4, -4], [-4, -4]])


def test_rows_of_one_length_have_the_same_returns_whatever_the_option() -> None:
    dataset = walks([5] * 4, directions())
    results = [segment_returns(dataset, Segments.of(dataset), np.eye(3), returns) for returns in ("sum", "extended", "mean")]
    assert_allclose(results[1], results[0])
    assert_allclose(results[2], results[0])


def test_trajectories_are_cut_into_segments() -> None:
    segments = Segments.of(walks([5, 2, 4]), 2)
    assert_array_equal(segments.start, [0, 2, 4, 5, 7, 9])
    assert_array_equal(segments.length, [2, 2, 1, 2, 2, 2])
    assert_array_equal(segments.trajectory, [0, 0, 0, 1, 2, 2])
    assert_array_equal(segments.is_last, [False, False, True, True, False, True])
    assert_array_equal(segments.row_of(np.arange(11)), [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5])


def test_a_reward_that_is_no_number_names_trajectory_and_step() -> None:
    family = CallableTasks(spaces.Box(0.0, 1.0, (1,), np.float32), 1, position_of, root_of)
    with pytest.raises(ValueError, match=r"the reward of trajectory 1, step 2 for task \[.*\] is nan.*features \[-1.0\]"):
        label(positions([[1.0, 2.0], [0.0, 1.0, -1.0]], family))


def root_of(features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(features[..., 0]) * tasks[..., 0]


# -- steps that count -------------------------------------------------------------------------------------------------


def test_steps_after_the_end_of_the_task_are_not_cloned_for_it() -> None:
    dataset = positions([[0.0, 0.5, 0.9, 0.5]], tasks=np.array([[0.5]]))
    labels = label(dataset, "none")
    assert_array_equal(labels.ends, [[2]])
    columns, weights = labels.of_steps(np.arange(4))
    assert_array_equal(weights[:, 0], [1, 1, 0, 0])
    assert_array_equal(labels.tasks[columns[:, 0]], np.full((4, 1), 0.5, np.float32))
    assert labels.diagnostics["cloned_share"] == 0.5


# -- the other rules --------------------------------------------------------------------------------------------------


def test_final_is_the_goal_at_the_end_of_each_row() -> None:
    dataset = positions([[0.0, 0.5, 0.9, 0.6], [0.2, 0.3]])
    assert_allclose(label(dataset, "final").tasks[:, 0], [0.6, 0.3], rtol=1e-6)
    assert_allclose(label(dataset, "final", segment_length=2).tasks[:, 0], [0.5, 0.6, 0.3], rtol=1e-6)
    future = label(positions([[0.1, 0.2, 0.3]] * 300), "future").tasks[:, 0]
    assert_allclose(np.unique(future), [0.1, 0.2, 0.3], rtol=1e-6)


def test_map_is_the_mode_of_the_posterior() -> None:
    dataset = walks([5] * 30, directions())
    posterior = dense(label(dataset, n_labels=3), 3)
    mode = label(dataset, "map")
    assert mode.columns.shape == (30, 1)
    assert_array_equal(mode.columns[:, 0], posterior.argmax(axis=1))


def test_top_k_gives_each_task_its_best_rows() -> None:
    dataset = walks([5] * 20, directions())
    returns = segment_returns(dataset, Segments.of(dataset), np.eye(3))
    labels = label(dataset, "top_k", top_fraction=0.1)
    weights = dense(labels, 3)
    assert_array_equal(weights.sum(axis=0), [2, 2, 2])
    for task in range(3):
        assert set(np.flatnonzero(weights[:, task])) == set(np.argsort(-returns[:, task])[:2])
    assert labels.diagnostics["cloned_share"] == np.mean(weights.any(axis=1))


def test_random_labels_are_candidates() -> None:
    tasks = label(walks([2] * 300, directions([0.5, 0.3, 0.2])), "random").tasks
    assert_allclose(tasks.mean(axis=0), [0.5, 0.3, 0.2], atol=0.08)


def test_no_labels_of_the_data_are_needed_but_for_plain_cloning() -> None:
    for strategy in ("hipi", "map", "random", "final", "future", "max_reward", "top_k"):
        labels = label(walks([3, 4, 5]), strategy)
        assert np.isfinite(labels.tasks).all() and labels.n_steps.sum() > 0
    with pytest.raises(ValueError, match=r"the data set does not know them\. Give its tasks, or use 'hipi'"):
        label(walks([3, 4]), "none")
    with pytest.raises(ValueError, match="does not know its commanded tasks"):
        label(walks([3, 4]), candidates="batch")
    commanded = label(walks([3, 4], tasks=np.array([[0.1], [0.2]])), "none", segment_length=2)
    assert_allclose(commanded.tasks[:, 0], [0.1, 0.1, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "air"}, "Unknown strategy for trajectories 'air'"),
        ({"strategy": "hip"}, "Did you mean 'hipi'"),
        ({"temperature": "auto"}, "cloning has none"),
        ({"returns": "total"}, "Unknown kind of returns"),
        ({"n_labels": 0}, "n_labels must be at least 1"),
        ({"segment_length": 0}, "segment_length must be at least 1 step"),
        ({"top_fraction": 0.0}, "top_fraction is a share"),
        ({"candidates": "al"}, "Unknown candidate source"),
    ],
)
def test_unknown_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryLabeler(**options)


def test_rules_that_do_not_fit_the_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="no step fulfils a task of DiscreteTasks"):
        label(walks([3], directions()), "final")
    with pytest.raises(ValueError, match="candidates that all rows share"):
        label(walks([3]), candidates="future")


def test_log_z_of_a_large_data_set_is_taken_from_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = walks([5] * 400, directions())
    exact = dense(label(dataset, n_labels=3), 3)
    monkeypatch.setattr("hipi_sb3.cloning.labels._MAX_SCORES", 900)
    estimated = dense(label(dataset, n_labels=3), 3)
    assert 0 < np.abs(estimated - exact).max() < 0.1


def nowhere_for_the_second(features: np.ndarray) -> np.ndarray:
    return np.full(features.shape[:-1], -np.inf)


def first_position(features: np.ndarray) -> np.ndarray:
    return features[..., 0]


@pytest.mark.parametrize("strategy", ["hipi", "map", "max_reward", "random", "top_k"])
def test_a_task_that_is_impossible_for_a_row_is_not_cloned_there(strategy: str) -> None:
    family = DiscreteTasks([first_position, nowhere_for_the_second], feature_dim=1, features=position_of)
    labels = label(walks([3] * 20, family), strategy, **({"top_fraction": 0.5} if strategy == "top_k" else {}))
    chosen = labels.tasks[labels.columns]  # one-hot, (n_rows, n_labels, 2)
    weights = (labels.weights[..., None] * chosen).sum(axis=1)
    assert weights[:, 1].sum() == 0 and weights[:, 0].sum() > 0
    assert (labels.n_steps > 0).any()


def test_a_row_without_a_possible_task_spoils_no_statistic() -> None:
    family = DiscreteTasks([possible_on_the_right, possible_on_the_right], feature_dim=1, features=position_of)
    found = label(walks([3] * 20, family), "hipi", log_partition="none").diagnostics
    assert found["effective_tasks"] == pytest.approx(2) and found["label_kl"] == pytest.approx(0, abs=1e-9)
    assert found["kept_share"] == pytest.approx(1)


def possible_on_the_right(features: np.ndarray) -> np.ndarray:
    return np.where(features[..., 0] > 0, 1.0, -np.inf)


def test_a_running_log_z_has_nothing_to_run_over_in_a_data_set() -> None:
    with pytest.raises(ValueError, match=r"a data set is labeled once\. Use 'batch'"):
        label(walks([3, 4]), log_partition="running")
    assert label(walks([3] * 9, directions()), log_partition="running").n_steps.sum() > 0  # a finite family: one number a task
