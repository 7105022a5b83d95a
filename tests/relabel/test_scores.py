"""Scores of all pairs, against the reference example and against the networks of a real learner."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from line_walk import make_line_walk, vec_line_walk
from numpy.testing import assert_allclose, assert_array_equal
from reference_example import (
    GAMMA,
    LOG_PROB,
    NEXT_Q,
    PAPER_SCORES,
    POSTERIOR_PAPER_BATCH,
    POSTERIOR_PAPER_NONE,
    POSTERIOR_TD_BATCH,
    REWARDS,
    TD_SCORES,
    TERMINATED,
)
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import CombinedExtractor

from hipi_sb3.experience.layout import TaskLayout
from hipi_sb3.networks.layers import LayerNormReLU
from hipi_sb3.relabel.learners import Learner, Pairs, SACLearner, learner_class, with_task
from hipi_sb3.relabel.log_partition import make_log_partition
from hipi_sb3.relabel.posterior import TaskInference
from hipi_sb3.relabel.scores import KEY_TO_SCORE, score_pairs

NAMES = ["q", "td", "advantage", "paper"]


# -- the reference example ------------------------------------------------------------------------------------------


class TableLearner(Learner):
    """A learner whose networks return the numbers of the reference example. Observations are the row's number."""

    gamma = GAMMA
    entropy_weight = 0.0  # type: ignore[assignment]

    def __init__(self) -> None:
        self.model: Any = SimpleNamespace(policy=SimpleNamespace(training=False))

    def _look_up(self, table: np.ndarray, observations: dict[str, th.Tensor]) -> th.Tensor:
        row, task = observations["observation"].long().squeeze(1), observations["task"].long().squeeze(1)
        return th.tensor(table)[row, task].reshape(-1, 1)

    def policy_sample(self, observations: Any) -> tuple[th.Tensor, th.Tensor]:
        return th.zeros(len(observations["task"]), 1), th.zeros(len(observations["task"]), 1)

    def first_q(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        return self._look_up(NEXT_Q, observations)

    def min_q(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        return self._look_up(NEXT_Q, observations)

    def next_value(self, observations: Any) -> th.Tensor:
        return self._look_up(NEXT_Q, observations)

    def log_prob(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        return self._look_up(LOG_PROB, observations)


def table_pairs() -> Pairs:
    rows = {"observation": th.arange(3.0).unsqueeze(1), "task": th.full((3, 1), th.nan)}
    return Pairs(
        observations=rows,
        next_observations=rows,
        actions=th.zeros(3, 1),
        tasks=th.arange(3.0).unsqueeze(1),
        rewards=th.tensor(REWARDS),
        terminated=th.tensor(TERMINATED),
        discounts=th.full((3, 3), GAMMA),
        with_task=TaskLayout("task", 1).put,
    )


@pytest.mark.parametrize("max_pairs", [1, 3, 7, 8192])
@pytest.mark.parametrize(("score", "expected"), [("td", TD_SCORES), ("paper", PAPER_SCORES), ("q", NEXT_Q)])
def test_scores_of_the_reference_example(score: str, expected: np.ndarray, max_pairs: int) -> None:
    learner: Any = TableLearner()
    assert_allclose(score_pairs(learner, score, table_pairs(), max_pairs).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "log_partition", "expected"),
    [
        ("paper", "batch", POSTERIOR_PAPER_BATCH),
        ("paper", "none", POSTERIOR_PAPER_NONE),
        ("td", "batch", POSTERIOR_TD_BATCH),
    ],
)
def test_posterior_of_the_reference_example_from_the_networks_on(score: str, log_partition: str, expected: np.ndarray) -> None:
    learner: Any = TableLearner()
    scores = score_pairs(learner, score, table_pairs()).numpy()
    found = TaskInference(make_log_partition(log_partition), 1.0)(np.arange(3.0)[:, None], scores, np.zeros(3))
    assert_allclose(found.posterior, expected, atol=1e-5)


def test_an_impossible_task_and_a_terminal_row_meet_no_nan() -> None:
    learner: Any = TableLearner()
    pairs = table_pairs()
    pairs.rewards[0, 0] = -th.inf
    learner.next_value = lambda observations: th.full((len(observations["task"]), 1), th.inf)
    scores = score_pairs(learner, "td", pairs).numpy()
    assert not np.isnan(scores[TERMINATED]).any()
    assert_allclose(scores[TERMINATED], REWARDS[TERMINATED])


# -- a real learner -------------------------------------------------------------------------------------------------


def make_learner(model: SAC) -> Learner:
    return learner_class(model)(model)


def small_sac(flatten: bool = False, **kwargs: Any) -> SAC:
    policy = "MlpPolicy" if flatten else "MultiInputPolicy"
    kwargs = {"policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    model = SAC(policy, make_line_walk(flatten=flatten), buffer_size=10, seed=0, device="cpu", gamma=0.9, **kwargs)
    # Networks that were never trained are symmetric: critic and target are equal, alpha is 1. Make them differ.
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.critic_target.parameters():
            parameter += 0.3 * th.randn(parameter.shape, generator=generator)
    if model.log_ent_coef is not None:
        model.log_ent_coef.data.fill_(np.log(0.3))
    return model


def random_pairs(n_rows: int, n_tasks: int, flatten: bool = False, per_row: bool = False) -> Pairs:
    generator = th.Generator().manual_seed(2)

    def uniform(*shape: int) -> th.Tensor:
        return 2 * th.rand(shape, generator=generator) - 1

    layout = TaskLayout(None if flatten else "task", 1)
    rows, next_rows = ((uniform(n_rows, 2), uniform(n_rows, 1)) for _ in range(2))
    tasks = uniform(n_tasks, 1)
    return Pairs(
        observations=th.cat(rows, 1) if flatten else dict(zip(("observation", "task"), rows, strict=True)),
        next_observations=th.cat(next_rows, 1) if flatten else dict(zip(("observation", "task"), next_rows, strict=True)),
        actions=uniform(n_rows, 1),
        tasks=tasks.expand(n_rows, n_tasks, 1).clone() if per_row else tasks,
        rewards=uniform(n_rows, n_tasks),
        terminated=uniform(n_rows, n_tasks) > 0.5,
        discounts=th.full((n_rows, n_tasks), 0.9),
        with_task=partial(with_task, layout),
    )


def with_one_task(rows: Any, task: th.Tensor, flatten: bool) -> Any:
    tasks = task.expand(len(rows if flatten else rows["task"]), 1)
    return th.cat([rows[:, :-1], tasks], 1) if flatten else {"observation": rows["observation"], "task": tasks}


@pytest.mark.parametrize("flatten", [False, True])
def test_q_is_the_smaller_critic_at_the_stored_action(flatten: bool) -> None:
    model, pairs = small_sac(flatten), random_pairs(5, 3, flatten)
    with th.no_grad():
        columns = [
            th.minimum(*model.critic(with_one_task(pairs.observations, task, flatten), pairs.actions)) for task in pairs.tasks
        ]
    assert_allclose(score_pairs(make_learner(model), "q", pairs), th.cat(columns, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flatten", [False, True])
def test_advantage_is_q_less_the_soft_value_of_the_policy(flatten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    MeanAction(monkeypatch)
    model, pairs = small_sac(flatten), random_pairs(5, 3, flatten)
    columns = []
    with th.no_grad():
        for task in pairs.tasks:
            rows = with_one_task(pairs.observations, task, flatten)
            actions, log_prob = model.actor.action_log_prob(rows)
            value = th.minimum(*model.critic(rows, actions)) - 0.3 * log_prob.reshape(-1, 1)
            columns.append(th.minimum(*model.critic(rows, pairs.actions)) - value)
    assert_allclose(score_pairs(make_learner(model), "advantage", pairs), th.cat(columns, 1), rtol=1e-4, atol=1e-5)


def test_reward_is_the_reward_of_the_step() -> None:
    pairs = random_pairs(5, 3)
    assert_array_equal(score_pairs(make_learner(small_sac()), "reward", pairs), pairs.rewards)


class MeanAction:
    """Replaces the policy's draw by its mean, so that a score has one value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution as Distribution

        monkeypatch.setattr(Distribution, "sample", lambda self: self.mode())
        monkeypatch.setattr(th, "randn_like", th.zeros_like)


@pytest.mark.parametrize("flatten", [False, True])
def test_td_is_the_bellman_target_of_the_learner(flatten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    MeanAction(monkeypatch)
    model, pairs = small_sac(flatten), random_pairs(5, 3, flatten)
    columns = []
    with th.no_grad():
        for j, task in enumerate(pairs.tasks):
            next_rows = with_one_task(pairs.next_observations, task, flatten)
            actions, log_prob = model.actor.action_log_prob(next_rows)
            next_value = th.minimum(*model.critic_target(next_rows, actions)) - 0.3 * log_prob.reshape(-1, 1)
            going_on = 1 - pairs.terminated[:, j : j + 1].float()
            columns.append(pairs.rewards[:, j : j + 1] + 0.9 * going_on * next_value)
    assert_allclose(score_pairs(make_learner(model), "td", pairs), th.cat(columns, 1), rtol=1e-4, atol=1e-5)


def test_td_with_a_sampled_action_equals_the_same_draws_by_hand() -> None:
    model, pairs = small_sac(), random_pairs(5, 3)
    th.manual_seed(3)
    scores = score_pairs(make_learner(model), "td", pairs)
    th.manual_seed(3)
    # All pairs in one pass, row by row and within a row task by task.
    next_rows = {
        "observation": pairs.next_observations["observation"].repeat_interleave(3, 0),
        "task": pairs.tasks.repeat(5, 1),
    }
    with th.no_grad():
        actions, log_prob = model.actor.action_log_prob(next_rows)
        values = th.minimum(*model.critic_target(next_rows, actions)).squeeze(1) - 0.3 * log_prob
    expected = pairs.rewards + 0.9 * (~pairs.terminated) * values.reshape(5, 3)
    assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flatten", [False, True])
def test_paper_has_the_first_online_critic_and_the_log_probability_of_the_stored_action(
    flatten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    MeanAction(monkeypatch)
    model, pairs = small_sac(flatten), random_pairs(5, 3, flatten)
    columns = []
    with th.no_grad():
        for j, task in enumerate(pairs.tasks):
            rows, next_rows = (with_one_task(o, task, flatten) for o in (pairs.observations, pairs.next_observations))
            next_q = model.critic(next_rows, model.actor(next_rows, deterministic=True))[0]
            mean, log_std, _ = model.actor.get_action_dist_params(rows)
            gaussian = th.distributions.Normal(mean, log_std.exp())
            log_prob = gaussian.log_prob(th.atanh(pairs.actions)) - th.log(1 - pairs.actions**2 + 1e-6)
            going_on = 1 - pairs.terminated[:, j : j + 1].float()
            columns.append(pairs.rewards[:, j : j + 1] + 0.9 * going_on * next_q - log_prob)
    assert_allclose(score_pairs(make_learner(model), "paper", pairs), th.cat(columns, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", NAMES)
@pytest.mark.parametrize("flatten", [False, True])
def test_tasks_given_row_by_row_score_as_shared_ones(score: str, flatten: bool) -> None:
    learner = make_learner(small_sac(flatten))
    th.manual_seed(0)
    shared = score_pairs(learner, score, random_pairs(6, 4, flatten))
    th.manual_seed(0)
    by_row = score_pairs(learner, score, random_pairs(6, 4, flatten, per_row=True))
    assert shared.shape == (6, 4)
    assert_allclose(by_row, shared, rtol=1e-6)


@pytest.mark.parametrize("score", NAMES)
@pytest.mark.parametrize("per_row", [False, True])
def test_chunks_change_no_score(score: str, per_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    MeanAction(monkeypatch)
    learner, pairs = make_learner(small_sac()), random_pairs(7, 4, per_row=per_row)
    whole = score_pairs(learner, score, pairs)
    for max_pairs in (1, 9, 12):
        assert_allclose(score_pairs(learner, score, pairs, max_pairs), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", NAMES)
@pytest.mark.parametrize("bound", [-1.0, 1.0, 1.0 + 1e-6])
def test_an_action_on_its_bound_gives_a_moderate_score(score: str, bound: float) -> None:
    learner, pairs = make_learner(small_sac()), random_pairs(4, 3)
    pairs.actions.fill_(bound)
    assert (score_pairs(learner, score, pairs).abs() < 200).all()  # neither inf nor NaN, and not -916 either


@pytest.mark.parametrize("score", NAMES)
def test_generalised_state_dependent_exploration_scores_finite(score: str) -> None:
    model = small_sac(use_sde=True)
    model.actor.reset_noise()
    assert th.isfinite(score_pairs(make_learner(model), score, random_pairs(6, 4))).all()


def test_gsde_log_probability_is_that_of_its_own_distribution() -> None:
    model, pairs = small_sac(use_sde=True), random_pairs(6, 1)
    with th.no_grad():
        mean, log_std, kwargs = model.actor.get_action_dist_params(pairs.observations)
        variance = (kwargs["latent_sde"] ** 2) @ (log_std.exp() ** 2)
        gaussian = th.distributions.Normal(mean, (variance + 1e-6).sqrt())
        expected = gaussian.log_prob(th.atanh(pairs.actions)) - th.log(1 - pairs.actions**2 + 1e-6)
        found = make_learner(model).log_prob(pairs.observations, pairs.actions)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# -- the learner's side ---------------------------------------------------------------------------------------------


def test_alpha_is_live() -> None:
    model = small_sac()
    assert make_learner(model).alpha == pytest.approx(0.3)
    model.log_ent_coef.data.fill_(np.log(0.05))  # type: ignore[union-attr]
    assert make_learner(model).alpha == pytest.approx(0.05)
    assert make_learner(small_sac(ent_coef=0.7)).alpha == pytest.approx(0.7)


def test_derived_algorithms_use_the_learner_of_their_base() -> None:
    class MySAC(SAC):
        pass

    model = MySAC("MultiInputPolicy", vec_line_walk(1), buffer_size=10, device="cpu")
    assert isinstance(make_learner(model), SACLearner)


class Dropout(CombinedExtractor):
    """An extractor that shows in which mode it is."""

    def forward(self, observations: Any) -> th.Tensor:
        return th.nn.functional.dropout(super().forward(observations), 0.5, self.training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("score", NAMES)
def test_scoring_leaves_the_mode_of_every_network_as_it_was(score: str, training: bool) -> None:
    model = small_sac()
    model.policy.set_training_mode(training)
    before = {name: module.training for name, module in model.policy.named_modules()}
    assert not model.critic_target.training
    score_pairs(make_learner(model), score, random_pairs(3, 2))
    assert {name: module.training for name, module in model.policy.named_modules()} == before


def test_scores_are_taken_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    MeanAction(monkeypatch)
    model = small_sac(policy_kwargs={"net_arch": [16], "features_extractor_class": Dropout})
    model.policy.set_training_mode(True)
    pairs = random_pairs(5, 4)
    for score in NAMES:
        once, twice = (score_pairs(make_learner(model), score, pairs) for _ in range(2))
        assert_allclose(once, twice, rtol=1e-6)


def test_scoring_keeps_no_gradient() -> None:
    assert not any(score_pairs(make_learner(small_sac()), score, random_pairs(3, 2)).requires_grad for score in NAMES)


def test_an_unknown_score_suggests_the_nearest_and_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown score 'papre'. Did you mean 'paper'\?") as error:
        score_pairs(make_learner(small_sac()), "papre", random_pairs(1, 1))
    assert all(repr(name) in str(error.value) for name in KEY_TO_SCORE)


@pytest.mark.parametrize("score", ["q", "td"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared tasks", "tasks by row"])
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_neither_rows_nor_tasks_are_repeated_where_the_networks_are_plain(
    score: str, per_row: bool, flatten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = small_sac(flatten), random_pairs(5, 3, flatten, per_row)
    found = []
    for learner in (SACLearner(model), Learner(model)):
        th.manual_seed(0)
        found.append(score_pairs(learner, score, pairs))
    assert_allclose(*found, rtol=1e-5, atol=1e-6)

    monkeypatch.setattr(Pairs, "tile", None)
    score_pairs(SACLearner(model), score, pairs)
    with pytest.raises(TypeError, match="not callable"):
        score_pairs(Learner(model), score, pairs)


def test_networks_of_another_kind_are_scored_pair_by_pair() -> None:
    model, pairs = small_sac(policy_kwargs={"net_arch": [8], "activation_fn": th.nn.ELU}), random_pairs(5, 3)
    found = []
    for learner in (SACLearner(model), Learner(model)):
        th.manual_seed(0)
        found.append(score_pairs(learner, "td", pairs))
    assert th.equal(*found)


# -- other devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [*NAMES, "reward"])
@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
@pytest.mark.parametrize("activation", [th.nn.ReLU, LayerNormReLU, th.nn.ELU], ids=["plain", "normalised", "pair by pair"])
def test_scoring_stays_on_its_device_and_reads_nothing_back(
    score: str, flatten: bool, activation: type[th.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    # But for PyTorch's distributions, which look at their arguments: other networks than plain ones get some.
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", False)
    # Tensors on "meta" have no values: it is an error to read one, or to mix them with tensors of the CPU.
    model = small_sac(flatten, policy_kwargs={"net_arch": [8], "activation_fn": activation})
    model.policy.to("meta")
    assert model.log_ent_coef is not None
    model.log_ent_coef = model.log_ent_coef.to("meta")
    pairs = random_pairs(5, 3, flatten)
    tensors = {key: _on_meta(value) for key, value in vars(pairs).items() if key != "with_task"}
    scores = score_pairs(SACLearner(model), score, replace(pairs, **tensors))
    assert scores.shape == (5, 3) and scores.device.type == "meta"
    if score != "reward":
        with pytest.raises(RuntimeError, match="device"):
            score_pairs(SACLearner(model), score, pairs)


def _on_meta(values: Any) -> Any:
    return {key: _on_meta(value) for key, value in values.items()} if isinstance(values, dict) else values.to("meta")
