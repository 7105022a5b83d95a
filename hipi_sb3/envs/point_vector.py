"""Many points in one maze, which step at once: the registered point environments for ``gymnasium.make_vec``.

    envs = gym.make_vec("PointFourRooms-v0", num_envs=64, vectorization_mode="vector_entry_point")

Environment i does what the single one would with the seed, the tasks and the actions that it gets, to the last bit: the walls,
the noise, the tasks and the reward are those of the single environment, of which there is one inside.

To add one: a line at the end of this file and ``vector_entry_point`` in :mod:`hipi_sb3.envs`.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from hipi_sb3.envs.point import NOISE_BLOCK, PointEnv, make_point_corners, make_point_four_rooms
from hipi_sb3.envs.point_discrete import make_point_fixed_goals, make_point_four_rooms_grid
from hipi_sb3.wrappers import MultiTaskWrapper

#: Arrays, because NumPy is slow to convert Python's numbers.
_ONE, _TWO = np.array(1), np.array(2)


class Outcome(NamedTuple):
    """
    What a step led to, before anything is reset.

    :param task_features: positions reached, (num_envs, 2), float32
    :param rewards: rewards of the tasks, (num_envs,), float64
    :param terminated: whether the task ended, (num_envs,)
    :param truncated: whether the time limit was reached, (num_envs,)
    :param is_success: whether the task is solved, (num_envs,); None where the family has no such notion
    """

    task_features: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    is_success: np.ndarray | None

    def only(self, mask: np.ndarray) -> "Outcome":
        """
        The features and successes of some environments, 0 for the others.

        :param mask: which, (num_envs,), bool
        :return: a copy of those
        """
        features = np.where(mask[:, None], self.task_features, np.float32(0))
        return self._replace(task_features=features, is_success=None if self.is_success is None else self.is_success & mask)


class PointVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """
    Several copies of an environment that is a :class:`~hipi_sb3.envs.point.PointEnv` with tasks, stepped by NumPy.

    Observations, rewards and ``infos`` are those of ``gymnasium.vector.SyncVectorEnv`` with the same environments and seeds:
    environment i is seeded with ``seed + i`` and has its own generator.

    :param make: makes the single environment, without a time limit
    :param num_envs: number of copies
    :param max_episode_steps: steps after which an episode is truncated; no limit if None or -1
    :param autoreset_mode: what follows the end of an episode: ``"NextStep"`` (the next ``step`` resets), ``"SameStep"`` (the
        last observation is in ``infos["final_obs"]``) or ``"Disabled"`` (``reset(options={"reset_mask": ended})``)
    :param kwargs: arguments of ``make``, the same for all copies
    :raises ValueError: when the environment is not one that can be stepped like this
    """

    def __init__(
        self,
        make: Callable[..., MultiTaskWrapper],
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"PointVectorEnv: num_envs must be at least 1, not {num_envs}.")
        self.single = make(**kwargs)
        self.point: PointEnv = self.single.unwrapped  # type: ignore[assignment]
        self.task_family = self.single.task_family
        self._check_single()
        self.single.reset(seed=0)  # says how large its goals are drawn
        self.num_envs = num_envs
        self._step_limit = np.array(np.iinfo(np.int64).max if max_episode_steps in (None, -1) else max_episode_steps)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.single.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = self.single.render_mode
        self.single_observation_space = self.single.observation_space
        self.single_action_space = self.single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self.tasks = np.zeros((num_envs, self.task_family.task_dim), dtype=np.float32)
        self.fixed_tasks: list[np.ndarray | None] = [self.single.fixed_task] * num_envs
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._started = False
        self._everyone = np.ones(num_envs, dtype=bool)
        self._trails: list[list[tuple[float, float]]] = [[] for _ in range(num_envs)]

        # Axes come first and the environments last, so that every line of arithmetic runs over contiguous memory.
        self._positions = np.zeros((2, num_envs))
        self._seen_positions = np.zeros((num_envs, 2), dtype=np.float32)
        self._start_column = self.point.start[:, None]
        self._noise = np.zeros((num_envs, NOISE_BLOCK, 2))
        self._noise_left = np.zeros(num_envs, dtype=np.int64)  # numbers, two a step
        self._noise_rows = np.arange(num_envs) * (2 * NOISE_BLOCK) + np.array([[0], [1]])
        self._set_map()

    def _set_map(self) -> None:
        walls = self.point.walls
        self._far_border = np.repeat(np.array(walls.shape, dtype=np.float64)[:, None], self.num_envs, axis=1)
        self._walls_ahead, to_walls, first_walls = walls_ahead(walls)
        n_substeps = self.point.n_substeps
        self._n_substeps = np.array(float(n_substeps))
        self._substeps = np.arange(n_substeps + 1.0)[:, None, None]
        self._taken_substeps, to_taken, first_taken = taken_substeps(n_substeps)
        # The entries of both tables are linear in the squares of the path, so that one product of matrices finds them.
        weights = np.zeros((2, n_substeps + 1, 2))
        weights[0, 0], weights[0, -1] = to_walls
        weights[1] = to_taken
        self._to_entries = weights.reshape(2, -1)
        self._first_entries = np.array([[first_walls], [first_taken]])

    def _check_single(self) -> None:
        point, name = self.point, type(self.point).__name__
        if not isinstance(point, PointEnv) or self.single.env is not point:
            raise ValueError(
                f"PointVectorEnv steps a MultiTaskWrapper directly around a PointEnv, not {self.single}. "
                'Use gymnasium.make_vec(..., vectorization_mode="sync").'
            )
        if _definer(point, "displacement") is not _definer(point, "displacements"):
            raise ValueError(f"{name} overrides displacement but not displacements, which moves many points: override both.")
        position = point.position
        features = self.task_family.features(point, position, position, position, 0.0, {})
        if not np.array_equal(features, position):
            raise ValueError(
                f"PointVectorEnv takes the position as the features of a step, but {type(self.task_family).__name__} has "
                f'others. Use gymnasium.make_vec(..., vectorization_mode="sync").'
            )

    # -- episodes -------------------------------------------------------------------------------------------------------

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each environment."""
        return tuple(self._generator(i) for i in range(self.num_envs))

    def _generator(self, index: int) -> np.random.Generator:
        generator = self._generators[index]
        if generator is None:
            generator = self._generators[index] = seeding.np_random()[0]
        return generator

    def fix_task(self, index: int, task: Any) -> None:
        """
        Use this task in environment ``index`` from its next reset on; None draws from the prior again.

        :param index: environment
        :param task: task, (task_dim,), or None
        :raises ValueError: when the task is outside the task space
        """
        self.fixed_tasks[index] = None if task is None else self.task_family.check_task(task)

    def begin(self, indices: np.ndarray, seeds: Sequence[int | None] | None = None, tasks: Any = None) -> None:
        """
        Start an episode in some of the environments.

        :param indices: which, (n,), integers
        :param seeds: seed of every environment of all, or None for generators that go on
        :param tasks: sequence of the tasks of all environments; where one is None, the fixed one or a draw from the prior
        """
        self._started = True
        self._positions[:, indices] = self._start_column
        self._seen_positions[indices] = self.point.start
        self._steps[indices] = 0
        if self.point.action_noise > 0:
            self._noise_left[indices] = 0
        sample, check_task = self.task_family.sample, self.task_family.check_task
        for i in indices.tolist():
            if seeds is not None and seeds[i] is not None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
            task = self.fixed_tasks[i]
            if tasks is not None and tasks[i] is not None:
                task = check_task(tasks[i])
            self.tasks[i] = sample(self._generator(i), 1)[0] if task is None else task
        if self.render_mode is not None:
            for i in indices:
                self._trails[i] = [tuple(self.point.start.tolist())]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode in every environment.

        :param seed: environment i is seeded with ``seed + i``, or with entry i of a list
        :param options: ``"task"``: task of all, (task_dim,), or of each, (num_envs, task_dim); ``"reset_mask"``: which
            environments are reset, (num_envs,), bool, all if it is missing
        :return: observations and infos
        :raises ValueError: when seeds, tasks or mask do not fit the number of environments
        """
        options = options or {}
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
        tasks = options.get("task")
        if tasks is not None:
            tasks = np.broadcast_to(np.asarray(tasks, dtype=np.float32), self.tasks.shape)
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},), not {mask!r}.")
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"PointVectorEnv: one seed an environment is {self.num_envs} seeds, not {len(seeds)}.")
        self._ended &= ~mask
        self.begin(np.flatnonzero(mask), seeds, tasks)
        return self.observations(), {"task": np.where(mask[:, None], self.tasks, 0), "_task": mask}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Step all environments, as ``gymnasium.vector.SyncVectorEnv`` does.

        :param actions: actions, (num_envs, ...)
        :return: observations, rewards, terminations, truncations and infos
        :raises ValueError: when an action is NaN, or an episode has ended and must be reset first
        """
        resting = self._ended if np.count_nonzero(self._ended) else None
        if resting is not None and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError(
                f"The episodes of environments {np.flatnonzero(resting).tolist()} have ended. Call "
                'reset(options={"reset_mask": terminated | truncated}) before the next step.'
            )
        outcome = self.advance(actions, resting)
        _, rewards, terminated, truncated, _ = outcome
        stepped = everyone = self._everyone.copy()
        final_infos: dict[str, Any] = {}
        if resting is not None:
            stepped = ~resting
            rows = resting.nonzero()[0]
            rewards[rows] = outcome.task_features[rows] = 0
            if outcome.is_success is not None:
                outcome.is_success[rows] = False
            terminated, truncated = terminated & stepped, truncated & stepped
            self.begin(rows)
        ended = terminated | truncated
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._ended = ended
        elif np.count_nonzero(ended):
            stepped = ~ended
            final_obs, final_info = np.full(self.num_envs, None, dtype=object), self._infos(ended, outcome.only(ended))
            final_info |= {"task": np.where(ended[:, None], self.tasks, 0), "_task": ended}
            last = list(iterate(self.observation_space, self.observations()))
            for i in np.flatnonzero(ended):
                final_obs[i] = last[i]
            final_infos = {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            outcome = outcome.only(stepped)
            self.begin(ended.nonzero()[0])
        infos = final_infos | self._infos(stepped, outcome)
        infos["task"], infos["_task"] = self.tasks.copy(), everyone
        return self.observations(), rewards, terminated, truncated, infos

    def advance(self, actions: np.ndarray, resting: np.ndarray | None = None) -> Outcome:
        """
        Step all environments and reset none.

        :param actions: actions, (num_envs, ...)
        :param resting: environments whose outcome does not count because they are reset next, (num_envs,), bool
        :return: what it led to
        :raises ValueError: when an action is NaN
        """
        assert self._started, "Call reset() before step()."
        noise = self._draw_noise(resting) if self.point.action_noise > 0 else None
        self._walk(self.point.displacements(np.asarray(actions), noise))
        self._steps += _ONE
        if self.render_mode is not None:
            for trail, (x, y) in zip(self._trails, self._positions.T.tolist(), strict=True):
                trail.append((x, y))
        features = self._positions.T.astype(np.float32, order="C")
        self._seen_positions = features.copy()  # the features are handed out
        rewards, terminated, success = self.task_family.judge(features, self.tasks)
        return Outcome(features, rewards.astype(np.float64), terminated, self._steps >= self._step_limit, success)

    def observations(self) -> Any:
        """
        What the policy sees now.

        :return: ``{"observation": (num_envs, 2), "task": (num_envs, task_dim)}``, or both side by side with ``flatten=True``
        """
        if self.single.flatten:
            return np.concatenate([self._seen_positions, self.tasks], axis=1)
        return {"observation": self._seen_positions.copy(), "task": self.tasks.copy()}

    def _infos(self, mask: np.ndarray, outcome: Outcome) -> dict[str, Any]:
        """Gymnasium's way: under ``_key``, whose values under ``key`` count; the others are 0."""
        if np.count_nonzero(mask) == 0:
            return {}
        infos = {
            "task_features": outcome.task_features,
            "_task_features": mask,
            "env_terminated": np.zeros(self.num_envs, dtype=bool),
            "_env_terminated": mask,
        }
        if outcome.is_success is not None:
            infos["is_success"], infos["_is_success"] = outcome.is_success, mask
        return infos

    # -- physics --------------------------------------------------------------------------------------------------------

    def _draw_noise(self, resting: np.ndarray | None) -> np.ndarray:
        """Noise of this step, (2, num_envs): each environment uses up its block from the end, as the single one does."""
        if np.count_nonzero(self._noise_left) < self.num_envs:
            empty = self._noise_left == 0
            for i in np.flatnonzero(empty if resting is None else empty & ~resting).tolist():
                self._generator(i).standard_normal(out=self._noise[i])
                self._noise_left[i] = 2 * NOISE_BLOCK
        self._noise_left -= _TWO
        return self._noise.take(self._noise_left + self._noise_rows)

    def _walk(self, moves: np.ndarray) -> None:
        """
        :meth:`PointEnv.walk` for many points: moves (2, num_envs).

        A point that is never blocked is after k substeps at ``path[k]``, and a blocked axis only stays behind on it. How many
        substeps count depends on when each axis leaves its square and on the three squares it could get into: all that is
        looked up in tables made by the rule itself.
        """
        invalid = np.isnan(moves)
        if np.count_nonzero(invalid):
            i = int(np.argmax(invalid.any(axis=0)))
            raise ValueError(
                f"PointEnv: the action of environment {i} is not a number at position {self._positions[:, i].tolist()}."
            )
        steps = moves / self._n_substeps
        path = self._substeps * steps
        path += self._positions
        on_border = None
        if np.count_nonzero(np.maximum(path[0], path[-1]) >= self._far_border):
            on_border = path == self._far_border
        squares = np.floor(path, out=path)
        if on_border is not None:
            squares -= on_border  # the far border belongs to the last square
        entries = np.dot(self._to_entries, squares.reshape(self._to_entries.shape[1], -1))
        entries += self._first_entries
        indices = entries.astype(np.int64)
        taken = indices[1]
        taken += self._walls_ahead.take(indices[0], mode="clip")
        new = self._taken_substeps.take(taken, axis=1)
        new *= steps
        new += self._positions
        rare = np.isnan(new)
        if np.count_nonzero(rare):
            rows = np.flatnonzero(rare.any(axis=0))
            before_and_move = np.concatenate([self._positions[:, rows], moves[:, rows]]).T.tolist()
            new[:, rows] = np.transpose([self.point.walk(*numbers) for numbers in before_and_move])
        self._positions = new

    # -- pictures -------------------------------------------------------------------------------------------------------

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        Draw every environment, by the single one.

        :return: images, (height, width, 3), uint8, with ``render_mode="rgb_array"``; otherwise None
        """
        images = [self._picture(i) for i in range(self.num_envs)]
        return tuple(images) if self.render_mode == "rgb_array" else None

    def _picture(self, index: int) -> Any:
        self.single.reset(options={"task": self.tasks[index]})
        self.point._x, self.point._y = self._positions[:, index].tolist()
        self.point._trail = self._trails[index]
        return self.single.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window, if there is one."""
        self.single.close()


@cache
def taken_substeps(n_substeps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """
    How many substeps count along each axis, for every way in which a point can meet walls.

    With ``beyond`` the number of substeps of an axis that end outside the first square, negative where the square is left
    downwards, an entry is ``((beyond_x + last) * (2 * last + 1) + beyond_y + last) * 8 + walls``, where ``walls`` are the bits
    of :func:`walls_ahead` and ``last`` is n_substeps + 1. ``abs(beyond) == last`` needs a third square, which only rounding
    can reach, from one border across the next one: the table does not know that square, and has NaN.

    :param n_substeps: substeps of a step
    :return: substeps along axis 0 and axis 1, (2, entries); weights of the squares, (n_substeps + 1, 2), whose sum is the
        entry, less ``walls`` and a constant; that constant
    """
    last = n_substeps + 1
    table = np.full((2 * last + 1, 2 * last + 1, 8, 2), np.nan)
    known = range(-n_substeps, last)
    for beyond_x, beyond_y, walls in product(known, known, range(8)):
        # The first substep that leaves the square; `last` if none does.
        leaves_x, leaves_y = last - abs(beyond_x), last - abs(beyond_y)
        # is_wall[left the square along axis 0][left it along axis 1]
        is_wall = ((False, bool(walls & 2)), (bool(walls & 1), bool(walls & 4)))
        x = y = 0
        for _ in range(n_substeps):
            if not is_wall[x + 1 >= leaves_x][y >= leaves_y]:
                x += 1
            if not is_wall[x >= leaves_x][y + 1 >= leaves_y]:
                y += 1
        table[beyond_x + last, beyond_y + last, walls] = x, y
    weights = np.ones((n_substeps + 1, 2)) * [8 * (2 * last + 1), 8]
    weights[0] *= -n_substeps
    return np.ascontiguousarray(table.reshape(-1, 2).T), weights, 8 * last * (2 * last + 2)


def walls_ahead(walls: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """
    For every square and every direction in which it can be left, which of the three squares there are walls.

    :param walls: map, (height, width), bool
    :return: table of the bits 1 (the next square along axis 0), 2 (along axis 1) and 4 (along both), flat; weights of the
        squares before and after, (2, 2), whose sum is the entry, less a constant; that constant
    """
    # Outside is nothing but wall: one square of it can be looked at, and two keep np.roll from going round.
    height, width = np.array(walls.shape) + 4
    padded = np.pad(walls, 2, constant_values=True).astype(np.int64)
    table = np.zeros((height, width, 3, 3), dtype=np.int64)
    for di, dj in np.ndindex(3, 3):
        along_x = np.roll(padded, 1 - di, axis=0)
        along_y = np.roll(padded, 1 - dj, axis=1)
        table[:, :, di, dj] = along_x + 2 * along_y + 4 * np.roll(along_x, 1 - dj, axis=1)
    # entry = ((i + 2) * width + j + 2) * 9 + (i_after - i + 1) * 3 + (j_after - j + 1)
    weights = np.array([[9 * width - 3, 9 - 1], [3, 1]], dtype=np.float64)
    return table.reshape(-1), weights, int((2 * width + 2) * 9 + 3 + 1)


def _definer(instance: Any, method: str) -> type:
    return next(cls for cls in type(instance).__mro__ if method in vars(cls))


make_point_four_rooms_vector = partial(PointVectorEnv, make_point_four_rooms)
make_point_four_rooms_grid_vector = partial(PointVectorEnv, make_point_four_rooms_grid)
make_point_fixed_goals_vector = partial(PointVectorEnv, make_point_fixed_goals)
make_point_corners_vector = partial(PointVectorEnv, make_point_corners)
