"""The replay buffer: keeps what happened, and relabels it when it is sampled."""

import weakref
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from hipi_sb3.arrivals import Arrivals
from hipi_sb3.experience.layout import TaskLayout, each, take
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.her_arguments import HerArguments, translate
from hipi_sb3.owner import Owned, asked_n_steps, check_fits, check_returns, check_same_family, family_of, owner_of
from hipi_sb3.relabel.learners import Learner, learner_class
from hipi_sb3.relabel.log_partition import LogPartition
from hipi_sb3.relabel.relabeler import Relabeler
from hipi_sb3.relabel.rows import RelabelBatch
from hipi_sb3.relabel.strategies import Strategy
from hipi_sb3.saved_buffers import load_buffer, save_buffer
from hipi_sb3.tasks.family import TaskFamily, check_is_family
from hipi_sb3.tasks.goal_env import GoalEnvTasks
from hipi_sb3.tasks.steps import check_room


def _of_experience(name: str, doc: str) -> Any:
    """What stable-baselines3's users find at a buffer, where it is stored."""
    return property(lambda buffer: getattr(buffer.experience, name), doc=doc)


class HIPIReplayBuffer(Owned, ReplayBuffer):
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
    :param strategy: how labels are chosen, by name or object: ``"hipi"`` (the default, a draw from the posterior), ``"map"``
        (its mode), ``"none"``, ``"random"``, ``"final"``, ``"future"`` and ``"episode"`` (HER), ``"air"`` and ``"advantage"``
        (Generalized Hindsight), ``"max_reward"``
    :param score: R_psi of the posterior: ``"td"``, ``"progress"``, ``"q"``, ``"advantage"``, ``"mixed"``, ``"reward"`` or
        ``"paper"``, see :mod:`hipi_sb3.relabel.scores`; None, here and below, is what suits the tasks, see
        :mod:`hipi_sb3.relabel.defaults`
    :param log_partition: estimator of log Z(psi), by name or object: ``"batch"``, ``"running"``, ``"sinkhorn"``, ``"mean"``
        or ``"none"``, see :mod:`hipi_sb3.relabel.log_partition`
    :param temperature: T: a number, ``"spread:x"`` (x spreads of the scores), ``"auto"`` (the learner's live alpha) or
        ``"ess:n"`` (n effective tasks a row), see :class:`~hipi_sb3.relabel.posterior.TaskInference`
    :param candidates: which tasks are considered, see :class:`~hipi_sb3.relabel.candidates.CandidateSampler`
    :param n_candidate_tasks: how many tasks are considered
    :param relabel_prob: probability that a row *is* relabeled, 0.5 by default
    :param prior_share: share of the labels of ``"hipi"`` that are random candidates instead, so that a task also sees what is
        not good for it
    :param warmup_updates: gradient steps before which the critic is not asked: a row to be relabeled gets a random candidate
    :param label_reuse: how often a row that the critic has scored is used, in the mean, each time with a label that is drawn
        anew: divides the cost of scoring, see :class:`~hipi_sb3.relabel.pool.LabelPool`; 1 to score for every label
    :param n_steps: steps of the return (n-step learning): the whole window is relabeled with one task. If None,
        the algorithm's where that is more than 1, else what suits the tasks
    :param gamma: discount of that return; the algorithm's if None
    :param her: arguments of ``HerReplayBuffer``, see :class:`~hipi_sb3.her_arguments.HerArguments`
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
        strategy: str | Strategy | None = None,
        score: str | None = None,
        log_partition: str | LogPartition | None = None,
        temperature: float | str | None = None,
        candidates: str | Mapping[str, float] | None = None,
        n_candidate_tasks: int = 32,
        relabel_prob: float | None = None,
        prior_share: float | None = None,
        warmup_updates: int = 0,
        label_reuse: int = 16,
        n_steps: int | None = None,
        gamma: float | None = None,
        **her: Unpack[HerArguments],
    ) -> None:
        # ReplayBuffer's own constructor would allocate arrays of other shapes; BaseBuffer's is what is needed of it.
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if optimize_memory_usage:
            raise ValueError(
                "HIPIReplayBuffer does not support optimize_memory_usage: it stores each observation once anyway."
            )
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        strategy, relabel_prob = translate(her, strategy, relabel_prob)
        #: Chooses the tasks of relabeled rows.
        self.relabeler = Relabeler(
            strategy=strategy,
            score=score,
            log_partition=log_partition,
            temperature=temperature,
            candidates=candidates,
            n_candidate_tasks=n_candidate_tasks,
            relabel_prob=relabel_prob,
            prior_share=prior_share,
            warmup_updates=warmup_updates,
            label_reuse=label_reuse,
            n_steps=asked_n_steps(n_steps, action_space),
        )
        self._given = (n_steps, gamma)
        self.gamma = 0.99 if gamma is None else gamma

        self.family: TaskFamily | None = None
        self._family_is_given = family is not None
        self._model_ref: weakref.ref[OffPolicyAlgorithm] | None = None
        self._env_ref: weakref.ref[Any] | None = None
        if family is None and "env" in her:
            family = GoalEnvTasks.of_vec_env(her["env"])
        if family is not None:
            self._set_family(family)
        if (model := owner_of(self)) is not None:
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
        given_n_steps, given_gamma = self._given
        self.relabeler.asked["n_steps"] = asked_n_steps(given_n_steps, self.action_space, model)
        if given_gamma is None:
            self.gamma = model.gamma
        check_fits(self, model)
        if self.relabeler.strategy.needs_scores:
            self.relabeler.check_learner(learner_class(model), type(model).__name__)
        self._model_ref = weakref.ref(model)
        self._env_ref = None
        if model.env is not None:
            self._family_of_environment(model)

    @property
    def n_steps(self) -> int:
        """Steps of the return, and of the windows that are relabeled whole."""
        return self.relabeler.n_steps

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
    def _arrivals(self) -> Arrivals:
        """The steps that are not stored yet, and the experience where they will be."""
        family, space = self.require_family(), self.observation_space
        layout = TaskLayout.of_space(space, family.task_key, family.task_dim)
        dtype = self._maybe_cast_dtype(self.action_space.dtype)
        stored = (self.buffer_size, self.n_envs, space, layout, self.action_dim, dtype)
        experience = Experience(*stored, family.feature_dim, family.features_key)
        return Arrivals(experience, family, self.handle_timeout_termination)

    @property
    def experience(self) -> Experience:
        """What happened, up to the last step that was added."""
        arrivals = self._arrivals
        try:
            return arrivals.stored()
        except Exception:  # the tasks failed, and there are fewer steps than were added
            self.pos, self.full = arrivals.pos, arrivals.experience.full
            raise

    layout = _of_experience("layout", "Where observations hold the task.")
    observations = _of_experience("all_observations", "All observations, (buffer_size, n_envs, ...): a copy, to look at.")
    next_observations = _of_experience("all_next_observations", "All next observations, likewise.")
    features = _of_experience("all_features", "Features of all steps, (buffer_size, n_envs, feature_dim): a copy.")
    actions = _of_experience("actions", "All actions, (buffer_size, n_envs, action_dim).")
    rewards = _of_experience("rewards", "All rewards of the commanded tasks, (buffer_size, n_envs).")
    dones = _of_experience("dones", "Whether episodes ended, (buffer_size, n_envs).")
    timeouts = _of_experience("timeouts", "Whether time limits ended them, (buffer_size, n_envs).")
    env_terminated = _of_experience("env_terminated", "Whether the environment itself did, (buffer_size, n_envs).")
    episodes = _of_experience("episodes", "Which rows belong to the same episode.")
    nbytes = _of_experience("nbytes", "Bytes of all arrays that hold transitions.")

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
        family = family_of(model, self.family, self._family_is_given)
        if self.family is None or (self.size() == 0 and not self._family_is_given):
            self._set_family(family)
        else:
            check_same_family(family, self.family)
        check_returns(self, model)
        self._env_ref = weakref.ref(env)

    def _set_family(self, family: TaskFamily) -> None:
        check_is_family("HIPIReplayBuffer", family)
        family.check()
        check_room(self.observation_space, family)
        self.relabeler.setup(family)
        self.family = family
        self.__dict__.pop("_arrivals", None)

    # -- storing -------------------------------------------------------------------------------------------------------

    def add(
        self, obs: Any, next_obs: Any, action: np.ndarray, reward: np.ndarray, done: np.ndarray, infos: list[dict[str, Any]]
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
        if self.full and self.relabeler.pool is not None:
            self.relabeler.pool.forget(self.pos)
        arrivals = self._arrivals
        try:
            arrivals.add(obs, next_obs, action, reward, done, infos)
        finally:
            self.pos, self.full = arrivals.pos, arrivals.experience.full

    def truncate_last_trajectory(self) -> None:
        """End unfinished episodes, as HerReplayBuffer does; ``load_replay_buffer(truncate_last_traj=True)`` calls it."""
        self.experience.truncate(self.handle_timeout_termination)

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self.__dict__.pop("_arrivals", None)
        self.relabeler.pool = None

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
        at = (batch_inds, np.random.randint(0, high=self.n_envs, size=len(batch_inds)))
        experience = self.experience
        rows = self.relabeler(experience, at, self._learner(), env, self._record())

        judged = rows.judged
        outcomes = judged.windows.outcomes(self._normalize_reward(judged.rewards, env), judged.terminated, self.gamma)
        next_obs, discounts = rows.next_obs, None
        if self.n_steps > 1:
            next_obs = experience.store.next_observations(experience.after(rows.at, outcomes.length - 1))
            self.layout.write(next_obs, np.flatnonzero(judged.is_new), rows.tasks[judged.is_new])
            discounts = self.gamma**outcomes.length

        obs, next_obs = self._normalize_obs(rows.obs, env), self._normalize_obs(next_obs, env)
        # All arrays were made here, none is a view of what is stored or of another: tensors may share their memory.
        to_tensor = partial(self.to_torch, copy=False)
        to_column = lambda values: to_tensor(values.reshape(-1, 1).astype(np.float32, copy=False))  # noqa: E731
        samples = DictReplayBufferSamples if isinstance(obs, dict) else ReplayBufferSamples
        return samples(
            observations=each(obs, to_tensor),
            actions=to_tensor(take(experience.actions, rows.at)),
            next_observations=each(next_obs, to_tensor),
            dones=to_column(outcomes.terminated),
            rewards=to_column(outcomes.rewards),
            discounts=None if discounts is None else to_column(discounts),
        )

    def preview(self, batch_size: int, env: VecNormalize | None = None) -> RelabelBatch:
        """
        Draw a batch of which all rows are to be relabeled, to look at it: see
        :meth:`Relabeler.preview <hipi_sb3.relabel.relabeler.Relabeler.preview>`.

        :raises RuntimeError: when the buffer is empty or belongs to no algorithm
        """
        return self.relabeler.preview(self.experience, batch_size, self._learner(), env)

    def _learner(self) -> Learner | None:
        """The critic, where the strategy asks one."""
        if not self.relabeler.strategy.needs_scores:
            return None
        return learner_class(self.model)(self.model, self.relabeler.inference.fixed_temperature)

    def _record(self) -> Callable[[str, float], None] | None:
        """Where diagnostics go: ``relabel/`` in the algorithm's logger, averaged until stable-baselines3 next dumps it."""
        logger = getattr(None if self._model_ref is None else self._model_ref(), "_logger", None)
        return None if logger is None else lambda name, value: logger.record_mean(f"relabel/{name}", value)

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
        save_buffer(self, path)

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
        return load_buffer(cls, path, model, mmap, options)
