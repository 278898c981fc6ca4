"""Attention's backward pass. While an adapter trains, a request is a whole prefill: its keys are its own tokens'.

    P = softmax(S), S = q k^T / sqrt(head_dim), y = P v:

    dv = P^T dy        dP = dy v^T        dS = P (dP - sum over the keys of P dP)
    dq = dS k / sqrt(head_dim)            dk = dS^T q / sqrt(head_dim)

P is computed again from q and k, which is what FlashAttention does (Dao et al. 2022): it is the one intermediate that
grows with the square of the length.
"""

import math

from ..arrays import Array, Float, Precision, namespace
from ..attention import QUERIES_AT_ONCE, first_visible, mask
from ..layers import softmax
from ..plans import AttentionMetadata

Triple = tuple[Array, Array, Array]


def attention_vjp(
    dy: Float[Array, "tokens d_in"],
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    metadata: AttentionMetadata,
    window: int | None,
    p: Precision,
) -> Triple:
    """Return dq, dk and dv, in the shapes of q, k and v, one request and one tile of its queries at a time.

    The query heads that share a key head are stacked below each other, as on the way forward."""
    (_, heads, head_dim), kv_heads = q.shape, k.shape[1]
    xp, scale, group = namespace(q), q.dtype.type(1 / math.sqrt(head_dim)), heads // kv_heads
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)

    def stacked(x: Array) -> Float[Array, "kv_heads group*n head_dim"]:
        """[n, heads * head_dim] -> one matrix for each key head."""
        by_head = x.reshape(x.shape[0], kv_heads, group, head_dim).transpose(1, 2, 0, 3)
        return by_head.reshape(kv_heads, group * x.shape[0], head_dim)

    for span in metadata.device.spans:
        for start in range(span.start, span.stop, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, span.stop)
            lo = span.start + first_visible(start - span.start, window)
            n, keys = stop - start, stop - lo
            queries, outputs = stacked(q[start:stop]), stacked(dy[start:stop])
            k_heads, v_heads = k[lo:stop].transpose(1, 0, 2), v[lo:stop].transpose(1, 0, 2)
            scores = (queries @ k_heads.transpose(0, 2, 1) * scale).reshape(kv_heads, group, n, keys)
            probabilities = softmax(scores + mask(n, keys, window, xp, scores.dtype), p).reshape(
                kv_heads, group * n, keys
            )
            probability_gradient = outputs @ v_heads.transpose(0, 2, 1)
            score_gradient = (
                probabilities
                * (probability_gradient - (probabilities * probability_gradient).sum(axis=-1, keepdims=True))
                * scale
            )
            q_gradient = (score_gradient @ k_heads).reshape(kv_heads, group, n, head_dim).transpose(2, 0, 1, 3)
            dq[start:stop] = q_gradient.reshape(n, heads, head_dim)
            dk[lo:stop] += (score_gradient.transpose(0, 2, 1) @ queries).transpose(1, 0, 2)
            dv[lo:stop] += (probabilities.transpose(0, 2, 1) @ outputs).transpose(1, 0, 2)
    return dq, dk, dv


def attention_vjp_per_token(
    dy: Float[Array, "tokens d_in"],
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    metadata: AttentionMetadata,
    window: int | None,
    p: Precision,
) -> Triple:
    """The definition: one token, one head at a time; several query heads add to the key head that they share."""
    (tokens, heads, head_dim), kv_heads = q.shape, k.shape[1]
    xp, scale = namespace(q), q.dtype.type(1 / math.sqrt(head_dim))
    dy = dy.reshape(tokens, heads, head_dim)
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    for span in metadata.spans:
        for t in range(span.start, span.stop):
            visible = slice(span.start + first_visible(t - span.start, window), t + 1)
            for h in range(heads):
                kv_head = h // (heads // kv_heads)
                keys, values = k[visible, kv_head], v[visible, kv_head]
                probabilities = softmax(keys @ q[t, h] * scale, p)
                probability_gradient = values @ dy[t, h]
                score_gradient = (
                    probabilities * (probability_gradient - (probabilities * probability_gradient).sum()) * scale
                )
                dq[t, h] = score_gradient @ keys
                dk[visible, kv_head] += score_gradient[:, None] * q[t, h][None, :]
                dv[visible, kv_head] += probabilities[:, None] * dy[t, h][None, :]
    return dq, dk, dv
