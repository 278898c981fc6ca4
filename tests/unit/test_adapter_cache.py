"""Adapters in slots: least recently used out first, never one in use, known by the object and not by its name."""

import sys

import numpy as np
import pytest
from support.build import random_adapter, random_model

from refimpl import NUMPY, Precision
from refimpl.adapter_cache import AdapterCache
from refimpl.config import ModelConfig
from refimpl.errors import AdapterError, CacheFull

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4)
MODULE = (0, "q_proj")
ADAPTERS = [random_adapter(CONFIG, seed, name="one name for all") for seed in range(4)]


def cache(capacity: int | None = 2) -> AdapterCache:
    return AdapterCache(random_model(CONFIG), Precision("model", "float64"), NUMPY, capacity)


def holds(c: AdapterCache, slot: int, adapter: int) -> bool:
    return np.array_equal(c.slots.at(MODULE)[slot].A, ADAPTERS[adapter].lora[MODULE].A)


def test_an_adapter_keeps_its_slot_while_it_is_used() -> None:
    c = cache()
    assert [c.acquire(ADAPTERS[i]) for i in (0, 1, 0)] == [0, 1, 0]
    assert c.ref_counts == {0: 2, 1: 1}
    c.release(0)
    with pytest.raises(CacheFull, match="all 2 slots are in use"):
        c.acquire(ADAPTERS[2])
    assert holds(c, 0, 0) and holds(c, 1, 1)


def test_the_one_used_longest_ago_makes_room() -> None:
    c = cache()
    for i in (0, 1, 0):
        c.release(c.acquire(ADAPTERS[i]))
    assert c.acquire(ADAPTERS[2]) == 1
    assert holds(c, 0, 0) and holds(c, 1, 2)


def test_what_comes_back_is_loaded_again() -> None:
    c = cache(1)
    digests = []
    for i in (0, 1, 0):
        slot = c.acquire(ADAPTERS[i])
        assert holds(c, slot, i)
        digests.append(c.digest(slot))
        c.release(slot)
    assert digests[0] == digests[2] != digests[1]


def test_several_are_acquired_together_or_not_at_all() -> None:
    c = cache()
    slot = c.acquire(ADAPTERS[0])
    assert c.acquire_all([(ADAPTERS[1], 1.0), (ADAPTERS[2], 0.5)]) is None
    assert c.ref_counts == {slot: 1}
    assert c.acquire_all([(ADAPTERS[2], 0.5), (ADAPTERS[0], 2.0)]) == [(1, 0.5), (0, 2.0)]


def test_without_a_bound_everyone_stays() -> None:
    c = cache(None)
    assert [c.acquire(a) for a in ADAPTERS] == [0, 1, 2, 3]


def test_a_load_that_fails_costs_nobody_a_slot() -> None:
    """The next one to be loaded once met a slot that another adapter was still in."""
    c = cache()
    for i in (0, 1):
        c.release(c.acquire(ADAPTERS[i]))
    broken = random_adapter(CONFIG, 9)
    object.__setattr__(broken, "lora", None)
    with pytest.raises(AttributeError):
        c.acquire(broken)
    assert holds(c, 0, 0) and holds(c, 1, 1)
    slots = [c.acquire(ADAPTERS[i]) for i in (1, 2)]
    assert len(set(slots)) == 2 and all(holds(c, slot, i) for slot, i in zip(slots, (1, 2), strict=True))


def test_slots_that_were_emptied_are_filled_first_the_lowest_before_the_others() -> None:
    c = cache(None)
    for adapter in ADAPTERS:
        c.release(c.acquire(adapter))
    for i in (2, 0):
        c.unload(ADAPTERS[i])
    assert [c.acquire(ADAPTERS[i]) for i in (2, 0)] == [0, 2]
    assert holds(c, 0, 2) and holds(c, 2, 0) and holds(c, 3, 3)
    assert c.acquire(random_adapter(CONFIG, 9)) == 4


def test_a_slot_whose_adapter_could_not_be_loaded_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    c = cache(None)
    for adapter in ADAPTERS[:3]:
        c.release(c.acquire(adapter))
    c.unload(ADAPTERS[1])
    with monkeypatch.context() as patch:

        def put(slot: int, bound: object) -> None:
            raise AdapterError("this one cannot be loaded")

        patch.setattr(c.slots, "put", put)
        with pytest.raises(AdapterError):
            c.acquire(ADAPTERS[3])
    assert ADAPTERS[3] not in c and c.loads == c.misses == 3
    assert [c.acquire(adapter) for adapter in (ADAPTERS[3], ADAPTERS[0], ADAPTERS[2], ADAPTERS[1])] == [1, 0, 2, 3]


def test_a_load_takes_as_long_with_many_loaded_as_with_few() -> None:
    """Counted, not timed: calls of Python functions for the loads number 1 to 50, and for those from 451 to 500."""
    c, adapters = cache(None), [random_adapter(CONFIG, 0) for _ in range(500)]
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    counts = []
    for adapter in adapters:
        before = calls
        sys.setprofile(count)
        c.release(c.acquire(adapter))
        sys.setprofile(None)
        counts.append(calls - before)
    assert 0 < sum(counts[450:]) <= 1.1 * sum(counts[:50])


def test_what_was_evicted_is_noted() -> None:
    c = cache()
    for adapter in ADAPTERS[:2]:
        c.release(c.acquire(adapter))
    assert c.evicted == []
    c.release(c.acquire(ADAPTERS[2]))
    assert c.evicted == [ADAPTERS[0].name] and (c.loads, c.misses) == (3, 3)
    c.release(c.acquire(ADAPTERS[2]))
    assert c.evicted == [ADAPTERS[0].name] and (c.loads, c.misses) == (3, 3)
