"""HIPI-BC: offline and online training, and everything that a user then does with the model."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import GOALS, LineWalk, directions, make_line_walk, position_of, vec_line_walk
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ProgressBarCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecNormalize
from walks import INNER, walks

from hipi_sb3 import (
    HIPIBC,
    HIPISAC,
    CallableTasks,
    GoalReaching,
    MultiTaskWrapper,
    TaskConditionedBCPolicy,
    TrajectoryDataset,
)
from hipi_sb3.callbacks import TaskEvalCallback
from hipi_sb3.cloning.labels import TrajectoryLabeler
from hipi_sb3.cloning.minibatches import minibatches

SMALL: dict[str, Any] = {"batch_size": 16, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}}


def make_model(env: Any = None, flat: bool = False, **kwargs: Any) -> HIPIBC:
    return HIPIBC("MlpPolicy" if flat else "MultiInputPolicy", env, **{**SMALL, **kwargs})


def parameters(model: Any) -> np.ndarray:
    return model.policy.parameters_to_vector()


def some_obs(n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"observation": rng.normal(size=(n, 2)).astype(np.float32), "task": rng.uniform(-1, 1, (n, 1)).astype(np.float32)}


class DiscreteWalk(gym.ActionWrapper):
    """The walk with two actions: left and right."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(2)

    def action(self, action: Any) -> np.ndarray:
        return np.array([0.5 if action == 1 else -0.5], dtype=np.float32)


def make_discrete_walk(family: Any = GOALS) -> gym.Env:
    return MultiTaskWrapper(gym.wrappers.TimeLimit(DiscreteWalk(LineWalk()), 8), family)


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [None, spaces.Discrete(2)])
def test_the_loss_is_the_expected_log_likelihood(action_space: Any) -> None:
    dataset = walks([4] * 10, directions(), **({} if action_space is None else {"action_space": action_space}))
    model = make_model(n_labels=3, batch_size=40)
    model.fit(dataset, n_updates=0)
    labels = model.labeler(dataset, np.random.default_rng(0))
    (minibatch,) = minibatches(dataset, labels, 40, seed=0, epoch=0)
    total = 0.0
    for row in range(40):
        trajectory = minibatch.steps[row] // 4
        for column, weight in zip(labels.columns[trajectory], labels.weights[trajectory], strict=True):
            obs = {"observation": th.as_tensor(minibatch.observations[[row]]), "task": th.as_tensor(labels.tasks[[column]])}
            log_prob = model.policy.log_prob(obs, th.as_tensor(minibatch.actions[[row]]))
            total -= weight * log_prob.item() / 40
    assert model.loss(minibatch, labels).item() == pytest.approx(total, rel=1e-4)


def test_actions_of_several_axes_are_cloned_entry_by_entry() -> None:
    flat = walks([4] * 10, directions())
    low, high = (np.array(bound, np.float32) for bound in ([[-1, -2], [-1, -3]], [[1, 2], [1, 5]]))
    actions = low + 0.5 * (flat.actions[:, :, None] * np.array([[1, -1], [0.5, 0.1]], np.float32) + 1) * (high - low)
    shapes = ((2, 2), (4,))
    losses = []
    for shape in shapes:
        space = spaces.Box(low.reshape(shape), high.reshape(shape))
        dataset = TrajectoryDataset(
            flat.family, INNER, space, flat.observations, actions.reshape(-1, *shape), flat.features, flat.lengths
        )
        model = make_model(n_labels=3, batch_size=40)
        model.fit(dataset, n_updates=3)
        labels = model.labeler(dataset, np.random.default_rng(0))
        (minibatch,) = minibatches(dataset, labels, 40, seed=0, epoch=0)
        losses.append(model.loss(minibatch, labels).item())
        obs = {"observation": np.zeros((5, 2), np.float32), "task": labels.tasks[[0, 1, 2, 0, 1]]}
        assert model.predict(obs)[0].shape == (5, *shape)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def gradients(model: HIPIBC, dataset: TrajectoryDataset, n: int, same_steps: bool) -> np.ndarray:
    """Gradients of the loss of n minibatches, (n, n_parameters)."""
    labels = model.labeler(dataset, np.random.default_rng(0))
    rows = []
    for epoch in range(n):
        minibatch = next(minibatches(dataset, labels, model.batch_size, seed=0, epoch=0 if same_steps else epoch))
        minibatch = type(minibatch)(
            dataset, minibatch.steps, minibatch.observations, minibatch.actions, np.random.default_rng(epoch)
        )
        model.policy.optimizer.zero_grad()
        model.loss(minibatch, labels).backward()
        rows.append(np.concatenate([parameter.grad.numpy().ravel() for parameter in model.policy.parameters()]))
    return np.array(rows)


