"""Environments whose observations are dictionaries, with images or numbers of choices: the task is one more key."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import mo_gymnasium
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from line_walk import pairs_of
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from hipi_sb3 import HIPIBC, HIPIDQN, HIPISAC, CallableTasks, GoalReaching, HIPIReplayBuffer, MultiTaskWrapper
from hipi_sb3.check_family import check_family
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.evaluation import evaluate_tasks
from hipi_sb3.relabel.learners import Learner, SACLearner
from hipi_sb3.tasks.goal_env import GoalEnvTasks
from hipi_sb3.tasks.vector_reward import VectorRewardTasks

SIZE = 36


class Camera(gym.Env):
    """A point that moves by the action, (2,), and is seen by a camera; its velocity is measured."""

    action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

    def __init__(self, channels_last: bool = True) -> None:
        self.channels_last = channels_last
        shape = (SIZE, SIZE, 3) if channels_last else (3, SIZE, SIZE)
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, shape=shape, dtype=np.uint8),
                "velocity": spaces.Box(-2.0, 2.0, shape=(2,), dtype=np.float32),
                "zone": spaces.Discrete(4),
            }
        )

    def observe(self, velocity: Any) -> dict[str, Any]:
        image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        row, column = ((self.position + 2.0) / 4.0 * (SIZE - 1)).astype(int)
        image[row, column] = [255, 10, 200]
        image = image if self.channels_last else np.moveaxis(image, -1, 0)
        zone = int(self.position[0] > 0) + 2 * int(self.position[1] > 0)
        return {"camera": image, "velocity": np.asarray(velocity, np.float32), "zone": zone}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, size=2)
        return self.observe([0, 0]), {}

    def step(self, action: Any) -> Any:
        self.position = np.clip(self.position + 0.5 * action, -2, 2)
        return self.observe(action), 0.0, False, False, {}


def seen(env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> np.ndarray:
    """Where the camera sees the point: the family is given the environment's own observation."""
    image = next_obs["camera"] if next_obs["camera"].shape[-1] == 3 else np.moveaxis(next_obs["camera"], 0, -1)
    return np.argwhere(image[..., 0])[0] / (SIZE - 1) * 4.0 - 2.0


GOALS = GoalReaching([-2, -2], [2, 2], radius=0.4, position=seen)
QUICK: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "seed": 0, "device": "cpu"}


def camera(channels_last: bool = True, time_limit: int = 10, **kwargs: Any) -> Callable[[], gym.Env]:
    return lambda: MultiTaskWrapper(gym.wrappers.TimeLimit(Camera(channels_last), time_limit), GOALS, **kwargs)


# -- the wrapper ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["task", "goal"])
def test_the_task_is_one_more_key(key: str) -> None:
    env = MultiTaskWrapper(Camera(), GOALS, task_key=key)
    assert env.observation_space == spaces.Dict({**Camera().observation_space.spaces, key: GOALS.task_space})
    obs, _ = env.reset(seed=0, options={"task": [1, -1]})
    assert env.observation_space.contains(obs)
    assert_array_equal(obs[key], [1, -1])
    next_obs, _, _, _, info = env.step(np.ones(2, dtype=np.float32))
    assert env.observation_space.contains(next_obs) and list(next_obs) == ["camera", "velocity", "zone", key]
    assert_array_equal(next_obs["velocity"], [1, 1])
    assert_allclose(info["task_features"], env.unwrapped.position, atol=4 / (SIZE - 1))


def test_of_other_observations_the_task_is_the_second_key() -> None:
    env = MultiTaskWrapper(gym.make("Pendulum-v1"), GoalReaching([-1], [1], 0.1), task_key="angle")
    assert list(env.observation_space.spaces) == ["angle", "observation"]
    assert list(env.reset()[0]) == ["observation", "angle"]


