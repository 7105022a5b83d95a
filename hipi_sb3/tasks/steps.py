"""What a step has to bring, so that it can be relabeled later: mistakes that would be silent are found when it is stored."""

import json
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.tasks.family import TaskFamily

#: What to do with a wrapper that changes observations.
INSIDE = "Put it inside: MultiTaskWrapper(<the wrapper>(env), family); FrameStackObservation stacks there."


#: The most steps that are checked at once.
CHECK_EVERY = 64


class NowAndThen:
    """When to check the steps since the last time: after 1, 2, 4 and so on, and then after every 64, all of them at once."""

    def __init__(self) -> None:
        self._n_checked = 0

    def due(self, n_added: int, n_stored: int) -> int:
        """
        How many steps are to be checked now, the one that is to be stored and the last ones before it.

        :param n_added: how many steps were ever stored
        :param n_stored: how many are there
        :return: number of steps, 0 if it is too early
        """
        n = min(n_added + 1 - self._n_checked, n_stored + 1)
        if n < min(max(self._n_checked, 1), CHECK_EVERY, n_stored + 1):
            return 0
        self._n_checked = n_added + 1
        return min(n, CHECK_EVERY)

    def ahead(self, n_added: int, n_stored: int) -> int:
        """
        With how many more steps the next check is due.

        :param n_added: how many steps were ever stored
        :param n_stored: how many are there
        :return: number of steps, at least 1
        """
        return max(min(max(self._n_checked, 1), CHECK_EVERY, n_stored + 1) - (n_added - self._n_checked), 1)


def check_room(space: spaces.Space, family: TaskFamily) -> None:
    """
    Check that an observation holds a task.

    :param space: space of the observations
    :param family: the tasks
    :raises ValueError: when it has no room for one
    """
    if isinstance(space, spaces.Dict):
        task = space.spaces.get(family.task_key)
        n = 0 if task is None else int(np.prod(task.shape or (1,)))
        fits = n == family.task_dim
        if n > family.task_dim and n % family.task_dim == 0:
            raise ValueError(
                f"The observation shows the task {n // family.task_dim} times, {task}: a wrapper that stacks observations "
                f"(VecFrameStack, FrameStackObservation) stands outside MultiTaskWrapper. {INSIDE}"
            )
    else:
        fits = space.shape is not None and len(space.shape) == 1 and space.shape[0] > family.task_dim
    if not fits:
        raise ValueError(
            f"The observation has no room for a task of {family.task_dim} numbers: it must be a Dict with a key "
            f"{family.task_key!r} of shape {family.task_space.shape}, or a flat Box that ends with the task, not {space}. "
            "Use MultiTaskWrapper; where that has another task_key, leave family out: the environment brings its own. "
            f"Where a wrapper outside it changes the observation: {INSIDE}"
        )


def check_not_widened(space: spaces.Space, flat_dim: int) -> None:
    """
    Check that a flat observation is that of MultiTaskWrapper, neither stacked nor extended: it must end with the task and
    show it once.

    :param space: space of the observations
    :param flat_dim: how many numbers MultiTaskWrapper shows
    :raises ValueError: when there are more or fewer
    """
    if isinstance(space, spaces.Box) and space.shape != (flat_dim,):
        raise ValueError(
            f"The observation has shape {space.shape}, but MultiTaskWrapper shows {flat_dim} numbers that end with the task: "
            f"a wrapper outside it stacks, extends or reshapes them. {INSIDE}"
        )


def check_not_clipped(normalization: Any, family: TaskFamily) -> None:
    """
    Refuse a normalisation that cuts tasks off: statistics are those of the commanded tasks, few and all alike at first.

    :param normalization: the ``VecNormalize``
    :param family: the tasks
    :raises ValueError: when it normalises them and clips what it normalises
    """
    if not normalization.norm_obs or not np.isfinite(normalization.clip_obs):
        return
    what, remedy = "observations", "pass clip_obs=np.inf"  # flat ones, the task among them
    if normalization.norm_obs_keys is not None:
        tasks = {family.task_key, family.features_key} & set(normalization.norm_obs_keys)
        if not tasks:
            return
        rest = [key for key in normalization.norm_obs_keys if key not in tasks]
        others = f"norm_obs_keys={json.dumps(rest)}" if rest else "norm_obs=False"
        what = " and ".join(sorted(map(str, tasks)))
        remedy = f"leave tasks as they are, VecNormalize(env, {others}), or {remedy}"
    raise ValueError(
        f"VecNormalize clips {what} at {normalization.clip_obs} standard deviations of the commanded tasks. Relabeled tasks "
        f"lie where no commanded one was, and those that are cut off look alike to the policy: {remedy}."
    )


