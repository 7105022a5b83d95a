"""Anything else: a family from functions."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.tasks.family import FeatureFn, TaskFamily


class CallableTasks(TaskFamily):
    """
    A family from functions, each as the method of :class:`TaskFamily` with the same name.

    :param task_space: ``Box`` of shape (task_dim,); the prior is uniform over it unless ``sample`` is given
    :param feature_dim: number of features
    :param features: a :data:`FeatureFn`
    :param reward: ``reward(features, tasks) -> (...,)``
    :param terminated: ``terminated(features, tasks) -> bool (...,)``; never if None
    :param achieved: ``achieved(features) -> (..., task_dim)``; not a goal family if None
    :param success: ``success(features, tasks) -> bool (...,)``; no notion of success if None
    :param sample: ``sample(rng, n) -> (n, task_dim)``
    :param log_prior: ``log_prior(tasks) -> (...,)``; required with ``sample``
    :param tasks: all tasks of a finite family, (n_tasks, task_dim)
    :raises ValueError: when ``sample`` is given without ``log_prior``
    """

    def __init__(
        self,
        task_space: spaces.Box,
        feature_dim: int,
        features: FeatureFn,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray],
        terminated: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        achieved: Callable[[np.ndarray], np.ndarray] | None = None,
        success: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        sample: Callable[[Any, int], np.ndarray] | None = None,
        log_prior: Callable[[np.ndarray], np.ndarray] | None = None,
        tasks: np.ndarray | None = None,
    ) -> None:
        super().__init__(task_space, feature_dim, tasks)
        if sample is None and tasks is None and not task_space.is_bounded():
            raise ValueError(
                f"CallableTasks: an unbounded task space ({task_space}) has no uniform prior: give sample and log_prior."
            )
        if (sample is None) != (log_prior is None):
            raise ValueError("CallableTasks: give both sample and log_prior, or neither: one describes the other.")
        self.feature_fn = features
        self.reward_fn = reward
        self.terminated_fn = terminated
        self.achieved_fn = achieved
        self.success_fn = success
        self.sample_fn = sample
        self.log_prior_fn = log_prior

    @property
    def reaches_goals(self) -> bool:
        return self.achieved_fn is not None

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        if self.sample_fn is None:
            return super().sample(rng, n)
        return np.asarray(self.sample_fn(rng, n), dtype=np.float32)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return super().log_prior(tasks) if self.log_prior_fn is None else self.log_prior_fn(tasks)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.reward_fn(features, tasks)

    @property
    def tasks_end(self) -> bool:
        return self.terminated_fn is not None

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if self.terminated_fn is None:
            return super().terminated(features, tasks)
        return self.terminated_fn(features, tasks)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return super().achieved(features) if self.achieved_fn is None else self.achieved_fn(features)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return None if self.success_fn is None else self.success_fn(features, tasks)
