"""The registered environments: the contract that all of them keep, and the maze in detail."""

import pickle
import subprocess
import sys
import time
import warnings
from collections import deque
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from conftest import require
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from hipi_sb3 import HIPIDQN, HIPISAC
from hipi_sb3.envs import register_envs, registered_env_ids
from hipi_sb3.envs.point import MAPS, MazeGoals, PointEnv, in_wall, load_walls, make_point_four_rooms
from hipi_sb3.evaluation import evaluate_tasks
from hipi_sb3.wrappers import MultiTaskWrapper

each_env = pytest.mark.parametrize("env_id", registered_env_ids())

#: What has to be installed for the environments of a module, and the extra that installs it.
MODULE_TO_SIMULATOR = {
    "hipi_sb3.envs.dm_control_suite": ("dm_control", "dm_control"),
    "hipi_sb3.envs.meta_world": ("metaworld", "metaworld"),
    "hipi_sb3.envs.mo_mujoco": ("mo_gymnasium", "mo"),
}

FOUR_ROOMS = load_walls("four_rooms")
RIGHT, DOWN = np.array([0, 1], dtype=np.float32), np.array([1, 0], dtype=np.float32)


def simulator_of(env_id):
    return MODULE_TO_SIMULATOR.get(gym.spec(env_id).entry_point.partition(":")[0])


@pytest.fixture(autouse=True)
def has_its_simulator(request):
    """Skips the environments whose extra is not installed; in CI all are."""
    env_id = request.node.callspec.params.get("env_id") if hasattr(request.node, "callspec") else None
    if env_id is not None and simulator_of(env_id) is not None:
        require(simulator_of(env_id)[0])


def family_of(env):
    return env.get_wrapper_attr("task_family")


# -- the contract of all registered environments ----------------------------------------------------------------------


def check_contract(family, reward, terminated, info):
    """What ``step`` returned against what the family says of the features that are stored."""
    features, task = info["task_features"], info["task"]
    assert features.shape == (family.feature_dim,) and features.dtype == np.float32
    assert family.reward(features, task) == reward
    assert (bool(family.terminated(features, task)) | info["env_terminated"]) == terminated
    assert family.success(features, task) == info.get("is_success")
    # A batch must round as a single row does: the buffer relabels batches.
    assert family.reward(features[None, None], task[None]).tolist() == [[reward]]


@each_env
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_what_step_returns_equals_what_the_family_says_of_the_features(env_id, flatten):
    env = gym.make(env_id, flatten=flatten)
    env.action_space.seed(0)
    for episode in range(6):
        env.reset(seed=0 if episode == 0 else None)
        for _ in range(100):
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            check_contract(family_of(env), reward, terminated, info)
            if terminated or truncated:
                break


@each_env
def test_the_contract_holds_where_a_goal_is_reached(env_id):
    env = gym.make(env_id)
    family = family_of(env)
    if not family.reaches_goals:
        # So that none is left out by mistake: a goal that is not shown to the policy is one of a few.
        assert family.tasks is not None or not ("Goal" in env_id or "Reach-" in env_id)
        return
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(25)]
    for seed in range(5):
        env.reset(seed=seed, options={"task": family.task_space.high})
        for action in actions:
            *_, info = env.step(action)
        # The same episode again, now for the goal that it reached.
        env.reset(seed=seed, options={"task": family.achieved(info["task_features"])})
        for action in actions:
            _, reward, terminated, _, info = env.step(action)
            check_contract(family, reward, terminated, info)
            if terminated:
                break
        assert terminated and info["is_success"] and not info["env_terminated"]


@each_env
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_both_environment_checkers_pass(env_id, flatten):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*infinity.*")  # the cheetah's own observation space
        sb3_check_env(gym.make(env_id, flatten=flatten))
        gymnasium_check_env(gym.make(env_id, flatten=flatten), skip_render_check=True)


