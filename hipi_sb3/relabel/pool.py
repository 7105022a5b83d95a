"""Rows that the critic has scored, used several times, so that it is asked less often."""

from typing import Any

import numpy as np

#: How many batches' worth of rows the pool holds: so many that hardly a row of it comes twice into a batch, or into two
#: batches that follow each other, which would cost learning.
N_BATCHES = 32

#: What the labels may take: of images as goals a row keeps fewer than it is used, where 16 of each would be more than a GB.
MAX_BYTES = 2**28


class LabelPool:
    """
    Transitions that were scored lately, with labels. The relabeled rows of a batch are drawn from it.

    It fills up without reuse. Then one batch's worth of rows is renewed, the oldest first, every ``n_uses`` batches: a row
    is used ``n_uses`` times in the mean, spread over ``N_BATCHES * n_uses`` batches. Each use takes one of the row's labels at
    random: as many draws from its posterior are as many different lessons from one scoring.

    :param n_rows: relabeled rows a batch
    :param n_labels: labels a row, fewer where they would take more than :data:`MAX_BYTES`
    :param task_dim: entries of a task
    :param n_uses: uses of a row, in the mean
    """

    def __init__(self, n_rows: int, n_labels: int, task_dim: int, n_uses: int) -> None:
        self.n_uses = n_uses
        self.n_labels = min(n_labels, max(1, MAX_BYTES // (4 * N_BATCHES * n_rows * task_dim)))
        self.steps = np.zeros(N_BATCHES * n_rows, dtype=int)
        self.env_indices = np.zeros_like(self.steps)
        self.tasks = np.zeros((len(self.steps), self.n_labels, task_dim), dtype=np.float32)
        self.is_valid = np.zeros(len(self.steps), dtype=bool)
        self.n_added = 0
        self.n_draws_left = 0

    def is_due(self, n_draws: int) -> bool:
        """
        Whether new rows have to be added before so many are drawn.

        :param n_draws: rows to be drawn
        :return: whether they are due
        """
        return self.n_added < len(self.steps) or self.n_draws_left < n_draws or not self.is_valid.any()

    def add(self, at: tuple[np.ndarray, np.ndarray], tasks: np.ndarray) -> None:
        """
        Put new rows in the place of the oldest.

        :param at: ring indices and environment indices of the transitions, (n,) each
        :param tasks: their labels, (n, n_labels, task_dim)
        """
        places = (self.n_added + np.arange(len(tasks))) % len(self.steps)
        self.steps[places], self.env_indices[places] = at
        self.tasks[places] = tasks
        self.is_valid[places] = True
        self.n_added += len(tasks)
        self.n_draws_left = self.n_uses * len(tasks)

    def draw(self, n_draws: int, rng: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """
        Draw transitions, and one label of each.

        :param n_draws: how many
        :param rng: generator
        :return: ring indices and environment indices, (n_draws,) each, and tasks, (n_draws, task_dim)
        """
        places = rng.choice(np.flatnonzero(self.is_valid), size=n_draws)
        labels = rng.integers(self.n_labels, size=n_draws)
        self.n_draws_left -= n_draws
        return (self.steps[places], self.env_indices[places]), self.tasks[places, labels]

    def forget(self, step: int) -> None:
        """
        Drop a row of the ring, because other transitions take its place.

        :param step: ring index
        """
        self.is_valid[self.steps == step] = False

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "LabelPool":
        """
        Make a pool from what ``vars`` said of another one.

        :param state: its attributes
        :return: the pool
        """
        pool = object.__new__(cls)
        pool.__dict__.update(state)
        return pool
