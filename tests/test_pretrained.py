"""Policies that come with the package: what is written is read again, without pickle, and they do what their card says."""

import json
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from numpy.testing import assert_allclose, assert_array_equal

import hipi_sb3
from hipi_sb3 import HIPISAC
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks
from hipi_sb3.shipped.policies import FOLDER, PretrainedPolicy, pretrained_env_ids

require("rl_zoo3")

from zoo import enjoy, export

ROOT = Path(__file__).parents[1]
ENV_IDS = pretrained_env_ids()
#: Extras that an environment needs.
EXTRAS = {"SawyerReach-v0": "metaworld", "WalkerLinear-v0": "dm_control"}


class StandsStill:
    """A policy that does nothing."""

    def __init__(self, env):
        self.action = np.zeros((1, *env.action_space.shape), np.float32)

    def predict(self, *_, **__):
        return self.action, None


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


@pytest.mark.parametrize("name", ["vecnormalize.json", "vecnormalize.pkl"])
def test_a_run_with_normalised_observations_is_refused(name, tmp_path, capsys):
    (tmp_path / "task_evaluation.json").write_text(json.dumps({"env": "A-v0"}))
    (tmp_path / "A-v0").mkdir()
    (tmp_path / "A-v0" / name).touch()
    with pytest.raises(SystemExit):
        export.main([str(tmp_path), "--out", str(tmp_path)])
    assert "Train without normalize" in capsys.readouterr().err


def test_a_run_is_exported_with_its_command_and_result(main, tmp_path, monkeypatch, capsys):
    main("--env", "PointFixedGoals-v0", "-n", 60, "--no-picture", "-params", "learning_starts:20")
    run = tmp_path / "logs/hipi_sac/PointFixedGoals-v0_1"
    export.main([str(run), "--out", str(tmp_path / "out")])
    policy = hipi_sb3.pretrained("PointFixedGoals-v0", tmp_path / "out")
    assert policy.card["command"].startswith("python zoo/train.py --env PointFixedGoals-v0 -n 60")
    assert policy.card["num_timesteps"] == 60 and policy.card["result"]["n_tasks"] == 32
    assert policy.card["versions"]["hipi_sb3"] == hipi_sb3.__version__
    with pytest.raises(SystemExit):
        export.main([str(tmp_path)])
    # What is refused leaves what was there.
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(export, "MAX_BYTES", 100)
    with pytest.raises(SystemExit):
        export.main([str(run), "--out", str(tmp_path / "out")])
    assert "more than 100. Train smaller layers" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    evaluation = run / "task_evaluation.json"
    evaluation.write_text(json.dumps(json.loads(evaluation.read_text()) | {"algo": "hipi_td3"}))
    with pytest.raises(SystemExit):
        export.main([str(run), "--out", str(tmp_path / "out")])
    assert "is of hipi_td3; only policies of hipi_sac and sac" in capsys.readouterr().err


def test_there_are_policies():
    assert set(ENV_IDS) >= {"PointFixedGoals-v0", "PointFourRooms-v0", "SawyerReach-v0", "WalkerLinear-v0"}


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_page_shows_each_policy_with_its_result(env_id):
    page = (ROOT / "docs" / "pretrained.md").read_text()
    film = ROOT / "docs" / "pretrained" / f"{env_id}.gif"
    assert film.stat().st_size < 300_000
    row = next(line for line in page.splitlines() if line.startswith(f"| `{env_id}`"))
    card = json.loads((FOLDER / f"{env_id}.json").read_text())
    result = card["result"]
    name, digits = ("mean_return", 1) if result["success_rate"] is None else ("success_rate", 2)
    low, high = result[f"{name}_interval"]
    assert f"{result[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" in row and film.name in row
    assert f"{card['num_timesteps']:,}".replace(",", " ") in row and f"{result['n_tasks']} " in row
    assert env_id in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_policy_is_small_and_says_where_it_comes_from(env_id):
    assert (FOLDER / f"{env_id}.npz").stat().st_size < 300_000
    card = json.loads((FOLDER / f"{env_id}.json").read_text())
    assert card["env"] == env_id and card["command"].startswith("python zoo/train.py") and env_id in card["command"]
    assert card["commit"] and "dirty" not in card["commit"]
    assert {"result", "versions", "machine", "date"} <= card.keys()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_policy_does_what_its_card_says(env_id):
    if env_id in EXTRAS:
        require(EXTRAS[env_id])
    policy = hipi_sb3.pretrained(env_id)
    assert isinstance(policy, PretrainedPolicy)
    env = gym.make(env_id)
    result = policy.card["result"]
    # The tasks that train.py evaluates at the end.
    tasks = evaluation_tasks(env.get_wrapper_attr("task_family"), result["n_tasks"], enjoy.TASK_SEED)
    evaluation = evaluate_tasks(policy, env, tasks, seed=enjoy.TASK_SEED)
    if result["success_rate"] is not None:
        # The last evaluation of train.py comes before its last gradient step: two tasks may come out otherwise.
        assert_allclose(evaluation.success_rate, result["success_rate"], atol=2 / len(tasks))
        assert result["success_rate"] > 0.8
        return
    low, high = result["mean_return_interval"]
    assert low <= evaluation.mean_return <= high
    assert evaluate_tasks(StandsStill(env), env, tasks, seed=enjoy.TASK_SEED).mean_return < low


def test_enjoy_shows_a_policy_without_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "tasks.png"
    enjoy.main(["--pretrained", "--env", "PointFixedGoals-v0", "--tasks", "all", "--no-render", "--plot", str(picture)])
    out = capsys.readouterr().out
    assert "trained at" in out and "python zoo/train.py" in out and "mean of 32 tasks" in out
    assert picture.is_file()
    with pytest.raises(SystemExit) as exit_info:
        enjoy.main(["--pretrained", "--env", "PointCorners-v0", "--no-render"])
    assert exit_info.value.code == 2 and "Unknown pretrained policy" in capsys.readouterr().err
