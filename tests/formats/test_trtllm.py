"""An adapter into TensorRT-LLM's arrays and back: what must be the same is, and what is lost is said."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.pairs import DOC_BASE
from formats.test_peft_saved import contents
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, refused
from support.build import adapters, as_dtype, configs, random_adapter, random_model

import refimpl
from refimpl.adapter import Adapter, LoraTensors
from refimpl.arrays import DTYPES
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from refimpl.errors import AdapterError
from refimpl.formats.peft import save_adapter
from refimpl.formats.trtllm import from_pair, to_pair
from refimpl.formats.trtllm_modules import MODULES, OF_LLAMA
from refimpl.formats.trtllm_pair import Matrices, Pair, Row, check_pair, matrices, pack
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.diagnostics import Diagnostics
from refimpl.tensorrt_llm.prescale import prescale

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

PRESCALED = "is multiplied into B and cannot be read back"


@st.composite
def inner_adapters(draw: st.DrawFn, config: ModelConfig, dtype: str = "float32") -> Adapter:
    """An adapter that the arrays can hold, of mixed ranks."""
    modules = draw(st.lists(st.sampled_from(LAYER_MODULES), min_size=1, unique=True))
    parts = []
    for i in range(draw(st.integers(1, 2))):
        r = draw(st.integers(1, 9))
        some = modules[i::2]
        parts.append(random_adapter(config, draw(st.integers(0, 99)), r, 1.5 * r, modules=some))
    lora = {module: w for part in parts for module, w in part.lora.items()}
    if draw(st.booleans()):  # not every layer
        lora = {module: w for module, w in lora.items() if module[0] == 0}
    ranks = {f"{module[1]}": len(w.A) for module, w in lora.items()}
    r = parts[0].config.r if parts[0].lora else parts[-1].config.r
    peft = dataclasses.replace(
        parts[0].config,
        r=r,
        lora_alpha=1.5 * r,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
        target_modules=tuple(ranks),
        layers_to_transform=(0,) if {module[0] for module in lora} == {0} else None,
    )
    return as_dtype(Adapter("drawn", peft, dict(sorted(lora.items()))), dtype)


def checked(pair: Pair, config: ModelConfig) -> Pair:
    found = Diagnostics()
    check_pair(pair, Path("pair"), found, config)
    assert not found.problems
    return pair


@given(st.data(), st.sampled_from(["float32", "float16"]), st.sampled_from(["convert", "manager", "peft"]))
def test_the_rows_hold_a_and_the_prescaled_b(data: st.DataObject, dtype: str, order: str) -> None:
    config = data.draw(configs())
    adapter = data.draw(inner_adapters(config))
    pair, notes = to_pair(adapter, dtype, order)
    c, rows = adapter.config, {(row.layer, row.module.parts[0]): row for row in pair.rows()}
    for module, w in adapter.lora.items():
        found = matrices(pair, rows.pop(module), config)
        r = c.r if order == "convert" else len(w.A)
        assert found.A.tobytes() == w.A.astype(dtype).tobytes()
        wanted = prescale(w.B, c.lora_alpha / r, dtype, "manager" if order == "manager" else "convert")
        assert found.B.tobytes() == wanted.tobytes()
    # q, k and v that LoraManager fills up are zeros of [r, hidden_size], even where q is wider than that.
    assert not any(pair.weights[row.number].any() for row in rows.values())
    assert not rows or order == "manager"
    assert any(PRESCALED in note for note in notes)
    mixed = order == "convert" and any(len(w.A) != c.r for w in adapter.lora.values())
    assert any("ignored" in note for note in notes) == mixed


@given(st.data(), st.sampled_from(["float32", "float16"]))
def test_with_a_scale_of_one_the_same_adapter_comes_back(data: st.DataObject, dtype: str) -> None:
    config = data.draw(configs())
    adapter = data.draw(inner_adapters(config, dtype))
    pair, _ = to_pair(dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_alpha=0.1)))
    first, notes = from_pair(checked(pair, config), config, "a")
    assert notes == ["the scale is in B, and lora_alpha is r: what it was before cannot be known"]
    assert set(first.lora) == set(adapter.lora)
    again, notes = to_pair(first, order="peft")
    assert notes == []
    assert (again.weights.tobytes(), again.config.tolist()) == (pair.weights.tobytes(), pair.config.tolist())
    second, _ = from_pair(again, config, "a")
    assert contents(second) == contents(first)
    with tempfile.TemporaryDirectory() as name:  # and on disk, byte for byte
        for i, x in enumerate((first, second)):
            save_adapter(x, Path(name) / str(i))
            assert contents(load_adapter(Path(name) / str(i), config)) == contents(x)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (Path(name) / "0" / file).read_bytes() == (Path(name) / "1" / file).read_bytes()


@given(st.data(), st.booleans())
def test_the_arrays_mean_the_same_logits(data: st.DataObject, rslora: bool) -> None:
    """With PEFT's own scale, in float32: what differs is one rounding of B."""
    config = data.draw(configs())
    adapter = data.draw(inner_adapters(config, "float32"))
    changes: dict[str, Any] = {"use_rslora": rslora, "alpha_pattern": {"q_proj": 0.7, "mlp.up_proj": 3.0}}
    adapter = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, **changes))
    pair, _ = to_pair(adapter, order="peft")
    again, _ = from_pair(checked(pair, config), config, "again")
    model = random_model(config)
    ours, theirs = refimpl.logits(model, [refimpl.Request([1, 2, 3, 4], a) for a in (adapter, again)])
    assert np.abs(ours - theirs).max() <= 1e-4 * max(1, np.abs(ours).max())
    base = refimpl.logits(model, [refimpl.Request([1, 2, 3, 4])])[0]
    assert any(module in ("q_proj", "k_proj") for _, module in adapter.lora) or not np.array_equal(base, ours)


