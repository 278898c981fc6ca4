"""layers.cu against the formulas in float64, with bounds computed from the data."""

import numpy as np
import pytest
from cases import assert_near, every_dtype, needs_cpu, numbers, orders, rounded_if, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.config import ClampedGate
from refimpl.cuda import launch
from refimpl.cuda.launch import stored, widened
from refimpl.errors import LoracleError
from refimpl.oracle.vectors.bounds import SUM_FACTOR, UNIT_ROUNDOFF, Near, exact, half_ulp

pytestmark = needs_cpu

WIDTHS = [1, 2, 7, 64, 127, 128, 129, 300]
KINDS = ["silu", "relu2", "gelu_tanh"]
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
def test_layer_norm(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    width, eps = data.draw(st.sampled_from(WIDTHS)), data.draw(st.sampled_from([1e-5, 1.0]))
    x = numbers(rng, (data.draw(st.integers(0, 6)), width), dtype)
    x = widened(stored(x + np.float32(data.draw(st.sampled_from([0, 30]))), dtype), dtype)  # a row may lie far from 0
    weight, inner = numbers(rng, (data.draw(st.integers(1, 2)), width), "float32"), data.draw(st.booleans())
    with scheduled(data.draw(orders), check):
        y = launch.layer_norm(stored(x, dtype), weight, eps, dtype, inner)
    wide = x.astype(np.float64)
    mean = wide.mean(axis=1, keepdims=True)
    # Every x - mean is off by what the mean is (a sum of `width` numbers) and by its own rounding, ...
    off = UNIT_ROUNDOFF * (SUM_FACTOR * np.sqrt(width) + 2) * np.abs(wide).max(axis=1, keepdims=True, initial=0)
    deviation = np.sqrt(((wide - mean) ** 2).mean(axis=1, keepdims=True) + float(np.float32(eps)))
    normed = (wide - mean) / deviation
    # ... and the root of their mean square by no more, beside what a sum, +, sqrt and / round.
    near = Near(
        normed,
        off / deviation * (1 + np.abs(normed)) + np.abs(normed) * UNIT_ROUNDOFF * (SUM_FACTOR * np.sqrt(width) / 2 + 4),
    )
    near = rounded_if(inner, near, dtype).times(weight[0].astype(np.float64))
    assert_near(y, near if len(weight) == 1 else plus(near, exact(weight[1])), dtype)


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_rope(dtype: str, check: bool, data: st.DataObject) -> None:
    """Both layouts of pairs; channels beyond them, of which there may be one, are not touched."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens, heads, interleaved = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4)), data.draw(st.booleans())
    half, inner = data.draw(st.sampled_from([1, 3, 16, 65])), data.draw(st.booleans())
    beyond = data.draw(st.sampled_from([0, 0, 1, 2, 7, 130]))
    x = numbers(rng, (tokens, heads, 2 * half + beyond), dtype)
    angle = rng.uniform(0, 7, (tokens, half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    with scheduled(data.draw(orders), check):
        y = launch.rope(stored(x, dtype), cos, sin, interleaved, dtype, inner)
    pairs = np.arange(2 * half).reshape((half, 2) if interleaved else (2, half))
    firsts, seconds = pairs.T if interleaved else pairs
    a, b = exact(x[..., firsts]), exact(x[..., seconds])
    c, s = cos[:, None, :].astype(np.float64), sin[:, None, :].astype(np.float64)
    parts = [rounded_if(inner, part, dtype) for part in (a.times(c), b.times(s), b.times(c), a.times(s))]
    value, off = x.astype(np.float64), np.zeros(x.shape)
    for channels, part in ((firsts, plus(parts[0], parts[1], -1)), (seconds, plus(parts[2], parts[3]))):
        value[..., channels], off[..., channels] = part.value, part.off
    assert_near(y, Near(value, off), dtype)
    assert y[..., 2 * half :].tobytes() == stored(x, dtype)[..., 2 * half :].tobytes()


def activated(g: np.ndarray, kind: str) -> Near:
    """The activation in float64, and how far float32 may be from it: exp and tanh are good to 2 ulp."""
    if kind == "relu2":
        return Near(np.maximum(g, 0) ** 2, g**2 * UNIT_ROUNDOFF)
    if kind == "silu":
        with np.errstate(over="ignore"):
            silu = g / (1 + np.exp(-g))
        return Near(silu, np.abs(silu) * 8 * UNIT_ROUNDOFF + 1e-36)  # below -87: a denormal number, or 0
    inner = np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
    # inner is off by 8 u of itself, which tanh has for (1 - tanh^2) of it; 1 + tanh then rounds once near 1, and
    # where tanh is near -1 what is left of the sum is that rounding.
    wrong = 8 * np.abs(inner) * (1 - np.tanh(inner) ** 2) + 5
    return Near(0.5 * g * (1 + np.tanh(inner)), 0.5 * np.abs(g) * UNIT_ROUNDOFF * (wrong + 4))


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=25)
def test_mlp_activation(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape, kind = (data.draw(st.integers(0, 5)), data.draw(st.sampled_from(WIDTHS))), data.draw(st.sampled_from(KINDS))
    gate, up, inner = numbers(rng, shape, dtype), numbers(rng, shape, dtype), data.draw(st.booleans())
    gate *= data.draw(st.sampled_from([1, 64 if kind == "silu" else 8]))  # e^-g overflows below -88: silu is -0 there
    alone = data.draw(st.booleans())
    with scheduled(data.draw(orders), check):
        y = launch.mlp_activation(stored(gate, dtype), None if alone else stored(up, dtype), kind, dtype, inner)
    near = activated(gate.astype(np.float64), kind)
    near = Near(near.value, near.off + half_ulp(np.abs(near.value) + near.off, dtype) * inner)
    assert_near(y, near if alone else near.times(up.astype(np.float64)), dtype)


@every_dtype
@both_ways
@given(data=st.data())
@settings(max_examples=15)
def test_clamped_gate(dtype: str, check: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(WIDTHS))
    gate, up, inner = 8 * numbers(rng, shape, dtype), 8 * numbers(rng, shape, dtype), data.draw(st.booleans())
    kind = ClampedGate(alpha=1.5, limit=data.draw(st.sampled_from([7.0, 0.5])))
    with scheduled(data.draw(orders), check):
        y = launch.mlp_activation(stored(gate, dtype), stored(up, dtype), kind, dtype, inner)
    g = np.minimum(gate.astype(np.float64), kind.limit)
    u = exact(np.clip(up.astype(np.float64), -kind.limit, kind.limit))
    scaled = rounded_if(inner, exact(g).times(np.array(kind.alpha)), dtype)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-scaled.value))
    # an exponent that is off by d makes e^-g off by a factor of e^d, and the sigmoid by no more
    near = Near(sigmoid, sigmoid * (np.expm1(scaled.off) + 8 * UNIT_ROUNDOFF) + 1e-36)
    near = rounded_if(inner, near, dtype)
    product = rounded_if(inner, near.times(g), dtype)
    factor = rounded_if(inner, plus(u, exact(np.ones(shape, np.float32))), dtype)
    off = np.abs(factor.value) * product.off + np.abs(product.value) * factor.off + factor.off * product.off
    value = factor.value * product.value
    assert_near(y, Near(value, off + UNIT_ROUNDOFF * np.abs(value)), dtype)


def test_a_nan_goes_through_every_activation() -> None:
    x = np.array([[np.nan, 1.0]], np.float32)
    for kind in (*KINDS, ClampedGate()):
        for gate, up in ((x, x[:, ::-1].copy()), (x[:, ::-1].copy(), x)):
            assert np.isnan(launch.mlp_activation(gate, up, kind, "float32", False)).all()


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
            lambda x: launch.rope(x[None], np.ascontiguousarray(x[:1, :2]), x[:1], False, "float32", False),
            r"sin is \(1, 4\), x \(1, 3, 4\)",
        ),
        (
            lambda x: launch.rope(x[None], np.zeros((1, 3), np.float32), x[:1], False, "float32", False),
            r"cos is \(1, 3\), x \(1, 3, 4\)",
        ),
        (
            lambda x: launch.layer_norm(x, np.ones((3, 4), np.float32), 1e-5, "float32", False),
            r"weight and bias are \(3, 4\), x \(3, 4\)",
        ),
        (lambda x: launch.mlp_activation(x, x.astype(np.float16), "silu", "float32", False), "up is float16"),
        (lambda x: launch.mlp_activation(x.T, x.T, "silu", "float32", False), r"gate of shape .* is not contiguous"),
        (
            lambda x: launch.mlp_activation(x, x, "silu", "float16", False),
            "gate is float32; this kernel was built for float16",
        ),
        (lambda x: launch.mlp_activation(x, None, ClampedGate(), "float32", False), "multiplies by up"),
    ],
)
def test_a_bad_argument_is_refused(call: object, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        call(np.zeros((3, 4), np.float32))  # type: ignore[operator]
