"""Weights on the objectives of a vector reward, and how well they are served."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal

from hipi_sb3 import HIPIDQN, HIPISAC, MultiTaskWrapper
from hipi_sb3.tasks.vector_reward import VectorRewardTasks, expected_utility, hypervolume, vector_returns


class TwoObjectives(gym.Env):
    """Two actions, each good for one objective; three steps."""

    observation_space = spaces.Box(0.0, 3.0, shape=(1,), dtype=np.float32)
    action_space = spaces.Discrete(2)
    reward_space = spaces.Box(0.0, 1.0, shape=(2,), dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t], dtype=np.float32), np.eye(2, dtype=np.float32)[action], self.t == 3, False, {}


class Greedy:
    """Acts for the objective with the larger weight."""

    def predict(self, obs, deterministic=True):
        return int(np.argmax(obs["task"])), None


def test_the_reward_is_the_weighted_sum():
    family = VectorRewardTasks(TwoObjectives())
    features, weights = np.array([[1.0, 2.0], [0.0, -1.0]], dtype=np.float32), np.array([[0.25, 0.75], [1.0, 0.0]])
    assert_allclose(family.reward(features[:, None], weights), [[1.75, 1.0], [-0.75, 0.0]])
    env = MultiTaskWrapper(TwoObjectives(), family)
    env.reset(seed=0, options={"task": [0.25, 0.75]})
    _, reward, _, _, info = env.step(1)
    assert reward == 0.75
    assert_array_equal(info["task_features"], [0, 1])


@pytest.mark.parametrize("n_objectives", [2, 3])
def test_weights_are_uniform_on_the_simplex(n_objectives):
    family = VectorRewardTasks(n_objectives)
    weights = family.sample(np.random.default_rng(0), 4000)
    assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert (weights >= 0).all()
    # A weight's mean is 1 / d and its variance (d - 1) / (d^2 (d + 1)).
    d = n_objectives
    assert_allclose(weights.mean(axis=0), 1 / d, atol=4 * np.sqrt((d - 1) / (d**2 * (d + 1)) / 4000))
    # The simplex without its last weight has the area 1 / (d - 1)!.
    assert_allclose(family.log_prior(weights), np.log(1 if d == 2 else 2))
    assert_array_equal(family.log_prior(np.array([[0.9] * d, [1.5, -0.5] + [0.0] * (d - 2)])), [-np.inf, -np.inf])


def test_an_environment_with_a_number_as_reward_is_refused():
    with pytest.raises(ValueError, match="has no reward_space"):
        VectorRewardTasks(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="at least two objectives, not 1"):
        VectorRewardTasks(1)


def test_vector_returns_add_up_the_vectors_for_each_weight():
    env = MultiTaskWrapper(TwoObjectives(), VectorRewardTasks(2))
    weights = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert_allclose(vector_returns(Greedy(), env, weights, n_episodes=2), [[3, 0], [0, 3]])
    assert_allclose(vector_returns(Greedy(), env, weights, gamma=0.5), [[1.75, 0], [0, 1.75]])


def test_hypervolume_of_boxes():
    assert hypervolume([[2, 3]], [0, 0]) == 6
    assert hypervolume([[2, 3], [3, 1]], [0, 0]) == 6 + 1
    assert hypervolume([[2, 3], [3, 1], [1, 1], [2, 3]], [0, 0]) == 7  # dominated and repeated points add nothing
    assert hypervolume([[2, 3], [3, 1]], [1, 1]) == 2
    assert hypervolume([[-1, 5]], [0, 0]) == 0 and hypervolume(np.zeros((0, 2)), [0, 0]) == 0
    assert hypervolume([[1, 2, 3]], [0, 0, 0]) == 6


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(n_objectives):
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(12, n_objectives))
    at = rng.uniform(size=(200_000, n_objectives))
    share = np.any(np.all(at[:, None] <= points, axis=2), axis=1).mean()
    assert_allclose(hypervolume(points, np.zeros(n_objectives)), share, atol=4 * np.sqrt(0.25 / 200_000))


def test_expected_utility_takes_the_best_point_for_each_weight():
    points, weights = [[3, 0], [0, 2]], [[1, 0], [0, 1], [0.5, 0.5]]
    assert_allclose(expected_utility(points, weights), (3 + 2 + 1.5) / 3)
    worst = lambda points, weights: np.min(points[:, None] * weights, axis=-1)  # noqa: E731
    assert expected_utility(points, weights, utility=worst) == 0


@pytest.mark.parametrize("env_id", ["mo-halfcheetah-v5", "mo-hopper-v5"])
def test_mo_gymnasium_becomes_a_family_of_weights(env_id):
    require("mo_gymnasium")
    inner = gym.make(env_id)
    env = MultiTaskWrapper(inner, VectorRewardTasks(inner))
    model = HIPISAC("MultiInputPolicy", env, learning_starts=50, seed=0)
    model.learn(60)
    samples = model.replay_buffer.sample(20)
    assert np.isfinite(samples.rewards.numpy()).all()
    assert_allclose(samples.observations["task"].sum(dim=1), 1.0, atol=1e-5)


def test_deep_sea_treasure_is_learned_by_dqn():
    require("mo_gymnasium")
    inner = gym.make("deep-sea-treasure-v0")
    env = MultiTaskWrapper(inner, VectorRewardTasks(inner))
    model = HIPIDQN("MultiInputPolicy", env, learning_starts=50, seed=0)
    model.learn(100)
    returns = vector_returns(model, env, np.array([[1.0, 0.0], [0.0, 1.0]]), seed=0)
    assert returns.shape == (2, 2) and (returns[:, 1] < 0).all()
