"""Run at a given speed: MuJoCo's half cheetah with a family of target velocities."""

from typing import Any

import gymnasium as gym

from hipi_sb3.tasks import TargetVelocity
from hipi_sb3.wrappers import MultiTaskWrapper


def make_half_cheetah_velocity(
    low: float = 0.0, high: float = 3.0, flatten: bool = False, fixed_task: Any = None, **kwargs: Any
) -> MultiTaskWrapper:
    """
    Make ``HalfCheetah-v5`` with target velocities.

    :param low: smallest target velocity (m/s)
    :param high: largest target velocity (m/s)
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: target velocity of every episode, (1,)
    :param kwargs: arguments of ``gymnasium.make("HalfCheetah-v5", ...)``, such as ``render_mode``
    :return: the environment
    """
    # What is checked and ordered is the outer environment: here it would only cost time in every step.
    env = gym.make("HalfCheetah-v5", **{"disable_env_checker": True, **kwargs})
    return MultiTaskWrapper(env, TargetVelocity(low, high), flatten=flatten, fixed_task=fixed_task)
