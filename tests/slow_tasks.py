"""An environment for tests of the launcher, imported by it with --gym-packages: a walk on a line, as slow as it is told."""

import os
import time

import gymnasium as gym
from line_walk import GOALS, LineWalk

from hipi_sb3 import MultiTaskWrapper


class SlowWalk(gym.Wrapper):
    """Sleeps STEP_SECONDS in every step, so that a test can kill a run while it is running."""

    def step(self, action):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return super().step(action)


def make_slow_walk(flatten=False):
    return MultiTaskWrapper(gym.wrappers.TimeLimit(SlowWalk(LineWalk()), 8), GOALS, flatten=flatten)


gym.register("SlowWalk-v0", make_slow_walk, disable_env_checker=True)
