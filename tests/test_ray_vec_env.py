"""RayVecEnv on a local Ray: as DummyVecEnv, and after an actor was killed."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import require
from line_walk import make_line_walk
from numpy.testing import assert_array_equal
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

ray = require("ray")

from hipi_sb3 import HIPISAC
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks
from hipi_sb3.ray_vec_env import EnvActor, RayVecEnv
from hipi_sb3.vec_env import PointVecEnv

ROOT = Path(__file__).parent.parent
FEW = {"learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """Ray with two processors, whose workers import what the tests import."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    yield
    ray.shutdown()


def make_rooms():
    import hipi_sb3  # noqa: F401  registers it, in the actor too

    return Monitor(gym.make("PointFourRooms-v0"))


def make_points(num_envs=2):
    import hipi_sb3  # noqa: F401

    return PointVecEnv(gym.make_vec("PointFourRooms-v0", num_envs=num_envs, vectorization_mode="vector_entry_point"))


@pytest.fixture
def make(request):
    """RayVecEnv, closed at the end."""
    made = []

    def call(*args, **kwargs):
        made.append(RayVecEnv(*args, **kwargs))
        return made[-1]

    yield call
    for env in made:
        env.close()


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in ("episode", "t"):  # seconds
                assert_same(one[key], other[key])
    else:
        assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


@pytest.mark.parametrize(("make_env", "envs_per_actor"), [(make_rooms, 3), (make_line_walk, 2)])
def test_it_gives_what_a_dummy_vec_env_gives(make, make_env, envs_per_actor):
    ours, dummy = make([make_env] * 4, envs_per_actor=envs_per_actor), DummyVecEnv([make_env] * 4)
    assert ours.observation_space == dummy.observation_space and ours.num_envs == 4
    for env in (ours, dummy):
        env.seed(7)
        env.action_space.seed(0)
    assert_same(ours.reset(), dummy.reset())
    n_ended = 0
    for _ in range(120):
        actions = np.stack([dummy.action_space.sample() for _ in range(4)])
        (obs, rewards, dones, infos), (dummy_obs, dummy_rewards, dummy_dones, dummy_infos) = ours.step(actions), dummy.step(
            actions
        )
        assert_same(obs, dummy_obs)
        assert_same(rewards, dummy_rewards)
        assert_same(dones, dummy_dones)
        for info, dummy_info in zip(infos, dummy_infos, strict=True):
            assert_same(info, dummy_info)
        for info, dummy_info in zip(ours.reset_infos, dummy.reset_infos, strict=True):
            assert_same(info, dummy_info)
        n_ended += dones.sum()
    assert n_ended > 0


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor])
def test_seeds_and_options_reach_vec_envs_that_are_wrapped(wrap):
    actor = EnvActor([lambda: wrap(make_points(2))])
    (first, infos), (again, _) = actor.reset([1, 2], [{}, {}]), actor.reset([1, 2], [{}, {}])
    assert_same(first, again)
    assert all("task" in info for info in infos)
    task = np.array([30.0, 30.0], dtype=np.float32)
    asked, _ = actor.reset([1, 2], [{"task": task}, {}])
    assert_array_equal(asked["task"][0], task)


def trained(env):
    return HIPISAC("MultiInputPolicy", env, **FEW).learn(160)


def test_training_in_four_rooms_is_that_of_a_dummy_vec_env(make):
    ours = trained(make([make_rooms] * 4, envs_per_actor=2))
    dummy = trained(DummyVecEnv([make_rooms] * 4))
    assert dummy._n_updates > 10
    for name, value in dummy.policy.state_dict().items():
        assert th.equal(value, ours.policy.state_dict()[name]), name
    assert_array_equal(ours.replay_buffer.rewards, dummy.replay_buffer.rewards)


def test_evaluation_on_tasks_is_that_of_a_dummy_vec_env(make):
    env = DummyVecEnv([make_rooms] * 4)
    model = HIPISAC("MultiInputPolicy", env, **FEW)
    tasks = evaluation_tasks(env.get_attr("task_family")[0], 6, seed=1)
    results = [evaluate_tasks(model, each, tasks, seed=3) for each in (make([make_rooms] * 4, envs_per_actor=2), env)]
    assert results[0].to_dict() == results[1].to_dict()


def test_actors_of_many_points(make):
    ours = make([make_points, make_points])
    assert ours.num_envs == 4 and ours.slices == [slice(0, 2), slice(2, 4)]
    dummy = DummyVecEnv([make_rooms] * 4)
    for env in (ours, dummy):
        env.seed(3)
    assert_same(ours.reset(), dummy.reset())
    trained(ours)


def test_attributes_go_to_the_environments_that_were_asked_for(make):
    env = make([make_rooms] * 4, envs_per_actor=2)
    env.reset()
    task = np.array([2.5, 2.5], dtype=np.float32)
    env.env_method("fix_task", task, indices=[3, 0])
    env.set_attr("label", "chosen", indices=2)
    env.reset()
    shown = env.get_attr("task")
    assert_array_equal(shown[0], task)
    assert_array_equal(shown[3], task)
    assert not np.array_equal(shown[1], task)
    assert env.get_attr("label", indices=[2]) == ["chosen"]
    assert env.env_is_wrapped(Monitor, indices=[1, 3]) == [True, True] and not env.has_attr("no_such_attribute")
    assert [np.array_equal(each, task) for each in env.get_attr("task", indices=[1, 3, 0])] == [False, True, True]


