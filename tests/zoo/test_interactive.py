"""The page on which tasks are set: what it is told, and what it does in a browser."""

import json

import gymnasium as gym
import numpy as np
import pytest
from browser import drive
from conftest import require
from numpy.testing import assert_allclose, assert_array_equal

require("rl_zoo3")

from stable_baselines3.common.env_util import make_vec_env
from test_site import FRAME

from zoo import enjoy
from zoo.errors import ConfigurationError
from zoo.interactive import Stage


class Straight:
    """Walks straight to the goal of its observation, or of the one-hot task."""

    def __init__(self, family):
        self.parameters = getattr(family, "parameters", None)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        task = observation["task"]
        goal = task if self.parameters is None else task @ self.parameters
        return np.clip(goal - observation["observation"], -1, 1), None


def stage_of(env_id, **kwargs):
    env = make_vec_env(env_id, n_envs=1, env_kwargs={"render_mode": "rgb_array", **kwargs})
    return Stage(Straight(env.get_attr("task_family")[0]), env, f"Straight on {env_id}")


def post(stage, wish):
    status, kind, content = stage.answer("POST", "/play", json.dumps(wish).encode())
    assert kind == "application/json"
    return status, json.loads(content)


def test_a_finite_family_is_a_number_and_a_click_the_nearest_goal():
    stage = stage_of("PointFixedGoals-v0")
    about = json.loads(stage.answer("GET", "/tasks", b"")[2])
    assert about["n_tasks"] == 32 and about["click"] is True
    goals = gym.make("PointFixedGoals-v0").get_wrapper_attr("task_family").parameters
    status, episode = post(stage, {"index": 3})
    assert status == 200 and episode["index"] == 3 and episode["success"] is True
    assert len(episode["frames"]) == episode["steps"] + 1 and episode["frames"][0].startswith("data:image/png;base64,")
    assert episode["return"] == -(episode["steps"] - 1)
    # The room has 15 x 15 units; rows of the picture are the first coordinate.
    height, width = stage.env.unwrapped.walls.shape
    click = [goals[3][1] / width, goals[3][0] / height]
    assert_array_equal(stage.task_of({"click": click}), np.eye(32)[3])


def test_a_click_into_the_maze_is_a_goal():
    stage = stage_of("PointFourRooms-v0")
    first = np.array(stage.describe()["first"])
    assert np.isfinite(stage.family.log_prior(first)) and post(stage, {"task": first.tolist()})[0] == 200
    height, width = stage.env.unwrapped.walls.shape
    assert_allclose(stage.task_of({"click": [0.25, 0.5]}), [0.5 * height, 0.25 * width])
    assert_allclose(stage.task_of({"task": [2.0, 3.0]}), [2.0, 3.0])


def test_long_episodes_are_shown_with_fewer_pictures(monkeypatch):
    monkeypatch.setattr("zoo.interactive.MAX_FRAMES", 10)
    stage = stage_of("PointFourRooms-v0")
    _, episode = post(stage, {"task": [30.0, 30.0]})
    assert episode["steps"] == 75 and len(episode["frames"]) <= 11


@pytest.mark.parametrize("wish", [{"task": [99.0, 0.0]}, {"task": [1.0]}, {"index": 0}, {}])
def test_a_wish_that_cannot_be_is_answered_in_words(wish):
    status, found = post(stage_of("PointFourRooms-v0"), wish)
    assert status == 400 and found["error"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_policy_acts_as_it_is_asked_to(deterministic):
    class Asked(Straight):
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            asked.add(deterministic)
            return super().predict(observation)

    asked = set()
    env = make_vec_env("PointFourRooms-v0", n_envs=1, env_kwargs={"render_mode": "rgb_array"})
    Stage(Asked(None), env, "asked", deterministic).play(np.array([5.0, 5.0]))
    assert asked == {deterministic}


def test_the_page_of_a_stochastic_policy_is_stochastic(monkeypatch):
    stages = []
    monkeypatch.setattr(enjoy, "serve", lambda stage, port: stages.append(stage))
    for arguments in ([], ["--stochastic"]):
        enjoy.main(["--pretrained", "--env", "PointFourRooms-v0", "--interactive", *arguments])
    assert [stage.deterministic for stage in stages] == [True, False]


def test_many_environments_are_refused():
    env = make_vec_env("PointFourRooms-v0", n_envs=2, env_kwargs={"render_mode": "rgb_array"})
    with pytest.raises(ConfigurationError, match="one environment"):
        Stage(Straight(None), env, "two")


def test_sliders_and_clicks_move_the_policy_in_a_browser(tmp_path):
    stage = stage_of("PointFixedGoals-v0")
    script = """
const page = await open("/", 400);
const done = () => until(() => page.body.dataset.done === "yes");
const said = () => page.getElementById("said").textContent;
const seen = [];
await done(); seen.push(said());
const input = page.querySelector("input");
input.value = 5;
input.dispatchEvent(new Event("change"));
await until(() => said().startsWith("task 5:")); await done(); seen.push(said());
const picture = page.getElementById("picture"), box = picture.getBoundingClientRect();
const place = {clientX: box.left + CLICK_X * box.width, clientY: box.top + CLICK_Y * box.height};
picture.dispatchEvent(new MouseEvent("click", place));
await until(() => said().startsWith("task 7:")); await done(); seen.push(said());
return [seen, input.value, picture.naturalWidth, page.documentElement.scrollWidth];
"""
    height, width = stage.env.unwrapped.walls.shape
    row, column = stage.family.parameters[7]
    script = script.replace("CLICK_X", str(column / width)).replace("CLICK_Y", str(row / height))
    (seen, value, picture_width, page_width), console = drive(tmp_path, FRAME + script, tmp_path / "profile", 60, stage.answer)
    assert console == []
    assert [text.partition(",")[0] for text in seen] == ["task 0: reached", "task 5: reached", "task 7: reached"]
    assert value == "7" and picture_width > 100 and page_width <= 400
