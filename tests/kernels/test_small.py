"""layers.cu against the formulas in float64, with bounds computed from the data."""

import numpy as np
import pytest
from cases import assert_near, every_dtype, needs_cpu, numbers, orders, rounded_if, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.cuda import launch
from refimpl.cuda.launch import stored
from refimpl.errors import LoracleError
from refimpl.oracle.vectors.bounds import SUM_FACTOR, UNIT_ROUNDOFF, Near, exact, half_ulp

pytestmark = needs_cpu

WIDTHS = [1, 2, 7, 64, 127, 128, 129, 300]
both_ways = pytest.mark.parametrize("check", [False, True], ids=["plain", "checked"])


def plus(a: Near, b: Near, sign: float = 1) -> Near:
    """a + b or a - b, in float32."""
    total = a.value + sign * b.value
    return Near(total, a.off + b.off + UNIT_ROUNDOFF * np.abs(total))


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_embed_copies_rows(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vocab, width = data.draw(st.integers(1, 9)), data.draw(st.sampled_from(WIDTHS))
    table = stored(numbers(rng, (vocab, width), dtype), dtype)
    ids = rng.integers(0, vocab, data.draw(st.integers(0, 9))).astype(np.int32)
    with scheduled(data.draw(orders), check):
        y = launch.embed(table, ids, dtype)
    assert y.tobytes() == table[ids].tobytes()


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_rms_norm(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    width, eps = data.draw(st.sampled_from(WIDTHS)), data.draw(st.sampled_from([1e-5, 1e-6, 1.0]))
    x = numbers(rng, (data.draw(st.integers(0, 6)), width), dtype)
    weight, inner = numbers(rng, (width,), "float32"), data.draw(st.booleans())
    with scheduled(data.draw(orders), check):
        y = launch.rms_norm(stored(x, dtype), weight, eps, dtype, inner)
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + float(np.float32(eps)))
    # The sum of squares is off by SUM_FACTOR sqrt(K) u of itself, its root by half of that; then /, +, sqrt and / once.
    near = Near(normed, np.abs(normed) * UNIT_ROUNDOFF * (SUM_FACTOR * np.sqrt(width) / 2 + 4))
    near = rounded_if(inner, near, dtype)
    assert_near(y, near.times(weight.astype(np.float64)), dtype)


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_rope(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens, heads = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
    half, inner = data.draw(st.sampled_from([1, 3, 16, 65])), data.draw(st.booleans())
    x = numbers(rng, (tokens, heads, 2 * half), dtype)
    angle = rng.uniform(0, 7, (tokens, half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    with scheduled(data.draw(orders), check):
        y = launch.rope(stored(x, dtype), cos, sin, dtype, inner)
    a, b = exact(x[..., :half]), exact(x[..., half:])
    c, s = cos[:, None, :].astype(np.float64), sin[:, None, :].astype(np.float64)
    parts = [rounded_if(inner, part, dtype) for part in (a.times(c), b.times(s), b.times(c), a.times(s))]
    first, second = plus(parts[0], parts[1], -1), plus(parts[2], parts[3])
    value, off = (np.concatenate([getattr(first, f), getattr(second, f)], axis=-1) for f in ("value", "off"))
    assert_near(y, Near(value, off), dtype)


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_mlp_activation(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(WIDTHS))
    gate, up, inner = numbers(rng, shape, dtype), numbers(rng, shape, dtype), data.draw(st.booleans())
    gate *= data.draw(st.sampled_from([1, 64]))  # e^-g overflows below -88: silu is -0 there
    with scheduled(data.draw(orders), check):
        y = launch.mlp_activation(stored(gate, dtype), stored(up, dtype), dtype, inner)
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        silu = wide / (1 + np.exp(-wide))
    # exp is good to 2 ulp, then + and /. Below -87 the float32 result is a denormal number or 0.
    near = Near(silu, np.abs(silu) * 8 * UNIT_ROUNDOFF + 1e-36 + half_ulp(silu, dtype) * inner)
    assert_near(y, near.times(up.astype(np.float64)), dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: launch.embed(x, np.array([0, 3], np.int32), "float32"),
            "from 0 to 3: the table has 3 rows",
        ),
        (lambda x: launch.embed(x, np.array([-1], np.int32), "float32"), "token ids from -1 to -1"),
        (lambda x: launch.rms_norm(x, np.ones(5, np.float32), 1e-5, "float32", False), r"weight is \(5,\), x \(3, 4\)"),
        (lambda x: launch.rms_norm(x, np.ones(4), 1e-5, "float32", False), "weight is float64"),
        (
            lambda x: launch.rope(x[None], np.ascontiguousarray(x[:1, :2]), x[:1], "float32", False),
            r"sin is \(1, 4\), x \(1, 3, 4\)",
        ),
        (lambda x: launch.mlp_activation(x, x.astype(np.float16), "float32", False), "up is float16"),
        (lambda x: launch.mlp_activation(x.T, x.T, "float32", False), r"gate of shape .* is not contiguous"),
        (lambda x: launch.mlp_activation(x, x, "float16", False), "gate is float32; this kernel was built for float16"),
    ],
)
def test_a_bad_argument_is_refused(call: object, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        call(np.zeros((3, 4), np.float32))  # type: ignore[operator]
