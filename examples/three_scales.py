"""Three rewards of very different scale on one Hopper: what log Z and the temperature do, in half a minute.

    python examples/three_scales.py
    python examples/three_scales.py --steps 20000

A short training, and then the same batch of experience is asked once with each estimator of log Z: which share of it does each
task get? Without log Z it goes to the task with the large numbers, though nobody said that it matters most.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np

from hipi_sb3 import HIPISAC, DiscreteTasks, MultiTaskWrapper
from hipi_sb3.relabel.log_partition import make_log_partition
from hipi_sb3.relabel.posterior import TaskInference, effective_tasks

TASKS = ("run", "stand tall", "rest")


def features(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """Read what the rewards depend on: speed (m/s), height of the torso (m), and squared effort."""
    return np.array([info["x_velocity"], next_obs[0], np.sum(action**2)])


def run(phi: np.ndarray) -> np.ndarray:
    """Metres a second: some tenths."""
    return phi[..., 0]


def stand_tall(phi: np.ndarray) -> np.ndarray:
    """Height in centimetres, because somebody wrote it so: over a hundred."""
    return 100.0 * phi[..., 1]


def rest(phi: np.ndarray) -> np.ndarray:
    """Effort, cheap: some hundredths."""
    return -0.01 * phi[..., 2]


def train(n_steps: int, seed: int = 0) -> HIPISAC:
    """
    Train for a little.

    :param n_steps: environment steps
    :param seed: seed
    :return: the learner with its buffer
    """
    env = MultiTaskWrapper(gym.make("Hopper-v5"), DiscreteTasks([run, stand_tall, rest], features, feature_dim=3))
    # The Bellman target as the score, in which rewards keep their scale, and the paper's log Z; the default, the critic's
    # advantage, leaves less for log Z to do. The label of every row is inferred anew.
    options = {"score": "td", "log_partition": "batch", "temperature": 1.0, "label_reuse": 1}
    model = HIPISAC("MultiInputPolicy", env, batch_size=64, replay_buffer_kwargs=options, seed=seed)
    return model.learn(n_steps)


def shares(model: HIPISAC, log_partition: str, temperature: float | str, batch_size: int = 1024) -> tuple[np.ndarray, float]:
    """
    Ask for which task a batch of experience was right.

    :param model: the learner
    :param log_partition: estimator of log Z
    :param temperature: T
    :param batch_size: number of transitions
    :return: share of the labels that each task gets, (3,), and the mean number of effective tasks
    """
    rows = model.replay_buffer.preview(batch_size)  # type: ignore[union-attr]
    candidates = rows.candidate_tasks
    inference = TaskInference(make_log_partition(log_partition), temperature)
    found = inference(candidates.tasks, rows.scores(candidates.tasks), candidates.log_weights, alpha=rows.learner.alpha)
    return found.posterior.mean(axis=0), float(effective_tasks(found.posterior).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="environment steps (default: %(default)s)")
    learner = train(parser.parse_args().steps)
    print(f"{'log Z':<10}{'T':>8}" + "".join(f"{name:>12}" for name in TASKS) + f"{'effective tasks':>18}")
    for name in ("none", "mean", "batch", "sinkhorn"):
        for temperature in (1.0, 30.0, "ess:2"):
            share, effective = shares(learner, name, temperature)
            print(f"{name:<10}{temperature!s:>8}" + "".join(f"{value:>12.2f}" for value in share) + f"{effective:>18.2f}")
