"""Finite sets of tasks: which member a task is, without comparing it with every one, and one-hot tasks without their zeros."""

from typing import Any

import numpy as np

from hipi_sb3.given import as_tasks

#: So many one-hot tasks are still an ordinary array: PyTorch does not take the view.
MANY = 1024


class TaskSet:
    """
    The tasks of a finite family, looked up by value.

    One-hot tasks are found by the place of their 1, others by binary search, so that n tasks of a set of K cost n lookups, not
    a comparison of n x K x task_dim numbers.

    :param members: tasks, (n_tasks, task_dim); of equal ones the first counts
    """

    def __init__(self, members: np.ndarray) -> None:
        members = np.asarray(members, dtype=np.float32)
        self.n_tasks, self.task_dim = members.shape
        self.is_one_hot = is_identity(members)
        if not self.is_one_hot:
            keys = _as_bytes(members)
            self._order = np.argsort(keys, kind="stable")
            self._sorted = keys[self._order]

    def index(self, tasks: np.ndarray) -> np.ndarray:
        """
        Find tasks.

        :param tasks: tasks, (..., task_dim)
        :return: row of each in the set, (...,); -1 for those that are not in it
        :raises ValueError: when they are no numbers, or their last axis is another one
        """
        given = as_tasks(tasks, self.task_dim)
        if self.is_one_hot:
            rows = given.reshape(-1, self.task_dim) if given.ndim != 2 else given
            # In blocks: comparing all tasks with 0 at once would make the matrix that they are a view of.
            blocks = [_places_of_ones(rows[start : start + 256]) for start in range(0, len(rows), 256)]
            return np.concatenate(blocks).reshape(given.shape[:-1]) if blocks else np.zeros(given.shape[:-1], dtype=np.int64)
        rounded = given.astype(np.float32)
        keys = _as_bytes(rounded.reshape(-1, self.task_dim))
        place = np.minimum(np.searchsorted(self._sorted, keys), self.n_tasks - 1)
        index = np.where(self._sorted[place] == keys, self._order[place], -1).reshape(given.shape[:-1])
        # A number in between two of float32 is none of the set.
        return np.where((rounded == given).all(axis=-1), index, -1)

    def values(self, tasks: np.ndarray, values: np.ndarray) -> np.ndarray:
        """
        Look up what belongs to the tasks.

        :param tasks: tasks, (..., task_dim)
        :param values: value of each member, (n_tasks,)
        :return: value of each task, (...,); -inf for those that are not in the set
        """
        index = self.index(tasks)
        return np.where(index >= 0, values[index], -np.inf)


def one_hot_tasks(n_tasks: int) -> np.ndarray:
    """
    All one-hot tasks; many of them as a view that cannot be written to, in which every row looks at the same 1 with the zeros
    around it: 10 000 tasks take 80 kB instead of 400 MB.

    :param n_tasks: number of tasks
    :return: identity matrix, (n_tasks, n_tasks), float32
    """
    if n_tasks <= MANY:
        return np.eye(n_tasks, dtype=np.float32)
    line = np.zeros(2 * n_tasks - 1, dtype=np.float32)
    line[n_tasks - 1] = 1.0
    step = line.itemsize
    # Row i begins i numbers before the 1.
    return np.lib.stride_tricks.as_strided(
        line[n_tasks - 1 :], shape=(n_tasks, n_tasks), strides=(-step, step), writeable=False
    )


def is_identity(array: np.ndarray) -> bool:
    """
    Whether a matrix is the identity.

    :param array: matrix, (n, m)
    :return: whether it is
    """
    if array.shape[0] != array.shape[1] or not np.all(array.diagonal() == 1):
        return False
    return all(np.count_nonzero(row) == 1 for row in array)


class OneHotState:
    """Base of families whose tasks are one-hot: a copy, a file or another process gets their number instead of the matrix."""

    tasks: np.ndarray | None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.tasks is not None and is_identity(self.tasks):
            state["tasks"] = len(self.tasks)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        n_tasks = state["tasks"]
        self.__dict__.update(state)
        if isinstance(n_tasks, int):
            self.tasks = one_hot_tasks(n_tasks)


def _places_of_ones(tasks: np.ndarray) -> np.ndarray:
    """Place of the 1 of each task, -1 for those that are not one-hot; (n, task_dim) -> (n,)."""
    place = np.argmax(tasks, axis=-1)
    is_one = tasks[np.arange(len(tasks)), place] == 1
    return np.where(is_one & (np.count_nonzero(tasks, axis=-1) == 1), place, -1)


def _as_bytes(tasks: np.ndarray) -> np.ndarray:
    """Each row as one thing that sorts and compares, (n_tasks,); 0.0 + -0.0 is 0.0."""
    tasks = np.ascontiguousarray(tasks + np.float32(0.0))
    return tasks.view(np.dtype((np.void, tasks.dtype.itemsize * tasks.shape[1])))[:, 0]
