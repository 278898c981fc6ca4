"""lora.cu and lora_tensor_cores.cu against the definition in float64, with a bound computed from the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cases import NAN, assert_near, every_dtype, misplaced, needs_cpu, numbers, orders, rounded_if, scheduled
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.plans import mapping

from refimpl.adapter_slots import LoraWeights
from refimpl.cuda import launch
from refimpl.cuda.launch import LoraLaunch, PackedLora, stored, widened
from refimpl.dora import Dora
from refimpl.errors import LoracleError
from refimpl.oracle.vectors.bounds import Near, exact, product

pytestmark = needs_cpu

RANKS = (1, 3, 5, 8, 17, 64, 200)
PAIRS = (
    ("lora_shrink_v1", "lora_expand_v1"),
    ("bgmv_shrink_v2", "bgmv_expand_v2"),
    ("sgmv_shrink_v2", "sgmv_expand_v2"),
    ("sgmv_shrink_v3", "sgmv_expand_v3"),
    ("sgmv_shrink_v3", "sgmv_expand_v2"),
    ("bgmv_shrink_v2", "sgmv_expand_v2"),
)
PATTERNS = ("none", "one", "distinct", "runs", "any")


@dataclass(frozen=True)
class Case:
    """One launch: numbers as float32, exact in the type."""

    y: np.ndarray
    x: np.ndarray
    slices: Sequence[Mapping[int, LoraWeights]]
    d_outs: Sequence[int]
    slots: int
    adapter_ids: np.ndarray
    adapter_weights: np.ndarray
    splits: int
    round_rank: bool
    round_delta: bool
    spread: int = 9
    shift: int = 0  # x and the weights begin so many numbers after a multiple of 16 bytes


def make_case(
    rng: np.random.Generator,
    dtype: str,
    d_in: int,
    d_outs: Sequence[int],
    ranks: Sequence[int],
    tokens: int,
    pattern: str,
    splits: int = 1,
    round_rank: bool = False,
    round_delta: bool = False,
    spread: int = 9,
    shift: int = 0,
) -> Case:
    """Random weights; the first slice has all of the adapters, the others may lack some; some have a bias, or DoRA."""
    slices = [
        {
            a: LoraWeights(
                numbers(rng, (r, d_in), dtype) / np.float32(4),
                numbers(rng, (d_out, r), dtype),
                float(rng.uniform(-2, 2)),
                numbers(rng, (d_out,), dtype) if rng.random() < 0.3 else None,
                dora=random_dora(rng, d_out, dtype) if rng.random() < 0.3 else None,
            )
            for a, r in enumerate(ranks)
            if s == 0 or rng.random() < 0.8
        }
        for s, d_out in enumerate(d_outs)
    ]
    ids = rng.integers(-1, len(ranks), tokens)
    if pattern == "none":
        ids[:] = -1
    if pattern == "one":
        ids[:] = len(ranks) - 1
    if pattern == "distinct":
        ids[:] = -1
        chosen = rng.permutation(tokens)[: len(ranks)]
        ids[chosen] = rng.permutation(len(ranks))[: len(chosen)]
    if pattern == "runs":
        ids = np.sort(ids)
    x, y = numbers(rng, (tokens, d_in), dtype), numbers(rng, (tokens, sum(d_outs) + 3), dtype)
    x[ids < 0] = np.nan  # nobody may look at these
    y[:, sum(d_outs) :] = np.nan
    y[:, [0, *np.cumsum(d_outs)[:-1]]] = -0.0  # -0 + 0 is 0: to add nothing is not the same as to leave alone
    weights = np.where(rng.random(tokens) < 0.5, 1.0, rng.uniform(-2, 2, tokens))
    ids = ids.astype(np.int32)
    return Case(y, x, slices, d_outs, len(ranks), ids, weights, splits, round_rank, round_delta, spread, shift)


def random_dora(rng: np.random.Generator, d_out: int, dtype: str) -> Dora:
    """Gains around 1, of a base that has a bias or none."""
    bias = numbers(rng, (d_out,), dtype) if rng.random() < 0.5 else None
    return Dora(rng.uniform(0.5, 1.5, d_out).astype(np.float32), bias)


@st.composite
def cases(draw: st.DrawFn, dtype: str, pattern: str | None = None) -> Case:
    """Any shape, any mix of ranks, adapters that leave some slices alone, biases, rows without an adapter."""
    ranks = draw(st.lists(st.sampled_from(RANKS), min_size=1, max_size=5))
    return make_case(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        dtype,
        d_in=draw(st.sampled_from([272, 129, 120, 64, 33, 16, 7, 2, 1])),
        d_outs=draw(st.lists(st.sampled_from([130, 65, 40, 16, 3, 1]), min_size=1, max_size=3)),
        ranks=ranks,
        tokens=draw(st.integers(0, 8 if max(ranks) > 64 else 20 if max(ranks) > 8 else 37)),
        pattern=pattern or draw(st.sampled_from(PATTERNS)),
        splits=draw(st.sampled_from([2, 1, 3, 7])),
        round_rank=draw(st.booleans()),
        round_delta=draw(st.booleans()),
        spread=draw(st.sampled_from([1, 9, 2])),
        shift=draw(st.sampled_from([0, 1])),
    )


def expected(case: Case, dtype: str) -> Near:
    """The definition in float64, and its bound: token by token, slice by slice."""
    value, off, start = case.y.astype(np.float64), np.zeros(case.y.shape), 0
    for held, d_out in zip(case.slices, case.d_outs, strict=True):
        for t, a in enumerate(case.adapter_ids):
            if a not in held:
                continue
            w = held[a]
            low = product(exact(case.x[t]), exact(w.A))
            low = rounded_if(case.round_rank, low, dtype)
            bias = np.zeros(d_out) if w.bias is None else w.bias.astype(np.float64)
            one_more = Near(np.append(low.value, 1), np.append(low.off, 0))  # the bias is one more product
            delta = product(one_more, exact(np.column_stack([w.B, bias])))
            scale = float(np.float32(w.scale)) * float(np.float32(case.adapter_weights[t]))
            delta = delta.times(scale)
            if w.dora is not None:
                delta = stretched(delta, case.y[t, start : start + d_out], w.dora, dtype)
            delta = rounded_if(case.round_delta, delta.times(1), dtype)
            columns = slice(start, start + d_out)
            value[t, columns] += delta.value
            off[t, columns] = delta.off + 2.0**-24 * np.abs(value[t, columns])
        start += d_out
    return Near(value, off)


def stretched(delta: Near, y: np.ndarray, dora: Dora, dtype: str) -> Near:
    """gain * delta + (gain - 1) * (y - bias), the difference in the type of y."""
    gain, y = dora.gain.astype(np.float64), y.astype(np.float64)
    product = exact(y)
    if dora.base_bias is not None:
        value = y - dora.base_bias.astype(np.float64)
        product = Near(value, 2.0**-24 * np.abs(value)).rounded(dtype)
    less = Near(gain - 1, 2.0**-24 * np.abs(gain - 1))
    rest = less.value * product.value
    off = np.abs(less.value) * product.off + less.off * np.abs(product.value) + 2.0**-24 * np.abs(rest)
    scaled = delta.times(gain)
    total = scaled.value + rest
    return Near(total, scaled.off + off + 2.0**-24 * np.abs(total))


def pack(case: Case, dtype: str) -> PackedLora:
    """The adapters in one buffer, in which everything that no token of the batch asks for is NaN."""
    packed = launch.pack(case.slices, case.d_outs, dtype, case.slots)
    wanted = np.zeros(packed.weights.size, bool)
    for s, (held, d_out) in enumerate(zip(case.slices, case.d_outs, strict=True)):
        for a in set(case.adapter_ids.tolist()) & held.keys():
            rank = held[a].A.shape[0]
            for offset, size in zip(packed.offsets[s, a], (rank * packed.d_in, d_out * rank, d_out), strict=True):
                wanted[offset : offset + size] |= offset >= 0
    packed.weights[~wanted] = NAN[dtype]
    return replace(packed, weights=misplaced(packed.weights, case.shift))


def run(case: Case, dtype: str, shrink: str, expand: str, order: str | int = "forward", check: bool = False):
    """What the kernels make of the case, and what the checker saw."""
    y = stored(case.y, dtype).copy()
    with scheduled(order, check) as launches:
        launch.lora_delta(
            y,
            misplaced(stored(case.x, dtype), case.shift),
            pack(case, dtype),
            mapping(case.adapter_ids, case.adapter_weights),
            0,
            case.round_rank,
            case.round_delta,
            LoraLaunch(shrink, expand, case.splits, case.spread),
        )
    return y, launches


def assert_right(case: Case, dtype: str, y: np.ndarray) -> None:
    """Near where something was to be added, and bit for bit as it was everywhere else."""
    near, before, start = expected(case, dtype), stored(case.y, dtype), 0
    touched = np.zeros(y.shape, bool)
    for held, d_out in zip(case.slices, case.d_outs, strict=True):
        touched[np.isin(case.adapter_ids, list(held)), start : start + d_out] = True
        start += d_out
    assert y[~touched].tobytes() == before[~touched].tobytes(), "a row without an adapter was touched"
    assert_near(y[touched], Near(near.value[touched], near.off[touched]), dtype)


def runnable(shrink: str, expand: str, dtype: str) -> bool:
    """Tensor cores take halves."""
    return dtype != "float32" or "v3" not in shrink + expand


every_pair = pytest.mark.parametrize(
    ("dtype", "shrink", "expand"),
    [(d, *pair) for d in launch.STORED for pair in PAIRS if runnable(*pair, d)],
)


@every_pair
@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_ranks_in_one_launch(dtype: str, shrink: str, expand: str, pattern: str) -> None:
    """Ranks 1 to 200 in three slices, in every order of blocks and threads."""
    rng = np.random.default_rng(PATTERNS.index(pattern))
    for order, d_in, spread, shift in (("forward", 272, 9, 0), ("reverse", 129, 1, 0), (3, 272, 2, 1), (4, 40, 9, 0)):
        flags = bool(rng.integers(2)) or expand == "sgmv_expand_v3", bool(rng.integers(2))
        case = make_case(rng, dtype, d_in, (130, 33, 65), RANKS, 2 * len(RANKS) + 1, pattern, 2, *flags, spread, shift)
        y, _ = run(case, dtype, shrink, expand, order)
        assert_right(case, dtype, y)


@every_pair
@given(data=st.data())
@settings(max_examples=40)
def test_equals_the_definition(dtype: str, shrink: str, expand: str, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    if expand == "sgmv_expand_v3":
        case = replace(case, round_rank=True)
    y, _ = run(case, dtype, shrink, expand, data.draw(orders))
    assert_right(case, dtype, y)


@every_pair
@given(data=st.data())
@settings(max_examples=12)
def test_is_clean_under_the_checker(dtype: str, shrink: str, expand: str, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    if expand == "sgmv_expand_v3":
        case = replace(case, round_rank=True)
    y, _ = run(case, dtype, shrink, expand, data.draw(orders), check=True)
    assert_right(case, dtype, y)


@every_dtype
@given(data=st.data())
@settings(max_examples=15)
def test_the_dispatcher_chooses_what_is_right(dtype: str, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    y = stored(case.y, dtype).copy()
    with scheduled(data.draw(orders)):
        launch.lora_delta(
            y,
            stored(case.x, dtype),
            pack(case, dtype),
            mapping(case.adapter_ids, case.adapter_weights),
            0,
            case.round_rank,
            case.round_delta,
        )
    assert_right(case, dtype, y)


@every_dtype
@pytest.mark.parametrize(("tokens", "pattern"), [(3, "distinct"), (40, "one"), (40, "runs")])
def test_layers_of_a_real_size(dtype: str, tokens: int, pattern: str) -> None:
    """As wide as in a model of 1 to 8 billion parameters, split and spread as the dispatcher says."""
    rng = np.random.default_rng(tokens)
    case = make_case(rng, dtype, 4096, (1536, 512), (16, 8, 64), tokens, pattern, round_rank=True)
    y = stored(case.y, dtype).copy()
    with scheduled("forward"):
        packed, rows = pack(case, dtype), mapping(case.adapter_ids, case.adapter_weights)
        launch.lora_delta(y, stored(case.x, dtype), packed, rows, round_rank=True)
    assert_right(case, dtype, y)


@every_dtype
@given(data=st.data())
@settings(max_examples=10)
def test_a_token_id_is_a_one_hot_row(dtype: str, data: st.DataObject) -> None:
    """At the embedding x is [tokens] of ids, and the kernels look up columns of A."""
    case = data.draw(cases(dtype))
    d_in = case.x.shape[1]
    ids = data.draw(st.lists(st.integers(0, d_in - 1), min_size=len(case.x), max_size=len(case.x)))
    case = replace(case, x=np.eye(d_in, dtype=np.float32)[np.asarray(ids, int)].reshape(-1, d_in))
    y = stored(case.y, dtype).copy()
    with scheduled(data.draw(orders)):
        launch.lora_delta(
            y,
            np.asarray(ids, np.int32),
            pack(case, dtype),
            mapping(case.adapter_ids, case.adapter_weights),
            0,
            case.round_rank,
            case.round_delta,
        )
    assert_right(case, dtype, y)


@given(data=st.data())
@settings(max_examples=10)
def test_versions_can_be_mixed_up_only_by_looking(data: st.DataObject) -> None:
    """The test can fail: a case whose adapters were exchanged is not near."""
    case = data.draw(cases("float32", pattern="distinct"))
    assume(len(case.x) >= 2 and len(case.slices[0]) >= 2)
    y, _ = run(case, "float32", "bgmv_shrink_v2", "bgmv_expand_v2")
    other = replace(case, adapter_ids=np.roll(case.adapter_ids, 1))
    assume(not np.array_equal(other.adapter_ids, case.adapter_ids))
    with pytest.raises(AssertionError):
        assert_right(other, "float32", y)


def simple_case(tokens_of: Sequence[int], dtype: str, rank: int = 24, d_in: int = 256, d_out: int = 96) -> Case:
    """So many tokens of each adapter, in runs."""
    rng = np.random.default_rng(0)
    held = {
        a: LoraWeights(numbers(rng, (rank, d_in), dtype), numbers(rng, (d_out, rank), dtype), 0.5)
        for a in range(len(tokens_of))
    }
    ids = np.repeat(np.arange(len(tokens_of), dtype=np.int32), tokens_of)
    x, y = numbers(rng, (len(ids), d_in), dtype), numbers(rng, (len(ids), d_out), dtype)
    return Case(y, x, [held], [d_out], len(held), ids, np.ones(len(ids)), 1, True, True)


@pytest.mark.parametrize(("dtype", "version"), [("float32", 2), ("float16", 2), ("float16", 3), ("bfloat16", 3)])
def test_sgmv_reads_the_weights_once_per_adapter_and_launch(dtype: str, version: int) -> None:
    """Once for every 16 tokens that share it; BGMV reads them once for every token."""
    size = launch.STORED[dtype].itemsize
    once = 24 * 256 * size, 24 * 96 * size
    for tokens_of in ((5, 16, 1), (40,)):
        case = simple_case(tokens_of, dtype)
        _, sgmv = run(case, dtype, f"sgmv_shrink_v{version}", f"sgmv_expand_v{version}", check=True)
        chunks = sum(-(-n // 16) for n in tokens_of)
        for (_, moved), bytes_of_one in zip(sgmv, once, strict=True):
            assert moved["weights"].loaded == chunks * bytes_of_one
            assert moved["weights"].distinct_loaded == len(tokens_of) * bytes_of_one
        _, bgmv = run(case, dtype, "bgmv_shrink_v2", "bgmv_expand_v2", check=True)
        for (_, moved), bytes_of_one in zip(bgmv, once, strict=True):
            assert moved["weights"].loaded == sum(tokens_of) * bytes_of_one


def test_splits_are_summed_in_order() -> None:
    """The same launch twice gives the same bits, whatever the order in which blocks end."""
    case = replace(simple_case((3, 1), "float32"), splits=7)
    first, _ = run(case, "float32", "bgmv_shrink_v2", "bgmv_expand_v2", "forward")
    for order in ("reverse", 1, 2):
        again, _ = run(case, "float32", "bgmv_shrink_v2", "bgmv_expand_v2", order)
        assert again.tobytes() == first.tobytes()


# What is refused before a launch.


def lora_launch(case: Case, **changed: object) -> None:
    """The case, with some of its arrays exchanged for bad ones."""
    arguments = {
        "y": stored(case.y, "float32").copy(),
        "x": stored(case.x, "float32"),
        "packed": launch.pack(case.slices, case.d_outs, "float32"),
        "mapping": mapping(case.adapter_ids, case.adapter_weights),
    }
    launch.lora_delta(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mapping": mapping(np.array([0, 1, 2], np.int32))}, r"adapter_ids\[2\] is 2: there are slots 0 to 1"),
        ({"mapping": mapping(np.array([0, -2, 1], np.int32))}, r"adapter_ids\[1\] is -2"),
        ({"mapping": mapping(np.array([0, 1], np.int32))}, r"y has 3 rows, the mapping 2"),
        ({"x": np.zeros((3, 255), np.float32)}, r"d_in 256"),
        ({"x": np.zeros((3, 256), np.float16)}, r"x is float16; this kernel was built for float32"),
        ({"x": np.zeros((256, 3), np.float32).T}, r"x of shape \(3, 256\) is not contiguous"),
        ({"x": np.array([0, 256, 1], np.int32)}, r"token id 256 .* 256 columns"),
        ({"y": np.zeros((3, 95), np.float32)}, r"y has 95 columns; the slices have 96"),
        ({"launch": LoraLaunch("sgmv_shrink_v2", "sgmv_expand_v3")}, r"sgmv_expand_v3 .* float32"),
    ],
)
def test_a_bad_plan_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        lora_launch(simple_case((2, 1), "float32"), **changed)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({0: LoraWeights(np.zeros((257, 4), np.float32), np.zeros((5, 257), np.float32), 1.0)}, "rank 257; .* 256"),
        ({0: LoraWeights(np.zeros((2, 4), np.float32), np.zeros((6, 2), np.float32), 1.0)}, r"B is \(6, 2\)"),
        ({-1: LoraWeights(np.zeros((2, 4), np.float32), np.zeros((5, 2), np.float32), 1.0)}, "slot -1"),
    ],
)
def test_bad_weights_are_refused(held: dict, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        launch.pack([held], [5], "float32")


def test_bfloat16_bits_round_to_nearest_even() -> None:
    """`stored` against the type itself, on every kind of float32."""
    import ml_dtypes

    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.float32([0.0, -0.0, np.inf, -np.inf, 65504, 1e-45])])
    with np.errstate(invalid="ignore"):
        ours, theirs = stored(x, "bfloat16"), x.astype(ml_dtypes.bfloat16)
    number = ~np.isnan(x)
    assert (ours[number] == theirs.view(np.uint16)[number]).all()
    assert np.isnan(widened(ours, "bfloat16")[~number]).all()
