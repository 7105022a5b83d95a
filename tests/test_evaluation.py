"""Evaluation task by task, and the callback that does it during training."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from line_walk import GOALS, LineWalk, directions, make_line_walk, vec_line_walk
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from hipi_sb3 import HIPISAC
from hipi_sb3.callbacks import TaskEvalCallback
from hipi_sb3.evaluation import TaskEvaluation, bootstrap_interval, evaluate_tasks, evaluation_tasks, task_labels

TASKS = np.array([[0.9], [-0.8], [0.1], [0.5], [-0.3]], dtype=np.float32)


class Walker:
    """A policy that walks to the right, and remembers the tasks that it was shown."""

    def __init__(self) -> None:
        self.tasks = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        tasks = observation["task"] if isinstance(observation, dict) else observation[:, -1:]
        self.tasks.append(tasks)
        return np.full((len(tasks), 1), 0.4), state


def check_against_observations(evaluation, n_episodes, rtol=1e-6):
    """Returns, lengths and successes are what the family says of the recorded positions."""
    for i, task in enumerate(evaluation.tasks):
        for k in range(n_episodes):
            observations = evaluation.observations[i * n_episodes + k]
            positions = observations[1:, :1]
            assert_allclose(evaluation.returns[i, k], GOALS.reward(positions, task).sum(), rtol=rtol)
            assert evaluation.lengths[i, k] == len(positions)
            assert evaluation.successes[i, k] == GOALS.success(positions[-1], task)
            # The clock counts steps: the episode is whole, its last observation that before the automatic reset.
            assert_allclose(observations[:, 1], 0.1 * np.arange(len(observations)), atol=1e-5)


# -- which tasks ------------------------------------------------------------------------------------------------------


def test_all_tasks_of_a_finite_family_are_evaluated():
    assert_array_equal(evaluation_tasks(directions(), n_tasks=1, seed=5), np.eye(3))


def test_tasks_of_a_continuous_family_depend_on_the_seed_alone():
    tasks = evaluation_tasks(GOALS, 7, seed=3)
    np.random.random()
    assert tasks.shape == (7, 1)
    assert_array_equal(tasks, evaluation_tasks(GOALS, 7, seed=3))
    assert not np.array_equal(tasks, evaluation_tasks(GOALS, 7, seed=4))


def test_no_tasks_are_refused():
    with pytest.raises(ValueError, match="n_tasks must be at least 1, not 0"):
        evaluation_tasks(GOALS, 0)


# -- the episodes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_episodes", [1, 2])
def test_every_task_is_run_and_judged_as_its_family_does(n_envs, flatten, n_episodes):
    walker = Walker()
    env = vec_line_walk(n_envs, flatten=flatten)
    evaluation = evaluate_tasks(walker, env, TASKS, n_episodes, record_observations=True)
    assert_array_equal(evaluation.tasks, TASKS)
    assert evaluation.returns.shape == evaluation.lengths.shape == evaluation.successes.shape == (5, n_episodes)
    assert_array_equal(np.unique(np.concatenate(walker.tasks)), np.sort(TASKS.ravel()))
    assert 0 < evaluation.success_rate < 1
    check_against_observations(evaluation, n_episodes)


def test_a_single_environment_needs_no_vec_env():
    evaluation = evaluate_tasks(Walker(), make_line_walk(), TASKS, record_observations=True)
    check_against_observations(evaluation, 1)


def test_a_monitor_changes_nothing():
    plain = evaluate_tasks(Walker(), vec_line_walk(2), TASKS, seed=0)
    monitored = evaluate_tasks(Walker(), DummyVecEnv([lambda: Monitor(make_line_walk())] * 2), TASKS, seed=0)
    assert_allclose(monitored.returns, plain.returns)
    assert_array_equal(monitored.lengths, plain.lengths)


@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_with_vec_normalize_returns_and_observations_are_raw(flatten):
    env = VecNormalize(vec_line_walk(2, flatten=flatten))
    env.reset()
    for actions in np.random.default_rng(0).uniform(-1, 1, size=(50, 2, 1)):
        env.step(actions)
    env.training = False
    evaluation = evaluate_tasks(Walker(), env, TASKS, record_observations=True)
    check_against_observations(evaluation, 1, rtol=1e-5)


def test_subprocesses_give_the_same_episodes():
    expected = evaluate_tasks(Walker(), vec_line_walk(2), TASKS, seed=4)
    env = SubprocVecEnv([make_line_walk] * 2)
    try:
        evaluation = evaluate_tasks(Walker(), env, TASKS, seed=4)
    finally:
        env.close()
    assert_allclose(evaluation.returns, expected.returns)


def test_one_seed_gives_the_same_episodes_twice():
    env = vec_line_walk(2)
    first, second, other = (evaluate_tasks(Walker(), env, TASKS, 2, seed=seed, record_observations=True) for seed in (7, 7, 8))
    assert all(map(np.array_equal, first.observations, second.observations))
    assert not np.array_equal(first.observations[0], other.observations[0])


class Windy(gym.Wrapper):
    """Begins anywhere and blows, by its generator."""

    def step(self, action):
        self.np_random.random()
        return super().step(action)

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.starts.append(float(self.np_random.random()))
        return obs, info


@pytest.mark.parametrize("n_envs", [1, 2])
def test_each_task_begins_with_the_same_noise_whatever_the_policy_does(n_envs):
    class Idler(Walker):
        def predict(self, *args, **kwargs):
            actions, state = super().predict(*args, **kwargs)
            return np.zeros_like(actions), state

    def starts(policy):
        envs = [Windy(make_line_walk()) for _ in range(n_envs)]
        for env in envs:
            env.starts = []
        evaluation = evaluate_tasks(policy, DummyVecEnv([lambda env=env: env for env in envs]), TASKS, seed=3)
        seen = [env.starts for env in envs]
        return seen, evaluation.lengths

    (mine, lengths), (theirs, others) = starts(Walker()), starts(Idler())
    assert not np.array_equal(lengths, others)
    # Of a group each environment resets once with its seed, and then once an episode that it ends.
    assert mine[0][0] == theirs[0][0]
    assert len(set(mine[0]) & set(theirs[0])) >= -(-len(TASKS) // n_envs)


@pytest.mark.parametrize("before", [None, [0.25]])
def test_the_tasks_of_the_environment_are_restored_even_after_an_error(before):
    class Broken(Walker):
        def predict(self, *args, **kwargs):
            raise RuntimeError("broken policy")

    env = vec_line_walk(2)
    env.env_method("fix_task", before)
    evaluate_tasks(Walker(), env, TASKS)
    with pytest.raises(RuntimeError, match="broken policy"):
        evaluate_tasks(Broken(), env, TASKS)
    for fixed in env.get_attr("fixed_task"):
        assert_array_equal(fixed, before)


def test_a_family_without_success_has_none():
    evaluation = evaluate_tasks(Walker(), vec_line_walk(1, family=directions()), np.eye(3))
    assert evaluation.successes is None and evaluation.success_rate is None
    assert "success" not in evaluation.table()
    assert evaluation.to_dict()["success_rate"] is None


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(ValueError, match=r"no task family. Wrap it in hipi_sb3.MultiTaskWrapper"):
        evaluate_tasks(Walker(), LineWalk(), TASKS)
    with pytest.raises(ValueError, match="needs at least one task, not 0"):
        evaluate_tasks(Walker(), make_line_walk(), [])
    with pytest.raises(ValueError, match="outside the task space"):
        evaluate_tasks(Walker(), make_line_walk(), [[5.0]])


# -- a GoalEnv that is used as it is ----------------------------------------------------------------------------------


class Darts(gym.Env):
    """A goal in two dimensions. Steps draw noise from the generator of the goals, and what is done decides how many."""

    def __init__(self):
        goal = gym.spaces.Box(-np.inf, np.inf, shape=(2,), dtype=np.float64)
        self.observation_space = gym.spaces.Dict({"observation": goal, "achieved_goal": goal, "desired_goal": goal})
        self.action_space = gym.spaces.Box(-1.0, 1.0, shape=(2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.goal = np.zeros(2), self.np_random.uniform(-1, 1, size=2)
        return {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}, {}

    def step(self, action):
        self.at = self.at + action + self.np_random.normal(size=2)
        obs = {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}
        reward = float(self.compute_reward(self.at, self.goal, {}))
        return obs, reward, bool(np.abs(self.at).max() > 3), False, {"is_success": reward > -1}

    def compute_reward(self, achieved, desired, info):
        return -np.linalg.norm(achieved - desired, axis=-1)


class Thrower:
    """Moves by so much in every step."""

    def __init__(self, distance):
        self.distance = distance

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation["desired_goal"]), 2), self.distance), state


def darts(n_envs):
    return VecNormalize(DummyVecEnv([lambda: Monitor(Darts())] * n_envs), training=False, clip_obs=np.inf)


def test_the_goals_of_a_goal_env_depend_on_the_seed_alone():
    env = darts(2)
    first = evaluate_tasks(Thrower(1.0), env, 5, seed=0, record_observations=True)
    env.obs_rms["desired_goal"].mean[:] = 0.3
    second = evaluate_tasks(Thrower(0.1), env, 5, seed=0)
    assert first.tasks.shape == (5, 2) and not np.array_equal(first.lengths, second.lengths)
    assert_allclose(second.tasks, first.tasks, rtol=1e-6)
    assert_allclose(evaluate_tasks(Thrower(1.0), darts(3), 5, seed=0).returns, first.returns)
    assert not np.isin(evaluate_tasks(Thrower(1.0), env, 5, seed=1).tasks, first.tasks).any()
    assert [len(observations["observation"]) for observations in first.observations] == (first.lengths.ravel() + 1).tolist()
    assert first.successes.shape == first.returns.shape == (5, 1)
    assert first.table().splitlines()[2].startswith(", ".join(f"{number:.4g}" for number in first.tasks[0]))


def test_more_episodes_of_a_goal_env_are_more_goals():
    evaluation = evaluate_tasks(Thrower(1.0), Darts(), 3, n_episodes=2, seed=0)
    assert len(np.unique(evaluation.tasks, axis=0)) == 6 and evaluation.returns.shape == (6, 1)


def test_the_goals_of_a_goal_env_cannot_be_given():
    with pytest.raises(ValueError, match="pass their number, tasks=20, and a seed"):
        evaluate_tasks(Thrower(1.0), Darts(), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="tasks must be at least 1, not 0"):
        evaluate_tasks(Thrower(1.0), Darts(), 0)


def test_the_callback_evaluates_a_goal_env_on_the_same_goals_every_time(tmp_path):
    callback = TaskEvalCallback(darts(2), n_tasks=3, eval_freq=20, log_path=str(tmp_path), verbose=0)
    train(callback, DummyVecEnv([Darts]))
    first, second = callback.evaluations
    assert_allclose(first.tasks, second.tasks, rtol=1e-6)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert_array_equal(file["tasks"], first.tasks)


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_mean_over_tasks():
    rng = np.random.default_rng(0)
    means = rng.normal(3.0, 2.0, size=(400, 1))
    # Episodes of a task agree, so ten of each tell no more than one.
    low, high = bootstrap_interval(np.repeat(means, 10, axis=1))
    half_width = 1.96 * means.std() / np.sqrt(len(means))
    assert_allclose([low, high], [means.mean() - half_width, means.mean() + half_width], atol=0.02)
    assert_allclose([low, high], bootstrap_interval(means))


def test_the_interval_of_a_single_task_is_over_its_episodes():
    low, high = bootstrap_interval(np.array([[0.0, 1.0, 2.0, 3.0]]))
    assert 0 <= low < 1.5 < high <= 3


def test_the_table_has_a_line_a_task_and_the_means():
    evaluation = TaskEvaluation(
        tasks=np.array([[1.5, -2.0], [0.25, 30.0]]),
        returns=np.array([[-1.0, -2.0], [-3.0, -4.0]]),
        lengths=np.array([[1, 2], [3, 4]]),
        successes=np.array([[True, False], [False, False]]),
    )
    lines = [line.split("  ") for line in evaluation.table().splitlines()]
    rows = {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert rows["task"] == ["return", "steps", "success"]
    assert rows["1.5, -2"] == ["-1.50", "1.5", "0.50"]
    assert rows["0.25, 30"] == ["-3.50", "3.5", "0.00"]
    assert rows["mean of 2 tasks"] == ["-2.50", "2.5", "0.25"]
    assert (rows["95 % from"], rows["95 % to"]) == (["-3.50", "1.5", "0.00"], ["-1.50", "3.5", "0.50"])
    assert len({len(line) for line in evaluation.table().splitlines()}) == 1


def test_one_hot_tasks_are_numbered():
    assert task_labels(np.eye(3)) == ["task 0", "task 1", "task 2"]
    assert task_labels(np.array([[1.0]])) == ["1"]


def test_tasks_of_many_numbers_are_numbered():
    assert task_labels(np.zeros((2, 3 * 8 * 8))) == ["task 0", "task 1"]
    assert task_labels(np.zeros((1, 16))) == [", ".join("0" * 16)]


# -- the callback -----------------------------------------------------------------------------------------------------


def train(callback, env=None, n_steps=40):
    model = HIPISAC("MultiInputPolicy", env or vec_line_walk(1), learning_starts=30, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(n_steps, callback=callback)
    return model


def test_the_callback_writes_every_evaluation_with_its_tasks(tmp_path: Path):
    callback = TaskEvalCallback(
        vec_line_walk(2), n_tasks=3, n_eval_episodes=2, eval_freq=20, log_path=str(tmp_path), verbose=0
    )
    model = train(callback)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.npz"]
    with np.load(tmp_path / "evaluations.npz") as file:
        assert_array_equal(file["timesteps"], [20, 40])
        assert_array_equal(file["tasks"], np.repeat(evaluation_tasks(GOALS, 3, seed=0), 2, axis=0))
        assert file["results"].shape == file["ep_lengths"].shape == file["successes"].shape == (2, 6)
        assert_array_equal(file["results"][1], callback.evaluations[1].returns.ravel())
    # The same tasks from the same starts as at any other time.
    again = evaluate_tasks(model, vec_line_walk(2), callback.tasks, 2, seed=0)
    assert_array_equal(again.returns, callback.evaluations[1].returns)


def test_the_callback_logs_and_keeps_the_best_model(tmp_path: Path):
    callback = TaskEvalCallback(vec_line_walk(1), tasks=TASKS, eval_freq=20, best_model_save_path=str(tmp_path), verbose=0)
    model = train(callback)
    assert callback.best_mean_reward == max(evaluation.mean_return for evaluation in callback.evaluations)
    assert callback.last_mean_reward == callback.evaluations[-1].mean_return
    assert callback.evaluations_timesteps == [20, 40]
    type(model).load(tmp_path / "best_model")
    assert model.num_timesteps == 40


def test_the_callback_uses_the_statistics_of_the_training_environment():
    env, eval_env = (VecNormalize(vec_line_walk(1), training, clip_obs=np.inf) for training in (True, False))
    train(TaskEvalCallback(eval_env, tasks=TASKS, eval_freq=40, verbose=0), env)
    assert_array_equal(eval_env.obs_rms["observation"].mean, env.obs_rms["observation"].mean)


def test_the_callback_does_not_disturb_training():
    weights = []
    for eval_freq in (-1, 10):
        model = train(TaskEvalCallback(vec_line_walk(1), tasks=TASKS, eval_freq=eval_freq, verbose=0))
        weights.append(model.policy.state_dict())
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_the_callback_needs_a_task_family():
    with pytest.raises(ValueError, match="no task family"):
        TaskEvalCallback(gym.make("Pendulum-v1"))
