"""Reach with Meta-World's Sawyer arm: the HIPI paper's tasks in ``reach-v3`` (arXiv 2002.11089)."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled

from hipi_sb3.tasks import GoalMargin, GoalReaching, TaskFamily
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


class SawyerReach(gym.Wrapper):
    """
    Meta-World's ``reach-v3`` without its task: seeded by ``reset``, goal hidden, no time limit of its own.

    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    """

    def __init__(self, render_mode: str | None = None) -> None:
        env = ALL_V3_ENVIRONMENTS["reach-v3"](render_mode=render_mode, camera_name="corner2")
        # What set_task does for one fixed start: here the start is drawn at each reset, from the seeded generator.
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env.max_path_length = sys.maxsize
        if render_mode is not None:
            # Its picture is upside down from this camera, and its metadata names a rate that is not that of the steps.
            env.model.cam_pos[env.model.camera("corner2").id] = (0.75, 0.075, 0.7)
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the start
        :param options: not used
        :return: observation and info
        """
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        obs, info = self.env.reset()
        # Meta-World clips the observations of steps, but not the first one.
        space = self.observation_space
        assert isinstance(space, gym.spaces.Box)
        return np.clip(obs, space.low, space.high), info


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
    return MultiTaskWrapper(SawyerReach(render_mode), family, flatten=flatten, fixed_task=fixed_task)
