"""The point environments that step together: equal to as many single ones, for Gymnasium and for stable-baselines3."""

import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from hipi_sb3 import HIPISAC, HIPIReplayBuffer, LinearReward, MultiTaskWrapper
from hipi_sb3.callbacks import TaskEvalCallback
from hipi_sb3.envs import registered_env_ids
from hipi_sb3.envs.point import PointEnv, in_wall, make_point_four_rooms
from hipi_sb3.envs.point_vector import PointVectorEnv, taken_substeps
from hipi_sb3.evaluation import evaluate_tasks, save_trajectory_plot
from hipi_sb3.vec_env import PointVecEnv

ENV_IDS = [
    "PointFourRooms-v0",
    "PointFourRoomsPaper-v0",
    "PointFourRoomsGrid-v0",
    "PointFixedGoals-v0",
    "PointCorners-v0",
]
each_env = pytest.mark.parametrize("env_id", ENV_IDS)


def make(env_id, num_envs, **kwargs):
    return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)


@pytest.fixture(autouse=True)
def time_limit_of_gymnasium(monkeypatch):
    """rl_zoo3, which other tests import, puts a TimeLimit in its place that adds an entry to info."""
    own = next(cls for cls in gym.wrappers.TimeLimit.__mro__ if cls.__module__ == "gymnasium.wrappers.common")
    monkeypatch.setattr(gym.wrappers, "TimeLimit", own)


def make_sync(env_id, num_envs, autoreset_mode="NextStep", **kwargs):
    return SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * num_envs, autoreset_mode=AutoresetMode(autoreset_mode))


def actions_of(space, n_steps, seed=0):
    """Actions that go somewhere, into walls and along them, some of them exactly on the bounds or beyond."""
    space.seed(seed)
    rng = np.random.default_rng(seed)
    for t in range(n_steps):
        actions = space.sample()
        if np.issubdtype(actions.dtype, np.floating):
            if t % 20 == 0:
                heading = rng.uniform(-1, 1, actions.shape)
            actions = (0.5 * actions + heading).astype(np.float32)
            actions = np.sign(actions) if t % 7 == 0 else actions
        yield actions


