"""The environments of Generalized Hindsight's suite: what their rewards are made of."""

import gymnasium as gym
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from hipi_sb3.envs.ant import Directions


def stepped(env_id, n_steps=5, **kwargs):
    """An environment after some random steps: it, the last action, reward, info and observation."""
    env = gym.make(env_id, **kwargs)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(n_steps):
        action = env.action_space.sample()
        obs, reward, *_, info = env.step(action)
    return env, action, reward, info, obs["observation"]


def test_the_cheetahs_mix_is_velocity_rotation_height_and_energy():
    env, action, reward, info, _ = stepped("HalfCheetahMix-v0")
    data = env.unwrapped.data
    assert_allclose(info["task_features"], [info["x_velocity"], data.qvel[2], data.qpos[1], np.sum(action**2)], rtol=1e-5)
    assert_allclose(reward, info["task_features"] @ info["task"], rtol=1e-5)
    space = env.get_wrapper_attr("task_family").task_space
    assert_array_equal([space.low, space.high], [[-1, -1, -1, -1], [1, 1, 1, 0]])


def test_the_ant_is_rewarded_for_its_velocity_along_the_direction():
    env, action, reward, info, _ = stepped("AntDirection-v0", fixed_task=[0.6, 0.8])
    forward = 0.6 * info["x_velocity"] + 0.8 * info["y_velocity"]
    assert_allclose(reward, forward - 0.5 * np.sum(action**2) + 1.0, rtol=1e-5)
    # Its fall is its own termination, whatever the task.
    env.unwrapped.data.qpos[2] = 3.0
    _, _, terminated, _, info = env.step(action)
    assert terminated and info["env_terminated"]


def test_directions_are_unit_vectors_of_any_angle():
    family = Directions()
    directions = family.sample(np.random.default_rng(0), 1000)
    assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-6)
    assert_allclose(directions.mean(axis=0), 0.0, atol=4 * np.sqrt(0.5 / 1000))
    assert_allclose(family.log_prior(directions), -np.log(2 * np.pi), rtol=1e-5)
    assert family.log_prior(np.array([0.5, 0.5])) == -np.inf


def test_the_reachers_weights_are_on_energy_velocity_and_distance():
    env, action, reward, info, _ = stepped("ReacherEnergy-v0")
    inner = env.unwrapped
    distance = np.linalg.norm(inner.get_body_com("fingertip") - inner.get_body_com("target"))
    expected = [-np.sum(action**2), -0.1 * np.linalg.norm(inner.data.qvel[:2]), -10 * distance]
    assert_allclose(info["task_features"], expected, rtol=1e-4)
    assert_allclose(reward, np.dot(expected, info["task"]), rtol=1e-4)


def test_the_point_mass_speeds_up_slows_down_and_is_stopped_by_walls():
    env = gym.make("PointMassLinear-v0", max_episode_steps=1000)
    env.reset(seed=0, options={"task": [0, 1, 0, 0]})
    right, still = np.array([0, 1], dtype=np.float32), np.zeros(2, dtype=np.float32)
    speeds = [env.step(right)[1] for _ in range(8)]
    assert_allclose(speeds[:3], [0.2, 0.36, 0.488], rtol=1e-4)
    assert np.all(np.diff(speeds) > 0)
    assert_allclose(env.step(still)[1], 0.8 * speeds[-1], rtol=1e-3)
    for _ in range(30):
        obs, reward, *_ = env.step(right)
    assert_allclose(reward, 0, atol=0.1)
    assert obs["observation"][1] > 0.98 and env.observation_space["observation"].contains(obs["observation"])


def test_the_point_masss_weights_are_on_velocity_distance_and_effort():
    _, action, reward, info, obs = stepped("PointMassLinear-v0")
    expected = [*obs[2:], np.hypot(*obs[:2]), np.sum(action**2)]
    assert_allclose(info["task_features"], expected, rtol=1e-5)
    assert_allclose(reward, np.dot(expected, info["task"]), rtol=1e-5)


def test_each_corner_is_reached_by_walking_to_it_and_drawn(tmp_path):
    env = gym.make("PointCorners-v0", render_mode="rgb_array")
    family = env.get_wrapper_attr("task_family")
    paths, frames = [], []
    for task, corner in zip(family.tasks, family.parameters, strict=True):
        obs, _ = env.reset(seed=0, options={"task": task})
        frames.append(env.render())
        path, terminated = [obs["observation"]], False
        while not terminated:
            obs, reward, terminated, truncated, info = env.step(np.clip(corner - path[-1], -1, 1))
            path.append(obs["observation"])
            assert not truncated
        assert info["is_success"] and reward == 0
        paths.append(np.array(path))
    assert len({frame.tobytes() for frame in frames}) == 4
    env.get_wrapper_attr("plot_trajectories")(tmp_path / "corners.png", paths, family.tasks, [True] * 4)
    assert (tmp_path / "corners.png").read_bytes().startswith(b"\x89PNG")
