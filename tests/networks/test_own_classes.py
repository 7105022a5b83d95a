"""Extractors, actors, critics and policies of a user's own classes: each does what its base does, and something more."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor, MultiInputPolicy
from test_fast_sac import assert_same_parameters, trained

from hipi_sb3 import HIPISAC
from hipi_sb3.relabel.learners import SACLearner


class Doubled(CombinedExtractor):
    def forward(self, observations: Any) -> th.Tensor:
        return 2 * super().forward(observations)


class Widened(CombinedExtractor):
    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space)
        self._features_dim += 3

    def forward(self, observations: Any) -> th.Tensor:
        return th.nn.functional.pad(super().forward(observations), (0, 3))


class Learned(CombinedExtractor):
    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space)
        self.layer = th.nn.Linear(self.features_dim, 5)
        self._features_dim = 5

    def forward(self, observations: Any) -> th.Tensor:
        return self.layer(super().forward(observations))


class Unchanged(CombinedExtractor):
    """Of which nobody can know that it is."""


class FromScratch(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, features_dim=2)
        self.extractors = th.nn.ModuleDict()

    def forward(self, observations: Any) -> th.Tensor:
        return th.cat([observations["observation"][:, :1], observations["task"]], dim=1)


class SquaredFlat(FlattenExtractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) ** 2


class BoldActor(Actor):
    def get_action_dist_params(self, obs: Any) -> Any:
        mean, log_std, kwargs = super().get_action_dist_params(obs)
        return 3 * mean, log_std, kwargs


class ShyCritic(ContinuousCritic):
    def forward(self, obs: Any, actions: th.Tensor) -> Any:
        return tuple(0.5 * q for q in super().forward(obs, actions))


class BoldPolicy(MultiInputPolicy):
    def make_actor(self, features_extractor: Any = None) -> Actor:
        return BoldActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


class ShyPolicy(MultiInputPolicy):
    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        return ShyCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)


class Residual(th.nn.Sequential):
    def forward(self, values: th.Tensor) -> th.Tensor:
        return values.sum(dim=1, keepdim=True) + super().forward(values)


class ResidualPolicy(MultiInputPolicy):
    def make_actor(self, features_extractor: Any = None) -> Actor:
        actor = super().make_actor(features_extractor)
        actor.latent_pi = Residual(*actor.latent_pi)
        return actor


class OppositePolicy(MultiInputPolicy):
    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return -super()._predict(observation, deterministic)


OWN_CLASSES: dict[str, dict[str, Any]] = {
    **{
        kind.__name__: {"policy_kwargs": {"features_extractor_class": kind}} for kind in (Doubled, Widened, Learned, Unchanged)
    },
    "FromScratch": {"policy_kwargs": {"features_extractor_class": FromScratch}},
    "shared": {"policy_kwargs": {"features_extractor_class": Learned, "share_features_extractor": True}},
    "SquaredFlat": {"flatten": True, "policy_kwargs": {"features_extractor_class": SquaredFlat}},
    **{kind.__name__: {"policy": kind} for kind in (BoldPolicy, ShyPolicy, ResidualPolicy)},
}


@pytest.mark.parametrize("kwargs", OWN_CLASSES.values(), ids=OWN_CLASSES)
def test_classes_of_ones_own_are_left_to_sac_and_asked_for_their_scores(kwargs: dict[str, Any]) -> None:
    for options in ({}, {"replay_buffer_kwargs": {"score": "advantage"}}):
        fast, slow = trained(HIPISAC, 20, **kwargs, **options), trained(SAC, 20, **kwargs, **options)
        assert not fast._is_fast and not SACLearner(fast)._is_plain
        assert_same_parameters(fast, slow, atol=0)
        obs = fast.observation_space.sample()
        assert_array_equal(fast.predict(obs, deterministic=True)[0], slow.predict(obs, deterministic=True)[0])


def test_a_policy_that_predicts_in_its_own_way_is_asked() -> None:
    fast, slow = trained(HIPISAC, 20, policy=OppositePolicy), trained(SAC, 20, policy=OppositePolicy)
    plain = trained(HIPISAC, 20)
    plain.policy.load_state_dict(fast.policy.state_dict())
    obs = {"observation": np.array([0.5, 0.2], np.float32), "task": np.array([-0.4], np.float32)}
    action = fast.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(action, -plain.predict(obs, deterministic=True)[0], atol=1e-6)
    assert fast._is_fast and abs(action) > 1e-4
    np.testing.assert_allclose(action, slow.predict(obs, deterministic=True)[0], atol=1e-4)
