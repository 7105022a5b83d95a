"""2D navigation in a maze: a point that moves between rooms and must reach a goal far from its start.

The four-rooms map and the dynamics are those of Eysenbach et al., "Search on the Replay Buffer" (arXiv 1906.05253), which
the HIPI paper (arXiv 2002.11089) uses as well. Axis 0 of a position counts rows of the map (drawn downwards), axis 1 its
columns (drawn to the right).

To add a maze: one entry in :data:`MAPS`. To add other moves: override :meth:`PointEnv.displacement`. To add other tasks:
wrap :class:`PointEnv` with any family; :func:`make_point_four_rooms` is the example.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from hipi_sb3.envs.point_drawing import maze_image, plot_trajectories
from hipi_sb3.names import lookup
from hipi_sb3.tasks.finite import FiniteTasks
from hipi_sb3.tasks.goals import GoalReaching
from hipi_sb3.wrappers import MultiTaskWrapper

#: Maps by name: one string a row, 1 is a wall. Every cell becomes ``cell_size`` x ``cell_size`` units.
MAPS: dict[str, tuple[str, ...]] = {
    "four_rooms": (
        "00000100000",
        "00000100000",
        "00000000000",
        "00000100000",
        "00000100000",
        "10111100000",
        "00000111011",
        "00000100000",
        "00000100000",
        "00000000000",
        "00000100000",
    ),
    "open": ("00000",) * 5,
}

#: Steps whose noise is drawn at once, an episode of the registered mazes: a call of the generator costs as much as a step.
NOISE_BLOCK = 75


#: Bounds of a move. As arrays, because NumPy is slow to convert Python's numbers.
_LOW, _HIGH = np.array(-1.0), np.array(1.0)


def load_walls(walls: str | Sequence[Any] | np.ndarray, cell_size: int = 3) -> np.ndarray:
    """
    Resolve a map and resize its cells.

    :param walls: name of one of :data:`MAPS`, or an array, (rows, columns), where nonzero is a wall
    :param cell_size: units along each side of a cell
    :return: True where a unit square is a wall, (rows * cell_size, columns * cell_size), bool
    :raises ValueError: when the name is unknown or the array is not a map
    """
    if isinstance(walls, str):
        cells = np.array([[int(cell) for cell in row] for row in lookup("map", walls, MAPS)])
    else:
        cells = np.asarray(walls)
    if cells.ndim != 2 or cells.size == 0:
        raise ValueError(f"PointEnv: a map must have shape (rows, columns), not {cells.shape}.")
    return np.kron(cells.astype(bool), np.ones((cell_size, cell_size), dtype=bool))


def in_wall(walls: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """
    Say which positions are inside a wall or outside the map.

    :param walls: map, (height, width), bool
    :param positions: positions, (..., 2)
    :return: booleans, (...,)
    """
    positions = np.asarray(positions)
    size = np.asarray(walls.shape)
    inside = np.all((positions >= 0) & (positions <= size), axis=-1)
    # The far border belongs to the last unit square; what is outside (or NaN) reads an arbitrary one.
    index = np.where(inside[..., None], np.minimum(np.floor(positions), size - 1), 0).astype(int)
    return ~inside | walls[index[..., 0], index[..., 1]]


class PointEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A point in a maze, without a task: the reward is 0 and no episode ends.

    An action in [-1, 1]^2 moves the point by up to one unit along each axis, in ten substeps. In each substep the axes are
    tried one after the other and a move that would enter a wall or leave the map is undone, so the point slides along
    walls. The observation is the position, (2,), float32; positions are kept in float64 in between.

    :param walls: name of a map or a map, see :func:`load_walls`
    :param action_noise: standard deviation of the Gaussian noise that is added to every action; the sum is clipped to
        [-1, 1], as in the authors' code
    :param start: position after each reset, (2,)
    :param cell_size: units along each side of a cell of the map
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :raises ValueError: when the start is not a free position, the noise is negative or the render mode unknown
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 30}
    #: Substeps of a step, a class attribute: how finely a move is cut that a wall may block.
    n_substeps = 10

    def __init__(
        self,
        walls: str | Sequence[Any] | np.ndarray = "four_rooms",
        action_noise: float = 0.0,
        start: Sequence[float] | np.ndarray = (0.0, 0.0),
        cell_size: int = 3,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"PointEnv: render_mode must be one of {self.metadata['render_modes']} or None, not {render_mode!r}."
            )
        if not action_noise >= 0:
            raise ValueError(f"PointEnv: action_noise must not be negative, but is {action_noise}.")
        self.walls = load_walls(walls, cell_size)
        self.start = _free_start(self.walls, start)
        self.action_noise = float(action_noise)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(
            np.zeros(2, dtype=np.float32), np.array(self.walls.shape, dtype=np.float32), dtype=np.float32
        )
        self.action_space: spaces.Space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        # Nested lists and Python floats: several times faster than arrays of two numbers.
        self._is_wall: list[list[bool]] = _with_far_border(self.walls).tolist()
        self._height, self._width = map(float, self.walls.shape)
        self._x, self._y = self.start.tolist()
        self._noise: list[list[float]] = []
        # What is drawn: set by whoever knows the goal, see show_goal.
        self.goal: np.ndarray | None = None
        self.goal_radius = 1.0
        self._trail: list[tuple[float, float]] = []
        self._window: Any = None
        self._clock: Any = None

    @property
    def position(self) -> np.ndarray:
        """The current position, (2,), float32."""
        return np.array((self._x, self._y), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._x, self._y = self.start.tolist()
        self._noise = []  # so that an episode depends on the state of the generator alone
        self.goal = None
        self._trail = [(self._x, self._y)]
        if self.render_mode == "human":
            self.render()
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._x, self._y = self.walk(self._x, self._y, *self.displacement(action))
        if self.render_mode is not None:
            self._trail.append((self._x, self._y))
            if self.render_mode == "human":
                self.render()
        return np.array((self._x, self._y), dtype=np.float32), 0.0, False, False, {}

    def displacement(self, action: np.ndarray) -> tuple[float, float]:
        """
        Turn an action into the move that is tried: override it for other action spaces, and :meth:`displacements` with it.

        :param action: action, (2,)
        :return: move along each axis, at most one unit each
        :raises ValueError: when the action is NaN
        """
        move_x, move_y = np.asarray(action).tolist()
        if self.action_noise > 0:
            if not self._noise:
                self._noise = self.np_random.standard_normal((NOISE_BLOCK, 2)).tolist()
            noise_x, noise_y = self._noise.pop()
            move_x += self.action_noise * noise_x
            move_y += self.action_noise * noise_y
        if move_x != move_x or move_y != move_y:
            raise ValueError(f"PointEnv: the action {action} is not a number at position {self.position}.")
        move_x = -1.0 if move_x < -1.0 else 1.0 if move_x > 1.0 else move_x
        move_y = -1.0 if move_y < -1.0 else 1.0 if move_y > 1.0 else move_y
        return move_x, move_y

    def displacements(self, actions: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """
        :meth:`displacement` of many points, which stand in one :class:`~hipi_sb3.envs.point_vector.PointVectorEnv`.

        :param actions: actions, (n, 2)
        :param noise: standard normal numbers, (2, n), where there is noise on the actions
        :return: moves, (2, n), float64
        """
        moves = np.array(actions.T, dtype=np.float64, order="C")
        if noise is not None:
            moves += np.array(self.action_noise) * noise
        # np.clip costs several times as much on a few numbers.
        return np.minimum(np.maximum(moves, _LOW, out=moves), _HIGH, out=moves)

    def walk(self, x: float, y: float, move_x: float, move_y: float) -> tuple[float, float]:
        """
        Move in substeps, each axis on its own; a part of the move that a wall blocks is left out.

        :param x: position along axis 0
        :param y: position along axis 1
        :param move_x: move along axis 0, at most one unit
        :param move_y: move along axis 1, at most one unit
        :return: the position after it
        """
        n_substeps = self.n_substeps
        dx, dy = move_x / n_substeps, move_y / n_substeps
        is_wall, height, width = self._is_wall, self._height, self._width
        # Fast path: all squares between here and the end of the move are free, so no substep can be blocked.
        end_x, end_y = x + n_substeps * dx, y + n_substeps * dy
        if 0.0 <= end_x <= height and 0.0 <= end_y <= width:
            i, j, end_i, end_j = int(x), int(y), int(end_x), int(end_y)
            if -1 <= end_i - i <= 1 and -1 <= end_j - j <= 1:
                row, end_row = is_wall[i], is_wall[end_i]
                if not (row[j] or row[end_j] or end_row[j] or end_row[end_j]):
                    return end_x, end_y
        # Counted, not added up: what is not rounded ten times lands on the borders that it should, and can be tabulated.
        now_x, now_y, taken_x, taken_y = x, y, 0, 0
        for _ in range(n_substeps):
            new_x = x + (taken_x + 1) * dx
            if 0.0 <= new_x <= height and not is_wall[int(new_x)][int(now_y)]:
                now_x, taken_x = new_x, taken_x + 1
            new_y = y + (taken_y + 1) * dy
            if 0.0 <= new_y <= width and not is_wall[int(now_x)][int(new_y)]:
                now_y, taken_y = new_y, taken_y + 1
        return now_x, now_y

    # -- pictures -----------------------------------------------------------------------------------------------------

    def show_goal(self, goal: np.ndarray | None, radius: float = 1.0) -> None:
        """
        Draw this goal until the next reset. The environment itself knows no task, so whoever does calls this.

        :param goal: goal, (2,), or None for no goal
        :param radius: radius around it that counts as reached
        """
        self.goal = goal
        self.goal_radius = radius
        if self.render_mode == "human":
            self.render()

    def render(self) -> Any:
        """
        Draw the maze, the path of this episode, the goal where it is known, and the point.

        :return: image, (height, width, 3), uint8, with ``render_mode="rgb_array"``; otherwise None
        :raises DependencyNotInstalled: when ``render_mode="human"`` and pygame is missing
        """
        if self.render_mode is None:
            gym.logger.warn('PointEnv.render() draws nothing without a render mode: pass render_mode="rgb_array" or "human".')
            return None
        image = maze_image(self.walls, self._trail, (self._x, self._y), self.goal, self.goal_radius)
        if self.render_mode == "rgb_array":
            return image
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled('pygame is not installed, run `pip install "gymnasium[classic-control]"`') from error
        if self._window is None:
            pygame.init()
            pygame.display.set_caption("PointEnv")
            self._window = pygame.display.set_mode((image.shape[1], image.shape[0]))
            self._clock = pygame.time.Clock()
        # pygame counts (x to the right, y downwards): the axes of an image the other way round.
        self._window.blit(pygame.surfarray.make_surface(image.transpose(1, 0, 2)), (0, 0))
        pygame.event.pump()
        self._clock.tick(self.metadata["render_fps"])
        pygame.display.flip()
        return None

    def close(self) -> None:
        if self._window is not None:
            import pygame

            pygame.display.quit()
            pygame.quit()
            self._window = None

    def plot_trajectories(
        self, path: str | Path, observations: Sequence[np.ndarray], tasks: np.ndarray, successes: Sequence[bool]
    ) -> None:
        """
        Save a picture of several episodes; tools that draw any environment's episodes look for a method of this name.

        :param path: PNG file to write
        :param observations: one array an episode, (n_steps + 1, 2), the first observation to the last
        :param tasks: goals, (n_episodes, 2)
        :param successes: whether each episode reached its goal
        """
        plot_trajectories(self.walls, self.start, observations, tasks, successes, self.goal_radius, path)


class MazeGoals(GoalReaching):
    """
    Goals far from the start: uniform over the free positions at a Euclidean distance of at least ``min_distance``.

    Reward 0 within ``radius`` of the goal, where the task ends, and -1 elsewhere. Whether a goal can be reached through the
    maze is the map's business: in the maps of :data:`MAPS` every free position can.

    The density is 1 / area. The allowed area is that of the free unit squares less what the disc around the start covers
    of them: for each of many lines along axis 1 the disc's chord is cut off exactly, and the lengths that remain are
    integrated by the midpoint rule (error below 1e-6 of the area).

    :param walls: map, (height, width), bool
    :param radius: distance at which the goal counts as reached, inclusive
    :param start: start position, (2,)
    :param min_distance: least distance of a goal from the start
    :raises ValueError: when no position of the map is allowed
    """

    def __init__(
        self,
        walls: np.ndarray,
        radius: float = 1.0,
        start: Sequence[float] | np.ndarray = (0.0, 0.0),
        min_distance: float = 15.0,
    ) -> None:
        super().__init__(np.zeros(2), np.array(walls.shape), radius)
        self.walls = np.asarray(walls, dtype=bool)
        self.start = np.asarray(start, dtype=np.float64)
        self.min_distance = float(min_distance)
        self.area = self._allowed_area()
        if not self.area > 0:
            raise ValueError(
                f"MazeGoals: no free position is at least {min_distance} away from the start {self.start.tolist()} in a map "
                f"of {self.walls.shape[0]} x {self.walls.shape[1]} units. Lower min_distance."
            )
        self._radius_squared = np.float32(self.radius**2)
        self._size, self._start = np.array(self.walls.shape, dtype=np.float64), self.start.tolist()
        self._is_wall: list[list[bool]] = _with_far_border(self.walls).tolist()

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        # By rejection: about two thirds of the draws are kept in the four rooms.
        if n == 1:
            return self._sample_one(rng)
        goals = np.empty((0, 2), dtype=np.float32)
        while len(goals) < n:
            draws = (self._size * rng.random((2 * (n - len(goals)) + 8, 2))).astype(np.float32)
            goals = np.concatenate([goals, draws[self._allowed(draws)]])
        return goals[:n]

    def _sample_one(self, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
        """One goal, as every reset draws it, (1, 2): in half the time that arrays take."""
        height, width = self._size.tolist()
        while True:
            # Rounded before it is judged, because that is how it is stored.
            x, y = float(np.float32(height * rng.random())), float(np.float32(width * rng.random()))
            if self._is_allowed(x, y):
                return np.array([[x, y]], dtype=np.float32)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return np.where(self._allowed(np.asarray(tasks)), -np.log(self.area), -np.inf)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return next_obs.copy()

    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        # The same float32 arithmetic for one step (scalars, which are fast) and for a batch, so both round alike.
        if features.ndim == 1 and tasks.ndim == 1:
            dx, dy = features[0] - tasks[0], features[1] - tasks[1]
            return dx * dx + dy * dy <= self._radius_squared
        return super()._reached(features, tasks)

    def _is_allowed(self, x: float, y: float) -> bool:
        """:meth:`_allowed` for one goal inside the map."""
        (start_x, start_y), is_wall = self._start, self._is_wall
        if (x - start_x) ** 2 + (y - start_y) ** 2 < self.min_distance**2:
            return False
        return not is_wall[int(x)][int(y)]

    def _allowed(self, goals: np.ndarray) -> np.ndarray:
        """Which goals have a density: (..., 2) -> bool (...,)."""
        distance_squared = np.sum((goals.astype(np.float64) - self.start) ** 2, axis=-1)
        return ~in_wall(self.walls, goals) & (distance_squared >= self.min_distance**2)

    def _allowed_area(self, n_lines: int = 1000) -> float:
        """Area of the free squares outside the disc around the start, by ``n_lines`` lines in each row of squares."""
        height, width = self.walls.shape
        x = (np.arange(height * n_lines) + 0.5) / n_lines
        half_chord = np.sqrt(np.maximum(0.0, self.min_distance**2 - (x - self.start[0]) ** 2))[:, None]
        left = np.arange(width)  # (width,), the squares of a line span [left, left + 1]
        covered = np.minimum(left + 1, self.start[1] + half_chord) - np.maximum(left, self.start[1] - half_chord)
        free_length = 1.0 - np.maximum(0.0, covered)  # (height * n_lines, width)
        return float(np.sum(free_length.reshape(height, n_lines, width).mean(axis=1) * ~self.walls))


class PointGoalWrapper(MultiTaskWrapper):
    """:class:`~hipi_sb3.wrappers.MultiTaskWrapper` for goals in :class:`PointEnv`, which are then drawn when it renders."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        self.unwrapped.show_goal(self.task, self.task_family.radius)  # type: ignore[attr-defined]
        return obs, info


