"""Evaluate a policy task by task, on tasks that are the same every time."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from hipi_sb3.experience.layout import without_task
from hipi_sb3.experience.whole import whole_file
from hipi_sb3.given import check_count, numbers
from hipi_sb3.tasks.family import TaskFamily, check_is_family
from hipi_sb3.tasks.goal_env import GoalEnvTasks, is_goal_space

#: Longer tasks, such as goals that are images, are numbered in a table.
MAX_LABEL = 16


def evaluation_tasks(family: TaskFamily, n_tasks: int = 20, seed: int = 0) -> np.ndarray:
    """
    Choose the tasks of an evaluation: all of a finite family, otherwise draws from the prior that depend on ``seed`` alone.

    :param family: the tasks
    :param n_tasks: number of draws; a finite family ignores it
    :param seed: seed of the draws
    :return: tasks, (n_tasks, task_dim)
    :raises ValueError: when ``n_tasks`` is not positive
    """
    check_is_family("evaluation_tasks", family)
    check_count("evaluation_tasks: n_tasks", n_tasks, 1)
    check_count("evaluation_tasks: seed", seed, 0)
    return family.tasks.copy() if family.tasks is not None else family.sample(np.random.default_rng(seed), n_tasks)


@dataclass(frozen=True, eq=False)
class TaskEvaluation:
    """
    Episodes of one policy on several tasks.

    :param tasks: tasks, (n_tasks, task_dim)
    :param returns: undiscounted, unnormalised return of each episode, (n_tasks, n_episodes)
    :param lengths: steps of each episode, (n_tasks, n_episodes)
    :param successes: ``is_success`` at the last step of each episode, (n_tasks, n_episodes), bool; None where the family
        has no notion of success
    :param observations: observations of each episode from first to last, without the task, task by task; None unless they
        were recorded. Entry ``i * n_episodes + k``, (n_steps + 1, obs_dim), is episode k of task i
    """

    tasks: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None = None
    observations: tuple[Any, ...] | None = None

    @property
    def mean_return(self) -> float:
        """Mean return over all tasks and episodes."""
        return float(self.returns.mean())

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes; None where the family has no notion of success."""
        return None if self.successes is None else float(self.successes.mean())

    def table(self) -> str:
        """
        Format one line a task, then the means with their intervals (see :func:`bootstrap_interval`).

        :return: aligned text, several lines
        """
        columns = {"return": (self.returns, "{:.2f}"), "steps": (self.lengths, "{:.1f}")}
        if self.successes is not None:
            columns["success"] = (self.successes, "{:.2f}")
        rows = [["task", *columns]]
        for i, label in enumerate(task_labels(self.tasks)):
            rows.append([label, *(form.format(values[i].mean()) for values, form in columns.values())])
        rows.append([f"mean of {len(self.tasks)} tasks", *(form.format(values.mean()) for values, form in columns.values())])
        intervals = [(*bootstrap_interval(values), form) for values, form in columns.values()]
        rows.append(["95 % from", *(form.format(low) for low, _, form in intervals)])
        rows.append(["95 % to", *(form.format(high) for _, high, form in intervals)])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])

    def to_dict(self) -> dict[str, Any]:
        """
        Everything but the observations, as plain lists and numbers, for JSON.

        :return: dictionary
        """
        values = {
            "mean_return": self.mean_return,
            "mean_return_interval": bootstrap_interval(self.returns),
            "success_rate": self.success_rate,
            "success_rate_interval": None if self.successes is None else bootstrap_interval(self.successes),
            "interval": "95 % percentile bootstrap over tasks",
        }
        for name in ("tasks", "returns", "lengths", "successes"):
            array = getattr(self, name)
            values[name] = None if array is None else array.tolist()
        return values


