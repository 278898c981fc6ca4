"""Attention's backward pass. While an adapter trains, a request is a whole prefill: its keys are its own tokens'.

    P = softmax(cap(S)), S = scale q k^T, y = P v:

    dv = P^T dy        dP = dy v^T        dS = cap'(S) P (dP - sum over the keys of P dP)
    dq = scale dS k                       dk = scale dS^T q

scale is 1 / sqrt(head_dim), and cap(S) is S, unless the model's View says otherwise.

P is computed again from q and k, which is what FlashAttention does (Dao et al. 2022): it is the one intermediate that
grows with the square of the length.
"""

from ..arrays import Array, Float, Precision, namespace
from ..attention import mask, score_scale
from ..config import View
from ..layers import softcap, softmax
from ..plans import AttentionMetadata
from ..tiles import QUERIES_AT_ONCE, first_visible
from .gradients import softcap_vjp

Triple = tuple[Array, Array, Array]


def attention_vjp(
    dy: Float[Array, "tokens d_in"],
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Triple:
    """Return dq, dk and dv, in the shapes of q, k and v, one request and one tile of its queries at a time.

    The query heads that share a key head are stacked below each other, as on the way forward."""
    (_, heads, head_dim), kv_heads = q.shape, k.shape[1]
    xp, scale, group = namespace(q), score_scale(q, view), heads // kv_heads
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)

    def stacked(x: Array) -> Float[Array, "kv_heads group*n head_dim"]:
        """[n, heads * head_dim] -> one matrix for each key head."""
        by_head = x.reshape(x.shape[0], kv_heads, group, head_dim).transpose(1, 2, 0, 3)
        return by_head.reshape(kv_heads, group * x.shape[0], head_dim)

    for span in metadata.device.spans:
        for start in range(span.start, span.stop, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, span.stop)
            lo = span.start + first_visible(start - span.start, view.window)
            n, keys = stop - start, stop - lo
            queries, outputs = stacked(q[start:stop]), stacked(dy[start:stop])
            k_heads, v_heads = k[lo:stop].transpose(1, 0, 2), v[lo:stop].transpose(1, 0, 2)
            scores = softcap(queries @ k_heads.transpose(0, 2, 1) * scale, view.softcap, p.scores)
            hidden = mask(n, keys, view.window, xp, scores.dtype)
            shape = (kv_heads, group * n, keys)
            probabilities = softmax(scores.reshape(kv_heads, group, n, keys) + hidden, p).reshape(shape)
            score_gradient = softmax_vjp(outputs @ v_heads.transpose(0, 2, 1), probabilities)
            score_gradient = softcap_vjp(score_gradient, scores, view.softcap) * scale
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
    view: View,
    p: Precision,
) -> Triple:
    """The definition: one token, one head at a time; several query heads add to the key head that they share."""
    (tokens, heads, head_dim), kv_heads = q.shape, k.shape[1]
    xp, scale = namespace(q), score_scale(q, view)
    dy = dy.reshape(tokens, heads, head_dim)
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    for span in metadata.spans:
        for t in range(span.start, span.stop):
            visible = slice(span.start + first_visible(t - span.start, view.window), t + 1)
            for h in range(heads):
                kv_head = h // (heads // kv_heads)
                keys, values = k[visible, kv_head], v[visible, kv_head]
                scores = softcap(keys @ q[t, h] * scale, view.softcap, p.scores)
                probabilities = softmax(scores, p)
                score_gradient = softmax_vjp(values @ dy[t, h], probabilities)
                score_gradient = softcap_vjp(score_gradient, scores, view.softcap) * scale
                dq[t, h] = score_gradient @ keys
                dk[visible, kv_head] += score_gradient[:, None] * q[t, h][None, :]
                dv[visible, kv_head] += probabilities[:, None] * dy[t, h][None, :]
    return dq, dk, dv


def softmax_vjp(dy: Array, y: Array) -> Array:
    """y = softmax(x) over the last axis:  dx = y (dy - sum of y dy)."""
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))
