"""Try a task family on a real environment, and say in words what is wrong with it."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from hipi_sb3.tasks.family import TaskFamily, check_is_family
from hipi_sb3.tasks.goal_env import GoalEnvTasks
from hipi_sb3.wrappers import MultiTaskWrapper

#: ``policy(obs) -> action``
Policy = Callable[[Any], Any]


def check_family(
    family: TaskFamily, env: gym.Env, n_steps: int = 500, policy: Policy | None = None, seed: int = 0
) -> list[str]:
    """
    Step an environment with a family and compare what it returns with what the family says.

    :param family: the tasks
    :param env: an environment without tasks, which is put into a :class:`~hipi_sb3.wrappers.MultiTaskWrapper`; one that has
        this family already, with whatever wrappers are around it; or a GoalEnv for
        :class:`~hipi_sb3.tasks.goal_env.GoalEnvTasks`
    :param n_steps: steps to take
    :param policy: ``policy(obs) -> action``, for instance a script that solves the task; random actions if None
    :param seed: seed of everything that is drawn
    :return: what is wrong, one sentence or two each; empty if nothing is
    """
    try:
        check_is_family("check_family", family)
    except TypeError as error:
        return [str(error)]
    problems = _check_pickle(family)
    problems += _check_prior(family, seed)
    if problems:
        # The rest would only fail in other words.
        return problems
    try:
        steps = _take_steps(family, env, n_steps, policy, seed)
    except Exception as error:
        return [f"Stepping the environment with the family failed: {type(error).__name__}: {error}"]
    features, tasks = (np.array([step[key] for step in steps]) for key in ("features", "task"))
    problems += _check_functions(family, features.astype(np.float32), tasks.astype(np.float32), seed)
    if not problems:
        problems += _check_what_step_returned(family, steps)
        problems += _check_goals(family, steps, features.astype(np.float32), random_policy=policy is None)
    return problems


def _check_pickle(family: TaskFamily) -> list[str]:
    try:
        pickle.loads(pickle.dumps(family))
    except Exception as error:
        return [
            f"The family cannot be pickled ({error}): it could neither reach a SubprocVecEnv nor be saved. Replace lambdas "
            "and local functions by functions defined at module level."
        ]
    return []


def _check_prior(family: TaskFamily, seed: int) -> list[str]:
    """Draws from the prior: shape, range, density, repeatability."""
    try:
        draws = np.asarray(family.sample(np.random.default_rng(seed), 100))
        again = np.asarray(family.sample(np.random.default_rng(seed), 100))
        log_prior = np.asarray(family.log_prior(draws))
    except Exception as error:
        return [f"Drawing from the prior failed: {type(error).__name__}: {error}"]
    if draws.shape != (100, family.task_dim):
        return [f"sample(rng, 100) returned shape {draws.shape}, but tasks have shape (100, {family.task_dim})."]
    problems = []
    if draws.dtype != np.float32:
        problems.append(
            f"sample returned {draws.dtype}: tasks are stored in float32, and thresholds can fall differently then."
        )
    low, high = family.task_space.low, family.task_space.high
    slack = 1e-6 * np.maximum(1.0, np.abs(draws))
    outside = np.any((draws < low - slack) | (draws > high + slack), axis=-1)
    # The goals of a GoalEnv whose space has no bounds are in an estimated range.
    if outside.any() and not isinstance(family, GoalEnvTasks):
        problems.append(
            f"{outside.sum()} of 100 draws from the prior lie outside the task space, such as {draws[outside][0].tolist()} "
            f"(low {low.tolist()}, high {high.tolist()}): widen the space or draw inside it."
        )
    if not np.array_equal(draws, again):
        problems.append(
            "Two draws with the same seed differ: take all random numbers from the generator that sample is given."
        )
    if log_prior.shape != (100,):
        problems.append(f"log_prior(tasks) returned shape {log_prior.shape} for 100 tasks; it must reduce the last axis only.")
    elif not np.all(np.isfinite(log_prior)):
        problems.append(f"log_prior calls {np.sum(~np.isfinite(log_prior))} of 100 draws from the prior impossible.")
    return problems


def _take_steps(family: TaskFamily, env: gym.Env, n_steps: int, policy: Policy | None, seed: int) -> list[dict[str, Any]]:
    """What happened in each step: features, task, reward, terminated, env_terminated, is_success."""
    if family.features_key is None and not _has_family(env):
        env = MultiTaskWrapper(env, family)
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    steps = []
    for _ in range(n_steps):
        next_obs, reward, terminated, truncated, info = env.step(env.action_space.sample() if policy is None else policy(obs))
        of_obs = family.features_key is not None
        steps.append(
            {
                "features": family.features(env, obs, None, next_obs, reward, info) if of_obs else info["task_features"],
                "task": family.task_of(obs) if of_obs else info["task"],
                "task_after": family.task_of(next_obs) if of_obs else info["task"],
                "reward": reward,
                "terminated": terminated,
                "env_terminated": info.get("env_terminated"),
                "is_success": info.get("is_success"),
            }
        )
        obs = env.reset()[0] if terminated or truncated else next_obs
    return steps


def _has_family(env: gym.Env) -> bool:
    return isinstance(env, gym.Wrapper) and env.has_wrapper_attr("task_family")


def _check_functions(family: TaskFamily, features: np.ndarray, tasks: np.ndarray, seed: int) -> list[str]:
    """Shapes and types of reward, termination and success: a pair matrix has to equal what its pairs give one by one."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(features), size=min(8, len(features)), replace=False)
    some_features, some_tasks = features[rows], np.concatenate([tasks[rows], family.sample(rng, 4)])
    problems = []
    for name, function in (("reward", family.reward), ("terminated", family.terminated), ("success", family.success)):
        try:
            one_by_one = np.array([[function(feature, task) for task in some_tasks] for feature in some_features])
            matrix: Any = function(some_features[:, None], some_tasks)
        except Exception as error:
            problems.append(f"{name} failed on stored features and tasks: {type(error).__name__}: {error}")
            continue
        if matrix is None:
            continue
        shape = (len(some_features), len(some_tasks))
        if np.shape(matrix) != shape:
            problems.append(
                f"{name} is not vectorised: features (8, 1, {family.feature_dim}) and tasks ({shape[1]}, {family.task_dim}) "
                f"must give {shape}, not {np.shape(matrix)}. Index and reduce the last axis, as in features[..., 0]."
            )
            continue
        if one_by_one.shape != shape or not np.allclose(one_by_one, matrix, rtol=1e-5, atol=1e-6):
            problems.append(
                f"{name} of a batch differs from {name} of its rows: it reduces or reshapes an axis that is not the last."
            )
        again: Any = function(some_features[:, None], some_tasks)
        if not np.array_equal(matrix, again):
            problems.append(f"{name} of the same features and tasks differs from call to call: families have no state.")
        dtype = np.asarray(matrix).dtype
        if name == "reward":
            if not np.issubdtype(dtype, np.floating):
                problems.append(f"reward returned {dtype}, not a floating-point type: divisions by T would be cut off.")
            if not np.all(np.isfinite(matrix)):
                problems.append("reward is infinite or NaN for stored features and tasks.")
        elif not np.issubdtype(dtype, np.bool_):
            problems.append(f"{name} returned {dtype}, not bool: the buffer combines it with `|` and `~`.")
    return problems