def test_the_two_orders_round_differently_and_read_different_scales() -> None:
    lora = {(0, "q_proj"): LoraTensors(np.ones((4, 4), np.float32), np.full((4, 4), 1.1, np.float32))}
    adapter = random_adapter(DOC_BASE, 0)
    adapter = dataclasses.replace(adapter, lora=lora)

    def b(order: str, dtype: str = "float16", **config: Any) -> float:
        peft = dataclasses.replace(adapter.config, **({"r": 4, "lora_alpha": 2.8} | config))
        pair, _ = to_pair(dataclasses.replace(adapter, config=peft), dtype, order)
        return float(pair.weights[0, 16])

    product = np.float32(1.1) * np.float32(0.7)
    assert b("convert") == np.float16(product)
    assert b("manager") == np.float16(np.float32(np.float16(1.1)) * np.float32(0.7))
    assert b("convert") != b("manager")
    assert b("convert", "float32") == b("manager", "float32") == product
    # r is the config's in the one, the tensor's in the other; alpha_pattern is PEFT's alone
    patterns = {"r": 8, "rank_pattern": {"q_proj": 4}, "lora_alpha": 8.0, "alpha_pattern": {"q_proj": 12.0}}
    assert [b(order, "float32", **patterns) / np.float32(1.1) for order in ("convert", "manager", "peft")] == [
        1,
        2,
        3,
    ]
    assert b("manager", "float32", r=4, lora_alpha=1.0, use_rslora=True) == np.float32(1.1) * np.float32(0.5)


def test_what_is_ignored_and_what_is_rounded_is_said() -> None:
    adapter = random_adapter(BASE, 1, alpha=6, alpha_pattern={"q_proj": 9})
    notes = {order: to_pair(adapter, "float32", order)[1] for order in ("convert", "manager", "peft")}
    ignored = "rank_pattern and alpha_pattern are ignored, as TensorRT-LLM does: the scale of "
    assert notes["convert"][0].startswith(ignored + "model.layers.0.self_attn.q_proj and 1 more: 3 became 2")
    assert notes["manager"][0].startswith("alpha_pattern is ignored, as TensorRT-LLM does: the scale of model.layers.0")
    assert [len(lines) for lines in notes.values()] == [3, 3, 2]
    assert notes["peft"][0].startswith("the scale (2, 3) is multiplied into B and cannot be read back")
    total = sum(w.A.size for w in adapter.lora.values())
    assert f"float64 became float32: {total} of {total} numbers of A are rounded" in notes["peft"][1]
    assert to_pair(as_dtype(random_adapter(BASE, 1, alpha=3), "float16"))[1] == []


def test_nothing_is_said_of_the_scale_of_what_is_left_out() -> None:
    adapter = as_dtype(
        random_adapter(BASE, 1, alpha=3, modules=("q_proj", "lm_head"), alpha_pattern={"lm_head": 9}), "float16"
    )
    assert to_pair(adapter, leave_out=True)[1] == ["left out: LoRA on lm_head"]


def test_missing_q_k_and_v_are_filled_up_with_zeros() -> None:
    adapter = as_dtype(random_adapter(BASE, 1, modules=("v_proj", "up_proj")), "float16")
    pair, _ = to_pair(adapter, order="manager")
    assert pair.config.tolist() == [
        [7, 0, 3, 0], [3, 0, 3, 0], [1, 0, 3, 0], [2, 0, 3, 0],
        [7, 1, 3, 0], [3, 1, 3, 0], [1, 1, 3, 0], [2, 1, 3, 0],
    ]  # fmt: skip
    assert pair.weights.any(axis=1).tolist() == [True, True, False, False] * 2
    assert to_pair(adapter)[0].config.tolist() == [[7, 0, 3], [3, 0, 3], [7, 1, 3], [3, 1, 3]]
    only_mlp = as_dtype(random_adapter(BASE, 1, modules=("up_proj",)), "float16")
    assert to_pair(only_mlp, order="manager")[0].config.tolist() == [[7, 0, 3, 0], [7, 1, 3, 0]]
    # Its zeros are [hidden_size, r] for q as well, which here has 32 outputs and not 12: the engine wants 132 numbers.
    narrow = as_dtype(random_adapter(BASE, 1, modules=("v_proj",)), "float16")
    found = Diagnostics()
    check_pair(to_pair(narrow, order="manager")[0], Path("pair"), found, BASE)
    assert "row 1 (attn_q of layer 0, rank 3): too few values: rank 3 of [32, 12] needs 132" in found.problems[0]


