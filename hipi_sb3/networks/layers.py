"""Small networks without autograd: linear layers and activations, and their gradients written out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn

from hipi_sb3.networks.products import affine, product

aten = th.ops.aten

#: The activations that are known: what they do in place, and the gradient of their input from that of their result and from
#: the result itself.
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[th.Tensor], th.Tensor], Callable[[th.Tensor, th.Tensor], th.Tensor]]] = {
    nn.ReLU: (th.relu_, lambda grad, result: aten.threshold_backward(grad, result, 0)),
    nn.Tanh: (th.tanh_, aten.tanh_backward),
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

    @staticmethod
    def knows(layers: Any) -> bool:
        """
        Whether all layers are linear ones with a bias or known activations.

        :param layers: layers
        :return: whether they are
        """
        if isinstance(layers, nn.Module) and type(layers) is not nn.Sequential:
            return False  # it may do anything between its layers
        return all(type(layer) in ACTIVATIONS or (type(layer) is nn.Linear and layer.bias is not None) for layer in layers)

    def __call__(self, values: Any) -> Any:
        """
        Forward pass.

        :param values: inputs, (batch_size, n_inputs) or :class:`PairInputs`
        :return: outputs, (batch_size, n_outputs)
        """
        self.values = [values]
        for layer in self.layers:
            kind = type(layer)
            if kind is nn.Linear:
                if isinstance(values, PairInputs):
                    values = values.through(layer)
                else:
                    values = affine(values, layer.weight, layer.bias)
                self.values.append(values)
            else:
                ACTIVATIONS[kind][0](values)  # in place: what was there is not needed again
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
        n_below, result = len(self.values) - 1, self.values[-1]
        for layer in reversed(self.layers):
            if type(layer) is not nn.Linear:
                grad = ACTIVATIONS[type(layer)][1](grad, result)
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
