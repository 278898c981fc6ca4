"""For which tokens, where an engine tells what it found in a cache, and what it computed again (preemption)."""

from collections.abc import Iterator

import numpy as np

from .regions import Region
from .reported import computed_last
from .schedule import Scheduled

BITS = 3.0  # of such a set of tokens


def regions_of_reported(request: Scheduled) -> Iterator[Region]:
    """Yield sets of a request's tokens; none of them where it tells no steps."""
    index, times = np.arange(request.tokens), np.zeros(request.tokens, int)  # how often each was computed
    for one in request.computed:
        times[one.first : one.first + one.tokens] += 1
    last = computed_last(request.computed, request.tokens)
    cached = last[0].first if last else 0
    first_end = last[0].first + last[0].tokens if last else 0
    again = times > 1
    last_again = int(index[again].max()) if again.any() else request.tokens
    everywhere = np.ones(request.tokens, bool)
    behind = (index >= cached) & (cached > 0)
    sets = {
        "requests of which first tokens were found in a cache": everywhere & (cached > 0),
        "tokens behind first ones that were found in a cache": behind,
        "the step behind first tokens that were found in a cache": behind & (index < first_end),
        "requests of which tokens are computed again": everywhere & again.any(),
        "tokens that are computed again": again,
        "tokens behind some that are computed again": index > last_again,
    }
    for words, members in sets.items():
        yield Region(words, members, BITS)