def test_a_key_that_is_taken_is_an_error_that_offers_another_one() -> None:
    with pytest.raises(ValueError, match=r"key 'velocity'.*has one already.*task_key="):
        MultiTaskWrapper(Camera(), GOALS, task_key="velocity")
    with pytest.raises(ValueError, match=r"key 'task'.*has one already.*task_key="):
        MultiTaskWrapper(MultiTaskWrapper(Camera(), GOALS), GOALS)
    with pytest.raises(ValueError, match=r"key 'observation'.*task_key="):
        MultiTaskWrapper(gym.make("Pendulum-v1"), GoalReaching([-1], [1], 0.1), task_key="observation")
    outer = MultiTaskWrapper(MultiTaskWrapper(Camera(), GOALS), GOALS, task_key="second")
    assert set(outer.reset()[0]) == {"camera", "velocity", "zone", "task", "second"}


def test_the_family_that_was_given_keeps_its_key() -> None:
    env = MultiTaskWrapper(Camera(), GOALS, task_key="goal")
    assert env.task_family.task_key == "goal" and GOALS.task_key == "task"
    assert pickle.loads(pickle.dumps(env.task_family)).task_key == "goal"
    assert MultiTaskWrapper(Camera(), GOALS).task_family is GOALS


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "grip": spaces.Discrete(3)})}),
        spaces.Dict({"arm": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)])}),
        spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)]),
    ],
)
def test_what_is_nested_is_refused_with_a_remedy_that_works(space: spaces.Space) -> None:
    inner = gym.wrappers.TransformObservation(Camera(), lambda obs: space.sample(), space)
    with pytest.raises(ValueError, match=r"(Dict|Tuple).*FlattenObservation"):
        MultiTaskWrapper(inner, GOALS)
    flat = MultiTaskWrapper(gym.wrappers.FlattenObservation(inner), GOALS)
    assert flat.observation_space["observation"].shape == (5,)


@pytest.mark.parametrize(
    "space", [spaces.Sequence(spaces.Discrete(3)), spaces.Dict({"x": spaces.Graph(spaces.Discrete(2), None)})]
)
def test_what_cannot_be_flattened_is_refused_with_another_remedy(space: spaces.Space) -> None:
    inner = gym.wrappers.TransformObservation(Camera(), lambda obs: space.sample(), space)
    with pytest.raises(ValueError, match=r"(Sequence|Graph).*TransformObservation"):
        MultiTaskWrapper(inner, GOALS)


def test_one_vector_has_no_room_for_a_dictionary_and_no_keys() -> None:
    with pytest.raises(ValueError, match=r"flatten=True needs a one-dimensional Box.*FlattenObservation"):
        MultiTaskWrapper(Camera(), GOALS, flatten=True)
    with pytest.raises(ValueError, match=r"task_key.*flatten=True"):
        MultiTaskWrapper(gym.make("Pendulum-v1"), GoalReaching([-1], [1], 0.1), flatten=True, task_key="angle")


def test_indices_into_a_dictionary_are_refused_with_the_remedy() -> None:
    env = MultiTaskWrapper(Camera(), GoalReaching([-2, -2], [2, 2], radius=0.4))
    env.reset()
    with pytest.raises(ValueError, match=r"camera, velocity, zone.*position=.*function"):
        env.step(np.zeros(2, dtype=np.float32))


def test_a_goal_env_needs_no_wrapper_and_may_have_one_with_other_tasks() -> None:
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    fetch = gym.make("FetchReach-v4", max_episode_steps=10)
    with pytest.raises(ValueError, match=r"GoalEnvTasks.*without MultiTaskWrapper"):
        MultiTaskWrapper(fetch, GoalEnvTasks(fetch))
    effort = CallableTasks(spaces.Box(0.0, 1.0, (1,)), 1, effort_of, effort_reward)
    model = SAC("MultiInputPolicy", MultiTaskWrapper(fetch, effort), replay_buffer_class=HIPIReplayBuffer, **QUICK)
    model.learn(30)
    assert type(model.replay_buffer.family) is CallableTasks and model.replay_buffer.layout.key == "task"


