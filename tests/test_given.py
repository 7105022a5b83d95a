"""Whatever kind of thing a user gives where numbers are asked for: the same result, or an error that says what to give."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import ACTIONS, DICT_SPACE, GOALS, LineWalk, directions, goal_buffer, make_line_walk, position_of
from numpy.testing import assert_allclose

from hipi_sb3 import (
    CallableTasks,
    GoalReaching,
    HIPIReplayBuffer,
    MultiTaskWrapper,
    TaskFamily,
    TrajectoryDataset,
    check_family,
)
from hipi_sb3.evaluation import bootstrap_interval
from hipi_sb3.networks.fast_sac import FastSAC
from hipi_sb3.relabel import posterior
from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION, make_log_partition
from hipi_sb3.relabel.posterior import TaskInference, task_posterior

RNG = np.random.default_rng(0)
#: Three transitions, two tasks.
SCORES, TASKS, POSTERIOR = RNG.normal(size=(3, 2)), np.array([[0.5], [-0.5]], np.float32), np.array([[0.25, 0.75]] * 3)
TWO = np.array([0.1, -0.3])
SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


def infer(temperature: Any, log_partition: str = "batch") -> Callable[..., Any]:
    def function(tasks: Any, scores: Any, log_weights: Any) -> Any:
        estimator = make_log_partition(log_partition)
        estimator.setup(GOALS.task_space, None)
        found = TaskInference(estimator, temperature)(tasks, scores, log_weights, alpha=0.5)
        return np.concatenate([found.posterior.ravel(), np.ravel(found.log_partition), np.ravel(found.temperature)])

    return function


def price(name: str) -> Callable[..., Any]:
    return lambda scores: make_log_partition(name)(TASKS, scores, np.zeros(2))


def dataset(observations: Any, actions: Any, features: Any, lengths: Any, tasks: Any) -> Any:
    made = TrajectoryDataset(GOALS, SPACE, ACTIONS, observations, actions, features, lengths, tasks)
    return np.concatenate(
        [made.observations, made.actions, made.features, np.repeat(made.tasks, made.lengths, axis=0)], axis=1
    )


def add(actions: Any, rewards: Any, dones: Any) -> Any:
    buffer = goal_buffer(n_envs=2)
    obs = {"observation": np.zeros((2, 2), np.float32), "task": np.array([[0.1], [0.9]], np.float32)}
    info = [{"task_features": np.array([0.1], np.float32), "env_terminated": False}] * 2
    buffer.add(obs, obs, actions, rewards, dones, info)
    return np.concatenate([np.ravel(part[0]) for part in (buffer.actions, buffer.rewards, buffer.dones)])


def predict(observation: Any) -> Any:
    model = FastSAC("MlpPolicy", Box(), policy_kwargs={"net_arch": [4]}, seed=0, device="cpu")
    return model.predict(observation, deterministic=True)[0]


class Box(gym.Env):
    observation_space, action_space = SPACE, spaces.Box(-1.0, 1.0, (1,), np.float32)


def fixed_task(task: Any) -> Any:
    env = make_line_walk()
    env.fix_task(task)  # type: ignore[attr-defined]
    return env.reset(seed=0)[0]["task"]


def finite(tasks: Any) -> Any:
    return CallableTasks(GOALS.task_space, 1, position_of, GOALS.reward, tasks=tasks).tasks


RIGHT: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "task_posterior": (task_posterior, {"scores": SCORES, "log_partition": TWO, "log_weights": TWO}),
    "TaskInference": (infer(0.5), {"tasks": TASKS, "scores": SCORES, "log_weights": TWO}),
    "TaskInference, auto": (infer("auto"), {"tasks": TASKS, "scores": SCORES, "log_weights": TWO}),
    "TaskInference, ess": (infer("ess:1.5"), {"tasks": TASKS, "scores": SCORES, "log_weights": TWO}),
    "TaskInference, spread": (infer("spread:0.5"), {"tasks": TASKS, "scores": SCORES, "log_weights": TWO}),
    "TaskInference, running": (infer(0.5, "running"), {"tasks": TASKS, "scores": SCORES, "log_weights": TWO}),
    **{
        f"log Z, {name}": (price(name), {"scores": SCORES}) for name in KEY_TO_LOG_PARTITION if name not in ("none", "running")
    },
    "effective_tasks": (posterior.effective_tasks, {"posterior": POSTERIOR}),
    "label_divergence": (posterior.label_divergence, {"posterior": POSTERIOR, "log_weights": TWO}),
    "sample_rows": (
        lambda probabilities: posterior.sample_rows(probabilities, np.random.default_rng(0)),
        {"probabilities": POSTERIOR},
    ),
    "spread": (posterior.spread, {"centered": SCORES}),
    "centered_scores": (lambda scores: posterior.centered_scores(scores, True), {"scores": SCORES}),
    "log_prior": (GOALS.log_prior, {"tasks": TASKS}),
    "log_prior, finite": (directions().log_prior, {"tasks": np.eye(3, dtype=np.float32)[:2]}),
    "check_task": (GOALS.check_task, {"task": TASKS[0]}),
    "fix_task": (fixed_task, {"task": TASKS[0]}),
    "TrajectoryDataset": (
        dataset,
        {
            "observations": np.zeros((5, 2), np.float32),
            "actions": np.zeros((5, 1), np.float32),
            "features": np.zeros((5, 1), np.float32),
            "lengths": np.array([2, 3]),
            "tasks": TASKS,
        },
    ),
    "add": (
        add,
        {
            "actions": np.array([[0.5], [0.2]], np.float32),
            "rewards": np.array([0, -1], np.float32),
            "dones": np.array([True, False]),
        },
    ),
    "predict": (predict, {"observation": np.zeros((3, 2), np.float32)}),
    "bootstrap_interval": (bootstrap_interval, {"values": SCORES}),
    "GoalReaching": (lambda low, high: GoalReaching(low, high, 0.1).task_space.high, {"low": -TWO - 3, "high": TWO + 3}),
    "FiniteTasks": (finite, {"tasks": TASKS}),
}
SAME = ("list", "tensor")
WRONG = ("text", "gradient", "axis", "turned", "NaN", "empty")


def of_kind(kind: str, value: np.ndarray) -> Any:
    match kind:
        case "list":
            return value.tolist()
        case "tensor":
            return th.as_tensor(value)
        case "gradient":
            return th.as_tensor(value).float().requires_grad_()
        case "text":
            return "much"
        case "axis":
            return value[None, None]
        case "turned":
            return value[:, None] if value.ndim == 1 else value.T
        case "NaN":
            return np.full(value.shape, np.nan, dtype=np.float32)
        case "empty":
            return value[..., :0]
    raise AssertionError(kind)


def cases(kinds: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(name, argument, kind, id=f"{name}-{argument}-{kind}")
        for name, (_, arguments) in RIGHT.items()
        for argument in arguments
        for kind in kinds
    ]


def call(name: str, argument: str, kind: str) -> Any:
    function, arguments = RIGHT[name]
    return function(**{**arguments, argument: of_kind(kind, arguments[argument])})


@pytest.mark.parametrize(("name", "argument", "kind"), cases(SAME))
def test_lists_and_tensors_are_taken_as_arrays(name: str, argument: str, kind: str) -> None:
    function, arguments = RIGHT[name]
    assert_allclose(call(name, argument, kind), function(**arguments), rtol=1e-12)


#: What is taken although it looks wrong, by function, argument (any if None) and kind, and why that does no harm.
TAKEN = {
    "any number of rows and columns": [(name, None, "turned") for name in ("log Z, mean", "log Z, batch")]
    + [
        (name, None, "turned")
        for name in ("effective_tasks", "sample_rows", "spread", "centered_scores", "bootstrap_interval")
    ],
    "axes before the last one broadcast": [(name, None, "axis") for name in ("log_prior", "log_prior, finite")],
    "as many numbers as there are actions": [("add", "actions", kind) for kind in ("axis", "turned")],
    "NaN is not among the tasks": [(name, None, "NaN") for name in ("log_prior", "log_prior, finite")],
    "estimators of a batch do not look at tasks": [
        (name, "tasks", "NaN") for name in RIGHT if name.startswith("TaskInference") and "running" not in name
    ],
    "NaN says that there is none": [
        (name, None, "NaN")
        for name in ("effective_tasks", "label_divergence", "spread", "centered_scores", "bootstrap_interval")
    ]
    + [("predict", None, "NaN")],
    "cloning finds it": [
        ("TrajectoryDataset", argument, "NaN") for argument in ("observations", "actions", "features", "tasks")
    ],
    "what is not 0 is an end": [("add", "dones", "NaN")],
    "stable-baselines3 takes it": [("predict", None, "gradient")],
    "no tasks have no numbers": [(name, None, "empty") for name in ("effective_tasks", "spread", "centered_scores")],
}
ALL_TAKEN = {case for taken in TAKEN.values() for case in taken}


@pytest.mark.parametrize(("name", "argument", "kind"), cases(WRONG))
def test_what_is_no_such_array_is_refused_with_what_it_should_be(name: str, argument: str, kind: str) -> None:
    if {(name, argument, kind), (name, None, kind)} & ALL_TAKEN:
        call(name, argument, kind)
        return
    # torch says itself what to do with a gradient.
    with pytest.raises((TypeError, ValueError, RuntimeError)[: 3 if kind == "gradient" else 2]) as error:
        call(name, argument, kind)
    assert len(str(error.value)) > 50


# -- families ---------------------------------------------------------------------------------------------------------


class NoConstructor(GoalReaching):
    """Forgets its base."""

    def __init__(self) -> None:
        self.radius = 0.1
        self.terminate = True
        self.position = np.array([0])


class OwnAttributes(NoConstructor):
    """Sets by hand what it knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.task_space, self.feature_dim = GOALS.task_space, 1


