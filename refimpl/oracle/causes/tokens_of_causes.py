"""In which tokens a cause's changes were made, request by request: where no rule says it, that is what to debug.

A token counts only where its row is noise with the change and is not without: of some nobody can see it. Of a request
that the cause does not explain it is the first token whose row no change, and nothing, brings down to noise.
"""

from collections.abc import Iterator
from itertools import groupby

from .sources import WHICHEVER
from .statement import Tokens
from .traced import Request, Traced
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
    for i, mistake in enumerate(traced.cause):
        tokens = [t for t in tokens_of(followed, i) if t >= request.walk.first_shown]
        whose = {t: _whose(mistake.family, followed.sources(i, t)) for t in tokens}
        for (_, of, _), some in groupby(tokens, key=lambda t: (t - tokens.index(t), whose[t], _is_cached(request, t))):
            first, *rest = some
            yield _tokens(request, i, first, rest[-1] if rest else first, of)


def _tokens(request: Request, change: int | None, first: int, last: int, of: str = "") -> Tokens:
    place, exchange = request.as_it_came.place, request.as_it_came.suspect.exchange
    steps = [one for one in exchange.response.steps if one.first <= last and first < one.first + one.tokens]
    is_cached = _is_cached(request, first)
    return Tokens(*place, exchange.adapter, request.tokens, change, first, last, of, tuple(steps), is_cached)


def _is_cached(request: Request, token: int) -> bool:
    """Was it found in a cache, as the engine tells it?"""
    steps = request.as_it_came.suspect.exchange.response.steps
    return bool(steps) and token < min(one.first for one in steps)


def _whose(family: str, sources: frozenset[str]) -> str:
    """Return by which adapter a change is, if it may be of several; "": that is not the question, or nobody can say."""
    if WHICHEVER not in family or len(sources) != 1:
        return ""
    return called_in(next(iter(sources)), family)
