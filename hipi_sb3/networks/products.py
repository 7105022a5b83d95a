"""Matrix products of the networks, by the library that is fastest at them on this processor.

PyTorch multiplies float32 matrices with MKL, which on processors of other vendors than its own leaves half of their speed
unused, 110 of 240 GFLOP/s on one core with AVX-512 (``benchmarks/products.py``). oneDNN, which PyTorch has on board too, does
not. Its calls take ten microseconds longer, so small products stay where they are. The choice depends on the processor and on
sizes alone, so that a run repeats itself.
"""

from pathlib import Path

import torch as th

#: Multiplications from which oneDNN is faster in spite of its longer call.
LARGE = 2_000_000


def _prefers_one_dnn() -> bool:
    """Whether this processor multiplies faster with oneDNN: it has AVX-512 and is not of MKL's vendor."""
    info = Path("/proc/cpuinfo")
    if not (info.exists() and th.backends.mkldnn.is_available() and th.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    vendors = [line for line in info.read_text().splitlines() if line.startswith("vendor_id")]
    return bool(vendors) and "GenuineIntel" not in vendors[0] and hasattr(th.ops.mkldnn, "_linear_pointwise")


#: Whether large products go through oneDNN.
USES_ONE_DNN = _prefers_one_dnn()


def affine(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    A linear layer.

    :param inputs: inputs, (batch_size, n_inputs)
    :param weight: weights, (n_outputs, n_inputs)
    :param bias: bias, (n_outputs,)
    :return: outputs, (batch_size, n_outputs)
    """
    if _is_for_one_dnn(inputs, len(weight)):
        return th.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return th.addmm(bias, inputs, weight.t())


def product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """
    A matrix product.

    :param left: (n, k)
    :param right: (k, m)
    :return: (n, m)
    """
    if _is_for_one_dnn(left, right.shape[1]):
        return th.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
    return left @ right


def _is_for_one_dnn(left: th.Tensor, n_columns: int) -> bool:
    return (
        USES_ONE_DNN
        and left.numel() * n_columns >= LARGE
        and left.is_cpu
        and left.dtype is th.float32
        and not th.is_grad_enabled()  # it has no gradient
    )
