"""HIPI-BC in the launcher."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import require

require("rl_zoo3")

import optuna
from rl_zoo3.utils import ALGOS

from hipi_sb3 import HIPIBC, HIPISAC, HIPIReplayBuffer, TrajectoryDataset
from zoo import plugin, train
from zoo.cloning import LauncherBC

plugin.register()

QUICK = ["-params", "learning_starts:50", "train_freq:50", "policy_kwargs:dict(net_arch=[16])", "n_candidate_tasks:8"]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run train.py in this process, and give what it printed."""
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    monkeypatch.setattr(LauncherBC, "dataset_path", None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> str:
        train.main(["--algo", "hipi_bc", "--env", "PointFourRooms-v0", "--eval-tasks", "2", *map(str, arguments)])
        captured = capsys.readouterr()
        sys.stderr.write(captured.err)  # for tests that look at it
        return captured.out

    return call


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Random walks in the four rooms."""
    env = gym.make("PointFourRooms-v0")
    observation_space: Any = env.observation_space
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 30, size=(120, 2)).astype(np.float32)
    TrajectoryDataset(
        env.get_wrapper_attr("task_family"),
        observation_space["observation"],
        env.action_space,
        positions,
        rng.uniform(-1, 1, size=(120, 2)).astype(np.float32),
        positions,
        np.full(6, 20),
    ).save(tmp_path / "data.npz")
    return tmp_path / "data.npz"


def test_the_launcher_collects_and_clones(main: Callable[..., str], tmp_path: Path) -> None:
    output = main("-n", 160, "--eval-freq", 100, "--seed", 1, "--relabel", "strategy=final", *QUICK)
    assert "hipi_bc on PointFourRooms-v0 after 200 steps, task by task:" in output  # whole rounds of 50
    run_folder = tmp_path / "logs/hipi_bc/PointFourRooms-v0_1"
    assert json.loads((run_folder / "task_evaluation.json").read_text())["algo"] == "hipi_bc"
    model = HIPIBC.load(run_folder / "PointFourRooms-v0.zip")
    assert type(model.labeler.strategy).__name__ == "FinalGoal"


def test_an_option_that_cloning_has_not_is_refused(main: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("-n", 50, "--relabel", "warmup_updates=5", *QUICK)
    assert "has no parameter 'warmup_updates'" in capsys.readouterr().err


def test_the_launcher_clones_a_data_set(main: Callable[..., str], dataset: Path, tmp_path: Path) -> None:
    output = main("-n", 30, "--eval-freq", 20, "--dataset", dataset, *QUICK)
    assert "hipi_bc on PointFourRooms-v0 after 30 steps, task by task:" in output
    with np.load(tmp_path / "logs/hipi_bc/PointFourRooms-v0_1/evaluations.npz") as file:
        assert file["timesteps"].tolist() == [20, 30]


def test_the_launcher_clones_a_data_set_of_a_goal_env(main: Callable[..., str], tmp_path: Path) -> None:
    gym.register_envs(require("gymnasium_robotics"))
    model = HIPISAC("MultiInputPolicy", gym.make("FetchReach-v4"), learning_starts=100, buffer_size=100, seed=0).learn(60)
    buffer = model.replay_buffer
    assert isinstance(buffer, HIPIReplayBuffer)
    TrajectoryDataset.from_buffer(buffer).save(tmp_path / "fetch.npz")
    fetch = ["--env", "FetchReach-v4", "--gym-packages", "gymnasium_robotics"]
    output = main(*fetch, "-n", 10, "--dataset", tmp_path / "fetch.npz", *QUICK)
    assert "hipi_bc on FetchReach-v4 after 10 steps, task by task:" in output


def test_cloning_shows_its_own_progress_bars(
    main: Callable[..., str], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("-n", 5, "--dataset", dataset, "-P", *QUICK)
    shown = capsys.readouterr().err
    assert "labelling: 100%" in shown and "cloning: 100%" in shown


def test_a_data_set_that_is_not_there_is_named(
    main: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (("missing.npz", "No such file"), ("missing-v0", "nor a local Minari data set")):
        with pytest.raises(SystemExit):
            main("-n", 5, "--dataset", tmp_path / name, *QUICK)
        shown = capsys.readouterr().err
        assert "train.py: error: " in shown and str(tmp_path / name) in shown and message in shown


def test_the_launcher_searches_on_a_data_set(main: Callable[..., str], dataset: Path) -> None:
    output = main("-n", 10, "--dataset", dataset, "-optimize", "--n-trials", 2, "--n-evaluations", 1, *QUICK)
    assert "Number of finished trials:  2" in output and "relabel_strategy" in output


def test_a_data_set_that_is_not_there_is_one_line(main: Callable[..., str], capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main("-n", 10, "--dataset", "nosuch.npz", *QUICK)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "nosuch.npz" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("logs/*/*"))


def test_a_data_set_is_for_cloning_only(main: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("--algo", "hipi_sac", "--dataset", "data.npz")
    assert "--dataset is for --algo hipi_bc, not for hipi_sac" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_sampled_builds_a_model(seed: int) -> None:
    env = gym.make("PointFourRooms-v0")
    algorithm = plugin.KEY_TO_ALGORITHM["hipi_bc"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    sampled = plugin.make_sampler(algorithm, env.get_wrapper_attr("task_family"))(trial, 2, 1, {})
    model = ALGOS["hipi_bc"]("MultiInputPolicy", env, buffer_size=100, device="cpu", **sampled)
    assert model.labeler.n_candidate_tasks == 2 ** trial.params["relabel_n_candidate_tasks_pow"]
    converted = plugin.make_converter(algorithm)(trial.params)
    assert converted == sampled
