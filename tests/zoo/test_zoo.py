"""The launcher, run as a user runs it, with few steps."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from conftest import require
from line_walk import GOALS, LineWalk, directions, make_line_walk
from numpy.testing import assert_allclose, assert_array_equal

require("rl_zoo3")

import optuna
import rl_zoo3.train
from rl_zoo3.utils import ALGOS
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

import hipi_sb3
from hipi_sb3 import CallableTasks, HIPIReplayBuffer, MultiTaskWrapper
from hipi_sb3.evaluation import evaluation_tasks
from zoo import enjoy, experiment, plugin
from zoo.checkpoints import checkpoints
from zoo.experiment import TaskExperimentManager, parse_relabel
from zoo.options import ALGORITHMS, RELABEL_OPTIONS, print_help
from zoo.suites import KEY_TO_SUITE, SUITE_TO_PACKAGE

ROOT = Path(__file__).parents[2]
YAML_FILES = sorted((ROOT / "hyperparams").glob("*.yml"))
QUICK = ["-params", "learning_starts:20", "policy_kwargs:dict(net_arch=[16])"]

plugin.register()


def run(script, *arguments, cwd, check=True):
    """Run a command of the launcher in another folder than the checkout's, which need not be on the path."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "zoo" / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture
def mistake(main, capsys, tmp_path):
    """Run train.py with a mistake: it exits with code 2, one line, and no run folder. Gives the line."""

    def call(*arguments, n_steps=50):
        with pytest.raises(SystemExit) as exit_info:
            main("-n", n_steps, *arguments)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("train.py: error: ") and error.count("\n") == 1, error
        assert not list(tmp_path.glob("logs/*/*"))
        return error

    return call


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training, from the command line: folder, what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--algo", "hipi_sac", "--env", "PointFourRooms-v0", "-n", 160, "--eval-freq", 100, "--eval-tasks", 3, "-P"]
    arguments += ["--checkpoint-freq", 60]
    return folder, run("train.py", *arguments, "--seed", 1, *QUICK, cwd=folder).stdout


def test_training_ends_with_a_table_and_the_path_of_the_picture(trained):
    folder, output = trained
    lines = [line.strip() for line in output.strip().splitlines()]
    table = lines[lines.index("hipi_sac on PointFourRooms-v0 after 160 steps, task by task:") + 2 :]
    assert table[0].split() == ["task", "return", "steps", "success"]
    assert table[6].startswith("mean of 3 tasks")
    picture = folder / lines[-1].split(": ")[1]
    assert picture == folder / "logs/hipi_sac/PointFourRooms-v0_1/trajectories.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_training_writes_every_evaluation_by_task(trained):
    run_folder = trained[0] / "logs/hipi_sac/PointFourRooms-v0_1"
    tasks = evaluation_tasks(gym.make("PointFourRooms-v0").get_wrapper_attr("task_family"), 3, seed=0)
    with np.load(run_folder / "evaluations.npz") as file:
        assert_array_equal(file["timesteps"], [100, 160])
        assert_array_equal(file["tasks"], tasks)
        assert file["results"].shape == file["successes"].shape == (2, 3)
        last = file["results"][-1]
    report = json.loads((run_folder / "task_evaluation.json").read_text())
    assert (report["algo"], report["env"], report["seed"], report["num_timesteps"]) == (
        "hipi_sac",
        "PointFourRooms-v0",
        1,
        160,
    )
    assert_allclose(np.ravel(report["returns"]), last)
    assert_allclose(report["mean_return"], last.mean())
    assert (run_folder / "best_model.zip").exists()


