"""A checkpoint -> a Model: the right numbers, in the right type, without memory that it does not need."""

import json
import mmap
import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from folders import BASE, LFS_POINTER, config_json, model_tensors, random, safetensors_bytes, write_model

import refimpl.loading.config_file
import refimpl.loading.model_folder
from refimpl.arrays import DTYPES, widen
from refimpl.config import module_name
from refimpl.errors import DeviceError, LoracleError, WeightsError
from refimpl.loading.checkpoint import expected_tensors
from refimpl.loading.conversion import available_memory, converted
from refimpl.loading.model_folder import load_model
from refimpl.weights import Model

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """The model's arrays under the names of the checkpoint."""
    named = {EMBED: model.embed_tokens, "model.norm.weight": model.norm, HEAD: model.lm_head.weight}
    for i, layer in enumerate(model.layers):
        named |= {f"model.layers.{i}.{name}.weight": weight for name, weight in layer.norms.items()}
        for module, linear in layer.linears.items():
            named[f"{module_name((i, module))}.weight"] = linear.weight
            if linear.bias is not None:
                named[f"{module_name((i, module))}.bias"] = linear.bias
    return named


def is_mapped(x: np.ndarray) -> bool:
    """Whether an array is a view of a memory map."""
    owner: object = x
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner.obj if isinstance(owner, memoryview) else owner, mmap.mmap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_every_tensor_in_every_type(tmp_path: Path, stored: str, dtype: str) -> None:
    tensors = model_tensors(dtype=stored)
    model = load_model(write_model(tmp_path, tensors), dtype)
    assert (model.config, model.dtype, model.device) == (BASE, dtype, "cpu")
    held = arrays_of(model)
    assert held.keys() == tensors.keys()
    for name, x in held.items():
        assert x.dtype == DTYPES[dtype]
        assert not x.flags.writeable
        assert is_mapped(x) == (stored == dtype)
        wide = tensors[name].astype(np.float64)
        if not (stored == "float64" and dtype == "bfloat16"):  # ml_dtypes rounds that one twice: see below
            np.testing.assert_array_equal(x.astype(np.float64), wide.astype(DTYPES[dtype]).astype(np.float64))


def test_float64_becomes_bfloat16_by_one_rounding() -> None:
    """To the nearest bfloat16, ties to even, and not by way of float32, which makes ties of what was none."""
    tie, step = 1 + 2.0**-8, 2.0**-7  # halfway between 1 and the next bfloat16
    cases = {tie: 1, tie + 2.0**-40: 1 + step, tie - 2.0**-40: 1, -tie - 2.0**-40: -1 - step, tie + step: 1 + 2 * step}
    x = np.array(list(cases))
    assert converted(x, "bfloat16").astype(np.float64).tolist() == list(cases.values())

    x = np.random.default_rng(0).standard_normal(20_000) * 10.0 ** np.random.default_rng(1).integers(-41, 38, 20_000)
    got = converted(x, "bfloat16")
    for step in (-1, 1):
        bits = (got.view(np.uint16).astype(np.int32) + step) & 0xFFFF
        neighbour = bits.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
        assert not (np.abs(neighbour - x) < np.abs(got.astype(np.float64) - x)).any()
    assert np.isinf(converted(np.array([1e39, -1e39]), "bfloat16")).all()


def test_shards_biases_and_tied_embeddings(tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}
    write_model(tmp_path, {}, **changes)
    (tmp_path / "model.safetensors").unlink()
    tensors = {
        name: random(shape, i)
        for i, (name, shape) in enumerate(expected_tensors(refimpl.loading.config_file.load_config(tmp_path)).items())
    }
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        (tmp_path / file).write_bytes(safetensors_bytes({name: tensors[name] for name in held}))
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.embed_tokens
    held = arrays_of(model)
    del held[HEAD]
    assert held.keys() == tensors.keys()
    assert all(np.array_equal(held[name], tensors[name]) for name in held)

    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"index\.json: names model-00002-of-00002\.safetensors, which is not there$"
    ):
        load_model(tmp_path)


