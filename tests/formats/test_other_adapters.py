"""GGUF and mlx-lm adapters: written, read, and the same numbers as the PEFT folder; what is lost is said."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading.folders import BASE, lora_tensors, refused, safetensors_bytes, write_adapter, write_model
from support.build import EVERYWHERE, as_dtype, random_adapter, random_model

from refimpl import Request, cli, logits
from refimpl.adapter import Adapter, LoraTensors
from refimpl.config import EMBED, LAYER_MODULES
from refimpl.errors import AdapterError, LoracleError
from refimpl.formats.convert import FORMATS, convert
from refimpl.formats.gguf import write_gguf_adapter
from refimpl.formats.mlx import write_mlx_adapter
from refimpl.formats.peft import save_adapter
from refimpl.formats.plain_lora import peft_scales
from refimpl.loading.adapter_folder import load_adapter
from refimpl.tools.inspect import inspect

SHAPE = dataclasses.replace(BASE, num_hidden_layers=3, tie_word_embeddings=False)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def delta(adapter: Adapter) -> dict[Any, np.ndarray]:
    """scale B A of every module, in float64: all that a plain adapter is."""
    scales = peft_scales(adapter)
    return {
        module: scales[module] * (lora.B.astype(np.float64) @ lora.A.astype(np.float64))
        for module, lora in adapter.lora.items()
    }


def same(ours: Adapter, theirs: Adapter, tolerance: float) -> None:
    mine, yours = delta(ours), delta(theirs)
    assert mine.keys() == yours.keys()
    for module, x in mine.items():
        assert np.allclose(x, yours[module], rtol=0, atol=tolerance * abs(yours[module]).max()), module


@st.composite
def drawn(draw: st.DrawFn, modules: tuple[str, ...]) -> Adapter:
    """A float32 adapter on some of these modules, with patterns or rsLoRA or neither."""
    chosen = draw(st.lists(st.sampled_from(modules), unique=True, min_size=1))
    alphas = {chosen[0]: 4.5} if draw(st.booleans()) else {}
    adapter = random_adapter(
        SHAPE, draw(st.integers(0, 99)), draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([2.0, 7.0, -1.5])),
        draw(st.booleans()), chosen, alpha_pattern=alphas,
    )  # fmt: skip
    if draw(st.booleans()) and len(adapter.lora) > 1:  # a module of one layer alone is missing
        lora = dict(adapter.lora)
        lora.pop(next(iter(lora)))
        adapter = dataclasses.replace(adapter, lora=lora)
    return as_dtype(adapter, "float32")


def test_an_adapter_in_gguf_is_the_same_adapter(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    @given(drawn(EVERYWHERE))
    @settings(max_examples=25)
    def there_and_back(adapter: Adapter) -> None:
        path = tmp_path / f"{next(numbers)}.gguf"
        notes = write_gguf_adapter(adapter, path, SHAPE)
        back = load_adapter(path, SHAPE)
        same(back, adapter, 3e-7)
        if not notes:  # nothing was lost
            for module, lora in adapter.lora.items():
                assert back.lora[module].A.tobytes() == lora.A.tobytes()
                assert back.lora[module].B.tobytes() == lora.B.tobytes()

    there_and_back()


def test_an_adapter_of_mlx_is_the_same_adapter(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    @given(drawn((*LAYER_MODULES, "lm_head")))
    @settings(max_examples=25)
    def there_and_back(adapter: Adapter) -> None:
        folder = tmp_path / str(next(numbers))
        write_mlx_adapter(adapter, folder, SHAPE)
        same(load_adapter(folder, SHAPE), adapter, 3e-7)

    there_and_back()


def test_what_lies_in_the_files(tmp_path: Path) -> None:
    """Read with the libraries themselves: names, orientation, the order of q's rows, the scale."""
    adapter = as_dtype(random_adapter(SHAPE, 1, 3, 7.0, True, ("q_proj", "down_proj", "embed_tokens")), "float32")
    notes = write_gguf_adapter(adapter, tmp_path / "a.gguf", SHAPE)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "adapter"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    assert np.isclose(alpha / 3, 7 / np.sqrt(3)) and any("use_rslora" in note for note in notes)
    q, table = adapter.lora[0, "q_proj"], adapter.lora[EMBED]
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_a"], q.A)
    for row in range(q.B.shape[0]):  # 4 heads of 8: row 2i of a head in the file is row i, row 2i + 1 is row i + 4
        head, i = divmod(row, 8)
        assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"][row], q.B[8 * head + i // 2 + 4 * (i % 2)])
    assert np.array_equal(tensors["token_embd.weight.lora_a"], table.A.T)
    assert np.array_equal(tensors["token_embd.weight.lora_b"], table.B)
    with refused(
        AdapterError, "mlx-lm cannot hold ['LoRA on model.embed_tokens']; leave it out only if it may be lost"
    ):
        write_mlx_adapter(adapter, tmp_path / "mlx", SHAPE)
    assert (
        write_mlx_adapter(adapter, tmp_path / "mlx", SHAPE, leave_out=True)[0] == "left out: LoRA on model.embed_tokens"
    )
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"] and config["num_layers"] == 3
    assert np.isclose(config["lora_parameters"]["scale"], 7 / np.sqrt(3))
    from safetensors.numpy import load_file

    arrays = load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert np.array_equal(arrays["model.layers.0.self_attn.q_proj.lora_a"], q.A.T)
    assert np.array_equal(arrays["model.layers.0.self_attn.q_proj.lora_b"], q.B.T)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("was", FORMATS)
