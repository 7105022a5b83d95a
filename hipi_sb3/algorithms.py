"""Algorithms of stable-baselines3 and sb3-contrib with HIPI's replay buffer as their default: HIPI-RL (arXiv 2002.11089)."""

import warnings
from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.cloning.bc import HIPIBC
from hipi_sb3.networks.fast_sac import FastSAC
from hipi_sb3.overlap import UpdatesWhileStepping
from hipi_sb3.saved_models import PlainFiles
from hipi_sb3.tasks.learnable import check_action_space


class HindsightInference(UpdatesWhileStepping, PlainFiles):
    """
    Mixin for off-policy algorithms: relabel experience by hindsight inference, unless another buffer is asked for.

    ``HIPISAC(policy, env, ...)`` is ``SAC(policy, env, replay_buffer_class=HIPIReplayBuffer, ...)``, with all of SAC's
    arguments in SAC's order. Options of the method go to ``replay_buffer_kwargs``, see
    :class:`~hipi_sb3.buffers.HIPIReplayBuffer`; the environment needs a task family, see
    :class:`~hipi_sb3.wrappers.MultiTaskWrapper`.
    """

    replay_buffer_class: type[ReplayBuffer] | None
    replay_buffer: ReplayBuffer | None

    @classmethod
    def _wrap_env(cls, env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # Before stable-baselines3 does, whose error names no remedy.
        check_action_space(cls.__name__, env.action_space)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = HIPIReplayBuffer
        with warnings.catch_warnings():
            # HIPIReplayBuffer takes n_steps and gamma from its algorithm.
            warnings.filterwarnings("ignore", r"`n_steps=\d+` is ignored because a custom `replay_buffer_class`")
            super()._setup_model()  # type: ignore[misc]  # that of the algorithm

    def _explore_anew(self) -> None:
        """With gSDE, draw an exploration matrix for each environment: updates draw a single one."""
        if getattr(self, "use_sde", False):
            self.actor.reset_noise(self.env.num_envs)  # type: ignore[attr-defined]


class HIPISAC(HindsightInference, FastSAC):
    """
    Soft actor-critic that relabels its experience by hindsight inference, with a faster update, see
    :class:`~hipi_sb3.networks.fast_sac.FastSAC`.
    """

    @classmethod
    def from_bc(cls, bc: HIPIBC | str | Path, env: GymEnv | str, **kwargs: Any) -> "HIPISAC":
        """
        Make a learner whose actor is a cloned policy, to improve it from there.

        :param bc: a :class:`~hipi_sb3.cloning.bc.HIPIBC` with Box actions, or the path of a saved one
        :param env: environment
        :param kwargs: arguments of the algorithm. Of ``policy_kwargs`` the actor's architecture is that of the cloned policy;
            the critics get it too unless ``net_arch=dict(qf=[...])`` says otherwise
        :return: the learner; its critics are new
        :raises ValueError: when the spaces differ or the actions are discrete
        """
        if not isinstance(bc, HIPIBC):
            bc = HIPIBC.load(bc, device=kwargs.get("device", "auto"))
        policy = bc.policy
        if policy.is_discrete:
            raise ValueError(f"SAC needs Box actions, but the cloned policy has {bc.action_space}.")
        policy_kwargs = dict(kwargs.pop("policy_kwargs", None) or {})
        net_arch = policy_kwargs.get("net_arch", {})
        critic_arch = net_arch.get("qf", policy.net_arch) if isinstance(net_arch, dict) else net_arch
        policy_kwargs |= {
            "net_arch": {"pi": policy.net_arch, "qf": critic_arch},
            "activation_fn": policy.activation_fn,
            "features_extractor_class": policy.features_extractor_class,
            "features_extractor_kwargs": policy.features_extractor_kwargs,
            "normalize_images": policy.normalize_images,
        }
        name = "MultiInputPolicy" if isinstance(bc.observation_space, spaces.Dict) else "MlpPolicy"
        model = cls(name, env, policy_kwargs=policy_kwargs, **kwargs)
        assert model.env is not None
        check_for_correct_spaces(model.env, bc.observation_space, bc.action_space)
        model.actor.load_state_dict(policy.actor.state_dict())
        return model


class HIPITD3(HindsightInference, TD3):
    """TD3 that relabels its experience by hindsight inference."""


class HIPIDDPG(HindsightInference, DDPG):
    """DDPG that relabels its experience by hindsight inference."""


class HIPIDQN(HindsightInference, DQN):
    """DQN that relabels its experience by hindsight inference."""


class HIPITQC(HindsightInference, TQC):
    """TQC that relabels its experience by hindsight inference."""


class HIPICrossQ(HindsightInference, CrossQ):
    """CrossQ that relabels its experience by hindsight inference; takes the flat observation of ``flatten=True``."""


class HIPIQRDQN(HindsightInference, QRDQN):
    """QR-DQN that relabels its experience by hindsight inference."""
