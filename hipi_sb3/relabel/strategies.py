"""Strategies: the rules that assign a task to a transition.

:class:`HIPI` draws from the posterior of :mod:`hipi_sb3.relabel.posterior`; the others are the baselines that it is compared
with. A strategy sees the rows that are to be relabeled through :class:`RelabelRows` and returns one task a row.

To add a strategy: subclass :class:`Strategy` and enter it in ``KEY_TO_STRATEGY``.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from hipi_sb3.names import lookup
from hipi_sb3.relabel.candidates import Candidates
from hipi_sb3.relabel.posterior import Inference, sample_rows


class RelabelRows(Protocol):
    """What a strategy may ask about the rows that are to be relabeled; everything is computed when it is asked for."""

    @property
    def commanded(self) -> np.ndarray:
        """Commanded tasks, (batch_size, task_dim)."""

    def candidates(self) -> Candidates:
        """Candidate tasks."""

    def random_candidates(self) -> np.ndarray:
        """A random candidate of each row, drawn by its weight, (batch_size, task_dim)."""

    def infer(self) -> Inference:
        """Posterior over the candidates, from the learner's critic."""

    def scores(self, tasks: np.ndarray, score: str | None = None) -> np.ndarray:
        """A score of the rows for tasks, by name, (batch_size, n_tasks); the posterior's if None."""

    def trajectory_returns(self, tasks: np.ndarray) -> np.ndarray:
        """Returns of the rows' own trajectories for tasks, (batch_size, n_tasks)."""

    def recent_returns(self, tasks: np.ndarray) -> np.ndarray:
        """Returns of the most recent trajectories for tasks, (n_recent, n_tasks)."""

    def final_tasks(self) -> np.ndarray:
        """Tasks that the ends of the rows' own trajectories fulfil, (batch_size, task_dim)."""

    def future_tasks(self, n: int | None = None) -> np.ndarray:
        """Tasks that random later steps of the rows' own trajectories fulfil, (batch_size, task_dim), or n of them each."""

    def episode_tasks(self) -> np.ndarray:
        """Tasks that random steps of the rows' own trajectories fulfil, earlier or later, (batch_size, task_dim)."""


class Strategy(ABC):
    """
    A rule that assigns tasks to transitions.
    """

    #: Whether it chooses among candidate tasks.
    needs_candidates = True
    #: Whether it looks at the critic.
    needs_scores = False
    #: Whether it asks the posterior, so that windows are scored as they will be learned.
    needs_posterior = False
    #: Whether it needs tasks that a transition fulfils (goal families only).
    needs_goals = False
    #: Whether it compares rows by task, so that all rows must have the same candidates.
    needs_shared_candidates = False
    #: Whether a label is a draw from a distribution that stands once a row is scored, so that more of them cost nothing.
    is_draw = False

    @abstractmethod
    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        """
        Assign a task to each row.

        :param rows: the rows to be relabeled
        :param rng: random generator
        :return: tasks, (batch_size, task_dim)
        """


class NoRelabeling(Strategy):
    """Every transition keeps the task it was collected for."""

    needs_candidates = False

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return rows.commanded


class RandomTask(Strategy):
    """A random candidate, drawn by its weight."""

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return rows.random_candidates()


class FinalGoal(Strategy):
    """Hindsight experience replay, "final": the goal that the trajectory ended at (arXiv 1707.01495)."""

    needs_candidates = False
    needs_goals = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return rows.final_tasks()


class FutureGoal(Strategy):
    """
    Hindsight experience replay, "future": a goal that the trajectory reaches at this step or later (arXiv 1707.01495).
    """

    needs_candidates = False
    needs_goals = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return rows.future_tasks()


class EpisodeGoal(Strategy):
    """
    Hindsight experience replay, "episode": a goal that the trajectory reaches at any of its steps (arXiv 1707.01495).
    """

    needs_candidates = False
    needs_goals = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        return rows.episode_tasks()


