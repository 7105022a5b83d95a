"""dm_control's physics under families of tasks: what is read is what the simulator says, and its errors end episodes."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import require, require_rendering
from numpy.testing import assert_allclose, assert_array_equal

require("dm_control")

from dm_control import suite

from hipi_sb3.envs.dm_control_suite import START_NOISE, DMControlEnv, cheetah_velocity, hopper_gait, spinner_tip


def named(env):
    """dm_control's own access by name, against which the readers are compared."""
    return env.unwrapped.physics.named.data


def rolled_out(env_id, n_steps=10, **kwargs):
    """An environment after some random steps, and the features of the last one."""
    env = gym.make(env_id, **kwargs)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(n_steps):
        action = env.action_space.sample()
        obs, *_, info = env.step(action)
    return env, obs["observation"], info["task_features"], action


# -- what tasks are about ---------------------------------------------------------------------------------------------


def test_goals_are_read_where_the_simulator_has_them():
    env, obs, features, _ = rolled_out("QuadrupedGoal-v0")
    assert_allclose(features, named(env).xpos["torso"][:2], rtol=1e-6)
    assert_allclose(obs[-2:], features)
    env, obs, features, _ = rolled_out("FingerGoal-v0")
    assert_allclose(features, env.unwrapped.physics.tip_position(), rtol=1e-5, atol=1e-7)
    assert_allclose(obs[2:4], features, rtol=1e-5, atol=1e-7)
    env, obs, features, _ = rolled_out("ReacherGoal-v0")
    assert_allclose(features, named(env).geom_xpos["finger"][:2], rtol=1e-6)
    assert_allclose(obs[-2:], features)
    env, obs, features, _ = rolled_out("SwimmerGoal-v0")
    assert_allclose(features, named(env).sensordata["nose_pos"][:2], rtol=1e-6)
    assert_allclose(obs[-4:], [*features, *named(env).sensordata["head_xaxis"][:2]], rtol=1e-5)
    env, obs, features, _ = rolled_out("FishGoal-v0")
    assert_allclose(features, named(env).geom_xpos["mouth"], rtol=1e-6)
    assert_allclose(obs[-7:], [*features, *named(env).qpos["root"][3:7]], rtol=1e-6)


def test_linear_features_are_those_of_the_table():
    env, _, features, action = rolled_out("WalkerLinear-v0")
    positions = named(env).xpos
    left, right = (positions[f"{side}_foot"] - positions["torso"] for side in ("left", "right"))
    physics = env.unwrapped.physics
    expected = [physics.torso_height() - 0.5, physics.horizontal_velocity(), left[0], left[2] + 0.7, right[0], right[2] + 0.7]
    assert_allclose(features, [*expected, np.sum(action**2)], rtol=1e-5, atol=1e-6)
    env, _, features, action = rolled_out("HopperLinear-v0", n_steps=60)
    physics = env.unwrapped.physics
    assert_allclose(features, [*physics.touch(), physics.height(), physics.speed(), np.sum(action**2)], rtol=1e-5, atol=1e-6)
    env, _, features, action = rolled_out("HumanoidLinear-v0")
    physics = env.unwrapped.physics
    expected = [physics.head_height() - 1.4, *physics.center_of_mass_velocity()[:2], physics.torso_upright()]
    assert_allclose(features, [*expected, np.sum(action**2)], rtol=1e-5, atol=1e-6)
    env, _, features, action = rolled_out("CheetahVelocity-v0")
    assert_allclose(features, [env.unwrapped.physics.speed(), np.sum(action**2)], rtol=1e-5)


def test_the_weights_have_the_ranges_of_the_table():
    space = gym.make("WalkerLinear-v0").get_wrapper_attr("task_family").task_space
    assert_array_equal(space.low, [-1] * 7)
    assert_array_equal(space.high, [1] * 6 + [0])


def test_the_suites_own_target_is_not_observed():
    for env_id, hidden in (("FingerGoal-v0", 3), ("ReacherGoal-v0", 2), ("FishGoal-v0", 3), ("SwimmerGoal-v0", 2)):
        env = gym.make(env_id).unwrapped
        of_suite = sum(np.size(value) for value in env.suite_task.get_observation(env.physics).values())
        assert env._n_suite == of_suite - hidden


def test_the_hoppers_behaviours_are_rewarded_from_0_to_1():
    family = gym.make("HopperDiscrete-v0").get_wrapper_attr("task_family")
    #                       toe, heel, height, speed
    features = np.array([[0, 0, 0.7, 2.0], [0, 0, 0.7, -1.0], [0, 0, 0.7, 0.0], [0, 0, 0.15, 0.5]], dtype=np.float32)
    rewards = family.reward(features[:, None], family.tasks)
    assert_allclose(rewards, [[1, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0], [0.25, 0, 0, 0.75]], atol=1e-6)


