"""The observations of a ring buffer, each of them stored once, and the task of an episode once."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.experience.episodes import EpisodeIndex, grow
from hipi_sb3.experience.layout import TaskLayout, stored_shape, stored_type, take


class ObservationStore:
    """
    Observations and next observations of a ring buffer.

    What a step led to is the observation of the following row, so that a row holds one observation. Only after the last row
    of an episode, finished or not, there is no such row: where it led to stands in the slot of the episode (see
    :class:`~hipi_sb3.experience.episodes.EpisodeIndex`), as does the episode's task. For that to hold whatever is added,
    a step that does not continue the last one begins a new episode, and so does a new task.

    :param space: space of the observations, Dict or flat
    :param layout: where an observation holds its task
    :param episodes: which rows belong together; rows are added to it here
    """

    def __init__(self, space: spaces.Space, layout: TaskLayout, episodes: EpisodeIndex) -> None:
        self.layout = layout
        self.episodes = episodes
        shapes: dict[str, Any]
        if isinstance(space, spaces.Dict):
            shapes = {key: stored_shape(part) for key, part in space.spaces.items()}
            types = {key: stored_type(part) for key, part in space.spaces.items()}
            assert layout.key is not None
            task_type = types[layout.key]
        else:
            assert space.shape is not None
            shapes, types = {"": (space.shape[0] - layout.task_dim,)}, {"": stored_type(space)}
            task_type = types[""]
        self._keys = list(shapes)
        inner = [key for key in shapes if key != layout.key]
        n_rows, task_dim = episodes.slots.shape, layout.task_dim
        #: Observations without their tasks by key, (buffer_size, n_envs, ...); the key of a flat one is empty.
        self.rows = {key: np.zeros((*n_rows, *shapes[key]), types[key]) for key in inner}
        #: Of each episode's last row the next observation likewise, and its task, (n_slots, ...).
        self.last = {key: np.zeros((0, *shapes[key]), types[key]) for key in inner}
        self.last_tasks = np.zeros((0, task_dim), task_type)
        #: The task of each episode, (n_slots, task_dim).
        self.tasks = np.zeros((0, task_dim), task_type)
        # What the last step led to, as bytes: almost always the next one begins there, and bytes tell that fastest. Before the
        # first step no episode goes on.
        no_tasks = np.zeros((n_rows[1], task_dim), task_type)
        self._led_to = _as_bytes({key: array[0] for key, array in self.rows.items()}, no_tasks)

    def add(self, obs: Any, next_obs: Any, dones: np.ndarray) -> None:
        """
        Store the observations of some steps of every environment.

        An episode that was left in the middle (by ``learn`` starting anew, ``set_env`` or loading) ends in the books before
        the step that comes next: an observation that is not what the last step led to shows it. Without that, HER's "future"
        would reach into another episode.

        :param obs: observations, (n_steps, n_envs, ...) or a dict of such; at most as many steps as are left of the ring
        :param next_obs: next observations; at the end of an episode its last one
        :param dones: whether episodes end, (n_steps, n_envs)
        """
        n_steps, episodes = len(dones), self.episodes
        (parts, tasks), (next_parts, next_tasks) = self._split(obs), self._split(next_obs)
        before, after = _as_bytes(parts, tasks), _as_bytes(next_parts, next_tasks)
        led_to = _shifted(self._led_to, after) if n_steps > 1 else self._led_to
        breaks = None if before == led_to else self._breaks(parts, tasks, led_to)
        # An episode has one task: where it changes, another one begins.
        ends = dones if before[-1] == after[-1] else dones | _differ(tasks, next_tasks)
        self._led_to = after if n_steps == 1 else [part[-len(part) // n_steps :] for part in after]
        pos = episodes.n_added % episodes.buffer_size
        for key, part in parts.items():
            self.rows[key][pos : pos + n_steps] = part
        for first, stop in _stretches(breaks, ends):
            if breaks is not None:
                for env_index in np.flatnonzero(breaks[first] & (episodes.length > 0)):
                    episodes.finish(env_index)
            beginning = episodes.add(stop - first)
            self._make_room()
            slots = episodes.current
            for key, part in next_parts.items():
                self.last[key][slots] = part[stop - 1]
            self.last_tasks[slots] = next_tasks[stop - 1]
            if len(beginning) > 0:
                self.tasks[slots[beginning]] = tasks[first, beginning]
            if np.count_nonzero(ends[stop - 1]):
                for env_index in np.flatnonzero(ends[stop - 1]):
                    episodes.finish(env_index)

    def transitions(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
        """
        Observations before and after steps.

        :param at: ring indices and environment indices, (n,) each
        :return: observations and next observations, (n, ...); copies that share no memory
        """
        row, slots, last = self._locate(at)
        tasks = self.tasks.take(slots, axis=0)
        next_tasks = tasks.copy()
        next_tasks[last] = self.last_tasks[slots[last]]
        obs = self._join({key: _flat(array).take(row, axis=0) for key, array in self.rows.items()}, tasks)
        return obs, self._join({key: self._next_part(key, row, slots, last) for key in self.rows}, next_tasks)

    def observations(self, at: tuple[np.ndarray, np.ndarray]) -> Any:
        """
        Observations before steps.

        :param at: ring indices and environment indices, (...,) each
        :return: (..., ...); a copy
        """
        return self._join(
            {key: take(array, at) for key, array in self.rows.items()}, self.tasks[take(self.episodes.slots, at)]
        )

    def next_observations(self, at: tuple[np.ndarray, np.ndarray]) -> Any:
        """
        Observations after steps.

        :param at: ring indices and environment indices, (...,) each
        :return: (..., ...); a copy
        """
        return self.transitions(at)[1]

    def next_part(self, key: str, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """
        One entry of the observations after steps.

        :param key: its key, not that of the task
        :param at: ring indices and environment indices, (...,) each
        :return: (..., ...); a copy
        """
        return self._next_part(key, *self._locate(at))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in (*self.rows.values(), *self.last.values(), self.last_tasks, self.tasks))

    def _breaks(self, parts: dict[str, np.ndarray], tasks: np.ndarray, led_to: list[bytes]) -> np.ndarray:
        """Which steps do not begin with what the steps before them led to, (n_steps, n_envs)."""
        arrays = [*parts.values(), tasks]
        before = [np.frombuffer(part, array.dtype).reshape(array.shape) for part, array in zip(led_to, arrays, strict=True)]
        return np.any([_differ(a, b) for a, b in zip(arrays, before, strict=True)], axis=0)

    def _locate(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """Numbers of rows in the flattened ring, slots, and which of the rows are the last ones of their episodes."""
        slots = self.episodes.slots
        row = at[0] * slots.shape[1] + at[1]
        of_row = slots.reshape(-1).take(row)
        return row, of_row, np.nonzero(self.episodes.last_row.take(of_row) == at[0])

    def _next_part(self, key: str, row: np.ndarray, slots: np.ndarray, last: tuple[np.ndarray, ...]) -> np.ndarray:
        array = self.rows[key]
        # The row that follows the last one of the ring is its first.
        part = _flat(array).take(row + array.shape[1], axis=0, mode="wrap")
        part[last] = self.last[key][slots[last]]
        return part

    def _split(self, obs: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observations of some steps in the types that they are stored in: without tasks, by key, and the tasks."""
        inner = {"": obs[..., : -self.layout.task_dim]} if self.layout.key is None else obs
        parts = {key: inner[key].astype(array.dtype, copy=False) for key, array in self.rows.items()}
        return parts, self.layout.get(obs).astype(self.tasks.dtype, copy=False)

    def _join(self, parts: dict[str, np.ndarray], tasks: np.ndarray) -> Any:
        if self.layout.key is None:
            return np.concatenate([parts[""], tasks], axis=-1)
        return {key: self.layout.unflatten(tasks) if key == self.layout.key else parts[key] for key in self._keys}

    def _make_room(self) -> None:
        n_slots = len(self.episodes.last_row)
        if len(self.tasks) < n_slots:
            self.last = {key: grow(array, n_slots) for key, array in self.last.items()}
            self.last_tasks, self.tasks = grow(self.last_tasks, n_slots), grow(self.tasks, n_slots)

    # -- copies and files ---------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """What :meth:`set_arrays` restores the store from, without rows that were never written."""
        n_rows, n_slots = min(self.episodes.n_added, self.episodes.buffer_size), self.episodes.n_used
        return {
            "rows": {key: array[:n_rows] for key, array in self.rows.items()},
            "last": {key: array[:n_slots] for key, array in self.last.items()},
            "last_tasks": self.last_tasks[:n_slots],
            "tasks": self.tasks[:n_slots],
        }

    def set_arrays(self, arrays: dict[str, Any]) -> None:
        """
        Restore what :meth:`arrays` returned; ``episodes`` has to be restored before.

        :param arrays: the arrays; they become the store's own
        """
        n_rows, n_slots = self.episodes.buffer_size, len(self.episodes.last_row)
        self.rows = {key: grow(array, n_rows) for key, array in arrays["rows"].items()}
        self.last = {key: grow(array, n_slots) for key, array in arrays["last"].items()}
        self.last_tasks, self.tasks = grow(arrays["last_tasks"], n_slots), grow(arrays["tasks"], n_slots)
        slots = self.episodes.current
        if self.episodes.n_added > 0:
            self._led_to = _as_bytes({key: array[slots] for key, array in self.last.items()}, self.last_tasks[slots])


