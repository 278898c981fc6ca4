"""Vectors of the LoRA product: y[t] += weight * scale * (B A x[t] + bias), an adapter per token.

The rules of refimpl/oracle/cases/testbed.py, for one layer: d_in is not d_out, alpha / r never 1, signed numbers,
adapters pairwise different, base rows between the others, and the last slot in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ...adapter import Adapter, LoraTensors, PeftConfig
from ...adapter_slots import AdapterSlots, adapter_scale
from ...arrays import Array, Precision
from ...config import ModelConfig, Module
from ...lora import lora_delta_per_token
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ...weights import Model
from .bounds import lora_row
from .draw import signed
from .units import lora_orders, lora_roundings, noise
from .vector import VECTOR_DTYPES, Output, Vector

MODULE: Module = (0, "up_proj")  # slots are those of a whole model; a module whose two widths are free


@dataclass(frozen=True)
class Slot:
    """One adapter: its rank, alpha, and whether it has rsLoRA and a bias."""

    r: int
    alpha: float
    rslora: bool = False
    bias: bool = False
    poison: bool = False  # all NaN: a slot that no request names
    b_rank: int = 0  # of B, where it contradicts A


@dataclass(frozen=True)
class Spec:
    """One vector, before its numbers are drawn. requests: (its slots, tokens); () is the base."""

    name: str
    comment: str
    bugs: tuple[str, ...]
    slots: Mapping[int, Slot]
    requests: Sequence[tuple[tuple[int, ...], int]]
    d_in: int = 40
    d_out: int = 24
    weights: Mapping[int, float] = field(default_factory=dict)  # slot -> weight, where it is not 1
    result: str = "valid"
    poison_base: bool = False  # x of the base rows is NaN
    x_width: int = 0  # of x, where it contradicts A


def make(spec: Spec, rng: np.random.Generator) -> Vector:
    """The vector of a spec."""
    inputs, axes = _inputs(spec, rng)
    about = {
        "d_in": spec.d_in,
        "d_out": spec.d_out,
        "slots": [
            {"slot": i, "r": slot.r, "lora_alpha": slot.alpha, "use_rslora": slot.rslora, "bias": slot.bias}
            for i, slot in spec.slots.items()
        ],
    }
    bare = Vector(spec.name, "lora", spec.result, spec.comment, spec.bugs, inputs, axes, about=about)
    return bare if spec.result == "invalid" else Vector(**{**vars(bare), "outputs": {"y": _expected(bare)}})


def _inputs(spec: Spec, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    counts = [n for _, n in spec.requests]
    k = max(1, *(len(slots) for slots, _ in spec.requests)) if spec.requests else 1
    ids, weights = np.full((len(counts), k), -1, np.int32), np.zeros((len(counts), k), np.float32)
    for r, (slots, _) in enumerate(spec.requests):
        ids[r, : len(slots)] = slots
        weights[r, : len(slots)] = [spec.weights.get(slot, 1.0) for slot in slots]
    tokens = sum(counts)
    x = signed(rng, tokens, spec.x_width or spec.d_in)
    if spec.poison_base:
        x[np.repeat(ids[:, 0] == -1, counts)] = np.nan
    scales = np.zeros(max(spec.slots) + 1, np.float32)
    inputs = {
        "x": x,
        "y": signed(rng, tokens, spec.d_out),
        "adapter_ids": ids.repeat(counts, axis=0),
        "adapter_weights": weights.repeat(counts, axis=0),
        "query_starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "scales": scales,
    }
    axes: dict[str, tuple[str, ...]] = {
        "x": ("tokens", "d_in"),
        "y": ("tokens", "d_out"),
        "adapter_ids": ("tokens", "k"),
        "adapter_weights": ("tokens", "k"),
        "query_starts": ("starts",),
        "scales": ("slots",),
    }
    for i, slot in spec.slots.items():
        scales[i] = adapter_scale(slot.alpha, slot.r, slot.rslora)
        # Of the size of x and y together, so that neither drowns in the other.
        A = signed(rng, slot.r, spec.d_in, size=1 / np.sqrt(spec.d_in))
        B = signed(rng, spec.d_out, slot.b_rank or slot.r, size=1 / (np.sqrt(slot.r) * abs(scales[i])))
        bias = signed(rng, spec.d_out, size=0.5)
        parts = {"A": A, "B": B, "bias": bias} if slot.bias else {"A": A, "B": B}
        names = {"A": ("rank", "d_in"), "B": ("d_out", "rank"), "bias": ("d_out",)}
        for part, numbers in parts.items():
            inputs[f"{part}.{i}"] = np.full_like(numbers, np.nan) if slot.poison else numbers
            axes[f"{part}.{i}"] = names[part]
    return inputs, axes


def _expected(vector: Vector) -> Output:
    """The definition in float64; a bound for each number; and our honest runs."""
    truth = compute(vector, Precision("model", "float64"), lora_delta_per_token)
    bounds = {dtype: _bound(vector, dtype) for dtype in VECTOR_DTYPES}
    runs = {
        dtype: [compute(vector, p, order, ops) for p, ops in lora_roundings(dtype) for order in lora_orders()]
        for dtype in VECTOR_DTYPES
    }
    return Output(("tokens", "d_out"), truth, bounds, {t: noise(runs[t], truth, bounds[t]) for t in VECTOR_DTYPES})


def _bound(vector: Vector, dtype: str) -> Array:
    """[tokens, 1]: the widest of each row; 0 for a row without adapter, which has to be met bit for bit."""
    x, y, slots = vector.inputs["x"], vector.inputs["y"], {slot["slot"]: slot for slot in vector.about["slots"]}
    bound = np.zeros((len(y), 1), np.float32)
    for t, (ids, weights) in enumerate(
        zip(vector.inputs["adapter_ids"], vector.inputs["adapter_weights"], strict=True)
    ):
        terms = []
        for i, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            if i in slots:
                slot, bias = slots[i], vector.inputs.get(f"bias.{i}")
                scale = adapter_scale(slot["lora_alpha"], slot["r"], slot["use_rslora"])
                A, B = (vector.inputs[f"{part}.{i}"].astype(np.float64) for part in "AB")
                terms.append((A, B, None if bias is None else bias.astype(np.float64), scale, weight))
        if terms:
            bound[t] = lora_row(y[t].astype(np.float64), x[t].astype(np.float64), terms, dtype).max()
    return bound


def compute(vector: Vector, p: Precision, lora_delta: Any, ops: Ops = NUMPY) -> Array:
    """y after the step, in float64, whatever it was computed in; `ops` binds the adapters."""
    slots = adapter_slots(vector, p, ops.bind_adapter, ops.adapter_scale)
    y = vector.inputs["y"].astype(p.compute)
    ids = np.maximum(vector.inputs["adapter_ids"], -1)  # below -1 (an acceptable vector): nobody's, or refused
    weights = vector.inputs["adapter_weights"].astype(np.float64)
    lora_delta(y, vector.inputs["x"].astype(p.compute), MODULE, slots, LoraMapping.of(ids, weights), p)
    return y.astype(np.float64)


def adapter_slots(vector: Vector, p: Precision, bind: Any, scale: Any) -> AdapterSlots:
    """The adapters of the vector in their slots, bound as a model would bind them."""
    config = ModelConfig(
        vocab_size=3,
        hidden_size=vector.about["d_in"],
        intermediate_size=vector.about["d_out"],
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
    )
    # Of the model the slots need no more, as long as no adapter brings a layer of its own along.
    slots = AdapterSlots(cast(Model, SimpleNamespace(device="cpu", config=config)), p)
    for slot in vector.about["slots"]:
        i = slot["slot"]
        tensors = LoraTensors(vector.inputs[f"A.{i}"], vector.inputs[f"B.{i}"], vector.inputs.get(f"bias.{i}"))
        peft = PeftConfig(
            slot["r"], slot["lora_alpha"], slot["use_rslora"], target_modules=(MODULE[1],), lora_bias=slot["bias"]
        )
        slots.put(i, bind(Adapter(f"slot {i}", peft, {MODULE: tensors}), config, scale))
    return slots
