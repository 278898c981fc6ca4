"""Chapter 6: the name of one full block of the KV cache.

Two blocks may have the same key exactly when their keys and values are the same numbers.

    loracle learn check        is it right?
    loracle learn hint         a hint; there are three
"""


def prefix_key(parent, token_ids, base, p, adapters):
    """Return the key of a block, as bytes of any length.

    parent     the key of the block before it; b"" for the first one
    token_ids  the tokens of the block: a list of whole numbers
    base       32 bytes that name the base model's weights
    p          the precision it runs in; repr(p) is one line
    adapters   [(32 bytes that name an adapter's weights, how much of it), ...] in the request's order; [] for the base
    """
    raise NotImplementedError
