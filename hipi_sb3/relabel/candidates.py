"""Where candidate tasks come from: the columns among which a strategy chooses.

Most sources are shared by all rows of a batch, a column a task, which is what the batch estimate of log Z needs. The source
``"future"`` differs from row to row. To add a source: write a function and enter it in ``KEY_TO_SOURCE``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import softmax

from hipi_sb3.given import check_count, check_number
from hipi_sb3.names import lookup
from hipi_sb3.tasks.family import TaskFamily


@dataclass(frozen=True)
class Candidates:
    """
    The tasks among which a strategy chooses.

    :param tasks: candidate tasks, (n_tasks, task_dim), or (batch_size, n_tasks, task_dim) where they differ by row
    :param log_weights: log prior weight of each, (n_tasks,) or (batch_size, n_tasks)
    """

    tasks: np.ndarray
    log_weights: np.ndarray

    def pick(self, columns: np.ndarray) -> np.ndarray:
        """
        The chosen tasks.

        :param columns: one column a row, (batch_size,)
        :return: tasks, (batch_size, task_dim)
        """
        return self.tasks[columns] if self.tasks.ndim == 2 else self.tasks[np.arange(len(columns)), columns]


class CandidateRows(Protocol):
    """What a source may ask about the batch and the rows of it that are to be relabeled."""

    family: TaskFamily

    @property
    def batch_tasks(self) -> np.ndarray:
        """Commanded tasks of the whole batch, (batch_size, task_dim)."""

    @property
    def batch_features(self) -> np.ndarray:
        """Features of the whole batch, (batch_size, feature_dim)."""

    def future_tasks(self, n: int | None = None) -> np.ndarray:
        """Tasks that n random later steps of each row's own trajectory fulfil, (n_rows, n, task_dim)."""


#: ``source(rows, n, rng)``, n tasks for all rows, (n, task_dim), or n for each, (n_rows, n, task_dim).
Source = Callable[[CandidateRows, int, np.random.Generator], np.ndarray]


def commanded_in_batch(rows: CandidateRows, n: int, rng: np.random.Generator) -> np.ndarray:
    """Tasks that transitions of the batch were collected for: draws from the prior, as the paper does."""
    return rows.batch_tasks[_some_rows(len(rows.batch_tasks), n, rng)]


def drawn_from_prior(rows: CandidateRows, n: int, rng: np.random.Generator) -> np.ndarray:
    """Fresh draws from p(psi)."""
    return rows.family.sample(rng, n)


def achieved_in_batch(rows: CandidateRows, n: int, rng: np.random.Generator) -> np.ndarray:
    """Tasks that transitions of the batch fulfil (goal families)."""
    return rows.family.achieved(rows.batch_features[_some_rows(len(rows.batch_features), n, rng)])


def own_future(rows: CandidateRows, n: int, rng: np.random.Generator) -> np.ndarray:
    """
    Tasks that the row's own trajectory fulfils at this step or later (goal families). HER "future" chooses among them
    uniformly, HIPI by value.
    """
    return rows.future_tasks(n)


KEY_TO_SOURCE: dict[str, Source] = {
    "batch": commanded_in_batch,
    "prior": drawn_from_prior,
    "achieved": achieved_in_batch,
    "future": own_future,
}

#: Sources of tasks that were reached.
GOAL_SOURCES = ("achieved", "future")

#: All tasks of a finite family, weighted by the prior; not a draw, so it cannot be mixed.
ALL = "all"


