"""Of whose adapter a mistake is: by what name, which means another adapter at each token, is it in nearly every one?

Names are what the other adapters are to a request ("the request before"), where those do not fit what they are to its
row in the engine's own steps, and last an adapter itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .follow import Followed
from .mistakes import Mistake
from .relations import label
from .scheduled_names import OfWhom, keys_in_steps, names_in_steps
from .scheduled_rule import Scheduler
from .sources import THE_BASE, WHICHEVER
from .tables import RARE
from .traced import Request

NAMED = 0.95  # of the tokens in which a mistake was made that a name of its adapter must fit
RELATION = 2.0  # bits of such a name
RARE_NAME = 5.0  # of one of many more: log2 of how many these are, less that of the others
FIXED = 6.0  # of one that is the same adapter everywhere
NAMES = 4  # that are tried with a rule; larger: slower


@dataclass(frozen=True, eq=False)
class Name:
    """What the adapter of a mistake may be called, and which one that is at each token of each request; None: the
    base."""

    words: str
    cost: float
    keys: Mapping[Request, Sequence[str | None]]
    assumes: str = ""


def names(i: int, mistake: Mistake, requests: Mapping[Request, Followed]) -> list[Name]:
    """Return the names that fit the adapter of nearly every token in which the mistake was made, best first."""
    fits: Counter[str] = Counter()
    total = 0
    for request, one in requests.items():
        tokens = tokens_of(one, i)
        total += len(tokens)
        possible = [one.sources(i, t) for t in tokens]
        for words, keys in _keys_by_name(request).items():
            fits[words] += sum(source_of(mistake, keys[t]) in some for t, some in zip(tokens, possible, strict=True))
    good = [words for words, count in fits.items() if total and count >= NAMED * total]
    adapters = {key for request in requests for key in request.as_it_came.suspect.testbed.adapters}
    ranked = sorted(good, key=lambda words: (words in adapters, -fits[words], len(words)))[:NAMES]
    by_name = {request: _keys_by_name(request) for request in requests}
    return [
        Name(
            words,
            FIXED if words in adapters else RELATION,
            {request: keys[words] for request, keys in by_name.items() if words in keys},
        )
        for words in ranked
    ]


def names_by_step(scheduler: Scheduler, i: int, mistake: Mistake, requests: Mapping[Request, Followed]) -> list[Name]:
    """Return names that depend on the steps of an engine."""
    of_requests: dict[Request, OfWhom] = {}
    for request, one in requests.items():
        came = request.as_it_came
        keys = [None, *dict.fromkeys([*came.suspect.testbed.adapters, *map(label, came.suspect.batch)])]
        possible = {
            t: some
            for t in tokens_of(one, i)
            if (some := frozenset(key for key in keys if source_of(mistake, key) in one.sources(i, t)))
        }
        of_requests[request] = OfWhom(came.known_line, came.number, came.place[2], possible)
    return [
        Name(
            words,
            RELATION + RARE_NAME * (words in RARE) + schedule.cost,
            {request: keys_in_steps(one, words, schedule) for request, one in of_requests.items() if one.line},
            assumes,
        )
        for words, schedule, assumes in names_in_steps(list(of_requests.values()), scheduler)[:NAMES]
    ]


def _keys_by_name(request: Request) -> dict[str, Sequence[str | None]]:
    """Return for each name the adapter that it means at each token; None: the base."""
    suspect, tokens = request.as_it_came.suspect, request.tokens
    names: dict[str, Sequence[str | None]] = {words: [key] * tokens for words, key in suspect.others.items()}
    return {**names, **suspect.by_step}


def source_of(mistake: Mistake, key: str | None) -> str:
    """Return the key of the source that a mistake is, if it is of this adapter; None: the base."""
    return mistake.family.replace(WHICHEVER, key or THE_BASE)


def tokens_of(followed: Followed, i: int) -> list[int]:
    """Return the tokens in which one of a cause's mistakes was surely made."""
    return np.flatnonzero(followed.present(i) == 1).tolist()


def called_in(key: str, family: str) -> str:
    """Return what stands in a key in place of WHICHEVER."""
    before, after = family.split(WHICHEVER)
    return key[len(before) : len(key) - len(after)]
