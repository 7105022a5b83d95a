"""Minibatches of a labeled data set of any size: pieces of it are read in random order, some of them at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hipi_sb3.cloning.labels import Labels
from hipi_sb3.cloning.trajectories import TrajectoryDataset
from hipi_sb3.experience.layout import each, gather

#: Steps that are in memory at a time, and steps that are read from the data set in one piece.
WINDOW_STEPS = 1 << 18
PIECE_STEPS = 1 << 12


@dataclass(frozen=True)
class Minibatch:
    """
    Some steps of a data set.

    :param dataset: the data set
    :param steps: their indices, (batch_size,)
    :param observations: observations, (batch_size, ...), or a dict of such
    :param actions: actions, (batch_size, ...)
    :param rng: random generator, for whatever is drawn for this minibatch
    """

    dataset: TrajectoryDataset
    steps: np.ndarray
    observations: Any
    actions: np.ndarray
    rng: np.random.Generator


def updates_per_epoch(n_steps: int, batch_size: int) -> int:
    """Minibatches of an epoch: an incomplete one at its end is left out, unless it is the only one."""
    return max(1, n_steps // batch_size)


def minibatches(dataset: TrajectoryDataset, labels: Labels, batch_size: int, seed: int, epoch: int) -> Iterator[Minibatch]:
    """
    Go through the labeled steps once, in random order.

    The data set is read in contiguous pieces, in random order. A window of them is in memory at a time and shuffled: a small
    data set is shuffled completely, and of a large one no more than a window is ever loaded.

    :param dataset: trajectories
    :param labels: its labels; steps without any are left out
    :param batch_size: steps of a minibatch
    :param seed: seed
    :param epoch: number of the epoch; with the seed it decides the order
    :return: minibatches
    """
    rng = np.random.default_rng([seed, 1, epoch])
    pieces = rng.permutation(-(-dataset.n_steps // PIECE_STEPS))
    per_window = WINDOW_STEPS // PIECE_STEPS
    n_left = updates_per_epoch(int(labels.n_steps.sum()), batch_size)
    number = 0
    rest: list[_Piece] = []
    for first in range(0, len(pieces), per_window):
        window = _join(rest + [_load(dataset, labels, int(piece)) for piece in pieces[first : first + per_window]])
        order = rng.permutation(len(window[0]))
        is_last = first + per_window >= len(pieces)
        begin = 0
        while begin + batch_size <= len(order) or (is_last and number < n_left):
            some = _take(window, order[begin : begin + batch_size])
            yield Minibatch(dataset, *some, rng=np.random.default_rng([seed, 2, epoch, number]))
            begin += batch_size
            number += 1
        rest = [_take(window, order[begin:])]


#: Steps, observations and actions.
_Piece = tuple[np.ndarray, Any, np.ndarray]


def _load(dataset: TrajectoryDataset, labels: Labels, piece: int) -> _Piece:
    """The steps of a piece that have labels."""
    begin, end = piece * PIECE_STEPS, min((piece + 1) * PIECE_STEPS, dataset.n_steps)
    steps = np.arange(begin, end)
    rows = labels.segments.row_of(steps)
    counts = steps - labels.segments.start[rows] < labels.n_steps[rows]
    return (
        steps[counts],
        each(dataset.observations, lambda array: array[begin:end][counts]),
        dataset.actions[begin:end][counts],
    )


def _join(pieces: list[_Piece]) -> _Piece:
    steps, observations, actions = zip(*pieces, strict=True)
    if isinstance(observations[0], dict):
        joined: Any = {key: np.concatenate([part[key] for part in observations]) for key in observations[0]}
    else:
        joined = np.concatenate(observations)
    return np.concatenate(steps), joined, np.concatenate(actions)


def _take(piece: _Piece, at: np.ndarray) -> _Piece:
    return piece[0][at], gather(piece[1], at), piece[2][at]
