"""Task families: everything that the package knows about rewards.

A family describes the tasks psi of one environment, their prior p(psi) and their reward r_psi(s, a, s'). What a reward
depends on is computed once, when the step happens, as a feature vector; from then on the reward of *any* task for *any*
stored transition is a NumPy broadcast, with no call into an environment.

To add a family: subclass :class:`TaskFamily` (or fill in :class:`CallableTasks`), nothing else has to know about it.
"""

import bisect
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.task_set import OneHotState, TaskSet, one_hot_tasks

#: ``features(env, obs, action, next_obs, reward, info) -> (feature_dim,)``, what :meth:`TaskFamily.features` computes.
FeatureFn = Callable[[gym.Env, Any, Any, Any, Any, dict[str, Any]], np.ndarray]


#: Reward of a goal that is not reached, and of one that is.
_REWARDS_OF_REACHED = np.array([-1.0, 0.0], dtype=np.float32)


class TaskFamily(ABC):
    """
    A set of tasks in one environment, with their prior and their rewards.

    Families are stateless and picklable: the wrapper, its copies in subprocesses and the replay buffer share one object, so
    that the reward that was experienced and the one that is relabeled cannot drift apart. ``features`` are stored in float32
    and every reward, termination and success is judged on the stored values.

    :param task_space: space of the tasks, ``Box`` of shape (task_dim,)
    :param feature_dim: number of features of a transition
    :param tasks: all tasks of a finite family, (n_tasks, task_dim); None for a continuous family
    :param prior_space: part of the task space that the prior is uniform over, the whole of it if None
    :raises ValueError: when the space is not a one-dimensional ``Box``, or a task of ``tasks`` lies outside it
    """

    #: Key of a Dict observation that holds the task.
    task_key = "task"
    #: Key of the next observation that holds the features already; None where ``info["task_features"]`` does.
    features_key: str | None = None
    #: What to do where an environment's reward is not the family's.
    reward_remedy = "Apply wrappers that change the reward inside MultiTaskWrapper, or scale rewards with VecNormalize."

    def __init__(
        self,
        task_space: spaces.Box,
        feature_dim: int,
        tasks: np.ndarray | None = None,
        prior_space: spaces.Box | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(task_space, spaces.Box) or len(task_space.shape) != 1:
            raise ValueError(f"{name}: task_space must be a Box of shape (task_dim,), not {task_space}.")
        if feature_dim < 1:
            raise ValueError(f"{name}: feature_dim must be at least 1, not {feature_dim}.")
        self.task_space = task_space
        self.prior_space = task_space if prior_space is None else prior_space
        self.feature_dim = int(feature_dim)
        self.tasks: np.ndarray | None = None
        if tasks is not None:
            self.tasks = np.asarray(tasks, dtype=np.float32)
            if self.tasks.ndim != 2 or self.tasks.shape[1] != self.task_dim or len(self.tasks) == 0:
                raise ValueError(f"{name}: tasks must have shape (n_tasks, {self.task_dim}), not {self.tasks.shape}.")
            for task in self.tasks:
                self.check_task(task)

    @property
    def task_dim(self) -> int:
        """Length of a task vector."""
        return self.task_space.shape[0]

    @property
    def reaches_goals(self) -> bool:
        """Whether :meth:`achieved` is defined, that is, whether hindsight goals (HER) exist for this family."""
        return type(self).achieved is not TaskFamily.achieved

    # -- the prior p(psi) ---------------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        """
        Draw tasks from the prior: uniform over the finite set, or over ``prior_space``.

        :param rng: random generator
        :param n: number of tasks
        :return: tasks, (n, task_dim), float32
        """
        if self.tasks is not None:
            # What rng.choice(p=...) does, without its checks.
            if n == 1:  # as every reset asks, in a third of the time
                index = bisect.bisect_right(self._cumulative_prior_list, rng.random())
                return self.tasks[index : index + 1].copy()
            return self.tasks[self._cumulative_prior.searchsorted(rng.random(n), side="right")]
        return rng.uniform(self.prior_space.low, self.prior_space.high, size=(n, self.task_dim)).astype(np.float32)

    @cached_property
    def _task_set(self) -> TaskSet:
        assert self.tasks is not None
        return TaskSet(self.tasks)

    @cached_property
    def _cumulative_prior(self) -> np.ndarray:
        """Probability of each task of a finite family and of those before it, (n_tasks,)."""
        assert self.tasks is not None
        cumulative = np.exp(self.log_prior(self.tasks)).cumsum()
        return cumulative / cumulative[-1]

    @cached_property
    def _cumulative_prior_list(self) -> list[float]:
        return self._cumulative_prior.tolist()

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        """
        Log of the prior: log-probability in a finite family, log-density in a continuous one.

        :param tasks: tasks, (..., task_dim)
        :return: log p(psi), (...,); -inf outside the finite set or ``prior_space``
        """
        tasks = np.asarray(tasks)
        if self.tasks is not None:
            return self._task_set.values(tasks, np.full(len(self.tasks), -np.log(len(self.tasks))))
        low, high = self.prior_space.low, self.prior_space.high
        inside = np.all((tasks >= low) & (tasks <= high), axis=-1)
        return np.where(inside, -np.sum(np.log(high.astype(np.float64) - low)), -np.inf)

    # -- what happened ------------------------------------------------------------------------------------------------

    @abstractmethod
    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        """
        Compute, once, what the rewards of this transition depend on.

        :param env: the inner environment; ``env.unwrapped`` may be read, not changed
        :param obs: observation before the step
        :param action: action
        :param next_obs: observation after the step
        :param reward: the inner environment's own reward (a vector in MO-Gymnasium)
        :param info: the inner environment's ``info`` of the step
        :return: phi(s, a, s'), (feature_dim,)
        """

    # -- what it is worth ---------------------------------------------------------------------------------------------

    @abstractmethod
    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """
        Reward r_psi(s, a, s').

        :param features: features, (..., feature_dim)
        :param tasks: tasks, (..., task_dim); leading axes broadcast against those of the features
        :return: rewards, (...,)
        """

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """
        Whether the *task* ends here; what the environment itself ends is stored apart. Never, unless overridden.

        :param features: features, (..., feature_dim)
        :param tasks: tasks, (..., task_dim); leading axes broadcast against those of the features
        :return: booleans, (...,)
        """
        if np.ndim(features) == np.ndim(tasks) == 1:
            return np.zeros((), dtype=bool)  # as below, without its cost in every step of an environment
        return np.zeros(np.broadcast_shapes(np.shape(features)[:-1], np.shape(tasks)[:-1]), dtype=bool)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        """
        The task that a transition fulfils; goal families only. HER relabels with it.

        :param features: features, (..., feature_dim)
        :return: tasks, (..., task_dim)
        :raises TypeError: when the family has no notion of a reached goal
        """
        raise TypeError(f"{type(self).__name__} is not a goal family: no transition fulfils one task exactly.")

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        """
        Whether the task is solved, for evaluation.

        :param features: features, (..., feature_dim)
        :param tasks: tasks, (..., task_dim); leading axes broadcast against those of the features
        :return: booleans, (...,), or None where the family has no such notion
        """
        return None

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """
        :meth:`reward`, :meth:`terminated` and :meth:`success` of a step: environments ask for all three.

        Override it where they share work. A subclass that overrides one of the three and not this method gets this one back,
        which asks them: an inherited short cut would not know of the change.

        :param features: features, (..., feature_dim)
        :param tasks: tasks, (..., task_dim); leading axes broadcast against those of the features
        :return: rewards, (...,), booleans, (...,), and booleans, (...,), or None; of a single step numbers of Python will do
        """
        return self.reward(features, tasks), self.terminated(features, tasks), self.success(features, tasks)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        judgements = {"judge", "reward", "terminated", "success"}
        if "judge" not in vars(next(base for base in cls.__mro__ if judgements & vars(base).keys())):
            cls.judge = TaskFamily.judge  # type: ignore[method-assign]

    # -- checks -------------------------------------------------------------------------------------------------------

    def check_task(self, task: Any) -> np.ndarray:
        """
        Validate one task given by a user.

        :param task: task, (task_dim,)
        :return: the task in float32, (task_dim,)
        :raises ValueError: when its shape is wrong or it lies outside the task space
        """
        array = np.array(task, dtype=np.float32)  # a copy: what the caller does to it later must not change the task
        if array.shape != self.task_space.shape:
            raise ValueError(
                f"{type(self).__name__}: a task has shape {self.task_space.shape}, but {task!r} has shape {array.shape}."
            )
        low, high = self.task_space.low, self.task_space.high
        # A bound that went through float32 may be exceeded by its own rounding error.
        tolerance = 1e-6 * np.maximum(1.0, np.abs(array))
        if not np.all((array >= low - tolerance) & (array <= high + tolerance)):
            raise ValueError(
                f"{type(self).__name__}: task {array.tolist()} is outside the task space, "
                f"low {low.tolist()}, high {high.tolist()}. Pass a task inside it or widen the family's space."
            )
        if self.tasks is not None and self._task_set.index(array) < 0:
            raise ValueError(
                f"{type(self).__name__}: task {array.tolist()} is none of the family's {len(self.tasks)} tasks. "
                f"Pass one of them, such as {self.tasks[0].tolist()}."
            )
        return array

    def check(self) -> None:
        """
        Validate what every consumer relies on: picklable, and rewards that broadcast.

        Called by :class:`~hipi_sb3.wrappers.MultiTaskWrapper` and the replay buffer at construction, because the mistakes
        it finds are silent later: (n, 1) against (n,) makes an (n, n) reward, and a family that cannot be pickled kills
        the workers of ``SubprocVecEnv`` without a message.

        :raises TypeError: when the family cannot be pickled
        :raises ValueError: when ``sample``, ``reward`` or ``terminated`` return another shape than they should
        """
        name = type(self).__name__
        try:
            pickle.dumps(self)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be pickled ({error}), so it can neither reach a SubprocVecEnv nor be saved. "
                "Replace lambdas and local functions by functions defined at module level."
            ) from error
        bounded = self.prior_space.is_bounded()
        if not bounded and self.tasks is None and type(self).sample is TaskFamily.sample:
            raise ValueError(
                f"{name}: an unbounded task space ({self.task_space}) has no uniform prior: override sample and log_prior."
            )
        tasks = np.asarray(self.sample(np.random.default_rng(0), 3))
        if tasks.shape != (3, self.task_dim):
            raise ValueError(f"{name}.sample(rng, 3) must return shape (3, {self.task_dim}), not {tasks.shape}.")
        features = np.zeros((2, 1, self.feature_dim), dtype=np.float32)
        with np.errstate(all="ignore"):
            for method in (self.reward, self.terminated, self.success):
                values = method(features, tasks)
                if values is not None and np.shape(values) != (2, 3):
                    raise ValueError(
                        f"{name}.{method.__name__} must broadcast over leading axes: features {features.shape} and tasks "
                        f"{tasks.shape} have to give (2, 3), not {np.shape(values)}. Reduce over the last axis only "
                        "(axis=-1, keepdims=False)."
                    )


# -- goals ------------------------------------------------------------------------------------------------------------


class _Reaching(TaskFamily):
    """
    What families of goals share: reward 0 where the goal is reached, and -1 elsewhere.

    Subclasses set ``terminate``, whether reaching it ends the task, and ``position``, where it is read; ``_reached`` says what
    counts.
    """

    terminate: bool
    position: np.ndarray | FeatureFn

    @abstractmethod
    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Whether goals are reached: features (..., feature_dim), tasks (..., task_dim) -> bool (...,)."""

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return _read_position(self.position, env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _REWARDS_OF_REACHED.take(self._reached(features, tasks))

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        reached = self._reached(features, tasks)
        return reached if self.terminate else np.zeros_like(reached)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self._reached(features, tasks)

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        reached = self._reached(features, tasks)
        return _REWARDS_OF_REACHED.take(reached), reached.copy() if self.terminate else np.zeros_like(reached), reached


class GoalReaching(_Reaching):
    """
    Reach a goal: reward 0 within ``radius`` of it, where the task ends, and -1 elsewhere. psi is the goal.

    :param low: lower corner of the goal space, (goal_dim,)
    :param high: upper corner of the goal space, (goal_dim,)
    :param radius: distance (Euclidean, units of the goal) at which the goal counts as reached, inclusive
    :param position: where the goal is read: indices into the flat next observation, or a :data:`FeatureFn` that returns
        (goal_dim,). The first goal_dim entries if None
    :param terminate: whether reaching the goal ends the task
    :param prior: corners ``(low, high)`` of the box that goals are drawn from, where it is smaller than the goal space
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        radius: float,
        position: Sequence[int] | FeatureFn | None = None,
        terminate: bool = True,
        prior: tuple[Any, Any] | None = None,
    ) -> None:
        goal_space = _box(low, high)
        super().__init__(goal_space, goal_space.shape[0], prior_space=None if prior is None else _box(*prior))
        if not radius > 0:
            raise ValueError(f"{type(self).__name__}: radius must be positive, not {radius}.")
        self.radius = float(radius)
        self.terminate = terminate
        self.position = _position(position, goal_space.shape[0])

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return features

    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _squared_distance(features, tasks) <= self.radius**2


class GoalMargin(_Reaching):
    """
    Reach a goal to within a tolerance that is part of the task: psi = (goal, tolerance).

    Section 5 of the HIPI paper (arXiv 2002.11089) uses it to show tasks that are not goals alone. The hindsight task of a
    transition is the position it reached, with half the largest tolerance: any tolerance would be fulfilled, the
    half is the prior's median.

    :param low: lower corner of the goal space, (goal_dim,)
    :param high: upper corner of the goal space, (goal_dim,)
    :param max_tolerance: largest tolerance (Euclidean distance, units of the goal); the prior is uniform in [0, max]
    :param position: as in :class:`GoalReaching`
    :param terminate: whether reaching the goal ends the task
    :param prior: corners ``(low, high)`` of the box that goals are drawn from, where it is smaller than the goal space
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        max_tolerance: float,
        position: Sequence[int] | FeatureFn | None = None,
        terminate: bool = True,
        prior: tuple[Any, Any] | None = None,
    ) -> None:
        if not max_tolerance > 0:
            raise ValueError(f"GoalMargin: max_tolerance must be positive, not {max_tolerance}.")
        self.goal_dim = np.size(low)

        def with_tolerance(low: Any, high: Any) -> spaces.Box:
            return _box(np.append(low, 0.0), np.append(high, max_tolerance))

        prior_space = None if prior is None else with_tolerance(*prior)
        super().__init__(with_tolerance(low, high), feature_dim=self.goal_dim, prior_space=prior_space)
        self.max_tolerance = float(max_tolerance)
        self.terminate = terminate
        self.position = _position(position, self.goal_dim)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        tolerance = np.full((*features.shape[:-1], 1), 0.5 * self.max_tolerance, dtype=np.float32)
        return np.concatenate([features, tolerance], axis=-1)

    def _reached(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        tasks = np.asarray(tasks, dtype=np.float32)
        return _squared_distance(features, tasks[..., : self.goal_dim]) <= tasks[..., self.goal_dim] ** 2


# -- finite sets ------------------------------------------------------------------------------------------------------


class DiscreteTasks(OneHotState, TaskFamily):
    """
    Any K reward functions; psi is a one-hot vector that says which.

    :param rewards: K functions of the features, (..., feature_dim) -> (...,), defined at module level
    :param features: a :data:`FeatureFn`
    :param feature_dim: number of features that it returns
    :param terminated: K functions of the features that say where the task ends, (..., feature_dim) -> bool (...,); never
        if None
    :param success: K functions of the features that say where the task is solved; no notion of success if None
    :param prior: p(psi), (K,), positive, sums to one; uniform if None
    :raises ValueError: when the lists differ in length or the prior is not a distribution
    """

    def __init__(
        self,
        rewards: Sequence[Callable[[np.ndarray], np.ndarray]],
        features: FeatureFn,
        feature_dim: int,
        terminated: Sequence[Callable[[np.ndarray], np.ndarray]] | None = None,
        success: Sequence[Callable[[np.ndarray], np.ndarray]] | None = None,
        prior: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        n_tasks = len(rewards)
        super().__init__(_one_hot_space(n_tasks), feature_dim, tasks=one_hot_tasks(n_tasks))
        for name, functions in (("terminated", terminated), ("success", success)):
            if functions is not None and len(functions) != n_tasks:
                raise ValueError(f"DiscreteTasks: {n_tasks} rewards but {len(functions)} functions in {name}.")
        self.reward_fns = tuple(rewards)
        self.feature_fn = features
        self.terminated_fns = None if terminated is None else tuple(terminated)
        self.success_fns = None if success is None else tuple(success)
        self.log_prior_values = _log_prior_values(prior, n_tasks)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return self._task_set.values(tasks, self.log_prior_values)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return _choose(self.reward_fns, features, tasks)

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if self.terminated_fns is None:
            return super().terminated(features, tasks)
        return _choose(self.terminated_fns, features, tasks)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return None if self.success_fns is None else _choose(self.success_fns, features, tasks)


class FiniteTasks(OneHotState, TaskFamily):
    """
    K chosen tasks of another family, shown to the policy as a one-hot vector.

    32 fixed goals, four corners or five target velocities are all this: the reward is the inner family's, but the policy
    sees only *which* task it is, so nothing generalises from one goal to the next and HER has no goal to relabel with.

    :param family: the family that knows the reward
    :param parameters: the K tasks of that family, (K, family.task_dim)
    :param prior: p(psi), (K,), positive, sums to one; uniform if None
    """

    def __init__(
        self, family: TaskFamily, parameters: Sequence[Any] | np.ndarray, prior: Sequence[float] | np.ndarray | None = None
    ) -> None:
        self.family = family
        self.parameters = np.stack([family.check_task(parameter) for parameter in parameters])
        n_tasks = len(self.parameters)
        super().__init__(_one_hot_space(n_tasks), family.feature_dim, tasks=one_hot_tasks(n_tasks))
        self.log_prior_values = _log_prior_values(prior, n_tasks)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return self._task_set.values(tasks, self.log_prior_values)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.family.features(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.family.reward(features, self._parameter(tasks))

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.family.terminated(features, self._parameter(tasks))

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self.family.success(features, self._parameter(tasks))

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return self.family.judge(features, self._parameter(tasks))

    def _parameter(self, tasks: np.ndarray) -> np.ndarray:
        return np.dot(tasks, self.parameters)  # exactly the row that the 1 is in


# -- weights and set points -------------------------------------------------------------------------------------------


class LinearReward(TaskFamily):
    """
    Rewards that are linear in the features: r_psi = phi(s, a, s') . psi. psi are the weights.

    :param low: smallest weights, (feature_dim,)
    :param high: largest weights, (feature_dim,)
    :param features: a :data:`FeatureFn` that returns phi, (feature_dim,)
    """

    def __init__(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, features: FeatureFn) -> None:
        space = _box(low, high)
        super().__init__(space, feature_dim=space.shape[0])
        self.feature_fn = features

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return weighted_sum(features, tasks)


class TargetVelocity(TaskFamily):
    """
    Move at a given speed: r_psi = -abs(v - psi) - action_cost * ``|a|^2``. psi is the target velocity.

    :param low: smallest target velocity (m/s)
    :param high: largest target velocity (m/s)
    :param velocity: where the velocity is read: a key of the inner environment's ``info``, or a :data:`FeatureFn` that
        returns one number
    :param action_cost: weight of the squared norm of the action
    :param tolerance: a step counts as a success within this distance of the target (m/s)
    """

    def __init__(
        self,
        low: float,
        high: float,
        velocity: str | FeatureFn = "x_velocity",
        action_cost: float = 0.05,
        tolerance: float = 0.2,
    ) -> None:
        super().__init__(_box([low], [high]), feature_dim=2)
        self.velocity = velocity
        self.action_cost = float(action_cost)
        self.tolerance = float(tolerance)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        if callable(self.velocity):
            velocity: Any = self.velocity(env, obs, action, next_obs, reward, info)
        else:
            velocity = info.get(self.velocity)
            if velocity is None:
                raise KeyError(
                    f"TargetVelocity reads info[{self.velocity!r}], but the environment's info has {sorted(info)}. "
                    "Pass velocity=<another key> or a function."
                )
        if not isinstance(velocity, float):
            velocity = np.asarray(velocity).item()
        features = np.empty(2, np.float32)
        features[0] = velocity
        features[1] = np.dot(action, action)
        return features

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return -self._errors(features, tasks) - self.action_cost * features[..., 1].astype(np.float64)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self._errors(features, tasks) <= self.tolerance

    def judge(self, features: np.ndarray, tasks: np.ndarray) -> tuple[Any, Any, Any]:
        if features.ndim == tasks.ndim == 1:  # one step: the same arithmetic with Python's numbers, which are fast
            velocity, energy = features.tolist()
            error = abs(velocity - tasks.item())
            return -error - self.action_cost * energy, False, error <= self.tolerance
        return super().judge(features, tasks)

    def _errors(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.abs(features[..., 0].astype(np.float64) - tasks[..., 0])


# -- anything else ----------------------------------------------------------------------------------------------------


class CallableTasks(TaskFamily):
    """
    A family from functions, each as the method of :class:`TaskFamily` with the same name.

    :param task_space: ``Box`` of shape (task_dim,); the prior is uniform over it unless ``sample`` is given
    :param feature_dim: number of features
    :param features: a :data:`FeatureFn`
    :param reward: ``reward(features, tasks) -> (...,)``
    :param terminated: ``terminated(features, tasks) -> bool (...,)``; never if None
    :param achieved: ``achieved(features) -> (..., task_dim)``; not a goal family if None
    :param success: ``success(features, tasks) -> bool (...,)``; no notion of success if None
    :param sample: ``sample(rng, n) -> (n, task_dim)``
    :param log_prior: ``log_prior(tasks) -> (...,)``; required with ``sample``
    :param tasks: all tasks of a finite family, (n_tasks, task_dim)
    :raises ValueError: when ``sample`` is given without ``log_prior``
    """

    def __init__(
        self,
        task_space: spaces.Box,
        feature_dim: int,
        features: FeatureFn,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray],
        terminated: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        achieved: Callable[[np.ndarray], np.ndarray] | None = None,
        success: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        sample: Callable[[Any, int], np.ndarray] | None = None,
        log_prior: Callable[[np.ndarray], np.ndarray] | None = None,
        tasks: np.ndarray | None = None,
    ) -> None:
        super().__init__(task_space, feature_dim, tasks)
        if sample is None and tasks is None and not task_space.is_bounded():
            raise ValueError(
                f"CallableTasks: an unbounded task space ({task_space}) has no uniform prior: give sample and log_prior."
            )
        if (sample is None) != (log_prior is None):
            raise ValueError("CallableTasks: give both sample and log_prior, or neither: one describes the other.")
        self.feature_fn = features
        self.reward_fn = reward
        self.terminated_fn = terminated
        self.achieved_fn = achieved
        self.success_fn = success
        self.sample_fn = sample
        self.log_prior_fn = log_prior

    @property
    def reaches_goals(self) -> bool:
        return self.achieved_fn is not None

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        if self.sample_fn is None:
            return super().sample(rng, n)
        return np.asarray(self.sample_fn(rng, n), dtype=np.float32)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        return super().log_prior(tasks) if self.log_prior_fn is None else self.log_prior_fn(tasks)

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return self.feature_fn(env, obs, action, next_obs, reward, info)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.reward_fn(features, tasks)

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if self.terminated_fn is None:
            return super().terminated(features, tasks)
        return self.terminated_fn(features, tasks)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return super().achieved(features) if self.achieved_fn is None else self.achieved_fn(features)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return None if self.success_fn is None else self.success_fn(features, tasks)


# -- shared arithmetic ------------------------------------------------------------------------------------------------


def _box(low: Any, high: Any) -> spaces.Box:
    low, high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    if low.shape != high.shape or low.ndim != 1 or not np.all(low < high):
        raise ValueError(f"low and high must be vectors of one length with low < high, not {low} and {high}.")
    return spaces.Box(low, high, dtype=np.float32)


def _one_hot_space(n_tasks: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, shape=(n_tasks,), dtype=np.float32)


def _log_prior_values(prior: Sequence[float] | np.ndarray | None, n_tasks: int) -> np.ndarray:
    """Log-probability of each task of a finite family, (n_tasks,)."""
    if prior is None:
        return np.full(n_tasks, -np.log(n_tasks))
    prior = np.asarray(prior, dtype=np.float64)
    if prior.shape != (n_tasks,) or np.any(prior <= 0) or not np.isclose(prior.sum(), 1.0):
        raise ValueError(f"prior must be {n_tasks} positive numbers that sum to 1, not {prior}.")
    return np.log(prior / prior.sum())


def _choose(functions: Sequence[Callable[[np.ndarray], np.ndarray]], features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Value of the function that each one-hot task names: features (..., feature_dim), tasks (..., K) -> (...,)."""
    features = np.asarray(features)
    index = np.argmax(tasks, axis=-1)
    if features.ndim == np.ndim(tasks) == 1:
        return functions[index](features)  # one step asks for one
    used, index = np.unique(index, return_inverse=True)
    index = index.reshape(np.shape(tasks)[:-1])
    values = np.stack([functions[k](features) for k in used], axis=-1)  # (..., number of used ones)
    shape = np.broadcast_shapes(values.shape[:-1], index.shape)
    values = np.broadcast_to(values, (*shape, len(used)))
    return np.take_along_axis(values, np.broadcast_to(index, shape)[..., None], axis=-1)[..., 0]


def weighted_sum(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Multiply and add up the last axis, in float32 as stored.

    :param features: features, (..., d)
    :param weights: weights, (..., d)
    :return: sums, (...,)
    """
    return np.add.reduce(np.asarray(features) * np.asarray(weights, dtype=np.float32), -1)


def _squared_distance(features: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance over the last axis, in float32 as stored: (..., d), (..., d) -> (...,)."""
    difference = np.subtract(features, goals, dtype=np.float32)
    squares = difference * difference
    if squares.shape[-1] == 2:  # the same sum, in half the time on the few rows that environments have
        return squares[..., 0] + squares[..., 1]
    return np.add.reduce(squares, axis=-1)


def _position(position: Sequence[int] | FeatureFn | None, goal_dim: int) -> np.ndarray | FeatureFn:
    if callable(position):
        return position
    indices = np.arange(goal_dim) if position is None else np.asarray(position, dtype=int)
    if indices.shape != (goal_dim,):
        raise ValueError(f"position must name {goal_dim} entries of the observation, not {indices.tolist()}.")
    return indices


def _read_position(
    position: np.ndarray | FeatureFn, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]
) -> np.ndarray:
    if callable(position):
        return position(env, obs, action, next_obs, reward, info)
    return np.asarray(next_obs)[position]
