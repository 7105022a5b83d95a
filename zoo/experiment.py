"""One experiment of the launcher: rl_zoo3's manager, with relabeling options and evaluation task by task."""

import argparse
import inspect
import io
import json
import os
import shutil
import sys
from ast import literal_eval
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3.utils import ALGOS, get_latest_run_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import SummaryWriter
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, sync_envs_normalization

from hipi_sb3 import HIPIReplayBuffer
from hipi_sb3.callbacks import TaskEvalCallback, save_evaluations
from hipi_sb3.evaluation import TaskEvaluation, evaluate_tasks, save_trajectory_plot
from hipi_sb3.experience.whole import remedy_named, whole_file
from hipi_sb3.her_arguments import ASK_FOR_HER, translate
from hipi_sb3.tasks.goal_env import is_goal_space
from zoo.checkpoints import (
    CHECKPOINTS,
    REPLAY_BUFFER,
    ResumableCallback,
    continued_logger,
    deaf_to_ctrl_c,
    last_checkpoint,
    read_state,
    trim_monitor_files,
)
from zoo.cloning import CloningCheckpoints, LauncherBC
from zoo.configuration import check_classes, check_links, check_modules, evaluated, read_yaml, write_yaml
from zoo.errors import ConfigurationError, check_counts, check_name, configuration_errors, nearest
from zoo.normalization import PICKLED, check_trust, load_normalization, make_normalization
from zoo.plugin import KEY_TO_ALGORITHM
from zoo.provenance import provenance
from zoo.run_lock import RunLock
from zoo.search import TASK_SEED, SearchManager

HYPERPARAMS_FOLDER = Path(__file__).resolve().parent.parent / "hyperparams"

#: In the run folder, beside config.yml: what else explains it.
RUN_FILE = "run.yml"


class WholeEvalCallback(EvalCallback):
    """``EvalCallback`` whose ``evaluations.npz`` and ``best_model.zip`` are there whole or as they were before."""

    def _on_step(self) -> bool:
        log_path, folder, best = self.log_path, self.best_model_save_path, self.best_mean_reward
        # stable-baselines3 writes both in place: it gets memory for the one, and the other is not its business.
        arrays = io.BytesIO()
        self.log_path, self.best_model_save_path = arrays, None  # type: ignore[assignment]
        try:
            goes_on = super()._on_step()
        finally:
            self.log_path, self.best_model_save_path = log_path, folder
        if arrays.getvalue():
            with whole_file(f"{log_path}.npz") as file:
                file.write_bytes(arrays.getvalue())
        if self.best_mean_reward > best:
            with whole_file(Path(str(folder)) / "best_model.zip") as file:
                self.model.save(file)
        return goes_on


