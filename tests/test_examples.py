"""The programs in examples/ that are tutorials: they run, and show what they say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_docs import load, run

from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_policy_cloned_from_a_log_without_goals_reaches_goals(tmp_path):
    result = run([sys.executable, str(EXAMPLES / "own_data.py")], tmp_path)
    assert result.returncode == 0, result.stderr
    within = [float(line.split()[-1]) for line in result.stdout.splitlines()]
    # Goals at a distance of 10, of which the policy heard in no log; whoever stands still stays at 10.
    assert len(within) == 8 and max(within) < 3.0
    assert (tmp_path / "own_data_policy.zip").is_file()


def test_a_table_is_cloned_as_arrays_are(tmp_path):
    pd = pytest.importorskip("pandas")
    example = load(EXAMPLES / "own_data.py")
    log = example.made_up_log(n_episodes=20)
    pd.DataFrame(log).to_csv(tmp_path / "log.csv", index=False)
    policies = [
        example.clone(columns, n_updates=5).policy.state_dict() for columns in (log, pd.read_csv(tmp_path / "log.csv"))
    ]
    for name, array in policies[0].items():
        assert_allclose(array, policies[1][name], atol=1e-5)


def test_without_log_z_the_task_with_large_rewards_swallows_the_data():
    example = load(EXAMPLES / "three_scales.py")
    model = example.train(300)
    swallowed, effective = example.shares(model, "none", 1.0)
    assert swallowed[example.TASKS.index("stand tall")] > 0.99 and effective < 1.1
    shared, _ = example.shares(model, "sinkhorn", 1.0)
    assert_allclose(shared, 1 / 3, atol=0.02)
    _, effective = example.shares(model, "sinkhorn", "ess:2")
    assert_allclose(effective, 2.0, atol=0.05)


def test_the_picture_shows_the_point_and_goals_are_read_from_the_simulator():
    example = load(EXAMPLES / "image_observations.py")
    env = example.make_env()
    obs, _ = env.reset(seed=0, options={"task": [7.5, 7.5]})
    assert obs["observation"].shape == (1, 36, 36) and obs["observation"].dtype == np.uint8
    assert_allclose(np.argwhere(obs["observation"][0] == 255).mean(axis=0), 7.5 * example.SCALE)
    obs, reward, terminated, _, info = env.step(np.array([1.0, 0.0]))
    assert_allclose(np.argwhere(obs["observation"][0] == 255).mean(axis=0), [8.5 * example.SCALE, 7.5 * example.SCALE])
    assert_allclose(info["task_features"], [8.5, 7.5])
    assert (reward, terminated) == (0.0, True)
    model = example.train(510)
    assert model.num_timesteps == 510
    assert model.replay_buffer.experience.store.observations((np.arange(3), np.zeros(3, int)))["observation"].dtype == np.uint8


@pytest.mark.expensive
def test_goals_are_learned_from_pictures():
    example = load(EXAMPLES / "image_observations.py")
    model = example.train(6000)
    env = model.get_env()
    assert evaluate_tasks(model, env, evaluation_tasks(env.get_attr("task_family")[0], 10)).success_rate >= 0.6


@pytest.mark.parametrize("name", ["own_data", "three_scales", "image_observations"])
def test_they_say_how_they_are_called(name):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert f"python examples/{name}.py" in result.stdout


def test_nothing_in_the_picture_of_the_house_points_up(tmp_path):
    house = load(EXAMPLES / "house.py")
    assert all(house.ROOMS.index(room) < house.ROOMS.index(other) for room, other in house.edges())
    house.draw(tmp_path / "house.png")
    assert (tmp_path / "house.png").read_bytes().startswith(b"\x89PNG")
