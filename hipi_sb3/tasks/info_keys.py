"""What a ``compute_reward`` reads of ``info``: which keys, and as features, so that rows can be relabeled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Recorder(dict[str, Any]):
    """
    An ``info`` that remembers which of its keys are read; one that is not there reads as 0.

    :param info: what it holds
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        #: The keys, in the order in which they were read.
        self.read: dict[str, None] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = None
        return super().get(key, 0.0)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            return self[key]
        return default


class InfoFeatures:
    """
    Entries of ``info`` as features, and back.

    :param infos: some infos, from which the shapes of the entries are taken; one that none of them has is a number
    :param keys: the entries
    :raises ValueError: when an entry is not made of numbers
    """

    def __init__(self, infos: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        for key in keys:
            example = np.asarray(next((info[key] for info in infos if key in info), 0.0))
            if example.dtype.kind not in "biuf":
                raise ValueError(
                    f"compute_reward reads info[{key!r}], which is {example.item() if example.ndim == 0 else example!r}: only "
                    "numbers and arrays of numbers can be kept to relabel with. Put numbers there."
                )
            self.shapes[key] = example.shape
        self.size = sum(int(np.prod(shape)) for shape in self.shapes.values())

    def read(self, infos: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """
        Features of steps.

        :param infos: info of each
        :return: (n, size), float32
        :raises ValueError: when an entry is missing
        """
        features = np.zeros((len(infos), self.size), dtype=np.float32)
        for row, info in zip(features, infos, strict=True):
            at = 0
            for key, shape in self.shapes.items():
                if key not in info:
                    raise ValueError(
                        f"compute_reward reads info[{key!r}], but the info of this step has {', '.join(info) or 'nothing'}. "
                        "Let every step put it there, or name what is needed: GoalEnvTasks(env, info_keys=[...])."
                    )
                size = int(np.prod(shape))
                row[at : at + size] = np.ravel(info[key])
                at += size
        return features

    def infos(self, features: np.ndarray) -> np.ndarray:
        """
        The way back.

        :param features: (..., size)
        :return: a dict each, (...,)
        """
        infos = np.empty(features.shape[:-1], dtype=object)
        for place in np.ndindex(infos.shape):
            info, at = {}, 0
            for key, shape in self.shapes.items():
                size = int(np.prod(shape))
                values = features[place][at : at + size]
                info[key] = values.reshape(shape) if shape else float(values[0])
                at += size
            infos[place] = info
        return infos
