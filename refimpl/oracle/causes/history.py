"""What an engine did before a request: which adapters it used, loaded over and threw away, as facts and as relations.

Caches of adapters and of prefixes go wrong by what came before: at the first use of an adapter, when it comes back
after others, under a name that stood for another one. A sequence has its history in itself, from an engine that has
none; batches follow one another on one engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..cases.case import Case, Exchange, Load, Run, Unload, keys_of, loaded_before, replay
from ..cases.testbed import Testbed

USES = (2, 3, 4)  # of an adapter, of which the later ones may differ from the first
NUMBERS = (2, 3, 4, 5)  # in order of their first use: an id, or a slot that nobody had before
OTHERS = (1, 2, 3, 4, 6, 8)  # adapters that were used since; a cache of so many has thrown this one out


@dataclass(frozen=True)
class History:
    """What came before one request. Adapters by the testbed's keys."""

    used: tuple[str | None, ...]  # the adapter of each earlier request, in order; None: the base
    before: str | None  # what its name stood for before it was loaded anew; None: nothing, or the same
    unloaded: str | None  # the adapter that was unloaded last, or loaded over
    loaded: str | None  # the adapter that was loaded last
    again: bool  # was its own adapter loaded more than once?

    def uses(self, key: str) -> int:
        """Return how often an adapter was used."""
        return self.used.count(key)

    def number(self, key: str) -> int:
        """Return as which adapter it was used: 1 is the first of all."""
        return list(dict.fromkeys([*(one for one in self.used if one is not None), key])).index(key) + 1

    def others_since(self, key: str) -> int:
        """Return how many other adapters were used since this one was; 0 if it never was."""
        if key not in self.used:
            return 0
        last = len(self.used) - self.used[::-1].index(key)
        return len({other for other in self.used[last:] if other is not None})


def history(case: Case, exchange: Exchange, testbed: Testbed, earlier: Sequence[str | None] = ()) -> History:
    """Return what came before a request. earlier: the adapters of the requests before this case, of a batch."""
    used = list(earlier) if case.stateless else []
    before: dict[str, str] = {}
    unloaded = loaded = None
    loads: list[str] = []
    number = 0
    for step, meaning in replay(case.steps, loaded_before(case, testbed)):
        if isinstance(step, Run):
            place = exchange.index if number == exchange.run else len(step.requests)
            keys = [keys_of(request, meaning) for request in step.requests[:place]]
            used += [weighted[0][0] if weighted else None for weighted in keys]
            if number == exchange.run:
                break
            number += 1
        elif isinstance(step, Load):
            if (over := meaning.get(step.name)) is not None and over != step.adapter:
                before[step.name] = unloaded = over
            loaded = step.adapter
            loads.append(step.adapter)
        elif isinstance(step, Unload) and step.name in meaning:
            unloaded = before[step.name] = meaning[step.name]
    name, key = exchange.request.adapter, exchange.adapters[0][0] if exchange.adapters else None
    former = before.get(name) if name is not None else None
    return History(tuple(used), None if former == key else former, unloaded, loaded, loads.count(key or "") > 1)


def history_facts(
    case: Case, exchange: Exchange, testbed: Testbed, earlier: Sequence[str | None]
) -> Iterator[tuple[str, str, bool, float]]:
    """Yield the words of each fact, those of its opposite, whether it holds, and its cost in bits."""
    if not exchange.adapters:
        return
    key, past = exchange.adapters[0][0], history(case, exchange, testbed, earlier)
    yield "its adapter is used for the first time", "its adapter was used before", not past.uses(key), 3
    for n in USES:
        words = f"its adapter was used {n} times or more before", f"its adapter was used fewer than {n} times before"
        yield *words, past.uses(key) >= n, 4.5
    for n in NUMBERS:
        words = f"it was used as adapter number {n} or later", f"it was used before adapter number {n} was"
        yield *words, past.number(key) >= n, 4
    for n in OTHERS:
        plural = "s were" if n > 1 else " was"
        words = (
            f"{n} other adapter{plural} used since its own",
            f"fewer than {n} other adapters were used since its own",
        )
        yield *words, past.others_since(key) >= n, 4.5
    yield (
        "its name stood for another adapter before",
        "its name stood for no other adapter before",
        bool(past.before),
        4,
    )
    yield "its adapter was loaded again", "its adapter was loaded once at most", past.again, 4
    yield "an adapter was unloaded before", "no adapter was unloaded before", past.unloaded is not None, 4


def former_adapters(
    case: Case, exchange: Exchange, testbed: Testbed, earlier: Sequence[str | None] = ()
) -> dict[str, str | None]:
    """Return the adapters of a request's past by what they were to it; those that there were none of are left out."""
    past = history(case, exchange, testbed, earlier)
    used = [*(key for key in past.used if key is not None), *(key for key, _ in exchange.adapters)]
    named = {
        "the adapter that was used first": used[0] if used else None,
        "the adapter that its name stood for before": past.before,
        "the adapter that was unloaded last": past.unloaded,
        "the adapter that was loaded last": past.loaded,
    }
    return {words: key for words, key in named.items() if key is not None}
