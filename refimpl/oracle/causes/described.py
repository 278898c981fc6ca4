"""A cause that was followed through a campaign, in words: of whose adapter each mistake is, for which tokens, and in
which requests."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array
from .follow import Followed
from .mistakes import Mistake
from .mix_up import Source
from .relations import label
from .rule import Observed, Rule
from .scheduled_rule import InBatch, Scheduler, plain_rule
from .sources import CHOICE, THE_BASE, WHICHEVER
from .statement import Change, in_words
from .traced import Request, Traced
from .trial import presence
from .whose import NAMES, Name, called_in, names, names_by_step, source_of, tokens_of

RIVALS = 1  # rules beside the best one that are said: of more a reader learns nothing
PLAIN = 9.0  # bits of a rule, up to which no name by the engine's steps is looked for; larger: more coincidences
UNRULY = 40.0  # bits of a mistake for whose tokens no rule was found
MOST_NAMES = 6  # of adapters, that are said
SHOWN = 4  # requests in which it is seen where a mistake does something; larger: slower


@dataclass(frozen=True, eq=False)
class Described:
    """One mistake of a cause."""

    mistake: Mistake
    words: str
    whose: str  # by what name its adapter is known; "" if it is of none, WHICHEVER if no name fits
    rule: Rule
    present: int  # tokens in which it was made
    right: int  # in which it would have shown, and was not
    bits: float
    assumes: str = ""  # of the engine's steps


def described(
    traced: Traced, passed: Mapping[Request, Followed], scheduler: Scheduler, most: float = math.inf
) -> list[Described]:
    """Describe each mistake of a cause. passed: requests that are right, followed along it. scheduler: what is known of
    the engine's steps; what is learnt of them is added. most: bits of its rules; if they take more, it is not said."""
    requests = {**{one: traced.followed[one] for one in traced.explained}, **passed}
    return [_of_mistake(i, mistake, requests, scheduler, most) for i, mistake in enumerate(traced.cause)]


def _of_mistake(
    i: int, mistake: Mistake, requests: Mapping[Request, Followed], scheduler: Scheduler, most: float
) -> Described:
    # A request that has no such source says nothing of when it is made.
    requests = {request: one for request, one in requests.items() if mistake.family in request.families}
    present = {request: one.present(i) for request, one in requests.items()}
    source = _source(mistake, requests)
    if WHICHEVER not in mistake.family:
        fitting = scheduler.rule([_observed(request, of) for request, of in present.items()], most)
        return _described(mistake, source.words, "", fitting, present, fitting.bits)
    called = source.words.replace(called_in(source.key, mistake.family), "{}")

    def by_name(name: Name, rule_of: Callable[[Sequence[InBatch], float], Rule]) -> Described:
        of = _present_by(name, i, mistake, requests)
        fitting = rule_of([_observed(request, one) for request, one in of.items()], most - name.cost)
        one = _described(mistake, called.format(name.words), name.words, fitting, of, name.cost + fitting.bits)
        return replace(one, assumes=name.assumes or one.assumes)

    # What others are to a request comes before what they are in its engine's steps, and that before a rule by steps.
    related = names(i, mistake, requests)[:NAMES]
    best = [by_name(name, plain_rule) for name in related]
    if not any(not one.rule.wrong and one.rule.bits <= PLAIN for one in best):
        best += [by_name(name, scheduler.rule) for name in names_by_step(scheduler, i, mistake, requests)[:NAMES]]
    if not any(not one.rule.wrong for one in best):
        best += [by_name(name, scheduler.rule) for name in related]
    if best:
        return min(best, key=lambda one: one.bits)
    fitting = scheduler.rule([_observed(request, of) for request, of in present.items()], most)
    chosen = sum(1 for of in present.values() if (of == 1).any())
    return _described(mistake, called.format(WHICHEVER), WHICHEVER, fitting, present, fitting.bits + CHOICE * chosen)


def _described(
    mistake: Mistake, words: str, whose: str, fitting: Rule, present: Mapping[Request, Array], bits: float
) -> Described:
    count = sum(int((of == 1).sum()) for of in present.values())
    right = sum(int((of == 0).sum()) for of in present.values())
    most = bits - fitting.bits + min(fitting.bits, UNRULY)
    return Described(mistake, words, whose, fitting, count, right, most + mistake.cost, fitting.assumes)


def _observed(request: Request, present: Array) -> InBatch:
    came = request.as_it_came
    regions = [replace(one, members=one.members[: len(present)]) for one in came.suspect.token_regions]
    return InBatch(Observed(came.facts, regions, present), came.known_line, came.number, came.place[2])


