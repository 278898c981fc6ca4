"""Adapters of pictures: what each trainer writes is one adapter, what we write comes back, and nothing is ignored."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.pictures import SMALL, TARGETS, random_picture_adapter

from refimpl import LoracleError, load_picture_adapter, save_picture_adapter
from refimpl.adapter import Adapter, lora_alpha_of
from refimpl.adapter_slots import scale_of
from refimpl.config import module_name
from refimpl.errors import AdapterError
from refimpl.pictures.adapter_file import LORA_WEIGHTS, METADATA

ATTENTION = ("layers.0.attention", "context_refiner.0.attention", "noise_refiner.0.attention")
DIM, RANK, ALPHA = SMALL.dim, 2, 5.0
rng = np.random.default_rng(3)
A = {name: rng.normal(size=(RANK, DIM)).astype(np.float32) for name in ("to_q", "to_k", "to_v", "to_out.0")}
B = {name: rng.normal(size=(DIM, RANK)).astype(np.float32) for name in A}
PARTS = {name: (A[name], B[name]) for name in A}
# Z-Image's own layout: one A for the three, their B's one below the other.
FUSED = {"qkv": (A["to_q"], np.concatenate([B["to_q"], B["to_k"], B["to_v"]])), "out": PARTS["to_out.0"]}


def diffusers_names(prefix: str, parts: Mapping[str, Any] = PARTS) -> dict[str, np.ndarray]:
    """Dotted names, lora_A and lora_B."""
    return {
        f"{prefix}{layer}.{name}.lora_{half}.weight": x
        for layer in ATTENTION
        for name, pair in parts.items()
        for half, x in zip("AB", pair, strict=True)
    }


def kohya_names(parts: Mapping[str, Any] = PARTS) -> dict[str, np.ndarray]:
    """lora_unet_, and underscores for dots."""
    return {
        f"lora_unet_{layer}_{name}".replace(".", "_") + f".lora_{half}.weight": x
        for layer in ATTENTION
        for name, pair in parts.items()
        for half, x in zip(("down", "up"), pair, strict=True)
    }


def with_alphas(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same, with a tensor MODULE.alpha for each module."""
    stems = {name.partition(".lora_")[0] for name in tensors}
    return {**tensors, **{f"{stem}.alpha": np.array(ALPHA, np.float32) for stem in stems}}


def stated(**config: Any) -> dict[str, str]:
    """The metadata of diffusers."""
    data = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(A)} | config
    return {METADATA: json.dumps({f"transformer.{key}": value for key, value in data.items()})}


