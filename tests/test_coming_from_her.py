"""What HerReplayBuffer's users do, with one word changed: the situations of stable-baselines3's own tests of HER, and more."""

import threading
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.testing import assert_array_equal
from stable_baselines3 import DDPG, DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from hipi_sb3 import HIPIBC, HIPIDQN, HIPISAC, HIPIReplayBuffer
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.tasks.goal_env import GoalEnvTasks
from hipi_sb3.tasks.reward_source import PrivateInstance, TrainingEnv

N_BITS = 4
QUICK: dict[str, Any] = {
    "policy": "MultiInputPolicy",
    "learning_starts": 40,
    "batch_size": 32,
    "buffer_size": 1000,
    "train_freq": 4,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
}
KINDS: dict[str, dict[str, bool]] = {
    "bits": {},
    "number": {"discrete_obs_space": True},
    "image": {"image_obs_space": True},
    "image, channels last": {"image_obs_space": True, "channel_first": False},
}


def bits(continuous: bool = True, n_bits: int = N_BITS, **kind: bool) -> Callable[[], gym.Env]:
    return lambda: BitFlippingEnv(n_bits=n_bits, continuous=continuous, **kind)


def make(
    algorithm: Any, env: Any, buffer: type = HIPIReplayBuffer, options: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    return algorithm(
        env=env, replay_buffer_class=buffer, replay_buffer_kwargs=options or {}, device="cpu", **{**deepcopy(QUICK), **kwargs}
    )


def state_of(goals: th.Tensor, kind: str) -> np.ndarray:
    """The bits of goals as they are sampled, (n, N_BITS)."""
    flat = goals.numpy().reshape(len(goals), -1).astype(int)
    if kind == "number":
        return flat >> np.arange(N_BITS) & 1
    return flat if kind == "bits" else flat[:, :N_BITS] // 255


# -- goals of any space ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, DQN])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["her", "hipi"])
def test_goals_of_any_space_are_relabeled_and_look_as_hers(algorithm: Any, kind: str, strategy: str) -> None:
    env = make_vec_env(bits(algorithm is not DQN, **KINDS[kind]), 1)
    options: dict[str, Any] = {"relabel_prob": 1.0, "n_candidate_tasks": 8, "n_steps": 1}
    if strategy == "her":
        options = {"n_sampled_goal": 10**6, "goal_selection_strategy": "future", "copy_info_dict": True}
    model, her = make(algorithm, env, options=options), make(algorithm, env, HerReplayBuffer)
    model.learn(60)
    her.learn(40)
    samples, theirs = model.replay_buffer.sample(100), her.replay_buffer.sample(100)
    for mine, other in ((samples.observations, theirs.observations), (samples.next_observations, theirs.next_observations)):
        for key in ("observation", "achieved_goal", "desired_goal"):
            assert mine[key].dtype == other[key].dtype and mine[key].shape == other[key].shape, key
    assert_array_equal(samples.observations["desired_goal"], samples.next_observations["desired_goal"])
    achieved, desired = (state_of(samples.next_observations[key], kind) for key in ("achieved_goal", "desired_goal"))
    assert set(np.unique(desired)) == {0, 1}  # the environment commands only ones
    reached = (achieved == desired).all(axis=1)
    assert_array_equal(samples.rewards[:, 0], reached.astype(float) - 1)
    assert 0 < reached.mean() < 1
    assert_array_equal(
        model.replay_buffer.observations["desired_goal"][:60, 0],
        her.replay_buffer.observations["desired_goal"][:1, 0].repeat(60, 0),
    )


def check_cloning(env: Any) -> None:
    """Online, from a data set alone, and from one for the policy of an environment: the policies see goals alike."""
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "n_labels": 2, "n_candidate_tasks": 4, "device": "cpu"}
    model = HIPIBC("MultiInputPolicy", env, learning_starts=20, train_freq=20, gradient_steps=2, seed=0, **options)
    model.learn(60)
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    dataset = TrajectoryDataset.from_buffer(model.replay_buffer)
    obs = dataset.with_tasks({key: array[:5] for key, array in dataset.observations.items()}, dataset.tasks[:1].repeat(5, 0))
    stored = model.replay_buffer.observations["desired_goal"][:5, 0]
    assert_array_equal(obs["desired_goal"], stored)
    assert obs["desired_goal"].dtype == stored.dtype
    for cloned in (HIPIBC("MultiInputPolicy", seed=0, **options), HIPIBC("MultiInputPolicy", env, seed=0, **options)):
        cloned.fit(dataset, n_updates=2)
        assert cloned.observation_space == model.observation_space
        assert len(cloned.predict(env.reset())[0]) == env.num_envs


