"""Disks that fill up, processes that are killed between two operations on files, and power that goes."""

import builtins
import os
import pathlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

#: What is done to a file or a folder, and its path.
Operation = tuple[str, str]

_AUDITED = {"os.mkdir": "mkdir", "os.remove": "unlink", "os.rmdir": "rmdir"}


def _watch(folder: pathlib.Path, act: Callable[[str, str], None]) -> None:
    """Call ``act`` before each operation in a folder from now on: nothing takes that back, so it is for a forked child."""

    def note(kind: str, path: str) -> None:
        if path.startswith(str(folder)):
            act(kind, path)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            note("write", os.fspath(arguments[0]))
        elif event == "os.rename":
            note("rename", f"{os.fspath(arguments[0])} -> {os.fspath(arguments[1])}")
        elif event in _AUDITED:
            path, at = os.fspath(arguments[0]), arguments[-1]
            # shutil.rmtree names entries of a folder that it has opened.
            note(_AUDITED[event], path if at < 0 else os.path.join(os.readlink(f"/proc/self/fd/{at}"), path))

    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        note("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = noted_fsync  # type: ignore[assignment]
    sys.addaudithook(audit)


def in_child(act: Callable[[], str | None]) -> tuple[int, str]:
    """
    Do something in a forked child.

    :param act: what to do; what it returns is handed over
    :return: exit code, 0 if it came to its end, negative for a signal; and the text
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            with builtins.open(writer, "w") as answers:  # a pipe is never full of the disk's limit
                answers.write(act() or "")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with builtins.open(reader) as answers:
        text = answers.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def recorded(write: Callable[[], Any], folder: pathlib.Path) -> list[Operation]:
    """
    List the operations on files of a folder, in their order.

    :param write: what writes, in a forked child
    :param folder: the folder
    :return: operations
    """

    def record() -> str:
        lines: list[str] = []
        _watch(folder, lambda kind, path: lines.append(f"{kind}\t{path}"))
        write()
        return "\n".join(lines)

    code, text = in_child(record)
    assert code == 0
    return [(kind, path) for kind, _, path in (line.partition("\t") for line in text.splitlines())]


def killed_at(number: int, in_the_midst: bool, write: Callable[[], Any], folder: pathlib.Path) -> int:
    """
    Kill a forked child before an operation or, where it writes a file, after the first bytes of it.

    :param number: at which operation, from 0 on
    :param in_the_midst: whether to let it write the first bytes
    :param write: what the child does
    :param folder: operations in it count
    :return: its exit code: that of the signal, or 0 if there are not as many operations or the file has no more bytes
    """

    def die() -> None:
        numbers = iter(range(10**9))

        def act(kind: str, path: str) -> None:
            if next(numbers) != number:
                return
            if not in_the_midst:
                os.kill(os.getpid(), signal.SIGKILL)
            # The file gets seven bytes, and the kernel kills its writer at the next one.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (7, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

        _watch(folder, act)
        write()

    return in_child(die)[0]


def on_full_disk(write: Callable[[], Any], n_bytes: int) -> str:
    """
    Write in a forked child on a disk on which no file can be longer than some bytes.

    :param write: what writes
    :param n_bytes: bytes
    :return: name of the error's class and its text; nothing if there is no error
    """

    def fill() -> str | None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the system's error instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
        return failure(write)

    code, text = in_child(fill)
    assert code == 0
    return text


def failure(write: Callable[[], Any]) -> str:
    """
    What is said when something cannot be written.

    :param write: what writes
    :return: name of the error's class and its text; nothing if there is no error
    """
    try:
        write()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def assert_survives_power_cuts(operations: list[Operation]) -> None:
    """
    Check that a file's content is on the disk before its new name is, and the last new name before anything is deleted.

    :param operations: see :func:`recorded`
    """
    last = max(number for number, (kind, _) in enumerate(operations) if kind == "rename")
    dirty: set[str] = set()  # files, and folders whose list of names has changed
    for number, (kind, path) in enumerate(operations):
        if kind in ("write", "mkdir"):
            dirty |= {path, os.path.dirname(path)}
        elif kind == "fsync":
            dirty.discard(path)
        elif kind == "rename":
            source, _, target = path.partition(" -> ")
            unsafe = {name for name in dirty if name == source or name.startswith(f"{source}/")}
            if number == last:
                # It makes the new state the one that counts: all of it has to be there. Folders around it follow.
                unsafe |= {name for name in dirty if not source.startswith(f"{name}/")}
            assert not unsafe, f"{target} was given its name before the disk had {unsafe}"
            dirty |= {os.path.dirname(source), os.path.dirname(target)}
        elif number > last:
            assert not dirty, f"{path} was deleted before the disk had {dirty}"
    assert not dirty, f"the disk never has {dirty}"
