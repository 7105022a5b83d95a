"""An exact world: why HIPI divides by the partition function.

A small tabular MDP is solved exactly by soft value iteration for tasks whose rewards differ in scale. Every trajectory of the
optimal policies is then labeled with and without log Z. Without it, the task with the largest rewards swallows the data::

    python examples/exact_world.py --picture exact_world.png
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax

from hipi_sb3.relabel.posterior import task_posterior


@dataclass(frozen=True)
class TabularWorld:
    """
    A finite MDP with several tasks, solved by soft value iteration over a finite horizon.

    :param transitions: p(s' | s, a), (n_states, n_actions, n_states)
    :param rewards: r_psi(s, a), (n_tasks, n_states, n_actions)
    :param start: p(s_0), (n_states,)
    :param horizon: steps of an episode
    :param alpha: entropy temperature
    """

    transitions: np.ndarray
    rewards: np.ndarray
    start: np.ndarray
    horizon: int
    alpha: float = 1.0

    def soft_q(self) -> np.ndarray:
        """Soft optimal Q by time, (n_tasks, horizon, n_states, n_actions)."""
        n_tasks, n_states, n_actions = self.rewards.shape
        q = np.zeros((n_tasks, self.horizon, n_states, n_actions))
        value = np.zeros((n_tasks, n_states))
        for step in reversed(range(self.horizon)):
            q[:, step] = self.rewards + np.einsum("sat,kt->ksa", self.transitions, value)
            value = self.alpha * logsumexp(q[:, step] / self.alpha, axis=2)  # over actions
        return q

    def soft_value(self) -> np.ndarray:
        """Soft optimal V by time, (n_tasks, horizon, n_states)."""
        return self.alpha * logsumexp(self.soft_q() / self.alpha, axis=3)  # over actions

    def policies(self) -> np.ndarray:
        """Soft optimal policies exp((Q - V) / alpha) by time, (n_tasks, horizon, n_states, n_actions)."""
        return np.exp((self.soft_q() - self.soft_value()[..., None]) / self.alpha)

    def trajectories(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Every trajectory of the horizon that can happen.

        :return: states, (n, horizon + 1), and actions, (n, horizon)
        """
        found = [((int(state),), ()) for state in np.flatnonzero(self.start)]
        for _ in range(self.horizon):
            found = [
                ((*states, int(after)), (*actions, action))
                for states, actions in found
                for action in range(self.rewards.shape[2])
                for after in np.flatnonzero(self.transitions[states[-1], action])
            ]
        return np.array([states for states, _ in found]), np.array([actions for _, actions in found])

    def log_dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log p(s_0) + sum_t log p(s_t+1 | s_t, a_t) of trajectories, (n,)."""
        steps = np.log(self.transitions[states[:, :-1], actions, states[:, 1:]])
        return np.log(self.start[states[:, 0]]) + steps.sum(axis=1)

    def returns(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return of every trajectory for every task, (n, n_tasks)."""
        return self.rewards[:, states[:, :-1], actions].sum(axis=2).T


def random_world(
    seed: int = 0, n_states: int = 4, n_actions: int = 2, n_tasks: int = 3, horizon: int = 4, deterministic: bool = False
) -> TabularWorld:
    """
    A random world whose tasks differ in the scale of their rewards.

    :param seed: seed
    :param n_states: number of states
    :param n_actions: number of actions
    :param n_tasks: number of tasks
    :param horizon: steps of an episode
    :param deterministic: whether each action leads to one state
    :return: the world
    """
    rng = np.random.default_rng(seed)
    if deterministic:
        transitions = np.eye(n_states)[rng.integers(n_states, size=(n_states, n_actions))]
    else:
        transitions = rng.dirichlet(np.ones(n_states), size=(n_states, n_actions))
    scale = np.geomspace(0.3, 3.0, n_tasks)[:, None, None]
    rewards = scale * rng.standard_normal((n_tasks, n_states, n_actions))
    start = np.zeros(n_states)
    start[0] = 1.0
    return TabularWorld(transitions, rewards, start, horizon)


def labelers(returns: np.ndarray, log_z: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Labels of trajectories by the exact posterior and by its approximations.

    :param returns: return of every trajectory for every task, over the temperature, (n, n_tasks)
    :param log_z: exact log partition of each task, (n_tasks,)
    :param weights: how often each trajectory stands in the data, (n,), summing to one
    :return: probability of each task by name of the rule, (n, n_tasks)
    """
    best = returns == returns.max(axis=1, keepdims=True)
    return {
        "exact log Z": task_posterior(returns, log_z),
        "mean as log Z": task_posterior(returns, weights @ returns),
        "no log Z": task_posterior(returns),
        "largest return": best / best.sum(axis=1, keepdims=True),
    }


def divergence(p: np.ndarray, q: np.ndarray, weights: np.ndarray) -> float:
    """Mean over trajectories of KL(p(psi | tau) || q(psi | tau)), in nats."""
    log_ratio = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    return float(weights @ np.sum(p * log_ratio, axis=1))


def assignment(labels: np.ndarray, commanded: np.ndarray) -> np.ndarray:
    """
    Which task the trajectories of each commanded task are labeled with.

    :param labels: probability of each label, (n, n_tasks)
    :param commanded: p(tau | psi) of the commanded tasks, (n_tasks, n)
    :return: (n_commanded, n_assigned), rows sum to one
    """
    return commanded @ labels


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="PNG of the assignment matrices")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    world = random_world(args.seed, n_states=5, n_actions=3, n_tasks=4, horizon=6, deterministic=True)
    states, actions = world.trajectories()
    returns = world.returns(states, actions) / world.alpha
    log_z = logsumexp(returns + world.log_dynamics(states, actions)[:, None], axis=0)  # over trajectories
    # p(tau | psi) of the optimal policy of each task; the data are an equal mixture of all.
    commanded = softmax(returns + world.log_dynamics(states, actions)[:, None], axis=0).T
    weights = commanded.mean(axis=0)
    labels = labelers(returns, log_z, weights)
    print(f"{len(states)} trajectories, tasks with rewards of scale 0.3, 0.65, 1.4 and 3")
    print(f"{'labels by':16s} {'KL to exact':>12s}   share of the data that each task gets")
    for name, label in labels.items():
        shares = "  ".join(f"{share:4.2f}" for share in weights @ label)
        print(f"{name:16s} {divergence(labels['exact log Z'], label, weights):12.3f}   {shares}")
    if args.picture:
        _draw({name: assignment(labels[name], commanded) for name in ("exact log Z", "no log Z")}, args.picture)
        print(f"Picture: {args.picture}")


def _draw(matrices: dict[str, np.ndarray], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(matrices), 3.4), layout="constrained")
    for axes, (name, matrix) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        axes.set(title=name, xlabel="assigned task", ylabel="commanded task")
        axes.set_xticks(range(len(matrix)))
        axes.set_yticks(range(len(matrix)))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
