"""What is wrong with a family is said in words, and nothing is said of a right one."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from line_walk import GOALS, LineWalk
from stable_baselines3.common.envs import BitFlippingEnv

from hipi_sb3 import CallableTasks, GoalReaching, TargetVelocity
from hipi_sb3.check_family import check_family
from hipi_sb3.envs import registered_env_ids
from hipi_sb3.tasks.goal_env import GoalEnvTasks


def phi(env, obs, action, next_obs, reward, info):
    return next_obs[:1]


def right_reward(features, tasks):
    return -np.abs(features[..., 0] - tasks[..., 0]).astype(np.float32)


def column_reward(features, tasks):
    return -np.abs(features - tasks)


def batch_reward(features, tasks):
    return right_reward(features, tasks) - np.max(features)


def integer_reward(features, tasks):
    return (features[..., 0] > tasks[..., 0]).astype(int)


def integer_end(features, tasks):
    return (features[..., 0] > tasks[..., 0]).astype(int)


def missed_goal(features):
    return features + 1.0


def never(features, tasks):
    return np.zeros(np.broadcast_shapes(features.shape[:-1], tasks.shape[:-1]), dtype=bool)


def near(features, tasks):
    return np.abs(features[..., 0] - tasks[..., 0]) < 0.5


def outside(rng, n):
    return np.full((n, 1), 7.0)


def flat_prior(tasks):
    return np.zeros(np.shape(tasks)[:-1])


def wrong_prior(tasks):
    return np.zeros(np.shape(tasks))


def unseeded(rng, n):
    return np.random.uniform(-1, 1, size=(n, 1)).astype(np.float32)


class DoublePrecision(GoalReaching):
    def sample(self, rng, n):
        return super().sample(rng, n).astype(np.float64)


class JudgesSuccessWrongly(GoalReaching):
    def judge(self, features, tasks):
        reward, terminated, success = super().judge(features, tasks)
        return reward, terminated, ~success


def family(reward=right_reward, **kwargs):
    return CallableTasks(spaces.Box(-5, 5, shape=(1,), dtype=np.float32), 1, features=phi, reward=reward, **kwargs)


class Hidden(gym.Wrapper):
    """A wrapper outside of the tasks that changes what they returned."""

    def __init__(self, env, reward=0.0, never_ends=False):
        super().__init__(env)
        self.shift, self.never_ends = reward, never_ends

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + self.shift, terminated and not self.never_ends, truncated, info


def walk():
    return gym.wrappers.TimeLimit(LineWalk(), 30)


@pytest.mark.parametrize("tasks", [GOALS, family()], ids=["goals", "functions"])
def test_nothing_is_said_of_a_right_family(tasks):
    assert check_family(tasks, walk()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (family(lambda features, tasks: right_reward(features, tasks)), "cannot be pickled"),
        (family(column_reward), "must broadcast over leading axes"),
        (family(batch_reward), "reward of a batch differs from reward of its rows"),
        (family(integer_reward), "not a floating-point type"),
        (family(terminated=integer_end), "terminated returned int64, not bool"),
        (family(sample=outside, log_prior=flat_prior), "100 of 100 draws from the prior lie outside the task space"),
        (DoublePrecision([-1], [1], 0.1), "sample returned float64"),
        (family(sample=unseeded, log_prior=flat_prior), "Two draws with the same seed differ"),
        (family(sample=unseeded, log_prior=wrong_prior), r"log_prior(tasks) returned shape (100, 1)"),
        (family(achieved=missed_goal, success=near), "transitions do not succeed at the task that achieved() says"),
        (family(success=never), "Success was not reached once in 500 steps of random actions"),
        (JudgesSuccessWrongly([-1], [1], 0.1), "info['is_success'] is True, but the family says False"),
        (TargetVelocity(0.0, 1.0), "KeyError"),
        (GoalReaching([0], [1], 0.1, position=(40,)), "IndexError"),
    ],
)
def test_what_is_wrong_is_said_in_words(wrong, words):
    problems = check_family(wrong, walk())
    assert any(words in problem for problem in problems), problems


def test_a_reward_or_termination_that_differs_from_step_is_found():
    from hipi_sb3 import MultiTaskWrapper

    (problem,) = check_family(GOALS, Hidden(MultiTaskWrapper(walk(), GOALS), reward=1.0))
    assert "the environment returned reward" in problem and "but the family says" in problem
    (problem,) = check_family(GOALS, Hidden(MultiTaskWrapper(walk(), GOALS), never_ends=True))
    assert "returned terminated=False, but the family says True" in problem


def test_a_script_can_show_that_success_is_possible():
    maze = gym.make("PointFourRooms-v0", fixed_task=[15.0, 1.0])
    tasks = maze.get_wrapper_attr("task_family")
    assert "Success was not reached" in check_family(tasks, maze, n_steps=60)[0]

    def towards(obs):
        return np.clip(obs["task"] - obs["observation"], -1, 1)

    assert check_family(tasks, maze, n_steps=60, policy=towards) == []


@pytest.mark.parametrize("env_id", [env_id for env_id in registered_env_ids() if env_id.startswith(("Point", "Half"))])
def test_registered_families_are_right_but_for_success_that_takes_skill(env_id):
    env = gym.make(env_id)
    problems = check_family(env.get_wrapper_attr("task_family"), env, n_steps=100)
    assert all(problem.startswith("Success was not reached") for problem in problems)


@pytest.mark.parametrize("kind", ["discrete_obs_space", "image_obs_space", "continuous"])
def test_goals_of_any_space_are_checked(kind: str) -> None:
    env = BitFlippingEnv(n_bits=4, **{kind: True})
    assert check_family(GoalEnvTasks(env), env) == []