def assert_same(a, b):
    """Arrays, dicts of arrays and arrays of such dicts, equal in every bit and in type."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert_array_equal(a, b)
    else:
        assert a == b


# -- gymnasium --------------------------------------------------------------------------------------------------------


def test_all_mazes_and_no_others_have_a_vector_entry_point():
    assert {env_id for env_id in registered_env_ids() if gym.spec(env_id).vector_entry_point} == set(ENV_IDS)


@each_env
@pytest.mark.parametrize("autoreset_mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_it_equals_single_environments_with_the_same_seeds(env_id, autoreset_mode, flatten):
    kwargs = {"autoreset_mode": autoreset_mode, "flatten": flatten}
    ours, theirs = make(env_id, 8, **kwargs), make_sync(env_id, 8, **kwargs)
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    ends = 0
    for actions in actions_of(theirs.action_space, 230):
        step = ours.step(actions)
        assert_same(step, theirs.step(actions))
        ends += (step[2] | step[3]).sum()
    assert ends > 8  # episodes ended and others began


@pytest.mark.expensive
@each_env
def test_64_of_them_equal_64_single_environments_for_long(env_id):
    ours, theirs = make(env_id, 64), make_sync(env_id, 64)
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    for actions in actions_of(theirs.action_space, 2000, seed=1):
        assert_same(ours.step(actions), theirs.step(actions))


@pytest.mark.parametrize("n_substeps", [1, 3, 10])
def test_the_walk_is_that_of_the_single_environment_from_anywhere_in_any_map(n_substeps):
    rng = np.random.default_rng(0)
    for walls in (rng.random((6, 9)) < 0.4, np.zeros((2, 2)), [[0, 1], [1, 0]]):
        for cell_size in (1, 2):
            walls = np.array(walls, dtype=bool)
            walls[0, 0] = False
            single = PointEnv(walls, cell_size=cell_size)
            single.n_substeps = n_substeps
            free = np.argwhere(~single.walls)
            starts = free[rng.integers(len(free), size=800)] + rng.choice([0, 0.5, 1 - 2**-52, rng.random()], (800, 2))
            # Some on the far border, which belongs to the last square.
            starts = np.where(rng.random((800, 2)) < 0.1, single.walls.shape, starts)
            starts = starts[~in_wall(single.walls, starts)][:400].T
            moves = rng.choice([rng.uniform(-1, 1, (2, 400)), rng.integers(-1, 2, (2, 400))], axis=0).astype(np.float64)
            expected = np.transpose([single.walk(*numbers) for numbers in np.concatenate([starts, moves]).T.tolist()])
            assert starts.shape == (2, 400)
            many = PointVectorEnv(make_point_four_rooms, 400)
            many.point, many._positions = single, starts.copy()
            many._set_map()
            many._walk(moves)
            assert_array_equal(many._positions, expected)


def test_the_table_of_blocked_moves_has_the_cases_that_one_can_draw():
    table, weights, first = taken_substeps(10)

    def taken(squares_x, squares_y, walls):
        return table[:, int(np.sum(weights * np.transpose([squares_x, squares_y]))) + first + walls].tolist()

    stays, leaves_2, leaves_4, leaves_6 = [3] * 11, [3] * 2 + [4] * 9, [5] * 4 + [4] * 7, [0] * 6 + [-1] * 5
    # A free way; walls on both sides from the first substep on; a door along axis 1 that opens after three substeps.
    assert taken(leaves_4, leaves_6, 0) == taken(stays, stays, 0b111) == [10, 10]
    assert taken([3] + [4] * 10, [3] + [2] * 10, 0b111) == [0, 0]
    assert taken(leaves_2, leaves_4, 0b001) == [1 + (10 - 4), 10]
    # Rounding took the last substep into a third square.
    assert np.isnan(taken([3] + [2] * 9 + [1], stays, 0)).all()


def test_it_keeps_to_gymnasiums_contract():
    env = make("PointFourRooms-v0", 5)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and env.num_envs == 5
    single = gym.make("PointFourRooms-v0")
    assert env.single_observation_space == single.observation_space and env.single_action_space == single.action_space
    assert env.spec.id == "PointFourRooms-v0"
    obs, infos = env.reset(seed=0)
    assert env.observation_space.contains(obs) and infos["_task"].all()
    obs, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    for array, dtype in ((rewards, np.float64), (terminated, bool), (truncated, bool), (infos["is_success"], bool)):
        assert array.shape == (5,) and array.dtype == dtype
    # What was returned does not change later.
    before = obs["observation"].copy(), infos["task_features"].copy()
    env.step(env.action_space.sample())
    assert_array_equal(obs["observation"], before[0])
    assert_array_equal(infos["task_features"], before[1])
    # And what is done to it does not change what follows.
    disabled = make("PointFourRooms-v0", 3, autoreset_mode="Disabled")
    disabled.reset(seed=0)
    obs, *_, infos = disabled.step(np.ones((3, 2), dtype=np.float32))
    obs["observation"][:] = infos["task_features"][:] = 99
    obs, _ = disabled.reset(options={"reset_mask": np.array([True, False, False])})
    assert_array_equal(obs["observation"], [[0, 0], [1, 1], [1, 1]])
    again = gym.make_vec(env.spec)
    assert again.num_envs == 5 and isinstance(again, PointVectorEnv)
    env.close()
    assert env.closed


def test_wrappers_of_gymnasium_for_vector_environments_work():
    env = gym.wrappers.vector.RecordEpisodeStatistics(make("PointCorners-v0", 3, max_episode_steps=4))
    env.reset(seed=0)
    for _ in range(4):
        *_, infos = env.step(np.zeros((3, 2), dtype=np.float32))
    assert infos["episode"]["l"].tolist() == [4, 4, 4] and infos["episode"]["r"].tolist() == [-4, -4, -4]


def test_seeds_tasks_and_masks_of_reset():
    env = make("PointFourRooms-v0", 3)
    first, _ = env.reset(seed=[5, 6, None])
    other, _ = env.reset(seed=5)
    assert_array_equal(first["task"][:2], other["task"][:2])
    task = np.array([30.0, 20.0], dtype=np.float32)
    assert_array_equal(env.reset(options={"task": task})[0]["task"], [task] * 3)
    tasks = np.array([[30, 20], [20, 30], [33, 33]], dtype=np.float32)
    assert_array_equal(env.reset(options={"task": tasks})[0]["task"], tasks)
    env.step(np.ones((3, 2), dtype=np.float32))
    obs, infos = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert_array_equal(obs["observation"], [[0, 0], [1, 1], [1, 1]])
    assert_array_equal(obs["task"][1:], tasks[1:])
    assert infos["_task"].tolist() == [True, False, False] and not infos["task"][1:].any()
    env.fix_task(1, task)
    assert_array_equal(env.reset()[0]["task"][1], task)
    assert all(np.array_equal(env.reset()[0]["task"][1], task) for _ in range(3))
    fixed = make("PointFourRooms-v0", 2, fixed_task=task)
    assert_array_equal(fixed.reset()[0]["task"], [task] * 2)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        PointVectorEnv(make_point_four_rooms, 0)
    env = make("PointFourRooms-v0", 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="environment 1 is not a number"):
        env.step(np.array([[0, 0], [np.nan, 0], [0, 0]]))
    with pytest.raises(ValueError, match="3 seeds, not 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask must be a bool array"):
        env.reset(options={"reset_mask": np.ones(2, dtype=bool)})
    with pytest.raises(ValueError, match="outside the task space"):
        env.reset(options={"task": [40.0, 0.0]})
    off = make("PointFourRooms-v0", 2, max_episode_steps=1, autoreset_mode="Disabled")
    off.reset(seed=0)
    *_, truncated, _ = off.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"environments \[0, 1\] have ended"):
        off.step(np.zeros((2, 2)))
    off.reset(options={"reset_mask": truncated})
    off.step(np.zeros((2, 2)))


class Mirrored(PointEnv):
    def displacement(self, action):
        return super().displacement(-action)


def test_environments_that_it_cannot_step_are_refused():
    family = make_point_four_rooms().task_family
    weights = LinearReward([-1, -1], [1, 1], features=opposite_position)
    for single, message in (
        (MultiTaskWrapper(Mirrored(), family), "Mirrored overrides displacement but not displacements"),
        (MultiTaskWrapper(gym.wrappers.TimeLimit(PointEnv(), 9), family), "directly around a PointEnv"),
        (MultiTaskWrapper(PointEnv(start=(3, 4)), weights), "LinearReward has others"),
    ):
        with pytest.raises(ValueError, match=message):
            PointVectorEnv(lambda single=single: single, 2)


def opposite_position(env, obs, action, next_obs, reward, info):
    return -next_obs


def test_pictures_are_those_of_the_single_environment():
    ours, theirs = make("PointCorners-v0", 2, render_mode="rgb_array"), make_sync(
        "PointCorners-v0", 2, render_mode="rgb_array"
    )
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for actions in actions_of(theirs.action_space, 5):
        ours.step(actions)
        theirs.step(actions)
    assert_array_equal(ours.render(), theirs.render())


# -- stable-baselines3 ------------------------------------------------------------------------------------------------


def both_vec_envs(env_id, n, **kwargs):
    return PointVecEnv(make(env_id, n, **kwargs)), DummyVecEnv([lambda: gym.make(env_id, **kwargs)] * n)


@each_env
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_the_vec_env_equals_a_dummy_vec_env(env_id, flatten):
    ours, theirs = both_vec_envs(env_id, 6, flatten=flatten)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    tasks = ours.get_attr("task_family")[0].sample(np.random.default_rng(0), 6)
    for env in (ours, theirs):
        env.seed(5)
        env.set_options([{"task": task} for task in tasks])
    assert_same(ours.reset(), dict(theirs.reset()) if not flatten else theirs.reset())
    assert_same(ours.reset_infos, theirs.reset_infos)
    assert_array_equal([info["task"] for info in ours.reset_infos], tasks)
    ended = 0
    for actions in actions_of(gym.vector.utils.batch_space(theirs.action_space, 6), 120):
        (obs, *ours_rest), (their_obs, *theirs_rest) = ours.step(actions), theirs.step(actions)
        assert_same(obs, dict(their_obs) if not flatten else their_obs)
        assert_same(ours_rest, theirs_rest)
        assert_same(ours.reset_infos, theirs.reset_infos)
        ended += ours_rest[1].sum()
    assert ended > 0


def test_the_vec_env_answers_as_a_dummy_vec_env():
    ours, theirs = both_vec_envs("PointFourRooms-v0", 3)
    task = np.array([30, 20], dtype=np.float32)
    for env in (ours, theirs):
        env.env_method("fix_task", task, indices=[1])
        env.seed(0)
        env.reset()
    assert_same(ours.get_attr("task"), theirs.get_attr("task"))
    for name in ("fixed_task", "render_mode"):
        assert_same([x is None for x in ours.get_attr(name)], [x is None for x in theirs.get_attr(name)])
    assert ours.get_attr("task_family", indices=[0])[0].radius == 1.0 and len(ours.get_attr("np_random", [0, 2])) == 2
    for name, expected in (("task_family", True), ("plot_trajectories", True), ("compute_reward", False)):
        assert ours.has_attr(name) == expected == theirs.has_attr(name)
    assert ours.env_is_wrapped(MultiTaskWrapper) == theirs.env_is_wrapped(MultiTaskWrapper) == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.FlattenObservation, indices=0) == [False]
    with pytest.raises(AttributeError, match="all environments share one"):
        ours.set_attr("action_noise", 1.0)
    with pytest.raises(AttributeError, match="no method 'reset'"):
        ours.env_method("reset")
    with pytest.raises(TypeError, match="needs a PointVectorEnv"):
        PointVecEnv(make_sync("PointFourRooms-v0", 2))


@pytest.mark.parametrize("algorithm", [SAC, HIPISAC])
def test_training_evaluation_and_callbacks_work_on_it(algorithm, tmp_path):
    env = VecMonitor(PointVecEnv(make("PointFourRooms-v0", 16)))
    kwargs = {} if algorithm is HIPISAC else {"replay_buffer_class": HIPIReplayBuffer}
    settings = {"learning_starts": 1280, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}, "seed": 0}
    model = algorithm("MultiInputPolicy", env, **settings, **kwargs)
    eval_env = VecMonitor(PointVecEnv(make("PointFourRooms-v0", 5)))
    callback = TaskEvalCallback(eval_env, n_tasks=7, eval_freq=80, verbose=0, log_path=str(tmp_path))
    model.learn(16 * 100, callback=callback, log_interval=None)
    assert model._n_updates > 0 and len(model.ep_info_buffer) > 0
    assert (tmp_path / "evaluations.npz").exists()
    # The time limit bootstraps, and the last observation of an episode is not the first of the next.
    buffer = model.replay_buffer
    last = buffer.dones[:100].astype(bool) & buffer.timeouts[:100].astype(bool)
    assert last.any() and np.all(buffer.next_observations["observation"][:100][last].max(axis=-1) > 0)


def test_an_evaluation_on_it_is_that_of_single_environments(tmp_path):
    ours, theirs = both_vec_envs("PointFourRoomsPaper-v0", 4)
    model = HIPISAC("MultiInputPolicy", theirs, policy_kwargs={"net_arch": [8]}, seed=0)
    tasks = theirs.get_attr("task_family")[0].sample(np.random.default_rng(0), 6)
    results = [evaluate_tasks(model, env, tasks, seed=3, record_observations=True) for env in (ours, theirs)]
    assert_same(results[0].to_dict(), results[1].to_dict())
    assert_same(results[0].observations, results[1].observations)
    assert ours.get_attr("fixed_task") == [None] * 4
    assert save_trajectory_plot(ours, results[0], tmp_path / "paths.png")


def test_it_can_be_normalised_and_drawn():
    env = VecNormalize(PointVecEnv(make("PointCorners-v0", 3, render_mode="rgb_array")))
    env.reset()
    env.step(np.zeros((3, 2), dtype=np.float32))
    assert env.render().ndim == 3
    plain = PointVecEnv(make("PointCorners-v0", 2))
    plain.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plain.get_images() == [None, None]


def test_goals_are_drawn_with_their_radius():
    for env_id, radius in (("PointFourRoomsPaper-v0", 0.3), ("PointFourRooms-v0", 1.0)):
        assert make(env_id, 2).point.goal_radius == radius == gym.make(env_id).get_wrapper_attr("task_family").radius


def test_the_environments_can_be_pickled_in_the_middle_of_an_episode():
    env = make("PointFourRoomsPaper-v0", 3)
    env.reset(seed=0)
    env.step(np.ones((3, 2), dtype=np.float32))
    copy = pickle.loads(pickle.dumps(env))
    actions = np.zeros((3, 2), dtype=np.float32)
    assert_same(env.step(actions), copy.step(actions))


def test_gymnasiums_part_imports_neither_torch_nor_stable_baselines3():
    code = "import sys, types; sys.modules['hipi_sb3'] = m = types.ModuleType('hipi_sb3'); m.__path__ = ['hipi_sb3']\n"
    code += "import hipi_sb3.envs.point_vector; sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
