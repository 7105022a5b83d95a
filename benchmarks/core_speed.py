"""Speed and memory of the replay buffer against those of stable-baselines3, as ratios measured in one process.

    OMP_NUM_THREADS=1 python benchmarks/core_speed.py --json benchmarks/results/core_speed.json

What is compared takes turns (A, B, C, A, B, C, ...), so that whatever else the machine does meets all of them alike. A ratio
is the median over the turns, with the 95 % bootstrap interval of that median.
"""

import argparse
import gc
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hipi_sb3 import HIPISAC, GoalReaching, HIPIReplayBuffer, MultiTaskWrapper  # noqa: E402

# The spaces of Gymnasium-Robotics' FetchReach-v4.
OBSERVATION_DIM, GOAL_DIM, ACTION_DIM = 10, 3, 4
EPISODE_LENGTH = 50
FETCH_GOALS = GoalReaching(low=[1.0, 0.4, 0.3], high=[1.6, 1.1, 0.9], radius=0.05, terminate=False)
FETCH_ACTIONS = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

# The task-conditioned half cheetah: 17 observations, 1 task, and 3 more to make 21 inputs.
TRAIN_TASK_DIM, TRAIN_INPUTS, TRAIN_ACTIONS = 1, 21, 6


def unbounded(*shape: int, dtype: Any = np.float64) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype)


# -- buffers full of FetchReach -------------------------------------------------------------------------------------


class ComputeReward:
    """What HerReplayBuffer asks of the environment, without an environment: the reward of FetchReach."""

    def env_method(self, name: str, achieved: np.ndarray, desired: np.ndarray, info: Any, indices: Any) -> list[np.ndarray]:
        distance = np.linalg.norm(achieved - desired, axis=-1)
        return [-(distance > FETCH_GOALS.radius).astype(np.float32)]


