"""Reach with Meta-World's Sawyer arm: the HIPI paper's tasks in ``reach-v3`` (arXiv 2002.11089)."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.goals import GoalMargin, GoalReaching
from hipi_sb3.wrappers import MultiTaskWrapper

try:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
except ImportError as error:
    raise DependencyNotInstalled(
        f'metaworld cannot be imported ({error}). Install it with `pip install "hipi_sb3[metaworld]"`.'
    ) from error

#: Where the hand can be, (low, high): what Meta-World's observation space says of it.
HAND_SPACE = ((-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7))
#: Where the goals of reach-v3 are, (low, high).
GOAL_SPACE = ((-0.1, 0.8, 0.05), (0.1, 0.9, 0.3))


class SawyerReachEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Meta-World's ``reach-v3`` without its task: the reward is 0, no episode ends, and the goal is not observed.

    It holds the arm and is no wrapper of it: the arm has a ``compute_reward`` of another meaning, by which
    stable-baselines3's checker would take it for a GoalEnv.

    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 80}

    def __init__(self, render_mode: str | None = None) -> None:
        make_arm: Any = ALL_V3_ENVIRONMENTS["reach-v3"]
        self.arm = make_arm(render_mode=render_mode, camera_name="corner2")
        # What set_task does for one fixed start: here the start is drawn at each reset, from the seeded generator.
        self.arm._set_task_called = True
        self.arm._freeze_rand_vec = False
        self.arm.seeded_rand_vec = True
        # Beyond it the arm refuses to move: time limits are Gymnasium's.
        self.arm.max_path_length = sys.maxsize
        self.render_mode = render_mode
        self.observation_space: Any = self.arm.observation_space
        self.action_space: spaces.Space = self.arm.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.arm.np_random = self.np_random
        obs, _ = self.arm.reset()
        # Meta-World clips the observations of steps, but not the first one.
        return np.clip(obs, self.observation_space.low, self.observation_space.high), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, *_ = self.arm.step(action)
        return obs, 0.0, False, False, {}

    def render(self) -> Any:
        """
        Draw the scene.

        :return: image, (height, width, 3), uint8, with ``render_mode="rgb_array"``; otherwise None
        """
        image = self.arm.render()
        # This camera hangs upside down.
        return np.ascontiguousarray(image[::-1, ::-1]) if self.render_mode == "rgb_array" else image

    def show_goal(self, goal: np.ndarray) -> None:
        """
        Draw the goal until the next reset. Whoever knows the goal calls this.

        :param goal: position of the hand, (3,)
        """
        self.arm._target_pos = np.asarray(goal, dtype=np.float64)
        self.arm.model.site("goal").pos = goal

    def close(self) -> None:
        self.arm.close()


class SawyerGoalWrapper(MultiTaskWrapper):
    """:class:`~hipi_sb3.wrappers.MultiTaskWrapper` for goals of the hand, which are drawn when it renders."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        if self.render_mode is not None:
            assert self.task is not None
            self.unwrapped.show_goal(self.task[:3])  # type: ignore[attr-defined]
        return obs, info


def make_sawyer_reach(radius: float = 0.03, **options: Any) -> MultiTaskWrapper:
    """
    Make the arm bring its hand to a point.

    :param radius: distance from the goal at which it counts as reached (m)
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make(GoalReaching(*HAND_SPACE, radius, position=(0, 1, 2), prior=GOAL_SPACE), **options)


def make_sawyer_reach_margin(max_tolerance: float = 0.1, **options: Any) -> MultiTaskWrapper:
    """
    Make the arm bring its hand to a point, to within a tolerance that is part of the task.

    :param max_tolerance: largest tolerance (m)
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make(GoalMargin(*HAND_SPACE, max_tolerance, position=(0, 1, 2), prior=GOAL_SPACE), **options)


def _make(
    family: TaskFamily, flatten: bool = False, fixed_task: Any = None, render_mode: str | None = None
) -> MultiTaskWrapper:
    return SawyerGoalWrapper(SawyerReachEnv(render_mode), family, flatten=flatten, fixed_task=fixed_task)
