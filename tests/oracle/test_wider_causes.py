"""Causes that another one nearly is: whole scales, factors of one rank, numbers that are rounded near a tie."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.causes import cause_of_bug

from refimpl import NUMPY, Ops
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from refimpl.arrays import Array, Precision
from refimpl.config import ModelConfig, Module
from refimpl.plans import AttentionMetadata, LoraMapping

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def bound_with(change: Callable[[dict[Module, LoraWeights], Adapter], dict[Module, LoraWeights]]) -> Ops:
    """Return an engine that changes an adapter's factors when it is bound."""

    def bind_adapter(adapter: Adapter, config: ModelConfig, scale: object) -> BoundAdapter:
        bound = NUMPY.bind_adapter(adapter, config, scale)
        return dataclasses.replace(bound, lora=change(dict(bound.lora), adapter))

    return dataclasses.replace(NUMPY, bind_adapter=bind_adapter)


def whole_scale(lora: dict[Module, LoraWeights], adapter: Adapter) -> dict[Module, LoraWeights]:
    """alpha // r: nothing, where alpha is below r."""
    return {module: dataclasses.replace(one, scale=float(one.scale // 1)) for module, one in lora.items()}


def a_of_gate(lora: dict[Module, LoraWeights], adapter: Adapter) -> dict[Module, LoraWeights]:
    """up_proj takes gate_proj's A, wherever its shape fits."""
    for (layer, name), one in list(lora.items()):
        gate = lora.get((layer, "gate_proj"))
        if name == "up_proj" and gate is not None and gate.A.shape == one.A.shape:
            lora[layer, name] = dataclasses.replace(one, A=gate.A)
    return lora


def test_of_two_mistakes_that_which_does_all_of_it_is_said_alone(tmp_path: Path) -> None:
    cause = cause_of_bug(lambda: bound_with(whole_scale), tmp_path)
    assert cause is not None and cause.explained == cause.failed
    assert [change.what for change in cause.changes] == ["its own delta at the whole part of its scale"]


def test_a_factor_of_another_module_of_the_same_rank(tmp_path: Path) -> None:
    cause = cause_of_bug(lambda: bound_with(a_of_gate), tmp_path)
    assert cause is not None and cause.explained == cause.failed and not cause.exceptions
    (change,) = cause.changes
    assert change.what == "its own delta with the A of gate_proj and up_proj swapped where both are of one rank"
    assert change.modules == "up_proj" and not change.when


def rounded_between() -> Ops:
    """A x as bfloat16 has it, of float32's A x: near a tie another number than of float64's."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        NUMPY.lora_delta(y, x, module, adapters, mapping, dataclasses.replace(p, lora_rank="bfloat16"))

    return dataclasses.replace(NUMPY, lora_delta=lora_delta)


def test_numbers_near_a_tie_are_no_second_mistake(tmp_path: Path) -> None:
    cause = cause_of_bug(rounded_between, tmp_path)
    assert cause is not None and 4 * cause.explained > 3 * cause.failed and cause.rounds
    assert "near a tie" in cause.evidence and "something else" not in cause.evidence
    assert [change.what for change in cause.changes] == [
        "its own delta with A x, between its two products, rounded to bfloat16"
    ]


def unwritten_decode() -> Ops:
    """Keys and values of decode steps are not written: what is read there are the zeros of a new cache."""

    def write_kv(k_cache: Array, v_cache: Array, k: Array, v: Array, metadata: AttentionMetadata, p: Precision) -> None:
        if (np.diff(metadata.query_start_loc) > 1).any() or (metadata.context_lens == 1).any():
            NUMPY.write_kv(k_cache, v_cache, k, v, metadata, p)

    return dataclasses.replace(NUMPY, write_kv=write_kv)


def test_keys_and_values_that_are_not_written(tmp_path: Path) -> None:
    cause = cause_of_bug(unwritten_decode, tmp_path)
    assert cause is not None and cause.explained == cause.failed
    (change,) = cause.changes
    assert change.what == "zeros for its key and value, as where they are not written"
    assert change.modules == "k_proj and v_proj" and "decode" in change.tokens + change.when
