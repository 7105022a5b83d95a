"""Float32 matrix products by MKL and by oneDNN, and in bfloat16, at the sizes of an update.

    python benchmarks/products.py --json benchmarks/results/products.json

GFLOP/s on one thread: forward (x W' + b), gradient of the inputs (g W) and of the weights (g' x).
"""

import pathlib
import sys
from functools import partial
from typing import Any

import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3.networks import products


def both(function: Any, uses_one_dnn: bool, *args: th.Tensor) -> None:
    """One product by one of the libraries."""
    products.USES_ONE_DNN = uses_one_dnn
    with th.no_grad():
        function(*args)


def measure(quick: bool) -> dict[str, Any]:
    """GFLOP/s, and oneDNN's as a ratio to MKL's."""
    print(f"chosen on this processor: {'oneDNN' if products.USES_ONE_DNN else 'MKL'}")
    chosen = products.USES_ONE_DNN, products.LARGE
    products.LARGE = 0
    results: dict[str, Any] = {}
    for n_rows in (64, 256, 1024):
        for width in (128, 256):
            x, w, b, g = th.randn(n_rows, width), th.randn(width, width), th.randn(width), th.randn(n_rows, width)
            cases = {
                "forward": (products.affine, (x, w, b)),
                "of inputs": (products.product, (g, w)),
                "of weights": (products.product, (g.t(), x)),
            }
            for name, (function, args) in cases.items():
                low = [arg.bfloat16() for arg in args]
                functions = {
                    "mkl": partial(both, function, False, *args),
                    "onednn": partial(both, function, True, *args),
                    "bfloat16": partial(both, function, False, *low),
                }
                flop = 2 * n_rows * width * width
                times = take_turns(functions, turns=2 if quick else 15, calls=2 if quick else max(5, int(4e9 / flop)))
                key = f"{n_rows} rows, width {width}, {name}"
                results[key] = {kind: interval_of_median(flop / seconds / 1e9) for kind, seconds in times.items()}
                results[key]["onednn_over_mkl"] = ratio(times["mkl"], times["onednn"])
                for kind, value in results[key].items():
                    show(f"{key}, {kind}", value)
    products.USES_ONE_DNN, products.LARGE = chosen
    return {"gflop_per_second": results}


def main() -> None:
    args = parser(__doc__).parse_args()
    run("products.py", args, lambda: measure(args.quick))


if __name__ == "__main__":
    main()
