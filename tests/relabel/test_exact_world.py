"""Against an exactly solved world: the posterior, the partition function and both lemmas of the paper."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from examples.exact_world import TabularWorld, divergence, labelers, random_world
from hipi_sb3.relabel.log_partition import BatchLogPartition
from hipi_sb3.relabel.posterior import task_posterior


def exact_log_z(world: TabularWorld) -> np.ndarray:
    states, actions = world.trajectories()
    returns = world.returns(states, actions) / world.alpha
    return logsumexp(returns + world.log_dynamics(states, actions)[:, None], axis=0)


def log_joint(world: TabularWorld) -> np.ndarray:
    """log p(tau, psi) = log p(psi) + dynamics + return - log Z, (n, n_tasks), with a uniform prior."""
    states, actions = world.trajectories()
    returns = world.returns(states, actions) / world.alpha
    dynamics = world.log_dynamics(states, actions)[:, None]
    return dynamics + returns - exact_log_z(world) - np.log(len(world.rewards))


def total_divergence(q_trajectory: np.ndarray, q_task: np.ndarray, log_p: np.ndarray) -> float:
    """KL(q(tau) q(psi | tau) || p(tau, psi))."""
    q = q_trajectory[:, None] * q_task
    return float(np.sum(q * (np.log(np.maximum(q, 1e-300)) - log_p)))


@pytest.mark.parametrize("seed", range(5))
def test_trajectory_posterior_equals_bayes_rule_with_the_optimal_policies(seed: int) -> None:
    world = random_world(seed, deterministic=True)
    states, actions = world.trajectories()
    # Brute force: how likely is each trajectory if the optimal policy of each task is rolled out?
    policies = world.policies()
    steps = np.arange(world.horizon)
    likelihood = policies[:, steps, states[:, :-1], actions].prod(axis=2).T  # (n, n_tasks)
    expected = likelihood / likelihood.sum(axis=1, keepdims=True)

    returns = world.returns(states, actions) / world.alpha
    np.testing.assert_allclose(task_posterior(returns, exact_log_z(world)), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_log_z_of_a_deterministic_world_is_the_soft_value_of_its_start(seed: int) -> None:
    world = random_world(seed, deterministic=True)
    np.testing.assert_allclose(exact_log_z(world), world.soft_value()[:, 0, 0] / world.alpha, rtol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_relabeling_never_increases_the_divergence_and_lowers_it_by_that_of_the_labels(seed: int) -> None:
    """Lemma 1, and Lemma 2 with equality, since the set of trajectories is finite and Z exact."""
    world = random_world(seed)
    rng = np.random.default_rng(seed)
    states, actions = world.trajectories()
    log_p = log_joint(world)
    q_trajectory = rng.dirichlet(np.ones(len(states)))
    before = rng.dirichlet(np.ones(len(world.rewards)), size=len(states))
    after = task_posterior(world.returns(states, actions) / world.alpha, exact_log_z(world))

    decrease = total_divergence(q_trajectory, before, log_p) - total_divergence(q_trajectory, after, log_p)
    assert decrease >= 0
    assert decrease == pytest.approx(divergence(before, after, q_trajectory), abs=1e-10)


@pytest.mark.parametrize("rule", ["mean as log Z", "no log Z", "largest return"])
def test_labels_without_the_exact_log_z_leave_a_larger_divergence(rule: str) -> None:
    world = random_world(0)
    states, actions = world.trajectories()
    log_p = log_joint(world)
    returns = world.returns(states, actions) / world.alpha
    q_trajectory = np.exp(logsumexp(log_p, axis=1))
    labels = labelers(returns, exact_log_z(world), q_trajectory)
    exact = total_divergence(q_trajectory, labels["exact log Z"], log_p)
    assert exact == pytest.approx(0.0, abs=1e-10)
    assert total_divergence(q_trajectory, labels[rule], log_p) > exact + 0.1


def test_goal_relabeling_is_the_special_case_of_impossible_other_goals() -> None:
    """With r_psi = -inf unless the trajectory ends in psi, the posterior is 1[psi = s_T]: HER "final"."""
    world = random_world(1, n_states=4)
    states, _ = world.trajectories()
    goals = np.arange(4)
    returns = np.where(states[:, -1:] == goals, 0.0, -np.inf)
    posterior = task_posterior(returns, BatchLogPartition()(goals[:, None], returns, np.zeros(4)))
    np.testing.assert_array_equal(posterior, states[:, -1:] == goals)


@pytest.mark.parametrize("alpha", [1.0, 0.2, 0.05])
def test_transition_posterior_with_the_exact_advantage_is_that_of_the_mixture_of_optimal_policies(alpha: float) -> None:
    world = random_world(2)
    world = TabularWorld(world.transitions, world.rewards, world.start, world.horizon, alpha)
    policies = world.policies()[:, 0]  # (n_tasks, n_states, n_actions) at the first step
    # p(psi | s, a) is proportional to pi_psi(a | s) under uniform p(psi | s).
    expected = (policies / policies.sum(axis=0)).reshape(len(policies), -1).T

    advantage = (world.soft_q()[:, 0] - world.soft_value()[:, 0, :, None]).reshape(len(policies), -1).T
    np.testing.assert_allclose(task_posterior(advantage / alpha), expected, rtol=1e-9)
    if alpha < 1:
        # Scores that are not divided by alpha give another posterior.
        weights = np.full(len(expected), 1 / len(expected))
        assert divergence(expected, task_posterior(advantage), weights) > 0.05


def test_transition_labels_are_best_with_q_and_batch_log_z_then_mean_then_none_then_the_largest_score() -> None:
    world = random_world(0, n_states=6, n_actions=3, n_tasks=4)
    policies = world.policies()[:, 0]
    expected = (policies / policies.sum(axis=0)).reshape(len(policies), -1).T  # (n, n_tasks)
    scores = world.soft_q()[:, 0].reshape(len(policies), -1).T / world.alpha
    weights = np.full(len(expected), 1 / len(expected))
    tasks = np.eye(4)
    labels = {
        "batch": task_posterior(scores, BatchLogPartition()(tasks, scores, np.zeros(4))),
        "mean": task_posterior(scores, scores.mean(axis=0)),
        "none": task_posterior(scores),
        "largest": softmax(1e6 * scores, axis=1),
    }
    kl = {name: divergence(expected, label, weights) for name, label in labels.items()}
    assert kl["batch"] + 0.02 < kl["none"] < kl["largest"], kl
    assert kl["mean"] + 0.02 < kl["none"], kl