def kill(env, index):
    actor = env.actors[index]
    ray.kill(actor, no_restart=True)
    # The order takes a moment to reach it: until then it still answers.
    for _ in range(1000):
        try:
            ray.get(actor.describe.remote())
        except ray.exceptions.RayActorError:
            return
    raise AssertionError("the actor does not die")


def test_a_killed_actor_is_replaced_and_its_episodes_are_truncated(make, caplog):
    env = make([make_rooms] * 4, envs_per_actor=2)
    env.seed(0)
    env.reset()
    task = np.array([2.5, 2.5], dtype=np.float32)
    env.env_method("fix_task", task, indices=2)
    actions = np.zeros((4, 2), dtype=np.float32)
    before = env.step(actions)
    kill(env, 1)
    obs, rewards, dones, infos = env.step(actions)
    assert dones.tolist() == [False, False, True, True]
    for i in (2, 3):
        assert infos[i]["TimeLimit.truncated"] and infos[i]["actor_died"] and "episode" not in infos[i]
        assert_same(infos[i]["terminal_observation"], {key: value[i] for key, value in before[0].items()})
        assert rewards[i] == before[1][i]
        assert_array_equal(infos[i]["task_features"], before[3][i]["task_features"])
    assert env.n_restarts == 1 and "environments 2 to 3 died and is replaced" in caplog.text
    assert_array_equal(obs["task"][2], task)  # fixed in the new actor too
    assert not env.step(actions)[2].any()


def test_a_death_that_is_noticed_between_steps_ends_the_episodes_too(make):
    env = make([make_rooms] * 4, envs_per_actor=2)
    env.seed(0)
    env.reset()
    actions = np.zeros((4, 2), dtype=np.float32)
    asked = {"get_attr": ["walls"], "has_attr": ["walls"], "env_method": ["render"], "get_images": []}
    for n_deaths, (ask, arguments) in enumerate(asked.items(), start=1):
        before = env.step(actions)
        assert not before[2].any()
        kill(env, 1)
        getattr(env, ask)(*arguments)
        assert env.n_restarts == n_deaths, ask
        _, rewards, dones, infos = env.step(actions)
        assert dones.tolist() == [False, False, True, True] and env.n_restarts == n_deaths, ask
        for i in (2, 3):
            assert infos[i]["TimeLimit.truncated"] and infos[i]["actor_died"] and rewards[i] == before[1][i]
            assert_same(infos[i]["terminal_observation"], {key: value[i] for key, value in before[0].items()})
    assert not env.step(actions)[2].any()
    kill(env, 0)
    env.has_attr("walls")
    env.reset()  # begins new episodes anyway
    assert not env.step(actions)[2].any()


def test_an_actor_killed_before_its_first_step_loses_a_step_for_the_same_task(make):
    env = make([make_rooms] * 2)
    obs = env.reset()
    kill(env, 1)
    _, _, dones, infos = env.step(np.zeros((2, 2), dtype=np.float32))
    assert dones.tolist() == [False, True]
    assert_array_equal(infos[1]["terminal_observation"]["task"], obs["task"][1])


def test_an_actor_killed_between_episodes_changes_nothing(make):
    env, dummy = make([make_rooms] * 2), DummyVecEnv([make_rooms] * 2)
    kill(env, 0)
    for each in (env, dummy):
        each.seed(5)
    assert_same(env.reset(), dummy.reset())
    assert env.n_restarts == 1


def test_training_goes_on_when_actors_are_killed(make):
    env = make([make_rooms] * 4, envs_per_actor=2)
    model = HIPISAC("MultiInputPolicy", env, **FEW).learn(80)
    for index in (0, 1):
        kill(env, index)
        model.learn(80, reset_num_timesteps=False)
    assert env.n_restarts == 2 and model.num_timesteps == 240 and np.isfinite(model.replay_buffer.rewards).all()


def test_too_many_deaths_are_an_error(make):
    env = make([make_rooms] * 2, max_restarts=0)
    env.reset()
    kill(env, 0)
    with pytest.raises(RuntimeError, match="max_restarts=0"):
        env.step(np.zeros((2, 2), dtype=np.float32))


class Broken(gym.Wrapper):
    def step(self, action):
        raise ZeroDivisionError("the environment's own mistake")


def make_broken():
    return Broken(make_rooms())


def test_an_exception_of_an_environment_is_no_death(make):
    env = make([make_broken])
    env.reset()
    with pytest.raises(ZeroDivisionError, match="own mistake"):
        env.step(np.zeros((1, 2), dtype=np.float32))
    assert env.n_restarts == 0


@pytest.mark.parametrize(
    "env_fns, options, message",
    [
        ([], {}, "env_fns is empty"),
        ([make_rooms], {"envs_per_actor": 0}, "envs_per_actor must be at least 1"),
        ([make_rooms] * 3, {}, "3 actors with num_cpus=1 each need 3 processors, but the Ray cluster has 2"),
        ([make_points] * 2, {"envs_per_actor": 2}, "Use envs_per_actor=1"),
    ],
)
def test_what_cannot_be_is_refused(env_fns, options, message, make):
    with pytest.raises(Exception, match=message):
        make(env_fns, **options)


def test_without_ray_running_it_starts_its_own_and_ends_it():
    program = (
        "import ray; from hipi_sb3.ray_vec_env import RayVecEnv; from test_ray_vec_env import make_rooms\n"
        "env = RayVecEnv([make_rooms] * 3); print(env.reset()['task'].shape); env.close(); print(ray.is_initialized())"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths}
    environment.pop("RAY_ADDRESS", None)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment)
    assert result.stdout.split("\n")[:2] == ["(3, 2)", "False"], result.stderr
