"""Environments with task families, registered with Gymnasium when this package is imported.

The entry points are strings, so a simulator is imported when one of its environments is made, not before.
"""

from typing import Any

import gymnasium as gym


def _dm_control(function: str) -> dict[str, Any]:
    return {"entry_point": f"hipi_sb3.envs.dm_control_suite:{function}", "max_episode_steps": 100}


def _mujoco(entry_point: str, max_episode_steps: int, **kwargs: Any) -> dict[str, Any]:
    # One time limit, the registered one: -1 removes that of the environment inside.
    kwargs = {"max_episode_steps": -1, **kwargs}
    return {"entry_point": entry_point, "max_episode_steps": max_episode_steps, "kwargs": kwargs}


# No checker and no order enforcing around them: the tests check these environments, and they are made to be fast.
_ENVS: dict[str, dict[str, Any]] = {
    "PointFourRooms-v0": {
        "entry_point": "hipi_sb3.envs.point:make_point_four_rooms",
        "vector_entry_point": "hipi_sb3.envs.point_vector:make_point_four_rooms_vector",
        "max_episode_steps": 75,
    },
    # The setting of the HIPI paper: noisy actions and a small goal.
    "PointFourRoomsPaper-v0": {
        "entry_point": "hipi_sb3.envs.point:make_point_four_rooms",
        "vector_entry_point": "hipi_sb3.envs.point_vector:make_point_four_rooms_vector",
        "max_episode_steps": 75,
        "kwargs": {"action_noise": 1.0, "radius": 0.3},
    },
    "PointFourRoomsGrid-v0": {
        "entry_point": "hipi_sb3.envs.point_discrete:make_point_four_rooms_grid",
        "vector_entry_point": "hipi_sb3.envs.point_vector:make_point_four_rooms_grid_vector",
        "max_episode_steps": 75,
    },
    "PointFixedGoals-v0": {
        "entry_point": "hipi_sb3.envs.point_discrete:make_point_fixed_goals",
        "vector_entry_point": "hipi_sb3.envs.point_vector:make_point_fixed_goals_vector",
        "max_episode_steps": 30,
    },
    "PointCorners-v0": {
        "entry_point": "hipi_sb3.envs.point:make_point_corners",
        "vector_entry_point": "hipi_sb3.envs.point_vector:make_point_corners_vector",
        "max_episode_steps": 100,
    },
    "PointMassLinear-v0": {"entry_point": "hipi_sb3.envs.point_mass:make_point_mass_linear", "max_episode_steps": 100},
    # dm_control
    "QuadrupedGoal-v0": _dm_control("make_quadruped_goal"),
    "FingerGoal-v0": _dm_control("make_finger_goal"),
    "ReacherGoal-v0": _dm_control("make_reacher_goal"),
    "ReacherDiscrete-v0": _dm_control("make_reacher_discrete"),
    "SwimmerGoal-v0": _dm_control("make_swimmer_goal"),
    "FishGoal-v0": _dm_control("make_fish_goal"),
    "WalkerLinear-v0": _dm_control("make_walker_linear"),
    "HopperLinear-v0": _dm_control("make_hopper_linear"),
    "HopperDiscrete-v0": _dm_control("make_hopper_discrete"),
    "HumanoidLinear-v0": _dm_control("make_humanoid_linear"),
    "CheetahVelocity-v0": _dm_control("make_cheetah_velocity"),
    # Meta-World
    "SawyerReach-v0": {"entry_point": "hipi_sb3.envs.meta_world:make_sawyer_reach", "max_episode_steps": 100},
    "SawyerReachMargin-v0": {"entry_point": "hipi_sb3.envs.meta_world:make_sawyer_reach_margin", "max_episode_steps": 100},
    # Gymnasium's own MuJoCo environments
    "HalfCheetahVelocity-v0": _mujoco("hipi_sb3.envs.half_cheetah:make_half_cheetah_velocity", 1000),
    "HalfCheetahMix-v0": _mujoco("hipi_sb3.envs.half_cheetah:make_half_cheetah_mix", 1000),
    "AntDirection-v0": _mujoco("hipi_sb3.envs.ant:make_ant_direction", 1000),
    "ReacherEnergy-v0": _mujoco("hipi_sb3.envs.reacher:make_reacher_energy", 50),
    # MO-Gymnasium
    "MOHalfCheetah-v0": _mujoco("hipi_sb3.envs.mo_mujoco:make_mo_linear", 1000, mo_id="mo-halfcheetah-v5"),
    "MOHopper-v0": _mujoco("hipi_sb3.envs.mo_mujoco:make_mo_linear", 1000, mo_id="mo-hopper-v5"),
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
