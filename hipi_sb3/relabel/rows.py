"""The rows of a batch that are to be relabeled, as strategies and sources of candidates see them."""

from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch as th

from hipi_sb3.experience.layout import each, gather, take
from hipi_sb3.experience.transitions import Experience, Steps
from hipi_sb3.relabel.candidates import Candidates, CandidateSampler
from hipi_sb3.relabel.learners import Learner, Pairs, with_task
from hipi_sb3.relabel.log_partition import RunningLogPartition
from hipi_sb3.relabel.posterior import Inference, TaskInference, label_divergence, mean_effective_tasks
from hipi_sb3.relabel.scores import score_pairs
from hipi_sb3.relabel.windows import Outcomes, Windows
from hipi_sb3.tasks.family import TaskFamily

#: Steps of a trajectory that its return is computed from.
_MAX_RETURN_STEPS = 64


class Normalization(Protocol):
    """How the learner sees observations and rewards; stable-baselines3's ``VecNormalize`` is one."""

    def normalize_obs(self, obs: Any) -> Any:
        """Observations as the policy sees them."""

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        """Rewards as the critic learns them."""


class RelabelBatch:
    """
    The rows of a sampled batch that are to be relabeled, as a strategy sees them (``strategies.RelabelRows``).

    Everything is computed when it is first asked for.

    :param experience: what happened
    :param family: the tasks
    :param at: ring indices and environment indices of the whole batch, (batch_size,) each
    :param obs: raw observations of the whole batch
    :param next_obs: raw next observations of the whole batch
    :param rows: which rows of the batch are to be relabeled, (n_rows,)
    :param sampler: draws the candidate tasks
    :param inference: from scores to the posterior
    :param score: R_psi(s, a), one of ``KEY_TO_SCORE``
    :param n_steps: steps of the window whose outcome is scored as one, because it is learned from as one
    :param learner: the critic, where a strategy asks it
    :param normalization: how the critic sees observations and rewards; raw if None
    :param rng: random generator
    """

    def __init__(
        self,
        experience: Experience,
        family: TaskFamily,
        at: Steps,
        obs: Any,
        next_obs: Any,
        rows: np.ndarray,
        sampler: CandidateSampler,
        inference: TaskInference,
        score: str,
        n_steps: int,
        learner: Learner | None,
        normalization: Normalization | None,
        rng: np.random.Generator,
    ) -> None:
        self.experience, self.family = experience, family
        self.at = (at[0][rows], at[1][rows])
        self.batch_tasks = experience.layout.get(obs)
        self.commanded = self.batch_tasks[rows]
        self.features = experience.features(self.at)
        self.sampler, self.task_inference, self.score, self.rng = sampler, inference, score, rng
        self.n_steps = n_steps
        self.normalization = normalization
        self._learner = learner
        self._batch_at, self._batch_obs, self._batch_next_obs, self._rows = at, obs, next_obs, rows
        #: Their new tasks, once they are known, (n_rows, task_dim).
        self.assigned: np.ndarray | None = None

    # What strategies ask for

    def candidates(self) -> Candidates:
        return self.candidate_tasks

    def random_candidates(self) -> np.ndarray:
        return self.sampler.one_each(self, len(self.commanded), self.rng)

    def infer(self) -> Inference:
        return self.inference

    def final_tasks(self) -> np.ndarray:
        return self.family.achieved(self._features_ahead(self.at, self.experience.episodes.ahead(self.at)))

    def future_tasks(self, n: int | None = None) -> np.ndarray:
        ahead = self.experience.episodes.ahead(self.at)
        steps, env_inds = self.at
        if n is not None:
            # (n_rows,) -> (n_rows, n)
            steps, env_inds, ahead = (np.repeat(index[:, None], n, axis=1) for index in (steps, env_inds, ahead))
        # Inclusive of this step and of the last one.
        return self.family.achieved(self._features_ahead((steps, env_inds), self.rng.integers(0, ahead + 1)))

    def episode_tasks(self) -> np.ndarray:
        before, ahead = self.experience.episodes.bounds(self.at)
        return self.family.achieved(self._features_ahead(self.at, self.rng.integers(-before, ahead + 1)))

    def trajectory_returns(self, tasks: np.ndarray) -> np.ndarray:
        before, ahead = self.experience.episodes.bounds(self.at)
        return self._returns((self.at[0] - before, self.at[1]), before + ahead + 1, tasks)

    def recent_returns(self, tasks: np.ndarray) -> np.ndarray:
        steps, env_inds, lengths = self.experience.episodes.recent()
        return self._returns((steps, env_inds), lengths, tasks)

    # How it is computed

    @cached_property
    def batch_features(self) -> np.ndarray:
        return self.experience.features(self._batch_at)

    @cached_property
    def obs(self) -> Any:
        return gather(self._batch_obs, self._rows)

    @cached_property
    def next_obs(self) -> Any:
        return gather(self._batch_next_obs, self._rows)

    @cached_property
    def candidate_tasks(self) -> Candidates:
        return self.sampler(self, self.rng)

    @cached_property
    def inference(self) -> Inference:
        candidates = self.candidate_tasks
        scores = self.scores(candidates.tasks)
        return self.task_inference(candidates.tasks, scores, candidates.log_weights, alpha=self.learner.alpha)

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("This strategy asks a critic, and there is none. Pass a learner, or call buffer.attach(model).")
        return self._learner

    def scores(self, tasks: np.ndarray, score: str | None = None) -> np.ndarray:
        """
        Scores of the rows for tasks.

        :param tasks: (n_tasks, task_dim) for all rows, or (n_rows, n_tasks, task_dim)
        :param score: which score; that of the posterior if None
        :return: R_psi(s, a), (n_rows, n_tasks)
        """
        # (n_rows, n_steps, n_tasks) each
        rewards, terminated = self._windows.judged(self.family, tasks, device=self._judging_device)
        if self.normalization is not None:
            # VecNormalize clips: an impossible task has to stay impossible.
            rewards = np.where(np.isneginf(rewards), rewards, self.normalization.normalize_reward(rewards))
        outcomes = self._windows.outcomes(rewards, terminated, self.learner.gamma)
        pairs = Pairs(
            observations=self._as_seen(self.obs),
            next_observations=self._as_seen(self._obs_after_windows),
            actions=self._to_torch(self.experience.actions[self.at]),
            tasks=self._to_torch(self._normalize_tasks(tasks)),
            rewards=self._to_float32(outcomes.rewards),
            terminated=self._to_torch(outcomes.terminated),
            discounts=self._discounts(outcomes),
            with_task=partial(with_task, self.experience.layout),
        )
        return score_pairs(self.learner, score or self.score, pairs).cpu().numpy().astype(np.float64)

    def diagnostics(self, tasks: np.ndarray, full: bool) -> dict[str, Any]:
        """
        What was decided, in numbers.

        :param tasks: assigned tasks, (n_rows, task_dim)
        :param full: whether to take the numbers too that need extra scores
        :return: values by name, see the table of "What to watch" on the site
        """
        fulfilled = self.family.success(self.features, tasks)
        if fulfilled is None:
            fulfilled = self.family.terminated(self.features, tasks)
        before, after = take(self.experience.rewards, self.at), self.family.reward(self.features, tasks)
        # Sums, for these few numbers are taken in every sample and np.mean takes three times as long.
        values = {
            "reward_before": np.add.reduce(before) / len(tasks),
            # A row keeps its task where the new one is impossible.
            "reward_after": np.add.reduce(np.where(np.isneginf(after), before, after)) / len(tasks),
            "trivial_share": np.count_nonzero(fulfilled) / len(tasks),
        }
        values |= self.family.diagnostics(self.features)
        if "inference" not in self.__dict__:
            return values
        found = self.inference
        posterior = found.posterior
        values |= {
            "posterior_entropy": -np.sum(posterior * np.log(np.maximum(posterior, 1e-300)), axis=1).mean(),  # over tasks
            "effective_tasks": mean_effective_tasks(posterior),
            "label_kl": label_divergence(posterior, self.candidate_tasks.log_weights),
            "log_z_mean": found.log_partition.mean(),
            "log_z_spread": found.log_partition.std(),
            "temperature": np.median(found.temperature),
        }
        log_partition = self.task_inference.log_partition
        if isinstance(log_partition, RunningLogPartition):
            values["log_z_resets"] = log_partition.n_resets
        if full:
            values["commanded_best"] = self.share_commanded_best()
        return values

    def share_commanded_best(self) -> float:
        """Share of rows for which no candidate scores higher than the commanded task."""
        candidates = self.scores(self.candidate_tasks.tasks)
        commanded = self.scores(self.commanded[:, None])[:, 0]
        return float(np.mean(commanded >= candidates.max(axis=1)))  # over tasks

    def _features_ahead(self, at: tuple[np.ndarray, np.ndarray], ahead: np.ndarray) -> np.ndarray:
        """Features of the transitions that lie some rows ahead, (..., feature_dim)."""
        return self.experience.features(self.experience.after(at, ahead))

    def _returns(self, first: tuple[np.ndarray, np.ndarray], lengths: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """
        Undiscounted returns of trajectories for tasks, up to the step that terminates the task.

        :param first: ring indices and environment indices of the first rows, (n,) each
        :param lengths: numbers of steps, (n,); of a long trajectory _MAX_RETURN_STEPS evenly spaced ones stand for all
        :param tasks: tasks, (n_tasks, task_dim)
        :return: returns, (n, n_tasks)
        """
        if len(lengths) == 0:
            return np.zeros((0, len(tasks)))
        n_steps = min(int(lengths.max()), _MAX_RETURN_STEPS)
        stride = np.maximum(lengths / n_steps, 1.0)[:, None]
        ahead = (np.arange(n_steps) * stride).astype(int)  # (n, n_steps)
        within = ahead < lengths[:, None]
        features = self._features_ahead((first[0][:, None], first[1][:, None]), ahead)
        # (n, n_steps, 1, feature_dim) against (n_tasks, task_dim)
        rewards = self.family.reward(features[:, :, None], tasks)
        terminated = self.family.terminated(features[:, :, None], tasks)
        running = np.cumsum(terminated, axis=1) - terminated == 0
        return np.sum(np.where(within[:, :, None] & running, rewards * stride[:, :, None], 0.0), axis=1)  # over steps

    @cached_property
    def _windows(self) -> Windows:
        return Windows(self.experience, self.at, self.n_steps)

    @cached_property
    def _obs_after_windows(self) -> Any:
        """Observations that windows lead to where nothing terminates before: there values are bootstrapped."""
        if self.n_steps == 1:
            return self.next_obs
        ahead = np.minimum(self.experience.episodes.ahead(self.at), self.n_steps - 1)
        return self.experience.store.next_observations(self.experience.after(self.at, ahead))

    @property
    def _judging_device(self) -> th.device | None:
        """Where steps are judged: on the networks' GPU, unless VecNormalize has to see the rewards; None is NumPy."""
        device = self.learner.device
        return device if device.type == "cuda" and self.normalization is None else None

    def _discounts(self, outcomes: Outcomes) -> th.Tensor:
        return self._to_float32(self.learner.gamma**outcomes.length).expand(outcomes.terminated.shape)

    def _normalize_tasks(self, tasks: np.ndarray) -> np.ndarray:
        """Tasks as the policy sees them: statistics are kept a dimension, so they pass through with any observation."""
        if self.normalization is None:
            return tasks
        layout = self.experience.layout
        flat = tasks.reshape(-1, tasks.shape[-1])
        some_obs = gather(self.obs, np.zeros(len(flat), dtype=int))
        normalized = self.normalization.normalize_obs(layout.put(some_obs, flat))
        return np.asarray(layout.get(normalized), dtype=np.float32).reshape(tasks.shape)

    def _as_seen(self, observations: Any) -> Any:
        normalized = observations if self.normalization is None else self.normalization.normalize_obs(observations)
        return each(normalized, self._to_torch)

    def _to_float32(self, values: Any) -> th.Tensor:
        return values.float() if isinstance(values, th.Tensor) else self._to_torch(np.asarray(values, dtype=np.float32))

    def _to_torch(self, array: Any) -> th.Tensor:
        return th.as_tensor(array, device=self.learner.device)
