"""`loracle merge`: what is written answers as base + adapters do, and is the base's own file in everything else.

tests/engines/test_merge.py does the same for every family, and lets transformers read what was written."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import (
    BASE,
    lora_name,
    lora_tensors,
    model_tensors,
    random,
    safetensors_bytes,
    write_adapter,
    write_model,
)
from loading.gguf_writer import model_tensors as gguf_model_tensors
from loading.gguf_writer import write_gguf
from loading.mxfp4_writer import write_gpt_oss
from loading.nf4_writer import CONFIG as NF4_CONFIG
from loading.nf4_writer import checkpoint as nf4_checkpoint
from loading.test_fp8 import write as write_fp8
from safetensors.numpy import load_file
from support.build import Case, as_dora, cases, random_adapter, random_model

import refimpl
from refimpl import cli
from refimpl.adapter import Adapter
from refimpl.arrays import DTYPES
from refimpl.config import EMBED, LM_HEAD
from refimpl.errors import LoracleError
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter
from refimpl.loading.checkpoint import expected_tensors
from refimpl.synthetic.adapters import with_own_biases, with_own_layers
from refimpl.tools.merge_folder import Merged, merge_folder, open_base

IDS = [3, 1, 4, 1, 5, 9, 2]


def merge(
    base: Path, adapters: Sequence[tuple[Path, float]], out: Path, dtype: str | None = None
) -> tuple[Merged, list[tuple[Adapter, float]]]:
    """Merge folders into a new one; the adapters are returned as they were loaded."""
    opened = open_base(base)
    terms = [(refimpl.load_adapter(folder, opened.config), weight) for folder, weight in adapters]
    return merge_folder(opened, terms, out, dtype), terms


def same_answers(
    base: Path, terms: Sequence[tuple[Adapter, float]], out: Path, tolerance: float, ids: Sequence[int] = IDS
) -> refimpl.Model:
    """Compare the logits of base + adapters with those of the merged folder, both in float64; return the latter."""
    summed: Any = terms[0][0] if len(terms) == 1 and terms[0][1] == 1 else list(terms)
    expected = refimpl.logits(refimpl.load_model(base, "float64"), [refimpl.Request(ids, summed)])[0]
    model = refimpl.load_model(out, "float64")
    rows = refimpl.logits(model, [refimpl.Request(ids)])[0]
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= tolerance * np.abs(expected).max()
    return model


@pytest.mark.filterwarnings("ignore:.*switched off, or subtracted")
@given(cases(max_adapters=2), st.sampled_from([1.0, 0.5, -1.5]))
def test_a_weighted_sum_answers_as_it_is_served(
    tmp_path_factory: pytest.TempPathFactory, case: Case, weight: float
) -> None:
    """Any Llama or Mistral, tied or not, in float64. A lora_bias of a module that cannot have one is refused."""
    folder = tmp_path_factory.mktemp("merge")
    save_base(case.model, folder / "base")
    pool = [without_bias(adapter) if EMBED in adapter.lora else adapter for adapter in case.pool]
    for adapter in pool:
        save_adapter(adapter, folder / adapter.name)
    paths = [(folder / adapter.name, weight) for adapter in pool]
    biased = {module for adapter in pool for module, lora in adapter.lora.items() if lora.bias is not None}
    mistral = case.model.config.sliding_window is not None
    try:
        merged, terms = merge(folder / "base", paths, folder / "out")
    except LoracleError as error:
        assert "lora_bias" in str(error) and (LM_HEAD in biased or (mistral and biased))
        assert sorted(path.name for path in folder.iterdir()) == sorted({"base", *(adapter.name for adapter in pool)})
        return
    assert merged.dtypes == ["float64"]
    model = same_answers(folder / "base", terms, folder / "out", 1e-12, case.requests[0].prompt_ids)
    touched = {module for adapter in case.pool for module in adapter.lora} & {EMBED, LM_HEAD}
    assert model.config.tie_word_embeddings == (case.model.config.tie_word_embeddings and not touched)


def without_bias(adapter: Adapter) -> Adapter:
    """PEFT has no lora_bias of an embedding."""
    lora = {module: dataclasses.replace(tensors, bias=None) for module, tensors in adapter.lora.items()}
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_bias=False), lora=lora)


def save_base(model: refimpl.Model, folder: Path) -> None:
    """Write a Llama, or a Mistral without the biases that it cannot have."""
    config = model.config
    if config.sliding_window is not None and (config.attention_bias or config.mlp_bias):
        config = dataclasses.replace(config, attention_bias=False, mlp_bias=False)
        model = random_model(config)
    save_model(model, folder)


def test_what_no_adapter_touches_is_the_same_bytes_in_the_same_shard(tmp_path: Path) -> None:
    tensors = model_tensors(dtype="bfloat16")
    tensors["model.norm.weight"] = random((12,), 5)  # of another type than the rest, which it keeps
    names = sorted(tensors)
    base = write_model(tmp_path / "base", {}, torch_dtype="bfloat16", unknown_to_us=[1, {"deep": None}])
    (base / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        (base / file).write_bytes(safetensors_bytes({name: tensors[name] for name in inside}))
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (base / "notes.bin").write_bytes(b"no part of a model")
    adapter = write_adapter(tmp_path / "a", lora_tensors(modules=("q_proj",)), target_modules=["q_proj"])
    merged, _ = merge(base, [(adapter, 1.0)], tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == weight_map
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in tensors.values())}
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((base / "config.json").read_text())
    assert merged.files == sorted([*shards, "config.json", "generation_config.json", "model.safetensors.index.json"])
    assert (merged.changed, merged.tensors) == (2, len(tensors))
    lora = lora_tensors(modules=("q_proj",))
    for file, inside in shards.items():
        stored = refimpl.loading.safetensors_file.open_safetensors(
            tmp_path / "out" / file, refimpl.loading.diagnostics.Diagnostics()
        )
        assert stored is not None and set(stored.tensors) == set(inside)
        for name in inside:
            if "q_proj" in name:  # rounded once, from the exact sum
                module = name.removesuffix(".weight")
                A, B = (lora[f"base_model.model.{module}.lora_{half}.weight"].astype(np.float64) for half in ("A", "B"))
                exact = tensors[name].astype(np.float64) + 7 / 3 * (B @ A)
                nearest = refimpl.arrays.rounded(exact, "bfloat16").astype(DTYPES["bfloat16"])
                assert stored.tensors[name].tobytes() == nearest.tobytes()
            else:
                assert stored.tensors[name].tobytes() == tensors[name].tobytes()


@pytest.mark.parametrize("dtype", [None, "float64", "float16", "bfloat16"])
def test_the_rounding_that_is_said_is_the_one_that_was_done(tmp_path: Path, dtype: str | None) -> None:
    base, adapter = write_model(tmp_path / "base"), write_adapter(tmp_path / "a")
    merged, terms = merge(base, [(adapter, 0.25)], tmp_path / "out", dtype)
    written, stored = refimpl.load_model(tmp_path / "out", "float64"), refimpl.load_model(base, "float64")
    lost = added = 0.0
    for (layer, name), lora in terms[0][0].lora.items():
        exact = 0.25 * 7 / 3 * (lora.B.astype(float) @ lora.A.astype(float))
        before, after = (model.layers[layer].linears[name].weight for model in (stored, written))
        lost, added = lost + np.sum((after - before - exact) ** 2), added + np.sum(exact**2)
    assert merged.rounding == pytest.approx(np.sqrt(lost / added), rel=1e-4, abs=1e-15)
    assert merged.dtypes == [dtype or "float32"]
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == (dtype or "float32")
    said = [note for note in merged.notes if note.startswith(f"rounding to {dtype or 'float32'} takes ")]
    assert len(said) == (dtype != "float64")
    bound = {"float64": 1e-12, None: 1e-5, "float16": 0.05, "bfloat16": 0.3}[dtype]
    same_answers(base, terms, tmp_path / "out", bound)


TIED = dataclasses.replace(BASE, tie_word_embeddings=True)


@pytest.mark.parametrize("module", [EMBED, LM_HEAD])
@pytest.mark.parametrize("stored", ["embed_tokens", "lm_head", "both"])
def test_tied_tables_are_two_where_one_of_them_is_changed(tmp_path: Path, module: tuple[int, str], stored: str) -> None:
    """Whichever name the base's one table has in its file, or both of them."""
    tensors = model_tensors(TIED)
    table = tensors.pop("model.embed_tokens.weight")
    names = {"embed_tokens": ["model.embed_tokens.weight"], "lm_head": ["lm_head.weight"]}
    tensors |= dict.fromkeys(names.get(stored) or [*names["embed_tokens"], *names["lm_head"]], table)
    base = write_model(tmp_path / "base", tensors, tie_word_embeddings=True)
    adapter = random_adapter(TIED, 3, modules=(module[1], "up_proj"))
    save_adapter(adapter, tmp_path / "a")
    merged, terms = merge(base, [(tmp_path / "a", 1.0)], tmp_path / "out", "float64")
    model = same_answers(base, terms, tmp_path / "out", 1e-12)
    assert not model.config.tie_word_embeddings
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= load_file(tmp_path / "out/model.safetensors").keys()
    assert any("were tied" in note for note in merged.notes)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_a_vocabulary_that_has_grown(tmp_path: Path, tied: bool, dora: bool) -> None:
    """Both tables with 5 more rows; with DoRA on all layers beside them. Ids of the new rows are answered."""
    config = dataclasses.replace(BASE, tie_word_embeddings=tied)
    model = random_model(config)
    save_model(model, tmp_path / "base")
    adapter = random_adapter(config, 3, r=2, modules=("q_proj", "down_proj"))
    adapter = as_dora(adapter, model, 4) if dora else adapter
    adapter = with_own_layers(model, adapter, (EMBED, LM_HEAD), np.random.default_rng(1), extra=5)
    save_adapter(adapter, tmp_path / "a")
    merged, terms = merge(tmp_path / "base", [(tmp_path / "a", 1.0)], tmp_path / "out")
    again = same_answers(tmp_path / "base", terms, tmp_path / "out", 1e-12, [3, 17, 13, 1])
    assert again.config == dataclasses.replace(config, vocab_size=18, tie_word_embeddings=False)
    assert "the vocabulary has grown from 13 to 18 rows" in merged.notes
    in_memory = refimpl.merged(model, adapter)
    assert in_memory.config.vocab_size == 18
    assert refimpl.logits(in_memory, [refimpl.Request([17])])[0].shape == (1, 18)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head", "v_proj"])
