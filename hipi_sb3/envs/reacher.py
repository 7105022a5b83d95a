"""Reach a point the gentle way: MuJoCo's two-link arm with weights on energy, velocity and distance."""

import math
from typing import Any

import gymnasium as gym
import numpy as np

from hipi_sb3.envs.half_cheetah import make_unchecked
from hipi_sb3.tasks.linear import LinearReward
from hipi_sb3.wrappers import MultiTaskWrapper


def make_reacher_energy(flatten: bool = False, fixed_task: Any = None, **kwargs: Any) -> MultiTaskWrapper:
    """
    Make ``Reacher-v5`` with weights, as in Generalized Hindsight (arXiv 2002.11708).

    The target is the environment's own, drawn at each reset and observed. Weights in [0, 1] on energy (minus the squared norm
    of the action), velocity (minus the norm of the joint velocities, in 10 rad/s) and distance (minus that of the fingertip
    from the target, in 0.1 m): the units bring the three to one size.

    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: weights of every episode, (3,)
    :param kwargs: arguments of ``gymnasium.make("Reacher-v5", ...)``, such as ``render_mode``
    :return: the environment
    """
    env = make_unchecked("Reacher-v5", **kwargs)
    family = LinearReward([0, 0, 0], [1, 1, 1], features=energy_velocity_distance)
    return MultiTaskWrapper(env, family, flatten=flatten, fixed_task=fixed_task)


def energy_velocity_distance(
    env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]
) -> np.ndarray:
    """Features of :func:`make_reacher_energy`, (3,)."""
    # The observation is cos and sin of two angles, the target, two joint velocities, fingertip minus target.
    joint_1, joint_2, x, y = next_obs.tolist()[6:]
    energy = float(np.dot(action, action))
    return np.array([-energy, -0.1 * math.hypot(joint_1, joint_2), -10.0 * math.hypot(x, y)], dtype=np.float32)
