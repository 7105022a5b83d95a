"""The replay buffer: keeps what happened, and relabels it when it is sampled."""

import sys
import time
import weakref
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from hipi_sb3.experience.episodes import EpisodeIndex, grow
from hipi_sb3.experience.files import read_state, space_from_json, space_to_json, write_state
from hipi_sb3.experience.layout import TaskLayout, each, take
from hipi_sb3.experience.observations import ObservationStore
from hipi_sb3.names import describe, lookup
from hipi_sb3.relabel.candidates import CandidateSampler, check_candidates
from hipi_sb3.relabel.learners import learner_class
from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION, LogPartition, make_log_partition
from hipi_sb3.relabel.pool import LabelPool
from hipi_sb3.relabel.posterior import TaskInference
from hipi_sb3.relabel.rows import RelabelBatch
from hipi_sb3.relabel.scores import KEY_TO_SCORE
from hipi_sb3.relabel.strategies import (
    HIPI,
    KEY_TO_STRATEGY,
    MaximumAPosteriori,
    NoRelabeling,
    RandomTask,
    Strategy,
    make_strategy,
)
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.goal_env import GoalEnvTasks, is_goal_space

#: The two methods of stable-baselines3 that build or restore the buffer of an algorithm.
_OWNERS = (OffPolicyAlgorithm._setup_model.__code__, OffPolicyAlgorithm.load_replay_buffer.__code__)

#: Diagnostics that need extra scores are taken once in so many samples.
_FULL_DIAGNOSTICS_EVERY = 100


