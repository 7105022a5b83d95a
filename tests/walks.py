"""Small data sets of trajectories, for the tests of several modules."""

from typing import Any

import numpy as np
from gymnasium import spaces
from line_walk import ACTIONS, GOALS

from hipi_sb3 import TaskFamily, TrajectoryDataset

#: Space of the observations of :class:`line_walk.LineWalk`.
INNER = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def walks(
    lengths: list[int], family: TaskFamily = GOALS, seed: int = 0, action_space: spaces.Space = ACTIONS, **kwargs: Any
) -> TrajectoryDataset:
    """Random walks on a line: the feature is the position after the step, the action what led there."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    moves = rng.uniform(-1.0, 1.0, size=(n, 1)).astype(np.float32)
    starts = np.cumsum(lengths) - lengths
    positions = np.concatenate([np.cumsum(0.3 * moves[s : s + length]) for s, length in zip(starts, lengths, strict=True)])
    clock = np.concatenate([0.1 * np.arange(length) for length in lengths])
    before = positions - 0.3 * moves[:, 0]
    actions = moves if isinstance(action_space, spaces.Box) else (moves[:, 0] > 0).astype(np.int64)
    return TrajectoryDataset(
        family,
        INNER,
        action_space,
        np.stack([before, clock], axis=1).astype(np.float32),
        actions,
        positions[:, None].astype(np.float32),
        np.array(lengths),
        **kwargs,
    )
