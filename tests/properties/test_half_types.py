"""bfloat16 and float16: every table rounds the same things at the same points.

How two tables are compared here. Where every sum is exact, no order of summation can show, so the results must have the
same bits: inputs are small integers times powers of two, and products of them fit into float32 many times over, while
what is rounded does not fit into a half type. Softmax has no exact sums; there the bound is what one unit in the last
place of every probability can do. Through a whole model a rounding may fall to the other side now and then; then two
tables must be nearer to each other than both are to the model that does not round at all.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import EVERYWHERE, Case, cases, configs, random_adapter, random_model
from support.compare import assert_differ, assert_same_bits
from support.plans import mapping, metadata, writing
from support.tables import every_table

from refimpl import NUMPY, REFERENCE, Model, Ops, Precision, Request, logits, trace
from refimpl.adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from refimpl.arrays import DTYPES, rounded
from refimpl.config import ModelConfig, Moe, Rope, View

HALF = ("bfloat16", "float16")
POINTS = [f.name for f in fields(Precision)[3:]]
every_half = pytest.mark.parametrize("dtype", HALF)


def exact(rng: np.random.Generator, *shape: int, bits: int = 5) -> np.ndarray:
    """Signed integers of `bits` bits, over 8: any sum of some hundred products of two of them is exact in float32."""
    return (rng.integers(-(2**bits) + 1, 2**bits, shape) / 8).astype(np.float32)


def exact_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """The same with sizes of 1 to 64 across the last axis, so that one scale does not fit all."""
    return exact(rng, *shape) * (2.0 ** rng.integers(0, 3, shape[-1:])).astype(np.float32)


def check_exact_sums_give_the_same_bits(ops: Ops, dtype: str, seed: int) -> None:
    """Every numeric step of the table but attention, against the definition, over inputs whose sums are exact."""
    rng, p = np.random.default_rng(seed), Precision("model", dtype)
    tokens, d_in, d_out = (int(rng.integers(1, 9)), int(rng.choice([5, 16, 31])), int(rng.choice([3, 14, 33])))
    x, weight, bias = exact_rows(rng, tokens, d_in), exact(rng, d_out, d_in), exact(rng, d_out)
    ids = rng.integers(0, d_out, tokens).astype(np.int32)
    pairs = [
        (
            t.linear(x, weight, None, p),
            t.linear(x, weight.astype(DTYPES[dtype]), bias, p),
            t.embed(weight, ids, p),
            t.rms_norm(x, x[0], 1e-05, p),
            t.mlp_activation(x, x[::-1], "silu", p),
            written(t, rng_of(seed), p),
            turned(t, rng_of(seed), p),
            *adapted(t, rng_of(seed), p),
        )
        for t in (ops, REFERENCE)
    ]
    for got, expected in zip(*pairs, strict=True):
        assert_same_bits(got, expected)
        assert_same_bits(got, rounded(got, dtype))


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 1])


def adapted(ops: Ops, rng: np.random.Generator, p: Precision) -> tuple[np.ndarray, np.ndarray]:
    """lora_delta of a linear layer and of the embedding; y, A and B are already of the half type."""
    config = ModelConfig(23, 10, 7, 1, 2, 1, 4)
    model = random_model(config)
    slots = AdapterSlots(model, p)
    for slot, r in enumerate((3, 5, 1)):
        q = LoraWeights(exact(rng, r, 10), exact(rng, 8, r, bits=3), 7 / r**0.5, exact(rng, 8) if r == 3 else None)
        embed = LoraWeights(exact(rng, r, 23), exact(rng, 10, r), -5 / r)
        slots.put(slot, BoundAdapter({(0, "q_proj"): q, (-1, "embed_tokens"): embed}, {}, {}))
    ids = np.array([[2, -1], [0, 1], [-1, -1], [1, 0], [0, -1]], np.int32)
    weights = np.array([[1, 0], [0.75, -0.5], [0, 0], [1, 1], [1 / 3, 0]])
    y, e = exact_rows(rng, 5, 8), exact_rows(rng, 5, 10)
    ops.lora_delta(y, exact(rng, 5, 10), (0, "q_proj"), slots, mapping(ids, weights), p)
    ops.lora_delta(e, rng.integers(0, 23, 5).astype(np.int32), (-1, "embed_tokens"), slots, mapping(ids, weights), p)
    return y, e


def turned(ops: Ops, rng: np.random.Generator, p: Precision) -> np.ndarray:
    cos, sin = ops.rope_table(Rope(500.0), 4, np.array([0, 3, 700], np.int32), np.array([1, 4, 701], np.int32), p)
    return ops.rope(exact_rows(rng, 3, 2, 4), cos, sin, False, p)


def written(ops: Ops, rng: np.random.Generator, p: Precision) -> np.ndarray:
    k, v = np.zeros((3, 2, 2, 4), np.float32), np.zeros((3, 2, 2, 4), np.float32)
    new_k, new_v = (rng.standard_normal((3, 2, 4)).astype(np.float32) for _ in range(2))
    ops.write_kv(k, v, new_k, new_v, writing(np.array([5, 0, 3], np.int32), k), p)
    return np.stack([k, v])


def check_attention_is_within_a_unit_of_each_probability(ops: Ops, dtype: str, seed: int, window: int | None) -> None:
    """If every probability were off by one unit in its last place, and then the result too."""
    rng, p = np.random.default_rng(seed), Precision("model", dtype)
    k, v = (rounded(rng.standard_normal((9, 3, 2, 4)).astype(np.float32), dtype) for _ in range(2))
    q = rounded(rng.standard_normal((8, 6, 4)).astype(np.float32), dtype)
    tables = rng.permutation(9).astype(np.int32).reshape(3, 3)
    starts, contexts = np.array([0, 1, 3, 8], np.int32), np.array([9, 4, 5], np.int32)
    plan = metadata(starts, contexts, tables, k)
    got, expected = (backend.attention(q, k, v, plan, View(window), p) for backend in (ops, REFERENCE))
    unit = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert (np.abs(got - expected) <= unit * (np.abs(v).max() + np.abs(expected))).all()
    assert np.mean(got != expected) < 0.05, "a rounding that falls to the other side is rare"
    assert_same_bits(got, rounded(got, dtype))


def check_the_whole_model_rounds_the_same(ops: Ops, case: Case, dtype: str) -> None:
    model, _, requests = case
    p, wide = Precision("model", dtype), Precision("model", "float32")
    got, defined, unrounded = (
        np.concatenate(logits(model, requests, t, q)).ravel() for t, q in ((ops, p), (REFERENCE, p), (REFERENCE, wide))
    )
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert_same_bits(got, rounded(got, dtype))
    assert_differ(defined, unrounded, 1e-5)
    assert rms(got - defined) <= 0.5 * rms(defined - unrounded)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


def rich_case(moe: Moe | None = None) -> Case:
    """A model and a batch in which every rounding point is passed, those of experts if it has some."""
    config = ModelConfig(23, 10, 13, 2, 4, 2, 6, rope=Rope(50.0), attention_bias=True, residual_multiplier=0.7, moe=moe)
    everywhere = random_adapter(config, 1, r=5, alpha=8.0, modules=EVERYWHERE, lora_bias=True)
    half = random_adapter(config, 2, r=3, alpha=7.0, use_rslora=True)
    requests = [
        Request([3, 5, 7, 11, 2, 9, 4, 22, 13, 1, 0, 8, 8, 17], everywhere),
        Request([1, 2, 3], half),
        Request([6, 6, 1, 9], [(half, 0.75), (everywhere, -0.5)]),
        Request([8, 3, 12]),
    ]
    return Case(random_model(config), [everywhere, half], requests)


def check_every_point_is_applied(ops: Ops, point: str) -> None:
    """One point rounded in a model that rounds nowhere else changes what comes out; and the float16 it is rounded to
    is not the bfloat16."""
    model, _, requests = rich_case(Moe(3, 2, 7) if point in ("router", "router_weights", "expert_sum") else None)
    plain = Precision("model", "float32")
    rows = [
        np.concatenate(logits(model, requests, ops, q))
        for q in (plain, replace(plain, **{point: "float16"}), replace(plain, **{point: "bfloat16"}))
    ]
    assert_differ(rows[1], rows[0], 1e-6)
    assert_differ(rows[2], rows[0], 1e-5)
    assert_differ(rows[2], rows[1], 1e-5)


def check_what_is_traced_is_representable(ops: Ops, dtype: str) -> None:
    model, _, requests = rich_case()
    with trace("*.output", "*.attention", "*.mlp", "*.base", "logits") as seen:
        logits(model, requests, ops, Precision("model", dtype))
    assert len(seen) == 2 * (3 + 7) + 3
    for x in seen.values():
        assert_same_bits(x, rounded(x, dtype))


def check_stored_halves_are_those_numbers(ops: Ops, config: ModelConfig, seed: int) -> None:
    """A checkpoint in bfloat16 computes what its numbers compute when they are stored as float32."""
    stored = random_model(config, seed, "bfloat16")
    wide = as_stored(stored, np.float32)
    prompt = [Request([1, 2, 3, 4, 5])]
    p = Precision("model", "bfloat16")
    assert_same_bits(logits(stored, prompt, ops, p)[0], logits(wide, prompt, ops, p)[0])


@every_table
@every_half
@settings(max_examples=60)
@given(seed=st.integers(0, 9999))
def test_where_sums_are_exact_the_bits_are_the_same(ops: Ops, dtype: str, seed: int) -> None:
    check_exact_sums_give_the_same_bits(ops, dtype, seed)


@every_table
@every_half
@settings(max_examples=30)
@given(seed=st.integers(0, 9999), window=st.sampled_from([None, 1, 4]))
def test_attention_is_within_a_unit_of_each_probability(ops: Ops, dtype: str, seed: int, window: int | None) -> None:
    check_attention_is_within_a_unit_of_each_probability(ops, dtype, seed, window)


@every_half
@settings(max_examples=40)
@given(case=cases())
def test_the_whole_model_rounds_the_same(dtype: str, case: Case) -> None:
    check_the_whole_model_rounds_the_same(NUMPY, case, dtype)


@every_table
@pytest.mark.parametrize("point", POINTS)
def test_every_rounding_point_is_applied(ops: Ops, point: str) -> None:
    check_every_point_is_applied(ops, point)


@every_table
@every_half
def test_what_is_traced_is_representable(ops: Ops, dtype: str) -> None:
    check_what_is_traced_is_representable(ops, dtype)


@every_table
@settings(max_examples=15)
@given(config=configs(), seed=st.integers(0, 99))
def test_weights_stored_in_a_half_type_are_those_weights(ops: Ops, config: ModelConfig, seed: int) -> None:
    check_stored_halves_are_those_numbers(ops, config, seed)


def as_stored(model: Model, dtype: type) -> Model:
    """The same numbers, in arrays of another type."""

    def wide(x: object) -> object:
        if isinstance(x, np.ndarray):
            return x.astype(dtype)
        if isinstance(x, dict):
            return {name: wide(part) for name, part in x.items()}
        return replace(x, **{f.name: wide(getattr(x, f.name)) for f in fields(x)}) if x is not None else None

    return replace(
        model,
        embed_tokens=wide(model.embed_tokens),
        layers=tuple(wide(layer) for layer in model.layers),
        norm=wide(model.norm),
        lm_head=wide(model.lm_head),
        dtype="float32",
    )