@pytest.mark.parametrize("kind", KINDS)
def test_goals_of_any_space_are_cloned(kind: str) -> None:
    check_cloning(make_vec_env(bits(**KINDS[kind]), 1))


class Grid(gym.Env):
    """Goals are places of a grid, in the space that is asked for, or matrices."""

    def __init__(self, goal: spaces.Space) -> None:
        self.goal_space = goal
        self.observation_space = spaces.Dict({"observation": goal, "achieved_goal": goal, "desired_goal": goal})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def draw(self) -> np.ndarray:
        numbers = self.np_random.integers(0, 3, size=self.goal_space.shape)
        return numbers.astype(self.goal_space.dtype)

    def observe(self) -> dict[str, np.ndarray]:
        return {"observation": self.at.copy(), "achieved_goal": self.at.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.goal, self.clock = self.draw(), self.draw(), 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at, self.clock = self.draw(), self.clock + 1
        return self.observe(), float(self.compute_reward(self.at[None], self.goal[None], [{}])[0]), False, self.clock == 10, {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        assert achieved.dtype == desired.dtype == self.goal_space.dtype or self.goal_space.dtype.kind == "f"
        assert achieved.shape[1:] == desired.shape[1:] == self.goal_space.shape  # only batches
        return -np.abs(achieved.astype(float) - desired).reshape(len(achieved), -1).sum(axis=1)


@pytest.mark.parametrize(
    "goal",
    [
        spaces.MultiDiscrete([3, 3]),
        spaces.Box(0, 2, (2, 2), np.float64),
        spaces.Box(-np.inf, np.inf, (2, 1, 2), np.float32),
        spaces.Box(0, 2, (3,), np.int64),
    ],
    ids=str,
)
def test_other_spaces_of_goals(goal: spaces.Space, tmp_path: Any) -> None:
    model = make(HIPISAC, make_vec_env(lambda: Grid(goal), 2), options={"relabel_prob": 1.0, "n_steps": 1})
    model.learn(100)
    samples = model.replay_buffer.sample(50)
    achieved, desired = (samples.next_observations[key].numpy().astype(float) for key in ("achieved_goal", "desired_goal"))
    assert desired.shape[1:] == goal.shape
    expected = -np.abs(achieved - desired).reshape(50, -1).sum(axis=1)
    assert_array_equal(samples.rewards[:, 0], expected.astype(np.float32))
    check_cloning(make_vec_env(lambda: Grid(goal), 2))
    assert len(np.unique(desired.reshape(50, -1), axis=0)) > 1
    model.save_replay_buffer(tmp_path / "buffer")
    saved = deepcopy(model.replay_buffer)
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    for key in ("achieved_goal", "desired_goal"):
        assert_array_equal(model.replay_buffer.next_observations[key], saved.next_observations[key])
    model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("kind, dim, high", [("bits", N_BITS, 1), ("number", 1, 15), ("image", 36 * 36, 255)])
def test_tasks_are_flat_numbers_and_the_prior_draws_members(kind: str, dim: int, high: int) -> None:
    family = GoalEnvTasks(bits(**KINDS[kind])())
    assert family.task_space == spaces.Box(0, high, (dim,), np.float32)
    tasks = family.sample(np.random.default_rng(0), 2)
    assert tasks.shape == (2, dim) and tasks.dtype == np.float32
    assert set(np.unique(tasks)) <= {0.0, float(high)}  # all bits are to be set
    assert_array_equal(family.reward(tasks[:, None], np.stack([tasks[0], 0 * tasks[0]])), [[0, -1]] * 2)


def test_images_whose_channels_were_moved_are_moved_back_for_compute_reward() -> None:
    goal = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    model = make(SAC, make_vec_env(lambda: Grid(goal), 1), options={"relabel_prob": 1.0, "strategy": "future"})
    assert model.observation_space["desired_goal"].shape == (3, 36, 40)
    model.learn(50)
    samples = model.replay_buffer.sample(20)
    achieved, desired = (samples.next_observations[key].numpy().astype(int) for key in ("achieved_goal", "desired_goal"))
    assert desired.shape == (20, 3, 36, 40)
    expected = -np.abs(achieved - desired).sum(axis=(1, 2, 3))
    assert_array_equal(samples.rewards[:, 0], expected.astype(np.float32))
    assert 0 < np.mean(expected < 0) < 1


def test_a_number_is_no_vector_for_the_networks() -> None:
    # SAC's first layers take tasks apart only where the networks see them as they are.
    model = make(HIPISAC, make_vec_env(bits(discrete_obs_space=True), 1), options={"n_candidate_tasks": 8, "score": "q"})
    model.learn(60)
    batch = model.replay_buffer.preview(10)
    tasks = np.arange(16.0, dtype=np.float32)[:, None]
    scores = batch.scores(tasks)
    for column, task in enumerate(tasks):
        obs = {key: th.as_tensor(value) for key, value in batch.obs.items()}
        obs["desired_goal"] = th.full((10, 1), int(task[0]))
        with th.no_grad():
            q = th.cat(model.critic(obs, th.as_tensor(batch.experience.actions[batch.at])), dim=1).min(dim=1).values
        np.testing.assert_allclose(scores[:, column], q, rtol=1e-4, atol=1e-5)


# -- where the reward function lives --------------------------------------------------------------------------------


class Locked(BitFlippingEnv):
    """Can be neither pickled nor copied, and its spec makes none."""

    def __init__(self) -> None:
        super().__init__(n_bits=N_BITS, continuous=True)
        self.lock = threading.Lock()


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_what_can_be_made_no_second_time_is_asked_where_it_is(vec_env: Any, tmp_path: Any) -> None:
    kwargs = {"start_method": "fork"} if vec_env is SubprocVecEnv else {}
    env = make_vec_env(Locked, 2, vec_env_cls=vec_env, vec_env_kwargs=kwargs)
    reasons = r"(?s)computed in the training environment.*its spec: .*its pickle: "
    try:
        with pytest.warns(UserWarning, match=reasons):
            model = make(SAC, env, options={"relabel_prob": 1.0, "strategy": "future"})
        model.learn(80)
        family = model.replay_buffer.family
        assert isinstance(family._source, TrainingEnv)
        for _ in range(2):
            samples = model.replay_buffer.sample(50)
            achieved, desired = (samples.next_observations[key].numpy() for key in ("achieved_goal", "desired_goal"))
            assert_array_equal(samples.rewards[:, 0], (achieved == desired).all(axis=1) - 1.0)
            assert 0 < desired.mean() < 1
            # Read from a file, it gets its environment back.
            model.save_replay_buffer(tmp_path / "buffer.pkl")
            model.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=False)
        assert model.replay_buffer.family is not family
    finally:
        env.close()


def test_one_environment_that_can_be_made_no_second_time_says_what_was_tried() -> None:
    reasons = r"No second instance of .*its spec: \w+: .*; its pickle: TypeError: .*lock.*; a copy of it: TypeError: .*lock"
    with pytest.raises(ValueError, match=reasons):
        GoalEnvTasks(Locked())


def test_a_copy_will_do_where_it_cannot_be_pickled() -> None:
    class Local(BitFlippingEnv):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(SAC, make_vec_env(lambda: Local(n_bits=N_BITS, continuous=True), 1))
    source = model.replay_buffer.family._source
    assert isinstance(source, PrivateInstance) and source.env is not model.env.envs[0].unwrapped
    model.learn(60)
    assert model.replay_buffer.sample(10).rewards.shape == (10, 1)


def test_a_spec_that_makes_another_environment_is_not_used() -> None:
    gym.register("BitsOfAnyLength-v0", lambda n_bits=3: BitFlippingEnv(n_bits=n_bits, continuous=True))
    try:
        env = BitFlippingEnv(n_bits=5, continuous=True)
        env.spec = gym.spec("BitsOfAnyLength-v0")
        assert GoalEnvTasks(env).task_dim == 5
        assert GoalEnvTasks.of_vec_env(DummyVecEnv([lambda: env])).task_dim == 5
        assert GoalEnvTasks(gym.make("BitsOfAnyLength-v0", n_bits=6)).task_dim == 6
    finally:
        del gym.registry["BitsOfAnyLength-v0"]


def test_what_was_read_from_a_file_and_lost_its_environment_says_what_to_do(tmp_path: Any) -> None:
    import pickle

    with pytest.warns(UserWarning, match="computed in the training environment"):
        model = make(SAC, make_vec_env(Locked, 1), options={"relabel_prob": 1.0, "strategy": "future"})
    model.learn(30)
    family = pickle.loads(pickle.dumps(model.replay_buffer)).family
    with pytest.raises(RuntimeError, match=r"could not be saved.*buffer.attach\(model\)"):
        family.reward(np.zeros(N_BITS + 1), np.zeros(N_BITS))


# -- the rest of their situations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm, kind", [(TD3, "bits"), (DQN, "image")])
def test_environments_in_other_processes(algorithm: Any, kind: str) -> None:
    env = make_vec_env(
        bits(algorithm is not DQN, **KINDS[kind]), 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    )
    try:
        model = make(algorithm, env, options={"n_candidate_tasks": 8})
        model.learn(80)
        assert isinstance(model.replay_buffer.family._source, PrivateInstance)
        assert model.replay_buffer.size() == 40 and model.num_timesteps == 80
    finally:
        env.close()


def test_a_small_ring_is_written_over_and_over() -> None:
    options = {"n_sampled_goal": 2, "goal_selection_strategy": "future"}
    model = make(SAC, make_vec_env(bits(), 2), options=options, buffer_size=40, learning_starts=8)
    model.learn(200)
    assert model.replay_buffer.full and model.replay_buffer.size() == 20
    assert model.replay_buffer.sample(30).rewards.unique().tolist() == [-1.0, 0.0]


def test_a_model_is_saved_loaded_and_trained_on(tmp_path: Any) -> None:
    env = make_vec_env(bits(), 2)
    model = make(SAC, env, options={"n_sampled_goal": 2, "goal_selection_strategy": "final"}, use_sde=True)
    model.learn(60)
    obs = env.reset()
    expected = model.predict(obs, deterministic=True)[0]
    model.save(tmp_path / "model.zip")
    loaded = SAC.load(tmp_path / "model.zip", env=env)
    np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], expected, rtol=1e-5)
    loaded.learn(60)
    assert loaded.replay_buffer.relabeler.relabel_prob == pytest.approx(2 / 3)
    assert type(loaded.replay_buffer.relabeler.strategy).__name__ == "FinalGoal"


