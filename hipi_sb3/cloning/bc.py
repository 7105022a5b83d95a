"""HIPI-BC: behaviour cloning on relabeled trajectories, offline (``fit``) and online (``learn``)."""

import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.cloning.arrays import show_progress
from hipi_sb3.cloning.labels import Labels, TrajectoryLabeler
from hipi_sb3.cloning.minibatches import Minibatch, minibatches, updates_per_epoch
from hipi_sb3.cloning.policy import TaskConditionedBCPolicy
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.experience.layout import each, gather
from hipi_sb3.experience.whole import whole_file
from hipi_sb3.relabel.log_partition import LogPartition
from hipi_sb3.relabel.posterior import sample_rows
from hipi_sb3.relabel.strategies import Strategy
from hipi_sb3.saved_models import PlainFiles, read_tensors

SelfHIPIBC = TypeVar("SelfHIPIBC", bound="HIPIBC")

#: What a checkpoint of fit holds.
_CHECKPOINT = ("parameters", "num_timesteps", "n_updates", "seed", "fingerprint", "torch_rng")


class HIPIBC(PlainFiles, OffPolicyAlgorithm):
    """
    HIPI-BC: infer for which tasks each trajectory was right, and clone it for these (arXiv 2002.11089, section 3).

    ``HIPIBC("MultiInputPolicy").fit(dataset)`` clones a :class:`~hipi_sb3.cloning.trajectories.TrajectoryDataset`; the
    environment is needed to evaluate only. ``HIPIBC("MultiInputPolicy", env).learn(n)`` collects trajectories with the policy,
    relabels and clones them, in turn.

    The loss is -sum_k q(psi_k | tau) log pi(a | s, psi_k) in the mean over steps: an expectation over the ``n_labels`` most
    probable tasks, or one draw of them. (The paper draws one.)

    :param policy: ``"MultiInputPolicy"`` for Dict observations, ``"MlpPolicy"`` for flat ones
    :param env: environment with a task family, see :class:`~hipi_sb3.wrappers.MultiTaskWrapper`; ``fit`` takes the spaces of
        the data set if None
    :param learning_rate: learning rate of Adam, a number or a function of the remaining progress
    :param buffer_size: transitions that ``learn`` keeps
    :param learning_starts: environment steps with random actions, before the first is cloned
    :param batch_size: steps of a minibatch; each counts once for every label that it has
    :param train_freq: environment steps between two rounds of cloning; each round labels what the buffer holds
    :param gradient_steps: minibatches in a round; as many as steps were taken if -1
    :param strategy: how trajectories are labeled: ``"hipi"``, ``"map"``, ``"none"`` (commanded task: plain behaviour cloning),
        ``"random"``, ``"final"`` (GCSL), ``"future"``, ``"max_reward"`` or ``"top_k"``; for it and for the options up to
        ``top_fraction`` see :class:`~hipi_sb3.cloning.labels.TrajectoryLabeler`
    :param n_labels: tasks that a trajectory is cloned for
    :param expectation: weigh all labels of a step (True), or draw one of them each time the step is used (False)
    :param temperature: T
    :param log_partition: estimator of log Z
    :param candidates: which tasks are considered
    :param n_candidate_tasks: how many
    :param returns: how trajectories of different length are compared
    :param segment_length: steps that are labeled together; whole trajectories if None
    :param top_fraction: share of the trajectories that each task gets with ``"top_k"``
    :param stats_window_size: episodes that the logged means are taken over
    :param tensorboard_log: folder for TensorBoard
    :param policy_kwargs: arguments of :class:`TaskConditionedBCPolicy`
    :param verbose: 0, 1 (information) or 2
    :param seed: seed
    :param device: PyTorch device
    :param _init_setup_model: whether to build the networks at once
    :raises ValueError: when an option is unknown
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": TaskConditionedBCPolicy,
        "MultiInputPolicy": TaskConditionedBCPolicy,
    }
    policy: TaskConditionedBCPolicy

    def __init__(
        self,
        policy: str | type[TaskConditionedBCPolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        train_freq: int | tuple[int, str] = 1000,
        gradient_steps: int = -1,
        strategy: str | Strategy = "hipi",
        n_labels: int = 8,
        expectation: bool = True,
        temperature: float | str = 1.0,
        log_partition: str | LogPartition = "batch",
        candidates: str | Mapping[str, float] | None = None,
        n_candidate_tasks: int = 64,
        returns: str = "extended",
        segment_length: int | None = None,
        top_fraction: float = 0.1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=HIPIReplayBuffer,
            replay_buffer_kwargs={"strategy": "none"},
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
            support_multi_env=True,
        )
        self.expectation = expectation
        self.labeler = TrajectoryLabeler(
            strategy,
            n_labels,
            temperature,
            log_partition,
            candidates,
            n_candidate_tasks,
            returns,
            segment_length,
            top_fraction,
        )
        self.is_flat = policy == "MlpPolicy"
        # Without an environment there are no spaces yet: ``fit`` takes those of the data set.
        if _init_setup_model and env is not None:
            self._setup_model()

    # -- online -------------------------------------------------------------------------------------------------------

    def learn(
        self: SelfHIPIBC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "HIPIBC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHIPIBC:
        """
        Collect, relabel and clone in turn. Arguments as in any algorithm of stable-baselines3.

        :return: self
        """
        if self.env is None:
            raise ValueError("HIPIBC.learn needs an environment: HIPIBC(policy, env). To clone a data set, call fit(dataset).")
        if self.replay_buffer is None:
            self.replay_buffer = HIPIReplayBuffer(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                **self.replay_buffer_kwargs,
            )
            self.replay_buffer.attach(self)
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Label all trajectories of the buffer and clone them.

        :param gradient_steps: number of minibatches
        :param batch_size: steps of a minibatch
        """
        assert isinstance(self.replay_buffer, HIPIReplayBuffer)
        dataset = TrajectoryDataset.from_buffer(self.replay_buffer)
        rng = np.random.default_rng(np.random.randint(2**31))
        labels = self.labeler(dataset, rng)
        seed = int(rng.integers(2**31))
        self._log_labels(labels)
        losses: list[float] = []
        epoch = 0
        while len(losses) < gradient_steps:
            for minibatch in minibatches(dataset, labels, batch_size, seed, epoch):
                losses.append(self._update(minibatch, labels))
                if len(losses) == gradient_steps:
                    break
            epoch += 1
        self.logger.record("train/loss", np.mean(losses))

    # -- offline ------------------------------------------------------------------------------------------------------

    def fit(
        self: SelfHIPIBC,
        dataset: TrajectoryDataset,
        n_epochs: int = 10,
        n_updates: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "HIPIBC",
        checkpoint: str | Path | None = None,
        checkpoint_freq: int = 1000,
        progress_bar: bool = False,
    ) -> SelfHIPIBC:
        """
        Label the trajectories of a data set and clone them.

        ``num_timesteps`` and the callbacks count minibatches. With ``checkpoint``, a training that was interrupted goes on
        from the file, to the same result as if it had not been; one that was finished is not repeated. Delete the file to
        start anew.

        :param dataset: trajectories; read piece by piece, never as a whole
        :param n_epochs: passes over the labeled steps
        :param n_updates: number of minibatches, instead of ``n_epochs``
        :param callback: callbacks, called after each minibatch
        :param log_interval: minibatches between two entries of the log
        :param tb_log_name: name of the run for TensorBoard
        :param checkpoint: file of the checkpoint
        :param checkpoint_freq: minibatches between two checkpoints
        :param progress_bar: whether to show one for labelling and one for cloning
        :return: self
        :raises ValueError: when the spaces are not those of the data set, it holds NaN or the checkpoint belongs to another
            training
        """
        if not isinstance(dataset, TrajectoryDataset):
            raise TypeError(
                f"HIPIBC.fit: dataset must be a TrajectoryDataset, not {type(dataset).__name__}: {dataset!r:.80}. Make one "
                "with TrajectoryDataset.load(path, family) or TrajectoryDataset.from_arrays(family, observations, ...)."
            )
        self._take_spaces(dataset)
        if not self._custom_logger:
            self._logger = utils.configure_logger(self.verbose, self.tensorboard_log, tb_log_name)
        seed = int(np.random.randint(2**31)) if self.seed is None else self.seed
        state = None if checkpoint is None else self._read_checkpoint(Path(checkpoint))
        if state is not None:
            if self.seed not in (None, state["seed"]):
                raise ValueError(
                    f"{checkpoint} is the checkpoint of a training with seed {state['seed']}, not {self.seed}. Give each "
                    "training a file of its own, or delete it to start anew."
                )
            seed = state["seed"]
        start = time.perf_counter()
        labels = self.labeler(dataset, np.random.default_rng([seed, 0]), progress_bar)
        self._log_labels(labels)
        self.logger.record("time/label_seconds", time.perf_counter() - start)
        n_steps = int(labels.n_steps.sum())
        if n_steps == 0:
            raise ValueError("No step of the data set has a label: every candidate task is impossible for every trajectory.")
        per_epoch = updates_per_epoch(n_steps, self.batch_size)
        # Callbacks of stable-baselines3 look for it under this name.
        total_timesteps = n_epochs * per_epoch if n_updates is None else n_updates
        fingerprint = 0 if checkpoint is None else self._fingerprint(dataset, labels)
        self.num_timesteps = self._num_timesteps_at_start = 0
        if state is not None:
            self._restore(state, fingerprint, Path(str(checkpoint)))

        self._total_timesteps = total_timesteps
        callback = self._init_callback(callback)
        callback.on_training_start(locals(), globals())
        self.policy.set_training_mode(True)
        # For callbacks that look at the environments: no episode ends while cloning.
        dones = np.zeros(self.n_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.n_envs)]
        start, first = time.perf_counter(), self.num_timesteps
        losses: list[float] = []
        with show_progress(total_timesteps * self.batch_size, "cloning", progress_bar) as done:
            done(first * self.batch_size)
            for minibatch in self._minibatches(dataset, labels, seed, per_epoch, total_timesteps):
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                losses.append(self._update(minibatch, labels))
                self.num_timesteps += 1
                done(self.batch_size)
                if self.num_timesteps % log_interval == 0 or self.num_timesteps == total_timesteps:
                    seconds = time.perf_counter() - start
                    self.logger.record("train/loss", np.mean(losses))
                    self.logger.record("time/epoch", self.num_timesteps / per_epoch)
                    self.logger.record("time/steps_per_second", int((self.num_timesteps - first) * self.batch_size / seconds))
                    self.logger.dump(self.num_timesteps)
                    losses.clear()
                callback.update_locals(locals())
                if not callback.on_step():
                    break
                if checkpoint is not None and (
                    self.num_timesteps % checkpoint_freq == 0 or self.num_timesteps == total_timesteps
                ):
                    self._write_checkpoint(Path(checkpoint), seed, fingerprint)
        self.policy.set_training_mode(False)
        callback.on_training_end()
        return self

    def _minibatches(
        self, dataset: TrajectoryDataset, labels: Labels, seed: int, per_epoch: int, total: int
    ) -> Iterator[Minibatch]:
        """Minibatches from where the training stands to its end."""
        while self.num_timesteps < total:
            epoch, skip = divmod(self.num_timesteps, per_epoch)
            for number, minibatch in enumerate(minibatches(dataset, labels, self.batch_size, seed, epoch)):
                if number >= skip:
                    yield minibatch
                if self.num_timesteps == total:
                    return

    # -- one minibatch ------------------------------------------------------------------------------------------------

    def loss(self, minibatch: Minibatch, labels: Labels) -> th.Tensor:
        """
        Mean over steps of -sum_k q(psi_k | tau) log pi(a | s, psi_k).

        :param minibatch: steps
        :param labels: labels of the data set
        :return: loss, a scalar
        """
        columns, weights = labels.of_steps(minibatch.steps)
        if not self.expectation:
            total = weights.sum(axis=1)  # over labels
            possible = np.flatnonzero(total > 0)
            drawn = sample_rows(weights[possible] / total[possible, None], minibatch.rng)
            one = np.zeros_like(weights)
            one[possible, drawn] = total[possible]
            weights = one
        # A pair for each label that counts: (batch_size, n_labels) -> (n_pairs,).
        step, label = np.nonzero(weights > 1e-6)
        tasks = labels.tasks[columns[step, label]]
        obs = minibatch.dataset.with_tasks(
            gather(minibatch.observations, step), tasks, flat=not isinstance(self.observation_space, spaces.Dict)
        )
        if self._vec_normalize_env is not None:
            obs = self._vec_normalize_env.normalize_obs(obs)
        actions = minibatch.actions
        if isinstance(self.action_space, spaces.Box):
            actions = self.policy.scale_action(actions)
        to_torch = lambda array: th.as_tensor(np.ascontiguousarray(array), device=self.device)  # noqa: E731
        log_prob = self.policy.log_prob(each(obs, to_torch), to_torch(actions[step]))
        return -(to_torch(weights[step, label]) * log_prob).sum() / len(weights)

    def _update(self, minibatch: Minibatch, labels: Labels) -> float:
        self._update_learning_rate(self.policy.optimizer)
        loss = self.loss(minibatch, labels)
        self.policy.optimizer.zero_grad()
        loss.backward()
        self.policy.optimizer.step()
        self._n_updates += 1
        return loss.item()

    def _log_labels(self, labels: Labels) -> None:
        for key, value in labels.diagnostics.items():
            self.logger.record(f"label/{key}", float(value))

    # -- setting up, saving, resuming ---------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        if not hasattr(self, "observation_space"):
            return  # saved before it was trained
        buffer_size = self.buffer_size
        if self.env is None:
            # Only learn stores transitions: a data set is cloned without a buffer, which could be larger than the data set.
            self.buffer_size = 1
        super()._setup_model()
        if self.env is None:
            self.buffer_size, self.replay_buffer = buffer_size, None

    def _take_spaces(self, dataset: TrajectoryDataset) -> None:
        """Build the networks for a data set, or check that it fits those there are."""
        if not hasattr(self, "observation_space"):
            self.observation_space = dataset.task_space(self.is_flat)
            self.action_space = dataset.action_space
            self.n_envs = 1
            self._setup_model()
        flat = not isinstance(self.observation_space, spaces.Dict)
        theirs = {"observation": dataset.task_space(flat), "action": dataset.action_space}
        for name, space in theirs.items():
            mine = getattr(self, f"{name}_space")
            if not _same_space(mine, space, dataset.family.task_key):
                raise ValueError(
                    f"The {name} space of the policy is {mine}, that of the data set (with the task) is {space}. Build a new "
                    "HIPIBC for this data set, or wrap the environment as it was when the data were recorded."
                )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def _write_checkpoint(self, path: Path, seed: int, fingerprint: int) -> None:
        """Write a checkpoint that is complete or as it was before, whenever the process is killed."""
        values = (self.get_parameters(), self.num_timesteps, self._n_updates, seed, fingerprint, th.get_rng_state())
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            th.save(dict(zip(_CHECKPOINT, values, strict=True)), temporary)

    def _read_checkpoint(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        state = read_tensors(path, self.device)
        if not isinstance(state, dict) or tuple(state) != _CHECKPOINT:
            raise ValueError(f"{path} is no checkpoint that fit wrote. Delete it to start anew, or give another file.")
        return state

    def _restore(self, state: dict[str, Any], fingerprint: int, path: Path) -> None:
        if state["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} is the checkpoint of a training with another data set or other options. "
                "Delete it to start anew, or restore what was changed."
            )
        self.set_parameters(state["parameters"], device=self.device)
        self.num_timesteps = self._num_timesteps_at_start = state["num_timesteps"]
        self._n_updates = state["n_updates"]
        th.set_rng_state(state["torch_rng"].cpu())

    def _fingerprint(self, dataset: TrajectoryDataset, labels: Labels) -> int:
        """A number that tells trainings apart: what is cloned, for which tasks, in which portions, how fast."""
        rates = [self.lr_schedule(remaining) for remaining in (1.0, 0.5)]
        value = zlib.crc32(f"{self.batch_size} {self.expectation} {rates} {self.policy}".encode(), dataset.checksum())
        segments = labels.segments
        for array in (segments.start, segments.length, labels.tasks, labels.columns, labels.weights, labels.ends):
            value = zlib.crc32(array.tobytes(), value)
        return value


def _same_space(mine: spaces.Space, theirs: spaces.Space, task_key: str) -> bool:
    """Whether two spaces are the same. The goals of a GoalEnv often have no bounds: then their shape has to do."""
    if mine == theirs or not isinstance(mine, spaces.Dict) or not isinstance(theirs, spaces.Dict):
        return mine == theirs
    goals = mine.spaces.get(task_key)
    has_bounds = not isinstance(goals, spaces.Box) or goals.is_bounded()
    return mine.keys() == theirs.keys() and all(
        mine[key].shape == theirs[key].shape if key == task_key and not has_bounds else mine[key] == theirs[key]
        for key in mine
    )