@each_env
def test_two_runs_with_one_seed_are_identical(env_id):
    def run(seed):
        env = gym.make(env_id, flatten=True)
        env.action_space.seed(0)
        rows = []
        for episode in range(3):
            obs, _ = env.reset(seed=seed if episode == 0 else None)
            rows.append(np.append(obs, 0.0))
            for _ in range(20):
                obs, reward, *_ = env.step(env.action_space.sample())
                rows.append(np.append(obs, reward))
        return np.array(rows)

    assert_array_equal(run(7), run(7))
    assert not np.array_equal(run(7), run(8))


@each_env
def test_every_reset_draws_another_task_and_a_fixed_one_stays(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    tasks = np.array([env.reset()[1]["task"] for _ in range(20)])
    family = family_of(env)
    # Of few tasks some come again.
    expected = 20 if family.tasks is None else min(len(family.tasks), 10)
    assert len(np.unique(tasks, axis=0)) >= expected
    fixed = gym.make(env_id, fixed_task=tasks[0])
    assert all(np.array_equal(fixed.reset()[1]["task"], tasks[0]) for _ in range(3))


@each_env
def test_the_registered_time_limit_truncates_and_does_not_terminate(env_id):
    limit = gym.spec(env_id).max_episode_steps
    # The hopper falls when it is still.
    kwargs = {"terminate_when_unhealthy": False} if env_id == "MOHopper-v0" else {}
    for env, expected in ((gym.make(env_id, **kwargs), limit), (gym.make(env_id, max_episode_steps=5), 5)):
        assert env.spec.max_episode_steps == expected
        env.reset(seed=0)
        still = np.zeros(env.action_space.shape, dtype=np.float32)
        flags = [env.step(still)[2:4] for _ in range(expected)]
        assert flags == [(False, False)] * (expected - 1) + [(False, True)]


@each_env
def test_there_is_one_time_limit_and_no_checker_in_the_stack(env_id):
    env, names = gym.make(env_id), []
    while isinstance(env, gym.Wrapper):
        names.append(type(env).__name__)
        env = env.env
    # rl_zoo3 replaces the class by one of its own when it is imported.
    assert len([name for name in names if name.endswith("TimeLimit")]) == 1
    assert names.count("OrderEnforcing") <= 1
    assert "PassiveEnvChecker" not in names


@each_env
def test_its_own_spec_makes_it_again(env_id):
    task = family_of(gym.make(env_id)).sample(np.random.default_rng(7), 1)[0]
    env = gym.make(env_id, fixed_task=task, max_episode_steps=9)
    again = gym.make(env.spec)
    assert again.spec.id == env_id and again.spec.max_episode_steps == 9
    assert_array_equal(again.reset(seed=0)[1]["task"], env.reset(seed=0)[1]["task"])


@each_env
def test_it_is_a_multi_task_wrapper_of_a_picklable_family(env_id):
    env = gym.make(env_id)
    assert isinstance(env.env, MultiTaskWrapper)
    family = family_of(env)
    copy = pickle.loads(pickle.dumps(family))
    tasks = family.sample(np.random.default_rng(0), 4)
    assert_array_equal(copy.log_prior(tasks), family.log_prior(tasks))


@each_env
def test_it_runs_in_a_subprocess_with_the_same_results_as_here(env_id):
    venv = SubprocVecEnv([lambda: gym.make(env_id)], start_method="fork")
    env = gym.make(env_id)
    try:
        venv.seed(3)
        remote, (here, _) = venv.reset(), env.reset(seed=3)
        action = env.action_space.sample()
        remote_next, remote_rewards, *_ = venv.step(np.array([action]))
        here_next, reward, *_ = env.step(action)
        family = venv.get_attr("task_family")[0]
    finally:
        venv.close()
    for key in ("observation", "task"):
        assert_allclose(remote[key][0], here[key], rtol=1e-6)
        assert_allclose(remote_next[key][0], here_next[key], rtol=1e-6)
    assert_allclose(remote_rewards[0], reward, rtol=1e-6)
    tasks = family_of(env).sample(np.random.default_rng(0), 3)
    assert_array_equal(family.sample(np.random.default_rng(0), 3), tasks)


@pytest.mark.expensive
@pytest.mark.parametrize("env_id", ["PointCorners-v0", "ReacherGoal-v0", "SawyerReach-v0", "AntDirection-v0", "MOHopper-v0"])
def test_it_is_made_in_a_fresh_process(env_id):
    # The part before the colon is imported first: the process knows of no environment of ours.
    venv = SubprocVecEnv([partial(gym.make, f"hipi_sb3:{env_id}")], start_method="spawn")
    try:
        venv.seed(3)
        assert_allclose(venv.reset()["observation"][0], gym.make(env_id).reset(seed=3)[0]["observation"], rtol=1e-6)
        pickle.dumps(venv.get_attr("task_family")[0])
    finally:
        venv.close()


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [(env_id, *simulator_of(env_id)) for env_id in registered_env_ids() if simulator_of(env_id) is not None],
)
def test_without_its_extra_make_says_which_one_to_install(monkeypatch, env_id, module, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module or name in MODULE_TO_SIMULATOR]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=rf'pip install "hipi_sb3\[{extra}\]"'):
        gym.make(env_id)


