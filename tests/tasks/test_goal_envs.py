"""GoalEnvs of others: highway-env's parking, which pays for collisions beside the goal, and panda-gym's reaching arm."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.envs import BitFlippingEnv

from hipi_sb3 import HIPISAC, HIPIReplayBuffer
from hipi_sb3.check_family import check_family
from hipi_sb3.tasks.goal_env import GoalEnvTasks

QUICK: dict[str, Any] = {"learning_starts": 250, "batch_size": 64, "buffer_size": 1000, "seed": 0, "device": "cpu"}


def parking(**kwargs: Any) -> gym.Env:
    gym.register_envs(require("highway_env"))
    return gym.make("parking-v0", **kwargs)


def panda() -> gym.Env:
    gym.register_envs(require("panda_gym"))
    return gym.make("PandaReach-v3")


def trained(env: gym.Env, n: int) -> Any:
    options = {"n_steps": 1, "strategy": "future", "relabel_prob": 0.5}
    return HIPISAC("MultiInputPolicy", env, replay_buffer_kwargs=options, **QUICK).learn(n)


def of_env(env: gym.Env, samples: Any) -> np.ndarray:
    """What ``compute_reward`` of an environment says of sampled rows, (n,)."""
    goals = (samples.next_observations[key].numpy().astype(np.float64) for key in ("achieved_goal", "desired_goal"))
    return np.asarray(env.unwrapped.compute_reward(*goals, [{}] * len(samples.rewards)))


@pytest.mark.filterwarnings("ignore")
def test_parking_pays_for_collisions_whatever_the_goal() -> None:
    model = trained(parking(), 500)
    buffer = model.replay_buffer
    residual = buffer.features[:500, 0, -1]
    assert set(residual.tolist()) == {-5.0, 0.0}
    # The environment ends at a collision, and nothing else ends it but the goal.
    assert_array_equal(residual < 0, buffer.env_terminated[:500, 0])
    assert (residual < 0).any()
    np.random.seed(0)
    paid = np.concatenate([s.rewards.numpy()[:, 0] - of_env(parking(), s) for s in (buffer.sample(500) for _ in range(4))])
    collided = paid < -2.5
    assert collided.any()
    assert_allclose(paid, np.where(collided, -5.0, 0.0), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_panda_reaches_with_the_environments_rewards() -> None:
    model = trained(panda(), 300)
    buffer, env = model.replay_buffer, panda()
    assert buffer.features.shape[-1] == buffer.family.task_dim  # there never was a residual, and none is stored
    samples = buffer.sample(300)
    assert_array_equal(samples.rewards.numpy()[:, 0], of_env(env, samples))
    assert {-1.0, 0.0} == set(samples.rewards.unique().tolist())
    goal = buffer.family.sample(np.random.default_rng(0), 1)
    assert buffer.family.success(goal, goal).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [parking, panda])
def test_their_tasks_are_what_they_say(make: Any) -> None:
    env = make()
    problems = check_family(GoalEnvTasks(env), env, n_steps=150)
    assert [problem for problem in problems if "Success was not reached" not in problem] == []


class EndsInACrash(BitFlippingEnv):
    """Ends where it crashed, which info says in every step and nothing else does."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        info["crashed"] = float(self.np_random.random() < 0.2)
        return obs, reward, terminated or bool(info["crashed"]), truncated, info

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> bool:
        return bool(np.array_equal(achieved_goal, desired_goal) or info["crashed"])


def test_what_ends_a_task_may_read_info() -> None:
    env = EndsInACrash(n_bits=3, continuous=True)
    family = GoalEnvTasks(env)
    assert check_family(family, env) == []
    model = HIPISAC("MultiInputPolicy", EndsInACrash(n_bits=3, continuous=True), learning_starts=20, batch_size=8, seed=0)
    model.learn(60)
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    assert model.replay_buffer.family is not None and model.replay_buffer.family.feature_dim == family.feature_dim