def test_a_tied_checkpoint_may_hold_both_tables_if_they_are_one(tmp_path: Path) -> None:
    tensors = model_tensors()
    tensors[HEAD] = tensors[EMBED].copy()
    assert load_model(write_model(tmp_path / "same", tensors, tie_word_embeddings=True)).lm_head.weight.shape == (
        13,
        12,
    )
    only_head = {name: x for name, x in tensors.items() if name != EMBED}
    swapped = load_model(write_model(tmp_path / "head", only_head, tie_word_embeddings=True))
    assert np.array_equal(swapped.embed_tokens, tensors[HEAD])
    tensors[HEAD][0, 0] += 1
    with pytest.raises(WeightsError, match=r"lm_head.weight is not equal to model.embed_tokens.weight"):
        load_model(write_model(tmp_path / "other", tensors, tie_word_embeddings=True))


def test_old_rotary_tables_are_left_alone(tmp_path: Path) -> None:
    tensors = model_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": random((4,))}
    assert load_model(write_model(tmp_path, tensors))


def with_value(name: str, value: float, dtype: str = "float32") -> dict[str, np.ndarray]:
    tensors = model_tensors(dtype=dtype)
    tensors[name].reshape(-1)[-1] = value
    return tensors


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({k: v for k, v in model_tensors().items() if k != Q}, rf"tensor {Q} \[32, 12\] is in no file"),
        ({k: v for k, v in model_tensors().items() if k != HEAD}, "tie_word_embeddings is false in config.json"),
        (model_tensors() | {Q: random((12, 32))}, rf"tensor {Q} has shape \[12, 32\], config.json makes it \[32, 12\]"),
        (model_tensors() | {"model.layers.2.mlp.up_proj.weight": random((20, 12))}, "layer 2 beyond num_hidden_layers"),
        (model_tensors() | {"model.layers.0.self_attn.q_proj.bias": random((32,))}, "no attention_bias"),
        (model_tensors() | {"score.weight": random((2, 12))}, "score.weight .* of another architecture"),
        (model_tensors() | {Q: np.zeros((32, 12), np.int8)}, rf"tensor {Q} has dtype I8; supported are F64, F32"),
        (with_value(Q, np.nan), rf"model.safetensors: tensor {Q} holds NaN or inf"),
        (with_value(Q, np.inf, "float64"), "NaN or inf"),
        (with_value(Q, -np.inf, "float16"), "NaN or inf"),
        (with_value(Q, np.nan, "bfloat16"), "NaN or inf"),
        (with_value(EMBED, -np.nan, "bfloat16"), "NaN or inf"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path: Path, tensors: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(WeightsError, match=says) as error:
        load_model(write_model(tmp_path, tensors))
    assert "\n" not in str(error.value)


def test_the_largest_and_smallest_numbers_are_no_nan(tmp_path: Path) -> None:
    for dtype in DTYPES:
        info = ml_dtypes.finfo(DTYPES[dtype])
        tensors = with_value(Q, info.max, dtype)
        tensors[EMBED][0, 0], tensors[EMBED][0, 1], tensors[EMBED][0, 2] = info.tiny, -0.0, -info.max
        assert load_model(write_model(tmp_path / dtype, tensors), dtype).dtype == dtype


def test_a_number_too_large_for_the_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"tensor {Q} has values too large for float16"):
        load_model(write_model(tmp_path, with_value(Q, 65520.0)), "float16")
    assert load_model(write_model(tmp_path, with_value(Q, 65519.0)), "float16")  # rounds to 65504


