"""TensorRT-LLM's prescaled B and the two GEMM paths: rounded exactly as written, and different only in one sum's order.

Inputs of small integers have exact sums, so that no order of summation shows and every bit is a rounding's. Where the
order is the subject, the sums are made to depend on it. Elsewhere the bound is computed from the numbers themselves.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import random_model
from support.compare import assert_differ, assert_same_bits
from support.plans import mapping

from refimpl import NUMPY, REFERENCE, Ops, Precision
from refimpl.adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from refimpl.arrays import rounded
from refimpl.config import ModelConfig
from refimpl.lora import shrink
from refimpl.tensorrt_llm.arithmetic import AS_BATCHED, GROUPED, UNIFIED, is_unified, slice_edges, split_k_shrink
from refimpl.tensorrt_llm.backend import prescaled
from refimpl.tensorrt_llm.prescale import prescale

HALF = ("bfloat16", "float16")
SCALAR = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPS = 2.0**-24  # half an ulp of 1 in float32

every_half = pytest.mark.parametrize("dtype", HALF)
every_path = pytest.mark.parametrize("ops", [REFERENCE, NUMPY, UNIFIED, GROUPED, AS_BATCHED])

WIDE = 1088  # 17 tiles of 64: one tile in each slice, and two in the last
CONFIG = ModelConfig(23, WIDE, 7, 1, 2, 1, 4, max_position_embeddings=64)
MODEL = random_model(CONFIG, 0, "float32")
Q = (0, "q_proj")


def slots_of(p: Precision, adapters: dict[int, dict[str, LoraWeights]]) -> AdapterSlots:
    slots = AdapterSlots(MODEL, p)
    for slot, modules in adapters.items():
        slots.put(slot, BoundAdapter({(0, module): w for module, w in modules.items()}, {}, {}))
    return slots


def integers(rng: np.random.Generator, *shape: int, bits: int = 5) -> np.ndarray:
    """Over 8: sums of a thousand products of two of them fit into a float32."""
    return (rng.integers(-(2**bits) + 1, 2**bits, shape) / 8).astype(np.float32)


def in_T(dtype: str, value: float) -> float:
    """One number rounded to the half type: by its scalar, not by our `rounded`."""
    return float(SCALAR[dtype](np.float32(value)))


def as_written(y: np.ndarray, x: np.ndarray, w: LoraWeights, dtype: str, order: str) -> tuple[np.ndarray, np.ndarray]:
    """y[t] = T(y[t] + T(T(x A^T) B'^T)), one number after the other: the least and the largest that it can be. The
    first sum is exact. Where the second is not, it is taken in float64 here and in float32, in any order, there: now
    and then they fall to two sides of an edge between two neighbours of the type."""
    least, most, B = y.copy(), y.copy(), prescale(w.B, w.scale, dtype, order)
    for t in range(len(x)):
        low = [in_T(dtype, sum(float(a) * float(v) for a, v in zip(row, x[t], strict=True))) for row in w.A]
        for o in range(len(w.B)):
            terms = [float(B[o, j]) * low[j] for j in range(len(low))]
            off = 0 if is_exact(terms) else len(terms) * EPS * sum(map(abs, terms))
            least[t, o] = in_T(dtype, float(y[t, o]) + in_T(dtype, sum(terms) - off))
            most[t, o] = in_T(dtype, float(y[t, o]) + in_T(dtype, sum(terms) + off))
    return least, most


def is_exact(terms: list[float]) -> bool:
    """No order of this sum rounds in float32: all terms are multiples of one power of two, and not too many of them."""
    ratios = [t.as_integer_ratio() for t in terms if t]
    return not ratios or sum(map(abs, terms)) <= 2**24 * min((n & -n) / d for n, d in ratios)


@every_path
@every_half
@pytest.mark.parametrize("order", ["manager", "convert"])
@settings(max_examples=6)
@given(seed=st.integers(0, 9999), r=st.integers(1, 5), alpha=st.sampled_from([7.0, -5.0, 16.0]))
def test_each_number_is_rounded_where_the_formula_says(
    ops: Ops, dtype: str, order: str, seed: int, r: int, alpha: float
) -> None:
    rng, p = np.random.default_rng(seed), Precision("model", dtype)
    w = LoraWeights(integers(rng, r, WIDE), integers(rng, 8, r, bits=3), alpha / r)
    x, y = integers(rng, 3, WIDE), rounded(64 * integers(rng, 3, 8), dtype)
    least, most = as_written(y, x, w, dtype, order)
    ops.lora_delta(y, x, Q, slots_of(p, {0: {"q_proj": prescaled(w, dtype, order)}}), mapping(np.zeros(3, np.int32)), p)
    assert ((least <= y) & (y <= most)).all()
    assert (least == most).mean() > 0.9


@every_half
def test_a_scale_in_B_is_not_one_in_the_delta(dtype: str) -> None:
    """Else the test above could not tell the presets apart from that of a model that scales at run time."""
    rng, ids = np.random.default_rng(0), np.zeros((40, 1), np.int32)
    w = LoraWeights(integers(rng, 3, WIDE), integers(rng, 8, 3), 7 / 3)
    x, found = integers(rng, 40, WIDE), {}
    p = Precision("model", dtype)
    for name, bound in (("plain", w), ("prescaled", prescaled(w, dtype, "manager"))):
        found[name] = np.zeros((40, 8), np.float32)
        NUMPY.lora_delta(found[name], x, Q, slots_of(p, {0: {"q_proj": bound}}), mapping(ids), p)
    assert (found["plain"] != found["prescaled"]).mean() > 0.2
    assert not np.isinf(found["plain"]).any()


def test_what_the_adapter_slots_hold() -> None:
    """The scale is 1, B' is of the type, a bias of lora_B is scaled like B, and A is as without the folding."""
    rng = np.random.default_rng(0)
    w = LoraWeights(rng.standard_normal((3, WIDE)), rng.standard_normal((8, 3)), 7 / 3, rng.standard_normal(8))
    for dtype in HALF:
        p = Precision("model", dtype)
        held = slots_of(p, {0: {"q_proj": prescaled(w, dtype, "manager")}}).at(Q)[0]
        plain = slots_of(p, {0: {"q_proj": w}}).at(Q)[0]
        assert held.scale == 1.0 and plain.scale == w.scale
        assert_same_bits(held.A, plain.A)
        assert_same_bits(held.B, prescale(w.B, w.scale, dtype, "manager").astype(np.float32))
        assert_same_bits(held.bias, prescale(w.bias, w.scale, dtype, "manager").astype(np.float32))
        assert not held.B.flags.writeable


@given(seed=st.integers(0, 9999), dtype=st.sampled_from(HALF))
def test_summed_adapters_are_still_weighted_at_run_time(seed: int, dtype: str) -> None:
    """Two adapters on one row: each delta is rounded with its weight, and each is added to what is there."""
    rng, p = np.random.default_rng(seed), Precision("model", dtype)
    pair = [LoraWeights(integers(rng, r, 16), integers(rng, 8, r, bits=3), 7 / r) for r in (3, 5)]
    x, y = integers(rng, 2, 16), rounded(64 * integers(rng, 2, 8), dtype)
    expected = y.copy()
    for w, weight in zip(pair, (0.75, -0.5), strict=True):
        low = rounded(x @ w.A.T, dtype)
        delta = low @ prescale(w.B, w.scale, dtype, "manager").astype(np.float32).T
        expected = rounded(expected + rounded(delta * np.float32(weight), dtype), dtype)
    slots = slots_of(p, {slot: {"q_proj": prescaled(w, dtype, "manager")} for slot, w in enumerate(pair)})
    NUMPY.lora_delta(y, x, Q, slots, mapping(np.array([[0, 1]] * 2, np.int32), np.array([[0.75, -0.5]] * 2)), p)
    assert_same_bits(y, expected)


@pytest.mark.parametrize(
    ("d_in", "size"), [(64, 0), (960, 0), (1023, 0), (1024, 64), (1088, 64), (2047, 64), (2048, 128), (4096, 256)]
)
def test_the_slices_of_the_kernel(d_in: int, size: int) -> None:
    """Sixteen of whole tiles, the rest in the last one: worked out by hand from splitk_gemm_grouped.h."""
    edges = slice_edges(d_in)
    assert edges == [size * k for k in range(16)] + [d_in]
    assert edges[16] - edges[15] >= size


@given(seed=st.integers(0, 9999))
def test_the_slices_are_added_in_order(seed: int) -> None:
    """One number in each slice, with all the digits that it can have: each addition rounds, and the order shows."""
    parts = np.random.default_rng(seed).standard_normal(16).astype(np.float32)
    x, A, total = np.zeros((1, WIDE), np.float32), np.ones((1, WIDE), np.float32), np.float32(0)
    for k, part in enumerate(parts):
        x[0, 64 * k + (7 * k) % 64] = part
        total = np.float32(total + part)
    assert_same_bits(split_k_shrink(x, A), np.array([[total]]))


def test_the_order_of_the_slices_can_be_seen() -> None:
    """2^25, then 1, then -2^25: the 1 is lost on the way."""
    x, A = np.zeros((1, WIDE), np.float32), np.ones((1, WIDE), np.float32)
    x[0, [0, 64, 128]] = [2.0**25, 1, -(2.0**25)]
    assert split_k_shrink(x, A) == 0
    assert split_k_shrink(np.ascontiguousarray(x[:, np.r_[0:64, 128:192, 64:128, 192:WIDE]]), A) == 1


@every_half
@settings(max_examples=15)
@given(seed=st.integers(0, 9999), d_in=st.sampled_from([1024, 1088, 2048]))
def test_the_paths_differ_by_the_order_of_one_sum(dtype: str, seed: int, d_in: int) -> None:
    """Any two orders of a float32 sum of K products are within 2 K eps / (1 - K eps) of sum |x||a| of each other
    (Higham 2002, section 3.1); and after the rounding to T, by an ulp of T more where that fell between them."""
    rng = np.random.default_rng(seed)
    x, A = (rounded(rng.standard_normal((n, d_in)).astype(np.float32), dtype) for n in (5, 8))
    one, split = shrink(x, A), split_k_shrink(x, A)
    bound = 2 * d_in * EPS / (1 - d_in * EPS) * (np.abs(x) @ np.abs(A).T).astype(np.float64)
    assert (np.abs(one.astype(np.float64) - split) <= bound).all()
    assert (one != split).any(), "the order of the sum makes no difference here, so nothing was compared"
    narrow = [rounded(low, dtype).astype(np.float64) for low in (one, split)]
    digits = 7 if dtype == "bfloat16" else 10
    ulp = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(narrow[0]), np.abs(narrow[1])))) - digits)
    assert (np.abs(narrow[0] - narrow[1]) <= bound + ulp).all()
    assert (narrow[0] == narrow[1]).mean() > 0.9


