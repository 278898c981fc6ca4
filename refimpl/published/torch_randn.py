"""torch.randn of a CPU, bit for bit, in NumPy: what "seed 42" means in a published recipe.

    word = next 32 bits of MT19937(seed)      NumPy's RandomState(seed) is the same engine, seeded the same way
    u    = (word mod 2**p) / 2**p             p = 24 for float32, 11 for float16: the bits of the type
    of every 16 u's, 0 to 7 make radii sqrt(-2 log(1 - u)), 8 to 15 angles 2 pi u       (Box and Muller 1958)
    values 0 to 7 are radius * cos(angle), 8 to 15 radius * sin(angle)

Sources, all in pytorch/pytorch under aten/src/ATen: core/MT19937RNGEngine.h; core/TransformationHelper.h, uniform_real;
native/cpu/DistributionTemplates.h, normal_fill; native/cpu/avx_mathfun.h, log256_ps and sincos256_ps.

Which numbers a seed means depends on the release. Up to 2.8 (at least), a float16 randn was computed *in* float16: of
11 random bits, so there are 2,048 radii and 2,048 angles, and no value beyond 3.91. In 2.13 it is float32's randn,
rounded: other numbers altogether (pytorch issue 166853, pull request 179834). Both are here. float32 has not changed.
Compared with the libraries of torch 2.8.0 and 2.13.0 on x86-64 with AVX2, over a million numbers each: no bit differs.
A CPU without AVX2 takes the C library's log and cos instead, and its float32 differs in the last bits (up to 2.2e-6).
"""

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import Array, Float
from ..errors import LoracleError

State = np.random.RandomState


def manual_seed(seed: int) -> State:
    """torch.manual_seed(seed), or torch.Generator().manual_seed(seed): the state that the draws below advance."""
    return State(seed)


def randn_float32(state: State, shape: Sequence[int]) -> Float[Array, "..."]:
    """torch.randn(shape)."""
    uniform, v = _uniforms(state, shape, 24)
    return _shaped(*_box_muller(uniform, v), shape)


def randn_float16(state: State, shape: Sequence[int]) -> Float[Array, "..."]:
    """torch.randn(shape, dtype=torch.float16) of torch 2.8: every step is rounded to float16."""
    uniform, v = _uniforms(state, shape, 11)
    radius = _half(np.sqrt(_half(-2 * _half(np.log(1 - uniform.astype(np.float64))))))
    angle = _half(2 * np.pi * v.astype(np.float64))
    cos, sin = _half(np.cos(angle)), _half(np.sin(angle))
    zero = np.float16(0)  # the mean is added, which turns -0 into 0
    return _shaped(_half(radius * cos).astype(np.float16) + zero, _half(radius * sin).astype(np.float16) + zero, shape)


def randn_float16_of_2_13(state: State, shape: Sequence[int]) -> Float[Array, "..."]:
    """torch.randn(shape, dtype=torch.float16) of torch 2.13: float32's numbers, rounded once."""
    return randn_float32(state, shape).astype(np.float16)


def _uniforms(state: State, shape: Sequence[int], bits: int) -> tuple[Array, Array]:
    """The u's that make radii, and those that make angles: [size / 16, 8] each."""
    size = math.prod(shape)
    if size == 0 or size % 16:
        raise LoracleError(f"randn of shape {list(shape)}: only sizes that 16 divides, torch draws others differently")
    words = state.randint(0, 2**32, size=(size // 16, 2, 8), dtype=np.uint32) & np.uint32(2**bits - 1)
    uniform = words.astype(np.float32) * np.float32(2.0**-bits)
    return uniform[:, 0], uniform[:, 1]


def _shaped(cosines: Array, sines: Array, shape: Sequence[int]) -> Array:
    return np.stack([cosines, sines], axis=1).reshape(shape)


def _half(x: Array) -> Array:
    """Rounded to float16, by way of float32 as C++ does it; kept in float64 for the next step."""
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


# float32: the vectorised logarithm, sine and cosine of the Cephes library, as the compiler of torch's packages fuses
# them. They are up to 3 units in the last place off the true value, and those units are what has to be reproduced.

LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN_2 = (0.693359375, -2.12194440e-4)  # in two parts, of which the first is exact in few bits
COS = (2.443315711809948e-005, -1.388731625493765e-003, 4.166664568298827e-002)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
PI_4 = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # in three parts


def _f(x: float) -> np.float32:
    return np.float32(x)


def _box_muller(uniform: Array, v: Array) -> tuple[Array, Array]:
    """radius * cos, radius * sin, in float32."""
    radius = np.sqrt(_f(-2) * _log(_f(1) - uniform))
    sin, cos = _sin_cos(_f(2 * np.pi) * v)
    return radius * cos, radius * sin


def _fma(factor: Array, other: Array | np.float32, addend: Array | np.float32) -> Array:
    """a * b + c as one instruction: in float64, where the product of two float32 is exact."""
    return (factor.astype(np.float64) * other + addend).astype(np.float32)


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    y = np.full_like(x, coefficients[0])
    for addend in coefficients[1:]:
        y = _fma(y, x, _f(addend))
    return y


def _log(x: Array) -> Array:
    """log x = e log 2 + log m, where x = m 2**e and m lies around 1."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _f(0.707106781186547524)
    exponents = exponent.astype(np.float32) - low.astype(np.float32)
    mantissa = (mantissa - _f(1)) + np.where(low, mantissa, _f(0))
    square = mantissa * mantissa
    y = _polynomial(mantissa, LOG) * mantissa
    y = _fma(y, square, exponents * _f(LN_2[1]))
    y = _fma(-square, _f(0.5), y)
    return _fma(exponents, _f(LN_2[0]), mantissa + y)


def _sin_cos(x: Array) -> tuple[Array, Array]:
    """Of x >= 0: less the nearest even number j of eighths of a turn, then the polynomial that j asks for."""
    j = ((x * _f(4 / np.pi)).astype(np.int32) + 1) & ~1
    for part in PI_4:
        x = _fma(j.astype(np.float32), _f(-part), x)
    square = x * x
    cos = _polynomial(square, COS) * square
    cos = _fma(cos, square, -(square * _f(0.5))) + _f(1)
    sin = _fma(_polynomial(square, SIN) * square, x, x)
    swapped = (j & 2) != 0
    sin, cos = np.where(swapped, cos, sin), np.where(swapped, sin, cos)
    return np.where(j & 4, -sin, sin), np.where((j - 2) & 4, cos, -cos)
