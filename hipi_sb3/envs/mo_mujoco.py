"""MO-Gymnasium's MuJoCo environments with weights on their objectives.

They are examples: ``MultiTaskWrapper(env, VectorRewardTasks(env))`` does it for any environment with a vector reward.
"""

from typing import Any

from gymnasium.error import DependencyNotInstalled

from hipi_sb3.envs.half_cheetah import make_unchecked
from hipi_sb3.tasks.vector_reward import VectorRewardTasks
from hipi_sb3.wrappers import MultiTaskWrapper

try:
    import mo_gymnasium  # noqa: F401  registers the environments
except ImportError as error:
    raise DependencyNotInstalled(
        f'mo-gymnasium cannot be imported ({error}). Install it with `pip install "hipi_sb3[mo]"`.'
    ) from error


def make_mo_linear(mo_id: str, flatten: bool = False, fixed_task: Any = None, **kwargs: Any) -> MultiTaskWrapper:
    """
    Make an environment of MO-Gymnasium with weights on the simplex.

    :param mo_id: its id
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: weights of every episode, (n_objectives,)
    :param kwargs: arguments of ``gymnasium.make(mo_id, ...)``, such as ``render_mode``
    :return: the environment
    """
    env = make_unchecked(mo_id, **kwargs)
    return MultiTaskWrapper(env, VectorRewardTasks(env), flatten=flatten, fixed_task=fixed_task)
