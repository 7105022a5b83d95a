"""Image observations: goals in a room that is seen from above as a small picture. Two minutes.

    python examples/image_observations.py
    python examples/image_observations.py --steps 20000

Nothing about relabeling changes: the family reads the position from the simulator, once, when the step happens; the buffer
keeps each picture once, in bytes; stable-baselines3 puts a CNN before the policy because the picture is a Box of bytes.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from hipi_sb3 import HIPISAC, GoalReaching, MultiTaskWrapper
from hipi_sb3.envs.point import PointEnv
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks

#: Pixels of a unit of length, and the picture's height and width.
SCALE, SIDE = 2, 36


class SeenFromAbove(gym.ObservationWrapper):
    """
    Shows walls and point as a picture of one channel instead of the coordinates.

    :param env: a :class:`~hipi_sb3.envs.point.PointEnv`
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        walls = np.kron(env.unwrapped.walls, np.ones((SCALE, SCALE)))[:SIDE, :SIDE]  # type: ignore[attr-defined]
        self.background = np.zeros((1, SIDE, SIDE), np.uint8)
        self.background[0, : walls.shape[0], : walls.shape[1]] = 100 * (walls > 0)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Draw the point, a square of three pixels."""
        picture = self.background.copy()
        row, column = np.minimum((observation * SCALE).astype(int), SIDE - 1)
        picture[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 255
        return picture


def position(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """Read the goal that this step reached: not from the picture, from the simulator."""
    return env.unwrapped.position  # type: ignore[attr-defined]


def make_env() -> gym.Env:
    """Make an open room that is seen from above; the goals are coordinates."""
    room = gym.wrappers.TimeLimit(PointEnv("open", start=(7.5, 7.5)), 30)
    return MultiTaskWrapper(SeenFromAbove(room), GoalReaching([0.5, 0.5], [14.5, 14.5], radius=1.5, position=position))


def train(n_steps: int, seed: int = 0) -> HIPISAC:
    """
    Train for a little.

    :param n_steps: environment steps
    :param seed: seed
    :return: the learner
    """
    policy_kwargs = {"net_arch": [64, 64], "features_extractor_kwargs": {"cnn_output_dim": 32}}
    model = HIPISAC(
        "MultiInputPolicy",
        make_env(),
        learning_rate=1e-3,
        buffer_size=20_000,
        learning_starts=500,
        batch_size=64,
        train_freq=2,
        policy_kwargs=policy_kwargs,
        seed=seed,
    )
    return model.learn(n_steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="environment steps (default: %(default)s)")
    learner = train(parser.parse_args().steps)
    env = learner.get_env()
    assert env is not None
    family = env.get_attr("task_family")[0]
    print(evaluate_tasks(learner, env, evaluation_tasks(family, 10)).table())
