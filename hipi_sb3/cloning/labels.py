"""Labels for trajectories: for which tasks was this trajectory the right thing to do?

HIPI-BC (arXiv 2002.11089, section 3) infers q(psi | tau) proportional to p(psi) exp(sum_t r_psi(s_t, a_t) / T - log Z(psi))
and clones each trajectory for the tasks that it was right for. The posterior is that of :mod:`hipi_sb3.relabel`; the score of
a trajectory is its return. The other rules are the baselines that it is compared with.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hipi_sb3.cloning.arrays import show_progress
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.given import check_count, check_number
from hipi_sb3.names import lookup
from hipi_sb3.relabel.candidates import Candidates, CandidateSampler, check_candidates
from hipi_sb3.relabel.defaults import default_candidates
from hipi_sb3.relabel.log_partition import LogPartition, RunningLogPartition, make_log_partition
from hipi_sb3.relabel.posterior import Inference, TaskInference, effective_tasks, label_divergence
from hipi_sb3.relabel.strategies import (
    HIPI,
    KEY_TO_STRATEGY,
    EpisodeGoal,
    FinalGoal,
    FutureGoal,
    MaximumAPosteriori,
    MaximumReward,
    NoRelabeling,
    RandomTask,
    Strategy,
    make_strategy,
)
from hipi_sb3.tasks.family import TaskFamily

#: Filtered behaviour cloning: each task gets the trajectories with the largest returns for it.
TOP_K = "top_k"

#: What can be asked of trajectories; the other strategies compare the values that a critic gives to transitions.
TRAJECTORY_STRATEGIES = (NoRelabeling, RandomTask, FinalGoal, FutureGoal, EpisodeGoal, HIPI, MaximumAPosteriori, MaximumReward)

#: How returns of rows of different length are compared, see :class:`TrajectoryLabeler`.
RETURNS = ("extended", "sum", "mean")

#: Rewards that are computed at a time, and scores among which log Z is taken.
_BLOCK_REWARDS = 1 << 19
_MAX_SCORES = 1 << 23


@dataclass(frozen=True)
class Segments:
    """
    The rows that get labels: whole trajectories, or pieces of them.

    :param start: index of the first step of each row in the data set, (n_rows,)
    :param length: number of steps, (n_rows,)
    :param trajectory: trajectory that it belongs to, (n_rows,)
    :param is_last: whether it is the end of its trajectory, (n_rows,)
    """

    start: np.ndarray
    length: np.ndarray
    trajectory: np.ndarray
    is_last: np.ndarray

    @classmethod
    def of(cls, dataset: TrajectoryDataset, length: int | None = None) -> "Segments":
        """
        Cut trajectories into rows.

        :param dataset: trajectories
        :param length: steps of a row; the last one of a trajectory may be shorter. Whole trajectories if None
        :return: rows, in the order of the data set
        """
        pieces = np.ones_like(dataset.lengths) if length is None else -(-dataset.lengths // length)
        trajectory = np.repeat(np.arange(dataset.n_trajectories), pieces)
        piece = np.arange(len(trajectory)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        before = piece * (length or 0)
        lengths = dataset.lengths[trajectory] - before
        return cls(
            dataset.starts[trajectory] + before,
            lengths if length is None else np.minimum(lengths, length),
            trajectory,
            piece == pieces[trajectory] - 1,
        )

    def row_of(self, steps: np.ndarray) -> np.ndarray:
        """Rows of steps of the data set, (n,)."""
        return np.searchsorted(self.start, steps, side="right") - 1

    def blocks(self, max_steps: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """
        Go through the rows, some at a time.

        :param max_steps: steps at a time, unless a single row is longer
        :return: rows; their steps in the data set; the row of each step, counted from the first of the block
        """
        ends = self.start + self.length
        first = 0
        while first < len(self.start):
            begin = self.start[first]
            last = max(first + 1, int(np.searchsorted(ends, begin + max_steps, side="right")))
            rows = slice(first, last)
            yield rows, slice(begin, ends[last - 1]), np.repeat(np.arange(last - first), self.length[rows])
            first = last


@dataclass(frozen=True)
class Labels:
    """
    Weighted tasks for each row. Steps from ``end`` on do not count for a label: the task was over there.

    :param segments: the rows
    :param tasks: tasks that labels refer to, (n_tasks, task_dim)
    :param columns: tasks of each row, (n_rows, n_labels)
    :param weights: their weights, (n_rows, n_labels); 0 for a label that is none
    :param ends: number of steps of the row that count for the label, (n_rows, n_labels)
    :param diagnostics: what was decided, in numbers
    """

    segments: Segments
    tasks: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    ends: np.ndarray
    diagnostics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def n_steps(self) -> np.ndarray:
        """Number of steps of each row that count for any label, (n_rows,)."""
        return np.max(np.where(self.weights > 0, self.ends, 0), axis=1)  # over labels

    def of_steps(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Labels of steps.

        :param steps: steps of the data set, (n,)
        :return: columns and weights, (n, n_labels)
        """
        rows = self.segments.row_of(steps)
        counts = (steps - self.segments.start[rows])[:, None] < self.ends[rows]
        return self.columns[rows], np.where(counts, self.weights[rows], 0.0)


