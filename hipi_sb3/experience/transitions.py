"""What happened: the transitions of a ring buffer, as they happened, by step and environment."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.experience.episodes import EpisodeIndex, grow
from hipi_sb3.experience.layout import TaskLayout, each, take
from hipi_sb3.experience.observations import ObservationStore

#: Ring indices and environment indices of stored steps, of one shape.
Steps = tuple[np.ndarray, np.ndarray]


class Experience:
    """
    A ring of transitions of several environments that step together. What was added is never changed, except by
    :meth:`truncate`.

    Each observation is stored once, a task once an episode. Terminations are stored by cause: those that are the
    environment's own hold for whatever task a step is judged by, time limits for none.

    :param buffer_size: steps of the ring, of each environment
    :param n_envs: number of environments
    :param observation_space: space of the observations, with the task in it
    :param layout: where an observation holds its task
    :param action_dim: entries of a stored action
    :param action_dtype: their type
    :param feature_dim: features of a step
    :param features_key: key of the next observation, laid out as the task, that is the first of the features; None where all
        are stored apart. What follows is stored once any of it is not 0, and until then is left out where features are read
    """

    #: Arrays (buffer_size, n_envs, ...) that hold one entry a step.
    _ARRAYS = ("actions", "rewards", "dones", "timeouts", "env_terminated")

    def __init__(
        self,
        buffer_size: int,
        n_envs: int,
        observation_space: spaces.Space,
        layout: TaskLayout,
        action_dim: int,
        action_dtype: Any,
        feature_dim: int,
        features_key: str | None = None,
    ) -> None:
        self.buffer_size, self.n_envs = buffer_size, n_envs
        self.observation_space, self.layout = observation_space, layout
        self.feature_dim, self.features_key = feature_dim, features_key
        self.pos, self.full = 0, False

        def allocate(*shape: int, dtype: Any = np.float32) -> np.ndarray:
            return np.zeros((buffer_size, n_envs, *shape), dtype=dtype)

        self.actions = allocate(action_dim, dtype=action_dtype)
        self.rewards = allocate()
        self.dones, self.timeouts, self.env_terminated = (allocate(dtype=bool) for _ in range(3))
        #: Features that are in no observation, (buffer_size, n_envs, n).
        self._features = allocate(feature_dim) if features_key is None else None
        self.episodes = EpisodeIndex(buffer_size, n_envs)
        self.store = ObservationStore(observation_space, layout, self.episodes)

    def __len__(self) -> int:
        """Steps of each environment that are stored."""
        return self.buffer_size if self.full else self.pos

    def add(
        self,
        obs: Any,
        next_obs: Any,
        actions: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        timeouts: Any,
        env_terminated: np.ndarray,
        features: np.ndarray,
    ) -> None:
        """
        Store some steps of every environment.

        :param obs: observations, (n_steps, n_envs, ...) or a dict of such; at most as many steps as are left of the ring
        :param next_obs: next observations; at the end of an episode its last one
        :param actions: actions, (n_steps, n_envs, action_dim)
        :param rewards: rewards of the commanded tasks, (n_steps, n_envs)
        :param dones: whether the episodes end, (n_steps, n_envs)
        :param timeouts: whether time limits end them, (n_steps, n_envs)
        :param env_terminated: whether the environments themselves do, (n_steps, n_envs)
        :param features: what the rewards depend on, (n_steps, n_envs, feature_dim)
        """
        dones = np.asarray(dones, dtype=bool)
        rows = slice(self.pos, self.pos + len(dones))
        self.store.add(obs, next_obs, dones)
        self.actions[rows] = actions
        self.rewards[rows] = rewards
        self.dones[rows] = dones
        self.timeouts[rows] = timeouts
        self.env_terminated[rows] = env_terminated
        if self.features_key is not None:
            features = features[..., self.layout.task_dim :]
            if self._features is None and np.count_nonzero(features):
                self._features = np.zeros((self.buffer_size, *features.shape[1:]), dtype=np.float32)
        if self._features is not None:
            self._features[rows] = features
        self.pos = rows.stop
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def truncate(self, as_time_limit: bool) -> None:
        """
        End the episodes that go on with their last step, because they will not be continued.

        :param as_time_limit: whether that counts as a time limit, so that their values are bootstrapped, or as a termination
        """
        unfinished = np.flatnonzero(self.episodes.length > 0)
        if len(unfinished) == 0:
            return
        warnings.warn(
            "The last trajectory in the replay buffer will be truncated.\nIf the environment is still in the episode in which "
            "the buffer was saved, pass truncate_last_traj=False to load_replay_buffer.",
            stacklevel=2,
        )
        self.dones[self.pos - 1, unfinished] = True
        cause = self.timeouts if as_time_limit else self.env_terminated
        cause[self.pos - 1, unfinished] = True
        for env_index in unfinished:
            self.episodes.finish(env_index)

    def transitions(self, at: Steps) -> tuple[Any, Any]:
        """
        Observations before and after steps.

        :param at: ring indices and environment indices, (n,) each
        :return: raw observations and next observations, (n, ...) or dicts of such; copies
        """
        return self.store.transitions(at)

    def features(self, at: Steps) -> np.ndarray:
        """
        Features of steps.

        :param at: ring indices and environment indices, (...,) each
        :return: (..., feature_dim), or (..., task_dim) while nothing follows what is in the observation; a copy
        """
        parts = [] if self._features is None else [take(self._features, at)]
        if self.features_key is not None:
            parts.insert(0, self.layout.flatten(self.store.next_part(self.features_key, at)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def latest(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        What the last steps were rewarded for.

        :param n: how many steps, at most those that are stored
        :return: features, (n, n_envs, feature_dim), commanded tasks, (n, n_envs, task_dim), and rewards, (n, n_envs)
        """
        steps, env_inds = np.indices((n, self.n_envs))
        at = ((self.pos - n + steps) % self.buffer_size, env_inds)
        return self.features(at), self.layout.get(self.store.observations(at)), self.rewards[at]

    def after(self, at: Steps, offsets: Any) -> Steps:
        """
        Steps that lie some rows of the ring ahead.

        :param at: ring indices and environment indices, (...,) each
        :param offsets: how far ahead, (...,)
        :return: ring indices and environment indices
        """
        return (at[0] + offsets) % self.buffer_size, at[1]

    # Everything at once, to look at: not to be written to, for that would be lost.

    @property
    def all_observations(self) -> Any:
        """All observations, (buffer_size, n_envs, ...) or a dict of such, and zeros; a copy."""
        return self._all_rows(self.store.observations)

    @property
    def all_next_observations(self) -> Any:
        """All next observations, likewise."""
        return self._all_rows(self.store.next_observations)

    @property
    def all_features(self) -> np.ndarray:
        """Features of all steps, (buffer_size, n_envs, feature_dim), likewise."""
        return self._all_rows(self.features)

    def _all_rows(self, read: Callable[[Steps], Any]) -> Any:
        def full(values: np.ndarray) -> np.ndarray:
            array = grow(values, self.buffer_size)  # values are a copy already
            array.flags.writeable = False
            return array

        steps, env_inds = np.indices((len(self), self.n_envs))
        return each(read((steps, env_inds)), full)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays().values()) + self.store.nbytes + self.episodes.nbytes

    # -- copies and files ---------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        return arrays if self._features is None else {**arrays, "features": self._features}

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` restores it from: arrays and numbers, without rows that were never written."""
        return {
            "pos": self.pos,
            "full": self.full,
            "episodes": self.episodes.state_dict(),
            "observations": self.store.arrays(),
            "transitions": {name: array[: len(self)] for name, array in self._arrays().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what :meth:`state_dict` returned.

        :param state: the state; its arrays become the experience's own
        """
        self.pos, self.full = state["pos"], state["full"]
        self.episodes.load_state_dict(state["episodes"])
        self.store.set_arrays(state["observations"])
        for name, array in state["transitions"].items():
            setattr(self, "_features" if name == "features" else name, grow(array, self.buffer_size))

    def __getstate__(self) -> dict[str, Any]:
        """State without the rows that were never written."""
        settings = {
            key: getattr(self, key)
            for key in ("buffer_size", "n_envs", "observation_space", "layout", "feature_dim", "features_key")
        }
        shapes = {"action_dim": self.actions.shape[2], "action_dtype": self.actions.dtype}
        return {"settings": settings | shapes, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
        self.load_state_dict(state["state"])
