"""What HIPI's labels look like in the tasks of the paper's suite.

    python benchmarks/paper_labels.py --runs logs/paper_suite --json benchmarks/results/paper_labels.json

It takes two minutes, after ``benchmarks/paper_suite.py``.

The policy that a run of HIPI ended with (seed 0) collects 3000 steps, for tasks that are drawn anew each episode, and 512
of them are relabeled by its own critic: all labels from the posterior, none from the prior, so that what is seen is the
method's. Into ``docs/paper_labels.png``, and a table of numbers.
"""

import pathlib
import sys
from typing import Any

import gymnasium as gym
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import measuring  # noqa: E402
from benchmarks.paper_suite import GOAL_TASKS, OTHER_TASKS  # noqa: E402
from hipi_sb3 import HIPISAC  # noqa: E402
from hipi_sb3.callbacks import draw_labels  # noqa: E402
from hipi_sb3.relabel.posterior import effective_tasks  # noqa: E402
from hipi_sb3.relabel.rows import RelabelBatch  # noqa: E402


def relabeled(run: pathlib.Path, env_id: str, n_steps: int, n_rows: int) -> tuple[RelabelBatch, Any]:
    """
    Collect steps by a run's last policy, and relabel some.

    :param run: folder of the run
    :param env_id: its environment
    :param n_steps: steps to collect
    :param n_rows: rows to relabel
    :return: rows with their labels, and the map of a maze or None
    """
    env = gym.make(env_id)
    model = HIPISAC.load(run / f"{env_id}.zip", env=env, device="cpu")
    model.set_random_seed(0)
    model.learning_starts, model.gradient_steps = 0, 0
    model.learn(n_steps, reset_num_timesteps=False, log_interval=10**6)
    walls = env.get_wrapper_attr("walls") if env.has_wrapper_attr("walls") else None
    return model.replay_buffer.preview(n_rows), walls


def describe(batch: RelabelBatch) -> dict[str, float]:
    """
    Say in numbers what the labels are.

    :param batch: rows with their labels
    :return: numbers by the names of the table's columns
    """
    family, features = batch.family, batch.features
    assert batch.assigned is not None
    return {
        "effective tasks": float(effective_tasks(batch.inference.posterior).mean()),
        "of candidates": batch.candidate_tasks.tasks.shape[-2],
        "reward, commanded": float(family.reward(features, batch.commanded).mean()),
        "reward, label": float(family.reward(features, batch.assigned).mean()),
        "ends, commanded": float(family.terminated(features, batch.commanded).mean()),
        "ends, label": float(family.terminated(features, batch.assigned).mean()),
    }


def measure(folder: pathlib.Path, picture: pathlib.Path, n_steps: int, n_rows: int) -> dict[str, Any]:
    """
    Draw and describe the labels of every task that has a run.

    :param folder: folder of ``benchmarks/paper_suite.py``
    :param picture: where to draw
    :param n_steps: steps to collect
    :param n_rows: rows to relabel
    :return: numbers by task
    :raises FileNotFoundError: when there is no run
    """
    from matplotlib.figure import Figure

    runs: dict[str, pathlib.Path] = {}
    for env_id in (*GOAL_TASKS, *OTHER_TASKS):
        finished = sorted((folder / env_id / "hipi" / "seed0" / "logs").glob(f"*/*/{env_id}.zip"))
        if finished:
            runs[env_id] = finished[-1].parent
        else:
            print(f"{env_id}: no finished run of HIPI with seed 0 in {folder}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"{folder} has no run of HIPI. python benchmarks/paper_suite.py --methods hipi makes them.")
    figure = Figure(figsize=(15, 3.6 * -(-len(runs) // 4)), layout="constrained")
    axes = np.ravel(figure.subplots(-(-len(runs) // 4), 4))
    for ax in axes[len(runs) :]:
        ax.axis("off")
    rows: dict[str, dict[str, float]] = {}
    for ax, (env_id, run) in zip(axes, runs.items(), strict=False):
        batch, walls = relabeled(run, env_id, n_steps, n_rows)
        assert batch.assigned is not None
        draw_labels(ax, batch.family, batch.commanded, batch.assigned, walls)
        ax.set_title(env_id)
        rows[env_id] = describe(batch)
    figure.savefig(picture, dpi=60)
    columns = next(iter(rows.values()))
    print("| task | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for env_id, row in rows.items():
        print(f"| {env_id} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    return {"tasks": rows}


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--runs", type=pathlib.Path, required=True, help="folder of benchmarks/paper_suite.py")
    options.add_argument("--picture", type=pathlib.Path, default=ROOT / "docs" / "paper_labels.png", help="where to draw")
    args = options.parse_args()
    n_steps, n_rows = (120, 32) if args.quick else (3000, 512)
    measuring.run("paper_labels.py", args, lambda: measure(args.runs, args.picture, n_steps, n_rows))


if __name__ == "__main__":
    main()
