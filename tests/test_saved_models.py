"""Files of models: nothing in them is code, and nothing that somebody put there runs."""

import base64
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import GOALS, make_line_walk, vec_line_walk
from numpy.testing import assert_array_equal
from stable_baselines3 import SAC
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule

import hipi_sb3
from hipi_sb3 import HIPIBC, HIPIQRDQN, HIPISAC, HIPITD3, GoalReaching, HIPICrossQ, LayerNormReLU
from hipi_sb3.relabel.log_partition import SinkhornLogPartition
from hipi_sb3.relabel.strategies import FinalGoal
from hipi_sb3.saved_models import decode, encode, plain_objects

SMALL: dict[str, Any] = {"learning_starts": 5, "batch_size": 8, "device": "cpu", "seed": 0}
ZERO, ONE = np.zeros(1), np.ones(1)

MODELS: dict[str, Any] = {
    "SAC": lambda: HIPISAC("MultiInputPolicy", vec_line_walk(2), **SMALL),
    "SAC with options": lambda: HIPISAC(
        "MultiInputPolicy",
        make_line_walk(),
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        train_freq=(1, "episode"),
        action_noise=NormalActionNoise(ZERO, ONE),
        policy_kwargs={"net_arch": {"pi": [4], "qf": [8, 4]}, "activation_fn": th.nn.Tanh, "optimizer_class": th.optim.AdamW},
        replay_buffer_kwargs={"strategy": FinalGoal(), "log_partition": SinkhornLogPartition(0.1), "family": GOALS},
        **SMALL,
    ),
    "TD3": lambda: HIPITD3(
        "MultiInputPolicy", make_line_walk(), action_noise=OrnsteinUhlenbeckActionNoise(ZERO, ONE), **SMALL
    ),
    "TQC": lambda: hipi_sb3.HIPITQC("MultiInputPolicy", make_line_walk(), **SMALL),
    "DDPG": lambda: hipi_sb3.HIPIDDPG("MultiInputPolicy", make_line_walk(), **SMALL),
    "CrossQ": lambda: HIPICrossQ("MlpPolicy", make_line_walk(flatten=True), **SMALL),
    "DQN": lambda: hipi_sb3.HIPIDQN("MultiInputPolicy", gym.make("PointFourRoomsGrid-v0"), **SMALL),
    "QRDQN": lambda: HIPIQRDQN(
        "MultiInputPolicy", gym.make("PointFourRoomsGrid-v0"), policy_kwargs={"activation_fn": LayerNormReLU}, **SMALL
    ),
    "BC": lambda: HIPIBC("MultiInputPolicy", make_line_walk(), batch_size=8, device="cpu", seed=0),
    "BC with options": lambda: HIPIBC(
        "MultiInputPolicy",
        make_line_walk(),
        strategy="final",
        candidates={"batch": 1.0},
        log_partition="running",
        device="cpu",
        seed=0,
    ),
}


def data_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))


@pytest.mark.parametrize("name", MODELS)
def test_files_of_all_algorithms_hold_no_pickle_and_load(name: str, tmp_path: Path) -> None:
    model = MODELS[name]().learn(30)
    model.save(tmp_path / "model")
    assert ":serialized:" not in (zipfile.ZipFile(tmp_path / "model.zip").read("data")).decode()
    loaded = type(model).load(tmp_path / "model", device="cpu")
    obs = (
        {key: value[None] for key, value in model.observation_space.sample().items()} if name != "CrossQ" else np.zeros((1, 3))
    )
    assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    kept = set(data_of(tmp_path / "model.zip")) - {"_last_obs", "_last_original_obs", "lr_schedule", "exploration_schedule"}
    for key in kept:
        assert_same(getattr(loaded, key), getattr(model, key), key)
    assert loaded.lr_schedule(0.7) == model.lr_schedule(0.7)
    loaded.set_env(model.get_env())
    loaded.learn(30, reset_num_timesteps=False)


def assert_same(mine: Any, theirs: Any, key: str) -> None:
    if isinstance(theirs, np.ndarray):
        assert mine.dtype == theirs.dtype
        assert_array_equal(mine, theirs)
    elif isinstance(theirs, dict):
        for name, value in theirs.items():
            assert_same(mine[name], value, f"{key}.{name}")
    elif not isinstance(theirs, spaces.Space) and hasattr(theirs, "__dict__") and not isinstance(theirs, type):
        assert type(mine) is type(theirs), key
        assert_same(vars(mine), vars(theirs), key)
    elif isinstance(theirs, tuple | list):
        assert list(mine) == list(theirs), key
    else:
        assert mine == theirs, key


