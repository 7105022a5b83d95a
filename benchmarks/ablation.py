"""The table that the defaults of relabeling come from: one factor varied at a time from a common base, five seeds each.

    python benchmarks/ablation.py --jobs 2     # some four CPU hours; killed, it goes on where it was
    python benchmarks/ablation.py --show       # the committed results as Markdown

Three matrices of ``zoo/benchmark.py``: two mazes with goals, where HER applies, and two families without goals, where it does
not.
The base is ``hipi``, the defaults of HIPIReplayBuffer; every other row changes what its name says. SAC with the settings of
``hyperparams/hipi_sac.yml``; 50 fixed goals, or all tasks of the finite family, and greedy actions in every evaluation.
"""

import argparse
import json
import pathlib
import shutil
import sys
from dataclasses import dataclass
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo import benchmark  # noqa: E402
from zoo.comparison import with_interval  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

#: The rows of the tables: methods of ``zoo/benchmark.py`` and what they are.
LABELS = {
    "none": "no relabeling",
    "random": "random candidate",
    "her_final": "HER, final",
    "her_future": "HER, future",
    "max_reward": "largest reward",
    "air": "Generalized Hindsight, AIR",
    "advantage": "Generalized Hindsight, advantage",
    "hipi": "**HIPI** (the defaults)",
    "hipi_commanded": "candidates: commanded",
    "hipi_achieved": "candidates: achieved",
    "hipi_own_future": "candidates: own future, running log Z",
    "hipi_q": "score: q",
    "hipi_paper": "score: paper",
    "hipi_t01": "T = 0.1",
    "hipi_ess8": "T = ess:8",
    "hipi_none": "log Z: none",
    "hipi_mean": "log Z: mean",
    "hipi_running": "log Z: running",
    "hipi_sinkhorn": "log Z: sinkhorn",
}


@dataclass(frozen=True)
class Matrix:
    """
    Methods and environments that are crossed.

    :param envs: ids of the environments
    :param methods: keys of :data:`LABELS`
    :param n_timesteps: steps of a run
    :param eval_freq: steps between evaluations
    """

    envs: tuple[str, ...]
    methods: tuple[str, ...]
    n_timesteps: int
    eval_freq: int


MATRICES = {
    "four_rooms": Matrix(
        ("PointFourRooms-v0",),
        (
            *("none", "random", "her_final", "her_future", "hipi", "hipi_commanded", "hipi_achieved", "hipi_own_future"),
            *("hipi_q", "hipi_paper", "hipi_t01", "hipi_ess8"),
        ),
        n_timesteps=10_000,
        eval_freq=2500,
    ),
    "four_rooms_paper": Matrix(
        ("PointFourRoomsPaper-v0",),
        (
            *("none", "random", "her_final", "her_future", "hipi", "hipi_commanded", "hipi_achieved", "hipi_own_future"),
            *("hipi_q", "hipi_t01", "hipi_ess8"),
        ),
        n_timesteps=10_000,
        eval_freq=2500,
    ),
    "tasks": Matrix(
        ("PointFixedGoals-v0", "PointMassLinear-v0"),
        (
            *("none", "random", "max_reward", "air", "advantage", "hipi"),
            *("hipi_none", "hipi_mean", "hipi_running", "hipi_sinkhorn"),
        ),
        n_timesteps=6000,
        eval_freq=2000,
    ),
}


def run(name: str, jobs: int, seeds: int, folder: pathlib.Path) -> None:
    """
    Run a matrix and put its evaluations and their summary among the committed results.

    :param name: key of :data:`MATRICES`
    :param jobs: runs at a time
    :param seeds: seeds of each cell
    :param folder: where the runs go
    """
    matrix = MATRICES[name]
    options = ["--envs", ",".join(matrix.envs), "--methods", ",".join(matrix.methods), "--seeds", str(seeds)]
    options += ["--jobs", str(jobs), "-n", str(matrix.n_timesteps), "--eval-freq", str(matrix.eval_freq)]
    benchmark.main([*options, "--folder", str(folder / name)])
    shutil.copy(folder / name / "evaluations.csv", RESULTS / f"ablation_{name}.csv")
    shutil.copy(folder / name / "summary.json", RESULTS / f"ablation_{name}.json")


def markdown(results: list[dict[str, Any]]) -> str:
    """
    Format the summary of a matrix.

    :param results: entries of ``zoo/comparison.py``'s summary
    :return: table: a row a method; of each environment the mean at the end and over the steps, and by how much the method is
        ahead of HIPI at the end, in bold where the interval leaves out 0
    """
    envs = list(dict.fromkeys(entry["env"] for entry in results if "area" in entry))
    found = {(entry["env"], entry["method"]): entry for entry in results}
    first = [found[env, "hipi"] for env in envs]
    what = {"success": "success", "mean_return": "return"}
    header = "| |" + "".join(
        f" `{entry['env']}`: {what[entry['metric']]} after {entry['timesteps']} steps | over the steps | ahead of HIPI |"
        for entry in first
    )
    lines = [header, "|---|" + "---|" * (3 * len(envs))]
    for method, label in LABELS.items():
        if (envs[0], method) not in found:
            continue
        cells = [label]
        for env in envs:
            entry = found[env, method]
            cells += [with_interval(entry, "mean"), f"{entry['area']:.2f}"]
            cells.append("" if method == "hipi" else _signed(entry["differences"]["hipi"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _signed(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    text = f"{difference['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="run nothing, print the committed results as Markdown")
    parser.add_argument("--only", choices=list(MATRICES), help="one of the matrices")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each cell (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "logs" / "ablation", help="where the runs go")
    args = parser.parse_args()
    for name in [args.only] if args.only else MATRICES:
        if not args.show:
            run(name, args.jobs, args.seeds, args.folder)
        print(f"\n{markdown(json.loads((RESULTS / f'ablation_{name}.json').read_text())['results'])}")


if __name__ == "__main__":
    main()
