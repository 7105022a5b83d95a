"""What steps are worth, computed where the networks are: the families that have a form for tensors.

All rows under all candidates are many numbers, and on a GPU they are better computed there than carried there. A family
without such a form, every family of a user's among them, is judged by NumPy; nothing but time depends on it.
"""

from collections.abc import Callable
from typing import Any

import torch as th

from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.finite import FiniteTasks
from hipi_sb3.tasks.goals import GoalMargin, GoalReaching
from hipi_sb3.tasks.linear import LinearReward, TargetVelocity

#: ``form(features, tasks)``: rewards and terminations, (...,) each, for features, (..., feature_dim), and tasks,
#: (..., task_dim), whose leading axes broadcast. The numbers are those of the family's ``reward`` and ``terminated``.
TensorForm = Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]]


def _goal_reaching(family: GoalReaching) -> TensorForm:
    return lambda features, goals: _reaching(family.terminate, _squared_distance(features, goals) <= family.radius**2)


def _goal_margin(family: GoalMargin) -> TensorForm:
    def form(features: th.Tensor, tasks: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        goals, tolerance = tasks[..., : family.goal_dim], tasks[..., family.goal_dim].float()
        return _reaching(family.terminate, _squared_distance(features, goals) <= tolerance**2)

    return form


def _linear_reward(family: LinearReward) -> TensorForm:
    return lambda features, weights: _endless((features * weights.float()).sum(dim=-1))


def _target_velocity(family: TargetVelocity) -> TensorForm:
    def form(features: th.Tensor, tasks: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        velocity, energy = features.double().unbind(dim=-1)
        return _endless(-(velocity - tasks[..., 0]).abs() - family.action_cost * energy)

    return form


def _finite_tasks(family: FiniteTasks) -> TensorForm | None:
    inner = tensor_form(family.family)
    if inner is None:
        return None

    def form(features: th.Tensor, tasks: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        parameters = th.as_tensor(family.parameters, device=tasks.device)
        return inner(features, parameters[tasks.argmax(dim=-1)])  # a one-hot vector says which

    return form


#: Of these classes exactly: what is derived from one may reward something else.
CLASS_TO_FORM: dict[type[TaskFamily], Callable[[Any], TensorForm | None]] = {
    GoalReaching: _goal_reaching,
    GoalMargin: _goal_margin,
    LinearReward: _linear_reward,
    TargetVelocity: _target_velocity,
    FiniteTasks: _finite_tasks,
}


def tensor_form(family: TaskFamily) -> TensorForm | None:
    """
    How a family judges tensors.

    :param family: the tasks
    :return: its form, or None where it has none
    """
    make = CLASS_TO_FORM.get(type(family))
    return None if make is None else make(family)


def _squared_distance(features: th.Tensor, goals: th.Tensor) -> th.Tensor:
    return (features.float() - goals.float()).square().sum(dim=-1)


def _reaching(terminate: bool, reached: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    return reached.float() - 1, reached if terminate else th.zeros_like(reached)


def _endless(rewards: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    return rewards, th.zeros_like(rewards, dtype=th.bool)