NUMBERS: dict[str, tuple[type, dict[str, Any]]] = {
    "with a point": (HIPISAC, {"learning_starts": 1e1, "target_update_interval": 1.0}),
    "of NumPy": (
        HIPISAC,
        {
            **{name: np.int64(8) for name in ("learning_starts", "batch_size", "buffer_size")},
            **{"gradient_steps": np.int32(1), "gamma": np.float64(0.9), "tau": np.float32(0.01), "verbose": np.int64(0)},
        },
    ),
    "TD3": (HIPITD3, {"learning_starts": 1e1, "policy_delay": 2.0}),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("total", [3e1, np.int64(30), np.float64(30)])
def test_numbers_of_any_kind_that_train_a_model_are_loaded(kind: str, total: Any, tmp_path: Path) -> None:
    algorithm, options = NUMBERS[kind]
    model = algorithm("MultiInputPolicy", make_line_walk(), **{**SMALL, **options}).learn(total)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_line_walk(), device="cpu")
    assert loaded.num_timesteps >= 30 and loaded.learning_starts == model.learning_starts
    loaded.learn(total, reset_num_timesteps=False)


def test_a_stream_is_written_and_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    model = MODELS["SAC"]()
    model.save(stream)
    stream.seek(0)
    assert HIPISAC.load(stream, device="cpu").observation_space == model.observation_space


def test_stable_baselines3_itself_loads_a_file_with_what_is_plain_in_it(tmp_path: Path) -> None:
    model = MODELS["SAC"]().learn(20)
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model", custom_objects=plain_objects(tmp_path / "model"), device="cpu")
    for mine, theirs in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(mine, theirs)


# -- what is not ours -------------------------------------------------------------------------------------------------


def halved(progress: float) -> float:
    return 1e-3 * progress


def test_code_of_ones_own_needs_trust_or_is_given(tmp_path: Path) -> None:
    model = HIPISAC("MultiInputPolicy", make_line_walk(), learning_rate=lambda progress: 2e-3 * progress, **SMALL)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pickled objects \(learning_rate, lr_schedule\).* trust=True"):
        HIPISAC.load(tmp_path / "model")
    assert HIPISAC.load(tmp_path / "model", trust=True).lr_schedule(0.5) == 1e-3
    given = {"learning_rate": halved, "lr_schedule": halved}
    assert HIPISAC.load(tmp_path / "model", custom_objects=given).lr_schedule(0.5) == 5e-4


