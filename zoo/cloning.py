"""HIPI-BC as the launcher runs it: online, or from the data set of ``--dataset``."""

from pathlib import Path
from typing import Any, ClassVar

import optuna
from stable_baselines3.common.type_aliases import MaybeCallback

from hipi_sb3 import HIPIBC, TrajectoryDataset
from hipi_sb3.owner import family_of
from hipi_sb3.saved_models import read_tensors
from zoo.checkpoints import ResumableCallback, RunStopped, read_state


class LauncherBC(HIPIBC):
    """
    HIPI-BC with the interface of the launcher's other algorithms.

    :param args: as in :class:`~hipi_sb3.cloning.bc.HIPIBC`
    :param replay_buffer_kwargs: options of the labels, which ``--relabel`` and a search set for all algorithms under this name
    :param kwargs: as in :class:`~hipi_sb3.cloning.bc.HIPIBC`
    """

    #: Data set that ``learn`` clones instead of collecting: path, or id of a Minari data set. Set by ``--dataset``.
    dataset_path: ClassVar[str | None] = None

    def __init__(self, *args: Any, replay_buffer_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, **(replay_buffer_kwargs or {})})

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any) -> "LauncherBC":
        """
        Collect and clone, or clone a data set for as many minibatches.

        :param total_timesteps: environment steps, or minibatches
        :param callback: callbacks
        :param args: as in :meth:`HIPIBC.learn`
        :param kwargs: as in :meth:`HIPIBC.learn`
        :return: self
        """
        if self.dataset_path is None:
            return super().learn(total_timesteps, callback, *args, **kwargs)
        return self.fit(self.load_dataset(), n_updates=total_timesteps, callback=callback, progress_bar=self.verbose > 0)

    def load_dataset(self) -> TrajectoryDataset:
        """
        Open the data set.

        :return: data set; its arrays stay in their files
        :raises ValueError: when its spaces are not those of the environment
        """
        assert self.env is not None and self.dataset_path is not None
        dataset = TrajectoryDataset.load(self.dataset_path, family_of(self, None, is_given=False))
        self._take_spaces(dataset)
        return dataset


class CloningCheckpoints(ResumableCallback):
    """
    Checkpoints of a training on a data set: they stand between two minibatches, and the data set takes the buffer's place.

    :param args: as in :class:`~zoo.checkpoints.ResumableCallback`
    :param kwargs: as in :class:`~zoo.checkpoints.ResumableCallback`
    """

    model: LauncherBC

    def _init_callback(self) -> None:
        if self.resumed is not None:
            self._restore_callbacks(read_state(self.resumed))

    def _on_training_start(self) -> None:
        if self.resumed is not None:
            path = self.resumed / "cloning.pt"
            state = read_tensors(path, self.model.device)
            self.model._restore(state, self.locals["fingerprint"], path)
            self._last = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        """Nothing is collected."""

    def _on_step(self) -> bool:
        steps = self.model.num_timesteps - self._last
        if steps >= self.freq or self.stop_signal is not None:
            self._save()
        if self.stop_signal is not None:
            raise RunStopped(self.stop_signal, self.model.num_timesteps)
        return True

    def _write_model(self, path: Path) -> None:
        self.model._write_checkpoint(path / "cloning.pt", self.locals["seed"], self.locals["fingerprint"])


def sample_bc(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample what cloning has beside its labels, which are sampled with those of the other algorithms.

    :param trial: trial
    :param n_actions: number of actions
    :param n_envs: number of environments
    :param additional_args: what rl_zoo3 passes on
    :return: hyperparameters of :class:`~hipi_sb3.cloning.bc.HIPIBC`
    """
    trial.suggest_int("batch_size_pow", 5, 9)
    trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True)
    trial.suggest_categorical("net_arch", ["small", "medium", "big"])
    trial.suggest_int("n_labels_pow", 0, 4)
    trial.suggest_categorical("segment_length", [None, 25, 100])
    return convert_bc(trial.params)


def convert_bc(params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial into hyperparameters.

    :param params: parameters of :func:`sample_bc`
    :return: hyperparameters of :class:`~hipi_sb3.cloning.bc.HIPIBC`
    """
    net_arch = {"small": [64, 64], "medium": [128, 128], "big": [256, 256]}[params["net_arch"]]
    return {
        "batch_size": 2 ** params["batch_size_pow"],
        "learning_rate": params["learning_rate"],
        "policy_kwargs": {"net_arch": net_arch},
        "n_labels": 2 ** params["n_labels_pow"],
        "segment_length": params["segment_length"],
    }
