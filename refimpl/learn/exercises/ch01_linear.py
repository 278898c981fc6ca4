"""Chapter 1: one product and a patch.

The base's product, and one adapter's patch added to it. Nothing as large as W may be made on the way.

    loracle learn check        is it right?
    loracle learn hint         a hint; there are three
"""

import numpy as np


def linear(x, W, A, B, alpha, use_rslora):
    """Return W x + scale * B (A x) for every row x of a batch, as an array [tokens, d_out].

    x           [tokens, d_in], a row for each token
    W           [d_out, d_in], the base's weight
    A           [r, d_in]
    B           [d_out, r]; r is the rank of the adapter
    alpha       lora_alpha of its config, a number
    use_rslora  whether its config says rsLoRA, True or False
    """
    raise NotImplementedError
