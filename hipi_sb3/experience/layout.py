"""Where an observation holds its task, and the same operation on all arrays of an observation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TaskLayout:
    """
    Where an observation holds its task: under a key of a Dict, or in the last entries of a flat Box.

    Works alike on single observations and on batches.

    :param key: key of a Dict observation; None for ``observation || task`` in one Box
    :param task_dim: length of a task
    """

    key: str | None
    task_dim: int

    def get(self, observations: Any) -> Any:
        """Tasks of observations, (..., task_dim)."""
        return observations[..., -self.task_dim :] if self.key is None else observations[self.key]

    def put(self, observations: Any, tasks: Any) -> Any:
        """The same observations with other tasks, (..., task_dim); the argument is left as it is."""
        if self.key is not None:
            return {**observations, self.key: tasks}
        return np.concatenate([observations[..., : -self.task_dim], tasks], axis=-1)


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
    return array.reshape(-1, *array.shape[2:]).take(steps * array.shape[1] + env_inds, axis=0)
