"""An update of the networks that is recorded once and replayed: a CUDA graph."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples

from hipi_sb3.experience.layout import each

Samples = ReplayBufferSamples | DictReplayBufferSamples
Result = TypeVar("Result")


class UpdateGraph:
    """
    One update, recorded: the kernels of small networks are done sooner than they are launched one by one, and a graph launches
    all of them at once.

    Whatever the update reads is read again from the same place: batches are copied into tensors that belong to the graph, and
    numbers that change, such as learning rates, have to be tensors. It must have run before, so that optimizers have their
    state.

    :param update: the update; recording does not execute it
    :param data: a batch, for its shapes
    """

    def __init__(self, update: Callable[[Samples], dict[str, th.Tensor]], data: Samples) -> None:
        self._data = _map(data, th.clone)
        self._replay, self._losses = record(lambda: update(self._data), tensors_of(data)[0].device)

    def __call__(self, data: Samples) -> dict[str, th.Tensor]:
        """
        Make the update with a batch.

        :param data: batch of the recorded one's shapes
        :return: losses, which the next call overwrites
        """
        for own, new in zip(tensors_of(self._data), tensors_of(data), strict=True):
            own.copy_(new)
        self._replay()
        return self._losses


def record(function: Callable[[], Result], device: th.device) -> tuple[Callable[[], None], Result]:
    """
    Record what a function does on the GPU, without doing it.

    :param function: it must neither read tensors back nor depend on numbers that change
    :param device: the GPU
    :return: a function that does it, and the result, whose tensors it overwrites each time
    """
    graph = th.cuda.CUDAGraph()
    # On a stream of this very device: the default one belongs to whichever was current first.
    with th.cuda.device(device), th.cuda.graph(graph, stream=th.cuda.Stream(device)):
        result = function()
    return graph.replay, result


def tensors_of(data: Samples) -> list[th.Tensor]:
    """
    All tensors of a batch.

    :param data: the batch
    :return: its tensors, in a fixed order
    """
    tensors: list[th.Tensor] = []
    _map(data, tensors.append)
    return tensors


def _map(data: Any, function: Callable[[th.Tensor], Any]) -> Any:
    return type(data)(*(None if part is None else each(part, function) for part in data))
