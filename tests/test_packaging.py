"""What is shipped: the wheel, the versions, the make targets."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import hipi_sb3

ROOT = Path(__file__).parent.parent
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what git has, without network."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("hipi_sb3", "hyperparams", "zoo", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out, copy]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as file:
        yield file


def metadata_of(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    return wheel.read(name).decode()


def test_the_wheel_installs_hipi_sb3_alone(wheel):
    top_level = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert top_level == {"hipi_sb3"}


def test_the_wheel_has_every_module_the_types_marker_and_the_yaml_files(wheel):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "hipi_sb3").rglob("*.py")} | {"hipi_sb3/py.typed"}
    expected |= {
        str(path.relative_to(ROOT)) for kind in ("npz", "json") for path in (ROOT / "hipi_sb3/shipped").glob(f"*.{kind}")
    }
    expected |= {f"hipi_sb3/hyperparams/{path.name}" for path in (ROOT / "hyperparams").glob("*.yml")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    shipped = yaml.safe_load(wheel.read("hipi_sb3/hyperparams/hipi_sac.yml"))
    assert next(iter(shipped)) == "default" and "PointFourRooms-v0" in shipped


def test_the_wheel_says_what_it_is(wheel):
    metadata = metadata_of(wheel)
    assert f"\nVersion: {hipi_sb3.__version__}\n" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
    for extra in ("dm_control", "metaworld", "robotics", "mo", "goal_envs", "benchmark", "zoo", "docs", "dev", "all"):
        assert re.search(f"^Provides-Extra: {extra.replace('_', '[-_]')}$", metadata, re.MULTILINE), extra


def test_the_constraints_pin_all_that_is_required_within_its_range(wheel):
    requirements = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", metadata_of(wheel), re.MULTILINE)]
    assert len(requirements) > 20
    for requirement in requirements:
        version = PINS.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes its pin {version}"


def test_the_constraints_name_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_the_versions_of_the_constraints_run_with_the_oldest_python_that_is_promised():
    # 3.11 as Debian 12 has it is 3.11.2: a pin that wants 3.11.5 cannot be installed there.
    installed = {canonicalize_name(package.name): package for package in distributions()}
    asked = {
        name: SpecifierSet(installed[name].metadata["Requires-Python"] or "")
        for name, version in PINS.items()
        if name in installed and installed[name].version.split("+")[0] == version
    }
    assert len(asked) > 20
    assert {name: str(versions) for name, versions in asked.items() if not versions.contains("3.11.0")} == {}


def test_pyproject_configures_tools_only():
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {"tool"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_torch_first_and_as_it_is_told(tmp_path):
    arguments = [f"VENV={tmp_path / 'venv'}", "TORCH=torch==2.9.1"]
    dry_run = subprocess.run(["make", "-n", "test", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    installs = [line.split() for line in dry_run.splitlines() if "pip install" in line]
    assert installs[1][-1] == "torch==2.9.1"
    assert installs[-1][-1] == '".[all]"'
    assert all("-c" in line for line in installs)
    assert "grep -v '^torch=='" in dry_run


def test_the_citation_says_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hipi_sb3.__version__ and citation["license"] == "MIT"
    assert citation["preferred-citation"]["url"].endswith("2002.11089")
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Eysenbach"


def test_the_page_on_versions_says_those_that_are_tested():
    page = (ROOT / "docs" / "support.md").read_text()
    for name, package in (
        ("Stable-Baselines3, sb3-contrib", "stable-baselines3"),
        ("Gymnasium", "gymnasium"),
        ("NumPy", "numpy"),
    ):
        assert f"| {name} | {PINS[package]} |" in page
    assert f"| PyTorch | {PINS['torch']} (CPU) |" in page and f"| MuJoCo | {PINS['mujoco']} |" in page
