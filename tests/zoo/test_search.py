"""The hyperparameter search: workers that share a study and may be killed, search spaces, the best trial."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch as th
import yaml
from conftest import lacking, require
from numpy.testing import assert_array_equal

require("rl_zoo3")

from optuna.trial import TrialState, create_trial

from hipi_sb3 import LayerNormReLU
from zoo import plugin
from zoo.configuration import evaluated, read_yaml
from zoo.errors import ConfigurationError
from zoo.search import TrialSeededEvalCallback, write_best
from zoo.search_postgres import private_postgres
from zoo.workers import WORKER, Worker, make_storage, n_finished, retry_dead_trials, run_trials, sampler_seed

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, str(ROOT / "zoo" / "train.py")]
SEARCH = ["-optimize", "--study-name", "s", "--n-evaluations", "1", "--eval-tasks", "2", "--search-space", "small"]

plugin.register()


def environment(step_seconds: float = 0.0) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "STEP_SECONDS": str(step_seconds)}


def search(folder: Path, storage: str, *arguments: object) -> list[str]:
    """Command of a worker, on an environment that is as slow as its process is told."""
    command = [*TRAIN, *SEARCH, "--env", "SlowWalk-v0", "--gym-packages", "slow_tasks", "-n", "60", "--storage", storage]
    return [*command, "-params", "learning_starts:40", *map(str, arguments)]


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


# -- workers that are killed ------------------------------------------------------------------------------------------


@pytest.fixture
def storage_url(request, tmp_path):
    """URL of a storage of each kind."""
    if request.param == "postgres":
        require("psycopg")
        try:
            with private_postgres() as url:
                yield url
        except ConfigurationError as error:
            if "was not found" not in str(error):
                raise
            lacking(str(error))
    else:
        yield {"journal": str(tmp_path / "study.log"), "sqlite": f"sqlite:///{tmp_path}/study.db"}[request.param]


@pytest.mark.parametrize("storage_url", ["journal", "sqlite", "postgres"], indirect=True)
def test_a_killed_worker_leaves_no_trial_running_and_the_study_ends_with_the_asked_number(
    tmp_path, storage_url, main, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "tests")
    study = optuna.create_study(storage=make_storage(storage_url, 60), study_name="s", direction="maximize")
    command = search(tmp_path, storage_url, "--max-total-trials", 3, "--heartbeat", 5)
    victim = subprocess.Popen(command, cwd=tmp_path, env=environment(step_seconds=0.05), stdout=subprocess.DEVNULL)

    def signed():
        return any(WORKER in trial.user_attrs for trial in study.get_trials(states=[TrialState.RUNNING]))

    try:
        wait_for(signed)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    main(*command[2:])

    trials = study.trials
    assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert n_finished(study) == 3
    dead = next(trial for trial in trials if trial.state == TrialState.FAIL)
    retried = next(trial for trial in trials if trial.system_attrs.get("failed_trial") == dead.number)
    assert retried.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert dead.params.items() <= retried.params.items()
    assert retried.user_attrs[WORKER]["name"] != dead.user_attrs[WORKER]["name"]


def test_two_workers_on_postgres_both_contribute(tmp_path):
    require("psycopg")
    command = [sys.executable, str(ROOT / "zoo" / "search_postgres.py"), "--trials", "6", "--"]
    command += ["--env", "SlowWalk-v0", "--gym-packages", "slow_tasks", "-n", "60", "--eval-tasks", "2"]
    command += ["--n-evaluations", "1", "-params", "learning_starts:40"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(0.02), capture_output=True, text=True, timeout=300)
    if "was not found" in result.stderr:
        lacking(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    assert "2 of 2 workers contributed" in result.stdout
    table = result.stdout[result.stdout.index("trial  state") :].splitlines()
    parameters = [line for line in result.stderr.splitlines() if "finished with value" in line]
    assert len(table) == 8 and len(set(parameters)) == len(parameters)


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


def running(study, **worker):
    """A running trial, signed by a worker that differs from this process in what is given."""
    me = Worker(heartbeat=60)
    trial = study.ask()
    me.sign(trial)
    trial.set_user_attr(WORKER, {**study.trials[trial.number].user_attrs[WORKER], **worker})
    return study.trials[trial.number]


def test_a_worker_on_this_machine_is_dead_when_its_process_is(study):
    me = Worker(heartbeat=60)
    assert not me.is_dead(running(study))
    assert me.is_dead(running(study, pid=2**22 + 1))
    # The number of the process is in use again.
    assert me.is_dead(running(study, started="1"))


def test_a_worker_on_another_machine_is_dead_when_it_no_longer_touches_its_file(study, tmp_path):
    me = Worker(heartbeat=60, journal=tmp_path / "study.log")
    other = running(study, machine="elsewhere", name="other")
    with me.alive():
        assert me.is_dead(other)
        file = tmp_path / "study.log.workers" / "other"
        file.touch()
        assert not me.is_dead(other)
        os.utime(file, (time.time() - 119, time.time() - 119))
        assert not me.is_dead(other)
        os.utime(file, (time.time() - 125, time.time() - 125))
        assert me.is_dead(other)
    assert [path.name for path in (tmp_path / "study.log.workers").iterdir()] == ["other"]


def test_with_a_database_its_heartbeat_decides_about_other_machines(study):
    assert not Worker(heartbeat=60).is_dead(running(study, machine="elsewhere"))


def test_a_trial_that_nobody_signs_is_dead_after_the_grace_period(study, monkeypatch):
    me = Worker(heartbeat=60)
    number = study.ask().number
    trial = study.trials[number]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert not me.is_dead(trial)
    now += 119
    assert not me.is_dead(trial)
    now += 2
    assert me.is_dead(trial)


def test_a_retry_is_not_taken_for_the_trial_that_died(study):
    me = Worker(heartbeat=60)
    running(study, pid=2**22 + 1)
    assert retry_dead_trials(study, me) == [0]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    study.ask()  # takes the retry, which has the dead worker's signature until it is signed
    assert study.trials[1].user_attrs[WORKER]["trial"] == 0
    assert retry_dead_trials(study, me) == []


def test_a_trial_is_not_retried_for_ever(study):
    me = Worker(heartbeat=60)
    for _ in range(4):
        running(study, pid=2**22 + 1)
        retry_dead_trials(study, me)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4


def test_a_surplus_trial_is_given_up(study):
    """Between a look at the study and the start of a trial, another worker may have started the last one."""

    def objective(trial):
        return 0.0

    class OthersAreFaster(Worker):
        def sign(self, trial):
            super().sign(trial)
            if trial.number == 1:
                study.add_trial(create_trial(value=1.0))

    run_trials(study, objective, OthersAreFaster(60), n_trials=1, n_total=2)
    assert n_finished(study) == 2
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_pruned_trials_are_finished_and_broken_ones_stop_the_worker(study):
    def prune(trial):
        raise optuna.TrialPruned

    run_trials(study, prune, Worker(60), n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"] * 3

    def break_down(trial):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_trials(study, break_down, Worker(60), n_trials=1)


def test_every_worker_has_a_sampler_seed_of_its_own():
    assert sampler_seed(3, is_shared=False) == 3
    assert len({sampler_seed(3, is_shared=True) for _ in range(20)}) == 20


# -- the best trial, and any other ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search from the command line, on options of relabeling that are not searched: folder, what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    given = ["--n-trials", "2", "--relabel", "warmup_updates=7", "relabel_prob=0.0"]
    command = search(folder, "study.log", *given)
    result = subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, text=True, timeout=120)
    return folder, result.stdout


def test_a_class_among_the_hyperparameters_of_the_best_trial_is_written_as_it_is_read(tmp_path):
    study = optuna.create_study(study_name="ppo")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    best = {"learning_rate": 1e-3, "policy_kwargs": {"net_arch": {"pi": [64], "vf": [64]}, "activation_fn": th.nn.Tanh}}
    write_best(tmp_path / "best.yml", study, "CartPole-v1", best, [], "python zoo/train.py -optimize")
    entry = read_yaml(tmp_path / "best.yml")["CartPole-v1"]
    assert entry["learning_rate"] == 1e-3 and evaluated(entry["policy_kwargs"]) == best["policy_kwargs"]


def test_the_best_trial_is_a_ready_yaml_file_with_its_provenance(searched, main, monkeypatch):
    folder, output = searched
    path = folder / "logs/hipi_sac/best_SlowWalk-v0.yml"
    assert str(path.relative_to(folder)) in output
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert comments[0].startswith("# Trial ") and "the best of 2 complete and 0 pruned trials" in comments[0]
    assert "2 fixed tasks (seed 1) after 60 steps" in comments[1]
    assert "stable_baselines3 " in comments[2] and "python zoo/train.py -optimize" in comments[3]

    study = optuna.load_study(study_name="s", storage=make_storage(str(folder / "study.log"), 60))
    entry = yaml.safe_load(path.read_text())["SlowWalk-v0"]
    assert entry["learning_rate"] == study.best_params["learning_rate"]
    assert entry["replay_buffer_kwargs"]["warmup_updates"] == 7
    assert entry["replay_buffer_kwargs"]["relabel_prob"] == study.best_params["relabel_prob"] >= 0.2

    monkeypatch.syspath_prepend(ROOT / "tests")
    output = main("--env", "SlowWalk-v0", "--gym-packages", "slow_tasks", "-conf", path, "--eval-tasks", 2)
    assert "hipi_sac on SlowWalk-v0 after 60 steps" in output


@pytest.mark.parametrize("number", [0, 1])
def test_any_trial_is_trained_again_the_first_one_included(searched, main, monkeypatch, tmp_path, number):
    storage = str(searched[0] / "study.log")
    trial = optuna.load_study(study_name="s", storage=make_storage(storage, 60)).trials[number]
    monkeypatch.syspath_prepend(ROOT / "tests")
    arguments = ["--env", "SlowWalk-v0", "--gym-packages", "slow_tasks", "-n", 60, "--eval-tasks", 2, "--storage", storage]
    arguments += ["--study-name", "s", "--trial-id", number, "--relabel", "score=q", "-params", "learning_starts:41"]
    main(*arguments, "replay_buffer_kwargs:dict(warmup_updates=5)")
    config = dict(
        yaml.load((tmp_path / "logs/hipi_sac/SlowWalk-v0_1/SlowWalk-v0/config.yml").read_text(), Loader=yaml.UnsafeLoader)
    )
    assert config["learning_rate"] == trial.params["learning_rate"]
    assert config["learning_starts"] == 41
    options = config["replay_buffer_kwargs"]
    assert (options["warmup_updates"], options["score"]) == (5, "q")
    assert options["strategy"] == trial.params["relabel_strategy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study-name", "s", "--trial-id", "2"], "study 's' has trials 0 to 1, not 2."),
        (["--study-name", "ss", "--trial-id", "0"], "unknown study 'ss'. Did you mean 's'?"),
        (["--trial-id", "0"], "--trial-id needs the --storage and the --study-name of the search."),
        (["--study-name", "s", "-optimize"], "study 's' is one of env=SlowWalk-v0, not PointFourRooms-v0"),
        (["--study-name", "s", "-optimize", "--search-space", "smal"], "unknown search space 'smal'. Did you mean 'small'?"),
        (["--study-name", "s", "-optimize", "--heartbeat", "0"], "--heartbeat must be at least 1, not 0."),
    ],
)
def test_a_mistake_with_the_study_is_one_line(searched, main, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main("-n", "60", "--storage", searched[0] / "study.log", *arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len([line for line in error.splitlines() if line.startswith("train.py: error")]) == 1


def test_a_database_that_does_not_answer_is_one_line(main, capsys):
    require("psycopg")
    url = "postgresql://hipi:secret@127.0.0.1:1/none"
    with pytest.raises(SystemExit) as exit_info:
        main("-n", "60", "-optimize", "--storage", url, "--study-name", "s", "-params", "learning_starts:40")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train.py: error: ") and "connection" in error


def test_a_search_in_a_goal_env_judges_trials_by_the_same_goals(main, monkeypatch):
    """The environment draws its goals itself; an untrained policy that is evaluated twice gets the same episodes twice."""
    require("gymnasium_robotics")
    seen = []

    def watch(callback):
        goals = []
        observe = callback.eval_env.step_wait

        def step_wait():
            results = observe()
            goals.append(callback.eval_env.get_original_obs()["desired_goal"])
            return results

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(callback.eval_env, "step_wait", step_wait)
            going_on = on_step(callback)
        if goals:
            seen.append(np.unique(np.concatenate(goals), axis=0))
        return going_on

    on_step = TrialSeededEvalCallback._on_step
    monkeypatch.setattr(TrialSeededEvalCallback, "_on_step", watch)
    few = ["-n", 20, "--n-trials", 1, "--n-evaluations", 2, "--eval-tasks", 4, "--n-eval-envs", 2, "--seed", 0]
    few += ["--search-space", "small", "-params", "learning_starts:100"]
    main("-optimize", "--gym-packages", "gymnasium_robotics", "--env", "FetchReach-v4", *few)
    assert len(seen) == 2 and len(seen[0]) >= 4
    assert_array_equal(seen[0], seen[1])


# -- search spaces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("algo", plugin.KEY_TO_ALGORITHM)
def test_every_algorithm_has_a_sampler_and_a_converter(algo, small):
    algorithm = plugin.KEY_TO_ALGORITHM[algo]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        args = {"using_her_replay_buffer": False, "her_kwargs": {}}
        sampled = plugin.make_sampler(algorithm, small=small)(trial, 2, 1, args)
        converted = plugin.make_converter(algorithm)(trial.params)
        # What the sampler makes objects of, rl_zoo3 makes of these names when it trains.
        noise = {"action_noise", "noise_type", "noise_std"}
        assert {k: v for k, v in sampled.items() if k not in noise} == {k: v for k, v in converted.items() if k not in noise}
        assert converted.get("noise_type", "") is not None
        if small:
            assert 32 <= sampled["batch_size"] <= 128 and sampled["policy_kwargs"]["net_arch"] == [64, 64]
            expected = ("spread:1", "spread:2") if algorithm.has_critic else (1.0,)
            assert sampled["replay_buffer_kwargs"]["temperature"] in expected


@pytest.mark.parametrize(
    ("algo", "normalised", "updates"),
    [("hipi_sac", {False, True}, {1, 2, 4}), ("hipi_crossq", {False}, {1, 2, 4}), ("hipi_dqn", {False, True}, None)],
)
def test_normalised_layers_and_updates_per_step_are_searched(algo, normalised, updates):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampler, seen = plugin.make_sampler(plugin.KEY_TO_ALGORITHM[algo]), []
    for _ in range(30):
        sampled = sampler(study.ask(), 2, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        is_normalised = sampled["policy_kwargs"].get("activation_fn") is LayerNormReLU
        seen.append((is_normalised, sampled["gradient_steps"] / sampled["train_freq"]))
    found, ratios = map(set, zip(*seen, strict=True))
    assert found == normalised
    assert ratios == updates or (updates is None and max(ratios) <= 1)


@pytest.mark.parametrize("algo", [algo for algo in plugin.KEY_TO_ALGORITHM if algo not in ("hipi_sac", "hipi_bc")])
def test_every_algorithm_is_searched_and_trained(main, tmp_path, algo):
    env = "PointFourRoomsGrid-v0" if algo in ("hipi_dqn", "hipi_qrdqn") else "PointFourRooms-v0"
    few = ["--algo", algo, "--env", env, "-n", 80, "--eval-tasks", 2, "--seed", 0]
    storage = ["--storage", "study.log", "--study-name", algo]
    quick = ["--n-trials", 1, "--n-evaluations", 1, "--search-space", "small", "-params", "learning_starts:60"]
    main("-optimize", *few, *storage, *quick)
    output = main(*few, *storage, "--trial-id", 0, "-params", "learning_starts:60")
    # The steps are a multiple of train_freq.
    assert re.search(f"{algo} on {env} after 8[0-3] steps, task by task", output)


def test_a_trial_of_stable_baselines3s_algorithm_without_noise_can_be_trained():
    params = {"one_minus_gamma": 0.1, "net_arch": "small", "noise_std": 0.3}
    found = plugin.converted("td3", {**params, "noise_type": None})
    assert found["gamma"] == 0.9 and not {"noise_type", "noise_std"} & set(found)
    assert plugin.converted("td3", {**params, "noise_type": "normal"})["noise_std"] == 0.3


def test_a_trial_of_stable_baselines3s_her_can_be_trained():
    params = {"one_minus_gamma": 0.1, "net_arch": "small", "n_sampled_goal": 5, "goal_selection_strategy": "final"}
    found = plugin.converted("sac", params)
    assert found["replay_buffer_kwargs"] == {"n_sampled_goal": 5, "goal_selection_strategy": "final"}
    assert "n_sampled_goal" not in found and "goal_selection_strategy" not in found
