"""A prompt that is filled up to the longest of its batch, and rows that attend to what it is filled up with.

0 0 0 a b c     shorter prompts of a batch stand behind padding; the attention mask hides it, or should:
d e f g h i     without one a, b and c see three tokens more, as if they were of their text
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...arrays import to_host
from ...model import forward, whole_prompts
from ...ops import NUMPY
from ...request import Request
from .follow import Followed
from .mistakes import Mistake
from .mix_up import EXACT, KEPT, Source
from .walk import Walk

FAMILY = "kept: left padding"
OF_LEFT_PADDING = Mistake(FAMILY, "", 1.0, 3.0)


def left_padding_source() -> Source:
    """Return it; of a whole text, not of one module."""
    words = "attention to the padding (token 0) that fills its prompt up to the longest of its batch"
    return Source(FAMILY, words, lambda point: None, KEPT, 3)


def follow_left_padding(
    walk: Walk, cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]], before: Followed, limit: float
) -> Followed:
    """Compute a request behind its padding, if it has any; nothing else may be wrong in it then.

    before: where it ends without that. Returned is whichever goes furthest."""
    if before.dead is None or not options.get(FAMILY):
        return before
    exact, request, count = walk.suspect.testbed.exact, walk.suspect.request, walk.suspect.padding
    padded_request = Request([0] * count + list(request.prompt_ids), request.adapters)
    p = exact.precision(EXACT)
    batch, cache, adapters = whole_prompts(exact, [padded_request], NUMPY, p, every_row=True)
    logits = to_host(forward(exact, batch, cache, adapters.slots, NUMPY, p))[count:]
    ratios = walk.ratios(np.arange(walk.tokens), logits)
    state = tuple(FAMILY if mistake.family == FAMILY else "" for mistake in cause)
    good = int(np.argmin(np.append(ratios < limit, False)))
    if good < walk.tokens:
        return before if good <= before.dead else Followed((frozenset([state]),) * good, dead=good)
    return Followed((frozenset([state]),) * walk.tokens, float(ratios.max()))
