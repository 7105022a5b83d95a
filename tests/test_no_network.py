"""Nothing is fetched and nothing is told: a training opens no connection."""

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import require
from line_walk import make_line_walk, vec_line_walk

import hipi_sb3
from hipi_sb3 import HIPISAC, check_family
from hipi_sb3.evaluation import evaluate_tasks


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where somebody wanted to connect to, or which name was looked up; processes of one machine may talk."""
    found: list[Any] = []

    def note(where: Any) -> Any:
        found.append(where)
        raise OSError("no network")

    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to: connect(self, to) if self.family == socket.AF_UNIX else note(to)
    )
    monkeypatch.setattr(socket.socket, "connect_ex", lambda self, to: note(to))
    monkeypatch.setattr(socket.socket, "sendto", lambda self, *arguments: note(arguments))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, lambda *arguments, **options: note(arguments))
    return found


def test_attempts_are_noticed(attempts: list[Any]) -> None:
    """The control."""
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://example.org")
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 9))
    assert len(attempts) == 2


def test_a_training_opens_no_connection(attempts: list[Any], tmp_path: Path) -> None:
    model = HIPISAC("MultiInputPolicy", vec_line_walk(2), learning_starts=5, batch_size=8, device="cpu").learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = HIPISAC.load(tmp_path / "model", env=model.env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    env = make_line_walk()
    evaluate_tasks(loaded, vec_line_walk(1), tasks=[[0.5], [-0.5]])
    check_family(env.task_family, env.env)  # type: ignore[attr-defined]
    hipi_sb3.pretrained("PointFixedGoals-v0", device="cpu")
    assert attempts == []


def test_a_run_of_the_launcher_opens_no_connection(attempts: list[Any], main: Any) -> None:
    require("rl_zoo3")
    few = ["--env", "PointFixedGoals-v0", "--seed", 0, "-n", 60, "--eval-freq", 30, "--checkpoint-freq", 20, "--eval-tasks", 2]
    main(*few, "-params", "learning_starts:10", "policy_kwargs:dict(net_arch=[8])")
    assert attempts == []
