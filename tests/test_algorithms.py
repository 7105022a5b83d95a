"""Training with stable-baselines3: the line that has to work, and everything that a user then does with the model."""

import copy
import gc
import io
import pathlib
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import (
    GOALS,
    LineWalk,
    MatrixWalk,
    directions,
    make_line_walk,
    make_matrix_walk,
    one_task,
    pairs_of,
    vec_line_walk,
)
from numpy.testing import assert_allclose, assert_array_equal
from sb3_contrib import TQC
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

import hipi_sb3.relabel.rows
from hipi_sb3 import HIPISAC, GoalReaching, HIPIReplayBuffer, MultiTaskWrapper, TargetVelocity, TrajectoryDataset
from hipi_sb3.relabel.learners import Learner, Pairs, SACLearner
from hipi_sb3.relabel.strategies import RelabelRows, Strategy

SMALL: dict[str, Any] = {
    "learning_starts": 20,
    "batch_size": 16,
    "buffer_size": 1000,
    "device": "cpu",
    "seed": 0,
}


def make_model(env: Any = None, algorithm: type[SAC] = HIPISAC, flatten: bool = False, **kwargs: Any) -> SAC:
    """A small learner on the line walk; options of the buffer are given as ``replay_buffer_kwargs``."""
    env = make_line_walk(flatten=flatten) if env is None else env
    kwargs = {**SMALL, "policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    return algorithm("MlpPolicy" if flatten else "MultiInputPolicy", env, **kwargs)


def train(model: SAC, steps: int = 60, **kwargs: Any) -> HIPIReplayBuffer:
    model.learn(steps, **kwargs)
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    return model.replay_buffer


def parameters(model: SAC) -> np.ndarray:
    return model.policy.parameters_to_vector()


def assert_episodes_are_whole(buffer: HIPIReplayBuffer) -> None:
    """From each row to the end of its episode, every observation continues the one before, and a done is only at the end."""
    for env_index in range(buffer.n_envs):
        for row in range(buffer.size()):
            end = buffer.episodes.end[row, env_index]
            end = (buffer.pos - 1) % buffer.buffer_size if end < 0 else end
            while row != end:
                following = (row + 1) % buffer.buffer_size
                assert not buffer.dones[row, env_index]
                for key, stored in buffer.next_observations.items():
                    assert_array_equal(stored[row, env_index], buffer.observations[key][following, env_index])
                row = following


# -- the line that has to work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["none", "random", "final", "future", "hipi", "map"])
@pytest.mark.parametrize("flatten", [False, True])
def test_every_strategy_trains(strategy: str, flatten: bool) -> None:
    model = make_model(flatten=flatten, replay_buffer_kwargs={"strategy": strategy})
    before = parameters(model)
    train(model, 40)
    assert np.isfinite(parameters(model)).all() and not np.array_equal(before, parameters(model))


@pytest.mark.parametrize(
    "options",
    [
        {"score": "q"},
        {"score": "paper"},
        {"temperature": "auto"},
        {"temperature": "ess:4"},
        {"temperature": 0},
        {"log_partition": "none"},
        {"log_partition": "mean"},
        {"candidates": "prior"},
        {"candidates": "achieved", "n_candidate_tasks": 1},
        {"candidates": {"batch": 0.2, "prior": 0.3, "achieved": 0.5}, "relabel_prob": 1.0},
    ],
)
def test_every_option_trains(options: dict[str, Any]) -> None:
    model = make_model(replay_buffer_kwargs=options)
    train(model, 30)
    assert np.isfinite(parameters(model)).all()


@pytest.mark.parametrize("family", [directions(), directions(prior=[0.5, 0.3, 0.2]), one_task()])
def test_finite_families_train_with_all_their_tasks_as_candidates(family: Any) -> None:
    model = make_model(make_line_walk(family))
    buffer = train(model, 40)
    assert_array_equal(buffer.relabeler.sampler.family.tasks, family.tasks)


def test_state_dependent_exploration_trains_with_every_score() -> None:
    for score in ("td", "q", "paper"):
        model = make_model(use_sde=True, replay_buffer_kwargs={"score": score})
        train(model, 30)
        assert np.isfinite(parameters(model)).all()


@pytest.mark.parametrize("algorithm", [HIPISAC, SAC, TD3, DDPG, TQC], ids=lambda algorithm: algorithm.__name__)
@pytest.mark.parametrize("options", [{}, {"score": "advantage"}, {"strategy": "future", "n_steps": 3}], ids=str)
def test_actions_and_observations_may_have_several_axes(algorithm: Any, options: dict[str, Any]) -> None:
    buffer_kwargs = {"n_candidate_tasks": 4, **options}
    model = make_model(make_matrix_walk(), algorithm, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs=buffer_kwargs)
    buffer = train(model)
    assert buffer.actions.shape[2:] == (4,) and buffer.observations["observation"].shape[2:] == (2, 1, 1)
    batch = model.replay_buffer.sample(8)  # type: ignore[union-attr]
    assert batch.actions.shape == (8, 4) and batch.observations["observation"].shape == (8, 2, 1, 1)
    obs = {"observation": np.zeros((3, 2, 1, 1), np.float32), "task": np.zeros((3, 1), np.float32)}
    assert model.predict(obs)[0].shape == (3, 2, 2)
    low, high = MatrixWalk.action_space.low, MatrixWalk.action_space.high
    dataset = TrajectoryDataset.from_buffer(buffer)
    assert np.all((dataset.actions >= low - 1e-5) & (dataset.actions <= high + 1e-5)) and np.ptp(dataset.actions[:, 1, 1]) > 4


def test_scores_of_several_axes_are_those_of_pair_by_pair() -> None:
    model = make_model(make_matrix_walk())
    buffer = train(model)
    batch = buffer.sample(6)
    pairs = pairs_of(batch, buffer.layout, th.linspace(-1, 1, 5)[:, None])
    with th.no_grad():
        apart, repeated = SACLearner(model).pair_q(pairs), Learner(model).pair_q(pairs)
    assert_allclose(apart.numpy(), repeated.numpy(), atol=1e-5)
    assert np.ptp(apart.numpy(), axis=1).min() > 1e-4


def test_hipisac_is_sac_with_the_hipi_buffer() -> None:
    trained = []
    for options in ({"algorithm": HIPISAC}, {"algorithm": SAC, "replay_buffer_class": HIPIReplayBuffer}):
        model = make_model(**options)
        train(model)
        trained.append(parameters(model))
    # HIPISAC's update computes the same numbers in another order.
    assert_allclose(trained[0], trained[1], rtol=1e-3, atol=1e-5)


def test_hipisac_takes_the_environment_by_name_and_the_other_arguments_in_sacs_order() -> None:
    model = HIPISAC("MultiInputPolicy", "PointFourRooms-v0", 1e-3, 5000, device="cpu")
    assert model.learning_rate == 1e-3 and model.buffer_size == 5000
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)