def test_folders_without_safetensors(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model.safetensors and no model.safetensors.index.json$"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: it is a pickle.*save_pretrained\(NEW\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        (..., "weight_map is None"),
        ([], r"weight_map is \[\]"),
        ({}, r"weight_map is \{\}"),
        ({Q: "../model.safetensors"}, "not the name of a file beside it"),
        ({Q: "/etc/passwd"}, "not the name of a file beside it"),
        ({Q: 3}, "not the name of a file beside it"),
        ({Q: "other.safetensors"}, "remove one of them"),
    ],
)
def test_a_damaged_index(tmp_path: Path, weight_map: object, says: str) -> None:
    write_model(tmp_path)
    index = {} if weight_map is ... else {"weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=says):
        load_model(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(safetensors_bytes({Q: random((32, 12))}))
    index = {"weight_map": {EMBED: "model.safetensors", Q: "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=rf"two.safetensors: tensor {Q} is also in model.safetensors"):
        load_model(tmp_path)


def test_a_pointer_in_place_of_the_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(LFS_POINTER)
    with pytest.raises(
        WeightsError, match=r"is a Git LFS pointer to a file of size 167832240 bytes.*git lfs pull"
    ) as error:
        load_model(tmp_path)
    assert "more:" not in str(error.value)  # not also one for each tensor that is missing


def test_unknown_types_and_devices(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(LoracleError, match="dtype 'int8' is not supported"):
        load_model(tmp_path, "int8")
    with pytest.raises(DeviceError, match="device 'tpu' is not supported"):
        load_model(tmp_path, device="tpu")


def test_too_little_memory_is_refused_before_any_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    need = 8 * sum(x.size for x in model_tensors().values())
    taken: list[str] = []
    monkeypatch.setattr(
        refimpl.loading.model_folder, "converted", lambda x, dtype: taken.append(dtype) or x.astype(dtype)
    )
    monkeypatch.setattr(refimpl.loading.model_folder, "available_memory", lambda: need - 1)
    with pytest.raises(DeviceError, match=r"converting the weights to float64 takes .* GiB of memory"):
        load_model(tmp_path, "float64")
    assert not taken
    monkeypatch.setattr(refimpl.loading.model_folder, "available_memory", lambda: need)
    assert load_model(tmp_path, "float64")
    monkeypatch.setattr(refimpl.loading.model_folder, "available_memory", lambda: 0)
    assert load_model(tmp_path, "float32")  # nothing to convert: only mapped


def test_available_memory_is_bytes_or_unknown() -> None:
    assert available_memory() is None or 2**20 < available_memory() < 2**50  # type: ignore[operator]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_halves_are_held_wide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str
) -> None:
    """Without a GPU: NumPy stands in for CuPy, whose free memory is asked for first."""
    tensors = model_tensors(dtype=stored)
    held = "float64" if dtype == "float64" else "float32"
    need = DTYPES[held].itemsize * sum(x.size for x in tensors.values())
    free = [need]
    runtime = types.SimpleNamespace(memGetInfo=lambda: (free[0], 0))
    gpu = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(refimpl.loading.model_folder, "device_namespace", lambda device: gpu)
    monkeypatch.setattr(refimpl.loading.model_folder, "to_device", lambda x, device: widen(x, held).copy())
    model = load_model(write_model(tmp_path, tensors), dtype, "cuda")
    assert (model.dtype, model.device) == (dtype, "cuda")
    for name, x in arrays_of(model).items():
        assert x.dtype.name == held
        assert np.array_equal(x, tensors[name].astype(DTYPES[dtype]).astype(held))
    free[0] = need - 1
    with pytest.raises(DeviceError, match="the weights on the GPU takes"):
        load_model(tmp_path, dtype, "cuda")


MEASURE = """
import sys, threading, time
import ml_dtypes, numpy, refimpl.weights

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], anonymous())

before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = refimpl.load_model(sys.argv[1], sys.argv[2])
done.set()
watcher.join()
print(anonymous() - before, peak[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_taken(tmp_path: Path) -> None:
    """Nothing where the type is the checkpoint's, the result and a little more where it is not, at any moment."""
    changes = {"vocab_size": 50_000, "hidden_size": 512, "intermediate_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config_json(**changes)))
    block = random((997,), 0, "bfloat16")
    shapes = expected_tensors(refimpl.loading.config_file.load_config(tmp_path))
    tensors = {name: np.resize(block, shape) for name, shape in shapes.items()}
    elements = sum(x.size for x in tensors.values())
    assert 2 * elements > 100e6
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    del tensors
    root = str(Path(refimpl.__file__).parents[1])
    for dtype, limit in (("bfloat16", 0.15 * 2 * elements), ("float32", 1.15 * 4 * elements)):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": root}).stdout
        after, peak = map(int, out.split())
        assert after <= limit, dtype
        assert peak <= limit, dtype
