"""A GGUF base: the numbers that its blocks stand for, in transformers' order, with the config that it was made from."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import LFS_POINTER, refused, safetensors_bytes
from loading.gguf_writer import WIDE, model_tensors, write_gguf
from loading.test_weights import arrays_of
from support.build import random_adapter

from refimpl import Request, cli, logits
from refimpl.config import ModelConfig, Rope
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.errors import AdapterError, ConfigError, LoracleError, WeightsError
from refimpl.formats.config_json import config_json
from refimpl.formats.gguf import write_gguf_adapter
from refimpl.formats.hf import save_model
from refimpl.loading import dequantise
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.config_file import load_config
from refimpl.loading.dequantise import BLOCKS, numbers
from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.gguf_config import llama3_factors
from refimpl.loading.gguf_file import TYPES
from refimpl.loading.gguf_names import half_split, interleaved
from refimpl.loading.gguf_parts import open_gguf
from refimpl.loading.gguf_tensors import gguf_spelling
from refimpl.loading.model_folder import load_model
from refimpl.oracle.cases.case import Case, Load, Run, play, truth
from refimpl.oracle.cases.testbed import build, settings
from refimpl.oracle.reports.repro import load_repro
from refimpl.oracle.reports.repro_write import Repro
from refimpl.tools.inspect import inspect
from refimpl.tools.merge import merged

TIED = dataclasses.replace(WIDE, tie_word_embeddings=True, num_hidden_layers=2)
BIASED = dataclasses.replace(WIDE, attention_bias=True, mlp_bias=True)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def hugging_face(folder: Path, config: ModelConfig, tensors: dict[str, np.ndarray]) -> Path:
    """The same model as transformers saves it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(config, "float32")))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    return folder


@pytest.mark.parametrize("config", [WIDE, TIED, BIASED], ids=["plain", "tied", "biased"])
def test_a_float32_file_is_the_hugging_face_model_to_the_last_bit(tmp_path: Path, config: ModelConfig) -> None:
    tensors = model_tensors(config)
    write_gguf(tmp_path / "base.gguf", config, tensors)
    ours, theirs = (
        load_model(path) for path in (tmp_path / "base.gguf", hugging_face(tmp_path / "hf", config, tensors))
    )
    assert ours.config == theirs.config
    for name, x in arrays_of(theirs).items():
        assert arrays_of(ours)[name].tobytes() == x.tobytes(), name
    adapter = random_adapter(config, 5)
    for request in (Request(IDS), Request(IDS, adapter)):
        assert np.array_equal(logits(ours, [request])[0], logits(theirs, [request])[0])
    save_model(ours, tmp_path / "again")
    assert load_model(tmp_path / "again").config == ours.config


@pytest.mark.parametrize("kind", ["F16", "BF16", *BLOCKS])
def test_every_type_is_what_its_blocks_stand_for(tmp_path: Path, kind: str) -> None:
    """The definition of each, number by number in float64, and the bits that the gguf package gives."""
    blocks = write_gguf(tmp_path / "base.gguf", WIDE, model_tensors(WIDE), kind)
    model = load_model(tmp_path / "base.gguf", "float64")
    for name, x in arrays_of(model).items():
        spelt = gguf_spelling(name)
        stored = blocks[spelt]
        if stored.ndim == 1:
            assert np.array_equal(x, stored.astype(np.float64))
            continue
        expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]).astype(np.float64)
        heads = {"attn_q": 8, "attn_k": 2}.get(spelt.split(".")[-2])
        assert np.array_equal(interleaved(x, heads), expected), name
        if kind in DEFINITIONS:
            row = np.concatenate([DEFINITIONS[kind](block) for block in stored[1].reshape(-1, size_of(kind))])
            assert np.allclose(expected[1], row, rtol=3e-7, atol=3e-7 * abs(row).max()), name
    assert sum(abs(x).sum() for x in arrays_of(model).values()) > 0


