"""What save_adapter writes is what load_adapter reads: the same bits, the same config."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, lora_name, lora_tensors, random, refused, write_adapter
from support.build import adapters, as_dtype, configs, random_adapter

from refimpl import tiny
from refimpl.adapter import Adapter
from refimpl.arrays import DTYPES
from refimpl.config import EMBED, LM_HEAD
from refimpl.errors import AdapterError, LoracleError
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import WEIGHTS_FILE, load_adapter
from refimpl.loading.config_file import load_config
from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.safetensors_file import open_safetensors

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def contents(adapter: Adapter) -> tuple[Any, ...]:
    """Everything but the name, bit for bit."""

    def bits(x: np.ndarray | None) -> tuple[Any, ...] | None:
        return None if x is None else (x.dtype.name, x.shape, x.tobytes())

    lora = {module: tuple(map(bits, (w.A, w.B, w.bias, w.magnitude))) for module, w in adapter.lora.items()}
    whole = [{module: bits(x) for module, x in held.items()} for held in (adapter.replaced, adapter.biases)]
    tokens = {module: (bits(rows.ids), bits(rows.rows)) for module, rows in adapter.tokens.items()}
    return (adapter.config, lora, *whole, tokens)


@given(st.data())
def test_any_adapter_survives(data: st.DataObject) -> None:
    config = data.draw(configs())
    adapter = as_dtype(data.draw(adapters(config, 1))[0], data.draw(st.sampled_from(["float64", "float32", "float16"])))
    if adapter.config.lora_bias:  # PEFT refuses lora_bias on an embedding
        adapter = dataclasses.replace(adapter, lora={s: w for s, w in adapter.lora.items() if s != EMBED})
    with tempfile.TemporaryDirectory() as name:
        save_adapter(adapter, Path(name) / "a")
        assert contents(load_adapter(Path(name) / "a", config)) == contents(adapter)


HEAD, TABLE = lora_name(LM_HEAD, "weight"), lora_name(EMBED, "weight")
TOP = lora_tensors(modules=("q_proj", "embed_tokens", "lm_head"))
BIASED = dataclasses.replace(BASE, attention_bias=True)

# Each is a kind of folder that PEFT writes: what it has beside the tensors of all seven layers, and its config.
FOLDERS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "rsLoRA, patterns, in order": (
        lora_tensors(),
        {"use_rslora": True, "alpha_pattern": {"1.self_attn.q_proj": 4.5, "q_proj": 9}, "rank_pattern": {"no": 5}},
    ),
    "a rank of its own": (
        lora_tensors(modules=("q_proj",)) | lora_tensors(rank=5, modules=("up_proj",)),
        {"rank_pattern": {"mlp.up_proj": 5}, "target_modules": ["q_proj", "up_proj"]},
    ),
    "a regular expression": (
        {name: x for name, x in lora_tensors(modules=("v_proj",)).items() if ".1." in name},
        {"target_modules": r".*\.1\.self_attn\.v_proj"},
    ),
    "some layers": (
        {name: x for name, x in lora_tensors().items() if ".1." in name and "q_proj" not in name},
        {"layers_to_transform": [1], "layers_pattern": ["layers"], "exclude_modules": ["q_proj"]},
    ),
    "one layer, excluded by pattern": (
        {name: x for name, x in lora_tensors().items() if ".0." in name and "mlp" not in name},
        {"layers_to_transform": 0, "exclude_modules": r".*mlp.*"},
    ),
    "modules_to_save": (
        lora_tensors() | {HEAD: random((15, 12)), TABLE: random((15, 12), 1)},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "embeddings saved beside their LoRA": (
        TOP | {lora_name(EMBED, "base_layer.weight"): random((13, 12)), lora_name(LM_HEAD, "base_layer.weight"):
               random((13, 12), 2)},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "embeddings saved without one": (lora_tensors() | {HEAD: random((13, 12)), TABLE: random((13, 12), 1)}, {}),
    "lora_bias": (
        lora_tensors(modules=("o_proj",))
        | {lora_name((i, "o_proj"), "lora_B.bias"): random((12,), i) for i in range(2)},
        {"lora_bias": True, "target_modules": ["o_proj"]},
    ),
    "DoRA": (
        TOP
        | {lora_name((i, "q_proj"), "lora_magnitude_vector"): random((32,), i) for i in range(2)}
        | {lora_name(EMBED, "lora_magnitude_vector"): random((12,)), lora_name(LM_HEAD, "lora_magnitude_vector"):
           random((13,))},
        {"use_dora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "rows of tokens": (
        lora_tensors()
        | {lora_name(module, "token_adapter.trainable_tokens_delta"): random((2, 12), i)
           for i, module in enumerate((EMBED, LM_HEAD))},
        {"trainable_token_indices": {"embed_tokens": [3, 1], "lm_head": [0, 12]}, "ensure_weight_tying": True},
    ),
    "biases": (
        lora_tensors(modules=("q_proj",))
        | {lora_name((i, "q_proj"), "base_layer.bias"): random((32,), i) for i in range(2)}
        | {lora_name((i, "k_proj"), "bias"): random((16,), i) for i in range(2)},
        {"bias": "all", "target_modules": ["q_proj"]},
    ),
    "bfloat16, and a scale below zero": (lora_tensors(dtype="bfloat16"), {"lora_alpha": -0.5}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_of_folder_survives(tmp_path: Path, kind: str) -> None:
    tensors, changes = FOLDERS[kind]
    base = BIASED if kind == "biases" else BASE
    first = load_adapter(write_adapter(tmp_path / "first", tensors, **changes), base)
    save_adapter(first, tmp_path / "again")
    again = load_adapter(tmp_path / "again", base)
    assert contents(again) == contents(first)
    assert len(again.lora) + len(again.replaced) + len(again.biases) > 0
    opened = open_safetensors(tmp_path / "again" / WEIGHTS_FILE, Diagnostics())
    assert opened is not None
    assert set(opened.stored) == set(tensors)  # under the names that PEFT gave them
    save_adapter(again, tmp_path / "third")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "third" / file).read_bytes()


def test_tied_embeddings_that_are_one_tensor(tmp_path: Path) -> None:
    base = dataclasses.replace(BASE, tie_word_embeddings=True)
    first = load_adapter(write_adapter(tmp_path / "first", lora_tensors() | {TABLE: random((14, 12))}), base)
    assert set(first.replaced) == {EMBED, LM_HEAD}
    save_adapter(first, tmp_path / "again")
    assert contents(load_adapter(tmp_path / "again", base)) == contents(first)


def test_the_embedded_voices(tmp_path: Path) -> None:
    for name, folder in tiny.VOICES.items():
        config = load_config(tiny.base_path())
        save_adapter(load_adapter(folder, config), tmp_path / name)
        assert contents(load_adapter(tmp_path / name, config)) == contents(load_adapter(folder, config))


@pytest.mark.parametrize("dtype", DTYPES)
def test_into_another_type(tmp_path: Path, dtype: str) -> None:
    adapter = random_adapter(BASE, 1)
    save_adapter(adapter, tmp_path / "a", dtype)
    loaded = load_adapter(tmp_path / "a", BASE)
    for module, w in adapter.lora.items():
        assert loaded.lora[module].A.tobytes() == w.A.astype(DTYPES[dtype]).tobytes()


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    adapter = random_adapter(BASE, 1)
    wrong_rank = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, r=4))
    with refused(AdapterError, str(tmp_path / "a"), "lora_A.weight has shape [3, ", "rank 4"):
        save_adapter(wrong_rank, tmp_path / "a")
    module = (1, "v_proj")
    huge = dataclasses.replace(adapter.lora[module], A=adapter.lora[module].A * 1e6)
    with refused(AdapterError, "layers.1.self_attn.v_proj.lora_A.weight", "too large for float16"):
        save_adapter(dataclasses.replace(adapter, lora={**adapter.lora, module: huge}), tmp_path / "a", "float16")
    with refused(LoracleError, "int8"):
        save_adapter(adapter, tmp_path / "a", "int8")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("x")
    with refused(LoracleError, str(tmp_path / "a"), "is there already"):
        save_adapter(adapter, tmp_path / "a")
    (tmp_path / "a" / "mine").unlink()
    save_adapter(adapter, tmp_path / "a")
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["a", "adapter_config.json", "adapter_model.safetensors"]
