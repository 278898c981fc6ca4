"""The mix-ups that are possible at one token of a request, by family: of another adapter, it may be any one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...arrays import Array
from .adapter_sources import adapter_sources, registered
from .attention_sources import attention_sources
from .bound import binding_bugs, bound_by
from .kept import FAMILY, kept_sources
from .mix_up import NOBODY, Delta, Point, Source, product
from .own_sources import but_for_its_bias, pattern_sources, scale_sources
from .relations import label
from .row_sources import order_sources
from .slot_sources import slot_sources
from .sources import THE_BASE, WHICHEVER, sources_of
from .stored import stored_sources
from .suspect import Suspect

Weighted = Sequence[tuple[str, float]]  # adapters and their weights


def families_of(suspect: Suspect) -> dict[str, list[Source]]:
    """Return every source that the request has, by its family."""
    testbed, adapters = suspect.testbed, suspect.exchange.adapters
    key = label(adapters)
    single = key in testbed.adapters
    families: dict[str, list[Source]] = {}
    of_parts = [(weight, _of_one(suspect, one)) for one, weight in adapters]
    for family in dict.fromkeys(family for _, parts in of_parts for family in parts):
        having = [(weight, parts[family]) for weight, parts in of_parts if family in parts]
        families[family] = [of_all(having)]
        if len(having) > 1:  # it may happen to one of a sum alone, for what that has and the others have not
            alone = [of_all([one]) for one in having]
            families[family] += [replace(one, key=f"{one.key}, number {i}") for i, one in enumerate(alone, 1)]
    if adapters and not single:
        families |= {one.key: [one] for one in sum_sources(adapters)}
    if not adapters:  # what else is wrong with the adapter that stands where there should be none
        of_nobody = sources_of(NOBODY, {}, testbed.exact.config.layer_modules)
        families |= {one.key: [one] for one in of_nobody if not one.key.startswith("of the ")}
    for other in (*testbed.adapters, None) if single or not adapters else ():
        called = other or THE_BASE
        for one in adapter_sources(key, other, called) if other != key else ():
            families.setdefault(one.key.removesuffix(called) + WHICHEVER, []).append(one)
    for family, one in attention_sources(delta_of(adapters)):
        families.setdefault(family, []).append(one)
    if single and key is not None:
        families |= {one.key: [one] for one in slot_sources(key, suspect.occupants)}
    families[FAMILY] = kept_sources(families.get(f"instead: {WHICHEVER}", []))
    families |= {one.key: [one] for one in stored_sources(families.get("own", []), suspect.testbed.exact.config)}
    for i, (mine, weight) in enumerate(adapters if not single else ()):
        for other in (*testbed.adapters, None):
            if other != mine:
                family, called = f"instead: {WHICHEVER}", f"{other or THE_BASE} as number {i + 1} of its sum"
                wrong = [(other, weight)] if other else []
                families.setdefault(family, []).extend(list(other_sums([(mine, weight)], wrong, called))[-1:])
    sums = dict.fromkeys(some for some in suspect.batch if len(some) > 1 or (some and some[0][1] != 1))
    plain: list[tuple[tuple[str, float], ...]] = [*(((one, 1.0),) for one in testbed.adapters), ()]
    others = sums if single or not adapters else dict.fromkeys([*sums, *plain])
    for some in others:
        if (called := label(some) or THE_BASE) != (key or THE_BASE):
            for one in other_sums(adapters, some, called):
                families.setdefault(one.key.removesuffix(called) + WHICHEVER, []).append(one)
    return families


def _of_one(suspect: Suspect, key: str) -> dict[str, Source]:
    """Return what may happen to one adapter's delta by itself. Other tokens are not there, when one is computed."""
    testbed = suspect.testbed
    of_own = sources_of(key, {}, testbed.exact.config.layer_modules, testbed.wide[key].config.use_rslora)
    bugs = registered(key, binding_bugs(testbed, key), partial(bound_by, testbed, key))
    patterns = list(pattern_sources(key, testbed.wide[key].config))
    apart = [but_for_its_bias(key, one) for one in (*scale_sources(key), *patterns, *order_sources(key))]
    return {one.key: one for one in (*of_own, *bugs, *patterns, *apart) if not one.key.startswith("of the ")}


