"""Algorithms of stable-baselines3 and sb3-contrib with HIPI's replay buffer as their default: HIPI-RL (arXiv 2002.11089)."""

from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, TD3
from stable_baselines3.common.buffers import ReplayBuffer

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.fast_sac import FastSAC


class HindsightInference:
    """
    Mixin for off-policy algorithms: relabel experience by hindsight inference, unless another buffer is asked for.

    ``HIPISAC(policy, env, ...)`` is ``SAC(policy, env, replay_buffer_class=HIPIReplayBuffer, ...)``, with all of SAC's
    arguments in SAC's order. Options of the method go to ``replay_buffer_kwargs``, see
    :class:`~hipi_sb3.buffers.HIPIReplayBuffer`; the environment needs a task family, see
    :class:`~hipi_sb3.wrappers.MultiTaskWrapper`.
    """

    replay_buffer_class: type[ReplayBuffer] | None

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = HIPIReplayBuffer
        super()._setup_model()  # type: ignore[misc]  # that of the algorithm


class HIPISAC(HindsightInference, FastSAC):
    """
    Soft actor-critic that relabels its experience by hindsight inference, with a faster update, see
    :class:`~hipi_sb3.fast_sac.FastSAC`.
    """


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
