"""The methods that a benchmark compares, by name."""

from dataclasses import dataclass, replace

from hipi_sb3.relabel.strategies import KEY_TO_STRATEGY


@dataclass(frozen=True)
class Method:
    """
    A way of relabeling, run through the same code as all others.

    :param relabel: options of ``zoo/train.py --relabel``
    :param algo: algorithm of the launcher
    :param hyperparams: options of ``zoo/train.py --hyperparams``
    """

    relabel: tuple[str, ...] = ()
    algo: str = "hipi_sac"
    hyperparams: tuple[str, ...] = ()

    @property
    def needs_goals(self) -> bool:
        """Whether it relabels with goals only, as HER does."""
        strategies = [KEY_TO_STRATEGY.get(option.removeprefix("strategy=")) for option in self.relabel]
        return any(strategy is not None and strategy.needs_goals for strategy in strategies)


KEY_TO_METHOD: dict[str, Method] = {
    "none": Method(("strategy=none",)),
    "random": Method(("strategy=random",)),
    # Of the tasks that were commanded in the batch, instead of any, where rewards come in every step.
    "random_commanded": Method(("strategy=random", "candidates=batch")),
    "her_final": Method(("strategy=final",)),
    "her_future": Method(("strategy=future",)),
    # SB3's own HerReplayBuffer, in GoalEnvs: those of sac.yml have it.
    "her_sb3": Method(algo="sac"),
    "hipi": Method(),
    # As the authors released it: commanded tasks of the batch as candidates, with -log pi in the score.
    "hipi_released": Method(
        (
            *("score=paper", "candidates=batch", "log_partition=batch", "temperature=1.0"),
            *("n_candidate_tasks=32", "n_steps=1", "prior_share=0.0"),
        )
    ),
    "max_reward": Method(("strategy=max_reward",)),
    "air": Method(("strategy=air",)),
    "advantage": Method(("strategy=advantage",)),
    "map": Method(("strategy=map",)),
    # Windows of five steps for others than HIPI, which has them by default where tasks are fulfilled at some moment.
    "random_n5": Method(("strategy=random", "n_steps=5")),
    "random_commanded_n5": Method(("strategy=random", "candidates=batch", "n_steps=5")),
    "her_future_n5": Method(("strategy=future", "n_steps=5")),
    "hipi_n1": Method(("n_steps=1",)),
    # One factor varied at a time from "hipi": share of relabeled rows (and HER with the same share), ...
    "hipi_p08": Method(("relabel_prob=0.8",)),
    "her_future_p08": Method(("strategy=future", "relabel_prob=0.8")),
    # ... share of labels that are random candidates (without any with more candidates, too, as it once was), ...
    "hipi_w50": Method(("prior_share=0.5",)),
    "hipi_posterior": Method(("prior_share=0.0", "n_candidate_tasks=64")),
    "hipi_prior": Method(("prior_share=1.0",)),
    # ... uses of a label, ...
    "hipi_reuse1": Method(("label_reuse=1",)),
    # ... candidates, ...
    "hipi_commanded": Method(("candidates=batch",)),
    "hipi_achieved": Method(("candidates=achieved",)),
    "hipi_own_future": Method(("candidates={future: 0.75, batch: 0.25}", "log_partition=running")),
    # ... score, ...
    "hipi_q": Method(("score=q",)),
    "hipi_td": Method(("score=td",)),
    "hipi_mixed": Method(("score=mixed",)),
    "hipi_advantage": Method(("score=advantage",)),
    "hipi_paper": Method(("score=paper",)),
    # ... temperature, ...
    "hipi_t01": Method(("temperature=0.1",)),
    "hipi_t5": Method(("temperature=5.0",)),
    "hipi_auto": Method(("temperature=auto",)),
    "hipi_ess8": Method(("temperature=ess:8",)),
    # ... and log Z.
    "hipi_none": Method(("log_partition=none",)),
    "hipi_mean": Method(("log_partition=mean",)),
    "hipi_running": Method(("log_partition=running",)),
    "hipi_sinkhorn": Method(("log_partition=sinkhorn",)),
}
#: The same with plain networks and one update a step, where an environment's settings have others.
_AS_IN_SB3 = ("gradient_steps:1", "policy_kwargs:dict(net_arch=[128, 128])")
_RELABELING = ("none", "random", "random_commanded", "random_n5", "her_future", "her_future_n5")
KEY_TO_METHOD |= {
    f"{name}_plain": replace(KEY_TO_METHOD[name], hyperparams=_AS_IN_SB3)
    for name in (*_RELABELING, "hipi", "hipi_posterior", "hipi_prior")
}
