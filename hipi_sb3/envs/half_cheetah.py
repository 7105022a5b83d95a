"""MuJoCo's half cheetah with target velocities, and with weights on what its body does."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing

from hipi_sb3.tasks.linear import LinearReward, TargetVelocity
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
    env = make_unchecked("HalfCheetah-v5", **kwargs)
    return MultiTaskWrapper(env, TargetVelocity(low, high), flatten=flatten, fixed_task=fixed_task)


def make_half_cheetah_mix(flatten: bool = False, fixed_task: Any = None, **kwargs: Any) -> MultiTaskWrapper:
    """
    Make ``HalfCheetah-v5`` with weights, as in Generalized Hindsight (arXiv 2002.11708).

    Weights in [-1, 1] on the velocity (m/s), the rotation of the torso (rad/s) and its height above the default pose (m), and
    in [-1, 0] on the energy: the squared norm of the action.

    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: weights of every episode, (4,)
    :param kwargs: arguments of ``gymnasium.make("HalfCheetah-v5", ...)``, such as ``render_mode``
    :return: the environment
    """
    env = make_unchecked("HalfCheetah-v5", **kwargs)
    family = LinearReward([-1, -1, -1, -1], [1, 1, 1, 0], features=velocity_rotation_height_energy)
    return MultiTaskWrapper(env, family, flatten=flatten, fixed_task=fixed_task)


def make_unchecked(env_id: str, **kwargs: Any) -> gym.Env:
    """
    Make an environment to be wrapped. The outer one is checked and ordered: here that would only cost time in every step.

    :param env_id: its id
    :param kwargs: arguments of ``gymnasium.make``
    :return: the environment, without checker and order enforcing
    """
    env = gym.make(env_id, **{"disable_env_checker": True, **kwargs})
    return env.env if isinstance(env, OrderEnforcing) else env


def velocity_rotation_height_energy(
    env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]
) -> np.ndarray:
    """Features of :func:`make_half_cheetah_mix`, (4,)."""
    # The observation is qpos without the horizontal position, (8,), then qvel, (9,): horizontal, vertical, rotation, ...
    energy = float(np.dot(action, action))
    return np.array([info["x_velocity"], next_obs.item(10), next_obs.item(0), energy], dtype=np.float32)