def test_registering_again_changes_nothing():
    before = {env_id: gym.spec(env_id) for env_id in registered_env_ids()}
    register_envs()
    assert {env_id: gym.spec(env_id) for env_id in registered_env_ids()} == before


def test_importing_the_package_imports_no_simulator():
    simulators = ("mujoco", "pygame", "dm_control", "metaworld", "gymnasium_robotics", "mo_gymnasium")
    code = f"import sys, hipi_sb3; sys.exit(any(name in sys.modules for name in {simulators}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- half cheetah -----------------------------------------------------------------------------------------------------


def test_half_cheetah_is_rewarded_for_the_velocity_it_is_told():
    env = gym.make("HalfCheetahVelocity-v0", low=-1.0, high=2.0)
    family = family_of(env)
    assert (family.task_space.low, family.task_space.high) == (-1.0, 2.0)
    env.reset(seed=0, options={"task": [1.5]})
    action = np.full(6, 0.5, dtype=np.float32)
    *_, info = env.step(action)
    assert_allclose(info["task_features"], [info["x_velocity"], 1.5], rtol=1e-6)
    _, reward, *_, info = env.step(action)
    assert_allclose(reward, -abs(info["x_velocity"] - 1.5) - 0.05 * 1.5, rtol=1e-5)


# -- the maze's physics -----------------------------------------------------------------------------------------------


def naive_step(walls, position, action):
    """The rule as it is written down: ten substeps, each axis on its own, not taken where it is blocked."""
    start, taken = position, np.zeros(2)
    for _ in range(10):
        for axis in range(2):
            tried = taken + np.eye(2)[axis]
            moved = start + tried * (action / 10)
            if np.any(moved < 0) or np.any(moved > walls.shape):
                continue
            cell = np.minimum(np.floor(moved).astype(int), np.array(walls.shape) - 1)
            if not walls[tuple(cell)]:
                position, taken = moved, tried
    return position


def test_the_map_is_the_four_rooms_with_every_cell_three_units_wide():
    assert FOUR_ROOMS.shape == (33, 33)
    assert FOUR_ROOMS.sum() == 9 * sum(row.count("1") for row in MAPS["four_rooms"]) == 9 * 17
    assert FOUR_ROOMS[0, 15:18].all() and not FOUR_ROOMS[0, 14] and not FOUR_ROOMS[0, 18]
    assert not FOUR_ROOMS[6:9, 15:18].any() and FOUR_ROOMS[15:18, 0:3].all() and not FOUR_ROOMS[15:18, 3:6].any()


