"""The arguments of stable-baselines3's HerReplayBuffer, in the terms of this package."""

from typing import Any, TypedDict

from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from hipi_sb3.names import lookup
from hipi_sb3.relabel.strategies import Strategy

#: What HerReplayBuffer does unless it is told otherwise.
HER_STRATEGY, HER_SAMPLED_GOALS = GoalSelectionStrategy.FUTURE, 4

#: Arguments that ask for HER, and so say what strategy and relabel_prob are.
ASK_FOR_HER = ("goal_selection_strategy", "n_sampled_goal")

_VALUE_TO_NAME = {value: name for name, value in KEY_TO_GOAL_STRATEGY.items()}


class HerArguments(TypedDict, total=False):
    """
    What ``HerReplayBuffer`` takes, with its meaning and its defaults there: a strategy or a number
    of goals asks for HER, so that labels are drawn with HER's frequencies.
    """

    #: The environments, a ``VecEnv``: only for a buffer that is built by hand, before any algorithm is.
    env: VecEnv
    #: Goals per real transition: ``relabel_prob`` is 1 - 1 / (n + 1). 4 where only the strategy is given.
    n_sampled_goal: int
    #: ``"future"``, ``"final"`` or ``"episode"``, or stable-baselines3's enum: the ``strategy`` of that name.
    goal_selection_strategy: str | GoalSelectionStrategy
    #: Taken and not needed: what a reward reads of ``info`` is kept as features, and nothing else of it is ever read again.
    copy_info_dict: bool


def translate(her: Any, strategy: str | Strategy | None, relabel_prob: float | None) -> tuple[str | Strategy, float]:
    """
    Say in the terms of this package what is asked for in HER's.

    :param her: arguments of ``HerReplayBuffer``
    :param strategy: the strategy, if it is given
    :param relabel_prob: share of rows that are relabeled, if it is given
    :return: strategy and share of rows that are relabeled
    :raises TypeError: when there is no such argument
    :raises ValueError: when something is said twice, or a value is none that HER knows
    """
    for name in her:
        if name not in HerArguments.__annotations__:
            raise TypeError(f"HIPIReplayBuffer.__init__() got an unexpected keyword argument {name!r}")
    asked = [name for name in ASK_FOR_HER if name in her]
    if not asked:
        return "hipi" if strategy is None else strategy, 0.5 if relabel_prob is None else relabel_prob
    given = {"strategy": strategy, "relabel_prob": relabel_prob}
    said_twice = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if said_twice:
        raise ValueError(
            f"{' and '.join(said_twice)} cannot stand beside {' and '.join(f'{name}={her[name]!r}' for name in asked)}: these "
            f"ask for HER, as HerReplayBuffer takes them. Drop {' and '.join(asked)} for {said_twice[0]}, or drop "
            f"{' and '.join(name for name, value in given.items() if value is not None)} for HER."
        )
    n_sampled_goal = her.get("n_sampled_goal", HER_SAMPLED_GOALS)
    if n_sampled_goal < 0:
        raise ValueError(f"n_sampled_goal is a number of goals per real transition, at least 0, not {n_sampled_goal}.")
    return _strategy_name(her.get("goal_selection_strategy", HER_STRATEGY)), 1 - 1 / (n_sampled_goal + 1)


def _strategy_name(goal_selection_strategy: Any) -> str:
    if not isinstance(goal_selection_strategy, GoalSelectionStrategy):
        name = str(goal_selection_strategy).lower()
        goal_selection_strategy = lookup("goal_selection_strategy", name, KEY_TO_GOAL_STRATEGY)
    return _VALUE_TO_NAME[goal_selection_strategy]
