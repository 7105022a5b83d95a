"""GoalEnv (Gymnasium-Robotics, panda-gym): the tasks of an environment that is used as it is, in HerReplayBuffer's place."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from hipi_sb3.experience.layout import TaskLayout, stored_shape
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.info_keys import InfoFeatures, Recorder
from hipi_sb3.tasks.residual import ResidualWatch
from hipi_sb3.tasks.reward_source import PrivateInstance, RewardSource, source_of_env, source_of_vec_env

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
GOAL_SPACES = (spaces.Box, spaces.MultiBinary, spaces.Discrete, spaces.MultiDiscrete)

#: Resets from which the range of the goals is estimated, where the environment's space has no bounds.
N_RESETS = 16

#: Steps that are taken to see what ``info`` holds.
N_STEPS = 8

#: Whole numbers that float32 tells apart.
N_EXACT = 2**24

#: Once in so many steps it is checked that ``compute_reward`` says the same again.
CHECK_EVERY = 64


class GoalEnvTasks(TaskFamily):
    """
    The goals of a GoalEnv: r_psi(s, a, s') is its ``compute_reward(achieved_goal of s', psi, info)``, and what ``step`` pays
    beyond that, whatever the goal: the *residual* (a collision, an effort). psi is the desired goal: a Box of any shape and
    type, MultiBinary, Discrete or MultiDiscrete in the observation, a flat vector of numbers here.

    The functions are called on a private instance, made from the environment's spec, its pickle or a copy, never on the
    environment itself: its workers may be in other processes, and may be stepping. Only where none of these can be had they
    are called there, with a warning. Where they do not take batches (PointMaze's ``compute_terminated`` answers one False
    for all rows) they are called row by row.

    Features are the achieved goal, what ``compute_reward`` reads of ``info`` (it must not depend on the goal), and the
    residual.

    The task space is that of ``desired_goal`` where it is bounded, and where it is not, the range of the goals of a few
    resets. The prior draws goals as ``reset`` does; its density is not known.

    :param env: the environment, an ``EnvSpec`` of it, or where its functions can be called
    :param info_keys: what ``compute_reward`` reads of ``info``; found by trying if None
    :param observation_space: space of the observations as they are stored, where wrappers moved the channels of images
    :raises TypeError: when it is no environment, but a pickle of one, for example
    :raises ValueError: when it is no GoalEnv, can be made no second time, or its functions do not answer as they should
    """

    task_key = "desired_goal"
    features_key = "achieved_goal"
    has_every_reward = True

    def __init__(
        self,
        env: gym.Env | EnvSpec | RewardSource,
        info_keys: Sequence[str] | None = None,
        observation_space: Any = None,
    ) -> None:
        if not isinstance(env, gym.Env | EnvSpec | RewardSource):
            raise TypeError(
                f"GoalEnvTasks: env must be an environment or the EnvSpec of one, not {type(env).__name__}. A pickle is not "
                "read, because it can run any code: if you know where it comes from, pass pickle.loads(it)."
            )
        if isinstance(env, gym.Env):
            env = source_of_env(env)
        self._source = PrivateInstance(env) if isinstance(env, EnvSpec) else env
        space: Any = self._source.space
        if not is_goal_space(space) or not self._source.has("compute_reward"):
            raise ValueError(
                f"GoalEnvTasks: {self._source} is no GoalEnv. It needs a Dict observation with the keys "
                f"{', '.join(GOAL_KEYS)} and a method compute_reward(achieved_goal, desired_goal, info)."
            )
        self._achieved_space, self._desired_space = space["achieved_goal"], space["desired_goal"]
        self._shown_space = stored = (space if observation_space is None else observation_space)["desired_goal"]
        self._layout = _layout_of(self._achieved_space, self._desired_space, stored)
        #: Whether wrappers moved the channels of images to the front.
        self._moves_channels = stored.shape != self._desired_space.shape
        seen = self._draw_goals(np.random.default_rng(0), N_RESETS, seeds=range(N_RESETS))
        super().__init__(_goal_box(*_bounds(stored), seen), feature_dim=self._layout.task_dim)
        self._takes_batches: dict[str, bool] = {}
        infos = self._some_infos()
        self._info = InfoFeatures(infos, info_keys or ())
        rewards = self._probe_functions(seen, infos, found=info_keys is None)
        # Of a reward with two values, the one of a goal that is reached exactly says success; a dense one does not tell.
        self._success_reward = float(rewards[0]) if len(np.unique(rewards)) <= 2 else None
        self.feature_dim = self.task_dim + self._info.size + 1
        self._watch, self._n_steps, self._next_check = ResidualWatch(), 0, 0

    @classmethod
    def of_vec_env(cls, env: Any) -> "GoalEnvTasks":
        """
        Make the tasks of the environments of a ``VecEnv``, in this process or in others.

        :param env: vectorised GoalEnv
        :return: its tasks
        """
        return cls(source_of_vec_env(env), observation_space=env.observation_space)

    @property
    def shown_space(self) -> spaces.Space:
        return self._shown_space

    # -- the prior ----------------------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator | np.random.RandomState, n: int) -> np.ndarray:
        """
        Draw goals by resetting the private instance: a reset each, so ``candidates="prior"`` is slow here. Without a private
        instance they are drawn evenly from the space of the goals.

        :param rng: random generator
        :param n: number of goals
        :return: goals, (n, goal_dim), float32
        """
        seeds = rng.uniform(0, 2**31, size=n).astype(int)
        return self._draw_goals(np.random.default_rng(seeds), n, seeds)[:, 1].astype(np.float32)

    def log_prior(self, tasks: np.ndarray) -> np.ndarray:
        """
        Stand in for the log of the prior, whose density is not known.

        :param tasks: goals, (..., goal_dim)
        :return: zeros, (...,)
        """
        return np.zeros(np.shape(tasks)[:-1])

    # -- what happened ------------------------------------------------------------------------------------------------

    def features(self, env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
        batch = {self.features_key: np.asarray(next_obs[self.features_key])[None, None]}
        tasks = self.task_of(obs)[None, None]
        read = self.read_infos([info])
        return self.features_of_steps(batch, tasks, np.array([[reward]]), np.array(read)[None] if read else None)[0, 0]

    @property
    def can_wait(self) -> bool:  # type: ignore[override]
        """Whether rewards may be asked for later: an environment that is trained in may have been closed by then."""
        return self._source.is_private and self._source.is_there

    def read_infos(self, infos: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        return [] if self._info.size == 0 else list(self._info.read(infos))

    def features_of_steps(
        self, next_obs: Any, tasks: np.ndarray, rewards: np.ndarray, from_infos: np.ndarray | None
    ) -> np.ndarray:
        (n_steps, n_envs), n = rewards.shape, rewards.size
        tasks, rewards = tasks.reshape(n, -1), rewards.reshape(n)
        features = achieved = self._flatten(next_obs[self.features_key], n)
        if from_infos is not None:
            features = np.concatenate([achieved, from_infos.reshape(n, -1)], axis=1)
        computed = self._call("compute_reward", features, tasks)
        if self._n_steps >= self._next_check:
            self._check_deterministic(computed, self._call("compute_reward", features, tasks))
            self._next_check = self._n_steps + CHECK_EVERY
        self._n_steps += n_steps
        residual = rewards - computed
        if np.count_nonzero(residual):
            residual[np.abs(residual) <= 1e-5 + 1e-4 * np.abs(rewards)] = 0.0  # rounding
        if self._watch.has_begun or np.count_nonzero(residual):
            self._watch.add(residual, np.linalg.norm(achieved - tasks, axis=1), computed)
        return np.concatenate([features, residual[:, None]], axis=1).reshape(n_steps, n_envs, -1)

    # -- what it is worth ---------------------------------------------------------------------------------------------

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        rewards = self._call("compute_reward", features, tasks)
        if np.shape(features)[-1] == self.feature_dim:
            rewards = rewards + features[..., -1]
        return rewards.astype(np.float32)

    @property
    def tasks_end(self) -> bool:
        return "compute_terminated" in self._takes_batches

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        if "compute_terminated" not in self._takes_batches:
            return super().terminated(features, tasks)
        return self._call("compute_terminated", features, tasks).astype(bool)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return features[..., : self.task_dim]

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        if self._success_reward is None:
            return None
        return self._call("compute_reward", features, tasks).astype(np.float32) == np.float32(self._success_reward)

    def diagnostics(self, features: np.ndarray) -> dict[str, float]:
        has_residual = features.shape[-1] == self.feature_dim
        return {"reward_residual": features[..., -1].mean()} if has_residual else {}

    def revive(self, other: TaskFamily) -> None:
        """
        Call the functions where another family calls them, if this one was read from a file and has lost its environment.

        :param other: tasks of the same environment
        """
        if not self._source.is_there and isinstance(other, GoalEnvTasks):
            self._source = other._source

    # -- goals as the environment has them ----------------------------------------------------------------------------

    def task_of(self, obs: Any) -> np.ndarray:
        return self._flatten(np.asarray(obs[self.task_key]), 1)[0]

    def _flatten(self, goals: np.ndarray, n: int) -> np.ndarray:
        """Stored goals as flat numbers, (n, goal_dim); those of discrete spaces have no axis of their own."""
        return self._layout.flatten(goals.reshape(n, *(self._layout.shape or ())))

    def _of_env(self, goal: Any) -> np.ndarray:
        """A goal as the environment has it, as flat numbers, (goal_dim,)."""
        goal = np.moveaxis(goal, -1, -3) if self._moves_channels else np.asarray(goal)
        return self._flatten(goal, 1)[0]

    def _to_env(self, goals: np.ndarray, space: Any) -> np.ndarray:
        """Flat goals as the environment has them, (n, goal_dim) -> (n, ...)."""
        goals = self._layout.unflatten(goals)
        if self._moves_channels:
            goals = np.moveaxis(goals, -3, -1)
        return goals if space.dtype.kind == "f" else goals.astype(space.dtype)

    def _draw_goals(self, rng: np.random.Generator, n: int, seeds: Any) -> np.ndarray:
        """Achieved and desired goals after resets with these seeds, (n, 2, goal_dim), or else evenly drawn ones."""
        source = self._source
        if isinstance(source, PrivateInstance):
            starts = [source.env.reset(seed=int(seed))[0] for seed in seeds]
            goals = [[self._of_env(obs["achieved_goal"]), self._of_env(obs["desired_goal"])] for obs in starts]
            return np.array(goals, dtype=np.float64).reshape(n, 2, self._layout.task_dim)
        low, high = _bounds(self._desired_space)
        low, high = np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)
        return self._snap(rng.uniform(low, high, size=(n, 2, self._layout.task_dim)))

    def _snap(self, goals: np.ndarray) -> np.ndarray:
        """The nearest members of the space, where that has whole numbers only."""
        space: Any = self._desired_space
        return goals if space.dtype.kind == "f" else np.clip(np.rint(goals), *_bounds(space))

    # -- calling the environment's functions --------------------------------------------------------------------------

    def _call(self, name: str, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Value of a function of the environment for each pair: (..., feature_dim), (..., goal_dim) -> (...,)."""
        features, tasks = np.asarray(features), np.asarray(tasks)
        achieved, desired, dim = features[..., : self.task_dim], tasks, self.task_dim
        shape = tasks.shape[:-1]
        if achieved.shape != tasks.shape or len(shape) != 1:
            shape = np.broadcast_shapes(achieved.shape[:-1], tasks.shape[:-1])
            achieved, desired = (np.broadcast_to(goals, (*shape, dim)).reshape(-1, dim) for goals in (achieved, tasks))
        infos: list[Any] = [{}] * len(achieved)
        if self._info.size > 0:
            read = features[..., self.task_dim : self.task_dim + self._info.size]
            if read.shape[-1] == 0:  # they were never anything but 0
                read = np.zeros((*features.shape[:-1], self._info.size))
            infos = np.broadcast_to(self._info.infos(read), shape).reshape(-1).tolist()
        if self._takes_batches[name]:
            return np.asarray(self._batch(name, achieved, desired, infos)).reshape(shape)
        return np.asarray(self._rows(name, achieved, desired, infos)).reshape(shape)

    def _batch(self, name: str, achieved: np.ndarray, desired: np.ndarray, infos: list[Any]) -> Any:
        goals = self._to_env(achieved, self._achieved_space), self._to_env(desired, self._desired_space)
        # A list of infos, as HerReplayBuffer passes it.
        return self._source.function(name)(*goals, infos)

    def _rows(self, name: str, achieved: np.ndarray, desired: np.ndarray, infos: list[Any]) -> list[Any]:
        achieved, desired = self._to_env(achieved, self._achieved_space), self._to_env(desired, self._desired_space)
        rows: Any = zip(achieved, desired, infos, strict=True)
        function = self._source.function(name)
        if isinstance(self._desired_space, spaces.Discrete):
            return [function(a.item(), d.item(), info) for a, d, info in rows]
        return [function(a, d, info) for a, d, info in rows]

    # -- what they are like -------------------------------------------------------------------------------------------

    def _some_infos(self) -> list[dict[str, Any]]:
        """Infos of some steps with random actions of the private instance; an empty one where there is none."""
        if not isinstance(self._source, PrivateInstance):
            return [{}]
        env, infos = self._source.env, []
        env.action_space.seed(0)
        env.reset(seed=0)
        try:
            for _ in range(N_STEPS):
                _, _, terminated, truncated, info = env.step(env.action_space.sample())
                infos.append(info)
                if terminated or truncated:
                    env.reset()
        except Exception:  # whatever it is, training will meet it, or compute_reward, which is tried next
            pass
        return infos or [{}]

    def _probe_functions(self, seen: np.ndarray, infos: list[dict[str, Any]], found: bool) -> np.ndarray:
        """Find out whether functions take batches, and what they read of info; rewards of pairs, the first one reached."""
        achieved, desired = map(self._snap, _probe_pairs(seen))
        recorders = [Recorder(infos[i % len(infos)]) for i in range(len(achieved))]
        rewards = self._probe("compute_reward", achieved, desired, recorders)
        if self._source.has("compute_terminated"):
            of_ends = [Recorder(infos[i % len(infos)]) for i in range(len(achieved))]
            try:
                self._probe("compute_terminated", achieved, desired, of_ends)
                recorders += of_ends
            except NotImplementedError:
                pass  # the abstract method: nothing that it says ends the task
        if found:
            self._info = InfoFeatures(infos, list(dict.fromkeys(key for recorder in recorders for key in recorder.read)))
        return rewards

    def _probe(self, name: str, achieved: np.ndarray, desired: np.ndarray, infos: list[Any]) -> np.ndarray:
        """
        Try a function of the environment on pairs of goals: does it take batches?

        :param name: name of the function
        :param achieved: goals, (n, goal_dim)
        :param desired: goals, (n, goal_dim)
        :param infos: info of each
        :return: its values, (n,)
        :raises ValueError: when it fails, does not return one number for a pair, or another one each time
        """
        failures: list[str] = []
        results: list[Any] = []
        for ask in (self._rows, self._batch):
            try:
                # Over a pipe, as HerReplayBuffer does: only batches.
                skip = ask == self._rows and not isinstance(self._source, PrivateInstance)
                results.append(None if skip else np.asarray(ask(name, achieved, desired, infos)).astype(np.float64))
            except NotImplementedError:
                raise
            except Exception as error:
                results.append(None)
                failures.append(f"{type(error).__name__}: {error}")
        rows, batch = results
        if rows is not None and rows.size != len(achieved):
            failures.append(f"it must return one number for a pair of goals, not shape {rows.shape[1:]}")
            rows = None
        rows = None if rows is None else rows.reshape(-1)
        if batch is not None and batch.shape != (len(achieved),):
            failures.append(f"for {len(achieved)} pairs it returned shape {batch.shape}")
            batch = None
        if rows is None and batch is None:
            raise ValueError(
                f"GoalEnvTasks: {name}(achieved_goal, desired_goal, info) fails on goals of the environment, row by row and "
                f"all at once ({'; '.join(failures)}), so no transition can be relabeled. It has to be a function of its "
                "three arguments alone."
            )
        agree = rows is None or (batch is not None and np.allclose(batch, rows, rtol=1e-5, atol=1e-6, equal_nan=True))
        self._takes_batches[name] = agree
        values: Any = batch if agree else rows
        again = (self._batch if agree else self._rows)(name, achieved, desired, infos)
        self._check_deterministic(values, np.asarray(again).reshape(-1), name)
        return values

    def _check_deterministic(self, values: np.ndarray, again: np.ndarray, name: str = "compute_reward") -> None:
        if not np.array_equal(values, again, equal_nan=values.dtype.kind == "f"):
            row = int(np.argmax(values != again))
            raise ValueError(
                f"GoalEnvTasks: {name} is not deterministic: for the same goals and info it said {values[row]} and then "
                f"{again[row]}. What a relabeled row is worth would change each time. Draw what is random in step, and put "
                "it into info."
            )

    def __getstate__(self) -> dict[str, Any]:
        """State without what was seen of the residual."""
        return {**self.__dict__, "_watch": ResidualWatch()}