def test_steps_equal_a_naive_reference_exactly():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 33, size=(40, 2))
    # Corners, borders and half-way points as well, and actions that are exactly on the bounds or zero.
    starts = np.concatenate([starts, np.round(2 * starts) / 2, [[33, 33], [0, 33], [33, 0], [14.5, 14.5], [17.5, 19.5]]])
    for start in starts[~in_wall(FOUR_ROOMS, starts)]:
        env = PointEnv(start=start)
        env.reset(seed=0)
        position = np.array(start)
        for _ in range(40):
            action = rng.choice([rng.uniform(-1, 1, 2), rng.integers(-1, 2, 2), rng.uniform(-1, 1) * np.ones(2)])
            action = action.astype(np.float32)
            position = naive_step(FOUR_ROOMS, position, action.astype(np.float64))
            obs, *_ = env.step(action)
            assert (env._x, env._y) == tuple(position)
            assert_array_equal(obs, position.astype(np.float32))
            assert env.observation_space.contains(obs)


def test_whole_moves_from_square_to_square_do_not_drift():
    env = PointEnv("open")
    env.reset(seed=0)
    for action in ((1, 1), (1, 0), (-1, 1), (0, -1), (1, 1), (-1, -1)) * 50:
        env.step(np.array(action, dtype=np.float32))
        assert (env._x, env._y) == (round(env._x), round(env._y))


def test_the_grid_point_stays_on_its_grid_and_is_stopped_by_walls():
    env = gym.make("PointFourRoomsGrid-v0").unwrapped
    env.reset(seed=0)
    down, up, right, left = range(4)
    # Axis 0 goes from 0 to 14, where the wall of the four rooms begins at 15; axis 1 cannot go below 0.
    for action, expected in ((down, (14, 0)), (left, (14, 0)), (right, (14, 14)), (up, (0, 14))):
        for _ in range(20):
            obs, *_ = env.step(action)
        assert tuple(obs) == expected


def test_a_step_moves_by_the_action_where_nothing_is_in_the_way():
    env = PointEnv(start=(5, 5))
    env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(np.array([0.5, -1.0], dtype=np.float32))
    assert_allclose(obs, [5.5, 4.0], rtol=1e-6)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})


def test_the_point_slides_along_a_wall():
    env = PointEnv(start=(12, 14))
    env.reset(seed=0)
    for _ in range(2):
        obs, *_ = env.step(np.array([0.5, 1.0], dtype=np.float32))
    # Axis 1 stops before the wall at 15, axis 0 goes on.
    assert_allclose(obs[0], 13.0, rtol=1e-6)
    assert 14.89 < obs[1] <= 15.0


def test_the_point_neither_enters_walls_nor_leaves_the_map():
    env = PointEnv(action_noise=1.0, start=(10, 12))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3000):
        env.step(env.action_space.sample())
        assert not in_wall(FOUR_ROOMS, np.array([env._x, env._y]))


def test_a_door_lets_the_point_through():
    env = PointEnv(start=(7.5, 14.0))
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(RIGHT)
    assert_allclose(obs, [7.5, 19.0], rtol=1e-6)


def test_actions_are_clipped_and_nan_is_refused():
    env = PointEnv(start=(5, 5))
    env.reset(seed=0)
    assert_allclose(env.step(np.array([3.0, -0.5]))[0], [6, 4.5], rtol=1e-6)
    with pytest.raises(ValueError, match="not a number"):
        env.step(np.array([np.nan, 0.0]))


def test_noise_is_added_to_the_action_and_the_sum_is_clipped():
    env = PointEnv(walls=np.zeros((1, 1)), cell_size=1000, action_noise=1.0, start=(500, 500))
    env.reset(seed=0)
    moves = np.diff([[500.0, 500.0]] + [(env.step(DOWN), (env._x, env._y))[1] for _ in range(750)], axis=0)
    assert np.abs(moves).max() <= 1 + 1e-9
    # Four standard errors of 750 draws; E clip(1 + n, -1, 1) = 0.6095 and P(1 + n > 1) = 1/2 for a standard normal n.
    assert_allclose(moves.mean(axis=0), [0.6095, 0.0], atol=0.08)
    assert_allclose(np.mean(moves[:, 0] > 1 - 1e-9), 0.5, atol=0.08)
    quiet = PointEnv(start=(5, 5))
    quiet.reset(seed=0)
    assert_allclose(quiet.step(DOWN)[0], [6, 5], rtol=1e-6)


