"""A small environment with a family of tasks, and hand-filled buffers, for the tests of several modules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import DummyVecEnv

from hipi_sb3 import DiscreteTasks, GoalReaching, HIPIReplayBuffer, MultiTaskWrapper, TaskFamily
from hipi_sb3.experience.layout import TaskLayout
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.relabel.learners import Learner, Pairs, with_task

#: Corridor of goals, with goals wide enough that a short random walk meets some.
GOALS = GoalReaching(low=[-1.0], high=[1.0], radius=0.15)

ACTIONS = spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)
#: Observations of the hand-filled buffers: (environment, time) name the row.
DICT_SPACE = spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (2,), np.float32), "task": GOALS.task_space})
FLAT_SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


class LineWalk(gym.Env):
    """
    A point on a line: the action moves it by at most 0.3, beyond 1.2 it falls off and the environment ends.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = ACTIONS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.clock = self.np_random.uniform(-0.5, 0.5), 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position += 0.3 * float(np.clip(action, -1, 1).item())
        self.clock += 1
        return self._obs(), 0.0, abs(self.position) > 1.2, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.position, 0.1 * self.clock], dtype=np.float32)


def make_line_walk(family: TaskFamily = GOALS, max_steps: int = 8, **kwargs: Any) -> gym.Env:
    """The walk with tasks and a time limit."""
    return MultiTaskWrapper(TimeLimit(LineWalk(), max_steps), family, **kwargs)


