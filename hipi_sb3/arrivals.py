"""Steps as they arrive: checked and copied one by one, and stored many at a time, which costs a fraction of it."""

from collections.abc import Sequence
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.experience.layout import stored_shape
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.steps import (
    NowAndThen,
    check_reward,
    check_same_tasks,
    check_shown_tasks,
    has_nan,
    read_actions,
    read_dones,
    read_rewards,
)

#: Bytes of the steps that wait, where there is more than one: images are stored sooner.
MOST_BYTES = 2**20

_KIND, _TO_BYTES = attrgetter("dtype", "nbytes"), methodcaller("tobytes")


class Arrivals:
    """
    The way into the experience. Steps wait until there are 64 of them, or until somebody reads the experience.

    What a step lacks is found when it arrives, and all of it is copied then, because environments use their arrays and infos
    again. Features, rewards of the tasks and episodes are worked out for all steps that waited. Who has read after one step
    will read after the next one: that one is stored at once.

    :param experience: where they are stored; read it by :meth:`stored`
    :param family: the tasks
    :param time_limits: whether time limits count as such, not as terminations
    """

    def __init__(self, experience: Experience, family: TaskFamily, time_limits: bool) -> None:
        self.experience, self.family, self.time_limits = experience, family, time_limits
        self._checks = NowAndThen()
        self._begin()

    def _begin(self) -> None:
        experience = self.experience
        space = experience.observation_space
        self._keys = list(space.spaces) if isinstance(space, spaces.Dict) else [""]
        parts = [space[key] for key in self._keys] if isinstance(space, spaces.Dict) else [space]
        self._part_shapes = [(experience.n_envs, *stored_shape(part)) for part in parts]
        # Which part is the task, where it may not change within a step; MultiTaskWrapper keeps it.
        self._task = None if self.family.features_key is None else self._keys.index(self.family.task_key)
        self._was_read = False
        # Of each step that waits, its entries as bytes: nothing copies small arrays faster.
        self._rows: list[list[bytes]] = []
        self._n_at_once = 1
        # What the entries of the next step are expected to be: types and bytes, and shapes that begin with an axis for steps.
        self._kinds: list[tuple[np.dtype, int]] = []
        self._shapes: list[tuple[int, ...]] = []

    @property
    def pos(self) -> int:
        """Ring index of the next step."""
        return self.experience.pos + len(self._rows)

    def stored(self) -> Experience:
        """The experience, with all steps that have arrived."""
        self._was_read = True
        if self._rows:
            self._store_waiting()
        return self.experience

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """
        Let one step of every environment wait, or store it and all that wait.

        :param obs: observations, (n_envs, ...) or a dict of such
        :param next_obs: next observations; at the end of an episode its last one
        :param action: actions, (n_envs, action_dim)
        :param reward: rewards of the commanded task, (n_envs,)
        :param done: whether the episode ended, (n_envs,)
        :param infos: info of each environment
        :raises ValueError: when it could not be relabeled later, see :mod:`hipi_sb3.tasks.steps`; then it is not stored, and
            those before it are
        """
        family, n_parts = self.family, len(self._keys)
        timeouts = [self.time_limits and bool(info.get("TimeLimit.truncated", False)) for info in infos]
        by_env = [bool(info.get("env_terminated", False)) for info in infos]
        entries = [*self._parts(obs), *self._parts(next_obs), action, reward, done, *family.read_infos(infos)]
        if not self._are_expected(entries, len(infos)):
            entries = self._checked(entries[:n_parts], entries[n_parts : 2 * n_parts], action, reward, done, infos)
            self._expect(entries)
        if self._was_read:
            self._was_read = False
            block = [entry.reshape(shape) for entry, shape in zip(entries, self._shapes, strict=True)]
            self._store([*block, *np.array([[timeouts], [by_env]])], None if family.has_every_reward else infos)
            return
        if not self._rows:
            self._n_at_once = self._most()
        self._rows.append([*map(_TO_BYTES, entries), bytes(timeouts), bytes(by_env)])
        if len(self._rows) == self._n_at_once:
            self._store_waiting(infos)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _parts(self, obs: Any) -> list[Any]:
        return [obs[key] for key in self._keys] if isinstance(obs, dict) else [obs]

    def _joined(self, parts: Sequence[np.ndarray]) -> Any:
        return parts[0] if self._keys == [""] else dict(zip(self._keys, parts, strict=True))

    def _are_expected(self, entries: list[Any], n_envs: int) -> bool:
        """Whether the entries of a step are like those of the last one and have no fault, so that checks can be saved."""
        try:
            if [*map(_KIND, entries)] != self._kinds:
                return False
        except AttributeError:  # a list, for example
            return False
        n_parts = len(self._keys)
        if n_envs != self.experience.n_envs or has_nan(entries[2 * n_parts]):
            return False
        return self._task is None or entries[self._task].tobytes() == entries[self._task + n_parts].tobytes()

    def _checked(
        self, parts: list[Any], next_parts: list[Any], action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]
    ) -> list[np.ndarray]:
        """
        The entries of a step, in the shapes that they are stored in: both observations, actions, rewards, dones, and what the
        features need of the infos, an entry an environment.
        """
        experience, family, n_envs = self.experience, self.family, len(infos)
        fitted, next_fitted = (
            [np.asarray(part).reshape(shape) for part, shape in zip(both, self._part_shapes, strict=True)]
            for both in (parts, next_parts)
        )
        rewards = read_rewards(reward, n_envs)
        if self._task is not None:
            check_same_tasks(family.task_key, *(experience.layout.get(self._joined(both)) for both in (fitted, next_fitted)))
        read = [np.asarray(values) for values in family.read_infos(infos)]
        if family.features_key is None:
            read = [values.reshape(family.feature_dim) for values in read]
        dones = read_dones(done, n_envs)
        return [*fitted, *next_fitted, read_actions(action, experience.actions.shape[1:]), rewards, dones, *read]

    def _expect(self, entries: list[np.ndarray]) -> None:
        """Expect steps like this one from now on."""
        kinds = [*map(_KIND, entries)]
        if kinds != self._kinds:
            self._store_waiting()
            self._kinds, self._shapes = kinds, [(1, *entry.shape) for entry in entries]

    # -- all that wait -------------------------------------------------------------------------------------------------

    def _most(self) -> int:
        """How many steps may wait: until rewards are to be checked, until the ring ends, and not too many bytes."""
        experience = self.experience
        if not self.family.can_wait:
            return 1
        until_check = self._checks.ahead(experience.episodes.n_added, len(experience))
        fitting = MOST_BYTES // sum(size for _, size in self._kinds)
        return min(until_check, experience.buffer_size - experience.pos, max(fitting, 1))

    def _store_waiting(self, infos: list[dict[str, Any]] | None = None) -> None:
        """Store the steps that wait; with the infos of the last one, if rewards may be checked now."""
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        try:
            self._store(self._block(rows), infos)
        except Exception:
            for row in rows[:-1]:  # what came before the step that fails, or at least before the last one
                self._store(self._block([row]))
            raise

    def _block(self, rows: list[list[bytes]]) -> list[np.ndarray]:
        """The entries of some steps, (n_steps, ...) each, and what has ended episodes."""
        n_envs = self.experience.n_envs
        types = [dtype for dtype, _ in self._kinds]
        kinds = [*zip(types, self._shapes, strict=True), *2 * [(np.dtype(bool), (1, n_envs))]]
        return [
            np.frombuffer(bytearray().join(column), dtype).reshape(len(rows), *shape[1:])
            for column, (dtype, shape) in zip(zip(*rows, strict=True), kinds, strict=True)
        ]

    def _store(self, entries: list[np.ndarray], infos: list[dict[str, Any]] | None = None) -> None:
        experience, family, n_parts = self.experience, self.family, len(self._keys)
        obs, next_obs = self._joined(entries[:n_parts]), self._joined(entries[n_parts : 2 * n_parts])
        actions, rewards, dones, *read, timeouts, by_env = entries[2 * n_parts :]
        tasks = experience.layout.get(obs)
        features = family.features_of_steps(next_obs, tasks, rewards, np.array(read).swapaxes(0, 1) if read else None)
        if infos is not None:
            self._check(features, tasks, rewards, next_obs, infos)
        if np.count_nonzero(dones):
            # Whatever ended the episode and was neither the time limit nor the task is the environment's, wrappers included.
            at = np.nonzero(dones & ~timeouts & ~by_env)
            if len(at[0]) > 0:
                by_env[at] = ~family.terminated(features[at], tasks[at])
        experience.add(obs, next_obs, actions, rewards, dones, timeouts, by_env, features)

    def _check(
        self, features: np.ndarray, tasks: np.ndarray, rewards: np.ndarray, next_obs: Any, infos: list[dict[str, Any]]
    ) -> None:
        """Check the rewards since the last check, if it is time to, and the task that the last of these steps shows."""
        experience, n_new = self.experience, len(rewards)
        n_stored = min(len(experience) + n_new - 1, experience.buffer_size)
        n = self._checks.due(experience.episodes.n_added + n_new - 1, n_stored)
        if n == 0 or self.family.has_every_reward:
            return
        check_shown_tasks(experience.layout.get(next_obs)[-1], infos)
        check_reward(self.family, features[-n:], tasks[-n:], rewards[-n:])
        if n > n_new:
            check_reward(self.family, *experience.latest(n - n_new))

    # -- copies --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State in which no step waits."""
        self._store_waiting()
        return {name: getattr(self, name) for name in ("experience", "family", "time_limits", "_checks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()
