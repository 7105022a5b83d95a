"""MultiTaskWrapper around a small environment whose every step is known."""

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from hipi_sb3 import HIPIDQN, HIPISAC, HIPIReplayBuffer
from hipi_sb3.tasks.functions import CallableTasks
from hipi_sb3.tasks.goals import GoalReaching
from hipi_sb3.tasks.linear import LinearReward
from hipi_sb3.wrappers import MultiTaskWrapper


class Line(gym.Env):
    """Add the action, (2,), to the position, (2,); beyond ``cliff`` on axis 0 the environment itself ends."""

    action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
    observation_space = spaces.Box(-100.0, 100.0, shape=(2,), dtype=np.float32)

    def __init__(self, cliff: float = 99.0) -> None:
        self.cliff = cliff
        self.reset_options = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.reset_options = options
        self.position = self.np_random.uniform(-0.1, 0.1, size=2).astype(np.float32)
        return self.position.copy(), {"inner": "reset"}

    def step(self, action):
        self.position = np.clip(self.position + action, -100, 100).astype(np.float32)
        return self.position.copy(), 7.0, bool(self.position[0] > self.cliff), False, {"inner": "step"}


class WrongFeatures(GoalReaching):
    """Features that are not what the family says: another shape, or NaN from the third step on."""

    def __init__(self, features) -> None:
        super().__init__([-9, -9], [9, 9], radius=0.5)
        self.wrong = features

    def features(self, env, obs, action, next_obs, reward, info):
        return np.asarray(self.wrong, dtype=np.float64)


def position_features(env, obs, action, next_obs, reward, info):
    return next_obs


def division_by_the_task(features, tasks):
    with np.errstate(divide="ignore"):
        return features[..., 0] / (0 * tasks[..., 0])


def all_arguments(env, obs, action, next_obs, reward, info):
    """What reaches a family: env's cliff, obs, action, next_obs, the inner reward, a mark in info."""
    return np.concatenate([[env.unwrapped.cliff], obs, action, next_obs, [reward], [info["inner"] == "step"]])


GOALS = GoalReaching([-9, -9], [9, 9], radius=0.5)


def make(family=GOALS, time_limit=None, cliff=99.0, **kwargs) -> MultiTaskWrapper:
    env: gym.Env = Line(cliff)
    if time_limit is not None:
        env = gym.wrappers.TimeLimit(env, time_limit)
    return MultiTaskWrapper(env, family, **kwargs)


STAY = np.zeros(2, dtype=np.float32)
RIGHT = np.array([1, 0], dtype=np.float32)


# -- observations -----------------------------------------------------------------------------------------------------


def test_the_observation_is_a_dict_of_the_inner_observation_and_the_task():
    env = make()
    assert env.observation_space == spaces.Dict({"observation": Line.observation_space, "task": GOALS.task_space})
    obs, _ = env.reset(seed=0, options={"task": [3, 4]})
    assert env.observation_space.contains(obs)
    assert_array_equal(obs["task"], [3, 4])
    next_obs, *_ = env.step(RIGHT)
    assert_array_equal(next_obs["observation"], obs["observation"] + RIGHT)
    assert_array_equal(next_obs["task"], [3, 4])


def test_a_flat_observation_is_the_inner_observation_followed_by_the_task():
    env, as_dict = make(flatten=True), make()
    assert env.observation_space == spaces.Box(np.float32([-100, -100, -9, -9]), np.float32([100, 100, 9, 9]))
    obs, _ = env.reset(seed=5)
    expected, _ = as_dict.reset(seed=5)
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    assert_array_equal(obs, np.concatenate([expected["observation"], expected["task"]]))
    obs, expected = env.step(RIGHT)[0], as_dict.step(RIGHT)[0]
    assert_array_equal(obs, np.concatenate([expected["observation"], expected["task"]]))


def test_flatten_needs_a_vector():
    image = spaces.Box(0, 255, shape=(8, 8, 3), dtype=np.uint8)
    env = gym.wrappers.TransformObservation(Line(), lambda obs: np.zeros((8, 8, 3), np.uint8), image)
    with pytest.raises(ValueError, match="flatten=True needs a one-dimensional Box"):
        MultiTaskWrapper(env, GOALS, flatten=True)
    assert MultiTaskWrapper(env, GOALS).observation_space["observation"] == image


def act_in(space, change=lambda action: action):
    return gym.wrappers.TransformAction(Line(), change, space)


