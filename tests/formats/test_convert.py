"""loracle convert and inspect, as they are typed."""

import dataclasses
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.pairs import DOC_BASE, DOC_ROWS, doc_weights, write
from formats.test_peft_saved import contents
from loading.folders import BASE, LFS_POINTER, lora_name, lora_tensors, random, refused, write_adapter, write_model
from support.build import as_dtype, random_adapter

from refimpl import cli, tiny
from refimpl.config import EMBED, LM_HEAD
from refimpl.errors import AdapterError, LoracleError
from refimpl.formats.convert import convert
from refimpl.formats.peft import save_adapter
from refimpl.formats.trtllm_report import about_ranks
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.config_file import load_config
from refimpl.tools.inspect import inspect

FILES = ("model.lora_weights.npy", "model.lora_config.npy")
SAME_ID = "caches are keyed by task id alone: an id that is sent again with other weights keeps the first ones"

ODD_RANK = "rejects rank 5 in a mixed batch unless a smaller one is in it: 1, 2, 4 and multiples of 8 run"


def same_files(a: Path, b: Path) -> bool:
    names = sorted(file.name for file in a.iterdir())
    return names == sorted(file.name for file in b.iterdir()) and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names
    )


def test_a_voice_there_and_back_and_there_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back, again = tmp_path / "there", tmp_path / "back", tmp_path / "again"
    assert cli.main(["convert", "bard", str(there), "--to", "trtllm"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{there}: model.lora_config.npy, model.lora_weights.npy, from the peft folder ")
    assert out[1:] == [
        "note: the scale (2) is multiplied into B and cannot be read back: lora_alpha will come back as r"
    ]
    assert cli.main(["convert", str(there), str(back), "--to", "peft", "--model", "tiny", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["was"], said["to"], said["files"]) == (
        "trtllm",
        "peft",
        ["adapter_config.json", "adapter_model.safetensors"],
    )
    assert said["notes"] == ["the scale is in B, and lora_alpha is r: what it was before cannot be known"]
    assert cli.main(["convert", str(back), str(again), "--to", "trtllm"]) == 0
    assert same_files(there, again)
    config = load_config(tiny.base_path())
    bard, prescaled = load_adapter("bard", config), load_adapter(back, config)
    for module, w in bard.lora.items():
        assert prescaled.lora[module].A.tobytes() == w.A.tobytes()
        assert np.array_equal(prescaled.lora[module].B.astype(np.float32), 2 * w.B.astype(np.float32))
    copy = tmp_path / "copy"
    assert cli.main(["convert", str(there), str(copy), "--to", "trtllm"]) == 0
    assert same_files(there, copy)


def test_a_folder_of_peft_comes_back_byte_for_byte_when_its_scale_is_one(tmp_path: Path) -> None:
    adapter = as_dtype(random_adapter(BASE, 3, r=4, alpha=4, modules=("q_proj", "v_proj", "down_proj")), "float16")
    save_adapter(adapter, tmp_path / "first")
    assert convert(tmp_path / "first", tmp_path / "pair", "trtllm", base=BASE).notes[1:] == []
    convert(tmp_path / "pair", tmp_path / "second", "peft", base=BASE)
    assert same_files(tmp_path / "first", tmp_path / "second")
    convert(tmp_path / "first", tmp_path / "third", "peft", "float32", base=BASE)
    assert contents(load_adapter(tmp_path / "third", BASE)) == contents(as_dtype(adapter, "float32"))


def test_a_pair_in_another_type_and_one_that_has_nothing_to_do_with_the_base(tmp_path: Path) -> None:
    pair = write(tmp_path / "pair")
    done = convert(pair, tmp_path / "wide", "trtllm", "float32")
    assert done.notes == ["float16 became float32: B, which has the scale in it, is rounded a second time"]
    assert np.array_equal(np.load(tmp_path / "wide" / FILES[0]), doc_weights("float32"))
    convert(tmp_path / "wide", tmp_path / "narrow", "trtllm", "float16")
    assert same_files(pair, tmp_path / "narrow")
    convert(pair, tmp_path / "bf16", "trtllm", "bfloat16")
    assert np.load(tmp_path / "bf16" / FILES[0]).dtype.str == "|V2"
    write(tmp_path / "big", doc_weights("float32") * 1000)
    with refused(AdapterError, "too large for float16"):
        convert(tmp_path / "big", tmp_path / "x", "trtllm", "float16")
    narrow = dataclasses.replace(DOC_BASE, hidden_size=2)
    with refused(AdapterError, str(pair), "row 0 (attn_q of layer 0, rank 2)", "has 16 values", "12", "(and 5 more"):
        convert(pair, tmp_path / "x", "peft", base=narrow)
    with refused(AdapterError, "give --model DIR"):
        convert(pair, tmp_path / "x", "peft")


def test_nothing_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_adapter(tmp_path / "in", lora_tensors() | {lora_name(LM_HEAD, "weight"): random((13, 12)),
                           lora_name(EMBED, "weight"): random((13, 12))})  # fmt: skip
    out = tmp_path / "deep" / "out"
    assert cli.main(["convert", str(source), str(out), "--to", "trtllm"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{source}: TensorRT-LLM's arrays cannot hold ['a whole model.embed_tokens', 'a whole lm_head']" in error
    assert not out.parent.exists()
    assert cli.main(["convert", str(source), str(out), "--to", "trtllm", "--leave-out"]) == 0
    assert "note: left out: a whole lm_head" in capsys.readouterr().out
    assert [*out.parent.iterdir()] == [out]
    assert cli.main(["convert", str(source), str(out), "--to", "trtllm", "--leave-out"]) == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    with refused(LoracleError, str(tmp_path / "file")):
        convert(source, tmp_path / "file" / "out", "trtllm", leave_out=True)
    with refused(LoracleError, "is there already"):
        convert(source, tmp_path / "file", "peft")


def test_a_module_that_is_not_alike_in_all_layers_is_refused_or_noted(tmp_path: Path) -> None:
    tensors = lora_tensors()
    tensors[lora_name((1, "q_proj"), "lora_B.weight")] = tensors[lora_name((1, "q_proj"), "lora_B.weight")][:-1]
    source = write_adapter(tmp_path / "narrow", tensors)
    with pytest.raises(
        AdapterError, match=r"0.self_attn.q_proj is \[32, 12\] and .*1.self_attn.q_proj is \[31, 12\], "
    ):
        convert(source, tmp_path / "out", "trtllm")
    assert not (tmp_path / "out").exists()
    tensors = {name: x for name, x in lora_tensors().items() if "layers.0.mlp.up_proj" not in name}
    notes = convert(write_adapter(tmp_path / "few", tensors), tmp_path / "out", "trtllm").notes
    assert any(note.startswith("has no row for model.layers.0.mlp.up_proj: TensorRT-LLM adds") for note in notes)


@pytest.mark.parametrize(
    ("gone", "config", "said"),
    [
        (None, {}, "its last layer is 1: whether the base has more only the base says; --model DIR looks"),
        (1, {}, "its last layer is 0: whether the base has more only the base says; --model DIR looks"),
        (0, {}, "has no LoRA in layer 0, although the file goes up to layer 1: is the file whole?"),
        (1, {"layers_to_transform": [0, 1]}, "has no LoRA in layer 1, although layers_to_transform names it: is the"),
        (1, {"layers_to_transform": [0]}, ""),
    ],
)
def test_what_can_be_seen_of_a_missing_layer_without_a_base(
    gone: int | None, config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tensors = {name: x for name, x in lora_tensors().items() if f"layers.{gone}." not in name}
    source = write_adapter(tmp_path / "few", tensors, **config)
    notes = [note for note in convert(source, tmp_path / "out", "peft").notes if "layer" in note]
    assert len(notes) == bool(said) and all(note.startswith(said) for note in notes)


def test_neither_one_nor_the_other(tmp_path: Path) -> None:
    with refused(AdapterError, "is not there"):
        convert(tmp_path / "nowhere", tmp_path / "out", "peft")
    with refused(AdapterError, "has no adapter_config.json: it has a config.json, and is a whole model"):
        convert(write_model(tmp_path / "model"), tmp_path / "out", "peft")
    write(tmp_path / "tasks" / "7")
    with refused(AdapterError, f"several task ids; give one of them, as {tmp_path / 'tasks' / '7'}"):
        convert(tmp_path / "tasks", tmp_path / "out", "trtllm")
    with refused(AdapterError, "'onnx'", "trtllm, peft"):
        convert(write_adapter(tmp_path / "in"), tmp_path / "out", "onnx")
    (write(tmp_path / "pair") / FILES[1]).unlink()
    with refused(AdapterError, f"has {FILES[0]} but no {FILES[1]}"):
        convert(tmp_path / "pair", tmp_path / "out", "peft", base=BASE)
    (tmp_path / "pair" / FILES[1]).write_bytes(LFS_POINTER)
    with refused(AdapterError, "git lfs pull"):
        convert(tmp_path / "pair", tmp_path / "out", "peft", base=BASE)


# What its loader raises for a PEFT folder (loaders.py, manager.py), or should; and what is said here.
A, B = lora_name((1, "q_proj"), "lora_A.weight"), lora_name((1, "q_proj"), "lora_B.weight")
LOADER_ERRORS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "unsupported key": (
        {"base_model.model.model.layers.1.self_attn.rotary.lora_A.weight": random((3, 12))},
        {},
        "rotary",
    ),
    "not in supported list": ({lora_name((1, "q_proj"), "lora_C.weight"): random((3, 12))}, {}, "q_proj.lora_C.weight"),
    "not in target modules": ({}, {"target_modules": ["k_proj"]}, "q_proj.lora_A.weight is not for use"),
    "missing in": ({A: ...}, {}, "module model.layers.1.self_attn.q_proj: lora_A is missing"),
    "missing out": ({B: ...}, {}, "module model.layers.1.self_attn.q_proj: lora_B is missing"),
    "rank": ({A: random((4, 12))}, {}, f"tensor {A} has shape [4, 12]"),
    "DoRA": (
        {lora_name((1, "q_proj"), "lora_magnitude_vector"): random((32,))},
        {},
        "use_dora is false, but lora_magnitude_vector is there",
    ),
    "use_dora": ({}, {"use_dora": True}, "use_dora is true, but lora_magnitude_vector is not there"),
    "layer": ({lora_name((2, "q_proj"), "lora_A.weight"): random((3, 12))}, {}, "it is of layer 2, the base has 2"),
}


@pytest.mark.parametrize("error", LOADER_ERRORS)
def test_every_error_of_its_loader_names_the_tensor(tmp_path: Path, error: str) -> None:
    tensors, changes, says = LOADER_ERRORS[error]
    changed = {name: x for name, x in (lora_tensors() | tensors).items() if x is not ...}
    folder = write_adapter(tmp_path / "in", changed, **changes)
    with refused(AdapterError, str(folder), says):
        convert(folder, tmp_path / "out", "trtllm", base=BASE)
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("member", ["model_weights.ckpt", "./model_weights.ckpt", "mp_rank_00/model_weights.ckpt"])
def test_nemo_files_are_recognised_and_refused_with_the_way_to_convert_them(tmp_path: Path, member: str) -> None:
    (tmp_path / "ckpt").write_bytes(b"\x80\x02not read")
    file = tmp_path / "nemo" / "adapter.nemo"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz" if "mp" in member else "w") as tar:
        tar.add(tmp_path / "ckpt", member)
    for path in (file, file.parent):
        with refused(
            AdapterError, str(path), "is a NeMo adapter", "pickle", "convert_nemo_to_canonical.py", "export_lora"
        ):
            convert(path, tmp_path / "out", "trtllm")
        assert inspect(path).problems[0].startswith(f"{path}: is a NeMo adapter")
    file.write_bytes(b"no tar")
    with refused(AdapterError, "has the name of a NeMo file, but is no tar"):
        convert(file, tmp_path / "out", "trtllm")
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "ckpt", "other")
    with refused(AdapterError, "is a tar without model_weights.ckpt"):
        convert(file, tmp_path / "out", "trtllm")


def test_inspect_shows_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = inspect(write(tmp_path))
    assert (seen.kind, seen.ok, seen.warnings) == ("trtllm", True, [])
    assert seen.config == {"rows": 6, "columns": 3, "width": 64, "ranks": [2, 4, 8], "layers": 4}
    assert [(m.module, m.rank, m.shapes, m.dtype) for m in seen.modules][1] == (
        "model.layers.0.attn_k (k_proj)", 4, {"row": [64]}, "float16")  # fmt: skip
    assert seen.tensorrt_llm == [
        "takes rank 2 to 8 for one rank under CUDA graphs: decoding goes wrong there",
        SAME_ID,
    ]
    rows = [[*row, 0] for row in DOC_ROWS[:5]] + [[1, 3, 12, 1]]
    seen = inspect(write(tmp_path, config=rows), max_rank=8)
    assert seen.tensorrt_llm[0] == "rejects rank 12: it is above max_lora_rank 8"
    assert "ignores the magnitude of DoRA in its PyTorch backend" in seen.tensorrt_llm
    assert inspect(write(tmp_path, config=[[99, 0, 0]] * 6), BASE).problems[0].endswith("they are 0 to 25")
    assert cli.main(["convert", "pirate", str(tmp_path / "pirate"), "--to", "trtllm", "--scale-order", "manager"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "pirate"), "--model", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "attn_q (q_proj)" in out
    assert "TensorRT-LLM caches are keyed by task id alone" in out
    assert cli.main(["inspect", str(tmp_path / "pirate"), "--max-rank", "0"]) == 2


def test_inspect_shows_a_folder_of_task_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As LoraManager.save_lora_weights_to_bin and the prefetch directory lay them out."""
    for name, rank in (("1", 8), ("01", 8), ("2", 5), ("notes", 8)):
        write(tmp_path / name, np.ones((1, 1, 64), np.float16) * (2 if name == "01" else 1), [[1, 0, rank]])
    seen = inspect(tmp_path)
    assert (seen.kind, seen.problems) == ("trtllm", [])
    assert seen.config["tasks"]["2"] == "1 rows of ranks [5]"
    assert f"(task 2) {ODD_RANK}" in seen.tensorrt_llm
    assert "skips the folder notes: only a name of digits is a task id" in seen.tensorrt_llm
    assert "takes 01 and 1 for one task id, 1, with other weights" in seen.tensorrt_llm
    assert any(line.startswith("rejects the ranks [5, 8] together") for line in seen.tensorrt_llm)
    assert seen.tensorrt_llm.count(SAME_ID) == 1
    (tmp_path / "2" / FILES[1]).unlink()
    alone = f"{tmp_path / '2'}: has {FILES[0]} but no {FILES[1]}: a request for LoRA must have both"
    assert inspect(tmp_path).problems == [alone]
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "1: attn_q (q_proj)" in capsys.readouterr().out


def test_which_ranks_the_engine_takes() -> None:
    together = "rejects the ranks [5, 8] together in a mixed batch"
    assert about_ranks([5, 8])[0].startswith(together)
    assert "[5] are no multiples" in about_ranks([5, 8])[0]
    assert about_ranks([8, 16, 8])[:-1] == []
    assert about_ranks([16]) == []
    assert about_ranks([5]) == [
        "rejects rank 5 in a mixed batch unless a smaller one is in it: 1, 2, 4 and multiples of 8 run"
    ]
    assert about_ranks([65])[0] == "rejects rank 65: it is above max_lora_rank 64"
    assert about_ranks([64]) == []


def test_what_the_engine_makes_of_a_peft_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules = ["q_proj", "lm_head", "embed_tokens"]
    tensors = lora_tensors(rank=5, modules=("q_proj",)) | lora_tensors(rank=8, modules=("lm_head", "embed_tokens"))
    tensors[lora_name(LM_HEAD, "base_layer.weight")] = random((13, 12))
    patterns = {"r": 8, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_proj": 3}}
    folder = write_adapter(tmp_path, tensors, target_modules=modules, **patterns)
    assert inspect(folder, BASE).tensorrt_llm == []
    said = inspect(folder, BASE, "trtllm").tensorrt_llm
    assert said == [
        ODD_RANK,
        "ignores the LoRA on model.embed_tokens and lm_head, without a word",
        "takes the whole lm_head for every request, those without adapter too, if this is the only lora_dir, and "
        "ignores it otherwise",
        "ignores alpha_pattern {'q_proj': 3}: every module gets lora_alpha",
        "ignores rank_pattern {'q_proj': 5} in hf_lora_convert.py: the scale is alpha/r",
        "fills up k_proj and v_proj with zeros: the three are enabled together",
        SAME_ID,
    ]
    dense = write_adapter(tmp_path / "dense", lora_tensors(rank=8, modules=("o_proj",)), target_modules=["o_proj"], r=8)
    cut = "cuts attn_dense (o_proj) wrongly: it takes hidden_size, 12, for the 32 that it reads"
    assert inspect(dense, BASE, "trtllm").tensorrt_llm == [cut, SAME_ID]
    convert(dense, tmp_path / "pair", "trtllm")
    assert inspect(tmp_path / "pair", BASE).tensorrt_llm == [cut, SAME_ID]
    assert inspect(tmp_path / "pair").tensorrt_llm == [SAME_ID]
    biased = lora_tensors(modules=("o_proj",)) | {
        lora_name((i, "o_proj"), "lora_B.bias"): random((12,)) for i in (0, 1)
    }
    seen = inspect(write_adapter(tmp_path, biased, target_modules=["o_proj"], lora_bias=True), BASE, "trtllm")
    assert any("lora_B.bias (2 biases): KeyError" in line for line in seen.tensorrt_llm)
    magnitudes = {lora_name((i, "o_proj"), "lora_magnitude_vector"): random((12,)) for i in (0, 1)}
    dora = lora_tensors(modules=("o_proj",)) | magnitudes
    folder = write_adapter(tmp_path / "dora", dora, target_modules=["o_proj"], use_dora=True)
    assert "ignores the magnitude of DoRA in its PyTorch backend" in inspect(folder, BASE, "trtllm").tensorrt_llm
    with refused(AdapterError, "cannot hold", "the DoRA magnitude of model.layers.0.self_attn.o_proj"):
        convert(folder, tmp_path / "lost", "trtllm")
    assert cli.main(["inspect", "bard", "--for", "trtllm", "--max-rank", "8"]) == 1
    assert "TensorRT-LLM rejects rank 16: it is above max_lora_rank 8" in capsys.readouterr().out


def test_reading_a_folder_loads_no_more_than_it_needs() -> None:
    code = (
        "import sys, refimpl.formats.convert; print([m for m in ('torch', 'tokenizers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
