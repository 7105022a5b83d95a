"""The maze with discrete moves, and an open room with many fixed goals: for algorithms and families that are discrete."""

from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.envs.point import CornersWrapper, MazeGoals, PointEnv, PointGoalWrapper
from hipi_sb3.tasks.finite import FiniteTasks
from hipi_sb3.tasks.goals import GoalReaching
from hipi_sb3.wrappers import MultiTaskWrapper

#: Moves of :class:`GridPointEnv`: down, up, right, left on the map.
MOVES = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))

_MOVES_BY_AXIS = np.ascontiguousarray(np.transpose(MOVES))


class GridPointEnv(PointEnv):
    """
    :class:`~hipi_sb3.envs.point.PointEnv` whose four actions move by one unit along an axis, or not at all
    where a wall is in the way.

    :param kwargs: as for ``PointEnv``; there is no action noise
    """

    n_substeps = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Discrete(len(MOVES))

    def displacement(self, action: Any) -> tuple[float, float]:
        return MOVES[int(action)]

    def displacements(self, actions: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        return _MOVES_BY_AXIS.take(actions, axis=1)


def make_point_four_rooms_grid(
    radius: float = 1.0,
    min_goal_distance: float = 15.0,
    flatten: bool = False,
    fixed_task: Any = None,
    render_mode: str | None = None,
) -> MultiTaskWrapper:
    """
    Make the four rooms with distant goals and four discrete moves.

    :param radius: distance at which a goal counts as reached
    :param min_goal_distance: least distance of a goal from the start
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: goal of every episode, (2,)
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :return: the environment
    """
    env = GridPointEnv(render_mode=render_mode)
    family = MazeGoals(env.walls, radius=radius, start=env.start, min_distance=min_goal_distance)
    return PointGoalWrapper(env, family, flatten=flatten, fixed_task=fixed_task)


def make_point_fixed_goals(
    n_goals: int = 32,
    radius: float = 1.0,
    flatten: bool = False,
    fixed_task: Any = None,
    render_mode: str | None = None,
) -> MultiTaskWrapper:
    """
    Make an open room with fixed goals, of which a one-hot task names one: HER has no goal to relabel with.

    The goals are the same in every copy; the start is in the middle.

    :param n_goals: number of goals
    :param radius: distance at which a goal counts as reached
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: one-hot task of every episode, (n_goals,)
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :return: the environment
    """
    env = PointEnv("open", start=(7.5, 7.5), render_mode=render_mode)
    goals = GoalReaching(np.zeros(2), np.array(env.walls.shape), radius)
    family = FiniteTasks(goals, np.random.default_rng(0).uniform(0.5, 14.5, size=(n_goals, 2)))
    return CornersWrapper(env, family, flatten=flatten, fixed_task=fixed_task)
