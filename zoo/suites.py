"""Environments that methods are compared on, by the name of the suite."""

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