def test_every_pair_of_formats(tmp_path: Path, was: str, to: str) -> None:
    adapter = as_dtype(random_adapter(SHAPE, 2, 3, 6.0), "float32")
    save_adapter(adapter, tmp_path / "peft")
    source, target = tmp_path / f"in.{was}", tmp_path / f"out.{to}"
    convert(tmp_path / "peft", source, was, base=SHAPE)
    done = convert(source, target, to, base=SHAPE)
    assert (done.was, done.to) == (was, to) and done.files
    if to == "trtllm":
        convert(target, tmp_path / "again", "peft", base=SHAPE)
        target = tmp_path / "again"
    back = load_adapter(target, SHAPE)
    same(back, adapter, 1e-6)
    model = random_model(SHAPE)
    ours, theirs = (logits(model, [Request(IDS, one)])[0] for one in (back, adapter))
    assert np.allclose(ours, theirs, atol=1e-5 * abs(theirs).max()) and not np.allclose(
        theirs, logits(model, [Request(IDS)])[0]
    )


def test_losses_are_said(tmp_path: Path) -> None:
    pattern = {"model.layers.1.self_attn.q_proj": 12.0}
    adapter = as_dtype(random_adapter(SHAPE, 3, 3, 6.0, alpha_pattern=pattern), "float32")
    assert write_gguf_adapter(adapter, tmp_path / "a.gguf", SHAPE, "float16") == [
        "GGUF's alpha is 6 for all: B of model.layers.1.self_attn.q_proj is multiplied by the rest, and rounded",
        "float32 became float16: A and B are rounded",
    ]
    assert write_mlx_adapter(adapter, tmp_path / "mlx", SHAPE) == [
        "mlx-lm's scale is 2 for all: B of model.layers.1.self_attn.q_proj is multiplied by the rest, and rounded"
    ]
    ranks = {**adapter.lora, **random_adapter(SHAPE, 3, 2, 4.0, modules=("v_proj",)).lora}
    mixed = dataclasses.replace(as_dtype(dataclasses.replace(adapter, lora=ranks), "bfloat16"))
    notes = write_mlx_adapter(mixed, tmp_path / "mixed", None, "bfloat16")
    assert notes[-1] == "3 modules of a smaller rank are filled up with zeros to rank 3"
    read = load_adapter(tmp_path / "mixed", SHAPE)
    assert read.lora[0, "v_proj"].A.shape[0] == 3 and read.lora[0, "v_proj"].A.dtype == ml_dtypes.bfloat16
    biased = random_adapter(SHAPE, 4, lora_bias=True)
    for write in (write_gguf_adapter, write_mlx_adapter):
        with refused(AdapterError, "cannot hold", "lora_bias of model.layers.0.self_attn.q_proj"):
            write(biased, tmp_path / "no", SHAPE)
        with refused(LoracleError, str(tmp_path / "mlx"), "is there already"):
            write(adapter, tmp_path / "mlx", SHAPE)
    tied = dataclasses.replace(SHAPE, tie_word_embeddings=True)
    with refused(AdapterError, "LoRA on lm_head"):
        write_gguf_adapter(random_adapter(tied, 4, modules=("lm_head",)), tmp_path / "no", tied)
    assert not (tmp_path / "no").exists()