@given(seed=st.integers(0, 9999), d_in=st.sampled_from([8, 512, 1016]))
def test_a_short_sum_is_not_split(seed: int, d_in: int) -> None:
    """Below K = 1024 the two paths are one."""
    rng = np.random.default_rng(seed)
    x, A = rng.standard_normal((9, d_in)).astype(np.float32), rng.standard_normal((3, d_in)).astype(np.float32)
    assert_same_bits(split_k_shrink(x, A), shrink(x, A))


plans = st.lists(st.integers(-1, 2), min_size=1, max_size=6)


@settings(max_examples=100)
@given(ids=plans, named=st.lists(st.sets(st.sampled_from(["q_proj", "k_proj", "up_proj"])), min_size=3, max_size=3))
def test_a_batch_takes_the_unified_path_if_all_its_tokens_ask_for_the_same(ids: list, named: list[set[str]]) -> None:
    """Written out as the engine does it: per module, the addresses and the rank of each row against those of row 0."""
    p = Precision("model", "float16")
    shapes = {"q_proj": (8, WIDE), "k_proj": (4, WIDE), "up_proj": (7, WIDE)}
    adapters = {
        slot: {m: LoraWeights(np.ones((2, WIDE)), np.ones((shapes[m][0], 2)), 1.0) for m in modules}
        for slot, modules in enumerate(named)
    }
    slots = slots_of(p, adapters)
    column = np.array(ids, np.int32)[:, None]
    for module, call in ((Q, "qkv"), ((0, "up_proj"), "gate up"), ((0, "o_proj"), "o")):
        rows = []
        for slot in ids:
            held = adapters.get(slot, {})
            mine = [m for m in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj") if m[0] in call]
            rows.append([(id(held[m].A), id(held[m].B), len(held[m].A)) if m in held else (0, 0, 0) for m in mine])
        assert is_unified(slots, module, column) == all(row == rows[0] for row in rows), module


def test_as_batched_is_one_or_the_other() -> None:
    """The same request, alone and beside one of the base: its numbers are those of the path that the batch took."""
    rng, p = np.random.default_rng(3), Precision("model", "float32")  # no rounding hides the order
    w = LoraWeights(rng.standard_normal((8, WIDE)), rng.standard_normal((8, 8)), 2.0)
    slots, x = slots_of(p, {0: {"q_proj": w}}), rng.standard_normal((4, WIDE)).astype(np.float32)

    def run(ops: Ops, ids: list[int]) -> np.ndarray:
        y = np.zeros((4, 8), np.float32)
        ops.lora_delta(y, x, Q, slots, mapping(np.array(ids, np.int32)), p)
        return y

    assert_same_bits(run(AS_BATCHED, [0] * 4), run(UNIFIED, [0] * 4))
    assert_same_bits(run(AS_BATCHED, [0, 0, 0, -1]), run(GROUPED, [0, 0, 0, -1]))
    assert_differ(run(UNIFIED, [0] * 4), run(GROUPED, [0] * 4), 1e-9)
    assert not run(AS_BATCHED, [0, 0, 0, -1])[3].any()
