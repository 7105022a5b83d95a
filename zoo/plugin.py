"""Registers HIPI's algorithms with rl_zoo3: classes, search spaces, and the names that its YAML files may use.

To add an algorithm: one line in ``KEY_TO_ALGORITHM``. What a YAML file names by its path has to be in this module or in the
package, not in ``zoo/train.py``, which Python would import a second time beside ``__main__``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
import rl_zoo3.exp_manager
import rl_zoo3.utils
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import hipi_sb3
from hipi_sb3.tasks import TaskFamily

#: ``sampler(trial, n_actions, n_envs, additional_args) -> hyperparameters``
Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Algorithm:
    """
    An algorithm of the launcher.

    :param algorithm_class: its class
    :param base: algorithm of rl_zoo3 whose search space it extends
    :param has_alpha: whether the learner has an entropy temperature, for ``temperature="auto"``
    """

    algorithm_class: type[OffPolicyAlgorithm]
    base: str
    has_alpha: bool = False


KEY_TO_ALGORITHM: dict[str, Algorithm] = {
    "hipi_sac": Algorithm(hipi_sb3.HIPISAC, base="sac", has_alpha=True),
}

#: Parameters of a trial are named with this prefix, so that they cannot collide with those of the algorithm.
PREFIX = "relabel_"

#: Mixtures of candidate tasks by name: Optuna stores categories as plain values.
KEY_TO_MIXTURE: dict[str, dict[str, float]] = {
    "batch+achieved": {"batch": 0.5, "achieved": 0.5},
    "batch+prior": {"batch": 0.5, "prior": 0.5},
}


def register() -> None:
    """Make the algorithms known to rl_zoo3; doing it twice changes nothing."""
    for key, algorithm in KEY_TO_ALGORITHM.items():
        # One dict, shared by all modules of rl_zoo3: changed in place, never replaced.
        ALGOS[key] = algorithm.algorithm_class
        HYPERPARAMS_SAMPLER[key] = make_sampler(algorithm)  # type: ignore[assignment]
        HYPERPARAMS_CONVERTER[key] = make_converter(algorithm)  # type: ignore[assignment]
    # Strings of YAML files are evaluated in the one module, those of the command line in the other.
    for module in (rl_zoo3.exp_manager, rl_zoo3.utils):
        module.hipi_sb3 = hipi_sb3  # type: ignore[attr-defined]
        module.HIPIReplayBuffer = hipi_sb3.HIPIReplayBuffer  # type: ignore[attr-defined]


def make_sampler(algorithm: Algorithm, family: TaskFamily | None = None) -> Sampler:
    """
    Make the sampler of an algorithm: the search space of its base in rl_zoo3 together with that of relabeling.

    :param algorithm: the algorithm
    :param family: the tasks; decides which strategies and candidates exist. Only what every family has if None
    :return: sampler for ``HYPERPARAMS_SAMPLER``
    """

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        args = {**additional_args, "using_her_replay_buffer": False}
        hyperparams = HYPERPARAMS_SAMPLER[algorithm.base](trial, n_actions, n_envs, args)
        # What rl_zoo3 calls her_kwargs are the replay_buffer_kwargs that were given: those not searched are kept.
        given = additional_args.get("her_kwargs", {})
        return {**hyperparams, "replay_buffer_kwargs": {**given, **sample_relabeling(trial, family, algorithm.has_alpha)}}

    return sample


def sample_relabeling(trial: optuna.Trial, family: TaskFamily | None, has_alpha: bool) -> dict[str, Any]:
    """
    Sample the options of relabeling.

    :param trial: trial
    :param family: the tasks, or None
    :param has_alpha: whether ``temperature="auto"`` exists
    :return: options of :class:`hipi_sb3.HIPIReplayBuffer`
    """
    reaches_goals = family is not None and family.reaches_goals
    strategies, candidates = ["hipi", "map", "random"], ["batch", "prior"]
    if reaches_goals:
        strategies += ["final", "future"]
        candidates += ["achieved", "batch+achieved"]
    else:
        candidates.append("batch+prior")
    if family is not None and family.tasks is not None:
        candidates.append("all")
    temperatures: list[float | str] = [1.0, 0.1, "ess:2", "ess:8"]
    if has_alpha:
        temperatures.append("auto")
    # All of them in every trial, although HER has no score: Optuna's multivariate sampler models a space that stays the same.
    trial.suggest_categorical(f"{PREFIX}strategy", strategies)
    trial.suggest_float(f"{PREFIX}prob", 0.2, 0.9)
    trial.suggest_categorical(f"{PREFIX}candidates", candidates)
    trial.suggest_int(f"{PREFIX}n_candidate_tasks_pow", 3, 6)
    trial.suggest_categorical(f"{PREFIX}score", ["td", "q"])
    trial.suggest_categorical(f"{PREFIX}log_partition", ["batch", "mean", "none"])
    trial.suggest_categorical(f"{PREFIX}temperature", temperatures)
    return convert_relabeling(trial.params)


def convert_relabeling(params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial into options of the replay buffer.

    :param params: parameters of a trial, those of the algorithm among them
    :return: options of :class:`hipi_sb3.HIPIReplayBuffer`
    """
    options = {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}
    options["relabel_prob"] = options.pop("prob")
    options["n_candidate_tasks"] = 2 ** options.pop("n_candidate_tasks_pow")
    options["candidates"] = KEY_TO_MIXTURE.get(options["candidates"], options["candidates"])
    return options


def make_converter(algorithm: Algorithm) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """
    Make the converter of an algorithm: parameters of a trial to hyperparameters, to train with them later.

    :param algorithm: the algorithm
    :return: converter for ``HYPERPARAMS_CONVERTER``
    """

    def convert(params: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
        return {**HYPERPARAMS_CONVERTER[algorithm.base](own), "replay_buffer_kwargs": convert_relabeling(params)}

    return convert
