"""A page on which a task is set and the policy is watched: ``enjoy.py --interactive``. It is served to this machine only."""

import base64
import html
import http.server
import io
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from hipi_sb3 import FiniteTasks
from zoo.errors import ConfigurationError

PAGE = Path(__file__).with_name("interactive.html")

#: Pictures of an episode, at most: longer ones are shown with every second step, every third, and so on.
MAX_FRAMES = 150


class Stage:
    """
    Runs the policy for a task, and draws it.

    :param model: anything with ``predict``
    :param env: one environment with a task family and ``render_mode="rgb_array"``
    :param title: what the page says that it shows
    :param deterministic: whether the policy acts greedily
    :raises ConfigurationError: when it is not one environment in this process, or its task space has no bounds
    """

    def __init__(self, model: PolicyPredictor, env: VecEnv, title: str, deterministic: bool = True) -> None:
        self.model, self.title, self.deterministic = model, title, deterministic
        inner = env.unwrapped
        if not isinstance(inner, DummyVecEnv) or inner.num_envs != 1:
            raise ConfigurationError("--interactive needs one environment in this process: leave --n-envs at 1.")
        self.env: gym.Env = inner.envs[0]
        self.normalization = unwrap_vec_normalize(env)
        self.family = env.get_attr("task_family")[0]
        if not self.family.task_space.is_bounded():
            raise ConfigurationError(
                f"--interactive needs a task space with bounds, for its sliders, not {self.family.task_space}."
            )

    def describe(self) -> dict[str, Any]:
        """
        Say what can be set.

        :return: number of tasks of a finite family or None, bounds of the others, the task to begin with, and whether a click
            sets the task
        """
        space, tasks = self.family.task_space, self.family.tasks
        return {
            "title": self.title,
            "n_tasks": None if tasks is None else len(tasks),
            "low": space.low.tolist(),
            "high": space.high.tolist(),
            # The middle of the space may be inside a wall; what the prior draws is not.
            "first": self.family.sample(np.random.default_rng(0), 1)[0].tolist(),
            "click": self._goals() is not None or self._is_map(),
        }

    def task_of(self, wish: dict[str, Any]) -> np.ndarray:
        """
        The task that somebody asked for.

        :param wish: ``{"task": [...]}``, ``{"index": i}`` of a finite family, or ``{"click": [u, v]}``: where in the picture,
            from the left and from the top, in [0, 1]
        :return: task, (task_dim,)
        :raises ValueError: when there is no such task
        """
        if "index" in wish:
            return self.family.check_task(self.family.tasks[int(wish["index"])])
        if "click" in wish:
            u, v = wish["click"]
            # Rows of the picture are the first coordinate.
            place = np.array([v, u]) * self.env.unwrapped.walls.shape  # type: ignore[attr-defined]
            goals = self._goals()
            if goals is None:
                return self.family.check_task(place)
            return self.family.tasks[np.linalg.norm(goals - place, axis=1).argmin()].copy()
        return self.family.check_task(wish["task"])

    def play(self, task: np.ndarray) -> dict[str, Any]:
        """
        Run one episode.

        :param task: task, (task_dim,)
        :return: task, number of steps, return, success or None, and pictures as data URLs
        """
        obs, _ = self.env.reset(options={"task": task})
        frames: list[Any] = [self.env.render()]
        info: dict[str, Any] = {}
        total, n_steps, done = 0.0, 0, False
        while not done:
            seen = obs if self.normalization is None else self.normalization.normalize_obs(obs)
            action, _ = self.model.predict(seen, deterministic=self.deterministic)
            obs, reward, terminated, truncated, info = self.env.step(action)
            frames.append(self.env.render())
            total, n_steps, done = total + float(reward), n_steps + 1, terminated or truncated
        stride = -(-len(frames) // MAX_FRAMES)
        return {
            "task": np.asarray(task, dtype=float).round(3).tolist(),
            "index": None if self.family.tasks is None else int(np.argmax(task)),
            "steps": n_steps,
            "return": total,
            "success": None if "is_success" not in info else bool(info["is_success"]),
            "frames": [_data_url(frame) for frame in [*frames[:-1:stride], frames[-1]]],
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """
        Answer a request of the page.

        :param method: ``GET`` or ``POST``
        :param path: path
        :param body: what was sent
        :return: status, content type and content
        """
        if (method, path) == ("GET", "/"):
            page = PAGE.read_text().replace("{{title}}", html.escape(self.title))
            return HTTPStatus.OK, "text/html; charset=utf-8", page.encode()
        if (method, path) == ("GET", "/tasks"):
            return HTTPStatus.OK, "application/json", json.dumps(self.describe()).encode()
        if (method, path) == ("POST", "/play"):
            try:
                found = self.play(self.task_of(json.loads(body)))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                return HTTPStatus.BAD_REQUEST, "application/json", json.dumps({"error": str(error)}).encode()
            return HTTPStatus.OK, "application/json", json.dumps(found).encode()
        return HTTPStatus.NOT_FOUND, "text/plain", b"not here"

    def _is_map(self) -> bool:
        """Whether a place in the picture is a task: of goals in a maze that is drawn from above."""
        return hasattr(self.env.unwrapped, "walls") and self.family.task_dim == 2 and self.family.reaches_goals

    def _goals(self) -> np.ndarray | None:
        """Places of a finite set of goals on such a map, (n_tasks, 2)."""
        family = self.family
        is_set = isinstance(family, FiniteTasks) and family.family.reaches_goals and family.parameters.shape[1] == 2
        return family.parameters if is_set and hasattr(self.env.unwrapped, "walls") else None


def make_server(stage: Stage, port: int = 0) -> http.server.HTTPServer:
    """
    Make the server of the page; requests are answered one after another, because there is one environment.

    :param stage: what is shown
    :param port: port on this machine, any that is free if 0
    :return: server
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            status, kind, content = stage.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return http.server.HTTPServer(("127.0.0.1", port), Handler)


def _data_url(frame: np.ndarray) -> str:
    import imageio.v2 as imageio

    file = io.BytesIO()
    imageio.imwrite(file, frame, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
