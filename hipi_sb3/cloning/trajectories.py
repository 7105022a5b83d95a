"""Data sets of trajectories for HIPI-BC: from a replay buffer, from Minari, from ``.npz`` files, from folders of arrays,
from logged steps.

All steps of all trajectories stand one after another in a few long arrays. In a folder each array is a file of its own that is
mapped into memory, so that a data set of any size can be read piece by piece.
"""

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.cloning.arrays import allocate
from hipi_sb3.cloning.logged import read_logged
from hipi_sb3.cloning.recordings import compute_features, open_minari, read_minari
from hipi_sb3.experience.archives import read_npy, read_npz
from hipi_sb3.experience.files import space_from_json, space_to_json
from hipi_sb3.experience.layout import each, stored_shape, stored_type, without_task
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.experience.whole import restore_folder, whole_file, whole_folder
from hipi_sb3.given import numbers
from hipi_sb3.tasks.family import TaskFamily, check_is_family

#: Steps that are read at a time.
BLOCK_STEPS = 1 << 14

#: A data set from Minari that is larger goes to a temporary folder instead of memory.
MAX_STEPS_IN_MEMORY = 2_000_000

_SPACES_FILE = "spaces.json"


class TrajectoryDataset:
    """
    Trajectories of one environment, with the features that the rewards of a task family depend on.

    Observations are those of the environment itself, without a task. No task label is needed; the tasks that the trajectories
    were collected for are kept where they are known, for the baselines that use them.

    :param family: the tasks
    :param observation_space: space of the observations, without a task
    :param action_space: space of the actions, ``Box`` or ``Discrete``
    :param observations: observations before each step, (n_steps, ...), or a dict of such
    :param actions: actions in the units of the environment, (n_steps, action_dim), or (n_steps,) for ``Discrete``
    :param features: features of each step, (n_steps, feature_dim)
    :param lengths: steps of each trajectory, in the order of the arrays, (n_trajectories,)
    :param tasks: tasks that the trajectories were collected for, (n_trajectories, task_dim)
    :param env_terminated: whether the environment itself ended the trajectory, not a task and not a time limit,
        (n_trajectories,); never if None
    :raises ValueError: when the shapes do not fit each other, the spaces or the family
    """

    def __init__(
        self,
        family: TaskFamily,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        observations: Any,
        actions: np.ndarray,
        features: np.ndarray,
        lengths: np.ndarray,
        tasks: np.ndarray | None = None,
        env_terminated: np.ndarray | None = None,
    ) -> None:
        check_is_family("TrajectoryDataset", family)
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"TrajectoryDataset: actions must be Box or Discrete, not {action_space}.")
        self.family = family
        self.observation_space = observation_space
        self.action_space = action_space
        # asanyarray: files that are mapped into memory stay so.
        self.observations = each(observations, np.asanyarray)
        self.actions, self.features = np.asanyarray(actions), np.asanyarray(features)
        self.lengths = numbers("lengths", lengths, "n_trajectories")
        self.tasks = None if tasks is None else numbers("tasks", tasks, "n_trajectories", "task_dim").astype(np.float32)
        n_trajectories = len(self.lengths)
        self.env_terminated = (
            np.zeros(n_trajectories, dtype=bool) if env_terminated is None else np.asarray(env_terminated, dtype=bool)
        )
        are_whole = (self.lengths >= 1) & (self.lengths < 2**53) & (np.rint(self.lengths) == self.lengths)
        if n_trajectories == 0 or not are_whole.all():
            raise ValueError(
                "TrajectoryDataset: there must be at least one trajectory, and none without steps: lengths are whole numbers "
                f"from 1 on, not {self.lengths!s:.80}."
            )
        self.lengths = self.lengths.astype(np.int64)
        n_steps = int(self.lengths.sum())
        expected: dict[str, tuple[int, ...]] = {
            **{name: (n_steps, *(space.shape or ())) for name, space in _named("observations", observation_space).items()},
            "actions": (n_steps, *(action_space.shape or ())),
            "features": (n_steps, family.feature_dim),
            "env_terminated": (n_trajectories,),
        }
        if self.tasks is not None:
            expected["tasks"] = (n_trajectories, family.task_dim)
        for name, array in (self.arrays() | self._small_arrays()).items():
            if name != "lengths" and array.shape != expected.get(name):
                raise ValueError(
                    f"TrajectoryDataset: {name} must have shape {expected.get(name)} for {n_trajectories} trajectories of "
                    f"{n_steps} steps in all, {observation_space} and {type(family).__name__}, not {array.shape}."
                )
        #: Index of the first step of each trajectory, (n_trajectories,).
        self.starts = np.cumsum(self.lengths) - self.lengths
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def n_steps(self) -> int:
        """Steps of all trajectories."""
        return len(self.features)

    @property
    def n_trajectories(self) -> int:
        """Number of trajectories."""
        return len(self.lengths)

    def arrays(self) -> dict[str, np.ndarray]:
        """The long arrays by name, (n_steps, ...) each; a Dict observation has one a key, ``observations.key``."""
        return {**_named("observations", self.observations), "actions": self.actions, "features": self.features}

    def task_space(self, flat: bool = False) -> spaces.Space:
        """
        Space of the observations that a policy sees, as :class:`~hipi_sb3.wrappers.MultiTaskWrapper` makes it.

        :param flat: one Box ``observation || task`` instead of a Dict
        :return: space
        """
        inner, tasks = self.observation_space, self.family.task_space
        if not flat:
            parts = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"observation": inner}
            return spaces.Dict({**parts, self.family.task_key: self.family.shown_space})
        if not isinstance(inner, spaces.Box):
            raise ValueError(f"A flat observation needs a Box, not {inner}. Use MultiInputPolicy.")
        low, high = (np.concatenate(pair).astype(np.float32) for pair in ((inner.low, tasks.low), (inner.high, tasks.high)))
        return spaces.Box(low, high, dtype=np.float32)

    def with_tasks(self, observations: Any, tasks: np.ndarray, flat: bool = False) -> Any:
        """
        Observations as a policy sees them.

        :param observations: observations of the data set, (n, ...) or a dict of such
        :param tasks: tasks, (n, task_dim)
        :param flat: as in :meth:`task_space`
        :return: observations of that space
        """
        if flat:
            return np.concatenate([observations, tasks], axis=1)
        parts = observations if isinstance(observations, dict) else {"observation": observations}
        shown = self.family.shown_space
        tasks = tasks.reshape(len(tasks), *stored_shape(shown)).astype(stored_type(shown), copy=False)
        return {**parts, self.family.task_key: tasks}

    def position_of(self, step: int) -> str:
        """
        Where a step stands, in words.

        :param step: index of the step
        :return: its trajectory and its number in it
        """
        trajectory = int(np.searchsorted(self.starts, step, side="right")) - 1
        return f"trajectory {trajectory}, step {step - self.starts[trajectory]}"

    def check(self, done: Callable[[int], Any] = lambda n_steps: None) -> None:
        """
        Read everything once and look for numbers that are none.

        :param done: called with the number of steps after each block
        :raises ValueError: when one is NaN or infinite; trajectory and step are named
        """
        for first in range(0, self.n_steps, BLOCK_STEPS):
            block = slice(first, first + BLOCK_STEPS)
            for name, array in self.arrays().items():
                array = array[block]
                if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                    step = int(np.argmax(bad))
                    raise ValueError(
                        f"{name} of {self.position_of(first + step)} are {array[step]}: not a finite number. "
                        "Remove that trajectory, or repair whatever wrote it."
                    )
            done(len(self.features[block]))

    def checksum(self) -> int:
        """
        A number that tells data sets apart; everything is read once.

        :return: CRC-32 of all arrays of steps
        """
        value = 0
        for name, array in self.arrays().items():
            value = zlib.crc32(f"{name} {array.dtype}".encode(), value)
            for first in range(0, self.n_steps, BLOCK_STEPS):
                value = zlib.crc32(array[first : first + BLOCK_STEPS].tobytes(), value)
        return value

    # -- where they come from -----------------------------------------------------------------------------------------

    @classmethod
    def from_buffer(cls, buffer: HIPIReplayBuffer) -> "TrajectoryDataset":
        """
        Trajectories of a replay buffer: what is left of the oldest ones and what there is of unfinished ones included.

        :param buffer: a buffer that is not empty
        :return: data set; its arrays are copies
        """
        return cls.from_experience(buffer.experience, buffer.require_family(), buffer.action_space)

    @classmethod
    def from_experience(cls, experience: Experience, family: TaskFamily, action_space: spaces.Space) -> "TrajectoryDataset":
        """
        Trajectories of what happened, as :meth:`from_buffer`; Box actions are stored scaled to [-1, 1].

        :param experience: what happened
        :param family: the tasks
        :param action_space: space of the actions
        :return: data set; its arrays are copies
        """
        layout, size, n_envs = experience.layout, len(experience), experience.n_envs
        oldest = experience.pos if experience.full else 0
        rows = (oldest + np.arange(size)) % experience.buffer_size
        # Environment by environment, each from its oldest row on: (n_envs, size) -> (n_envs * size,).
        at = (np.tile(rows, n_envs), np.repeat(np.arange(n_envs), size))
        is_first = experience.episodes.step(at) == 0
        is_first[::size] = True
        starts = np.flatnonzero(is_first)
        ends = np.append(starts[1:], len(is_first)) - 1
        inner = space = experience.observation_space
        observations = experience.store.observations(at)
        tasks = layout.get(observations)[starts]
        if isinstance(space, spaces.Dict):
            inner = without_task(space, layout.key)
            observations = _shaped(without_task(observations, layout.key), inner)
        else:
            assert isinstance(space, spaces.Box)
            inner = spaces.Box(space.low[: -family.task_dim], space.high[: -family.task_dim], dtype=np.float32)
            observations = observations[:, : -family.task_dim]
        actions = experience.actions[at].reshape(len(is_first), *(action_space.shape or ()))
        if isinstance(action_space, spaces.Box):
            # stable-baselines3 stores actions scaled to [-1, 1].
            actions = action_space.low + 0.5 * (actions + 1.0) * (action_space.high - action_space.low)
        features = experience.features(at)
        if features.shape[1] < family.feature_dim:  # what follows the task was 0 so far, and was not stored
            features = np.pad(features, ((0, 0), (0, family.feature_dim - features.shape[1])))
        return cls(
            family,
            inner,
            action_space,
            observations,
            actions,
            features,
            np.diff(np.append(starts, len(is_first))),
            tasks,
            experience.env_terminated[at][ends],
        )

    @classmethod
    def from_arrays(
        cls,
        family: TaskFamily,
        observations: Any,
        actions: Any,
        episodes: Any,
        next_observations: Any = None,
        rewards: Any = None,
        features: Any = None,
        terminated: Any = None,
        tasks: Any = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> "TrajectoryDataset":
        """
        Trajectories of logged steps, one row a step: NumPy arrays, or columns of a pandas DataFrame. No environment is needed.

        :param family: the tasks; one that reads observations and actions alone, unless ``features`` are given
        :param observations: observations before each step, (n_steps, ...)
        :param actions: actions in the units of the environment, (n_steps, action_dim), or whole numbers (n_steps,)
        :param episodes: which episode each step belongs to, any names, (n_steps,); its steps stand one after another
        :param next_observations: observations after each step, as ``observations``. If None, those of the next row; the last
            step of each episode, of which nothing says where it led, is left out then
        :param rewards: the environment's own rewards, for families that read them, (n_steps,)
        :param features: features of each step, (n_steps, feature_dim); the family computes them if None
        :param terminated: whether the environment itself ended the episode with this step, (n_steps,); never if None
        :param tasks: task that each step was collected for, (n_steps, task_dim); the first of an episode counts
        :param observation_space: a Box without bounds if None
        :param action_space: the smallest Box around the actions, or as many discrete ones as there are numbers, if None
        :return: data set
        :raises ValueError: when lengths differ, the steps of an episode lie apart, the family needs more than was logged, or
            the actions have no bounds that could be read from them
        """
        return cls(
            **read_logged(
                family,
                observations,
                actions,
                episodes,
                next_observations,
                rewards,
                features,
                terminated,
                tasks,
                observation_space,
                action_space,
            )
        )

    @classmethod
    def load(cls, path: str | Path, family: TaskFamily, **kwargs: Any) -> "TrajectoryDataset":
        """
        Read a data set, whatever it is: a ``.npz`` file, a folder of ``.npy`` files, or a Minari data set.

        :param path: path, or the id of a Minari data set
        :param family: the tasks
        :param kwargs: as in :meth:`from_npz` or :meth:`from_minari`
        :return: data set
        """
        restore_folder(Path(path))
        is_arrays = Path(path).suffix == ".npz" or (Path(path) / "lengths.npy").is_file()
        return cls.from_npz(path, family, **kwargs) if is_arrays else cls.from_minari(path, family, **kwargs)

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        family: TaskFamily,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> "TrajectoryDataset":
        """
        Read a ``.npz`` file, or a folder with a ``.npy`` file an array. A folder is mapped into memory, not loaded.

        Arrays: ``observations`` (of a Dict, one a key: ``observations.key``), ``actions``, ``lengths`` and ``features``, and
        where they are known ``tasks`` and ``env_terminated``, as in the constructor. ``features`` may be missing where
        ``next_observations`` (n_steps, ...) say enough for the family; ``rewards`` (n_steps, ...), those of the environment,
        are then passed to it too.

        :param path: file or folder
        :param family: the tasks
        :param observation_space: space of the observations; what :meth:`save` wrote if None
        :param action_space: space of the actions; what :meth:`save` wrote if None
        :return: data set
        :raises ValueError: when an array or a space is missing, or a file holds anything but plain arrays
        """
        path = Path(path)
        restore_folder(path)
        arrays: dict[str, Any] = {}
        if path.is_dir():
            arrays = {file.stem: read_npy(file, "r") for file in path.glob("*.npy")}
            text = (path / _SPACES_FILE).read_text() if (path / _SPACES_FILE).is_file() else None
        else:
            arrays = read_npz(path)
            text = str(arrays.pop("spaces")) if "spaces" in arrays else None
        stored = {} if text is None else {name: space_from_json(entry) for name, entry in json.loads(text).items()}
        observation_space = observation_space or stored.get("observation")
        action_space = action_space or stored.get("action")
        if observation_space is None or action_space is None:
            raise ValueError(f"{path} does not say its spaces. Pass observation_space=... and action_space=...")
        for prefix in ("observations", "next_observations"):
            parts = {name.partition(".")[2]: arrays.pop(name) for name in list(arrays) if name.startswith(f"{prefix}.")}
            arrays |= {prefix: parts} if parts else {}
        missing = [name for name in ("observations", "actions", "lengths") if name not in arrays]
        if missing or not {"features", "next_observations"} & arrays.keys():
            wanted = missing or ["features (or next_observations)"]
            raise ValueError(f"{path} has no {', '.join(wanted)}, only {', '.join(sorted(arrays))}.")
        if "features" not in arrays:
            arrays["features"] = compute_features(
                family, arrays["observations"], arrays["actions"], arrays["next_observations"], arrays.get("rewards")
            )
        names = ("observations", "actions", "features", "lengths", "tasks", "env_terminated")
        return cls(family, observation_space, action_space, **{name: arrays.get(name) for name in names})  # type: ignore[arg-type]

    @classmethod
    def from_minari(
        cls, dataset: Any, family: TaskFamily, folder: str | Path | None = None, progress_bar: bool = False
    ) -> "TrajectoryDataset":
        """
        Read a Minari data set, an episode at a time.

        Episodes recorded through :class:`~hipi_sb3.wrappers.MultiTaskWrapper` bring their features (``task_features`` in
        ``infos``) and their tasks. For others the family computes the features from observations, actions, rewards and infos.

        :param dataset: id of a local data set, path of one, or ``minari.MinariDataset``
        :param family: the tasks
        :param folder: where the arrays are written; if None, they stay in memory where there are few
        :param progress_bar: whether to show one
        :return: data set
        :raises ValueError: when the family needs the simulator
        """
        source = open_minari(dataset)
        if folder is not None:
            with whole_folder(folder, _is_ours) as new:
                result = cls(**read_minari(source, family, new, progress_bar))
                result._save_rest(new)
            return result
        temporary = tempfile.TemporaryDirectory() if source.spec.total_steps > MAX_STEPS_IN_MEMORY else None
        result = cls(**read_minari(source, family, None if temporary is None else temporary.name, progress_bar))
        result._temporary = temporary
        return result

    def save(self, path: str | Path) -> None:
        """
        Write the data set: one ``.npz`` file, or a folder that :meth:`from_npz` maps into memory. Whenever the process is
        killed, what was there before is there, or this; a data set may be saved over the one that it was loaded from.

        :param path: file that ends in ``.npz``, or folder
        :raises FileExistsError: when there is a folder of something else in that place
        :raises NotWritten: when the disk is full, or cannot be written to
        """
        path = Path(path)
        if path.suffix == ".npz":
            with whole_file(path) as temporary:
                np.savez(temporary, spaces=np.array(self._spaces()), **self.arrays(), **self._small_arrays())  # type: ignore[arg-type]
            return
        with whole_folder(path, _is_ours) as new:
            for name, source in self.arrays().items():
                target = allocate(new, name, source.shape, source.dtype)
                for first in range(0, self.n_steps, BLOCK_STEPS):
                    target[first : first + BLOCK_STEPS] = source[first : first + BLOCK_STEPS]
            self._save_rest(new)

    def _small_arrays(self) -> dict[str, np.ndarray]:
        arrays = {"lengths": self.lengths, "env_terminated": self.env_terminated}
        return arrays if self.tasks is None else {**arrays, "tasks": self.tasks}

    def _spaces(self) -> str:
        return json.dumps({"observation": space_to_json(self.observation_space), "action": space_to_json(self.action_space)})

    def _save_rest(self, folder: Path) -> None:
        for name, array in self._small_arrays().items():
            np.save(folder / f"{name}.npy", array)
        (folder / _SPACES_FILE).write_text(self._spaces() + "\n")


def _is_ours(entry: Path) -> bool:
    """Whether an entry of a folder is one that :meth:`TrajectoryDataset.save` writes."""
    return entry.suffix == ".npy" or entry.name == _SPACES_FILE


def _named(name: str, parts: Any) -> dict[str, Any]:
    """Arrays or spaces of an observation, each under a name of its own."""
    return {f"{name}.{key}": part for key, part in parts.items()} if isinstance(parts, dict | spaces.Dict) else {name: parts}


def _shaped(observations: Any, space: spaces.Space) -> Any:
    """Observations in the shapes of their spaces: a buffer keeps the numbers of discrete ones in arrays of length one."""
    if isinstance(space, spaces.Dict):
        return {key: _shaped(observations[key], part) for key, part in space.spaces.items()}
    return observations.reshape(len(observations), *(space.shape or ()))