def effort_of(env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> np.ndarray:
    return np.array([np.sum(np.square(action))])


def effort_reward(features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    return -features[..., 0] * tasks[..., 0]


@pytest.mark.parametrize("channels_last", [True, False])
def test_environment_checkers_pass(channels_last: bool) -> None:
    gymnasium_check_env(camera(channels_last)(), skip_render_check=True)
    sb3_check_env(camera(channels_last)())


def test_the_family_is_checked_in_the_environment() -> None:
    problems = check_family(GOALS, gym.wrappers.TimeLimit(Camera(), 10), n_steps=200)
    assert problems == []
    assert check_family(GOALS, camera(task_key="goal")(), n_steps=200) == []


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SAC, HIPISAC])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_stay_images(algorithm: Any, channels_last: bool, tmp_path: Any) -> None:
    env = DummyVecEnv([camera(channels_last, task_key="goal")] * 2)
    model = algorithm("MultiInputPolicy", env, replay_buffer_class=HIPIReplayBuffer, train_freq=10, **QUICK)
    assert any(isinstance(module, NatureCNN) for module in model.actor.features_extractor.modules())
    assert isinstance(model.get_env(), VecTransposeImage) == channels_last
    model.learn(60)
    buffer: Any = model.replay_buffer
    assert buffer.layout.key == "goal" and buffer.observations["camera"].dtype == np.uint8

    samples = buffer.sample(64)
    images = samples.next_observations["camera"].numpy()
    assert images.shape == (64, 3, SIZE, SIZE) and images.max() == 255
    # Where the image says that the point is decides what is paid, for tasks old and new: images and tasks belong together.
    positions = np.array([np.argwhere(image[0])[0] for image in images]) / (SIZE - 1) * 4.0 - 2.0
    if buffer.n_steps == 1:
        reached = GOALS.success(positions, samples.next_observations["goal"].numpy())
        assert_array_equal(samples.rewards.numpy()[:, 0], np.where(reached, 0.0, -1.0))
    assert_array_equal(samples.observations["goal"], samples.next_observations["goal"])

    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl" if algorithm is SAC else tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer.pkl" if algorithm is SAC else tmp_path / "buffer")
    obs = model.get_env().reset()
    assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    for key, array in buffer.observations.items():
        assert_array_equal(array, loaded.replay_buffer.observations[key])
    loaded.learn(20, reset_num_timesteps=False)


def test_images_are_seen_once_a_row_and_scored_as_pair_by_pair() -> None:
    model = HIPISAC("MultiInputPolicy", DummyVecEnv([camera(task_key="goal")]), train_freq=10, **QUICK).learn(60)
    buffer: Any = model.replay_buffer
    pairs = pairs_of(buffer.sample(6), buffer.layout, th.linspace(-1, 1, 10).reshape(5, 2))
    seen: list[int] = []
    for network in (model.actor, model.critic, model.critic_target):
        network.features_extractor.extractors["camera"].register_forward_hook(
            lambda _, inputs, __: seen.append(len(inputs[0]))
        )
    for method in ("pair_q", "pair_value", "pair_next_value"):
        values = []
        for learner in (SACLearner(model), Learner(model)):
            th.manual_seed(0)  # of the actions that V is taken from
            seen.clear()
            with th.no_grad():
                values.append(getattr(learner, method)(pairs).numpy())
            assert max(seen) == (6 if type(learner) is SACLearner else 30)
        assert_allclose(values[0], values[1], atol=1e-5)
        assert np.ptp(values[0], axis=1).min() > 1e-4


def test_images_are_rewarded_as_they_are_seen() -> None:
    """One step a window, so that each sampled reward is that of its own image."""
    options = {"n_steps": 1, "strategy": "future", "relabel_prob": 0.8}
    env = DummyVecEnv([camera()] * 2)
    model = SAC("MultiInputPolicy", env, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs=options, **QUICK)
    model.learn(60)
    samples = model.replay_buffer.sample(200)
    images = samples.next_observations["camera"].numpy()
    positions = np.array([np.argwhere(image[0])[0] for image in images]) / (SIZE - 1) * 4.0 - 2.0
    reached = GOALS.success(positions, samples.next_observations["task"].numpy())
    assert reached.mean() > 0.2
    assert_array_equal(samples.rewards.numpy()[:, 0], np.where(reached, 0.0, -1.0))