# -- goals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "low", "high", "radius"),
    [("QuadrupedGoal-v0", 1.0, 1.0, 0.3), ("FingerGoal-v0", 0.13, 0.13, 0.01), ("ReacherGoal-v0", 0.05, 0.20, 0.01)],
)
def test_goals_are_on_their_ring(env_id, low, high, radius):
    family = gym.make(env_id).get_wrapper_attr("task_family")
    goals = family.sample(np.random.default_rng(0), 2000)
    distance = np.linalg.norm(goals, axis=1)
    assert low - 1e-5 <= distance.min() <= low + 0.01 and high - 0.01 <= distance.max() <= high + 1e-5
    assert family.radius == radius
    assert np.isfinite(family.log_prior(goals)).all()
    assert_array_equal(family.log_prior(np.array([[0.0, 0.0], [2 * high, 0.0]])), [-np.inf, -np.inf])
    # Uniform in angle: a quarter of them in each quadrant, four standard errors of 2000 draws.
    assert abs(np.mean((goals > 0).all(axis=1)) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_the_density_on_a_ring_integrates_to_one():
    family = gym.make("ReacherGoal-v0").get_wrapper_attr("task_family")
    x = np.linspace(-0.25, 0.25, 1001)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    assert_allclose(np.exp(family.log_prior(grid)).sum() * (x[1] - x[0]) ** 2, 1.0, rtol=5e-3)
    circle = gym.make("QuadrupedGoal-v0").get_wrapper_attr("task_family")
    assert_allclose(circle.log_prior(np.array([[0.6, 0.8]])), -np.log(2 * np.pi))


def test_the_spinners_tip_really_moves_on_the_circle_of_its_goals():
    _, _, features, _ = rolled_out("FingerGoal-v0", n_steps=80)
    assert_allclose(np.linalg.norm(features), 0.13, rtol=1e-4)


def test_the_fixed_goals_are_32_and_always_the_same():
    families = [gym.make("ReacherDiscrete-v0").get_wrapper_attr("task_family") for _ in range(2)]
    assert families[0].parameters.shape == (32, 2)
    assert_array_equal(families[0].parameters, families[1].parameters)
    assert len(np.unique(families[0].parameters, axis=0)) == 32
    other = gym.make("ReacherDiscrete-v0", n_goals=5, goal_seed=1).get_wrapper_attr("task_family")
    assert other.parameters.shape == (5, 2)


# -- starts, seeds, errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["QuadrupedGoal-v0", "WalkerLinear-v0", "HumanoidLinear-v0"])
def test_upright_starts_are_near_the_default_pose(env_id):
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    hinges = env.physics.data.qpos[env._is_hinge]
    assert 0 < np.abs(hinges).max() <= START_NOISE
    assert env.physics.named.data.xmat["torso", "zz"] > 0.95


def test_a_step_is_the_suites_own_step():
    env = DMControlEnv("cheetah", "run", cheetah_velocity)
    env.reset(seed=0)
    own = suite.load("cheetah", "run")
    own.reset()
    own.physics.set_state(env.physics.get_state())
    own.physics.forward()
    env.physics.forward()
    action = np.linspace(-1, 1, 6)
    for _ in range(20):
        obs, *_ = env.step(action)
        expected = own.step(action).observation
    assert_allclose(obs, np.concatenate([expected["position"], expected["velocity"]]), rtol=1e-4, atol=1e-5)


def test_episodes_do_not_end_where_the_suites_do():
    env = DMControlEnv("hopper", "hop", hopper_gait)
    env.reset(seed=0)
    still = np.zeros(4)
    assert not any(any(env.step(still)[2:4]) for _ in range(1100))  # the suite's episodes have 1000 steps


def test_a_physics_error_terminates_with_a_warning_in_the_state_before():
    env = gym.make("CheetahVelocity-v0")
    env.reset(seed=0)
    action = np.zeros(6, dtype=np.float32)
    obs, *_ = env.step(action)
    env.unwrapped.physics.data.qvel[:] = 1e12  # no integrator survives it
    with pytest.warns(UserWarning, match="terminated by a physics error"):
        last, reward, terminated, truncated, info = env.step(action)
    assert terminated and not truncated and info["env_terminated"] and np.isfinite(reward)
    assert "mjWARN" in info["physics_error"] and np.isfinite(info["task_features"]).all()
    assert_array_equal(last["observation"], obs["observation"])
    env.reset()
    assert not env.step(action)[2]


def test_render_modes_are_checked():
    with pytest.raises(ValueError, match="render_mode must be one of"):
        DMControlEnv("finger", "turn_hard", spinner_tip, render_mode="human")
    with pytest.warns(UserWarning, match="render_mode"):
        assert DMControlEnv("finger", "turn_hard", spinner_tip).render() is None


def test_the_frame_shows_the_goal():
    require_rendering()
    for env_id in ("FingerGoal-v0", "ReacherDiscrete-v0"):
        env = gym.make(env_id, render_mode="rgb_array")
        family = env.get_wrapper_attr("task_family")
        first, second = family.sample(np.random.default_rng(3), 2)
        env.reset(seed=0, options={"task": first})
        here = env.render()
        env.reset(seed=0, options={"task": second})
        assert here.shape == (480, 480, 3) and here.dtype == np.uint8
        assert not np.array_equal(here, env.render())
        env.close()