class MatrixWalk(gym.Wrapper):
    """The walk with actions (2, 2), of which the first column's mean moves it, and observations (2, 1, 1)."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 1, 1), np.float32)
    action_space = spaces.Box(np.array([[-1, -2], [-1, -3]], np.float32), np.array([[1, 2], [1, 5]], np.float32))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return obs.reshape(2, 1, 1), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        obs, *rest = self.env.step(action[:, 0].mean())
        return obs.reshape(2, 1, 1), *rest  # type: ignore[return-value]


def make_matrix_walk(max_steps: int = 8) -> gym.Env:
    """The walk in matrices, with tasks and a time limit."""
    return MultiTaskWrapper(TimeLimit(MatrixWalk(LineWalk()), max_steps), GOALS)


def vec_line_walk(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    """Several walks."""
    return DummyVecEnv([lambda: make_line_walk(**kwargs)] * n_envs)


# -- what happened, and a critic, without an algorithm --------------------------------------------------------------


def walked(n_steps: int, buffer_size: int, max_steps: int = 8, seed: int = 0) -> Experience:
    """Random steps of one walk, in episodes that the time limit or the fall ends, or the goal."""
    env = make_line_walk(max_steps=max_steps)
    experience = Experience(buffer_size, 1, env.observation_space, TaskLayout("task", 1), 1, np.float32, GOALS.feature_dim)
    rng, done = np.random.default_rng(seed), True
    for step in range(n_steps):
        if done:
            obs, _ = env.reset(seed=seed if step == 0 else None)
        action = rng.uniform(-1, 1, (1,)).astype(np.float32)
        next_obs, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        before, after = ({key: value[None, None] for key, value in part.items()} for part in (obs, next_obs))
        ends = (np.array([[end]]) for end in (done, truncated and not terminated, info["env_terminated"]))
        experience.add(before, after, action[None, None], np.array([[reward]]), *ends, info["task_features"][None, None])
        obs = next_obs
    return experience


class NoCritic(Learner):
    """A critic that values every state at 0: scores are rewards."""

    def __init__(self) -> None:
        self.gamma, self.temperature = 0.9, None
        self.policy = self.model = self

    training = False
    device = th.device("cpu")
    alpha = None
    n_updates = 10

    def _zeros(self, pairs: Pairs) -> th.Tensor:
        return th.zeros_like(pairs.rewards)

    pair_next_value = pair_value = pair_q = _zeros


# -- a finite family, functions at module level so that it pickles --------------------------------------------------


def position_of(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    return np.asarray(next_obs)[:1]


def to_the_right(features: np.ndarray) -> np.ndarray:
    return features[..., 0]


def to_the_left(features: np.ndarray) -> np.ndarray:
    return -features[..., 0]


def to_the_middle(features: np.ndarray) -> np.ndarray:
    return -np.abs(features[..., 0])


def directions(prior: Sequence[float] | None = None) -> DiscreteTasks:
    """Three tasks: right, left, middle."""
    return DiscreteTasks([to_the_right, to_the_left, to_the_middle], position_of, feature_dim=1, prior=prior)


def one_task() -> DiscreteTasks:
    """A family with a single task."""
    return DiscreteTasks([to_the_right], position_of, feature_dim=1)


# -- hand-filled buffers --------------------------------------------------------------------------------------------

#: One step of one environment: position reached, commanded goal, how it ended ("", "task", "env", "limit", "task+env").
Step = tuple[float, float, str]


def goal_buffer(buffer_size: int = 20, n_envs: int = 1, flat: bool = False, **kwargs: Any) -> HIPIReplayBuffer:
    """An empty buffer of the goal family that belongs to no algorithm."""
    kwargs = {"strategy": "none", "relabel_prob": 1.0, **kwargs}
    space = FLAT_SPACE if flat else DICT_SPACE
    return HIPIReplayBuffer(buffer_size * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs, family=GOALS, **kwargs)


def observation(env_index: int, clock: float, goal: float, flat: bool) -> Any:
    """The observation that names a row."""
    inner = np.array([env_index, clock], dtype=np.float32)
    task = np.array([goal], dtype=np.float32)
    return np.concatenate([inner, task]) if flat else {"observation": inner, "task": task}


def add_step(add: Callable[..., None], clock: int, steps: Sequence[Step], flat: bool = False) -> None:
    """
    Store one step of every environment, as SB3 does.

    :param add: ``buffer.add``, or that of another buffer
    :param clock: number of the step: its observation is ``clock``, the next one ``clock + 1``, or ``clock + 0.5`` at the end
        of an episode
    :param steps: a step of each environment
    """

    def stack(observations: list[Any]) -> Any:
        if flat:
            return np.stack(observations)
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}

    obs, next_obs, rewards, dones, infos = [], [], [], [], []
    for env_index, (position, goal, end) in enumerate(steps):
        obs.append(observation(env_index, clock, goal, flat))
        next_obs.append(observation(env_index, clock + (0.5 if end else 1), goal, flat))
        features = np.array([position], dtype=np.float32)
        rewards.append(GOALS.reward(features, np.array([goal])))
        dones.append(bool(end))
        infos.append({"task_features": features, "env_terminated": "env" in end, "TimeLimit.truncated": end == "limit"})
        assert bool(GOALS.terminated(features, np.array([goal]))) == ("task" in end), "the test's own mistake"
    actions = np.full((len(steps), 1), 0.01 * clock, dtype=np.float32)
    add(stack(obs), stack(next_obs), actions, np.array(rewards, dtype=np.float32), np.array(dones), infos)


def fill(buffer: Any, steps: Sequence[Sequence[Step]], flat: bool = False, start: int = 0) -> None:
    """Store steps one after another: ``steps[time][environment]``."""
    for clock, step in enumerate(steps, start):
        add_step(buffer.add, clock, step, flat)


def pairs_of(batch: Any, layout: TaskLayout, tasks: th.Tensor) -> Pairs:
    """
    All pairs of a sampled batch with tasks, for what does not look at rewards and ends.

    :param batch: what a buffer's ``sample`` gave
    :param layout: where an observation holds its task
    :param tasks: (n_tasks, task_dim)
    :return: the pairs
    """
    numbers = th.zeros(len(batch.rewards), len(tasks))
    put = partial(with_task, layout)
    return Pairs(batch.observations, batch.next_observations, batch.actions, tasks, numbers, numbers, numbers, put)