def test_the_expectation_over_labels_has_less_gradient_variance_than_one_draw() -> None:
    dataset = walks([4] * 100, directions())
    variance, mean = {}, {}
    # A policy that has learned to tell the tasks apart: before, all labels give nearly the same gradient.
    model = make_model(n_labels=3, temperature=0.5, batch_size=32, learning_rate=3e-3).fit(dataset, n_updates=300)
    for expectation in (True, False):
        model.expectation = expectation
        for same_steps in (True, False):
            rows = gradients(model, dataset, 300, same_steps)
            variance[expectation, same_steps] = rows.var(axis=0).sum()
            mean[expectation, same_steps] = rows.mean(axis=0)
    # Of the same steps nothing is left to vary; between minibatches the choice of the steps is.
    print(variance)
    assert variance[True, True] < 1e-8 < variance[False, True]
    assert variance[False, False] > 1.2 * variance[True, False], variance
    # Both estimate the same gradient.
    error = np.linalg.norm(mean[False, True] - mean[True, True])
    assert error < 3 * np.sqrt(variance[False, True] / 300), error


def test_actions_on_the_bound_have_a_finite_likelihood() -> None:
    dataset = walks([4] * 10, directions())
    dataset.actions[:] = np.sign(dataset.actions)
    model = make_model().fit(dataset, n_updates=300)
    obs = {
        name: th.as_tensor(np.resize(values, (40, values.shape[1]))) for name, values in some_obs().items() if name != "task"
    }
    log_prob = model.policy.log_prob({**obs, "task": th.eye(3)[th.arange(40) % 3]}, th.as_tensor(dataset.actions))
    assert log_prob.min() > -1000
    assert np.isfinite(parameters(model)).all()


# -- minibatches ------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_each_labeled_step_once_in_another_order_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hipi_sb3.cloning.minibatches.PIECE_STEPS", 8)
    monkeypatch.setattr("hipi_sb3.cloning.minibatches.WINDOW_STEPS", 32)
    dataset = walks([10] * 20)
    labels = TrajectoryLabeler("final")(dataset, np.random.default_rng(0))
    rows = np.repeat(np.arange(20), 10)
    counts = np.arange(200) - 10 * rows < labels.n_steps[rows]
    assert 0 < counts.sum() < 200
    orders = [np.concatenate([m.steps for m in minibatches(dataset, labels, 1, seed=0, epoch=epoch)]) for epoch in (0, 1)]
    for order in orders:
        assert_array_equal(np.sort(order), np.flatnonzero(counts))
    assert not np.array_equal(*orders)
    for minibatch in minibatches(dataset, labels, 7, seed=0, epoch=0):
        assert len(minibatch.steps) == 7
        assert_array_equal(minibatch.observations, dataset.observations[minibatch.steps])
        assert_array_equal(minibatch.actions, dataset.actions[minibatch.steps])


# -- offline ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["hipi", "map", "none", "random", "final", "future", "max_reward", "top_k"])
def test_every_strategy_clones_without_an_environment(strategy: str) -> None:
    rng = np.random.default_rng(1)
    dataset = walks([6] * 20, tasks=rng.uniform(-1, 1, size=(20, 1)))
    model = make_model(strategy=strategy).fit(dataset, n_updates=5)
    assert np.isfinite(parameters(model)).all()
    assert model.num_timesteps == 5


