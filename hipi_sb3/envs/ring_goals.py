"""Goals around a centre."""

from collections.abc import Sequence

import numpy as np

from hipi_sb3.tasks.family import FeatureFn
from hipi_sb3.tasks.goals import GoalReaching


class RingGoals(GoalReaching):
    """
    Goals in the plane at a distance of ``inner`` to ``outer`` from the origin: angle and distance are uniform.

    Reward 0 within ``radius`` of the goal, where the task ends, and -1 elsewhere.

    :param inner: smallest distance of a goal from the origin
    :param outer: largest distance; a circle where it equals ``inner``
    :param radius: distance at which the goal counts as reached, inclusive
    :param position: where the position is read, as in :class:`~hipi_sb3.tasks.goals.GoalReaching`
    :param limit: goals that are reached lie within so much of the origin along each axis, twice ``outer`` if None
    :raises ValueError: when not 0 < inner <= outer <= limit
    """

    def __init__(
        self,
        inner: float,
        outer: float,
        radius: float,
        position: Sequence[int] | FeatureFn | None = None,
        limit: float | None = None,
    ) -> None:
        limit = 2 * outer if limit is None else limit
        if not 0 < inner <= outer <= limit:
            raise ValueError(f"RingGoals: needs 0 < inner <= outer <= limit, not {inner}, {outer}, {limit}.")
        super().__init__([-limit, -limit], [limit, limit], radius, position)
        self.inner, self.outer = float(inner), float(outer)

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        return sample_ring(rng, n, self.inner, self.outer)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return ring_log_density(tasks, self.inner, self.outer)


def sample_ring(rng: np.random.Generator | np.random.RandomState, n: int, inner: float, outer: float) -> np.ndarray:
    """
    Draw points around the origin, uniform in angle and distance.

    :param rng: random generator
    :param n: number of points
    :param inner: smallest distance
    :param outer: largest distance
    :return: points, (n, 2), float32
    """
    angle, distance = rng.uniform(-np.pi, np.pi, size=n), rng.uniform(inner, outer, size=n)
    return (distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).astype(np.float32)


def ring_log_density(points: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """
    Log-density of :func:`sample_ring`: by area on a ring, by length on a circle.

    :param points: points, (..., 2)
    :param inner: smallest distance
    :param outer: largest distance
    :return: log-density, (...,); -inf off the ring, by more than float32 rounds
    """
    points = np.asarray(points, dtype=np.float64)
    distance = np.hypot(points[..., 0], points[..., 1])
    slack = 1e-6 * outer
    width = outer - inner if outer > inner else 1.0
    on_ring = (distance >= inner - slack) & (distance <= outer + slack)
    return np.where(on_ring, -np.log(2 * np.pi * width * np.maximum(distance, slack)), -np.inf)