class CandidateSampler:
    """
    Draws the candidate tasks of a batch.

    :param family: the tasks
    :param candidates: a source (``"batch"``, ``"prior"``, ``"achieved"``, ``"future"``), a mixture of them as shares, such
        as ``{"batch": 0.5, "achieved": 0.5}``, or ``"all"`` tasks of a finite family
    :param n_tasks: number of candidates; ``"all"`` ignores it
    :raises ValueError: when a source is unknown or does not exist for this family
    """

    def __init__(self, family: TaskFamily, candidates: str | Mapping[str, float], n_tasks: int) -> None:
        shares = {candidates: 1.0} if isinstance(candidates, str) else dict(candidates)
        check_candidates(shares, n_tasks)
        if ALL in shares and family.tasks is None:
            raise ValueError(
                f"candidates='all' needs a finite family, but {type(family).__name__} has infinitely many tasks. "
                "Use 'batch', 'prior' or, for goals, 'achieved'."
            )
        reached = [key for key in shares if key in GOAL_SOURCES]
        if reached and not family.reaches_goals:
            raise ValueError(
                f"candidates={reached[0]!r} needs a goal family, but no transition fulfils a task of {type(family).__name__}. "
                "Use 'batch', 'prior' or, for finite families, 'all'."
            )
        self.family = family
        self.shares = shares
        self.n_tasks = n_tasks

    @property
    def differ_by_row(self) -> bool:
        """Whether each row has candidates of its own."""
        return "future" in self.shares

    def __call__(self, rows: CandidateRows, rng: np.random.Generator) -> Candidates:
        """
        Draw candidates.

        :param rows: the batch, and the rows of it that are to be relabeled
        :param rng: random generator
        :return: candidate tasks. Those shared by all rows are distinct: one that was drawn c times has c times the weight, so
            that merging duplicates changes no posterior
        """
        if ALL in self.shares:
            assert self.family.tasks is not None
            return Candidates(np.ascontiguousarray(self.family.tasks), self.family.log_prior(self.family.tasks))
        counts = split_by_share(self.n_tasks, self.shares)
        drawn = [KEY_TO_SOURCE[key](rows, n, rng).astype(np.float32) for key, n in counts.items() if n > 0]
        # Draws from the prior carry p(psi) already; the density of achieved tasks is not known. So no weight but the count.
        if any(tasks.ndim == 3 for tasks in drawn):
            n_rows = max(len(tasks) for tasks in drawn if tasks.ndim == 3)
            by_row = [np.broadcast_to(tasks, (n_rows, *tasks.shape[-2:])) for tasks in drawn]
            return Candidates(np.concatenate(by_row, axis=1), np.zeros(self.n_tasks))
        tasks, multiplicity = np.unique(np.concatenate(drawn), axis=0, return_counts=True)
        return Candidates(tasks, np.log(multiplicity))

    def one_each(self, rows: CandidateRows, n_rows: int, rng: np.random.Generator) -> np.ndarray:
        """
        Draw a random candidate for each row, without those that nobody would choose among.

        :param rows: the batch, and the rows of it that are to be relabeled
        :param n_rows: how many these are
        :param rng: random generator
        :return: tasks, (n_rows, task_dim): what a draw by weight from the candidates of :meth:`__call__` comes to
        """
        if ALL in self.shares:
            candidates = self(rows, rng)
            return candidates.tasks[rng.choice(len(candidates.tasks), size=n_rows, p=softmax(candidates.log_weights))]
        sources = [KEY_TO_SOURCE[key] for key in self.shares]
        shares = np.array(list(self.shares.values()), dtype=np.float64)
        chosen = rng.choice(len(sources), size=n_rows, p=shares / shares.sum())
        tasks = np.empty((n_rows, self.family.task_dim), dtype=np.float32)
        for i, source in enumerate(sources):
            of_source = np.flatnonzero(chosen == i)
            if len(of_source) > 0:
                drawn = source(rows, 1 if source is own_future else len(of_source), rng)
                tasks[of_source] = drawn[of_source, 0] if drawn.ndim == 3 else drawn
        return tasks


def check_candidates(candidates: str | Mapping[str, float] | None, n_tasks: int) -> None:
    """
    Validate what can be validated without knowing the family.

    :param candidates: as in :class:`CandidateSampler`
    :param n_tasks: number of candidates
    :raises ValueError: when a source is unknown, the shares do not sum to one or there are no candidates
    """
    check_count("n_candidate_tasks", n_tasks, 1)
    if candidates is None:
        return
    if not isinstance(candidates, str | Mapping):
        raise TypeError(
            f"candidates must be the name of a source or shares of several, such as {{'batch': 0.5, 'prior': 0.5}}, not "
            f"{type(candidates).__name__}: {candidates!r:.80}."
        )
    shares = {candidates: 1.0} if isinstance(candidates, str) else dict(candidates)
    for key, share in shares.items():
        check_number(f"The share of {key!r} in candidates", share)
        lookup("candidate source", key, {**KEY_TO_SOURCE, ALL: drawn_from_prior})
    if len(shares) > 1 and ALL in shares:
        raise ValueError(f"candidates='all' holds every task already and cannot be mixed, but the shares are {shares}.")
    if not shares or min(shares.values()) < 0 or not np.isclose(sum(shares.values()), 1.0):
        raise ValueError(f"The shares of the candidates must not be negative and must sum to 1, but they are {shares}.")


def split_by_share(n: int, shares: Mapping[str, float]) -> dict[str, int]:
    """
    Split n into whole numbers by share, largest remainder first.

    :param n: number to split
    :param shares: share of each key, summing to one
    :return: number of each key, summing to n
    """
    exact = {key: n * share for key, share in shares.items()}
    counts = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: counts[key] - exact[key])
    for key in by_remainder[: n - sum(counts.values())]:
        counts[key] += 1
    return counts


def _some_rows(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n row numbers, without repetition where there are enough rows."""
    return rng.permutation(n_rows)[:n] if n <= n_rows else rng.integers(n_rows, size=n)
