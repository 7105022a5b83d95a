"""What relabeling costs, in microseconds a row, by the number of candidate tasks and the batch size.

    OMP_NUM_THREADS=1 python benchmarks/relabel_cost.py --json benchmarks/results/relabel_cost.json

The time of ``sample`` with all rows relabeled, less that of ``sample`` without relabeling, over the rows: once with rows that
are scored for each label, and once with the default of ``label_reuse``. Nets of 256 x 256, 21 inputs, 6 actions. Then what it
saves to send observations and tasks through the first layers apart instead of repeating both for every pair, on the sizes of
a half cheetah and of a humanoid. Last, where the time of a batch goes on a half cheetah's sizes: *networks* are passes through
them to score pairs, *outcomes* is to judge the windows of pairs (a GPU makes both where there is one), *posterior* is all else
that labels take, draws from it included; the three are shared by the batches that use a label. *Batch* is to gather and judge
the rows, labels given.
"""

import pathlib
import sys
import time
from functools import partial
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.core_speed import unbounded
from benchmarks.gradient_speed import learner
from benchmarks.measuring import Clock, interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import HIPISAC, HIPIReplayBuffer
from hipi_sb3.experience.layout import TaskLayout
from hipi_sb3.relabel import rows
from hipi_sb3.relabel.learners import Learner, Pairs, SACLearner
from hipi_sb3.relabel.scores import score_pairs

#: Scored pairs in one measurement: few turns where a call takes seconds.
PAIRS = 3_000_000


def measure(candidates: list[int], batch_sizes: list[int], most_turns: int, n_transitions: int) -> dict[str, Any]:
    """Microseconds a row."""
    results: dict[str, Any] = {}
    plain = learner("sac_hipi", n_transitions, strategy="none").replay_buffer
    print(f"\n{'relabeling, microseconds a row':62}")
    for n in candidates:
        # Every label is a draw from the posterior: those of the prior are not scored.
        options = {"relabel_prob": 1.0, "prior_share": 0.0, "n_candidate_tasks": n}
        # The learners have to stay alive: the buffers ask their critics.
        once = learner("hipisac", n_transitions, label_reuse=1, **options)
        reused = learner("hipisac", n_transitions, **options)
        for batch_size in batch_sizes:
            turns = int(max(3, min(most_turns, PAIRS // (2 * n * batch_size))))
            buffers = {"none": plain, "once": once.replay_buffer, "reused": reused.replay_buffer}
            functions = {name: (lambda b=buffer, k=batch_size: b.sample(k)) for name, buffer in buffers.items()}
            reuse = reused.replay_buffer.relabeler.label_reuse
            seconds = take_turns({name: functions[name] for name in ("none", "once")}, turns, calls=1)
            # A turn is as many calls as a row is used, because they share the cost of scoring it once.
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


def measure_first_layers(turns: int, batch_size: int, n_tasks: int) -> dict[str, Any]:
    """Time of scores whose observations and tasks are repeated for every pair, over that of those that are kept apart."""
    results: dict[str, Any] = {}
    print("\nscores with rows and tasks repeated / apart, processor time")
    for name, n_inputs, n_actions in (("half cheetah", 20, 6), ("humanoid", 348, 17)):
        observation_space = spaces.Dict(observation=unbounded(n_inputs), task=unbounded(1))
        env = SpacesOnly(observation_space, spaces.Box(-1.0, 1.0, (n_actions,), np.float32))
        # DictReplayBuffer: nothing is sampled, and it needs no tasks.
        model = HIPISAC("MultiInputPolicy", env, replay_buffer_class=DictReplayBuffer, buffer_size=1, device="cpu", seed=0)
        both = [{"observation": th.randn(batch_size, n_inputs), "task": th.zeros(batch_size, 1)} for _ in range(2)]
        numbers = (
            th.randn(n_tasks, 1),
            th.randn(batch_size, n_tasks),
            th.zeros(batch_size, n_tasks, dtype=th.bool),
            th.full((batch_size, n_tasks), 0.99),
        )
        pairs = Pairs(*both, th.rand(batch_size, n_actions), *numbers, with_task=TaskLayout("task", 1).put)
        for score in ("td", "q"):
            learners = {"apart": SACLearner(model), "repeated": Learner(model)}
            functions = {kind: partial(score_pairs, learners[kind], score, pairs) for kind in learners}
            seconds = take_turns(functions, turns, calls=2, clock=time.process_time)
            results[f"{name}, {score}"] = ratio(seconds["repeated"], seconds["apart"])
            show(f"  {name}, score {score}, {batch_size} rows, {n_tasks} candidates", results[f"{name}, {score}"])
    return {"repeated_over_apart": results}


def measure_parts(turns: int, n_transitions: int, batch_sizes: list[int]) -> dict[str, Any]:
    """Microseconds of a batch by part, processor time."""
    results: dict[str, Any] = {}
    print("\nparts of a batch on a half cheetah's sizes, every label from the posterior, processor time")
    for batch_size in batch_sizes:
        model = learner("hipisac", n_transitions, prior_share=0.0)
        buffer = model.replay_buffer
        assert isinstance(buffer, HIPIReplayBuffer)
        reuse = buffer.relabeler.label_reuse
        clocked = Clock(time.process_time)
        parts: dict[str, list[float]] = {}
        of_batch = rows.RelabelBatch
        buffer.relabeler._assign = clocked("assign", buffer.relabeler._assign)  # type: ignore[method-assign]
        with (
            patch.object(rows, "score_pairs", clocked("networks", rows.score_pairs)),
            patch.object(of_batch, "scores", clocked("scores", of_batch.scores)),
        ):
            for turn in range(turns + 1):
                clocked.seconds.clear()
                start = time.process_time()
                for _ in range(reuse):
                    buffer.sample(batch_size)
                whole, spent = time.process_time() - start, clocked.seconds
                seconds = {"networks": spent["networks"], "outcomes": spent["scores"] - spent["networks"]}
                seconds |= {"posterior": spent["assign"] - spent["scores"], "batch": whole - spent["assign"]}
                for name, value in seconds.items() if turn > 0 else ():  # the first warms up
                    parts.setdefault(name, []).append(1e6 * value / reuse)
        cell = {name: interval_of_median(np.array(values)) for name, values in parts.items()}
        results[f"batch {batch_size}"] = cell
        for name, value in cell.items():
            show(f"  batch {batch_size}: {name}", value, unit=" us")
    return {"parts_us_a_batch": results}


class SpacesOnly(gym.Env):
    """An environment that is never stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--candidates", type=int, nargs="+", default=[8, 32, 128, 256, 1024])
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    options.add_argument("--turns", type=int, default=30, help="most turns of a cell")
    options.add_argument("--parts", action="store_true", help="measure nothing but the parts of a batch")
    args = options.parse_args()
    sizes = ([2, 4], [8], 3, 100) if args.quick else (args.candidates, args.batch_sizes, args.turns, 2000)
    pairs = (sizes[2], 8, 4) if args.quick else (sizes[2], 128, 32)
    parts: tuple[int, int, list[int]] = (2, 100, [8]) if args.quick else (15, 2000, [256, 1024, 4096])

    def measured() -> dict[str, Any]:
        rest = {} if args.parts else measure(*sizes) | measure_first_layers(*pairs)
        return rest | measure_parts(*parts)

    run("relabel_cost.py", args, measured)


if __name__ == "__main__":
    main()
