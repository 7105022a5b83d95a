"""Task families: everything that the package knows about rewards.

A family describes the tasks psi of one environment, their prior p(psi) and their reward r_psi(s, a, s'). What a reward
depends on is computed once, when the step happens, as a feature vector; from then on the reward of *any* task for *any*
stored transition is a NumPy broadcast, with no call into an environment.

To add a family: subclass :class:`TaskFamily` (or fill in :class:`CallableTasks`), nothing else has to know about it.
"""

import bisect
import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.given import as_tasks, check_count, numbers
from hipi_sb3.tasks.task_set import TaskSet

#: ``features(env, obs, action, next_obs, reward, info) -> (feature_dim,)``, what :meth:`TaskFamily.features` computes.
FeatureFn = Callable[[gym.Env, Any, Any, Any, Any, dict[str, Any]], np.ndarray]


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
    #: Whether the features hold whatever the environment pays, so that its reward always is the family's.
    has_every_reward = False
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
        check_count(f"{name}: feature_dim", feature_dim, 1)
        self.task_space = task_space
        self.prior_space = task_space if prior_space is None else prior_space
        self.feature_dim = int(feature_dim)
        self.tasks: np.ndarray | None = None
        if tasks is not None:
            # Of many one-hot tasks the array is a view, which must not be copied.
            tasks = tasks if isinstance(tasks, np.ndarray) else numbers("tasks", tasks)
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
    def shown_space(self) -> spaces.Space:
        """Space of a task in an observation: that of the tasks, unless it looks otherwise there."""
        return self.task_space

    @property
    def reaches_goals(self) -> bool:
        """Whether :meth:`achieved` is defined, that is, whether hindsight goals (HER) exist for this family."""
        return type(self).achieved is not TaskFamily.achieved

    @property
    def tasks_end(self) -> bool:
        """Whether a task may end by itself, that is, whether :meth:`terminated` is ever true."""
        return type(self).terminated is not TaskFamily.terminated

    def with_task_key(self, key: str) -> Self:
        """
        The same tasks, under another key of the observation.

        :param key: the key
        :return: a copy that shares everything else
        """
        family = copy.copy(self)
        family.task_key = key
        return family

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
        :raises ValueError: when they are no numbers, or their last axis is not that of a task
        """
        tasks = as_tasks(tasks, self.task_dim)
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

    def task_of(self, obs: Any) -> np.ndarray:
        """
        The commanded task of an observation.

        :param obs: one Dict observation
        :return: the task, (task_dim,)
        """
        return obs[self.task_key]

    #: Whether :meth:`features_of_steps` may be asked later than the step, and of many steps at once.
    can_wait = True

    def read_infos(self, infos: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """
        What the features of a step need of the infos, from what a replay buffer is given.

        :param infos: info of each environment
        :return: an array an environment; none if nothing is needed
        :raises ValueError: when it is missing
        """
        if self.features_key is not None:
            return []
        try:
            return [info["task_features"] for info in infos]
        except KeyError as error:
            raise ValueError(
                "info has no 'task_features', so the step cannot be relabeled later. Wrap the environment in "
                "MultiTaskWrapper, and keep wrappers outside it from replacing info."
            ) from error

    def features_of_steps(
        self, next_obs: Any, tasks: np.ndarray, rewards: np.ndarray, from_infos: np.ndarray | None
    ) -> np.ndarray:
        """
        The features of steps, from what a replay buffer is given.

        :param next_obs: next observations, (n_steps, n_envs, ...) or a dict of such
        :param tasks: commanded tasks, (n_steps, n_envs, task_dim)
        :param rewards: rewards of the environments, (n_steps, n_envs)
        :param from_infos: what :meth:`read_infos` said, (n_steps, n_envs, ...)
        :return: (n_steps, n_envs, feature_dim)
        """
        # In the precision of the environment: its reward is compared with that of the family.
        features = from_infos if self.features_key is None else next_obs[self.features_key]
        return np.asarray(features)

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

    def diagnostics(self, features: np.ndarray) -> dict[str, float]:
        """
        What is worth to be logged of some transitions, as ``relabel/name``.

        :param features: features, (n, feature_dim)
        :return: values by name
        """
        return {}

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
        :raises TypeError: when it holds no numbers
        :raises ValueError: when its shape is wrong or it lies outside the task space
        """
        array = numbers("task", task).astype(np.float32)  # a copy: what the caller does to it later must not change the task
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

    def check_made(self) -> None:
        """
        Check that the constructor of this class has run.

        :raises TypeError: when a subclass's own constructor does not call it
        """
        missing = [name for name in ("task_space", "prior_space", "feature_dim", "tasks") if not hasattr(self, name)]
        if missing:
            name = type(self).__name__
            raise TypeError(
                f"{name} has no {', '.join(missing)}: its __init__ does not call that of TaskFamily. Begin it with "
                "super().__init__(task_space, feature_dim), where task_space is a Box of shape (task_dim,)."
            )

    def check(self) -> None:
        """
        Validate what every consumer relies on: picklable, and rewards that broadcast.

        Called by :class:`~hipi_sb3.wrappers.MultiTaskWrapper` and the replay buffer at construction, because the mistakes
        it finds are silent later: (n, 1) against (n,) makes an (n, n) reward, and a family that cannot be pickled kills
        the workers of ``SubprocVecEnv`` without a message.

        :raises TypeError: when the family cannot be pickled, or its constructor skips that of this class
        :raises ValueError: when ``sample``, ``reward`` or ``terminated`` return another shape than they should
        """
        self.check_made()
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


def check_is_family(owner: str, family: Any) -> None:
    """
    Check that something is a family whose constructor has run.

    :param owner: what it was given to, for the error
    :param family: what was given
    :raises TypeError: when it is none
    """
    if not isinstance(family, TaskFamily):
        raise TypeError(
            f"{owner}: family must be a TaskFamily, not {type(family).__name__}: {family!r}. Pass an object of one of the "
            "families, such as GoalReaching(...), or of a subclass of TaskFamily."
        )
    family.check_made()


def vector_box(low: Any, high: Any) -> spaces.Box:
    low, high = (numbers(name, bound).astype(np.float32) for name, bound in (("low", low), ("high", high)))
    if low.shape != high.shape or low.ndim != 1 or not np.all(low < high):
        raise ValueError(f"low and high must be vectors of one length with low < high, not {low} and {high}.")
    return spaces.Box(low, high, dtype=np.float32)