def evaluate_tasks(
    model: PolicyPredictor,
    env: gym.Env | VecEnv,
    tasks: np.ndarray | Sequence[Any] | int,
    n_episodes: int = 1,
    deterministic: bool = True,
    seed: int | None = None,
    record_observations: bool = False,
    render: bool = False,
) -> TaskEvaluation:
    """
    Run the policy on each of the given tasks.

    Episodes are those of SB3's ``evaluate_policy``; the tasks are set through ``fix_task`` of
    :class:`~hipi_sb3.wrappers.MultiTaskWrapper`, because the automatic reset of a ``VecEnv`` drops ``options``. Several
    environments share the tasks. What ``fix_task`` said before is restored.

    A GoalEnv that is used as it is draws its goals when it is reset, and none can be set: ``tasks`` says how many. One seed
    gives the same goals each time, whatever the policy does and however many environments share them.

    :param model: anything with ``predict``
    :param env: environment with a task family, or a ``VecEnv`` of such; with ``VecNormalize`` the returns are those of the
        environment, not normalised
    :param tasks: tasks, (n_tasks, task_dim); of a GoalEnv how many goals
    :param n_episodes: episodes of each task; for a GoalEnv as many times the number of goals, with an episode each
    :param deterministic: whether the policy acts greedily
    :param seed: seed of the environments: whatever the policy does, two evaluations begin each task with the same noise; their
        generators go on if None
    :param record_observations: whether to keep the observations
    :param render: whether to render each step
    :return: the episodes
    :raises ValueError: when there is no task, ``n_episodes`` is not positive or the environment has no task family and is no
        GoalEnv
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    check_count("evaluate_tasks: n_episodes", n_episodes, 1)
    tasks, family = _check_tasks(vec_env, tasks)
    if family is None:
        # Each episode has a goal of its own, and a seed apart from small ones, with which training begins.
        tasks, n_episodes = np.repeat(tasks, n_episodes, axis=0), 1
        seed = None if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
    recorder = _EpisodeRecorder(vec_env, family, record_observations)
    fixed_before = [] if family is None else vec_env.get_attr("fixed_task")
    episodes: list[_Episode] = []
    try:
        for start in range(0, len(tasks), vec_env.num_envs):
            group = tasks[start : start + vec_env.num_envs]
            for i in range(len(fixed_before)):
                # Environments for which no task is left repeat one; what they do is dropped below.
                vec_env.env_method("fix_task", group[i % len(group)], indices=[i])
            if seed is not None:
                # Anew for every group: how much noise the one before has used depends on the policy.
                vec_env.seed(seed + start)
            recorder.clear()
            evaluate_policy(
                model,
                vec_env,
                n_eval_episodes=vec_env.num_envs * n_episodes,
                deterministic=deterministic,
                render=render,
                callback=recorder,
                return_episode_rewards=True,
                warn=False,
            )
            for i in range(len(group)):
                episodes.extend(recorder.episodes[i])
    finally:
        for i, task in enumerate(fixed_before):
            vec_env.env_method("fix_task", task, indices=[i])
    if family is None:
        tasks = np.stack([episode.goal for episode in episodes])
    shape = (len(tasks), n_episodes)
    successes = [episode.success for episode in episodes]
    return TaskEvaluation(
        tasks=tasks,
        returns=np.array([episode.total_reward for episode in episodes]).reshape(shape),
        lengths=np.array([episode.length for episode in episodes]).reshape(shape),
        successes=None if None in successes else np.array(successes, dtype=bool).reshape(shape),
        observations=tuple(_stack(episode.observations) for episode in episodes) if record_observations else None,
    )


def family_to_evaluate(owner: str, env: VecEnv) -> TaskFamily | None:
    """
    The tasks of environments that are evaluated.

    :param owner: what evaluates, for the error
    :param env: environments
    :return: the tasks; None of a GoalEnv that is used as it is
    :raises ValueError: when there are none
    """
    if env.has_attr("task_family"):
        return env.get_attr("task_family", indices=[0])[0]
    if not is_goal_space(env.observation_space):
        raise ValueError(f"{owner}: the environment has no task family. Wrap it in hipi_sb3.MultiTaskWrapper.")
    return None


def _check_tasks(env: VecEnv, tasks: Any) -> tuple[np.ndarray, TaskFamily | None]:
    """Tasks to evaluate and their family; of a GoalEnv so many rows without numbers, and none."""
    family = family_to_evaluate("evaluate_tasks", env)
    if family is not None:
        if numbers("tasks", tasks).size == 0:
            raise ValueError("evaluate_tasks: needs at least one task, not 0.")
        numbers("tasks", tasks, "n_tasks", "task_dim")
        return np.stack([family.check_task(task) for task in tasks]), family
    if not isinstance(tasks, Integral):
        raise ValueError(
            "evaluate_tasks: a GoalEnv draws its goals itself, and none can be set: pass their number, tasks=20, and a seed."
        )
    check_count("evaluate_tasks: tasks", tasks, 1)
    return np.empty((int(tasks), 0)), None


def save_trajectory_plot(env: VecEnv, evaluation: TaskEvaluation, path: str | Path) -> bool:
    """
    Let the environment draw the first episode of each task, if it can (2D environments have ``plot_trajectories``).

    :param env: environment of the evaluation
    :param evaluation: episodes with their observations
    :param path: picture to write
    :return: whether there is a picture
    """
    if evaluation.observations is None or not env.has_attr("plot_trajectories"):
        return False
    n_episodes = evaluation.returns.shape[1]
    successes = np.zeros_like(evaluation.returns, dtype=bool) if evaluation.successes is None else evaluation.successes
    observations = list(evaluation.observations[::n_episodes])
    with whole_file(path) as file:
        env.env_method("plot_trajectories", str(file), observations, evaluation.tasks, successes[:, 0].tolist(), indices=[0])
    return True


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of the mean over tasks.

    Tasks are resampled, with all their episodes: the episodes of one task are no independent draws of the prior. It says
    how much the mean depends on which tasks were drawn, not on the training seed. With a single task its episodes are
    resampled.

    :param values: values, (n_tasks, n_episodes)
    :param confidence: coverage of the interval
    :param n_resamples: number of resamples
    :param seed: seed of the resampling
    :return: lower and upper end
    :raises ValueError: when there are none
    """
    values = numbers("values", values, "n_tasks", "n_episodes")
    if values.size == 0:
        raise ValueError(f"values must hold an episode of a task at least, but their shape is {values.shape}.")
    means = values.mean(axis=1) if len(values) > 1 else values[0]  # (n,)
    resamples = np.random.default_rng(seed).integers(len(means), size=(n_resamples, len(means)))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means[resamples].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def task_labels(tasks: np.ndarray) -> list[str]:
    """
    Short names of tasks: the numbers, the position of the one in a one-hot vector, or where they have many numbers, their own.

    :param tasks: tasks, (n_tasks, task_dim)
    :return: one label a task
    """
    tasks = numbers("tasks", tasks, "n_tasks", "task_dim")
    if tasks.shape[1] > 1 and np.all((tasks == 0) | (tasks == 1)) and np.all(tasks.sum(axis=1) == 1):
        return [f"task {index}" for index in tasks.argmax(axis=1)]
    if tasks.shape[1] > MAX_LABEL:
        return [f"task {index}" for index in range(len(tasks))]
    return [", ".join(f"{number:.4g}" for number in task) for task in tasks]


