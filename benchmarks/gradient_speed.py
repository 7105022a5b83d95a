"""Gradient steps a second of HIPISAC and of SAC with HIPIReplayBuffer, against stable-baselines3's SAC and SAC with HER.

    OMP_NUM_THREADS=1 python benchmarks/gradient_speed.py --json benchmarks/results/gradient_speed.json

Batch 256, nets of 256 x 256, half of the rows relabeled. Once with 21 inputs and 6 actions, as a half cheetah with tasks has
them, and once on FetchReach's spaces, because HerReplayBuffer needs goals (it relabels 80 % there, as is its default).

    python benchmarks/gradient_speed.py --device cuda --batch-size 4096

is the same on a GPU, with the update recorded as a CUDA graph besides.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.core_speed import (
    ACTION_DIM,
    EPISODE_LENGTH,
    FETCH_GOALS,
    GOAL_DIM,
    OBSERVATION_DIM,
    unbounded,
)
from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import HIPISAC, GoalReaching, HIPIReplayBuffer, LayerNormReLU, MultiTaskWrapper

# The task-conditioned half cheetah: 17 observations, 1 task, and 3 more to make 21 inputs.
TASK_DIM, INPUTS, ACTIONS = 1, 21, 6
#: Gradient steps a turn: as often as a label is used, so that each turn pays for its labels.
STEPS_A_TURN = 16
NORMALISED_SAC = "sac, normalised layers"
GOALS = GoalReaching(low=[-3.0] * TASK_DIM, high=[3.0] * TASK_DIM, radius=0.3)


class Noise(gym.Env):
    """Random observations, of a half cheetah's size."""

    observation_space = unbounded(INPUTS - TASK_DIM, dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._obs(), 0.0, False, bool(self.np_random.random() < 0.01), {}

    def _obs(self) -> np.ndarray:
        return self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)


class NoiseWithGoals(gym.Env):
    """Random observations and goals, of FetchReach's sizes."""

    observation_space = spaces.Dict(
        observation=unbounded(OBSERVATION_DIM), achieved_goal=unbounded(GOAL_DIM), desired_goal=unbounded(GOAL_DIM)
    )
    action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.goal = 0, FETCH_GOALS.sample(self.np_random, 1)[0].astype(np.float64)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs = self._obs()
        reward = float(self.compute_reward(obs["achieved_goal"], self.goal, {}))
        return obs, reward, False, self.steps >= EPISODE_LENGTH, {}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
        return -(distance > FETCH_GOALS.radius).astype(np.float32)

    def _obs(self) -> dict[str, np.ndarray]:
        achieved = FETCH_GOALS.sample(self.np_random, 1)[0].astype(np.float64)
        observation = self.np_random.standard_normal(OBSERVATION_DIM)
        return {"observation": observation, "achieved_goal": achieved, "desired_goal": self.goal.copy()}


def learner(
    kind: str,
    n_transitions: int,
    env: gym.Env | None = None,
    width: int = 256,
    device: str = "cpu",
    activation_fn: type[th.nn.Module] = th.nn.ReLU,
    **options: Any,
) -> SAC:
    """
    Make a learner that has collected transitions and made no update.

    :param kind: ``"sac"``, ``"her"``, ``"sac_hipi"``, ``"hipisac"`` or ``"recorded"``, a hipisac with a CUDA graph
    :param n_transitions: number of transitions
    :param env: environment, noise of the half cheetah's sizes if None
    :param width: width of the two hidden layers
    :param device: device of the networks
    :param activation_fn: what follows the hidden layers
    :param options: of the HIPIReplayBuffer
    :return: the learner
    """
    env = MultiTaskWrapper(Noise(), GOALS) if env is None else env
    buffer = {"sac": DictReplayBuffer, "her": HerReplayBuffer}.get(kind, HIPIReplayBuffer)
    algorithm = HIPISAC if kind in ("hipisac", "recorded") else SAC
    kwargs: dict[str, Any] = {"replay_buffer_class": buffer, "replay_buffer_kwargs": options, "device": device, "seed": 0}
    # Far from full in all benchmarks; core_speed.py has what a larger one costs.
    kwargs["buffer_size"] = min(100_000, 50 * n_transitions)
    kwargs["policy_kwargs"] = {"net_arch": [width, width], "activation_fn": activation_fn}
    model = algorithm("MultiInputPolicy", env, learning_starts=n_transitions, **kwargs)
    if isinstance(model, HIPISAC):
        model.cuda_graph = kind == "recorded"
    return model.learn(n_transitions, log_interval=None)


