"""The token at which a followed cause ends: which mistakes leave noise in its row?"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..diagnosis.clock import Clock
from .measures import factors
from .mistakes import BANDS, Effects, Mistake, mistakes, tried
from .relations import label
from .states import states_of
from .traced import OF_CACHES, Cause, Request, Traced
from .trial import Given
from .walk import Walk

ASKED = 24  # whose first wrong token is asked which of those that were found explain it as well; larger: slower
SEEN = 16  # mistakes that explain a token, tried at other ones before all are; larger: slower
GIVEN = 4  # of a cause's mistakes that are made together with one more; larger: slower
FEWEST = 3  # tokens of a request that tells its tokens apart
SHORT = 16  # tokens before the first row, of which all are computed with each mistake; larger: slower


@dataclass
class Looks:
    """The tokens at which every mistake was tried, and those that explain each of them."""

    fitting: list[list[Mistake]] = field(default_factory=list)
    at: set[tuple[Request, Cause]] = field(default_factory=set)
    plainly: set[tuple[Request, Cause]] = field(default_factory=set)  # those at which the plain ones alone were


def votes_at(
    traced: Traced, looks: Looks, limit: float, clock: Clock, most: int, plain_ones: bool = False
) -> Counter[Mistake]:
    """Return the mistakes that explain the tokens at which a cause ends, and how many of these each one does.

    looks: what is known of mistakes at tokens; what is learnt is added. most: tokens at which every mistake is tried.
    plain_ones: those of a few bits alone are tried, and at no other token where none explains the first."""
    votes: Counter[Mistake] = Counter()
    count = 0
    for request in different(traced.rest)[:ASKED]:
        others = [one for some in looks.fitting if not set(some) & set(traced.cause) for one in some[:SEEN]]
        fitting = fitting_of(request, traced, list(dict.fromkeys(others)), limit)
        votes.update(fitting)
        here = request, traced.cause
        if fitting or here in looks.at or count >= most or clock.is_late("every mistake at one more token"):
            continue
        count += 1
        bands = BANDS[:1] if plain_ones else BANDS[1:] if here in looks.plainly else BANDS
        every = every_mistake(request, traced, limit, clock, bands)
        fitting = [one for one in dict.fromkeys(every) if one not in traced.cause]
        votes.update(fitting)
        looks.fitting.append(fitting)
        if not plain_ones or fitting:
            looks.at.add(here)
        else:
            looks.plainly.add(here)
            if not votes:
                break
    return votes


def fitting_of(request: Request, traced: Traced, some: Sequence[Mistake], limit: float) -> list[Mistake]:
    """Return those of some mistakes that leave noise in the row at which a cause ends."""
    one = traced.followed[request]
    if not some or one.line is None or one.dead is None:
        return []
    early = is_early(one.dead, request.walk)  # which tokens of those before is not seen: it must be followed
    followed = [mistake for mistake in some if early or mistake in OF_CACHES]
    ended = request.follow([(*traced.cause, mistake) for mistake in followed], limit)
    good = [mistake for mistake, of in zip(followed, ended, strict=True) if of.dead is None or of.dead > one.dead]
    some = [mistake for mistake in some if mistake not in followed]
    if not some:
        return good
    measure(request, traced, some, limit)
    options = [(family, source) for family, source in request.sources if family in {mistake.family for mistake in some}]
    before = request.before_its_end(one, limit) or ()
    for given in _givens(request, traced) if len(before) == one.dead else ():
        measured = {request.measured((one,))[0]: one for one in some if one not in good}
        good += [measured[one] for one in tried(request.walk, before, options, list(measured), limit, given)]
    return good


def measure(request: Request, traced: Traced, some: Sequence[Mistake], limit: float) -> None:
    """Find out how often those of some mistakes are made that are made in another measure for each adapter."""
    unmeasured = [one for one in some if one.coefficient is None and one not in request.measures]
    before = request.before_its_end(traced.followed[request], limit) if unmeasured else None
    if before is not None:
        for mistake in unmeasured:
            request.measure(mistake, before, _givens(request, traced)[-1], limit)


def is_early(dead: int, walk: Walk) -> bool:
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


def every_mistake(
    request: Request, traced: Traced, limit: float, clock: Clock, bands: Sequence[tuple[float, float]]
) -> list[Mistake]:
    """Return all mistakes that leave noise in the row at which a cause ends. bands: of how many bits, as in
    mistakes.py; the plain ones are tried beside whatever may be wrong already before others are."""
    one, walk = traced.followed[request], request.walk
    before_it = request.before_its_end(one, limit)
    if before_it is None or one.dead is None:
        return []
    givens, fitting, effects = _givens(request, traced), list[Mistake](), Effects()
    nothing: tuple[int, ...] = ()
    alone = [(before_it, 1, given) for given in givens if one.dead > walk.first_shown or one.dead == 0]
    early = is_early(one.dead, walk) and one.dead < SHORT
    with_those_before = [(nothing, one.dead + 1, given) for given in givens[::-1] if early]
    beside = [*alone[:1], *with_those_before, *alone[1:]] if traced.cause else alone + with_those_before
    for band, (before, tokens, given) in itertools.product(bands, beside):
        if not fitting and not clock.is_late("every mistake at one more token"):
            fitting = mistakes(walk, before, tokens, request.sources, limit, given, (band,), effects)
    if bands == BANDS[:1]:
        return fitting
    if not fitting:
        some = [one for one in OF_CACHES if one.family in request.families and one not in traced.cause]
        fitting = fitting_of(request, traced, some, limit)
    if fitting or traced.cause:
        return fitting
    before_it = request.before_its_end(one, limit) or ()
    return factors(walk, before_it, request.sources, limit) if len(before_it) == one.dead else []


def different(requests: Sequence[Request]) -> list[Request]:
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


def with_one_more(before: Traced, mistake: Mistake, limit: float) -> Traced:
    """Follow a cause with one more mistake through the requests that it does not explain without."""
    followed = dict(before.followed)
    cause = (*before.cause, mistake)
    for request, one in before.followed.items():
        if one.dead is None:
            followed[request] = one.with_one_more()
        elif fitting_of(request, before, [mistake], limit):
            (followed[request],) = request.follow([cause], limit)
        else:
            followed[request] = one.with_one_more()
    return Traced(cause, followed)
