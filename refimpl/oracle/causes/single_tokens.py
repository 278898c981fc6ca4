"""Attention of many requests of one new token each, behind prefixes of few: all of them in one product.

The usual form (attention.py) takes a call for each request, since their keys lie apart and differ in number. Here a
token's keys are gathered as many as the longest has, and those that are too many are hidden.
"""

import numpy as np

from ...arrays import Array, Float, Precision
from ...attention import attention, score_scale
from ...config import View
from ...layers import softcap, softmax
from ...plans import AttentionMetadata

AT_ONCE = 256  # requests; more: their keys leave the cache


def attention_of_single_tokens(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks 1 kv_heads head_dim"],
    v_cache: Float[Array, "blocks 1 kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*value_dim"]:
    """As attention.attention in float64; that itself where a request has more tokens, or there are sinks."""
    contexts, (tokens, heads, head_dim) = metadata.context_lens, q.shape
    if len(contexts) < tokens or metadata.block_size > 1 or view.sinks is not None:
        return attention(q, k_cache, v_cache, metadata, view, p)
    _, _, kv_heads, value_dim = v_cache.shape
    queries = q.reshape(tokens, kv_heads, -1, head_dim) * score_scale(q, view)
    mixed = np.empty((tokens, kv_heads, heads // kv_heads, value_dim), q.dtype)
    for some in np.split(np.arange(tokens), range(AT_ONCE, tokens, AT_ONCE)):
        place, context = np.arange(contexts[some].max()), contexts[some, None]
        hidden = place >= context
        if view.window is not None:
            hidden |= place < context - view.window
        own_slots = metadata.slot_mapping[some, None]  # a key that is there, in place of those that are hidden
        slots = np.where(hidden, own_slots, metadata.block_tables[some, : len(place)])
        scores = softcap(queries[some] @ k_cache[slots, 0].transpose(0, 2, 3, 1), view.softcap, p.scores)
        np.copyto(scores, -np.inf, where=hidden[:, None, None])
        mixed[some] = softmax(scores, p) @ v_cache[slots, 0].transpose(0, 2, 1, 3)
    return mixed.reshape(tokens, heads * value_dim)
