"""Goals: reward 0 where one is reached, and -1 elsewhere."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.given import check_number, numbers
from hipi_sb3.tasks.family import FeatureFn, TaskFamily, vector_box

#: Reward of a goal that is not reached, and of one that is.
_REWARDS_OF_REACHED = np.array([-1.0, 0.0], dtype=np.float32)


class _Reaching(TaskFamily):
    """
    What families of goals share: reward 0 where the goal is reached, and -1 elsewhere.

    Subclasses set ``terminate``, whether reaching it ends the task, and ``position``, where it is read; ``_reached`` says what
    counts.
    """

    terminate: bool
    position: np.ndarray | FeatureFn

    @abstractmethod
    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Whether goals are reached: features (..., feature_dim), tasks (..., task_dim) -> bool (...,)."""

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return _read_position(self.position, env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _REWARDS_OF_REACHED.take(self._reached(features, tasks))

    @property
    def tasks_end(self) -> bool:
        return self.terminate

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self._reached(features, tasks) if self.terminate else super().terminated(features, tasks)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self._reached(features, tasks)

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        reached = self._reached(features, tasks)
        return _REWARDS_OF_REACHED.take(reached), reached.copy() if self.terminate else np.zeros_like(reached), reached


class GoalReaching(_Reaching):
    """
    Reach a goal: reward 0 within ``radius`` of it, where the task ends, and -1 elsewhere. psi is the goal.

    :param low: lower corner of the goal space, (goal_dim,)
    :param high: upper corner of the goal space, (goal_dim,)
    :param radius: distance (Euclidean, units of the goal) at which the goal counts as reached, inclusive
    :param position: where the goal is read: indices into the flattened next observation, or a :data:`FeatureFn` that returns
        (goal_dim,). The first goal_dim entries if None
    :param terminate: whether reaching the goal ends the task
    :param prior: corners ``(low, high)`` of the box that goals are drawn from, where it is smaller than the goal space
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        radius: float,
        position: Sequence[int] | FeatureFn | None = None,
        terminate: bool = True,
        prior: tuple[Any, Any] | None = None,
    ) -> None:
        goal_space = vector_box(low, high)
        super().__init__(goal_space, goal_space.shape[0], prior_space=None if prior is None else vector_box(*prior))
        check_number(f"{type(self).__name__}: radius", radius)
        if not radius > 0:
            raise ValueError(f"{type(self).__name__}: radius must be positive, not {radius}.")
        self.radius = float(radius)
        self.terminate = terminate
        self.position = _position(position, goal_space.shape[0])

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return features

    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _squared_distance(features, tasks) <= self.radius**2


class GoalMargin(_Reaching):
    """
    Reach a goal to within a tolerance that is part of the task: psi = (goal, tolerance).

    Section 5 of the HIPI paper (arXiv 2002.11089) uses it to show tasks that are not goals alone. The hindsight task of a
    transition is the position it reached, with half the largest tolerance: any tolerance would be fulfilled, the
    half is the prior's median.

    :param low: lower corner of the goal space, (goal_dim,)
    :param high: upper corner of the goal space, (goal_dim,)
    :param max_tolerance: largest tolerance (Euclidean distance, units of the goal); the prior is uniform in [0, max]
    :param position: as in :class:`GoalReaching`
    :param terminate: whether reaching the goal ends the task
    :param prior: corners ``(low, high)`` of the box that goals are drawn from, where it is smaller than the goal space
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        max_tolerance: float,
        position: Sequence[int] | FeatureFn | None = None,
        terminate: bool = True,
        prior: tuple[Any, Any] | None = None,
    ) -> None:
        check_number("GoalMargin: max_tolerance", max_tolerance)
        if not max_tolerance > 0:
            raise ValueError(f"GoalMargin: max_tolerance must be positive, not {max_tolerance}.")
        low, high = numbers("low", low), numbers("high", high)
        self.goal_dim = np.size(low)

        def with_tolerance(low: Any, high: Any) -> spaces.Box:
            return vector_box(np.append(low, 0.0), np.append(high, max_tolerance))

        prior_space = None if prior is None else with_tolerance(*prior)
        super().__init__(with_tolerance(low, high), feature_dim=self.goal_dim, prior_space=prior_space)
        self.max_tolerance = float(max_tolerance)
        self.terminate = terminate
        self.position = _position(position, self.goal_dim)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        tolerance = np.full((*features.shape[:-1], 1), 0.5 * self.max_tolerance, dtype=np.float32)
        return np.concatenate([features, tolerance], axis=-1)

    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        tasks = np.asarray(tasks, dtype=np.float32)
        return _squared_distance(features, tasks[..., : self.goal_dim]) <= tasks[..., self.goal_dim] ** 2


def _squared_distance(features: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance over the last axis, in float32 as stored: (..., d), (..., d) -> (...,)."""
    difference = np.subtract(features, goals, dtype=np.float32)
    squares = difference * difference
    if squares.shape[-1] == 2:  # the same sum, in half the time on the few rows that environments have
        return squares[..., 0] + squares[..., 1]
    return np.add.reduce(squares, axis=-1)


def _position(position: Sequence[int] | FeatureFn | None, goal_dim: int) -> np.ndarray | FeatureFn:
    if callable(position):
        return position
    given = np.arange(goal_dim) if position is None else numbers("position", position)
    indices = np.nan_to_num(given).astype(int)
    if indices.shape != (goal_dim,) or (indices != given).any():
        raise ValueError(f"position must name {goal_dim} entries of the observation, not {given.tolist()}.")
    return indices


def _read_position(
    position: np.ndarray | FeatureFn, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]
) -> np.ndarray:
    if callable(position):
        return position(env, obs, action, next_obs, reward, info)
    if isinstance(next_obs, dict):
        raise ValueError(
            f"position has indices into the observation, but that is a dictionary of {', '.join(next_obs)}. Pass position=<a "
            "function (env, obs, action, next_obs, reward, info)> that returns where the goal counts."
        )
    return np.asarray(next_obs).take(position)  # of the flattened observation
