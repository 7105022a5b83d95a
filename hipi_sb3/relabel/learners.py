"""What scores need to know of an algorithm: the only module of this folder that looks inside a critic.

To add an algorithm: subclass :class:`Learner` and enter it in ``CLASS_TO_LEARNER``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from hipi_sb3.experience.layout import TaskLayout, each
from hipi_sb3.networks.layers import Layers, PairInputs, is_flat, is_plain, sees_parts_apart
from hipi_sb3.networks.policy_sample import PolicySample

TensorObs = Any  # th.Tensor or dict[str, th.Tensor], as stable-baselines3's policies take it


@dataclass
class Pairs:
    """
    Every row of a batch together with every candidate task.

    :param observations: observations as the policy sees them (normalised), batch_size rows; their task is ignored
    :param next_observations: observations after the step, or after the window, likewise
    :param actions: actions as the critic sees them (scaled to [-1, 1]), (batch_size, action_dim)
    :param tasks: candidate tasks as the policy sees them, (n_tasks, task_dim) or (batch_size, n_tasks, task_dim)
    :param rewards: r_psi as the critic learns it, of a window its discounted sum, (batch_size, n_tasks)
    :param terminated: d_psi, whether it ends the task or the environment, (batch_size, n_tasks)
    :param discounts: gamma^L of a window of L steps, the weight of the value of what follows it, (batch_size, n_tasks)
    :param with_task: ``with_task(observations, tasks)`` puts tasks into observations, row by row
    """

    observations: TensorObs
    next_observations: TensorObs
    actions: th.Tensor
    tasks: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    discounts: th.Tensor
    with_task: Callable[[TensorObs, th.Tensor], TensorObs]

    def tile(self, rows: TensorObs) -> TensorObs:
        """Repeat each row once a task: (batch_size, ...) -> (batch_size * n_tasks, ...)."""
        if isinstance(rows, dict):
            return {key: self.tile(value) for key, value in rows.items()}
        batch_size, n_tasks = self.rewards.shape
        return rows.unsqueeze(1).expand(batch_size, n_tasks, *rows.shape[1:]).reshape(-1, *rows.shape[1:])

    def tile_observations(self, rows: TensorObs) -> TensorObs:
        """Observations of all pairs, task by task within each row: batch_size * n_tasks rows."""
        batch_size, n_tasks = self.rewards.shape
        tasks = self.tasks.expand(batch_size, n_tasks, -1).reshape(batch_size * n_tasks, -1)
        return self.with_task(self.tile(rows), tasks)

    def untile(self, values: th.Tensor) -> th.Tensor:
        """(batch_size * n_tasks, 1) or (batch_size * n_tasks,) -> (batch_size, n_tasks)."""
        return values.reshape(self.rewards.shape)

    def chunks(self, max_pairs: int) -> Iterator["Pairs"]:
        """Split by rows, so that no part has more than max_pairs pairs (or is a single row)."""
        batch_size, n_tasks = self.rewards.shape
        step = max(1, max_pairs // n_tasks)
        for start in range(0, batch_size, step):
            rows = slice(start, start + step)
            yield replace(
                self,
                observations=each(self.observations, itemgetter(rows)),
                next_observations=each(self.next_observations, itemgetter(rows)),
                actions=self.actions[rows],
                tasks=self.tasks if self.tasks.dim() == 2 else self.tasks[rows],
                rewards=self.rewards[rows],
                terminated=self.terminated[rows],
                discounts=self.discounts[rows],
            )


def with_task(layout: TaskLayout, observations: TensorObs, tasks: th.Tensor) -> TensorObs:
    """
    :meth:`TaskLayout.put <hipi_sb3.experience.layout.TaskLayout.put>` for tensors.

    :param layout: where an observation holds its task
    :param observations: observations, (n, ...)
    :param tasks: tasks, (n, task_dim)
    :return: the same observations with other tasks
    """
    if layout.key is not None:
        return layout.put(observations, tasks)
    return th.cat([observations[..., : -layout.task_dim], tasks], dim=-1)


class Learner:
    """
    What scores need to know about an algorithm: its critics, its policy and its entropy temperature.

    This base class fits algorithms with ``critic(observations, actions)`` and a stochastic actor.

    :param model: the algorithm
    :param temperature: T of the soft value where the policy has no entropy temperature of its own (discrete actions); None
        for the greedy value
    """

    #: Whether the algorithm has an entropy temperature alpha.
    has_alpha = True
    #: Whether its policy has a density pi(a | s, psi).
    has_log_prob = True

    def __init__(self, model: OffPolicyAlgorithm, temperature: float | None = None) -> None:
        self.model: Any = model
        self.gamma: float = model.gamma
        self.temperature = temperature

    @property
    def device(self) -> th.device:
        """Where the networks are."""
        return self.model.device

    @property
    def n_updates(self) -> int:
        """Gradient steps so far."""
        return self.model._n_updates

    @property
    def alpha(self) -> float | None:
        """Live entropy temperature; None where the algorithm has none."""
        return float(self.entropy_weight) if self.has_alpha else None

    @property
    def entropy_weight(self) -> th.Tensor | float:
        """Weight of -log pi in values: alpha, where it lives (to read it is to wait for a GPU), or 0 without one."""
        if not self.has_alpha:
            return 0.0
        model = self.model
        return model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()

    def min_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        """Minimum over the critics, (n, 1)."""
        return th.cat(self.model.critic(observations, actions), dim=1).min(dim=1, keepdim=True).values

    def first_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        """The first critic alone, (n, 1)."""
        return self.model.critic.q1_forward(observations, actions)

    def target_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        """Estimate of Q in the algorithm's own Bellman target, (n, 1)."""
        return th.cat(self.model.critic_target(observations, actions), dim=1).min(dim=1, keepdim=True).values

    def policy_sample(self, observations: TensorObs) -> tuple[th.Tensor, th.Tensor]:
        """One action of the policy, (n, action_dim), and its log-probability, (n, 1)."""
        actions, log_prob = self.model.actor.action_log_prob(observations)
        return actions, log_prob.reshape(-1, 1)

    def target_policy_sample(self, observations: TensorObs) -> tuple[th.Tensor, th.Tensor]:
        """As :meth:`policy_sample`, by the policy that the Bellman target uses."""
        return self.policy_sample(observations)

    def next_value(self, next_observations: TensorObs) -> th.Tensor:
        """Value of the next state in the algorithm's own Bellman target, from one sample of its policy, (n, 1)."""
        actions, log_prob = self.target_policy_sample(next_observations)
        return self.target_q(next_observations, actions) - self.entropy_weight * log_prob

    def value(self, observations: TensorObs) -> th.Tensor:
        """V(s, psi) of the current critic and policy, from one sample of the policy, (n, 1)."""
        actions, log_prob = self.policy_sample(observations)
        return self.min_q(observations, actions) - self.entropy_weight * log_prob

    def pair_q(self, pairs: Pairs) -> th.Tensor:
        """Minimum over the critics of Q(s, a, psi), (batch_size, n_tasks)."""
        return pairs.untile(self.min_q(pairs.tile_observations(pairs.observations), pairs.tile(pairs.actions)))

    def pair_value(self, pairs: Pairs) -> th.Tensor:
        """V(s, psi) of the current critic and policy for every task, (batch_size, n_tasks)."""
        return pairs.untile(self.value(pairs.tile_observations(pairs.observations)))

    def pair_next_value(self, pairs: Pairs) -> th.Tensor:
        """Value of the next state for every task as the Bellman target has it, (batch_size, n_tasks)."""
        return pairs.untile(self.next_value(pairs.tile_observations(pairs.next_observations)))

    def log_prob(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        """log pi(a | s, psi) of given actions, (n, 1)."""
        actor = self.model.actor
        mean, log_std, kwargs = actor.get_action_dist_params(observations)
        distribution = actor.action_dist.proba_distribution(mean, log_std, **kwargs)
        # The inverse of tanh has no value on the bound: stay inside it.
        bound = 1.0 - 1e-6
        return distribution.log_prob(actions.clamp(-bound, bound)).reshape(-1, 1)


class SACLearner(Learner):
    """
    SAC: twin critics with targets, a squashed Gaussian policy, entropy temperature alpha.

    Where its networks are plain ones, observations and tasks go through their first layers apart: neither is repeated. Images
    go through the convolutions once a row, not once a candidate.
    """

    #: Which entry of flat observations is the first of the task, once it is known; -1 if none is.
    _first: int | None = None

    def pair_q(self, pairs: Pairs) -> th.Tensor:
        inputs = self._pair_inputs(pairs, pairs.observations, self.model.critic)
        if inputs is None:
            return super().pair_q(pairs)
        inputs = replace(inputs, rows=th.cat([inputs.rows, pairs.actions], dim=1))
        return pairs.untile(self._smallest(self.model.critic, inputs))

    def pair_value(self, pairs: Pairs) -> th.Tensor:
        value = self._pair_value(pairs, pairs.observations, self.model.critic)
        return super().pair_value(pairs) if value is None else value

    def pair_next_value(self, pairs: Pairs) -> th.Tensor:
        value = self._pair_value(pairs, pairs.next_observations, self.model.critic_target)
        return super().pair_next_value(pairs) if value is None else value

    def _pair_value(self, pairs: Pairs, observations: TensorObs, critic: Any) -> th.Tensor | None:
        """V by a critic and one sample of the policy; None where inputs cannot be taken apart."""
        actor = self.model.actor
        inputs = self._pair_inputs(pairs, observations, actor)
        if inputs is None:
            return None
        policy = PolicySample(actor, inputs)
        if not self._is_flat:  # each network has learned to see for itself
            inputs = replace(inputs, rows=self._features(pairs, observations, critic))
        q = self._smallest(critic, replace(inputs, extra=policy.actions))
        return pairs.untile(q - self.entropy_weight * policy.log_prob)

    def _pair_inputs(self, pairs: Pairs, observations: TensorObs, network: Any) -> PairInputs | None:
        """Features of a network and tasks, apart; None where the networks or the observations are of another kind."""
        if not self._is_plain:
            return None
        if self._first is None:
            self._first = self._first_of_task(pairs, observations)
        if self._first < 0:
            return None
        return PairInputs(self._features(pairs, observations, network), pairs.tasks, self._first)

    def _features(self, pairs: Pairs, observations: TensorObs, network: Any) -> th.Tensor:
        """What the layers of a network take of the rows, their task all zero, (batch_size, n)."""
        no_task = pairs.tasks.new_zeros(len(pairs.rewards), pairs.tasks.shape[-1])
        return network.extract_features(pairs.with_task(observations, no_task), network.features_extractor)

    def _first_of_task(self, pairs: Pairs, observations: TensorObs) -> int:
        """Which input is the first of the task; -1 where the networks see something else of it, such as a one-hot code."""
        # On the CPU, whatever the device is, where no weights are involved: nothing has to be read back.
        device = "cpu" if self._is_flat else self.device
        one_row = each(observations, lambda part: part.new_zeros(1, *part.shape[1:], device=device))
        no_task = th.zeros(1, pairs.tasks.shape[-1], device=device)
        one, none = (pairs.with_task(one_row, task) for task in (no_task + 1, no_task))
        if isinstance(one, dict):
            changed = [self.model.observation_space[key] for key in one if not th.equal(one[key], none[key])]
            if any(isinstance(space, spaces.Discrete | spaces.MultiDiscrete) for space in changed):
                return -1  # not every number has a code
        actor = self.model.actor
        seen = (actor.extract_features(observations, actor.features_extractor) for observations in (one, none))
        difference = next(seen)[0] - next(seen)[0]
        first = int(difference.bool().byte().argmax())
        expected = th.zeros_like(difference)
        expected[first : first + no_task.shape[1]] = 1
        return first if th.equal(difference, expected) else -1

    @cached_property
    def _is_flat(self) -> bool:
        model = self.model
        return all(is_flat(network.features_extractor) for network in (model.actor, model.critic, model.critic_target))

    @cached_property
    def _is_plain(self) -> bool:
        model = self.model
        return is_plain(model.actor, model.critic, model.critic_target, extractor_fits=sees_parts_apart)

    @staticmethod
    def _smallest(critic: Any, inputs: PairInputs) -> th.Tensor:
        return th.cat([Layers(network)(inputs) for network in critic.q_networks], dim=1).min(dim=1, keepdim=True).values


class TQCLearner(Learner):
    """TQC: critics of quantiles, (n, n_critics, n_quantiles); their mean is Q."""

    def min_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        return self.model.critic(observations, actions).mean(dim=2).min(dim=1, keepdim=True).values

    def first_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        return self.model.critic(observations, actions)[:, 0].mean(dim=1, keepdim=True)

    def target_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        model = self.model
        quantiles = model.critic_target(observations, actions).flatten(start_dim=1).sort(dim=1).values
        kept = model.critic.quantiles_total - model.top_quantiles_to_drop_per_net * model.critic.n_critics
        return quantiles[:, :kept].mean(dim=1, keepdim=True)


class CrossQLearner(Learner):
    """CrossQ: no target networks, the critic itself with its batch norm in evaluation mode."""

    def first_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        return self.model.critic(observations, actions)[0]

    def target_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        return self.min_q(observations, actions)


class TD3Learner(Learner):
    """TD3 and DDPG: a deterministic policy, so neither alpha nor log pi."""

    has_alpha = False
    has_log_prob = False

    def policy_sample(self, observations: TensorObs) -> tuple[th.Tensor, th.Tensor]:
        actions = self.model.actor(observations)
        return actions, actions.new_zeros(len(actions), 1)

    def target_policy_sample(self, observations: TensorObs) -> tuple[th.Tensor, th.Tensor]:
        model = self.model
        actions = model.actor_target(observations)
        noise = (th.randn_like(actions) * model.target_policy_noise).clamp(-model.target_noise_clip, model.target_noise_clip)
        return (actions + noise).clamp(-1, 1), actions.new_zeros(len(actions), 1)


class DQNLearner(Learner):
    """
    DQN: one network for all actions. The policy at temperature T is exp((Q - V) / T) with the soft value
    V = T log sum_a exp(Q(s, a) / T).
    """

    has_alpha = False
    has_log_prob = False

    def q_values(self, observations: TensorObs) -> th.Tensor:
        """Q of every action, (n, n_actions)."""
        return self.model.q_net(observations)

    def target_q_values(self, observations: TensorObs) -> th.Tensor:
        """Q of every action by the target network, (n, n_actions)."""
        return self.model.q_net_target(observations)

    def soft_value(self, q_values: th.Tensor) -> th.Tensor:
        """V of a state from the Q of its actions, (n, n_actions) -> (n, 1)."""
        if not self.temperature:
            return q_values.max(dim=1, keepdim=True).values
        return self.temperature * th.logsumexp(q_values / self.temperature, dim=1, keepdim=True)

    def min_q(self, observations: TensorObs, actions: th.Tensor) -> th.Tensor:
        return self.q_values(observations).gather(1, actions.long().reshape(-1, 1))

    def next_value(self, next_observations: TensorObs) -> th.Tensor:
        return self.soft_value(self.target_q_values(next_observations))

    def value(self, observations: TensorObs) -> th.Tensor:
        return self.soft_value(self.q_values(observations))


class QRDQNLearner(DQNLearner):
    """QR-DQN: quantiles of every action, (n, n_quantiles, n_actions); their mean is Q."""

    def q_values(self, observations: TensorObs) -> th.Tensor:
        return self.model.quantile_net(observations).mean(dim=1)

    def target_q_values(self, observations: TensorObs) -> th.Tensor:
        return self.model.quantile_net_target(observations).mean(dim=1)


CLASS_TO_LEARNER: dict[type[OffPolicyAlgorithm], type[Learner]] = {
    SAC: SACLearner,
    TD3: TD3Learner,  # DDPG too
    DQN: DQNLearner,
    TQC: TQCLearner,
    CrossQ: CrossQLearner,
    QRDQN: QRDQNLearner,
}


def learner_class(model: OffPolicyAlgorithm) -> type[Learner]:
    """
    The view that fits an algorithm.

    :param model: the algorithm
    :return: class of its view
    :raises TypeError: when the algorithm is not supported
    """
    for algorithm, learner in CLASS_TO_LEARNER.items():
        if isinstance(model, algorithm):
            return learner
    raise TypeError(
        f"Scores know {', '.join(algorithm.__name__ for algorithm in CLASS_TO_LEARNER)}, not {type(model).__name__}. "
        "Strategies without scores ('none', 'random', 'final', 'future') work with every off-policy algorithm."
    )


@contextmanager
def evaluation_mode(policy: BasePolicy) -> Iterator[None]:
    """Score without dropout and without touching batch statistics, whatever mode the update is in."""
    training = policy.training
    if training:
        policy.set_training_mode(False)
    try:
        yield
    finally:
        if training:
            policy.set_training_mode(True)
