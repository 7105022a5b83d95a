"""Each wrapper of Gymnasium and of stable-baselines3 around and inside MultiTaskWrapper: what docs/wrappers.md says of it."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.vec_env as vec
from gymnasium import spaces, wrappers
from sb3_contrib.common.wrappers import ActionMasker, TimeFeatureWrapper
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from hipi_sb3 import HIPIDQN, HIPISAC, CallableTasks, MultiTaskWrapper

PAGE = Path(__file__).parents[1] / "docs" / "wrappers.md"


class Walk(gym.Env):
    """A position that the action is added to, as two numbers or as a picture of them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        vector = spaces.Box(-100.0, 100.0, (2,), np.float32)
        image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space = {"vector": vector, "image": image, "dict": spaces.Dict({"at": vector, "seen": image})}[kind]

    def observe(self) -> Any:
        image = np.full((36, 36, 3), np.uint8(128 + self.position[0]))
        return {"vector": self.position.copy(), "image": image, "dict": {"at": self.position.copy(), "seen": image}}[self.kind]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.position = np.clip(self.position + action, -100, 100).astype(np.float32)
        return self.observe(), float(self.position[0]), False, False, {}

    def render(self) -> Any:
        return np.zeros((36, 36, 3), np.uint8)

    def valid_actions(self) -> Any:
        return np.ones(4, dtype=bool)


def position_of(env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> np.ndarray:
    return env.unwrapped.position


def distance(features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    return -np.abs(features - tasks).sum(axis=-1)


TASKS = CallableTasks(spaces.Box(2.0, 3.0, (2,), np.float32), 2, position_of, distance)


def identity(value: Any) -> Any:
    return value


def half(value: Any) -> Any:
    return 0.5 * value


def mask(env: Any) -> Any:
    return env.unwrapped.valid_actions()


#: How each is tried: what it is given, and the observations of the environment.
GYMNASIUM: dict[str, tuple[Callable[..., Any], str]] = {
    "AddRenderObservation": (partial(wrappers.AddRenderObservation, render_only=False), "vector"),
    "AddWhiteNoise": (partial(wrappers.AddWhiteNoise, probability_of_noise_per_pixel=0.5), "image"),
    "Autoreset": (wrappers.Autoreset, "vector"),
    "ClipAction": (wrappers.ClipAction, "vector"),
    "ClipReward": (partial(wrappers.ClipReward, min_reward=-0.5, max_reward=0.5), "vector"),
    "DelayObservation": (partial(wrappers.DelayObservation, delay=2), "vector"),
    "DiscretizeAction": (partial(wrappers.DiscretizeAction, bins=3), "vector"),
    "DiscretizeObservation": (partial(wrappers.DiscretizeObservation, bins=5), "vector"),
    "DtypeObservation": (partial(wrappers.DtypeObservation, dtype=np.float64), "vector"),
    "FilterObservation": (lambda env: wrappers.FilterObservation(env, list(env.observation_space.spaces)[:1]), "dict"),
    "FlattenObservation": (wrappers.FlattenObservation, "vector"),
    "FrameStackObservation": (partial(wrappers.FrameStackObservation, stack_size=3), "vector"),
    "GrayscaleObservation": (partial(wrappers.GrayscaleObservation, keep_dim=True), "image"),
    "HumanRendering": (wrappers.HumanRendering, "vector"),
    "MaxAndSkipObservation": (partial(wrappers.MaxAndSkipObservation, skip=2), "vector"),
    "NormalizeObservation": (wrappers.NormalizeObservation, "vector"),
    "NormalizeReward": (wrappers.NormalizeReward, "vector"),
    "ObstructView": (partial(wrappers.ObstructView, obstructed_pixels_ratio=0.5, obstruction_width=4), "image"),
    "OrderEnforcing": (wrappers.OrderEnforcing, "vector"),
    "PassiveEnvChecker": (wrappers.PassiveEnvChecker, "vector"),
    "RecordEpisodeStatistics": (wrappers.RecordEpisodeStatistics, "vector"),
    "RecordVideo": (partial(wrappers.RecordVideo, video_folder="videos"), "vector"),
    "RenderCollection": (wrappers.RenderCollection, "vector"),
    "RepeatAction": (partial(wrappers.RepeatAction, num_repeats=2), "vector"),
    "RescaleAction": (partial(wrappers.RescaleAction, min_action=-0.5, max_action=0.5), "vector"),
    "RescaleObservation": (partial(wrappers.RescaleObservation, min_obs=-1, max_obs=1), "vector"),
    "ReshapeObservation": (partial(wrappers.ReshapeObservation, shape=(2, 1)), "vector"),
    "StickyAction": (partial(wrappers.StickyAction, repeat_action_probability=0.5), "vector"),
    "TimeAwareObservation": (wrappers.TimeAwareObservation, "vector"),
    "TimeLimit": (partial(wrappers.TimeLimit, max_episode_steps=3), "vector"),
    "TransformAction": (lambda env: wrappers.TransformAction(env, half, env.action_space), "vector"),
    "TransformObservation": (lambda env: wrappers.TransformObservation(env, identity, env.observation_space), "vector"),
    "TransformReward": (partial(wrappers.TransformReward, func=half), "vector"),
}
SB3: dict[str, tuple[Callable[..., Any], str]] = {
    "ActionMasker": (partial(ActionMasker, action_mask_fn=mask), "vector"),
    "ClipRewardEnv": (atari_wrappers.ClipRewardEnv, "vector"),
    "MaxAndSkipEnv": (partial(atari_wrappers.MaxAndSkipEnv, skip=2), "vector"),
    "Monitor": (Monitor, "vector"),
    "TimeFeatureWrapper": (TimeFeatureWrapper, "vector"),
}
VEC: dict[str, tuple[Callable[..., Any], str]] = {
    "VecCheckNan": (partial(vec.VecCheckNan, raise_exception=True), "vector"),
    "VecExtractDictObs": (partial(vec.VecExtractDictObs, key="observation"), "vector"),
    "VecFrameStack": (partial(vec.VecFrameStack, n_stack=3), "vector"),
    "VecMonitor": (vec.VecMonitor, "vector"),
    "VecNormalize": (partial(vec.VecNormalize, clip_obs=np.inf), "vector"),
    "VecTransposeImage": (vec.VecTransposeImage, "image"),
    "VecVideoRecorder": (
        partial(vec.VecVideoRecorder, video_folder="videos", record_video_trigger=lambda step: step == 0, video_length=4),
        "vector",
    ),
}
#: What they need is not there: a game of Atari, OpenCV, or another library of arrays.
UNTRIED = {
    *("AtariPreprocessing", "AtariWrapper", "EpisodicLifeEnv", "FireResetEnv", "NoopResetEnv", "StickyActionEnv"),
    *("ResizeObservation", "WarpFrame", "ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch"),
}

#: What the page says, and what the error says then; of "refused by it" the wrapper itself raises it.
CELLS = {
    "works": None,
    "put it inside": r"Put it inside: MultiTaskWrapper|Apply wrappers that change the reward inside MultiTaskWrapper",
    "refused by it": "",
    "leave it out": r"ClipAction that took them away, leave it out",
}
PLACES = ("outside", "outside, flatten=True", "inside")


def rows() -> dict[str, dict[str, str]]:
    """The table of the page: what it says of each wrapper in each place."""
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: dict(zip(PLACES, cells.split(" | "), strict=True)) for name, cells in lines}


def build(name: str, place: str) -> Callable[[], Any]:
    """The environments with the wrapper in that place; what raises is the wrapper, once the function is called."""
    wrapper, kind = (GYMNASIUM | SB3 | VEC)[name]
    env = wrappers.TimeLimit(Walk(kind), 4)
    if place == "inside":
        return lambda: MultiTaskWrapper(wrapper(env), TASKS)
    tasks = MultiTaskWrapper(env, TASKS, flatten=place != "outside")
    return partial(wrapper, DummyVecEnv([lambda: tasks]) if name in VEC else tasks)


def train(env: Any) -> None:
    algorithm = HIPIDQN if isinstance(env.action_space, spaces.Discrete) else HIPISAC
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    quick: dict[str, Any] = {
        "learning_starts": 8,
        "batch_size": 8,
        "buffer_size": 100,
        "device": "cpu",
        "seed": 0,
        "train_freq": 1,
    }
    model = algorithm(policy, env, policy_kwargs={"net_arch": [8]}, **quick)
    model.learn(12)
    assert model.replay_buffer is not None and model.replay_buffer.size() == 12 and model._n_updates == 4


def test_the_table_has_every_wrapper_once() -> None:
    theirs = {name for name in vars(atari_wrappers) if name.endswith(("Env", "Wrapper", "Frame"))}
    known = set(wrappers.__all__) - {"vector"} | theirs | set(SB3) | set(VEC)
    assert set(VEC) == {name for name in vec.__all__ if name.startswith("Vec")} - {"VecEnv", "VecEnvWrapper"}
    assert known - UNTRIED == set(rows()) == set(GYMNASIUM) | set(SB3) | set(VEC)
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in UNTRIED)


