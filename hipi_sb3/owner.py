"""The algorithm that a replay buffer belongs to: where it is found, whether it fits, and the tasks of its environment."""

import sys
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl

from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.goal_env import GoalEnvTasks, is_goal_space

#: The two methods of stable-baselines3 that build or restore the buffer of an algorithm.
_OWNERS = (OffPolicyAlgorithm._setup_model.__code__, OffPolicyAlgorithm.load_replay_buffer.__code__)


def owner_of(buffer: Any) -> OffPolicyAlgorithm | None:
    """
    The algorithm that is building or restoring this buffer right now, from the calling frames.

    stable-baselines3 hands a buffer its spaces, not its algorithm. It builds one in ``_setup_model`` and restores one in
    ``load_replay_buffer``, and nowhere else: any other caller (a callback that unpickles a buffer, say) is no owner.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is buffer:
        frame = frame.f_back
    if frame.f_code is load_from_pkl.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals["self"] if frame.f_code in _OWNERS else None


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
    :raises ValueError: when there are none
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
    vec_normalize = model.get_vec_normalize_env()
    if isinstance(family, GoalEnvTasks) and vec_normalize is not None:
        family.check_vec_normalize(vec_normalize)
    return family


def check_same_family(family: TaskFamily, held: TaskFamily) -> None:
    """
    Check that an environment's tasks are those that a buffer holds transitions of.

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
