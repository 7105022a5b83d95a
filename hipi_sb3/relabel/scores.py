"""Scores R_psi(s, a): how good a transition is for a task.

Every score is computed for all pairs of a row and a candidate task at once, (batch_size, n_tasks), in chunks of bounded
memory. To add a score: write a function and enter it in ``KEY_TO_SCORE``.
"""

from collections.abc import Callable
from dataclasses import replace

import torch as th

from hipi_sb3.names import lookup
from hipi_sb3.relabel.learners import Learner, Pairs, evaluation_mode

#: Pairs that are scored in one forward pass. On a CPU activations of 256 units then take two megabytes, which caches hold;
#: other devices want few large kernels, and have room for several activations of 128 megabytes.
MAX_PAIRS_ON_CPU, MAX_PAIRS_ELSEWHERE = 2048, 131_072


def q_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = min over the critics of Q(s, a, psi): no look at the realised s', so no hindsight bias, nor at later steps of a window.
    """
    return learner.pair_q(pairs)


def td_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = sum_k gamma^k r_psi + gamma^L (1 - d_psi) V(s_L, psi): the learner's own Bellman target, over n steps where it learns
    from n. It holds the exact reward from the first step on, and picks lucky outcomes where the dynamics are noisy.
    """
    return _bellman(pairs, learner.pair_next_value(pairs))


def progress_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = outcome - V(s, psi), the outcome of :func:`td_score` beside the value that the same target has of where it began: how
    much better the step or window was than what the policy would have done. Says nothing of how far the task is from done.
    """
    before = replace(pairs, next_observations=pairs.observations)
    return td_score(learner, pairs) - learner.pair_next_value(before)


def paper_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = r_psi + gamma (1 - d_psi) Q(s', a', psi) - log pi(a | s, psi) with the first online critic, as the authors' code has
    it. At the optimum Q - alpha log pi = V, so it carries no information about the action; kept for comparison.
    """
    next_observations = pairs.tile_observations(pairs.next_observations)
    next_q = learner.first_q(next_observations, learner.policy_sample(next_observations)[0])
    log_prob = learner.log_prob(pairs.tile_observations(pairs.observations), pairs.tile(pairs.actions))
    return _bellman(pairs, pairs.untile(next_q)) - pairs.untile(log_prob)


def advantage_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = Q(s, a, psi) - V(s, psi): how much better the action was than what the policy does for that task. Of a window it is the
    first action; where the advantage is the default, windows have one step.
    """
    return learner.pair_q(pairs) - learner.pair_value(pairs)


def mixed_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = outcome - V(s, psi) where the task or the environment ends in the step or window, Q(s, a, psi) - V(s, psi) elsewhere.

    What happened at an end is exact and is known before the critic is; elsewhere a realised outcome says more of the state
    that was reached than of the action, while V is young, and the critic's own comparison of actions does not.
    """
    return th.where(pairs.terminated, progress_score(learner, pairs), advantage_score(learner, pairs))


def reward_score(learner: Learner, pairs: Pairs) -> th.Tensor:
    """
    R = r_psi, the reward of the step alone: the naive rule that looks at no consequence.
    """
    return pairs.rewards


def _bellman(pairs: Pairs, next_value: th.Tensor) -> th.Tensor:
    # Not (1 - d) * value: an impossible task (reward -inf) must not meet a NaN, nor a terminal row an unbounded value.
    return pairs.rewards + th.where(pairs.terminated, th.zeros_like(next_value), pairs.discounts * next_value)


KEY_TO_SCORE: dict[str, Callable[[Learner, Pairs], th.Tensor]] = {
    "q": q_score,
    "td": td_score,
    "progress": progress_score,
    "advantage": advantage_score,
    "mixed": mixed_score,
    "reward": reward_score,
    "paper": paper_score,
}


def score_pairs(learner: Learner, score: str, pairs: Pairs, max_pairs: int | None = None) -> th.Tensor:
    """
    Score every row with every candidate task.

    :param learner: view of the algorithm
    :param score: one of ``KEY_TO_SCORE``
    :param pairs: rows and candidate tasks
    :param max_pairs: pairs a forward pass; what suits the device if None
    :return: R_psi(s, a), (batch_size, n_tasks); -inf for a task that the row may not have, whatever the score looks at
    """
    function = lookup("score", score, KEY_TO_SCORE)
    if max_pairs is None:
        max_pairs = MAX_PAIRS_ON_CPU if pairs.rewards.device.type == "cpu" else MAX_PAIRS_ELSEWHERE
    with th.no_grad(), evaluation_mode(learner.model.policy):
        scores = th.cat([function(learner, chunk) for chunk in pairs.chunks(max_pairs)])
    return th.where(th.isneginf(pairs.rewards), pairs.rewards, scores)
