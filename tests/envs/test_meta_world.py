"""Meta-World's arm under families of tasks."""

import gymnasium as gym
import numpy as np
from conftest import require
from numpy.testing import assert_array_equal

require("metaworld")


def test_the_hand_is_the_beginning_of_the_observation_and_the_goal_is_not_in_it():
    env = gym.make("SawyerReach-v0")
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs, *_, info = env.step(env.action_space.sample())
    arm = env.unwrapped.arm
    assert_array_equal(info["task_features"], arm.data.body("hand").xpos.astype(np.float32))
    assert_array_equal(obs["observation"][-3:], np.zeros(3))


def test_moving_towards_the_goal_reaches_it():
    env = gym.make("SawyerReach-v0")
    for seed in range(3):
        obs, info = env.reset(seed=seed)
        done = False
        while not done:
            towards = np.append(10 * (info["task"] - obs["observation"][:3]), 0.0)
            obs, reward, terminated, truncated, info = env.step(np.clip(towards, -1, 1).astype(np.float32))
            done = terminated or truncated
        assert terminated and info["is_success"] and reward == 0


def test_goals_are_those_of_reach_and_tolerances_up_to_the_largest():
    family = gym.make("SawyerReachMargin-v0").get_wrapper_attr("task_family")
    tasks = family.sample(np.random.default_rng(0), 1000)
    assert (tasks >= [-0.1, 0.8, 0.05, 0.0]).all() and (tasks <= np.float32([0.1, 0.9, 0.3, 0.1])).all()
    assert np.ptp(tasks, axis=0).min() > 0.09
    # A hand that is elsewhere can be relabeled with where it is, although no such goal is drawn.
    assert family.task_space.contains(np.float32([0.4, 0.5, 0.4, 0.05]))
    assert family.log_prior(np.float32([0.4, 0.5, 0.4, 0.05])) == -np.inf


def test_episodes_may_be_longer_than_meta_worlds():
    env = gym.make("SawyerReach-v0", max_episode_steps=520, fixed_task=[0.4, 0.4, 0.6])
    env.reset(seed=0)
    flags = [env.step(np.zeros(4, dtype=np.float32))[2:4] for _ in range(520)]
    assert flags == [(False, False)] * 519 + [(False, True)]