class TrajectoryLabeler:
    """
    A rule that gives weighted tasks to trajectories.

    :param strategy: by name or object: ``"hipi"`` (the most probable tasks of the posterior, weighted by it), ``"map"`` (its
        mode), ``"none"`` (the commanded task), ``"random"``, ``"final"`` (goal at the end of the row, as GCSL), ``"future"``
        or ``"episode"`` (goal at a random step of the row), ``"max_reward"`` (largest return, no log Z), ``"top_k"``
        (each task gets the rows with the largest returns for it)
    :param n_labels: how many tasks of the posterior a row keeps; their weights are scaled to sum to one
    :param temperature: T of the posterior: a number, or ``"ess:n"`` for n effective tasks a row, see
        :class:`~hipi_sb3.relabel.posterior.TaskInference`
    :param log_partition: estimator of log Z(psi) over the rows of the data set, see :mod:`hipi_sb3.relabel.log_partition`
    :param candidates: which tasks are considered, see :class:`~hipi_sb3.relabel.candidates.CandidateSampler`. If None:
        all of a finite family; half draws from the prior and half goals of the data; draws from the prior for the rest
    :param n_candidate_tasks: how many tasks are considered
    :param returns: how rows of different length are compared. ``"sum"`` is the return. Where rewards are negative it favours
        rows that were cut short: ten steps to nowhere cost less than twenty steps to the goal. ``"extended"``: a row that
        neither the task nor the environment ended would have gone on, so that its sum is continued at its own mean reward to
        the length of the longest row; equal to ``"sum"`` where all are of one length. ``"mean"``: every sum is scaled to the
        length of the longest row, ended or not
    :param segment_length: steps of a row; whole trajectories if None
    :param top_fraction: share of the rows that each task gets with ``"top_k"``
    :raises ValueError: when an option is unknown
    """

    def __init__(
        self,
        strategy: str | Strategy = "hipi",
        n_labels: int = 8,
        temperature: float | str = 1.0,
        log_partition: str | LogPartition = "batch",
        candidates: str | Mapping[str, float] | None = None,
        n_candidate_tasks: int = 64,
        returns: str = "extended",
        segment_length: int | None = None,
        top_fraction: float = 0.1,
    ) -> None:
        valid = {name: rule for name, rule in KEY_TO_STRATEGY.items() if rule in TRAJECTORY_STRATEGIES}
        if isinstance(strategy, str):
            lookup("strategy for trajectories", strategy, {**valid, TOP_K: HIPI})
        lookup("kind of returns", returns, dict.fromkeys(RETURNS))
        check_candidates(candidates, n_candidate_tasks)
        check_count("n_labels", n_labels, 1)
        check_number("top_fraction", top_fraction)
        if segment_length is not None:
            check_count("segment_length", segment_length, 1, " step (None means whole trajectories)")
        if not 0 < top_fraction <= 1:
            raise ValueError(f"top_fraction is a share of the trajectories, above 0 and at most 1, not {top_fraction}.")
        self.strategy = strategy if strategy == TOP_K else make_strategy(strategy)
        self.n_labels = 1 if isinstance(self.strategy, MaximumAPosteriori) else n_labels
        self.inference = TaskInference(make_log_partition(log_partition), temperature)
        if self.inference.needs_alpha:
            raise ValueError("temperature='auto' is the entropy temperature of a critic, and cloning has none. Give a number.")
        self.candidates = candidates
        self.n_candidate_tasks = n_candidate_tasks
        self.returns = returns
        self.segment_length = segment_length
        self.top_fraction = top_fraction

    def __call__(self, dataset: TrajectoryDataset, rng: np.random.Generator, progress_bar: bool = False) -> Labels:
        """
        Label a data set, which is read once or twice, a piece at a time.

        :param dataset: trajectories
        :param rng: random generator
        :param progress_bar: whether to show one
        :return: labels
        :raises ValueError: when the rule does not fit the tasks or the data, or a reward is NaN
        """
        self._check(dataset)
        family = dataset.family
        segments = Segments.of(dataset, self.segment_length)
        has_returns = not isinstance(self.strategy, Strategy) or self.strategy.needs_scores
        # Read once to check it, and once to judge it.
        with show_progress((1 + has_returns) * dataset.n_steps, "labelling", progress_bar) as done:
            dataset.check(done)
            rows = LabelRows(self, dataset, segments, rng, done)
            values: dict[str, float] = {}
            if self.strategy == TOP_K or isinstance(self.strategy, HIPI | MaximumAPosteriori):
                tasks = rows.candidates().tasks
                columns, weights, values = self._top(rows) if self.strategy == TOP_K else self._posterior(rows)
            else:
                assert isinstance(self.strategy, Strategy)
                tasks = self.strategy.assign(rows, rng)
                columns, weights = np.arange(len(tasks), dtype=np.int32)[:, None], np.ones((len(tasks), 1), dtype=np.float32)
            ends = _ends(family, dataset, segments, tasks, columns)
            if isinstance(self.strategy, Strategy) and not isinstance(self.strategy, NoRelabeling | HIPI | MaximumAPosteriori):
                weights *= _are_possible(family, dataset, segments, tasks, ends)[:, None]
        labels = Labels(segments, tasks, columns, weights, ends)
        values["cloned_share"] = labels.n_steps.sum() / dataset.n_steps
        values["n_candidates"] = len(tasks)
        labels.diagnostics.update(values)
        return labels

    def _check(self, dataset: TrajectoryDataset) -> None:
        name = type(dataset.family).__name__
        if isinstance(self.strategy, NoRelabeling) and dataset.tasks is None:
            raise ValueError(
                "strategy='none' clones trajectories for the tasks that they were collected for, and the data set does not "
                "know them. Give its tasks, or use 'hipi', which needs none."
            )
        asks_posterior = isinstance(self.strategy, Strategy) and self.strategy.needs_posterior
        if asks_posterior and isinstance(self.inference.log_partition, RunningLogPartition) and dataset.family.tasks is None:
            raise ValueError(
                f"log_partition='running' learns the price of a task of {name} from batch to batch, and a data set is labeled "
                "once. Use 'batch' or 'sinkhorn', or 'none'."
            )
        if isinstance(self.strategy, Strategy) and self.strategy.needs_goals and not dataset.family.reaches_goals:
            raise ValueError(
                f"strategy {type(self.strategy).__name__} labels with reached goals, but no step fulfils a task of {name}. "
                "Use 'hipi' or 'max_reward'."
            )

    def _posterior(self, rows: "LabelRows") -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The most probable tasks of each row and their weights, (n_rows, n_labels)."""
        scores, candidates = rows.returns, rows.candidates()
        n_rows, n_tasks = scores.shape
        n_some = _MAX_SCORES // n_tasks
        some = slice(None) if n_rows <= n_some else np.sort(rows.rng.choice(n_rows, size=n_some, replace=False))
        self.inference.log_partition.setup(rows.family.task_space, rows.family.tasks)
        temperature, log_z = self.inference.price(candidates.tasks, scores[some], candidates.log_weights)
        columns = np.empty((n_rows, min(self.n_labels, n_tasks)), dtype=np.int32)
        weights = np.empty(columns.shape, dtype=np.float32)
        effective, kept, marginal, n_possible = 0.0, 0.0, np.zeros(n_tasks), 0
        for first in range(0, n_rows, n_some):
            block = slice(first, first + n_some)
            posterior = self.inference.posterior(scores[block], candidates.log_weights, temperature, log_z).posterior
            columns[block], weights[block], share = keep_largest(posterior, self.n_labels)
            of_rows = effective_tasks(posterior)
            effective += of_rows.sum()
            n_possible += int(np.count_nonzero(of_rows))
            kept += share.sum()
            marginal += posterior.sum(axis=0)  # over rows
        return (
            columns,
            weights,
            {
                "effective_tasks": effective / max(n_possible, 1),
                "kept_share": kept / max(n_possible, 1),
                "label_kl": label_divergence(marginal[None] / n_rows, candidates.log_weights),
                "log_z_mean": float(np.mean(log_z)),
                "log_z_spread": float(np.std(log_z)),
                "temperature": float(temperature),
            },
        )

    def _top(self, rows: "LabelRows") -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Filtered cloning: weight 1 where a row is among the best of a task, (n_rows, n_labels)."""
        returns = rows.returns
        n_best = max(1, round(self.top_fraction * len(returns)))
        # Ties are broken at random: the order of the data set must not decide.
        order = np.lexsort((rows.rng.random(returns.shape), -returns), axis=0)
        best = np.zeros(returns.shape, dtype=np.float32)
        np.put_along_axis(best, order[:n_best], 1.0, axis=0)
        best[np.isneginf(returns)] = 0.0  # the best of those for which a task is impossible are not good
        n_lists = max(1, int(best.sum(axis=1).max()))  # over tasks
        columns = np.argsort(-best, axis=1, kind="stable")[:, :n_lists].astype(np.int32)
        return columns, np.take_along_axis(best, columns, axis=1), {}


