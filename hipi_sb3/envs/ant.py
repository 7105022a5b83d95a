"""Run in a given direction: MuJoCo's ant."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.envs.half_cheetah import make_unchecked
from hipi_sb3.envs.ring_goals import ring_log_density, sample_ring
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.wrappers import MultiTaskWrapper


class Directions(TaskFamily):
    """
    Move in a direction: r_psi = v . psi - action_cost * ``|a|^2`` + healthy_reward. psi is a unit vector, uniform.

    :param action_cost: weight of the squared norm of the action
    :param healthy_reward: reward of every step: where falling ends the episode, it has to be worth less than standing
    """

    def __init__(self, action_cost: float = 0.5, healthy_reward: float = 1.0) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32), feature_dim=3)
        self.action_cost = float(action_cost)
        self.healthy_reward = float(healthy_reward)

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        return sample_ring(rng, n, 1.0, 1.0)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return ring_log_density(tasks, 1.0, 1.0)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return np.array([info["x_velocity"], info["y_velocity"], np.dot(action, action)], dtype=np.float32)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        features, tasks = np.asarray(features), np.asarray(tasks, dtype=np.float32)
        forward = features[..., 0] * tasks[..., 0] + features[..., 1] * tasks[..., 1]
        return forward - np.float32(self.action_cost) * features[..., 2] + np.float32(self.healthy_reward)


def make_ant_direction(flatten: bool = False, fixed_task: Any = None, **kwargs: Any) -> MultiTaskWrapper:
    """
    Make ``Ant-v5`` with directions, as in Generalized Hindsight (arXiv 2002.11708); its own termination, a fall, stays.

    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: direction of every episode, (2,), a unit vector
    :param kwargs: arguments of ``gymnasium.make("Ant-v5", ...)``, such as ``render_mode``
    :return: the environment
    """
    env = make_unchecked("Ant-v5", **kwargs)
    return MultiTaskWrapper(env, Directions(), flatten=flatten, fixed_task=fixed_task)
