"""Which experts a token goes through, and how much each of them counts: two steps of moe.py.

    scores     softmax of all logits (Shazeer et al. 2017), of those of the chosen alone (then the choice is of logits),
               or the sigmoid of each (DeepSeek-V3)
    choice     the top_k of scores + correction, inside the best groups; of equals, the lower number
    weights    the scores of the chosen (without the correction), divided by their sum if they are renormalised, times
               the scale

An engine that keeps more or fewer digits of the logits may choose another expert where two are nearly equal: `margin`
says by how much a choice was made.
"""

import numpy as np

from .arrays import Array, Float, Int, Precision, namespace, rounded
from .config import Groups, Moe
from .plans import Index

TINY = 1e-20  # added to a sum of scores that may all be 0: what transformers adds


def softmax(logits: Array) -> Array:
    """e^x / sum(e^x) over the last axis."""
    powers = namespace(logits).exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):  # e^-x may be inf: then it is 0, which is right
        return 1 / (1 + namespace(x).exp(-x))


def scores_of(logits: Float[Array, "*rest experts"], moe: Moe) -> Float[Array, "*rest experts"]:
    """What experts are chosen by: one score for each."""
    if moe.scores == "softmax_of_chosen":
        return logits
    return sigmoid(logits) if moe.scores == "sigmoid" else softmax(logits)


def weights_of(scores: Float[Array, "*rest top_k"], moe: Moe, p: Precision) -> Float[Array, "*rest top_k"]:
    """How much each of the chosen counts, from its score."""
    if moe.scores == "softmax_of_chosen":
        scores = softmax(scores)
    if moe.renormalise:
        scores = scores / (scores.sum(axis=-1, keepdims=True) + TINY)
    return rounded(scores * scores.dtype.type(moe.scale), p.router_weights)


def route_per_token(
    logits: Float[Array, "tokens experts"], correction: Float[Array, " experts"] | None, moe: Moe, p: Precision
) -> tuple[Int[Array, "tokens top_k"], Float[Array, "tokens top_k"]]:
    """The definition, one token at a time: (the numbers of its experts, best first, and their weights)."""
    xp = namespace(logits)
    ids = xp.empty((logits.shape[0], moe.top_k), np.int32)
    weights = xp.empty((logits.shape[0], moe.top_k), logits.dtype)
    for t in range(logits.shape[0]):
        scores = scores_of(logits[t], moe)
        choice = (scores if correction is None else scores + correction).tolist()
        allowed = range(moe.experts)
        if moe.groups is not None:
            size = moe.experts // moe.groups.number
            groups = [range(j * size, (j + 1) * size) for j in range(moe.groups.number)]
            goodness = [sum(sorted((choice[i] for i in group), reverse=True)[: moe.groups.best]) for group in groups]
            kept = sorted(range(len(groups)), key=lambda j: -goodness[j])[: moe.groups.kept]
            allowed = [i for j in sorted(kept) for i in groups[j]]  # type: ignore[assignment]
        chosen = sorted(allowed, key=lambda i: -choice[i])[: moe.top_k]
        ids[t] = xp.asarray(chosen)
        weights[t] = weights_of(scores[chosen], moe, p)
    return ids, weights


def route(
    logits: Float[Array, "tokens experts"], correction: Float[Array, " experts"] | None, moe: Moe, p: Precision
) -> tuple[Int[Array, "tokens top_k"], Float[Array, "tokens top_k"]]:
    """The same, for all tokens at once."""
    xp, scores = namespace(logits), scores_of(logits, moe)
    choice = within_groups(scores if correction is None else scores + correction, moe)
    ids = best_first(choice)[:, : moe.top_k]
    return ids.astype(np.int32), weights_of(xp.take_along_axis(scores, ids, axis=1), moe, p)


def within_groups(choice: Float[Array, "tokens experts"], moe: Moe) -> Float[Array, "tokens experts"]:
    """The scores for the choice, with -inf in all groups but the best ones of each token."""
    if moe.groups is None:
        return choice
    xp, tokens = namespace(choice), choice.shape[0]
    dropped = best_first(group_scores(choice, moe.groups))[:, moe.groups.kept :]
    grouped = choice.reshape(tokens, moe.groups.number, -1).copy()
    grouped[xp.arange(tokens)[:, None], dropped] = -np.inf
    return grouped.reshape(choice.shape)


def group_scores(choice: Float[Array, "tokens experts"], groups: Groups) -> Float[Array, "tokens groups"]:
    """How good each group is: the sum of its best scores."""
    grouped = choice.reshape(choice.shape[0], groups.number, -1)
    return namespace(choice).sort(grouped, axis=2)[:, :, ::-1][:, :, : groups.best].sum(axis=2)


def best_first(x: Float[Array, "tokens n"]) -> Int[Array, "tokens n"]:
    """The places of each row by falling value; of equals, the lower one first."""
    return namespace(x).argsort(-x, axis=1, kind="stable")


def margin(
    logits: Float[Array, "tokens experts"], correction: Float[Array, " experts"] | None, moe: Moe
) -> Float[Array, " tokens"]:
    """By how much the last expert that a token chose was better than the best that it did not, or the last group, if
    that is less: 0 is a tie, and inf where all are chosen. In units of the scores that are chosen by."""
    scores = scores_of(logits, moe)
    choice = scores if correction is None else scores + correction
    of_experts = lead(within_groups(choice, moe), moe.top_k)
    if moe.groups is None:
        return of_experts
    return namespace(logits).minimum(of_experts, lead(group_scores(choice, moe.groups), moe.groups.kept))


def lead(x: Float[Array, "tokens n"], kept: int) -> Float[Array, " tokens"]:
    """By how much the last of each row's best is above the next; inf where there is none."""
    if kept == x.shape[1]:
        return namespace(x).full(len(x), np.inf)
    ordered = -namespace(x).sort(-x, axis=1)
    return ordered[:, kept - 1] - ordered[:, kept]


def expert_sum_per_token(
    y: Float[Array, "tokens d_model"],
    rows: Index,
    out: Float[Array, "rows d_model"],
    weights: Float[Array, " rows"],
    p: Precision,
) -> None:
    """y[t] += weight * out, in place, for the tokens that went through one expert: the definition.

    Experts come in the order of their numbers, and each sum is rounded, as transformers adds them up."""
    for i, t in enumerate(np.arange(len(y))[rows].tolist()):
        y[t] = rounded(y[t] + rounded(weights[i] * out[i], p.expert_sum), p.expert_sum)


def expert_sum(
    y: Float[Array, "tokens d_model"],
    rows: Index,
    out: Float[Array, "rows d_model"],
    weights: Float[Array, " rows"],
    p: Precision,
) -> None:
    """The same, all of these tokens at once."""
    y[rows] = rounded(y[rows] + rounded(weights[:, None] * out, p.expert_sum), p.expert_sum)
