"""Generated sequences of all that happens to a buffer, beside a list of what happened: every sampled row is looked up in it.

A sequence is made from its number alone: ``check_sequence(number)`` repeats it.
"""

import copy
import itertools
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from line_walk import DICT_SPACE, FLAT_SPACE, GOALS

from hipi_sb3 import GoalReaching, HIPIReplayBuffer, TrajectoryDataset
from hipi_sb3.experience.episodes import N_RECENT_EPISODES, EpisodeIndex
from hipi_sb3.experience.observations import ObservationStore
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.relabel.windows import Outcomes, Windows

RADIUS = 0.15
#: Positions and goals: exact in float32, and none as far from another as the radius.
GRID = np.arange(-8, 9, dtype=np.float32) / 8
ACTIONS = spaces.Box(-1e6, 1e6, (2, 1), np.float32)


class ReadFromObservation(GoalReaching):
    """As the tasks of a GoalEnv: what a reward depends on is a part of the next observation."""

    task_key = "desired_goal"
    features_key = "achieved_goal"


FAMILIES = {
    "Dict": (GOALS, DICT_SPACE),
    "flat": (GOALS, FLAT_SPACE),
    "goes on": (GoalReaching([-1.0], [1.0], RADIUS, terminate=False), DICT_SPACE),
    "GoalEnv": (
        ReadFromObservation([-1.0], [1.0], RADIUS),
        spaces.Dict(
            observation=spaces.Box(-np.inf, np.inf, (2,), np.float32),
            achieved_goal=spaces.Box(-1.0, 1.0, (1,), np.float32),
            desired_goal=GOALS.task_space,
        ),
    ),
}


class Halves:
    """Stands in for VecNormalize: exact, and not the identity."""

    def normalize_obs(self, obs: Any) -> Any:
        return {key: value / 2 for key, value in obs.items()} if isinstance(obs, dict) else obs / 2

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return reward / 4


# -- what happened ----------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One step of one environment. ``number`` is unique: it is the action, by which a sampled row is recognised."""

    number: int
    position: float
    next_position: float
    goal: float
    next_goal: float
    reward: float
    done: bool
    timeout: bool
    by_env: bool
    episode: int = -1

    def reached(self, goal: float) -> bool:
        return abs(self.next_position - goal) <= RADIUS


@dataclass
class Happened:
    """A list for each environment, of which the last ``size`` steps are still there."""

    size: int
    n_envs: int
    ends: bool
    time_limits: bool
    steps: list[list[Step]] = field(default_factory=list)
    #: Finished episodes in the order in which they ended: environment, number of its first step that is there, length.
    finished: list[tuple[int, int, int]] = field(default_factory=list)
    n_episodes: int = 0
    open: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.steps, self.finished, self.open = [[] for _ in range(self.n_envs)], [], [-1] * self.n_envs

    def finish(self, env: int) -> None:
        length = min(sum(step.episode == self.open[env] for step in self.steps[env]), self.size)
        self.finished.append((env, len(self.steps[env]) - length, length))
        self.open[env] = -1

    def add(self, new: list[Step]) -> None:
        for env, step in enumerate(new):  # what the last step did not lead to begins another episode
            last = self.steps[env][-1] if self.steps[env] else None
            if self.open[env] >= 0 and last is not None and (last.next_position, last.next_goal) != (step.position, step.goal):
                self.finish(env)
        for env, step in enumerate(new):
            if self.open[env] < 0:
                self.n_episodes += 1
                self.open[env] = self.n_episodes
            step.episode = self.open[env]
            self.steps[env].append(step)
        for env, step in enumerate(new):
            if step.done or step.goal != step.next_goal:
                self.finish(env)

    def stored(self, env: int) -> list[Step]:
        return self.steps[env][-self.size :]

    def rest(self, env: int, step: Step) -> list[Step]:
        """The step and those of its episode after it."""
        return [other for other in self.stored(env) if other.episode == step.episode and other.number >= step.number]

    def recent(self) -> list[tuple[int, int, int]]:
        oldest = len(self.steps[0]) - self.size
        return [(env, first, n) for env, first, n in self.finished[-N_RECENT_EPISODES:] if first >= oldest]

    def ends_at(self, step: Step, goal: float, is_new: bool) -> bool:
        if not is_new:
            return step.done and not step.timeout
        return step.by_env or (self.ends and step.reached(goal))

    def window(
        self, env: int, step: Step, goal: float, is_new: bool, n_steps: int, gamma: float
    ) -> tuple[float, bool, Step, float]:
        """Sum of discounted rewards, whether it ends there, the last step that counts, and the discount of what follows."""
        total, discount = 0.0, 1.0
        for other in self.rest(env, step)[:n_steps]:
            reward = (0.0 if other.reached(goal) else -1.0) if is_new else other.reward
            total, discount, last = total + discount * reward, discount * gamma, other
            if self.ends_at(other, goal, is_new):
                return total, True, last, discount
        return total, False, last, discount


