"""Data sets of trajectories for HIPI-BC: from a replay buffer, from Minari, from ``.npz`` files, from folders of arrays.

All steps of all trajectories stand one after another in a few long arrays. In a folder each array is a file of its own that is
mapped into memory, so that a data set of any size can be read piece by piece.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.tasks import TaskFamily

#: Steps that are read at a time.
BLOCK_STEPS = 1 << 14

#: A data set from Minari that is larger (bytes) goes to a folder instead of memory.
_MAX_MEMORY = 1 << 30

_SPACES_FILE = "spaces.json"


class TrajectoryDataset:
    """
    Trajectories of one environment, with the features that the rewards of a task family depend on.

    Observations are those of the environment itself, without a task. No task label is needed; the tasks that the trajectories
    were collected for are kept where they are known, for the baselines that use them.

    :param family: the tasks
    :param observation_space: space of the observations, without a task
    :param action_space: space of the actions, ``Box`` or ``Discrete``
    :param observations: observations before each step, (n_steps, ...)
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
        observations: np.ndarray,
        actions: np.ndarray,
        features: np.ndarray,
        lengths: np.ndarray,
        tasks: np.ndarray | None = None,
        env_terminated: np.ndarray | None = None,
    ) -> None:
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"TrajectoryDataset: actions must be Box or Discrete, not {action_space}.")
        self.family = family
        self.observation_space = observation_space
        self.action_space = action_space
        self.observations = observations
        self.actions = actions
        self.features = features
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.tasks = None if tasks is None else np.asarray(tasks, dtype=np.float32)
        n_trajectories = len(self.lengths)
        self.env_terminated = (
            np.zeros(n_trajectories, dtype=bool) if env_terminated is None else np.asarray(env_terminated, dtype=bool)
        )
        if n_trajectories == 0 or self.lengths.min() < 1:
            raise ValueError("TrajectoryDataset: there must be at least one trajectory, and none without steps.")
        n_steps = int(self.lengths.sum())
        expected: dict[str, tuple[int, ...]] = {
            "observations": (n_steps, *(observation_space.shape or ())),
            "actions": (n_steps, *(action_space.shape or ())),
            "features": (n_steps, family.feature_dim),
            "env_terminated": (n_trajectories,),
        }
        if self.tasks is not None:
            expected["tasks"] = (n_trajectories, family.task_dim)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"TrajectoryDataset: {name} must have shape {shape} for {n_trajectories} trajectories of {n_steps} steps in "
                    f"all, {observation_space} and {type(family).__name__}, not {getattr(self, name).shape}."
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

    def task_observation_space(self, flat: bool = False) -> spaces.Space:
        """
        Space of the observations that a policy sees, as :class:`~hipi_sb3.wrappers.MultiTaskWrapper` makes it.

        :param flat: one Box ``observation || task`` instead of a Dict
        :return: space
        """
        inner, tasks = self.observation_space, self.family.task_space
        if not flat:
            return spaces.Dict({"observation": inner, "task": tasks})
        assert isinstance(inner, spaces.Box), "A flat observation needs a Box."
        low, high = (np.concatenate(pair).astype(np.float32) for pair in ((inner.low, tasks.low), (inner.high, tasks.high)))
        return spaces.Box(low, high, dtype=np.float32)

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
            for name in ("observations", "actions", "features"):
                array = getattr(self, name)[block]
                if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                    step = int(np.argmax(bad))
                    raise ValueError(
                        f"{name} of {self.position_of(first + step)} are {array[step]}: not a finite number. "
                        "Remove that trajectory, or repair whatever wrote it."
                    )
            done(len(self.features[block]))

    # -- where they come from --------------------------------------------------------------------------------------------

    @classmethod
    def from_buffer(cls, buffer: HIPIReplayBuffer) -> "TrajectoryDataset":
        """
        Trajectories of a replay buffer: what is left of the oldest ones and what there is of unfinished ones included.

        :param buffer: a buffer that is not empty
        :return: data set; its arrays are copies
        """
        family, layout = buffer.require_family(), buffer.layout
        size = buffer.size()
        oldest = buffer.pos if buffer.full else 0
        rows = (oldest + np.arange(size)) % buffer.buffer_size
        # Environment by environment, each from its oldest row on: (n_envs, size) -> (n_envs * size,).
        at = (np.tile(rows, buffer.n_envs), np.repeat(np.arange(buffer.n_envs), size))
        is_first = buffer.episodes.step[at] == 0
        is_first[::size] = True
        starts = np.flatnonzero(is_first)
        ends = np.append(starts[1:], len(is_first)) - 1
        space, action_space = buffer.observation_space, buffer.action_space
        if isinstance(space, spaces.Dict):
            inner, observations = space["observation"], buffer.observations["observation"][at]
            tasks = buffer.observations["task"][at][starts]
        else:
            assert isinstance(space, spaces.Box)
            inner = spaces.Box(space.low[: -family.task_dim], space.high[: -family.task_dim], dtype=np.float32)
            flat = buffer.observations[at]
            observations, tasks = flat[:, : -family.task_dim], layout.get(flat[starts])
        actions = buffer.actions[at].reshape(len(is_first), *(action_space.shape or ()))
        if isinstance(action_space, spaces.Box):
            # stable-baselines3 stores actions scaled to [-1, 1].
            actions = action_space.low + 0.5 * (actions + 1.0) * (action_space.high - action_space.low)
        return cls(
            family,
            inner,
            action_space,
            observations,
            actions,
            buffer.features[at],
            np.diff(np.append(starts, len(is_first))),
            tasks,
            buffer.env_terminated[at][ends],
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
        is_arrays = Path(path).suffix == ".npz" or (Path(path) / "observations.npy").is_file()
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

        Arrays: ``observations``, ``actions``, ``lengths`` and ``features``, and where they are known ``tasks`` and
        ``env_terminated``, as in the constructor. ``features`` may be missing where ``next_observations`` (n_steps, ...) say
        enough for the family; ``rewards`` (n_steps, ...), those of the environment, are then passed to it too.

        :param path: file or folder
        :param family: the tasks
        :param observation_space: space of the observations; what :meth:`save` wrote if None
        :param action_space: space of the actions; what :meth:`save` wrote if None
        :return: data set
        :raises ValueError: when an array or a space is missing
        """
        path = Path(path)
        arrays: dict[str, Any] = {}
        if path.is_dir():
            arrays = {file.stem: np.load(file, mmap_mode="r") for file in path.glob("*.npy")}
            text = (path / _SPACES_FILE).read_text() if (path / _SPACES_FILE).is_file() else None
        else:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            text = str(arrays.pop("spaces")) if "spaces" in arrays else None
        stored = {} if text is None else {name: _space_from(entry) for name, entry in json.loads(text).items()}
        observation_space = observation_space or stored.get("observation")
        action_space = action_space or stored.get("action")
        if observation_space is None or action_space is None:
            raise ValueError(f"{path} does not say its spaces. Pass observation_space=... and action_space=...")
        missing = [name for name in ("observations", "actions", "lengths") if name not in arrays]
        if missing or not {"features", "next_observations"} & arrays.keys():
            wanted = missing or ["features (or next_observations)"]
            raise ValueError(f"{path} has no {', '.join(wanted)}, only {', '.join(sorted(arrays))}.")
        if "features" not in arrays:
            rewards = arrays.get("rewards")
            arrays["features"] = compute_features(
                family, arrays["observations"], arrays["actions"], arrays["next_observations"], rewards
            )
        names = ("observations", "actions", "features", "lengths", "tasks", "env_terminated")
        return cls(family, observation_space, action_space, **{name: arrays.get(name) for name in names})  # type: ignore[arg-type]

    @classmethod
    def from_minari(
        cls,
        dataset: Any,
        family: TaskFamily,
        key: str = "observation",
        folder: str | Path | None = None,
        progress_bar: bool = False,
    ) -> "TrajectoryDataset":
        """
        Read a Minari data set, an episode at a time.

        Episodes recorded through :class:`~hipi_sb3.wrappers.MultiTaskWrapper` bring their features (``task_features`` in
        ``infos``) and their tasks. For others the family computes the features from observations, actions, rewards and infos.

        :param dataset: id of a local data set, path of one, or ``minari.MinariDataset``
        :param family: the tasks
        :param key: the entry of a Dict observation that the policy sees
        :param folder: where the arrays are written; they stay in memory if None and there are few
        :param progress_bar: whether to show one
        :return: data set
        :raises ValueError: when the family needs the simulator
        """
        source = _open_minari(dataset)
        space = source.observation_space
        is_dict = isinstance(space, spaces.Dict)
        if is_dict and key not in space.spaces:
            raise ValueError(f"The observations of {source.id} have no {key!r}, only {list(space.spaces)}. Pass key=...")
        inner = space[key] if is_dict else space
        lengths = [int(data["total_steps"]) for data in source.storage.get_episode_metadata(source.episode_indices)]
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "observations": (inner.shape, np.float32 if inner.dtype == np.float64 else inner.dtype),
            "actions": (source.action_space.shape, source.action_space.dtype),
            "features": ((family.feature_dim,), np.float32),
        }
        n_bytes = sum(lengths) * sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        temporary = tempfile.TemporaryDirectory() if folder is None and n_bytes > _MAX_MEMORY else None
        folder = temporary.name if temporary is not None else folder
        arrays = {name: _allocate(folder, name, (sum(lengths), *shape), dtype) for name, (shape, dtype) in shapes.items()}
        tasks, env_terminated = [], []
        first = 0
        with show_progress(sum(lengths), "reading", progress_bar) as done:
            for number, episode in enumerate(source.iterate_episodes()):
                n = len(episode)
                steps = slice(first, first + n)
                observations = episode.observations[key] if is_dict else episode.observations
                arrays["observations"][steps] = observations[:n]
                arrays["actions"][steps] = episode.actions
                infos = _infos(episode.infos, n)
                try:
                    arrays["features"][steps] = (
                        infos["task_features"]
                        if "task_features" in infos
                        else compute_features(
                            family, observations[:n], episode.actions, observations[1:], episode.rewards, infos
                        )
                    )
                except ValueError as error:
                    raise ValueError(f"{source.id}, trajectory {number}: {error}") from error
                terminated = bool(episode.terminations[-1])
                if is_dict and "task" in space.spaces:
                    tasks.append(episode.observations["task"][0])
                    terminated &= not bool(family.terminated(arrays["features"][first + n - 1], tasks[-1]))
                env_terminated.append(terminated)
                first += n
                done(n)
        result = cls(
            family,
            inner,
            source.action_space,
            **arrays,
            lengths=np.array(lengths),
            tasks=np.array(tasks) if tasks else None,
            env_terminated=np.array(env_terminated),
        )
        result._temporary = temporary
        if folder is not None and temporary is None:
            result._save_rest(Path(folder))
        return result

    def save(self, path: str | Path) -> None:
        """
        Write the data set: one ``.npz`` file, or a folder that :meth:`from_npz` maps into memory.

        :param path: file that ends in ``.npz``, or folder
        """
        path = Path(path)
        if path.suffix == ".npz":
            arrays = {name: getattr(self, name) for name in ("observations", "actions", "features")} | self._small_arrays()
            with open(f"{path}.tmp", "wb") as file:
                np.savez(file, spaces=np.array(self._spaces()), **arrays)
            os.replace(f"{path}.tmp", path)
            return
        for name in ("observations", "actions", "features"):
            source = getattr(self, name)
            target = _allocate(path, name, source.shape, source.dtype)
            for first in range(0, self.n_steps, BLOCK_STEPS):
                target[first : first + BLOCK_STEPS] = source[first : first + BLOCK_STEPS]
        self._save_rest(path)

    def _small_arrays(self) -> dict[str, np.ndarray]:
        arrays = {"lengths": self.lengths, "env_terminated": self.env_terminated}
        return arrays if self.tasks is None else {**arrays, "tasks": self.tasks}

    def _spaces(self) -> str:
        return json.dumps({"observation": _space_to(self.observation_space), "action": _space_to(self.action_space)})

    def _save_rest(self, folder: Path) -> None:
        for name, array in self._small_arrays().items():
            np.save(folder / f"{name}.npy", array)
        (folder / _SPACES_FILE).write_text(self._spaces() + "\n")


class _NoSimulator:
    """Stands for the environment where there is none: says so when it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise _NeedsSimulatorError(name)


class _NeedsSimulatorError(Exception):
    pass


def compute_features(
    family: TaskFamily,
    observations: np.ndarray,
    actions: np.ndarray,
    next_observations: np.ndarray,
    rewards: np.ndarray | None = None,
    infos: dict[str, Any] | None = None,
) -> np.ndarray:
    """
    Compute the features of recorded steps, without an environment.

    :param family: the tasks
    :param observations: observations, (n_steps, ...)
    :param actions: actions, (n_steps, ...)
    :param next_observations: next observations, (n_steps, ...)
    :param rewards: rewards of the environment, (n_steps, ...); 0 if None
    :param infos: arrays by name, (n_steps, ...) each
    :return: features, (n_steps, feature_dim)
    :raises ValueError: when the family reads the simulator, or an info that was not recorded
    """
    features = np.empty((len(observations), family.feature_dim), dtype=np.float32)
    env: Any = _NoSimulator()
    infos = infos or {}
    for step in range(len(features)):
        reward = 0.0 if rewards is None else rewards[step]
        info = {name: _at(values, step) for name, values in infos.items()}
        try:
            features[step] = family.features(env, observations[step], actions[step], next_observations[step], reward, info)
        except (_NeedsSimulatorError, KeyError) as error:
            what = "the environment's info" if isinstance(error, KeyError) else "the simulator"
            raise ValueError(
                f"{type(family).__name__} reads {what} ({error}), but of each step only observation, action, next observation, "
                f"reward and info ({', '.join(infos) or 'empty'}) were recorded. Use a family that reads one of these, such as "
                "GoalReaching(position=<indices into the observation>) or TargetVelocity(velocity=<function of next_obs>), or "
                "record through MultiTaskWrapper, with infos: their task_features are used as they are."
            ) from error
    return features


@contextmanager
def show_progress(total: int, description: str, show: bool) -> Iterator[Callable[[int], Any]]:
    """
    Show a progress bar.

    :param total: number of steps
    :param description: what is going on
    :param show: whether to show it
    :return: function to call with the number of steps that were done
    :raises ImportError: when tqdm is missing
    """
    if not show:
        yield lambda n_steps: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("The progress bar needs tqdm: run `pip install tqdm`, or pass progress_bar=False.") from error
    with tqdm(total=total, desc=description, unit="step", unit_scale=True) as bar:
        yield bar.update


def _open_minari(dataset: Any) -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari data sets need minari: run `pip install 'hipi_sb3[benchmark]'`.") from error
    if isinstance(dataset, minari.MinariDataset):
        return dataset
    path = Path(dataset)
    for folder in (path, path / "data"):
        if (folder / "metadata.json").is_file():
            return minari.MinariDataset(folder)
    local = minari.list_local_datasets()
    if str(dataset) not in local:
        raise ValueError(
            f"{dataset} is neither a .npz file, nor a folder with observations.npy, nor a local Minari data set. "
            f"Local ones: {', '.join(local) or 'none'}."
        )
    return minari.load_dataset(str(dataset))


def _allocate(folder: str | Path | None, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array in memory, or in a file that is mapped into memory."""
    if folder is None:
        return np.empty(shape, dtype)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(Path(folder) / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def _infos(infos: dict[str, Any] | None, n_steps: int) -> dict[str, Any]:
    """Infos of the steps: Minari's collector puts that of the reset before them."""
    return {
        name: _infos(values, n_steps) if isinstance(values, dict) else values[len(values) - n_steps :]
        for name, values in (infos or {}).items()
    }


def _at(values: Any, step: int) -> Any:
    return {name: _at(value, step) for name, value in values.items()} if isinstance(values, dict) else values[step]


def _space_to(space: spaces.Space) -> dict[str, Any]:
    """A space for JSON."""
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"TrajectoryDataset saves Box and Discrete spaces, not {space}.")
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": space.dtype.name}


def _space_from(entry: dict[str, Any]) -> spaces.Space:
    """The space of :func:`_space_to`."""
    if "n" in entry:
        return gym.spaces.Discrete(entry["n"], start=entry["start"])
    return spaces.Box(
        *(np.array(entry[bound], dtype=entry["dtype"]) for bound in ("low", "high")), dtype=np.dtype(entry["dtype"])
    )
