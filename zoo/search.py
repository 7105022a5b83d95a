"""A search of the launcher: rl_zoo3's samplers, pruners and trials, on fixed tasks and with workers that may be killed."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import rl_zoo3.exp_manager
import yaml
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from hipi_sb3 import TaskFamily
from hipi_sb3.callbacks import TaskEvalCallback
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks
from hipi_sb3.experience.whole import whole_file
from hipi_sb3.installed import machine, versions
from zoo.configuration import EXPRESSIONS, as_plain, evaluated
from zoo.errors import ConfigurationError, check_name, configuration_errors, one_line
from zoo.plugin import KEY_TO_ALGORITHM, converted, make_sampler
from zoo.provenance import command_line, commit
from zoo.workers import FINISHED, Worker, make_storage, n_finished, run_trials, sampler_seed

#: The tasks of evaluations are the same for all runs, so that runs can be compared. A search is judged on others than the
#: trained policy later, or its winner would be the one that the tasks happened to suit.
TASK_SEED = 0
SEARCH_TASK_SEED = 1


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


class TrialSeededEvalCallback(TrialEvalCallback):
    """
    Evaluates a trial in an environment that draws its goals itself, such as a GoalEnv: the same ones every time.

    :param n_episodes: episodes of an evaluation, each with a goal of its own
    :param n_eval_episodes: as in ``TrialEvalCallback``, where there are more
    :param kwargs: as in ``TrialEvalCallback``
    """

    def __init__(self, *args: Any, n_episodes: int, n_eval_episodes: int = 5, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "n_eval_episodes": max(n_episodes, n_eval_episodes)})

    def _on_step(self) -> bool:
        self.eval_env.seed(SEARCH_TASK_SEED)  # for the next reset, which begins an evaluation
        return super()._on_step()


class SearchManager(ExperimentManager):
    """
    rl_zoo3's ``ExperimentManager`` with a search that any number of workers share, see :mod:`zoo.workers`.

    :param args: as in ``ExperimentManager``
    :param arguments: command line, without the name of the script
    :param n_eval_tasks: number of tasks to evaluate on, where the family is not finite
    :param small_search: whether a search samples from the small space
    :param heartbeat: seconds between two signs of life of a worker
    :param kwargs: as in ``ExperimentManager``
    """

    def __init__(
        self,
        *args: Any,
        arguments: list[str] | None = None,
        n_eval_tasks: int = 20,
        small_search: bool = False,
        heartbeat: int = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.arguments = arguments or []
        self.n_eval_tasks = n_eval_tasks
        self.small_search = small_search
        self.heartbeat = heartbeat
        # rl_zoo3 takes trial 0 for none, and lets a trial replace all replay_buffer_kwargs: it is loaded here.
        self.retrained_trial, self.trial_id = self.trial_id, None
        self.task_family: TaskFamily | None = None
        self.saved_hyperparams: dict[str, Any] = {}

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        # What is a string when rl_zoo3 gets it, it runs.
        for name in EXPRESSIONS:
            if name in hyperparams:
                hyperparams[name] = evaluated(hyperparams[name], name)
        return super()._preprocess_hyperparams(hyperparams)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        rate = hyperparams.get("learning_rate")
        if not (isinstance(rate, str) and "(" in rate):
            return ExperimentManager._preprocess_schedules(hyperparams)
        others = {name: value for name, value in hyperparams.items() if name != "learning_rate"}
        return {**ExperimentManager._preprocess_schedules(others), "learning_rate": evaluated(rate, "learning_rate")}

    def _tasks(self, seed: int) -> np.ndarray:
        assert self.task_family is not None
        return evaluation_tasks(self.task_family, self.n_eval_tasks, seed)

    def hyperparameters_optimization(self) -> None:
        """
        Search with rl_zoo3's samplers, pruners and trials, on fixed tasks and on a storage that survives its workers.

        :raises ConfigurationError: when the configuration fails before the first trial, or no trial was finished
        """
        with configuration_errors(self.verbose):
            self.try_configuration()
            study = self.create_study()
        callback: Any = partial(TrialSeededEvalCallback, n_episodes=self.n_eval_tasks)
        if self.task_family is not None:
            callback = partial(TrialTaskEvalCallback, tasks=self._tasks(SEARCH_TASK_SEED), task_seed=SEARCH_TASK_SEED)
        rl_zoo3.exp_manager.TrialEvalCallback = callback  # type: ignore[misc]
        if self.task_family is not None:
            if self.algo in KEY_TO_ALGORITHM:
                sampler = make_sampler(KEY_TO_ALGORITHM[self.algo], self.task_family, self.small_search)
                HYPERPARAMS_SAMPLER[self.algo] = sampler  # type: ignore[assignment]
        journal = Path(self.storage) if self.storage is not None and self.storage.endswith(".log") else None
        worker = Worker(self.heartbeat, journal)
        try:
            run_trials(study, self.objective, worker, self.n_trials, self.max_total_trials, self.n_jobs)
        except KeyboardInterrupt:
            print("Interrupted; the trial that was running is marked as failed.")
        self.report_search(study)

    def create_study(self) -> optuna.Study:
        """
        Open the study, or create it.

        :return: study
        :raises ConfigurationError: when the study of this name is one of something else
        """
        study = optuna.create_study(
            sampler=self._create_sampler(self.sampler),
            pruner=self._create_pruner(self.pruner),
            storage=make_storage(self.storage, self.heartbeat),
            study_name=self.study_name,
            load_if_exists=True,
            direction="maximize",
        )
        about = {"algo": self.algo, "env": self.env_name.gym_id, "n_timesteps": self.n_timesteps}
        about["search_space"] = "small" if self.small_search else "default"
        for name, value in about.items():
            before = study.user_attrs.get(name)
            if before is None:
                study.set_user_attr(name, value)
            elif before != value:
                raise ConfigurationError(
                    f"study {study.study_name!r} is one of {name}={before}, not {value}: its trials cannot be compared with "
                    "these. Choose another --study-name."
                )
        if "command" not in study.user_attrs:
            study.set_user_attr("command", self.command)
            study.set_user_attr("hyperparams", {name: str(value) for name, value in self.saved_hyperparams.items()})
        return study

    @property
    def command(self) -> str:
        """The command of this process."""
        return command_line("train.py", self.arguments)

    def _create_sampler(self, sampler_method: str) -> optuna.samplers.BaseSampler:
        seed = self.seed
        self.seed = sampler_seed(seed, is_shared=self.storage is not None)
        try:
            return super()._create_sampler(sampler_method)
        finally:
            self.seed = seed

    def objective(self, trial: optuna.Trial) -> float:
        """
        Run a trial as rl_zoo3 does, and keep why it broke.

        :param trial: trial
        :return: mean return over the tasks
        """
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:
                trial.set_user_attr("error", one_line(pruned.__cause__))  # type: ignore[arg-type]
            raise

    def report_search(self, study: optuna.Study) -> None:
        """
        Print the best trial and write it as a YAML file; write all trials as CSV.

        :param study: the study
        :raises ConfigurationError: when no trial was finished
        """
        print(f"Number of finished trials:  {n_finished(study)}")
        try:
            best = study.best_trial
        except ValueError as error:
            errors = [trial.user_attrs["error"] for trial in study.trials if "error" in trial.user_attrs]
            why = (
                f"The last one broke with: {errors[-1]}"
                if errors
                else f"More steps (-n) than {self.n_timesteps} or --pruner none may help."
            )
            raise ConfigurationError(f"no trial was finished: all were pruned. {why}") from error
        print(f"Best trial:\nValue:  {best.value}\nParams: ")
        for name, value in best.params.items():
            print(f"    {name}: {value}")
        name = f"{self.env_name}_{self.n_trials}-trials-{self.n_timesteps}-{self.sampler}-{self.pruner}_{int(time.time())}"
        folder = Path(self.log_folder) / self.algo
        folder.mkdir(parents=True, exist_ok=True)
        study.trials_dataframe().to_csv(folder / f"report_{name}.csv")
        n_tasks = (
            ""
            if self.task_family is None
            else f" over {len(self._tasks(SEARCH_TASK_SEED))} fixed tasks (seed {SEARCH_TASK_SEED})"
        )
        notes = [
            f"Value: mean return{n_tasks} after {self.n_timesteps} steps, one run a trial",
            f"Commit {commit() or 'unknown'}; {machine()}; {', '.join(f'{k} {v}' for k, v in versions().items())}",
        ]
        path = folder / f"best_{self.env_name}.yml"
        write_best(path, study, self.env_name.gym_id, self._best_hyperparams(best), notes, self.command)
        print(f"Report: {folder / f'report_{name}.csv'}\nBest trial, to train with -conf or to put into hyperparams/: {path}")

    def _best_hyperparams(self, best: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """Hyperparameters of a trial, those of the YAML file that were not searched among them."""
        hyperparams = {**self.saved_hyperparams, "n_timesteps": self.n_timesteps}
        searched = converted(self.algo, dict(best.params))
        given = evaluated(hyperparams.get("replay_buffer_kwargs"), "replay_buffer_kwargs") or {}
        if "replay_buffer_kwargs" in searched:
            searched["replay_buffer_kwargs"] = {**given, **searched["replay_buffer_kwargs"]}
        return {**hyperparams, **searched}

    def try_configuration(self) -> None:
        """
        Train and evaluate for a moment.

        In a trial rl_zoo3 takes every ``ValueError`` of the training for bad luck with the sampled parameters and prunes it,
        so what is wrong with the configuration itself has to show before.
        """
        algorithm_class = ALGOS[self.algo]
        hyperparams = dict(self._hyperparams)
        if issubclass(algorithm_class, OffPolicyAlgorithm):
            hyperparams.update(buffer_size=10_000)
            if self.algo in KEY_TO_ALGORITHM:
                # Updates start at once, which stable-baselines3's HerReplayBuffer cannot do, and the critic is asked at once.
                hyperparams["learning_starts"] = 0
            if self.algo in KEY_TO_ALGORITHM and KEY_TO_ALGORITHM[self.algo].has_critic:
                hyperparams["replay_buffer_kwargs"] = {**(hyperparams.get("replay_buffer_kwargs") or {}), "warmup_updates": 0}
        env = self.create_envs(self.n_envs, no_log=True)
        try:
            model = algorithm_class(env=env, verbose=0, device=self.device, **hyperparams)
            model.learn(100)
            if self.task_family is not None:
                evaluate_tasks(model, env, self._tasks(SEARCH_TASK_SEED)[:1])
        finally:
            env.close()

    def load_retrained_trial(self) -> dict[str, Any]:
        """
        Load the trial of ``--trial-id``.

        :return: its hyperparameters
        :raises ConfigurationError: when there is no such trial
        """
        if self.storage is None or self.study_name is None:
            raise ConfigurationError("--trial-id needs the --storage and the --study-name of the search.")
        if self.storage.endswith(".log") and not Path(self.storage).is_file():
            raise ConfigurationError(f"there is no study in {self.storage}: no such file.")
        storage = make_storage(self.storage, self.heartbeat)
        assert storage is not None
        names = optuna.get_all_study_names(storage)
        check_name("study", self.study_name, names)
        trials = optuna.load_study(study_name=self.study_name, storage=storage).trials
        if not 0 <= self.retrained_trial < len(trials):  # type: ignore[operator]
            raise ConfigurationError(
                f"study {self.study_name!r} has trials 0 to {len(trials) - 1}, not {self.retrained_trial}."
            )
        trial = trials[self.retrained_trial]  # type: ignore[index]
        try:
            return converted(self.algo, trial.params)
        except KeyError as error:
            raise ConfigurationError(
                f"trial {trial.number} of {self.study_name!r} has no {error}: is it one of {self.algo}?"
            ) from error


def write_best(
    path: Path, study: optuna.Study, env_id: str, hyperparams: dict[str, Any], notes: list[str], command: str
) -> None:
    """
    Write the best trial as a YAML file that ``-conf`` and ``hyperparams/`` take.

    :param path: file to write
    :param study: the study
    :param env_id: key of the entry
    :param hyperparams: hyperparameters of the best trial
    :param notes: where they come from, written as comments
    :param command: command that searched, a comment too
    """
    best = study.best_trial
    n_complete, n_pruned = (len(study.get_trials(deepcopy=False, states=[state])) for state in FINISHED)
    lines = [
        f"Trial {best.number} of the study {study.study_name!r}: {best.value:.4g}, the best of {n_complete} complete and "
        f"{n_pruned} pruned trials",
        *notes,
        command,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    comments = "".join(f"# {line}\n" for line in lines)
    with whole_file(path) as temporary:
        temporary.write_text(comments + yaml.safe_dump({env_id: as_plain(hyperparams)}, sort_keys=False))
