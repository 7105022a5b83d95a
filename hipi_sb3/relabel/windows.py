"""What steps are worth for tasks: the only place that computes it, for what is learned and for what is scored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from hipi_sb3.experience.layout import take
from hipi_sb3.experience.transitions import Experience, Steps
from hipi_sb3.relabel.tensor_forms import tensor_form
from hipi_sb3.tasks.family import TaskFamily

#: Length of every window of one step.
_ONE = np.ones((), dtype=int)


@dataclass
class Outcomes:
    """
    What happens in windows under tasks, up to the first termination or the end of the episode: arrays, or tensors where steps
    were judged on a device.

    :param rewards: discounted sums of rewards, (n_rows, ...)
    :param terminated: whether the task or the environment ends there, (n_rows, ...); a time limit does not
    :param length: number of steps that count, (n_rows, ...), or 1 for all: the value of what follows is discounted by gamma to
        this power
    """

    rewards: Any
    terminated: Any
    length: Any


class Windows:
    """
    Some steps from each row on, as far as its episode reaches.

    :param experience: what happened
    :param at: ring indices and environment indices of the first steps, (n_rows,) each
    :param n_steps: steps of a window
    """

    def __init__(self, experience: Experience, at: Steps, n_steps: int) -> None:
        self.experience, self.n_steps = experience, n_steps
        #: Ring indices and environment indices of all steps, (n_rows, n_steps).
        self.at: Steps = (at[0][:, None], at[1][:, None])
        if n_steps == 1:  # the common case, in a tenth of the time
            return
        offsets = np.arange(n_steps)
        self.at = experience.after((self.at[0], np.repeat(self.at[1], n_steps, axis=1)), offsets)
        #: Whether the episode reaches the step, (n_rows, n_steps).
        self.is_inside = offsets <= experience.episodes.ahead(at)[:, None]

    def experienced(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Rewards and terminations of the commanded tasks. Time limits bootstrap.

        :return: (n_rows, n_steps) each
        """
        happened = self.experience
        return take(happened.rewards, self.at), take(happened.dones, self.at) & ~take(happened.timeouts, self.at)

    def judged(
        self,
        family: TaskFamily,
        tasks: np.ndarray,
        rows: np.ndarray | slice = slice(None),
        device: th.device | None = None,
    ) -> tuple[Any, Any]:
        """
        Rewards and terminations for tasks. A time limit is no termination: the row bootstraps, unless it fulfils the task.

        :param family: the tasks
        :param tasks: (n_tasks, task_dim) for all rows, or (n_rows, n_tasks, task_dim)
        :param rows: which windows
        :param device: where to judge, if the family has a form for tensors; by NumPy if None
        :return: (n_rows, n_steps, n_tasks) each: tensors on the device where they were judged there, or arrays
        """
        at = (self.at[0][rows], self.at[1][rows])
        features = self.experience.features(at)[:, :, None]
        by_env = take(self.experience.env_terminated, at)[:, :, None]
        of_rows = tasks if tasks.ndim == 2 else tasks[:, None]
        form = None if device is None else tensor_form(family)
        if form is None:
            return family.reward(features, of_rows), by_env | family.terminated(features, of_rows)
        rewards, terminated = form(*(th.as_tensor(array, device=device) for array in (features, of_rows)))
        return rewards, terminated | th.as_tensor(by_env, device=device)

    def outcomes(self, rewards: Any, terminated: Any, gamma: float) -> Outcomes:
        """
        Add up the steps of each window.

        :param rewards: rewards of the steps, (n_rows, n_steps, ...), normalised if what is learned is
        :param terminated: whether a step ends the task or the environment, (n_rows, n_steps, ...)
        :param gamma: discount factor
        :return: what the windows come to, (n_rows, ...)
        """
        if self.n_steps == 1:  # the episode reaches its own step
            return Outcomes(rewards[:, 0], terminated[:, 0], _ONE)
        by_step = (slice(None), slice(None), *[None] * (rewards.ndim - 2))
        is_inside: Any = self.is_inside[by_step]
        discounts: Any = (gamma ** np.arange(self.n_steps))[None][by_step]
        library: Any = np
        if isinstance(rewards, th.Tensor):
            library = th
            is_inside, discounts = (th.as_tensor(array, device=rewards.device) for array in (is_inside, discounts))
        # A step counts if the episode reaches it and nothing before it terminated: [0, 0, 1, 0] -> [1, 1, 1, 0].
        counts = is_inside & (library.cumsum(terminated, axis=1) == terminated)
        # With gamma = 0 later steps add nothing, an impossible one (-inf) included.
        returns = (library.where(counts & (discounts > 0), rewards, 0.0) * discounts).sum(axis=1)
        return Outcomes(returns, (terminated & counts).any(axis=1), counts.sum(axis=1))


@dataclass
class Judged:
    """
    The steps of a batch as they will be learned.

    :param windows: the windows
    :param rewards: rewards of their steps, as experienced or of the new task, (batch_size, n_steps)
    :param terminated: whether a step ends the task or the environment, (batch_size, n_steps)
    :param is_new: which rows have their new task, (batch_size,): those for which it is possible
    """

    windows: Windows
    rewards: np.ndarray
    terminated: np.ndarray
    is_new: np.ndarray


def judge(
    experience: Experience, family: TaskFamily, at: Steps, tasks: np.ndarray, is_new: np.ndarray, n_steps: int
) -> Judged:
    """
    Judge the steps of a batch by the new task where there is one. A row for which it is impossible, for a step that counts is
    rewarded with -inf, keeps what it experienced.

    :param experience: what happened
    :param family: the tasks
    :param at: ring indices and environment indices, (batch_size,) each
    :param tasks: tasks, (batch_size, task_dim), each for its whole window
    :param is_new: which of them are new, (batch_size,)
    :param n_steps: steps of a window
    :return: the steps
    :raises ValueError: when a reward is NaN
    """
    windows = Windows(experience, at, n_steps)
    rewards, terminated = windows.experienced()
    new = np.flatnonzero(is_new)
    if len(new) == 0:
        return Judged(windows, rewards, terminated, is_new)
    new_rewards, new_terminated = (array[..., 0] for array in windows.judged(family, tasks.take(new, axis=0)[:, None], new))
    if not np.isfinite(new_rewards).all():
        of_new = Windows(experience, (at[0][new], at[1][new]), n_steps)
        returns = of_new.outcomes(new_rewards, new_terminated, 1.0).rewards  # of the steps that count
        if np.isnan(returns).any():
            raise ValueError(
                f"{type(family).__name__}: the reward of a stored step is NaN for task "
                f"{tasks[new[np.isnan(returns)][0]].tolist()}. Check the family's arithmetic; an impossible task has -inf."
            )
        is_possible = returns > -np.inf
        new, new_rewards, new_terminated = new[is_possible], new_rewards[is_possible], new_terminated[is_possible]
        is_new = np.isin(np.arange(len(is_new)), new)
    rewards[new], terminated[new] = new_rewards, new_terminated
    return Judged(windows, rewards, terminated, is_new)
