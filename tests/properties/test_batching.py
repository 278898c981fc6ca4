"""What a request gets depends on nothing but the request: not on its neighbours, and not on its place among them."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Scene, scenes
from support.compare import assert_equal_to_rounding, assert_same_bits
from support.tables import every_table

from refimpl import Ops, logits


def check_batch_equals_alone(ops: Ops, scene: Scene) -> None:
    model, _, requests = scene
    for got, request in zip(logits(model, requests, ops), requests, strict=True):
        assert_equal_to_rounding(got, logits(model, [request], ops)[0])


def check_order_does_not_matter(ops: Ops, scene: Scene, seed: int) -> None:
    model, _, requests = scene
    order = np.random.default_rng(seed).permutation(len(requests))
    shuffled = logits(model, [requests[i] for i in order], ops)
    straight = logits(model, requests, ops)
    for place, i in enumerate(order):
        assert_equal_to_rounding(shuffled[place], straight[i])


def check_base_rows_do_not_feel_adapters(ops: Ops, scene: Scene) -> None:
    """The requests without an adapter get the bits that they get when nobody in the batch has one."""
    model, _, requests = scene
    mixed, plain = logits(model, requests, ops), logits(model, [replace(r, adapter=None) for r in requests], ops)
    for request, got, expected in zip(requests, mixed, plain, strict=True):
        if not request.adapters:
            assert_same_bits(got, expected)


@every_table
@settings(max_examples=100)
@given(scene=scenes())
def test_a_batch_equals_each_request_alone(ops: Ops, scene: Scene) -> None:
    check_batch_equals_alone(ops, scene)


@every_table
@settings(max_examples=50)
@given(scene=scenes(), seed=st.integers(0, 99))
def test_the_order_of_requests_does_not_matter(ops: Ops, scene: Scene, seed: int) -> None:
    check_order_does_not_matter(ops, scene, seed)


@every_table
@settings(max_examples=50)
@given(scene=scenes())
def test_requests_without_an_adapter_do_not_feel_those_with_one(ops: Ops, scene: Scene) -> None:
    check_base_rows_do_not_feel_adapters(ops, scene)
