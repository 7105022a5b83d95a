"""What reading and writing long arrays needs: a progress bar, arrays in mapped files, observations without their task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces


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
    """
    if folder is None:
        return np.empty(shape, dtype)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(Path(folder) / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def without_task(parts: Any, task_key: str | None) -> Any:
    """
    A Dict observation, or its space, without the task: what is left is one array where it was made by MultiTaskWrapper.

    :param parts: arrays by key, or ``spaces.Dict``
    :param task_key: key of the task
    :return: the other entries; the entry ``observation`` where there is no other
    """
    rest = {key: part for key, part in parts.items() if key != task_key}
    if rest.keys() == {"observation"}:
        return rest["observation"]
    return spaces.Dict(rest) if isinstance(parts, spaces.Dict) else rest