def test_dora_of_every_kind_of_module(tmp_path: Path, module: str) -> None:
    model = random_model(BASE)
    save_model(model, tmp_path / "base")
    save_adapter(as_dora(random_adapter(BASE, 3, modules=(module,)), model, 4), tmp_path / "a")
    _, terms = merge(tmp_path / "base", [(tmp_path / "a", 1.0)], tmp_path / "out")
    same_answers(tmp_path / "base", terms, tmp_path / "out", 1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_some_tokens(tmp_path: Path, tied: bool) -> None:
    """trainable_token_indices: of tied tables both have the rows, and stay one."""
    base = write_model(tmp_path / "base", model_tensors(TIED if tied else BASE), tie_word_embeddings=tied)
    rows = lora_name(EMBED, "token_adapter.trainable_tokens_delta")
    tensors = lora_tensors(modules=("k_proj",)) | {rows: random((3, 12), 9)}
    ids = {"target_modules": ["k_proj"], "trainable_token_indices": [2, 11, 4]}
    adapter = write_adapter(tmp_path / "a", tensors, **ids)
    _, terms = merge(base, [(adapter, 1.0)], tmp_path / "out", "float64")
    model = same_answers(base, terms, tmp_path / "out", 1e-12, [2, 4, 11, 12, 3])
    assert model.config.tie_word_embeddings == tied
    assert np.array_equal(model.embed_tokens[[2, 11, 4]], tensors[rows].astype(np.float64))


def test_biases_that_the_base_has_and_has_not(tmp_path: Path) -> None:
    """bias="all" replaces them; lora_bias makes the config say so, with zeros where a module of the flag has none."""
    biased = dataclasses.replace(BASE, attention_bias=True)
    model = random_model(biased)
    save_model(model, tmp_path / "biased")
    adapter = with_own_biases(model, random_adapter(biased, 1, modules=("q_proj",)), np.random.default_rng(2))
    save_adapter(adapter, tmp_path / "a")
    _, terms = merge(tmp_path / "biased", [(tmp_path / "a", 1.0)], tmp_path / "out")
    same_answers(tmp_path / "biased", terms, tmp_path / "out", 1e-12)

    save_model(random_model(BASE), tmp_path / "plain")
    save_adapter(random_adapter(BASE, 1, modules=("up_proj",), lora_bias=True), tmp_path / "b")
    merged, terms = merge(tmp_path / "plain", [(tmp_path / "b", 0.5)], tmp_path / "with-biases")
    again = same_answers(tmp_path / "plain", terms, tmp_path / "with-biases", 1e-12)
    assert (again.config.attention_bias, again.config.mlp_bias) == (False, True)
    assert not again.layers[0].linears["down_proj"].bias.any() and again.layers[0].linears["up_proj"].bias.any()  # type: ignore[union-attr]
    assert "mlp_bias is true now: modules of it without a bias have one of zeros" in merged.notes


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_took_a_part_out_of_the_base(tmp_path: Path, init: str) -> None:
    """The command loads the base for it; combine does with --model, and says so without."""
    base = write_model(tmp_path / "base")
    adapter = write_adapter(tmp_path / "a", init_lora_weights=init)
    argv = ["merge", str(base), str(adapter), "--out", str(tmp_path / "out"), "--dtype", "float64"]
    assert cli.main(argv) == 0
    terms = [(refimpl.load_adapter(adapter, refimpl.load_model(base)), 1.0)]
    same_answers(base, terms, tmp_path / "out", 1e-11)
    assert cli.main(["combine", f"{adapter}:0.5", "--how", "sum", "--out", str(tmp_path / "sum")]) == 2
    with_base = ["combine", f"{adapter}:0.5", "--how", "sum", "--out", str(tmp_path / "sum"), "--model", str(base)]
    assert cli.main(with_base) == 0
    assert len(refimpl.load_adapter(tmp_path / "sum", BASE).lora[0, "q_proj"].A) == 6


@pytest.mark.parametrize("nested", [False, True])
def test_a_base_in_nf4_is_written_as_its_numbers(tmp_path: Path, nested: bool) -> None:
    tensors = nf4_checkpoint(model_tensors(dtype="bfloat16"), nested, "bfloat16")
    base = write_model(tmp_path / "base", tensors, torch_dtype="bfloat16", quantization_config=NF4_CONFIG)
    adapter = write_adapter(tmp_path / "a", lora_tensors(modules=("q_proj",)), target_modules=["q_proj"])
    merged, terms = merge(base, [(adapter, 1.0)], tmp_path / "out")
    assert merged.notes[0].startswith("the base is quantised (nf4): its weights are written as the numbers that")
    assert merged.dtypes == ["bfloat16"]
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    stored, written = refimpl.load_model(base, "float64"), refimpl.load_model(tmp_path / "out", "float64")
    assert np.array_equal(stored.layers[1].linears["k_proj"].weight, written.layers[1].linears["k_proj"].weight)
    merge(base, [(adapter, 1.0)], tmp_path / "exact", "float64")
    same_answers(base, terms, tmp_path / "exact", 1e-12)


@pytest.mark.parametrize("kind", ["F8_E4M3", "mxfp4"])
def test_bases_of_other_blocks_are_written_as_their_numbers(tmp_path: Path, kind: str) -> None:
    """FP8 as DeepSeek-V3 has it, and the experts of gpt-oss, on some of which there is LoRA."""
    base = tmp_path / "base"
    base.mkdir()
    if kind == "F8_E4M3":
        write_fp8(base)
        modules = ["q_proj", "down_proj"]
    else:
        write_gpt_oss(base, 1)
        modules = ["q_proj", "mlp.experts.1.gate_proj", "mlp.experts.2.down_proj"]
    opened = open_base(base)
    adapter = random_adapter(opened.config, 3, modules=modules)
    assert {name for _, name in adapter.lora} == {*modules}
    merged = merge_folder(opened, [(adapter, 0.5)], tmp_path / "out", "float64")
    assert merged.notes[0].startswith(f"the base is quantised ({kind}")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    same_answers(base, [(adapter, 0.5)], tmp_path / "out", 1e-12)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("Q8_0", "float32")])
