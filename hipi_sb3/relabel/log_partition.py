"""Estimators of the log partition function log Z(psi) = log E_(s,a) exp(R_psi(s, a) / T).

log Z is the price of a task: how much reward it hands out whatever one does. Without it, the task with the largest rewards
swallows all data. Every estimator works on *scaled* scores R / T, (batch_size, n_tasks): rows are transitions, columns are
tasks.
"""

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from scipy.special import logsumexp

from hipi_sb3.given import as_scores, of_tasks
from hipi_sb3.names import lookup
from hipi_sb3.tasks.task_set import TaskSet


class LogPartition(ABC):
    """
    An estimate of log Z(psi).

    ``update`` sees each batch of scores once, before ``__call__`` prices its columns; an estimator that keeps no state
    ignores it.
    """

    #: Whether a column of scores holds one task for all rows. Candidates that differ from row to row need an estimator
    #: that can price a task without its column.
    needs_shared_candidates = True

    def setup(self, task_space: spaces.Box, tasks: np.ndarray | None) -> None:
        """
        Learn which tasks there are; called before anything else, and again if they change.

        :param task_space: space of the tasks, shape (task_dim,)
        :param tasks: all tasks of a finite family, (n_tasks, task_dim), else None
        """

    def update(self, tasks: np.ndarray, scores: np.ndarray) -> None:
        """
        Learn from a batch of scores.

        :param tasks: candidate tasks, (n_tasks, task_dim), or (batch_size, n_tasks, task_dim) where they differ by row
        :param scores: scaled scores R / T, (batch_size, n_tasks)
        """

    @abstractmethod
    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        """
        Price the candidate tasks.

        :param tasks: candidate tasks, (n_tasks, task_dim), or (batch_size, n_tasks, task_dim) where they differ by row
        :param scores: scaled scores R / T of the batch, (batch_size, n_tasks)
        :param log_weights: log of the prior weight of each candidate, (n_tasks,)
        :return: log Z(psi), (n_tasks,) or (batch_size, n_tasks)
        """

    def state_dict(self) -> dict[str, Any]:
        """State to be saved with the buffer; empty where there is none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class NoLogPartition(LogPartition):
    """log Z = 0: the ablation that shows what the partition function is for."""

    needs_shared_candidates = False

    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        return np.zeros(np.shape(scores)[-1])


class MeanLogPartition(LogPartition):
    """
    Mean score of each task, the first-order approximation of log Z: it removes offsets between tasks, not their scales.
    """

    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        scores = as_scores(scores)
        possible = np.isfinite(scores)
        # Mean over the rows (axis 0) for which the task is possible at all.
        return np.sum(np.where(possible, scores, 0.0), axis=0) / np.maximum(possible.sum(axis=0), 1)


class BatchLogPartition(LogPartition):
    """
    log-mean-exp over the rows of the batch, as in the paper (arXiv 2002.11089, section 4).
    """

    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        log_z = log_mean_exp(as_scores(scores))
        # A task that is impossible for every row has log Z = -inf; it is excluded by its scores, not by its price.
        return np.where(np.isneginf(log_z), 0.0, log_z)


class SinkhornLogPartition(LogPartition):
    """
    Prices at which the labels' marginal over the batch equals p(psi), by Sinkhorn's iteration.

    HIPI normalises the columns once (log Z) and then the rows (the posterior). Doing both in turn until nothing changes
    keeps every task supplied, whatever the scale of its reward.

    :param tolerance: largest difference of the labels' marginal from p(psi) at which the iteration stops
    :param max_rounds: cap on the rounds; a warning says so the first time it is reached
    """

    def __init__(self, tolerance: float = 1e-3, max_rounds: int = 200) -> None:
        self.tolerance = tolerance
        self.max_rounds = max_rounds
        self._has_warned = False

    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        scores = as_scores(scores)
        log_weights = of_tasks("log_weights", log_weights, scores)
        price = BatchLogPartition()(tasks, scores, log_weights)
        log_joint = scores - price + log_weights
        is_possible = ~np.isneginf(log_joint)
        supplied = is_possible.any(axis=0)  # tasks with any row at all
        if not supplied.any():
            return price
        log_joint = log_joint[is_possible.any(axis=1)][:, supplied]  # rows with any task at all
        log_prior = np.broadcast_to(log_weights, price.shape)[supplied]
        prior = np.maximum(np.exp(log_prior - logsumexp(log_prior)), 1e-300)
        joint, scale = _scaled_rows(log_joint), np.ones(len(prior))  # scale: exp(-change of the price)
        error = np.inf
        for _ in range(self.max_rounds):
            rows = 1.0 / (joint @ scale)  # the posterior's normaliser of each transition
            marginal = scale * (rows @ joint) / len(joint)
            error = np.max(np.abs(marginal - prior))
            if error <= self.tolerance:
                break
            scale *= prior / np.maximum(marginal, 1e-12)
            scale /= scale.max()
            if scale.min() < 1e-100:
                # On the way out of what a float holds: what has changed so far goes into the price, and it begins anew.
                change = np.log(scale)
                price[supplied] -= change
                log_joint += change
                joint, scale = _scaled_rows(log_joint), np.ones(len(prior))
        else:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"Sinkhorn stopped after {self.max_rounds} rounds, {error:.1e} from the prior. "
                    "Raise the temperature or max_rounds, or use log_partition='batch'.",
                    stacklevel=2,
                )
        price[supplied] -= np.log(scale)
        return price


def _scaled_rows(log_joint: np.ndarray) -> np.ndarray:
    """Rows scaled by their largest entry: what underflows then has no share in any label."""
    return np.exp(log_joint - log_joint.max(axis=1, keepdims=True))  # over tasks


class RunningLogPartition(LogPartition):
    """
    An estimate of log Z(psi) that is carried from batch to batch, so that it can price any task, also one that stands in no
    column of this batch.

    Finite families: one number a task, an exponential moving average of *exp(R / T)*, computed in log space; the average of
    the logs would be biased low. Continuous families: log Z(psi) = c + h(psi) with a small network h, fitted by the LINEX
    (Gumbel) loss exp(z) - z - 1 of z = R / T - log Z(psi), whose minimum is log E exp(R / T) (Garg et al., "Extreme
    Q-learning", arXiv 2301.02328). Beyond ``bound`` the loss goes on linearly, because a clamped z has no gradient; the
    smaller the bound, the more it biases wide scores low.

    :param rate: weight of a new batch in the moving average; the first batches weigh 1, 1/2, 1/3, ...
    :param jump: a batch whose level is this far from the estimate (nats) moves it there at once, see :attr:`n_resets`
    :param bound: z beyond which the loss is linear
    :param learning_rate: of the network's Adam optimiser
    :param hidden: units of its two hidden layers
    :param average: decay of the average over the network's weights that prices are read from
    """

    needs_shared_candidates = False

    def __init__(
        self,
        rate: float = 0.02,
        jump: float = 5.0,
        bound: float = 8.0,
        learning_rate: float = 2e-3,
        hidden: int = 64,
        average: float = 0.98,
    ) -> None:
        self.rate = rate
        self.jump = jump
        self.bound = bound
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.average = average
        #: How often the level jumped; logged as ``relabel/log_z_resets``.
        self.n_resets = 0
        self._estimator: _Table | _Network | None = None

    def setup(self, task_space: spaces.Box, tasks: np.ndarray | None) -> None:
        self._estimator = _Network(self, task_space) if tasks is None else _Table(self, tasks)

    def update(self, tasks: np.ndarray, scores: np.ndarray) -> None:
        self.n_resets += self._require_estimator().update(tasks, scores)

    def __call__(self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
        return self._require_estimator()(tasks)

    def state_dict(self) -> dict[str, Any]:
        return {"n_resets": self.n_resets, **self._require_estimator().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_resets = state["n_resets"]
        self._require_estimator().load_state_dict(state)

    def _require_estimator(self) -> "_Table | _Network":
        if self._estimator is None:
            raise RuntimeError("RunningLogPartition does not know the tasks yet: call setup(task_space, tasks) first.")
        return self._estimator


class _Table:
    """One number a task of a finite family."""

    def __init__(self, settings: RunningLogPartition, tasks: np.ndarray) -> None:
        self.settings = settings
        self.task_set = TaskSet(tasks)
        self.log_z = np.zeros(len(tasks))
        self.n_batches = np.zeros(len(tasks), dtype=np.int64)

    def update(self, tasks: np.ndarray, scores: np.ndarray) -> int:
        """Average a batch in; returns the number of tasks whose level jumped."""
        columns, values = self._columns(tasks, scores)
        # A task that no row of the batch may have counts as 0 in its mean, once there is one.
        is_known = (self.n_batches[columns] > 0) | np.isfinite(values)
        columns, values = columns[is_known], values[is_known]
        fresh = self.n_batches[columns] == 0
        jumped = ~fresh & np.isfinite(values) & (np.abs(values - self.log_z[columns]) > self.settings.jump)
        self.n_batches[columns] = np.where(jumped, 1, self.n_batches[columns] + 1)
        rate = np.maximum(self.settings.rate, 1.0 / self.n_batches[columns])
        with np.errstate(divide="ignore"):
            averaged = np.logaddexp(np.log1p(-rate) + self.log_z[columns], np.log(rate) + values)
        self.log_z[columns] = np.where(fresh | jumped, values, averaged)
        return int(jumped.sum())

    def _columns(self, tasks: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots of the distinct tasks of a batch, and log-mean-exp of the scores that each has there."""
        slots = self._slots(tasks)
        if slots.ndim == 1:
            return slots, log_mean_exp(scores)
        order = np.argsort(slots, axis=None, kind="stable")
        columns, starts, counts = np.unique(slots.ravel()[order], return_index=True, return_counts=True)
        by_column = scores.ravel()[order]
        largest = np.maximum.reduceat(by_column, starts)
        shift = np.where(np.isneginf(largest), 0.0, largest)
        with np.errstate(divide="ignore"):
            log_z = np.log(np.add.reduceat(np.exp(by_column - np.repeat(shift, counts)), starts) / counts) + shift
        return columns, log_z

    def _slots(self, tasks: np.ndarray) -> np.ndarray:
        slots = self.task_set.index(tasks)
        if np.any(slots < 0):
            raise KeyError("RunningLogPartition: a candidate is none of the family's tasks. Draw candidates from the family.")
        return slots

    def __call__(self, tasks: np.ndarray) -> np.ndarray:
        return self.log_z[self._slots(tasks)]

    def state_dict(self) -> dict[str, Any]:
        return {"log_z": self.log_z.copy(), "n_batches": self.n_batches.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log_z, self.n_batches = state["log_z"].copy(), state["n_batches"].copy()


class _Network:
    """c + h(psi) with a small network h."""

    def __init__(self, settings: RunningLogPartition, task_space: spaces.Box) -> None:
        self.settings = settings
        low, high = task_space.low.astype(np.float64), task_space.high.astype(np.float64)
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.center = 0.5 * (low + high)
        self.half_width = np.maximum(0.5 * (high - low), 1e-6)
        hidden = settings.hidden
        # A generator of its own: the estimator must not change the random numbers of the training around it.
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(0)  # th.manual_seed would seed those of GPUs, too
            self.net = th.nn.Sequential(
                th.nn.Linear(task_space.shape[0], hidden),
                th.nn.SiLU(),
                th.nn.Linear(hidden, hidden),
                th.nn.SiLU(),
                last := th.nn.Linear(hidden, 1),
            )
        with th.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.averaged = copy.deepcopy(self.net)
        self.optimizer = th.optim.Adam(self.net.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        self.level = 0.0
        self.n_batches = 0

    def update(self, tasks: np.ndarray, scores: np.ndarray) -> int:
        """One step on a batch; returns 1 if the level jumped."""
        h = self.net(self._inputs(tasks)).squeeze(-1)  # (n_tasks,) or (batch_size, n_tasks)
        z = th.as_tensor(scores, dtype=th.float32) - self.level - h
        is_possible = th.isfinite(z)
        impossible, z = h.expand(z.shape)[~is_possible], z[is_possible]
        if len(z) == 0:
            return 0
        n_pairs = len(z) + len(impossible)
        gap = float(th.logsumexp(z.detach(), dim=0)) - math.log(n_pairs)
        jumped = abs(gap) > self.settings.jump
        if jumped:
            # A network would need thousands of steps for what a constant does in one.
            self.level += gap
            z = z - gap
        # Where a task is impossible exp(z) is 0: what is left of exp(z) - z - 1 pulls the price down.
        loss = (linex_loss(z, self.settings.bound) * len(z) + impossible.sum()) / n_pairs
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.n_batches += 1
        weight = max(1.0 - self.settings.average, 1.0 / self.n_batches)
        with th.no_grad():
            for mean, parameter in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(parameter, weight)
        return int(jumped)

    def _inputs(self, tasks: np.ndarray) -> th.Tensor:
        return th.as_tensor((tasks - self.center) / self.half_width, dtype=th.float32)

    def __call__(self, tasks: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return self.level + self.averaged(self._inputs(tasks)).squeeze(-1).numpy().astype(np.float64)

    def state_dict(self) -> dict[str, Any]:
        networks = {
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        arrays = _convert(networks, th.Tensor, lambda tensor: tensor.cpu().numpy().copy())
        return {"level": self.level, "n_batches": self.n_batches, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.n_batches = state["level"], state["n_batches"]
        for name in ("net", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(_convert(state[name], np.ndarray, th.tensor))


def log_mean_exp(scores: np.ndarray) -> np.ndarray:
    """
    log of the mean of exp(scores) over transitions.

    :param scores: scaled scores, (batch_size, ...)
    :return: (...,); -inf where every score is
    """
    # Written out: this runs in every update, and SciPy's logsumexp takes several times as long on small arrays.
    largest = scores.max(axis=0)  # over transitions
    largest = np.where(np.isneginf(largest), 0.0, largest)
    with np.errstate(divide="ignore"):
        return largest + np.log(np.mean(np.exp(scores - largest), axis=0))


def _convert(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The same dicts and lists, with the function's result in the place of everything of that kind."""
    if isinstance(tree, dict):
        return {key: _convert(value, kind, function) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_convert(value, kind, function) for value in tree]
    return function(tree) if isinstance(tree, kind) else tree


def linex_loss(z: th.Tensor, bound: float) -> th.Tensor:
    """
    Mean of exp(z) - z - 1, continued linearly with its own slope beyond ``bound``.

    :param z: residuals R / T - log Z(psi), any shape
    :param bound: where the exponential ends
    :return: the loss, a scalar
    """
    inside = z.clamp(max=bound)
    return (th.exp(inside) - inside - 1 + (math.exp(bound) - 1) * (z - inside)).mean()


KEY_TO_LOG_PARTITION: dict[str, type[LogPartition]] = {
    "none": NoLogPartition,
    "mean": MeanLogPartition,
    "batch": BatchLogPartition,
    "running": RunningLogPartition,
    "sinkhorn": SinkhornLogPartition,
}


def make_log_partition(log_partition: str | LogPartition) -> LogPartition:
    """
    Resolve an estimator given by name or object.

    :param log_partition: one of ``KEY_TO_LOG_PARTITION`` or an estimator
    :return: the estimator
    :raises ValueError: when the name is unknown
    """
    if isinstance(log_partition, LogPartition):
        return log_partition
    return lookup("log partition", log_partition, KEY_TO_LOG_PARTITION)()
