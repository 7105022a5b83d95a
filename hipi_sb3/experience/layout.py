"""Where an observation holds its task, and the same operation on all arrays of an observation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class TaskLayout:
    """
    Where an observation holds its task: under a key of a Dict, or in the last entries of a flat Box. And how: a goal may be an
    image, a number or bits there. Everywhere else tasks are flat vectors of floating-point numbers; here is the one place that
    turns one into the other.

    Works alike on single observations and on batches.

    :param key: key of a Dict observation; None for ``observation || task`` in one Box
    :param task_dim: numbers of a task
    :param shape: shape of a task as it is stored in an observation, (task_dim,) if None
    """

    key: str | None
    task_dim: int
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_space(cls, space: spaces.Space, key: str, task_dim: int) -> "TaskLayout":
        """
        The layout of observations of a space.

        :param space: space of the observations
        :param key: key of the task where it is a Dict
        :param task_dim: numbers of a task
        :return: the layout
        """
        return cls(key, task_dim, stored_shape(space[key])) if isinstance(space, spaces.Dict) else cls(None, task_dim)

    def get(self, observations: Any) -> Any:
        """Tasks of observations, (..., task_dim)."""
        if self.key is None:
            return observations[..., -self.task_dim :]
        return self.flatten(observations[self.key])

    def put(self, observations: Any, tasks: Any) -> Any:
        """The same observations with other tasks, (..., task_dim), in the type of these; the argument is left as it is."""
        if self.key is not None:
            return {**observations, self.key: self.unflatten(tasks)}
        return np.concatenate([observations[..., : -self.task_dim], tasks], axis=-1)

    def write(self, observations: Any, rows: np.ndarray, tasks: np.ndarray) -> None:
        """Put tasks, (n_rows, task_dim), into rows of the arrays of observations, in the type that they have there."""
        if self.key is None:
            observations[rows, -self.task_dim :] = tasks
        else:
            observations[self.key][rows] = self.unflatten(tasks)

    def flatten(self, values: np.ndarray) -> np.ndarray:
        """Goals as observations have them, ``(..., *shape)``, as flat floating-point numbers, (..., task_dim)."""
        if values.dtype.kind != "f":
            values = values.astype(np.float32)
        if self.shape is None or len(self.shape) == 1:
            return values
        return values.reshape(*values.shape[: values.ndim - len(self.shape)], self.task_dim)

    def unflatten(self, tasks: Any) -> Any:
        """The way back but for the type: (..., task_dim) -> ``(..., *shape)``."""
        if self.shape is None or len(self.shape) == 1:
            return tasks
        return tasks.reshape(*tasks.shape[:-1], *self.shape)


def stored_shape(space: spaces.Space) -> tuple[int, ...]:
    """
    Shape of a stored observation: stable-baselines3 keeps the number of a discrete one in an array of length one.

    :param space: its space
    :return: its shape
    """
    return (1,) if isinstance(space, spaces.Discrete) else tuple(space.shape or ())


def stored_type(space: spaces.Space) -> np.dtype:
    """
    Type of a stored observation. The networks read float32: wider ones would be stored for nothing.

    :param space: its space
    :return: its type
    """
    return np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)


def without_task(parts: Any, task_key: str | None) -> Any:
    """
    A Dict observation, or its space, without the task: what is left is one array where it was made by MultiTaskWrapper.

    :param parts: arrays by key, or ``spaces.Dict``
    :param task_key: key of the task
    :return: the other entries; the entry ``observation`` where there is no other
    """
    rest = {key: part for key, part in parts.items() if key != task_key}
    if rest.keys() == {"observation"}:
        return rest["observation"]
    return spaces.Dict(rest) if isinstance(parts, spaces.Dict) else rest


def each(observations: Any, function: Callable[[Any], Any]) -> Any:
    """
    Apply a function to every array of an observation.

    :param observations: array or dict of arrays
    :param function: function of one array
    :return: its result, or a dict of its results
    """
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def gather(observations: Any, at: Any) -> Any:
    """
    Index every array of an observation.

    :param observations: array or dict of arrays
    :param at: rows of a batch, (n,), or the two indices of :func:`take`
    :return: the indexed array, or a dict of such
    """
    return each(observations, lambda array: take(array, at) if isinstance(at, tuple) else array.take(at, axis=0))


def take(array: np.ndarray, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """
    ``array[at]`` of a stored array, several times faster: ``ndarray.take`` copies row by row.

    :param array: stored array, (buffer_size, n_envs, ...)
    :param at: ring indices and environment indices, (n, ...) each
    :return: (n, ...)
    """
    steps, env_inds = at
    if array.shape[1] == 1 and steps.shape == env_inds.shape:  # of one environment, in half the time
        return array[:, 0].take(steps, axis=0)
    return array.reshape(-1, *array.shape[2:]).take(steps * array.shape[1] + env_inds, axis=0)
