"""Policies that come with the package: what is written is read again, without pickle, and they do what their card says."""

import zipfile

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from numpy.testing import assert_array_equal

import hipi_sb3
from hipi_sb3 import HIPISAC

require("rl_zoo3")

from zoo import export


@pytest.fixture(scope="module")
def model():
    policy_kwargs = {"net_arch": [16, 8]}
    return HIPISAC("MultiInputPolicy", gym.make("PointFixedGoals-v0"), policy_kwargs=policy_kwargs, seed=0)


@pytest.fixture
def written(model, tmp_path):
    policy = export.policy_of(model)
    policy.card = {"command": "a command", "commit": "abc"}
    policy.write(tmp_path, "PointFixedGoals-v0")
    return tmp_path


def test_what_is_written_acts_as_the_learner_does(model, written):
    policy = hipi_sb3.pretrained("PointFixedGoals-v0", written)
    assert policy.card["command"] == "a command" and policy.card["policy"]["net_arch"] == [16, 8]
    env = gym.make("PointFixedGoals-v0")
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        obs["observation"] += seed
        assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_no_pickle_is_in_the_files(written):
    with zipfile.ZipFile(written / "PointFixedGoals-v0.npz") as file:
        assert len(file.namelist()) == 8 and all(name.endswith(".npy") for name in file.namelist())
    with np.load(written / "PointFixedGoals-v0.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.float32 for name in arrays.files)


def test_files_that_do_not_belong_together_are_refused(written):
    path = written / "PointFixedGoals-v0.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"checksums differ.*zoo/export.py"):
        hipi_sb3.pretrained("PointFixedGoals-v0", written)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        hipi_sb3.pretrained("PointFixedGoals-v0", written)


def test_an_environment_without_a_policy_is_answered_with_the_nearest_one(written):
    with pytest.raises(ValueError, match=r"'PointFixedGoal-v0'\. Did you mean 'PointFixedGoals-v0'"):
        hipi_sb3.pretrained("PointFixedGoal-v0", written)


def test_an_actor_with_more_than_its_layers_is_refused():
    model = HIPISAC("MultiInputPolicy", gym.make("PointFixedGoals-v0"), use_sde=True)
    with pytest.raises(export.ConfigurationError, match="without gSDE"):
        export.policy_of(model)


def test_a_run_is_exported_with_its_command_and_result(main, tmp_path):
    main("--env", "PointFixedGoals-v0", "-n", 60, "--no-picture", "-params", "learning_starts:20")
    run = tmp_path / "logs/hipi_sac/PointFixedGoals-v0_1"
    export.main([str(run), "--out", str(tmp_path / "out")])
    policy = hipi_sb3.pretrained("PointFixedGoals-v0", tmp_path / "out")
    assert policy.card["command"].startswith("python zoo/train.py --env PointFixedGoals-v0 -n 60")
    assert policy.card["num_timesteps"] == 60 and policy.card["result"]["n_tasks"] == 32
    assert policy.card["versions"]["hipi_sb3"] == hipi_sb3.__version__
    with pytest.raises(SystemExit):
        export.main([str(tmp_path)])
