"""A run of stable-baselines3's own algorithms is data too: their files are written and read without pickle by the launcher."""

import base64
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import require

require("rl_zoo3")

from rl_zoo3.utils import ALGOS

from hipi_sb3.saved_models import PlainFiles
from zoo import enjoy, plugin, train
from zoo.checkpoints import checkpoints
from zoo.configuration import read_yaml, write_yaml

plugin.register()

ENV_ID = "SlowWalk-v0"
RUN = ["--env", ENV_ID, "--gym-packages", "slow_tasks", "-n", "60", "--eval-freq", "40", "--eval-tasks", "2"]
RUN += ["--n-eval-envs", "1", "--checkpoint-freq", "20", "--seed", "3"]
NET = ["-params", "policy:'MultiInputPolicy'", "learning_starts:10", "policy_kwargs:dict(net_arch=[8])", "n_timesteps:60"]


class Evil:
    """Leaves its mark when it is unpickled."""

    def __reduce__(self):
        return subprocess.call, (["touch", "mark"],)


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """The launcher, in an empty folder."""
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)

    def unfinished(*arguments):
        """A run that ends as it should, and is then made to look as if it had not."""
        train.main([*arguments[:2], *RUN, *arguments[2:], *NET])
        folder = next((tmp_path / "logs" / arguments[1]).glob(f"{ENV_ID}_*"))
        path = folder / ENV_ID / "run.yml"
        write_yaml(path, {name: value for name, value in read_yaml(path).items() if name != "finished"})
        return folder

    return unfinished


def refused(command, capsys, *arguments):
    """The error of a command that must leave no mark."""
    with pytest.raises(SystemExit) as exit_info:
        command(list(arguments))
    assert exit_info.value.code == 2 and not Path("mark").exists(), "the payload ran"
    return capsys.readouterr().err


def with_payload(path):
    """The model's file with a pickle among its entries that leaves a mark."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    entry = {":type:": "<class 'int'>", ":serialized:": base64.b64encode(pickle.dumps(Evil())).decode()}
    files["data"] = json.dumps({**json.loads(files["data"]), "something": entry}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_all_algorithms_of_the_launcher_have_files_without_code():
    assert all(issubclass(algorithm_class, PlainFiles) for algorithm_class in ALGOS.values())
    assert ALGOS["sac"].__name__ == "SAC" and ALGOS["sac"].__module__ == "stable_baselines3.sac.sac"


def test_a_run_of_sac_is_looked_at_without_trust_and_a_payload_in_it_does_not_run(launcher, capsys):
    folder = launcher("--algo", "sac")
    look = ["--algo", "sac", "--env", ENV_ID, "-f", "logs", "--no-render", "--eval-tasks", "2"]
    enjoy.main(look)
    assert "sac on SlowWalk-v0" in capsys.readouterr().out
    agent = with_payload(folder / f"{ENV_ID}.zip")
    error = refused(enjoy.main, capsys, *look)
    assert "pickled objects (something)" in error and "add --trust" in error
    more = ["-i", str(agent)]
    assert "pickled objects (something)" in refused(train.main, capsys, "--algo", "sac", *RUN, *more, *NET)
    enjoy.main([*look, "--trust"])
    assert Path("mark").exists(), "the control: the payload would run"


def test_a_pickled_buffer_is_resumed_from_with_trust_only(launcher, capsys):
    """stable-baselines3's own buffers have no other form."""
    folder = launcher("--algo", "sac")
    newest = checkpoints(folder / "checkpoints")[-1]
    assert (newest / "replay_buffer.pkl").is_file()
    error = refused(train.main, capsys, "--resume", str(folder))
    assert "replay_buffer.pkl is pickled" in error and "add --trust" in error
    train.main(["--resume", str(folder), "--trust"])
    assert "sac on SlowWalk-v0 after 60 steps" in capsys.readouterr().out


def test_hipis_saved_buffer_is_gone_on_with_without_trust(launcher, capsys):
    folder = launcher("--algo", "hipi_sac", "--save-replay-buffer")
    assert (folder / "replay_buffer").is_dir() and not list(folder.rglob("*.pkl"))
    capsys.readouterr()
    train.main(["--algo", "hipi_sac", *RUN, *NET, "-i", str(folder / f"{ENV_ID}.zip")])
    assert "Loading replay buffer" in capsys.readouterr().out


def test_hipis_buffer_is_resumed_from_without_pickle_whatever_the_algorithm(launcher, capsys):
    folder = launcher("--algo", "td3", "--relabel", "strategy=hipi")
    newest = checkpoints(folder / "checkpoints")[-1]
    assert (newest / "replay_buffer").is_dir() and not list(folder.rglob("*.pkl"))
    train.main(["--resume", str(folder)])
    assert "td3 on SlowWalk-v0 after 60 steps" in capsys.readouterr().out
