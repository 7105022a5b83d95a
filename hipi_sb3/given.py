"""Numbers and arrays that a user gives: converted, or refused with what they are and what they should be."""

from numbers import Integral, Real
from typing import Any

import numpy as np


def check_count(name: str, value: Any, least: int, meaning: str = "") -> None:
    """
    Check a whole number.

    :param name: what it is called, for the error
    :param value: the number
    :param least: smallest one that makes sense
    :param meaning: what it counts, for the error
    :raises ValueError: when it is less, or no whole number
    """
    if not isinstance(value, Integral):
        raise ValueError(
            f"{name} must be a whole number, at least {least}{meaning}, not {value!r:.80}. Of an array or a tensor pass one "
            "of its entries, array.item()."
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}{meaning}, not {value}.")


def check_probability(name: str, value: Any, meaning: str) -> None:
    """
    Check a probability.

    :param name: what it is called, for the error
    :param value: the number
    :param meaning: of what, for the error
    :raises ValueError: when it is none
    """
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} is a number from 0 to 1, {meaning}, not {value!r}.")


def numbers(name: str, values: Any, *axes: str) -> np.ndarray:
    """
    An array of numbers, from whatever holds numbers: another array, nested lists, a tensor on the CPU without gradients.

    :param name: what it is called, for the error
    :param values: the numbers
    :param axes: names of its axes; any number of axes if there are none
    :return: float64, with those axes
    :raises TypeError: when there are no numbers in it, or they cannot be read
    :raises ValueError: when it has other axes
    """
    shape = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be an array of numbers{f' of shape {shape}' * bool(axes)}, not {type(values).__name__}: {error}. "
            "Pass a NumPy array; of a tensor, tensor.detach().cpu().numpy()."
        ) from error
    if axes and array.ndim != len(axes):
        raise ValueError(
            f"{name} must have shape {shape}, but its shape is {array.shape}. Add an axis with array[None] or array[:, None], "
            "remove one with array.squeeze(axis)."
        )
    return array


def check_number(name: str, value: Any) -> None:
    """
    Check that an option is a number; in which range it has to be, its owner knows.

    :param name: what it is called, for the error
    :param value: what was given
    :raises TypeError: when it is none
    :raises ValueError: when it is NaN
    """
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number, not {type(value).__name__}: {value!r:.80}. Of an array or a tensor "
            "pass one of its entries, array.item()."
        )
    if value != value:
        raise ValueError(f"{name} must be a number, not NaN. Check what it was computed from.")


def check_functions(name: str, values: Any) -> None:
    """
    Check that an option is a list of functions.

    :param name: what it is called, for the error
    :param values: what was given
    :raises TypeError: when it is something else
    """
    if not isinstance(values, list | tuple) or not all(map(callable, values)):
        raise TypeError(
            f"{name} must be a list of functions, one a task, not {type(values).__name__}: {values!r:.80}. Pass a "
            "list, such as [first, second]."
        )


def as_tasks(tasks: Any, task_dim: int) -> np.ndarray:
    """
    Tasks, without copying those that are an array already: all one-hot tasks of a large family are a view.

    :param tasks: tasks, (..., task_dim)
    :param task_dim: length of a task
    :return: the tasks
    :raises ValueError: when they are no numbers, or their last axis is another one
    """
    tasks = np.asarray(tasks)
    if tasks.shape[-1:] != (task_dim,) or tasks.dtype.kind not in "biuf":
        raise ValueError(
            f"tasks must be numbers of shape (..., {task_dim}), but they are {tasks.dtype} of shape {tasks.shape}. "
            "The last axis has to be that of a task."
        )
    return tasks


def as_scores(scores: Any) -> np.ndarray:
    """
    Scores of a batch, as they can be priced.

    :param scores: scores, (batch_size, n_tasks); -inf for an impossible task
    :return: the scores, float64
    :raises TypeError: when they are no numbers
    :raises ValueError: when they have another shape or there are none, or one is NaN or infinitely good
    """
    scores = numbers("scores", scores, "batch_size", "n_tasks")
    if scores.size == 0:
        raise ValueError(
            f"scores must have a row and a candidate task (a column) at least, but their shape is {scores.shape}."
        )
    if not scores.max() < np.inf:  # nor is NaN
        row, task = np.argwhere(~(scores < np.inf))[0]
        value = "NaN" if np.isnan(scores[row, task]) else "infinite"
        raise ValueError(
            f"The score of row {row} for candidate task {task} is {value}. Either the family's reward is so there or the "
            "critic has diverged: check rewards, learning rate and observation scale."
        )
    return scores


def of_tasks(name: str, values: Any, scores: np.ndarray) -> np.ndarray:
    """
    Numbers that belong to candidate tasks.

    :param name: what they are called, for the error
    :param values: the numbers, (n_tasks,) or (batch_size, n_tasks), or one for all
    :param scores: scores, (batch_size, n_tasks)
    :return: the numbers, float64
    :raises TypeError: when they are none
    :raises ValueError: when they have another shape, or there is no task at all
    """
    values = numbers(name, values)
    if scores.shape[1] == 0:
        raise ValueError(f"scores must have at least one candidate task, a column each, but their shape is {scores.shape}.")
    if values.shape not in ((), scores.shape[1:], scores.shape):
        raise ValueError(
            f"{name} must have shape {scores.shape[1:]}, one number a candidate task, or {scores.shape}, as the scores have, "
            f"but its shape is {values.shape}. Its last axis has to be that of the tasks."
        )
    return values
