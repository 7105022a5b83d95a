"""Finite sets of tasks; psi is a one-hot vector that says which."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.given import check_functions, numbers
from hipi_sb3.tasks.family import FeatureFn, TaskFamily, check_is_family
from hipi_sb3.tasks.task_set import OneHotState, one_hot_tasks


class DiscreteTasks(OneHotState, TaskFamily):
    """
    Any K reward functions; psi is a one-hot vector that says which.

    :param rewards: K functions of the features, (..., feature_dim) -> (...,), defined at module level
    :param features: a :data:`FeatureFn`
    :param feature_dim: number of features that it returns
    :param terminated: K functions of the features that say where the task ends, (..., feature_dim) -> bool (...,); never
        if None
    :param success: K functions of the features that say where the task is solved; no notion of success if None
    :param prior: p(psi), (K,), positive, sums to one; uniform if None
    :raises ValueError: when the lists differ in length or the prior is not a distribution
    """

    def __init__(
        self,
        rewards: Sequence[Callable[[np.ndarray], np.ndarray]],
        features: FeatureFn,
        feature_dim: int,
        terminated: Sequence[Callable[[np.ndarray], np.ndarray]] | None = None,
        success: Sequence[Callable[[np.ndarray], np.ndarray]] | None = None,
        prior: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        for name, functions in (("rewards", rewards), ("terminated", terminated), ("success", success)):
            if name == "rewards" or functions is not None:
                check_functions(f"DiscreteTasks: {name}", functions)
        n_tasks = len(rewards)
        super().__init__(_one_hot_space(n_tasks), feature_dim, tasks=one_hot_tasks(n_tasks))
        for name, functions in (("terminated", terminated), ("success", success)):
            if functions is not None and len(functions) != n_tasks:
                raise ValueError(f"DiscreteTasks: {n_tasks} rewards but {len(functions)} functions in {name}.")
        self.reward_fns = tuple(rewards)
        self.feature_fn = features
        self.terminated_fns = None if terminated is None else tuple(terminated)
        self.success_fns = None if success is None else tuple(success)
        self.log_prior_values = _log_prior_values(prior, n_tasks)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return self._task_set.values(tasks, self.log_prior_values)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _choose(self.reward_fns, features, tasks)

    @property
    def tasks_end(self) -> bool:
        return self.terminated_fns is not None

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if self.terminated_fns is None:
            return super().terminated(features, tasks)
        return _choose(self.terminated_fns, features, tasks)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return None if self.success_fns is None else _choose(self.success_fns, features, tasks)


class FiniteTasks(OneHotState, TaskFamily):
    """
    K chosen tasks of another family, shown to the policy as a one-hot vector.

    32 fixed goals, four corners or five target velocities are all this: the reward is the inner family's, but the policy
    sees only *which* task it is, so nothing generalises from one goal to the next and HER has no goal to relabel with.

    :param family: the family that knows the reward
    :param parameters: the K tasks of that family, (K, family.task_dim)
    :param prior: p(psi), (K,), positive, sums to one; uniform if None
    """

    def __init__(
        self, family: TaskFamily, parameters: Sequence[Any] | np.ndarray, prior: Sequence[float] | np.ndarray | None = None
    ) -> None:
        check_is_family("FiniteTasks", family)
        self.family = family
        numbers("FiniteTasks: parameters", parameters, "n_tasks", "task_dim")
        if len(parameters) == 0:
            raise ValueError("FiniteTasks: parameters must hold at least one task of the inner family, but there is none.")
        self.parameters = np.stack([family.check_task(parameter) for parameter in parameters])
        n_tasks = len(self.parameters)
        super().__init__(_one_hot_space(n_tasks), family.feature_dim, tasks=one_hot_tasks(n_tasks))
        self.log_prior_values = _log_prior_values(prior, n_tasks)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return self._task_set.values(tasks, self.log_prior_values)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.family.features(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.family.reward(features, self._parameter(tasks))

    @property
    def tasks_end(self) -> bool:
        return self.family.tasks_end

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.family.terminated(features, self._parameter(tasks))

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self.family.success(features, self._parameter(tasks))

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return self.family.judge(features, self._parameter(tasks))

    def _parameter(self, tasks: np.ndarray) -> np.ndarray:
        return np.dot(tasks, self.parameters)  # exactly the row that the 1 is in


def _one_hot_space(n_tasks: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, shape=(n_tasks,), dtype=np.float32)


def _log_prior_values(prior: Sequence[float] | np.ndarray | None, n_tasks: int) -> np.ndarray:
    """Log-probability of each task of a finite family, (n_tasks,)."""
    if prior is None:
        return np.full(n_tasks, -np.log(n_tasks))
    prior = numbers("prior", prior)
    if prior.shape != (n_tasks,) or np.any(prior <= 0) or not np.isclose(prior.sum(), 1.0):
        raise ValueError(f"prior must be {n_tasks} positive numbers that sum to 1, not {prior}.")
    return np.log(prior / prior.sum())


def _choose(functions: Sequence[Callable[[np.ndarray], np.ndarray]], features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Value of the function that each one-hot task names: features (..., feature_dim), tasks (..., K) -> (...,)."""
    features = np.asarray(features)
    index = np.argmax(tasks, axis=-1)
    if features.ndim == np.ndim(tasks) == 1:
        return functions[index](features)  # one step asks for one
    used, index = np.unique(index, return_inverse=True)
    index = index.reshape(np.shape(tasks)[:-1])
    values = np.stack([functions[k](features) for k in used], axis=-1)  # (..., number of used ones)
    shape = np.broadcast_shapes(values.shape[:-1], index.shape)
    values = np.broadcast_to(values, (*shape, len(used)))
    return np.take_along_axis(values, np.broadcast_to(index, shape)[..., None], axis=-1)[..., 0]
