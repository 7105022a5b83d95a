"""The faster update gives the numbers of stable-baselines3's."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import make_line_walk
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch.fx.experimental.proxy_tensor import make_fx

from hipi_sb3 import HIPISAC, HIPIReplayBuffer
from hipi_sb3.networks import update_graph
from hipi_sb3.networks.fast_sac import FastSAC, adam_step
from hipi_sb3.networks.layers import LayerNormReLU, Layers


def trained(algorithm: type[SAC], n_updates: int = 100, flatten: bool = False, **kwargs: Any) -> SAC:
    model = algorithm(
        kwargs.pop("policy", "MlpPolicy" if flatten else "MultiInputPolicy"),
        make_line_walk(flatten=flatten),
        replay_buffer_class=HIPIReplayBuffer,
        learning_starts=10,
        batch_size=32,
        seed=3,
        **{"policy_kwargs": dict(net_arch=[32, 32]), "device": "cpu", **kwargs},
    )
    return model.learn(10 + n_updates, log_interval=10**6)


def assert_same_parameters(a: SAC, b: SAC, atol: float) -> None:
    for (name, mine), theirs in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=atol, err_msg=name)
    if a.log_ent_coef is not None:
        assert float(a.log_ent_coef.detach()) == pytest.approx(float(b.log_ent_coef.detach()), abs=atol)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"ent_coef": 0.1},
        {"gradient_steps": 2, "target_update_interval": 2},
        {"flatten": True},
        {"policy_kwargs": dict(net_arch=[16, 24], activation_fn=th.nn.Tanh, optimizer_kwargs=dict(weight_decay=0.1))},
        {"policy_kwargs": dict(net_arch=[16, 24], activation_fn=LayerNormReLU)},
        {"policy_kwargs": dict(net_arch=[], n_critics=3)},
        {"replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}},
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
def test_after_100_updates_the_parameters_are_those_of_sac(kwargs: dict[str, Any]) -> None:
    fast, slow = trained(HIPISAC, **kwargs), trained(SAC, **kwargs)
    assert fast._is_fast
    assert_same_parameters(fast, slow, atol=1e-4)
    # The comparison can fail: other updates are further away.
    with pytest.raises(AssertionError):
        assert_same_parameters(fast, trained(SAC, 90, **kwargs), atol=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_sde": True},
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW}},
        {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}},
        {"policy_kwargs": {"activation_fn": th.nn.SiLU}},
    ],
)
def test_what_the_faster_update_does_not_know_is_left_to_sac(kwargs: dict[str, Any]) -> None:
    fast, slow = trained(HIPISAC, 20, **kwargs), trained(SAC, 20, **kwargs)
    assert not fast._is_fast
    assert_same_parameters(fast, slow, atol=0)


def test_no_gradient_of_the_actor_is_left_in_the_critics() -> None:
    models = [trained(algorithm, 1, learning_rate=0.0) for algorithm in (HIPISAC, SAC)]
    fast, slow = ([parameter.grad for parameter in model.critic.parameters()] for model in models)
    # SAC adds the gradients of the actor's loss to those of the critics' own.
    assert any(not th.allclose(mine, theirs, rtol=1e-3) for mine, theirs in zip(fast, slow, strict=True))
    assert all(parameter.requires_grad for parameter in models[0].critic.parameters())


def test_losses_are_logged_when_the_log_is_written() -> None:
    env = make_line_walk()
    model = HIPISAC("MultiInputPolicy", env, learning_starts=10, batch_size=16, seed=0, verbose=0)
    written: list[dict[str, Any]] = []
    model.learn(12)
    model.logger.dump = lambda step: written.append(dict(model.logger.name_to_value))  # type: ignore[method-assign,misc]
    model.dump_logs()
    for name in ("train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss"):
        assert np.isfinite(written[0][name])


def test_saving_and_loading_keeps_the_faster_update(tmp_path: Any) -> None:
    model = trained(HIPISAC, 5)
    model.save(tmp_path / "model")
    loaded = HIPISAC.load(tmp_path / "model", env=make_line_walk())
    assert loaded._is_fast
    loaded.learn(30, reset_num_timesteps=False)


@pytest.mark.parametrize("activation", [th.nn.ReLU, th.nn.Tanh, LayerNormReLU])
def test_gradients_without_autograd_are_those_of_autograd(activation: type[th.nn.Module]) -> None:
    th.manual_seed(0)
    net = th.nn.Sequential(th.nn.Linear(3, 5), activation(), th.nn.Linear(5, 4), activation(), th.nn.Linear(4, 2))
    inputs, grad = th.randn(7, 3, requires_grad=True), th.randn(7, 2)
    outputs = net(inputs)
    outputs.backward(grad)
    expected = [inputs.grad, *(parameter.grad for parameter in net.parameters())]

    for parameter in net.parameters():
        parameter.grad = None
    with th.no_grad():
        layers = Layers(net)
        assert th.allclose(layers(inputs), outputs)
        of_inputs = layers.input_gradient(grad)
        assert all(parameter.grad is None for parameter in net.parameters())
        layers.backward(grad)
    for mine, theirs in zip([of_inputs, *(parameter.grad for parameter in net.parameters())], expected, strict=True):
        th.testing.assert_close(mine, theirs)


def test_layers_say_which_networks_they_know() -> None:
    assert Layers.knows(th.nn.Sequential(th.nn.Linear(2, 2), th.nn.Tanh()))
    assert not Layers.knows(th.nn.Sequential(th.nn.Linear(2, 2), th.nn.Dropout()))
    assert not Layers.knows([th.nn.Linear(2, 2, bias=False)])
    # A residual layer, say, is no plain linear one.
    assert not Layers.knows([type("Residual", (th.nn.Linear,), {})(2, 2)])


def test_one_kernel_makes_the_steps_of_adam() -> None:
    mine, theirs = (th.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    fast, slow = (th.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.01) for net in (mine, theirs))
    for step in range(5):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            one.grad = th.randn_like(one)
            other.grad = one.grad.clone()
        with th.no_grad():
            adam_step(fast)
        slow.step()
        if step == 2:
            fast.load_state_dict(copy.deepcopy(slow.state_dict()))  # load_state_dict does not copy tensors
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        th.testing.assert_close(one, other)


def test_a_running_estimate_of_log_z_learns_while_the_update_needs_no_gradients() -> None:
    options = {"log_partition": "running", "label_reuse": 1}
    model = trained(HIPISAC, 20, replay_buffer_kwargs=options)
    assert isinstance(model.replay_buffer, HIPIReplayBuffer)
    assert model.replay_buffer.relabeler.inference.log_partition.state_dict()["n_batches"] == 20


def test_predictions_are_those_of_sac() -> None:
    fast, slow = trained(HIPISAC, 20), trained(SAC, 20)
    slow.policy.load_state_dict(fast.policy.state_dict())
    batch = {key: np.stack([space.sample() for _ in range(7)]) for key, space in fast.observation_space.spaces.items()}
    for deterministic in (True, False):
        for obs in (batch, {key: value[0] for key, value in batch.items()}):
            th.manual_seed(0)
            mine, _ = fast.predict(obs, deterministic=deterministic)
            th.manual_seed(0)
            theirs, _ = slow.predict(obs, deterministic=deterministic)
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="tuple"):
        fast.predict((batch, {}))


# -- other devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [False, True], ids=["dict", "flat"])
def test_an_update_stays_on_its_device_and_reads_nothing_back(flatten: bool) -> None:
    # Tensors on "meta" have no values: it is an error to read one, or to mix them with tensors of the CPU.
    model = HIPISAC("MlpPolicy" if flatten else "MultiInputPolicy", make_line_walk(flatten=flatten), device="meta")
    for network in (model.actor, model.critic):  # on other devices parameters are moved in place
        network.optimizer.param_groups[0]["params"] = list(network.parameters())
    # Labels that need scores are drawn on the CPU: this strategy needs none.
    model.replay_buffer = trained(HIPISAC, 0, flatten=flatten, replay_buffer_kwargs={"strategy": "random"}).replay_buffer
    assert model.replay_buffer is not None
    model.replay_buffer.device = model.device
    model.set_logger(Logger(None, []))
    model.train(gradient_steps=2, batch_size=8)
    assert model._losses is not None and {loss.device.type for loss in model._losses.values()} == {"meta"}
    data = model.replay_buffer.sample(8)
    with pytest.raises(RuntimeError, match="device"):
        model._update(data._replace(rewards=th.zeros(8, 1)), update_targets=True)


def record_anywhere(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """
    Let models of the CPU record their updates, as graphs of operations with the rules of CUDA graphs: tensors stay where they
    are, numbers stay what they are, nothing is read back.

    :return: filled with what is recorded
    """
    recordings: list[Any] = []
    models: list[HIPISAC] = []

    def record(function: Any, device: th.device) -> Any:
        model = models[-1]  # whose train() asked last
        optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
        state = [*model.policy.parameters(), *([] if model.log_ent_coef is None else [model.log_ent_coef])]
        for optimizer in filter(None, optimizers):
            state += [tensor for of_parameter in optimizer.state.values() for tensor in of_parameter.values()]
        # A recording does nothing yet.
        before, random_state = [tensor.detach().clone() for tensor in state], th.get_rng_state()
        recording = make_fx(function)()
        th.set_rng_state(random_state)
        for tensor, value in zip(state, before, strict=True):
            tensor.detach().copy_(value)
        recordings.append(recording)
        result: dict[str, th.Tensor] = {}
        return lambda: result.update(recording()), result

    def records(model: HIPISAC) -> bool:
        models.append(model)
        return model.cuda_graph and model._is_fast

    monkeypatch.setattr(FastSAC, "cuda_graph", True)
    monkeypatch.setattr(FastSAC, "_records", property(records))
    monkeypatch.setattr(update_graph, "record", record)
    return recordings


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gradient_steps": 2, "target_update_interval": 2},
        {"ent_coef": 0.1, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}},
        {"learning_rate": lambda progress: 1e-3 * progress},
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
def test_a_recorded_update_does_what_the_update_does(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(HIPISAC, 40, **kwargs)
    recordings = record_anywhere(monkeypatch)
    replayed = trained(HIPISAC, 40, **kwargs)
    assert len(recordings) == (2 if "target_update_interval" in kwargs else 1)
    assert_same_parameters(replayed, plain, atol=1e-5)
    assert replayed._losses is not None and plain._losses is not None
    for name, loss in plain._losses.items():
        assert float(replayed._losses[name]) == pytest.approx(float(loss), abs=1e-4)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[HIPISAC, HIPISAC, list[Any], Any]:
    """A model, its twin that has recorded its update, the recordings so far, and what trains both alike and compares them."""
    options = {"replay_buffer_kwargs": {"strategy": "random"}}  # labels that do not depend on who learns first
    plain = trained(HIPISAC, 20, **options)
    recordings = record_anywhere(monkeypatch)
    replayed = trained(HIPISAC, 20, **options)
    plain.cuda_graph = False
    replayed.replay_buffer = plain.replay_buffer
    assert len(recordings) == 1

    def train_and_compare(*models: HIPISAC) -> None:
        for model in models or (plain, replayed):
            assert isinstance(model.replay_buffer, HIPIReplayBuffer)
            model.replay_buffer.relabeler._rng = np.random.default_rng(0)
            np.random.seed(0)
            th.manual_seed(0)
            model.train(gradient_steps=10, batch_size=32)
        assert_same_parameters(*(models or (replayed, plain)), atol=1e-5)

    return plain, replayed, recordings, train_and_compare


def test_what_was_recorded_is_recorded_anew_where_it_no_longer_fits(pair: Any, tmp_path: Any) -> None:
    plain, replayed, recordings, train_and_compare = pair
    plain.save(tmp_path / "model")
    # Loading puts other tensors into the optimizers: a recording of before would change those that nobody reads.
    replayed.set_parameters(tmp_path / "model.zip")
    train_and_compare()
    assert len(recordings) == 2
    for model in (plain, replayed):
        model.gamma = 0.5
    train_and_compare()
    assert len(recordings) == 3
    # An error in the middle of loading does no harm either.
    parameters = {name: value for name, value in replayed.get_parameters().items() if name != "ent_coef_optimizer"}
    with pytest.raises(ValueError, match="ent_coef_optimizer"):
        replayed.set_parameters(copy.deepcopy(parameters))
    train_and_compare()
    # What no longer fits is not kept.
    assert len(recordings) == 4 and len(replayed._graphs) == 1


def test_without_the_recording_the_learning_rate_is_the_optimizers(pair: Any) -> None:
    plain, replayed, recordings, train_and_compare = pair
    replayed.cuda_graph = False
    for model in (plain, replayed):
        model.lr_schedule = lambda progress: 0.01
    train_and_compare()
    assert len(recordings) == 1


def test_a_copy_of_a_model_learns_by_itself(pair: Any) -> None:
    plain, replayed, _, train_and_compare = pair
    copied = copy.deepcopy(replayed)
    assert copied.cuda_graph and not copied._graphs
    before = copy.deepcopy(replayed.policy.state_dict())
    train_and_compare(plain, copied)
    for name, value in replayed.policy.state_dict().items():
        assert th.equal(value, before[name])


def test_recording_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not th.cuda.is_available():  # then it says so
        with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|dummy"):
            update_graph.record(dict, th.device("cuda"))
        return
    kwargs: dict[str, Any] = {"device": "cuda", "replay_buffer_kwargs": {"strategy": "random"}}
    plain = trained(HIPISAC, 40, **kwargs)
    monkeypatch.setattr(FastSAC, "cuda_graph", True)
    replayed = trained(HIPISAC, 40, **kwargs)  # from the same seed, so with the same random numbers
    assert replayed._graphs and not plain._graphs
    for mine, theirs in zip(replayed.policy.parameters(), plain.policy.parameters(), strict=True):
        th.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


def test_without_cuda_nothing_is_recorded() -> None:
    model = HIPISAC("MultiInputPolicy", make_line_walk(), learning_starts=5, device="cpu")
    model.cuda_graph = True
    model.learn(20)
    assert not model._graphs


# -- spaces of any number of axes -------------------------------------------------------------------------------------


class Noise(gym.Env):
    """Observations and rewards that mean nothing, in any spaces."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.clock += 1
        return self.observation_space.sample(), float(np.sum(action)), self.clock == 4, False, {}