def test_no_relabeling_trains_exactly_as_the_buffer_of_sb3() -> None:
    for flatten, reference in ((False, DictReplayBuffer), (True, ReplayBuffer)):
        trained = []
        for options in ({"replay_buffer_kwargs": {"strategy": "none"}}, {"replay_buffer_class": reference}):
            model = make_model(flatten=flatten, algorithm=SAC, **{"replay_buffer_class": HIPIReplayBuffer, **options})
            model.learn(120)
            trained.append(parameters(model))
        assert_array_equal(trained[0], trained[1])


def test_relabeling_changes_the_training() -> None:
    trained = []
    for strategy in ("none", "hipi"):
        model = make_model(replay_buffer_kwargs={"strategy": strategy})
        train(model)
        trained.append(parameters(model))
    assert not np.array_equal(trained[0], trained[1])


def test_with_one_task_relabeled_rows_are_what_happened() -> None:
    model = make_model(make_line_walk(one_task()), replay_buffer_kwargs={"relabel_prob": 1.0})
    buffer = train(model)
    rows = np.arange(buffer.size())
    relabeled = buffer._get_samples(rows)
    assert_array_equal(relabeled.observations["task"], buffer.observations["task"][rows, 0])
    assert_array_equal(relabeled.rewards[:, 0], buffer.rewards[rows, 0])
    assert_array_equal(relabeled.dones[:, 0], buffer.dones[rows, 0] & ~buffer.timeouts[rows, 0])


