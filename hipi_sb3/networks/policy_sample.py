"""One action of a squashed Gaussian policy in each state, and its gradient, in closed form."""

import math
from typing import Any

import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

from hipi_sb3.networks.layers import Layers, PairInputs


class PolicySample:
    """
    One action of a squashed Gaussian policy in each state, in closed form what ``SquashedDiagGaussianDistribution`` does with
    a distribution object: a = tanh(u), u = mu + sigma epsilon, log pi = log N(u) - sum log(1 - a^2).

    :param actor: SAC's actor
    :param features: flat observations, (batch_size, n), or those of pairs
    :param deterministic: epsilon = 0: the action that the mean gives
    """

    def __init__(self, actor: Any, features: th.Tensor | PairInputs, deterministic: bool = False) -> None:
        self.latent_pi, self.mu, self.log_std = Layers(actor.latent_pi), Layers([actor.mu]), Layers([actor.log_std])
        latent = self.latent_pi(features)
        mean, raw = self.mu(latent), self.log_std(latent)
        log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = th.zeros_like(mean) if deterministic else th.randn_like(mean)
        self.deviation = log_std.exp() * noise
        #: Actions in [-1, 1], (batch_size, action_dim).
        self.actions = th.tanh(mean + self.deviation)
        self.slope = 1 - self.actions**2
        self.volume = self.slope + actor.action_dist.epsilon
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - th.log(self.volume)
        #: log pi(a | s), (batch_size, 1).
        self.log_prob = log_prob.sum(dim=1, keepdim=True)
        self.is_inside = raw == log_std

    def backward(self, grad_actions: th.Tensor, grad_log_prob: th.Tensor) -> None:
        """
        Write the gradients of the actor's parameters.

        :param grad_actions: dL / da, (batch_size, action_dim)
        :param grad_log_prob: dL / d log pi of every row, a number
        """
        # log pi has -log(1 - a^2 + eps), whose slope in a is 2 a / (1 - a^2 + eps), and da / du = 1 - a^2.
        grad_mean = (grad_actions + grad_log_prob * 2 * self.actions / self.volume) * self.slope
        grad_log_std = (grad_mean * self.deviation - grad_log_prob) * self.is_inside
        grad_latent = self.mu.input_gradient(grad_mean, parameters=True)
        self.latent_pi.backward(grad_latent + self.log_std.input_gradient(grad_log_std, parameters=True))