# -- what is done -----------------------------------------------------------------------------------------------------


class Sequence:
    """A buffer and a list of what happened to it, side by side."""

    def __init__(self, number: int, folder: Path) -> None:
        self.rng = rng = np.random.default_rng(number)
        self.folder = folder
        self.name = str(rng.choice(list(FAMILIES)))
        self.family, self.space = FAMILIES[self.name]
        self.n_envs, self.size = int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 5, 8, 20]))
        self.n_steps, self.gamma = int(rng.choice([1, 1, 2, 3, 5])), float(rng.choice([0.5, 1.0]))
        self.strategy = str(rng.choice(["none", "random", "final", "future"]))
        self.relabel_prob = float(rng.choice([0.5, 1.0]))
        self.candidates = str(rng.choice(["batch", "achieved", "prior"]))
        time_limits = bool(rng.integers(4))
        self.p_end, self.p_break = float(rng.choice([0.0, 0.05, 0.3, 1.0])), float(rng.choice([0.0, 0.1]))
        self.p_task = 0.0 if self.name == "GoalEnv" else float(rng.choice([0.0, 0.1]))
        self.options = {
            "strategy": self.strategy,
            "relabel_prob": self.relabel_prob,
            "candidates": self.candidates,
            "n_candidate_tasks": 4,
            "n_steps": self.n_steps,
            "gamma": self.gamma,
            "handle_timeout_termination": time_limits,
        }
        self.buffer = HIPIReplayBuffer(
            self.size * self.n_envs, self.space, ACTIONS, "cpu", n_envs=self.n_envs, family=self.family, **self.options
        )
        self.happened = Happened(self.size, self.n_envs, self.name != "goes on", time_limits)
        self.positions, self.goals = self._draw(), self._draw()
        self.n_added, self.seen = 0, Counter[str]()

    def _draw(self) -> np.ndarray:
        return self.rng.choice(GRID, self.n_envs)

    def _observations(self, positions: np.ndarray, goals: np.ndarray) -> Any:
        inner = np.stack([positions, np.arange(self.n_envs)], axis=1).astype(np.float32)
        if self.name == "flat":
            return np.concatenate([inner, goals[:, None]], axis=1)
        if self.name == "GoalEnv":
            return {"observation": inner, "achieved_goal": positions[:, None], "desired_goal": goals[:, None]}
        return {"observation": inner, "task": goals[:, None]}

    def step(self) -> None:
        rng, n = self.rng, self.n_envs
        next_positions = self._draw()
        next_goals = np.where(rng.random(n) < self.p_task, self._draw(), self.goals)
        reached = np.abs(next_positions - self.goals) <= RADIUS
        by_task = reached & self.happened.ends
        by_env = rng.random(n) < self.p_end / 2
        says_so = by_env & (rng.random(n) < 0.5)  # or it is found out, because nothing else explains the end
        limit = rng.random(n) < self.p_end
        done = by_task | by_env | limit
        truncated = limit & ~by_task & ~by_env
        timeout = truncated & self.happened.time_limits
        infos = []
        for env in range(n):
            info = {"TimeLimit.truncated": bool(truncated[env]), "env_terminated": bool(says_so[env])}
            infos.append(info if self.name == "GoalEnv" else {**info, "task_features": next_positions[env : env + 1].copy()})
        numbers = self.n_added * n + np.arange(n)
        actions = np.stack([numbers, -numbers], axis=1).astype(np.float32).reshape(n, 2, 1)
        rewards = np.where(reached, 0.0, -1.0).astype(np.float32)
        self.buffer.add(
            self._observations(self.positions, self.goals),
            self._observations(next_positions, next_goals),
            actions,
            rewards,
            done,
            infos,
        )
        # What nobody else explains is the environment's; of a step that reached its task nobody knows, unless it says so.
        ended_by_env = says_so | (done & ~timeout & ~by_task)
        self.happened.add(
            [
                Step(*row)  # type: ignore[arg-type]
                for row in zip(
                    numbers.tolist(),
                    self.positions.tolist(),
                    next_positions.tolist(),
                    self.goals.tolist(),
                    next_goals.tolist(),
                    rewards.tolist(),
                    done.tolist(),
                    timeout.tolist(),
                    ended_by_env.tolist(),
                    strict=True,
                )
            ]
        )
        self.n_added += 1
        self.seen.update(by_task=int(by_task.sum()), by_env=int(by_env.sum()), by_limit=int(timeout.sum()))
        breaks = done | (rng.random(n) < self.p_break)
        self.positions = np.where(breaks, self._draw(), next_positions)
        self.goals = np.where(breaks, self._draw(), next_goals)

    def pickle(self) -> None:
        self.buffer = pickle.loads(pickle.dumps(self.buffer))

    def deepcopy(self) -> None:
        original, self.buffer = self.buffer, copy.deepcopy(self.buffer)
        original.reset()  # which the copy must not feel

    def save(self, mmap: bool = False) -> None:
        self.buffer.save(self.folder)
        self.buffer = HIPIReplayBuffer.load(self.folder, mmap=mmap, family=self.family, device="cpu")

    def mmap(self) -> None:
        self.save(mmap=True)

    def reset(self) -> None:
        self.buffer.reset()
        self.happened.forget()

    # -- what is checked

    def check_rows(self) -> None:
        """A sample: each row is found in the list, and says what the list says."""
        if self.buffer.size() == 0:
            with pytest.raises(RuntimeError, match="empty"):
                self.buffer.sample(2)
            return
        halves = self.rng.random() < 0.2
        sample = self.buffer.sample(8, env=Halves() if halves else None)  # type: ignore[arg-type]
        obs_scale, reward_scale = (2, 4) if halves else (1, 1)
        inner, goals = self._split(sample.observations)
        next_inner, next_goals = self._split(sample.next_observations)
        discounts = [[self.gamma]] * 8 if sample.discounts is None else sample.discounts.tolist()
        for row in range(8):
            number, other = (int(value) for value in sample.actions[row])
            assert number == -other
            env, time = number % self.n_envs, number // self.n_envs
            stored = self.happened.stored(env)
            step = stored[time - stored[0].number // self.n_envs]
            assert step.number == number, "an action that was overwritten, or never stored"
            before, after = obs_scale * inner[row], obs_scale * next_inner[row]
            goal, next_goal = float(obs_scale * goals[row]), float(obs_scale * next_goals[row])
            assert before.tolist() == [step.position, env] and after[1] == env
            found = (
                reward_scale * sample.rewards[row].item(),
                bool(sample.dones[row]),
                after[0],
                next_goal,
                discounts[row][0],
            )
            expected = [self._expected(env, step, goal, is_new) for is_new in self._may_be_new(env, step, goal)]
            assert found in expected, (step, goal, found, expected)
            self.seen["rows"] += 1
            self.seen["relabeled"] += goal != step.goal

    def _split(self, obs: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.name == "flat":
            return obs[:, :2].numpy(), obs[:, 2].numpy()
        return obs["observation"].numpy(), obs[self.family.task_key][:, 0].numpy()

    def _may_be_new(self, env: int, step: Step, goal: float) -> Iterable[bool]:
        """Whether this may be the goal of a row that was relabeled, and of one that was not."""
        if self.strategy == "none" or self.relabel_prob < 1:
            if goal == step.goal:
                yield False
        rest = self.happened.rest(env, step)
        goals = {
            "none": [],
            "final": [rest[-1].next_position],
            "future": [other.next_position for other in rest],
        }.get(self.strategy)
        if goals is None:
            everything = [other for e in range(self.n_envs) for other in self.happened.stored(e)]
            goals = {
                "batch": [other.goal for other in everything],
                "achieved": [other.next_position for other in everything],
                "prior": [goal] if abs(goal) <= 1 else [],
            }[self.candidates]
        if goal in goals:
            yield True

    def _expected(self, env: int, step: Step, goal: float, is_new: bool) -> tuple[float, bool, float, float, float]:
        reward, ends, last, discount = self.happened.window(env, step, goal, is_new, self.n_steps, self.gamma)
        return reward, ends, last.next_position, goal if is_new else last.next_goal, discount

    def check_arrays(self) -> None:
        """Everything that is stored, row by row."""
        buffer, n = self.buffer, len(self.happened.steps[0])
        assert (buffer.size(), buffer.pos, buffer.full) == (min(n, self.size), n % self.size, n >= self.size)
        if buffer.size() == 0:
            return
        rows = np.arange(max(0, n - self.size), n) % self.size
        actions, features, ends = buffer.actions, buffer.features, buffer.episodes.end
        for env in range(self.n_envs):
            stored = self.happened.stored(env)
            at = (rows, np.full(len(rows), env))
            before, ahead = buffer.episodes.bounds(at)
            same = [[other.episode == step.episode for other in stored] for step in stored]
            assert before.tolist() == [sum(row[:i]) for i, row in enumerate(same)]
            assert ahead.tolist() == [sum(row[i + 1 :]) for i, row in enumerate(same)]
            assert actions[rows, env, 0].tolist() == [step.number for step in stored]
            assert features[rows, env, 0].tolist() == [step.next_position for step in stored]
            for name, attribute in (
                ("rewards", "reward"),
                ("dones", "done"),
                ("timeouts", "timeout"),
                ("env_terminated", "by_env"),
            ):
                assert getattr(buffer, name)[rows, env].tolist() == [getattr(step, attribute) for step in stored]
            is_open = [step.episode == self.happened.open[env] for step in stored]
            assert (ends[rows, env] == -1).tolist() == is_open
        found = zip(*(part.tolist() for part in buffer.episodes.recent()), strict=True)
        assert list(found) == [(first % self.size, env, length) for env, first, length in self.happened.recent()]

    def check_trajectories(self) -> None:
        """The data set that cloning learns from: episodes of which the first step is there."""
        if self.buffer.size() == 0:
            return
        dataset = TrajectoryDataset.from_buffer(self.buffer)
        episodes = [
            list(steps)
            for env in range(self.n_envs)
            for _, steps in itertools.groupby(self.happened.stored(env), key=lambda step: step.episode)
        ]
        assert dataset.lengths.tolist() == [len(steps) for steps in episodes]
        assert dataset.features[:, 0].tolist() == [step.next_position for steps in episodes for step in steps]
        assert dataset.tasks is not None and dataset.tasks[:, 0].tolist() == [steps[0].goal for steps in episodes]
        assert dataset.env_terminated.tolist() == [steps[-1].by_env for steps in episodes]

    def run(self) -> Counter[str]:
        self.check_rows()
        for _ in range(self.rng.integers(3, 8)):
            for _ in range(self.rng.integers(1, 12)):
                self.step()
            name = str(
                self.rng.choice(["step", "pickle", "deepcopy", "save", "mmap", "reset"], p=[0.5, 0.14, 0.14, 0.1, 0.05, 0.07])
            )
            getattr(self, name)()
            self.seen[name] += 1
            self.check_arrays()
            self.check_trajectories()
            for _ in range(3):
                self.check_rows()
        self.seen["wrapped"] += len(self.happened.steps[0]) > self.size
        self.seen[f"strategy {self.strategy}"] += 1
        return self.seen


def check_sequence(number: int, folder: Path) -> Counter[str]:
    np.random.seed(number)
    sequence = Sequence(number, folder / "buffer")
    try:
        return sequence.run()
    except Exception as error:
        error.add_note(
            f"sequence {number}: {sequence.name}, {sequence.n_envs} environments, {sequence.size} rows, {sequence.options}"
        )
        raise
    finally:
        shutil.rmtree(folder / "buffer", ignore_errors=True)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


#: Numbers of the sequences of the normal suite, in parts that several processes can share.
PARTS = [range(first, first + 250) for first in range(0, 1000, 250)]


@pytest.mark.parametrize("numbers", PARTS, ids=str)
def test_sequences(numbers: range, tmp_path: Path) -> None:
    seen = sum((check_sequence(number, tmp_path) for number in numbers), Counter[str]())
    assert seen["rows"] > 60 * len(numbers) and seen["relabeled"] > seen["rows"] / 5, seen
    for what in ("by_task", "by_env", "by_limit", "wrapped", "pickle", "deepcopy", "save", "mmap", "reset"):
        assert seen[what] > len(numbers) / 10, (what, seen)


def one_too_far(index: EpisodeIndex, at: Any) -> np.ndarray:
    return np.minimum(RIGHT_AHEAD(index, at) + 1, index._n_rows - 1)


def without_the_environments_end(windows: Windows, family: Any, tasks: np.ndarray, rows: Any = slice(None)) -> Any:
    rewards, terminated = RIGHT_JUDGED(windows, family, tasks, rows)
    features = windows.experience.features((windows.at[0][rows], windows.at[1][rows]))[:, :, None]
    return rewards, terminated & family.terminated(features, tasks if tasks.ndim == 2 else tasks[:, None])


def keeping_the_old_end(experience: Experience, *arguments: Any) -> None:
    obs, next_obs, actions, rewards, dones, timeouts, _, features = arguments
    RIGHT_ADD(experience, obs, next_obs, actions, rewards, dones, timeouts, np.asarray(dones) & ~timeouts, features)


RIGHT_AHEAD, RIGHT_JUDGED, RIGHT_ADD = EpisodeIndex.ahead, Windows.judged, Experience.add
MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "episodes reach into the next one": (EpisodeIndex, "ahead", one_too_far),
    "what breaks off is not noticed": (ObservationStore, "_breaks", lambda store, *observations: None),
    "the environment's end is forgotten": (Windows, "judged", without_the_environments_end),
    "the end of the old task stays": (Experience, "add", keeping_the_old_end),
    "a window goes on after its end": (
        Windows,
        "outcomes",
        lambda windows, rewards, terminated, gamma: Outcomes(
            rewards.sum(axis=1), terminated.any(axis=1), np.full(len(rewards), windows.n_steps)
        ),
    ),
    "copies share their arrays": (HIPIReplayBuffer, "__deepcopy__", lambda buffer, memo: buffer),
    "the ring wraps a row too late": (
        Experience,
        "after",
        lambda experience, at, offsets: (np.minimum(at[0] + offsets, experience.buffer_size - 1), at[1]),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    with pytest.raises((AssertionError, IndexError, ValueError)):
        for number in range(100):
            check_sequence(number, tmp_path)


@pytest.mark.expensive
@pytest.mark.parametrize("part", range(16))
def test_a_hundred_thousand_sequences(part: int, tmp_path: Path) -> None:
    for number in range(10_000 + part, 110_000, 16):
        check_sequence(number, tmp_path)
