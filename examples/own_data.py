"""Your own data: from a table of logged episodes to a policy that can be asked for any goal. No environment is needed.

    python examples/own_data.py
    python examples/own_data.py --csv log.csv        # columns episode, x, y, dx, dy

Without a file, the log is made up: 200 walks from the middle of a field, each in a direction of its own that nobody wrote
down.
"""

import argparse
from collections.abc import Mapping

import numpy as np

from hipi_sb3 import HIPIBC, GoalReaching, TrajectoryDataset


def made_up_log(n_episodes: int = 200, n_steps: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """
    Log somebody who walks straight, more or less.

    :param n_episodes: number of walks
    :param n_steps: steps of a walk
    :param seed: seed
    :return: columns ``episode``, ``x``, ``y`` (position before the step), ``dx``, ``dy`` (the step), one row a step
    """
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, size=(n_episodes, 1)) + rng.normal(0, 0.4, size=(n_episodes, n_steps))
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (n_episodes, n_steps, 2)
    positions = np.cumsum(steps, axis=1) - steps
    columns = np.concatenate([positions, steps], axis=-1).reshape(-1, 4).T
    return {"episode": np.repeat(np.arange(n_episodes), n_steps), **dict(zip(("x", "y", "dx", "dy"), columns, strict=True))}


def clone(log: Mapping[str, np.ndarray], n_updates: int = 400) -> HIPIBC:
    """
    Clone a policy from a log.

    :param log: columns by name, a DataFrame or a dict of arrays
    :param n_updates: minibatches
    :return: the policy
    """
    columns = lambda *names: np.stack([log[name] for name in names], axis=1)  # noqa: E731
    family = GoalReaching(low=[-20, -20], high=[20, 20], radius=2.0)  # what can be asked for: to get to a place
    dataset = TrajectoryDataset.from_arrays(family, columns("x", "y"), columns("dx", "dy"), log["episode"])
    model = HIPIBC(
        "MultiInputPolicy", n_candidate_tasks=256, temperature="ess:8", policy_kwargs={"net_arch": [64, 64]}, seed=0
    )
    return model.fit(dataset, n_updates=n_updates)


def walk(model: HIPIBC, goal: np.ndarray, n_steps: int = 30) -> float:
    """
    Walk towards a goal with the cloned policy.

    :param model: the policy
    :param goal: where to, (2,)
    :param n_steps: steps
    :return: least distance from the goal on the way
    """
    position, distances = np.zeros(2, dtype=np.float32), []
    for _ in range(n_steps):
        step, _ = model.predict({"observation": position, "task": goal.astype(np.float32)}, deterministic=True)
        position = position + step
        distances.append(float(np.linalg.norm(position - goal)))
    return min(distances)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="file with the log; a made-up one if none is given")
    args = parser.parse_args()
    if args.csv is None:
        log: Mapping[str, np.ndarray] = made_up_log()
    else:
        import pandas as pd

        log = pd.read_csv(args.csv)
    policy = clone(log)
    policy.save("own_data_policy.zip")
    for degrees in range(0, 360, 45):
        goal = 10 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        print(f"goal at {degrees:3d} degrees: came within {walk(policy, goal):.1f}")
