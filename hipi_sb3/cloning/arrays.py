"""What reading and writing long arrays needs: a progress bar, and arrays in mapped files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hipi_sb3.experience.whole import remedy_named


@contextmanager
def show_progress(total: int, description: str, show: bool) -> Iterator[Callable[[int], Any]]:
    """
    Show a progress bar.

    :param total: number of steps
    :param description: what is going on
    :param show: whether to show it
    :return: function to call with the number of steps that were done
    :raises ImportError: when tqdm is missing
    """
    if not show:
        yield lambda n_steps: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("The progress bar needs tqdm: run `pip install tqdm`, or pass progress_bar=False.") from error
    with tqdm(total=total, desc=description, unit="step", unit_scale=True) as bar:
        yield bar.update


def allocate(folder: str | Path | None, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """
    Make an array in memory, or in a file that is mapped into memory.

    :param folder: folder of the file; memory if None
    :param name: name of the array
    :param shape: shape
    :param dtype: data type
    :return: array
    :raises NotWritten: when there is no room for the file
    """
    if folder is None:
        return np.empty(shape, dtype)
    path = Path(folder) / f"{name}.npy"
    with remedy_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # writing into a mapped file for which there is no room kills the process
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
