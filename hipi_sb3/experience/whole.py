"""Files that are there whole or as they were before, whether the process is killed, the disk is full or the power goes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.EFBIG: "Raise the limit of the size of files (ulimit -f)",
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