def measure(turns: int, n_transitions: int, batch_size: int, width: int, device: str) -> dict[str, Any]:
    """Gradient steps a second, on the half cheetah's sizes and on FetchReach's."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "sac": ("sac", {}),
        "sac_hipi, no relabeling": ("sac_hipi", {"strategy": "none"}),
        "sac_hipi, future": ("sac_hipi", {"strategy": "future"}),
        "sac_hipi, the defaults": ("sac_hipi", {}),
        "hipisac, no relabeling": ("hipisac", {"strategy": "none"}),
        "hipisac, the defaults": ("hipisac", {}),
        NORMALISED_SAC: ("sac", {"activation_fn": LayerNormReLU}),
        "hipisac, normalised layers": ("hipisac", {"activation_fn": LayerNormReLU}),
        "hipisac, 64": ("hipisac", {"n_candidate_tasks": 64}),
        "hipisac, 256": ("hipisac", {"n_candidate_tasks": 256}),
        "hipisac, labels used once": ("hipisac", {"label_reuse": 1}),
    }
    recorded = ["hipisac, the defaults, CUDA graph"] if device.startswith("cuda") else []
    kinds |= dict.fromkeys(recorded, ("recorded", {}))
    print(
        f"\ngradient steps a second on {device}: batch {batch_size}, nets {width} x {width}; candidates as given, "
        "relabel_prob 0.5"
    )
    cheetah = {name: learner(kind, n_transitions, None, width, device, **options) for name, (kind, options) in kinds.items()}
    print(f"{INPUTS} inputs, {ACTIONS} actions")
    result = {"half_cheetah_sizes": rates(cheetah, turns, batch_size)}
    kinds["her"] = ("her", {})
    fetch_kinds = ["sac", "her", "sac_hipi, the defaults", "hipisac, the defaults"]
    fetch_kinds += [NORMALISED_SAC, "hipisac, normalised layers", "hipisac, 64", "hipisac, 256", *recorded]
    fetch = {
        name: learner(kinds[name][0], n_transitions, NoiseWithGoals(), width, device, **kinds[name][1]) for name in fetch_kinds
    }
    print("FetchReach's spaces")
    return {**result, "fetch_reach_sizes": rates(fetch, turns, batch_size)}


def rates(models: dict[str, SAC], turns: int, batch_size: int) -> dict[str, Any]:
    """Steps a second of each, and as a ratio to the first; of normalised layers also to SAC with them."""
    n_steps = STEPS_A_TURN if turns > 2 else 1

    def steps(model: SAC) -> Callable[[], None]:
        def function() -> None:
            for _ in range(n_steps):
                model.train(1, batch_size=batch_size)
            if model.device.type == "cuda":
                th.cuda.synchronize(model.device)

        return function

    functions = {name: steps(model) for name, model in models.items()}
    times = {name: seconds / n_steps for name, seconds in take_turns(functions, turns, calls=1).items()}
    first = next(iter(times))
    result: dict[str, Any] = {}
    for name, seconds in times.items():
        result[name] = {"steps_per_second": interval_of_median(1 / seconds)}
        show(f"  {name}", result[name]["steps_per_second"], unit=" /s")
        for base in (first, NORMALISED_SAC) if name == "hipisac, normalised layers" else (first,):
            result[name][f"over_{base}"] = ratio(times[base], seconds)
            if name != base:
                show(f"    over {base}", result[name][f"over_{base}"])
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=15, help=f"turns of {STEPS_A_TURN} gradient steps")
    options.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=256, help="transitions an update (default: %(default)s)")
    args = options.parse_args()
    sizes = (2, 100, 4, 8) if args.quick else (args.turns, 2000, args.batch_size, 256)
    run("gradient_speed.py", args, lambda: {"turns": sizes[0], "device": args.device, **measure(*sizes, args.device)})


if __name__ == "__main__":
    main()
