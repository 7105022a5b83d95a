"""A point with inertia on an open floor, with weights on how it moves."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.envs.point import PointEnv
from hipi_sb3.tasks.linear import LinearReward
from hipi_sb3.wrappers import MultiTaskWrapper

#: Share of the velocity that is left after a step, and what an action adds: the largest velocity is one unit a step.
DRAG, PUSH = 0.8, 0.2


class PointMassEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A point that is pushed, on an open square floor, without a task: the reward is 0 and no episode ends.

    An action in [-1, 1]^2 changes the velocity; walls around the floor stop it. The observation is the position relative to
    the middle of the floor, in units of half its side, and the velocity in units of the map a step, (4,), float32.

    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    """

    metadata: dict[str, Any] = PointEnv.metadata

    def __init__(self, render_mode: str | None = None) -> None:
        self.point = PointEnv("open", start=(7.5, 7.5), render_mode=render_mode)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, shape=(4,), dtype=np.float32)
        self.action_space: spaces.Space = self.point.action_space
        self._velocity = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.point.reset(seed=seed)
        self._velocity = np.zeros(2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.point.position
        self.point.step(DRAG * self._velocity + PUSH * np.clip(action, -1.0, 1.0))
        # What really moved: a wall takes the velocity that points into it.
        self._velocity = np.asarray(self.point.position - before, dtype=np.float64)
        return self._observe(), 0.0, False, False, {}

    def render(self) -> Any:
        """
        Draw the floor, the path of this episode and the point.

        :return: image, (height, width, 3), uint8, with ``render_mode="rgb_array"``; otherwise None
        """
        return self.point.render()

    def close(self) -> None:
        self.point.close()

    def _observe(self) -> np.ndarray:
        relative = self.point.position / 7.5 - 1.0
        return np.clip(np.concatenate([relative, self._velocity]), -1.0, 1.0).astype(np.float32)


def make_point_mass_linear(flatten: bool = False, fixed_task: Any = None, render_mode: str | None = None) -> MultiTaskWrapper:
    """
    Make the point with weights in [-1, 1] on its velocity along either axis and its distance from the middle, and in [-1, 0]
    on the squared norm of the action.

    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: weights of every episode, (4,)
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :return: the environment
    """
    family = LinearReward([-1, -1, -1, -1], [1, 1, 1, 0], features=velocity_distance_effort)
    return MultiTaskWrapper(PointMassEnv(render_mode), family, flatten=flatten, fixed_task=fixed_task)


def velocity_distance_effort(
    env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]
) -> np.ndarray:
    """Features of :func:`make_point_mass_linear`, (4,)."""
    x, y, velocity_x, velocity_y = next_obs.tolist()
    return np.array([velocity_x, velocity_y, np.hypot(x, y), np.dot(action, action)])
