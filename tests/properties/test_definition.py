"""The forward pass is the model of the papers with W + sum(weight * scale * B A) in place of each W.

The other side of the comparison (tests/dense.py) shares no code with refimpl: it knows no cache, batch or adapter.
"""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from support.build import Case, cases
from support.compare import assert_differ, assert_equal_to_rounding, assert_same_bits
from support.dense import dense_logits, merged
from support.tables import every_table

from refimpl import Ops, Request, logits
from refimpl.adapter import Adapter, LoraTensors


def check_unmerged_equals_merged(ops: Ops, case: Case) -> None:
    model, _, requests = case
    for got, request in zip(logits(model, requests, ops), requests, strict=True):
        assert_equal_to_rounding(got, dense_logits(merged(model, request), request.prompt_ids))


def check_the_base_is_the_dense_model(ops: Ops, case: Case) -> None:
    model, _, requests = case
    for got, request in zip(logits(model, [replace(r, adapter=None) for r in requests], ops), requests, strict=True):
        assert_equal_to_rounding(got, dense_logits(model, request.prompt_ids))


def check_adapters_differ(ops: Ops, case: Case) -> None:
    """Asked first: a test in which two adapters say the same could not tell them apart."""
    model, pool, requests = case
    prompt = max((r.prompt_ids for r in requests), key=len)
    base, *rows = logits(model, [Request(prompt), *(Request(prompt, adapter) for adapter in pool)], ops)
    for i, row in enumerate(rows):
        assert_differ(row, base)
        for other in rows[:i]:
            assert_differ(row, other)


def check_zero_b_is_the_base(ops: Ops, case: Case) -> None:
    """PEFT initialises B with zeros: such an adapter changes nothing, not even the last bit."""
    model, pool, requests = case
    silent = {a: without_b(a) for a in pool}
    quiet = [replace(r, adapter=[(silent[a], w) for a, w in r.adapters]) for r in requests]
    base = [replace(r, adapter=None) for r in requests]
    for got, expected in zip(logits(model, quiet, ops), logits(model, base, ops), strict=True):
        assert_same_bits(got, expected)


def without_b(adapter: Adapter) -> Adapter:
    return replace(adapter, lora={s: LoraTensors(w.A, np.zeros_like(w.B)) for s, w in adapter.lora.items()})


@every_table
@settings(max_examples=100)
@given(case=cases())
def test_unmerged_equals_merged(ops: Ops, case: Case) -> None:
    check_unmerged_equals_merged(ops, case)


@every_table
@settings(max_examples=50)
@given(case=cases())
def test_the_base_is_the_dense_model(ops: Ops, case: Case) -> None:
    check_the_base_is_the_dense_model(ops, case)


@every_table
@settings(max_examples=100)
@given(case=cases())
def test_adapters_differ_from_the_base_and_from_each_other(ops: Ops, case: Case) -> None:
    check_adapters_differ(ops, case)


@every_table
@settings(max_examples=50)
@given(case=cases())
def test_an_adapter_whose_b_is_zero_is_the_base_bit_for_bit(ops: Ops, case: Case) -> None:
    check_zero_b_is_the_base(ops, case)