def _check_what_step_returned(family: TaskFamily, steps: list[dict[str, Any]]) -> list[str]:
    """Reward, termination and success that were experienced against those that relabeling would compute."""
    problems = []
    for i, step in enumerate(steps):
        expected = float(family.reward(step["features"], step["task"]))
        if not np.isclose(expected, step["reward"], rtol=1e-4, atol=1e-5):
            problems.append(
                f"At step {i} the environment returned reward {float(step['reward']):.6g}, but the family says {expected:.6g} "
                f"for the same features and task: relabeled rows would be on another scale. {family.reward_remedy}"
            )
            break
    for i, step in enumerate(steps):
        ends = bool(family.terminated(step["features"], step["task"]))
        explained = ends | bool(step["env_terminated"])
        if (ends and not step["terminated"]) or (step["env_terminated"] is not None and explained != step["terminated"]):
            problems.append(
                f"At step {i} the environment returned terminated={bool(step['terminated'])}, but the family says {ends}: "
                "relabeled rows would end where experienced ones do not."
            )
            break
    for i, step in enumerate(steps):
        solved = family.success(step["features"], step["task"])
        if step["is_success"] is not None and solved is not None and bool(solved) != bool(step["is_success"]):
            problems.append(
                f"At step {i} info['is_success'] is {bool(step['is_success'])}, but the family says {bool(solved)}: results "
                "would count other successes than relabeling does."
            )
            break
    if any(not np.array_equal(step["task"], step["task_after"]) for step in steps):
        problems.append("The task changed within an episode: end the episode there, or keep the task.")
    return problems


def _check_goals(family: TaskFamily, steps: list[dict[str, Any]], features: np.ndarray, random_policy: bool) -> list[str]:
    """Whether goals can be achieved, and success is ever reached."""
    problems = []
    if family.reaches_goals:
        achieved = np.asarray(family.achieved(features))
        if achieved.shape != (len(features), family.task_dim):
            return [f"achieved(features) returned shape {achieved.shape}, but tasks have shape (n, {family.task_dim})."]
        solved = family.success(features, achieved)
        if solved is not None and not np.all(solved):
            problems.append(
                f"{np.sum(~np.asarray(solved))} of {len(features)} transitions do not succeed at the task that achieved() "
                "says they fulfil: HER would relabel with goals that were missed."
            )
    successes = [step["is_success"] for step in steps]
    if None not in successes and not any(successes):
        who = "random actions" if random_policy else "the policy"
        problems.append(
            f"Success was not reached once in {len(steps)} steps of {who}. That may be as it should be for a hard task; if "
            "not, look at tolerances and units, or pass a policy that is known to solve it."
        )
    return problems