class TaskExperimentManager(SearchManager):
    """
    rl_zoo3's ``ExperimentManager`` for environments with a task family and GoalEnvs; others it treats as rl_zoo3 does.

    Hyperparameters come from this repository's ``hyperparams/`` where it has a file for the algorithm. Evaluations, during
    training and in a search, run on fixed tasks, and a training ends with a table, its files and a picture.

    :param args: as in ``ExperimentManager``
    :param relabel: options of :class:`hipi_sb3.HIPIReplayBuffer` that replace those of the YAML file, one by one
    :param checkpoint_freq: steps between two checkpoints, see :mod:`zoo.checkpoints`; none if not positive
    :param resume: folder of the run to go on with; a new run if None
    :param trust: whether what is pickled may be read: that of a run to go on with, and of a pretrained agent
    :param draws_picture: whether to draw ``trajectories.png`` at the end, where the environment can
    :param kwargs: as in :class:`~zoo.search.SearchManager`
    """

    def __init__(
        self,
        *args: Any,
        relabel: dict[str, Any] | None = None,
        checkpoint_freq: int = 0,
        resume: str | None = None,
        trust: bool = False,
        draws_picture: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        counts = ("eval_episodes", "n_eval_envs", "n_trials", "max_total_trials", "n_jobs", "n_evaluations")
        check_counts(self.args, *counts)
        if self.n_timesteps < 1 and self.n_timesteps != -1:  # -1 is rl_zoo3's "as in the YAML file"
            raise ConfigurationError(
                f"-n must be at least 1 step, not {self.n_timesteps}. Without it the YAML file says how many."
            )
        self.draws_picture = draws_picture
        self.has_tasks = False
        own_config = HYPERPARAMS_FOLDER / f"{self.algo}.yml"
        if kwargs.get("config") is None and own_config.is_file():
            self.config = str(own_config)
        self.relabel = relabel or {}
        self.checkpoint_freq = checkpoint_freq
        self.checkpoint: Path | None = None
        self.resume = resume
        self.trust = trust
        self.uuid_str: str = kwargs.get("uuid_str", "")
        self.lock: RunLock | None = None
        if resume is not None:
            self.save_path = resume
            self.params_path = os.path.join(resume, self.env_name)
            # Before anything in the folder is changed, half-written checkpoints among it.
            self.lock = RunLock(resume)
            self.checkpoint = last_checkpoint(Path(resume) / CHECKPOINTS)
        if self.checkpoint is not None and LauncherBC.dataset_path is None:
            self.trained_agent = str(self.checkpoint / "model.zip")
            self.continue_training = True

    # -- setting up ---------------------------------------------------------------------------------------------------

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Set the experiment up as rl_zoo3 does.

        :return: model and hyperparameters, or None when searching
        :raises ConfigurationError: when anything in it fails; no run folder is left behind then
        """
        results = None
        try:
            with configuration_errors(self.verbose):
                if self.tensorboard_log is not None and SummaryWriter is None:
                    raise ConfigurationError("TensorBoard is not installed: pip install tensorboard")
                model_and_hyperparams = super().setup_experiment()
                if LauncherBC.dataset_path is not None and model_and_hyperparams is not None:
                    model_and_hyperparams[0].load_dataset()  # type: ignore[attr-defined]
                results = model_and_hyperparams
        finally:
            # Neither a failed set-up nor a search has a model: what rl_zoo3 made would pass for the latest run.
            if results is None and self.resume is None and self.lock is not None:
                shutil.rmtree(self.save_path, ignore_errors=True)
        return results

    def create_log_folder(self) -> None:
        """Make the run folder and lock it. Of two runs that start at once, each makes one of its own."""
        if self.resume is not None:
            return
        with remedy_named(self.save_path):
            Path(self.log_path).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                os.mkdir(self.save_path)
                break
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = os.path.join(self.log_path, f"{self.env_name}_{number}{self.uuid_str}")
        self.lock = RunLock(self.save_path)
        self.params_path = f"{self.save_path}/{self.env_name}"
        os.mkdir(self.params_path)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters and apply the relabeling options of the command line.

        :return: hyperparameters, and those to save in the run folder
        """
        if self.resume is not None:
            self.saved_hyperparams = dict(read_yaml(Path(self.params_path) / "config.yml"))
            if not self.trust:
                check_classes(self.saved_hyperparams, self.resume)
            return deepcopy(self.saved_hyperparams), dict(self.saved_hyperparams)
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        changes: dict[str, Any] = {}
        buffer_kwargs = evaluated(hyperparams.get("replay_buffer_kwargs"), "replay_buffer_kwargs") or {}
        if self.retrained_trial is not None:
            changes = self.load_retrained_trial()
            buffer_kwargs = {**buffer_kwargs, **changes.pop("replay_buffer_kwargs", {})}
            given = self.custom_hyperparams or {}  # -params goes before the trial
            changes = {name: value for name, value in changes.items() if name not in given}
            buffer_kwargs |= evaluated(given.get("replay_buffer_kwargs"), "replay_buffer_kwargs") or {}
        if self.relabel:
            # HER's arguments say strategy and share of rows in other words: --relabel replaces these one by one, too.
            her = {name: buffer_kwargs[name] for name in ASK_FOR_HER if name in buffer_kwargs}
            others = {name: value for name, value in buffer_kwargs.items() if name not in her}
            if her:
                strategy, relabel_prob = translate(her, others.get("strategy"), others.get("relabel_prob"))
                buffer_kwargs = {**others, "strategy": strategy, "relabel_prob": relabel_prob}
        if self.relabel and self.algo not in KEY_TO_ALGORITHM:
            # The relabeling buffer has to be asked for where it is not the algorithm's own.
            changes["replay_buffer_class"] = "HIPIReplayBuffer"
        if self.relabel or self.retrained_trial is not None:
            changes["replay_buffer_kwargs"] = {**buffer_kwargs, **self.relabel}
            print(f"With {'--relabel' if self.retrained_trial is None else f'trial {self.retrained_trial}'}: {changes}")
        hyperparams.update(changes)
        saved_hyperparams.update(changes)
        self.saved_hyperparams = dict(saved_hyperparams)
        return hyperparams, saved_hyperparams

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create environments and look at their tasks.

        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: environments
        """
        if eval_env and self._eval_env_kwargs_args is None:
            # rl_zoo3 gives those of the YAML file to the training environments only.
            self.eval_env_kwargs = self.env_kwargs
        if self.checkpoint is not None and not eval_env:
            # Episodes are logged once: those after the checkpoint are played again.
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
            trim_monitor_files(Path(self.save_path), read_state(self.checkpoint)["monitor"])
        is_subproc = self.vec_env_class is SubprocVecEnv and not self.optimize_hyperparameters
        with deaf_to_ctrl_c() if is_subproc else nullcontext():
            env = super().create_envs(n_envs, eval_env, no_log)
        self.task_family = env.get_attr("task_family", indices=[0])[0] if env.has_attr("task_family") else None
        self.has_tasks = self.task_family is not None or is_goal_space(env.observation_space)
        return env

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """Normalise as rl_zoo3 does, with statistics that are saved as plain numbers."""
        folder = Path(self.trained_agent).parent / self.env_name
        loaded = load_normalization(folder, env, self.trust) if self.trained_agent else None
        if loaded is None and not self.normalize:
            return env
        normalized = make_normalization(env, **self.normalize_kwargs) if loaded is None else loaded
        if eval_env:
            normalized.training, normalized.norm_reward = False, False
        return normalized

    def create_callbacks(self) -> None:
        """Create rl_zoo3's callbacks, with an evaluation on fixed tasks in the place of ``EvalCallback``."""
        from_yaml = list(self.callbacks)
        super().create_callbacks()
        created = self.callbacks[len(from_yaml) :]
        evaluating = self._on_fixed_tasks if self.has_tasks else self._whole
        self.callbacks = from_yaml + [evaluating(c) if isinstance(c, EvalCallback) else c for c in created]
        is_off_policy = issubclass(ALGOS[self.algo], OffPolicyAlgorithm)
        if self.checkpoint_freq > 0 and is_off_policy and not self.optimize_hyperparameters:
            folder = Path(self.save_path) / CHECKPOINTS
            siblings = list(self.callbacks)
            kind = ResumableCallback if LauncherBC.dataset_path is None else CloningCheckpoints
            self.callbacks.append(kind(folder, self.checkpoint_freq, self.seed, siblings, self.checkpoint))

    def _whole(self, callback: EvalCallback) -> WholeEvalCallback:
        return WholeEvalCallback(
            callback.eval_env,
            callback_on_new_best=callback.callback_on_new_best,
            best_model_save_path=self.save_path,
            n_eval_episodes=max(self.n_eval_episodes, self.n_eval_tasks),
            log_path=self.save_path,
            eval_freq=callback.eval_freq,
            deterministic=callback.deterministic,
            verbose=callback.verbose,
        )

    def _evaluated(self) -> np.ndarray | int:
        """Tasks of the evaluations; a GoalEnv draws its goals itself, and is told how many."""
        return self.n_eval_tasks if self.task_family is None else self._tasks(TASK_SEED)

    def _on_fixed_tasks(self, callback: EvalCallback) -> TaskEvalCallback:
        return TaskEvalCallback(
            callback.eval_env,
            tasks=self._evaluated(),
            task_seed=TASK_SEED,
            n_eval_episodes=callback.n_eval_episodes,
            callback_on_new_best=callback.callback_on_new_best,
            eval_freq=callback.eval_freq,
            log_path=self.save_path,
            best_model_save_path=callback.best_model_save_path,
            deterministic=callback.deterministic,
            verbose=callback.verbose,
        )

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Save what rl_zoo3 saves, as plain data, and what else explains the run: ``run.yml``."""
        if self.resume is None:
            folder = Path(self.params_path)
            write_yaml(folder / "config.yml", saved_hyperparams)
            write_yaml(folder / "args.yml", dict(sorted(vars(self.args).items())))
            (folder / "command.txt").write_text(" ".join(sys.orig_argv))
            print(f"Log path: {self.save_path}")
            run: dict[str, Any] = {"command": self.command, "arguments": self.arguments, "seed": self.seed, "resumed": []}
        else:
            run = read_yaml(Path(self.params_path) / RUN_FILE)
            run["resumed"].append({"date": provenance()["date"], "step": int(self.checkpoint.name) if self.checkpoint else 0})
            # Stopped again, it goes on to the number of steps that was asked for last.
            run.pop("finished", None)
            longer = ["-n", str(self.args.n_timesteps)]
            if self.args.n_timesteps > 0 and given_steps(run["arguments"]) != self.args.n_timesteps:
                run["arguments"] += longer
        write_yaml(Path(self.params_path) / RUN_FILE, {**run, **({} if self.resume else provenance())})

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """Load a model as rl_zoo3 does, with its replay buffer if there is one: a folder, or a pickle that is trusted."""
        # Not by rl_zoo3's own method: it unpickles a buffer unasked.
        print("Loading pretrained agent")
        # The policy is that of the file.
        given = {name: value for name, value in hyperparams.items() if name not in ("policy", "policy_kwargs")}
        given |= {"seed": self.seed, "tensorboard_log": self.tensorboard_log, "verbose": self.verbose}
        model: Any = ALGOS[self.algo].load(self.trained_agent, env=env, device=self.device, trust=self.trust, **given)
        folder = Path(self.trained_agent).parent / REPLAY_BUFFER
        pickled = folder.with_suffix(".pkl")
        if pickled.is_file():
            print("Loading replay buffer")
            check_trust(pickled, self.trust)
            model.load_replay_buffer(pickled, truncate_last_traj=self.truncate_last_trajectory, trust=True)
        if folder.is_dir():
            print("Loading replay buffer")
            # Whether an episode goes on shows when it does.
            model.load_replay_buffer(folder, truncate_last_traj=False)
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train as rl_zoo3 does; a signal writes a checkpoint first.

        :param model: model
        :raises RunStopped: when a signal stopped the run
        """
        if self.checkpoint is not None and self.tensorboard_log is not None:
            model.set_logger(continued_logger(self.checkpoint, self.verbose))
        callback = next((callback for callback in self.callbacks if isinstance(callback, ResumableCallback)), None)
        with callback.stoppable() if callback is not None else nullcontext():
            super().learn(model)

    # -- after training -----------------------------------------------------------------------------------------------

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model as rl_zoo3 does, then report how it does on each task.

        :param model: trained model
        """
        print(f"Saving to {self.save_path}")
        with whole_file(Path(self.save_path) / f"{self.env_name}.zip") as file:
            model.save(file)
        if self.save_replay_buffer and isinstance(model, OffPolicyAlgorithm):
            print("Saving replay buffer")
            # A folder of arrays where the algorithm writes one, else stable-baselines3 adds ".pkl".
            model.save_replay_buffer(Path(self.save_path) / REPLAY_BUFFER)
        normalize = model.get_vec_normalize_env()
        if self.normalize and normalize is not None:
            normalize.save(os.path.join(self.params_path, PICKLED))
        if self.has_tasks:
            self.report(model)
        path = Path(self.params_path) / RUN_FILE
        write_yaml(path, {**read_yaml(path), "finished": model.num_timesteps})

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
        draws = self.draws_picture and env.has_attr("plot_trajectories")
        if callback is not None and callback.evaluations_timesteps[-1:] == [model.num_timesteps] and not draws:
            evaluation = callback.evaluations[-1]
        else:
            evaluation = evaluate_tasks(
                model,
                env,
                self._evaluated(),
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
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({**values, **evaluation.to_dict()}, indent=1) + "\n")
        print(f"Evaluations: {run_folder / 'evaluations.npz'}, {path}")


def given_steps(arguments: list[str]) -> int | None:
    """
    Read the number of steps from a command line of ``zoo/train.py``.

    :param arguments: the command line
    :return: value of the last ``-n``; None if there is none, and very many if it is no number: rl_zoo3's parser says that
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-n", "--n-timesteps", type=int)
    try:
        return parser.parse_known_args(arguments)[0].n_timesteps
    except argparse.ArgumentError:
        return sys.maxsize


def recorded_arguments(run_folder: str, n_timesteps: int | None, trust: bool = False) -> list[str]:
    """
    Read the command line of a run that is to be resumed.

    :param run_folder: folder of the run
    :param n_timesteps: another number of steps, if one is given: of the whole run
    :param trust: whether the folder may hold symbolic links, and modules to import
    :return: arguments of ``zoo/train.py``, with the seed that was used
    :raises ConfigurationError: when there is no such run, or it has made these steps
    """
    paths = sorted(Path(run_folder).glob(f"*/{RUN_FILE}"))
    if not paths:
        others = [str(path.parent.parent) for path in sorted(Path(run_folder).parent.glob(f"*/*/{RUN_FILE}"))]
        raise ConfigurationError(f"there is no run in {run_folder!r}.{nearest(run_folder, others) if others else ''}")
    if not trust:
        check_links(run_folder)
    run = read_yaml(paths[0])
    if "finished" in run and (n_timesteps is None or n_timesteps <= run["finished"]):
        remedy = ". To go on, add -n."
        if n_timesteps is not None:
            remedy = f", and -n {n_timesteps} counts these. For as many more, -n {run['finished'] + n_timesteps}."
        raise ConfigurationError(f"the run in {run_folder!r} is finished, after {run['finished']} steps{remedy}")
    # Any of them could end as a module to import: rl_zoo3 takes --gym-packages in several spellings.
    if not trust:
        check_modules([part for argument in map(str, run["arguments"]) for part in argument.split("=")], run_folder)
    return [*run["arguments"], "--seed", str(run["seed"])]


# -- what the command line gives --------------------------------------------------------------------------------------


def relabel_options() -> list[str]:
    """
    List the options of relabeling: what :class:`hipi_sb3.HIPIReplayBuffer` has and SB3's buffer has not, objects left out.

    :return: names
    """
    own = inspect.signature(HIPIReplayBuffer.__init__).parameters
    not_here = {*inspect.signature(ReplayBuffer.__init__).parameters, "family", "gamma", "her"}
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
