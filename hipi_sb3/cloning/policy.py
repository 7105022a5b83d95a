"""The policy of HIPI-BC: pi(a | s, psi), with SAC's actor or a categorical."""

from pathlib import Path
from typing import Any, Self

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import ConstantSchedule, get_device
from stable_baselines3.dqn.policies import QNetwork
from stable_baselines3.sac.policies import Actor
from torch import nn

from hipi_sb3.saved_models import NotPlain, decode, encode, read_tensors

#: Scaled actions are cloned inside these bounds: tanh reaches its limits nowhere, and the likelihood of an action on the bound
#: would be all that counts.
MAX_ACTION = 0.999


class TaskConditionedBCPolicy(BasePolicy):
    """
    pi(a | s, psi), to be cloned: SAC's actor (a squashed Gaussian) for Box actions, a categorical for Discrete ones.

    :param observation_space: observation space, with the task
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param net_arch: units of the hidden layers
    :param activation_fn: activation function
    :param log_std_min: least log standard deviation in the likelihood. Actions of a deterministic policy would otherwise drive
        it down for ever, and with it the learning of everything else
    :param features_extractor_class: features extractor; that of stable-baselines3 for Dict or flat observations if None
    :param features_extractor_kwargs: its arguments
    :param normalize_images: whether images are divided by 255
    :param optimizer_class: optimizer
    :param optimizer_kwargs: its arguments, the learning rate excepted
    """

    actor: Any  # Actor, or QNetwork whose values are the logits

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        log_std_min: float = -4.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if features_extractor_class is None:
            features_extractor_class = CombinedExtractor if isinstance(observation_space, spaces.Dict) else FlattenExtractor
        self.is_discrete = isinstance(action_space, spaces.Discrete)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=not self.is_discrete,
        )
        self.net_arch = [256, 256] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.log_std_min = log_std_min
        network = self._update_features_extractor(
            {
                "observation_space": observation_space,
                "action_space": action_space,
                "net_arch": self.net_arch,
                "activation_fn": activation_fn,
                "normalize_images": normalize_images,
            }
        )
        self.actor = QNetwork(**network) if self.is_discrete else Actor(**network)
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        log pi(a | s, psi).

        :param obs: observations with tasks, (batch_size, ...)
        :param actions: actions of the shape of the space, (batch_size, ...), scaled to [-1, 1], or (batch_size,) if discrete
        :return: log-likelihood, (batch_size,)
        """
        if self.is_discrete:
            return th.log_softmax(self.actor(obs), dim=1).gather(1, actions.long()[:, None])[:, 0]  # over actions
        mean, log_std, _ = self.actor.get_action_dist_params(obs)
        distribution = self.actor.action_dist.proba_distribution(mean, log_std.clamp(min=self.log_std_min))
        return distribution.log_prob(actions.clamp(-MAX_ACTION, MAX_ACTION).flatten(start_dim=1))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if not self.is_discrete:
            return self.actor(observation, deterministic)
        logits = self.actor(observation)
        if deterministic:
            return logits.argmax(dim=1)
        return th.distributions.Categorical(logits=logits).sample()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "log_std_min": self.log_std_min,
            "lr_schedule": ConstantSchedule(0.0),
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def save(self, path: str | Path) -> None:
        """
        Save the policy: tensors and plain values. Only with a class of your own among its arguments is it pickled, as
        stable-baselines3 does.

        :param path: file
        """
        try:
            plain = encode(self._get_constructor_parameters())
        except NotPlain:
            super().save(path)  # type: ignore[arg-type]
        else:
            th.save({"state_dict": self.state_dict(), "plain": plain}, path)

    @classmethod
    def load(cls, path: str | Path, device: th.device | str = "auto", trust: bool = False) -> Self:
        """
        Load a policy.

        :param path: file
        :param device: PyTorch device
        :param trust: whether to unpickle what is pickled in the file, which runs whatever code its writer put there
        :return: the policy
        :raises ValueError: when it is pickled and not trusted, or damaged
        """
        try:
            saved = read_tensors(path, get_device(device))
        except ValueError as error:
            if trust:
                return super().load(path, device)  # type: ignore[arg-type]
            raise ValueError(
                f"{error} Reading pickled objects runs whatever code their writer put there; an earlier version wrote them, "
                "and a policy with a class of yours has them. If you know where the file comes from, pass trust=True."
            ) from error
        try:
            policy = cls(**decode(saved["plain"]))
            policy.load_state_dict(saved["state_dict"])
        except Exception as error:  # whatever the constructor says to such arguments
            raise ValueError(f"{path} is no {cls.__name__} as save wrote it: {error}") from error
        return policy.to(get_device(device))
