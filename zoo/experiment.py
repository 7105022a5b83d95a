"""One experiment of the launcher: rl_zoo3's manager, with relabeling options and evaluation task by task."""

import difflib
import inspect
import json
import re
import shutil
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.exp_manager
import yaml
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from hipi_sb3 import HIPIReplayBuffer, TaskFamily
from hipi_sb3.callbacks import TaskEvalCallback, save_evaluations
from hipi_sb3.evaluation import TaskEvaluation, evaluate_tasks, evaluation_tasks, save_trajectory_plot
from zoo.plugin import KEY_TO_ALGORITHM, make_sampler

HYPERPARAMS_FOLDER = Path(__file__).resolve().parent.parent / "hyperparams"

#: The tasks of evaluations are the same for all runs, so that runs can be compared. A search is judged on others than the
#: trained policy later, or its winner would be the one that the tasks happened to suit.
TASK_SEED = 0
SEARCH_TASK_SEED = 1


class ConfigurationError(Exception):
    """A mistake of the user, told in one line."""


@contextmanager
def configuration_errors(verbose: int = 1) -> Iterator[None]:
    """
    Turn whatever is raised while a configuration is read and tried into one line for the user.

    :param verbose: from 2 on, errors are left as they are, with their traceback
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        if verbose >= 2:
            raise
        raise ConfigurationError(_one_line(error)) from error


class TrialTaskEvalCallback(TrialEvalCallback, TaskEvalCallback):
    """
    Evaluates a trial on a fixed set of tasks, and prunes it: rl_zoo3's callback on top of ours.

    :param tasks: tasks, (n_tasks, task_dim)
    :param task_seed: seed of the environment noise
    :param kwargs: as in ``TrialEvalCallback``
    """

    def __init__(self, *args: Any, tasks: np.ndarray, task_seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks = tasks
        self.task_seed = task_seed


class TaskExperimentManager(ExperimentManager):
    """
    rl_zoo3's ``ExperimentManager`` for environments with a task family; others it treats as rl_zoo3 does.

    Hyperparameters come from this repository's ``hyperparams/`` where it has a file for the algorithm. Evaluations, during
    training and in a search, run on fixed tasks, and a training ends with a table, its files and a picture.

    :param args: as in ``ExperimentManager``
    :param relabel: options of :class:`hipi_sb3.HIPIReplayBuffer` that replace those of the YAML file, one by one
    :param n_eval_tasks: number of tasks to evaluate on, where the family is not finite
    :param kwargs: as in ``ExperimentManager``
    """

    def __init__(self, *args: Any, relabel: dict[str, Any] | None = None, n_eval_tasks: int = 20, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own_config = HYPERPARAMS_FOLDER / f"{self.algo}.yml"
        if kwargs.get("config") is None and own_config.is_file():
            self.config = str(own_config)
        self.relabel = relabel or {}
        self.n_eval_tasks = n_eval_tasks
        self.task_family: TaskFamily | None = None

    # -- setting up ------------------------------------------------------------------------------------------------------

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Set the experiment up as rl_zoo3 does.

        :return: model and hyperparameters, or None when searching
        :raises ConfigurationError: when anything in it fails; no run folder is left behind then
        """
        run_folder = Path(self.save_path)
        existed = run_folder.exists()
        results = None
        try:
            with configuration_errors(self.verbose):
                results = super().setup_experiment()
        finally:
            # Neither a failed set-up nor a search has a model: what rl_zoo3 made would pass for the latest run.
            if results is None and not existed:
                shutil.rmtree(run_folder, ignore_errors=True)
        return results

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters and apply the relabeling options of the command line.

        :return: hyperparameters, and those to save in the run folder
        """
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        if self.relabel:
            buffer_kwargs = hyperparams.get("replay_buffer_kwargs") or {}
            if isinstance(buffer_kwargs, str):
                buffer_kwargs = eval(buffer_kwargs, vars(rl_zoo3.exp_manager))  # as rl_zoo3 does with this entry
            changes: dict[str, Any] = {"replay_buffer_kwargs": {**buffer_kwargs, **self.relabel}}
            if self.algo not in KEY_TO_ALGORITHM:
                # The relabeling buffer has to be asked for where it is not the algorithm's own.
                changes["replay_buffer_class"] = "HIPIReplayBuffer"
            print(f"With --relabel: {changes}")
            hyperparams.update(changes)
            saved_hyperparams.update(changes)
        return hyperparams, saved_hyperparams

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create environments and look at their tasks.

        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: environments
        """
        env = super().create_envs(n_envs, eval_env, no_log)
        self.task_family = env.get_attr("task_family", indices=[0])[0] if env.has_attr("task_family") else None
        return env

    def create_callbacks(self) -> None:
        """Create rl_zoo3's callbacks, with an evaluation on fixed tasks in the place of ``EvalCallback``."""
        from_yaml = list(self.callbacks)
        super().create_callbacks()
        if self.task_family is not None:
            created = self.callbacks[len(from_yaml) :]
            self.callbacks = from_yaml + [self._on_fixed_tasks(c) if isinstance(c, EvalCallback) else c for c in created]

    def _on_fixed_tasks(self, callback: EvalCallback) -> TaskEvalCallback:
        return TaskEvalCallback(
            callback.eval_env,
            tasks=self._tasks(TASK_SEED),
            task_seed=TASK_SEED,
            n_eval_episodes=callback.n_eval_episodes,
            callback_on_new_best=callback.callback_on_new_best,
            eval_freq=callback.eval_freq,
            log_path=self.save_path,
            best_model_save_path=callback.best_model_save_path,
            deterministic=callback.deterministic,
            verbose=callback.verbose,
        )

    def _tasks(self, seed: int) -> np.ndarray:
        assert self.task_family is not None
        return evaluation_tasks(self.task_family, self.n_eval_tasks, seed)

    # -- after training --------------------------------------------------------------------------------------------------

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model as rl_zoo3 does, then report how it does on each task.

        :param model: trained model
        """
        super().save_trained_model(model)
        if self.task_family is not None:
            self.report(model)

    def report(self, model: BaseAlgorithm) -> None:
        """
        Evaluate the trained model: a table on the terminal, ``evaluations.npz``, ``task_evaluation.json`` and, where the
        environment can draw it, ``trajectories.png`` in the run folder.

        :param model: trained model
        """
        callback = next((callback for callback in self.callbacks if isinstance(callback, TaskEvalCallback)), None)
        env = self.create_envs(self.n_eval_envs, eval_env=True) if callback is None else callback.eval_env
        training_env = model.get_env()
        if training_env is not None and model.get_vec_normalize_env() is not None:
            sync_envs_normalization(training_env, env)
        draws = env.has_attr("plot_trajectories")
        evaluation = evaluate_tasks(
            model,
            env,
            self._tasks(TASK_SEED),
            self.n_eval_episodes,
            self.deterministic_eval,
            seed=TASK_SEED,
            record_observations=draws,
        )
        print(f"\n{self.algo} on {self.env_name.gym_id} after {model.num_timesteps} steps, task by task:\n")
        print(evaluation.table(), end="\n\n")
        self._save_evaluation(callback, evaluation, model.num_timesteps)
        picture = Path(self.save_path) / "trajectories.png"
        if draws and save_trajectory_plot(env, evaluation, picture):
            print(f"Trajectories to {len(evaluation.tasks)} tasks: {picture}")
        env.close()

    def _save_evaluation(self, callback: TaskEvalCallback | None, evaluation: TaskEvaluation, num_timesteps: int) -> None:
        run_folder = Path(self.save_path)
        if callback is None:
            save_evaluations(run_folder / "evaluations.npz", [num_timesteps], [evaluation])
        elif callback.evaluations_timesteps[-1:] != [num_timesteps]:
            callback.add(evaluation, num_timesteps)
        values = {"algo": self.algo, "env": self.env_name.gym_id, "seed": self.seed, "num_timesteps": num_timesteps}
        path = run_folder / "task_evaluation.json"
        path.write_text(json.dumps({**values, **evaluation.to_dict()}, indent=1) + "\n")
        print(f"Evaluations: {run_folder / 'evaluations.npz'}, {path}")

    # -- searching -------------------------------------------------------------------------------------------------------

    def hyperparameters_optimization(self) -> None:
        """
        Search as rl_zoo3 does, on fixed tasks.

        :raises ConfigurationError: when the configuration fails before the first trial, or no trial was finished
        """
        with configuration_errors(self.verbose):
            self.try_configuration()
        if self.task_family is not None:
            rl_zoo3.exp_manager.TrialEvalCallback = partial(  # type: ignore[misc,assignment]
                TrialTaskEvalCallback, tasks=self._tasks(SEARCH_TASK_SEED), task_seed=SEARCH_TASK_SEED
            )
            if self.algo in KEY_TO_ALGORITHM:
                sampler = make_sampler(KEY_TO_ALGORITHM[self.algo], self.task_family)
                HYPERPARAMS_SAMPLER[self.algo] = sampler  # type: ignore[assignment]
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            # How Optuna says that there is no best trial.
            if "No trials are completed" not in str(error):
                raise
            raise ConfigurationError(
                f"no trial was finished: all were pruned. Messages of the trials stand above; more steps (-n) than "
                f"{self.n_timesteps} or --pruner none may help."
            ) from error

    def try_configuration(self) -> None:
        """
        Train and evaluate for a moment.

        In a trial rl_zoo3 takes every ``ValueError`` of the training for bad luck with the sampled parameters and prunes it,
        so what is wrong with the configuration itself has to show before.
        """
        algorithm_class = ALGOS[self.algo]
        hyperparams = dict(self._hyperparams)
        if issubclass(algorithm_class, OffPolicyAlgorithm):
            # Updates start at once, and the critic is asked at once.
            hyperparams.update(learning_starts=0, buffer_size=10_000)
            if self.algo in KEY_TO_ALGORITHM:
                hyperparams["replay_buffer_kwargs"] = {**(hyperparams.get("replay_buffer_kwargs") or {}), "warmup_updates": 0}
        env = self.create_envs(self.n_envs, no_log=True)
        try:
            model = algorithm_class(env=env, verbose=0, device=self.device, **hyperparams)
            model.learn(100)
            if self.task_family is not None:
                evaluate_tasks(model, env, self._tasks(SEARCH_TASK_SEED)[:1])
        finally:
            env.close()


# -- what the command line gives -------------------------------------------------------------------------------------------


def relabel_options() -> list[str]:
    """
    List the options of relabeling: what :class:`hipi_sb3.HIPIReplayBuffer` has and SB3's buffer has not, objects left out.

    :return: names
    """
    own = inspect.signature(HIPIReplayBuffer.__init__).parameters
    not_here = {*inspect.signature(ReplayBuffer.__init__).parameters, "family", "n_steps"}
    return [name for name in own if name not in not_here]


def parse_relabel(assignments: list[str]) -> dict[str, Any]:
    """
    Parse ``name=value`` pairs such as ``strategy=map``, ``relabel_prob=0.8`` or ``candidates={batch: 0.5, prior: 0.5}``.

    :param assignments: pairs of the command line
    :return: values by name
    :raises ConfigurationError: when one has no ``=``, or there is no such option
    """
    options = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigurationError(f"--relabel takes name=value, such as strategy=none, not {assignment!r}.")
        check_name("--relabel option", name, relabel_options())
        options[name] = _parse_value(value)
    return options


def check_name(what: str, name: str, names: Any) -> None:
    """
    Check a name of the command line.

    :param what: what it names, for the error
    :param name: the name
    :param names: valid names
    :raises ConfigurationError: when it is none of them; the nearest one is suggested
    """
    if name not in names:
        raise ConfigurationError(f"unknown {what} {name!r}.{nearest(name, names)}")


def nearest(name: str, names: Any) -> str:
    """
    Suggest a name.

    :param name: what was given
    :param names: valid names
    :return: a sentence with the nearest one, or with all of them where they are few and none is near
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid: {', '.join(names)}." if len(names) < 20 else ""


