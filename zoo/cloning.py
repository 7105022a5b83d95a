"""HIPI-BC as the launcher runs it: online, or from the data set of ``--dataset``."""

from typing import Any, ClassVar

import optuna
from stable_baselines3.common.type_aliases import MaybeCallback

from hipi_sb3 import HIPIBC, TrajectoryDataset
from zoo.errors import ConfigurationError


class LauncherBC(HIPIBC):
    """
    HIPI-BC with the interface of the launcher's other algorithms.

    :param args: as in :class:`~hipi_sb3.bc.HIPIBC`
    :param replay_buffer_kwargs: options of the labels, which ``--relabel`` and a search set for all algorithms under this name
    :param kwargs: as in :class:`~hipi_sb3.bc.HIPIBC`
    """

    #: Data set that ``learn`` clones instead of collecting: path, or id of a Minari data set. Set by ``--dataset``.
    dataset_path: ClassVar[str | None] = None

    def __init__(self, *args: Any, replay_buffer_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        options = {name: value for name, value in (replay_buffer_kwargs or {}).items() if name != "warmup_updates"}
        super().__init__(*args, **{**kwargs, **options})

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any) -> "LauncherBC":
        """
        Collect and clone, or clone a data set for as many minibatches.

        :param total_timesteps: environment steps, or minibatches
        :param callback: callbacks
        :param args: as in :meth:`HIPIBC.learn`
        :param kwargs: as in :meth:`HIPIBC.learn`
        :return: self
        :raises ConfigurationError: when the data set cannot be read
        """
        if self.dataset_path is None:
            return super().learn(total_timesteps, callback, *args, **kwargs)
        assert self.env is not None
        try:
            dataset = TrajectoryDataset.load(self.dataset_path, self.env.get_attr("task_family")[0])
        except (OSError, ValueError, ImportError) as error:
            raise ConfigurationError(f"--dataset {self.dataset_path}: {error}") from error
        return self.fit(dataset, n_updates=total_timesteps, callback=callback, progress_bar=self.verbose > 0)


def sample_bc(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample what cloning has beside its labels, which are sampled with those of the other algorithms.

    :param trial: trial
    :param n_actions: number of actions
    :param n_envs: number of environments
    :param additional_args: what rl_zoo3 passes on
    :return: hyperparameters of :class:`~hipi_sb3.bc.HIPIBC`
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
    :return: hyperparameters of :class:`~hipi_sb3.bc.HIPIBC`
    """
    net_arch = {"small": [64, 64], "medium": [128, 128], "big": [256, 256]}[params["net_arch"]]
    return {
        "batch_size": 2 ** params["batch_size_pow"],
        "learning_rate": params["learning_rate"],
        "policy_kwargs": {"net_arch": net_arch},
        "n_labels": 2 ** params["n_labels_pow"],
        "segment_length": params["segment_length"],
    }