def test_a_map_start_noise_or_render_mode_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"four_room.*four_rooms"):
        PointEnv("four_room")
    with pytest.raises(ValueError, match=r"shape \(rows, columns\), not \(3,\)"):
        PointEnv([0, 0, 1])
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(3,\)"):
        PointEnv(start=(16, 4, 1))
    for start in ((1, 16), (-1, 0), (0, 33.1), (np.nan, 0)):
        with pytest.raises(ValueError, match="in a wall or outside the map"):
            PointEnv(start=start)
    with pytest.raises(ValueError, match="action_noise"):
        PointEnv(action_noise=-1)
    with pytest.raises(ValueError, match="render_mode must be one of"):
        PointEnv(render_mode="ansi")


def test_own_maps_and_other_moves_are_small_additions():
    class Compass(PointEnv):
        def __init__(self) -> None:
            super().__init__(walls=[[0, 1], [0, 0]], cell_size=2)
            self.action_space = gym.spaces.Discrete(4)

        def displacement(self, action):
            return [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)][action]

    env = Compass()
    env.reset(seed=0)
    assert env.observation_space.high.tolist() == [4, 4]
    positions = [env.step(action)[0] for action in (0, 0, 2, 2, 2, 0, 0, 3)]
    assert_allclose(positions[4][0], 3, atol=1e-5)
    assert positions[1][1] < 2.0 + 1e-6 and positions[6][1] > 2.0 and positions[7][0] > 2.0 - 1e-6


# -- goals ------------------------------------------------------------------------------------------------------------


def test_goals_are_free_and_far_from_the_start():
    for start in ((0.0, 0.0), (20.0, 20.0)):
        family = MazeGoals(FOUR_ROOMS, start=start)
        goals = family.sample(np.random.default_rng(0), 5000)
        assert goals.shape == (5000, 2) and goals.dtype == np.float32
        assert not in_wall(FOUR_ROOMS, goals).any()
        assert np.linalg.norm(goals - np.array(start), axis=1).min() >= 15 - 1e-5
        assert_array_equal(family.log_prior(goals), np.full(5000, -np.log(family.area)))
        assert len(family.sample(np.random.default_rng(0), 0)) == 0


def test_the_prior_is_minus_infinity_in_walls_near_the_start_and_outside():
    family = MazeGoals(FOUR_ROOMS)
    goals = np.array([[16.5, 10], [14.99, 0], [0, 14.9], [33.1, 30], [-0.1, 20], [np.nan, 20]])
    assert_array_equal(family.log_prior(goals), [-np.inf] * 6)
    allowed = np.array([[33, 33], [18, 0], [20, 3], [0, 33]])
    assert_allclose(family.log_prior(allowed), -np.log(family.area))
    # Both sides of the least distance, in an open map.
    open_map = MazeGoals(np.zeros((33, 33)), min_distance=15.0)
    assert_array_equal(np.isfinite(open_map.log_prior(np.array([[15, 0], [9, 12], [14.999, 0], [9, 11.999]]))), [1, 1, 0, 0])


def test_the_area_is_right_where_geometry_gives_it():
    open_map = np.zeros((33, 33), dtype=bool)
    assert_allclose(MazeGoals(open_map, min_distance=15).area, 33**2 - np.pi * 15**2 / 4, rtol=1e-6)
    assert_allclose(MazeGoals(open_map, start=(16.5, 16.5), min_distance=10).area, 33**2 - np.pi * 10**2, rtol=1e-6)
    assert_allclose(MazeGoals(open_map, start=(10.3, 12.7), min_distance=5).area, 33**2 - np.pi * 5**2, rtol=1e-6)
    assert_allclose(MazeGoals(FOUR_ROOMS, min_distance=0).area, 33**2 - 9 * 17, rtol=1e-12)
    # The disc around the origin covers no wall of the four rooms: they begin at 15.
    assert_allclose(MazeGoals(FOUR_ROOMS).area, 33**2 - 9 * 17 - np.pi * 15**2 / 4, rtol=1e-6)


