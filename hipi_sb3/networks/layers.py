"""Small networks without autograd: linear layers and activations, and their gradients written out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn

from hipi_sb3.networks.products import affine, product

aten = th.ops.aten


class LayerNormReLU(nn.Module):
    """
    Layer normalization, without scale and shift, and a ReLU: ``policy_kwargs=dict(activation_fn=LayerNormReLU)`` of any
    algorithm. Values of actions far from the stored ones are then bounded by the weights of the last layer (Ball et al. 2023,
    arXiv 2302.02948), where relabeled tasks ask for such actions most.
    """

    def forward(self, values: th.Tensor) -> th.Tensor:
        """
        Normalise each row and cut it off at 0.

        :param values: outputs of a linear layer, (batch_size, n)
        :return: (batch_size, n)
        """
        return nn.functional.relu(nn.functional.layer_norm(values, values.shape[-1:]))


class KnownActivation(NamedTuple):
    """
    An activation without a module.

    :param apply: from what it is given, which it may change, its result and what its gradient needs besides
    :param backward: from the gradient of its result, the result and these the gradient of what it was given
    """

    apply: Callable[[th.Tensor], tuple[th.Tensor, Any]]
    backward: Callable[[th.Tensor, th.Tensor, Any], th.Tensor]


def _layer_norm_relu(values: th.Tensor) -> tuple[th.Tensor, Any]:
    normalised, mean, rstd = th.native_layer_norm(values, values.shape[-1:], None, None, 1e-5)
    return normalised.relu_(), (values, mean, rstd)


def _layer_norm_relu_backward(grad: th.Tensor, result: th.Tensor, kept: Any) -> th.Tensor:
    values, mean, rstd = kept
    grad, shape = aten.threshold_backward(grad, result, 0), values.shape[-1:]
    return aten.native_layer_norm_backward(grad, values, shape, mean, rstd, None, None, [True, False, False])[0]


KEY_TO_ACTIVATION: dict[type[nn.Module], KnownActivation] = {
    nn.ReLU: KnownActivation(
        lambda values: (values.relu_(), None), lambda grad, result, _: aten.threshold_backward(grad, result, 0)
    ),
    nn.Tanh: KnownActivation(lambda values: (values.tanh_(), None), lambda grad, result, _: aten.tanh_backward(grad, result)),
    LayerNormReLU: KnownActivation(_layer_norm_relu, _layer_norm_relu_backward),
}


@dataclass(frozen=True)
class PairInputs:
    """
    What a network is given for every row together with every task, without repeating either: its first layer is linear, so
    that rows and tasks go through it apart and are added.

    :param rows: inputs of the rows in which the task is all zero, (n_rows, n)
    :param tasks: tasks, (n_tasks, task_dim), or (n_rows, n_tasks, task_dim) where they differ by row
    :param first: which of the n inputs is the first of the task
    :param extra: further inputs of each pair, which follow the n, (n_rows * n_tasks, n_extra)
    """

    rows: th.Tensor
    tasks: th.Tensor
    first: int
    extra: th.Tensor | None = None

    def through(self, layer: nn.Linear) -> th.Tensor:
        """
        Outputs of a linear layer.

        :param layer: the layer
        :return: (n_rows * n_tasks, n_outputs), task by task within each row
        """
        n, last = self.rows.shape[1], self.first + self.tasks.shape[-1]
        of_rows = nn.functional.linear(self.rows, layer.weight[:, :n], layer.bias)
        of_tasks = nn.functional.linear(self.tasks, layer.weight[:, self.first : last])
        # (n_rows, 1, n_outputs) + (n_tasks, n_outputs) or (n_rows, n_tasks, n_outputs)
        outputs = (of_rows[:, None] + of_tasks).flatten(0, 1)
        return outputs if self.extra is None else outputs.addmm_(self.extra, layer.weight[:, n:].t())


class Layers:
    """
    Linear layers and activations one after the other. Each pass keeps what its gradients need; a module, its hooks and the
    graph of autograd are not involved, which small networks feel.

    :param layers: ``nn.Sequential`` or list of layers, see :meth:`knows`
    """

    def __init__(self, layers: Any) -> None:
        self.layers = list(layers)
        self.values: list[Any] = []
        self.kept: list[Any] = []

    @staticmethod
    def knows(layers: Any) -> bool:
        """
        Whether all layers are linear ones with a bias or known activations.

        :param layers: layers
        :return: whether they are
        """
        if isinstance(layers, nn.Module) and type(layers) is not nn.Sequential:
            return False  # it may do anything between its layers
        return all(
            type(layer) in KEY_TO_ACTIVATION or (type(layer) is nn.Linear and layer.bias is not None) for layer in layers
        )

    def __call__(self, values: Any) -> Any:
        """
        Forward pass.

        :param values: inputs, (batch_size, n_inputs) or :class:`PairInputs`
        :return: outputs, (batch_size, n_outputs)
        """
        self.values, self.kept = [values], []
        for layer in self.layers:
            kind = type(layer)
            if kind is nn.Linear:
                if isinstance(values, PairInputs):
                    values = values.through(layer)
                else:
                    values = affine(values, layer.weight, layer.bias)
                self.values.append(values)
            else:
                values, kept = KEY_TO_ACTIVATION[kind].apply(values)
                self.values[-1] = values  # what went into an activation is not needed again, but for what it keeps
                self.kept.append(kept)
        return values

    def backward(self, grad: th.Tensor) -> None:
        """
        Write the gradients of all parameters in the last pass.

        :param grad: gradient of the outputs, (batch_size, n_outputs)
        """
        self._backward(grad, parameters=True, inputs=False)

    def input_gradient(self, grad: th.Tensor, parameters: bool = False) -> th.Tensor:
        """
        Gradient of the inputs of the last pass.

        :param grad: gradient of the outputs, (batch_size, n_outputs)
        :param parameters: whether to write the gradients of the parameters too
        :return: (batch_size, n_inputs)
        """
        return self._backward(grad, parameters, inputs=True)

    def _backward(self, grad: th.Tensor, parameters: bool, inputs: bool) -> th.Tensor:
        # values[i] is what linear layer i takes; the last is what comes out.
        n_below, result, kept = len(self.values) - 1, self.values[-1], iter(reversed(self.kept))
        for layer in reversed(self.layers):
            if type(layer) is not nn.Linear:
                grad = KEY_TO_ACTIVATION[type(layer)].backward(grad, result, next(kept))
                continue
            n_below -= 1
            result = self.values[n_below]
            if parameters:
                layer.weight.grad = product(grad.t(), result)
                layer.bias.grad = grad.sum(dim=0)
            if n_below > 0 or inputs:
                grad = product(grad, layer.weight)
        return grad


def is_flat(extractor: nn.Module) -> bool:
    """
    Whether a feature extractor is one of stable-baselines3 that only flattens and concatenates. What is derived from one may
    do anything else before or after.

    :param extractor: feature extractor
    :return: whether it does
    """
    if type(extractor) is CombinedExtractor:
        return all(type(part) is nn.Flatten for part in extractor.extractors.values())
    return type(extractor) is FlattenExtractor


def sees_parts_apart(extractor: nn.Module) -> bool:
    """
    Whether a feature extractor is one of stable-baselines3 that gives each part of an observation features of its own: vectors
    are flattened, and images go through networks of their own.

    :param extractor: feature extractor
    :return: whether it does
    """
    return type(extractor) is CombinedExtractor or is_flat(extractor)


def is_plain(actor: Any, *critics: Any, extractor_fits: Callable[[nn.Module], bool] = is_flat) -> bool:
    """
    Whether networks are those of stable-baselines3's SAC, and small ones: known layers over flat observations. A class that is
    derived from one of them may do anything else, and is not.

    :param actor: actor
    :param critics: critics
    :param extractor_fits: what their feature extractors have to be
    :return: whether they are
    """
    return (
        type(actor) is Actor
        and not actor.use_sde
        and all(type(critic) is ContinuousCritic for critic in critics)
        and all(extractor_fits(network.features_extractor) for network in (actor, *critics))
        and all(map(Layers.knows, [actor.latent_pi, [actor.mu, actor.log_std]]))
        and all(Layers.knows(network) for critic in critics for network in critic.q_networks)
    )
