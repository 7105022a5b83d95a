"""The method: for which task was this transition the right thing to do?

:func:`task_posterior` is HIPI's answer (arXiv 2002.11089, equation for q(psi | s, a)). Nothing here knows an environment, a
buffer or a critic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from hipi_sb3.given import as_scores, check_number, numbers, of_tasks
from hipi_sb3.relabel.log_partition import LogPartition

#: Smallest temperature that is divided by: "T = 0 is the argmax" is reached in the limit, without a case of its own.
MIN_TEMPERATURE = 1e-8


def task_posterior(
    scores: np.ndarray,
    log_partition: np.ndarray | float = 0.0,
    log_weights: np.ndarray | float = 0.0,
) -> np.ndarray:
    """
    q(psi | s, a) proportional to p(psi) exp(R_psi(s, a) / T - log Z(psi)), over a set of candidate tasks.

    :param scores: scaled scores R / T, (batch_size, n_tasks); -inf excludes a task from a row
    :param log_partition: log Z(psi), (n_tasks,) or (batch_size, n_tasks)
    :param log_weights: log p(psi) of the candidates, up to a constant, (n_tasks,) or (batch_size, n_tasks)
    :return: posterior, (batch_size, n_tasks); each row sums to one, except that a row without a possible task is all zero
    :raises TypeError: when an argument holds no numbers
    :raises ValueError: when its shape is another one, there is no task, or a number is NaN or infinitely good
    """
    scores = numbers("scores", scores, "batch_size", "n_tasks")
    log_partition, log_weights = of_tasks("log_partition", log_partition, scores), of_tasks("log_weights", log_weights, scores)
    log_posterior = scores - log_partition + log_weights
    largest = log_posterior.max(axis=1, keepdims=True)  # over tasks
    if not np.all(largest < np.inf):  # as NaN is not either
        as_scores(scores)  # says so, if it is the scores
        _raise_no_number(log_posterior, scores, log_partition, log_weights)
    # A row without a possible task has -inf everywhere; exp(-inf - 0) = 0 leaves it all zero.
    weights = np.exp(log_posterior - np.where(np.isneginf(largest), 0.0, largest))
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)  # over tasks; a possible row sums to 1 or more


def _raise_no_number(log_posterior: np.ndarray, *of_what: np.ndarray) -> None:
    row, task = np.argwhere(~(log_posterior < np.inf))[0]
    score, price, weight = (np.broadcast_to(values, log_posterior.shape)[row, task] for values in of_what)
    raise ValueError(
        f"The posterior of row {row} for candidate task {task} is no number: score {score}, log_partition {price}, "
        f"log_weights {weight}. Exclude a task by a score or a weight of -inf, and give every task a price that is a number."
    )


def effective_tasks(posterior: np.ndarray) -> np.ndarray:
    """
    Effective number of tasks of each row, 1 / sum_j q_j^2: 1 for a certain label, n_tasks for a uniform one.

    :param posterior: posterior, (batch_size, n_tasks)
    :return: effective sample size, (batch_size,); 0 where no task is possible
    """
    posterior = numbers("posterior", posterior, "batch_size", "n_tasks")
    squares = np.sum(posterior**2, axis=1)  # over tasks
    return np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)


def mean_effective_tasks(posterior: np.ndarray) -> float:
    """
    Mean of :func:`effective_tasks` over the rows for which a task is possible.

    :param posterior: posterior, (batch_size, n_tasks)
    :return: the mean, 0 if there is no such row
    """
    effective = effective_tasks(posterior)
    return float(effective.sum() / max(np.count_nonzero(effective), 1))


@dataclass(frozen=True)
class Inference:
    """
    What :class:`TaskInference` found for a batch.

    :param posterior: q(psi | s, a), (batch_size, n_tasks)
    :param log_partition: log Z(psi), (n_tasks,) or (batch_size, n_tasks)
    :param temperature: T, a number or one a row, (batch_size, 1)
    """

    posterior: np.ndarray
    log_partition: np.ndarray
    temperature: np.ndarray


class TaskInference:
    """
    From scores to the posterior: divide by T, price the tasks, normalise.

    :param log_partition: estimator of log Z
    :param temperature: T as a number, in the units of the score; ``"spread:x"``, x times the spread of the batch's scores,
        which means the same whatever the scale of the rewards; ``"auto"``, the learner's live entropy temperature alpha (the
        optimal SAC policy is exp((Q - V) / alpha), so that any other T gives another posterior); or ``"ess:n"``, for each row
        the T at which the posterior has n effective tasks
    :raises ValueError: when the temperature is none of these
    """

    def __init__(self, log_partition: LogPartition, temperature: float | str = 1.0) -> None:
        self.log_partition = log_partition
        self.temperature = temperature
        self.target_tasks: float | None = None
        self.spreads: float | None = None
        if isinstance(temperature, str):
            kind, _, number = temperature.partition(":")
            if kind == "ess" and _is_number(number) and float(number) >= 1:
                self.target_tasks = float(number)
            elif kind == "spread" and _is_number(number) and 0 <= float(number) < np.inf:
                self.spreads = float(number)
            elif temperature != "auto":
                raise ValueError(
                    "temperature must be a number >= 0, 'auto', 'spread:x' with x >= 0 spreads of the scores or 'ess:n' with "
                    f"n >= 1 effective tasks, not {temperature!r}."
                )
        else:
            check_number("temperature (a number, 'auto', 'spread:x' or 'ess:n')", temperature)
            if temperature < 0:
                raise ValueError(f"temperature must not be negative, but it is {temperature}.")

    @property
    def fixed_temperature(self) -> float | None:
        """T, where it is a number that was given."""
        return None if isinstance(self.temperature, str) else self.temperature

    @property
    def needs_alpha(self) -> bool:
        """Whether T is the learner's entropy temperature."""
        return self.temperature == "auto"

    def __call__(
        self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray, alpha: float | None = None
    ) -> Inference:
        """
        Infer the posterior over the candidate tasks.

        :param tasks: candidate tasks, (n_tasks, task_dim), or (batch_size, n_tasks, task_dim) where they differ by row
        :param scores: scores R, (batch_size, n_tasks)
        :param log_weights: log prior weight of the candidates, (n_tasks,) or (batch_size, n_tasks)
        :param alpha: the learner's entropy temperature, for ``temperature="auto"``
        :return: posterior, log Z and T
        """
        temperature, log_z = self.price(tasks, scores, log_weights, alpha)
        return self.posterior(scores, log_weights, temperature, log_z)

    def price(
        self, tasks: np.ndarray, scores: np.ndarray, log_weights: np.ndarray, alpha: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        The first half: what all rows have in common. Arguments as in :meth:`__call__`.

        :return: T, a scalar, and log Z, (n_tasks,) or (batch_size, n_tasks)
        """
        tasks, scores = np.asarray(tasks), as_scores(scores)
        log_weights = of_tasks("log_weights", log_weights, scores)
        if tasks.ndim not in (2, 3) or tasks.shape[-2] != scores.shape[1] or tasks.size == 0:
            raise ValueError(
                f"tasks must have shape ({scores.shape[1]}, task_dim), a task a column of the scores, or such a set a row, "
                f"but their shape is {tasks.shape} and that of the scores {scores.shape}."
            )
        if self.spreads is not None:
            temperature = np.asarray(self.spreads * spread(centered_scores(scores, by_column=tasks.ndim == 2)))
        elif self.target_tasks is not None:
            centered = centered_scores(scores, by_column=tasks.ndim == 2)
            temperature = common_temperature(centered, log_weights, self.target_tasks)
        else:
            if self.needs_alpha and alpha is None:
                raise ValueError("temperature='auto' is the learner's entropy temperature: pass alpha, or give a number.")
            temperature = np.asarray(alpha if self.needs_alpha else self.temperature, dtype=np.float64)
        scaled = scores / np.maximum(temperature, MIN_TEMPERATURE)
        self.log_partition.update(tasks, scaled)
        return temperature, self.log_partition(tasks, scaled, log_weights)

    def posterior(
        self, scores: np.ndarray, log_weights: np.ndarray, temperature: np.ndarray, log_partition: np.ndarray
    ) -> Inference:
        """
        The second half: the posterior of each row, at given prices.

        :param scores: scores R, (batch_size, n_tasks)
        :param log_weights: log prior weight of the candidates, (n_tasks,) or (batch_size, n_tasks)
        :param temperature: T, a scalar
        :param log_partition: log Z, (n_tasks,) or (batch_size, n_tasks)
        :return: posterior, log Z and T
        """
        divisor = np.maximum(temperature, MIN_TEMPERATURE)
        scaled = numbers("scores", scores, "batch_size", "n_tasks") / divisor
        if self.target_tasks is None:
            return Inference(task_posterior(scaled, log_partition, log_weights), log_partition, temperature)
        # T log Z is a price in units of the score. With it fixed, each row takes the T that it needs.
        priced = scaled - log_partition
        ratio = row_temperatures(priced, log_weights, self.target_tasks)
        return Inference(task_posterior(priced / ratio, 0.0, log_weights), log_partition, divisor * ratio)


def centered_scores(scores: np.ndarray, by_column: bool) -> np.ndarray:
    """
    Scores without the mean of each task: offsets between tasks are the price's business.

    :param scores: scores R, (batch_size, n_tasks); -inf for an impossible task
    :param by_column: whether columns are tasks; otherwise the mean of all is subtracted
    :return: centred scores; -inf stays
    """
    scores = numbers("scores", scores, "batch_size", "n_tasks")
    finite = np.isfinite(scores)
    axis = 0 if by_column else None
    return scores - np.sum(np.where(finite, scores, 0.0), axis=axis) / np.maximum(finite.sum(axis=axis), 1)


def spread(centered: np.ndarray) -> float:
    """
    Standard deviation of centred scores, impossible tasks aside.

    :param centered: what :func:`centered_scores` returns, (batch_size, n_tasks)
    :return: the spread, in the units of the score
    """
    centered = numbers("centered", centered, "batch_size", "n_tasks")
    finite = np.isfinite(centered)
    return float(np.sqrt(np.sum(np.where(finite, centered, 0.0) ** 2) / max(np.count_nonzero(finite), 1)))


def common_temperature(centered: np.ndarray, log_weights: np.ndarray, target_tasks: float) -> np.ndarray:
    """
    One T for a batch, at which the posterior of the centred scores has a given effective number of tasks in the mean.

    :param centered: what :func:`centered_scores` returns, (batch_size, n_tasks)
    :param log_weights: log prior weights, (n_tasks,) or (batch_size, n_tasks)
    :param target_tasks: effective number of tasks
    :return: T, a scalar
    """

    def effective(temperature: np.ndarray) -> np.ndarray:
        return np.asarray(mean_effective_tasks(task_posterior(centered / temperature, 0.0, log_weights)))

    return _bisect_temperature(effective, np.asarray(spread(centered)), target_tasks)


def row_temperatures(log_odds: np.ndarray, log_weights: np.ndarray, target_tasks: float) -> np.ndarray:
    """
    For each row the T at which its posterior has a given effective number of tasks.

    :param log_odds: priced scores, (batch_size, n_tasks)
    :param log_weights: log prior weights, (n_tasks,) or (batch_size, n_tasks)
    :param target_tasks: effective number of tasks
    :return: T, (batch_size, 1); within a factor of 1000 of the spread of the row's possible tasks
    """
    finite = np.isfinite(log_odds)
    # An impossible task has no part in it, nor has an offset of all that are possible.
    n_possible = np.maximum(finite.sum(axis=1, keepdims=True), 1)  # over tasks
    mean = np.sum(np.where(finite, log_odds, 0.0), axis=1, keepdims=True) / n_possible
    squares = np.sum(np.where(finite, log_odds - mean, 0.0) ** 2, axis=1, keepdims=True)
    spread = np.sqrt(squares / n_possible)

    def effective(temperature: np.ndarray) -> np.ndarray:
        return effective_tasks(task_posterior(log_odds / temperature, 0.0, log_weights))[:, None]

    return _bisect_temperature(effective, spread, target_tasks)


def _bisect_temperature(
    effective: Callable[[np.ndarray], np.ndarray], spread: np.ndarray, target_tasks: float, n_rounds: int = 20
) -> np.ndarray:
    """Temperatures at which a function that grows with T reaches the target; within a factor of 1000 of the spread."""
    center = np.log(np.maximum(spread, MIN_TEMPERATURE))
    low, high = center - np.log(1000.0), center + np.log(1000.0)
    for _ in range(n_rounds):
        middle = 0.5 * (low + high)
        too_sharp = effective(np.exp(middle)) < target_tasks
        low, high = np.where(too_sharp, middle, low), np.where(too_sharp, high, middle)
    return np.exp(0.5 * (low + high))


def sample_rows(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Draw one column from each row.

    :param probabilities: (batch_size, n_tasks), rows sum to one
    :param rng: random generator
    :return: column indices, (batch_size,)
    :raises TypeError: when the probabilities are no numbers
    :raises ValueError: when they have another shape, or one is NaN
    """
    probabilities = numbers("probabilities", probabilities, "batch_size", "n_tasks")
    cumulative = np.cumsum(probabilities, axis=1)  # over tasks
    if cumulative.shape[1] == 0 or np.isnan(cumulative[:, -1]).any():
        raise ValueError(
            f"probabilities must have a column to draw and no NaN, but they are {probabilities}. Check where they come from."
        )
    # Scaled by the last entry, so that rounding cannot leave a gap above it.
    threshold = rng.random(len(probabilities))[:, None] * cumulative[:, -1:]
    return np.minimum(np.sum(cumulative <= threshold, axis=1), probabilities.shape[1] - 1)


def label_divergence(posterior: np.ndarray, log_weights: np.ndarray) -> float:
    """
    KL divergence of the labels' marginal from the prior: 0 where every task gets its share of the data.

    :param posterior: posterior, (batch_size, n_tasks)
    :param log_weights: log prior weights of the candidates, (n_tasks,) or (batch_size, n_tasks)
    :return: KL(mean_i q_i || p), in nats
    """
    posterior = numbers("posterior", posterior, "batch_size", "n_tasks")
    log_weights = of_tasks("log_weights", log_weights, posterior)
    log_prior = log_weights - logsumexp(log_weights, axis=-1, keepdims=True)  # over tasks
    marginal = posterior.sum(axis=0) / max(posterior.sum(), 1e-300)  # over transitions; some may have no possible task
    prior = np.exp(log_prior) if log_prior.ndim == 1 else np.exp(log_prior).mean(axis=0)
    return float(np.sum(marginal * (np.log(np.maximum(marginal, 1e-300)) - np.log(np.maximum(prior, 1e-300)))))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
