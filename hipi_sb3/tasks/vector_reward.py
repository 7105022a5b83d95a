"""Vector rewards (MO-Gymnasium): the tasks are weights on the objectives; metrics of how well all weights are served."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from scipy.special import gammaln

from hipi_sb3.given import as_tasks, check_count
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.linear import weighted_sum


class VectorRewardTasks(TaskFamily):
    """
    Weights on the entries of a vector reward: r_psi = r . psi. psi is on the simplex, and uniform there.

    Works with any environment whose ``step`` returns a vector, such as those of MO-Gymnasium.

    :param objectives: the number of objectives, or an environment whose ``unwrapped.reward_space`` tells it
    :raises ValueError: when there are fewer than two objectives, or the environment does not tell their number
    """

    def __init__(self, objectives: int | gym.Env) -> None:
        if not isinstance(objectives, gym.Env):
            check_count("VectorRewardTasks: objectives (or an environment)", objectives, 1)
        else:
            space = getattr(objectives.unwrapped, "reward_space", None)
            if space is None:
                raise ValueError(
                    f"VectorRewardTasks: {objectives} has no reward_space, so its reward is a number, not a vector. Pass the "
                    "number of objectives if it is a vector all the same."
                )
            objectives = int(np.prod(space.shape))
        if objectives < 2:
            raise ValueError(f"VectorRewardTasks: a vector reward has at least two objectives, not {objectives}.")
        super().__init__(spaces.Box(0.0, 1.0, shape=(objectives,), dtype=np.float32), feature_dim=objectives)

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        return rng.dirichlet(np.ones(self.task_dim), size=n).astype(np.float32)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        tasks = as_tasks(tasks, self.task_dim).astype(np.float64)
        on_simplex = np.all(tasks >= 0, axis=-1) & (np.abs(tasks.sum(axis=-1) - 1) < 1e-5)
        return np.where(on_simplex, gammaln(self.task_dim), -np.inf)  # a Dirichlet density with parameters 1: (d - 1)!

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return np.asarray(reward, dtype=np.float32)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return weighted_sum(features, tasks)


def vector_returns(
    model: Any,
    env: gym.Env,
    tasks: np.ndarray,
    n_episodes: int = 1,
    gamma: float = 1.0,
    deterministic: bool = True,
    seed: int | None = None,
) -> np.ndarray:
    """
    Run the policy for each of the given weights and add up the vector rewards.

    :param model: anything with ``predict``
    :param env: a :class:`~hipi_sb3.wrappers.MultiTaskWrapper` of :class:`VectorRewardTasks`, with a time limit around it
    :param tasks: weights, (n_tasks, n_objectives)
    :param n_episodes: episodes of each task
    :param gamma: discount of the returns
    :param deterministic: whether the policy acts greedily
    :param seed: seed of the environment
    :return: mean vector return for each task, (n_tasks, n_objectives)
    """
    returns = np.zeros((len(tasks), n_episodes, np.shape(tasks)[1]))
    for i, task in enumerate(tasks):
        for k in range(n_episodes):
            obs, _ = env.reset(seed=seed if i == k == 0 else None, options={"task": task})
            discount, done = 1.0, False
            while not done:
                action, _ = model.predict(obs, deterministic=deterministic)
                obs, _, terminated, truncated, info = env.step(action)
                returns[i, k] += discount * info["task_features"]
                discount *= gamma
                done = terminated or truncated
    return returns.mean(axis=1)  # over episodes


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """
    Volume that a set of vector returns dominates, above a reference point; all objectives are to be large.

    The definition that morl-baselines evaluates with. Exact, by slicing along the last objective; meant for fronts of at most
    a few hundred points and four objectives.

    :param points: vector returns, (n, n_objectives)
    :param reference: reference point, (n_objectives,); what is not above it in every objective counts nothing
    :return: hypervolume
    """
    points, reference = np.asarray(points, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    points = points[np.all(points > reference, axis=1)]
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(points.max() - reference[0])
    points = points[np.argsort(-points[:, -1])]
    depths = points[:, -1] - np.append(points[1:, -1], reference[-1])
    # In the slice between the k-th and the next height, the first k points count.
    return sum(
        depth * hypervolume(points[: k + 1, :-1], reference[:-1]) for k, depth in enumerate(depths.tolist()) if depth > 0
    )


def expected_utility(
    points: np.ndarray,
    weights: np.ndarray,
    utility: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> float:
    """
    Mean over weights of the utility of the best vector return for them (morl-baselines' expected utility metric).

    :param points: vector returns, (n, n_objectives)
    :param weights: weights, (n_weights, n_objectives), such as draws of :meth:`VectorRewardTasks.sample`
    :param utility: ``utility(points, weights) -> (n, n_weights)``, the weighted sum if None
    :return: expected utility
    """
    points, weights = np.asarray(points, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    values = points @ weights.T if utility is None else utility(points, weights)  # (n, n_weights)
    return float(values.max(axis=0).mean())  # best point, then over weights
