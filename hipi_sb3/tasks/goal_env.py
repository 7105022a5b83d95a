"""GoalEnv (Gymnasium-Robotics, panda-gym): the tasks of an environment that is used as it is, in HerReplayBuffer's place."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from hipi_sb3.tasks.family import TaskFamily

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")

#: Resets from which the range of the goals is estimated, where the environment's space has no bounds.
N_RESETS = 16


class GoalEnvTasks(TaskFamily):
    """
    The goals of a GoalEnv: r_psi(s, a, s') is its ``compute_reward(achieved_goal of s', psi)``. psi is the desired goal.

    The functions are called on a private instance, made from the environment's spec or from a pickled copy, never on the
    environment itself: its workers may be in other processes, and may be stepping. Where they do not take batches (PointMaze's
    ``compute_terminated`` answers one False for all rows) they are called row by row.

    The task space is that of ``desired_goal`` where it is bounded, and where it is not, the range of the goals of a few
    resets. The prior draws goals as ``reset`` does; its density is not known.

    :param env: the environment, an ``EnvSpec`` of it or its pickle
    :raises ValueError: when it is no GoalEnv, can be made no second time, or its functions need more than the two goals
    """

    task_key = "desired_goal"
    features_key = "achieved_goal"
    reward_remedy = (
        "The environment's reward depends on something else than achieved_goal and desired_goal (the action, or a setting "
        "that was changed after it was made), which is not known when a row is relabeled. Write a task family with the "
        "features that it needs."
    )

    def __init__(self, env: gym.Env | EnvSpec | bytes) -> None:
        self._recipe = _recipe_of(env) if isinstance(env, gym.Env) else env
        self._private: Any = None
        space = self._env.observation_space
        if not is_goal_space(space) or not callable(getattr(self._env, "compute_reward", None)):
            raise ValueError(
                f"GoalEnvTasks: {self._env} is no GoalEnv. It needs a Dict observation with the keys {', '.join(GOAL_KEYS)} "
                "and a method compute_reward(achieved_goal, desired_goal, info)."
            )
        achieved, desired = space["achieved_goal"], space["desired_goal"]
        if not isinstance(desired, spaces.Box) or len(desired.shape) != 1 or achieved.shape != desired.shape:
            raise ValueError(
                f"GoalEnvTasks: goals must be vectors, and achieved and desired ones alike, not {achieved} and {desired}."
            )
        # (N_RESETS, 2, goal_dim)
        seen = np.array([self._reset_goals(seed) for seed in range(N_RESETS)], dtype=np.float64)
        super().__init__(_goal_box(desired, seen), feature_dim=desired.shape[0])
        probe = _probe_pairs(seen)
        self._takes_batches = {"compute_reward": self._probe("compute_reward", *probe)}
        if hasattr(self._env, "compute_terminated"):
            try:
                self._takes_batches["compute_terminated"] = self._probe("compute_terminated", *probe)
            except NotImplementedError:
                pass  # the abstract method: nothing that it says ends the task
        rewards = self.reward(*probe)
        # Of a reward with two values, the one of a goal that is reached exactly says success; a dense one does not tell.
        self._success_reward = float(rewards[0]) if len(np.unique(rewards)) <= 2 else None

    @classmethod
    def of_vec_env(cls, env: Any) -> "GoalEnvTasks":
        """
        Make the tasks of the environments of a ``VecEnv``, in this process or in others.

        :param env: vectorised GoalEnv
        :return: its tasks
        :raises ValueError: when no second instance can be made
        """
        spec = env.get_attr("spec", indices=[0])[0]
        if spec is not None:
            return cls(spec)
        try:
            # Over a pipe it is pickled on the way.
            return cls(env.get_attr("unwrapped", indices=[0])[0])
        except (TypeError, AttributeError, pickle.PicklingError, EOFError) as error:
            raise ValueError(
                f"The environment has no spec and cannot be pickled ({error}), so its reward function cannot be called "
                "apart from it. Register it with gymnasium.register and make it with gymnasium.make."
            ) from error

    @property
    def _env(self) -> Any:
        """The private instance; made when it is first asked for."""
        if self._private is None:
            if isinstance(self._recipe, bytes):
                self._private = pickle.loads(self._recipe).unwrapped
            else:
                spec = copy.deepcopy(self._recipe)
                spec.kwargs.pop("render_mode", None)
                spec.additional_wrappers = ()
                self._private = gym.make(spec, disable_env_checker=True).unwrapped
        return self._private

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        """
        Draw goals by resetting the private instance: a reset each, so ``candidates="prior"`` is slow here.

        :param rng: random generator
        :param n: number of goals
        :return: goals, (n, goal_dim), float32
        """
        seeds = rng.uniform(0, 2**31, size=n).astype(int)
        goals = [self._reset_goals(int(seed))[1] for seed in seeds]
        return np.array(goals, dtype=np.float32).reshape(n, self.task_dim)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        """
        Stand in for the log of the prior, whose density is not known.

        :param tasks: goals, (..., goal_dim)
        :return: zeros, (...,)
        """
        return np.zeros(np.shape(tasks)[:-1])

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        return next_obs["achieved_goal"]

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self._call("compute_reward", features, tasks).astype(np.float32)

    @property
    def tasks_end(self) -> bool:
        return "compute_terminated" in self._takes_batches

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if "compute_terminated" not in self._takes_batches:
            return super().terminated(features, tasks)
        return self._call("compute_terminated", features, tasks).astype(bool)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return features

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return None if self._success_reward is None else self.reward(features, tasks) == np.float32(self._success_reward)

    def check_vec_normalize(self, env: Any) -> None:
        """
        Refuse a normalisation that cuts goals off.

        :param env: the normalisation
        :raises ValueError: when it normalises goals and clips them
        """
        keys = set(env.norm_obs_keys or ()) & {"achieved_goal", "desired_goal"}
        if env.norm_obs and keys and np.isfinite(env.clip_obs):
            raise ValueError(
                f"VecNormalize clips {' and '.join(sorted(keys))} at {env.clip_obs} standard deviations. Relabeled goals lie "
                "where no commanded goal was, and those that are cut off look alike to the policy. Leave the goals as they "
                'are, VecNormalize(env, norm_obs_keys=["observation"]), or pass clip_obs=np.inf.'
            )

    def _reset_goals(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired goal after a reset, (goal_dim,) each."""
        obs, _ = self._env.reset(seed=seed)
        return obs["achieved_goal"], obs["desired_goal"]

    def _call(self, name: str, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Value of a function of the environment for each pair: (..., goal_dim), (..., goal_dim) -> (...,)."""
        function: Callable[[Any, Any, Any], Any] = getattr(self._env, name)
        achieved, desired = np.asarray(achieved), np.asarray(desired)
        shape = np.broadcast_shapes(achieved.shape[:-1], desired.shape[:-1])
        achieved, desired = (
            np.broadcast_to(goals, (*shape, self.task_dim)).reshape(-1, self.task_dim) for goals in (achieved, desired)
        )
        if self._takes_batches[name]:
            # A list of infos, as HerReplayBuffer passes it.
            values = function(achieved, desired, [{}] * len(achieved))
        else:
            values = [function(a, d, {}) for a, d in zip(achieved, desired, strict=True)]
        return np.asarray(values).reshape(shape)

    def _probe(self, name: str, achieved: np.ndarray, desired: np.ndarray) -> bool:
        """
        Try a function of the environment on pairs of goals: does it take batches?

        :param name: name of the function
        :param achieved: goals, (n, goal_dim)
        :param desired: goals, (n, goal_dim)
        :return: whether a batch gives what its rows give, one by one
        :raises ValueError: when it needs more than the goals, or does not return one number for a pair
        """
        function: Callable[[Any, Any, Any], Any] = getattr(self._env, name)
        try:
            rows = [np.asarray(function(a, d, {})) for a, d in zip(achieved, desired, strict=True)]
        except NotImplementedError:
            raise
        except Exception as error:
            raise ValueError(
                f"GoalEnvTasks: {name}(achieved_goal, desired_goal, info) needs more than the two goals "
                f"({type(error).__name__}: {error}). Nothing else is kept of a transition, so it cannot be relabeled. Write a "
                "task family with the features that it needs."
            ) from error
        if any(row.size != 1 for row in rows):
            raise ValueError(f"GoalEnvTasks: {name} must return one number for a pair of goals, not shape {rows[0].shape}.")
        try:
            batch = np.asarray(function(achieved, desired, [{}] * len(achieved)))
        except Exception:
            return False
        expected = np.array([row.item() for row in rows], dtype=np.float64)
        return batch.shape == expected.shape and np.allclose(batch.astype(np.float64), expected, rtol=1e-5, atol=1e-6)

    def __getstate__(self) -> dict[str, Any]:
        """State without the private instance."""
        return {**self.__dict__, "_private": None}


def is_goal_space(space: spaces.Space) -> bool:
    """
    Say whether observations are those of a GoalEnv.

    :param space: observation space
    :return: whether it is a Dict with the three keys
    """
    return isinstance(space, spaces.Dict) and all(key in space.spaces for key in GOAL_KEYS)


def _recipe_of(env: gym.Env) -> EnvSpec | bytes:
    """How to make another instance of an environment."""
    return env.unwrapped.spec if env.unwrapped.spec is not None else pickle.dumps(env.unwrapped)


def _goal_box(desired: spaces.Box, seen: np.ndarray) -> spaces.Box:
    """The space of the goals; where it has no bounds, the range of those that were seen, (n, 2, goal_dim), and half more."""
    flat = seen.reshape(-1, seen.shape[-1])
    low, high = flat.min(axis=0), flat.max(axis=0)
    margin = 0.5 * np.maximum(high - low, 0.1 * np.max(high - low) + 1e-6)
    low = np.where(np.isfinite(desired.low), desired.low, low - margin)
    high = np.where(np.isfinite(desired.high), desired.high, high + margin)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _probe_pairs(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of goals: one that is reached exactly, and others at distances of all sizes, (n, goal_dim) each."""
    rng = np.random.default_rng(0)
    desired = np.repeat(seen[:, 1], 4, axis=0)
    span = np.ptp(seen.reshape(-1, seen.shape[-1]), axis=0).max()
    sizes = span * 10.0 ** rng.uniform(-3, 0.5, size=(len(desired), 1))
    achieved = desired + sizes * rng.standard_normal(desired.shape)
    achieved[0] = desired[0]
    achieved[1::4], desired[1::4] = seen[:, 0], seen[:, 1]
    return achieved, desired