@pytest.mark.parametrize("strategy", ["hipi", "future", "random"])
def test_two_runs_with_one_seed_are_identical(strategy: str) -> None:
    trained = []
    for seed in (3, 3, 4):
        model = make_model(replay_buffer_kwargs={"strategy": strategy}, seed=seed)
        train(model)
        trained.append(parameters(model))
    assert_array_equal(trained[0], trained[1])
    assert not np.array_equal(trained[0], trained[2])


# -- when and how much it relabels ---------------------------------------------------------------------------------


def test_before_the_warmup_a_random_candidate_is_taken_and_the_critic_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    score_pairs = hipi_sb3.relabel.rows.score_pairs

    def spy(learner: Any, *args: Any) -> Any:
        asked.append(learner.model._n_updates)
        return score_pairs(learner, *args)

    monkeypatch.setattr(hipi_sb3.relabel.rows, "score_pairs", spy)
    model = make_model(replay_buffer_kwargs={"warmup_updates": 30, "relabel_prob": 1.0, "label_reuse": 1})
    buffer = train(model, 80)
    assert min(asked) == 30 and max(asked) == model._n_updates - 1
    model._n_updates = 0
    asked.clear()
    labels = buffer.sample(400).observations["task"].numpy()
    assert not asked
    assert len(np.unique(labels)) > 15  # of 32 candidates, less duplicates


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_relabel_prob_holds_for_hipi_too(probability: float) -> None:
    model = make_model(replay_buffer_kwargs={"relabel_prob": probability, "candidates": "prior"})
    buffer = train(model, 30)
    commanded = buffer.observations["task"][: buffer.size(), 0]
    n = 2000
    rows = np.random.default_rng(0).integers(buffer.size(), size=n)
    changed = np.any(buffer._get_samples(rows).observations["task"].numpy() != commanded[rows], axis=1)
    # A fresh draw from a continuous prior never equals the commanded task. Four standard deviations of a binomial share.
    assert abs(changed.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / n)


def test_reward_and_termination_of_hipis_labels_are_those_of_the_family() -> None:
    model = make_model(vec_line_walk(3), replay_buffer_kwargs={"relabel_prob": 1.0, "n_steps": 1, "label_reuse": 1})
    buffer = train(model, 300)
    rows = buffer.sample(500)
    # The observation after the step is the position, so that the family can be asked again.
    reached = rows.next_observations["observation"][:, :1].numpy()
    task = rows.observations["task"].numpy()
    assert_array_equal(task, rows.next_observations["task"])
    assert_array_equal(rows.rewards[:, 0], GOALS.reward(reached, task))
    fell_off = np.abs(reached[:, 0]) > 1.2
    assert fell_off.any()
    assert_array_equal(rows.dones[:, 0], GOALS.terminated(reached, task) | fell_off)


def test_what_was_decided_is_logged() -> None:
    class Memory(KVWriter):
        def __init__(self) -> None:
            self.rows: list[dict[str, Any]] = []

        def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
            self.rows.append(dict(key_values))

        def close(self) -> None:
            pass

    memory = Memory()
    model = make_model(replay_buffer_kwargs={"label_reuse": 1})
    model.set_logger(Logger(None, [memory]))
    train(model, 200, log_interval=2)
    logged = [
        {k[8:]: v for k, v in row.items() if k.startswith("relabel/")} for row in memory.rows if "train/n_updates" in row
    ]
    expected = {
        "share_changed",
        "reward_before",
        "reward_after",
        "trivial_share",
        "us_per_row",
        "posterior_entropy",
        "effective_tasks",
        "label_kl",
        "log_z_mean",
        "log_z_spread",
        "temperature",
    }
    assert len(logged) > 3
    for row in logged:
        assert expected <= set(row)
        assert all(np.isfinite(value) for value in row.values())
        assert 0.1 < row["share_changed"] < 0.8
        assert 0 <= row["posterior_entropy"] <= np.log(64)
        assert 1 <= row["effective_tasks"] <= 64
        assert -1 <= row["reward_before"] <= 0 and -1 <= row["reward_after"] <= 0
        assert row["trivial_share"] == pytest.approx(1 + row["reward_after"], abs=1e-6)  # fulfilled is reward 0, else -1
    assert any(0 <= row["commanded_best"] <= 1 for row in logged if "commanded_best" in row)


