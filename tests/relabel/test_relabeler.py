"""Experience and Relabeler by themselves: hand-filled, without a model of stable-baselines3."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import GOALS, NoCritic
from numpy.testing import assert_array_equal

import hipi_sb3  # noqa: F401
from hipi_sb3 import GoalReaching, HIPIReplayBuffer, TrajectoryDataset
from hipi_sb3.experience.files import read_state, write_state
from hipi_sb3.experience.layout import TaskLayout
from hipi_sb3.experience.transitions import Experience
from hipi_sb3.relabel.learners import Pairs
from hipi_sb3.relabel.relabeler import Relabeler
from hipi_sb3.relabel.windows import Windows

RECORDED = Path(__file__).parents[1] / "recorded"
SPACE = spaces.Dict({"observation": spaces.Box(-1, 1, (1,), np.float32), "task": GOALS.task_space})


def walk(n_steps: int = 12, buffer_size: int = 20) -> Experience:
    """Two environments that walk right and left by 0.1 a step, in episodes of four steps; the goal is where nobody comes."""
    experience = Experience(buffer_size, 2, SPACE, TaskLayout("task", 1), 1, np.float32, GOALS.feature_dim)
    tasks = np.array([[[0.95], [-0.95]]], dtype=np.float32)
    for step in range(n_steps):
        before, after = 0.1 * (step % 4), 0.1 * (step % 4 + 1)
        obs, next_obs = ({"observation": np.array([[[x], [-x]]], dtype=np.float32), "task": tasks} for x in (before, after))
        done = np.full((1, 2), step % 4 == 3)
        features = next_obs["observation"]
        rewards = GOALS.reward(features, tasks)
        experience.add(obs, next_obs, np.zeros((1, 2, 1)), rewards, done, done, np.zeros((1, 2), dtype=bool), features)
    return experience


def test_experience_gives_back_what_was_added_also_copied_pickled_and_from_a_file(tmp_path: Path) -> None:
    experience = walk()
    at = (np.array([0, 3, 3, 4]), np.array([0, 0, 1, 1]))
    write_state(tmp_path / "folder", experience.state_dict())
    loaded = walk(0)
    loaded.load_state_dict(read_state(tmp_path / "folder"))
    for this in (experience, copy.deepcopy(experience), pickle.loads(pickle.dumps(experience)), loaded):
        obs, next_obs = this.transitions(at)
        np.testing.assert_allclose(obs["observation"][:, 0], [0, 0.3, -0.3, 0], atol=1e-6)
        np.testing.assert_allclose(next_obs["observation"][:, 0], [0.1, 0.4, -0.4, -0.1], atol=1e-6)
        np.testing.assert_allclose(obs["task"][:, 0], [0.95, 0.95, -0.95, -0.95])
        assert_array_equal(this.features(at), next_obs["observation"])
        assert len(this) == 12 and this.nbytes > 0


def test_a_window_is_judged_to_the_first_termination_or_the_episodes_end() -> None:
    experience, radius = walk(), GOALS.radius
    at = (np.array([0, 2]), np.array([0, 0]))
    windows = Windows(experience, at, 3)
    tasks = np.array([[0.2], [0.95]], dtype=np.float32)
    rewards, terminated = windows.judged(GOALS, tasks)
    outcomes = windows.outcomes(rewards, terminated, 0.9)
    expected = np.zeros((2, 2))
    ends, lengths = np.zeros((2, 2), dtype=bool), np.zeros((2, 2), dtype=int)
    for i, start in enumerate((0, 2)):
        for j, goal in enumerate((0.2, 0.95)):
            for k in range(min(3, 4 - start)):
                reached = abs(0.1 * (start + k + 1) - goal) <= radius + 1e-6
                expected[i, j] += 0.9**k * (0 if reached else -1)
                lengths[i, j] += 1
                if reached:
                    ends[i, j] = True
                    break
    np.testing.assert_allclose(outcomes.rewards, expected, atol=1e-6)
    assert_array_equal(outcomes.terminated, ends)
    assert_array_equal(outcomes.length, lengths)
    assert ends.any() and not ends.all()


@pytest.mark.parametrize("library", [np, th])
def test_without_a_future_only_the_first_step_counts_however_impossible_a_later_one_is(library: Any) -> None:
    windows = Windows(walk(), (np.array([0, 1]), np.array([0, 0])), 3)
    rewards = np.array([[-1.0, -np.inf, -1.0], [-np.inf, -1.0, -1.0]])
    found = windows.outcomes(library.asarray(rewards), library.asarray(np.zeros((2, 3), dtype=bool)), 0.0)
    assert_array_equal(np.asarray(found.rewards), [-1.0, -np.inf])


def test_a_relabeler_needs_no_model_of_stable_baselines() -> None:
    experience = walk()
    relabeler = Relabeler(
        "map", log_partition="none", temperature=0.1, candidates={"achieved": 1.0}, n_candidate_tasks=24, relabel_prob=1.0
    )
    relabeler.setup(GOALS)
    at = (np.arange(12).repeat(2), np.tile([0, 1], 12))
    said: dict[str, float] = {}
    rows = relabeler(experience, at, NoCritic(), record=said.__setitem__)
    assert rows.judged.is_new.all() and said["share_changed"] == 1.0
    features = experience.features(rows.at)
    # The best task of a step, with nothing to expect afterwards, is one that it reaches.
    assert GOALS.terminated(features, rows.tasks).all()
    assert_array_equal(rows.obs["task"], rows.tasks)
    assert_array_equal(rows.next_obs["task"], rows.tasks)


class ValueOfPlace(NoCritic):
    """A critic that values a state and a task at ten times the place, plus the task."""

    def pair_next_value(self, pairs: Pairs) -> th.Tensor:
        return 10 * pairs.next_observations["observation"] + pairs.tasks[:, 0]


class Doubling:
    """The critic sees everything twice as large, and a third of the rewards."""

    def normalize_obs(self, obs: Any) -> Any:
        return {key: 2 * value for key, value in obs.items()}

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return reward / 3


@pytest.mark.parametrize("normalization", [None, Doubling()], ids=["raw", "normalised"])
@pytest.mark.parametrize("score", ["td", "progress"])
def test_a_window_is_scored_by_what_happens_to_it_under_each_task(score: str, normalization: Doubling | None) -> None:
    """Against a loop in plain Python: n = 3, three tasks that end at different steps or never, an environment that ends."""
    experience = walk()
    experience.env_terminated[2, 0] = True
    steps = np.arange(12)
    relabeler = Relabeler("hipi", score, "none", n_steps=3)
    relabeler.setup(GOALS)
    batch = relabeler._rows(experience, (steps, np.zeros(12, dtype=int)), steps, ValueOfPlace(), normalization)
    seen, paid = (1.0, 1.0) if normalization is None else (2.0, 1 / 3)
    tasks = np.array([[0.3], [0.55], [-0.9]], dtype=np.float32)
    expected = np.empty((12, 3))
    for start in steps:
        for j, goal in enumerate(tasks[:, 0]):
            total, discount, ended = 0.0, 1.0, False
            for step in range(start, min(start + 3, 4 * (start // 4) + 4)):
                place = 0.1 * (step % 4 + 1)
                reached = abs(place - goal) <= GOALS.radius
                total += discount * (0.0 if reached else -1.0)
                discount *= 0.9
                if reached or step == 2:
                    ended = True
                    break
            total = paid * total + (0.0 if ended else discount * seen * (10 * place + goal))
            expected[start, j] = total - (seen * (10 * 0.1 * (start % 4) + goal) if score == "progress" else 0.0)
    np.testing.assert_allclose(batch.scores(tasks), expected, atol=1e-5)


class NothingRightOnceLeft(GoalReaching):
    """From the second step to the left on, goals on the right are impossible."""

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return np.where((tasks[..., 0] > 0) & (features[..., 0] < -0.15), -np.inf, super().reward(features, tasks))


def test_a_label_that_has_become_impossible_since_it_was_chosen_is_not_learned() -> None:
    """The window of an episode's last step grows with it, and the pool still has the label of the short one."""
    relabeler = Relabeler("hipi", relabel_prob=1.0, prior_share=0.0, label_reuse=16, candidates="prior", n_steps=2)
    relabeler.setup(NothingRightOnceLeft(low=[0.2], high=[1.0], radius=0.05))
    one, two = (np.zeros(64, dtype=int), np.ones(64, dtype=int)), walk(2)
    rows = relabeler(walk(1), (one[0].copy(), one[1].copy()), NoCritic())
    assert rows.judged.is_new.all() and (rows.tasks > 0).all()
    rows = relabeler(two, one, NoCritic())
    went_left = rows.at[1] == 1
    assert rows.judged.is_new[~went_left].all() and not rows.judged.is_new.all()
    assert 0 < np.count_nonzero(went_left) < 64
    assert (rows.tasks[went_left] == np.float32(-0.95)).all()  # their own
    assert_array_equal(rows.judged.rewards[went_left], np.full((np.count_nonzero(went_left), 2), -1.0))
    assert_array_equal(rows.obs["task"], rows.tasks)


