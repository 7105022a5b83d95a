"""The observations of a ring buffer, each of them stored once, and the task of an episode once."""

from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.experience.episodes import NO_ENVS, EpisodeIndex, grow
from hipi_sb3.experience.layout import TaskLayout, stored_shape, take


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
            types = {key: _stored_type(part) for key, part in space.spaces.items()}
            assert layout.key is not None
            task_type = types[layout.key]
        else:
            assert space.shape is not None
            shapes, types = {"": (space.shape[0] - layout.task_dim,)}, {"": _stored_type(space)}
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
        # What the last step led to, as bytes: almost always the next one begins there, and bytes tell that fastest.
        self._led_to: list[bytes] | None = None

    def add(self, obs: Any, next_obs: Any, done: np.ndarray) -> None:
        """
        Store the observations of one step of every environment.

        An episode that was left in the middle (by ``learn`` starting anew, ``set_env`` or loading) ends in the books before
        this step: an observation that is not what the last step led to shows it. Without that, HER's "future" would reach
        into another episode.

        :param obs: observations of all environments
        :param next_obs: next observations; at the end of an episode its last one
        :param done: whether the episode ends with this step, (n_envs,)
        """
        (parts, tasks), (next_parts, next_tasks) = self._split(obs), self._split(next_obs)
        episodes = self.episodes
        before, after = _as_bytes(parts, tasks), _as_bytes(next_parts, next_tasks)
        if episodes.n_added > 0 and before != self._led_to:
            for env_index in self._not_continued_by(parts, tasks):
                episodes.finish(env_index)
        pos = episodes.n_added % episodes.buffer_size
        beginning = episodes.add()
        slots = episodes.current
        self._make_room()
        for key, part in parts.items():
            self.rows[key][pos] = part
            self.last[key][slots] = next_parts[key]
        self.last_tasks[slots] = next_tasks
        if len(beginning) > 0:
            self.tasks[slots[beginning]] = tasks[beginning]
        self._led_to = after
        # An episode has one task: where it changes, another one begins.
        ends = done if before[-1] == after[-1] else done | (tasks != next_tasks).any(axis=1)
        if np.count_nonzero(ends):
            for env_index in np.flatnonzero(ends):
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

    def _not_continued_by(self, parts: dict[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """The environments whose episode goes on, but not with these observations and tasks, (n,)."""
        slots = self.episodes.current
        differences = [self.last_tasks[slots] != tasks, *(self.last[key][slots] != part for key, part in parts.items())]
        if not any(different.any() for different in differences):
            return NO_ENVS
        broken = np.any([different.reshape(len(slots), -1).any(axis=1) for different in differences], axis=0)
        return np.flatnonzero(broken & (self.episodes.length > 0))

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
        """Observations of all environments as they are stored: without tasks, by key, and the tasks."""
        n_envs = len(self.episodes.current)
        tasks = _as_stored(self.layout.get(obs), self.tasks.dtype, (n_envs, self.layout.task_dim))
        inner = {"": obs[..., : -self.layout.task_dim]} if self.layout.key is None else obs
        return {key: _as_stored(inner[key], array.dtype, array.shape[1:]) for key, array in self.rows.items()}, tasks

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
        self._led_to = None


def _as_stored(values: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this type and shape; what has them already is left alone, for this is asked of each step."""
    array = np.asarray(values)
    if array.dtype != dtype:
        array = array.astype(dtype)
    return array if array.shape == shape else array.reshape(shape)


def _as_bytes(parts: dict[str, np.ndarray], tasks: np.ndarray) -> list[bytes]:
    """Observations and tasks, the last one, for comparisons: what has other bytes may still be equal, as 0.0 and -0.0 are."""
    return [*(part.tobytes() for part in parts.values()), tasks.tobytes()]


def _stored_type(space: spaces.Space) -> np.dtype:
    # The networks read float32: wider observations would be stored for nothing.
    return np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)


def _flat(array: np.ndarray) -> np.ndarray:
    """(buffer_size, n_envs, ...) as (buffer_size * n_envs, ...), without copying."""
    return array.reshape(-1, *array.shape[2:])