# -- environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["hipi", "future"])
def test_several_environments(strategy: str) -> None:
    model = make_model(vec_line_walk(3), replay_buffer_kwargs={"strategy": strategy}, buffer_size=90)
    buffer = train(model, 150)  # 50 steps in each, 30 rows each: the ring has wrapped
    assert buffer.full and buffer.n_envs == 3
    assert_episodes_are_whole(buffer)


def test_environments_in_subprocesses() -> None:
    env = SubprocVecEnv([make_line_walk, make_line_walk])
    try:
        model = make_model(env)
        buffer = train(model, 80)
        assert buffer.family is not None and buffer.family.task_space == GOALS.task_space
        assert_episodes_are_whole(buffer)
    finally:
        env.close()


def test_learn_called_again_in_the_middle_of_an_episode_starts_another() -> None:
    model = make_model(make_line_walk(max_steps=50), replay_buffer_kwargs={"strategy": "future"})
    for steps in (13, 17, 19):
        buffer = train(model, steps)
    assert_episodes_are_whole(buffer)
    left = [12, 12 + 17]
    assert all(buffer.episodes.end[row, 0] == row for row in left if not buffer.dones[row, 0])
    # Going on without a reset of the time is a reset of the environment all the same.
    train(model, 10, reset_num_timesteps=False)
    assert_episodes_are_whole(buffer)


def test_a_new_environment_goes_on_with_the_same_buffer() -> None:
    model = make_model()
    buffer = train(model, 45)
    model.set_env(make_line_walk(max_steps=5))
    assert train(model, 30) is buffer
    assert buffer.size() == 75
    assert_episodes_are_whole(buffer)


