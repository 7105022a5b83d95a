"""Registers HIPI's algorithms with rl_zoo3: classes and search spaces.

To add an algorithm: one line in ``KEY_TO_ALGORITHM``. What a YAML file names by its path has to be in this module or in the
package, not in ``zoo/train.py``, which Python would import a second time beside ``__main__``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import hipi_sb3
from hipi_sb3 import LayerNormReLU
from hipi_sb3.her_arguments import ASK_FOR_HER
from hipi_sb3.saved_models import PlainFiles
from hipi_sb3.tasks.family import TaskFamily
from zoo.cloning import LauncherBC, convert_bc, sample_bc

#: ``sampler(trial, n_actions, n_envs, additional_args) -> hyperparameters``
Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Algorithm:
    """
    An algorithm of the launcher.

    :param algorithm_class: its class
    :param base: algorithm of rl_zoo3 whose search space it extends
    :param has_alpha: whether the learner has an entropy temperature, for ``temperature="auto"``
    :param lacks: parameters of the base's search space, or of :data:`LEARNER_SPACE`, that the algorithm has not
    :param has_critic: whether transitions are relabeled by a critic; otherwise whole trajectories are, by their returns
    """

    algorithm_class: type[OffPolicyAlgorithm]
    base: str
    has_alpha: bool = False
    lacks: tuple[str, ...] = ()
    has_critic: bool = True


KEY_TO_ALGORITHM: dict[str, Algorithm] = {
    "hipi_sac": Algorithm(hipi_sb3.HIPISAC, base="sac", has_alpha=True),
    "hipi_td3": Algorithm(hipi_sb3.HIPITD3, base="td3"),
    "hipi_ddpg": Algorithm(hipi_sb3.HIPIDDPG, base="ddpg"),
    # rl_zoo3 samples how many updates a step this and QR-DQN make
    "hipi_dqn": Algorithm(hipi_sb3.HIPIDQN, base="dqn", lacks=("updates_per_step",)),
    "hipi_tqc": Algorithm(hipi_sb3.HIPITQC, base="tqc", has_alpha=True),
    # CrossQ has no target networks, and a normalisation of its own
    "hipi_crossq": Algorithm(hipi_sb3.HIPICrossQ, base="sac", has_alpha=True, lacks=("tau", "layer_norm")),
    "hipi_qrdqn": Algorithm(hipi_sb3.HIPIQRDQN, base="qrdqn", lacks=("updates_per_step",)),
    "hipi_bc": Algorithm(LauncherBC, base="bc", has_critic=False, lacks=("layer_norm", "updates_per_step")),
}

#: What is sampled of the learner besides what rl_zoo3 samples: there it makes one update a step.
LEARNER_SPACE: dict[str, tuple[Any, ...]] = {"layer_norm": (False, True), "updates_per_step": (1, 2, 4)}

#: Parameters of a trial are named with this prefix, so that they cannot collide with those of the algorithm.
PREFIX = "relabel_"

#: Mixtures of candidate tasks by name: Optuna stores categories as plain values.
KEY_TO_MIXTURE: dict[str, dict[str, float]] = {
    "batch+achieved": {"batch": 0.5, "achieved": 0.5},
    "future+achieved": {"future": 0.75, "achieved": 0.125, "batch": 0.125},
    "batch+prior": {"batch": 0.5, "prior": 0.5},
    "prior+achieved": {"prior": 0.5, "achieved": 0.5},
}


#: ``--search-space small``: what is sampled from less than the whole range, for trials of minutes on a small machine. Bounds
#: or choices by name of the parameter; all others keep theirs.
SMALL_SPACE: dict[str, tuple[Any, ...]] = {
    "batch_size_pow": (5, 7),
    "learning_rate": (3e-4, 2e-3),
    "train_freq": (1, 4),
    "net_arch": ("small",),
    "updates_per_step": (1, 2),
    "n_quantiles": (5, 25),
    "target_update_interval": (100, 2000),
    f"{PREFIX}n_candidate_tasks_pow": (3, 5),
    f"{PREFIX}temperature": ("spread:1", "spread:2", 1.0),
    f"{PREFIX}log_partition": ("running", "batch", "none"),
}


class SmallSpaceTrial:
    """
    A trial whose parameters come from :data:`SMALL_SPACE`, for the samplers of rl_zoo3 and ours as they are.

    :param trial: the trial
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_int(self, name: str, low: int, high: int, **kwargs: Any) -> int:
        """As in ``Trial``, with other bounds where the small space has some."""
        low, high = self._bounds(name, low, high)
        return self._trial.suggest_int(name, low, high, **kwargs)

    def suggest_float(self, name: str, low: float, high: float, **kwargs: Any) -> float:
        """As in ``Trial``, with other bounds where the small space has some."""
        low, high = self._bounds(name, low, high)
        return self._trial.suggest_float(name, low, high, **kwargs)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As in ``Trial``, without the choices that the small space has not."""
        few = [choice for choice in choices if choice in SMALL_SPACE.get(name, choices)]
        return self._trial.suggest_categorical(name, few)

    @staticmethod
    def _bounds(name: str, low: Any, high: Any) -> tuple[Any, Any]:
        small_low, small_high = SMALL_SPACE.get(name, (low, high))
        return max(low, small_low), min(high, small_high)


def register() -> None:
    """Make the algorithms known to rl_zoo3; doing it twice changes nothing."""
    HYPERPARAMS_SAMPLER["bc"] = sample_bc
    HYPERPARAMS_CONVERTER["bc"] = convert_bc  # type: ignore[assignment]
    for key, algorithm in KEY_TO_ALGORITHM.items():
        # One dict, shared by all modules of rl_zoo3: changed in place, never replaced.
        ALGOS[key] = algorithm.algorithm_class
        HYPERPARAMS_SAMPLER[key] = make_sampler(algorithm)  # type: ignore[assignment]
        HYPERPARAMS_CONVERTER[key] = make_converter(algorithm)  # type: ignore[assignment]
    for key, algorithm_class in ALGOS.items():
        ALGOS[key] = with_plain_files(algorithm_class)


def with_plain_files(algorithm_class: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """
    The algorithm whose files hold no code, because a run folder from somebody else is data, whatever learned in it.

    :param algorithm_class: class of stable-baselines3, of a package beside it, or of this one
    :return: a subclass of that name, or the class itself if it has such files
    """
    if issubclass(algorithm_class, PlainFiles):
        return algorithm_class
    described = {"__module__": algorithm_class.__module__, "__doc__": algorithm_class.__doc__}
    return type(algorithm_class.__name__, (PlainFiles, algorithm_class), described)


def make_sampler(algorithm: Algorithm, family: TaskFamily | None = None, small: bool = False) -> Sampler:
    """
    Make the sampler of an algorithm: the search space of its base in rl_zoo3 together with that of relabeling.

    :param algorithm: the algorithm
    :param family: the tasks; decides which strategies and candidates exist. Only what every family has if None
    :param small: whether to sample from :data:`SMALL_SPACE`
    :return: sampler for ``HYPERPARAMS_SAMPLER``
    """

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        args = {**additional_args, "using_her_replay_buffer": False}
        trial = SmallSpaceTrial(trial) if small else trial  # type: ignore[assignment]
        sampled = HYPERPARAMS_SAMPLER[algorithm.base](trial, n_actions, n_envs, args)
        hyperparams = {name: value for name, value in sampled.items() if name not in algorithm.lacks}
        learner = {
            name: trial.suggest_categorical(name, choices)
            for name, choices in LEARNER_SPACE.items()
            if name not in algorithm.lacks
        }
        # What rl_zoo3 calls her_kwargs are the replay_buffer_kwargs that were given: those not searched are kept.
        given = additional_args.get("her_kwargs", {})
        relabeling = sample_relabeling(trial, family, algorithm.has_alpha, algorithm.has_critic)
        return {**with_learner(hyperparams, learner), "replay_buffer_kwargs": {**given, **relabeling}}

    return sample


def with_learner(hyperparams: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """
    Put what was sampled of :data:`LEARNER_SPACE` into hyperparameters.

    :param hyperparams: hyperparameters
    :param params: parameters of a trial; others are ignored
    :return: hyperparameters
    """
    if params.get("layer_norm"):
        hyperparams = {**hyperparams, "policy_kwargs": {**hyperparams["policy_kwargs"], "activation_fn": LayerNormReLU}}
    if "updates_per_step" in params:
        hyperparams = {**hyperparams, "gradient_steps": hyperparams["gradient_steps"] * params["updates_per_step"]}
    return hyperparams


def sample_relabeling(
    trial: optuna.Trial, family: TaskFamily | None, has_alpha: bool, has_critic: bool = True
) -> dict[str, Any]:
    """
    Sample the options of relabeling.

    :param trial: trial
    :param family: the tasks, or None
    :param has_alpha: whether ``temperature="auto"`` exists
    :param has_critic: whether there are scores, and rows that are left as they are
    :return: options of :class:`hipi_sb3.HIPIReplayBuffer`
    """
    reaches_goals = family is not None and family.reaches_goals
    strategies = ["hipi", "map", "random"]
    # What is cloned may not know for which tasks it was collected.
    candidates = ["batch", "prior"] if has_critic else ["prior"]
    if reaches_goals:
        strategies += ["final", "future"]
        candidates += ["achieved", f"{candidates[0]}+achieved"]
        candidates += ["future+achieved"] if has_critic else []
    elif has_critic:
        candidates.append("batch+prior")
    if family is not None and family.tasks is not None:
        candidates.append("all")
    temperatures: list[float | str] = (
        ["spread:0.3", "spread:1", "spread:2", "ess:8"] if has_critic else [1.0, 0.1, "ess:2", "ess:8"]
    )
    if has_alpha:
        temperatures.append("auto")
    # All of them in every trial, although HER has no score: Optuna's multivariate sampler models a space that stays the same.
    trial.suggest_categorical(f"{PREFIX}strategy", strategies)
    if has_critic:
        trial.suggest_float(f"{PREFIX}prob", 0.2, 0.9)
        trial.suggest_categorical(f"{PREFIX}prior_share", [0.0, 0.5, 0.875])
    trial.suggest_categorical(f"{PREFIX}candidates", candidates)
    trial.suggest_int(f"{PREFIX}n_candidate_tasks_pow", 3, 6)
    if has_critic:
        trial.suggest_categorical(f"{PREFIX}score", ["progress", "advantage", "td"])
        trial.suggest_categorical(f"{PREFIX}n_steps", [1, 3, 5])
    # With a critic those that take candidates of each row's own.
    log_partitions = ["none", "running"] if has_critic else ["batch", "mean", "none"]
    trial.suggest_categorical(f"{PREFIX}log_partition", log_partitions)
    trial.suggest_categorical(f"{PREFIX}temperature", temperatures)
    return convert_relabeling(trial.params)


def convert_relabeling(params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial into options of the replay buffer.

    :param params: parameters of a trial, those of the algorithm among them
    :return: options of :class:`hipi_sb3.HIPIReplayBuffer`
    """
    options = {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}
    if "prob" in options:
        options["relabel_prob"] = options.pop("prob")
    options["n_candidate_tasks"] = 2 ** options.pop("n_candidate_tasks_pow")
    options["candidates"] = KEY_TO_MIXTURE.get(options["candidates"], options["candidates"])
    return options


