"""The arguments of HerReplayBuffer, taken by HIPIReplayBuffer."""

from typing import Any

import pytest
from line_walk import goal_buffer
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from hipi_sb3.relabel.strategies import HIPI, EpisodeGoal, FinalGoal, FutureGoal

UNSAID = {"strategy": None, "relabel_prob": None}


def options_of(**arguments: Any) -> tuple[type, float]:
    relabeler = goal_buffer(**{**UNSAID, **arguments}).relabeler
    return type(relabeler.strategy), relabeler.relabel_prob


@pytest.mark.parametrize("as_enum", [False, True])
@pytest.mark.parametrize("name, strategy", [("future", FutureGoal), ("final", FinalGoal), ("episode", EpisodeGoal)])
def test_goal_selection_strategy_is_the_strategy_of_that_name(name: str, strategy: type, as_enum: bool) -> None:
    given = GoalSelectionStrategy[name.upper()] if as_enum else name
    assert options_of(goal_selection_strategy=given) == (strategy, 0.8)  # HER's default: 4 goals per real transition


@pytest.mark.parametrize("n_sampled_goal, relabel_prob", [(0, 0.0), (1, 0.5), (2, 2 / 3), (4, 0.8)])
def test_n_sampled_goal_is_the_share_of_rows_that_her_relabels(n_sampled_goal: int, relabel_prob: float) -> None:
    strategy, share = options_of(n_sampled_goal=n_sampled_goal)
    assert strategy is FutureGoal and share == pytest.approx(relabel_prob, abs=1e-12)


def test_without_arguments_of_her_it_is_hipi() -> None:
    assert options_of() == options_of(copy_info_dict=True) == (HIPI, 0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"strategy": "hipi", "n_sampled_goal": 4},
            r"strategy='hipi' cannot stand beside n_sampled_goal=4.*Drop n_sampled_goal",
        ),
        (
            {"relabel_prob": 0.3, "goal_selection_strategy": "final"},
            r"relabel_prob=0.3 cannot .*or drop relabel_prob for HER",
        ),
        ({"strategy": "map", "relabel_prob": 0.3, "n_sampled_goal": 1}, "or drop strategy and relabel_prob for HER"),
        ({"goal_selection_strategy": "futur"}, "Unknown goal_selection_strategy 'futur'. Did you mean 'future'"),
        ({"n_sampled_goal": -1}, "at least 0, not -1"),
    ],
)
def test_what_is_said_twice_or_wrong_is_an_error_with_the_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(**arguments)


def test_other_arguments_are_unexpected_as_ever() -> None:
    options: Any = {"n_sampled_goals": 4}
    with pytest.raises(TypeError, match=r"HIPIReplayBuffer.* unexpected keyword argument 'n_sampled_goals'"):
        goal_buffer(**options)
