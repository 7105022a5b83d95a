"""Folders of plain arrays: written whole or not at all, checked when they are read, without pickle.

``buffer.json`` holds a tree of plain values, in which an array is named by its file, with the shape, type and SHA-256 of each
array. The files are ``.npy``, in a folder of their own that ``buffer.json`` names, so that a new state is there from the
moment at which ``buffer.json`` is replaced, and the old one until then.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from hipi_sb3.experience.archives import check_no_link, read_npy
from hipi_sb3.experience.whole import flush, remedy_named, whole_file

HEADER = "buffer.json"
FORMAT = "hipi_sb3.HIPIReplayBuffer"
#: Raised whenever older readers would misread what is written.
VERSION = 1

#: Smaller arrays are read rather than mapped.
_MIN_MAPPED_BYTES = 1 << 16

_REMEDY = "Load an earlier copy of the buffer, or collect its transitions again."


def write_state(path: str | Path, state: dict[str, Any]) -> None:
    """
    Write a state. Whenever the process is killed, the folder holds the old state or the new one.

    :param path: folder; is made, or holds an older state that is replaced
    :param state: dicts, lists and tuples of arrays, numbers, strings, booleans and None
    :raises FileExistsError: when there is something else in that place
    :raises TypeError: when the state holds something else
    :raises NotWritten: when the disk is full, or cannot be written to
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and all(_is_ours(entry) for entry in path.iterdir())):
        raise FileExistsError(f"{path} exists and is not the folder of a replay buffer. Choose another path, or remove it.")
    arrays: dict[str, np.ndarray] = {}
    packed = pack(state, arrays)
    with remedy_named(path):
        path.mkdir(parents=True, exist_ok=True)
        numbers = [int(entry.name.partition("-")[2]) for entry in path.glob("arrays-*")]
        folder = path / f"arrays-{max(numbers, default=0) + 1}"
        folder.mkdir()
        entries = _write_arrays(folder, arrays)
        for written in (folder, path, path.parent):
            flush(written)
        header = {"format": FORMAT, "version": VERSION, "folder": folder.name, "arrays": entries, "state": packed}
        # From the moment at which it takes its place, the state is the new one.
        with whole_file(path / HEADER) as temporary:
            temporary.write_text(json.dumps({**header, "sha256": _text_checksum(header)}, indent=1) + "\n")
        for entry in path.glob("arrays-*"):
            if entry != folder:
                shutil.rmtree(entry)


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write each array into a file, and return what the header says of it."""
    entries = {}
    try:
        for name, array in arrays.items():
            file = folder / f"{name}.npy"
            np.save(file, array)
            flush(file)
            entries[name] = {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": checksum(file)}
    except OSError:
        shutil.rmtree(folder)  # on a full disk its room is needed
        raise
    return entries


def read_state(path: str | Path, mmap: bool = False) -> Any:
    """
    Read what :func:`write_state` wrote.

    :param path: folder
    :param mmap: map large arrays into memory instead of reading them; what is written to them never reaches the file
    :return: the state
    :raises FileNotFoundError: when there is none, or an array is missing
    :raises ValueError: when a file is damaged, or of another version
    """
    path = Path(path)
    check_no_link(path / HEADER)
    try:
        header = json.loads((path / HEADER).read_text())
        expected = header.pop("sha256")
        is_whole = header["format"] == FORMAT and (header["version"] != VERSION or _text_checksum(header) == expected)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path / HEADER} does not exist, so {path} is not the folder of a replay buffer, or it was never written to "
            "the end. Give the path that was passed to save."
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path / HEADER} is damaged: it has to be what save wrote, unchanged. {_REMEDY}")
    if header["version"] != VERSION:
        raise ValueError(
            f"{path / HEADER} has format version {header['version']}, but this hipi_sb3 reads version {VERSION}. "
            "Load it with the hipi_sb3 that wrote it."
        )
    # Anybody can write a checksum: what is named is read from this folder and nowhere else.
    strange = [name for name in (header["folder"], *header["arrays"]) if re.fullmatch(r"[\w-][\w.-]*", name) is None]
    if strange:
        raise ValueError(f"{path / HEADER} names {strange[0]!r}, which is no file of this folder: it is not read. {_REMEDY}")
    check_no_link(path / header["folder"])
    arrays = {
        name: _read_array(path / header["folder"] / f"{name}.npy", entry, mmap) for name, entry in header["arrays"].items()
    }
    return unpack(header["state"], arrays)


def checksum(path: Path) -> str:
    """
    Compute the SHA-256 of a file.

    :param path: file
    :return: hexadecimal digits
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    Describe a space by plain values.

    :param space: ``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a ``Dict`` of such
    :return: dicts, lists and numbers
    :raises ValueError: when it is another space
    """
    if isinstance(space, spaces.Dict):
        return {"parts": {key: space_to_json(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start), "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec.tolist(), "dtype": space.dtype.name, "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"bits": list(space.shape)}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"Box, Discrete, MultiDiscrete, MultiBinary and Dict spaces can be saved, but not {space}.")
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": space.dtype.name}


def space_from_json(entry: dict[str, Any]) -> spaces.Space:
    """
    The space of :func:`space_to_json`.

    :param entry: what that returned
    :return: space
    """
    if "parts" in entry:
        # Pairs: a dict would be sorted, and networks take the parts in the order of the space that they were built for.
        return spaces.Dict([(key, space_from_json(part)) for key, part in entry["parts"].items()])
    if "n" in entry:
        return spaces.Discrete(entry["n"], start=entry["start"], dtype=np.dtype(entry.get("dtype", "int64")).type)
    if "bits" in entry:
        return spaces.MultiBinary(entry["bits"] if len(entry["bits"]) > 1 else entry["bits"][0])
    dtype: Any = np.dtype(entry["dtype"])
    if "nvec" in entry:
        return spaces.MultiDiscrete(entry["nvec"], dtype=dtype, start=entry["start"])
    return spaces.Box(np.array(entry["low"], dtype=dtype), np.array(entry["high"], dtype=dtype), dtype=dtype)


def _is_ours(entry: Path) -> bool:
    return entry.name in (HEADER, f"writing-{HEADER}", f"{HEADER}.tmp") or re.fullmatch(r"arrays-\d+", entry.name) is not None


def _read_array(file: Path, entry: dict[str, Any], mmap: bool) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, but {HEADER} names it. {_REMEDY}")
    if checksum(file) != entry["sha256"]:
        raise ValueError(f"{file} is damaged: its SHA-256 has to be the one in {HEADER}. {_REMEDY}")
    return read_npy(file, "c" if mmap and file.stat().st_size >= _MIN_MAPPED_BYTES else None)


def _text_checksum(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def pack(value: Any, arrays: dict[str, np.ndarray], name: str = "") -> Any:
    """
    Turn a tree of values into plain ones for JSON.

    :param value: dicts, lists and tuples of arrays, numbers, strings, booleans and None
    :param arrays: gets the arrays that it holds, by the name of their file
    :param name: what to call it in an error, and its arrays
    :return: plain values, in which an array is named by its file
    :raises TypeError: when there is something else in it
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        file = re.sub(r"[^\w.-]", "_", name)
        while file in arrays:
            file += "_"
        arrays[file] = value
        return {"array": file}
    if isinstance(value, list | tuple):
        items = [pack(item, arrays, f"{name}.{i}") for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        # As pairs: JSON would turn keys that are numbers into strings.
        return {"dict": [[key, pack(item, arrays, f"{name}.{key}".lstrip("."))] for key, item in value.items()]}
    raise TypeError(f"{name} is {type(value).__name__}, which is neither an array nor a plain value, so it cannot be saved.")


def unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """
    Make the tree of values of :func:`pack`.

    :param value: what it returned
    :param arrays: its arrays
    :return: the tree
    :raises ValueError: when it is nothing that it could have returned
    :raises KeyError: when an array is missing
    """
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("array", "tensor"):  # the second is an older form of the first
        return arrays[content]
    if kind == "dict":
        return {key: unpack(item, arrays) for key, item in content}
    items = [unpack(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items
