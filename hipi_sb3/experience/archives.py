"""Arrays from files that anybody may have written: looked at before they are read, without pickle."""

import math
import re
import stat
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

#: What is unpacked from an archive may be this many times as large as the archive, where it has more bytes than these at all.
MAX_RATIO = 200
MAX_FREE_BYTES = 1 << 28

_READERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def check_no_link(path: Path) -> None:
    """
    Refuse a symbolic link: what it points to is not part of what was handed over.

    :param path: file
    :raises ValueError: when it is one
    """
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link, and what is read or written through it would lie elsewhere. Put the file itself in "
            "its place."
        )


def check_archive(archive: zipfile.ZipFile, path: Any) -> None:
    """
    Look at the entries of an archive before any of them is read.

    :param archive: the archive
    :param path: its path, for the error
    :raises ValueError: when an entry leaves the archive's folder, is a link or there twice, or is far larger than the file
    """
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for entry in entries:
        parts = re.split(r"[/\\]", entry.filename)
        if ".." in parts or parts[0] == "" or ":" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{path} has an entry {entry.filename!r} outside of the archive: it is not read.")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path} has {min(twice)!r} more than once: it is not read.")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    size = archive.fp.seek(0, 2) if archive.fp is not None else packed
    if packed > size or (unpacked > MAX_FREE_BYTES and unpacked > MAX_RATIO * size):
        raise ValueError(
            f"{path} has {size} bytes and would unpack to {unpacked}: more than {MAX_RATIO} times as many are not read. If it "
            "is what you want, unpack it yourself into a folder."
        )


def check_torch_file(file: IO[bytes], path: Any) -> None:
    """
    Look at a file of ``torch.save`` before torch reads it: it is an archive, whose entries torch would unpack.

    :param file: the file, or a stream of it
    :param path: its path, for the error
    :raises ValueError: as :func:`check_archive`
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, path)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """
    Read an ``.npz`` file.

    :param path: file
    :return: arrays by name
    :raises ValueError: when it is damaged, or anything but plain arrays of the size that their files have
    """
    path = Path(path)
    check_no_link(path)
    with open(path, "rb") as file:
        return read_npz_stream(file, path)


def read_npz_stream(file: Any, path: Any) -> dict[str, np.ndarray]:
    """
    Read an ``.npz`` file from a stream, see :func:`read_npz`.

    :param file: the stream
    :param path: what to call it in an error
    :return: arrays by name
    """
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, path)
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    where = f"{path}, entry {entry.filename!r}"
                    check_header(member, entry.file_size, where)
                    member.seek(0)
                    arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:  # RuntimeError: encrypted, or an unknown method
        raise ValueError(f"{path} is no whole .npz file ({error}).") from error
    return arrays


def read_npy(path: Path, mmap_mode: Any = None) -> np.ndarray:
    """
    Read an ``.npy`` file.

    :param path: file
    :param mmap_mode: as in ``np.load``
    :return: array
    :raises ValueError: when it is damaged, or anything but a plain array of the size that the file has
    """
    check_no_link(path)
    with open(path, "rb") as file:
        check_header(file, path.stat().st_size, str(path))
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def check_header(file: IO[bytes], size: int, where: str) -> None:
    """
    Check that a ``.npy`` file holds plain values, as many as its header says: memory is allocated by the header.

    :param file: the file, at its beginning
    :param size: its bytes
    :param where: what to call it in an error
    :raises ValueError: when not
    """
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = _READERS[version](file)
        expected = math.prod(shape) * dtype.itemsize
    except (ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} is no .npy file: {' '.join(str(error).split())[:200]}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{where} holds objects, and reading them would unpickle them, which can run any code: it is not read."
        )
    if min(shape, default=0) < 0 or expected != size - file.tell():
        raise ValueError(
            f"{where} says that it holds {shape} values of {dtype}, {expected} bytes, but there are {size - file.tell()}: "
            "it is not read."
        )