def _as_bytes(parts: dict[str, np.ndarray], tasks: np.ndarray) -> list[bytes]:
    """Observations and tasks, the last one, for comparisons: what has other bytes may still be equal, as 0.0 and -0.0 are."""
    return [*(part.tobytes() for part in parts.values()), tasks.tobytes()]


def _shifted(led_to: list[bytes], after: list[bytes]) -> list[bytes]:
    """What the steps before some steps led to, from what the one before the first did, and what they do themselves."""
    return [first + part[: -len(first)] for first, part in zip(led_to, after, strict=True)]


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays (n_steps, n_envs, ...) differ, (n_steps, n_envs); NaN is like NaN."""
    different = a != b
    if a.dtype.kind == "f":
        different &= (a == a) | (b == b)
    return different.reshape(*a.shape[:2], -1).any(axis=2)


def _stretches(breaks: np.ndarray | None, ends: np.ndarray) -> Iterable[tuple[int, int]]:
    """First and last but one of steps between which no episode is broken off or ends; both are (n_steps, n_envs)."""
    if len(ends) == 1:
        return [(0, 1)]
    is_last = ends[:-1].any(axis=1)
    if breaks is not None:
        is_last |= breaks[1:].any(axis=1)
    return pairwise([0, *(np.flatnonzero(is_last) + 1), len(ends)])


def _flat(array: np.ndarray) -> np.ndarray:
    """(buffer_size, n_envs, ...) as (buffer_size * n_envs, ...), without copying."""
    return array.reshape(-1, *array.shape[2:])
