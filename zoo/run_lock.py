"""One run in one folder: a lock that says who has the folder, and that a killed owner does not keep."""

import fcntl
import json
import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from hipi_sb3.experience.archives import check_no_link
from hipi_sb3.experience.whole import remedy_named
from zoo.errors import ConfigurationError

LOCK = "run.lock"


class RunLock:
    """
    Taken when it is made, free after :meth:`release`. That of a process that lives no more on this host is taken over.

    :param folder: folder of the run
    :raises ConfigurationError: when another process has it; it is named
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK
        self._mine = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        check_no_link(self.path)
        # Looked at and written by one process at a time: of two that find a stale lock, only the first takes it.
        with remedy_named(self.path):
            descriptor = _open_locked(self.path)
        try:
            owner = _read_owner(descriptor)
            if owner is not None and _may_live(owner):
                raise ConfigurationError(
                    f"{folder} belongs to a run of process {owner['pid']} on {owner['host']}, since {owner['since']}. Wait "
                    f"until it ends, or end it there (kill {owner['pid']}), then do the same again. If that host is gone, "
                    f"delete {self.path}."
                )
            if owner is not None:
                print(f"The run in {folder} was left by process {owner['pid']}, which is gone: taking it over.")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(self._mine) + "\n").encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Give the folder back. A lock that somebody else has taken meanwhile stays theirs."""
        if not self.path.is_file():
            return
        descriptor = _open_locked(self.path)
        try:
            if _read_owner(descriptor) == self._mine:
                self.path.unlink()
        finally:
            os.close(descriptor)


def process_start(pid: int) -> str | None:
    """
    Say when a process of this host was started: another one may have its number later.

    :param pid: number of the process
    :return: the time, as the system writes it; None if there is no such process, or nothing but its exit code is left
    """
    if not Path("/proc/self/stat").exists():
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    try:
        # After the name, which may hold anything: the state is the first field, the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _open_locked(path: Path) -> int:
    """Open the file and have it alone until it is closed; it is the file that the path names then."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # released, and deleted, while this process waited
        os.close(descriptor)


def _read_owner(descriptor: int) -> dict[str, Any] | None:
    """Who has the lock; None if nobody has, or the owner was killed or lost power while it was written."""
    try:
        owner = json.loads(os.pread(descriptor, 10_000, 0))
        return {**owner, "pid": int(owner["pid"]), "host": str(owner["host"]), "since": str(owner["since"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _may_live(owner: dict[str, Any]) -> bool:
    if owner["host"] != platform.node():
        return True  # nobody can tell from here
    start = process_start(owner["pid"])
    return start is not None and start == owner.get("started")