def test_enjoy_runs_the_given_tasks_and_draws_them(trained):
    folder, _ = trained
    arguments = ["--task", 20, 30, "--task", 5, 25, "--no-render", "--plot", "tasks.png"]
    output = run("enjoy.py", "--algo", "hipi_sac", "--env", "PointFourRooms-v0", *arguments, cwd=folder).stdout
    assert "\n20, 30 " in output and "\n5, 25 " in output and "mean of 2 tasks" in output
    assert output.strip().endswith("Trajectories to 2 tasks: tasks.png")
    assert (folder / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_enjoy_repeats_the_evaluation_of_the_training(trained, monkeypatch, capsys):
    folder, output = trained
    monkeypatch.chdir(folder)
    enjoy.main(["--no-render", "--eval-tasks", "3"])
    table = capsys.readouterr().out.strip().splitlines()[-9:]
    assert table[0].startswith("task") and "\n".join(table) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "20", "300"], "task [20.0, 300.0] is outside the task space"),
        (["--task", "20"], "a task has shape (2,), but [20.0] has shape (1,)"),
        (["--episodes", "0"], "enjoy.py: error: --episodes must be at least 1, not 0."),
        (["--eval-tasks", "-1"], "enjoy.py: error: --eval-tasks must be at least 1, not -1."),
        (
            ["--load-checkpoint", "7"],
            "no checkpoint after 7 steps in logs/hipi_sac/PointFourRooms-v0_1: there are some after ",
        ),
        (["--load-last-checkpoint", "--exp-id", "7"], "no checkpoint in logs/hipi_sac/PointFourRooms-v0_7: there are none."),
        (["--exp-id", "7"], "PointFourRooms-v0_7 folder was not found. Train one: python zoo/train.py"),
        (["--algo", "hipi_sca"], "unknown algorithm 'hipi_sca'. Did you mean 'hipi_sac'?"),
        (["--env", "PointFourRoms-v0"], "unknown environment 'PointFourRoms-v0'. Did you mean 'PointFourRooms-v0'?"),
    ],
)
def test_enjoy_answers_a_mistake_in_one_line(trained, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(trained[0])
    with pytest.raises(SystemExit) as exit_info:
        enjoy.main([*arguments, "--no-render"])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_an_environment_that_cannot_draw_is_trained_without_a_picture(main, tmp_path):
    arguments = ["--env", "HalfCheetahVelocity-v0", "-n", 60, "--eval-freq", -1, "--eval-tasks", 2, "--n-eval-envs", 2, *QUICK]
    output = main(*arguments)
    run_folder = tmp_path / "logs/hipi_sac/HalfCheetahVelocity-v0_1"
    assert output.strip().endswith("task_evaluation.json")
    assert not (run_folder / "trajectories.png").exists()
    with np.load(run_folder / "evaluations.npz") as file:
        assert_array_equal(file["timesteps"], [60])


def test_sac_is_the_baseline_with_the_buffer_of_stable_baselines3(main, tmp_path):
    output = main("--algo", "sac", "-n", 60, "--eval-tasks", 2, *QUICK)
    assert "sac on PointFourRooms-v0 after 60 steps, task by task:" in output
    config = read_config(tmp_path / "logs/sac/PointFourRooms-v0_1/PointFourRooms-v0")
    assert "replay_buffer_class" not in config and "replay_buffer_kwargs" not in config


def test_a_baseline_is_one_option_through_the_same_buffer(main, tmp_path):
    main("--algo", "sac", "-n", 60, "--eval-tasks", 2, *QUICK, "--relabel", "strategy=none")
    config = read_config(tmp_path / "logs/sac/PointFourRooms-v0_1/PointFourRooms-v0")
    assert config["replay_buffer_class"] == "HIPIReplayBuffer"
    assert config["replay_buffer_kwargs"] == {"strategy": "none"}


def test_hers_arguments_in_the_yaml_file_are_replaced_one_by_one_too(main, tmp_path):
    path = tmp_path / "her.yml"
    her = "dict(goal_selection_strategy='final', n_sampled_goal=4, copy_info_dict=False)"
    path.write_text(
        "default:\n  n_timesteps: 40\n  policy: MultiInputPolicy\n  learning_starts: 20\n"
        f"  replay_buffer_class: HerReplayBuffer\n  replay_buffer_kwargs: {her}\n"
    )
    few = ["--algo", "sac", "-conf", path, "--eval-tasks", 2, "--no-picture"]
    for number, (given, expected) in enumerate(
        [
            (["strategy=future"], {"strategy": "future", "relabel_prob": 0.8}),
            (["relabel_prob=0.5", "n_steps=2"], {"strategy": "final", "relabel_prob": 0.5, "n_steps": 2}),
        ]
    ):
        main(*few, "--relabel", *given)
        config = read_config(tmp_path / f"logs/sac/PointFourRooms-v0_{number + 1}/PointFourRooms-v0")
        assert config["replay_buffer_class"] == "HIPIReplayBuffer"
        assert config["replay_buffer_kwargs"] == {"copy_info_dict": False, **expected}


def read_config(folder):
    return dict(yaml.load((folder / "config.yml").read_text(), Loader=yaml.UnsafeLoader))


@pytest.mark.parametrize("given", ["{strategy: map, relabel_prob: 0.3}", "dict(strategy='map', relabel_prob=0.3)"])
def test_relabel_replaces_single_options_of_the_yaml_file(main, tmp_path, given):
    path = tmp_path / "mine.yml"
    path.write_text(
        "default:\n  n_timesteps: 60\n  policy: MultiInputPolicy\n  learning_starts: 20\n"
        f"  replay_buffer_class: hipi_sb3.HIPIReplayBuffer\n  replay_buffer_kwargs: {given}\n"
    )
    main("--algo", "sac", "-conf", path, "--eval-tasks", 2, "--relabel", "relabel_prob=0.7", "score=q")
    config = read_config(tmp_path / "logs/sac/PointFourRooms-v0_1/PointFourRooms-v0")
    assert config["replay_buffer_kwargs"] == {"strategy": "map", "relabel_prob": 0.7, "score": "q"}


def test_relabel_options_have_their_types():
    options = parse_relabel(
        [
            "strategy=none",
            "relabel_prob=0.5",
            "temperature=ess:8",
            "candidates={batch: 0.5, achieved: 0.5}",
            "n_candidate_tasks=16",
        ]
    )
    assert options == {
        "strategy": "none",
        "relabel_prob": 0.5,
        "temperature": "ess:8",
        "candidates": {"batch": 0.5, "achieved": 0.5},
        "n_candidate_tasks": 16,
    }
    assert parse_relabel(["candidates=None", "temperature=1e-3"]) == {"candidates": None, "temperature": 1e-3}


def test_normalised_environments_are_evaluated_with_their_statistics(main, tmp_path, monkeypatch, capsys):
    output = main("-n", 60, "--eval-tasks", 2, *QUICK, "normalize:True", "n_envs:2", "--seed", 0)
    returns = json.loads((tmp_path / "logs/hipi_sac/PointFourRooms-v0_1/task_evaluation.json").read_text())["returns"]
    assert_allclose(returns, -75.0)
    enjoy.main(["--no-render", "--eval-tasks", "2"])
    assert capsys.readouterr().out.strip().splitlines()[-1] in output


def test_a_checkpoint_is_looked_at_with_its_normalisation(main, tmp_path, capsys):
    few = ["--eval-tasks", 2, "--checkpoint-freq", 40, "--eval-freq", 75, "-n", 160, "--no-picture", "--seed", 0]
    main(*few, *QUICK, "normalize:True")
    run_folder = tmp_path / "logs/hipi_sac/PointFourRooms-v0_1"
    steps = [path.name for path in checkpoints(run_folder / "checkpoints")]
    assert steps == ["75", "150"]
    args = enjoy.make_parser().parse_args(["--algo", "hipi_sac", "--env", "PointFourRooms-v0"])
    for folder in (run_folder, run_folder / "checkpoints/75"):
        assert enjoy.make_env(args, str(run_folder), False, folder).clip_obs == np.inf  # as it was trained
    (run_folder / "PointFourRooms-v0.zip").unlink()  # as after kill -9
    (run_folder / "PointFourRooms-v0/vecnormalize.json").unlink()
    tables = []
    for arguments in (["--load-checkpoint", "75"], ["--load-checkpoint", "150"], ["--load-last-checkpoint"]):
        enjoy.main(["--no-render", "--eval-tasks", "2", *arguments])
        output = capsys.readouterr().out
        assert f"Loading logs/hipi_sac/PointFourRooms-v0_1/checkpoints/{arguments[1] if arguments[1:] else 150}/" in output
        tables.append(output.splitlines()[-5:])
    assert tables[1] == tables[2]


def test_an_environment_without_tasks_is_trained_as_rl_zoo3_does(main, tmp_path, capsys):
    output = main("--algo", "sac", "--env", "Pendulum-v1", "-n", 60, *QUICK, "policy:'MlpPolicy'", "--eval-freq", 50)
    assert "task by task" not in output
    assert (tmp_path / "logs/sac/Pendulum-v1_1/best_model.zip").exists()
    with pytest.raises(SystemExit):
        enjoy.main(["--algo", "sac", "--env", "Pendulum-v1", "--no-render"])
    assert "Pendulum-v1 has no tasks: it has no task family, and is no GoalEnv." in capsys.readouterr().err
    path = tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip"  # as that message says
    assert SAC.load(path, custom_objects=hipi_sb3.saved_models.plain_objects(path)).num_timesteps == 60


def test_a_goal_env_is_evaluated_on_the_same_goals_every_time_and_can_be_looked_at(main, tmp_path, capsys):
    require("gymnasium_robotics")
    env = ["--env", "FetchReach-v4", "--gym-packages", "gymnasium_robotics", "--eval-tasks", "4"]
    output = main(*env, "-n", 60, "--eval-freq", 50, "-params", "learning_starts:100", "--seed", 0)
    assert "hipi_sac on FetchReach-v4 after 60 steps, task by task:" in output
    run_folder = tmp_path / "logs/hipi_sac/FetchReach-v4_1"
    report = json.loads((run_folder / "task_evaluation.json").read_text())
    with np.load(run_folder / "evaluations.npz") as file:
        assert_array_equal(file["timesteps"], [50, 60])
        assert_allclose(report["tasks"], file["tasks"], rtol=1e-5)
        assert_array_equal(np.ravel(report["returns"]), file["results"][-1])
    enjoy.main([*env, "--no-render"])
    table = capsys.readouterr().out.strip().splitlines()[-10:]
    assert table[0].startswith("task") and "\n".join(table) in output
    for arguments in (["--tasks", "grid"], ["--task", "1", "2", "3"], ["--interactive"]):
        with pytest.raises(SystemExit):
            enjoy.main([*env, "--no-render", *arguments])
        assert "FetchReach-v4 draws its goals itself, and none can be chosen" in capsys.readouterr().err


# -- searching --------------------------------------------------------------------------------------------------------


def test_a_search_finishes_its_trials_on_fixed_tasks(tmp_path):
    arguments = ["-optimize", "-n", 60, "--n-trials", 2, "--eval-tasks", 2, "--n-evaluations", 1, "--seed", 5]
    # Once in some hundred trials a policy that has learned nothing comes across its goal, and the next one would be pruned.
    arguments += ["--storage", "study.log", "--study-name", "s", "--n-startup-trials", 1, "--pruner", "none"]
    output = run("train.py", *arguments, "-params", "learning_starts:50", cwd=tmp_path).stdout
    assert "Number of finished trials:  2" in output
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert all(-75.0 <= trial.value <= 0.0 for trial in trials)
    assert {"relabel_strategy", "relabel_temperature", "learning_rate", "tau"} <= set(trials[0].params)
    assert list(tmp_path.glob("logs/hipi_sac/report_*.csv"))
    # Nothing that could be taken for a trained run.
    assert not list(tmp_path.glob("logs/hipi_sac/PointFourRooms*"))


def distance(features, tasks):
    return -np.abs(features[..., 0] - tasks[..., 0])


def position(env, obs, action, next_obs, reward, info):
    return next_obs[:1]


CONTINUOUS = CallableTasks(GOALS.task_space, 1, position, distance)


@pytest.mark.parametrize("family", [GOALS, directions(), CONTINUOUS], ids=["goals", "finite", "continuous"])
def test_every_sampled_configuration_can_be_built_and_retrained(family):
    algorithm = plugin.KEY_TO_ALGORITHM["hipi_sac"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    env = DummyVecEnv([lambda: make_line_walk(family)])
    seen = set()
    for _ in range(40):
        trial = study.ask()
        given = {"replay_buffer_kwargs": {"warmup_updates": 3, "relabel_prob": 0.0}}
        args = {"using_her_replay_buffer": False, "her_kwargs": given["replay_buffer_kwargs"]}
        sampled = plugin.make_sampler(algorithm, family)(trial, 1, 1, args)
        options = sampled["replay_buffer_kwargs"]
        assert options["warmup_updates"] == 3 and options["relabel_prob"] >= 0.2
        seen.add(options["strategy"])
        ALGOS["hipi_sac"]("MultiInputPolicy", env, buffer_size=10, **{**sampled, "policy_kwargs": {"net_arch": [4]}})
        converted = plugin.make_converter(algorithm)(trial.params)
        assert converted["replay_buffer_kwargs"] == {k: v for k, v in options.items() if k != "warmup_updates"}
        assert {k: converted[k] for k in ("gamma", "batch_size", "tau")} == {
            k: sampled[k] for k in ("gamma", "batch_size", "tau")
        }
    assert seen == ({"hipi", "map", "random", "final", "future"} if family is GOALS else {"hipi", "map", "random"})


class BreaksLater(gym.Wrapper):
    """Its observation is infinite from the 30th step on: what rl_zoo3 would prune in every trial."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, *rest = super().step(action)
        return (np.full_like(obs, np.nan) if self.steps >= 30 else obs), *rest


def make_breaks_later():
    return MultiTaskWrapper(BreaksLater(gym.wrappers.TimeLimit(LineWalk(), 8)), GOALS)


@pytest.fixture
def breaks_later():
    gym.register("BreaksLater-v0", make_breaks_later, disable_env_checker=True)
    yield "BreaksLater-v0"
    del gym.registry["BreaksLater-v0"]


def test_what_is_wrong_with_the_environment_stops_a_search_before_its_first_trial(mistake, breaks_later, monkeypatch):
    monkeypatch.setattr(TaskExperimentManager, "objective", lambda self, trial: pytest.fail("a trial was started"))
    error = mistake("-optimize", "--env", breaks_later, "--n-trials", 1)
    assert "features at step" in error and "nan" in error


def test_a_wrong_option_stops_a_search_before_its_first_trial(mistake, monkeypatch):
    monkeypatch.setattr(TaskExperimentManager, "objective", lambda self, trial: pytest.fail("a trial was started"))
    assert "Did you mean 'batch'?" in mistake("-optimize", "--n-trials", 1, "--relabel", "candidates=bach")


def test_a_search_whose_trials_were_all_pruned_says_so(mistake, monkeypatch):
    def prune(self, trial):
        raise optuna.exceptions.TrialPruned()

    monkeypatch.setattr(TaskExperimentManager, "objective", prune)
    arguments = ["-optimize", "--n-trials", 2, "-params", "batch_size:8"]
    assert "no trial was finished: all were pruned" in mistake(*arguments)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(tmp_path):
    result = run("train.py", "--env", "PointFourRoms-v0", cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr == "train.py: error: unknown environment 'PointFourRoms-v0'. Did you mean 'PointFourRooms-v0'?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "hipi_sca"], "unknown algorithm 'hipi_sca'. Did you mean 'hipi_sac'?"),
        (["--env", "HalfChetahVelocity-v0"], "Did you mean 'HalfCheetahVelocity-v0'?"),
        (["--relabel", "stratgy=none"], "unknown --relabel option 'stratgy'. Did you mean 'strategy'?"),
        (["--relabel", "strategy"], "--relabel takes name=value, such as strategy=none, not 'strategy'."),
        (["--relabel", "strategy=futur"], "'future'"),
        (["--relabel", "score=tdd"], "'td'"),
        (["--relabel", "relabel_prob=1.5"], "relabel_prob"),
        (["--relabel", "candidates={batch: 0.5"], "cannot read '{batch: 0.5'"),
        (["--relabel", "candidates=all"], "needs a finite family"),
        (["--env", "HalfCheetahVelocity-v0", "--relabel", "strategy=future"], "Use 'hipi' or 'random'"),
        (["--env", "Pendulum-v1"], "found no task family in the environment"),
        (["-params", "learnin_rate:0.1"], "has no parameter 'learnin_rate'. Did you mean 'learning_rate'?"),
        (["-params", "learning_rate=0.1"], "Write options as key:value"),
        (["-conf", "missing.yml"], "No such file or directory: 'missing.yml'"),
        (["--eval-tasks", "0"], "--eval-tasks must be at least 1, not 0."),
        (["--eval-episodes", "0"], "--eval-episodes must be at least 1, not 0."),
        (["--n-eval-envs", "0"], "--n-eval-envs must be at least 1, not 0."),
        (["-optimize", "--n-trials", "0"], "--n-trials must be at least 1, not 0."),
        (["-optimize", "--max-total-trials", "0"], "--max-total-trials must be at least 1, not 0."),
        (["-optimize", "--n-evaluations", "0"], "--n-evaluations must be at least 1, not 0."),
        (["-n", "-5"], "-n must be at least 1 step, not -5. Without it the YAML file says how many."),
        (["-n", "0"], "-n must be at least 1 step, not 0."),
        (["--relabel", "n_steps=five"], "n_steps must be a whole number, at least 1, not 'five'."),
        (["--checkpoint-freq", "-5"], "--checkpoint-freq must not be negative (0: no checkpoints), but it is -5."),
        (["--gym-packages", "no_such_module"], "No module named 'no_such_module'"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(mistake, arguments, message):
    assert message in mistake(*arguments)


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("wandb", ["--track"], "please install W&B via `pip install wandb`"),
        ("tensorboard", ["-tb", "tb"], "TensorBoard is not installed: pip install tensorboard"),
    ],
)
def test_a_log_whose_package_is_missing_is_one_line(mistake, monkeypatch, package, arguments, message):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "tensorboard":
        monkeypatch.setattr(experiment, "SummaryWriter", None)
    assert message in mistake(*arguments)


def test_a_run_is_tracked_without_a_network(tmp_path, monkeypatch):
    require("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["-n", 60, "--eval-tasks", 2, "--track", "--wandb-project-name", "p", *QUICK]
    run("train.py", *arguments, cwd=tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert list(tmp_path.glob("runs/PointFourRooms-v0__hipi_sac__*/PointFourRooms-v0/SAC_1/events.*"))


def test_tracking_without_an_account_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    require("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    result = run("train.py", "-n", 60, "--track", "--wandb-project-name", "p", cwd=tmp_path, check=False)
    error = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert error.startswith("train.py: error: --track: ") and "WANDB_MODE=offline" in error
    assert not list(tmp_path.glob("logs/*/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default:\n  n_timesteps: 60\n policy: x\n", "malformed YAML: "),
        ("default:\n  policy: MultiInputPolicy\n", "there is no 'n_timesteps' in the configuration."),
        ("PointFourRooms-v1:\n  n_timesteps: 60\n", "Hyperparameters not found for hipi_sac-PointFourRooms-v0"),
        ("- default\n", "AttributeError: "),
    ],
)
def test_a_malformed_yaml_file_is_answered_in_one_line(mistake, tmp_path, text, message):
    path = tmp_path / "broken.yml"
    path.write_text(text)
    error = mistake("-conf", path, n_steps=-1)
    assert message in error


def test_verbose_shows_the_traceback_of_a_mistake(main):
    with pytest.raises(ValueError, match="Did you mean 'future'"):
        main("-n", 50, "--verbose", 2, "--relabel", "strategy=futur")


# -- what is registered and shipped -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_hyperparameters_begin_with_the_default_and_name_what_exists(path):
    entries = yaml.safe_load(path.read_text())
    assert next(iter(entries)) == "default"
    assert set(entries) - {"default"} <= {
        *hipi_sb3.envs.registered_env_ids(),
        *(env for suite in SUITE_TO_PACKAGE for env in KEY_TO_SUITE[suite]),
    }
    # A comment before every entry says where it comes from.
    lines = path.read_text().splitlines()
    begin = {line.split(":")[0]: number for number, line in enumerate(lines) if line[:1].isalpha()}
    assert all(lines[begin[env_id] - 1].startswith("#") for env_id in entries)
    known = {"n_timesteps", "n_envs", "normalize", "env_kwargs", "callback", "noise_type", "noise_std"}
    for algorithm_class in ALGOS[path.stem].__mro__[:2]:
        known |= set(inspect.signature(algorithm_class).parameters)
    for hyperparams in entries.values():
        assert {"n_timesteps", "policy"} <= set(hyperparams) <= known


def test_plain_sac_has_the_settings_of_hipi_sac_but_plain_layers_and_one_update():
    plain, ours = (yaml.safe_load((ROOT / "hyperparams" / f"{algo}.yml").read_text()) for algo in ("sac", "hipi_sac"))
    assert plain.keys() == ours.keys()
    for env, settings in ours.items():
        others = ("replay_buffer_class", "replay_buffer_kwargs", "gradient_steps")
        mine, theirs = ({name: value for name, value in of.items() if name not in others} for of in (plain[env], settings))
        if "policy_kwargs" in theirs:
            theirs["policy_kwargs"] = theirs["policy_kwargs"].replace(", activation_fn=LayerNormReLU", "")
        assert mine == theirs, env
        assert "gradient_steps" not in plain[env]


def test_registering_twice_changes_nothing():
    before = dict(ALGOS)
    plugin.register()
    assert ALGOS == before and ALGOS["hipi_sac"] is hipi_sb3.HIPISAC


def test_the_command_line_offers_every_option_of_the_buffer():
    options = set(experiment.relabel_options())
    assert tuple(experiment.relabel_options()) == RELABEL_OPTIONS
    assert {"strategy", "score", "log_partition", "temperature", "candidates", "relabel_prob", "warmup_updates"} <= options
    assert options <= set(inspect.signature(HIPIReplayBuffer).parameters)
    assert not options & {"buffer_size", "device", "family", "gamma"}


def test_help_shows_the_options_of_both(main, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main("--help")
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    assert "--relabel NAME=VALUE" in output and "--n-startup-trials" in output


def test_help_is_what_rl_zoo3_says_of_its_options(monkeypatch, capsys):
    print_help("What it is.")
    shown = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        rl_zoo3.train.train()
    original = capsys.readouterr().out.split("options:", 1)
    usage, described = shown.split("Options of rl_zoo3", 1)[1].split("usage:", 1)[1].split("options:", 1)
    assert described == original[1]
    assert usage.split()[1:] == original[0].split()[2:]
    assert tuple(plugin.KEY_TO_ALGORITHM) == ALGORITHMS


IMPORTED_BY = """
import sys
sys.argv = ["train.py", *{arguments}]
sys.path.insert(0, {root!r})
import atexit, runpy
atexit.register(lambda: print("IMPORTED", *[name for name in {heavy} if name in sys.modules], file=sys.stderr))
runpy.run_path({root!r} + "/zoo/train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "arguments, heavy",
    [
        (["--help"], ["torch", "rl_zoo3", "stable_baselines3", "optuna", "gymnasium", "numpy", "hipi_sb3"]),
        (
            ["-n", "40", "--no-picture", "--eval-freq", "-1", "--eval-tasks", "2", *QUICK],
            ["matplotlib", "wandb", "plotly", "optuna.visualization", "sklearn", "mujoco", "ray", "scipy.stats"],
        ),
    ],
)
def test_nothing_heavy_is_imported_that_is_not_needed(arguments, heavy, tmp_path):
    program = IMPORTED_BY.format(arguments=arguments, root=str(ROOT), heavy=heavy)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].split() == ["IMPORTED"]


def test_what_was_deferred_is_there_when_it_is_called():
    program = (
        f"import importlib, sys; sys.path.insert(0, {str(ROOT)!r}); import zoo.train, rl_zoo3.exp_manager as manager;"
        "assert 'matplotlib' not in sys.modules; module = importlib.import_module('optuna.visualization');"
        "module.plot_param_importances = lambda study: f'drew {study}';"
        "print(manager.plot_param_importances('study 7'), module.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.stdout.startswith("drew study 7 /"), result.stderr
