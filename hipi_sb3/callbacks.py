"""Callbacks for training on a family of tasks."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.evaluation import TaskEvaluation, evaluate_tasks, evaluation_tasks, family_to_evaluate
from hipi_sb3.experience.whole import whole_file
from hipi_sb3.relabel.posterior import effective_tasks, mean_effective_tasks
from hipi_sb3.tasks.family import TaskFamily


class TaskEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` on a fixed set of tasks.

    ``EvalCallback`` evaluates whatever tasks the environment happens to draw, so two evaluations differ by their tasks as
    much as by the policy. This one evaluates the same tasks with the same environment noise every time, logs
    ``eval/mean_reward``, ``eval/mean_ep_length`` and ``eval/success_rate``, saves ``best_model.zip`` and writes
    ``evaluations.npz`` (see :func:`save_evaluations`).

    :param eval_env: environment with a task family, or a ``VecEnv`` of such; or of a GoalEnv, whose goals are those that it
        draws with this seed
    :param tasks: tasks, (n_tasks, task_dim), or how many goals of a GoalEnv; those of
        :func:`~hipi_sb3.evaluation.evaluation_tasks` if None
    :param n_tasks: number of tasks where ``tasks`` is None and the family is not finite
    :param task_seed: seed of the draw of the tasks and of the environment noise
    :param n_eval_episodes: episodes of each task
    :param kwargs: as in ``EvalCallback``: ``eval_freq``, ``log_path``, ``best_model_save_path``, ``deterministic``, ...
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        tasks: np.ndarray | int | None = None,
        n_tasks: int = 20,
        task_seed: int = 0,
        n_eval_episodes: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_env, n_eval_episodes=n_eval_episodes, **kwargs)
        family = family_to_evaluate("TaskEvalCallback", self.eval_env)
        if tasks is None and family is not None:
            tasks = evaluation_tasks(family, n_tasks, task_seed)
        #: What :func:`~hipi_sb3.evaluation.evaluate_tasks` takes: of a GoalEnv how many.
        self.tasks: np.ndarray | int = n_tasks if tasks is None else tasks
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
                with whole_file(Path(self.best_model_save_path) / "best_model.zip") as file:
                    self.model.save(file)
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
    write_npz(path, arrays)


def write_npz(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """
    Write an ``.npz`` file that is complete or as it was before, whenever the process is killed.

    :param path: file to write
    :param arrays: arrays by name
    :raises NotWritten: when the disk is full, or cannot be written to
    """
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class RelabelSnapshotCallback(BaseCallback):
    """
    Show what relabeling does: every ``freq`` steps a PNG and the arrays behind it, ``relabel_<steps>.png`` and ``.npz``.

    Three panels: who was relabeled with what (a heat map of commanded against assigned task for finite families, arrows
    from commanded to assigned tasks where these have two dimensions, else the distribution of each task dimension before and
    after), log Z by task, and the effective number of tasks over time. The arrays are ``commanded`` and ``assigned``
    (batch_size, task_dim) and, where a posterior was inferred, ``candidates`` (n_tasks, task_dim), ``log_partition``
    (n_tasks,), ``effective_tasks`` (batch_size,) and its history ``steps``, ``mean_effective_tasks``.

    Looking changes nothing: the training goes on with the same random numbers.

    :param folder: where to write
    :param freq: environment steps between snapshots
    :param batch_size: transitions that are looked at
    :param verbose: from 1 on, the path of each picture is printed
    """

    def __init__(self, folder: str | Path, freq: int = 5000, batch_size: int = 256, verbose: int = 0) -> None:
        super().__init__(verbose)
        if freq < 1:
            raise ValueError(f"RelabelSnapshotCallback: freq must be at least 1 step, not {freq}.")
        self.folder = Path(folder)
        self.freq = freq
        self.batch_size = batch_size
        self.history: list[tuple[int, float]] = []
        self._next = freq

    def _init_callback(self) -> None:
        buffer = getattr(self.model, "replay_buffer", None)
        if not isinstance(buffer, HIPIReplayBuffer):
            raise ValueError(f"RelabelSnapshotCallback needs a HIPIReplayBuffer, but the buffer is {type(buffer).__name__}.")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        self._set_next()  # of a training that goes on, too

    def _on_step(self) -> bool:
        buffer = self.model.replay_buffer  # type: ignore[attr-defined]
        if self.num_timesteps >= self._next and buffer.size() > 0:
            self._set_next()
            self.snapshot(buffer)
        return True

    def _set_next(self) -> None:
        self._next = (self.num_timesteps // self.freq + 1) * self.freq

    def snapshot(self, buffer: HIPIReplayBuffer) -> Path:
        """
        Write one snapshot.

        :param buffer: the buffer to look at
        :return: path of the picture
        """
        batch = buffer.preview(self.batch_size, self.model.get_vec_normalize_env())
        assert batch.assigned is not None
        arrays = {"commanded": batch.commanded, "assigned": batch.assigned}
        if "inference" in batch.__dict__:
            effective = effective_tasks(batch.inference.posterior)
            self.history.append((self.num_timesteps, mean_effective_tasks(batch.inference.posterior)))
            steps, means = np.array(self.history).T
            arrays |= {
                "candidates": batch.candidate_tasks.tasks,
                "log_partition": batch.inference.log_partition,
                "effective_tasks": effective,
                "steps": steps,
                "mean_effective_tasks": means,
            }
        path = self.folder / f"relabel_{self.num_timesteps}"
        write_npz(path.with_suffix(".npz"), arrays)
        walls = self.training_env.get_attr("walls")[0] if self.training_env.has_attr("walls") else None
        draw_relabeling(path.with_suffix(".png"), buffer.require_family(), arrays, walls)
        if self.verbose >= 1:
            print(f"Relabeling after {self.num_timesteps} steps: {path.with_suffix('.png')}")
        return path.with_suffix(".png")


def draw_relabeling(path: Path, family: TaskFamily, arrays: dict[str, np.ndarray], walls: np.ndarray | None = None) -> None:
    """
    Draw the panels of :class:`RelabelSnapshotCallback`.

    :param path: PNG file to write
    :param family: the tasks
    :param arrays: see :class:`RelabelSnapshotCallback`
    :param walls: map of a maze, (height, width), bool, to draw goals over
    """
    from matplotlib.figure import Figure

    has_posterior = "log_partition" in arrays
    has_prices = has_posterior and bool(arrays["log_partition"].any())  # all are 0 where log Z is not estimated
    n_panels = 1 + has_posterior + has_prices
    figure = Figure(figsize=(4.6 * n_panels, 4.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, n_panels))
    draw_labels(axes[0], family, arrays["commanded"], arrays["assigned"], walls)
    if has_prices:
        _draw_log_partition(axes[1], family, arrays["candidates"], arrays["log_partition"])
    if has_posterior:
        axes[-1].plot(arrays["steps"], arrays["mean_effective_tasks"], marker="o", color="#0072B2")
        axes[-1].set(title="effective tasks a row", xlabel="environment steps", ylim=(0, None))
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def draw_labels(
    axes: Any, family: TaskFamily, commanded: np.ndarray, assigned: np.ndarray, walls: np.ndarray | None = None
) -> None:
    """
    Draw who was relabeled with what, the first panel of :class:`RelabelSnapshotCallback`.

    :param axes: Matplotlib axes to draw into
    :param family: the tasks
    :param commanded: commanded tasks, (batch_size, task_dim)
    :param assigned: assigned tasks, (batch_size, task_dim)
    :param walls: map of a maze, (height, width), bool, to draw goals over
    """
    if family.tasks is not None:
        of, to = (np.argmax(np.all(tasks[:, None] == family.tasks, axis=2), axis=1) for tasks in (commanded, assigned))
        counts = np.zeros((len(family.tasks),) * 2)
        np.add.at(counts, (of, to), 1)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="share of its transitions")
        axes.set(title="labels", xlabel="assigned task", ylabel="commanded task")
    elif commanded.shape[1] == 2:
        name = "goal" if family.reaches_goals else "task"
        # Axis 0 of a position counts rows of a map downwards, axis 1 columns.
        if walls is not None:
            axes.imshow(walls, extent=(0, walls.shape[1], walls.shape[0], 0), cmap="Greys", alpha=0.6)
        some = slice(0, 60)  # more arrows than that cover each other
        delta = assigned[some] - commanded[some]
        axes.quiver(
            commanded[some, 1], commanded[some, 0], delta[:, 1], delta[:, 0],
            angles="xy", scale_units="xy", scale=1, width=0.004, color="#0072B2", alpha=0.6,
        )  # fmt: skip
        axes.plot(assigned[some, 1], assigned[some, 0], "o", color="#D55E00", markersize=4, label=f"assigned {name}")
        low, high = family.task_space.low, family.task_space.high
        axes.set(title=f"from commanded to assigned {name}s", xlim=(low[1], high[1]), ylim=(high[0], low[0]), aspect="equal")
        axes.legend(loc="upper right", fontsize=8)
    else:
        axes.boxplot(
            [tasks[:, j] for j in range(commanded.shape[1]) for tasks in (commanded, assigned)],
            tick_labels=[f"{j} {name}" for j in range(commanded.shape[1]) for name in ("commanded", "assigned")],
        )
        axes.tick_params(axis="x", rotation=90)
        axes.set(title="task dimensions")


def _draw_log_partition(axes: Any, family: TaskFamily, candidates: np.ndarray, log_partition: np.ndarray) -> None:
    axes.set(title="log Z by task")
    candidates = candidates.reshape(-1, candidates.shape[-1])
    log_partition = np.resize(log_partition, len(candidates))
    if family.tasks is not None:
        axes.bar(np.argmax(np.all(candidates[:, None] == family.tasks, axis=2), axis=1), log_partition, color="#0072B2")
        axes.set(xlabel="task")
    elif candidates.shape[1] == 2:
        points = axes.scatter(candidates[:, 1], candidates[:, 0], c=log_partition, cmap="viridis", s=18)
        axes.figure.colorbar(points, ax=axes, shrink=0.8)
        low, high = family.task_space.low, family.task_space.high
        axes.set(xlim=(low[1], high[1]), ylim=(high[0], low[0]), aspect="equal")
    else:
        axes.scatter(candidates[:, 0], log_partition, color="#0072B2", s=18)
        axes.set(xlabel="first entry of the task")