def exit_with_error(program: str, error: Exception) -> None:
    """
    End the process with one line and the exit code of a usage error.

    :param program: name of the command
    :param error: what went wrong
    """
    print(f"{program}: error: {error}", file=sys.stderr)
    sys.exit(2)


def _parse_value(value: str) -> Any:
    if value.startswith("{"):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--relabel: cannot read {value!r}; write {{batch: 0.5, achieved: 0.5}}.") from error
    try:
        return literal_eval(value)
    except (ValueError, SyntaxError):
        return value  # a name


def _one_line(error: Exception) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, yaml.YAMLError):
        return f"malformed YAML: {text}"
    if isinstance(error, KeyError):
        return f"there is no {text} in the configuration."
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown:
        names = _keywords_of(unknown.group(1))
        return f"{unknown.group(1)} has no parameter {unknown.group(2)!r}.{nearest(unknown.group(2), names) if names else ''}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _keywords_of(class_name: str) -> list[str]:
    """Constructor parameters of an algorithm or of the replay buffer, by the name of the class."""
    classes: list[type] = [base for algorithm in ALGOS.values() for base in algorithm.__mro__] + [HIPIReplayBuffer]
    constructor: Callable[..., None] | None = next((c.__init__ for c in classes if c.__name__ == class_name), None)  # type: ignore[misc]
    return [] if constructor is None else [name for name in inspect.signature(constructor).parameters if name != "self"]