def box(*shape: int) -> spaces.Box:
    """Bounds that differ from entry to entry: an axis that is mistaken for another one shows."""
    n = int(np.prod(shape))
    low = -1.0 - np.arange(n, dtype=np.float32).reshape(shape)
    return spaces.Box(low, 3.0 + 2 * np.arange(n, dtype=np.float32).reshape(shape), dtype=np.float32)


OBSERVATIONS = {
    "flat": box(3),
    "matrix": box(2, 3),
    "cube": box(2, 1, 3),
    "number": spaces.Discrete(4),
    "numbers": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"a": box(2, 2), "b": box(3), "c": spaces.Discrete(3)}),
}


@pytest.mark.parametrize("observation_space", OBSERVATIONS.values(), ids=OBSERVATIONS)
@pytest.mark.parametrize(
    "action_space", [box(3), box(2, 2), box(1), box(3, 1, 2), box(1, 1)], ids=lambda space: str(space.shape)
)
def test_spaces_of_any_number_of_axes_are_those_of_sac(observation_space: spaces.Space, action_space: spaces.Box) -> None:
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    models = []
    for algorithm in (FastSAC, SAC):
        env = Noise(copy.deepcopy(observation_space), copy.deepcopy(action_space))
        model = algorithm(policy, env, learning_starts=5, batch_size=8, seed=1, device="cpu", policy_kwargs={"net_arch": [16]})
        models.append(model.learn(20))
    fast, slow = models
    assert fast._is_fast
    assert_same_parameters(fast, slow, atol=1e-4)

    slow.policy.load_state_dict(fast.policy.state_dict())
    samples = [observation_space.sample() for _ in range(5)]
    if isinstance(observation_space, spaces.Dict):
        batch: Any = {key: np.stack([sample[key] for sample in samples]) for key in observation_space.spaces}
    else:
        batch = np.stack(samples)
    for deterministic in (True, False):
        for obs, shape in ((batch, (5, *action_space.shape)), (samples[0], action_space.shape)):
            th.manual_seed(0)
            mine, state = fast.predict(obs, deterministic=deterministic)
            th.manual_seed(0)
            theirs, _ = slow.predict(obs, deterministic=deterministic)
            assert state is None and mine.shape == theirs.shape == shape and mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