def test_an_environment_of_other_features_is_refused_however_often_it_is_tried() -> None:
    model = make_model()
    buffer = train(model, 30)
    # One-dimensional tasks in the same bounds, but two features.
    model.set_env(make_line_walk(TargetVelocity(low=-1.0, high=1.0, velocity=velocity)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"TargetVelocity.*transitions of GoalReaching.*buffer.reset\(\)"):
            train(model, 10)
    assert buffer.size() == 30
    buffer.reset()
    model.learn(40)
    assert isinstance(buffer.family, TargetVelocity) and buffer.size() == 40


def velocity(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> float:
    return float(next_obs[0] - obs[0])


def test_an_environment_whose_family_rewards_otherwise_is_refused() -> None:
    model = make_model()
    buffer = train(model, 30)
    model.set_env(make_line_walk(GoalReaching(low=[-1.0], high=[1.0], radius=2.5)))
    with pytest.raises(ValueError, match=r"GoalReaching gives -1.0"):
        train(model, 60)
    assert buffer.size() >= 30


# -- VecNormalize --------------------------------------------------------------------------------------------------


class AssignTask(Strategy):
    """Relabels every row with one task, whatever the critic says, but asks it."""

    needs_candidates = True
    needs_scores = True

    def assign(self, rows: RelabelRows, rng: np.random.Generator) -> np.ndarray:
        rows.infer()
        return np.full_like(rows.commanded, 0.25)


def normalized_model(flatten: bool = False, **kwargs: Any) -> tuple[SAC, VecNormalize]:
    env = VecNormalize(vec_line_walk(2, flatten=flatten), **{"clip_obs": np.inf, **kwargs})
    options = {"strategy": AssignTask(), "relabel_prob": 1.0, "candidates": "prior", "n_candidate_tasks": 4, "label_reuse": 1}
    model = make_model(env, flatten=flatten, replay_buffer_kwargs=options)
    train(model, 80)
    env.training = False
    return model, env


def as_numpy(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: value.numpy() for key, value in observations.items()}
    return observations.numpy()


@pytest.mark.parametrize("flatten", [False, True])
def test_relabeled_rows_are_built_raw_and_then_normalised_as_any_row(flatten: bool) -> None:
    model, env = normalized_model(flatten)
    assert env.ret_rms.var != 1.0
    buffer: Any = model.replay_buffer
    samples = []
    for normalizer in (None, env):
        np.random.seed(0)
        samples.append(buffer.sample(50, env=normalizer))
    raw, normalized = samples
    for name in ("observations", "next_observations"):
        expected = env.normalize_obs(as_numpy(getattr(raw, name)))
        found = as_numpy(getattr(normalized, name))
        for x, y in zip(expected.values(), found.values(), strict=True) if isinstance(found, dict) else [(expected, found)]:
            assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    task = raw.observations[:, -1] if flatten else raw.observations["task"][:, 0]
    assert_allclose(task, 0.25)
    # Rewards are those of the raw features, scaled.
    raw_next = raw.next_observations[:, :1] if flatten else raw.next_observations["observation"][:, :1]
    assert_allclose(raw.rewards[:, 0], GOALS.reward(raw_next.numpy(), np.float32([0.25])))
    assert_allclose(normalized.rewards, env.normalize_reward(raw.rewards.numpy()), rtol=1e-6)
    assert_array_equal(normalized.dones, raw.dones)
    assert normalized.rewards.dtype == th.float32


@pytest.mark.parametrize("keys", [["observation", "task"], ["observation"], ["task"]])
def test_scores_see_tasks_observations_and_rewards_as_the_critic_does(
    keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Pairs] = []
    score_pairs = hipi_sb3.relabel.rows.score_pairs

    def spy(learner: Any, score: str, pairs: Pairs) -> Any:
        seen.append(pairs)
        return score_pairs(learner, score, pairs)

    model, env = normalized_model(norm_obs_keys=keys)
    buffer: Any = model.replay_buffer
    np.random.seed(0)
    raw = buffer.sample(20)
    monkeypatch.setattr(hipi_sb3.relabel.rows, "score_pairs", spy)
    candidates = GOALS.sample(np.random.default_rng(0), 4)
    monkeypatch.setattr(buffer.relabeler.sampler.family.__class__, "sample", lambda self, rng, n: candidates)
    np.random.seed(0)
    buffer.sample(20, env=env)
    pairs = seen[0]
    tasks = np.sort(candidates, axis=0)  # merged and sorted
    some = {"observation": np.zeros((4, 2), dtype=np.float32), "task": tasks}
    assert_allclose(pairs.tasks, env.normalize_obs(some)["task"], rtol=1e-5)
    for name in ("observations", "next_observations"):
        raw_rows = as_numpy(getattr(raw, name))
        expected = env.normalize_obs(raw_rows)["observation"]
        assert_allclose(getattr(pairs, name)["observation"], expected, rtol=1e-5, atol=1e-6)
    reached = as_numpy(raw.next_observations)["observation"][:, None, :1]
    assert_allclose(pairs.rewards, env.normalize_reward(GOALS.reward(reached, tasks)), rtol=1e-6)
    assert pairs.rewards.shape == pairs.terminated.shape == (20, 4)


def test_training_with_normalisation_of_rewards_stores_them_raw() -> None:
    model, _ = normalized_model()
    buffer: Any = model.replay_buffer
    assert set(np.unique(buffer.rewards[: buffer.size()])) <= {-1.0, 0.0}


@pytest.mark.parametrize("flatten", [False, True])
def test_normalisation_may_not_clip_tasks(flatten: bool) -> None:
    remedy = (
        r"clips observations at 10.0.*clip_obs=np.inf" if flatten else r'clips task at 10.0.*norm_obs_keys=\["observation"\]'
    )
    with pytest.raises(ValueError, match=remedy):
        normalized_model(flatten, clip_obs=10.0)
    normalized_model(flatten, clip_obs=10.0, norm_obs=False)
    if not flatten:
        with pytest.raises(ValueError, match=r"clips task at 10.0.*norm_obs=False"):
            normalized_model(clip_obs=10.0, norm_obs_keys=["task"])
        normalized_model(clip_obs=10.0, norm_obs_keys=["observation"])


# -- saving, loading, copying --------------------------------------------------------------------------------------


def test_a_saved_model_predicts_without_an_environment(tmp_path: pathlib.Path) -> None:
    model = make_model()
    train(model, 30)
    model.save(tmp_path / "model")
    loaded = HIPISAC.load(tmp_path / "model", device="cpu")
    obs, _ = make_line_walk().reset(seed=0)
    assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert_array_equal(parameters(loaded), parameters(model))


def test_a_model_loaded_without_an_environment_trains_once_it_gets_one(tmp_path: pathlib.Path) -> None:
    model = make_model()
    train(model, 30)
    model.save(tmp_path / "model")
    loaded = HIPISAC.load(tmp_path / "model", device="cpu")
    with pytest.raises(RuntimeError, match="empty"):
        loaded.replay_buffer.sample(1)  # type: ignore[union-attr]
    loaded.set_env(make_line_walk())
    assert train(loaded, 30).size() == 30


@pytest.mark.parametrize("algorithm", [HIPISAC, SAC])
def test_options_survive_save_and_load(algorithm: type[SAC], tmp_path: pathlib.Path) -> None:
    options = {"strategy": "map", "relabel_prob": 0.3, "temperature": "auto", "score": "q"}
    model = make_model(algorithm=algorithm, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs=options)
    train(model, 30)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_line_walk())
    buffer = loaded.replay_buffer
    assert isinstance(buffer, HIPIReplayBuffer)
    assert type(buffer.relabeler.strategy).__name__ == "MaximumAPosteriori"
    relabeler = buffer.relabeler
    assert (relabeler.relabel_prob, relabeler.inference.temperature, relabeler.score) == (0.3, "auto", "q")


def save_and_load(model: SAC, folder: pathlib.Path, env: Any = None, **kwargs: Any) -> SAC:
    model.save(folder / "model")
    model.save_replay_buffer(folder / "buffer")
    loaded = type(model).load(folder / "model", env=make_line_walk() if env is None else env, **kwargs)
    loaded.load_replay_buffer(folder / "buffer")
    return loaded


def test_a_loaded_buffer_belongs_to_the_algorithm_that_loaded_it(tmp_path: pathlib.Path) -> None:
    model = make_model()
    train(model)
    loaded = save_and_load(model, tmp_path)
    buffer: Any = loaded.replay_buffer
    assert buffer.model is loaded
    assert buffer.size() == 60
    assert len(buffer.sample(8).rewards) == 8
    assert model.replay_buffer.model is model  # type: ignore[union-attr]


@pytest.mark.parametrize("strategy", ["hipi", "future"])
def test_training_goes_on_from_the_same_state(strategy: str, tmp_path: pathlib.Path) -> None:
    model = make_model(replay_buffer_kwargs={"strategy": strategy, "warmup_updates": 20}, buffer_size=50)
    train(model, 70)
    loaded = save_and_load(model, tmp_path)
    ours, theirs = loaded.replay_buffer, model.replay_buffer
    assert isinstance(ours, HIPIReplayBuffer) and isinstance(theirs, HIPIReplayBuffer)
    assert loaded._n_updates == model._n_updates and loaded.num_timesteps == model.num_timesteps == 70
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    for key in ("rewards", "dones", "timeouts", "env_terminated", "features", "actions"):
        assert_array_equal(getattr(ours, key), getattr(theirs, key))
    assert_array_equal(ours.episodes.end, theirs.episodes.end)
    # From here on both do the same, given the same random numbers and the same environment.
    for m in (model, loaded):
        m.set_env(make_line_walk(), force_reset=True)
        m.set_random_seed(5)
        m.learn(40, reset_num_timesteps=False)
    assert_array_equal(parameters(loaded), parameters(model))
    assert_episodes_are_whole(ours)


def test_a_buffer_goes_through_a_stream() -> None:
    model = make_model()
    train(model, 30)
    stream = io.BytesIO()
    model.save_replay_buffer(stream)
    stream.seek(0)
    other = make_model()
    with pytest.raises(ValueError, match=r"is a pickled buffer, and reading it runs .* pass trust=True"):
        other.load_replay_buffer(stream)
    other.load_replay_buffer(stream, trust=True)
    assert other.replay_buffer.model is other  # type: ignore[union-attr]


def test_a_copied_model_has_a_buffer_of_its_own() -> None:
    model = make_model()
    train(model, 30)
    twin = copy.deepcopy(model)
    assert twin.replay_buffer is not model.replay_buffer
    assert twin.replay_buffer.model is twin and model.replay_buffer.model is model  # type: ignore[union-attr]
    train(twin, 30)
    assert model.replay_buffer.size() == 30 and twin.replay_buffer.size() == 60  # type: ignore[union-attr]


def test_a_copied_buffer_belongs_to_no_one_until_it_is_attached() -> None:
    model = make_model(replay_buffer_kwargs={"relabel_prob": 1.0})
    train(model, 30)
    for twin in (copy.deepcopy(model.replay_buffer), pickle.loads(pickle.dumps(model.replay_buffer))):
        assert isinstance(twin, HIPIReplayBuffer)
        with pytest.raises(RuntimeError, match=r"buffer\.attach\(model\)"):
            twin.sample(8)
        twin.attach(model)
        with pytest.raises(RuntimeError, match=r"not the replay buffer of the HIPISAC.*model.replay_buffer = buffer"):
            twin.sample(8)
        model.replay_buffer = twin
        assert len(twin.sample(8).rewards) == 8


class UnpickleInside(BaseCallback):
    """A callback that unpickles and builds buffers for its own purposes."""

    def _on_step(self) -> bool:
        buffer: Any = self.model.replay_buffer  # type: ignore[attr-defined]
        self.unpickled = pickle.loads(pickle.dumps(buffer))
        self.copied = copy.deepcopy(buffer)
        self.built = HIPIReplayBuffer(10, buffer.observation_space, buffer.action_space, family=GOALS)
        return True


def test_a_buffer_made_inside_a_callback_is_not_this_models() -> None:
    model, callback = make_model(), UnpickleInside()
    train(model, 30, callback=callback)
    for buffer in (callback.unpickled, callback.copied, callback.built):
        with pytest.raises(RuntimeError, match="belongs to no algorithm"):
            _ = buffer.model


class MakesBackups(HIPISAC):
    """An algorithm with methods of its own that copy its buffer."""

    def backup(self) -> Any:
        return pickle.loads(pickle.dumps(self.replay_buffer))


def test_only_the_two_methods_of_sb3_make_a_buffer_the_algorithms() -> None:
    model = make_model(algorithm=MakesBackups)
    train(model, 30)
    assert isinstance(model, MakesBackups)
    with pytest.raises(RuntimeError, match="belongs to no algorithm"):
        _ = model.backup().model


def test_neither_model_nor_environment_is_pickled_or_kept_alive() -> None:
    model = make_model()
    model.env.envs[0].unwrapped.unpicklable = lambda: None  # type: ignore[union-attr]
    train(model, 30)
    buffer: Any = model.replay_buffer
    pickled = pickle.dumps(buffer)
    assert b"HIPISAC" not in pickled and b"LineWalk" not in pickled and b"VecEnv" not in pickled
    del model
    gc.collect()
    with pytest.raises(RuntimeError, match="belongs to no algorithm"):
        _ = buffer.model


def test_a_subclass_of_the_buffer_finds_its_algorithm_too(tmp_path: pathlib.Path) -> None:
    model = make_model(replay_buffer_class=DerivedBuffer)
    train(model, 30)
    loaded = save_and_load(model, tmp_path, trust=True)  # a class of a user's own
    assert isinstance(loaded.replay_buffer, DerivedBuffer)
    assert loaded.replay_buffer.model is loaded


class DerivedBuffer(HIPIReplayBuffer):
    """What a user might write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)


# -- bad input -----------------------------------------------------------------------------------------------------


class NoTasks(LineWalk):
    """A Dict environment with a key "task", but without a family."""

    observation_space = spaces.Dict({"observation": LineWalk.observation_space, "task": GOALS.task_space})  # type: ignore

    def _obs(self) -> Any:
        return {"observation": super()._obs(), "task": np.zeros(1, dtype=np.float32)}


def test_an_environment_without_a_family_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"no task family in the environment. Wrap it: MultiTaskWrapper"):
        make_model(NoTasks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "hipy"}, r"Did you mean 'hipi'"),
        ({"candidates": "all"}, r"needs a finite family"),
        ({"n_steps": 3, "gamma": 0.5}, r"n_steps=3"),
    ],
)
def test_wrong_options_of_the_buffer_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(replay_buffer_kwargs=options)


@pytest.mark.filterwarnings("ignore:.*is ignored because a custom")
def test_n_steps_and_gamma_are_those_of_the_algorithm_unless_others_are_given() -> None:
    buffer = make_model(n_steps=3, gamma=0.8).replay_buffer
    assert isinstance(buffer, HIPIReplayBuffer)
    assert (buffer.n_steps, buffer.relabeler.n_steps, buffer.gamma) == (3, 3, 0.8)
    with pytest.raises(ValueError, match=r"n_steps=3.*replay_buffer_kwargs=dict\(n_steps=3"):
        make_model(n_steps=3, replay_buffer_kwargs={"n_steps": 1})


@pytest.mark.filterwarnings("ignore:.*is ignored because a custom")
@pytest.mark.parametrize("options", [{}, {"strategy": "random"}])
def test_a_buffer_has_the_n_steps_of_the_algorithm_that_it_was_attached_to_last(options: dict[str, Any]) -> None:
    first, second = make_model(n_steps=3, replay_buffer_kwargs=options), make_model(replay_buffer_kwargs=options)
    buffer, own = first.replay_buffer, second.replay_buffer
    assert isinstance(buffer, HIPIReplayBuffer) and isinstance(own, HIPIReplayBuffer)
    assert buffer.n_steps == 3 != own.n_steps
    second.replay_buffer = buffer
    buffer.attach(second)
    assert buffer.n_steps == own.n_steps


def test_the_live_alpha_is_refused_for_an_algorithm_that_has_none() -> None:
    options = {"replay_buffer_class": HIPIReplayBuffer, "replay_buffer_kwargs": {"temperature": "auto"}}
    with pytest.raises(ValueError, match=r"entropy temperature, and TD3 has none"):
        TD3("MultiInputPolicy", make_line_walk(), device="cpu", buffer_size=100, **options)


def test_strategies_without_scores_work_with_an_algorithm_without_alpha() -> None:
    options = {"replay_buffer_class": HIPIReplayBuffer, "replay_buffer_kwargs": {"strategy": "future", "temperature": "auto"}}
    model = TD3("MultiInputPolicy", make_line_walk(), **SMALL, policy_kwargs={"net_arch": [16]}, **options)
    model.learn(40)


class HalfReward(gym.RewardWrapper):
    def reward(self, reward: Any) -> Any:
        return 0.5 * reward


def test_a_wrapper_outside_that_changes_the_reward_is_refused() -> None:
    model = make_model(HalfReward(make_line_walk()))
    with pytest.raises(ValueError, match=r"returned reward -0.5.*GoalReaching gives -1.0.*inside MultiTaskWrapper"):
        model.learn(30)
    assert model.replay_buffer.size() == 0  # type: ignore[union-attr]


class DropInfo(gym.Wrapper):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {}


def test_a_wrapper_outside_that_drops_info_is_refused() -> None:
    with pytest.raises(ValueError, match=r"info has no 'task_features'"):
        make_model(DropInfo(make_line_walk())).learn(30)


def test_a_buffer_of_other_spaces_is_refused_and_the_own_one_kept(tmp_path: pathlib.Path) -> None:
    other = make_model(make_line_walk(directions()))
    train(other, 30)
    other.save_replay_buffer(tmp_path / "buffer")
    model = make_model()
    buffer = train(model, 30)
    with pytest.raises(ValueError, match=r"buffer's observation_space is .* but the algorithm's is .*same environment"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is buffer
    train(model, 30)


def test_a_buffer_of_another_number_of_environments_is_refused(tmp_path: pathlib.Path) -> None:
    other = make_model(vec_line_walk(2))
    train(other, 30)
    other.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"filled by 2 environments, but the algorithm has 1"):
        make_model().load_replay_buffer(tmp_path / "buffer")


class NaNFromStep(LineWalk):
    """Its position turns NaN at the third step."""

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (np.full_like(obs, np.nan) if self.clock == 3 else obs), *rest


def test_a_feature_that_is_nan_is_refused_before_it_is_stored() -> None:
    model = make_model(MultiTaskWrapper(NaNFromStep(), GOALS))
    with pytest.raises(ValueError, match=r"features at step 3 of the episode is \[nan\] for task"):
        model.learn(30)
    assert model.replay_buffer.size() == 2  # type: ignore[union-attr]


def test_a_diverged_critic_names_row_and_task() -> None:
    model = make_model(replay_buffer_kwargs={"relabel_prob": 1.0})
    buffer = train(model, 30)
    with th.no_grad():
        for parameter in model.critic_target.parameters():
            parameter.fill_(th.nan)
    with pytest.raises(ValueError, match=r"score of row \d+ for candidate task \d+ is NaN.*critic has diverged"):
        buffer.sample(16)
    assert buffer.size() == 30