class LabelRows:
    """
    The rows of a data set, as strategies and sources of candidates see them (``relabel.RelabelRows``).

    Everything is computed when it is first asked for.

    :param labeler: options
    :param dataset: trajectories
    :param segments: the rows
    :param rng: random generator
    :param done: called with the number of steps whose returns were computed
    """

    def __init__(
        self,
        labeler: TrajectoryLabeler,
        dataset: TrajectoryDataset,
        segments: Segments,
        rng: np.random.Generator,
        done: Callable[[int], Any],
    ) -> None:
        self.labeler = labeler
        self.dataset = dataset
        self.segments = segments
        self.rng = rng
        self.done = done
        self.family: TaskFamily = dataset.family

    @cached_property
    def commanded(self) -> np.ndarray:
        """Commanded tasks, NaN where they are not known, (n_rows, task_dim)."""
        if self.dataset.tasks is None:
            return np.full((len(self.segments.start), self.family.task_dim), np.nan, dtype=np.float32)
        return self.dataset.tasks[self.segments.trajectory]

    @property
    def batch_tasks(self) -> np.ndarray:
        if self.dataset.tasks is None:
            raise ValueError(
                "The data set does not know its commanded tasks. Use candidates='prior' or, for goals, 'achieved'."
            )
        return self.dataset.tasks

    @cached_property
    def batch_features(self) -> np.ndarray:
        # Steps that are chosen evenly: a goal is reached as often as it stands in the data.
        n = min(self.dataset.n_steps, 4 * self.labeler.n_candidate_tasks)
        return self.dataset.features[np.sort(self.rng.choice(self.dataset.n_steps, size=n, replace=False))]

    @cached_property
    def _sampler(self) -> CandidateSampler:
        labeler = self.labeler
        candidates = default_candidates(self.family, "prior") if labeler.candidates is None else labeler.candidates
        sampler = CandidateSampler(self.family, candidates, labeler.n_candidate_tasks)
        if sampler.differ_by_row:
            raise ValueError(f"Labels of trajectories need candidates that all rows share, not {sampler.shares}.")
        return sampler

    @cached_property
    def _candidates(self) -> Candidates:
        return self._sampler(self, self.rng)

    def random_candidates(self) -> np.ndarray:
        return self._sampler.one_each(self, len(self.segments.start), self.rng)

    def candidates(self) -> Candidates:
        return self._candidates

    def infer(self) -> Inference:
        candidates = self.candidates()
        return self.labeler.inference(candidates.tasks, self.returns, candidates.log_weights)

    def scores(self, tasks: np.ndarray, score: str | None = None) -> np.ndarray:
        if score not in (None, "reward"):
            raise ValueError(f"Trajectories have returns but no critic, so that score {score!r} does not exist for them.")
        return self.returns if tasks is self.candidates().tasks else self.trajectory_returns(tasks)

    @cached_property
    def returns(self) -> np.ndarray:
        """Returns for the candidates, (n_rows, n_tasks)."""
        return self.trajectory_returns(self.candidates().tasks)

    def trajectory_returns(self, tasks: np.ndarray) -> np.ndarray:
        return segment_returns(self.dataset, self.segments, tasks, self.labeler.returns, self.done)

    def recent_returns(self, tasks: np.ndarray) -> np.ndarray:
        return self.trajectory_returns(tasks)

    def final_tasks(self) -> np.ndarray:
        return self.family.achieved(self.dataset.features[self.segments.start + self.segments.length - 1])

    def future_tasks(self, n: int | None = None) -> np.ndarray:
        size = (len(self.segments.start),) if n is None else (n, len(self.segments.start))
        steps = self.segments.start + self.rng.integers(0, self.segments.length, size=size)
        return self.family.achieved(self.dataset.features[steps.T])

    def episode_tasks(self) -> np.ndarray:
        return self.future_tasks()  # a row is all of its steps


