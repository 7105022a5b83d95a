"""Weights and set points: rewards that are linear in the features, target velocities."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hipi_sb3.given import check_number
from hipi_sb3.tasks.family import FeatureFn, TaskFamily, vector_box


class LinearReward(TaskFamily):
    """
    Rewards that are linear in the features: r_psi = phi(s, a, s') . psi. psi are the weights.

    :param low: smallest weights, (feature_dim,)
    :param high: largest weights, (feature_dim,)
    :param features: a :data:`FeatureFn` that returns phi, (feature_dim,)
    """

    def __init__(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, features: FeatureFn) -> None:
        space = vector_box(low, high)
        super().__init__(space, feature_dim=space.shape[0])
        self.feature_fn = features

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return weighted_sum(features, tasks)


class TargetVelocity(TaskFamily):
    """
    Move at a given speed: r_psi = -abs(v - psi) - action_cost * ``|a|^2``. psi is the target velocity.

    :param low: smallest target velocity (m/s)
    :param high: largest target velocity (m/s)
    :param velocity: where the velocity is read: a key of the inner environment's ``info``, or a :data:`FeatureFn` that
        returns one number
    :param action_cost: weight of the squared norm of the action
    :param tolerance: a step counts as a success within this distance of the target (m/s)
    """

    def __init__(
        self,
        low: float,
        high: float,
        velocity: str | FeatureFn = "x_velocity",
        action_cost: float = 0.05,
        tolerance: float = 0.2,
    ) -> None:
        super().__init__(vector_box([low], [high]), feature_dim=2)
        for name, value in (("action_cost", action_cost), ("tolerance", tolerance)):
            check_number(f"TargetVelocity: {name}", value)
        self.velocity = velocity
        self.action_cost = float(action_cost)
        self.tolerance = float(tolerance)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        if callable(self.velocity):
            velocity: Any = self.velocity(env, obs, action, next_obs, reward, info)
        else:
            velocity = info.get(self.velocity)
            if velocity is None:
                raise KeyError(
                    f"TargetVelocity reads info[{self.velocity!r}], but the environment's info has {sorted(info)}. "
                    "Pass velocity=<another key> or a function."
                )
        if not isinstance(velocity, float):
            velocity = np.asarray(velocity).item()
        features = np.empty(2, np.float32)
        features[0] = velocity
        features[1] = np.vdot(action, action)  # of all axes
        return features

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return -self._errors(features, tasks) - self.action_cost * features[..., 1].astype(np.float64)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self._errors(features, tasks) <= self.tolerance

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[Any, Any, Any]:
        if features.ndim == tasks.ndim == 1:  # one step: the same arithmetic with Python's numbers, which are fast
            velocity, energy = features.tolist()
            error = abs(velocity - tasks.item())
            return -error - self.action_cost * energy, False, error <= self.tolerance
        return super().judge(features, tasks)

    def _errors(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.abs(features[..., 0].astype(np.float64) - tasks[..., 0])


def weighted_sum(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Multiply and add up the last axis, in float32 as stored.

    :param features: features, (..., d)
    :param weights: weights, (..., d)
    :return: sums, (...,)
    """
    return np.add.reduce(np.asarray(features) * np.asarray(weights, dtype=np.float32), -1)
