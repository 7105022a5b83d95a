"""Environments with task families, registered with Gymnasium when this package is imported.

The entry points are strings, so a simulator is imported when one of its environments is made, not before.
"""

from typing import Any

import gymnasium as gym

# No checker and no order enforcing around them: the tests check these environments, and they are made to be fast.
_ENVS: dict[str, dict[str, Any]] = {
    "PointFourRooms-v0": {
        "entry_point": "hipi_sb3.envs.point:make_point_four_rooms",
        "max_episode_steps": 75,
    },
    # The setting of the HIPI paper: noisy actions and a small goal.
    "PointFourRoomsPaper-v0": {
        "entry_point": "hipi_sb3.envs.point:make_point_four_rooms",
        "max_episode_steps": 75,
        "kwargs": {"action_noise": 1.0, "radius": 0.3},
    },
    "HalfCheetahVelocity-v0": {
        "entry_point": "hipi_sb3.envs.half_cheetah:make_half_cheetah_velocity",
        "max_episode_steps": 1000,
        # One time limit, the registered one: -1 removes that of the environment inside.
        "kwargs": {"max_episode_steps": -1},
    },
}


def register_envs() -> None:
    """Register the environments of this package with Gymnasium; those that are registered already are left alone."""
    for env_id, spec in _ENVS.items():
        if env_id not in gym.registry:
            gym.register(env_id, disable_env_checker=True, order_enforce=False, **spec)


def registered_env_ids() -> list[str]:
    """
    List the environments of this package.

    :return: ids for ``gymnasium.make``
    """
    return list(_ENVS)


register_envs()