def segment_returns(
    dataset: TrajectoryDataset,
    segments: Segments,
    tasks: np.ndarray,
    returns: str = "extended",
    done: Callable[[int], Any] = lambda n_steps: None,
) -> np.ndarray:
    """
    Undiscounted returns of rows for tasks, up to the step that ends the task.

    :param dataset: trajectories
    :param segments: rows
    :param tasks: tasks, (n_tasks, task_dim)
    :param returns: how rows of different length are compared, see :class:`TrajectoryLabeler`
    :param done: called with the number of steps after each block
    :return: returns, (n_rows, n_tasks)
    :raises ValueError: when a reward is NaN or +inf; task, trajectory and step are named
    """
    family, longest = dataset.family, segments.length.max()
    result = np.empty((len(segments.start), len(tasks)))
    for rows, steps, row_of_step in segments.blocks(_BLOCK_REWARDS // len(tasks)):
        features = dataset.features[steps][:, None]
        rewards = np.asarray(family.reward(features, tasks), dtype=np.float64)  # (n_steps, n_tasks)
        if not (rewards < np.inf).all():
            step, task = np.argwhere(~(rewards < np.inf))[0]
            raise ValueError(
                f"{type(family).__name__}: the reward of {dataset.position_of(steps.start + step)} for task "
                f"{tasks[task].tolist()} is {rewards[step, task]}. Check the family's arithmetic for features "
                f"{features[step, 0].tolist()}."
            )
        terminated = family.terminated(features, tasks)
        first_step = segments.start[rows] - steps.start
        ended: Any = False
        lengths = segments.length[rows][:, None]
        if terminated.any():
            before = np.cumsum(terminated, axis=0, dtype=np.int32) - terminated  # over steps
            running = before == before[first_step][row_of_step]
            rewards = np.where(running, rewards, 0.0)
            ended = np.logical_or.reduceat(terminated, first_step, axis=0)
            lengths = np.add.reduceat(running, first_step, axis=0, dtype=np.int64)
        sums = np.add.reduceat(rewards, first_step, axis=0)  # (n_rows, n_tasks)
        if returns != "sum":
            by_env = (segments.is_last[rows] & dataset.env_terminated[segments.trajectory[rows]])[:, None]
            goes_on = True if returns == "mean" else ~(ended | by_env)
            sums = np.where(goes_on, sums * (longest / lengths), sums)
        result[rows] = sums
        done(len(features))
    return result


def keep_largest(posterior: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The most probable tasks of each row, with weights that sum to one.

    :param posterior: posterior, (n_rows, n_tasks)
    :param n_labels: tasks to keep
    :return: columns and weights, (n_rows, n_labels), and the share of the posterior that was kept, (n_rows,). A row without a
        possible task has weight 0
    """
    n_labels = min(n_labels, posterior.shape[1])
    columns = np.argpartition(-posterior, n_labels - 1, axis=1)[:, :n_labels]
    weights = np.take_along_axis(posterior, columns, axis=1)
    share = weights.sum(axis=1)  # over labels
    return columns.astype(np.int32), weights / np.where(share > 0, share, 1.0)[:, None], share


def _are_possible(
    family: TaskFamily, dataset: TrajectoryDataset, segments: Segments, tasks: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Whether each row may have its task, (n_rows,): no step up to the end of it is rewarded with -inf."""
    are_possible = np.ones(len(tasks), dtype=bool)
    for rows, steps, row_of_step in segments.blocks(_BLOCK_REWARDS):
        row = rows.start + row_of_step
        counts = np.arange(steps.start, steps.stop) - segments.start[row] < ends[row, 0]
        are_possible[row[counts & np.isneginf(family.reward(dataset.features[steps], tasks[row]))]] = False
    return are_possible


def _ends(
    family: TaskFamily, dataset: TrajectoryDataset, segments: Segments, tasks: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Steps of each row up to the one that ends the task of each label, (n_rows, n_labels)."""
    ends = np.repeat(segments.length[:, None], columns.shape[1], axis=1).astype(np.int32)
    if type(family).terminated is TaskFamily.terminated:
        return ends
    for rows, steps, row_of_step in segments.blocks(_BLOCK_REWARDS // columns.shape[1]):
        # (n_steps, 1, feature_dim) against (n_steps, n_labels, task_dim)
        terminated = family.terminated(dataset.features[steps][:, None], tasks[columns[rows]][row_of_step])
        step, label = np.nonzero(terminated)
        row = rows.start + row_of_step[step]
        np.minimum.at(ends, (row, label), step + steps.start - segments.start[row] + 1)
    return ends