def test_a_file_of_stable_baselines3_needs_trust(tmp_path: Path) -> None:
    SAC("MultiInputPolicy", make_line_walk(), replay_buffer_class=hipi_sb3.HIPIReplayBuffer).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"written by stable-baselines3 itself"):
        HIPISAC.load(tmp_path / "model")
    HIPISAC.load(tmp_path / "model", trust=True)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def tampered(path: Path, **entries: Any) -> Path:
    """The file with other entries in its data."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["data"] = json.dumps({**json.loads(files["data"]), **entries}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("entry", ["policy_class", "observation_space", "lr_schedule", "something"])
@pytest.mark.parametrize("kind", [HIPISAC, HIPIBC])
def test_a_payload_does_not_run(entry: str, kind: Any, tmp_path: Path) -> None:
    MODELS["SAC" if kind is HIPISAC else "BC"]().save(tmp_path / "model")
    mark = tmp_path / "mark"
    pickled = base64.b64encode(cloudpickle.dumps(Payload(mark))).decode()
    path = tampered(tmp_path / "model.zip", **{entry: {":type:": "<class 'int'>", ":serialized:": pickled}})
    with pytest.raises(ValueError, match=entry):
        kind.load(path)
    assert not mark.exists()
    try:
        kind.load(path, trust=True)
    except Exception:  # what it loads is no model, but it has been unpickled
        pass
    assert mark.exists()


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": [10**9]},
        {"net_arch": [8, 10**9, 8]},
        {"net_arch": [60_000, 60_000]},  # few units, many weights
        {"net_arch": {"pi": [8], "qf": [10**10]}},
        {"net_arch": [8], "n_critics": 10**9},
        {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 10**12}},
    ],
)
def test_networks_that_are_larger_than_the_file_are_not_made(policy_kwargs: dict[str, Any], tmp_path: Path) -> None:
    MODELS["SAC"]().save(tmp_path / "model")
    path = tampered(tmp_path / "model.zip", policy_kwargs={":plain:": encode(policy_kwargs)})
    with pytest.raises(ValueError, match=r"model\.zip asks for .* made to fill the memory"):
        HIPISAC.load(path)
    HIPISAC.load(tampered(path, policy_kwargs={":plain:": encode({"net_arch": [256, 256]})}))


def test_a_payload_among_the_weights_does_not_run(tmp_path: Path) -> None:
    MODELS["SAC"]().save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO()
    th.save(Payload(tmp_path / "mark"), stream)
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, stream.getvalue() if name == "policy.pth" else content)
    with pytest.raises(ValueError, match=r"model holds more than tensors"):
        HIPISAC.load(tmp_path / "model", trust=True)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class": "os:system"}, "os:system, which is neither"),
        ({"class": "hipi_sb3.names:lookup"}, "which is neither"),
        ({"class": "torch.nn.modules:os"}, "which is neither"),
        ({"object": {"class": "subprocess:Popen", "state": {"dict": {}}}}, "subprocess:Popen, which no model has"),
        ({"object": {"table": 0, "name": "eval", "arguments": {"dict": {}}}}, "Unknown object 'eval'"),
        ({"array": {"dtype": "|O", "shape": [1], "content": ""}}, "array of object"),
        ({"call": ["os.system", "true"]}, "Unknown kind of entry"),
    ],
)
def test_entries_that_no_model_has_are_refused(entry: Any, message: str, tmp_path: Path) -> None:
    MODELS["SAC"]().save(tmp_path / "model")
    with pytest.raises((ValueError, AttributeError), match=message):
        HIPISAC.load(tampered(tmp_path / "model.zip", something={":plain:": entry}))


@pytest.fixture
def module_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it is imported, and the mark."""
    (tmp_path / "stranger.py").write_text(f"from pathlib import Path; Path({str(tmp_path / 'mark')!r}).touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path / "mark"


#: Each entry of all files, with values of the kinds that JSON has: a text above all, which names a module.
TEXT = "stranger:Env-v0"
STRANGE = [TEXT, "stranger", ["stranger:Env-v0"], {"stranger": 1}, {":plain:": {"class": "stranger:Env"}}]
STRANGE += [{":plain:": {"object": {"class": "stranger:Env", "state": {"dict": {}}}}}, {":plain:": {"space": TEXT}}]


@pytest.mark.parametrize("name", ["SAC", "DQN", "BC"])
def test_no_entry_of_any_kind_imports_a_module_that_it_names(name: str, tmp_path: Path, module_of_a_stranger: Path) -> None:
    model = MODELS[name]()
    model.save(tmp_path / "model")
    original = (tmp_path / "model.zip").read_bytes()
    keys = {*data_of(tmp_path / "model.zip"), *vars(model), *dir(type(model))}
    assert {"env", "policy_class", "_setup_model", "device", "replay_buffer"} <= keys
    for key in keys:
        for value in STRANGE:
            (tmp_path / "model.zip").write_bytes(original)
            try:
                type(model).load(tampered(tmp_path / "model.zip", **{key: value}), device="cpu")
            except (ValueError, TypeError) as error:
                assert "model.zip" in str(error) + "".join(error.__notes__ if hasattr(error, "__notes__") else [])
            assert not module_of_a_stranger.exists(), (key, value)
            assert "stranger" not in sys.modules


def test_the_module_of_the_stranger_would_leave_its_mark(module_of_a_stranger: Path) -> None:
    """The control: this is what stable-baselines3 does with an ``env`` that is a text."""
    with pytest.raises(gym.error.Error):
        SAC("MlpPolicy", TEXT)
    assert module_of_a_stranger.exists()


#: What an algorithm reads, with values of other kinds than it has.
WRONG_KINDS: list[tuple[str, Any, str]] = [
    ("env", TEXT, "env is 'stranger:Env-v0', but has to be nothing"),
    ("_vec_normalize_env", TEXT, "has to be nothing"),
    ("policy_class", "MlpPolicy", "a class of BasePolicy"),
    ("policy_class", {":plain:": {"class": "torch.nn.modules.linear:Linear"}}, "a class of BasePolicy"),
    ("replay_buffer_class", "HIPIReplayBuffer", "a class of ReplayBuffer or nothing"),
    ("observation_space", TEXT, "a Space"),
    ("action_space", [1], "a Space"),
    ("learning_rate", TEXT, "a int or a float"),
    ("lr_schedule", {":plain:": {"class": "torch.nn.modules.linear:Linear"}}, "Callable"),
    ("policy_kwargs", "dict()", "a dict"),
    ("policy_kwargs", {":plain:": {"dict": {"activation_fn": "torch.nn.ReLU"}}}, "a class of Module"),
    ("policy_kwargs", {":plain:": {"dict": {"optimizer_class": {"class": "torch.nn.modules.linear:Linear"}}}}, "of Optimizer"),
    ("replay_buffer_kwargs", [], "a dict"),
    ("buffer_size", "many", "a int"),
    ("gamma", "high", "a float"),
    ("use_sde", "yes", "a bool"),
    ("action_noise", "stranger", "ActionNoise"),
    ("train_freq", "often", "a TrainFreq"),
    ("ep_info_buffer", "x", "a deque"),
    ("seed", "x", "a int"),
    ("_setup_model", "x", "is a method of HIPISAC, which no file replaces"),
    ("logger", "x", "is a method of HIPISAC"),
    ("__class__", "x", "__class__"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG_KINDS)
def test_an_entry_of_another_kind_is_named_with_what_it_has_to_be(key: str, value: Any, message: str, tmp_path: Path) -> None:
    MODELS["SAC"]().save(tmp_path / "model")
    path = tampered(tmp_path / "model.zip", **{key: value})
    with pytest.raises(ValueError, match=rf"model.zip, entry '{key}': .*{message}.*custom_objects=dict\({key}=..."):
        HIPISAC.load(path)


def test_an_entry_that_is_given_is_not_asked_of_the_file(tmp_path: Path) -> None:
    MODELS["SAC"]().save(tmp_path / "model")
    path = tampered(tmp_path / "model.zip", gamma="high")
    assert HIPISAC.load(path, custom_objects={"gamma": 0.5}).gamma == 0.5


@pytest.mark.parametrize("content", [b"", b"no zip file"])
def test_what_is_no_zip_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.zip wasn't a zip-file"):
        HIPISAC.load(tmp_path / "model.zip")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([2, 5], start=[0, 1]),
        spaces.MultiBinary([2, 2]),
        spaces.Dict(b=spaces.Box(0, 255, (2,), np.uint8), a=spaces.Discrete(2)),
    ],
    ids=str,
)
def test_spaces_and_their_random_numbers_come_back(space: spaces.Space) -> None:
    space.seed(3)
    again = decode(json.loads(json.dumps(encode(space))))
    assert again == space and again.dtype == space.dtype
    if not isinstance(space, spaces.Dict):
        assert_array_equal(again.sample(), space.sample())