def check_shown_tasks(shown: np.ndarray, infos: list[dict[str, Any]]) -> None:
    """
    Check that the observation shows the task that MultiTaskWrapper put there.

    :param shown: tasks in the observations, (n_envs, task_dim)
    :param infos: info of each environment
    :raises ValueError: when it shows something else
    """
    for env_index, info in enumerate(infos):
        task = info.get("task")
        if task is None or np.array_equal(shown[env_index], np.ravel(task)):
            continue
        # The last observation of an episode may have been normalised and restored, which rounds.
        if not np.allclose(shown[env_index], np.ravel(task), rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"The observation of environment {env_index} shows {shown[env_index]} where MultiTaskWrapper put the task "
                f"{task}: a wrapper outside it changes, moves or delays the observation. {INSIDE}"
            )


def read_actions(actions: Any, shape: tuple[int, int]) -> np.ndarray:
    """
    Actions of a step of all environments, as they are stored.

    :param actions: actions, (n_envs, ...)
    :param shape: (n_envs, action_dim)
    :return: actions of that shape
    :raises ValueError: when there are more or fewer numbers, or one is NaN
    """
    actions = np.asarray(actions)
    if actions.size != shape[0] * shape[1]:
        raise ValueError(f"actions must hold {shape[1]} numbers for each of {shape[0]} environments, not {actions.shape}.")
    if has_nan(actions):
        raise ValueError(f"An action is NaN: {actions.tolist()}. The policy has diverged: check learning rate and rewards.")
    return actions.reshape(shape)


def has_nan(array: np.ndarray) -> bool:
    """
    Say whether a number of an array is NaN.

    :param array: small array of numbers
    :return: whether there is one
    """
    if array.dtype.kind != "f":
        return False
    flat = array.ravel()
    square = flat.dot(flat)  # NaN if there is one, and only then, in a third of the time that np.isnan takes
    return square != square


def read_rewards(rewards: Any, n_envs: int) -> np.ndarray:
    """
    Rewards of a step of all environments.

    :param rewards: rewards, (n_envs,)
    :param n_envs: number of environments
    :return: the rewards
    :raises ValueError: when there is not one an environment
    """
    rewards = np.asarray(rewards)
    if rewards.shape != (n_envs,):
        raise ValueError(f"reward must hold one number an environment, ({n_envs},), but its shape is {rewards.shape}.")
    return rewards


def read_dones(done: Any, n_envs: int) -> np.ndarray:
    """
    Whether the episodes of all environments end with a step.

    :param done: whether they do, (n_envs,)
    :param n_envs: number of environments
    :return: the same as booleans
    :raises ValueError: when there is not one an environment
    """
    done = np.asarray(done, dtype=bool)
    if done.shape != (n_envs,):
        raise ValueError(f"done must say of each environment whether its episode ended, ({n_envs},), not {done.shape}.")
    return done


def check_same_tasks(name: str, tasks: np.ndarray, next_tasks: np.ndarray) -> None:
    """
    Check that a step leaves the task as it was.

    :param name: what the task is called in the observation
    :param tasks: tasks before it, (n_envs, task_dim)
    :param next_tasks: tasks after it
    :raises ValueError: when it changes one
    """
    # The last observation of an episode may have been normalised and restored, which rounds.
    if not (tasks.tobytes() == next_tasks.tobytes() or np.allclose(tasks, next_tasks, rtol=1e-4, atol=1e-5)):
        env_index = int(np.argmax(~np.isclose(tasks, next_tasks, rtol=1e-4, atol=1e-5).all(axis=-1)))
        raise ValueError(
            f"The {name} of environment {env_index} changed within an episode, from "
            f"{tasks[env_index]} to {next_tasks[env_index]}. A transition is relabeled with one task before and after the "
            "step, and what it led to counts for that task: make the environment end the episode there, or keep the task "
            "(reset_target=False in the mazes of Gymnasium-Robotics)."
        )


def check_reward(family: TaskFamily, features: np.ndarray, tasks: np.ndarray, reward: np.ndarray) -> None:
    """
    Check that the environment's rewards are the family's.

    :param family: the tasks
    :param features: features of some steps, (n_steps, n_envs, feature_dim)
    :param tasks: commanded tasks, (n_steps, n_envs, task_dim)
    :param reward: rewards of the environments, (n_steps, n_envs)
    :raises ValueError: when one is not
    """
    expected = np.asarray(family.reward(features, tasks), dtype=reward.dtype)
    if not (np.array_equal(expected, reward) or np.allclose(expected, reward, rtol=1e-4, atol=1e-5)):
        at = tuple(np.argwhere(~np.isclose(expected, reward, rtol=1e-4, atol=1e-5))[0])
        raise ValueError(
            f"Environment {at[-1]} returned reward {reward[at]} for task {tasks[at]}, but "
            f"{type(family).__name__} gives {expected[at]}: relabeled rows would be on another scale. "
            f"{family.reward_remedy}"
        )
