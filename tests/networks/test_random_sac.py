"""The faster update against SAC's over random networks, spaces, schedules, temperatures and batches."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.utils import LinearSchedule
from test_fast_sac import Noise, assert_same_parameters, box

from hipi_sb3.networks.fast_sac import FastSAC

N_CASES = 24


def random_space(rng: np.random.Generator) -> spaces.Space:
    match rng.integers(5):
        case 0:
            return spaces.Discrete(int(rng.integers(2, 6)))
        case 1:
            return spaces.MultiBinary(int(rng.integers(1, 5)))
        case 2:
            return spaces.MultiDiscrete(rng.integers(2, 4, size=rng.integers(1, 4)))
        case _:
            return random_box(rng)


def random_box(rng: np.random.Generator) -> spaces.Box:
    return box(*rng.integers(1, 4, size=rng.integers(1, 5)).tolist())


def random_case(seed: int) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Spaces, options, and what is added to the mean of the policy: of 30, actions are saturated."""
    rng = np.random.default_rng(seed)
    layers = [int(size) for size in rng.integers(1, 33, size=rng.integers(0, 4))]
    is_dict = rng.random() < 0.4
    of_spaces = {
        "observation_space": (
            spaces.Dict({f"part {i}": random_space(rng) for i in range(rng.integers(1, 4))}) if is_dict else random_space(rng)
        ),
        "action_space": random_box(rng),
    }
    options = {
        "policy": "MultiInputPolicy" if is_dict else "MlpPolicy",
        "learning_rate": rng.choice([1e-3, 3e-2]) if rng.random() < 0.5 else LinearSchedule(1e-2, 1e-4, 0.5),
        "batch_size": int(rng.choice([1, 2, 7, 64])),
        "gamma": float(rng.choice([0.0, 0.9, 1.0])),
        "tau": float(rng.choice([0.005, 0.5, 1.0])),
        "ent_coef": rng.choice(["auto", "auto_0.1", 0.0, 0.2, 10.0], p=[0.4, 0.2, 0.1, 0.2, 0.1]),
        "gradient_steps": int(rng.choice([1, 3])),
        "target_update_interval": int(rng.choice([1, 2])),
        "policy_kwargs": {
            "net_arch": layers if rng.random() < 0.5 else {"pi": layers, "qf": layers[::-1]},
            "activation_fn": th.nn.ReLU if rng.random() < 0.5 else th.nn.Tanh,
            "n_critics": int(rng.integers(1, 4)),
            # With a small epsilon Adam makes whole steps of a gradient that is nothing but rounding.
            "optimizer_kwargs": {"eps": 1e-3, "weight_decay": float(rng.choice([0.0, 0.01]))},
        },
    }
    if options["ent_coef"] not in ("auto", "auto_0.1"):
        options["ent_coef"] = float(options["ent_coef"])
    return of_spaces, options, float(rng.choice([0.0, 3.0, 30.0], p=[0.6, 0.2, 0.2]))


def trained(algorithm: Any, seed: int) -> Any:
    of_spaces, options, shift = random_case(seed)
    model = algorithm(env=Noise(**of_spaces), learning_starts=3, seed=seed, device="cpu", buffer_size=100, **options)
    with th.no_grad():
        model.actor.mu.bias.add_(shift)
    return model.learn(12)


def check(seed: int) -> bool:
    """Compare the two; whether all actions were saturated."""
    fast, slow = trained(FastSAC, seed), trained(SAC, seed)
    assert fast._is_fast
    for mine in fast.policy.parameters():
        assert th.isfinite(mine).all()
    assert_same_parameters(fast, slow, atol=2e-4)
    obs = slow.policy.obs_to_tensor(slow.observation_space.sample())[0]
    with th.no_grad():
        return bool((slow.actor(obs, deterministic=True).abs() == 1).all())


def test_random_cases_are_those_of_sac() -> None:
    saturated = sum(check(seed) for seed in range(N_CASES))
    assert 0 < saturated < N_CASES


@pytest.mark.expensive
@pytest.mark.parametrize("part", range(8))
def test_many_random_cases_are_those_of_sac(part: int) -> None:
    for seed in range(1000 + part, 2000, 8):
        check(seed)
