"""Callbacks for training on a family of tasks."""

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from hipi_sb3.evaluation import TaskEvaluation, evaluate_tasks, evaluation_tasks


class TaskEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` on a fixed set of tasks.

    ``EvalCallback`` evaluates whatever tasks the environment happens to draw, so two evaluations differ by their tasks as
    much as by the policy. This one evaluates the same tasks with the same environment noise every time, logs
    ``eval/mean_reward``, ``eval/mean_ep_length`` and ``eval/success_rate``, saves ``best_model.zip`` and writes
    ``evaluations.npz`` (see :func:`save_evaluations`).

    :param eval_env: environment with a task family, or a ``VecEnv`` of such
    :param tasks: tasks, (n_tasks, task_dim); those of :func:`~hipi_sb3.evaluation.evaluation_tasks` if None
    :param n_tasks: number of tasks where ``tasks`` is None and the family is not finite
    :param task_seed: seed of the draw of the tasks and of the environment noise
    :param n_eval_episodes: episodes of each task
    :param kwargs: as in ``EvalCallback``: ``eval_freq``, ``log_path``, ``best_model_save_path``, ``deterministic``, ...
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        tasks: np.ndarray | None = None,
        n_tasks: int = 20,
        task_seed: int = 0,
        n_eval_episodes: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_env, n_eval_episodes=n_eval_episodes, **kwargs)
        if not self.eval_env.has_attr("task_family"):
            raise ValueError("TaskEvalCallback: the environment has no task family. Wrap it in hipi_sb3.MultiTaskWrapper.")
        if tasks is None:
            tasks = evaluation_tasks(self.eval_env.get_attr("task_family", indices=[0])[0], n_tasks, task_seed)
        self.tasks = tasks
        self.task_seed = task_seed
        #: One entry an evaluation, at the steps of ``evaluations_timesteps``.
        self.evaluations: list[TaskEvaluation] = []

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        evaluation = evaluate_tasks(
            self.model, self.eval_env, self.tasks, self.n_eval_episodes, self.deterministic, self.task_seed, render=self.render
        )
        self.add(evaluation, self.num_timesteps)
        self.last_mean_reward = evaluation.mean_return
        self._log(evaluation)
        continue_training = True
        if evaluation.mean_return > self.best_mean_reward:
            self.best_mean_reward = evaluation.mean_return
            if self.verbose >= 1:
                print("New best mean reward!")
            if self.best_model_save_path is not None:
                self.model.save(os.path.join(self.best_model_save_path, "best_model"))
            if self.callback_on_new_best is not None:
                continue_training = self.callback_on_new_best.on_step()
        if self.callback is not None:
            continue_training = continue_training and self._on_event()
        return continue_training

    def add(self, evaluation: TaskEvaluation, num_timesteps: int) -> None:
        """
        Add an evaluation to the record and write it to ``evaluations.npz``.

        :param evaluation: evaluation on the tasks of this callback
        :param num_timesteps: environment steps that the policy was trained for
        """
        self.evaluations.append(evaluation)
        self.evaluations_timesteps.append(num_timesteps)
        if self.log_path is not None:
            save_evaluations(f"{self.log_path}.npz", self.evaluations_timesteps, self.evaluations)

    def _log(self, evaluation: TaskEvaluation) -> None:
        mean_length = float(evaluation.lengths.mean())
        self.logger.record("eval/mean_reward", evaluation.mean_return)
        self.logger.record("eval/mean_ep_length", mean_length)
        message = f"Eval num_timesteps={self.num_timesteps}, {len(evaluation.tasks)} tasks: "
        message += f"mean reward {evaluation.mean_return:.2f}, mean episode length {mean_length:.1f}"
        if evaluation.success_rate is not None:
            self.logger.record("eval/success_rate", evaluation.success_rate)
            message += f", success rate {evaluation.success_rate:.2f}"
        if self.verbose >= 1:
            print(message)
        # Dump, so that the values stand at the step of the evaluation.
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)


def save_evaluations(path: str | Path, timesteps: list[int], evaluations: list[TaskEvaluation]) -> None:
    """
    Write evaluations as ``EvalCallback`` does, with the tasks beside them.

    ``timesteps`` (n_evaluations,), ``results``, ``ep_lengths`` and, where the family has the notion, ``successes``
    (n_evaluations, n_tasks * n_episodes), and ``tasks`` (n_tasks * n_episodes, task_dim): row j is the task of column j.
    The file is complete or as it was before, whenever the process is killed.

    :param path: file to write
    :param timesteps: environment steps before each evaluation
    :param evaluations: evaluations, all on the same tasks
    """
    arrays = {
        "timesteps": np.array(timesteps),
        "tasks": np.repeat(evaluations[0].tasks, evaluations[0].returns.shape[1], axis=0),
        "results": np.stack([evaluation.returns.ravel() for evaluation in evaluations]),
        "ep_lengths": np.stack([evaluation.lengths.ravel() for evaluation in evaluations]),
    }
    successes = [evaluation.successes.ravel() for evaluation in evaluations if evaluation.successes is not None]
    if len(successes) == len(evaluations):
        arrays["successes"] = np.stack(successes)
    temporary = Path(f"{path}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
