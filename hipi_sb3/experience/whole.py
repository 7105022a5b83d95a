"""Files that are there whole or as they were before, whether the process is killed, the disk is full or the power goes."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.EFBIG: "Raise the limit of the size of files (ulimit -f)",
    errno.ENOENT: "Make its folder first",
    errno.EACCES: "Make it writable, or choose another folder",
    errno.EPERM: "Make it writable, or choose another folder",
    errno.EROFS: "Choose a folder on a disk that can be written to",
    errno.ENOTDIR: "Move away what is in the place of its folder",
    errno.EEXIST: "Move away what is in its place",
    errno.EISDIR: "Move away what is in its place",
}


class NotWritten(OSError):
    """A file or a folder could not be written. What was there before is as it was."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def remedy_named(path: str | Path) -> Iterator[None]:
    """
    Say in the error what could not be written, and what to do about it.

    :param path: file or folder that is written
    :raises NotWritten: when it cannot be
    """
    try:
        yield
    except NotWritten:
        raise
    except (OSError, RuntimeError) as error:
        # NumPy's error has no number, and PyTorch's writer has an error of its own, in words only.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        number = getattr(error, "errno", None) or errno.ENOSPC
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        remedy = _REMEDIES.get(number, "Make room on its disk")
        raise NotWritten(
            number,
            f"{path} cannot be written: {reason}. What was there before is as it was. {remedy}, then do the same again.",
        ) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    Write a file that is there whole, or as it was before.

    :param path: the file
    :return: file beside it to write into, with the same suffix; it takes its place at the end
    :raises NotWritten: when the disk is full, or cannot be written to
    """
    path = Path(path)
    temporary = path.with_name(f"writing-{path.name}")
    with remedy_named(path):
        try:
            yield temporary
            # The content before the name: after a power cut, the name must not be that of an empty file.
            flush(temporary)
            os.replace(temporary, path)
        except Exception:
            if temporary.is_file():
                temporary.unlink()
            raise
        flush(path.parent)


@contextmanager
def whole_folder(path: str | Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """
    Write a folder that is there whole, or as it was before. What was mapped from the old one stays as it was.

    :param path: the folder
    :param is_ours: whether an entry of a folder in its place, or in one of the two places beside it, may be replaced
    :return: folder beside it to write into; it takes its place at the end
    :raises FileExistsError: when something else is in one of these places
    :raises NotWritten: when the disk is full, or cannot be written to
    """
    path = Path(path)
    restore_folder(path)
    new, old = path.with_name(f"writing-{path.name}"), _replaced(path)
    for place in (path, new, old):
        if place.exists() and not (place.is_dir() and all(map(is_ours, place.iterdir()))):
            raise FileExistsError(f"{place} exists and holds something else. Choose another path, or remove it.")
    with remedy_named(path):
        for left_by_a_kill in (new, old):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    with remedy_named(path):
        for entry in (*new.iterdir(), new):
            flush(entry)
        # A folder that is not empty cannot be replaced in one step. Killed between these two, restore_folder puts it back.
        if path.exists():
            path.rename(old)
        new.rename(path)
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """
    Put back what :func:`whole_folder` was about to replace when the process was killed. Nothing is removed.

    :param path: the folder
    """
    old = _replaced(path)
    if old.is_dir() and not path.exists():
        old.rename(path)


def _replaced(path: Path) -> Path:
    return path.with_name(f"replaced-{path.name}")


def flush(path: Path) -> None:
    """
    Have a file or a folder written to the disk itself.

    :param path: file or folder
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
