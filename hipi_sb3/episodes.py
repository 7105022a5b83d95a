"""Which rows of a ring buffer belong to the same episode."""

from collections import deque
from typing import Any

import numpy as np

from hipi_sb3.layout import take

#: How many finished episodes are remembered as recent ones.
N_RECENT_EPISODES = 64


class EpisodeIndex:
    """
    Where the episode of each row of a ring buffer begins and ends, unfinished episodes included.

    All environments write the same row at a time. Rows that were overwritten belong to no episode any more; what is left of
    their episode still does.

    :param buffer_size: rows of the ring
    :param n_envs: number of parallel environments
    """

    def __init__(self, buffer_size: int, n_envs: int) -> None:
        self.buffer_size = buffer_size
        #: Ring index of the last row of the row's episode; -1 while the episode goes on. (buffer_size, n_envs)
        self.end = np.zeros((buffer_size, n_envs), dtype=np.int32)
        #: How many steps of its episode lie before the row. (buffer_size, n_envs)
        self.step = np.zeros((buffer_size, n_envs), dtype=np.int32)
        #: Length so far of the episode that each environment is in, (n_envs,).
        self.length = np.zeros(n_envs, dtype=np.int64)
        self.n_added = 0
        # Finished episodes, latest last: (first ring index, environment, length, number of rows ever added before it).
        self._recent: deque[tuple[int, int, int, int]] = deque(maxlen=N_RECENT_EPISODES)

    def add(self) -> None:
        """Begin the next row."""
        pos = self.n_added % self.buffer_size
        self.end[pos] = -1
        self.step[pos] = self.length
        self.length += 1
        self.n_added += 1

    def finish(self, env_index: int) -> None:
        """
        End the episode of an environment with the last row.

        :param env_index: the environment
        """
        length = min(int(self.length[env_index]), self.buffer_size)
        last = self._last
        rows = np.arange(last - length + 1, last + 1) % self.buffer_size
        self.end[rows, env_index] = last
        self.length[env_index] = 0
        self._recent.append((int(rows[0]), int(env_index), length, self.n_added - length))

    def bounds(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """
        How many rows of its own episode lie before and after a row, as far as they are stored.

        :param at: ring indices and environment indices, (...,) each
        :return: rows before and rows ahead, (...,) each
        """
        oldest = self.n_added % self.buffer_size if self.n_added >= self.buffer_size else 0
        return np.minimum(take(self.step, at), (at[0] - oldest) % self.buffer_size), self.ahead(at)

    def ahead(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """
        How many rows of its own episode lie after a row.

        :param at: ring indices and environment indices, (...,) each
        :return: rows ahead, (...,)
        """
        end = take(self.end, at)
        return (np.where(end < 0, self._last, end) - at[0]) % self.buffer_size

    def recent(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        The latest finished episodes that are still stored whole.

        :return: ring index of the first row, environment index and length, (n_episodes,) each
        """
        oldest = self.n_added - self.buffer_size
        whole = [episode[:3] for episode in self._recent if episode[3] >= oldest]
        rows, env_inds, lengths = np.array(whole, dtype=np.int64).reshape(-1, 3).T
        return rows, env_inds, lengths

    @property
    def _last(self) -> int:
        """Ring index of the row written last."""
        return (self.n_added - 1) % self.buffer_size

    def __getstate__(self) -> dict[str, Any]:
        """State without the rows that were never written."""
        n_rows = min(self.n_added, self.buffer_size)
        return {**self.__dict__, "end": self.end[:n_rows], "step": self.step[:n_rows]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.end, self.step = grow(self.end, self.buffer_size), grow(self.step, self.buffer_size)


def grow(array: np.ndarray, n_rows: int) -> np.ndarray:
    """
    Fill an array up with zeros.

    :param array: (n, ...)
    :param n_rows: rows wanted, at least n
    :return: (n_rows, ...); a copy
    """
    full = np.zeros((n_rows, *array.shape[1:]), dtype=array.dtype)
    full[: len(array)] = array
    return full