class RootOfPlace(GoalReaching):
    """Forgets that there are places to the left."""

    def reward(self, features: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return super().reward(features, tasks) + np.sqrt(features[..., 0])


@pytest.mark.parametrize("strategy", ["random", "future"])
def test_a_reward_that_is_no_number_is_not_learned(strategy: str) -> None:
    relabeler = Relabeler(strategy, relabel_prob=1.0, n_steps=2)
    relabeler.setup(RootOfPlace(low=[-1.0], high=[1.0], radius=0.05))
    relabeler(walk(), (np.arange(12), np.zeros(12, dtype=int)))
    with pytest.raises(ValueError, match=r"RootOfPlace: the reward of a stored step is NaN for task \[-?0"):
        relabeler(walk(), (np.arange(12), np.ones(12, dtype=int)))


def test_what_is_recorded_of_impossible_labels_is_finite() -> None:
    relabeler = Relabeler("random", relabel_prob=1.0, candidates="prior", n_steps=2)
    relabeler.setup(NothingRightOnceLeft(low=[-1.0], high=[1.0], radius=0.05))
    said: dict[str, float] = {}
    rows = relabeler(walk(), (np.arange(12), np.ones(12, dtype=int)), record=said.__setitem__)
    assert not rows.judged.is_new.all() and np.isfinite(list(said.values())).all()
    batch = relabeler.preview(walk(), 50, None)
    windows = Windows(walk(), batch.at, 2)
    assert batch.assigned is not None
    rewards, terminated = windows.judged(batch.family, batch.assigned[:, None])
    assert (windows.outcomes(rewards, terminated, 1.0).rewards > -np.inf).all()


@pytest.mark.parametrize("strategy", ["random", "final", "future", "none"])
def test_strategies_without_scores_need_no_critic(strategy: str) -> None:
    relabeler = Relabeler(strategy, relabel_prob=1.0)
    relabeler.setup(GOALS)
    rows = relabeler(walk(), (np.zeros(8, dtype=int), np.zeros(8, dtype=int)))
    assert rows.judged.is_new.all() == (strategy != "none")
    if strategy == "final":
        np.testing.assert_allclose(rows.tasks, 0.4, atol=1e-6)


def test_what_is_missing_is_asked_for() -> None:
    at = (np.zeros(8, dtype=int), np.zeros(8, dtype=int))
    relabeler = Relabeler("random", relabel_prob=1.0)
    with pytest.raises(RuntimeError, match=r"call setup\(family\)"):
        relabeler(walk(), at)
    relabeler = Relabeler("hipi")
    relabeler.setup(GOALS)
    with pytest.raises(RuntimeError, match="HIPI asks a critic, and there is none"):
        relabeler(walk(), at)
    with pytest.raises(RuntimeError, match="empty"):
        relabeler.preview(walk(0), 8, NoCritic())


def test_a_data_set_is_made_of_an_experience() -> None:
    data = TrajectoryDataset.from_experience(walk(), GOALS, spaces.Box(-1, 1, (1,), np.float32))
    assert_array_equal(data.lengths, [4] * 6)
    assert data.tasks is not None
    assert_array_equal(data.tasks[:, 0], np.float32([0.95] * 3 + [-0.95] * 3))


def family_of_the_mazes() -> Any:
    return gym.make("PointFourRooms-v0").get_wrapper_attr("task_family")


def test_a_folder_of_an_older_version_still_loads() -> None:
    buffer = HIPIReplayBuffer.load(RECORDED / "buffer-0.1.0", family=family_of_the_mazes())
    # As the version that wrote it had them.
    np.testing.assert_allclose(buffer.observations["observation"].sum(), 406.40558, rtol=1e-6)
    assert buffer.rewards.sum() == -60 and buffer.size() == 60
    assert buffer.relabeler.inference.log_partition._estimator.n_batches == 54  # type: ignore[attr-defined]


def test_a_pickle_of_an_older_version_says_who_reads_it() -> None:
    with pytest.raises(ImportError, match=r"older hipi_sb3 0\.1\.0 wrote it.*buffer\.save"):
        pickle.loads((RECORDED / "buffer-0.1.0.pkl").read_bytes())
