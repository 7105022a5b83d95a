"""Which rows of a ring buffer belong to the same episode."""

from collections import deque
from typing import Any

import numpy as np

from hipi_sb3.experience.layout import take

#: How many finished episodes are remembered as recent ones.
N_RECENT_EPISODES = 64

#: Indices of no environment.
NO_ENVS = np.zeros(0, dtype=np.int64)

#: Where there are more episodes than slots, the slots become this many times as many.
_GROWTH = 1.25


class EpisodeIndex:
    """
    Where the episode of each row of a ring buffer begins and ends, unfinished episodes included.

    All environments write the same row at a time. Rows that were overwritten belong to no episode any more; what is left of
    their episode still does. A row knows one number, the slot of its episode; what holds for a whole episode stands once, in
    its slot, here and in whatever tables others keep by slot. A slot is free again when the last row of its episode has been
    overwritten.

    :param buffer_size: rows of the ring
    :param n_envs: number of parallel environments
    """

    def __init__(self, buffer_size: int, n_envs: int) -> None:
        self.buffer_size = buffer_size
        #: Slot of the row's episode. (buffer_size, n_envs)
        self.slots = np.zeros((buffer_size, n_envs), dtype=np.int32)
        #: Ring index of the last row so far of the slot's episode. (n_slots,)
        self.last_row = np.zeros(0, dtype=np.int32)
        #: How many rows had ever been added before the episode's first one. (n_slots,)
        self.n_before = np.zeros(0, dtype=np.int64)
        #: Slot of the episode that each environment is in, or of its last one, (n_envs,).
        self.current = np.zeros(n_envs, dtype=np.int64)
        #: Length so far of the episode that each environment is in, (n_envs,).
        self.length = np.zeros(n_envs, dtype=np.int64)
        self.n_added = 0
        #: Slots that were ever used: the others hold nothing.
        self.n_used = 0
        self._free: list[int] = []
        # Finished episodes, latest last: (first ring index, environment, length, number of rows ever added before it).
        self._recent: deque[tuple[int, int, int, int]] = deque(maxlen=N_RECENT_EPISODES)

    def add(self, n: int = 1) -> np.ndarray:
        """
        Begin the next rows, between which no episode begins or ends.

        :param n: how many, at most those that are left before the end of the ring
        :return: the environments whose episode begins with the first of them, (n_begin,)
        """
        pos = self.n_added % self.buffer_size
        if self.n_added >= self.buffer_size:
            overwritten = self.slots[pos : pos + n]
            gone = self.last_row[overwritten] == (pos if n == 1 else np.arange(pos, pos + n)[:, None])
            if np.count_nonzero(gone):
                # An episode that goes on keeps its slot, where all rows of the ring are overwritten at once.
                gone &= (self.length == 0) | (overwritten != self.current)
                self._free += overwritten[gone].tolist()
        beginning = NO_ENVS if np.count_nonzero(self.length) == len(self.length) else np.flatnonzero(self.length == 0)
        for env_index in beginning:
            slot = self._new_slot()
            self.current[env_index], self.n_before[slot] = slot, self.n_added
        self.slots[pos : pos + n] = self.current
        self.last_row[self.current] = pos + n - 1
        self.length += n
        self.n_added += n
        return beginning

    def finish(self, env_index: int) -> None:
        """
        End the episode of an environment with the last row.

        :param env_index: the environment
        """
        length = min(int(self.length[env_index]), self.buffer_size)
        self.length[env_index] = 0
        first = (self._last - length + 1) % self.buffer_size
        self._recent.append((first, int(env_index), length, self.n_added - length))

    def bounds(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """
        How many rows of its own episode lie before and after a row, as far as they are stored.

        :param at: ring indices and environment indices, (...,) each
        :return: rows before and rows ahead, (...,) each
        """
        oldest = self.n_added % self.buffer_size if self.n_added >= self.buffer_size else 0
        return np.minimum(self.step(at), (at[0] - oldest) % self.buffer_size), self.ahead(at)

    def step(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """
        How many steps of its episode lie before a row, stored or not.

        :param at: ring indices and environment indices, (...,) each
        :return: steps, (...,)
        """
        number = self.n_added - 1 - (self._last - at[0]) % self.buffer_size
        return number - self.n_before.take(take(self.slots, at))

    def ahead(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """
        How many rows of its own episode lie after a row.

        :param at: ring indices and environment indices, (...,) each
        :return: rows ahead, (...,)
        """
        return (self.last_row.take(take(self.slots, at)) - at[0]) % self.buffer_size

    def recent(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        The latest finished episodes that are still stored whole; of one longer than the ring, what it had room for.

        :return: ring index of the first row, environment index and length, (n_episodes,) each
        """
        oldest = self.n_added - self.buffer_size
        whole = [episode[:3] for episode in self._recent if episode[3] >= oldest]
        rows, env_inds, lengths = np.array(whole, dtype=np.int64).reshape(-1, 3).T
        return rows, env_inds, lengths

    @property
    def end(self) -> np.ndarray:
        """Ring index of the last row of each row's episode, -1 while the episode goes on, (n_rows, n_envs)."""
        slots = self.slots[: self._n_rows]
        return np.where((slots == self.current) & (self.length > 0), -1, self.last_row[slots])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.slots.nbytes + self.last_row.nbytes + self.n_before.nbytes

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` restores the index from: arrays and numbers, without rows that were never written."""
        return {
            "slots": self.slots[: self._n_rows],
            "last_row": self.last_row[: self.n_used],
            "n_before": self.n_before[: self.n_used],
            "current": self.current,
            "length": self.length,
            "n_added": self.n_added,
            "recent": np.array(self._recent, dtype=np.int64).reshape(-1, 4),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what :meth:`state_dict` returned.

        :param state: the state; its arrays become the index's own
        """
        self.n_added, self.n_used = state["n_added"], len(state["last_row"])
        self.slots = grow(state["slots"], self.buffer_size)
        self.last_row, self.n_before = state["last_row"], state["n_before"]
        self.current, self.length = state["current"], state["length"]
        self._recent = deque((tuple(row) for row in state["recent"].tolist()), maxlen=N_RECENT_EPISODES)
        free = np.ones(self.n_used, dtype=bool)
        free[self.slots[: self._n_rows]] = False
        self._free = np.flatnonzero(free).tolist()

    @property
    def _last(self) -> int:
        """Ring index of the row written last."""
        return (self.n_added - 1) % self.buffer_size

    @property
    def _n_rows(self) -> int:
        """Rows that were ever written."""
        return min(self.n_added, self.buffer_size)

    def _new_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self.n_used == len(self.last_row):
            n_slots = int(_GROWTH * self.n_used) + 16
            self.last_row, self.n_before = grow(self.last_row, n_slots), grow(self.n_before, n_slots)
        self.n_used += 1
        return self.n_used - 1

    def __getstate__(self) -> dict[str, Any]:
        """State without the rows that were never written."""
        return {"buffer_size": self.buffer_size, **self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.buffer_size = state["buffer_size"]
        self.load_state_dict(state)


def grow(array: np.ndarray, n_rows: int) -> np.ndarray:
    """
    Fill an array up with zeros.

    :param array: (n, ...)
    :param n_rows: rows wanted, at least n
    :return: (n_rows, ...); the array itself if it has as many
    """
    if len(array) == n_rows:
        return array
    full = np.zeros((n_rows, *array.shape[1:]), dtype=array.dtype)
    full[: len(array)] = array
    return full
