"""lora_delta by itself: what it adds to which rows, given slots with adapters."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import adapters, configs, random_model, shown_adapter
from support.compare import assert_differ, assert_equal_to_rounding, assert_same_bits
from support.dense import scale_of
from support.plans import mapping
from support.tables import every_table

from refimpl import Model, Ops, Precision
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots, LoraWeights, bind_adapter
from refimpl.config import EMBED, Module

P = Precision("model", "float64")


class Call(NamedTuple):
    """The arguments of one lora_delta, the adapters as they would be loaded."""

    model: Model
    pool: list[Adapter]
    module: Module
    x: np.ndarray
    adapter_ids: np.ndarray
    adapter_weights: np.ndarray

    def __repr__(self) -> str:
        pool, plan = (
            "\n    ".join(map(shown_adapter, self.pool)),
            np.stack([self.adapter_ids, self.adapter_weights], -1),
        )
        return f"Call({self.model.config}, {pool}\n    {self.module} ids, weights: {plan.tolist()})"

    def slots(self, ops: Ops) -> AdapterSlots:
        slots = AdapterSlots(self.model, P)
        for slot, adapter in enumerate(self.pool):
            slots.put(slot, ops.bind_adapter(adapter, self.model.config, ops.adapter_scale))
        return slots

    def run(
        self, ops: Ops, y: np.ndarray, slots: AdapterSlots | None = None, weights: np.ndarray | None = None
    ) -> None:
        slots = self.slots(ops) if slots is None else slots
        weights = self.adapter_weights if weights is None else weights
        ops.lora_delta(y, self.x, self.module, slots, mapping(self.adapter_ids, weights), P)

    def y(self, seed: int) -> np.ndarray:
        d_out, d_in = self.model.config.shape(self.module)
        return np.random.default_rng(seed).standard_normal((len(self.x), d_in if self.module == EMBED else d_out))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Every slot is named by some row and -1 by another; ids come in runs and out of order, up to three a row."""
    config = draw(configs(max_layers=2))
    pool = draw(adapters(config, draw(st.integers(1, 4))))
    module = draw(st.sampled_from(sorted({module for a in pool for module in a.lora})))
    everyone = [*range(-1, len(pool)), len(pool) - 1, *draw(st.lists(st.integers(-1, len(pool) - 1), max_size=6))]
    first = np.array(draw(st.permutations(everyone)), np.int32).repeat(draw(st.integers(1, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    ids = np.full((len(first), draw(st.integers(1, 3))), -1, np.int32)
    for row, slot in zip(ids, first, strict=True):
        others = rng.permutation([s for s in range(len(pool)) if s != slot])[: rng.integers(0, len(row))]
        row[: 1 + len(others) * (slot >= 0)] = [slot, *others][: 1 + len(others) * (slot >= 0)]
    weights = np.where(ids >= 0, rng.choice([1.0, -0.5, 0.75, 2.0], ids.shape), 0)
    tokens, d_in = len(ids), config.shape(module)[1]
    x = rng.integers(0, config.vocab_size, tokens) if module == EMBED else rng.standard_normal((tokens, d_in))
    return Call(random_model(config), pool, module, x, ids, weights)


def check_adds_the_formula(ops: Ops, call: Call) -> None:
    """y += sum over the row's adapters of weight * scale * (B A x + b), each number of it written out here."""
    y = call.y(0)
    expected = y.copy()
    for t, (ids, weights) in enumerate(zip(call.adapter_ids, call.adapter_weights, strict=True)):
        for slot, weight in zip(ids, weights, strict=True):
            if slot >= 0 and call.module in call.pool[slot].lora:
                w = call.pool[slot].lora[call.module]
                x = np.eye(w.A.shape[1])[call.x[t]] if call.module == EMBED else call.x[t]
                low_rank = w.B @ (w.A @ x) + (0 if w.bias is None else w.bias)
                expected[t] += weight * scale_of(call.pool[slot], call.module) * low_rank
    call.run(ops, y)
    assert_equal_to_rounding(y, expected)


def check_rows_without_adapter_keep_their_bits(ops: Ops, call: Call) -> None:
    y = call.y(1)
    before = y.copy()
    call.run(ops, y)
    touched = np.array([any(s >= 0 and call.module in call.pool[s].lora for s in ids) for ids in call.adapter_ids])
    assert_same_bits(y[~touched], before[~touched])
    if touched.any():
        assert_differ(y[touched], before[touched])


def check_rank_padding_is_invisible(ops: Ops, call: Call, extra: int) -> None:
    """Zero rows of A and zero columns of B, anywhere among the others, with the scale kept."""
    plain, padded = call.y(2), call.y(2)
    slots = AdapterSlots(call.model, P)
    for slot, adapter in enumerate(call.pool):
        bound = bind_adapter(adapter, call.model.config, ops.adapter_scale)
        lora = {}
        for module, w in bound.lora.items():
            at = np.sort(np.random.default_rng([slot, extra]).integers(0, len(w.A) + 1, extra))
            lora[module] = LoraWeights(np.insert(w.A, at, 0, axis=0), np.insert(w.B, at, 0, axis=1), w.scale, w.bias)
        slots.put(slot, replace(bound, lora=lora))
    call.run(ops, plain)
    call.run(ops, padded, slots)
    assert_equal_to_rounding(padded, plain)


def check_weights_are_linear(ops: Ops, call: Call, a: float, b: float) -> None:
    """delta(a u + b v) = a delta(u) + b delta(v), for two sets of weights u and v."""
    u, v = call.adapter_weights, np.where(call.adapter_ids >= 0, call.adapter_weights[::-1] + 1.5, 0)
    deltas = []
    for weights in (u, v, a * u + b * v):
        y = np.zeros_like(call.y(3))
        call.run(ops, y, weights=weights)
        deltas.append(y)
    largest = np.abs(deltas).max()  # of all three: u and v may cancel
    assert np.abs(deltas[2] - (a * deltas[0] + b * deltas[1])).max() <= 1e-12 * largest * (abs(a) + abs(b))
    if np.abs(deltas[0]).max() > 0:
        assert_differ(deltas[0], deltas[1])


def check_modules_are_kept_apart(ops: Ops, call: Call) -> None:
    """A module that none of the row's adapters changes is left alone, whatever they do in others."""
    for module in call.model.config.modules():
        d_out, d_in = call.model.config.shape(module)[::-1] if module == EMBED else call.model.config.shape(module)
        y = np.random.default_rng(4).standard_normal((len(call.adapter_ids), d_out))
        before = y.copy()
        x = np.zeros(len(y), int) if module == EMBED else np.ones((len(y), d_in))
        ops.lora_delta(y, x, module, call.slots(ops), mapping(call.adapter_ids, call.adapter_weights), P)
        for t, ids in enumerate(call.adapter_ids):
            if not any(s >= 0 and module in call.pool[s].lora for s in ids):
                assert_same_bits(y[t], before[t])


@every_table
@settings(max_examples=100)
@given(call=calls())
def test_it_adds_the_formula(ops: Ops, call: Call) -> None:
    check_adds_the_formula(ops, call)


@every_table
@settings(max_examples=100)
@given(call=calls())
def test_rows_without_an_adapter_keep_every_bit(ops: Ops, call: Call) -> None:
    check_rows_without_adapter_keep_their_bits(ops, call)


@every_table
@settings(max_examples=100)
@given(call=calls(), extra=st.integers(1, 6))
def test_rank_padding_is_invisible(ops: Ops, call: Call, extra: int) -> None:
    check_rank_padding_is_invisible(ops, call, extra)


@every_table
@settings(max_examples=100)
@given(call=calls(), a=st.sampled_from([0.5, 1.0, -3.0]), b=st.sampled_from([0.25, 1.0, -1.0]))
def test_it_is_linear_in_the_weights(ops: Ops, call: Call, a: float, b: float) -> None:
    check_weights_are_linear(ops, call, a, b)


@every_table
@settings(max_examples=25)
@given(call=calls())
def test_a_module_that_an_adapter_does_not_name_is_left_alone(ops: Ops, call: Call) -> None:
    check_modules_are_kept_apart(ops, call)
