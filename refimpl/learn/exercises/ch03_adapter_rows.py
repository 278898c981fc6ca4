"""Chapter 3: requests become one flat batch.

Each request comes with the adapters that it asks for; the forward pass needs them for each token.

    loracle learn check        is it right?
    loracle learn hint         a hint; there are three
"""

import numpy as np


def adapter_rows(per_request, lengths):
    """Return which adapters each token gets, as an array (or a list of lists) [tokens, k] of whole numbers.

    per_request  for each request, a list of the adapter slots that it sums, in its order; [] for the base
    lengths      for each request, how many tokens of it are in this batch; 1 or more

    All tokens of the first request come first, then those of the second. k is the length of the longest list in
    per_request, and at least 1. Where a request has fewer than k adapters, -1 stands in the columns that are left.
    """
    raise NotImplementedError