def test_the_prior_integrates_to_one():
    family = MazeGoals(FOUR_ROOMS, start=(20.0, 20.0))
    grid = (np.stack(np.meshgrid(np.arange(660), np.arange(660)), axis=-1) + 0.5) / 20
    assert_allclose(np.exp(family.log_prior(grid)).sum() / 20**2, 1.0, atol=2e-3)


def test_goals_are_uniform():
    family = MazeGoals(FOUR_ROOMS)
    goals = family.sample(np.random.default_rng(0), 20_000)
    # The lower right room is 15 x 15 at rows 18 + 3 = 21 to 33 and columns 18 to 33: 12 x 15 units.
    share = np.mean((goals[:, 0] >= 21) & (goals[:, 1] >= 18))
    expected = 12 * 15 / family.area
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)


def test_the_radius_is_inclusive_and_reaching_the_goal_ends_the_task():
    env = gym.make("PointFourRooms-v0")
    family = family_of(env)
    goal = np.array([20, 20], dtype=np.float32)
    at = np.array([[20, 21], [20, 21.001], [20.6, 20.79], [20, 20]], dtype=np.float32)
    assert_array_equal(family.reward(at, goal), [0, -1, 0, 0])
    assert_array_equal(family.terminated(at, goal), [True, False, True, True])
    assert family.reward(at, goal).dtype == np.float32
    small = family_of(gym.make("PointFourRoomsPaper-v0"))
    assert_array_equal(small.reward(np.array([[20, 20.29], [20, 20.31]], dtype=np.float32), goal), [0, -1])


def test_batches_round_as_single_rows_do():
    rng = np.random.default_rng(0)
    family = MazeGoals(FOUR_ROOMS)
    goals = family.sample(rng, 200)
    # On the circle of the radius, where the last bit decides.
    angle = rng.uniform(0, 2 * np.pi, size=200)
    at = (goals + np.stack([np.cos(angle), np.sin(angle)], axis=-1)).astype(np.float32)
    batch = family.reward(at, goals)
    assert 0 < np.mean(batch == 0) < 1
    assert_array_equal(batch, [family.reward(a, goal) for a, goal in zip(at, goals, strict=True)])
    assert_array_equal(batch, np.diagonal(family.reward(at[:, None], goals[None])))


def test_a_distance_that_leaves_no_goal_is_refused():
    with pytest.raises(ValueError, match=r"no free position is at least 50.*Lower min_distance"):
        gym.make("PointFourRooms-v0", min_goal_distance=50)


def test_keyword_arguments_work_through_gym_make():
    env = gym.make("PointFourRooms-v0", action_noise=0.5, radius=2.0, start=(20.0, 5.0), min_goal_distance=5.0, flatten=True)
    assert env.unwrapped.action_noise == 0.5
    assert (family_of(env).radius, family_of(env).min_distance) == (2.0, 5.0)
    obs, _ = env.reset(seed=0)
    assert_array_equal(obs[:2], [20, 5])
    paper = gym.make("PointFourRoomsPaper-v0")
    assert (paper.unwrapped.action_noise, family_of(paper).radius) == (1.0, 0.3)
    default = gym.make("PointFourRooms-v0")
    assert (default.unwrapped.action_noise, family_of(default).radius) == (0.0, 1.0)


# -- a controller that knows the map ----------------------------------------------------------------------------------


def free_neighbours(walls, i, j):
    """Squares next to (i, j), also diagonally where both sides are free."""
    for k in range(max(i - 1, 0), min(i + 2, walls.shape[0])):
        for m in range(max(j - 1, 0), min(j + 2, walls.shape[1])):
            if not (walls[k, m] or walls[k, j] or walls[i, m]):
                yield k, m


