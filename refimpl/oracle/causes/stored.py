"""Keys and values that go into the cache without the delta that the step which computes them reads.

An engine that stores what its base product gave, and adds the adapter's delta to a copy, is right in every step that
reads its own keys alone, and wrong in all that follow:

    token     0   1   2   3     4   5        two steps: a prompt in two chunks
    reads     its own 0..t      stored 0..3, and its own 4..t
    row       ok                wrong

Each token that was produced is a step. Where those of a prompt begin is not asked: a row that is wrong with its own
keys is tried as the first of another step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from ...arrays import Array
from ...config import ModelConfig
from .follow import Followed, Line
from .mistakes import Mistake
from .mix_up import STORED, Source
from .states import State, states_of, terms_of
from .walk import Copy, Term, Walk

FAMILY = "stored: own"
WITHOUT_DELTA = tuple(
    Mistake(FAMILY, modules, -1.0, 3.0 + bits)
    for modules, bits in (("v_proj", 1.0), ("k_proj", 1.0), ("k_proj and v_proj", 2.0))
)


def stored_sources(delta: Sequence[Source], config: ModelConfig) -> list[Source]:
    """Return the own delta as what the cache may lack; none of the base, and where keys and values have no modules."""
    words = "its own delta, in what the cache keeps for later steps,"
    has_both = {"k_proj", "v_proj"} <= set(config.layer_modules)
    return [replace(one, key=FAMILY, words=words, kind=STORED) for one in delta[:1] if has_both]


def follow_stored(
    walk: Walk, cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]], before: Followed, limit: float
) -> Followed:
    """Follow a cause, one of whose mistakes is of this family, along a request.

    before: where it ends without that. Where that is the end of the request the last token may be stored in any way:
    nobody reads it. Returned is whichever goes furthest, that one included."""
    if FAMILY not in options:
        return before
    prompt = len(walk.suspect.exchange.request.prompt_ids)
    # Of all tokens, or of those that were produced: prompts are computed by other code. Of a right request, the last.
    firsts = (0, prompt) if before.dead is not None else (0, prompt, walk.tokens - 1)
    ends = list[Followed]()
    for first in dict.fromkeys(firsts):
        keep = {block for one in (before, *ends) if one.line for block in one.line.blocks}
        ends.append(_along(walk, cause, options, first, limit, keep))
    explained = [one for one in (before, *ends) if one.dead is None]
    return reduce(Followed.or_else, explained) if explained else max(before, *ends, key=lambda one: one.dead or 0)


def _along(
    walk: Walk,
    cause: Sequence[Mistake],
    options: Mapping[str, Sequence[Source]],
    first: int,
    limit: float,
    keep: set[int],
) -> Followed:
    """Follow it step by step. first: the token from which on keys and values are stored without the delta. keep: blocks
    that stay as they are."""
    place = [one.family for one in cause].index(FAMILY)
    lacking, region = options[FAMILY][0], walk.at(cause[place].modules)
    sources = {source.key: source for some in options.values() for source in some}
    blocks = walk.new_blocks(walk.tokens, keep)
    stored = walk.new_blocks(walk.tokens, keep | set(blocks))

    def compute(start: int, end: int, state: State, into: Sequence[int] | None = None) -> Array:
        """Compute these tokens behind what is stored of those before; into: what is stored of them goes there."""
        terms = terms_of(walk, [cause], [(0, state)] * (end - start), sources)
        if into is not None:
            rows = np.flatnonzero(np.arange(start, end) >= first)
            terms.append(Term(lacking, rows, np.tile(region, (len(rows), 1)), np.full(len(rows), -1.0)))
        return walk.compute([Copy(start, stored[:start], blocks[start:end])], terms, into)

    prompt, possible_states = len(walk.suspect.exchange.request.prompt_ids), states_of(cause, options)
    states, worst, start, last = list[State](), 0.0, 0, 0
    while start < walk.tokens:
        end = prompt if start < prompt else start + 1
        ratios = {one: walk.ratios(np.arange(start, end), compute(start, end, one)) for one in possible_states}
        lengths = {one: int(np.append(of < limit, False).argmin()) for one, of in ratios.items()}
        state = max(lengths, key=lambda one: lengths[one])
        if not lengths[state]:  # wrong with its own keys, and as the first token of a step
            possible = _possible(states, place, first, start)
            return Followed(possible, worst, start, Line(tuple(stored[:start]), possible, state, worst))
        worst = max(worst, float(ratios[state][: lengths[state]].max()))
        last, start = start, start + lengths[state]
        compute(last, start, state)
        compute(last, start, state, into=stored[last:start])
        states += [state] * lengths[state]
    return Followed(_possible(states, place, first, last), worst)


def _possible(states: Sequence[State], place: int, first: int, last: int) -> tuple[frozenset[State], ...]:
    """Return how each token may have been computed. last: the token from which on no step has read what was stored."""
    possible = []
    for t, state in enumerate(states):
        stored = (FAMILY, "") if t >= last else (FAMILY,) if t >= first else ("",)
        possible.append(frozenset((*state[:place], one, *state[place + 1 :]) for one in stored))
    return tuple(possible)
