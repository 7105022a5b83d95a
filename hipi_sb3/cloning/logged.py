"""Logged steps as a data set: arrays or columns of a table, one row a step, without an environment and without its spaces."""

from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.cloning.recordings import compute_features
from hipi_sb3.tasks.family import TaskFamily


def read_logged(
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
) -> dict[str, Any]:
    """
    Arguments of :class:`~hipi_sb3.cloning.trajectories.TrajectoryDataset` for logged steps.

    All parameters are those of :meth:`~hipi_sb3.cloning.trajectories.TrajectoryDataset.from_arrays`.

    :return: arguments by name
    :raises ValueError: as there
    """
    given = {
        "observations": _numbers("observations", observations),
        "actions": _numbers("actions", actions),
        "episodes": _array("episodes", episodes),
        "next_observations": _numbers("next_observations", next_observations),
        "rewards": _numbers("rewards", rewards),
        "features": _numbers("features", features),
        "terminated": None if terminated is None else _numbers("terminated", terminated).astype(bool),
        "tasks": _numbers("tasks", tasks),
    }
    steps = {name: array for name, array in given.items() if array is not None}
    for name in ("observations", "actions"):
        if name not in steps:
            raise ValueError(f"from_arrays: there are no {name}. Pass {name}=..., one row a step.")
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if not isinstance(space, spaces.Space | None):
            raise TypeError(
                f"from_arrays: {name} must be a space, such as Box(...), not {type(space).__name__}: {space!r:.80}."
            )
    n_steps = len(steps["observations"])
    for name, array in steps.items():
        if len(array) != n_steps:
            raise ValueError(
                f"from_arrays: {name} has {len(array)} rows, observations have {n_steps}. Each is one row a step."
            )
    starts, ends = _bounds(steps["episodes"])
    # What the constructor takes once an episode: as its first step has it, and as its last one does.
    first = None if tasks is None else steps["tasks"][starts]
    last = None if terminated is None else steps["terminated"][ends]
    if "features" not in steps and "next_observations" not in steps:
        steps["next_observations"] = np.roll(steps["observations"], -1, axis=0)
        # Nothing says where the last step of an episode led.
        keep = np.ones(n_steps, dtype=bool)
        keep[ends] = False
        steps = {name: array[keep] for name, array in steps.items()}
        if (starts == ends).any():
            raise ValueError(
                f"from_arrays: episode {given['episodes'][starts[starts == ends][0]]} has one step, and nothing says where it "
                "led. Pass next_observations=..., or leave it out."
            )
        ends = ends - 1
    if "features" not in steps:
        steps["features"] = compute_features(
            family, steps["observations"], steps["actions"], steps["next_observations"], steps.get("rewards")
        )
    return {
        "family": family,
        "observation_space": observation_space or _unbounded(steps["observations"]),
        "action_space": action_space or _action_space(steps["actions"]),
        "observations": steps["observations"],
        "actions": steps["actions"],
        "features": steps["features"],
        "lengths": ends - starts + 1,
        "tasks": first,
        "env_terminated": last,
    }


def _array(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"from_arrays: {name} cannot be read as an array: {error}") from error
    if array.ndim == 0:
        raise ValueError(
            f"from_arrays: {name} must have one row a step, but {values!r:.80} has none. Pass an array or a list."
        )
    return array


def _numbers(name: str, values: Any) -> Any:
    """An array as the networks read it: float32, or whole numbers as they are."""
    if values is None:
        return None
    array = _array(name, values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"from_arrays: {name} must be numbers, not {array.dtype}. Convert them, or leave them out.")
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _bounds(episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last step of each episode, (n_episodes,) each."""
    if episodes.ndim != 1 or len(episodes) == 0:
        raise ValueError(f"from_arrays: episodes must have shape (n_steps,) with at least one step, not {episodes.shape}.")
    starts = np.flatnonzero(np.append(True, episodes[1:] != episodes[:-1]))
    names, counts = np.unique(episodes[starts], return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"from_arrays: the steps of episode {names[counts > 1][0]} do not stand one after another. Sort the rows by "
            "episode and time."
        )
    return starts, np.append(starts[1:], len(episodes)) - 1


def _unbounded(observations: np.ndarray) -> spaces.Box:
    if observations.dtype == np.uint8:
        return spaces.Box(0, 255, observations.shape[1:], np.uint8)  # images
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)


def _action_space(actions: np.ndarray) -> spaces.Space:
    """The space that logged actions seem to be from: as many as there are numbers, or a box around them."""
    if np.issubdtype(actions.dtype, np.integer) and actions.ndim == 1:
        if actions.min() < 0:
            raise ValueError(f"from_arrays: discrete actions are numbered from 0, but {actions.min()} is one of them.")
        return spaces.Discrete(int(actions.max()) + 1)
    if actions.ndim != 2:
        raise ValueError(
            f"from_arrays: actions must have shape (n_steps, action_dim), or be whole numbers (n_steps,), not {actions.shape}."
        )
    low, high = actions.min(axis=0), actions.max(axis=0)
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(
            f"from_arrays: no bounds can be read from the actions, which lie between {low} and {high}. Pass "
            "action_space=Box(...)."
        )
    return spaces.Box(low.astype(np.float32), high.astype(np.float32))
