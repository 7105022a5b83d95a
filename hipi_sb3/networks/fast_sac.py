"""SAC's update, the same numbers in less time."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.sac.policies import SACPolicy

from hipi_sb3.networks.layers import Layers, is_plain
from hipi_sb3.networks.policy_sample import PolicySample
from hipi_sb3.networks.update_graph import Samples, UpdateGraph, tensors_of

#: Updates of each kind before it is recorded: by then libraries have chosen their kernels and optimizers have their state.
_N_WARM_UP = 3

_OF_RECORDING = ("_graphs", "_recorded_for", "_warm_ups", "_recorded_lr")


class FastSAC(SAC):
    """
    Soft actor-critic with the update of :meth:`stable_baselines3.SAC.train`, step for step and random number for random
    number, but without its waste:

    - observations are flattened once a batch, not once for each of six passes through the networks;
    - layers are called directly and the policy is sampled in closed form, without modules, hooks and distribution objects;
    - gradients are written out by hand, which spares recording each operation, and the gradient of the actor's loss goes
      through the critics without leaving anything there;
    - Adam and the target networks are updated by fused kernels;
    - losses are read back when they are logged, not in every step, which on a GPU would wait for it.

    Where one of these would change the result (a learned or shared feature extractor, gSDE, another optimiser, layers that
    :class:`~hipi_sb3.networks.layers.Layers` does not know, an extractor, actor or critic of a class of yours), the update of
    stable-baselines3 runs as it is.
    """

    #: Whether to record the update as a CUDA graph after the first ones and to replay it from then on, see
    #: :class:`~hipi_sb3.networks.update_graph.UpdateGraph`: ``model.cuda_graph = True`` before ``learn``. Without CUDA,
    #: and where the update of stable-baselines3 runs, it changes nothing.
    cuda_graph = False

    _is_fast = False
    _losses: dict[str, th.Tensor] | None = None

    def _setup_model(self) -> None:
        super()._setup_model()
        optimizers = [self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer]
        self._is_fast = (
            not self.use_sde
            and is_plain(self.actor, self.critic, self.critic_target)
            and all(is_plain_adam(optimizer) for optimizer in optimizers if optimizer is not None)
        )
        if self._is_fast:
            # A loaded state is then put where the kernel wants it.
            for optimizer in filter(None, optimizers):
                optimizer.param_groups[0]["fused"] = True
        self._forget_recorded()

    @property
    def _records(self) -> bool:
        return self.cuda_graph and self._is_fast and self.device.type == "cuda"

    def _forget_recorded(self) -> None:
        self._graphs: dict[tuple[Any, ...], UpdateGraph] = {}
        self._recorded_for: tuple[Any, ...] = ()
        self._warm_ups: Counter[tuple[Any, ...]] = Counter()
        self._recorded_lr: th.Tensor | None = None  # a recorded update reads the learning rate from here

    def __getstate__(self) -> dict[str, Any]:
        # A copy learns by itself: what was recorded would change the tensors of the original.
        return {key: value for key, value in self.__dict__.items() if key not in _OF_RECORDING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_recorded()

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Sample the replay buffer and update actor, critics, entropy temperature and targets.

        :param gradient_steps: number of updates
        :param batch_size: transitions an update
        """
        if not self._is_fast:
            super().train(gradient_steps, batch_size)
            return
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        update = self._update
        if self._records:
            lr = self.actor.optimizer.param_groups[0]["lr"]  # which stable-baselines3 has just set for all
            self._recorded_lr = th.tensor(lr, device=self.device) if self._recorded_lr is None else self._recorded_lr.fill_(lr)
            update = self._recorded_update
        elif self._recorded_lr is not None:  # it was switched off
            self._forget_recorded()
        for gradient_step in range(gradient_steps):
            assert self.replay_buffer is not None
            # Outside of no_grad: an estimator of log Z may learn when a batch is relabeled.
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with th.no_grad():
                self._losses = update(data, update_targets=gradient_step % self.target_update_interval == 0)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _recorded_update(self, data: Samples, update_targets: bool) -> dict[str, th.Tensor]:
        """:meth:`_update` by its recording, which is made here when there is none."""
        recorded_for = self._what_recordings_rely_on()
        if recorded_for != self._recorded_for:
            self._graphs, self._recorded_for = {}, recorded_for
        key = (update_targets, *(tensor.shape for tensor in tensors_of(data)))
        if key not in self._graphs:
            if self._warm_ups[key] < _N_WARM_UP:
                self._warm_ups[key] += 1
                return self._update(data, update_targets)
            self._graphs[key] = UpdateGraph(lambda batch: self._update(batch, update_targets), data)
        return self._graphs[key](data)

    def _what_recordings_rely_on(self) -> tuple[Any, ...]:
        """Numbers that a recording holds, and where the tensors are that it changes: loading a model moves some of them."""
        optimizers = [self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer]
        tensors = [*self.policy.parameters(), self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef]
        numbers: list[Any] = [self.gamma, self.tau, self.target_entropy]
        for optimizer in filter(None, optimizers):
            numbers += [optimizer.param_groups[0][key] for key in ("betas", "eps", "weight_decay")]
            tensors += [tensor for of_parameter in optimizer.state.values() for tensor in of_parameter.values()]
        return (*numbers, *(tensor.data_ptr() for tensor in tensors))

    def _update(self, data: Samples, update_targets: bool) -> dict[str, th.Tensor]:
        """One update, as :meth:`stable_baselines3.SAC.train` has it in its loop."""
        batch_size = len(data.rewards)
        discounts = self.gamma if data.discounts is None else data.discounts
        features = self.actor.extract_features(data.observations, self.actor.features_extractor)
        next_features = self.actor.extract_features(data.next_observations, self.actor.features_extractor)
        critics, targets = ([Layers(network) for network in critic.q_networks] for critic in (self.critic, self.critic_target))

        policy = PolicySample(self.actor, features)
        ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else th.exp(self.log_ent_coef)
        losses = {"ent_coef": ent_coef}
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            assert isinstance(self.target_entropy, float)
            # The loss is linear in log alpha: this is its slope.
            self.log_ent_coef.grad = -(policy.log_prob.mean() + self.target_entropy).reshape(self.log_ent_coef.shape)
            losses["ent_coef_loss"] = self.log_ent_coef * self.log_ent_coef.grad
            adam_step(self.ent_coef_optimizer, self._recorded_lr)

        next_policy = PolicySample(self.actor, next_features)
        next_inputs = th.cat([next_features, next_policy.actions], dim=1)
        next_q = th.cat([target(next_inputs) for target in targets], dim=1)
        next_value = next_q.min(dim=1, keepdim=True).values - ent_coef * next_policy.log_prob
        target_q = data.rewards + (1 - data.dones) * discounts * next_value

        # Loss 0.5 sum_i mean (Q_i - target)^2
        inputs = th.cat([features, data.actions], dim=1)
        errors = [critic(inputs) - target_q for critic in critics]
        for critic, error in zip(critics, errors, strict=True):
            critic.backward(error / batch_size)
        losses["critic_loss"] = 0.5 * th.cat(errors, dim=1).square().sum() / batch_size
        adam_step(self.critic.optimizer, self._recorded_lr)

        # Loss mean (alpha log pi - min_i Q_i)
        inputs = th.cat([features, policy.actions], dim=1)
        q_pi, smallest = th.cat([critic(inputs) for critic in critics], dim=1).min(dim=1, keepdim=True)
        grad_inputs = [critic.input_gradient((smallest == i) * (-1.0 / batch_size)) for i, critic in enumerate(critics)]
        policy.backward(th.stack(grad_inputs).sum(dim=0)[:, features.shape[1] :], ent_coef / batch_size)
        losses["actor_loss"] = (ent_coef * policy.log_prob - q_pi).mean()
        adam_step(self.actor.optimizer, self._recorded_lr)

        if update_targets:
            th._foreach_lerp_(list(self.critic_target.parameters()), list(self.critic.parameters()), self.tau)
        return losses

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for observations, as :meth:`stable_baselines3.SAC.predict` gives them.

        :param observation: observation, or a batch of them
        :param state: ignored: the policy has none
        :param episode_start: ignored likewise
        :param deterministic: the mean action instead of a sample
        :return: action, or a batch of them, and ``state``
        """
        # What reset() returned is a tuple: SAC says what is wrong.
        if not self._is_fast or isinstance(observation, tuple) or not _predicts_as_sac(type(self.policy)):
            return super().predict(observation, state, episode_start, deterministic)
        with th.no_grad():
            tensors, is_batch = self.policy.obs_to_tensor(observation)
            features = self.actor.extract_features(tensors, self.actor.features_extractor)
            actions = PolicySample(self.actor, features, deterministic).actions.cpu().numpy()
        actions = self.policy.unscale_action(actions.reshape(-1, *self.action_space.shape))  # type: ignore[misc]
        return (actions if is_batch else actions[0]), state

    def dump_logs(self) -> None:
        """Write log data, the losses of the last update among them."""
        for name, value in (self._losses or {}).items():
            self.logger.record(f"train/{name}", float(value))
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_losses", *_OF_RECORDING]


@cache
def _predicts_as_sac(policy: type) -> bool:
    """Whether a class of policies has SAC's own way from observations to actions."""
    return all(getattr(policy, name) is getattr(SACPolicy, name) for name in ("predict", "_predict", "forward"))


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    Whether :func:`adam_step` is what the optimizer's own step would do.

    :param optimizer: optimizer
    :return: whether it is Adam with one group of parameters and without its variants
    """
    group = optimizer.param_groups[0]
    variants = ("amsgrad", "maximize", "differentiable", "capturable", "decoupled_weight_decay")
    return type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1 and not any(map(group.get, variants))


def adam_step(optimizer: th.optim.Optimizer, lr: th.Tensor | None = None) -> None:
    """
    ``optimizer.step()`` as one kernel. What PyTorch does around that kernel (hooks, profiling, sorting tensors by device)
    takes longer than the kernel itself for small networks. The state stays in the optimizer, where it is saved and loaded.

    :param optimizer: Adam, see :func:`is_plain_adam`; all of its parameters have gradients
    :param lr: learning rate, where it has to be read from a tensor; the optimizer's if None
    """
    group, state = optimizer.param_groups[0], optimizer.state
    parameters = group["params"]
    for parameter in parameters:
        if not state[parameter]:
            zeros = [th.zeros_like(parameter, memory_format=th.preserve_format) for _ in range(2)]
            step = th.zeros((), dtype=th.float32, device=parameter.device)
            state[parameter].update(step=step, exp_avg=zeros[0], exp_avg_sq=zeros[1])
    steps, averages, squares = (
        [state[parameter][key] for parameter in parameters] for key in ("step", "exp_avg", "exp_avg_sq")
    )
    th._foreach_add_(steps, 1)
    th._fused_adam_(
        parameters,
        [parameter.grad for parameter in parameters],
        averages,
        squares,
        [],
        steps,
        amsgrad=False,
        lr=group["lr"] if lr is None else lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