class HIPIReplayBuffer(ReplayBuffer):
    """
    Replay buffer that asks of a sampled transition for which task it was the right thing to do, and relabels it.

    HIPI, Hindsight Inference for Policy Improvement (Eysenbach et al., NeurIPS 2020, arXiv 2002.11089). Works as
    ``SAC("MultiInputPolicy", env, replay_buffer_class=HIPIReplayBuffer)``: the tasks come from the environment (see
    :class:`~hipi_sb3.wrappers.MultiTaskWrapper`), the critic from the algorithm that owns the buffer.

    What happened is stored and never overwritten. Of a relabeled row, the task in obs and next_obs, the reward and the
    termination are those of the new task; time limits bootstrap, unless the row fulfils its new task. Rows of unfinished
    episodes can be sampled.

    :param buffer_size: number of transitions
    :param observation_space: ``Dict`` with a key ``task`` (or a GoalEnv's ``desired_goal``), or a flat ``Box`` whose last
        entries are the task
    :param action_space: action space
    :param device: PyTorch device of the samples
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: not supported
    :param handle_timeout_termination: bootstrap at time limits, as in :class:`ReplayBuffer`
    :param family: the tasks; if None, those of the environment of the algorithm that owns the buffer
    :param strategy: how labels are chosen, by name or object: ``"none"``, ``"random"``, ``"final"`` and ``"future"`` (HER),
        ``"hipi"`` (a draw from the posterior), ``"map"`` (its mode), ``"air"`` and ``"advantage"`` (Generalized Hindsight),
        ``"max_reward"``
    :param score: R_psi(s, a) of the posterior: ``"td"``, ``"q"``, ``"advantage"``, ``"reward"`` or ``"paper"``, see
        :mod:`hipi_sb3.relabel.scores`
    :param log_partition: estimator of log Z(psi), by name or object: ``"batch"``, ``"running"``, ``"sinkhorn"``, ``"mean"``
        or ``"none"``, see :mod:`hipi_sb3.relabel.log_partition`
    :param temperature: T: a number, ``"auto"`` (the learner's live alpha) or ``"ess:n"`` (n effective tasks a row), see
        :class:`~hipi_sb3.relabel.posterior.TaskInference`
    :param candidates: which tasks are considered, see :class:`~hipi_sb3.relabel.candidates.CandidateSampler`
    :param n_candidate_tasks: how many tasks are considered
    :param relabel_prob: probability that a row *is* relabeled
    :param warmup_updates: gradient steps before which the critic is not asked: a row to be relabeled gets a random candidate
    :param label_reuse: how often a row that the critic has scored is used, in the mean, each time with a label that is drawn
        anew: divides the cost of scoring, see :class:`~hipi_sb3.relabel.pool.LabelPool`; 1 to score for every label
    :param n_steps: steps of the return (n-step learning): the whole window is relabeled with one task
    :param gamma: discount of that return; has to be the algorithm's
    :raises ValueError: when an option is unknown or does not fit the tasks, the spaces or the algorithm
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        family: TaskFamily | None = None,
        strategy: str | Strategy = "hipi",
        score: str = "td",
        log_partition: str | LogPartition = "batch",
        temperature: float | str = 1.0,
        candidates: str | Mapping[str, float] | None = None,
        n_candidate_tasks: int = 32,
        relabel_prob: float = 0.5,
        warmup_updates: int = 0,
        label_reuse: int = 16,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        # ReplayBuffer's own constructor would allocate arrays of other shapes; BaseBuffer's is what is needed of it.
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if optimize_memory_usage:
            raise ValueError(
                "HIPIReplayBuffer does not support optimize_memory_usage=True, which loses the last observation of each "
                "episode. Leave it False: each observation is stored once anyway."
            )
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, not {n_steps}.")
        if not 0 <= relabel_prob <= 1:
            raise ValueError(f"relabel_prob is a probability, the share of rows that are relabeled, not {relabel_prob}.")
        if warmup_updates < 0:
            raise ValueError(f"warmup_updates must not be negative, but it is {warmup_updates}.")
        if label_reuse < 1:
            raise ValueError(f"label_reuse must be at least 1, how often a label is used, not {label_reuse}.")
        lookup("score", score, KEY_TO_SCORE)
        check_candidates(candidates, n_candidate_tasks)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.strategy = make_strategy(strategy)
        self.score = score
        self.inference = TaskInference(make_log_partition(log_partition), temperature)
        self.candidates = candidates
        self.n_candidate_tasks = n_candidate_tasks
        self.relabel_prob = relabel_prob
        self.warmup_updates = warmup_updates
        self.label_reuse = label_reuse
        self.n_steps = n_steps
        self.gamma = gamma

        self.actions = self._allocate(self.action_dim, dtype=self._maybe_cast_dtype(action_space.dtype))
        self.rewards = self._allocate()
        self.dones = self._allocate(dtype=bool)
        self.timeouts = self._allocate(dtype=bool)
        # Terminations that are not the task's: they hold for whatever task the row is relabeled with.
        self.env_terminated = self._allocate(dtype=bool)
        self.episodes = EpisodeIndex(self.buffer_size, self.n_envs)
        self._n_samples = 0
        self._pool: LabelPool | None = None

        self.family: TaskFamily | None = None
        self._family_is_given = family is not None
        self._rng: np.random.Generator | None = None
        self._model_ref: weakref.ref[OffPolicyAlgorithm] | None = None
        self._env_ref: weakref.ref[Any] | None = None
        if family is not None:
            self._set_family(family)
        model = _owner_of(self)
        if model is not None:
            self.attach(model)

    # -- the algorithm and the tasks -----------------------------------------------------------------------------------

    def attach(self, model: OffPolicyAlgorithm) -> None:
        """
        Make this the buffer of an algorithm, whose critic and environment it will use.

        stable-baselines3 builds and restores the buffer of an algorithm itself, and the buffer finds the algorithm from
        there. Call this after copying or unpickling a buffer by hand. Only a weak reference is kept, and neither the
        algorithm nor its environment is ever pickled.

        :param model: the algorithm; ``model.replay_buffer`` has to be this buffer when it is sampled
        :raises ValueError: when the spaces, the number of environments, n_steps or the tasks of the algorithm do not fit
        """
        for name in ("observation_space", "action_space"):
            mine, theirs = getattr(self, name), getattr(model, name)
            if mine != theirs:
                raise ValueError(
                    f"The buffer's {name} is {mine}, but the algorithm's is {theirs}. Load a buffer that was filled in the "
                    "same environment, or build a new algorithm for this one."
                )
        if self.n_envs != model.n_envs:
            raise ValueError(
                f"The buffer was filled by {self.n_envs} environments, but the algorithm has {model.n_envs}. "
                f"Give the algorithm a VecEnv of {self.n_envs}."
            )
        n_steps = getattr(model, "n_steps", 1)
        if (n_steps > 1 and n_steps != self.n_steps) or (self.n_steps > 1 and self.gamma != model.gamma):
            raise ValueError(
                f"The algorithm has n_steps={n_steps} and gamma={model.gamma}, the buffer n_steps={self.n_steps} and "
                f"gamma={self.gamma}: stable-baselines3 leaves n-step returns to a custom buffer. Pass replay_buffer_kwargs="
                f"dict(n_steps={max(n_steps, self.n_steps)}, gamma={model.gamma})."
            )
        if self.strategy.needs_scores:
            learner = learner_class(model)
            if self.inference.needs_alpha and not learner.has_alpha:
                raise ValueError(
                    f"temperature='auto' is the learner's entropy temperature, and {type(model).__name__} has none. "
                    "Give a number, or 'ess:8' for eight effective tasks."
                )
            if self.score == "paper" and not learner.has_log_prob:
                raise ValueError(
                    f"score='paper' needs log pi(a | s), and {type(model).__name__} has no stochastic policy. Use 'td' or 'q'."
                )
        self._model_ref = weakref.ref(model)
        self._env_ref = None
        if model.env is not None:
            self._family_of_environment(model)

    @property
    def model(self) -> OffPolicyAlgorithm:
        """
        The algorithm that owns this buffer.

        :raises RuntimeError: when there is none, or it has another buffer
        """
        model = None if self._model_ref is None else self._model_ref()
        if model is None:
            raise RuntimeError(
                "This HIPIReplayBuffer belongs to no algorithm, so it has neither critic nor tasks. If you built, copied or "
                "unpickled it yourself, call buffer.attach(model) after model.replay_buffer = buffer."
            )
        if model.replay_buffer is not None and model.replay_buffer is not self:
            raise RuntimeError(
                f"This HIPIReplayBuffer is not the replay buffer of the {type(model).__name__} that it was attached to. "
                "Set model.replay_buffer = buffer and call buffer.attach(model)."
            )
        return model

    @cached_property
    def layout(self) -> TaskLayout:
        """Where observations hold the task."""
        family = self.require_family()
        if isinstance(self.observation_space, spaces.Dict):
            return TaskLayout(family.task_key, family.task_dim)
        return TaskLayout(None, family.task_dim)

    @cached_property
    def store(self) -> ObservationStore:
        """The stored observations, each of them once."""
        return ObservationStore(self.observation_space, self.layout, self.episodes)

    @property
    def observations(self) -> Any:  # type: ignore[override]
        """All observations, (buffer_size, n_envs, ...) or a dict of such: a copy, to look at. See :meth:`transitions_at`."""
        return self._all_rows(self.store.observations)

    @property
    def next_observations(self) -> Any:  # type: ignore[override]
        """All next observations, as :attr:`observations`."""
        return self._all_rows(self.store.next_observations)

    @property
    def features(self) -> np.ndarray:
        """Features of all transitions, (buffer_size, n_envs, feature_dim): a copy, to look at. See :meth:`features_at`."""
        return self._all_rows(self.features_at)

    def transitions_at(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
        """
        Observations before and after stored steps, as they happened.

        :param at: ring indices and environment indices, (n,) each
        :return: raw observations and next observations, (n, ...) or dicts of such; copies
        """
        return self.store.transitions(at)

    def features_at(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """
        Features of stored steps.

        :param at: ring indices and environment indices, (...,) each
        :return: (..., feature_dim); a copy
        """
        key = self.require_family().features_key
        return take(self._features, at) if key is None else self.store.next_part(key, at)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that hold transitions."""
        rows = sum(getattr(self, name).nbytes for name in self._row_arrays())
        return rows + self.store.nbytes + self.episodes.nbytes

    @cached_property
    def _features(self) -> np.ndarray:
        """Features that are not a part of the next observation, (buffer_size, n_envs, feature_dim)."""
        return self._allocate(self.require_family().feature_dim)

    def _row_arrays(self) -> list[str]:
        """Names of the arrays (buffer_size, n_envs, ...) of the buffer itself."""
        has_features = self.family is not None and self.family.features_key is None
        return ["actions", "rewards", "dones", "timeouts", "env_terminated"] + ["_features"] * has_features

    def _all_rows(self, read: Callable[[tuple[np.ndarray, np.ndarray]], Any]) -> Any:
        """What a function reads of every row that was written, and zeros; not to be written to, for that would be lost."""

        def full(values: np.ndarray) -> np.ndarray:
            array = grow(values, self.buffer_size)  # values are a copy already
            array.flags.writeable = False
            return array

        return each(read(np.indices((self.size(), self.n_envs))), full)  # type: ignore[arg-type]

    @cached_property
    def candidate_sampler(self) -> CandidateSampler:
        """Draws the candidate tasks."""
        return CandidateSampler(self.require_family(), self.candidates, self.n_candidate_tasks)

    @property
    def rng(self) -> np.random.Generator:
        """
        The buffer's own generator, seeded on first use from the one that stable-baselines3 seeds: ``strategy="none"`` never
        draws from it, so that it samples the very rows that a DictReplayBuffer would.
        """
        if self._rng is None:
            self._rng = np.random.default_rng(np.random.randint(2**31))
        return self._rng

    def require_family(self) -> TaskFamily:
        """
        The tasks.

        :raises RuntimeError: when they are not known yet
        """
        if self.family is None:
            model = self.model
            if model.env is None:
                raise RuntimeError("The algorithm has no environment yet. Call model.set_env(env) first.")
            self._family_of_environment(model)
        assert self.family is not None
        return self.family

    def _family_of_environment(self, model: OffPolicyAlgorithm) -> None:
        """Take the tasks from the algorithm's environment; looked up once an environment."""
        env = model.env
        assert env is not None
        if self._env_ref is not None and self._env_ref() is env:
            return
        if env.has_attr("task_family"):
            family = env.get_attr("task_family")[0]
        elif not self._family_is_given and is_goal_space(env.observation_space) and env.has_attr("compute_reward"):
            family = GoalEnvTasks.of_vec_env(env)
        elif self.family is not None:
            family = self.family
        else:
            raise ValueError(
                "HIPIReplayBuffer found no task family in the environment. Wrap it: "
                "MultiTaskWrapper(env, TargetVelocity(low=0.0, high=3.0)), with the family of tasks that you want to learn."
            )
        vec_normalize = model.get_vec_normalize_env()
        if isinstance(family, GoalEnvTasks) and vec_normalize is not None:
            family.check_vec_normalize(vec_normalize)
        if self.family is None or (self.size() == 0 and not self._family_is_given):
            self._set_family(family)
        elif (family.feature_dim, family.task_space) != (self.family.feature_dim, self.family.task_space):
            raise ValueError(
                f"The environment's tasks are {type(family).__name__} with {family.task_space} and {family.feature_dim} "
                f"features, but the buffer holds transitions of {type(self.family).__name__} with {self.family.task_space} "
                f"and {self.family.feature_dim} features. Call model.replay_buffer.reset() or build a new algorithm."
            )
        self._env_ref = weakref.ref(env)

    def _set_family(self, family: TaskFamily) -> None:
        family.check()
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            key = family.task_key
            fits = key in space.spaces and space[key].shape == family.task_space.shape
        else:
            fits = space.shape is not None and len(space.shape) == 1 and space.shape[0] > family.task_dim
        if not fits:
            raise ValueError(
                f"The observation has no room for a task of {family.task_dim} numbers: it must be a Dict with a key "
                f"{family.task_key!r} of shape {family.task_space.shape}, or a flat Box that ends with the task, not {space}. "
                "Use MultiTaskWrapper."
            )
        sampler = CandidateSampler(family, self.candidates, self.n_candidate_tasks)
        log_partition = self.inference.log_partition
        if sampler.differ_by_row and self.strategy.needs_shared_candidates:
            raise ValueError(
                f"strategy {type(self.strategy).__name__} compares trajectories by task, but candidates={sampler.shares} "
                "differ from row to row. Use 'batch', 'prior', 'achieved' or 'all'."
            )
        uses_posterior = isinstance(self.strategy, (HIPI, MaximumAPosteriori))
        if uses_posterior and sampler.differ_by_row and log_partition.needs_shared_candidates:
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
        self.family = family
        for cached in ("layout", "store", "_features", "candidate_sampler"):
            self.__dict__.pop(cached, None)

    # -- storing -------------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one step of every environment.

        :param obs: observations, (n_envs, ...) or a dict of such
        :param next_obs: next observations; at the end of an episode its last one
        :param action: actions, (n_envs, action_dim)
        :param reward: rewards of the commanded task, (n_envs,)
        :param done: whether the episode ended, (n_envs,)
        :param infos: info of each environment, with ``task_features`` as ``MultiTaskWrapper`` gives it
        :raises ValueError: when the features are missing or the reward is not the family's
        """
        if self._model_ref is not None and (model := self._model_ref()) is not None and model.env is not None:
            self._family_of_environment(model)
        family = self.require_family()
        features = self._read_features(next_obs, infos)
        tasks = np.asarray(self.layout.get(obs))
        if family.features_key is not None:  # MultiTaskWrapper keeps the task
            self._check_same_tasks(tasks, np.asarray(self.layout.get(next_obs)))
        self._check_reward(family, features, tasks, np.asarray(reward))

        pos = self.pos
        if self.full and self._pool is not None:
            self._pool.forget(pos)
        self.store.add(obs, next_obs, np.asarray(done, dtype=bool))
        self.actions[pos] = action.reshape((self.n_envs, self.action_dim))
        self.rewards[pos] = reward
        self.dones[pos] = done
        if family.features_key is None:
            self._features[pos] = features
        if self.handle_timeout_termination:
            self.timeouts[pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        # Whatever ended the episode and was neither the time limit nor the task is the environment's, wrappers included.
        unexplained = self.dones[pos] & ~self.timeouts[pos] & ~family.terminated(features, tasks)
        self.env_terminated[pos] = unexplained | [info.get("env_terminated", False) for info in infos]

        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _read_features(self, next_obs: Any, infos: list[dict[str, Any]]) -> np.ndarray:
        """Features of a step of all environments, (n_envs, feature_dim)."""
        key = self.require_family().features_key
        if key is not None:
            # In the precision of the environment: its reward is compared with that of the family.
            return np.asarray(next_obs[key])
        try:
            return np.stack([info["task_features"] for info in infos])
        except KeyError as error:
            raise ValueError(
                "info has no 'task_features', so the step cannot be relabeled later. Wrap the environment in "
                "MultiTaskWrapper, and keep wrappers outside it from replacing info."
            ) from error

    def _check_same_tasks(self, tasks: np.ndarray, next_tasks: np.ndarray) -> None:
        # The last observation of an episode may have been normalised and restored, which rounds.
        if not (np.array_equal(tasks, next_tasks) or np.allclose(tasks, next_tasks, rtol=1e-4, atol=1e-5)):
            env_index = int(np.argmax(~np.isclose(tasks, next_tasks, rtol=1e-4, atol=1e-5).all(axis=-1)))
            raise ValueError(
                f"The {self.layout.key or 'task'} of environment {env_index} changed within an episode, from "
                f"{tasks[env_index]} to {next_tasks[env_index]}. A transition is relabeled with one task before and after the "
                "step, and what it led to counts for that task: make the environment end the episode there, or keep the task "
                "(reset_target=False in the mazes of Gymnasium-Robotics)."
            )

    def _check_reward(self, family: TaskFamily, features: np.ndarray, tasks: np.ndarray, reward: np.ndarray) -> None:
        expected = np.asarray(family.reward(features, tasks), dtype=reward.dtype)
        if not (np.array_equal(expected, reward) or np.allclose(expected, reward, rtol=1e-4, atol=1e-5)):
            env_index = int(np.argmax(~np.isclose(expected, reward, rtol=1e-4, atol=1e-5)))
            raise ValueError(
                f"Environment {env_index} returned reward {reward[env_index]} for task {tasks[env_index]}, but "
                f"{type(family).__name__} gives {expected[env_index]}: relabeled rows would be on another scale. "
                f"{family.reward_remedy}"
            )

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self.episodes = EpisodeIndex(self.buffer_size, self.n_envs)
        self.__dict__.pop("store", None)
        self._pool = None

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        Sample transitions and relabel some of them.

        :param batch_size: number of transitions
        :param env: associated ``VecNormalize``, if any: the relabeled rows are built raw and then normalised as any row
        :return: ``DictReplayBufferSamples`` or ``ReplayBufferSamples``; rewards and dones are (batch_size, 1)
        :raises RuntimeError: when the buffer is empty or belongs to no algorithm
        """
        if self.size() == 0:
            raise RuntimeError(
                "The replay buffer is empty. Collect transitions first: let learning_starts be at least 1, or load a buffer."
            )
        return super(ReplayBuffer, self).sample(batch_size, env=env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        env_inds = np.random.randint(0, high=self.n_envs, size=len(batch_inds))
        at = (batch_inds, env_inds)
        relabeled = np.zeros(len(batch_inds), dtype=bool)
        if not isinstance(self.strategy, NoRelabeling) and self.relabel_prob > 0:
            relabeled = self.rng.random(len(batch_inds)) < self.relabel_prob
        rows = np.flatnonzero(relabeled)
        pooled = self._reuse_labels(at, rows, env) if self.label_reuse > 1 and self._asks_the_critic else None

        obs, next_obs = self.transitions_at(at)
        tasks = self.layout.get(obs)
        if len(rows) > 0:
            # In place: obs and next_obs are copies of what is stored.
            tasks[rows] = self._relabel(RelabelBatch(self, at, obs, next_obs, rows, env)) if pooled is None else pooled
            self.layout.get(next_obs)[...] = tasks

        discounts = None
        if self.n_steps == 1:
            rewards, dones = self._outcomes(at, tasks, relabeled)
            rewards = self._normalize_reward(rewards, env)
        else:
            rewards, dones, discounts, last = self._n_step_outcomes(at, tasks, relabeled, env)
            next_obs = self.store.next_observations((last, env_inds))
            self.layout.get(next_obs)[...] = tasks

        obs, next_obs = self._normalize_obs(obs, env), self._normalize_obs(next_obs, env)
        # All arrays were made here, none is a view of what is stored or of another: tensors may share their memory.
        to_tensor = partial(self.to_torch, copy=False)
        to_column = lambda values: to_tensor(values.reshape(-1, 1).astype(np.float32, copy=False))  # noqa: E731
        samples = DictReplayBufferSamples if isinstance(obs, dict) else ReplayBufferSamples
        return samples(
            observations=each(obs, to_tensor),
            actions=to_tensor(take(self.actions, at)),
            next_observations=each(next_obs, to_tensor),
            dones=to_column(dones),
            rewards=to_column(rewards),
            discounts=None if discounts is None else to_column(discounts),
        )

    def preview(self, batch_size: int, env: VecNormalize | None = None) -> RelabelBatch:
        """
        Draw a batch of which all rows are to be relabeled, to look at it: nothing is counted or learned, and the random
        numbers of the training stay as they would have been.

        :param batch_size: number of transitions
        :param env: associated ``VecNormalize``, if any
        :return: the rows; ``assigned`` holds their new tasks, (batch_size, task_dim)
        :raises RuntimeError: when the buffer is empty or belongs to no algorithm
        """
        if self.size() == 0:
            raise RuntimeError("The replay buffer is empty: there is nothing to relabel yet.")
        numpy_state, rng, inference = np.random.get_state(), self._rng, self.inference
        try:
            self._rng, self.inference = np.random.default_rng(0), deepcopy(inference)
            with th.random.fork_rng():
                at = (self._rng.integers(self.size(), size=batch_size), self._rng.integers(self.n_envs, size=batch_size))
                obs, next_obs = self.transitions_at(at)
                batch = RelabelBatch(self, at, obs, next_obs, np.arange(batch_size), env)
                batch.assigned = self.strategy.assign(batch, self._rng)
        finally:
            np.random.set_state(numpy_state)
            self._rng, self.inference = rng, inference
        return batch

    def _outcomes(
        self, at: tuple[np.ndarray, np.ndarray], tasks: np.ndarray, relabeled: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Reward and termination of stored transitions: as experienced, or judged by the new task where it was relabeled.

        :param at: ring indices and environment indices, (...,) each
        :param tasks: tasks, (..., task_dim)
        :param relabeled: which of them have a new task, (...,)
        :return: rewards and terminations (float32), (...,)
        """
        rewards = take(self.rewards, at)
        dones = take(self.dones, at) & ~take(self.timeouts, at)
        if relabeled.any():
            new = (at[0][relabeled], at[1][relabeled])
            rewards[relabeled], dones[relabeled] = self.judge(
                self.features_at(new), tasks[relabeled], take(self.env_terminated, new)
            )
        return rewards, dones.astype(np.float32)

    def _n_step_outcomes(
        self, at: tuple[np.ndarray, np.ndarray], tasks: np.ndarray, relabeled: np.ndarray, env: VecNormalize | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Discounted reward of a window of n steps under one task, up to its first termination or the episode's end.

        :param at: ring indices and environment indices of the first rows, (batch_size,) each
        :param tasks: tasks, (batch_size, task_dim), each for its whole window
        :param relabeled: which of them are new, (batch_size,)
        :param env: associated ``VecNormalize``, if any
        :return: returns, terminations, discounts of the bootstrap value, and ring index of the last row of each window,
            (batch_size,) each
        """
        steps, env_inds = at
        ahead = self.episodes.ahead(at)
        offsets = np.arange(self.n_steps)
        # (batch_size, n_steps)
        window = ((steps[:, None] + offsets) % self.buffer_size, np.repeat(env_inds[:, None], self.n_steps, axis=1))
        rewards, dones = self._outcomes(
            window,
            np.repeat(tasks[:, None], self.n_steps, axis=1),
            np.repeat(relabeled[:, None], self.n_steps, axis=1),
        )
        rewards = self._normalize_reward(rewards, env)
        # A step counts if the episode reaches it and nothing before it terminated: [0, 0, 1, 0] -> [1, 1, 1, 0].
        before = np.cumsum(dones, axis=1) - dones
        counts = (offsets <= ahead[:, None]) & (before == 0)
        length = counts.sum(axis=1)
        returns = np.sum(np.where(counts, rewards * self.gamma**offsets, 0.0), axis=1)
        terminated = np.max(dones * counts, axis=1)
        return returns, terminated, self.gamma**length, (steps + length - 1) % self.buffer_size

    @property
    def _asks_the_critic(self) -> bool:
        """Whether labels come from the critic by now."""
        return self.strategy.needs_scores and self.model._n_updates >= self.warmup_updates

    def _relabel(self, batch: RelabelBatch, n_uses: int = 1) -> np.ndarray:
        """New tasks of the rows to be relabeled, (n_rows, task_dim), each of which will be used about n_uses times."""
        start = time.perf_counter()
        is_early = self.strategy.needs_scores and not self._asks_the_critic
        tasks = (RandomTask() if is_early else self.strategy).assign(batch, self.rng)
        self._log(batch, tasks, (time.perf_counter() - start) / n_uses)
        return tasks

    def _reuse_labels(self, at: tuple[np.ndarray, np.ndarray], rows: np.ndarray, env: VecNormalize | None) -> np.ndarray:
        """
        Replace the rows of a batch that are to be relabeled by rows that have been scored.

        :param at: ring indices and environment indices of the batch, (batch_size,) each; changed in place
        :param rows: which rows of the batch are to be relabeled, (n_rows,)
        :param env: associated ``VecNormalize``, if any
        :return: their new tasks, (n_rows, task_dim)
        """
        n_new = max(1, round(self.relabel_prob * len(at[0])))
        if self._pool is None:
            n_labels = self.label_reuse if self.strategy.is_draw else 1
            self._pool = LabelPool(n_new, n_labels, self.require_family().task_dim, self.label_reuse)
        if self._pool.is_due(len(rows)):
            new = (self.rng.integers(self.size(), size=n_new), self.rng.integers(self.n_envs, size=n_new))
            obs, next_obs = self.transitions_at(new)
            batch = RelabelBatch(self, new, obs, next_obs, np.arange(n_new), env)
            labels = [self._relabel(batch, self.label_reuse)]
            labels += [self.strategy.assign(batch, self.rng) for _ in range(self._pool.n_labels - 1)]
            self._pool.add(new, np.stack(labels, axis=1))
        drawn, tasks = self._pool.draw(len(rows), self.rng)
        for mine, theirs in zip(at, drawn, strict=True):
            mine[rows] = theirs
        return tasks

    def judge(self, features: np.ndarray, tasks: np.ndarray, env_terminated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Reward and termination of transitions for tasks.

        :param features: features, (..., feature_dim)
        :param tasks: tasks, (..., task_dim)
        :param env_terminated: whether the environment itself ended there, (...,)
        :return: rewards and terminations, (...,). A time limit is no termination: the row bootstraps, unless it fulfils
            the task
        """
        family = self.require_family()
        return family.reward(features, tasks), env_terminated | family.terminated(features, tasks)

    def _log(self, batch: RelabelBatch, tasks: np.ndarray, seconds: float) -> None:
        """Record what was decided under ``relabel/``; averages until stable-baselines3 next dumps its log."""
        model = None if self._model_ref is None else self._model_ref()
        logger = getattr(model, "_logger", None)
        if logger is None:
            return
        full = self._n_samples % _FULL_DIAGNOSTICS_EVERY == 0
        self._n_samples += 1
        values = batch.diagnostics(tasks, full) | {
            "share_changed": self.relabel_prob * np.mean(np.any(tasks != batch.commanded, axis=1)),
            "us_per_row": 1e6 * seconds / len(tasks),
        }
        for key, value in values.items():
            logger.record_mean(f"relabel/{key}", float(value))

    # -- copies and files ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """
        Write the buffer into a folder, as plain arrays and a JSON file, see :mod:`hipi_sb3.experience.files`.

        Whenever the process is killed, the folder holds the buffer that it held before, or this one. The algorithm, its
        environment and the code of the family are not in it.

        :param path: folder; what an earlier ``save`` wrote there is replaced
        :raises RuntimeError: when the tasks are not known yet
        :raises FileExistsError: when there is something else in that place
        """
        family = self.require_family()
        log_partition = self.inference.log_partition
        state = {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "n_rows": self.buffer_size,
            "n_envs": self.n_envs,
            "options": {name: getattr(self, name) for name in _PLAIN_OPTIONS}
            | {
                "candidates": dict(self.candidates) if isinstance(self.candidates, Mapping) else self.candidates,
                "temperature": self.inference.temperature,
                "strategy": describe(self.strategy, KEY_TO_STRATEGY),
                "log_partition": describe(log_partition, KEY_TO_LOG_PARTITION),
            },
            "tasks": {"space": space_to_json(family.task_space), "feature_dim": family.feature_dim},
            "pos": self.pos,
            "full": self.full,
            "n_samples": self._n_samples,
            "generator": None if self._rng is None else self._rng.bit_generator.state,
            "log_partition": {"class": type(log_partition).__qualname__, "state": log_partition.state_dict()},
            "label_pool": None if self._pool is None else vars(self._pool),
            "episodes": self.episodes.state_dict(),
            "observations": self.store.arrays(),
            "transitions": {name.strip("_"): getattr(self, name)[: self.size()] for name in self._row_arrays()},
        }
        write_state(path, state)

    @classmethod
    def load(
        cls, path: str | Path, model: OffPolicyAlgorithm | None = None, mmap: bool = False, **options: Any
    ) -> "HIPIReplayBuffer":
        """
        Read what :meth:`save` wrote.

        :param path: folder
        :param model: the algorithm that it will belong to, as after :meth:`attach`; set ``model.replay_buffer`` to the result
        :param mmap: map the arrays of a full buffer into memory instead of reading them; new transitions do not reach the file
        :param options: options of the constructor that replace the saved ones. ``family`` has to be given where no model with
            an environment brings it, and so has a strategy or an estimator of your own where the model was not built with it
        :return: the buffer
        :raises FileNotFoundError: when there is none, or an array is missing
        :raises ValueError: when a file is damaged or of another version, an option is missing, or spaces or tasks do not fit
        """
        state = read_state(path, mmap)
        given = {} if model is None else model.replay_buffer_kwargs
        saved = state["options"]
        for name, registry in (("strategy", KEY_TO_STRATEGY), ("log_partition", KEY_TO_LOG_PARTITION)):
            if name in options:
                continue
            key = saved[name]["name"]
            if key is not None:
                saved[name] = registry[key](**saved[name]["arguments"])
            elif type(given.get(name)).__qualname__ == saved[name]["class"]:
                saved[name] = given[name]
            else:
                raise ValueError(
                    f"The buffer in {path} had an object of the class {saved[name]['class']} as its {name}, and code is not "
                    f"saved. Pass {name}=... to HIPIReplayBuffer.load, or in replay_buffer_kwargs to the algorithm."
                )
        if "family" in given:
            options.setdefault("family", given["family"])
        buffer = cls(
            state["n_rows"] * state["n_envs"],
            space_from_json(state["observation_space"]),
            space_from_json(state["action_space"]),
            n_envs=state["n_envs"],
            **{"device": "auto" if model is None else model.device, **saved, **options},
        )
        if model is not None:
            buffer.attach(model)
        if buffer.family is None:
            raise ValueError(
                f"The buffer in {path} needs its task family, and code is not saved. Pass family=... to "
                "HIPIReplayBuffer.load, or a model that has its environment (model.set_env(env))."
            )
        tasks = {"space": space_to_json(buffer.family.task_space), "feature_dim": buffer.family.feature_dim}
        if tasks != state["tasks"]:
            raise ValueError(
                f"The buffer in {path} holds transitions of tasks in {space_from_json(state['tasks']['space'])} with "
                f"{state['tasks']['feature_dim']} features, but {type(buffer.family).__name__} has "
                f"{buffer.family.task_space} with {buffer.family.feature_dim}. Use the family that it was filled with."
            )
        buffer._restore(state)
        return buffer

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` has saved besides the options."""
        self.pos, self.full, self._n_samples = state["pos"], state["full"], state["n_samples"]
        if state["generator"] is not None:
            self._rng = np.random.default_rng(0)
            self._rng.bit_generator.state = state["generator"]
        log_partition = self.inference.log_partition
        if type(log_partition).__qualname__ == state["log_partition"]["class"]:
            log_partition.load_state_dict(state["log_partition"]["state"])
        self._pool = None if state["label_pool"] is None else LabelPool.restore(state["label_pool"])
        self.episodes.load_state_dict(state["episodes"])
        self.store.set_arrays(state["observations"])
        for name in self._row_arrays():
            self.__dict__[name] = grow(state["transitions"][name.strip("_")], self.buffer_size)

    def __getstate__(self) -> dict[str, Any]:
        """State without the algorithm and its environment, and without the rows that were never written."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("_model_ref", "_env_ref", "store")}
        if self.family is not None:
            state["store"] = self.store.arrays()
        return state | {name: getattr(self, name)[: self.size()] for name in self._row_arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; a buffer restored by ``model.load_replay_buffer`` is attached to that algorithm."""
        if "observations" in state:
            raise ValueError(
                "This HIPIReplayBuffer was pickled by an earlier version of hipi_sb3, which stored observations differently. "
                "Unpickle it with that version, or collect the transitions again."
            )
        stored = state.pop("store", None)
        self.__dict__.update(state)
        self._model_ref = None
        self._env_ref = None
        for name in self._row_arrays():
            self.__dict__[name] = grow(state[name], self.buffer_size)
        if stored is not None:
            self.store.set_arrays(stored)
        model = _owner_of(self)
        if model is not None:
            self.attach(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "HIPIReplayBuffer":
        """Copy; where the whole algorithm is copied, the copy belongs to the algorithm's copy."""
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        model = None if self._model_ref is None else memo.get(id(self._model_ref()))
        if model is not None:
            copy._model_ref = weakref.ref(model)
        return copy

    def _allocate(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        return np.zeros((self.buffer_size, self.n_envs, *shape), dtype=dtype)


#: Options of the constructor that are attributes of the same name, and plain values.
_PLAIN_OPTIONS = (
    "handle_timeout_termination",
    "score",
    "n_candidate_tasks",
    "relabel_prob",
    "warmup_updates",
    "label_reuse",
    "n_steps",
    "gamma",
)


def _owner_of(buffer: HIPIReplayBuffer) -> OffPolicyAlgorithm | None:
    """
    The algorithm that is building or restoring this buffer right now, from the calling frames.

    stable-baselines3 hands a buffer its spaces, not its algorithm. It builds one in ``_setup_model`` and restores one in
    ``load_replay_buffer``, and nowhere else: any other caller (a callback that unpickles a buffer, say) is no owner.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is buffer:
        frame = frame.f_back
    if frame.f_code is load_from_pkl.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals["self"] if frame.f_code in _OWNERS else None
