"""Where a number comes from: command, commit, versions, machine."""

import argparse
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hipi_sb3.installed import machine, versions

ROOT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """
    Say what runs here.

    :return: date, commit, versions and machine
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def commit() -> str:
    """
    Name the commit of the checkout.

    :return: short hash, with ``-dirty`` where code differs from it; results are no code. Empty outside a repository
    """
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def command_line(script: str, arguments: list[str]) -> str:
    """
    Format a command of the launcher so that it can be pasted into a shell; the password of a URL is left out.

    :param script: file in ``zoo/``
    :param arguments: its arguments
    :return: command
    """
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", shlex.join(["python", f"zoo/{script}", *arguments]))


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """
    Say how and where the numbers were made.

    :param args: command line
    :return: command, commit, versions, machine
    """
    options = [
        part
        for name, value in vars(args).items()
        if value and name != "folder"
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return {"command": command_line("benchmark.py", options), **provenance(), "note": "one thread a run"}