def test_a_gguf_becomes_a_folder(tmp_path: Path, kind: str, dtype: str) -> None:
    config = dataclasses.replace(BASE, hidden_size=32, intermediate_size=64)
    write_gguf(tmp_path / "base.gguf", config, gguf_model_tensors(config), kind)
    adapter = write_adapter(tmp_path / "a", lora_tensors(config))
    merged, terms = merge(tmp_path / "base.gguf", [(adapter, 1.0)], tmp_path / "out")
    assert merged.dtypes == [dtype]
    assert any(note.startswith(f"the base is quantised ({kind})") for note in merged.notes) == (kind == "Q8_0")
    same_answers(tmp_path / "base.gguf", terms, tmp_path / "out", 2e-2 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_of_images(tmp_path: Path, prefix: str) -> None:
    """What sees images is copied; the head that was tied gets the name that its version of transformers looks for."""
    small = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 13, "head_dim": 8}
    text = {**small, "model_type": "gemma3_text", "sliding_window": 3}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(outer | {"vision_config": {"torch_dtype": "float32"}}))
    config = refimpl.loading.config_file.load_config(base)
    plain = {name: random(shape, i) / 4 for i, (name, shape) in enumerate(expected_tensors(config).items())}
    image = {"vision_tower.vision_model.embeddings.weight": random((3, 2))}
    stored = {name.replace("model.", prefix, 1): x for name, x in plain.items()} | image
    (base / "model.safetensors").write_bytes(safetensors_bytes(stored))
    adapter = random_adapter(config, 3, modules=("q_proj", "lm_head"))
    save_adapter(adapter, tmp_path / "a")
    _, terms = merge(base, [(tmp_path / "a", 1.0)], tmp_path / "out", "float64")
    same_answers(base, terms, tmp_path / "out", 1e-12)
    written = load_file(tmp_path / "out/model.safetensors")
    head = "language_model.lm_head.weight" if prefix.startswith("language") else "lm_head.weight"
    assert written.keys() == {*stored, head}
    assert np.array_equal(written[next(iter(image))], next(iter(image.values())))
    data = json.loads((tmp_path / "out/config.json").read_text())
    assert data["text_config"]["tie_word_embeddings"] is data["tie_word_embeddings"] is False
    assert data["vision_config"]["torch_dtype"] == "float64"


