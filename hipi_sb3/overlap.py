"""Updates while the environments step: with environments in other processes neither waits for the other."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class UpdatesWhileStepping:
    """
    Mixin for off-policy algorithms: where :attr:`update_while_stepping` is set, the updates that follow a rollout are made
    during the first step of the next one, after its actions were sent and before its results are asked for.

    Those actions come from the policy before these updates, and the updates do not know that step yet: one step of lag, and
    nothing else changes. When an update is made depends on no clock, so a seed gives the same run in this process
    (``DummyVecEnv``, which gains nothing) as in others (``SubprocVecEnv``, ``RayVecEnv``).
    """

    #: Whether to update while the environments step: ``model.update_while_stepping = True`` before ``learn``. It pays where a
    #: step takes about as long as the updates, in processes of their own.
    update_while_stepping = False

    num_timesteps: int
    _total_timesteps: int
    _may_owe = False
    _owed: tuple[int, int] | None = None
    _overlapped: "UpdateBeforeWaiting | None" = None

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        Collect a rollout as the algorithm does, and make the updates that are owed during its first step.

        :param env: environments
        :param args: as in stable-baselines3
        :param kwargs: as in stable-baselines3
        :return: what the algorithm returns
        :raises ValueError: when updates would ask an environment for rewards in the middle of its step
        """
        if self.update_while_stepping:
            check_asks_no_env(self.replay_buffer)  # type: ignore[attr-defined]
            if self._overlapped is None or self._overlapped.venv is not env:
                self._overlapped = UpdateBeforeWaiting(env, self._pay)
            env = self._overlapped
        rollout = super().collect_rollouts(env, *args, **kwargs)  # type: ignore[misc]  # that of the algorithm
        # A training that stops here has no next step.
        self._may_owe = rollout.continue_training and self.num_timesteps < self._total_timesteps
        return rollout

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Make the updates, or owe them to the next step: those that follow a rollout of ``learn``, but for the last.

        :param gradient_steps: number of updates
        :param batch_size: transitions an update
        """
        if self.update_while_stepping and self._may_owe:
            self._owed, self._may_owe = (gradient_steps, batch_size), False
        else:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]

    def _pay(self) -> None:
        if self._owed is None:
            return
        (gradient_steps, batch_size), self._owed = self._owed, None
        super().train(gradient_steps, batch_size)  # type: ignore[misc]
        self._explore_anew()
        self.policy.set_training_mode(False)  # type: ignore[attr-defined]  # the rollout goes on

    def _explore_anew(self) -> None:
        """Draw what a rollout explores by and an update may have drawn otherwise."""

    def _excluded_save_params(self) -> list[str]:
        # A loaded model owes nothing: its buffer may be empty.
        return [*super()._excluded_save_params(), "_overlapped", "_owed", "_may_owe"]  # type: ignore[misc]


def check_asks_no_env(replay_buffer: Any) -> None:
    """
    Check that a buffer relabels without asking an environment that is trained in.

    :param replay_buffer: the buffer
    :raises ValueError: when it does
    """
    family = getattr(replay_buffer, "family", None)
    if family is not None and not family.can_wait:
        raise ValueError(
            "update_while_stepping relabels while the environments step, but the rewards of these goals are asked of one of "
            "them: no second instance of it could be made. Register the environment, so that gym.make makes it, or leave "
            "update_while_stepping out."
        )


class UpdateBeforeWaiting(VecEnvWrapper):
    """
    Environments that do something else between sending actions and waiting for what they lead to.

    :param venv: environments
    :param update: what to do
    """

    def __init__(self, venv: VecEnv, update: Callable[[], None]) -> None:
        super().__init__(venv)
        self._update = update

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        self._update()
        return self.venv.step_wait()