def is_goal_space(space: spaces.Space) -> bool:
    """
    Say whether observations are those of a GoalEnv.

    :param space: observation space
    :return: whether it is a Dict with the three keys
    """
    return isinstance(space, spaces.Dict) and all(key in space.spaces for key in GOAL_KEYS)


def _layout_of(achieved: spaces.Space, desired: spaces.Space, stored: spaces.Space) -> TaskLayout:
    """How goals are laid out in stored observations."""
    for space in (achieved, desired):
        if not isinstance(space, GOAL_SPACES) or achieved.shape != desired.shape:
            raise ValueError(
                "GoalEnvTasks: goals must be Box, MultiBinary, Discrete or MultiDiscrete, and achieved and desired ones of "
                f"one shape, not {achieved} and {desired}. Flatten a Dict or Tuple of goals in a wrapper."
            )
        _check_exact(space)
    shape = stored_shape(stored)
    return TaskLayout("desired_goal", int(np.prod(shape)), shape)


def _check_exact(space: Any) -> None:
    """Check that whole numbers are told apart in float32; bounds that are those of the type say nothing of the goals."""
    if space.dtype is None or space.dtype.kind not in "iu":
        return
    limits = np.iinfo(space.dtype)
    low, high = _bounds(space)
    bounds = np.concatenate([low[low > limits.min], high[high < float(limits.max)]])
    if np.abs(bounds).max(initial=0) > N_EXACT:
        raise ValueError(
            f"GoalEnvTasks: whole numbers up to 2^24 can be told apart in float32, but goals of {space} go from {low.min():g} "
            f"to {high.max():g}. Give achieved and desired goals in smaller units in a wrapper."
        )


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest number of each entry of a goal, (goal_dim,) each."""
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    else:
        low, high = np.zeros(space.shape or ()), np.ones(space.shape or ())
    return np.ravel(low).astype(np.float64), np.ravel(high).astype(np.float64)


def _goal_box(low: np.ndarray, high: np.ndarray, seen: np.ndarray) -> spaces.Box:
    """The space of the goals; where it has no bounds, the range of those that were seen, (n, 2, goal_dim), and half more."""
    flat = seen.reshape(-1, seen.shape[-1])
    first, last = flat.min(axis=0), flat.max(axis=0)
    margin = 0.5 * np.maximum(last - first, 0.1 * np.max(last - first) + 1e-6)
    low, high = np.where(np.isfinite(low), low, first - margin), np.where(np.isfinite(high), high, last + margin)
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
