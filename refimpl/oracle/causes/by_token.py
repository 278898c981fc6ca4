"""The cause of a campaign's failures, token by token: the first wrong row names a token, and of all mistakes that could
be made there few leave noise in it. Those are followed through every other request; what no one of them explains shows
the next mistake in the same way.

    wrong row -> every mistake at its token (mistakes.py) -> each along every failed request (follow.py)
                        ^------------- where it ends: one more mistake there ------------'
       no one mistake leaves noise -> asked again with adapters confined to a few modules, each mistake alone (apart.py)
    -> which tokens of which requests (rule.py), and of whose adapter it is (described.py)

Needs what most engines show: a row for each token that they compute. Where single mistakes explain tokens nothing is
asked again, so what came before a request is as it was, and no effect need be small.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..diagnosis.clock import Clock
from .apart import mistakes_apart
from .asked import Asked
from .at_token import Looks, different, is_early, measure, votes_at, with_one_more
from .confined import Group
from .follow import PASSES
from .mistakes import FLOPS, Mistake, mistakes
from .pairs import pairs
from .suspect import Suspect
from .traced import Cause, Request, Traced

TERMS = 3  # mistakes of one cause; larger: slower
LOOKS = 3  # wrong tokens at which every mistake is tried; larger: slower
SCREENED = 32  # mistakes that are followed through a few requests first; larger: slower
FEW = 3  # requests
FOLLOWED = 6  # mistakes that are followed; larger: slower
CROOKED = 2.0  # bits more than those of a mistake that explains as many; larger: more of them are followed
MOST = 0.5  # of the failed requests, which a cause explains that was found without confined adapters; larger: slower
ENOUGH = 0.95  # of the failed requests, after which no other mistake is looked for; larger: slower


def trace(
    loud: Sequence[Asked],
    quietly: Iterable[Sequence[Suspect]],
    confined: Iterable[tuple[Group, Sequence[Asked]]],
    limit: float,
    clock: Clock,
) -> list[Traced]:
    """Return the causes that explain most of the failed requests, best first; [] if none is found.

    loud: the requests of the campaign as they came. confined, quietly: requests of the same engine, asked with
    adapters confined to a few modules (confined.py), and wrong ones with quiet adapters: two mistakes in one token are
    looked for in those, where no one mistake explains a token."""
    failed = _affordable(sorted((Request(one) for one in loud if one.failed), key=lambda one: one.tokens))
    nothing = Traced((), {}).with_others(failed, limit)
    looks, best, apart = Looks(), [nothing], list[Traced]()
    if _is_at_once_wrong(nothing):
        best = _search(best, looks, limit, clock, terms=1, plain_ones=True)
        if len(best[0].explained) < MOST * len(failed) and not clock.is_late("adapters confined to a few modules"):
            apart = mistakes_apart(nothing, confined, looks, limit, clock)
    is_most = bool(apart) and len(apart[0].explained) >= MOST * len(failed)
    best = _search(apart if is_most else best, looks, limit, clock)
    best = sorted([*best, *apart], key=lambda one: one.rank) if apart and not is_most else best
    if not best[0].explained and not clock.is_late("two mistakes in one token"):
        best = _two_at_once(nothing, quietly, limit, clock) or best
    best = _with_fewer(best, limit)
    return [one.common for one in best] if best[0].cause and best[0].explained else []


def traced_further(best: Sequence[Traced], others: Sequence[Request], limit: float, clock: Clock) -> list[Traced]:
    """Return causes that were traced, followed through other failed requests; with one more mistake, where these show
    one that the first ones did not."""
    followed = sorted((one.with_others(others, limit) for one in best), key=lambda one: one.rank)
    return [one.common for one in _with_fewer(_search(followed, Looks(), limit, clock), limit)]


def _with_fewer(best: Sequence[Traced], limit: float) -> list[Traced]:
    """Return causes, and the first one without each of its mistakes: one that was thought of later may do all that
    another does, and more."""
    first = best[0]
    causes = [(*first.cause[:i], *first.cause[i + 1 :]) for i in range(len(first.cause)) if len(first.cause) > 1]
    more = [Traced(cause, {}).with_others(list(first.followed), limit) for cause in causes]
    return sorted([*more, *best], key=lambda one: one.rank)


def _is_at_once_wrong(nothing: Traced) -> bool:
    """Are most requests wrong from the first row on that is seen? Where they are not, tokens tell mistakes apart, and
    what was asked before may matter: nobody asks again for that."""
    count = len(nothing.followed)
    return 2 * sum(one.dead in range(at.walk.first_shown + 1) for at, one in nothing.followed.items()) > count


def _search(
    best: Sequence[Traced], looks: Looks, limit: float, clock: Clock, terms: int = TERMS, plain_ones: bool = False
) -> list[Traced]:
    """Return the first of some causes with one more mistake, and with another one, as long as that explains more; or
    the given ones. terms: mistakes of a cause. plain_ones: those of a few bits alone are tried, at one token."""
    best = list(best)
    for _ in range(terms - len(best[0].cause)):
        if len(best[0].explained) >= ENOUGH * len(best[0].followed) or clock.is_late("one more mistake"):
            break
        more: list[Traced] = []
        for mistake in _candidates(best[0], looks, limit, clock, plain_ones):
            if more and clock.is_late("other mistakes in its place"):
                break
            more.append(with_one_more(best[0], mistake, limit))
        more = [one for one in more if one.makes_its_last]
        more.sort(key=lambda one: one.rank)
        if not more or not more[0].rank[:2] < best[0].rank[:2]:
            break
        best = more
    return best


def _affordable(requests: Sequence[Request]) -> list[Request]:
    """Return as many, the shortest first, as a base of this size can be computed for several times over."""
    flops, some = 0, list[Request]()
    for one in requests:
        flops += one.tokens * one.walk.flops * PASSES
        if len(some) >= 2 and flops > FLOPS:
            break
        some.append(one)
    return some


def _two_at_once(nothing: Traced, quietly: Iterable[Sequence[Suspect]], limit: float, clock: Clock) -> list[Traced]:
    """Return the pairs of mistakes, or single ones that quiet requests show first, that explain most of the failed
    requests; [] if none is found."""
    for suspects in quietly:
        quiet = different([Request(Asked(one, ("", 0, 0), {}, True)) for one in suspects])
        votes: Counter[Cause] = Counter()
        for request in quiet[:2]:
            (ended,) = request.follow([()], limit)
            if ended.line is not None and ended.dead is not None and not is_early(ended.dead, request.walk):
                singles = mistakes(request.walk, ended.line.blocks, 1, request.sources, limit)
                votes.update([(one,) for one in singles])  # neither of a pair may do nothing here
                votes.update(pairs(request.walk, ended.line.blocks, request.sources, limit) if not singles else ())
            if votes or clock.is_late("two mistakes in one token of another request"):
                break
        causes = sorted(votes, key=lambda pair: sum(one.cost for one in pair))[: 4 * FOLLOWED]
        for request in quiet[1:]:
            causes = [one for one in causes if all(mistake.family in request.families for mistake in one)]
            for cause, one in zip(causes, request.follow(causes, limit), strict=True):
                votes[cause] += one.dead is None
        best = sorted(causes, key=lambda one: -votes[one])[: FOLLOWED // 2]
        if best:
            traced = [Traced(cause, {}).with_others(list(nothing.followed), limit) for cause in best]
            return sorted((one for one in traced if one.explained), key=lambda one: one.rank)
        if clock.is_late("two mistakes in one token"):
            break
    return []


def _candidates(traced: Traced, looks: Looks, limit: float, clock: Clock, plain_ones: bool) -> list[Mistake]:
    """Return the mistakes that explain most of the tokens at which a cause ends, simplest first among equals."""
    votes = votes_at(traced, looks, limit, clock, 1 if plain_ones else LOOKS, plain_ones)
    most = max(votes.values(), default=0)
    plain = min((one.cost for one, count in votes.items() if count == most), default=0.0)
    good = [one for one, count in votes.items() if 4 * count > 3 * most and one.cost <= plain + CROOKED]
    good.sort(key=lambda one: (-votes[one], one.cost))
    return _screened(traced, good[:SCREENED], limit)[:FOLLOWED]


def _screened(traced: Traced, some: Sequence[Mistake], limit: float) -> list[Mistake]:
    """Return those of some mistakes that go furthest in a few requests: their first token shows little."""
    further: Counter[Mistake] = Counter(dict.fromkeys(some, 0))
    if len(some) > 1:
        for request in different(traced.rest)[:FEW]:
            measure(request, traced, some, limit)
            followed = request.follow([(*traced.cause, mistake) for mistake in some], limit)
            for mistake, one in zip(some, followed, strict=True):
                further[mistake] += request.tokens if one.dead is None else one.dead
    most = max(further.values(), default=0)
    return [one for one in some if further[one] == most]
