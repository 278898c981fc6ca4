"""Chapter 2: two adapters, one batch.

The base has computed y for all tokens. Add to each token's row the patch of its adapter, and to none another one's.

    loracle learn check        is it right?
    loracle learn hint         a hint; there are three
"""

import numpy as np


def lora_delta(y, x, A, B, scale, adapter_ids):
    """Add scale[i] * B[i] (A[i] x[t]) to y[t], for i = adapter_ids[t], in place; return nothing.

    y            [tokens, d_out], what the base computed; this is changed
    x            [tokens, d_in]
    A            a list: A[i] is [r, d_in], and each adapter has a rank r of its own
    B            a list: B[i] is [d_out, r]
    scale        a list: scale[i] is a number
    adapter_ids  [tokens], whole numbers; -1: no adapter, the row of y stays as it is, whatever stands in x
    """
    raise NotImplementedError
