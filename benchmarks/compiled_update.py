"""What compilers gain in an update: torch.compile on all of it, torch.jit on a critic's pass and gradients.

    OMP_NUM_THREADS=1 python benchmarks/compiled_update.py --json benchmarks/results/compiled_update.json

Milliseconds an update of HIPISAC on one batch, sizes of a half cheetah with tasks, as it is and compiled, in turns. Adam stays
outside of what is compiled: its state is a dictionary with parameters as keys, and its kernel is fused already. torch.compile
needs a C++ compiler on the machine. torch.jit cannot take an update apart that writes into parameters, so it is given one
critic's forward pass with its gradients.
"""

import pathlib
import sys
import time
import warnings
from typing import Any

import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import learner
from benchmarks.measuring import parser, ratio, run, show, take_turns
from hipi_sb3 import HIPISAC
from hipi_sb3.networks import fast_sac
from hipi_sb3.networks.layers import Layers

#: (width of the two hidden layers, batch size)
SIZES = [(128, 64), (128, 256), (256, 256), (256, 1024)]


def compiled_update(width: int, batch_size: int, turns: int, calls: int) -> dict[str, Any]:
    """torch.compile on the whole update."""
    model = learner("hipisac", 300, width=width, strategy="none")
    assert isinstance(model, HIPISAC) and model.replay_buffer is not None
    data = model.replay_buffer.sample(batch_size)
    compiled = th.compile(model._update, dynamic=False)
    with th.no_grad():
        start = time.perf_counter()
        compiled(data, True)
        compiled(data, True)
        seconds = time.perf_counter() - start
        functions = {"as it is": lambda: model._update(data, True), "compiled": lambda: compiled(data, True)}
        times = take_turns(functions, turns, calls)
    return {"seconds_to_compile": seconds, "speed_up": ratio(times["as it is"], times["compiled"])}


def traced_critic(width: int, batch_size: int, turns: int, calls: int) -> dict[str, Any]:
    """torch.jit on one critic's forward pass and gradients."""
    model = learner("hipisac", 300, width=width, strategy="none")
    layers = list(model.critic.q_networks[0].requires_grad_(False))
    inputs, targets = th.randn(batch_size, layers[0].in_features), th.randn(batch_size, 1)

    def gradients(inputs: th.Tensor, targets: th.Tensor) -> list[th.Tensor]:
        critic = Layers(layers)
        critic.backward((critic(inputs) - targets) / batch_size)
        return [parameter.grad for layer in layers for parameter in layer.parameters()]

    with th.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are taken as constants, which they are, and of torch.jit's end
            traced = th.jit.trace(gradients, (inputs, targets), check_trace=False)
        for mine, other in zip(gradients(inputs, targets), traced(inputs, targets), strict=True):
            th.testing.assert_close(mine, other)
        functions = {"as it is": lambda: gradients(inputs, targets), "traced": lambda: traced(inputs, targets)}
        times = take_turns(functions, turns, calls)
    return {"speed_up": ratio(times["as it is"], times["traced"])}


def measure(sizes: list[tuple[int, int]], turns: int, calls: int) -> dict[str, Any]:
    """Speed-ups by size; a compiler that fails is an answer too."""
    fast_sac.adam_step = th.compiler.disable(fast_sac.adam_step)
    result: dict[str, Any] = {"turns": turns, "calls": calls}
    for width, batch_size in sizes:
        key = f"{width} x {width}, batch {batch_size}"
        result[key] = {}
        for name, function in (("torch.compile", compiled_update), ("torch.jit", traced_critic)):
            try:
                result[key][name] = found = function(width, batch_size, turns, calls)
            except Exception as error:
                result[key][name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                print(f"{key}, {name}: {result[key][name]['failed']}")
                continue
            show(f"{key}, {name}", found["speed_up"], f"compiled in {found.get('seconds_to_compile', 0):.0f} s")
    return result


def main() -> None:
    args = parser(__doc__).parse_args()
    sizes, turns, calls = (SIZES[:1], 2, 2) if args.quick else (SIZES, 15, 60)
    run("compiled_update.py", args, lambda: measure(sizes, turns, calls))


if __name__ == "__main__":
    main()
