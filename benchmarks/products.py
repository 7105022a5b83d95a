"""Float32 matrix products by MKL and by oneDNN, and in bfloat16, at the sizes of an update.

    python benchmarks/products.py --json benchmarks/results/products.json

GFLOP/s on one thread: forward (x W' + b), gradient of the inputs (g W) and of the weights (g' x).

    python benchmarks/products.py --share --json benchmarks/results/products_share.json

is instead the share of the products in the time of an update of HIPISAC: all products that an update makes, made again by
themselves, over the update. What is left are activations, random numbers, Adam, the targets and Python. Beside it, how much
faster the layers of both critics are as one batched product than as two.
"""

import pathlib
import sys
from functools import partial
from typing import Any
from unittest.mock import patch

import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import learner
from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns
from hipi_sb3 import HIPISAC
from hipi_sb3.networks import layers, products


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


def measure_share(quick: bool) -> dict[str, Any]:
    """Share of the products in an update, by size."""
    result = {}
    for width, batch_size in [(16, 8)] if quick else [(128, 64), (128, 256), (256, 64), (256, 256), (256, 1024)]:
        model = learner("hipisac", 300, width=width, strategy="none")
        assert isinstance(model, HIPISAC) and model.replay_buffer is not None
        data = model.replay_buffer.sample(batch_size)
        calls: list[tuple[Any, tuple[th.Tensor, ...]]] = []

        def recorded(function: Any, calls: list[Any] = calls) -> Any:
            return lambda *args: (calls.append((function, args)), function(*args))[1]

        with th.no_grad():
            model._update(data, True)
            affine, product = recorded(products.affine), recorded(products.product)
            with patch.object(layers, "affine", affine), patch.object(layers, "product", product):
                model._update(data, True)
            functions = {
                "update": partial(model._update, data, True),
                "products": lambda calls=calls: [function(*args) for function, args in calls],
            }
            times = take_turns(functions, turns=2 if quick else 15, calls=2 if quick else 40)
        key = f"{width} x {width}, batch {batch_size}"
        result[key] = ratio(times["products"], times["update"])
        show(
            f"{key}: share of {len(calls)} products", result[key], "at least 0.85" if (width, batch_size) == (256, 256) else ""
        )
    return {"share_of_products": result, "two_over_one_batched": measure_batched(quick)}


def measure_batched(quick: bool) -> dict[str, Any]:
    """Time of two products over that of one batched product, forward, by size."""
    result = {}
    for width, n_rows in [(16, 8)] if quick else [(128, 64), (128, 256), (256, 64), (256, 256), (256, 1024)]:
        x, w, b = th.randn(2, n_rows, width), th.randn(2, width, width), th.randn(2, width)
        transposed, biases = w.transpose(1, 2), b[:, None]
        functions = {
            "two": lambda x=x, w=w, b=b: [th.addmm(b[i], x[i], w[i].t()) for i in range(2)],
            "batched": lambda x=x, w=transposed, b=biases: th.baddbmm(b, x, w),
        }
        times = take_turns(functions, turns=2 if quick else 15, calls=2 if quick else 200)
        key = f"{width} x {width}, batch {n_rows}"
        result[key] = ratio(times["two"], times["batched"])
        show(f"{key}: two products / one batched", result[key])
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--share", action="store_true", help="measure the share of the products in an update, and nothing else"
    )
    args = options.parse_args()
    run("products.py", args, lambda: measure_share(args.quick) if args.share else measure(args.quick))


if __name__ == "__main__":
    main()