def gguf_adapter(path: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    entries = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0} | changes
    for key, value in entries.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_float32(key, value)
    for name, x in tensors.items():
        writer.add_tensor(name, x.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
PAIR = {A: np.ones((3, 12)), B: np.ones((32, 3))}


@pytest.mark.parametrize(
    "tensors, changes, says",
    [
        (
            PAIR,
            {"architecture": "gemma"},
            "general.architecture is 'gemma', and the base's is 'llama': it is of another",
        ),
        (PAIR, {"architecture": "gptneox"}, "'gptneox'; supported are gemma, gemma2, gemma3, llama, qwen2, qwen3"),
        (PAIR, {"adapter.type": "dora"}, "adapter.type is 'dora'; only 'lora' is supported"),
        (PAIR, {"general.type": "model"}, "general.type is 'model', not 'adapter': it is a base model"),
        (PAIR, {"adapter.alora.invocation_tokens": [1, 2]}, "activated LoRA is not supported"),
        (PAIR, {"adapter.lora.alpha": "six"}, "adapter.lora.alpha is 'six': it must be a finite number"),
        ({A: PAIR[A]}, {}, f"module model.layers.0.self_attn.q_proj: its B is missing (there is {A})"),
        (PAIR | {B: np.ones((32, 2))}, {}, f"{A} has rank 3, and {B} has 2"),
        (PAIR | {B: np.ones((31, 3))}, {}, f"{A} and its B are for a layer [31, 12]; the base's is [32, 12]"),
        (PAIR | {A: np.full((3, 12), np.nan)}, {}, f"tensor {A} holds NaN or inf"),
        (PAIR | {"blk.0.attn_norm.weight": np.ones(12)}, {}, "is not supported: a norm, which llama.cpp ignores"),
        (PAIR | {"blk.0.ffn_gate_exps.weight.lora_a": np.ones((3, 12))}, {}, "is not supported: no module of a Llama"),
        (
            {name.replace("0", "9"): x for name, x in PAIR.items()},
            {},
            "blk.9.attn_q.weight.lora_a: the base has 3 layers",
        ),
        ({}, {}, "has no tensors at all"),
    ],
)
def test_a_gguf_file_that_is_not_honoured_is_named(
    tmp_path: Path, tensors: dict[str, np.ndarray], changes: dict[str, Any], says: str
) -> None:
    path = gguf_adapter(tmp_path / "a.gguf", tensors, **changes)
    with refused(AdapterError, str(path), says):
        load_adapter(path, SHAPE)
    with refused(AdapterError, str(path), says):
        convert(path, tmp_path / "out", "peft", base=SHAPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma2", "gemma2"), ("gemma3_text", "gemma3")],
)
def test_gguf_says_the_architecture_of_the_base(tmp_path: Path, model_type: str, architecture: str) -> None:
    """llama.cpp interleaves the rows of q and k of its own architecture llama, and of no other."""
    base = dataclasses.replace(SHAPE, model_type=model_type)
    adapter = as_float32(random_adapter(base, 4, modules=("q_proj", "v_proj")))
    path = tmp_path / "a.gguf"
    write_gguf_adapter(adapter, path, base)
    file = gguf.GGUFReader(path)
    assert file.fields["general.architecture"].contents() == architecture
    stored = {tensor.name: tensor.data for tensor in file.tensors}["blk.0.attn_q.weight.lora_b"]
    assert np.array_equal(stored, adapter.lora[0, "q_proj"].B) == (architecture != "llama")
    same(load_adapter(path, base), adapter, 0)
    same(load_adapter(path, dataclasses.replace(base, wrapped=True)), adapter, 0)  # inside a model of images
    other = dataclasses.replace(SHAPE, model_type="llama" if architecture != "llama" else "qwen2")
    with refused(AdapterError, f"general.architecture is {architecture!r}, and the base's is", "of another family"):
        load_adapter(path, other)


@pytest.mark.parametrize("model_type", ["phi3", "glm4", "nemotron"])
def test_gguf_of_a_base_whose_rows_are_not_known_is_refused(tmp_path: Path, model_type: str) -> None:
    base = dataclasses.replace(SHAPE, model_type=model_type)
    with refused(AdapterError, f"gemma, gemma2, gemma3, llama, qwen2, qwen3; the base is {model_type}"):
        write_gguf_adapter(random_adapter(base, 4, modules=("q_proj",)), tmp_path / "a.gguf", base)
    with refused(AdapterError, f"general.architecture is 'llama', and the base is {model_type}; supported are gemma"):
        load_adapter(gguf_adapter(tmp_path / "b.gguf", PAIR), base)


def test_alpha_0_is_a_scale_of_1_as_in_llama_cpp(tmp_path: Path) -> None:
    for alpha, scale in ((0.0, 1.0), (6.0, 2.0), (-3.0, -1.0)):
        path = gguf_adapter(tmp_path / f"{alpha}.gguf", PAIR, **{"adapter.lora.alpha": alpha})
        assert peft_scales(load_adapter(path, SHAPE)) == {(0, "q_proj"): scale}


def mlx_folder(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """An adapter as mlx_lm.lora writes it."""
    folder.mkdir()
    parameters = {"rank": 3, "scale": 20.0, "dropout": 0.0} | changes.pop("parameters", {})
    config = {"fine_tune_type": "lora", "num_layers": 2, "iters": 100, "lora_parameters": parameters} | changes
    name = "model.layers.1.self_attn.q_proj"
    plain = {f"{name}.lora_a": np.ones((12, 3), np.float32), f"{name}.lora_b": np.ones((3, 32), np.float32)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapters.safetensors").write_bytes(safetensors_bytes(plain if tensors is None else tensors))
    return folder


def test_a_folder_of_mlx_lm(tmp_path: Path) -> None:
    adapter = load_adapter(mlx_folder(tmp_path / "mlx"), SHAPE)
    assert peft_scales(adapter) == {(1, "q_proj"): 20.0} and adapter.lora[1, "q_proj"].A.shape == (3, 12)
    seen = inspect(tmp_path / "mlx", SHAPE)
    assert seen.ok and seen.kind == "adapter" and seen.modules[0].scale == 20.0


def test_dora_of_mlx_lm(tmp_path: Path) -> None:
    """m is PEFT's magnitude: the same logits, from the files themselves; in GGUF there is no place for it."""
    model, plain = random_model(SHAPE), random_adapter(SHAPE, 6, modules=("q_proj", "up_proj"))
    lora = {
        module: dataclasses.replace(tensors, magnitude=1 + np.random.default_rng(i).random(len(tensors.B)))
        for i, (module, tensors) in enumerate(plain.lora.items())
    }
    adapter = as_float32(dataclasses.replace(plain, config=dataclasses.replace(plain.config, use_dora=True), lora=lora))
    assert write_mlx_adapter(adapter, tmp_path / "mlx", SHAPE) == []
    back = load_adapter(tmp_path / "mlx", SHAPE)
    assert back.use_dora
    ours, theirs, other = (logits(model, [Request(IDS, one)])[0] for one in (back, adapter, plain))
    assert np.allclose(ours, theirs, atol=1e-9 * abs(theirs).max()) and not np.allclose(other, theirs)
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "dora"
    with refused(AdapterError, "GGUF cannot hold ['the DoRA magnitude of model.layers.0.self_attn.q_proj'"):
        write_gguf_adapter(adapter, tmp_path / "a.gguf", SHAPE)
    some = dataclasses.replace(adapter, lora={**adapter.lora, (0, "q_proj"): plain.lora[0, "q_proj"]})
    with refused(AdapterError, "mlx-lm has DoRA in all modules or in none"):
        write_mlx_adapter(some, tmp_path / "some", SHAPE)


def as_float32(adapter: Adapter) -> Adapter:
    lora = {
        module: LoraTensors(*(None if x is None else x.astype(np.float32) for x in (w.A, w.B, w.bias, w.magnitude)))
        for module, w in adapter.lora.items()
    }
    return dataclasses.replace(adapter, lora=lora)


def test_a_folder_with_a_gguf_in_it(tmp_path: Path) -> None:
    gguf_adapter(tmp_path / "adapter.gguf", PAIR)
    with refused(AdapterError, "has adapter.gguf but no adapter_config.json: give the file itself"):
        load_adapter(tmp_path, SHAPE)
    assert "give the file itself" in inspect(tmp_path).problems[0]


def test_an_old_folder_of_mlx_lm(tmp_path: Path) -> None:
    folder = mlx_folder(tmp_path / "mlx")
    (folder / "adapters.safetensors").rename(folder / "adapters.npz")
    with refused(AdapterError, "has adapters.npz of an old mlx-lm", "only adapters.safetensors is read"):
        load_adapter(folder, SHAPE)


LATE = {"model.layers.0.self_attn.q_proj.lora_a": np.ones((12, 3), np.float32)}


@pytest.mark.parametrize(
    "tensors, changes, says",
    [
        (
            None,
            {"fine_tune_type": "dora"},
            "module model.layers.1.self_attn.q_proj: fine_tune_type is dora, and it has no m",
        ),
        (None, {"fine_tune_type": "full"}, "fine_tune_type is 'full'; lora and dora are supported"),
        ({"model.layers.1.self_attn.q_proj.m": np.ones(32, np.float32)}, {}, "fine_tune_type is lora, and it has an m"),
        (None, {"lora_parameters": None}, "lora_parameters is None: it must be an object with rank and scale"),
        (None, {"parameters": {"scale": "20"}}, "scale is '20': it must be a finite number"),
        (None, {"parameters": {"alpha": 16}}, "lora_parameters has alpha 16, by which old versions multiply"),
        (None, {"parameters": {"keys": ["mlp.up_proj"]}}, "is ignored by mlx-lm: keys are ['mlp.up_proj']"),
        (LATE, {}, "is ignored by mlx-lm: num_layers is 2, and the base has 3"),
        ({"model.layers.1.x.lora_a": np.ones((3, 3), np.float32)}, {}, "is of no module of the base"),
        ({"model.embed_tokens.lora_a": np.ones((13, 3), np.float32)}, {}, "puts it on a tied head as well"),
        ({}, {}, "has no tensors at all"),
    ],
)
def test_a_folder_of_mlx_lm_that_is_not_honoured_is_named(
    tmp_path: Path, tensors: dict[str, np.ndarray] | None, changes: dict[str, Any], says: str
) -> None:
    folder = mlx_folder(tmp_path / "mlx", tensors, **changes)
    with refused(AdapterError, str(folder), says):
        load_adapter(folder, SHAPE)
    assert any(says in problem for problem in inspect(folder, SHAPE).problems)


def test_cut_files_are_one_line(tmp_path: Path) -> None:
    adapter = as_dtype(random_adapter(SHAPE, 5, modules=("q_proj",)), "float32")
    write_gguf_adapter(adapter, tmp_path / "a.gguf", SHAPE)
    raw, path = (tmp_path / "a.gguf").read_bytes(), tmp_path / "cut.gguf"
    for length in range(0, len(raw), max(1, len(raw) // 60)):
        path.write_bytes(raw[:length])
        with refused(AdapterError, str(path)):
            load_adapter(path, SHAPE)
    write_mlx_adapter(adapter, tmp_path / "mlx", SHAPE)
    for file in ("adapters.safetensors", "adapter_config.json"):
        raw = (tmp_path / "mlx" / file).read_bytes()
        for length in range(0, len(raw) - 1, max(1, len(raw) // 60)):
            (tmp_path / "mlx" / file).write_bytes(raw[:length])
            with refused(AdapterError, file):
                load_adapter(tmp_path / "mlx", SHAPE)
        (tmp_path / "mlx" / file).write_bytes(raw)


def test_torchtune(tmp_path: Path) -> None:
    """Its HF checkpointer writes PEFT's folder, with five keys; its own file beside it is a pickle."""
    keys = {"r": 3, "lora_alpha": 6, "peft_type": "LORA", "target_modules": list(LAYER_MODULES)}
    folder = write_adapter(tmp_path / "epoch_0")
    (folder / "adapter_config.json").write_text(json.dumps(keys | {"base_model_name_or_path": "example/base"}))
    (folder / "adapter_0.pt").write_bytes(b"PK\x03\x04")
    assert peft_scales(load_adapter(folder, BASE))[0, "q_proj"] == 2.0
    (folder / "adapter_model.safetensors").unlink()
    with refused(AdapterError, "has adapter_0.pt of torchtune but no adapter_model.safetensors: it is a pickle"):
        load_adapter(folder, BASE)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, adapter = write_model(tmp_path / "model"), write_adapter(tmp_path / "peft", lora_tensors())
    out = tmp_path / "a.gguf"
    assert cli.main(["convert", str(adapter), str(out), "--to", "gguf"]) == 2
    assert "by the heads of the base: give --model DIR" in capsys.readouterr().err and not out.exists()
    assert cli.main(["convert", str(adapter), str(out), "--to", "gguf", "--model", str(model)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: a.gguf, from the peft folder {adapter}")
    assert cli.main(["convert", str(out), str(tmp_path / "back"), "--to", "peft"]) == 2
    assert "only the base knows: give --model DIR" in capsys.readouterr().err
    assert cli.main(["inspect", str(out), "--model", str(model)]) == 0
    (tmp_path / "prompts.jsonl").write_text('{"adapter": "a", "prompt_ids": [3, 1]}\n')
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "3", "--json"]
    texts = []
    for path in (out, adapter):
        capsys.readouterr()
        assert cli.main(["generate", "--model", str(model), "--adapter", f"a={path}", *prompts]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
