"""What an environment pays beyond its ``compute_reward``: its own part, which holds for every goal, or should."""

import warnings

import numpy as np

#: The first look at the residual comes after so many steps, the next ones whenever there are twice as many.
FIRST_LOOK = 256

#: Correlations above it are named.
LARGE = 0.5


class ResidualWatch:
    """
    Whether the residual depends on the goal, which one number a step cannot say for other goals: its correlation with the
    distance to the commanded goal and with the reward for it. A warning names it, once. Watching begins with the first one.
    """

    def __init__(self) -> None:
        self._n = 0
        self._next_look = FIRST_LOOK
        # Of (residual, distance, reward): sums and sums of products.
        self._sums, self._products = np.zeros(3), np.zeros((3, 3))

    @property
    def has_begun(self) -> bool:
        """Whether steps have been seen."""
        return self._n > 0

    def add(self, residual: np.ndarray, distance: np.ndarray, reward: np.ndarray) -> None:
        """
        See some steps.

        :param residual: what was paid beyond ``compute_reward``, (n,)
        :param distance: distance of the achieved goals to the commanded ones, (n,)
        :param reward: what ``compute_reward`` says, (n,)
        """
        if self._next_look == 0:  # it was named
            return
        values = np.stack([residual, distance, reward]).astype(np.float64)
        self._n += values.shape[1]
        self._sums += values.sum(axis=1)  # over steps
        self._products += values @ values.T
        if self._n >= self._next_look:
            self._next_look = 2 * self._n
            for name, correlation in zip(("distance", "compute_reward"), self.correlations, strict=True):
                if abs(correlation) > LARGE:
                    self._next_look = 0
                    warnings.warn(
                        f"What step pays beyond compute_reward seems to depend on the goal: its correlation with {name} is "
                        f"{correlation:.2f} over {self._n} steps. Relabeled rows get the same residual for every goal. If "
                        "that is wrong, take the wrapper off that changes the reward, or let compute_reward say all of it.",
                        stacklevel=2,
                    )
                    return

    @property
    def correlations(self) -> np.ndarray:
        """Correlation of the residual with distance and with reward; 0 where one of the two is always the same."""
        means = self._sums / max(self._n, 1)
        covariance = self._products / max(self._n, 1) - np.outer(means, means)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        # Rounding makes a spread of constants.
        varies = spread > 1e-6 * np.maximum(np.abs(means), 1e-3)
        products = spread[0] * spread[1:]
        return np.where(varies[0] & varies[1:], covariance[0, 1:] / np.where(products > 0, products, 1.0), 0.0)
