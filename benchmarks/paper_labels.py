"""What HIPI's labels look like in the tasks of the paper's suite.

    python benchmarks/paper_labels.py --runs logs/paper_suite      # after benchmarks/paper_suite.py: two minutes

The policy that a run of HIPI ended with (seed 0) collects 3000 steps, for tasks that are drawn anew each episode, and 512
of them are relabeled by its own critic: all labels from the posterior, none from the prior, so that what is seen is the
method's. Into ``docs/paper_labels.png``, and a table of numbers.
"""

import argparse
import pathlib
import sys
from typing import Any

import gymnasium as gym
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.paper_suite import GOAL_TASKS, OTHER_TASKS  # noqa: E402
from hipi_sb3 import HIPISAC  # noqa: E402
from hipi_sb3.callbacks import draw_labels  # noqa: E402
from hipi_sb3.relabel.posterior import effective_tasks  # noqa: E402
from hipi_sb3.relabel.rows import RelabelBatch  # noqa: E402

N_STEPS, N_ROWS = 3000, 512


def relabeled(run: pathlib.Path, env_id: str) -> tuple[RelabelBatch, Any]:
    """
    Collect steps by a run's last policy, and relabel some.

    :param run: folder of the run
    :param env_id: its environment
    :return: rows with their labels, and the map of a maze or None
    """
    env = gym.make(env_id)
    model = HIPISAC.load(run / f"{env_id}.zip", env=env, device="cpu")
    model.set_random_seed(0)
    model.learning_starts, model.gradient_steps = 0, 0
    model.learn(N_STEPS, reset_num_timesteps=False, log_interval=10**6)
    walls = env.get_wrapper_attr("walls") if env.has_wrapper_attr("walls") else None
    return model.replay_buffer.preview(N_ROWS), walls


def describe(batch: RelabelBatch) -> dict[str, float]:
    """
    Say in numbers what the labels are.

    :param batch: rows with their labels
    :return: numbers by the names of the table's columns
    """
    family, features = batch.family, batch.features
    candidates = batch.candidate_tasks.tasks.shape[-2]
    fulfilled = {
        name: family.terminated(features, tasks).mean() for name, tasks in (("of", batch.commanded), ("to", batch.assigned))
    }
    return {
        "effective tasks": effective_tasks(batch.inference.posterior).mean(),
        "candidates": candidates,
        "reward, commanded": family.reward(features, batch.commanded).mean(),
        "reward, label": family.reward(features, batch.assigned).mean(),
        "ends, commanded": fulfilled["of"],
        "ends, label": fulfilled["to"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of benchmarks/paper_suite.py")
    parser.add_argument("--picture", type=pathlib.Path, default=ROOT / "docs" / "paper_labels.png", help="where to draw")
    args = parser.parse_args()

    from matplotlib.figure import Figure

    runs: dict[str, pathlib.Path] = {}
    for env_id in (*GOAL_TASKS, *OTHER_TASKS):
        finished = sorted((args.runs / env_id / "hipi" / "seed0" / "logs").glob(f"*/*/{env_id}.zip"))
        if finished:
            runs[env_id] = finished[-1].parent
        else:
            print(f"{env_id}: no finished run of HIPI with seed 0 in {args.runs}", file=sys.stderr)
    if not runs:
        parser.error(f"--runs {args.runs} has no run of HIPI. python benchmarks/paper_suite.py --methods hipi makes them.")
    figure = Figure(figsize=(15, 3.6 * -(-len(runs) // 4)), layout="constrained")
    axes = np.ravel(figure.subplots(-(-len(runs) // 4), 4))
    for ax in axes[len(runs) :]:
        ax.axis("off")
    rows: list[dict[str, Any]] = []
    for ax, (env_id, run) in zip(axes, runs.items(), strict=False):
        batch, walls = relabeled(run, env_id)
        assert batch.assigned is not None
        draw_labels(ax, batch.family, batch.commanded, batch.assigned, walls)
        ax.set_title(env_id)
        rows.append({"task": env_id, **describe(batch)})
    figure.savefig(args.picture, dpi=60)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