@pytest.mark.parametrize(
    "space", [spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0.0, np.inf, (2,)), spaces.Box(-np.inf, 0.0, (2,))]
)
def test_actions_without_bounds_are_told_at_once_with_a_remedy_that_works(space):
    with pytest.raises(ValueError, match=r"MultiTaskWrapper.*bounds.*inf.*TransformAction\(env, .*RescaleAction") as error:
        MultiTaskWrapper(act_in(space), GOALS)
    remedy = re.search(r"gymnasium\.wrappers\.TransformAction\(.*\(2,\)\)\)", str(error.value)).group()
    bounded = eval(remedy, {"gymnasium": gym, "env": act_in(space)})
    model = SAC("MultiInputPolicy", MultiTaskWrapper(bounded, GOALS), replay_buffer_class=HIPIReplayBuffer, buffer_size=100)
    model.learn(5)


def test_clip_action_takes_the_bounds_away_and_is_named():
    with pytest.raises(ValueError, match=r"ClipAction that took them away, leave it out"):
        MultiTaskWrapper(gym.wrappers.ClipAction(Line()), GOALS)
    with pytest.raises(ValueError, match=r"HIPISAC: .*ClipAction"):
        HIPISAC("MultiInputPolicy", gym.wrappers.ClipAction(MultiTaskWrapper(Line(), GOALS)), buffer_size=100)


def test_actions_of_a_goal_env_without_bounds_are_told_when_it_is_given_to_an_algorithm():
    fetch = gym.wrappers.ClipAction(BitFlippingEnv(n_bits=3, continuous=True))
    with pytest.raises(ValueError, match=r"HIPISAC: .*bounds.*TransformAction"):
        HIPISAC("MultiInputPolicy", fetch, buffer_size=100)


def test_actions_of_other_kinds_are_refused():
    space = spaces.Tuple([spaces.Discrete(2), Line.action_space])
    with pytest.raises(ValueError, match=r"MultiTaskWrapper: .*not in Tuple.*TransformAction"):
        MultiTaskWrapper(act_in(space, lambda action: action[1]), GOALS)
    choice = act_in(spaces.Discrete(2), lambda action: RIGHT * action)
    HIPIDQN("MultiInputPolicy", MultiTaskWrapper(choice, GOALS), buffer_size=100).learn(5)


def test_what_is_no_family_is_refused():
    with pytest.raises(TypeError, match="must be a TaskFamily, not str"):
        MultiTaskWrapper(Line(), "goals")


def test_a_family_is_checked_when_it_is_wrapped():
    family = CallableTasks(GOALS.task_space, 2, position_features, reward=lambda features, tasks: features[..., 0])
    with pytest.raises(TypeError, match="cannot be pickled"):
        MultiTaskWrapper(Line(), family)


# -- which task -------------------------------------------------------------------------------------------------------


def test_options_beat_the_fixed_task_which_beats_the_prior():
    env = make(fixed_task=[1, 2])
    assert_array_equal(env.reset()[1]["task"], [1, 2])
    assert_array_equal(env.reset(options={"task": [3, 4]})[1]["task"], [3, 4])
    assert_array_equal(env.reset()[1]["task"], [1, 2])
    env.fix_task([5, 6])
    assert_array_equal(env.task, [1, 2])  # from the next reset on
    assert_array_equal(env.reset()[1]["task"], [5, 6])
    env.fix_task(None)
    tasks = np.array([env.reset()[1]["task"] for _ in range(200)])
    assert len(np.unique(tasks, axis=0)) == 200
    assert np.abs(tasks.mean(axis=0)).max() < 4 * np.sqrt(18**2 / 12 / 200)


def test_other_options_reach_the_inner_environment():
    env = make()
    env.reset(options={"task": [1, 2], "wind": 3})
    assert env.unwrapped.reset_options == {"wind": 3}
    env.reset(options={"task": [1, 2]})
    assert env.unwrapped.reset_options is None


