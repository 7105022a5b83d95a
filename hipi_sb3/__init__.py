"""HIPI for Stable-Baselines3: one policy for a family of tasks, from experience relabeled by hindsight inference."""

import hipi_sb3.envs  # noqa: F401  registers the environments
from hipi_sb3._version import __version__
from hipi_sb3.algorithms import HIPIDDPG, HIPIDQN, HIPIQRDQN, HIPISAC, HIPITD3, HIPITQC, HIPICrossQ
from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.check_family import check_family
from hipi_sb3.cloning.bc import HIPIBC, TaskConditionedBCPolicy
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.networks.layers import LayerNormReLU
from hipi_sb3.shipped.policies import pretrained
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.finite import DiscreteTasks, FiniteTasks
from hipi_sb3.tasks.functions import CallableTasks
from hipi_sb3.tasks.goal_env import GoalEnvTasks
from hipi_sb3.tasks.goals import GoalMargin, GoalReaching
from hipi_sb3.tasks.linear import LinearReward, TargetVelocity
from hipi_sb3.tasks.vector_reward import VectorRewardTasks
from hipi_sb3.wrappers import MultiTaskWrapper

__all__ = [
    "HIPIBC",
    "HIPIDDPG",
    "HIPIDQN",
    "HIPIQRDQN",
    "HIPISAC",
    "HIPITD3",
    "HIPITQC",
    "CallableTasks",
    "DiscreteTasks",
    "FiniteTasks",
    "GoalEnvTasks",
    "GoalMargin",
    "GoalReaching",
    "HIPICrossQ",
    "HIPIReplayBuffer",
    "LayerNormReLU",
    "LinearReward",
    "MultiTaskWrapper",
    "TargetVelocity",
    "TaskConditionedBCPolicy",
    "TaskFamily",
    "TrajectoryDataset",
    "VectorRewardTasks",
    "__version__",
    "check_family",
    "pretrained",
]