@pytest.mark.parametrize(("name", "place", "cell"), [(name, *item) for name, row in rows().items() for item in row.items()])
@pytest.mark.filterwarnings("ignore")
def test_a_wrapper_does_what_the_table_says(name: str, place: str, cell: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "SDL_VIDEODRIVER", "dummy")
    if cell == "—":
        kind = (GYMNASIUM | SB3 | VEC)[name][1]
        # A flat observation is a vector, and what wraps a VecEnv is always outside.
        assert (place == "inside" and name in VEC) or (place == "outside, flatten=True" and kind != "vector")
        return
    make = build(name, place)
    if cell == "refused by it":
        with pytest.raises((TypeError, ValueError, AssertionError)):
            make()
    elif cell == "works":
        train(make())
    else:
        with pytest.raises(ValueError, match=CELLS[cell]):
            train(make())


def test_a_larger_observation_that_lost_its_task_is_found() -> None:
    env = MultiTaskWrapper(gym.make("Pendulum-v1"), CallableTasks(spaces.Box(2.0, 3.0, (1,)), 1, angle, distance))
    with pytest.raises(ValueError, match=r"shape \(3,\), but MultiTaskWrapper shows 4 numbers.*Put it inside"):
        train(vec.VecExtractDictObs(DummyVecEnv([lambda: env]), "observation"))


def angle(env: Any, obs: Any, action: Any, next_obs: Any, reward: Any, info: Any) -> np.ndarray:
    return next_obs[:1]


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_what_is_stacked_inside_is_learned_from(kind: str) -> None:
    env = MultiTaskWrapper(wrappers.FrameStackObservation(wrappers.TimeLimit(Walk(kind), 4), 3), TASKS)
    assert env.observation_space["task"] == TASKS.task_space
    train(env)
