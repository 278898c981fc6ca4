"""paged_attention.cu against the definition in float64, with a bound computed from the data."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cases import STORED, assert_near, needs_cpu, numbers, orders, poison, rounded_if, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import metadata

from refimpl.arrays import Precision
from refimpl.config import View
from refimpl.cuda import launch
from refimpl.cuda.launch import stored, widened
from refimpl.cuda.table import CUDA
from refimpl.errors import LoracleError
from refimpl.ops import NUMPY
from refimpl.oracle.vectors.bounds import SUM_FACTOR, UNIT_ROUNDOFF, Near, half_ulp
from refimpl.tiles import first_visible

pytestmark = needs_cpu

TYPES = [(d, c) for d in STORED for c in dict.fromkeys((d, "float32"))]
every_version = pytest.mark.parametrize(
    ("dtype", "cache", "version"), [(d, c, v) for d, c in TYPES for v in (1, 2, 3) if v != 1 or d == c]
)


@dataclass(frozen=True)
class Case:
    """One launch: a ragged batch of requests, each with some new tokens at the end of its context."""

    q: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    query_start_loc: np.ndarray
    context_lens: np.ndarray
    block_tables: np.ndarray
    view: View
    splits: int
    round_scores: bool


@st.composite
def cases(draw: st.DrawFn, dtype: str, cache: str) -> Case:
    """GQA, MQA, windows, chunks of any length. Every slot that no token may see is NaN, a block that has left the
    window is -1 in its table, and tables end where their request does."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([130, 64, 33, 32, 8, 2, 1, 256]))
    value_dim = draw(st.sampled_from([head_dim, head_dim, 24, 129]))
    block_size = draw(st.sampled_from([3, 16, 1]))
    window = draw(st.sampled_from([None, 4, None, 9, 1]))
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    contexts = [n + draw(st.integers(0, 20)) for n in counts]
    needed = [-(-context // block_size) for context in contexts]
    blocks = sum(needed) + 2
    order = rng.permutation(blocks).astype(np.int32)
    tables = np.full((len(counts), max(needed, default=0) + 1), -1, np.int32)
    k_cache, v_cache = (poison((blocks, block_size, kv_heads, width), cache) for width in (head_dim, value_dim))
    used = 0
    for r, (n, context) in enumerate(zip(counts, contexts, strict=True)):
        own = order[used : used + needed[r]]
        used += needed[r]
        seen = first_visible(context - n, window)
        tables[r, seen // block_size : needed[r]] = own[seen // block_size :]
        for j in range(seen, context):
            at = own[j // block_size], j % block_size
            k_cache[at] = stored(numbers(rng, (kv_heads, head_dim), cache), cache)
            v_cache[at] = stored(numbers(rng, (kv_heads, value_dim), cache), cache)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    q = numbers(rng, (int(starts[-1]), heads, head_dim), dtype)
    splits = draw(st.sampled_from([2, 3, 1, 30]))
    view = View(window, draw(st.sampled_from([None, 0.3])), draw(st.sampled_from([None, None, 2.0])))
    if draw(st.integers(0, 2)) == 0:  # far above and far below all scores, too
        view = replace(view, sinks=numbers(rng, (heads,), "float32") * draw(st.sampled_from([1, 40])))
    return Case(q, k_cache, v_cache, starts, np.array(contexts, np.int32), tables, view, splits, draw(st.booleans()))


def expected(case: Case, dtype: str, cache: str, round_scores: bool, round_probabilities: bool) -> Near:
    """The definition in float64, one token and one head at a time, and how far float32 may be from it.

    A score that is off by d is a weight that is off by a factor of exp(d); all the weights of a token are divided by
    their sum, which is off by no more than the worst of them: twice that, and the roundings of exp, of the sum, of the
    quotient and of the weighted sum on top. A sink is a score that is exact and has no value."""
    tokens, heads, head_dim = case.q.shape
    block_size, kv_heads = case.k_cache.shape[1:3]
    value_dim, view = case.v_cache.shape[3], case.view
    keys, values = (widened(x, cache).astype(np.float64) for x in (case.k_cache, case.v_cache))
    q = case.q.astype(np.float64)
    scale = float(np.float32(1 / math.sqrt(head_dim) if view.scale is None else view.scale))
    out, off = np.empty((tokens, heads, value_dim)), np.empty((tokens, heads, value_dim))
    for r, context in enumerate(case.context_lens):
        for t in range(case.query_start_loc[r], case.query_start_loc[r + 1]):
            position = context - case.query_start_loc[r + 1] + t
            seen = np.arange(first_visible(position, view.window), position + 1)
            where = case.block_tables[r, seen // block_size], seen % block_size
            for h in range(heads):
                g = h // (heads // kv_heads)
                k, v = keys[where][:, g], values[where][:, g]
                dots = k @ q[t, h]
                wrong = SUM_FACTOR * UNIT_ROUNDOFF * math.sqrt(head_dim) * (np.abs(k) @ np.abs(q[t, h]))
                if round_scores:
                    wrong = wrong + half_ulp(np.abs(dots) + wrong, dtype)
                scores = dots * scale
                wrong = wrong * scale + 2 * UNIT_ROUNDOFF * np.abs(scores)
                if round_scores:
                    wrong = wrong + half_ulp(np.abs(scores) + wrong, dtype)
                if view.softcap is not None:
                    near = capped(Near(scores, wrong), view.softcap, dtype, round_scores)
                    scores, wrong = near.value, near.off
                sink = -math.inf if view.sinks is None else float(view.sinks[h])
                most = max(scores.max(), sink)
                e = np.exp(scores - most)
                p = e / (e.sum() + math.exp(sink - most))
                # exp's argument is rounded too: a difference of scores, off by half an ulp of itself. That of the sink
                # counts for as much as the sink takes of the sum.
                below = np.append(most - scores, most - sink if math.exp(sink - most) else 0)
                wrong = np.append(wrong, 0) + UNIT_ROUNDOFF * below
                if round_scores and view.sinks is not None:  # once more, less the highest
                    wrong = wrong + half_ulp(below + wrong, dtype)
                worst = wrong.max()
                factor = math.expm1(2 * worst) + (8 + SUM_FACTOR * math.sqrt(len(seen))) * UNIT_ROUNDOFF
                wrong_p = p * factor
                if round_probabilities:
                    wrong_p = wrong_p + half_ulp(p + wrong_p, dtype)
                out[t, h] = p @ v
                off[t, h] = wrong_p @ np.abs(v) + SUM_FACTOR * UNIT_ROUNDOFF * math.sqrt(len(seen)) * (p @ np.abs(v))
    return Near(out.reshape(tokens, heads * value_dim), off.reshape(tokens, heads * value_dim))


def capped(scores: Near, cap: float, dtype: str, rounds: bool) -> Near:
    """cap * tanh(score / cap): tanh is good to 2 ulp, and its slope is nowhere above 1."""
    part = rounded_if(rounds, scores.times(np.array(1 / cap)), dtype)
    bent = np.tanh(part.value)
    near = rounded_if(rounds, Near(bent, part.off + 4 * UNIT_ROUNDOFF * np.abs(bent)), dtype)
    return rounded_if(rounds, near.times(np.array(cap)), dtype)


def run(
    case: Case,
    dtype: str,
    version: int,
    order: str | int,
    check: bool = False,
    round_scores: bool = False,
    round_probabilities: bool = False,
) -> np.ndarray:
    """What a version makes of the case."""
    plan = metadata(case.query_start_loc, case.context_lens, case.block_tables, case.k_cache), case.view, dtype
    with scheduled(order, check):
        q = stored(case.q, dtype)
        flags = round_scores, round_probabilities
        return launch.attention(q, case.k_cache, case.v_cache, *plan, *flags, version=version, splits=case.splits)


def compare(data: st.DataObject, dtype: str, cache: str, version: int, check: bool) -> None:
    """One example."""
    case = data.draw(cases(dtype, cache))
    round_probabilities = version == 1 and data.draw(st.booleans())
    round_scores = case.round_scores and (version == 1 or case.view.sinks is None)
    out = run(case, dtype, version, data.draw(orders), check, round_scores, round_probabilities)
    assert_near(out, expected(case, dtype, cache, round_scores, round_probabilities), dtype)


@every_version
@given(data=st.data())
@settings(max_examples=60)
def test_equals_the_definition(dtype: str, cache: str, version: int, data: st.DataObject) -> None:
    compare(data, dtype, cache, version, check=False)


@every_version
@given(data=st.data())
@settings(max_examples=15)
def test_is_clean_under_the_checker(dtype: str, cache: str, version: int, data: st.DataObject) -> None:
    compare(data, dtype, cache, version, check=True)


def decode_case(context: int, dtype: str = "float32", window: int | None = None, head_dim: int = 16) -> Case:
    """One request, one new token, two heads on one key head."""
    rng = np.random.default_rng(0)
    blocks = -(-context // 16)
    k, v = (stored(numbers(rng, (blocks, 16, 1, head_dim), dtype), dtype) for _ in range(2))
    table = rng.permutation(blocks).astype(np.int32)[None]
    q = numbers(rng, (1, 2, head_dim), dtype)
    return Case(q, k, v, np.array([0, 1], np.int32), np.array([context], np.int32), table, View(window), 3, False)


@pytest.mark.parametrize("context", [1, 4, 5, 127, 128, 129, 1000])
@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_contexts_around_the_widths_of_warps_and_blocks(context: int, version: int) -> None:
    case = decode_case(context)
    assert_near(run(case, "float32", version, "forward"), expected(case, "float32", "float32", False, False), "float32")


def test_large_scores_do_not_overflow() -> None:
    """exp(score) alone would be inf: the maximum is subtracted, and a higher one that comes later rescales the rest."""
    case = decode_case(40)
    case.q[...] = 30
    case.k_cache[...] = np.linspace(-3, 3, 48, dtype=np.float32).reshape(3, 16, 1, 1)[case.block_tables[0].argsort()]
    for version in (1, 2, 3):
        out = run(case, "float32", version, "forward")
        assert_near(out, expected(case, "float32", "float32", False, False), "float32")


def test_each_visible_key_is_read_once_per_head_and_pass() -> None:
    """With a window the others are not read at all."""
    case = decode_case(200, window=50)
    plan = metadata(case.query_start_loc, case.context_lens, case.block_tables, case.k_cache), case.view, "float32"
    for version in (1, 2, 3):
        with scheduled("forward", check=True) as launches:
            launch.attention(case.q, case.k_cache, case.v_cache, *plan, version=version, splits=3)
        moved = launches[0][1]
        for cache in ("k_cache", "v_cache"):
            assert moved[cache].distinct_loaded == 50 * 16 * 4
            assert moved[cache].loaded == 2 * 50 * 16 * 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_start_loc": [0, 2]}, "q .* does not fit caches"),
        ({"blocks": 3}, r"caches .*: the plan is of 3 blocks of 16"),
        ({"version": 2, "round_probabilities": True}, "attention_v2 cannot round probabilities"),
    ],
)
def test_a_bad_plan_is_refused(changed: dict, message: str) -> None:
    case = decode_case(20)
    starts = np.array(changed.pop("query_start_loc", [0, 1]), np.int32)
    cache = np.zeros((changed.pop("blocks", 2), 16))
    plan = metadata(starts, np.array([20], np.int32), np.array([[0, 1]], np.int32), cache)
    with pytest.raises(LoracleError, match=message):
        launch.attention(case.q, case.k_cache, case.v_cache, plan, View(), "float32", **changed)


def test_a_window_excuses_the_blocks_that_it_has_passed() -> None:
    case = decode_case(20, window=4)
    tables = case.block_tables.copy()
    tables[0, 0] = -1
    run(replace(case, block_tables=tables), "float32", 2, "forward")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_take_any_number_of_keys(dtype: str) -> None:
    """The precision that the kernels have by default rounds no probability, so that v2 and v3 run."""
    keys, rng = 10_500, np.random.default_rng(0)
    p, blocks = Precision(CUDA.precision, dtype), -(-keys // 16)
    q, *caches = (numbers(rng, shape, dtype) for shape in [(1, 2, 4), *[(blocks, 16, 1, 4)] * 2])
    tables = rng.permutation(blocks).astype(np.int32)[None]
    plan = metadata(np.array([0, 1], np.int32), np.array([keys], np.int32), tables, caches[0])
    exact = NUMPY.attention(q.astype(np.float64), *(x.astype(np.float64) for x in caches), plan, View(), Precision())
    actual = CUDA.attention(q, *caches, plan, View(), p)
    assert (np.abs(actual - exact) <= 2 * half_ulp(exact, dtype)).all()
    with pytest.raises(LoracleError, match=rf'{keys} keys are too many; Precision\("flash", dtype\) .* any number'):
        CUDA.attention(q, *caches, plan, View(), Precision("model", dtype))


def test_too_many_keys_for_shared_memory_are_refused() -> None:
    with pytest.raises(LoracleError, match=r"attention_v1 keeps all scores .* 12000 keys are too many"):
        run(decode_case(12000, head_dim=1), "float32", 1, "forward")


def test_scores_are_not_rounded_beside_sinks_by_what_learns_the_maximum_last() -> None:
    case = replace(decode_case(20), view=View(sinks=np.zeros(2, np.float32)))
    with pytest.raises(LoracleError, match="attention_v3 cannot round beside sinks: it learns the maximum after"):
        run(case, "float32", 3, "forward", round_scores=True)
    with pytest.raises(LoracleError, match=r"sinks are \(2,\), q \(1, 1, 16\)"):
        run(replace(case, q=case.q[:, :1].copy()), "float32", 2, "forward")


def test_too_wide_heads_are_refused() -> None:
    with pytest.raises(LoracleError, match="head_dim 257; the kernels take up to 256"):
        run(decode_case(3, head_dim=257), "float32", 2, "forward")
