"""What all tests share. The environment is set before any of them imports a simulator or torch."""

import atexit
import ctypes.util
import importlib
import os
import shutil
import sys
import tempfile
from types import ModuleType
from typing import NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# stable-baselines3 makes a folder a model for its logger, and leaves it: all go into one that is removed.
if "SB3_LOGDIR" not in os.environ:
    os.environ["SB3_LOGDIR"] = tempfile.mkdtemp(prefix="hipi_sb3-tests-")
    atexit.register(shutil.rmtree, os.environ["SB3_LOGDIR"], ignore_errors=True)
# MuJoCo without a display; where there is no EGL, naming it would break the import of MuJoCo itself.
if not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch as th

th.set_num_threads(1)


def require(name: str) -> ModuleType:
    """
    Import a module of an optional extra: the test skips where it is missing, but fails in CI, which installs all extras.

    Use as ``from conftest import require``.

    :param name: module
    :return: the module
    """
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed: see the extras in setup.py", exc_type=ImportError)


def lacking(what: str) -> NoReturn:
    """
    Leave a test for want of something that pip cannot bring: it is skipped, and listed at the end. In CI, which installs all,
    it fails.

    :param what: what is missing, what for, and how to install it
    """
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def require_rendering() -> None:
    """MuJoCo draws with a display or with EGL; without both the test is left."""
    if not os.environ.get("DISPLAY") and not ctypes.util.find_library("EGL"):
        lacking("MuJoCo needs EGL to draw without a display: `sudo apt-get install libegl1 libegl-mesa0`.")


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """Run train.py in this process, and give what it printed."""
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        from zoo import train  # needs extras

        train.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return call