class _Episode:
    """One episode while it is running."""

    def __init__(self) -> None:
        self.total_reward = 0.0
        self.length = 0
        self.success: bool | None = None
        self.goal = np.empty(0)
        self.observations: list[Any] = []


class _EpisodeRecorder:
    """Callback of ``evaluate_policy`` that keeps the episodes of each environment apart, in order."""

    def __init__(self, env: VecEnv, family: TaskFamily | None, record_observations: bool) -> None:
        self.env = env
        self.vec_normalize = unwrap_vec_normalize(env)
        self.draws_goals = family is None
        self.task_key = GoalEnvTasks.task_key if family is None else family.task_key
        self.task_dim = 0 if family is None else family.task_dim
        self.record_observations = record_observations
        self.clear()

    def clear(self) -> None:
        """Forget all episodes."""
        self.episodes: list[list[_Episode]] = [[] for _ in range(self.env.num_envs)]
        self._running = [_Episode() for _ in range(self.env.num_envs)]

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Take one step of one environment from the variables of ``evaluate_policy``."""
        i, info, done = locals_["i"], locals_["info"], locals_["done"]
        episode = self._running[i]
        if self.draws_goals and episode.length == 0:
            episode.goal = np.ravel(self._as_drawn(_row(locals_["observations"], i))[self.task_key])
        rewards = locals_["rewards"] if self.vec_normalize is None else self.vec_normalize.get_original_reward()
        episode.total_reward += float(rewards[i])
        episode.length += 1
        if self.record_observations:
            if not episode.observations:
                episode.observations.append(self._without_task(_row(locals_["observations"], i)))
            # The automatic reset has replaced the last observation of an episode.
            new_obs = info["terminal_observation"] if done else _row(locals_["new_observations"], i)
            episode.observations.append(self._without_task(new_obs))
        # What evaluate_policy counts as an episode: where there is a Monitor, it decides.
        if done and (not locals_["is_monitor_wrapped"] or "episode" in info):
            episode.success = None if info.get("is_success") is None else bool(info["is_success"])
            self.episodes[i].append(episode)
            self._running[i] = _Episode()

    def _as_drawn(self, obs: Any) -> Any:
        return obs if self.vec_normalize is None else self.vec_normalize.unnormalize_obs(obs)

    def _without_task(self, obs: Any) -> Any:
        obs = self._as_drawn(obs)
        return without_task(obs, self.task_key) if isinstance(obs, dict) else obs[: -self.task_dim]


def _stack(observations: list[Any]) -> Any:
    """Observations of an episode, Box or Dict ones, (n_steps + 1, ...)."""
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


def _row(obs: Any, index: int) -> Any:
    """Observation of one environment out of a batch of Box or Dict observations."""
    return {key: value[index] for key, value in obs.items()} if isinstance(obs, dict) else obs[index]