def _present_by(name: Name, i: int, mistake: Mistake, requests: Mapping[Request, Followed]) -> dict[Request, Array]:
    """Return in which tokens it was made, if it is of the adapter of this name: of a token whose own adapter that is
    nobody knows. Where others may have done something to a token, for they do nothing there, and this one has not, it
    was not made."""
    result = {}
    for request, one in requests.items():
        keys, of = name.keys.get(request), one.present(i)
        if keys is None:
            continue
        own_label = label(request.as_it_came.suspect.exchange.adapters)
        is_known = np.array([keys[t] != own_label for t in range(len(of))], bool)
        options = {source.key for source in request.families[mistake.family]}
        for t in np.flatnonzero(of < 0).tolist():
            if source_of(mistake, keys[t]) in options - one.sources(i, t):
                of[t] = 0
        result[request] = np.where(is_known, of, -1)
    return result


def change_of(
    one: Described, requests: Mapping[Request, Followed], i: int, links: Mapping[str, tuple[str, ...]]
) -> Change:
    """Return it as it is reported. links: of known bugs, by their names."""
    fitting, mistake = one.rule, one.mistake
    source = _source(mistake, requests)
    coefficient, pairs = _measure(mistake, requests)
    words, family = in_words(one.words, source.kind, coefficient, pairs), mistake.family
    if one.whose == WHICHEVER:
        count: Counter[str] = Counter()
        for of in requests.values():
            sure = {next(iter(some)) for t in tokens_of(of, i) if len(some := of.sources(i, t)) == 1}
            count.update(called_in(key, mistake.family) for key in sure)
        if set(count) == {THE_BASE} and family == f"instead: {WHICHEVER}":  # always nobody's
            words, family, coefficient = "its own delta is missing", "own", -1.0
        else:
            whose = ", ".join(f"{name} in {n}" for name, n in count.most_common(MOST_NAMES))
            words += f" (of {whose} requests)" if whose else ""
    is_everywhere = not fitting.tokens and fitting.holds
    bug = source.key if source.kind == "bug" and not mistake.modules and is_everywhere else ""
    tokens, when = ", and of these ".join(fitting.tokens), fitting.where
    when = " ".join(filter(None, [when, *(f"(or {rival.words})" for rival in fitting.rivals[:RIVALS])]))
    if not fitting.holds:
        often = f"in {one.present} of {one.present + one.right} tokens that would show it"
        tokens, when = "", often + (f"; nearest: {fitting.words}" if fitting.words else "")
    modules = _effective(mistake, list(requests))
    when = " ".join(filter(None, [when, one.assumes]))
    is_guess = bool(one.assumes) or not fitting.holds
    return Change(words, family, modules, tokens, coefficient, pairs, bug, links.get(bug, ()), when, is_guess)


def _effective(mistake: Mistake, requests: Sequence[Request]) -> str:
    """Return the words of the plainest region of just those modules at which a mistake did something, of those at which
    it or the own delta could: "every module" says little of a source that is there at k_proj alone."""
    short = sorted((one for one in requests if mistake.family in one.families), key=lambda one: one.tokens)[:SHOWN]
    if not short:
        return mistake.modules
    suspect = short[0].as_it_came.suspect
    of_adapter = {one.words for one in suspect.adapter_regions}  # which modules those are is another matter each time
    if mistake.modules in of_adapter:
        return mistake.modules
    regions = [one for one in suspect.all_regions if one.words not in of_adapter]
    effective = possible = np.zeros(len(regions[0].members), bool)
    for one in short:
        sources = one.families[mistake.family]
        present = presence(one.walk, (), one.tokens, [*sources, *one.families.get("own", [])])
        effective = effective | present[: len(sources)].any(axis=0)
        possible = possible | present.any(axis=0)
    effective = effective & short[0].walk.at(mistake.modules)
    same = [one for one in regions if np.array_equal(one.members & possible, effective)]
    words = min(same, key=lambda one: one.cost).words if same and effective.any() else mistake.modules
    return mistake.modules if words.startswith("every module but") else words  # of one that had nothing there


def _measure(
    mistake: Mistake, requests: Mapping[Request, Followed]
) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """Return how often a mistake is made; or None, and how often in requests of each adapter, if it differs."""
    if mistake.coefficient is not None:
        return mistake.coefficient, ()
    by_adapter: dict[str, float] = {}
    for request in requests:
        if mistake in request.measures:
            adapter = label(request.as_it_came.suspect.exchange.adapters) or THE_BASE
            by_adapter.setdefault(adapter, request.measures[mistake])
    return None, tuple(sorted(by_adapter.items()))


def _source(mistake: Mistake, requests: Mapping[Request, Followed]) -> Source:
    return next(some[0] for request in requests if (some := request.families.get(mistake.family)))
