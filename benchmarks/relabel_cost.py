"""What relabeling costs, in microseconds a row, by the number of candidate tasks and the batch size.

    OMP_NUM_THREADS=1 python benchmarks/relabel_cost.py --json benchmarks/results/relabel_cost.json

The time of ``sample`` with all rows relabeled, less that of ``sample`` without relabeling, over the rows: once with labels
that are used one time, so that every row is scored, and once with the default of ``label_reuse``. Nets of 256 x 256, 21
inputs, 6 actions.
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import learner
from benchmarks.measuring import interval_of_median, parser, run, show, take_turns

#: Scored pairs in one measurement: few turns where a call takes seconds.
PAIRS = 3_000_000


def measure(candidates: list[int], batch_sizes: list[int], most_turns: int, n_transitions: int) -> dict[str, Any]:
    """Microseconds a row."""
    results: dict[str, Any] = {}
    plain = learner("sac_hipi", n_transitions, strategy="none").replay_buffer
    print(f"\n{'relabeling, microseconds a row':62}")
    for n in candidates:
        options = {"relabel_prob": 1.0, "n_candidate_tasks": n}
        # The learners have to stay alive: the buffers ask their critics.
        once = learner("hipisac", n_transitions, label_reuse=1, **options)
        reused = learner("hipisac", n_transitions, **options)
        for batch_size in batch_sizes:
            turns = int(max(3, min(most_turns, PAIRS // (2 * n * batch_size))))
            buffers = {"none": plain, "once": once.replay_buffer, "reused": reused.replay_buffer}
            functions = {name: (lambda b=buffer, k=batch_size: b.sample(k)) for name, buffer in buffers.items()}
            reuse = reused.replay_buffer.label_reuse
            seconds = take_turns({name: functions[name] for name in ("none", "once")}, turns, calls=1)
            # A turn is as many calls as a label is used, because they share the cost of one.
            seconds["reused"] = take_turns({"reused": functions["reused"]}, max(2, turns // 4), calls=reuse)["reused"]
            bare = seconds["none"].mean()
            cell = {
                "scored_us_a_row": interval_of_median(1e6 * (seconds["once"] - seconds["none"]) / batch_size),
                "reused_us_a_row": interval_of_median(1e6 * (seconds["reused"] - bare) / batch_size),
                "sample_without_relabeling_us_a_row": interval_of_median(1e6 * seconds["none"] / batch_size),
            }
            results[f"{n} candidates, batch {batch_size}"] = {"turns": turns, "label_reuse": reuse, **cell}
            show(f"  {n} candidates, batch {batch_size}: scored for each label", cell["scored_us_a_row"], unit=" us")
            show(f"  {n} candidates, batch {batch_size}: scored once for {reuse} batches", cell["reused_us_a_row"], unit=" us")
    return {"cells": results}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--candidates", type=int, nargs="+", default=[8, 32, 128, 256, 1024])
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    options.add_argument("--turns", type=int, default=30, help="most turns of a cell")
    args = options.parse_args()
    sizes = ([2, 4], [8], 3, 100) if args.quick else (args.candidates, args.batch_sizes, args.turns, 2000)
    run("relabel_cost.py", args, lambda: measure(*sizes))


if __name__ == "__main__":
    main()
