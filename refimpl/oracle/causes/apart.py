"""Mistakes that are made in the same tokens, told apart by adapters that are confined to a few modules (confined.py).

    each group of modules -> which of its requests fail -> every mistake there, as in by_token.py
    the same mistake in several groups -> one mistake, at each region that has these and not those that are right
    one of each, together -> along every failed request as it came, in which all of them are made

A request of confined adapters shows fewer mistakes, and at its few modules there are fewer to try.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...arrays import Array
from ..diagnosis.clock import Clock
from .asked import Asked
from .at_token import Looks, different, votes_at, with_one_more
from .confined import Group
from .mistakes import Mistake
from .traced import Cause, Request, Traced

TERMS = 2  # mistakes in one group; larger: slower
FEW_LEFT = 0.2  # of a group's failed requests, for which no other mistake is looked for; smaller: slower
LOOKS = 1  # wrong tokens of a group at which every mistake is tried; larger: slower
KINDS = 6  # mistakes that are followed through a group's requests; larger: slower
RIVALS = 3  # kinds of mistakes that show in the same groups, of which one is made; larger: slower
REGIONS = 4  # at which each of them is followed as it came; larger: slower
RIGHT = 2  # requests of a group in which it is seen that a mistake is not made there; larger: slower
TOGETHER = 24  # causes that are followed through a few requests; larger: slower
FEW = 3  # of these requests
FOLLOWED = 3  # causes that are followed through all of them; larger: slower

Kind = tuple[str, float | None]  # the family and the coefficient of a mistake
Shown = Mapping[Kind, list[Mistake]]  # mistakes that do the same in a group, one of which is made; at each region


@dataclass(frozen=True, eq=False)
class Part:
    """What requests with adapters confined to one group of modules have shown."""

    group: Group
    shown: list[Shown]
    right: list[Request]  # in which nothing else than that is wrong


def mistakes_apart(
    nothing: Traced, confined: Iterable[tuple[Group, Sequence[Asked]]], looks: Looks, limit: float, clock: Clock
) -> list[Traced]:
    """Return the causes that explain most of the failed requests, of mistakes that confined adapters show one by one;
    [] if none explains any. nothing: these requests, followed along no mistake. looks: at their tokens."""
    parts, shown_before = [], [some for some in looks.fitting if some]
    for group, of_group in confined:
        parts.append(_part(group, of_group, shown_before, limit, clock))
        if clock.is_late("adapters confined to other modules"):
            break
    options = _options(parts, limit)
    return _together(nothing, options, limit, clock) if options else []


def _part(
    group: Group, of_group: Sequence[Asked], shown_before: list[list[Mistake]], limit: float, clock: Clock
) -> Part:
    """Find the mistakes of one group: first one, then one more where that ends. shown_before: those that others have
    shown, at each token that was looked at; those that this one shows are added."""
    failed = [Request(one) for one in of_group if one.failed]
    traced = Traced((), {}).with_others(failed, limit)
    shown, looks = list[Shown](), Looks(shown_before)
    while len(traced.rest) > FEW_LEFT * len(failed) and len(shown) < TERMS:
        if clock.is_late("mistakes of adapters confined to a few modules"):
            break
        votes = votes_at(traced, looks, limit, clock, 0)  # those that are known already, and if none is it, any
        votes = votes or votes_at(traced, looks, limit, clock, LOOKS, plain_ones=True)
        kinds = _by_kind(votes)
        simplest = [some[0] for some in kinds.values()][:KINDS]
        more = sorted((with_one_more(traced, one, limit) for one in simplest), key=lambda one: one.rank)
        if not more or not more[0].rank[:2] < traced.rank[:2]:
            break
        equal = [one.cause[-1] for one in more if one.rank[:2] == more[0].rank[:2]]
        shown.append({_kind(one): kinds[_kind(one)] for one in equal})
        traced = more[0]
    right = [Request(one) for one in of_group if not one.failed and one.is_single]
    return Part(group, shown, right)


def _kind(mistake: Mistake) -> Kind:
    return mistake.family, mistake.coefficient


def _by_kind(votes: Counter[Mistake]) -> dict[Kind, list[Mistake]]:
    """Return those with most votes by what they are, the simplest first, each at its regions, likewise."""
    most = max(votes.values(), default=0)
    kinds: dict[Kind, list[Mistake]] = {}
    good = [one for one, count in votes.items() if count == most and one.coefficient is not None]
    for one in sorted(good, key=lambda one: one.cost):
        kinds.setdefault(_kind(one), []).append(one)
    return kinds


def _options(parts: Sequence[Part], limit: float) -> list[list[Mistake]]:
    """Return for each mistake that must be made what it may be: the fewest that every group shows one of."""
    options = list[list[Mistake]]()
    needed = [(part, shown) for part in parts for shown in part.shown]
    while needed:
        shown_in = {kind: [shown for _, shown in needed if kind in shown] for _, one in needed for kind in one}
        most = max(map(len, shown_in.values()))
        kinds = [kind for kind, some in shown_in.items() if len(some) == most]
        best = min(kinds, key=lambda kind: shown_in[kind][0][kind][0].cost)
        rivals = [kind for kind in kinds if kind != best and shown_in[kind] == shown_in[best]]
        here = list[Mistake]()
        for kind in [best, *rivals[: RIVALS - 1]]:
            here += _at_regions(kind, shown_in[kind], parts, limit)
        options.append(here)
        needed = [(part, shown) for part, shown in needed if shown not in shown_in[best]]
    return [some for some in options if some]


def _at_regions(kind: Kind, shown: Sequence[Shown], parts: Sequence[Part], limit: float) -> list[Mistake]:
    """Return a mistake at the simplest regions that have all modules at which it shows, and none at which it would, and
    does not."""
    common = [one for one in shown[0][kind] if all(one in other[kind] for other in shown)]
    for part in parts:
        if any(kind in one for one in part.shown):
            continue
        for request in different(part.right)[:RIGHT] if common else ():
            if kind[0] in request.families:
                followed = request.follow([(one,) for one in common], limit)
                absent = [_is_absent(one.present(0)) for one in followed]
                common = [one for one, is_absent in zip(common, absent, strict=True) if not is_absent]
    return common[:REGIONS]


def _is_absent(present: Array) -> bool:
    return bool((present == 0).any() and not (present == 1).any())


def _together(nothing: Traced, options: Sequence[Sequence[Mistake]], limit: float, clock: Clock) -> list[Traced]:
    """Follow one of each through the failed requests as they came; leave out those that are made in none."""
    causes: list[Cause] = sorted(itertools.product(*options), key=_cost)[:TOGETHER]
    further: Counter[Cause] = Counter(dict.fromkeys(causes, 0))
    for request in different(list(nothing.followed))[:FEW] if len(causes) > 1 else ():
        for cause, one in zip(causes, request.follow(causes, limit), strict=True):
            further[cause] += request.tokens if one.dead is None else one.dead
    traced = list[Traced]()
    for cause in sorted(causes, key=lambda cause: -further[cause])[:FOLLOWED]:
        if traced and (further[cause] < further[traced[0].cause] or clock.is_late("other mistakes made together")):
            break
        traced.append(_followed(nothing, cause, limit))
    needed = {_needed(one): one for one in reversed(traced)}
    traced = [one if cause == one.cause else _followed(nothing, cause, limit) for cause, one in needed.items() if cause]
    return sorted((one for one in traced if one.explained), key=lambda one: one.rank)


def _cost(cause: Cause) -> float:
    return sum(one.cost for one in cause)


def _followed(nothing: Traced, cause: Cause, limit: float) -> Traced:
    return Traced(cause, {}).with_others(list(nothing.followed), limit)


def _needed(traced: Traced) -> Cause:
    """Return those of its mistakes that are surely made in a token of a request that it explains."""
    explained = [traced.followed[request] for request in traced.explained]
    return tuple(
        mistake for i, mistake in enumerate(traced.cause) if any((one.present(i) == 1).any() for one in explained)
    )
