"""What `python -m hipi_sb3` says."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch as th

import hipi_sb3
from hipi_sb3 import installed


def test_the_package_says_its_versions_and_the_machine():
    result = subprocess.run([sys.executable, "-m", "hipi_sb3"], capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith(" "))
    # The build (+cpu, +cu130) is not in the name of every file that torch is installed from.
    assert lines["hipi_sb3"] == hipi_sb3.__version__ and lines["torch"].split("+")[0] == th.__version__.split("+")[0]
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "cores" in lines["machine"] and "extras" in lines


def test_extras_are_named_with_what_is_missing(monkeypatch):
    requirements = ["numpy>=1", 'one>=1; extra == "a"', 'two[x]<3; extra == "a"', 'one; extra == "b-c"', 'two; extra == "dev"']

    def version_of(name):
        if name == "two":
            raise PackageNotFoundError(name)
        return "1" if name == "one" else version(name)

    monkeypatch.setattr(installed, "requires", lambda name: requirements)
    monkeypatch.setattr(installed, "version", version_of)
    assert installed.missing_of_extras() == {"a": ["two"], "b_c": []}
    lines = installed.report().splitlines()
    assert lines[-2].split() == ["extras", "b_c"]
    assert lines[-1].split(maxsplit=2)[2] == "a: two missing (pip install 'hipi_sb3[a]')"


def test_a_package_that_is_not_installed_has_no_extras(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "requires", missing)
    assert installed.missing_of_extras() == {}


def test_all_packages_that_are_needed_are_listed_with_version_and_licence():
    result = subprocess.run([sys.executable, "-m", "hipi_sb3", "--licences"], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.stdout.splitlines()}
    assert {"hipi-sb3", "stable-baselines3", "sb3-contrib", "gymnasium", "torch", "numpy"} <= lines.keys()
    assert {"sympy", "mpmath"} <= lines.keys()  # what torch needs, and what that needs
    for name, (number, licence) in lines.items():
        assert number == version(name) and licence
    assert lines["stable-baselines3"][1] == "MIT" or "MIT" in lines["stable-baselines3"][1]
    assert not [name for name, (_, licence) in lines.items() if licence == "unknown" and name in installed.PACKAGES]