def steps_to(walls, goal):
    """Breadth-first search from the goal: number of squares to it, (height, width)."""
    first = tuple(np.minimum(goal, np.array(walls.shape) - 1).astype(int))
    steps = np.full(walls.shape, np.inf)
    steps[first] = 0
    queue = deque([first])
    while queue:
        square = queue.popleft()
        for neighbour in free_neighbours(walls, *square):
            if np.isinf(steps[neighbour]):
                steps[neighbour] = steps[square] + 1
                queue.append(neighbour)
    return steps


def controlled_episode(env, seed):
    """Walk to the centre of the next square on a shortest path: positions, (n_steps + 1, 2), goal and success."""
    obs, info = env.reset(seed=seed)
    maze = env.unwrapped
    steps = steps_to(maze.walls, info["task"])
    positions = [obs["observation"]]
    while True:
        at = np.array([maze._x, maze._y])
        i, j = np.minimum(at, np.array(maze.walls.shape) - 1).astype(int)
        target = info["task"]
        if steps[i, j] > 1:
            # Of the squares that are as near to the goal, the one whose centre is nearest.
            square = min(free_neighbours(maze.walls, i, j), key=lambda s: (steps[s], np.hypot(*(np.array(s) + 0.5 - at))))
            target = np.array(square) + 0.5
        obs, _, terminated, truncated, info = env.step(np.clip(target - at, -1, 1).astype(np.float32))
        positions.append(obs["observation"])
        if terminated or truncated:
            return np.array(positions), info["task"], info["is_success"]


def test_a_way_point_controller_always_arrives_without_noise_and_mostly_with_it():
    env = gym.make("PointFourRooms-v0")
    assert np.mean([controlled_episode(env, seed)[2] for seed in range(60)]) == 1.0
    # Another way-point controller got 0.84 here; four standard deviations of 150 episodes are 0.12.
    noisy = gym.make("PointFourRooms-v0", action_noise=1.0)
    assert 0.70 <= np.mean([controlled_episode(noisy, seed)[2] for seed in range(150)]) <= 0.95


# -- speed ------------------------------------------------------------------------------------------------------------


def seconds_a_step(env, actions):
    start = time.process_time()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return (time.process_time() - start) / len(actions)


def test_the_maze_steps_at_least_three_times_as_fast_as_half_cheetah():
    maze, cheetah = gym.make("PointFourRooms-v0"), gym.make("HalfCheetah-v5")
    maze.reset(seed=0)
    cheetah.reset(seed=0)
    maze_actions = [maze.action_space.sample() for _ in range(600)]
    cheetah_actions = [cheetah.action_space.sample() for _ in range(200)]
    # Taken in turn, the best of each: what else the machine does meanwhile disturbs both alike.
    times = [(seconds_a_step(maze, maze_actions), seconds_a_step(cheetah, cheetah_actions)) for _ in range(15)]
    best_maze, best_cheetah = np.min(times, axis=0)
    assert best_cheetah / best_maze >= 3.0


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_frame_shows_walls_floor_point_trail_and_goal():
    env = gym.make("PointFourRooms-v0", render_mode="rgb_array", fixed_task=[25.0, 20.0])
    env.reset(seed=0)
    first = env.render()
    for _ in range(6):
        env.step(np.ones(2, dtype=np.float32))
    frame = env.render()
    assert frame.shape == (33 * 16, 33 * 16, 3) and frame.dtype == np.uint8

    def at(image, row, column):
        return image[int(16 * row), int(16 * column)].astype(int)

    wall, floor = at(frame, 16.5, 1.5), at(frame, 20.5, 3.5)
    assert wall.mean() < 90 and floor.mean() > 230
    assert_array_equal(at(frame, 1.5, 16.5), wall)
    point = at(frame, 6, 6)
    assert point[2] > point[0] + 100  # blue
    assert at(frame, 3, 3)[2] > at(frame, 3, 3)[0] + 50  # the trail
    assert at(first, 3, 3).mean() > 230
    goal = at(frame, 25.5, 20.5)
    assert goal[1] > goal[0] + 30  # green
    assert_array_equal(frame, env.render())


