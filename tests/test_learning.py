"""Learning, with a control that must fail. Each test trains for minutes: ``make test-expensive``."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC

from hipi_sb3 import HIPISAC, MultiTaskWrapper, TaskFamily
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks

pytestmark = pytest.mark.expensive

#: As in hyperparams/hipi_sac.yml for PointFixedGoals-v0.
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gamma": 0.98,
    "policy_kwargs": {"net_arch": [128, 128]},
    "seed": 0,
}


def success(env_id: str, n_steps: int, algorithm: type[SAC] = HIPISAC, **options: Any) -> float:
    """Greedy success over fixed tasks after training."""
    env = gym.make(env_id)
    model = algorithm("MultiInputPolicy", env, replay_buffer_kwargs=options, **SETTINGS).learn(n_steps, log_interval=10**6)
    tasks = evaluation_tasks(env.get_wrapper_attr("task_family"), 50, seed=0)
    evaluation = evaluate_tasks(model, gym.make(env_id), tasks)
    assert evaluation.successes is not None
    return float(np.mean(evaluation.successes))


def test_hipi_learns_the_four_rooms_where_no_relabeling_does_not() -> None:
    # Five seeds of the benchmark: HIPI 0.5 to 0.8, HER 0.4 to 0.7, none 0.0 (benchmarks/results/point.json).
    assert success("PointFourRooms-v0", 15_000, strategy="none") <= 0.1
    assert success("PointFourRooms-v0", 15_000) >= 0.35


def test_hipi_learns_fixed_goals_that_her_cannot_relabel() -> None:
    relabeled = success("PointFixedGoals-v0", 6000)
    control = success("PointFixedGoals-v0", 6000, strategy="none")
    assert relabeled >= control + 0.2, (relabeled, control)


class Rescaled(TaskFamily):
    """Another family's tasks, with all rewards multiplied by a number."""

    def __init__(self, family: TaskFamily, scale: float) -> None:
        super().__init__(family.task_space, family.feature_dim, tasks=family.tasks, prior_space=family.prior_space)
        self.family, self.scale = family, scale

    @property
    def tasks_end(self) -> bool:
        return self.family.tasks_end

    @property
    def reaches_goals(self) -> bool:
        return self.family.reaches_goals

    def features(self, *step: Any) -> np.ndarray:
        return self.family.features(*step)

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.float32(self.scale) * self.family.reward(features, tasks)

    def terminated(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.family.terminated(features, tasks)

    def achieved(self, features: np.ndarray) -> np.ndarray:
        return self.family.achieved(features)

    def success(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray | None:
        return self.family.success(features, tasks)


def rescaled(env_id: str, scale: float) -> gym.Env:
    """An environment of the package with rewards of another scale."""
    made = gym.make(env_id)
    inner: gym.Env = made
    while not isinstance(inner, MultiTaskWrapper):
        inner = inner.env  # type: ignore[attr-defined]
    env = MultiTaskWrapper(inner.env, Rescaled(inner.task_family, scale))
    assert made.spec is not None
    return gym.wrappers.TimeLimit(env, made.spec.max_episode_steps or 100)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    ("env_id", "n_steps", "lead"),
    [("PointFixedGoals-v0", 5000, 0.1), ("PointFourRooms-v0", 9000, 0.0), ("PointMassLinear-v0", 4000, -0.1)],
)
def test_the_scale_of_rewards_takes_nothing_from_hipis_lead_over_random_labels(
    env_id: str, n_steps: int, lead: float, scale: float
) -> None:
    """By defaults alone, three seeds: success, or for linear rewards the return as a share of what random labels have."""
    means = {}
    for strategy in ("hipi", "random"):
        values = []
        for seed in range(3):
            model = HIPISAC(
                "MultiInputPolicy",
                rescaled(env_id, scale),
                replay_buffer_kwargs={"strategy": strategy},
                # The entropy bonus is a reward too: SAC itself learns rewards of another scale only beside one of that scale.
                ent_coef=f"auto_{0.1 * scale}",
                **{**SETTINGS, "seed": seed},
            ).learn(n_steps, log_interval=10**6)
            tasks = evaluation_tasks(gym.make(env_id).get_wrapper_attr("task_family"), 50, seed=0)
            evaluation = evaluate_tasks(model, gym.make(env_id), tasks)
            values.append(evaluation.mean_return if evaluation.successes is None else np.mean(evaluation.successes))
        means[strategy] = float(np.mean(values))
    in_units = abs(means["random"]) if env_id == "PointMassLinear-v0" else 1.0
    assert (means["hipi"] - means["random"]) / in_units >= lead, means
