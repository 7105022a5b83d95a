"""Package metadata. The exact versions that are tested together are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "hipi_sb3" / "_version.py").read_text())
assert VERSION is not None

EXTRAS = {
    # The simulators. dm-control is tied to one mujoco each, metaworld to 3.3.0
    "dm_control": ["dm-control>=1.0.28"],
    "metaworld": ["metaworld>=3.0"],
    "robotics": ["gymnasium-robotics>=1.4,<2"],
    "mo": ["mo-gymnasium>=1.3,<2"],
    # Other GoalEnvs. highway-env from 1.12 on needs pygame-ce, which is installed into the place of pygame
    "goal_envs": ["highway-env>=1.10,<1.12", "panda-gym>=3.0.7,<4"],
    # The launcher in zoo/. rl_zoo3 needs pandas and requests and declares neither
    "zoo": [
        "rl_zoo3>=2.9.2,<3",
        "optuna>=4",
        "pandas>=2.2,<3",
        "requests",
        "matplotlib>=3.8",
        "imageio>=2.30",
        "imageio-ffmpeg>=0.5",
        "pyyaml>=6",
        "rich",
        "tqdm",
    ],
    # Searches over many machines, and benchmarks on a cluster
    "postgres": ["psycopg[binary]>=3.1"],
    "ray": ["ray>=2.40"],
    # Logs of the training: -tb and --track
    "track": ["tensorboard>=2.14", "wandb>=0.20"],
    # Comparisons of many runs, and datasets
    "benchmark": ["rliable>=1.2", "pandas>=2.2,<3", "matplotlib>=3.8", "pyarrow", "minari>=0.5", "h5py"],
    # The site
    "docs": ["sphinx>=8.1", "furo>=2024.8", "myst-parser>=4", "sphinx-copybutton>=0.5"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "ruff>=0.12",
        "black>=25",
        "mypy>=1.11",
        "mpmath>=1.3",
        "setuptools>=77",
        "pygame",
    ],
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})

setup(
    name="hipi_sb3",
    version=VERSION.group(1),
    description="HIPI: relabel past experience with the task it was right for, for Stable-Baselines3",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="hipi_sb3 developers",
    license="MIT",
    python_requires=">=3.11",
    # The launcher runs from the checkout: nothing but hipi_sb3 is a top-level package. The YAML files are its data.
    packages=[*find_packages(include=["hipi_sb3", "hipi_sb3.*"]), "hipi_sb3.hyperparams"],
    package_dir={"hipi_sb3": "hipi_sb3", "hipi_sb3.hyperparams": "hyperparams"},
    package_data={"hipi_sb3": ["py.typed"], "hipi_sb3.shipped": ["*.npz", "*.json"], "hipi_sb3.hyperparams": ["*.yml"]},
    install_requires=[
        "gymnasium[mujoco]>=1.1,<2",
        "mujoco>=3.1,<5",
        "numpy>=1.26,<3",
        "sb3-contrib>=2.9,<3",
        "scipy>=1.10",
        "stable-baselines3>=2.9,<3",
        "torch>=2.8,<3",
    ],
    extras_require=EXTRAS,
)