def test_the_adapters_own_tokenizer_is_taken_and_two_that_differ_are_not(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    source = refimpl.tiny.base_path() / "tokenizer.json"
    data = json.loads(source.read_text("utf-8"))
    (base / "tokenizer.json").write_text(json.dumps(data))
    (base / "special_tokens_map.json").write_text("{}")
    adapters = [write_adapter(tmp_path / name) for name in ("a", "b", "c")]
    for number, adapter in enumerate(adapters[:2], 1):
        (adapter / "tokenizer.json").write_text(json.dumps(data, indent=number))
        (adapter / "chat_template.jinja").write_text(f"template {number}")

    def merged(out: str, *chosen: Path) -> tuple[list[str], list[str]]:
        assert cli.main(["merge", str(base), *(f"{folder}:0.5" for folder in chosen), "--out", out]) == 0
        return sorted(file.name for file in Path(out).iterdir()), Path(out, "tokenizer.json").read_text().splitlines()

    names, lines = merged(str(tmp_path / "one"), adapters[0], adapters[2])
    assert "chat_template.jinja" in names and "special_tokens_map.json" not in names and len(lines) > 1
    names, lines = merged(str(tmp_path / "two"), *adapters)
    assert "chat_template.jinja" not in names and "special_tokens_map.json" in names and len(lines) == 1


def line_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a mistake says on stderr: one line, exit 2, nothing on stdout."""
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "") and said.err.count("\n") == 1
    return said.err


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, plain = write_model(tmp_path / "base"), write_adapter(tmp_path / "plain")
    huge = write_adapter(tmp_path / "huge", {name: 1e4 * x for name, x in lora_tensors().items()})
    replaced = {"lm_head": random((13, 12), 3)}
    with_head = write_adapter(
        tmp_path / "own",
        lora_tensors() | {lora_name(LM_HEAD, "weight"): replaced["lm_head"]},
        modules_to_save=["lm_head"],
    )
    save_adapter(random_adapter(BASE, 3, modules=("lm_head",), lora_bias=True), tmp_path / "biased-head")
    mistral = write_model(tmp_path / "mistral", architectures=["MistralForCausalLM"], model_type="mistral")
    save_adapter(random_adapter(BASE, 3, modules=("q_proj",), lora_bias=True), tmp_path / "biased")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    mistakes = {
        (base, tmp_path / "nothing", "--out", out): "nothing: is not there",
        (base, f"{plain}:much", "--out", out): "'much' is not a weight",
        (base, f"{plain}:nan", "--out", out): "expected ADAPTER:WEIGHT with a finite number",
        (base, ":0.5", "--out", out): "expected ADAPTER:WEIGHT",
        (base, f"{with_head}:0.5", "--out", out): "adapter 'own' brings whole weights",
        (base, with_head, plain, "--out", out): "alone it can be merged, with weight 1",
        (base, huge, "--out", out, "--dtype", "float16"): "has values too large for float16",
        (base, tmp_path / "biased-head", "--out", out): "gives lm_head a bias (lora_bias)",
        (mistral, tmp_path / "biased", "--out", out): "a MistralForCausalLM has no key in config.json that says so",
        (base, plain, "--out", base): "is there already; give the name of a new folder",
        (tmp_path / "no-base", plain, "--out", out): "no-base: is not a folder",
        (base, base, "--out", out): "has no adapter_config.json: it has a config.json, and is a whole model",
        (plain, plain, "--out", out): "it is an adapter, not a base model",
        (base, plain, "--out", out, "--dtype", "int8"): "invalid choice: 'int8'",
        (base, plain): "the following arguments are required: --out",
    }
    for argv, says in mistakes.items():
        assert says in line_of(capsys, "merge", *argv)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = write_model(tmp_path / "base"), write_adapter(tmp_path / "a")
    usage = refimpl.tools.merge_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(refimpl.tools.merge_folder.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "GiB of the disk are free" in line_of(capsys, "merge", base, adapter, "--out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["merge", "tiny", "pirate:0.5", "bard", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: ") and "+ 0.5 pirate + bard, 28 of 38 tensors changed, " in lines[0]
    assert lines[1].startswith("note: rounding to bfloat16 takes ")
    assert cli.main(["merge", "tiny", "pirate:0", "--out", str(tmp_path / "none")]) == 0
    none = capsys.readouterr()
    assert ", 0 of 38 tensors changed, " in none.out and "the weight of pirate is 0: nothing of it is in" in none.err
    assert cli.main(["merge", "tiny", "pirate:0.5", "bard", "--out", str(tmp_path / "again"), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["adapters"] == [["pirate", 0.5], ["bard", 1.0]] and 0 < body["rounding"] < 0.1
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    prompt = refimpl.tiny.DEMO_PROMPTS[0]
    served = ["generate", "--temperature", "0", "--max-new-tokens", "12", "--json", "--dtype", "float32"]
    assert cli.main([*served, "--prompt", f"pirate*0.5+bard:{prompt}"]) == 0
    expected = json.loads(capsys.readouterr().out)["texts"][0]["token_ids"]
    assert cli.main([*served, "--model", str(out), "--prompt", f"base:{prompt}"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"][0]["token_ids"] == expected
