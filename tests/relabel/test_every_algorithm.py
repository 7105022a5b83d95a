"""Every off-policy algorithm trains with the buffer, saves, loads and goes on; its scores equal a hand computation."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from numpy.testing import assert_allclose
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

import hipi_sb3
from hipi_sb3 import HIPIReplayBuffer
from hipi_sb3.relabel.learners import Pairs, learner_class
from hipi_sb3.relabel.scores import score_pairs

BOX, GRID = "PointFourRooms-v0", "PointFourRoomsGrid-v0"

#: Algorithm, environment and arguments.
ALGORITHMS: dict[str, tuple[type[OffPolicyAlgorithm], str, dict[str, Any]]] = {
    "SAC": (SAC, BOX, {}),
    "TD3": (TD3, BOX, {"action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.3))}),
    "DDPG": (DDPG, BOX, {}),
    "TQC": (TQC, BOX, {"policy_kwargs": {"net_arch": [32], "n_quantiles": 5}}),
    "CrossQ": (CrossQ, BOX, {}),
    "DQN": (DQN, GRID, {"target_update_interval": 50}),
    "QRDQN": (QRDQN, GRID, {"policy_kwargs": {"net_arch": [32], "n_quantiles": 5}, "target_update_interval": 50}),
}

each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def make(name: str, algorithm: type[OffPolicyAlgorithm] | None = None, n_envs: int = 1, **kwargs: Any) -> OffPolicyAlgorithm:
    base, env_id, options = ALGORITHMS[name]
    flatten = base is CrossQ  # it has no MultiInputPolicy
    env = DummyVecEnv([lambda: gym.make(env_id, flatten=flatten)] * n_envs)
    arguments: dict[str, Any] = {
        "learning_starts": 50,
        "batch_size": 16,
        "train_freq": 4,
        "gradient_steps": 1,
        "buffer_size": 1000,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [32]},
        **options,
        **kwargs,
    }
    return (algorithm or base)("MlpPolicy" if flatten else "MultiInputPolicy", env, **arguments)


@each_algorithm
@pytest.mark.parametrize("score", ["td", "q"])
def test_it_trains_for_500_steps_saves_loads_and_goes_on(name: str, score: str, tmp_path: Any) -> None:
    model = make(name, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs={"score": score, "n_candidate_tasks": 4})
    model.learn(500)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")

    loaded = ALGORITHMS[name][0].load(tmp_path / "model", env=model.get_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 500  # type: ignore[union-attr]
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded.num_timesteps == 600
    assert loaded._n_updates > model._n_updates


@each_algorithm
def test_the_hipi_class_is_the_algorithm_with_the_buffer(name: str) -> None:
    model = make(name, getattr(hipi_sb3, f"HIPI{name}"))
    assert isinstance(model, ALGORITHMS[name][0])
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    model.learn(80)


@pytest.mark.parametrize("name", ["TD3", "CrossQ", "QRDQN"])
def test_several_environments_fill_one_buffer(name: str) -> None:
    model = make(name, getattr(hipi_sb3, f"HIPI{name}"), n_envs=3).learn(300)
    assert model.replay_buffer.size() == 100  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["TD3", "DDPG", "DQN", "QRDQN"])
def test_what_needs_an_entropy_is_refused_where_there_is_none(name: str) -> None:
    for options, message in (({"temperature": "auto"}, "has none"), ({"score": "paper"}, "no stochastic policy")):
        with pytest.raises(ValueError, match=message):
            make(name, replay_buffer_class=HIPIReplayBuffer, replay_buffer_kwargs=options)


# -- scores by hand ----------------------------------------------------------------------------------------------------


def pairs_of(model: OffPolicyAlgorithm, n_rows: int = 5, n_tasks: int = 3) -> Pairs:
    rng = np.random.default_rng(0)
    flat = isinstance(model, CrossQ)

    def rows() -> Any:
        observation = th.as_tensor(rng.uniform(0, 33, (n_rows, 2)), dtype=th.float32)
        task = th.zeros(n_rows, 2)
        return th.cat([observation, task], dim=1) if flat else {"observation": observation, "task": task}

    def with_task(observations: Any, tasks: th.Tensor) -> Any:
        return th.cat([observations[:, :2], tasks], dim=1) if flat else {**observations, "task": tasks}

    discrete = isinstance(model, DQN | QRDQN)
    actions = rng.integers(4, size=(n_rows, 1)) if discrete else rng.uniform(-1, 1, (n_rows, 2)).astype(np.float32)
    return Pairs(
        observations=rows(),
        next_observations=rows(),
        actions=th.as_tensor(actions),
        tasks=th.as_tensor(rng.uniform(0, 33, (n_tasks, 2)), dtype=th.float32),
        rewards=th.as_tensor(rng.integers(-1, 1, (n_rows, n_tasks)), dtype=th.float32),
        terminated=th.as_tensor(rng.random((n_rows, n_tasks)) < 0.3),
        discounts=th.as_tensor(model.gamma ** rng.integers(1, 4, (n_rows, n_tasks)), dtype=th.float32),
        with_task=with_task,
    )


def one(pairs: Pairs, rows: Any, row: int, task: int) -> Any:
    """One observation with one task, as a batch of one."""
    single = {key: value[[row]] for key, value in rows.items()} if isinstance(rows, dict) else rows[[row]]
    return pairs.with_task(single, pairs.tasks[[task]])


def by_hand(model: Any, pairs: Pairs, score: str, row: int, task: int, temperature: float) -> float:
    """The score of one pair from the algorithm's own networks, which draw their noise in the order of the score's terms."""
    th.manual_seed(0)
    obs, next_obs, action = (
        one(pairs, pairs.observations, row, task),
        one(pairs, pairs.next_observations, row, task),
        pairs.actions[[row]],
    )
    if isinstance(model, DQN | QRDQN):
        net, target = (
            (model.q_net, model.q_net_target) if isinstance(model, DQN) else (model.quantile_net, model.quantile_net_target)
        )

        def soft_value(network: Any, o: Any) -> tuple[th.Tensor, th.Tensor]:
            q_values = network(o)[0] if isinstance(model, DQN) else network(o)[0].mean(dim=0)
            return q_values, temperature * th.logsumexp(q_values / temperature, dim=0)

        q = soft_value(net, obs)[0][int(action)]

        def value() -> Any:
            return soft_value(net, obs)[1]

        def target_value(o: Any) -> Any:
            return soft_value(target, o)[1]

    else:

        def critic(network: Any, o: Any, a: th.Tensor) -> th.Tensor:
            out = network(o, a)
            return out.mean(dim=2).min() if isinstance(model, TQC) else min(out)[0, 0]

        def policy(o: Any) -> tuple[th.Tensor, Any]:
            if isinstance(model, TD3):
                return model.actor(o), 0.0
            a, log_prob = model.actor.action_log_prob(o)
            return a, th.exp(model.log_ent_coef) * log_prob[0]

        q = critic(model.critic, obs, action)

        def value() -> Any:
            a, entropy = policy(obs)
            return critic(model.critic, obs, a) - entropy

        def target_value(o: Any) -> Any:
            a, entropy = policy(o)
            if isinstance(model, TD3):
                return critic(model.critic_target, o, model.actor_target(o))
            if isinstance(model, TQC):
                quantiles = model.critic_target(o, a).flatten().sort().values
                n_dropped = model.top_quantiles_to_drop_per_net * model.critic.n_critics
                return quantiles[: len(quantiles) - n_dropped].mean() - entropy
            return critic(model.critic if isinstance(model, CrossQ) else model.critic_target, o, a) - entropy

    reward, done = pairs.rewards[row, task], pairs.terminated[row, task]

    def td() -> Any:
        after = target_value(next_obs)
        return reward + (0.0 if done else pairs.discounts[row, task] * after)

    def mixed() -> Any:
        progress = td() - target_value(obs)
        advantage = q - value()
        return progress if done else advantage

    scores = {
        "q": lambda: q,
        "advantage": lambda: q - value(),
        "td": td,
        "progress": lambda: td() - target_value(obs),
        "mixed": mixed,
    }
    return float(scores[score]())


@each_algorithm
@pytest.mark.parametrize("score", ["q", "td", "advantage", "progress", "mixed"])
def test_scores_equal_a_computation_by_hand_from_its_own_networks(name: str, score: str) -> None:
    model: Any = make(name, replay_buffer_class=HIPIReplayBuffer).learn(120)
    model.policy.set_training_mode(False)
    if isinstance(model, TD3):
        model.target_policy_noise = 0.0
    temperature = 0.7
    pairs = pairs_of(model)
    learner = learner_class(model)(model, temperature)
    with th.no_grad():
        if hasattr(model, "actor") and not isinstance(model, TD3):
            # One pair at a time, so that both draw the same noise.
            found = np.empty(pairs.rewards.shape)
            for row in range(5):
                for task in range(3):
                    th.manual_seed(0)
                    single = Pairs(
                        observations=one(pairs, pairs.observations, row, task),
                        next_observations=one(pairs, pairs.next_observations, row, task),
                        actions=pairs.actions[[row]],
                        tasks=pairs.tasks[[task]],
                        rewards=pairs.rewards[row, task].reshape(1, 1),
                        terminated=pairs.terminated[row, task].reshape(1, 1),
                        discounts=pairs.discounts[row, task].reshape(1, 1),
                        with_task=pairs.with_task,
                    )
                    found[row, task] = score_pairs(learner, score, single).item()
        else:
            found = score_pairs(learner, score, pairs).numpy()
        expected = [[by_hand(model, pairs, score, row, task, temperature) for task in range(3)] for row in range(5)]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_crossq_is_scored_without_touching_its_batch_statistics() -> None:
    model: Any = make("CrossQ", replay_buffer_class=HIPIReplayBuffer).learn(120)
    model.policy.set_training_mode(True)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    score_pairs(learner_class(model)(model), "td", pairs_of(model))
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, before[key]), key


def test_discrete_actions_learn_end_to_end_from_relabeled_rows() -> None:
    """The relabeled rows hold rewards that the commanded goals, far away, never gave."""
    model: Any = make("DQN", hipi_sb3.HIPIDQN, replay_buffer_kwargs={"strategy": "future", "relabel_prob": 1.0}).learn(300)
    assert model.replay_buffer.rewards.max() <= 0
    samples = model.replay_buffer.sample(200)
    assert (samples.rewards == 0).any()
    assert set(samples.actions.unique().tolist()) <= {0, 1, 2, 3}
