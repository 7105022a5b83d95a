"""Recorded episodes without an environment: Minari data sets, and the features that a family computes from them."""

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.cloning.arrays import allocate, show_progress
from hipi_sb3.experience.layout import each, without_task
from hipi_sb3.tasks.family import TaskFamily


def read_minari(source: Any, family: TaskFamily, folder: str | Path | None, progress_bar: bool) -> dict[str, Any]:
    """
    Read a Minari data set, an episode at a time.

    :param source: ``minari.MinariDataset``
    :param family: the tasks
    :param folder: where the long arrays are written; they stay in memory if None
    :param progress_bar: whether to show one
    :return: arguments of :class:`~hipi_sb3.cloning.trajectories.TrajectoryDataset`
    :raises ValueError: when the family needs the simulator
    """
    space, key = source.observation_space, family.task_key
    inner = without_task(space, key) if isinstance(space, spaces.Dict) else space
    knows_tasks = isinstance(space, spaces.Dict) and key in space.spaces
    lengths = [int(data["total_steps"]) for data in source.storage.get_episode_metadata(source.episode_indices)]
    n_steps = sum(lengths)

    def make(name: str, part: spaces.Space) -> np.ndarray:
        # The networks read float32.
        dtype = np.float32 if part.dtype == np.float64 else part.dtype
        return allocate(folder, name, (n_steps, *(part.shape or ())), dtype)

    if isinstance(inner, spaces.Dict):
        observations: Any = {name: make(f"observations.{name}", part) for name, part in inner.spaces.items()}
    else:
        observations = make("observations", inner)
    actions = make("actions", source.action_space)
    features = allocate(folder, "features", (n_steps, family.feature_dim), np.float32)
    tasks, env_terminated = [], []
    first = 0
    with show_progress(n_steps, "reading", progress_bar) as done:
        for number, episode in enumerate(source.iterate_episodes()):
            n = len(episode)
            steps = slice(first, first + n)
            seen = without_task(episode.observations, key) if isinstance(space, spaces.Dict) else episode.observations
            _copy(observations, seen, steps)
            actions[steps] = episode.actions
            infos = _last(episode.infos or {}, n)
            try:
                features[steps] = (
                    infos["task_features"]
                    if "task_features" in infos
                    else compute_features(
                        family, seen, episode.actions, each(seen, lambda array: array[1:]), episode.rewards, infos
                    )
                )
            except ValueError as error:
                raise ValueError(f"{source.id}, trajectory {number}: {error}") from error
            terminated = bool(episode.terminations[-1])
            if knows_tasks:
                tasks.append(episode.observations[key][0])
                terminated &= not bool(family.terminated(features[first + n - 1], tasks[-1]))
            env_terminated.append(terminated)
            first += n
            done(n)
    return {
        "family": family,
        "observation_space": inner,
        "action_space": source.action_space,
        "observations": observations,
        "actions": actions,
        "features": features,
        "lengths": np.array(lengths),
        "tasks": np.array(tasks) if knows_tasks else None,
        "env_terminated": np.array(env_terminated),
    }


def open_minari(dataset: Any) -> Any:
    """
    Find a Minari data set.

    :param dataset: id of a local data set, path of one, or ``minari.MinariDataset``
    :return: ``minari.MinariDataset``
    :raises ValueError: when there is none
    """
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
            f"{dataset} is neither a .npz file, nor a folder with lengths.npy, nor a local Minari data set. "
            f"Local ones: {', '.join(local) or 'none'}."
        )
    return minari.load_dataset(str(dataset))


class _NoSimulator:
    """Stands for the environment where there is none: says so when it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise _NeedsSimulatorError(name)


class _NeedsSimulatorError(Exception):
    pass


def compute_features(
    family: TaskFamily,
    observations: Any,
    actions: np.ndarray,
    next_observations: Any,
    rewards: np.ndarray | None = None,
    infos: dict[str, Any] | None = None,
) -> np.ndarray:
    """
    Compute the features of recorded steps, without an environment.

    :param family: the tasks
    :param observations: observations, (n_steps, ...), or a dict of such
    :param actions: actions, (n_steps, ...)
    :param next_observations: next observations, as ``observations``
    :param rewards: rewards of the environment, (n_steps, ...); 0 if None
    :param infos: arrays by name, (n_steps, ...) each
    :return: features, (n_steps, feature_dim)
    :raises ValueError: when the family reads the simulator, or an info that was not recorded
    """
    features = np.empty((len(actions), family.feature_dim), dtype=np.float32)
    env: Any = _NoSimulator()
    infos = infos or {}
    for step in range(len(features)):
        obs, next_obs, info = (_at(values, step) for values in (observations, next_observations, infos))
        reward = 0.0 if rewards is None else rewards[step]
        try:
            features[step] = family.features(env, obs, actions[step], next_obs, reward, info)
        except (_NeedsSimulatorError, KeyError) as error:
            what = "the simulator" if isinstance(error, _NeedsSimulatorError) else "what was not recorded"
            raise ValueError(
                f"{type(family).__name__} reads {what} ({error.args[0]}). Of each step, only observation, action, next "
                f"observation, reward and info ({', '.join(infos) or 'empty'}) were recorded. Use a family that does with "
                "these, such as GoalReaching(position=<indices into the observation>) or TargetVelocity(velocity=<key of info "
                "or function of next_obs>). Or record through MultiTaskWrapper, with infos: their task_features are used as "
                "they are."
            ) from error
    return features


def _copy(target: Any, source: Any, steps: slice) -> None:
    """Write the observations of an episode, (n_steps + 1, ...), without the last one."""
    if isinstance(target, dict):
        for name, array in target.items():
            _copy(array, source[name], steps)
    else:
        target[steps] = source[: steps.stop - steps.start]


def _last(infos: dict[str, Any], n_steps: int) -> dict[str, Any]:
    """Infos of the steps: Minari's collector puts that of the reset before them."""
    return {
        name: _last(values, n_steps) if isinstance(values, dict) else values[len(values) - n_steps :]
        for name, values in infos.items()
    }


def _at(values: Any, step: int) -> Any:
    """One step of arrays by name, of nested ones too."""
    return {name: _at(value, step) for name, value in values.items()} if isinstance(values, dict) else values[step]
