"""Attention in both directions: every token of a sequence sees every other, and nothing is kept for later.

What a picture needs: its patches have no order in time, so there is no mask and no cache (attention.py has both).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from .arrays import Array, Float, Precision, namespace, rounded
from .layers import softmax


def full_attention_per_token(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    starts: Sequence[int],
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The definition: softmax(q k^T / sqrt(head_dim)) v, one token and one head at a time.

    starts: sequence i is the tokens starts[i] to starts[i + 1]; none sees another."""
    tokens, heads, head_dim = q.shape
    out, scale = namespace(q).empty_like(q), q.dtype.type(1 / math.sqrt(head_dim))
    for start, stop in pairwise(starts):
        for t in range(start, stop):
            for h in range(heads):
                scores = rounded(rounded(k[start:stop, h] @ q[t, h], p.scores) * scale, p.scores)
                out[t, h] = softmax(scores, p) @ v[start:stop, h]
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def full_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    starts: Sequence[int],
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The same, one sequence at a time: all of its heads are one batched product."""
    tokens, heads, head_dim = q.shape
    out, scale = namespace(q).empty_like(q), q.dtype.type(1 / math.sqrt(head_dim))
    for start, stop in pairwise(starts):
        queries, keys, values = (x[start:stop].transpose(1, 0, 2) for x in (q, k, v))
        scores = rounded(rounded(queries @ keys.transpose(0, 2, 1), p.scores) * scale, p.scores)
        out[start:stop] = (softmax(scores, p) @ values).transpose(1, 0, 2)
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)