@pytest.mark.parametrize("algorithm", [SAC, HIPISAC])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("truncate", [False, True])
def test_the_last_trajectory_is_truncated_on_request(algorithm: Any, n_envs: int, truncate: bool, tmp_path: Any) -> None:
    model = make(algorithm, make_vec_env(bits(), n_envs), options={"goal_selection_strategy": "future"})
    model.learn(50 * n_envs)
    for _ in range(3):  # into the middle of an episode
        if not model.replay_buffer.dones[model.replay_buffer.pos - 1].all():
            break
        model.learn(n_envs, reset_num_timesteps=False)
    old = deepcopy(model.replay_buffer)
    last = old.pos - 1
    unfinished = ~old.dones[last].astype(bool)
    assert unfinished.any()
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=truncate)
    said = [str(warning.message) for warning in caught if "last trajectory" in str(warning.message)]
    assert len(said) == truncate and all("will be truncated" in text for text in said)
    new = model.replay_buffer
    for key in ("observation", "achieved_goal", "desired_goal"):
        assert_array_equal(new.observations[key], old.observations[key])
        assert_array_equal(new.next_observations[key], old.next_observations[key])
    assert_array_equal(new.dones[:last], old.dones[:last])
    assert_array_equal(new.dones[last], old.dones[last] | (truncate & unfinished))
    assert_array_equal(new.timeouts[last], old.timeouts[last] | (truncate & unfinished))
    assert_array_equal(new.episodes.length == 0, old.dones[last] | truncate)
    model.learn(10 * n_envs, reset_num_timesteps=truncate)


