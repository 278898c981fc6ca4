"""A folder of diffusers is loaded in full, or refused in one line that names the file and the key."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.pictures import SMALL, parts_of, random_picture_model

from refimpl import LoracleError, load_picture_model
from refimpl.errors import ConfigError, WeightsError
from refimpl.pictures.folder import WEIGHTS
from refimpl.pictures.weights import Flow

MODEL = random_picture_model()


def config_json(**changes: Any) -> dict[str, Any]:
    """What ZImageTransformer2DModel.save_pretrained writes of SMALL."""
    data = {key: value for key, value in asdict(SMALL).items() if key != "patch_size"}
    known_keys = {"_class_name": "ZImageTransformer2DModel", "all_patch_size": [1], "all_f_patch_size": [1]}
    return data | known_keys | {"n_kv_heads": SMALL.n_heads, "qk_norm": True, "siglip_feat_dim": None} | changes


def scheduler_json(**changes: Any) -> dict[str, Any]:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": False} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's folder, float32."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config_json()))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_json()))
    save_file({name: x.astype(np.float32) for name, x in parts_of(MODEL).items()}, tmp_path / "transformer" / WEIGHTS)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_tensor_is_loaded(folder: Path, dtype: str) -> None:
    model = load_picture_model(folder, dtype)
    assert model.config == SMALL and model.flow == Flow("velocity", 3.0) and model.dtype == dtype
    loaded = parts_of(model)
    assert loaded.keys() == parts_of(MODEL).keys()
    for name, x in parts_of(MODEL).items():
        expected = x.astype(np.float32).astype(loaded[name].dtype)
        assert loaded[name].dtype.name == dtype and not loaded[name].flags.writeable
        np.testing.assert_array_equal(loaded[name].astype(np.float64), expected.astype(np.float64))
    assert model.nbytes == sum(x.nbytes for x in loaded.values())


def test_the_transformer_alone_and_its_scheduler(folder: Path) -> None:
    """The scheduler stands beside the transformer; without one the model says velocities, as Z-Image's own."""
    assert load_picture_model(folder / "transformer").flow == Flow("velocity", 3.0)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_json(prediction_type="sample")))
    assert load_picture_model(folder).flow == Flow("sample", 3.0)
    shutil.rmtree(folder / "scheduler")
    assert load_picture_model(folder).flow == Flow("velocity", 1.0)


def test_shards(folder: Path) -> None:
    tensors = load_file(folder / "transformer" / WEIGHTS)
    (folder / "transformer" / WEIGHTS).unlink()
    weight_map = {}
    for i, half in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / "transformer" / file)
        weight_map |= dict.fromkeys(half, file)
    index = folder / "transformer" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert parts_of(load_picture_model(folder)).keys() == tensors.keys()
    (folder / "transformer" / file).unlink()
    with pytest.raises(WeightsError, match=f"{index.name}: names {file}, which is not there"):
        load_picture_model(folder)


WRONG_KEYS = {
    "another class": (dict(_class_name="FluxTransformer2DModel"), "_class_name is 'FluxTransformer2DModel'"),
    "no class": (dict(_class_name=None), "_class_name is None"),
    "two patch sizes": (dict(all_patch_size=[1, 2]), r"all_patch_size is \[1, 2\]"),
    "patches in time": (dict(all_f_patch_size=[2]), r"all_f_patch_size is \[2\]; only \[1\] is supported"),
    "no norm of heads": (dict(qk_norm=False), "qk_norm is False; only True is supported"),
    "an image encoder": (dict(siglip_feat_dim=1152), "siglip_feat_dim is 1152; only None is supported"),
    "grouped heads": (dict(n_kv_heads=1), "n_kv_heads is 1 and n_heads 2"),
    "axes that are no head": (dict(axes_dims=[2, 2, 4]), r"axes_dims \[2, 2, 4\] must be even, and add up"),
    "odd axes": (dict(axes_dims=[1, 2, 3]), "must be even"),
    "two axes": (dict(axes_dims=[2, 4]), "must be three positive integers"),
    "a text": (dict(dim="12"), "dim is '12'"),
    "no layer count": (dict(n_layers=-1), "n_layers is -1"),
    "NaN": (dict(norm_eps=float("nan")), "norm_eps is nan"),
}


@pytest.mark.parametrize("what", WRONG_KEYS)
def test_a_config_that_is_not_supported_is_refused_by_name(folder: Path, what: str) -> None:
    changes, message = WRONG_KEYS[what]
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(config_json(**changes)))
    with pytest.raises(ConfigError, match=message) as raised:
        load_picture_model(folder)
    assert str(raised.value).startswith(f"{file}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "EulerDiscreteScheduler"},
        {"prediction_type": "epsilon"},
        {"shift": 0},
        {"use_dynamic_shifting": True},
        {"use_karras_sigmas": True},
        {"stochastic_sampling": True},
        {"shift_terminal": 0.1},
    ],
    ids=str,
)
def test_a_scheduler_that_is_not_supported_is_refused_by_name(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(scheduler_json(**changes)))
    with pytest.raises(ConfigError, match=f"{file}: {next(iter(changes))} is "):
        load_picture_model(folder)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[dict], dict]:
    """The tensors with one of them changed, or left out."""
    return lambda tensors: {
        key: x for key, old in tensors.items() if (x := change(old) if key == name else old) is not None
    }


Q = "layers.0.attention.to_q.weight"
WRONG_TENSORS = {
    "one is missing": (changed(Q, lambda x: None), rf"tensor {Q} \[12, 12\] is in no file of the checkpoint"),
    "one has another shape": (changed(Q, lambda x: x[:, 1:]), r"has shape \[12, 11\], config.json makes it \[12, 12\]"),
    "one is NaN": (changed(Q, lambda x: x * np.nan), f"tensor {Q} holds NaN or inf"),
    "one is of integers": (changed(Q, lambda x: x.astype(np.int32)), f"tensor {Q} has dtype I32"),
    "one too many": (lambda tensors: tensors | {"layers.1.x": tensors[Q]}, "layers.1.x .* is not one of the model's"),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_weights_that_do_not_fit_are_refused_by_name(folder: Path, what: str) -> None:
    change, message = WRONG_TENSORS[what]
    file = folder / "transformer" / WEIGHTS
    tensors = change(load_file(file))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    with pytest.raises(WeightsError, match=message) as raised:
        load_picture_model(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_paths_that_are_no_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing/config\.json: cannot be read"):
        load_picture_model(folder / "nothing")
    with pytest.raises(LoracleError, match="dtype 'int8' is not supported"):
        load_picture_model(folder, "int8")
    (folder / "transformer" / WEIGHTS).write_bytes(b"\x80\x02 the bytes of a pickle")
    with pytest.raises(WeightsError, match="is a PyTorch pickle"):
        load_picture_model(folder)
    (folder / "transformer" / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=rf"has no {WEIGHTS} and no {WEIGHTS}\.index\.json"):
        load_picture_model(folder)