@pytest.mark.parametrize("give", ["options", "fixed_task", "fix_task"])
def test_a_task_outside_the_space_is_refused(give):
    with pytest.raises(ValueError, match=r"task \[0\.0, 10\.0\] is outside the task space"):
        if give == "options":
            make().reset(options={"task": [0, 10]})
        elif give == "fixed_task":
            make(fixed_task=[0, 10])
        else:
            make().fix_task([0, 10])


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_fix_task_works_through_env_method_and_survives_automatic_resets(vec_env_class):
    venv = vec_env_class([lambda: make(time_limit=2)] * 2)
    try:
        venv.seed(0)
        tasks = venv.reset()["task"]
        assert not np.array_equal(tasks[0], tasks[1])
        venv.env_method("fix_task", [1, 2], indices=0)
        venv.env_method("fix_task", [3, 4], indices=1)
        venv.reset()
        for _ in range(5):  # the automatic reset comes after two steps
            obs, *_ = venv.step(np.zeros((2, 2), dtype=np.float32))
            assert_array_equal(obs["task"], [[1, 2], [3, 4]])
        venv.env_method("fix_task", None)
        assert not np.array_equal(venv.reset()["task"], [[1, 2], [3, 4]])
    finally:
        venv.close()


# -- steps ------------------------------------------------------------------------------------------------------------


def test_reward_and_termination_are_the_familys():
    env = make()
    env.reset(seed=0, options={"task": [2, 0]})
    _, reward, terminated, truncated, info = env.step(RIGHT)  # within 0.1 of x = 1
    assert (reward, terminated, truncated, info["is_success"]) == (-1.0, False, False, False)
    _, reward, terminated, truncated, info = env.step(RIGHT)  # within 0.1 of the goal
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, True, False, True)
    assert not info["env_terminated"]
    assert type(reward) is float and type(terminated) is bool and type(info["is_success"]) is bool


def test_the_environments_own_termination_stays_and_is_flagged():
    env = make(cliff=1.5)
    env.reset(seed=0, options={"task": [-5, 0]})
    *_, terminated, _, info = env.step(RIGHT)
    assert not terminated and info["env_terminated"] is False
    _, reward, terminated, truncated, info = env.step(RIGHT)
    assert terminated and not truncated and info["env_terminated"] is True
    assert reward == -1.0 and not info["is_success"]


