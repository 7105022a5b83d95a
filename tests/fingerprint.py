"""What a buffer samples, one number a transition: same seeds have to give the same samples whatever is rearranged inside.

``python tests/fingerprint.py`` prints the table that ``tests/recorded/samples.csv`` holds, to be replaced only by a commit
that means to change what is sampled and says so.
"""

import itertools
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from hipi_sb3 import HIPIReplayBuffer

STRATEGIES = ("none", "random", "final", "future", "hipi", "map", "max_reward", "advantage", "air")
GOALS = dict(
    candidates={"batch": 0.5, "achieved": 0.5}, score="td", log_partition="batch", temperature=1.0, n_candidate_tasks=32
)

#: Name of the case: environment, VecNormalize or not, options of the buffer.
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    f"{strategy} n_steps={n_steps} label_reuse={label_reuse}": (
        "PointFourRooms-v0",
        False,
        {**GOALS, "strategy": strategy, "n_steps": n_steps, "label_reuse": label_reuse},
    )
    for strategy, n_steps, label_reuse in itertools.product(STRATEGIES, (1, 3), (1, 16))
}
for n_steps in (1, 3):
    options = dict(strategy="hipi", score="td", temperature=1.0, n_candidate_tasks=32, n_steps=n_steps)
    CASES[f"VecNormalize n_steps={n_steps}"] = ("PointFourRooms-v0", True, {**GOALS, **options})
    CASES[f"finite n_steps={n_steps}"] = ("PointFixedGoals-v0", False, {**options, "log_partition": "running"})
    future = {"batch": 0.5, "future": 0.5}
    CASES[f"own future n_steps={n_steps}"] = (
        "PointFourRooms-v0",
        False,
        {**options, "log_partition": "running", "candidates": future, "temperature": "ess:8"},
    )


def fingerprint(env_id: str, normalize: bool, options: dict[str, Any], n_samples: int = 200) -> np.ndarray:
    """
    Fill a ring past its end with two environments, sample it, and make one number of each transition.

    :param env_id: id of the environment
    :param normalize: whether VecNormalize stands between
    :param options: options of the buffer
    :param n_samples: number of transitions
    :return: weighted sums of all that the samples hold, (n_samples,)
    """
    env: Any = DummyVecEnv([lambda: gym.make(env_id)] * 2)
    env = VecNormalize(env, norm_obs_keys=["observation"]) if normalize else env
    model = SAC(
        "MultiInputPolicy",
        env,
        seed=0,
        buffer_size=600,
        learning_starts=10_000,
        policy_kwargs=dict(net_arch=[16, 16]),
        replay_buffer_class=HIPIReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99, "relabel_prob": 0.5, "prior_share": 0.0, **options},
        device="cpu",
    )
    model.learn(800)
    assert model.replay_buffer is not None
    batches = [
        _one_number_each(model.replay_buffer.sample(50, env=model.get_vec_normalize_env())) for _ in range(n_samples // 50)
    ]
    return np.concatenate(batches)


def _one_number_each(batch: Any) -> np.ndarray:
    parts: list[th.Tensor] = []
    for field in batch:
        if field is not None:
            parts += field.values() if isinstance(field, dict) else [field]
    values = np.concatenate([part.double().numpy().reshape(len(part), -1) for part in parts], axis=1)
    # Weights that no two entries share: an exchanged pair of values shows.
    return values @ np.sqrt(np.arange(2, values.shape[1] + 2))


if __name__ == "__main__":
    for case, arguments in CASES.items():
        print(case, *(f"{value:.4f}" for value in fingerprint(*arguments)), sep=",", file=sys.stdout)
