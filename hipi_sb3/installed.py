"""What is installed: versions of the packages that decide what a run gives, extras, and the machine. For bug reports."""

import os
import platform
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

#: Packages whose versions decide what a run gives.
PACKAGES = ("hipi_sb3", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "numpy", "gymnasium", "mujoco", "optuna")

#: Extras that are made of others, or are for those who develop the package.
_OF_NO_INTEREST = {"all", "dev", "docs"}


def versions() -> dict[str, str]:
    """
    List the versions of Python and of the packages that matter.

    :return: version by name
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def missing_of_extras() -> dict[str, list[str]]:
    """
    List the extras, and what is missing of each.

    :return: missing packages by extra, none where it is complete; empty where hipi_sb3 itself is not installed
    """
    try:
        requirements = requires("hipi_sb3") or []
    except PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+).*;\s*extra == ['\"]([\w-]+)['\"]", requirement)
        if match is None or match.group(2) in _OF_NO_INTEREST:
            continue
        package, extra = match.groups()
        of_extra = missing.setdefault(extra.replace("-", "_"), [])
        try:
            version(package)
        except PackageNotFoundError:
            of_extra.append(package)
    return missing


def licences() -> dict[str, tuple[str, str]]:
    """
    List all packages that hipi_sb3 and its extras need, directly or not, as far as they are installed.

    :return: version and licence by name, as the packages themselves say
    """
    found: dict[str, tuple[str, str]] = {}
    waiting = ["hipi_sb3"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            about = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = (about.version, _licence_of(about))
        for requirement in about.requires or []:
            # Extras of its own only for the package itself: what it does not ask for may be there for another reason.
            if name == "hipi-sb3" or "extra ==" not in requirement:
                waiting.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return dict(sorted(found.items()))


def _licence_of(about: Distribution) -> str:
    of_field: Any = dict(about.metadata.items())  # type: ignore[attr-defined]
    given = of_field.get("License-Expression") or of_field.get("License") or ""
    classified = [
        entry.rpartition(" :: ")[2]
        for entry in about.metadata.get_all("Classifier") or []
        if entry.startswith("License ::") and entry != "License :: OSI Approved"
    ]
    line = " ".join(given.split())
    # Some have the whole text in that field.
    return line if 0 < len(line) < 60 else ", ".join(classified) or line[:57] + "..." * bool(line) or "unknown"


def report_licences() -> str:
    """
    Say names, versions and licences, one package a line.

    :return: text
    """
    return "\n".join(f"{name:<32} {number:<18} {licence}" for name, (number, licence) in licences().items())


def machine() -> str:
    """
    Describe the machine.

    :return: processor and number of cores
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{cpu or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def report() -> str:
    """
    Say all of it, one thing a line, to be pasted into a bug report.

    :return: text
    """
    lines = [f"{name:<18} {number}" for name, number in versions().items()]
    lines.append(f"{'machine':<18} {machine()}")
    extras = missing_of_extras()
    complete = sorted(extra for extra, missing in extras.items() if not missing)
    lines.append(f"{'extras':<18} {', '.join(complete) or 'none'}")
    for extra, missing in sorted(extras.items()):
        if missing:
            lines.append(f"{'  not installed':<18} {extra}: {', '.join(missing)} missing (pip install 'hipi_sb3[{extra}]')")
    return "\n".join(lines)