def of_all(parts: Sequence[tuple[float, Source]]) -> Source:
    """Return what happens to a sum if the same happens to each of its adapters."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]

    def delta(point: Point) -> Array | None:
        deltas = [(weight, source.delta(point)) for weight, source in parts]
        some = [weight * one for weight, one in deltas if one is not None]
        return sum(some[1:], some[0]) if some and len({one.shape for one in some}) == 1 else None

    return replace(parts[0][1], delta=delta, times=None)  # each adapter has a scale of its own


def delta_of(adapters: Weighted) -> Delta:
    """What these adapters add together; None where none of them adds anything."""

    def delta(point: Point) -> Array | None:
        parts = [(weight, point.full_delta(key)) for key, weight in adapters]
        some = [weight * part for weight, part in parts if part is not None]
        return sum(some[1:], some[0]) if some and len({part.shape for part in some}) == 1 else None

    return delta


def other_sums(adapters: Weighted, other: Weighted, called: str) -> Iterator[Source]:
    """Yield what the adapters of another request would do here, beside its own or in their place."""

    def instead(point: Point) -> Array | None:
        right, wrong = delta_of(adapters)(point), delta_of(other)(point)
        if right is None or wrong is None:
            return wrong if right is None else -right
        return wrong - right if wrong.shape == right.shape else None

    if other:
        yield Source(f"added: {called}", f"the delta of {called}", delta_of(other), "added", 2)
    yield Source(f"instead: {called}", f"the delta of {called}", instead, "instead", 2)


def sum_sources(adapters: Weighted) -> Iterator[Source]:
    """Yield what may happen to a request that sums adapters, or weights one: to all of it, to one of them, to their
    weights."""

    def weighted(change: Callable[[int, float], float]) -> Delta:
        return delta_of([(key, change(i, weight) - weight) for i, (key, weight) in enumerate(adapters)])

    for i, one in enumerate(adapters, 1):
        words = f"the delta of adapter number {i} of its sum"
        yield Source(f"number {i} of a sum", words, delta_of([one]), "own", 2.5, is_partial=True)
    total = sum(weight for _, weight in adapters)
    by_name = {key: n for n, key in enumerate(sorted(key for key, _ in adapters))}
    changes: dict[str, Callable[[int, float], float]] = {
        "without its weights": lambda i, weight: 1.0,
        "with its weights squared": lambda i, weight: weight**2,
        "with the weight of its first adapter for all": lambda i, weight: adapters[0][1],
        "with the weights of all adapters but the first left out": lambda i, weight: weight if i == 0 else 1.0,
        "with its first adapter alone": lambda i, weight: weight if i == 0 else 0.0,
        "with its last adapter alone": lambda i, weight: weight if i == len(adapters) - 1 else 0.0,
        "with its first adapter alone, without weight": lambda i, weight: 1.0 if i == 0 else 0.0,
        "with its weights in reverse order": lambda i, weight: adapters[len(adapters) - 1 - i][1],
        "with its weights, of its adapters sorted by name": lambda i, weight: adapters[by_name[adapters[i][0]]][1],
        "with the mean of its adapters": lambda i, weight: weight / len(adapters),
    }
    if total:
        changes["with its weights divided by their sum"] = lambda i, weight: weight / total
    for words, change in changes.items():
        if any(change(i, weight) != weight for i, (_, weight) in enumerate(adapters)):
            yield Source(words, f"its own delta {words}", weighted(change), "instead", 3)
    if len(adapters) > 1:
        words = "its own delta, as that of one adapter whose A and B are sums (PEFT's combination_type linear)"
        yield Source("as one adapter", words, as_one_adapter(adapters), "instead", 3)


def as_one_adapter(adapters: Weighted) -> Delta:
    """What (sum of c_i B_i) (sum of c_i A_i) x has beside the sum of f_i B_i A_i x. c_i is the root of a factor
    f_i, weight times scale; B alone takes its sign (PEFT, tuners/lora/model.py, add_weighted_adapter)."""

    def delta(point: Point) -> Array | None:
        parts = [(weight * lora.scale, lora) for key, weight in adapters if (lora := point.of(key)) is not None]
        right = delta_of(adapters)(point)
        if right is None or len({(lora.A.shape[1], lora.B.shape[0]) for _, lora in parts}) != 1:
            return None
        r = max(len(lora.A) for _, lora in parts)
        A, B = np.zeros((r, parts[0][1].A.shape[1])), np.zeros((parts[0][1].B.shape[0], r))
        for factor, lora in parts:
            A[: len(lora.A)] += abs(factor) ** 0.5 * lora.A
            B[:, : len(lora.A)] += np.copysign(abs(factor) ** 0.5, factor) * lora.B
        y = product(point.x, A, B, 1.0)
        return y - right if y.shape == right.shape else None

    return delta
