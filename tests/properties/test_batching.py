"""What a request gets depends on nothing but the request: not on its neighbours, and not on its place among them."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, cases
from support.compare import assert_equal_to_rounding, assert_same_bits
from support.tables import every_table

from refimpl import Ops, logits


def check_batch_equals_alone(ops: Ops, case: Case) -> None:
    model, _, requests = case
    for got, request in zip(logits(model, requests, ops), requests, strict=True):
        assert_equal_to_rounding(got, logits(model, [request], ops)[0])


def check_order_does_not_matter(ops: Ops, case: Case, seed: int) -> None:
    model, _, requests = case
    order = np.random.default_rng(seed).permutation(len(requests))
    shuffled = logits(model, [requests[i] for i in order], ops)
    straight = logits(model, requests, ops)
    for place, i in enumerate(order):
        assert_equal_to_rounding(shuffled[place], straight[i])


def check_base_rows_do_not_feel_adapters(ops: Ops, case: Case) -> None:
    """The requests without an adapter get the bits that they get when nobody in the batch has one."""
    model, _, requests = case
    mixed, plain = logits(model, requests, ops), logits(model, [replace(r, adapter=None) for r in requests], ops)
    for request, got, expected in zip(requests, mixed, plain, strict=True):
        if not request.adapters:
            assert_same_bits(got, expected)


@every_table
@settings(max_examples=100)
@given(case=cases())
def test_a_batch_equals_each_request_alone(ops: Ops, case: Case) -> None:
    check_batch_equals_alone(ops, case)


@every_table
@settings(max_examples=50)
@given(case=cases(), seed=st.integers(0, 99))
def test_the_order_of_requests_does_not_matter(ops: Ops, case: Case, seed: int) -> None:
    check_order_does_not_matter(ops, case, seed)


@every_table
@settings(max_examples=50)
@given(case=cases())
def test_requests_without_an_adapter_do_not_feel_those_with_one(ops: Ops, case: Case) -> None:
    check_base_rows_do_not_feel_adapters(ops, case)