def size_of(kind: str) -> int:
    return next(size for name, _, size in TYPES.values() if name == kind)


def half(block: np.ndarray, start: int) -> float:
    return float(block[start : start + 2].view("<f2")[0])


def q8_0(block: np.ndarray) -> np.ndarray:
    """d q, q in int8 (ggml-quants.c, dequantize_row_q8_0)."""
    return half(block, 0) * block[2:].view(np.int8).astype(np.float64)


def q4_0(block: np.ndarray) -> np.ndarray:
    """d (q - 8); the low halves of 16 bytes are the first 16 numbers, the high ones the others."""
    return half(block, 0) * (np.concatenate([block[2:] & 15, block[2:] >> 4]).astype(np.float64) - 8)


def q4_k(block: np.ndarray) -> np.ndarray:
    """scale * part * q - least * shift: 8 groups of 32; part and shift have 6 bits each (get_scale_min_k4)."""
    scale, least, packed, q = half(block, 0), half(block, 2), block[4:16], block[16:]
    result = []
    for j in range(8):
        if j < 4:
            part, shift = packed[j] & 63, packed[j + 4] & 63
        else:
            part = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
            shift = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)
        run = q[32 * (j // 2) : 32 * (j // 2) + 32]
        bits = run >> 4 if j % 2 else run & 15
        result += [scale * float(part) * float(bit) - least * float(shift) for bit in bits]
    return np.array(result)


def q6_k(block: np.ndarray) -> np.ndarray:
    """scale * part * (q - 32): 4 low bits of q, 2 high bits, 16 signed parts, the scale."""
    low, high, parts, scale = block[:128], block[128:192], block[192:208].view(np.int8), half(block, 208)
    result = np.zeros(256)
    for n in range(2):
        for i in range(32):
            for k in range(4):
                bits = low[64 * n + 32 * (k % 2) + i]
                bits = bits >> 4 if k > 1 else bits & 15
                q = int(bits) | (int(high[32 * n + i] >> (2 * k) & 3) << 4)
                result[128 * n + 32 * k + i] = scale * float(parts[8 * n + 2 * k + i // 16]) * (q - 32)
    return result


DEFINITIONS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_K": q4_k, "Q6_K": q6_k}


@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([(), (5,)]))
def test_rows_of_q_and_k_are_put_back(heads: int, pairs: int, rest: tuple[int, ...]) -> None:
    """In the file, row 2i of a head is row i of transformers', and row 2i + 1 is row i + head_dim / 2."""
    rows = np.random.default_rng(0).standard_normal((2 * heads * pairs, *rest))
    back = half_split(rows, heads)
    for head in range(heads):
        start = 2 * head * pairs
        for i in range(pairs):
            assert np.array_equal(back[start + i], rows[start + 2 * i])
            assert np.array_equal(back[start + i + pairs], rows[start + 2 * i + 1])
    assert np.array_equal(interleaved(back, heads), rows)
    assert half_split(rows, None) is rows


def test_rope_of_llama_3_1_and_linear_come_back(tmp_path: Path) -> None:
    for number, rope in enumerate(
        [Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192), Rope(10000.0, "linear", factor=2.5)]
    ):
        config = dataclasses.replace(WIDE, rope=rope)
        changes: dict[str, Any] = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": rope.factor}
        factors = llama3_factors(rope.factor, rope.theta, config.head_dim).astype(np.float32)
        extra = {"rope_freqs.weight": factors} if rope.type == "llama3" else {}
        path = tmp_path / f"{number}.gguf"
        write_gguf(path, config, model_tensors(config), extra=extra, **({} if extra else changes))
        assert load_config(path) == config


def test_the_reader_and_the_package_agree(tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", BIASED, model_tensors(BIASED), "Q8_0", llama__vocab_size=13)
    ours, theirs = open_gguf(tmp_path / "base.gguf", Diagnostics()), gguf.GGUFReader(tmp_path / "base.gguf")
    assert ours is not None
    assert [*ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.type, mine.shape) == (tensor.tensor_type.name, tuple(tensor.shape[::-1].tolist()))
        assert mine.data.tobytes() == tensor.data.tobytes()
    for key, value in ours.metadata.items():
        said = theirs.fields[key].contents()
        assert value == said or np.float32(value) == np.float32(said), key


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    """Cut anywhere, or with eight bytes of 255 anywhere in its header: never a traceback, a hang or gigabytes."""
    small = dataclasses.replace(WIDE, hidden_size=32, intermediate_size=64, num_attention_heads=2, head_dim=16)
    write_gguf(
        tmp_path / "base.gguf", small, model_tensors(small), tokenizer__ggml__tokens=[f"t{i}" for i in range(13)]
    )
    raw, path = (tmp_path / "base.gguf").read_bytes(), tmp_path / "cut.gguf"
    load_model(tmp_path / "base.gguf")
    header = raw.index(b"blk.0.ffn_down.weight")
    for length in [*range(0, header, 13), *range(header, len(raw), len(raw) // 20), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with refused(LoracleError, str(path)):
            load_model(path)
    refusals = 0
    for start in range(0, header, 11):
        path.write_bytes(raw[:start] + b"\xff" * 8 + raw[start + 8 :])
        try:
            load_model(path)  # some bytes are a name in a tokenizer, and harmless
        except LoracleError as error:
            refusals += len(str(error).splitlines()) == 1
    assert refusals > header // 22


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            {"general__architecture": "qwen2"},
            "general.architecture is 'qwen2'; only models of the architecture 'llama'",
        ),
        ({"llama__embedding_length": ...}, "llama.embedding_length is missing: it must be an integer"),
        ({"llama__block_count": "two"}, "llama.block_count is 'two': it must be an integer"),
        ({"llama__expert_count": 8}, "llama.expert_count is 8, which is not supported"),
        ({"llama__attention__value_length": 16}, "llama.attention.value_length is 16, and heads are 32 wide"),
        ({"llama__attention__sliding_window": 8}, "the model has a window, and llama.cpp's llama has none"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'; none and linear are supported"),
        ({"llama__block_count": 2}, "tensor blk.1.attn_norm.weight [256] is in no file of the checkpoint"),
        ({"llama__vocab_size": 14}, "tensor token_embd.weight has shape [13, 256], the metadata makes it [14, 256]"),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_gguf(tmp_path / "base.gguf", WIDE, model_tensors(WIDE), **changes)
    with refused((ConfigError, WeightsError), str(tmp_path / "base.gguf"), says):  # type: ignore[arg-type]
        load_model(tmp_path / "base.gguf")
    assert any(says in problem for problem in inspect(tmp_path / "base.gguf").problems)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    write_gguf_adapter(random_adapter(WIDE, 1), tmp_path / "a.gguf", WIDE)
    with refused(ConfigError, "a.gguf: is a LoRA adapter, not a base model"):
        load_model(tmp_path / "a.gguf")
    write_gguf(tmp_path / "base.gguf", WIDE, model_tensors(WIDE))
    with refused(AdapterError, "base.gguf: general.type is 'model', not 'adapter': it is a base model"):
        load_adapter(tmp_path / "base.gguf", WIDE)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    for raw, says in [
        (b"", "is not a GGUF file: it begins with b''"),
        (b"GGML" + bytes(40), "is not a GGUF file: it begins with b'GGML'"),
        (LFS_POINTER, "is a Git LFS pointer to a file of size 167832240 bytes"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file, which is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF of version 1; 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), f"is truncated: it claims {2**60} metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture is None"),
    ]:
        (tmp_path / "base.gguf").write_bytes(raw)
        with refused(ConfigError, str(tmp_path / "base.gguf"), says):
            load_model(tmp_path / "base.gguf")
    with refused(ConfigError, "has no config.json; base.gguf: give the file itself, a GGUF is a whole model"):
        load_model(tmp_path)


def test_types_and_numbers_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.gguf"
    tensors = model_tensors(WIDE)
    write_gguf(path, WIDE, tensors, "TQ1_0")
    with refused(WeightsError, "tensor token_embd.weight has type TQ1_0; supported are F32, F16, BF16, F64, Q4_0"):
        load_model(path)
    blocks = write_gguf(path, WIDE, tensors, "Q8_0")
    raw = path.read_bytes()
    scale = raw.index(blocks["blk.0.ffn_down.weight"].tobytes())  # the first of the tensor
    path.write_bytes(raw[:scale] + np.float16(np.nan).tobytes() + raw[scale + 2 :])
    with refused(WeightsError, "holds NaN or inf"):
        load_model(path)
    assert any("holds NaN or inf" in problem for problem in inspect(path).problems)
    write_gguf(path, WIDE, tensors, "Q8_0")
    monkeypatch.setattr(dequantise, "missing_package", lambda: f"needs what is not here: {dequantise.INSTALL}")
    with refused(LoracleError, "Q8_0", "pip install 'loracle[gguf]'"):
        numbers("Q8_0", np.zeros((1, 34), np.uint8))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "base.gguf")
    write_gguf(Path(path), WIDE, model_tensors(WIDE), "Q4_K")
    assert cli.main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "model" in out and "Q4_K" in out and "can be used" in out
    request = tmp_path / "prompts.jsonl"
    request.write_text('{"adapter": "base", "prompt_ids": [3, 1, 4]}\n')
    assert cli.main(["generate", "--model", path, "--prompts", str(request), "--max-new-tokens", "2", "--json"]) == 0
    assert cli.main(["generate", "--model", path, "--prompt", "base:Once"]) == 2
    assert "base.gguf has no vocabulary: put the tokenizer.json of its model beside it" in capsys.readouterr().err


def test_a_failure_on_it_is_kept_with_the_file_and_plays_again(tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, hidden_size=32, intermediate_size=64, num_attention_heads=2, head_dim=16)
    write_gguf(tmp_path / "base.gguf", config, model_tensors(config), "Q8_0")
    write_gguf_adapter(random_adapter(config, 1), tmp_path / "made-0.gguf", config, "float32")
    adapters = {"made-0": tmp_path / "made-0.gguf"}
    testbed = build(str(tmp_path / "base.gguf"), "float32", 1, tmp_path, CAPABILITIES, adapters)
    assert np.array_equal(testbed.exact.embed_tokens, load_model(tmp_path / "base.gguf", "float64").embed_tokens)
    engine = Ours()
    engine.start(settings(testbed))
    case = Case("one", (Load("one", "made-0"), Run((EngineRequest(tuple(IDS), "one", 2),))), stateless=False)
    exchanges = play(engine, case, testbed)
    expected = {(0, 0): truth(exchanges, testbed)[0]}
    Repro(testbed, case, exchanges, expected, {}, "wrong", engine.settings, "numpy").save(tmp_path / "repro")
    (tmp_path / "base.gguf").unlink()
    (tmp_path / "made-0.gguf").unlink()
    again = load_repro(tmp_path / "repro")
    assert again.testbed.folder == tmp_path / "repro" / "model" / "base.gguf"
    assert np.array_equal(truth(again.exchanges, again.testbed)[0], expected[0, 0])


def test_merging_into_it_and_quantising_again(tmp_path: Path) -> None:
    """Merged, the adapter is in the numbers in full; blocks made of those do not hold what is below half a step."""
    write_gguf(tmp_path / "base.gguf", WIDE, model_tensors(WIDE), "Q4_0")
    model, adapter = load_model(tmp_path / "base.gguf", "float64"), random_adapter(WIDE, 1, modules=("up_proj",))
    up = adapter.lora[0, "up_proj"]
    small = dataclasses.replace(adapter, lora={(0, "up_proj"): dataclasses.replace(up, B=up.B * 1e-6)})
    for one in (adapter, small):
        rows, whole = logits(model, [Request(IDS, one)])[0], merged(model, one)
        assert np.allclose(logits(whole, [Request(IDS)])[0], rows, atol=1e-12 * abs(rows).max())
    blocks = [
        gguf.quants.quantize(x.linear((0, "up_proj")).weight.astype(np.float32), gguf.GGMLQuantizationType.Q4_0)
        for x in (model, merged(model, small), merged(model, adapter))
    ]
    assert np.mean(blocks[0] == blocks[1]) > 0.999 and np.mean(blocks[0] == blocks[2]) < 0.5


def split_gguf(folder: Path) -> list[Path]:
    """A base in parts of three tensors at most, as the package splits it."""
    folder.mkdir()
    write_gguf(folder / "base.gguf", WIDE, model_tensors(WIDE), "Q8_0", split=3)
    return sorted(folder.iterdir())


def test_a_split_file_is_the_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "whole.gguf", WIDE, model_tensors(WIDE), "Q8_0")
    parts = split_gguf(tmp_path / "parts")
    assert [part.name for part in parts] == [f"base-0000{i + 1}-of-00004.gguf" for i in range(4)]
    ours, theirs = (load_model(path, "float64") for path in (parts[0], tmp_path / "whole.gguf"))
    assert arrays_of(ours).keys() == arrays_of(theirs).keys()
    for name, x in arrays_of(theirs).items():
        assert np.array_equal(arrays_of(ours)[name], x), name
    assert cli.main(["inspect", str(parts[0])]) == 0
    capsys.readouterr()
    with refused(ConfigError, "is part 3 of 4: give the first, base-00001-of-00004.gguf"):
        load_model(parts[2])
    with refused(ConfigError, "base-00001-of-00004.gguf: give the file itself"):
        load_model(tmp_path / "parts")


def test_a_split_file_with_a_part_that_is_wrong(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path / "missing")
    parts[1].unlink()
    with refused(ConfigError, "is the first of 4 parts, and base-00002-of-00004.gguf is not there"):
        load_model(parts[0])
    parts = split_gguf(tmp_path / "swapped")
    parts[2].write_bytes(parts[1].read_bytes())
    with refused(ConfigError, f"{parts[2]}: has split.no 1 and split.count 4; the first part makes them 2 and 4"):
        load_model(parts[0])
    parts = split_gguf(tmp_path / "renamed")
    with refused(ConfigError, "must be called NAME-00001-of-00004.gguf to find the others"):
        load_model(parts[0].rename(tmp_path / "base.gguf"))
    parts = split_gguf(tmp_path / "damaged")
    parts[3].write_bytes(parts[3].read_bytes()[:-40])
    with refused(ConfigError, f"{parts[3]}: is truncated"):
        load_model(parts[0])
    write_gguf(tmp_path / "one-00001-of-00002.gguf", WIDE, model_tensors(WIDE), split__no=0, split__count=2)
    write_gguf(tmp_path / "one-00002-of-00002.gguf", WIDE, model_tensors(WIDE), split__no=1, split__count=2)
    with refused(ConfigError, "one-00002-of-00002.gguf: tensor blk.0.attn_k.weight is in another part, too"):
        load_model(tmp_path / "one-00001-of-00002.gguf")
    write_gguf(tmp_path / "two-00001-of-00002.gguf", WIDE, {}, split__no=0, split__count=2, split__tensors__count=9)
    write_gguf(tmp_path / "two-00002-of-00002.gguf", WIDE, model_tensors(WIDE), split__no=1, split__count=2)
    with refused(ConfigError, "split.tensors.count is 9, and the 2 parts have 12 tensors"):
        load_model(tmp_path / "two-00001-of-00002.gguf")
    write_gguf(tmp_path / "three.gguf", WIDE, model_tensors(WIDE), split__count=3)
    with refused(ConfigError, "split.no is None and split.count 3: they must be numbers of parts"):
        load_model(tmp_path / "three.gguf")
