"""What the other adapters are to a request: its neighbours' in the batch, those of the slots beside its own."""

from collections.abc import Sequence

import numpy as np

from ..cases.case import Case, Exchange, Run, keys_of, loaded_before, replay
from ..cases.testbed import Testbed
from .history import former_adapters
from .regions import IN_BATCH

SLOTS = (2, 3, 4)  # of an engine that has fewer than a batch needs
PLACES = (2, 3, 4, 5, 6)  # of an engine that has fewer slots than adapters: the one that comes first of the others
PARTS = (2, 3, 4)  # requests of a part of a batch that is cut
SAME = 4  # tokens that two prompts share, so that a cache may take one for the other


def relations(
    case: Case, exchange: Exchange, testbed: Testbed, earlier: Sequence[str | None] = ()
) -> dict[str, str | None]:
    """Return adapters by what they are to this request of the case; None where that is the base. earlier: the adapters
    of the requests that the engine had answered before this case."""
    runs = [
        (step, meaning) for step, meaning in replay(case.steps, loaded_before(case, testbed)) if isinstance(step, Run)
    ]
    run, meaning = runs[exchange.run]
    keys = [label(keys_of(request, meaning)) for request in run.requests]
    n, here = len(keys), exchange.index
    lengths = [len(request.prompt_ids) for request in run.requests]
    related: dict[str, str | None] = {}
    if n > 1:
        related |= {
            "the request before": keys[here - 1],
            "the request after": keys[(here + 1) % n],
            "the request before, of the first the base": keys[here - 1] if here else None,
            "the request after, of the last the base": keys[here + 1] if here + 1 < n else None,
            "the first request": keys[0],
            "the last request": keys[-1],
            "the request with the longest prompt": keys[int(np.argmax(lengths))],
            "the request with the shortest prompt": keys[int(np.argmin(lengths))],
        }
        related |= {f"the request {count} places before": keys[here - count] for count in PARTS if here >= count}
        owners = [key for key, length in zip(keys, lengths, strict=True) for _ in range(length)]
        related |= {f"the request of the batch's token {n}": owners[n - 1] for n in IN_BATCH if n <= len(owners)}
        numbers = {key: number for number, key in enumerate(meaning.values(), 1)}
        order = sorted(range(n), key=lambda i: numbers.get(keys[i] or "", 0))  # the base first
        related |= {
            "the request before, in the order of adapters": keys[order[order.index(here) - 1]],
            "the request after, in the order of adapters": keys[order[(order.index(here) + 1) % n]],
        }
        for words, sign in (("shortest", 1), ("longest", -1)):
            by_length = sorted(range(n), key=lambda i: sign * lengths[i])
            related[f"the request of its number by length, the {words} first"] = keys[by_length.index(here)]
            related[f"the request that is as many-th by length, the {words} first, as it comes"] = keys[by_length[here]]
        used = list(dict.fromkeys(key for key in keys if key is not None))
        related |= _neighbours(used, keys[here], "in the batch")
        if (own_key := keys[here]) is not None:
            for slots in SLOTS:
                last = used[used.index(own_key) % slots :: slots][-1]
                related[f"the adapter that is last in its slot, of {slots} that the batch takes in turn"] = last
        if earlier := [key for key in keys[:here] if key is not None]:
            related["the earlier request of the highest rank"] = max(earlier, key=lambda key: _rank(testbed, key))
    related |= _neighbours(list(dict.fromkeys(meaning.values())), keys[here], "that is loaded")
    prompt = run.requests[here].prompt_ids[:SAME]
    earlier_requests = [(request, names) for step, names in runs[: exchange.run] for request in step.requests]
    earlier_requests += [(request, meaning) for request in run.requests[:here]]
    if alike := [keys_of(request, names) for request, names in earlier_requests if request.prompt_ids[:SAME] == prompt]:
        related["the first request with the same first tokens"] = label(alike[0])
        related["the last request with the same first tokens"] = label(alike[-1])
    before = [keys_of(request, names) for step, names in runs[: exchange.run] for request in step.requests]
    if before:
        related["the last request of the batch before"] = label(before[-1])
    return related | former_adapters(case, exchange, testbed, earlier) | {key: key for key in testbed.adapters}


def adapters_of_batch(case: Case, exchange: Exchange, testbed: Testbed) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Return the adapters of each request of its batch, in order, with their weights."""
    runs = [
        (step, meaning) for step, meaning in replay(case.steps, loaded_before(case, testbed)) if isinstance(step, Run)
    ]
    run, meaning = runs[exchange.run]
    return tuple(keys_of(request, meaning) for request in run.requests)


def _rank(testbed: Testbed, key: str) -> int:
    adapter = testbed.adapters.get(key)  # None: a sum
    return max((lora.A.shape[0] for lora in adapter.lora.values()), default=0) if adapter else 0


def label(adapters: Sequence[tuple[str, float]]) -> str | None:
    """What a request's adapters are called: None for the base, the key of a single one, else "0.5 x a + 2 x b"."""
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    return " + ".join(f"{weight:g} x {key}" for key, weight in adapters) or None


def _neighbours(order: list[str], key: str | None, words: str) -> dict[str, str | None]:
    """Return the first and the last of some adapters, and those beside one of them."""
    if not order:
        return {}
    related: dict[str, str | None] = {f"the first adapter {words}": order[0], f"the last adapter {words}": order[-1]}
    related |= {f"adapter number {n} {words}": order[n - 1] for n in PLACES if n <= len(order)}
    if key in order:
        at = order.index(key)
        related[f"the adapter before its own {words}"] = order[at - 1]
        related[f"the adapter after its own {words}"] = order[(at + 1) % len(order)]
    return related
