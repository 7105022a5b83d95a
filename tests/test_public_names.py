"""Every public name, each argument replaced by things of other kinds: it works, or says what it wants."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import ACTIONS, GOALS, LineWalk, make_line_walk, position_of, to_the_left, to_the_right, vec_line_walk

import hipi_sb3
from hipi_sb3.evaluation import bootstrap_interval, evaluate_tasks, evaluation_tasks, task_labels

SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)
FLOATS = np.zeros((5, 2), np.float32)


class Still:
    """A policy that stands still."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        return np.zeros((len(observation["task"]), 1), np.float32), state


def train(**arguments: Any) -> Any:
    options = {"policy": "MultiInputPolicy", "env": make_line_walk(), "device": "cpu", **arguments}
    return hipi_sb3.HIPISAC(**options)


def buffer(**arguments: Any) -> Any:
    space = spaces.Dict(observation=SPACE, task=spaces.Box(-1.0, 1.0, (1,), np.float32))
    return hipi_sb3.HIPIReplayBuffer(10, space, ACTIONS, **arguments)


def relabel(**arguments: Any) -> Any:
    return buffer(family=GOALS, strategy="random", **arguments)


#: How each name is called, and with which arguments; each of these is then replaced.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "GoalReaching": (hipi_sb3.GoalReaching, {"low": [-1.0], "high": [1.0], "radius": 0.1, "position": [0]}),
    "GoalMargin": (hipi_sb3.GoalMargin, {"low": [-1.0], "high": [1.0], "max_tolerance": 0.1, "position": [0]}),
    "DiscreteTasks": (
        hipi_sb3.DiscreteTasks,
        {
            "rewards": [to_the_right, to_the_left],
            "features": position_of,
            "feature_dim": 1,
            "terminated": [to_the_right, to_the_left],
            "success": [to_the_right, to_the_left],
            "prior": [0.5, 0.5],
        },
    ),
    "FiniteTasks": (hipi_sb3.FiniteTasks, {"family": GOALS, "parameters": [[0.5], [-0.5]], "prior": [0.5, 0.5]}),
    "CallableTasks": (
        hipi_sb3.CallableTasks,
        {"task_space": SPACE, "feature_dim": 1, "features": position_of, "reward": GOALS.reward, "tasks": [[0.5, 0.5]]},
    ),
    "LinearReward": (hipi_sb3.LinearReward, {"low": [0.0, 0.0], "high": [1.0, 1.0], "features": position_of}),
    "TargetVelocity": (
        hipi_sb3.TargetVelocity,
        {"low": 0.0, "high": 1.0, "velocity": "x_velocity", "action_cost": 0.1, "tolerance": 0.2},
    ),
    "VectorRewardTasks": (hipi_sb3.VectorRewardTasks, {"objectives": 2}),
    "GoalEnvTasks": (hipi_sb3.GoalEnvTasks, {"env": None}),
    "MultiTaskWrapper": (hipi_sb3.MultiTaskWrapper, {"env": LineWalk(), "family": GOALS, "fixed_task": [0.5]}),
    "check_family": (hipi_sb3.check_family, {"family": GOALS, "env": LineWalk(), "n_steps": 20}),
    "pretrained": (hipi_sb3.pretrained, {"env_id": "PointFixedGoals-v0"}),
    "HIPIReplayBuffer": (
        relabel,
        {
            "n_candidate_tasks": 4,
            "relabel_prob": 0.5,
            "temperature": 1.0,
            "n_steps": 1,
            "warmup_updates": 10,
            "label_reuse": 1,
            "candidates": "batch",
            "log_partition": "batch",
        },
    ),
    "HIPIReplayBuffer, names": (buffer, {"strategy": "hipi", "score": "td"}),
    "TrajectoryDataset": (
        lambda **arguments: hipi_sb3.TrajectoryDataset.from_arrays(GOALS, **arguments),
        {
            "observations": FLOATS,
            "actions": FLOATS[:, :1],
            "episodes": [0, 0, 1, 1, 1],
            "features": FLOATS[:, :1],
            "rewards": FLOATS[:, 0],
            "terminated": [False] * 5,
            "tasks": FLOATS[:, :1],
            "observation_space": SPACE,
            "action_space": ACTIONS,
        },
    ),
    "HIPIBC": (
        lambda **arguments: hipi_sb3.HIPIBC("MultiInputPolicy", **arguments),
        {
            "strategy": "hipi",
            "n_labels": 2,
            "temperature": 1.0,
            "returns": "extended",
            "segment_length": 3,
            "top_fraction": 0.1,
        },
    ),
    "HIPIBC.fit": (
        lambda dataset: hipi_sb3.HIPIBC("MultiInputPolicy", device="cpu").fit(dataset, n_updates=1),
        {"dataset": None},
    ),
    "evaluate_tasks": (
        lambda **arguments: evaluate_tasks(Still(), vec_line_walk(1), **arguments),
        {"tasks": [[0.5]], "n_episodes": 1},
    ),
    "evaluation_tasks": (evaluation_tasks, {"family": GOALS, "n_tasks": 2, "seed": 0}),
    "bootstrap_interval": (bootstrap_interval, {"values": [[1.0, 2.0]]}),
    "task_labels": (task_labels, {"tasks": [[0.5]]}),
}
#: Names whose arguments are those of stable-baselines3, which checks them; names that take none; the base of families, whose
#: subclasses are above; what is called through another.
ELSEWHERE = {
    *(
        "HIPIDDPG",
        "HIPIDQN",
        "HIPIQRDQN",
        "HIPISAC",
        "HIPITD3",
        "HIPITQC",
        "HIPICrossQ",
        "TaskConditionedBCPolicy",
        "LayerNormReLU",
    ),
    *("__version__", "TaskFamily"),
}

WRONG: dict[str, Any] = {
    "None": None,
    "text": "much",
    "bytes": b"\x80\x04.",
    "NaN": float("nan"),
    "array of NaN": np.full((5, 1), np.nan),
    "negative": -1,
    "object": object(),
    "function": len,
    "empty list": [],
    "empty array": np.zeros((0, 1)),
    "one axis more": np.zeros((1, 1, 5, 1)),
    "tensor with a gradient": th.zeros(5, 1, requires_grad=True),
    "environment": LineWalk(),
    "class": gym.Env,
}


def test_every_public_name_is_called() -> None:
    assert {name.partition(",")[0].partition(".")[0] for name in CALLS} | ELSEWHERE >= set(hipi_sb3.__all__)
    assert not ELSEWHERE & CALLS.keys()


@pytest.mark.parametrize("name", [name for name in CALLS if not any(value is None for value in CALLS[name][1].values())])
def test_right_arguments_are_taken(name: str) -> None:
    function, arguments = CALLS[name]
    function(**arguments)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]
)
def test_whatever_is_given_works_or_is_answered(name: str, argument: str, wrong: str) -> None:
    function, arguments = CALLS[name]
    try:
        function(**{**arguments, argument: WRONG[wrong]})
    except (TypeError, ValueError) as error:
        text = str(error)
        # Whoever wrote that sentence knew of this argument: Python's own say nothing of it.
        assert len(text) > 25, text
        origin = error.__traceback__
        while origin is not None and origin.tb_next is not None:
            origin = origin.tb_next
        assert origin is not None and "hipi_sb3" in origin.tb_frame.f_code.co_filename, (text, origin.tb_frame.f_code)
        assert not text.startswith(("object of type", "unsupported operand", "'<' not", "'>' not", "only ")), text
        assert "object is not" not in text and "has no attribute" not in text, text
