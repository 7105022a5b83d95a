"""Make one environment with a family of tasks out of an ordinary Gymnasium environment."""

import math
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3.tasks.family import TaskFamily, check_is_family
from hipi_sb3.tasks.learnable import check_action_space, check_observation_space


class MultiTaskWrapper(gym.Wrapper):
    """
    Show a task in the observation and reward it.

    At each reset a task psi is drawn from the family's prior, unless ``reset(options={"task": psi})`` or ``fixed_task`` says
    otherwise. The reward of a step is the family's; the episode terminates where the task or the inner environment does,
    and the inner environment's time limit stays a truncation.

    ``info`` has, after every step, ``task`` (task_dim,), ``task_features`` (feature_dim,), ``env_terminated`` (bool, the
    inner environment's own termination) and, where the family has a notion of success, ``is_success``.

    The task is one more key of the observation: beside those of an inner Dict, or beside ``observation``, the inner
    observation of any other kind.

    :param env: environment; its observation is kept as it is
    :param family: the tasks and their rewards
    :param flatten: one flat Box ``observation || task`` instead of a Dict, for algorithms without ``MultiInputPolicy``
        (CrossQ); the inner observation has to be a one-dimensional Box
    :param fixed_task: task of every episode, (task_dim,), for evaluation; see :meth:`fix_task`
    :param task_key: key of the task in the observation, ``task`` if None; ``task_family`` is the family with that key
    :raises ValueError: when family, task or spaces do not fit
    """

    def __init__(
        self,
        env: gym.Env,
        family: TaskFamily,
        flatten: bool = False,
        fixed_task: Any = None,
        task_key: str | None = None,
    ) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"MultiTaskWrapper: env must be a gymnasium.Env, not {type(env).__name__}: {env!r:.80}. Pass gym.make(...) or "
                "an object of your class; of several environments wrap each by itself."
            )
        super().__init__(env)
        check_is_family("MultiTaskWrapper", family)
        family.check()
        inner = env.observation_space
        if flatten and not (isinstance(inner, spaces.Box) and len(inner.shape) == 1):
            raise ValueError(
                f"MultiTaskWrapper: flatten=True needs a one-dimensional Box observation, not {inner}. Put the environment "
                "into gymnasium.wrappers.FlattenObservation first."
            )
        if flatten and task_key is not None:
            raise ValueError(f"MultiTaskWrapper: task_key={task_key!r} names a key, but flatten=True leaves none. Drop one.")
        if family.features_key is not None:
            raise ValueError(
                f"MultiTaskWrapper: {type(family).__name__} are the goals of an environment that shows them itself. Use it "
                "as it is, without MultiTaskWrapper."
            )
        check_observation_space("MultiTaskWrapper", inner)
        check_action_space("MultiTaskWrapper", env.action_space)
        if task_key is not None and task_key != family.task_key:
            family = family.with_task_key(task_key)
        self.task_family = family
        self._feature_shape = (family.feature_dim,)
        self.flatten = flatten
        if flatten:
            assert isinstance(inner, spaces.Box)
            self.observation_space: spaces.Space = spaces.Box(
                np.concatenate([inner.low, family.task_space.low]).astype(np.float32),
                np.concatenate([inner.high, family.task_space.high]).astype(np.float32),
                dtype=np.float32,
            )
        else:
            parts = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"observation": inner}
            if family.task_key in parts:
                raise ValueError(
                    f"MultiTaskWrapper: the task cannot stand under the key {family.task_key!r}: the observation has one "
                    f"already ({', '.join(parts)}). Name another one: MultiTaskWrapper(..., task_key=...)."
                )
            self.observation_space = spaces.Dict({**parts, family.task_key: family.task_space})
        self.task: np.ndarray | None = None
        self._inner_obs: Any = None
        self._step = 0
        self.fixed_task: np.ndarray | None = None
        self.fix_task(fixed_task)

    @property
    def flat_dim(self) -> int:
        """How many numbers an observation has, the task among them."""
        return spaces.flatdim(self.observation_space)

    def fix_task(self, task: Any) -> None:
        """
        Use this task from the next reset on; None draws from the prior again.

        Evaluation calls it through ``vec_env.env_method("fix_task", task)``: the automatic reset of a ``VecEnv`` drops
        ``options``.

        :param task: task, (task_dim,), or None
        :raises ValueError: when the task is outside the task space
        """
        self.fixed_task = None if task is None else self.task_family.check_task(task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the environment and of the task's draw
        :param options: ``{"task": psi}`` sets the task of this episode; other entries go to the inner environment
        :return: observation and info
        """
        options = dict(options or {})
        task = options.pop("task", self.fixed_task)
        obs, info = self.env.reset(seed=seed, options=options or None)
        # The inner generator is seeded by the line above, so that one seed fixes both the state and the task.
        self.task = self.task_family.sample(self.np_random, 1)[0] if task is None else self.task_family.check_task(task)
        self._inner_obs = _kept(obs)
        self._step = 0
        shown = self.task.copy()
        return self._observation(obs, shown), {**info, "task": shown}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Step the inner environment and judge the step by the task.

        :param action: action
        :return: observation, reward of the task, terminated, truncated, info
        :raises ValueError: when a feature is NaN or the reward is not finite
        """
        assert self.task is not None, "Call reset() before step()."
        next_obs, inner_reward, env_terminated, truncated, info = self.env.step(action)
        self._step += 1
        family, task = self.task_family, self.task
        features = family.features(self.env, self._inner_obs, action, next_obs, inner_reward, info)
        # Judged in the precision in which the replay buffer stores it: a threshold must not fall differently later. A copy: an
        # environment may hand out its state itself, and be reset before the info is read.
        features = np.array(features, np.float32)
        if features.shape != self._feature_shape:
            raise ValueError(
                f"{type(family).__name__}.features returned shape {features.shape}, but feature_dim is {family.feature_dim}: "
                f"expected ({family.feature_dim},)."
            )
        # The sum is NaN if an entry is (or if infinities cancel), and cheap, because features are few.
        if math.isnan(sum(features.tolist())) and np.isnan(features).any():
            self._raise_not_finite("features", features)
        judged, ends, success = family.judge(features, task)
        reward = float(judged)
        if not math.isfinite(reward):
            self._raise_not_finite("reward", reward)
        env_terminated = bool(env_terminated)
        shown = task.copy()
        # A new dictionary: environments may keep theirs, and share it.
        info = {**info, "task": shown, "task_features": features, "env_terminated": env_terminated}
        # That of the inner environment speaks of another task.
        info.pop("is_success", None)
        if success is not None:
            info["is_success"] = bool(success)
        self._inner_obs = _kept(next_obs)
        return self._observation(next_obs, shown), reward, env_terminated or bool(ends), bool(truncated), info

    def _observation(self, obs: Any, task: np.ndarray) -> Any:
        if self.flatten:
            return np.concatenate([obs, task], dtype=np.float32)
        parts = obs if isinstance(obs, dict) else {"observation": obs}
        return {**parts, self.task_family.task_key: task}

    def _raise_not_finite(self, what: str, value: Any) -> None:
        raise ValueError(
            f"{type(self.task_family).__name__}: {what} at step {self._step} of the episode is {value} for task {self.task}. "
            "Check the environment's state and the family's arithmetic at this step; nothing was stored."
        )


def _kept(obs: Any) -> Any:
    """A copy of an observation for the next step: environments may write the next one into the same arrays."""
    if isinstance(obs, np.ndarray):
        return obs.copy()
    return {key: _kept(part) for key, part in obs.items()} if isinstance(obs, dict) else deepcopy(obs)
