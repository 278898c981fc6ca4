"""The cause of a campaign's failures, token by token: the first wrong row names a token, and of all mistakes that could
be made there few leave noise in it. Those are followed through every other request; what no one of them explains shows
the next mistake in the same way.

    wrong row -> every mistake at its token (mistakes.py) -> each along every failed request (follow.py)
                        ^------------- where it ends: one more mistake there ------------'
    -> which tokens of which requests (rule.py), and of whose adapter it is (described.py)

Needs what most engines show: a row for each token that they compute. Nothing need be asked again, so what came before a
request is as it was, and no effect need be small.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..diagnosis.clock import Clock
from .asked import Asked
from .follow import PASSES, states_of
from .kept import OF_ANOTHER
from .measures import factors
from .mistakes import FLOPS, Mistake, mistakes, tried
from .pairs import pairs
from .relations import label
from .suspect import Suspect
from .traced import Cause, Request, Traced
from .trial import Given
from .walk import Walk

TERMS = 3  # mistakes of one cause; larger: slower
LOOKS = 3  # wrong tokens at which every mistake is tried; larger: slower
ASKED = 24  # whose first wrong token is asked which of those that were found explain it as well; larger: slower
SCREENED = 32  # mistakes that are followed through a few requests first; larger: slower
SEEN = 16  # mistakes that explain a token, tried at other ones before all are; larger: slower
FEW = 3  # requests
FOLLOWED = 6  # mistakes that are followed; larger: slower
CROOKED = 2.0  # bits more than those of a mistake that explains as many; larger: more of them are followed
ENOUGH = 0.95  # of the failed requests, after which no other mistake is looked for; larger: slower
GIVEN = 4  # of a cause's mistakes that are made together with one more; larger: slower
FEWEST = 3  # tokens of a request that tells its tokens apart
SHORT = 16  # tokens before the first row, of which all are computed with each mistake; larger: slower


def trace(loud: Sequence[Asked], quietly: Iterable[Sequence[Suspect]], limit: float, clock: Clock) -> list[Traced]:
    """Return the causes that explain most of the failed requests, best first; [] if none is found.

    loud: the requests of the campaign as they came. quietly: wrong requests of the same engine, asked with quiet
    adapters: two mistakes in one token are looked for in those, where no one mistake explains a token."""
    failed = _affordable(sorted((Request(one) for one in loud if one.failed), key=lambda one: one.tokens))
    nothing = Traced((), {request: request.follow([()], limit)[0] for request in failed})
    best, of_tokens = [nothing], list[list[Mistake]]()
    for _ in range(TERMS):
        if len(best[0].explained) >= ENOUGH * len(failed) or clock.is_late("one more mistake"):
            break
        fitting = _candidates(best[0], of_tokens, limit, clock)
        more: list[Traced] = []
        for mistake in fitting:
            if more and clock.is_late("other mistakes in its place"):
                break
            more.append(_traced(best[0], mistake, limit))
        more.sort(key=lambda one: one.rank)
        if not more or not more[0].rank[:2] < best[0].rank[:2]:
            break
        best = more
    if not best[0].explained and not clock.is_late("two mistakes in one token"):
        best = _two_at_once(nothing, quietly, limit, clock) or best
    return [one.common for one in best] if best[0].cause and best[0].explained else []


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
        quiet = _different([Request(Asked(one, ("", 0, 0), {}, True)) for one in suspects])
        votes: Counter[Cause] = Counter()
        for request in quiet[:2]:
            (ended,) = request.follow([()], limit)
            if ended.line is not None and ended.dead is not None and not _is_early(ended.dead, request.walk):
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
            traced = []
            for cause in best:
                followed = {request: request.follow([cause], limit)[0] for request in nothing.followed}
                traced.append(Traced(cause, followed))
            return sorted((one for one in traced if one.explained), key=lambda one: one.rank)
        if clock.is_late("two mistakes in one token"):
            break
    return []


def _candidates(traced: Traced, of_tokens: list[list[Mistake]], limit: float, clock: Clock) -> list[Mistake]:
    """Return the mistakes that explain most of the tokens at which a cause ends, simplest first among equals.

    of_tokens: those that explain each token that was looked at; those that explain another one now are added."""
    votes: Counter[Mistake] = Counter()
    looks = 0
    for request in _different(traced.rest)[:ASKED]:
        others = [one for some in of_tokens if not set(some) & set(traced.cause) for one in some[:SEEN]]
        fitting = _fitting(request, traced, list(dict.fromkeys(others)), limit)
        votes.update(fitting)
        if not fitting and looks < LOOKS and not clock.is_late("every mistake at one more token"):
            looks += 1
            fitting = [one for one in dict.fromkeys(_every(request, traced, limit)) if one not in traced.cause]
            votes.update(fitting)
            of_tokens.append(fitting)
    most = max(votes.values(), default=0)
    plain = min((one.cost for one, count in votes.items() if count == most), default=0.0)
    good = [one for one, count in votes.items() if 4 * count > 3 * most and one.cost <= plain + CROOKED]
    good.sort(key=lambda one: (-votes[one], one.cost))
    return _screened(traced, good[:SCREENED], limit)[:FOLLOWED]


def _screened(traced: Traced, some: Sequence[Mistake], limit: float) -> list[Mistake]:
    """Return those of some mistakes that go furthest in a few requests: their first token shows little."""
    further: Counter[Mistake] = Counter(dict.fromkeys(some, 0))
    if len(some) > 1:
        for request in _different(traced.rest)[:FEW]:
            _measure(request, traced, some, limit)
            followed = request.follow([(*traced.cause, mistake) for mistake in some], limit)
            for mistake, one in zip(some, followed, strict=True):
                further[mistake] += request.tokens if one.dead is None else one.dead
    most = max(further.values(), default=0)
    return [one for one in some if further[one] == most]


def _fitting(request: Request, traced: Traced, some: Sequence[Mistake], limit: float) -> list[Mistake]:
    """Return those of some mistakes that leave noise in the row at which a cause ends."""
    one = traced.followed[request]
    if not some or one.line is None or one.dead is None:
        return []
    if OF_ANOTHER in some:
        (end,) = request.follow([(*traced.cause, OF_ANOTHER)], limit)
        goes_on = [OF_ANOTHER] if end.dead is None or end.dead > one.dead else []
        return goes_on + _fitting(request, traced, [other for other in some if other != OF_ANOTHER], limit)
    if _is_early(one.dead, request.walk):  # which tokens of those before is not seen: it must be followed
        ended = request.follow([(*traced.cause, mistake) for mistake in some], limit)
        return [mistake for mistake, of in zip(some, ended, strict=True) if of.dead is None or of.dead > one.dead]
    _measure(request, traced, some, limit)
    options = [(family, source) for family, source in request.sources if family in {mistake.family for mistake in some}]
    good: list[Mistake] = []
    for given in _givens(request, traced):
        measured = {request.measured((one,))[0]: one for one in some if one not in good}
        good += [measured[one] for one in tried(request.walk, one.line.blocks, options, list(measured), limit, given)]
    return good


def _measure(request: Request, traced: Traced, some: Sequence[Mistake], limit: float) -> None:
    """Find out how often those of some mistakes are made that are made in another measure for each adapter."""
    line = traced.followed[request].line
    for mistake in some:
        if line is not None and mistake.coefficient is None and mistake not in request.measures:
            request.measure(mistake, line.blocks, _givens(request, traced)[-1], limit)


def _is_early(dead: int, walk: Walk) -> bool:
    """Are there tokens before of which no row is seen, or whose row does not show their query and key?"""
    return 0 < dead <= max(1, walk.first_shown)


def _givens(request: Request, traced: Traced) -> list[list[Given]]:
    """Return what may be wrong already at the token where a cause ends: nothing, what was wrong before it, or else."""
    line = traced.followed[request].line
    possible = states_of(traced.cause, request.families)
    states = list(dict.fromkeys([possible[0], *([line.state] if line else []), *possible]))[:GIVEN]
    return [
        [
            (source, request.walk.at(mistake.modules), mistake.coefficient or 0.0)
            for mistake, key in zip(request.measured(traced.cause), state, strict=True)
            for source in request.families.get(mistake.family, ())
            if source.key == key
        ]
        for state in states
    ]


def _every(request: Request, traced: Traced, limit: float) -> list[Mistake]:
    """Return all mistakes that leave noise in the row at which a cause ends."""
    one, walk = traced.followed[request], request.walk
    if one.line is None or one.dead is None:
        return []
    givens, fitting = _givens(request, traced), list[Mistake]()
    nothing: tuple[int, ...] = ()
    alone = [(one.line.blocks, 1, given) for given in givens if one.dead > walk.first_shown or one.dead == 0]
    early = _is_early(one.dead, walk) and one.dead < SHORT
    with_those_before = [(nothing, one.dead + 1, given) for given in givens[::-1] if early]
    for before, tokens, given in with_those_before + alone if traced.cause else alone + with_those_before:
        fitting = fitting or mistakes(walk, before, tokens, request.sources, limit, given)
    if not fitting and OF_ANOTHER not in traced.cause:
        fitting = _fitting(request, traced, [OF_ANOTHER], limit)
    return fitting or (factors(walk, one.line.blocks, request.sources, limit) if not traced.cause else [])


def _different(requests: Sequence[Request]) -> list[Request]:
    """Return requests of different adapters, those on most modules first, and of each a short one; then the others. The
    second is of a token or two: of its few rows it may be that one mistake leaves them alone which hides another one
    elsewhere."""
    ranked = sorted(requests, key=lambda one: (one.tokens < FEWEST, one.tokens))
    first: dict[str | None, Request] = {}
    for one in ranked:
        first.setdefault(label(one.as_it_came.suspect.exchange.adapters), one)
    # Sums and weights have mistakes of their own beside those that all requests have.
    chosen = sorted(first.values(), key=lambda one: (not one.as_it_came.is_single, -one.modules, one.tokens))
    order = chosen + [one for one in ranked if one not in chosen]
    shortest = sorted((one for one in order[1:] if one.tokens < FEWEST), key=lambda one: (one.tokens, -one.modules))[:1]
    return order[:1] + shortest + [one for one in order[1:] if one not in shortest]


def _traced(before: Traced, mistake: Mistake, limit: float) -> Traced:
    """Follow a cause with one more mistake through the requests that it does not explain without."""
    followed = dict(before.followed)
    cause = (*before.cause, mistake)
    for request, one in before.followed.items():
        if one.dead is None:
            followed[request] = one.with_one_more()
        elif _fitting(request, before, [mistake], limit):
            (followed[request],) = request.follow([cause], limit)
        else:
            followed[request] = one.with_one_more()
    return Traced(cause, followed)