def written(folder: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """A file of these tensors."""
    path = folder / "style.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path, metadata)
    return path


FORMS = {  # what each is: tensors, metadata, the scale
    "diffusers, metadata": (diffusers_names("transformer."), stated(), ALPHA / RANK),
    "diffusers, rsLoRA": (diffusers_names("transformer."), stated(use_rslora=True), ALPHA / RANK**0.5),
    "diffusers, the transformer alone": (
        diffusers_names(""),
        {METADATA: json.dumps({"r": RANK, "lora_alpha": ALPHA, "target_modules": list(A)})},
        ALPHA / RANK,
    ),
    "diffusers, nothing said": (diffusers_names("transformer."), None, 1.0),
    "ai-toolkit": (diffusers_names("diffusion_model."), {"format": "pt"}, 1.0),
    "diffusion_model., alpha": (with_alphas(diffusers_names("diffusion_model.")), None, ALPHA / RANK),
    "kohya": (with_alphas(kohya_names()), None, ALPHA / RANK),
    "kohya, no alpha": (kohya_names(), None, 1.0),
    "kohya, fused": (with_alphas(kohya_names(FUSED)), None, ALPHA / RANK),
    "ComfyUI, fused": (with_alphas(diffusers_names("diffusion_model.", FUSED)), None, ALPHA / RANK),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_adapter(form: str, tmp_path: Path) -> None:
    tensors, metadata, scale = FORMS[form]
    adapter = load_picture_adapter(written(tmp_path, tensors, metadata), SMALL)
    assert adapter.name == "style"
    assert {module_name(module) for module in adapter.lora} == {f"{layer}.{name}" for layer in ATTENTION for name in A}
    for module, lora in adapter.lora.items():
        name = module_name(module).partition(".attention.")[2]
        shared = "to_q" if "fused" in form and name != "to_out.0" else name
        np.testing.assert_array_equal(lora.A, A[shared])
        np.testing.assert_array_equal(lora.B, B[name])
        assert scale_of(adapter.config, module, RANK) == pytest.approx(scale, rel=1e-12)


def test_modules_of_other_ranks_and_alphas_keep_their_own_scale(tmp_path: Path) -> None:
    tensors = with_alphas(kohya_names())
    tensors["lora_unet_layers_0_attention_to_q.lora_down.weight"] = rng.normal(size=(1, DIM))
    tensors["lora_unet_layers_0_attention_to_q.lora_up.weight"] = rng.normal(size=(DIM, 1))
    tensors["lora_unet_layers_0_attention_to_k.alpha"] = np.array([3.0])
    adapter = load_picture_adapter(written(tmp_path, tensors), SMALL)
    scales = {
        module_name(module): scale_of(adapter.config, module, len(lora.A)) for module, lora in adapter.lora.items()
    }
    assert scales.pop("layers.0.attention.to_q") == ALPHA
    assert scales.pop("layers.0.attention.to_k") == 3 / RANK
    assert set(scales.values()) == {ALPHA / RANK}


def one_less(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: x for key, x in tensors.items() if key != name}


K, D = kohya_names(), diffusers_names("transformer.")
K0, D0 = "lora_unet_layers_0_attention_to_q", "transformer.layers.0.attention.to_q"
REFUSED = {
    "LoCon": (K | {f"{K0}.lora_mid.weight": A["to_q"]}, None, f"{K0}.lora_mid.weight.*LoCon"),
    "LoHa": ({f"{K0}.hada_w1_a": A["to_q"]}, None, "LoHa"),
    "LoKr": ({f"{K0}.lokr_w1": A["to_q"]}, None, "LoKr"),
    "kohya's DoRA": (K | {f"{K0}.dora_scale": A["to_q"]}, None, "DoRA"),
    "PEFT's DoRA": (D | {f"{D0}.lora_magnitude_vector": A["to_q"][0]}, None, "DoRA"),
    "DoRA of which only the metadata speaks": (D, stated(use_dora=True), "use_dora is True, which is not supported"),
    "a text encoder's": (K | {"lora_te_text_model_q_proj.lora_down.weight": A["to_q"]}, None, "text encoder"),
    "a text encoder's, of diffusers": (D | {"text_encoder.q_proj.lora_A.weight": A["to_q"]}, None, "text encoder"),
    "an older diffusers'": ({f"{D0}.lora.down.weight": A["to_q"]}, None, "older form"),
    "a module that is not there": (D | {"transformer.layers.1.w.lora_A.weight": A["to_q"]}, None, "no such module"),
    "half a pair": (one_less(D, f"{D0}.lora_B.weight"), None, "layers.0.attention.to_q: lora_B is missing"),
    "an alpha alone": ({f"{K0}.alpha": np.array(1.0)}, None, "lora_A and lora_B is missing"),
    "another width": (
        D | {f"{D0}.lora_A.weight": A["to_q"][:, 1:]}, None, r"A has shape \[2, 11\], the base makes it \[2, 12\]",
    ),
    "a rank of its own for B": (D | {f"{D0}.lora_B.weight": B["to_q"][:, 1:]}, None, r"B has shape \[12, 1\]"),
    "rank 0": (D | {f"{D0}.lora_A.weight": A["to_q"][:0]}, None, r"A has shape \[0, 12\]"),
    "a convolution's shape": (D | {f"{D0}.lora_A.weight": A["to_q"][:, :, None, None]}, None, r"\[2, 12, 1, 1\]"),
    "alpha twice": (with_alphas(D), stated(), "both say a scale"),
    "an alpha of two numbers": (K | {f"{K0}.alpha": np.ones(2)}, None, "must be one number"),
    "fused and alone": (K | kohya_names({"qkv": FUSED["qkv"]}), None, "twice"),
    "integers": (D | {f"{D0}.lora_A.weight": np.ones((RANK, DIM), np.int32)}, None, "dtype I32"),
    "NaN": (D | {f"{D0}.lora_A.weight": A["to_q"] * np.nan}, None, "holds NaN or inf"),
    "the metadata's rank": (D, stated(r=3), "makes its rank 3, A has 2"),
    "the metadata's targets": (D, stated(target_modules=["to_q"]), "does not select it"),
    "the metadata's bias": (D, stated(lora_bias=True), "lora_B.bias is not there"),
    "the metadata's alpha": (D, stated(lora_alpha="big"), "lora_alpha is 'big'"),
    "metadata that is no JSON": (D, {METADATA: "{"}, "not valid JSON"),
    "metadata that is no object": (D, {METADATA: "[1]"}, "not a JSON object"),
    "metadata of another part": (D, {METADATA: '{"text_encoder.r": 1}'}, "text_encoder.r: only an adapter"),
    "a base that was changed": (D, stated(init_lora_weights="pissa"), "init_lora_weights"),
    "something newer": (D, stated(use_tomorrow=True), "use_tomorrow"),
    "no tensor": ({}, None, "holds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused_by_name(what: str, tmp_path: Path) -> None:
    tensors, metadata, message = REFUSED[what]
    path = written(tmp_path, tensors, metadata)
    with pytest.raises(AdapterError, match=message) as raised:
        load_picture_adapter(path, SMALL)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_paths_that_are_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not there; the embedded styles are ink, night"):
        load_picture_adapter(tmp_path / "nothing", SMALL)
    with pytest.raises(AdapterError, match=f"has no {LORA_WEIGHTS}"):
        load_picture_adapter(tmp_path, SMALL)
    with pytest.raises(AdapterError, match="needs the base's config"):
        load_picture_adapter(tmp_path, {})  # type: ignore[arg-type]
    for name in ("one", "two"):
        written(tmp_path, D).rename(tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterError, match=r"give one of its files: one\.safetensors, two\.safetensors"):
        load_picture_adapter(tmp_path, SMALL)


@settings(max_examples=60)
@given(cut=st.integers(0, 400), flip=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_file_is_one_line(cut: int, flip: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    raw = bytearray(written(tmp_path_factory.mktemp("damaged"), D, stated()).read_bytes())
    raw[flip] = byte
    path = tmp_path_factory.mktemp("damaged") / "style.safetensors"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        load_picture_adapter(path, SMALL)
    except LoracleError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=25)
@given(
    r=st.sampled_from([1, 2, 5]),
    use_rslora=st.booleans(),
    lora_bias=st.booleans(),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True),
)
def test_what_is_saved_comes_back(
    r: int, use_rslora: bool, lora_bias: bool, targets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    pattern = {"layers.0.attention.to_q": 3.5}
    adapter = random_picture_adapter(SMALL, 1, r, 3.0, use_rslora, targets, pattern, lora_bias)
    save_picture_adapter(adapter, folder / "style-1", SMALL)
    loaded = load_picture_adapter(folder / "style-1", SMALL)
    assert loaded.name == adapter.name and loaded.config == adapter.config
    assert_same_tensors(loaded, adapter)
    if lora_bias:
        with pytest.raises(AdapterError, match="lora_bias, which kohya has not"):
            save_picture_adapter(adapter, folder / "k.safetensors", SMALL, "kohya")
        return
    save_picture_adapter(adapter, folder / "k.safetensors", SMALL, "kohya")
    kohya = load_picture_adapter(folder / "k.safetensors", SMALL)
    assert_same_tensors(kohya, adapter)
    for module, lora in adapter.lora.items():
        scales = [scale_of(x.config, module, len(lora.A)) for x in (kohya, adapter)]
        assert scales[0] == pytest.approx(scales[1], rel=1e-7)  # alpha is a float32 there
        assert use_rslora or lora_alpha_of(kohya.config, module) == lora_alpha_of(adapter.config, module)


def assert_same_tensors(actual: Adapter, expected: Adapter) -> None:
    """The same modules, types and bits."""
    assert actual.lora.keys() == expected.lora.keys()
    for module, lora in expected.lora.items():
        for got, x in zip(
            (actual.lora[module].A, actual.lora[module].B, actual.lora[module].bias),
            (lora.A, lora.B, lora.bias),
            strict=True,
        ):
            assert (got is None) == (x is None)
            assert x is None or (got.dtype == x.dtype and got.tobytes() == x.tobytes() and not got.flags.writeable)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_what_cannot_be_saved_leaves_nothing(to: str, tmp_path: Path) -> None:
    adapter = random_picture_adapter()
    path = tmp_path / "new" / "x.safetensors"
    path.parent.mkdir()
    module = next(iter(adapter.lora))
    large = replace(adapter, lora={module: replace(adapter.lora[module], A=adapter.lora[module].A * 1e9)})
    with pytest.raises(AdapterError, match="too large for float16"):
        save_picture_adapter(large, path, SMALL, to, "float16")
    with pytest.raises(AdapterError, match=f"{path}.*the base has no such module"):
        save_picture_adapter(adapter, path, replace(SMALL, n_layers=0), to)
    with pytest.raises(AdapterError, match="format 'loha' is not known"):
        save_picture_adapter(adapter, path, SMALL, "loha")
    with pytest.raises(LoracleError, match="dtype 'int8' is not supported"):
        save_picture_adapter(adapter, path, SMALL, to, "int8")
    assert list(path.parent.iterdir()) == []
    save_picture_adapter(adapter, path, SMALL, to, "float16")
    with pytest.raises(LoracleError, match="is there already"):
        save_picture_adapter(adapter, path, SMALL, to)
    assert {lora.A.dtype.name for lora in load_picture_adapter(path, SMALL).lora.values()} == {"float16"}