def test_a_buffer_built_by_hand_takes_the_environments() -> None:
    env = make_vec_env(bits(), 2)
    kwargs: dict[str, Any] = {"n_envs": 2, "n_sampled_goal": 2, "goal_selection_strategy": "future", "device": "cpu"}
    buffer = HIPIReplayBuffer(100, env.observation_space, env.action_space, env=env, **kwargs)
    obs = env.reset()
    for _ in range(3):
        actions = np.full((2, N_BITS), -1.0)  # nothing flips
        next_obs, rewards, dones, infos = env.step(actions)
        buffer.add(obs, next_obs, actions, rewards, dones, infos)
        obs = next_obs
    assert buffer.size() == 3 and buffer.sample(20).rewards.shape == (20, 1)
    if not dones.all():
        with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
            buffer.truncate_last_trajectory()
    assert buffer.dones[2].all()


#: How bits are learned to be flipped.
FLIPPING: dict[str, Any] = {
    "train_freq": 1,
    "gradient_steps": 2,
    "learning_starts": 20,
    "exploration_final_eps": 0.02,
    "target_update_interval": 100,
    "seed": 0,
    "batch_size": 32,
    "stats_window_size": 50,
}


@pytest.mark.expensive
@pytest.mark.parametrize("options", [{"n_sampled_goal": 5}, {}, {"strategy": "none"}, {"n_steps": 3}])
def test_ten_bits_are_flipped_and_not_without_relabeling(options: dict[str, Any]) -> None:
    model = HIPIDQN(
        "MultiInputPolicy",
        make_vec_env(bits(False, n_bits=10), 2),
        replay_buffer_kwargs=options,
        learning_rate=2e-3,
        **FLIPPING,
        buffer_size=100_000,
    )
    model.learn(3000)
    assert model.ep_success_buffer is not None
    success = np.mean(model.ep_success_buffer)
    is_learned = options in ({"n_sampled_goal": 5}, {})
    assert success > 0.9 if is_learned else success < 0.2


@pytest.mark.expensive
@pytest.mark.parametrize(("strategy", "least", "most"), [("hipi", 0.8, 1.0), ("future", 0.6, 1.0), ("none", 0.0, 0.4)])
def test_a_goal_that_is_an_image_is_reached_and_not_without_relabeling(strategy: str, least: float, most: float) -> None:
    options = {"strategy": strategy, "n_steps": 1, "relabel_prob": 0.8, "n_candidate_tasks": 8}
    model = HIPIDQN(
        "MultiInputPolicy",
        make_vec_env(bits(False, n_bits=7, image_obs_space=True), 2),
        replay_buffer_kwargs=options,
        # Bits are single pixels of 1296: as bytes they are loud enough for a NatureCNN.
        policy_kwargs={"normalize_images": False},
        learning_rate=5e-4,
        **FLIPPING,
        buffer_size=20_000,
    )
    assert any(isinstance(module, NatureCNN) for module in model.q_net.modules())
    model.learn(2000)
    assert model.ep_success_buffer is not None
    assert least <= np.mean(model.ep_success_buffer) <= most
