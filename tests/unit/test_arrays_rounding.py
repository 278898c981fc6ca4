"""Rounding to a half type, and which points a Precision rounds."""

import sys
from dataclasses import fields
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refimpl import LoracleError, Precision
from refimpl.arrays import device_namespace, namespace, rounded, widen
from refimpl.errors import DeviceError

RNG = np.random.default_rng(0)
VALUES = (RNG.standard_normal(4000) * 10.0 ** RNG.integers(-38, 38, 4000)).astype(np.float32)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_rounding_is_to_nearest_even_as_ml_dtypes_and_numpy_do_it(name: str, wide: type) -> None:
    edges = [0.0, -0.0, 1.00390625, 1.01171875, 65504, 65519, 65520, 3.3e38, 3.4e38, 6e-8, 3e-8, 1e-45, np.inf, -np.inf]
    x = np.concatenate([VALUES, edges]).astype(wide)
    with np.errstate(over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16 if name == "bfloat16" else np.float16).astype(wide)
    np.testing.assert_array_equal(rounded(x, name), expected)
    assert rounded(x, name).dtype == wide


def test_a_nan_stays_a_nan() -> None:
    bits = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    for name in ("bfloat16", "float16"):
        assert np.isnan(rounded(bits, name)).all()


def test_a_type_that_is_no_narrower_changes_nothing() -> None:
    x = VALUES[:5]
    assert rounded(x, "float32") is x
    assert rounded(x, "float64") is x


def test_widening_keeps_every_number_of_a_half_type() -> None:
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        x = every.view(dtype)
        np.testing.assert_array_equal(widen(x, "float32"), x.astype(np.float32))
    assert widen(VALUES, "float32") is VALUES


def test_a_model_of_a_half_type_rounds_every_point_to_it() -> None:
    p = Precision("model", "bfloat16")
    points = {f.name: getattr(p, f.name) for f in fields(p)[3:]}
    assert p.compute == "float32" and points.pop("rope_angle") == "float64"
    assert set(points.values()) == {"bfloat16"}
    assert Precision("model", "float64").compute == "float64"


def test_peft_keeps_adapters_and_their_products_in_float32() -> None:
    p = Precision("transformers", "float16")
    assert {p.adapter, p.lora_rank, p.lora_delta, p.rope_angle, p.compute} == {"float32"}
    assert (p.linear, p.kv, p.logits) == ("float16",) * 3


def test_one_point_can_be_named() -> None:
    p = Precision("model", "bfloat16", kv="float16")
    assert (p.kv, p.linear) == ("float16", "bfloat16")
    assert "kv=float16" in p.describe()


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"preset": "vllm9"}, {"kv": "fp8"}])
def test_an_unknown_name_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(LoracleError, match="choose one of"):
        Precision(**wrong)


def test_a_numpy_scalar_lives_where_numpys_arrays_do() -> None:
    assert namespace(np.float32(1)) is np
    assert rounded(np.float32(1.001), "bfloat16") == np.float32(1)


def test_a_cupy_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text("raise RuntimeError('CUDA 9 is\\n too old')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    device_namespace.cache_clear()
    with pytest.raises(DeviceError, match=r"CuPy cannot be imported \(CUDA 9 is too old\)"):
        device_namespace("cuda")
    device_namespace.cache_clear()