@pytest.mark.parametrize(
    "options",
    [
        {"expectation": False},
        {"segment_length": 3},
        {"temperature": "ess:2"},
        {"temperature": 0},
        {"log_partition": "sinkhorn"},
        {"log_partition": "mean"},
        {"returns": "mean"},
        {"candidates": {"prior": 0.2, "achieved": 0.8}, "n_candidate_tasks": 10},
        {"flat": True},
    ],
)
def test_every_option_clones(options: dict[str, Any]) -> None:
    model = make_model(**options).fit(walks([6] * 20), n_updates=5)
    assert np.isfinite(parameters(model)).all()


@pytest.mark.parametrize("make_env", [make_line_walk, make_discrete_walk])
def test_cloned_policies_know_their_directions(make_env: Any) -> None:
    """Random walks, relabeled by the direction that they happened to take, teach to go there."""
    env = Monitor(make_env(directions()))
    dataset = walks([8] * 400, directions(), action_space=env.action_space)
    model = make_model(learning_rate=3e-3, batch_size=64).fit(dataset, n_updates=400)
    returns = []
    for task in np.eye(3)[:2]:
        env.env.fix_task(task)
        returns.append(evaluate_policy(model, env, 20)[0])
    # Random walks have returns of 0 on average, and going to one side pays 0.3 + 0.6 + ... until one falls off.
    assert min(returns) > 1.0, returns


def test_the_same_seed_gives_the_same_policy_and_another_one_another() -> None:
    trained = [parameters(make_model(seed=seed).fit(walks([6] * 20), n_epochs=2)) for seed in (0, 0, 1)]
    assert_array_equal(trained[0], trained[1])
    assert not np.array_equal(trained[0], trained[2])


def test_both_passes_show_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    make_model().fit(walks([6] * 20), n_epochs=2, progress_bar=True)
    shown = capsys.readouterr().err
    assert "labelling: 100%" in shown and "cloning: 100%" in shown