def test_the_goal_is_drawn_at_the_task_of_the_episode_and_nowhere_without_one():
    env = make_point_four_rooms(render_mode="rgb_array")
    env.reset(seed=0, options={"task": [25, 20]})
    here = env.render()
    env.reset(seed=0, options={"task": [20, 25]})
    there = env.render()
    assert not np.array_equal(here, there)
    plain = PointEnv(render_mode="rgb_array")
    plain.reset(seed=0)
    nowhere = plain.render()
    assert not np.array_equal(nowhere[16 * 25, 16 * 20], here[16 * 25, 16 * 20])
    assert_array_equal(nowhere[16 * 25, 16 * 20], there[16 * 25, 16 * 20])


def test_frames_of_goals_and_points_at_the_border_stay_inside():
    env = make_point_four_rooms(render_mode="rgb_array", fixed_task=[33.0, 33.0], start=(0.0, 33.0), min_goal_distance=1.0)
    env.reset(seed=0)
    env.step(RIGHT)
    assert env.render().shape == (528, 528, 3)


def test_the_declared_render_modes_work(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("PointFourRooms-v0", render_mode="human")
    assert env.metadata["render_modes"] == ["human", "rgb_array"] and env.metadata["render_fps"] > 0
    env.reset(seed=0)
    for _ in range(3):
        env.step(DOWN)
    assert env.render() is None
    import pygame

    shown = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
    other = gym.make("PointFourRooms-v0", render_mode="rgb_array")
    other.reset(seed=0)
    for _ in range(3):
        other.step(DOWN)
    assert_array_equal(shown, other.render())
    env.close()
    env.close()


def test_human_rendering_without_pygame_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = gym.make("PointFourRooms-v0", render_mode="human")
    with pytest.raises(gym.error.DependencyNotInstalled, match="pip install"):
        env.reset(seed=0)


def test_rendering_without_a_mode_warns_and_returns_nothing():
    env = PointEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_half_cheetah_passes_its_render_mode_on():
    assert gym.make("HalfCheetahVelocity-v0", render_mode="rgb_array").render_mode == "rgb_array"


def test_trajectories_are_drawn_into_a_small_png(tmp_path):
    env = gym.make("PointFourRooms-v0", action_noise=1.0)
    observations, goals, successes = zip(*(controlled_episode(env, seed) for seed in range(12)), strict=True)
    path = tmp_path / "trajectories.png"
    env.unwrapped.plot_trajectories(path, observations, np.array(goals), successes)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert 5_000 < path.stat().st_size < 300_000
    with pytest.raises(ValueError, match=r"12 trajectories need goals of shape \(12, 2\).*not \(3, 2\)"):
        env.unwrapped.plot_trajectories(path, observations, np.array(goals)[:3], successes)


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.expensive
@each_env
def test_2000_steps_of_training_make_no_nan(env_id):
    env = gym.make(env_id)
    algorithm = HIPIDQN if isinstance(env.action_space, gym.spaces.Discrete) else HIPISAC
    policy_kwargs = {"net_arch": [64, 64]}
    model = algorithm("MultiInputPolicy", env, learning_starts=500, batch_size=64, policy_kwargs=policy_kwargs, seed=0)
    model.learn(2000)
    assert model.num_timesteps == 2000 and model._n_updates > 300
    parameters = [parameter for parameter in model.policy.state_dict().values() if parameter.is_floating_point()]
    assert all(parameter.isfinite().all() for parameter in parameters)
    samples = model.replay_buffer.sample(256)
    for tensor in (samples.rewards, *samples.observations.values(), *samples.next_observations.values()):
        assert tensor.isfinite().all()
    evaluation = evaluate_tasks(model, gym.make(env_id, max_episode_steps=20), family_of(env).sample(env.np_random, 2))
    assert np.isfinite(evaluation.returns).all()