class HIPI(Strategy):
    """
    Hindsight inference: a task drawn from the posterior q(psi | s, a) (arXiv 2002.11089).
    """

    needs_scores = True
    needs_posterior = True
    is_draw = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        posterior = rows.infer().posterior
        tasks = rows.candidates().pick(sample_rows(posterior, rng))
        return _keep_commanded_where_impossible(tasks, posterior, rows.commanded)


class MaximumAPosteriori(Strategy):
    """The most probable task of the posterior, HIPI's limit of low temperature."""

    needs_scores = True
    needs_posterior = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        posterior = rows.infer().posterior
        tasks = rows.candidates().pick(np.argmax(posterior, axis=1))  # over tasks
        return _keep_commanded_where_impossible(tasks, posterior, rows.commanded)


class MaximumReward(Strategy):
    """
    The task that rewards this step most, ties broken at random: the naive rule that HIPI corrects. The task with the
    largest rewards swallows the data.
    """

    needs_scores = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        candidates = rows.candidates()
        return candidates.pick(_argmax(rows.scores(candidates.tasks, "reward"), rng))


class MaximumAdvantage(Strategy):
    """
    The task with the largest advantage Q(s, a, psi) - V(s, psi): the faster rule of Generalized Hindsight
    (Li, Pinto, Abbeel, NeurIPS 2020, arXiv 2002.11708).
    """

    needs_scores = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        candidates = rows.candidates()
        return candidates.pick(_argmax(rows.scores(candidates.tasks, "advantage"), rng))


class ApproximateIRL(Strategy):
    """
    Approximate IRL relabeling (AIR) of Generalized Hindsight (Li, Pinto, Abbeel, NeurIPS 2020, arXiv 2002.11708): the task
    for which the row's trajectory ranks highest among recent trajectories, judged by its return; ties by advantage.
    """

    needs_scores = True
    needs_shared_candidates = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        candidates = rows.candidates()
        returns = rows.trajectory_returns(candidates.tasks)
        recent = rows.recent_returns(candidates.tasks)
        if len(recent) == 0:  # no episode has ended yet
            return rows.commanded
        # (batch_size, 1, n_tasks) against (1, n_recent, n_tasks)
        percentile = np.mean(returns[:, None] >= recent[None], axis=1)  # over recent trajectories
        best = percentile == percentile.max(axis=1, keepdims=True)  # over tasks
        advantage = rows.scores(candidates.tasks, "advantage")
        return candidates.pick(_argmax(np.where(best, advantage, -np.inf), rng))


KEY_TO_STRATEGY: dict[str, type[Strategy]] = {
    "none": NoRelabeling,
    "random": RandomTask,
    "final": FinalGoal,
    "future": FutureGoal,
    "episode": EpisodeGoal,
    "hipi": HIPI,
    "map": MaximumAPosteriori,
    "max_reward": MaximumReward,
    "advantage": MaximumAdvantage,
    "air": ApproximateIRL,
}


def make_strategy(strategy: str | Strategy) -> Strategy:
    """
    Resolve a strategy given by name or object.

    :param strategy: one of ``KEY_TO_STRATEGY`` or a strategy
    :return: the strategy
    :raises ValueError: when the name is unknown
    """
    return strategy if isinstance(strategy, Strategy) else lookup("strategy", strategy, KEY_TO_STRATEGY)()


def _keep_commanded_where_impossible(tasks: np.ndarray, posterior: np.ndarray, commanded: np.ndarray) -> np.ndarray:
    possible = np.any(posterior, axis=1, keepdims=True)  # over tasks
    return np.where(possible, tasks, commanded)


def _argmax(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Column of the largest value of each row, ties broken at random: (batch_size, n_tasks) -> (batch_size,)."""
    best = values == values.max(axis=1, keepdims=True)  # over tasks
    return np.argmax(best * rng.random(values.shape), axis=1)
