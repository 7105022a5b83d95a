"""Families judge tensors as they judge arrays."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from line_walk import GOALS, LineWalk
from numpy.testing import assert_allclose, assert_array_equal

from hipi_sb3 import (
    HIPISAC,
    FiniteTasks,
    GoalMargin,
    GoalReaching,
    LinearReward,
    MultiTaskWrapper,
    TargetVelocity,
)
from hipi_sb3.relabel.rows import RelabelBatch
from hipi_sb3.relabel.tensor_forms import tensor_form
from hipi_sb3.relabel.windows import Windows

CPU = th.device("cpu")
FAMILIES = {
    "goals": GoalReaching([-1.0] * 3, [1.0] * 3, radius=0.8),
    "goals of two numbers that do not end": GoalReaching([-1.0] * 2, [1.0] * 2, radius=0.8, terminate=False),
    "goals with tolerances": GoalMargin([-1.0] * 3, [1.0] * 3, max_tolerance=2.0),
    "weights": LinearReward([-1.0] * 4, [1.0] * 4, np.ravel),
    "velocities": TargetVelocity(-1.0, 1.0),
    "some goals": FiniteTasks(GoalReaching([-1.0] * 2, [1.0] * 2, radius=0.8), [[0.1, 0.2], [-0.5, 0.5], [1.0, 1.0]]),
    "some velocities": FiniteTasks(TargetVelocity(-1.0, 1.0), [[0.5], [-0.5]]),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_form_for_tensors_gives_the_numbers_of_the_family(family, dtype):
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (50, 3, 1, family.feature_dim)).astype(dtype)
    for tasks in (family.sample(rng, 20), family.sample(rng, 50 * 20).reshape(50, 1, 20, -1)):
        rewards, terminated = tensor_form(family)(th.as_tensor(features), th.as_tensor(tasks))
        expected = family.reward(features, tasks)
        assert_allclose(rewards.numpy(), expected, rtol=1e-6, atol=1e-6)
        assert_array_equal(terminated.numpy(), family.terminated(features, tasks))
        assert rewards.shape == expected.shape == (50, 3, 20)
        assert family.tasks_end == bool(terminated.any()) and not terminated.all()


class TwiceTheReward(TargetVelocity):
    def reward(self, features, tasks):
        return 2 * super().reward(features, tasks)


def test_a_family_of_a_users_has_none_nor_have_its_tasks():
    family = TwiceTheReward(-1.0, 1.0)
    assert tensor_form(family) is None
    assert tensor_form(FiniteTasks(family, [[0.5]])) is None


def walked(device="cpu", **options):
    """A learner with a hundred steps and no update."""
    env = MultiTaskWrapper(gym.wrappers.TimeLimit(LineWalk(), 7), GOALS)
    options = {"replay_buffer_kwargs": {"warmup_updates": 0, **options}, "policy_kwargs": {"net_arch": [8]}}
    model = HIPISAC("MultiInputPolicy", env, learning_starts=100, buffer_size=200, seed=0, device=device, **options)
    return model.learn(100)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_windows_come_to_the_same(n_steps):
    buffer = walked().replay_buffer
    at = (np.arange(90), np.zeros(90, dtype=int))
    windows = Windows(buffer.experience, at, n_steps)
    rng = np.random.default_rng(1)
    for tasks in (GOALS.sample(rng, 30), GOALS.sample(rng, 90 * 30).reshape(90, 30, -1)):
        expected = windows.outcomes(*windows.judged(GOALS, tasks), 0.9)
        found = windows.outcomes(*windows.judged(GOALS, tasks, device=CPU), 0.9)
        assert isinstance(found.rewards, th.Tensor) and isinstance(expected.rewards, np.ndarray)
        assert_allclose(found.rewards.numpy(), expected.rewards, rtol=1e-6)
        assert_array_equal(found.terminated.numpy(), expected.terminated)
        assert_array_equal(np.asarray(found.length), expected.length)
    assert expected.terminated.any() and not expected.terminated.all()


@pytest.mark.parametrize("score", ["progress", "advantage", "reward"])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_labels_are_those_of_the_processor(score, n_steps, monkeypatch):
    def batches(model):
        return [model.replay_buffer.sample(64) for _ in range(5)]

    options = {"score": score, "n_steps": n_steps, "label_reuse": 1}
    expected = batches(walked(**options))
    judged = []

    def here(batch):
        judged.append(batch)
        return CPU

    monkeypatch.setattr(RelabelBatch, "_judging_device", property(here))
    for mine, other in zip(batches(walked(**options)), expected, strict=True):
        assert th.equal(mine.observations["task"], other.observations["task"])
        th.testing.assert_close(mine.rewards, other.rewards)
    assert judged


def test_windows_are_judged_on_the_gpu_where_the_model_is_on_one():
    model = walked("cuda", n_steps=4, score="reward")  # which draws nothing at random; without a GPU it is on the processor
    on_gpu = th.cuda.is_available()
    data = model.replay_buffer.sample(64)
    assert data.rewards.is_cuda is on_gpu and th.isfinite(data.rewards).all()
    batch = model.replay_buffer.preview(32)
    assert batch._judging_device == (model.device if on_gpu else None)
    tasks = GOALS.sample(np.random.default_rng(0), 20)
    there = batch.scores(tasks)
    batch.learner.model.policy.to("cpu")
    model.device = CPU
    assert batch._judging_device is None
    assert_allclose(there, batch.scores(tasks), rtol=1e-4, atol=1e-4)
