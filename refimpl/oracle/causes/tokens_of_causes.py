"""In which tokens a cause's changes were made, request by request: where no rule says it, that is what to debug.

A token counts only where its row is noise with the change and is not without: of some nobody can see it. Of a request
that the cause does not explain it is the first token whose row no change, and nothing, brings down to noise. Where what
a cache keeps is wrong its tokens' keys and values are, and the rows that show it come behind them.
"""

from collections.abc import Iterator
from itertools import groupby

from .reported import computed_last
from .sources import WHICHEVER
from .statement import Tokens
from .traced import OF_CACHES, Request, Traced
from .whose import called_in, tokens_of


def tokens_of_cause(traced: Traced) -> tuple[Tokens, ...]:
    """Return the tokens of the failed requests, but for those that were asked when it was found."""
    failed = [request for request in traced.followed if not request.as_it_came.afterwards]
    return tuple(
        tokens
        for request in sorted(failed, key=lambda one: one.as_it_came.place)
        for tokens in _of_request(traced, request)
    )


def _of_request(traced: Traced, request: Request) -> Iterator[Tokens]:
    followed = traced.followed[request]
    if followed.dead is not None:
        yield _tokens(request, None, followed.dead, followed.dead)
        return
    of_caches = {one.family for one in OF_CACHES}
    for i, mistake in enumerate(traced.cause):
        in_cache = mistake.family in of_caches
        tokens = [t for t in tokens_of(followed, i) if in_cache or t >= request.walk.first_shown]
        alike = [(t - n, _whose(mistake.family, followed.sources(i, t))) for n, t in enumerate(tokens)]
        cached = [_is_cached(request, t) for t in tokens]
        for key, some in groupby(zip(alike, cached, tokens, strict=True), key=lambda one: one[:2]):
            together = [t for *_, t in some]
            yield _tokens(request, i, together[0], together[-1], key[0][1], in_cache)


def _tokens(
    request: Request, change: int | None, first: int, last: int, of: str = "", in_cache: bool = False
) -> Tokens:
    place, exchange = request.as_it_came.place, request.as_it_came.suspect.exchange
    computed = computed_last(exchange.response.steps, request.tokens)
    steps = tuple(one for one in computed if one.first <= last and first < one.first + one.tokens)
    is_cached = _is_cached(request, first)
    return Tokens(*place, exchange.adapter, request.tokens, change, first, last, of, steps, is_cached, in_cache)


def _is_cached(request: Request, token: int) -> bool:
    """Was it found in a cache, as the engine tells it?"""
    computed = computed_last(request.as_it_came.suspect.exchange.response.steps, request.tokens)
    return bool(computed) and token < computed[0].first


def _whose(family: str, sources: frozenset[str]) -> str:
    """Return by which adapter a change is, if it may be of several; "": that is not the question, or nobody can say."""
    if WHICHEVER not in family or len(sources) != 1:
        return ""
    return called_in(next(iter(sources)), family)
