"""What limits a gradient step on a GPU: the replay of the recorded update alone, the batch alone, and both as they run.

    python benchmarks/gpu_limit.py --json benchmarks/results/gpu_limit.json

Batches are drawn and labelled once as they are, windows judged on the GPU, and once with windows judged by the processor. The
replay's time is taken by CUDA events round replays that follow each other without a pause: the GPU's own time. Where a
gradient step takes longer than that, the processor that draws and labels the batch is the limit.
"""

import pathlib
import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import learner
from benchmarks.measuring import interval_of_median, parser, run, show
from hipi_sb3.relabel.rows import RelabelBatch

#: Calls a turn: twice as often as a label is used, so that each turn pays for its labels.
CALLS = 32


def judged_by_processor(buffer: Any, batch_size: int) -> None:
    """Draw a batch whose windows are judged by NumPy."""
    with patch.object(RelabelBatch, "_judging_device", None):
        buffer.sample(batch_size)


def of_processor(function: Any) -> float:
    """Milliseconds a call, until the GPU has done it."""
    th.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        function()
    th.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / CALLS


def of_gpu(function: Any) -> float:
    """Milliseconds a call on the GPU, of calls that follow each other."""
    start, end = th.cuda.Event(enable_timing=True), th.cuda.Event(enable_timing=True)
    function()
    start.record()
    for _ in range(CALLS):
        function()
    end.record()
    th.cuda.synchronize()
    return float(start.elapsed_time(end)) / CALLS


def measure(turns: int, batch_sizes: list[int]) -> dict[str, Any]:
    """Milliseconds of each part, by batch size."""
    sizes = {str(batch_size): parts_of_step(turns, batch_size) for batch_size in batch_sizes}
    return {"gpu": th.cuda.get_device_name(), "milliseconds": sizes}


def parts_of_step(turns: int, batch_size: int) -> dict[str, Any]:
    """Milliseconds of each part."""
    model = learner("recorded", 2000, device="cuda", relabel_prob=0.5)
    model.train(8, batch_size=batch_size)
    [graph] = model._graphs.values()  # type: ignore[attr-defined]
    buffer = model.replay_buffer
    assert buffer is not None
    parts = {
        "gradient step": lambda: of_processor(lambda: model.train(1, batch_size=batch_size)),
        "batch, drawn and labelled": lambda: of_processor(lambda: buffer.sample(batch_size)),
        "the same, judged by the processor": lambda: of_processor(lambda: judged_by_processor(buffer, batch_size)),
        "replay on the GPU": lambda: of_gpu(graph._replay),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, part in parts.items():
            times[name].append(part())
    print(f"batch {batch_size}")
    result = {name: interval_of_median(np.array(values)) for name, values in times.items()}
    for name, value in result.items():
        show(f"  {name}", value, unit=" ms")
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=9, help=f"turns of {CALLS} calls")
    args = options.parse_args()
    sizes = [256] if args.quick else [256, 1024, 4096]
    run("gpu_limit.py", args, lambda: measure(2 if args.quick else args.turns, sizes))


if __name__ == "__main__":
    main()
