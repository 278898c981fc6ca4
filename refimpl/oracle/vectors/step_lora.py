"""Vectors of the LoRA product: y[t] += weight * scale * (B A x[t] + bias), an adapter per token.

The rules of refimpl/oracle/cases/testbed.py, for one layer: d_in is not d_out, alpha / r never 1, signed numbers, adapters
pairwise different, base rows between the others, and the last slot in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ...adapter import Adapter, LoraTensors, PeftConfig
from ...arrays import Array, Precision
from ...config import ModelConfig, Module
from ...lora import AdapterSlots, adapter_scale, lora_delta_per_token
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ...weights import Model
from .bounds import lora_row
from .draw import signed
from .units import lora_orders, lora_roundings, noise
from .vector import VECTOR_DTYPES, Output, Vector

SITE: Module = (0, "up_proj")  # the bank is one of a whole model; a module whose two widths are free


@dataclass(frozen=True)
class Slot:
    """One adapter: its rank, alpha, and whether it has rsLoRA and a bias."""

    r: int
    alpha: float
    rslora: bool = False
    bias: bool = False
    poison: bool = False  # all NaN: a slot that is never asked for
    b_rank: int = 0  # of B, where it contradicts A


@dataclass(frozen=True)
class Spec:
    """One vector, before its numbers are drawn. requests: (slots it asks for, tokens); () is the base."""

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


MIXED = {0: Slot(3, 7.0), 1: Slot(1, 2.5), 2: Slot(8, 12.0), 3: Slot(5, -4.0)}

SPECS = (
    Spec(
        "mixed_ranks",
        "four ranks in one batch, ragged runs of tokens, base rows between them, the last slot in use",
        ("scale", "identity", "none", "last_slot", "layout", "rank"),
        MIXED,
        [((2,), 5), ((), 3), ((0,), 1), ((3,), 7), ((), 1), ((1,), 2), ((2,), 4)],
    ),
    Spec("one_token", "decode of one request, in the last slot", ("last_slot", "scale"), MIXED, [((3,), 1)]),
    Spec("rank_1", "the smallest rank, for several tokens", ("rank", "scale"), {0: Slot(1, 3.0)}, [((0,), 6)]),
    Spec(
        "decode",
        "one token of each of nine requests, adapters in no order, one of them twice",
        ("identity", "none", "last_slot"),
        MIXED,
        [((a,), 1) if a >= 0 else ((), 1) for a in (3, 0, -1, 2, 1, 3, -1, 0, 2)],
    ),
    Spec(
        "identical",
        "one adapter for all of 37 tokens: two tiles of 16 and a rest",
        ("length", "scale"),
        {0: Slot(6, 15.0)},
        [((0,), 37)],
        d_in=24,
        d_out=20,
    ),
    Spec("all_base", "nobody has an adapter: y must not change by one bit", ("none",), MIXED, [((), 4), ((), 2)]),
    Spec(
        "rslora",
        "alpha / sqrt(r) for slot 1 alone; both have the same rank and alpha",
        ("rslora",),
        {0: Slot(9, 6.0), 1: Slot(9, 6.0, rslora=True)},
        [((1,), 3), ((), 1), ((0,), 3)],
    ),
    Spec(
        "folded",
        "alpha equals r: the scale is in B already, as TensorRT-LLM keeps its adapters",
        ("identity",),
        {0: Slot(4, 4.0), 1: Slot(3, 3.0)},
        [((1,), 2), ((0,), 3), ((), 2)],
    ),
    Spec(
        "holes",
        "slots 1, 4 and 6 are filled, the others empty; ids are slots, not places in a list",
        ("identity", "last_slot"),
        {1: Slot(2, 5.0), 4: Slot(7, 4.0), 6: Slot(3, 1.0)},
        [((6,), 2), ((1,), 2), ((), 1), ((4,), 3)],
    ),
    Spec(
        "summed",
        "requests that sum two adapters with weights of their own, beside one that has one, and the base",
        ("weights", "identity"),
        MIXED,
        [((0, 2), 3), ((3,), 2), ((), 2), ((2, 1), 3)],
        weights={0: 0.5, 2: -1.25, 1: 2.0},
    ),
    Spec(
        "bias",
        "a bias of lora_B, scaled like the rest; slot 1 has none",
        ("bias_scale",),
        {0: Slot(4, 10.0, bias=True), 1: Slot(3, 2.0)},
        [((0,), 3), ((1,), 2), ((), 1)],
    ),
    Spec(
        "long_input",
        "a sum of 1031 products, a prime: the tail of a tile must not be lost",
        ("length", "layout"),
        {0: Slot(3, 5.0), 1: Slot(2, 5.0)},
        [((0,), 1), ((1,), 2), ((), 1)],
        d_in=1031,
        d_out=17,
    ),
    Spec(
        "wide_output",
        "517 outputs, a prime times 11: the same on the other side",
        ("length", "layout"),
        {0: Slot(3, 5.0), 1: Slot(2, 5.0)},
        [((1,), 2), ((0,), 1), ((), 1)],
        d_in=19,
        d_out=517,
    ),
    Spec(
        "high_ranks",
        "ranks 67 and 129 beside rank 2: above every usual limit, and no power of two",
        ("rank", "layout"),
        {0: Slot(67, 90.0), 1: Slot(2, 3.0), 2: Slot(129, 40.0)},
        [((2,), 2), ((), 1), ((0,), 2), ((1,), 1)],
        d_in=22,
        d_out=18,
    ),
    Spec(
        "rank_8",
        "rank 8 in a bank whose largest rank is 16: where a buffer was laid out for the largest",
        ("rank",),
        {0: Slot(16, 20.0), 1: Slot(8, 20.0)},
        [((1,), 3), ((0,), 2)],
    ),
    Spec(
        "square",
        "d_in equals d_out: a transposed matrix has the right shape here, and the wrong numbers",
        ("layout",),
        {0: Slot(5, 8.0), 1: Slot(4, 6.0)},
        [((0,), 3), ((), 1), ((1,), 2)],
        d_in=24,
        d_out=24,
    ),
    Spec(
        "poisoned_rows",
        "x of the base rows is NaN, as padding is: 0 times NaN is not 0, and y there must not change by one bit",
        ("poison", "none"),
        MIXED,
        [((), 2), ((1,), 3), ((), 1), ((3,), 2)],
        poison_base=True,
    ),
    Spec(
        "poisoned_slot",
        "a slot that nobody asks for holds NaN, as memory does that was never filled",
        ("poison",),
        {0: Slot(3, 7.0), 1: Slot(4, 3.0, poison=True), 2: Slot(5, 9.0)},
        [((2,), 3), ((), 1), ((0,), 3)],
    ),
    Spec(
        "id_too_large", "id 4 in a bank with slots 0 to 3", ("range",), MIXED, [((2,), 2), ((4,), 2)], result="invalid"
    ),
    Spec(
        "id_of_an_empty_slot",
        "slot 2 was never filled: whatever lies there is not this request's adapter",
        ("range",),
        {0: Slot(3, 7.0), 1: Slot(2, 3.0), 3: Slot(4, 2.0)},
        [((2,), 2), ((3,), 1)],
        result="invalid",
    ),
    Spec(
        "rank_mismatch",
        "A of slot 1 has rank 4, B has rank 3",
        ("layout",),
        {0: Slot(3, 7.0), 1: Slot(4, 3.0, b_rank=3)},
        [((1,), 2)],
        result="invalid",
    ),
    Spec("width_mismatch", "x has 39 columns, A has 40", ("layout",), MIXED, [((1,), 2)], result="invalid", x_width=39),
    Spec(
        "id_below_none",
        "id -2: it may be refused, or be nobody's; counted from the end it is another tenant's adapter",
        ("range",),
        MIXED,
        [((3,), 2), ((-2,), 2), ((), 1)],
        result="acceptable",
    ),
)


def make(spec: Spec, rng: np.random.Generator) -> Vector:
    """The vector of a spec."""
    inputs, axes = _inputs(spec, rng)
    about = {
        "d_in": spec.d_in,
        "d_out": spec.d_out,
        "slots": [
            {"slot": i, "r": s.r, "lora_alpha": s.alpha, "use_rslora": s.rslora, "bias": s.bias}
            for i, s in spec.slots.items()
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
    for i, s in spec.slots.items():
        scales[i] = adapter_scale(s.alpha, s.r, s.rslora)
        # Of the size of x and y together, so that neither drowns in the other.
        A = signed(rng, s.r, spec.d_in, size=1 / np.sqrt(spec.d_in))
        B = signed(rng, spec.d_out, s.b_rank or s.r, size=1 / (np.sqrt(s.r) * abs(scales[i])))
        bias = signed(rng, spec.d_out, size=0.5)
        parts = {"A": A, "B": B, "bias": bias} if s.bias else {"A": A, "B": B}
        names = {"A": ("rank", "d_in"), "B": ("d_out", "rank"), "bias": ("d_out",)}
        for part, numbers in parts.items():
            inputs[f"{part}.{i}"] = np.full_like(numbers, np.nan) if s.poison else numbers
            axes[f"{part}.{i}"] = names[part]
    return inputs, axes


def _expected(v: Vector) -> Output:
    """The definition in float64; a bound for each number; and our honest runs."""
    truth = compute(v, Precision("model", "float64"), lora_delta_per_token)
    bounds = {dtype: _bound(v, dtype) for dtype in VECTOR_DTYPES}
    runs = {
        dtype: [compute(v, p, order, ops) for p, ops in lora_roundings(dtype) for order in lora_orders()]
        for dtype in VECTOR_DTYPES
    }
    return Output(("tokens", "d_out"), truth, bounds, {t: noise(runs[t], truth, bounds[t]) for t in VECTOR_DTYPES})


def _bound(v: Vector, dtype: str) -> Array:
    """[tokens, 1]: the widest of each row; 0 for a row without adapter, which has to be met bit for bit."""
    x, y, slots = v.inputs["x"], v.inputs["y"], {s["slot"]: s for s in v.about["slots"]}
    bound = np.zeros((len(y), 1), np.float32)
    for t, (ids, weights) in enumerate(zip(v.inputs["adapter_ids"], v.inputs["adapter_weights"], strict=True)):
        asked = []
        for i, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            if i in slots:
                s, bias = slots[i], v.inputs.get(f"bias.{i}")
                scale = adapter_scale(s["lora_alpha"], s["r"], s["use_rslora"])
                A, B = (v.inputs[f"{part}.{i}"].astype(np.float64) for part in "AB")
                asked.append((A, B, None if bias is None else bias.astype(np.float64), scale, weight))
        if asked:
            bound[t] = lora_row(y[t].astype(np.float64), x[t].astype(np.float64), asked, dtype).max()
    return bound


def compute(v: Vector, p: Precision, lora_delta: Any, ops: Ops = NUMPY) -> Array:
    """y after the step, in float64, whatever it was computed in; `ops` binds the adapters."""
    held = bank(v, p, ops.bind_adapter, ops.adapter_scale)
    y = v.inputs["y"].astype(p.compute)
    ids = np.maximum(v.inputs["adapter_ids"], -1)  # below -1 (an acceptable vector): nobody's, or refused
    weights = v.inputs["adapter_weights"].astype(np.float64)
    lora_delta(y, v.inputs["x"].astype(p.compute), SITE, held, LoraMapping.of(ids, weights), p)
    return y.astype(np.float64)


def bank(v: Vector, p: Precision, bind: Any, scale: Any) -> AdapterSlots:
    """The adapters of the vector in their slots, bound as a model would bind them."""
    config = ModelConfig(
        vocab_size=3,
        hidden_size=v.about["d_in"],
        intermediate_size=v.about["d_out"],
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
    )
    # Of the model a bank needs no more, as long as no adapter brings a layer of its own along.
    held = AdapterSlots(cast(Model, SimpleNamespace(device="cpu", config=config)), p)
    for s in v.about["slots"]:
        i = s["slot"]
        tensors = LoraTensors(v.inputs[f"A.{i}"], v.inputs[f"B.{i}"], v.inputs.get(f"bias.{i}"))
        peft = PeftConfig(s["r"], s["lora_alpha"], s["use_rslora"], target_modules=(SITE[1],), lora_bias=s["bias"])
        held.put(i, bind(Adapter(f"slot {i}", peft, {SITE: tensors}), config, scale))
    return held