class Recorder(KVWriter):
    def __init__(self) -> None:
        self.values: dict[int, dict[str, Any]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.values[step] = dict(key_values)

    def close(self) -> None:
        pass


def test_what_was_decided_is_logged() -> None:
    recorder = Recorder()
    model = make_model(learning_rate=lambda remaining: 0.01 * remaining)
    model.set_logger(Logger(None, [recorder]))
    model.fit(walks([6] * 20), n_updates=10, log_interval=5)
    assert recorder.values.keys() == {5, 10}
    assert {
        "label/effective_tasks",
        "label/kept_share",
        "label/label_kl",
        "label/log_z_mean",
        "label/cloned_share",
        "train/loss",
        "time/steps_per_second",
    } <= recorder.values[5].keys()
    assert recorder.values[10]["train/learning_rate"] == pytest.approx(0.01 * 0.1)


class CountCalls(BaseCallback):
    def __init__(self, stop_at: int = 10**9, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.stop_at, self.error = stop_at, error

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.stop_at and self.error is not None:
            raise self.error
        return self.num_timesteps < self.stop_at


def test_callbacks_are_called_after_each_minibatch_and_can_stop(tmp_path: Path) -> None:
    env = make_line_walk()
    count = CountCalls(stop_at=12)
    evaluation = TaskEvalCallback(env, n_tasks=2, eval_freq=5, verbose=0)
    model = make_model(env)
    checkpoints = CheckpointCallback(6, str(tmp_path))
    model.fit(walks([6] * 20), n_updates=30, callback=[count, evaluation, checkpoints, ProgressBarCallback()])
    assert model.num_timesteps == 12 and count.n_calls == 12
    assert evaluation.evaluations_timesteps == [5, 10]
    assert (tmp_path / "rl_model_6_steps.zip").exists()


# -- interrupted training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"expectation": False}, {"strategy": "random"}])
def test_an_interrupted_fit_goes_on_to_the_same_result(tmp_path: Path, options: dict[str, Any]) -> None:
    dataset, path = walks([6] * 20, directions()), tmp_path / "folder" / "fit.pt"
    options = {"learning_rate": lambda remaining: 0.01 * remaining, **options}
    whole = make_model(**options).fit(dataset, n_epochs=3)
    # 7 minibatches an epoch: the last checkpoint, after 10, lies in the middle of the second.
    with pytest.raises(KeyboardInterrupt):
        make_model(**options).fit(
            dataset, n_epochs=3, checkpoint=path, checkpoint_freq=5, callback=CountCalls(13, KeyboardInterrupt)
        )
    resumed, calls = make_model(**options), CountCalls()
    resumed.fit(dataset, n_epochs=3, checkpoint=path, checkpoint_freq=5, callback=calls)
    assert calls.n_calls == 21 - 10 and resumed.num_timesteps == 21
    assert_array_equal(parameters(resumed), parameters(whole))
    assert resumed._n_updates == whole._n_updates
    for mine, theirs in zip(*(m.policy.optimizer.state_dict()["state"].values() for m in (resumed, whole)), strict=True):
        assert_array_equal(mine["exp_avg"], theirs["exp_avg"])


def test_without_a_seed_the_checkpoint_keeps_the_one_that_was_drawn(tmp_path: Path) -> None:
    dataset, path = walks([6] * 20, directions()), tmp_path / "fit.pt"
    first = make_model(seed=None, strategy="random").fit(dataset, n_updates=5, checkpoint=path)
    again = make_model(seed=None, strategy="random").fit(dataset, n_updates=5, checkpoint=path)
    assert_array_equal(parameters(again), parameters(first))


def test_a_finished_fit_is_not_repeated_and_more_epochs_go_on(tmp_path: Path) -> None:
    dataset, path = walks([6] * 20), tmp_path / "fit.pt"
    first = make_model().fit(dataset, n_epochs=1, checkpoint=path)
    calls = CountCalls()
    again = make_model().fit(dataset, n_epochs=1, checkpoint=path, callback=calls)
    assert calls.n_calls == 0
    assert_array_equal(parameters(again), parameters(first))
    longer = make_model().fit(dataset, n_epochs=2, checkpoint=path)
    assert_array_equal(parameters(longer), parameters(make_model().fit(dataset, n_epochs=2)))


def test_a_checkpoint_is_complete_or_as_it_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, path = walks([6] * 20), tmp_path / "fit.pt"
    make_model().fit(dataset, n_updates=3, checkpoint=path)
    before = path.read_bytes()

    def half(state: Any, file: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(th, "save", half)
    with pytest.raises(OSError, match="disk is full"):
        make_model().fit(dataset, n_updates=6, checkpoint=path)
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    make_model().fit(walks([6] * 20), n_updates=3, checkpoint=path)
    other_actions, other_observations = walks([6] * 20), walks([6] * 20)
    other_actions.actions = -other_actions.actions
    other_observations.observations = other_observations.observations + 1
    for dataset, options in (
        (walks([6] * 20, seed=1), {}),
        (other_actions, {}),
        (other_observations, {}),
        (walks([6] * 20), {"temperature": 0.5}),
        (walks([6] * 20), {"learning_rate": 1e-4}),
        (walks([6] * 20), {"policy_kwargs": {"activation_fn": th.nn.Tanh}}),
    ):
        with pytest.raises(ValueError, match=r"fit.pt is the checkpoint of a training with another data set or other options"):
            make_model(**options).fit(dataset, n_updates=6, checkpoint=path)
    with pytest.raises(ValueError, match=r"fit.pt is the checkpoint of a training with seed 0, not 1"):
        make_model(seed=1).fit(walks([6] * 20), n_updates=6, checkpoint=path)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_data_set_of_other_spaces_is_refused_with_both_named() -> None:
    other = spaces.Box(-3.0, 3.0, (2,), np.float32)
    dataset = walks([6] * 5)
    narrow = TrajectoryDataset(GOALS, other, dataset.action_space, *dataset.arrays().values(), lengths=dataset.lengths)
    with pytest.raises(ValueError) as error:
        make_model(make_line_walk()).fit(narrow)
    assert str(INNER) in str(error.value) and str(other) in str(error.value)
    with pytest.raises(ValueError, match=r"action space of the policy is Box\(-1.0, 1.0.*data set.*is Discrete\(2\)"):
        make_model(make_line_walk()).fit(walks([6] * 5, action_space=spaces.Discrete(2)))
    # Three one-hot tasks, or other goals, than those of the environment.
    for family in (directions(), GoalReaching(low=[-2.0], high=[2.0], radius=0.15)):
        with pytest.raises(ValueError, match="Build a new HIPIBC for this data set"):
            make_model(make_line_walk()).fit(walks([6] * 5, family))


def test_goals_without_bounds_are_those_of_the_data_set() -> None:
    class GoalsOfEnv(type(GOALS)):  # type: ignore[misc]
        task_key = "desired_goal"

    parts = {"observation": INNER, "achieved_goal": spaces.Box(-np.inf, np.inf, (1,), np.float32)}
    walk = walks([6] * 5)
    observations = {"observation": walk.observations, "achieved_goal": walk.features}
    dataset = TrajectoryDataset(
        GoalsOfEnv(low=[-1.0], high=[1.0], radius=0.15),
        spaces.Dict(parts),
        walk.action_space,
        observations,
        walk.actions,
        walk.features,
        walk.lengths,
    )
    model = make_model()
    model.observation_space = spaces.Dict({**parts, "desired_goal": parts["achieved_goal"]})
    model.action_space, model.n_envs = walk.action_space, 1
    model._setup_model()
    model.fit(dataset, n_updates=2)
    obs = {name: values[:3] for name, values in observations.items()}
    assert model.predict({**obs, "desired_goal": obs["achieved_goal"]})[0].shape == (3, 1)


@pytest.mark.parametrize("name", ["observations", "actions", "features"])
def test_nan_in_the_data_is_found_before_anything_is_cloned(name: str) -> None:
    dataset = walks([6] * 20)
    dataset.arrays()[name][6 * 7 + 4] = np.nan
    with pytest.raises(ValueError, match=f"{name} of trajectory 7, step 4 are"):
        make_model().fit(dataset)


def nowhere(features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Every task is impossible."""
    return np.full(np.broadcast_shapes(features.shape[:-1], tasks.shape[:-1]), -np.inf)


def test_a_data_set_without_any_possible_task_is_an_error() -> None:
    family = CallableTasks(spaces.Box(0.0, 1.0, (1,), np.float32), 1, position_of, nowhere)
    with pytest.raises(ValueError, match="every candidate task is impossible for every trajectory"):
        make_model().fit(walks([6] * 3, family))


def test_a_data_set_is_cloned_without_a_replay_buffer() -> None:
    model = make_model(buffer_size=10**15, train_freq=20).fit(walks([6] * 5), n_updates=1)
    assert model.replay_buffer is None
    model.buffer_size = 100
    model.set_env(make_line_walk())
    model.learning_starts = 10
    model.learn(20)
    assert model.replay_buffer.size() == 20


def test_learning_without_an_environment_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"learn needs an environment.*call fit\(dataset\)"):
        make_model().learn(10)


# -- online -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2])
def test_learning_collects_relabels_and_clones_in_turn(n_envs: int) -> None:
    model = make_model(vec_line_walk(n_envs), learning_starts=20, train_freq=20, buffer_size=1000)
    before = parameters(model)
    model.learn(100)
    assert model.num_timesteps >= 100 and model._n_updates > 0
    assert not np.array_equal(before, parameters(model))


@pytest.mark.parametrize("options", [{"flat": True}, {"strategy": "final"}, {"strategy": "none"}, {"segment_length": 4}])
def test_learning_takes_every_option(options: dict[str, Any]) -> None:
    env = make_line_walk(flatten=options.get("flat", False))
    make_model(env, learning_starts=20, train_freq=20, buffer_size=1000, **options).learn(60)


def test_learning_with_discrete_actions_and_normalised_observations() -> None:
    make_model(make_discrete_walk(), learning_starts=20, train_freq=20, buffer_size=1000).learn(60)
    env = VecNormalize(vec_line_walk(1), norm_obs_keys=["observation"])
    make_model(env, learning_starts=20, train_freq=20, buffer_size=1000).learn(60)


def test_learning_twice_with_one_seed_is_the_same() -> None:
    models = [make_model(make_line_walk(), learning_starts=20, train_freq=20, buffer_size=1000).learn(80) for _ in range(2)]
    assert_array_equal(*map(parameters, models))


# -- the model afterwards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_env", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_a_saved_model_predicts_and_trains_on(tmp_path: Path, with_env: bool, discrete: bool) -> None:
    make_env = make_discrete_walk if discrete else make_line_walk
    env = make_env()
    dataset = walks([6] * 20, action_space=env.action_space)
    model = make_model(env if with_env else None, learning_starts=10, train_freq=10).fit(dataset, n_updates=5)
    model.save(tmp_path / "model")
    loaded = HIPIBC.load(tmp_path / "model")
    assert_array_equal(loaded.predict(some_obs(), deterministic=True)[0], model.predict(some_obs(), deterministic=True)[0])
    loaded.fit(dataset, n_updates=2)
    HIPIBC.load(tmp_path / "model", env=make_env()).learn(30)
    other = make_model(make_env(), seed=1)
    other.set_parameters(str(tmp_path / "model"))
    assert_array_equal(parameters(other), parameters(model))


def test_the_policy_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    model = make_model().fit(walks([6] * 20), n_updates=5)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    assert_array_equal(loaded.predict(some_obs(), deterministic=True)[0], model.predict(some_obs(), deterministic=True)[0])
    env = Monitor(make_line_walk())
    assert np.isfinite(evaluate_policy(loaded, env, 2)[0])


class Doubled(CombinedExtractor):
    def forward(self, observations: Any) -> th.Tensor:
        return 2 * super().forward(observations)


def test_a_policy_is_written_without_pickle_and_a_pickled_one_needs_trust(tmp_path: Path) -> None:
    path, policy = tmp_path / "policy", make_model(policy_kwargs={"features_extractor_class": Doubled}).fit(walks([6])).policy
    make_model().fit(walks([6]), n_updates=1).policy.save(path)
    th.load(path, weights_only=True)
    policy.save(path)
    with pytest.raises(ValueError, match=r"holds more than tensors .* runs whatever code .* pass trust=True"):
        TaskConditionedBCPolicy.load(path)
    loaded = TaskConditionedBCPolicy.load(path, trust=True)
    assert_array_equal(loaded.predict(some_obs(), deterministic=True)[0], policy.predict(some_obs(), deterministic=True)[0])


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"state_dict": {}, "plain": {"dict": {"net_arch": "much"}}}, [1], 3])
def test_what_is_no_policy_is_named(content: Any, tmp_path: Path) -> None:
    th.save(content, tmp_path / "policy")
    with pytest.raises(ValueError, match="policy is no TaskConditionedBCPolicy as save wrote it"):
        TaskConditionedBCPolicy.load(tmp_path / "policy")


@pytest.mark.parametrize("content", [{"parameters": {}}, [1], None])
def test_what_is_no_checkpoint_of_a_training_is_named(content: Any, tmp_path: Path) -> None:
    th.save(content, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint is no checkpoint that fit wrote. Delete it"):
        make_model().fit(walks([6]), n_updates=1, checkpoint=tmp_path / "checkpoint")


def test_stochastic_actions_of_both_kinds_are_those_of_the_distribution() -> None:
    model = make_model().fit(walks([6] * 20, action_space=spaces.Discrete(2)), n_updates=50)
    obs = {name: np.repeat(values[:1], 2000, axis=0) for name, values in some_obs().items()}
    tensors = {name: th.as_tensor(values[:1]) for name, values in obs.items()}
    share = model.policy.log_prob(tensors, th.ones(1)).exp().item()
    actions, _ = model.predict(obs)
    assert_allclose(np.mean(actions), share, atol=0.05)


@pytest.mark.parametrize("flat", [False, True])
def test_a_sac_learner_starts_from_the_cloned_actor(tmp_path: Path, flat: bool) -> None:
    env = make_line_walk(flatten=flat)
    bc = make_model(env, flat=flat).fit(walks([6] * 20), n_updates=20)
    bc.save(tmp_path / "bc")
    for source in (bc, tmp_path / "bc"):
        model = HIPISAC.from_bc(source, env, seed=5, learning_starts=10, buffer_size=500, device="cpu")
        obs: Any = some_obs()
        if flat:
            obs = np.concatenate(list(obs.values()), axis=1)
        assert_array_equal(model.predict(obs, deterministic=True)[0], bc.predict(obs, deterministic=True)[0])
    model.learn(40)
    assert np.isfinite(parameters(model)).all()
    assert model.policy.critic_kwargs["net_arch"] == [16, 16]
    wide = HIPISAC.from_bc(bc, env, device="cpu", buffer_size=500, policy_kwargs={"net_arch": {"qf": [32]}})
    assert wide.policy.critic_kwargs["net_arch"] == [32]


def test_a_sac_learner_refuses_another_environment_and_discrete_actions() -> None:
    bc = make_model().fit(walks([6] * 20), n_updates=1)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        HIPISAC.from_bc(bc, make_line_walk(directions()), device="cpu", buffer_size=500)
    discrete = make_model().fit(walks([6] * 20, action_space=spaces.Discrete(2)), n_updates=1)
    with pytest.raises(ValueError, match=r"SAC needs Box actions, but the cloned policy has Discrete\(2\)"):
        HIPISAC.from_bc(discrete, make_line_walk(), device="cpu")


# -- large data sets --------------------------------------------------------------------------------------------------


@pytest.mark.expensive
def test_labelling_a_million_steps_takes_less_time_than_an_epoch_of_cloning_them() -> None:
    family = GoalReaching(low=[-1.0], high=[1.0], radius=0.15, terminate=False)  # so that all steps are cloned
    dataset = walks([100] * 10_000, family)
    model = HIPIBC("MultiInputPolicy", seed=0, device="cpu", policy_kwargs={"net_arch": [64, 64]})
    model.fit(dataset, n_updates=0)
    start = time.process_time()
    labels = model.labeler(dataset, np.random.default_rng(0), progress_bar=True)
    label_seconds = time.process_time() - start
    assert labels.n_steps.sum() == 1_000_000
    start = time.process_time()
    for minibatch in minibatches(dataset, labels, model.batch_size, 0, 0):
        model._update(minibatch, labels)
    clone_seconds = time.process_time() - start
    print(f"labelling {label_seconds:.1f} s, one epoch of cloning {clone_seconds:.1f} s")
    assert label_seconds < 0.5 * clone_seconds


@pytest.mark.expensive
def test_ten_million_steps_are_not_loaded_whole(tmp_path: Path) -> None:
    n_steps, length = 10_000_000, 1000
    for name, shape in (("observations", (n_steps, 2)), ("actions", (n_steps, 1)), ("features", (n_steps, 1))):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, n_steps, 1_000_000):
            array[first : first + 1_000_000] = np.random.default_rng(first).uniform(-1, 1, (1_000_000, *shape[1:]))
    np.save(tmp_path / "lengths.npy", np.full(n_steps // length, length))
    dataset = TrajectoryDataset.load(
        tmp_path, directions(), observation_space=INNER, action_space=make_line_walk().action_space
    )
    model = make_model()
    tracemalloc.start()
    model.fit(dataset, n_updates=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_bytes = sum(array.nbytes for array in dataset.arrays().values())
    assert peak < n_bytes / 4, f"{peak / 1e6:.0f} of {n_bytes / 1e6:.0f} MB"
