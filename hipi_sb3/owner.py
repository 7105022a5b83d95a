"""The algorithm that a replay buffer belongs to: where it is found, whether it fits, and the tasks of its environment."""

import sys
import weakref
from collections.abc import Callable
from copy import deepcopy
from types import FrameType
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl

from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.goal_env import GoalEnvTasks, is_goal_space
from hipi_sb3.tasks.steps import check_not_clipped, check_not_widened

#: The two methods of stable-baselines3 that build or restore the buffer of an algorithm.
_OWNERS = (OffPolicyAlgorithm._setup_model.__code__, OffPolicyAlgorithm.load_replay_buffer.__code__)


def owner_of(buffer: Any) -> OffPolicyAlgorithm | None:
    """
    The algorithm that is building or restoring this buffer right now, from the calling frames.

    stable-baselines3 hands a buffer its spaces, not its algorithm. It builds one in ``_setup_model`` and restores one in
    ``load_replay_buffer``, and nowhere else: any other caller (a callback that unpickles a buffer, say) is no owner.
    """
    frame = _frame_outside(buffer)
    return frame.f_locals["self"] if frame.f_code in _OWNERS else None


def truncate_if_asked(buffer: Any) -> None:
    """
    Do what ``load_replay_buffer(path, truncate_last_traj=True)`` of stable-baselines3 asks of the buffer that it is restoring
    right now; it has no hook for buffers other than its own HerReplayBuffer.

    :param buffer: the buffer
    """
    if _frame_outside(buffer).f_locals.get("truncate_last_traj", False):
        truncate_goal_env(buffer)


def truncate_goal_env(buffer: Any) -> None:
    """
    End the unfinished episodes of a buffer that is in HerReplayBuffer's place. In other environments the buffer notices by
    itself whether an episode goes on, as stable-baselines3's other buffers have no trajectories to truncate.

    :param buffer: the buffer
    """
    if isinstance(buffer.family, GoalEnvTasks):
        buffer.truncate_last_trajectory()


def _frame_outside(buffer: Any) -> FrameType:
    """The frame that builds, copies or restores a buffer, outside of the buffer's own methods and of reading the file."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_locals.get("self") is buffer:
        frame = frame.f_back
    if frame.f_code is load_from_pkl.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return frame


class Owned:
    """Copies and pickles of a buffer leave the algorithm and its environment behind."""

    _model_ref: "weakref.ref[OffPolicyAlgorithm] | None"
    _env_ref: "weakref.ref[Any] | None"
    attach: Callable[[OffPolicyAlgorithm], None]

    def __getstate__(self) -> dict[str, Any]:
        """State without the algorithm and its environment."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_model_ref", "_env_ref")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; a buffer restored by ``model.load_replay_buffer`` is attached to that algorithm."""
        if "experience" in state:
            raise ValueError(
                "This buffer was pickled by an earlier version of hipi_sb3. Write it there with buffer.save(folder), and read "
                "it here with HIPIReplayBuffer.load(folder)."
            )
        self.__dict__.update(state)
        self._model_ref = None
        self._env_ref = None
        if (model := owner_of(self)) is not None:
            self.attach(model)
            truncate_if_asked(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy; where the whole algorithm is copied, the copy belongs to the algorithm's copy."""
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        model = None if self._model_ref is None else memo.get(id(self._model_ref()))
        if model is not None:
            copy._model_ref = weakref.ref(model)
        return copy


def asked_n_steps(given: int | None, action_space: spaces.Space, model: OffPolicyAlgorithm | None = None) -> int | None:
    """
    Steps of the return that a buffer is asked for: those it was given, else the algorithm's where that is more than 1.

    Where an action of many is chosen by its value, what else was tried in a window spoils its return, so that discrete actions
    have 1: ten bits are flipped by windows of 1 and not of 3, by HER's labels as by HIPI's (tests/test_coming_from_her.py).

    :param given: steps that the user gave the buffer, if any
    :param action_space: action space
    :param model: the algorithm, where there is one yet
    :return: steps; None is what suits the tasks
    """
    if given is not None:
        return given
    if getattr(model, "n_steps", 1) > 1:
        return int(model.n_steps)  # type: ignore[union-attr]
    return 1 if isinstance(action_space, spaces.Discrete) else None


