"""Speed and memory of the replay buffer against those of stable-baselines3, as ratios measured in one process.

    OMP_NUM_THREADS=1 python benchmarks/core_speed.py --json benchmarks/results/core_speed.json

``sample(256)`` with HER's "future" and the bytes a transition, on FetchReach's spaces. See :mod:`benchmarks.measuring`.
"""

import pathlib
import sys
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import GoalReaching, HIPIReplayBuffer

# The spaces of Gymnasium-Robotics' FetchReach-v4.
OBSERVATION_DIM, GOAL_DIM, ACTION_DIM = 10, 3, 4
EPISODE_LENGTH = 50
FETCH_GOALS = GoalReaching(low=[1.0, 0.4, 0.3], high=[1.6, 1.1, 0.9], radius=0.05, terminate=False)
FETCH_ACTIONS = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


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
    experience = buffer.experience
    n_episodes = first // EPISODE_LENGTH
    ends = np.arange(1, n_episodes + 1) * EPISODE_LENGTH - 1
    tasks = data["desired"][ends].astype(np.float32)
    done = data["done"][:first, None]
    episodes = {
        "slots": np.arange(first, dtype=np.int32)[:, None] // EPISODE_LENGTH,
        "last_row": ends.astype(np.int32),
        "n_before": ends - EPISODE_LENGTH + 1,
        "n_added": first,
    }
    observations = {
        "rows": {"observation": data["observation"][:first, None].astype(np.float32)},
        "last": {"observation": data["next_observation"][ends].astype(np.float32)},
        "last_tasks": tasks,
        "tasks": tasks,
    }
    transitions = {
        "actions": data["action"][:first, None],
        "rewards": reward[:first, None],
        "dones": done,
        "timeouts": done,
        "features": features[:first, None],
    }
    state = experience.state_dict() | {"pos": first, "observations": observations}
    state["episodes"] |= episodes
    types = {name: array.dtype for name, array in state["transitions"].items()}
    state["transitions"] |= {name: array.astype(types[name]) for name, array in transitions.items()}
    state["transitions"]["env_terminated"] = np.zeros_like(done)
    experience.load_state_dict(state)
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
    show("  HerReplayBuffer's time / ours", result["her_over_hipi"], "at least 5")
    show("  DictReplayBuffer's time / ours", result["dict_over_hipi"], "")
    shares = {key: round(value) for key, value in memory.items()}
    print(f"memory, bytes a transition: {shares}; ours / HER's {result['memory_hipi_over_her']:.2f} (at most 0.5)")
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--transitions", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of the buffers")
    options.add_argument("--turns", type=int, default=40, help="turns that each candidate gets")
    args = options.parse_args()
    sizes, turns = ([1000], 2) if args.quick else (args.transitions, args.turns)
    run("core_speed.py", args, lambda: {"turns": turns, "sampling": {str(n): measure_sampling(n, turns) for n in sizes}})


if __name__ == "__main__":
    main()