def test_vec_normalize_leaves_images_and_tasks_alone() -> None:
    # Around images, not inside: stable-baselines3 mixes the two orders of channels otherwise, whatever the buffer.
    env = VecNormalize(VecTransposeImage(DummyVecEnv([camera(task_key="goal")] * 2)), norm_obs_keys=["velocity"])
    model = HIPISAC("MultiInputPolicy", env, train_freq=10, **QUICK)
    model.learn(60)
    buffer: Any = model.replay_buffer
    assert_array_equal(np.unique(buffer.observations["camera"]), [0, 10, 200, 255])  # raw
    samples = buffer.sample(64, env=model.get_vec_normalize_env())
    assert samples.observations["camera"].max() == 255
    env.obs_rms["velocity"].mean += 100.0
    assert buffer.sample(64, env=model.get_vec_normalize_env()).observations["velocity"].max() < -5


def test_tasks_are_evaluated_and_episodes_recorded() -> None:
    env = camera(task_key="goal")()
    model = HIPISAC("MultiInputPolicy", env, train_freq=10, **QUICK)
    tasks = np.array([[1.0, 1.0], [-1.0, 0.5]])
    result = evaluate_tasks(model, env, tasks, n_episodes=2, record_observations=True)
    assert_array_equal(result.tasks, tasks)
    recorded = result.observations[0]
    assert set(recorded) == {"camera", "velocity", "zone"}
    assert recorded["camera"].shape == (len(recorded["velocity"]), SIZE, SIZE, 3)


def test_behaviour_is_cloned(tmp_path: Any) -> None:
    env = camera(task_key="goal")()
    collector = HIPISAC("MultiInputPolicy", env, **{**QUICK, "learning_starts": 1000})
    collector.learn(60)
    data = TrajectoryDataset.from_buffer(collector.replay_buffer)
    assert set(data.observation_space.spaces) == {"camera", "velocity", "zone"}
    data.save(tmp_path / "data.npz")
    data = TrajectoryDataset.load(tmp_path / "data.npz", collector.replay_buffer.family)
    cloned = HIPIBC("MultiInputPolicy", env, seed=0, device="cpu")
    cloned.fit(data, n_updates=5)
    cloned.save(tmp_path / "model")
    action, _ = HIPIBC.load(tmp_path / "model", env=env).predict(env.reset(seed=0)[0], deterministic=True)
    assert_array_equal(action, cloned.predict(env.reset(seed=0)[0], deterministic=True)[0])


# -- environments of others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DQN, HIPIDQN])
def test_breakable_bottles_work_as_they_are(algorithm: Any, tmp_path: Any) -> None:
    inner = mo_gymnasium.make("breakable-bottles-v0")
    env = MultiTaskWrapper(inner, VectorRewardTasks(inner))
    model = algorithm("MultiInputPolicy", env, replay_buffer_class=HIPIReplayBuffer, **QUICK)
    model.learn(200)
    model.save(tmp_path / "model")
    model.replay_buffer.save(tmp_path / "buffer")
    loaded = HIPIReplayBuffer.load(tmp_path / "buffer", model)
    for key, array in model.replay_buffer.observations.items():
        assert_array_equal(array, loaded.observations[key])
    assert set(loaded.observations) == {"bottles_carrying", "bottles_delivered", "bottles_dropped", "location", "task"}
    action, _ = algorithm.load(tmp_path / "model").predict(env.reset(seed=0)[0])
    assert env.action_space.contains(int(action))


def test_a_family_with_another_key_is_told_where_it_comes_from() -> None:
    env = camera(task_key="goal")()
    options = {"family": GOALS}
    with pytest.raises(ValueError, match=r"key 'task'.*task_key.*leave family out"):
        SAC("MultiInputPolicy", env, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs=options, **QUICK)
