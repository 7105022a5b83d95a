"""From experience to relabeled rows: the strategy with everything that it needs."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from hipi_sb3.experience.transitions import Experience, Steps
from hipi_sb3.given import check_count, check_probability
from hipi_sb3.names import describe, lookup
from hipi_sb3.relabel.candidates import CandidateSampler, check_candidates
from hipi_sb3.relabel.defaults import default_candidates, defaults_for
from hipi_sb3.relabel.learners import Learner
from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION, LogPartition, make_log_partition
from hipi_sb3.relabel.pool import LabelPool
from hipi_sb3.relabel.posterior import TaskInference
from hipi_sb3.relabel.rows import Normalization, RelabelBatch
from hipi_sb3.relabel.scores import KEY_TO_SCORE
from hipi_sb3.relabel.strategies import KEY_TO_STRATEGY, NoRelabeling, RandomTask, Strategy, make_strategy
from hipi_sb3.relabel.windows import Judged, judge
from hipi_sb3.tasks.family import TaskFamily

#: Diagnostics that need extra scores are taken once in so many samples.
_FULL_DIAGNOSTICS_EVERY = 100

#: ``record(name, value)``, where a diagnostic goes.
Record = Callable[[str, float], None]


@dataclass
class Relabeled:
    """
    Rows of a batch, some of them with new tasks.

    :param at: ring indices and environment indices of the rows, (batch_size,) each; scored rows may stand in the place of
        those that were asked for
    :param obs: their raw observations with the tasks, (batch_size, ...) or a dict of such
    :param next_obs: their raw next observations likewise
    :param tasks: the tasks, (batch_size, task_dim)
    :param judged: the steps of their windows under these tasks, and which rows were relabeled
    """

    at: Steps
    obs: Any
    next_obs: Any
    tasks: np.ndarray
    judged: Judged


class Relabeler:
    """
    Relabels rows of an :class:`~hipi_sb3.experience.transitions.Experience`: owns the strategy, the posterior with its running
    estimates, the pool of scored rows and the random generator. Options as in :class:`~hipi_sb3.buffers.HIPIReplayBuffer`.

    A critic is asked through a :class:`~hipi_sb3.relabel.learners.Learner`; strategies that ask none need none.
    """

    def __init__(
        self,
        strategy: str | Strategy = "hipi",
        score: str | None = None,
        log_partition: str | LogPartition | None = None,
        temperature: float | str | None = None,
        candidates: str | Mapping[str, float] | None = None,
        n_candidate_tasks: int = 32,
        relabel_prob: float = 0.5,
        prior_share: float | None = None,
        warmup_updates: int = 0,
        label_reuse: int = 16,
        n_steps: int | None = None,
    ) -> None:
        check_probability("relabel_prob", relabel_prob, "the share of rows that are relabeled")
        if prior_share is not None:
            check_probability("prior_share", prior_share, "the share of labels that are random candidates")
        check_count("warmup_updates", warmup_updates, 0)
        check_count("label_reuse", label_reuse, 1, ", how often a label is used")
        if score is not None:
            lookup("score", score, KEY_TO_SCORE)
        if n_steps is not None:
            check_count("n_steps", n_steps, 1)
        check_candidates(candidates, n_candidate_tasks)
        self.strategy = make_strategy(strategy)
        #: What was asked for. What is None follows the tasks, see :mod:`hipi_sb3.relabel.defaults`.
        self.asked: dict[str, Any] = {"score": score, "n_steps": n_steps, "prior_share": prior_share}
        self.asked |= {"log_partition": log_partition, "temperature": temperature}
        self.inference = self._make_inference("none", "spread:1")  # until they are known
        self.candidates = candidates
        self.n_candidate_tasks = n_candidate_tasks
        self.relabel_prob = relabel_prob
        self.warmup_updates = warmup_updates
        self.label_reuse = label_reuse
        self.family: TaskFamily | None = None
        self.sampler: CandidateSampler | None = None
        self.pool: LabelPool | None = None
        self._n_samples = 0
        self._rng: np.random.Generator | None = None

    # -- the tasks ----------------------------------------------------------------------------------------------------

    def setup(self, family: TaskFamily) -> None:
        """
        Learn the tasks.

        :param family: the tasks
        :raises ValueError: when an option does not fit them
        """
        defaults = defaults_for(family)
        self.inference = self._make_inference(defaults.log_partition, defaults.temperature)
        log_partition = self.inference.log_partition
        candidates = self.candidates
        if candidates is None:
            by_row = self.strategy.needs_posterior and not log_partition.needs_shared_candidates
            candidates = default_candidates(family, by_row=by_row)
        sampler = CandidateSampler(family, candidates, self.n_candidate_tasks)
        if sampler.differ_by_row and self.strategy.needs_shared_candidates:
            raise ValueError(
                f"strategy {type(self.strategy).__name__} compares trajectories by task, but candidates={sampler.shares} "
                "differ from row to row. Use 'batch', 'prior', 'achieved' or 'all'."
            )
        if self.strategy.needs_posterior and sampler.differ_by_row and log_partition.needs_shared_candidates:
            raise ValueError(
                f"{type(log_partition).__name__} prices columns of tasks, but candidates={sampler.shares} differ from row to "
                "row. Use log_partition='running', which can price any task, or 'none'."
            )
        log_partition.setup(family.task_space, family.tasks)
        if self.strategy.needs_goals and not family.reaches_goals:
            raise ValueError(
                f"strategy {type(self.strategy).__name__} relabels with reached goals, but no transition fulfils a task of "
                f"{type(family).__name__}. Use 'hipi' or 'random'."
            )
        self.family, self.sampler = family, sampler

    def _require_family(self) -> TaskFamily:
        if self.family is None:
            raise RuntimeError("This Relabeler does not know the tasks yet: call setup(family) first.")
        return self.family

    def _make_inference(self, log_partition: str, temperature: str) -> TaskInference:
        asked_partition, asked_temperature = self.asked["log_partition"], self.asked["temperature"]
        return TaskInference(
            make_log_partition(log_partition if asked_partition is None else asked_partition),
            temperature if asked_temperature is None else asked_temperature,
        )

    @property
    def score(self) -> str:
        """R_psi of the posterior: what was asked for, or what suits the tasks."""
        return self.asked["score"] or ("progress" if self.family is None else defaults_for(self.family).score)

    @property
    def prior_share(self) -> float:
        """Share of labels that are random candidates, of those that are drawn: what was asked for, or what suits the tasks."""
        if self.family is None or not self.strategy.is_draw:
            return 0.0
        asked = self.asked["prior_share"]
        return defaults_for(self.family).prior_share if asked is None else float(asked)

    @property
    def n_steps(self) -> int:
        """Steps of a window: what was asked for, or what suits the tasks; other strategies than the posterior's have 1."""
        if self.asked["n_steps"] is not None:
            return int(self.asked["n_steps"])
        return defaults_for(self.family).n_steps if self.family is not None and self.strategy.needs_posterior else 1

    def check_learner(self, learner: type[Learner], name: str) -> None:
        """
        Check that the critic can be asked what the options ask.

        :param learner: view of the algorithm
        :param name: name of the algorithm, for the error
        :raises ValueError: when it cannot
        """
        if self.inference.needs_alpha and not learner.has_alpha:
            raise ValueError(
                f"temperature='auto' is the learner's entropy temperature, and {name} has none. "
                "Leave it out, or give a number, 'spread:1' or 'ess:8' (eight effective tasks)."
            )
        if self.score == "paper" and not learner.has_log_prob:
            raise ValueError(f"score='paper' needs log pi(a | s), and {name} has no stochastic policy. Use 'td' or 'q'.")

    @property
    def rng(self) -> np.random.Generator:
        """
        Its own generator, seeded on first use from the one that stable-baselines3 seeds: ``strategy="none"`` never draws from
        it, so that it samples the very rows that a DictReplayBuffer would.
        """
        if self._rng is None:
            self._rng = np.random.default_rng(np.random.randint(2**31))
        return self._rng

    # -- relabeling ---------------------------------------------------------------------------------------------------

    def __call__(
        self,
        experience: Experience,
        at: Steps,
        learner: Learner | None = None,
        normalization: Normalization | None = None,
        record: Record | None = None,
    ) -> Relabeled:
        """
        Relabel some rows of a batch.

        :param experience: what happened
        :param at: ring indices and environment indices, (batch_size,) each; may be changed in place
        :param learner: the critic, where the strategy asks it
        :param normalization: how it sees observations and rewards; raw if None
        :param record: where diagnostics go; nowhere if None
        :return: the rows
        :raises RuntimeError: when the strategy asks a critic and there is none, or the tasks are not known yet
        """
        if self.strategy.needs_scores and learner is None:
            raise RuntimeError(f"strategy {type(self.strategy).__name__} asks a critic, and there is none. Pass a learner.")
        is_new = np.zeros(len(at[0]), dtype=bool)
        if not isinstance(self.strategy, NoRelabeling) and self.relabel_prob > 0:
            is_new = self.rng.random(len(is_new)) < self.relabel_prob
        asks_critic = learner is not None and learner.n_updates >= self.warmup_updates
        is_random = self._which_are_random(is_new, asks_critic)
        rows, random_rows = np.flatnonzero(is_new & ~is_random), np.flatnonzero(is_random)
        labels = None
        if self.label_reuse > 1 and asks_critic:
            labels = self._from_pool(experience, at, rows, learner, normalization, record)
        obs, next_obs = experience.transitions(at)
        commanded = experience.layout.get(obs)
        tasks = commanded.copy()
        if len(rows) > 0:
            if labels is None:
                batch = self._rows(experience, at, rows, learner, normalization, (obs, next_obs))
                labels = self._assign(batch, self.strategy, record)
            tasks[rows] = labels
        if len(random_rows) > 0:
            batch = self._rows(experience, at, random_rows, learner, normalization, (obs, next_obs))
            # What is recorded is how the strategy chose; where all rows are random, there is nothing else.
            tasks[random_rows] = self._assign(batch, RandomTask(), record if len(rows) == 0 else None)
        judged = judge(experience, self._require_family(), at, tasks, is_new, self.n_steps)
        if is_new.any():
            is_new = judged.is_new  # others keep their task
            tasks = np.where(is_new[:, None], tasks, commanded)
            if record is not None:
                record("share_changed", np.count_nonzero((tasks != commanded).any(axis=1)) / len(is_new))
            for observations in (obs, next_obs):  # copies of what is stored; other rows keep what happened, a changed task too
                experience.layout.write(observations, np.flatnonzero(is_new), tasks[is_new])
        return Relabeled(at, obs, next_obs, tasks, judged)

    def _which_are_random(self, is_new: np.ndarray, asks_critic: bool) -> np.ndarray:
        """Which of the rows to be relabeled get a random candidate: while the critic is not asked all of them."""
        if self.strategy.needs_scores and not asks_critic:
            return is_new
        if self.prior_share == 0:
            return np.zeros_like(is_new)
        return is_new & (self.rng.random(len(is_new)) < self.prior_share)

    def preview(
        self, experience: Experience, batch_size: int, learner: Learner | None, normalization: Normalization | None = None
    ) -> RelabelBatch:
        """
        Draw a batch of which all rows are to be relabeled, to look at it: nothing is counted or learned, and the random
        numbers of the training stay as they would have been.

        :param experience: what happened
        :param batch_size: number of transitions
        :param learner: the critic, where the strategy asks it
        :param normalization: how it sees observations and rewards
        :return: the rows; ``assigned`` holds their new tasks, (batch_size, task_dim)
        :raises RuntimeError: when there is no experience yet
        """
        if len(experience) == 0:
            raise RuntimeError("The replay buffer is empty: there is nothing to relabel yet.")
        numpy_state, rng, inference = np.random.get_state(), self._rng, self.inference
        try:
            self._rng, self.inference = np.random.default_rng(0), deepcopy(inference)
            with th.random.fork_rng():
                at = (
                    self._rng.integers(len(experience), size=batch_size),
                    self._rng.integers(experience.n_envs, size=batch_size),
                )
                batch = self._rows(experience, at, np.arange(batch_size), learner, normalization)
                tasks = self.strategy.assign(batch, self._rng)
                is_new = judge(experience, batch.family, at, tasks, np.ones(batch_size, dtype=bool), self.n_steps).is_new
                batch.assigned = np.where(is_new[:, None], tasks, batch.commanded)
        finally:
            np.random.set_state(numpy_state)
            self._rng, self.inference = rng, inference
        return batch

    def _rows(
        self,
        experience: Experience,
        at: Steps,
        rows: np.ndarray,
        learner: Learner | None,
        normalization: Normalization | None,
        observations: tuple[Any, Any] | None = None,
    ) -> RelabelBatch:
        family, sampler = self._require_family(), self.sampler
        assert sampler is not None
        obs, next_obs = experience.transitions(at) if observations is None else observations
        return RelabelBatch(
            experience,
            family,
            at,
            obs,
            next_obs,
            rows,
            sampler,
            self.inference,
            self.score,
            self.n_steps,
            learner,
            normalization,
            self.rng,
        )

    def _assign(self, batch: RelabelBatch, strategy: Strategy, record: Record | None, n_uses: int = 1) -> np.ndarray:
        """New tasks of the rows to be relabeled, (n_rows, task_dim), each of which will be used about n_uses times."""
        start = time.perf_counter()
        tasks = strategy.assign(batch, self.rng)
        if record is not None:
            self._record(batch, tasks, (time.perf_counter() - start) / n_uses, record)
        return tasks

    def _from_pool(
        self,
        experience: Experience,
        at: Steps,
        rows: np.ndarray,
        learner: Learner | None,
        normalization: Normalization | None,
        record: Record | None,
    ) -> np.ndarray:
        """Replace the rows that are to be relabeled by rows that have been scored; their new tasks, (n_rows, task_dim)."""
        assert self.family is not None
        n_new = max(1, round(self.relabel_prob * (1.0 - self.prior_share) * len(at[0])))
        if self.pool is None:
            n_labels = self.label_reuse if self.strategy.is_draw else 1
            self.pool = LabelPool(n_new, n_labels, self.family.task_dim, self.label_reuse)
        if self.pool.is_due(len(rows)):
            new = (self.rng.integers(len(experience), size=n_new), self.rng.integers(experience.n_envs, size=n_new))
            batch = self._rows(experience, new, np.arange(n_new), learner, normalization)
            labels = [self._assign(batch, self.strategy, record, self.label_reuse)]
            labels += [self.strategy.assign(batch, self.rng) for _ in range(self.pool.n_labels - 1)]
            self.pool.add(new, np.stack(labels, axis=1))
        drawn, tasks = self.pool.draw(len(rows), self.rng)
        for mine, theirs in zip(at, drawn, strict=True):
            mine[rows] = theirs
        return tasks

    def _record(self, batch: RelabelBatch, tasks: np.ndarray, seconds: float, record: Record) -> None:
        """Say what was decided, in numbers."""
        full = self._n_samples % _FULL_DIAGNOSTICS_EVERY == 0
        self._n_samples += 1
        values = batch.diagnostics(tasks, full) | {"us_per_row": 1e6 * seconds / len(tasks)}
        for key, value in values.items():
            record(key, float(value))

    # -- files --------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain values; objects are described. What was left out is None."""
        plain = ("n_candidate_tasks", "relabel_prob", "warmup_updates", "label_reuse")
        asked = self.asked["log_partition"]
        return {name: getattr(self, name) for name in plain} | {
            **self.asked,
            "candidates": dict(self.candidates) if isinstance(self.candidates, Mapping) else self.candidates,
            "strategy": describe(self.strategy, KEY_TO_STRATEGY),
            "log_partition": None if asked is None else describe(self.inference.log_partition, KEY_TO_LOG_PARTITION),
        }

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` restores it from."""
        log_partition = self.inference.log_partition
        return {
            "n_samples": self._n_samples,
            "generator": None if self._rng is None else self._rng.bit_generator.state,
            "log_partition": {"class": type(log_partition).__qualname__, "state": log_partition.state_dict()},
            "label_pool": None if self.pool is None else {"chosen_by": self.options(), **vars(self.pool)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what :meth:`state_dict` returned. An estimator of another class than this one's is left as it is, and so are
        labels that other options have chosen.

        :param state: the state
        """
        self._n_samples = state["n_samples"]
        if state["generator"] is not None:
            self._rng = np.random.default_rng(0)
            self._rng.bit_generator.state = state["generator"]
        log_partition = self.inference.log_partition
        if type(log_partition).__qualname__ == state["log_partition"]["class"]:
            log_partition.load_state_dict(state["log_partition"]["state"])
        pool = dict(state["label_pool"] or {})
        self.pool = LabelPool.restore(pool) if pool.pop("chosen_by", None) == self.options() else None