def test_a_time_limit_stays_a_truncation():
    env = make(time_limit=3)
    env.reset(seed=0, options={"task": [5, 5]})
    flags = [env.step(STAY)[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    # At the limit a fulfilled task terminates as well: both flags, none hides the other.
    env.reset(seed=0, options={"task": [3, 0]})
    flags = [env.step(RIGHT)[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (True, True)]


def test_info_holds_the_task_the_features_and_what_the_environment_said():
    env = make()
    _, info = env.reset(seed=0, options={"task": [1, 2]})
    assert set(info) == {"inner", "task"}
    obs, *_, info = env.step(RIGHT)
    assert set(info) == {"inner", "task", "task_features", "env_terminated", "is_success"}
    assert info["inner"] == "step"
    assert_array_equal(info["task"], [1, 2])
    assert_array_equal(info["task_features"], obs["observation"])
    assert info["task_features"].dtype == np.float32 and info["task_features"].shape == (2,)


def test_a_family_without_success_leaves_no_is_success():
    env = make(LinearReward([-1, -1], [1, 1], position_features))
    env.reset(seed=0)
    assert "is_success" not in env.step(RIGHT)[-1]


def test_success_of_the_inner_environment_is_none_of_the_familys():
    class Judges(gym.Wrapper):
        def step(self, action):
            *step, info = self.env.step(action)
            return *step, {**info, "is_success": True}

    env = MultiTaskWrapper(Judges(Line()), LinearReward([-1, -1], [1, 1], position_features))
    env.reset(seed=0)
    assert "is_success" not in env.step(RIGHT)[-1]


class InPlace(gym.Env):
    """Hands out its state itself, and the family's features too."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, as_dict):
        space = spaces.Box(-9.0, 9.0, (1,), np.float32)
        self.x, self.as_dict = np.zeros(1, np.float32), as_dict
        self.observation_space = spaces.Dict(x=space) if as_dict else space

    def observe(self):
        return {"x": self.x} if self.as_dict else self.x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x[:] = 0.0
        return self.observe(), {}

    def step(self, action):
        self.x += action
        return self.observe(), 0.0, False, False, {}


def moved(env, obs, action, next_obs, reward, info):
    return (next_obs["x"] - obs["x"]) if isinstance(obs, dict) else next_obs - obs


def the_state_itself(env, obs, action, next_obs, reward, info):
    return env.unwrapped.x


@pytest.mark.parametrize("as_dict", [False, True])
def test_an_environment_may_write_its_next_observation_into_the_same_array(as_dict):
    env = MultiTaskWrapper(InPlace(as_dict), LinearReward([-1.0], [1.0], moved))
    env.reset(seed=0)
    for _ in range(2):
        assert_array_equal(env.step(np.full(1, 0.5, np.float32))[-1]["task_features"], [0.5])


def test_features_that_are_the_environments_state_stay_as_they_were_in_the_step():
    env = MultiTaskWrapper(InPlace(False), LinearReward([-1.0], [1.0], the_state_itself))
    env.reset(seed=0)
    features = env.step(np.full(1, 0.5, np.float32))[-1]["task_features"]
    env.reset()
    assert_array_equal(features, [0.5])


def test_a_family_sees_the_whole_transition():
    family = LinearReward([-1] * 9, [1] * 9, all_arguments)
    env = make(family, cliff=50.0)
    obs, _ = env.reset(seed=0)
    for action in (RIGHT, np.array([-0.5, 0.25], dtype=np.float32)):
        next_obs, reward, *_, info = env.step(action)
        expected = np.concatenate([[50.0], obs["observation"], action, next_obs["observation"], [7.0, 1.0]])
        assert_array_equal(info["task_features"], expected.astype(np.float32))
        assert reward == family.reward(info["task_features"], info["task"])
        obs = next_obs


def test_returned_arrays_can_be_changed_without_touching_the_task():
    env = make()
    obs, info = env.reset(seed=0, options={"task": [1, 2]})
    obs["task"][:] = 0
    info["task"][:] = 0
    obs, *_, info = env.step(STAY)
    assert_array_equal(obs["task"], [1, 2])
    info["task"][:] = 0
    assert_array_equal(env.task, [1, 2])


def test_one_seed_fixes_states_and_tasks():
    def run(seed):
        env = make(time_limit=4)
        rows = []
        for episode in range(3):
            obs, _ = env.reset(seed=seed if episode == 0 else None)
            rows.append([*obs["observation"], *obs["task"]])
            for _ in range(4):
                obs, reward, *_ = env.step(RIGHT)
                rows.append([*obs["observation"], reward, 0])
        return np.array(rows)

    assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


# -- errors that would be silent later --------------------------------------------------------------------------------


def test_a_nan_feature_names_step_and_task():
    env = make(WrongFeatures([np.nan, 0]))
    env.reset(seed=0, options={"task": [1, 2]})
    with pytest.raises(ValueError, match=r"WrongFeatures: features at step 1 of the episode is \[nan.*for task \[1\. 2\.\]"):
        env.step(STAY)


def test_the_inner_environments_info_is_left_as_it_is():
    kept = {"mine": 1}
    env = make()
    inner_step = env.env.step
    env.env.step = lambda action: (*inner_step(action)[:4], kept)  # one that returns the same dictionary every time
    env.reset(seed=0)
    first, second = (env.step(STAY)[-1] for _ in range(2))
    assert kept == {"mine": 1} and first is not second and first["mine"] == 1 and "task_features" in first


def test_infinite_features_are_no_nan():
    env = make(WrongFeatures([np.inf, -np.inf]))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(STAY)
    assert (reward, terminated) == (-1.0, False) and info["task_features"].tolist() == [np.inf, -np.inf]


def test_a_reward_that_is_not_finite_names_step_and_task():
    env = make(CallableTasks(GOALS.task_space, 2, position_features, division_by_the_task))
    env.reset(seed=0, options={"task": [1, 2]})
    with pytest.raises(ValueError, match=r"reward at step 1 of the episode is inf for task \[1\. 2\.\]"):
        env.step(RIGHT)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="at step 1 of the episode"):  # counted from the reset
        env.step(RIGHT)


def test_features_of_another_shape_are_refused_and_both_shapes_are_named():
    env = make(WrongFeatures([1, 2, 3]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"returned shape \(3,\), but feature_dim is 2: expected \(2,\)"):
        env.step(STAY)


def test_a_step_before_the_reset_is_refused():
    with pytest.raises(AssertionError, match="reset"):
        make().step(STAY)


# -- the checkers of the hosts ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_both_environment_checkers_pass(flatten):
    env = make(time_limit=20, flatten=flatten)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)
    # Gymnasium recommends the unwrapped environment, but the wrapper is what is checked here.
    gymnasium_check_env(make(time_limit=20, flatten=flatten), skip_render_check=True)