def make_point_four_rooms(
    action_noise: float = 0.0,
    radius: float = 1.0,
    start: Sequence[float] = (0.0, 0.0),
    min_goal_distance: float = 15.0,
    flatten: bool = False,
    fixed_task: Any = None,
    render_mode: str | None = None,
) -> MultiTaskWrapper:
    """
    Make the four rooms with distant goals, without a time limit (``gym.make("PointFourRooms-v0")`` adds one of 75 steps).

    :param action_noise: standard deviation of the noise on the actions
    :param radius: distance at which a goal counts as reached
    :param start: start position, (2,)
    :param min_goal_distance: least distance of a goal from the start
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: goal of every episode, (2,)
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :return: the environment
    """
    env = PointEnv("four_rooms", action_noise=action_noise, start=start, render_mode=render_mode)
    family = MazeGoals(env.walls, radius=radius, start=env.start, min_distance=min_goal_distance)
    return PointGoalWrapper(env, family, flatten=flatten, fixed_task=fixed_task)


class CornersWrapper(PointGoalWrapper):
    """:class:`PointGoalWrapper` for a finite set of goals: a one-hot task says which."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = MultiTaskWrapper.reset(self, seed=seed, options=options)
        self.unwrapped.show_goal(self._goals(self.task), self.task_family.family.radius)  # type: ignore[attr-defined]
        return obs, info

    def plot_trajectories(
        self, path: str | Path, observations: Sequence[np.ndarray], tasks: np.ndarray, successes: Sequence[bool]
    ) -> None:
        """
        Save a picture of several episodes, see :meth:`PointEnv.plot_trajectories`.

        :param path: PNG file to write
        :param observations: one array an episode, (n_steps + 1, 2)
        :param tasks: one-hot tasks, (n_episodes, n_goals)
        :param successes: whether each episode reached its goal
        """
        self.unwrapped.plot_trajectories(path, observations, self._goals(tasks), successes)  # type: ignore[attr-defined]

    def _goals(self, tasks: Any) -> np.ndarray:
        return self.task_family.parameters[np.argmax(tasks, axis=-1)]  # type: ignore[attr-defined]


def make_point_corners(
    action_noise: float = 0.0,
    radius: float = 1.0,
    flatten: bool = False,
    fixed_task: Any = None,
    render_mode: str | None = None,
) -> MultiTaskWrapper:
    """
    Make an open room with a goal near each of its four corners; the task says only which one. The start is in the middle.

    :param action_noise: standard deviation of the noise on the actions
    :param radius: distance at which a goal counts as reached
    :param flatten: one flat observation, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`
    :param fixed_task: one-hot task of every episode, (4,)
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :return: the environment
    """
    env = PointEnv("open", action_noise=action_noise, start=(7.5, 7.5), render_mode=render_mode)
    goals = GoalReaching(np.zeros(2), np.array(env.walls.shape), radius)
    family = FiniteTasks(goals, [(1.5, 1.5), (1.5, 13.5), (13.5, 1.5), (13.5, 13.5)])
    return CornersWrapper(env, family, flatten=flatten, fixed_task=fixed_task)


def _with_far_border(walls: np.ndarray) -> np.ndarray:
    """The last row and column twice, because a position on the far border belongs to the last square."""
    return np.pad(walls, ((0, 1), (0, 1)), mode="edge")


def _free_start(walls: np.ndarray, start: Sequence[float] | np.ndarray) -> np.ndarray:
    start = np.asarray(start, dtype=np.float64)
    if start.shape != (2,):
        raise ValueError(f"PointEnv: start must have shape (2,), not {start.shape}.")
    if in_wall(walls, start):
        raise ValueError(
            f"PointEnv: start {start.tolist()} is in a wall or outside the map of {walls.shape[0]} x {walls.shape[1]} units."
        )
    return start
