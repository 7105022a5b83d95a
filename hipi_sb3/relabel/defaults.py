"""What the options are where none is given: it depends on the tasks alone.

Only the length of a window looks at the actions, too: ``HIPIReplayBuffer`` has one step where they are discrete.

Tasks that are fulfilled at some moment (goals, and whatever ends) pay little until then and everything at once. A window that
got there is worth more than the critic knows, so it is learned from whole and judged by what happened. Rewards that come in
every step are the other way round: what a step paid says more of the state than of the action, so the critic compares actions,
softly, for a task that sees only what is good for it learns no difference; and windows would add the mistakes of the policy
that acted. For the same reason a share of the labels is drawn from the candidates' prior, where such a draw teaches something:
half of those of goals, three quarters of which the row's own future reaches, and seven eighths where tasks pay in every step,
any of which teaches. Of a finite set of tasks that end, a random one is hardly ever fulfilled, and all labels are the
posterior's.
``docs/results.md`` has the measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hipi_sb3.tasks.family import TaskFamily

#: Above so many tasks of a finite family, its candidates are drawn by default: the cost of scoring all of them grows with
#: their number, that of draws does not.
MANY_TASKS = 256

#: Steps of a window in which a task may be fulfilled.
WINDOW = 5


@dataclass(frozen=True)
class Defaults:
    """
    Options that suit the tasks.

    :param score: R_psi, see :mod:`hipi_sb3.relabel.scores`
    :param log_partition: estimator of log Z(psi), see :mod:`hipi_sb3.relabel.log_partition`
    :param temperature: T, see :class:`~hipi_sb3.relabel.posterior.TaskInference`
    :param prior_share: share of labels that are random candidates
    :param n_steps: steps of a window
    """

    score: str
    log_partition: str
    temperature: str
    prior_share: float
    n_steps: int


def defaults_for(family: TaskFamily) -> Defaults:
    """
    Options of the posterior that suit the tasks.

    :param family: the tasks
    :return: the options
    """
    # Both scores subtract V(s, psi), which prices a task in every state. What that leaves to log Z(psi) is worth an estimate
    # where it is one number a task.
    log_partition = "none" if family.tasks is None else "running"
    if family.reaches_goals or family.tasks_end:
        return Defaults("progress", log_partition, "spread:1", 0.5 if family.reaches_goals else 0.0, WINDOW)
    return Defaults("advantage", log_partition, "spread:2", 0.875, 1)


def default_candidates(family: TaskFamily, drawn: str = "batch", by_row: bool = False) -> str | Mapping[str, float]:
    """
    The default candidates: every task of a finite family; reached and commanded goals; draws from the prior for the rest, and
    for a finite family of many tasks. The tasks that were commanded so far are draws from the prior, too, but only as many as
    there were episodes: where these are long, a policy that learns from them alone knows a handful of tasks.

    :param family: the tasks
    :param drawn: where unreached goals are drawn: ``"batch"``, or ``"prior"`` where the data may know no commanded task
    :param by_row: whether rows may have candidates of their own: then most are goals of the row's own future
    :return: a value for ``candidates``
    """
    if family.tasks is not None:
        return "all" if len(family.tasks) <= MANY_TASKS else "prior"
    if not family.reaches_goals:
        return "prior"
    return {drawn: 0.125, "achieved": 0.125, "future": 0.75} if by_row else {drawn: 0.5, "achieved": 0.5}
