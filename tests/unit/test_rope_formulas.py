"""The frequencies of rotary embedding against the formulas as they are published."""

import numpy as np
import pytest
from support.dense import wave_numbers

from refimpl import Precision
from refimpl.config import Rope
from refimpl.rope import rope_frequencies, rope_table

LLAMA_3_1 = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
ROPES = [
    Rope(),
    Rope(500000.0),
    Rope(10000.0, "linear", factor=2.5),
    LLAMA_3_1,
    Rope(5e5, "llama3", 32.0, 1.0, 4.0, 16),
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [2, 8, 128])
def test_frequencies_are_those_of_the_formula(rope: Rope, head_dim: int) -> None:
    np.testing.assert_allclose(rope_frequencies(rope, head_dim), wave_numbers(rope, head_dim), rtol=1e-13)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    ratio = rope_frequencies(LLAMA_3_1, 128) / rope_frequencies(Rope(500000.0), 128)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8)
    assert (np.diff(ratio) <= 0).all() and ((ratio > 0.126) & (ratio < 0.999)).any()


def test_the_table_is_cos_and_sin_of_position_times_frequency() -> None:
    positions = np.array([0, 3, 1000], np.int32)
    cos, sin = rope_table(Rope(), 8, positions, positions + 1, Precision("model", "float64"))
    angle = np.outer(positions, wave_numbers(Rope(), 8))
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-13)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-13)
