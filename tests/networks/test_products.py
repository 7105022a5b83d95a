"""Products of the networks by either library."""

import numpy as np
import pytest
import torch as th

from hipi_sb3.networks import products


@pytest.fixture(params=[False, True])
def uses_one_dnn(request, monkeypatch):
    if request.param and not hasattr(th.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(products, "USES_ONE_DNN", request.param)
    return request.param


@pytest.mark.parametrize("n_rows, n_inputs, n_outputs", [(3, 5, 2), (256, 256, 256), (300, 24, 400)])
def test_both_libraries_give_the_product(uses_one_dnn, n_rows, n_inputs, n_outputs):
    generator = th.Generator().manual_seed(0)
    inputs, weight, bias, grad = (
        th.randn(shape, generator=generator)
        for shape in ((n_rows, n_inputs), (n_outputs, n_inputs), (n_outputs,), (n_rows, n_outputs))
    )
    with th.no_grad():
        found = [
            products.affine(inputs, weight, bias),
            products.product(grad, weight),
            products.product(grad.t(), inputs),
            products.affine(th.cat([inputs, inputs], dim=1)[:, :n_inputs], weight, bias),
        ]
    x, w, b, g = (tensor.double().numpy() for tensor in (inputs, weight, bias, grad))
    for result, expected in zip(found, [x @ w.T + b, g @ w, g.T @ x, x @ w.T + b], strict=True):
        assert result.dtype is th.float32
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-3)


def test_one_dnn_is_left_where_it_cannot_be_used(monkeypatch):
    monkeypatch.setattr(products, "USES_ONE_DNN", True)
    large = th.ones(2000, 1100)
    with th.no_grad():
        assert products._is_for_one_dnn(large, 1) and not products._is_for_one_dnn(large[:1], 1)
        assert not products._is_for_one_dnn(large.double(), 1)
    assert not products._is_for_one_dnn(large, 1)  # it would leave no gradient
    weight = th.ones(3, 1100, requires_grad=True)
    products.affine(large, weight, th.zeros(3)).sum().backward()
    assert weight.grad.eq(2000).all()