def test_what_the_arrays_cannot_hold_is_refused_or_left_out_on_demand() -> None:
    adapter = as_dtype(random_adapter(BASE, 2, modules=("q_proj", "embed_tokens", "lm_head")), "float16")
    adapter = dataclasses.replace(adapter, replaced={LM_HEAD: np.ones((13, 12))}, biases={(0, "q_proj"): np.ones(32)})
    with refused(AdapterError, "LoRA on model.embed_tokens", "leave it out only if it may be lost"):
        to_pair(adapter)
    pair, notes = to_pair(adapter, leave_out=True)
    assert pair.config.tolist() == [[1, 0, 3], [1, 1, 3]]
    assert notes[:4] == [
        "left out: LoRA on model.embed_tokens",
        "left out: LoRA on lm_head",
        "left out: a whole lm_head",
        "left out: the bias of model.layers.0.self_attn.q_proj",
    ]
    biased = as_dtype(random_adapter(BASE, 2, modules=("o_proj",), lora_bias=True), "float16")
    with refused(AdapterError, "lora_bias of model.layers.0.self_attn.o_proj"):
        to_pair(biased)
    top = {module: w for module, w in adapter.lora.items() if module in (EMBED, LM_HEAD)}
    with refused(AdapterError, "makes no row"):
        to_pair(dataclasses.replace(adapter, lora=top), leave_out=True)
    with refused(AdapterError, "float64"):
        to_pair(random_adapter(BASE, 1))
    mixed = dataclasses.replace(adapter, lora=adapter.lora | random_adapter(BASE, 1, modules=("v_proj",)).lora)
    with refused(AdapterError, "float16 and float64", "say which dtype"):
        to_pair(mixed, leave_out=True)
    large = as_dtype(random_adapter(BASE, 1), "float32")
    large = dataclasses.replace(large, config=dataclasses.replace(large.config, lora_alpha=3e7))
    with refused(AdapterError, "row 0 (mlp_4h_to_h of layer 0, rank 3)", "too large for float16"):
        to_pair(large, "float16")
    with refused(AdapterError, "'sideways'", "convert, manager, peft"):
        to_pair(large, order="sideways")


def test_fused_modules_come_apart() -> None:
    """attn_qkv is q, k and v; mlp_gate_up is up and then gate, because the loaders swap the halves."""
    plain = as_dtype(random_adapter(BASE, 4, modules=LAYER_MODULES), "float32")
    shared = {}
    for (layer, name), w in plain.lora.items():
        first = {"k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "up_proj"}.get(name, name)
        shared[(layer, name)] = LoraTensors(plain.lora[(layer, first)].A, w.B)
    rows = []
    fused = {0: ("q_proj", "k_proj", "v_proj"), 4: ("o_proj",), 6: ("down_proj",), 18: ("up_proj", "gate_proj")}
    for layer in range(BASE.num_hidden_layers):
        for module_id, parts in fused.items():
            B = np.concatenate([shared[(layer, part)].B for part in parts])
            rows.append(Matrices(Row(0, MODULES[module_id], layer, 3), shared[(layer, parts[0])].A, B))
    adapter, notes = from_pair(checked(pack(rows), BASE), BASE, "fused")
    assert {module: (w.A.tobytes(), w.B.tobytes()) for module, w in adapter.lora.items()} == {
        module: (w.A.tobytes(), w.B.tobytes()) for module, w in shared.items()
    }
    assert "mlp_gate_up: B is read as up's rows and then gate's" in notes[1]
    assert "attn_qkv and mlp_gate_up became the layers" in notes[2]
    both = [*rows, Matrices(Row(9, OF_LLAMA["k_proj"], 0, 3), np.ones((3, 12), "f4"), np.ones((16, 3), "f4"))]
    with refused(AdapterError, "row 8 (attn_k of layer 0, rank 3)", "another row has k_proj"):
        from_pair(pack(both), BASE, "twice")
    dora = [
        Matrices(Row(0, OF_LLAMA["k_proj"], 0, 3), np.ones((3, 12), "f4"), np.ones((16, 3), "f4"), np.ones(16, "f4"))
    ]
    with refused(AdapterError, "row 0 (attn_k of layer 0, rank 3)", "is DoRA"):
        from_pair(pack(dora, 4), BASE, "dora")


@given(st.data())
def test_any_adapter_converts_or_is_refused(data: st.DataObject) -> None:
    config = data.draw(configs())
    adapter = as_dtype(data.draw(adapters(config, 1))[0], "float32")
    dtype = data.draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    order = data.draw(st.sampled_from(["convert", "manager", "peft"]))
    inner = [module for module in adapter.lora if module[1] in LAYER_MODULES]
    if not inner:
        with refused(AdapterError, "makes no row"):
            to_pair(adapter, dtype, order, leave_out=True)
        return
    pair, _ = to_pair(adapter, dtype, order, leave_out=True)
    assert pair.weights.dtype == DTYPES[dtype]
    assert {(row.layer, row.module.parts[0]) for row in pair.rows()} >= set(inner)
