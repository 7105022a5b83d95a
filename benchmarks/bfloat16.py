"""Whether learning suffers from products that take bfloat16 inputs.

    OMP_NUM_THREADS=1 python benchmarks/bfloat16.py --jobs 2 --json benchmarks/results/bfloat16.json

HIPISAC on two tasks, five seeds, once with the products of its networks in float32 and once with their inputs rounded to
bfloat16 and sums in float32: what ``torch.set_float32_matmul_precision("medium")`` makes of them on processors that have such
products. Here they are rounded by hand, so that it runs on any processor; weights and Adam stay float32 in both. What the
switch gains in time, ``products.py`` measures where a processor has it.
"""

import pathlib
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product as pairs_of
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import hipi_sb3.envs  # noqa: F401  registers the environments
from benchmarks.measuring import interval_of_difference, parser, run, show
from hipi_sb3 import HIPISAC
from hipi_sb3.evaluation import evaluate_tasks, evaluation_tasks
from hipi_sb3.networks import layers, products

#: Steps of training by environment, and batch size, as in ``hyperparams/hipi_sac.yml``.
TASKS = {"PointFixedGoals-v0": (6000, 64), "ReacherDiscrete-v0": (10_000, 128)}
PRECISIONS = ("float32", "bfloat16")
N_EVALUATIONS = 5


def rounded(tensor: th.Tensor | None) -> Any:
    """The nearest numbers that bfloat16 has."""
    return None if tensor is None else tensor.bfloat16().to(tensor.dtype)


def round_products() -> None:
    """Make all products of the networks take rounded inputs, in this process; biases are added after the product."""
    layers.affine = lambda inputs, weight, bias: products.affine(rounded(inputs), rounded(weight), bias)
    layers.product = lambda left, right: products.product(rounded(left), rounded(right))
    through = layers.PairInputs.through

    def of_pairs(self: layers.PairInputs, layer: th.nn.Linear) -> th.Tensor:
        inputs = layers.PairInputs(rounded(self.rows), rounded(self.tasks), self.first, rounded(self.extra))
        twin = th.nn.Linear(1, 1)
        twin.weight, twin.bias = th.nn.Parameter(rounded(layer.weight)), layer.bias
        return through(inputs, twin)

    layers.PairInputs.through = of_pairs  # type: ignore[method-assign]


def curve(environment: str, precision: str, seed: int, n_steps: int) -> list[float]:
    """
    Learn once.

    :param environment: name of the environment
    :param precision: one of ``PRECISIONS``
    :param seed: seed
    :param n_steps: environment steps
    :return: greedy success on the evaluation's tasks after each share of the steps
    """
    th.set_num_threads(1)
    if precision == "bfloat16":
        round_products()
    model = HIPISAC(
        "MultiInputPolicy",
        gym.make(environment),
        learning_rate=1e-3,
        buffer_size=100_000,
        batch_size=TASKS[environment][1],
        gamma=0.98,
        learning_starts=min(1000, n_steps // 2),
        policy_kwargs={"net_arch": [128, 128]},
        seed=seed,
    )
    env = gym.make(environment)
    tasks = evaluation_tasks(env.get_wrapper_attr("task_family"), 50)
    successes = []
    for _ in range(N_EVALUATIONS):
        model.learn(n_steps // N_EVALUATIONS, reset_num_timesteps=False, log_interval=None)
        rate = evaluate_tasks(model, env, tasks, seed=0).success_rate
        assert rate is not None
        successes.append(rate)
    return successes


def interval_of_mean(values: np.ndarray) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values))).mean(axis=1)  # over seeds
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def show_mean(label: str, value: dict[str, float]) -> None:
    """Print a mean with its interval as one line."""
    show(f"  {label}", {"median": value["mean"], **value})


def compare(n_seeds: int, jobs: int, steps_of: Callable[[str], int]) -> dict[str, Any]:
    """Curves of all tasks, precisions and seeds, and what bfloat16 changes."""
    cells = list(pairs_of(TASKS, PRECISIONS, range(n_seeds)))
    with ProcessPoolExecutor(jobs, max_tasks_per_child=1) as pool:
        futures = {cell: pool.submit(curve, *cell, steps_of(cell[0])) for cell in cells}
        curves = {cell: np.array(future.result()) for cell, future in futures.items()}
    result: dict[str, Any] = {}
    for environment in TASKS:
        # (n_seeds, n_evaluations)
        by_precision = {kind: np.stack([curves[environment, kind, seed] for seed in range(n_seeds)]) for kind in PRECISIONS}
        print(f"\n{environment}, {steps_of(environment)} steps, {n_seeds} seeds: success")
        summary: dict[str, Any] = {"n_steps": steps_of(environment)}
        for kind, values in by_precision.items():
            summary[kind] = {"curves": values.tolist(), "end": interval_of_mean(values[:, -1])}
            summary[kind]["mean_height"] = interval_of_mean(values.mean(axis=1))
            show_mean(f"{kind}, at the end", summary[kind]["end"])
            show_mean(f"{kind}, mean height of the curve", summary[kind]["mean_height"])
        # The same seed makes the same networks, but the runs part after some steps: seeds are not pairs.
        low, high = by_precision["bfloat16"].mean(axis=1), by_precision["float32"].mean(axis=1)
        difference = dict(zip(("mean", "low", "high"), interval_of_difference(low, high), strict=True))
        summary["bfloat16_minus_float32"] = difference
        show_mean("bfloat16 less float32, mean height", difference)
        result[environment] = summary
    return {"tasks": result}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5, help="seeds of each (default: %(default)s)")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    args = options.parse_args()
    n_seeds = 2 if args.quick else args.seeds
    run("bfloat16.py", args, lambda: compare(n_seeds, args.jobs, lambda name: 240 if args.quick else TASKS[name][0]))


if __name__ == "__main__":
    main()
