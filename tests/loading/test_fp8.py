"""FP8 weights in blocks, as DeepSeek-V3 is published, against a loop over all numbers; and damaged ones."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import config_json, refused
from safetensors.numpy import save

from refimpl import load_model
from refimpl.errors import ConfigError, WeightsError
from refimpl.loading.checkpoint import expected_tensors
from refimpl.loading.config_file import load_config
from refimpl.loading.fp8_blocks import dequantised

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [5, 4], "activation_scheme": "dynamic"}
NAME = "model.layers.1.mlp.down_proj.weight"


def header_changed(data: bytes, names: set[str]) -> bytes:
    """The file with the I8 tensors of these names called F8_E4M3, which NumPy's safetensors does not write."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def write(folder: Path, quantization: Any = FP8, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Write a base with one FP8 weight; return its tensors, the weight as it is meant."""
    (folder / "config.json").write_text(json.dumps(config_json(quantization_config=quantization)))
    plain = json.dumps(config_json())
    (folder / "plain").mkdir(exist_ok=True)
    (folder / "plain/config.json").write_text(plain)
    rng = np.random.default_rng(1)
    shapes = expected_tensors(load_config(folder / "plain"))
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    rows, columns = shapes[NAME]
    numbers = rng.standard_normal((rows, columns)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.standard_normal((-(-rows // 5), -(-columns // 4))).astype(np.float32)
    stored = tensors | {NAME: numbers.view(np.int8), f"{NAME}_scale_inv": scales}
    stored = {name: x for name, x in (stored | changes).items() if x is not None}
    (folder / "model.safetensors").write_bytes(header_changed(save(stored), {NAME}))
    weight = [[float(numbers[i, j]) * float(scales[i // 5, j // 4]) for j in range(columns)] for i in range(rows)]
    return tensors | {NAME: np.array(weight)}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_numbers_are_exact_and_then_of_the_models_type(tmp_path: Path, dtype: str) -> None:
    tensors = write(tmp_path)
    weight = load_model(tmp_path, dtype).layers[1].linears["down_proj"].weight
    np.testing.assert_array_equal(weight, tensors[NAME].astype(weight.dtype))
    assert weight.dtype.name == dtype


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    seed=st.integers(0, 99),
)
def test_blocks_at_the_edge_are_narrower(shape: tuple[int, int], block: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.standard_normal(tuple(-(-n // part) for n, part in zip(shape, block, strict=True))).astype(np.float32)
    weight = dequantised(numbers, scales, block)
    for i, j in np.ndindex(*shape):
        assert weight[i, j] == float(numbers[i, j]) * float(scales[i // block[0], j // block[1]])


@pytest.mark.parametrize(
    ("quantization", "changes", "says"),
    [
        (FP8, {f"{NAME}_scale_inv": None}, "_scale_inv is not in the same file: it must be F32"),
        (FP8, {f"{NAME}_scale_inv": np.ones((4, 5), np.float16)}, "_scale_inv is F16: it must be F32"),
        (FP8, {f"{NAME}_scale_inv": np.ones((1, 1), np.float32)}, "has shape [1, 1], not"),
        (None, {}, "config.json has no quantization_config with a weight_block_size"),
    ],
)
def test_a_damaged_weight_is_refused_by_name(
    tmp_path: Path, quantization: Any, changes: dict[str, np.ndarray | None], says: str
) -> None:
    write(tmp_path, quantization, **changes)
    with refused(WeightsError, NAME, "is F8_E4M3", says):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fmt": "e5m2"}, "quantization_config has fmt 'e5m2': only 'e4m3' is supported"),
        ({"weight_block_size": None}, "quantization_config has weight_block_size None: it must be two sizes"),
        ({"weight_block_size": [128]}, "weight_block_size [128]: it must be two sizes"),
    ],
)
def test_another_kind_of_fp8_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(tmp_path, FP8 | change)
    with refused(ConfigError, "config.json", says):
        load_model(tmp_path)


def test_nan_is_refused(tmp_path: Path) -> None:
    rows, columns = 12, 20
    write(tmp_path)
    shape = load_model(tmp_path, "float64").layers[1].linears["down_proj"].weight.shape
    assert shape == (rows, columns)
    write(tmp_path, FP8, **{NAME: np.full(shape, 127, np.int8)})  # 0x7f is NaN in e4m3
    with refused(WeightsError, NAME, "holds NaN or inf"):
        load_model(tmp_path)
