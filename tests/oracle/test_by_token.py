"""Causes token by token: which tokens a mistake is made in is seen, whatever tokens they are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.causes import cause_of_bug

from refimpl import NUMPY, Ops, Precision
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array
from refimpl.config import Module
from refimpl.oracle.causes.condition import Fact
from refimpl.oracle.causes.regions import Region
from refimpl.oracle.causes.rule import Observed, rule
from refimpl.plans import LoraMapping

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def with_rows(wrong: Callable[[int], Array], change: Callable[[Array, Array], None], name: str) -> Callable[[], Ops]:
    """Return a backend that changes the delta of some rows of each batch at one module. change: (delta, rows)"""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        delta = np.zeros_like(y)
        NUMPY.lora_delta(delta, x, module, adapters, mapping, p)
        if module[1] == name:
            change(delta, wrong(len(x)))
        y += delta

    return lambda: dataclasses.replace(NUMPY, lora_delta=lora_delta)


def lost(delta: Array, rows: Array) -> None:
    delta[rows] = 0


def test_tokens_that_no_rule_describes(tmp_path: Path) -> None:
    """Rows of a batch by a rule that no request knows of: the cause has every one of them, and says how many."""
    cause = cause_of_bug(with_rows(lambda n: np.arange(n) * 7 % 11 < 4, lost, "o_proj"), tmp_path)
    assert cause is not None and cause.explained == cause.failed
    (change,) = cause.changes
    assert change.what == "its own delta is missing" and change.modules.endswith("o_proj")
    assert "tokens that would show it" in change.when


def test_two_mistakes_in_different_tokens(tmp_path: Path) -> None:
    """Each of the two has tokens of its own: the second is seen where the first ends."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        delta = np.zeros_like(y)
        NUMPY.lora_delta(delta, x, module, adapters, mapping, p)
        rows = np.arange(len(x))
        if module[1] == "down_proj":
            delta[rows % 2 == 0] *= 2
        if module[1] == "v_proj":
            delta[rows % 5 == 3] = 0
        y += delta

    cause = cause_of_bug(lambda: dataclasses.replace(NUMPY, lora_delta=lora_delta), tmp_path)
    assert cause is not None and cause.explained > cause.failed / 2
    changes = {(one.what, one.modules) for one in cause.changes}
    assert {("its own delta is counted twice", "down_proj"), ("its own delta is missing", "v_proj")} <= changes


def observed(present: Array, **facts: bool) -> Observed:
    """A request of len(present) tokens whose first half is the prompt."""
    index = np.arange(len(present))
    regions = [
        Region("", np.ones(len(present), bool), 0),
        Region("decode steps", index >= len(present) // 2, 1),
        Region("every second token", index % 2 == 1, 3),
    ]
    return Observed({Fact(words): holds for words, holds in facts.items()}, regions, present)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=8), st.booleans(), st.booleans(), st.data())
@settings(deadline=None, max_examples=40)
def test_a_rule_is_found_again(lengths: list[int], of_decode: bool, of_first: bool, data: st.DataObject) -> None:
    """What was made of a rule fits a rule, without an exception; what cannot be seen changes nothing."""
    some = []
    for i, n in enumerate(lengths):
        present = np.full(n, int(not of_first or i == 0))
        if of_decode:
            present *= np.arange(n) >= n // 2
        unseen = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        some.append(observed(np.where(unseen, -1, present), first=i == 0, odd=i % 2 == 1))
    assert rule(some).wrong == 0


def test_a_rule_of_tokens_and_requests() -> None:
    some = [observed(np.array([0, 0, 1, 1] if i < 2 else [0] * 4), early=i < 2, odd=i % 2 == 1) for i in range(5)]
    best = rule(some)
    assert (best.tokens, best.requests, best.wrong, best.of) == (("decode steps",), ("early",), 0, 5)
    assert best.words == "for decode steps where early"


@pytest.mark.parametrize("alike", [True, False])
def test_two_wide_facts_are_found_behind_many_narrow_ones(alike: bool) -> None:
    """Both hold for many requests that are right. Sixty others are wrong in a few, all in the same or each in its
    own."""
    some = []
    for i in range(60):
        wide, other = i % 4 != 0, i % 4 != 1
        few = [i < 2 or (i == 4 if alike else i % 4 < 2 and (i + n) % 7 < 3) for n in range(60)]
        near = {f"narrow {n}": (wide and other) or wrong for n, wrong in enumerate(few)}
        some.append(observed(np.array([int(wide and other)]), **near, wide=wide, other=other))
    best = rule(some)
    assert best.wrong == 0 and set(best.requests) == {"wide", "other"}


def test_three_facts_are_no_rival_of_themselves() -> None:
    """Each of their orders is one rule."""
    some = [
        observed(np.array([int(i % 8 == 7)]), one=bool(i & 1), two=bool(i & 2), three=bool(i & 4)) for i in range(24)
    ]
    best = rule(some)
    assert set(best.requests) == {"one", "two", "three"} and not best.wrong and not best.rivals


def test_of_two_facts_that_are_the_same_here_the_other_is_said() -> None:
    some = [
        observed(np.array([int(i % 4 == 3)]), one=bool(i & 1), two=bool(i & 2), second=bool(i & 2)) for i in range(24)
    ]
    best = rule(some)
    assert set(best.requests) == {"one", "two"}
    assert [set(rival.requests) for rival in best.rivals] == [{"one", "second"}]


def test_what_nobody_sees_has_no_rule() -> None:
    assert rule([observed(np.full(3, -1), early=True)]).of == 0