def test_a_family_among_the_options_comes_back(tmp_path: Path) -> None:
    family = GoalReaching([-1.0], [1.0], 0.2, position=[0], prior=([-0.5], [0.5]))
    again = decode(json.loads(json.dumps(encode(family))))
    assert again.task_space == family.task_space and again.prior_space == family.prior_space
    assert_array_equal(again.sample(np.random.default_rng(0), 5), family.sample(np.random.default_rng(0), 5))


class KeysInAnotherOrder(BitFlippingEnv):
    """Observations whose parts are not in alphabetical order: networks take them in that of the space."""

    def __init__(self) -> None:
        super().__init__(n_bits=3, continuous=True)
        parts = self.observation_space.spaces
        order = ("observation", "desired_goal", "achieved_goal")
        self.observation_space = spaces.Dict([(key, parts[key]) for key in order])


def test_a_loaded_network_takes_the_parts_of_an_observation_in_the_order_that_it_learned(tmp_path: Path) -> None:
    model = HIPISAC("MultiInputPolicy", KeysInAnotherOrder(), **SMALL)
    obs = {key: np.arange(3) % 2 == i for i, key in enumerate(model.observation_space.spaces)}
    expected = model.predict(obs, deterministic=True)[0]
    model.save(tmp_path / "model")
    for env in (None, KeysInAnotherOrder()):
        loaded = HIPISAC.load(tmp_path / "model", env=env, device="cpu")
        assert list(loaded.observation_space.spaces) == list(model.observation_space.spaces)
        assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