def fetch_arrays(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """n random transitions in episodes of 50 steps that only the time limit ends."""
    desired = FETCH_GOALS.sample(rng, -(-n // EPISODE_LENGTH)).repeat(EPISODE_LENGTH, axis=0)[:n]
    return {
        "observation": rng.standard_normal((n, OBSERVATION_DIM)),
        "next_observation": rng.standard_normal((n, OBSERVATION_DIM)),
        "desired": desired,
        "achieved": FETCH_GOALS.sample(rng, n),
        "next_achieved": FETCH_GOALS.sample(rng, n),
        "action": rng.uniform(-1, 1, (n, ACTION_DIM)).astype(np.float32),
        "done": np.arange(1, n + 1) % EPISODE_LENGTH == 0,
    }


def fill_sb3(buffer: Any, data: dict[str, np.ndarray], first: int) -> None:
    """Write the arrays of a buffer of stable-baselines3 directly (``add`` would take minutes), and ``add`` the last rows."""
    reward = FETCH_GOALS.reward(data["next_achieved"].astype(np.float32), data["desired"])
    for stored, prefix in ((buffer.observations, ""), (buffer.next_observations, "next_")):
        stored["observation"][:first, 0] = data[f"{prefix}observation"][:first]
        stored["achieved_goal"][:first, 0] = data[f"{prefix}achieved"][:first]
        stored["desired_goal"][:first, 0] = data["desired"][:first]
    buffer.actions[:first, 0] = data["action"][:first]
    buffer.rewards[:first, 0] = reward[:first]
    buffer.dones[:first, 0] = buffer.timeouts[:first, 0] = data["done"][:first]
    buffer.pos = first
    if isinstance(buffer, HerReplayBuffer):
        buffer.ep_start[:first, 0] = np.arange(first) // EPISODE_LENGTH * EPISODE_LENGTH
        buffer.ep_length[:first, 0] = EPISODE_LENGTH
        buffer._current_ep_start[:] = first
    for row in range(first, len(reward)):
        obs, next_obs = (
            {
                "observation": data[f"{prefix}observation"][row : row + 1],
                "achieved_goal": data[f"{prefix}achieved"][row : row + 1],
                "desired_goal": data["desired"][row : row + 1],
            }
            for prefix in ("", "next_")
        )
        done = data["done"][row : row + 1]
        infos = [{"TimeLimit.truncated": bool(done)}]
        buffer.add(obs, next_obs, data["action"][row : row + 1], reward[row : row + 1], done, infos)


def fill_hipi(buffer: HIPIReplayBuffer, data: dict[str, np.ndarray], first: int) -> None:
    """The same for ours."""
    features = data["next_achieved"].astype(np.float32)
    reward = FETCH_GOALS.reward(features, data["desired"])
    episodes, store = buffer.episodes, buffer.store
    n_episodes = first // EPISODE_LENGTH
    ends = np.arange(1, n_episodes + 1) * EPISODE_LENGTH - 1
    episodes.load_state_dict(
        episodes.state_dict()
        | {
            "slots": np.arange(first, dtype=np.int32)[:, None] // EPISODE_LENGTH,
            "last_row": ends.astype(np.int32),
            "n_before": ends - EPISODE_LENGTH + 1,
            "n_added": first,
        }
    )
    tasks = data["desired"][ends].astype(np.float32)
    store.set_arrays(
        {
            "rows": {"observation": data["observation"][:first, None].astype(np.float32)},
            "last": {"observation": data["next_observation"][ends].astype(np.float32)},
            "last_tasks": tasks,
            "tasks": tasks,
        }
    )
    buffer.actions[:first, 0] = data["action"][:first]
    buffer.rewards[:first, 0] = reward[:first]
    buffer.dones[:first, 0] = buffer.timeouts[:first, 0] = data["done"][:first]
    buffer._features[:first, 0] = features[:first]
    buffer.pos = first
    add_rows_ours(buffer, data, reward, features, first, len(reward))


def add_rows_ours(
    buffer: HIPIReplayBuffer, data: dict[str, np.ndarray], reward: np.ndarray, features: np.ndarray, begin: int, end: int
) -> None:
    """``add`` some of the rows."""
    for row in range(begin, end):
        # The next observation is the following row's observation within the episode, as in an environment.
        inner = data["next_observation"][row : row + 1] if data["done"][row] else data["observation"][row + 1 : row + 2]
        task, done = data["desired"][row : row + 1], data["done"][row : row + 1]
        infos = [{"TimeLimit.truncated": bool(done), "task_features": features[row], "env_terminated": False}]
        obs = {"observation": data["observation"][row : row + 1], "task": task}
        buffer.add(
            obs, {"observation": inner, "task": task}, data["action"][row : row + 1], reward[row : row + 1], done, infos
        )


def full_buffers(n: int) -> dict[str, ReplayBuffer]:
    """HerReplayBuffer, DictReplayBuffer and ours with the same n transitions."""
    goal_space = spaces.Dict(
        observation=unbounded(OBSERVATION_DIM), achieved_goal=unbounded(GOAL_DIM), desired_goal=unbounded(GOAL_DIM)
    )
    task_space = spaces.Dict(observation=unbounded(OBSERVATION_DIM), task=FETCH_GOALS.task_space)
    env: Any = ComputeReward()
    her = HerReplayBuffer(n, goal_space, FETCH_ACTIONS, env, device="cpu")  # "future", 80 % virtual
    plain = DictReplayBuffer(n, goal_space, FETCH_ACTIONS, device="cpu")
    ours = HIPIReplayBuffer(
        n, task_space, FETCH_ACTIONS, device="cpu", family=FETCH_GOALS, strategy="future", relabel_prob=0.8
    )
    data = fetch_arrays(n, np.random.default_rng(0))
    first = n - 2 * EPISODE_LENGTH
    fill_sb3(her, data, first)
    fill_sb3(plain, data, first)
    fill_hipi(ours, data, first)
    assert her.full and plain.full and ours.full and (her.ep_length > 0).all()
    assert np.array_equal(her.ep_start + her.ep_length - 1, ours.episodes.end)
    return {"her": her, "dict": plain, "hipi_future": ours}


def bytes_per_transition(buffer: ReplayBuffer) -> float:
    """All arrays of a buffer, and the dict that HerReplayBuffer holds in every slot."""
    if isinstance(buffer, HIPIReplayBuffer):
        return buffer.nbytes / buffer.buffer_size / buffer.n_envs
    total = 0
    for value in vars(buffer).values():
        for array in value.values() if isinstance(value, dict) else [value]:
            if isinstance(array, np.ndarray) and len(array) == buffer.buffer_size:
                total += array.nbytes
                if array.dtype == object:
                    total += sum(sys.getsizeof(item) for item in array[:1000].flat) * len(array) // 1000
    return total / buffer.buffer_size / buffer.n_envs


# -- learners -------------------------------------------------------------------------------------------------------


class Noise(gym.Env):
    """Random observations, of a half cheetah's size."""

    observation_space = unbounded(TRAIN_INPUTS - TRAIN_TASK_DIM, dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (TRAIN_ACTIONS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._obs(), 0.0, False, bool(self.np_random.random() < 0.01), {}

    def _obs(self) -> np.ndarray:
        return self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)


def learners(n_transitions: int) -> dict[str, SAC]:
    """Plain SAC and SAC with our buffer, nets of 256 x 256, with some transitions collected."""
    goals = GoalReaching(low=[-3.0] * TRAIN_TASK_DIM, high=[3.0] * TRAIN_TASK_DIM, radius=0.3)
    options = {"n_candidate_tasks": 32, "relabel_prob": 0.5}
    kinds: dict[str, dict[str, Any]] = {
        "sac": {"replay_buffer_class": DictReplayBuffer},
        "hipi_none": {"replay_buffer_kwargs": {"strategy": "none"}},
        "hipi_future": {"replay_buffer_kwargs": {"strategy": "future", **options}},
        "hipi_q": {"replay_buffer_kwargs": {"score": "q", **options}},
        "hipi": {"replay_buffer_kwargs": options},
        "hipisac": {"replay_buffer_kwargs": options},
    }
    models = {}
    for name, kind in kinds.items():
        kwargs = {"replay_buffer_class": HIPIReplayBuffer, **kind}
        algorithm = HIPISAC if name == "hipisac" else SAC
        model = algorithm(
            "MultiInputPolicy", MultiTaskWrapper(Noise(), goals), learning_starts=n_transitions, seed=0, device="cpu", **kwargs
        )
        model.learn(n_transitions, log_interval=None)  # collects only
        models[name] = model
    return models


# -- measuring ------------------------------------------------------------------------------------------------------


def take_turns(functions: dict[str, Callable[[], Any]], turns: int, calls: int) -> dict[str, np.ndarray]:
    """
    Time of a call, measured in turns.

    :param functions: what to measure
    :param turns: turns of each
    :param calls: calls a turn
    :return: seconds a call, (turns,) each
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    gc.disable()
    for _ in range(turns):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter() - start) / calls)
    gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def interval_of_median(values: np.ndarray) -> dict[str, float]:
    """Median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Ratio of two measurements, turn by turn."""
    return interval_of_median(numerator / denominator)


def machine() -> dict[str, Any]:
    """Where this ran."""
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "threads": th.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": th.__version__,
        "numpy": np.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }


def commit() -> str:
    """Commit of the code that was measured, with ``+changes`` if it was changed since."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "none") + ("+changes" if git("status", "--porcelain") else "")


def show(label: str, value: dict[str, float], target: str, unit: str = "") -> None:
    interval = f"[{value['low']:.2f}, {value['high']:.2f}]"
    print(f"{label:<62}{value['median']:8.2f}{unit} {interval:<16} {target}")


def measure_sampling(n: int, turns: int) -> dict[str, Any]:
    """``sample(256)`` from full buffers, and their memory."""
    buffers = full_buffers(n)
    np.random.seed(0)
    times = take_turns({name: (lambda b=buffer: b.sample(256)) for name, buffer in buffers.items()}, turns, calls=20)
    print(f"\nsample(256) from {n:,} transitions on FetchReach's spaces, 80 % relabeled")
    for name, seconds in times.items():
        show(f"  {name}", interval_of_median(1e3 * seconds), "", " ms")
    memory = {name: bytes_per_transition(buffer) for name, buffer in buffers.items()}
    result = {
        "sample_ms": {name: interval_of_median(1e3 * seconds) for name, seconds in times.items()},
        "her_over_hipi": ratio(times["her"], times["hipi_future"]),
        "dict_over_hipi": ratio(times["dict"], times["hipi_future"]),
        "bytes_per_transition": memory,
        "memory_hipi_over_her": memory["hipi_future"] / memory["her"],
    }
    show("  HerReplayBuffer's time / ours", result["her_over_hipi"], "at least 4")
    show("  DictReplayBuffer's time / ours", result["dict_over_hipi"], "")
    shares = {key: round(value) for key, value in memory.items()}
    print(f"memory, bytes a transition: {shares}; ours / HER's {result['memory_hipi_over_her']:.2f} (at most 0.6)")
    return result


def measure_training(turns: int) -> dict[str, Any]:
    """Gradient steps a second."""
    models = learners(2000)
    times = take_turns({name: (lambda m=model: m.train(1, batch_size=256)) for name, model in models.items()}, turns, calls=5)
    print("\ngradient steps a second: batch 256, nets 256 x 256, 21 inputs, 6 actions; 32 candidates, relabel_prob 0.5")
    for name, seconds in times.items():
        show(f"  {name}", interval_of_median(1 / seconds), "", " /s")
    ratios = {name: ratio(times["sac"], seconds) for name, seconds in times.items() if name != "sac"}
    for name, value in ratios.items():
        show(f"  {name} / plain SAC", value, "at least 0.35" if name in ("hipi", "hipisac") else "")
    return {
        "steps_per_second": {name: interval_of_median(1 / seconds) for name, seconds in times.items()},
        "relative_to_sac": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000, help="size of the buffers that are sampled")
    parser.add_argument("--turns", type=int, default=40, help="turns that each candidate gets")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    args = parser.parse_args()
    th.set_num_threads(1)
    started = time.perf_counter()
    here = machine()
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    result = {
        "command": " ".join(["python", "benchmarks/core_speed.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": here,
        "transitions": args.transitions,
        "turns": args.turns,
        "sampling": measure_sampling(args.transitions, args.turns),
        "training": measure_training(args.turns),
    }
    result["seconds"] = round(time.perf_counter() - started)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
