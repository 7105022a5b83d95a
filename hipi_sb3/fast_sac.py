"""SAC's update, the same numbers in less time."""

import math
from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.nn import functional as F

#: Layers that do the same in training and in evaluation, so that the mode need not be switched for each update.
_LAYERS = (nn.Linear, nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)


class FastSAC(SAC):
    """
    Soft actor-critic with the update of :meth:`stable_baselines3.SAC.train`, step for step and random number for random
    number, but without its waste:

    - observations are flattened once a batch, not once for each of six passes through the networks;
    - layers are called directly and the policy is sampled in closed form, without modules, hooks and distribution objects;
    - the actor's loss leaves no gradients in the critics;
    - Adam and the target networks are updated by fused kernels;
    - losses are read back when they are logged, not in every step, which on a GPU would wait for it.

    Where one of these would change the result (a learned or shared feature extractor, gSDE, another optimiser, layers other
    than linear ones and activations), the update of stable-baselines3 runs as it is.
    """

    _losses: dict[str, th.Tensor] | None = None

    def _setup_model(self) -> None:
        super()._setup_model()
        optimizers = [self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer]
        networks = [self.actor.latent_pi, *self.critic.q_networks]
        self._is_fast = (
            not self.use_sde
            and all(_is_flat(network.features_extractor) for network in (self.actor, self.critic, self.critic_target))
            and all(type(layer) in _LAYERS for network in networks for layer in network.children())
            and all(type(optimizer) is th.optim.Adam for optimizer in optimizers if optimizer is not None)
        )
        if self._is_fast:
            for optimizer in (self.actor.optimizer, self.critic.optimizer):
                for group in optimizer.param_groups:
                    group["fused"] = True

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
        actor: list[th.Tensor] = list(self.actor.parameters())
        critics: list[th.Tensor] = list(self.critic.parameters())
        targets: list[th.Tensor] = list(self.critic_target.parameters())

        for gradient_step in range(gradient_steps):
            assert self.replay_buffer is not None
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            discounts = self.gamma if data.discounts is None else data.discounts
            features = self.actor.extract_features(data.observations, self.actor.features_extractor)
            next_features = self.actor.extract_features(data.next_observations, self.actor.features_extractor)

            actions_pi, log_prob = self._action_log_prob(features)
            ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else th.exp(self.log_ent_coef.detach())
            losses = {"ent_coef": ent_coef}
            if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
                assert isinstance(self.target_entropy, float)
                # The loss is linear in log alpha: this is its slope.
                self.log_ent_coef.grad = -(log_prob.detach().mean() + self.target_entropy).reshape(self.log_ent_coef.shape)
                losses["ent_coef_loss"] = self.log_ent_coef.detach() * self.log_ent_coef.grad
                self.ent_coef_optimizer.step()

            with th.no_grad():
                next_actions, next_log_prob = self._action_log_prob(next_features)
                next_q = th.cat(_q_values(self.critic_target.q_networks, next_features, next_actions), dim=1)
                next_value = next_q.min(dim=1, keepdim=True).values - ent_coef * next_log_prob
                target_q = data.rewards + (1 - data.dones) * discounts * next_value

            current_q = _q_values(self.critic.q_networks, features, data.actions)
            critic_loss = th.stack([F.mse_loss(q, target_q) for q in current_q]).sum() * 0.5
            self.critic.optimizer.zero_grad()
            critic_loss.backward(inputs=critics)
            self.critic.optimizer.step()

            q_pi = th.cat(_q_values(self.critic.q_networks, features, actions_pi), dim=1)
            actor_loss = (ent_coef * log_prob - q_pi.min(dim=1, keepdim=True).values).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward(inputs=actor)
            self.actor.optimizer.step()

            if gradient_step % self.target_update_interval == 0:
                with th.no_grad():
                    th._foreach_lerp_(targets, critics, self.tau)
            self._losses = losses | {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _action_log_prob(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Sample the policy: flat observations -> actions, (batch_size, action_dim), and log pi, (batch_size, 1).

        In closed form what SquashedDiagGaussianDistribution does with a distribution object.
        """
        actor = self.actor
        latent = _forward(actor.latent_pi, features)
        mean = _forward([actor.mu], latent)
        log_std = _forward([actor.log_std], latent).clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = th.randn_like(mean)
        actions = th.tanh(mean + log_std.exp() * noise)
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - th.log(1 - actions**2 + actor.action_dist.epsilon)
        return actions, log_prob.sum(dim=1, keepdim=True)

    def dump_logs(self) -> None:
        """Write log data, the losses of the last update among them."""
        for name, value in (self._losses or {}).items():
            self.logger.record(f"train/{name}", float(value))
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_losses"]


def _is_flat(extractor: nn.Module) -> bool:
    """Whether a feature extractor only flattens and concatenates."""
    if isinstance(extractor, CombinedExtractor):
        return all(type(part) is nn.Flatten for part in extractor.extractors.values())
    return type(extractor) is FlattenExtractor


def _forward(layers: Iterable[Any], values: th.Tensor) -> th.Tensor:
    """Pass through layers, without the detour of calling modules, which small networks feel."""
    for layer in layers:
        if type(layer) is nn.Linear:
            values = F.linear(values, layer.weight, layer.bias)
        elif type(layer) is nn.ReLU:
            values = F.relu(values)
        else:
            values = layer(values)
    return values


def _q_values(q_networks: Iterable[Any], features: th.Tensor, actions: th.Tensor) -> list[th.Tensor]:
    """Q of every critic, (batch_size, 1) each."""
    inputs = th.cat([features, actions], dim=1)
    return [_forward(q_network, inputs) for q_network in q_networks]