def converted(algo: str, params: dict[str, Any]) -> dict[str, Any]:
    """
    Hyperparameters of a trial, as rl_zoo3 converts them.

    :param algo: algorithm of the launcher
    :param params: parameters of the trial
    :return: hyperparameters, to train with
    """
    if params.get("noise_type", "") is None:
        # rl_zoo3 samples "no noise" but would pass it on to the algorithm as an option of its own.
        params = {name: value for name, value in params.items() if name not in ("noise_type", "noise_std")}
    found = dict(HYPERPARAMS_CONVERTER[algo](params))
    # HER's, which rl_zoo3 leaves beside the options of the algorithm.
    her = {name: found.pop(name) for name in ASK_FOR_HER if name in found}
    return found | ({"replay_buffer_kwargs": {**found.get("replay_buffer_kwargs", {}), **her}} if her else {})


def make_converter(algorithm: Algorithm) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """
    Make the converter of an algorithm: parameters of a trial to hyperparameters, to train with them later.

    :param algorithm: the algorithm
    :return: converter for ``HYPERPARAMS_CONVERTER``
    """

    def convert(params: dict[str, Any]) -> dict[str, Any]:
        not_of_base = {*algorithm.lacks, *LEARNER_SPACE}
        own = {name: value for name, value in params.items() if not name.startswith(PREFIX) and name not in not_of_base}
        hyperparams = with_learner(converted(algorithm.base, own), params)
        return {**hyperparams, "replay_buffer_kwargs": convert_relabeling(params)}

    return convert