def check_fits(buffer: Any, model: OffPolicyAlgorithm) -> None:
    """
    Check that a buffer can be that of an algorithm.

    :param buffer: the buffer
    :param model: the algorithm
    :raises ValueError: when spaces, the number of environments or n_steps do not fit
    """
    for name in ("observation_space", "action_space"):
        mine, theirs = getattr(buffer, name), getattr(model, name)
        if mine != theirs:
            raise ValueError(
                f"The buffer's {name} is {mine}, but the algorithm's is {theirs}. Load a buffer that was filled in the "
                "same environment, or build a new algorithm for this one."
            )
    if buffer.n_envs != model.n_envs:
        raise ValueError(
            f"The buffer was filled by {buffer.n_envs} environments, but the algorithm has {model.n_envs}. "
            f"Give the algorithm a VecEnv of {buffer.n_envs}."
        )
    check_returns(buffer, model)


def check_returns(buffer: Any, model: OffPolicyAlgorithm) -> None:
    """
    Check that a buffer makes the returns that an algorithm learns; the tasks may say how many steps these have.

    :param buffer: the buffer
    :param model: the algorithm
    :raises ValueError: when n_steps or gamma do not fit
    """
    n_steps = getattr(model, "n_steps", 1)
    if (n_steps > 1 and n_steps != buffer.n_steps) or (buffer.n_steps > 1 and buffer.gamma != model.gamma):
        raise ValueError(
            f"The algorithm has n_steps={n_steps} and gamma={model.gamma}, the buffer n_steps={buffer.n_steps} and "
            f"gamma={buffer.gamma}: stable-baselines3 leaves n-step returns to a custom buffer. Pass replay_buffer_kwargs="
            f"dict(n_steps={max(n_steps, buffer.n_steps)}, gamma={model.gamma})."
        )


def family_of(model: OffPolicyAlgorithm, given: TaskFamily | None, is_given: bool) -> TaskFamily:
    """
    The tasks of an algorithm's environment.

    :param model: the algorithm, with an environment
    :param given: the tasks that are known already, for an environment that says none
    :param is_given: whether a user gave them, so that those of a GoalEnv are not asked for
    :return: the tasks
    :raises ValueError: when there are none, or the policy would not see them as they are
    """
    env = model.env
    assert env is not None
    if env.has_attr("task_family"):
        family = env.get_attr("task_family")[0]
    elif not is_given and is_goal_space(env.observation_space) and env.has_attr("compute_reward"):
        family = GoalEnvTasks.of_vec_env(env)
    elif given is not None:
        family = given
    else:
        raise ValueError(
            "HIPIReplayBuffer found no task family in the environment. Wrap it: "
            "MultiTaskWrapper(env, TargetVelocity(low=0.0, high=3.0)), with the family of tasks that you want to learn."
        )
    if env.has_attr("flat_dim"):
        check_not_widened(env.observation_space, env.get_attr("flat_dim", indices=[0])[0])
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is not None:
        check_not_clipped(vec_normalize, family)
    return family


def check_same_family(family: TaskFamily, held: TaskFamily) -> None:
    """
    Check that an environment's tasks are those that a buffer holds transitions of. Where these were read from a file and could
    not take their environment along, they get it back.

    :param family: the environment's tasks
    :param held: the buffer's
    :raises ValueError: when spaces or numbers of features differ
    """
    if (family.feature_dim, family.task_space) != (held.feature_dim, held.task_space):
        raise ValueError(
            f"The environment's tasks are {type(family).__name__} with {family.task_space} and {family.feature_dim} "
            f"features, but the buffer holds transitions of {type(held).__name__} with {held.task_space} "
            f"and {held.feature_dim} features. Call model.replay_buffer.reset() or build a new algorithm."
        )
    if isinstance(held, GoalEnvTasks):
        held.revive(family)
