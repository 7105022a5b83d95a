"""Environments that methods are compared on, by the name of the suite."""

import gymnasium as gym

#: Environments of a suite.
KEY_TO_SUITE: dict[str, list[str]] = {
    "point": ["PointFourRooms-v0"],
    "point-paper": ["PointFourRoomsPaper-v0"],
    # Tasks that are no goals: HER has nothing to relabel with.
    "point-tasks": ["PointFixedGoals-v0", "PointMassLinear-v0"],
    # The HIPI paper, and what its authors' code has beyond it.
    "paper": [
        "QuadrupedGoal-v0",
        "FingerGoal-v0",
        "ReacherGoal-v0",
        "SawyerReach-v0",
        "PointFourRooms-v0",
        "ReacherDiscrete-v0",
        "WalkerLinear-v0",
        "SawyerReachMargin-v0",
        "HopperLinear-v0",
        "HopperDiscrete-v0",
        "HumanoidLinear-v0",
        "CheetahVelocity-v0",
        "SwimmerGoal-v0",
        "FishGoal-v0",
        "PointCorners-v0",
    ],
    # Generalized Hindsight (arXiv 2002.11708).
    "gh": ["HalfCheetahVelocity-v0", "AntDirection-v0", "ReacherEnergy-v0", "HalfCheetahMix-v0", "PointMassLinear-v0"],
    # Gymnasium-Robotics, unwrapped: --methods hipi,her_future,her_sb3
    "goalenv": ["FetchReach-v4", "FetchPush-v4", "PointMaze_UMaze-v3", "AntMaze_UMaze-v5"],
    "fetch-reach": ["FetchReach-v4"],
    "parking": ["parking-v0"],
    "panda-reach": ["PandaReach-v3"],
    "mo": ["MOHalfCheetah-v0", "MOHopper-v0"],
}

#: Packages that register the environments of a suite which are not of this repository.
SUITE_TO_PACKAGE = {
    **dict.fromkeys(("goalenv", "fetch-reach"), "gymnasium_robotics"),
    "parking": "highway_env",
    "panda-reach": "panda_gym",
}


def packages_of(env: str) -> list[str]:
    """
    List the packages that register an environment which is not of this repository.

    :param env: id of the environment
    :return: modules to import
    """
    return sorted({package for suite, package in SUITE_TO_PACKAGE.items() if env in KEY_TO_SUITE[suite]})


def has_goals(env: str) -> bool:
    """
    Say whether the tasks of an environment are goals, as HER needs them.

    :param env: id of the environment
    :return: True also of a GoalEnv, and where the environment cannot be made: its cells say why
    """
    try:
        made = gym.make(env)
    except (ImportError, gym.error.Error):
        return True
    try:
        return not made.has_wrapper_attr("task_family") or made.get_wrapper_attr("task_family").reaches_goals
    finally:
        made.close()