USES: dict[str, Callable[[Any], Any]] = {
    "MultiTaskWrapper": lambda family: MultiTaskWrapper(LineWalk(), family),
    "HIPIReplayBuffer": lambda family: HIPIReplayBuffer(10, DICT_SPACE, ACTIONS, family=family),
    "TrajectoryDataset": lambda family: TrajectoryDataset(family, SPACE, ACTIONS, *[np.zeros((1, 1))] * 3, [1]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("kind", "missing"),
    [(NoConstructor, "task_space, prior_space, feature_dim, tasks"), (OwnAttributes, "prior_space, tasks")],
)
def test_a_family_that_forgets_the_constructor_of_its_base_is_told_so(use: str, kind: type[TaskFamily], missing: str) -> None:
    message = rf"{kind.__name__} has no {missing}: its __init__ does not call .* super\(\).__init__\(task_space, feature_dim\)"
    with pytest.raises(TypeError, match=message):
        USES[use](kind())
    assert any(missing in problem for problem in check_family(kind(), LineWalk()))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("family", ["goals", GoalReaching, None, SPACE])
def test_what_is_no_family_is_named(use: str, family: Any) -> None:
    if family is None and use == "HIPIReplayBuffer":  # which finds it in the environment
        return
    with pytest.raises(TypeError, match=f"{use}: family must be a TaskFamily, not {type(family).__name__}"):
        USES[use](family)
    assert "must be a TaskFamily" in check_family(family, LineWalk())[0]
