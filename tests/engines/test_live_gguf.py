"""llama.cpp and GGUF, live: what it computes from a file is what we read in it.

LORACLE_LIVE=1 runs them, after `loracle engines setup llama_cpp`. Three things are held against it: logits of bases in
float types, with adapters, in noise units; the numbers that blocks stand for, against ggml's own, within
the last bit; and token ids of the vocabularies that it is tested with.
"""

import ctypes
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from loading.gguf_writer import WIDE, blocks_of, model_tensors, write_gguf
from support.build import random_adapter

from refimpl import Request, logits
from refimpl.config import Rope
from refimpl.engines import registry
from refimpl.engines.environments import folder
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.recipes import LLAMA_CPP
from refimpl.formats.gguf import write_gguf_adapter
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.dequantise import BLOCKS, numbers
from refimpl.loading.gguf_config import llama3_factors
from refimpl.loading.gguf_file import TYPES
from refimpl.loading.gguf_tokenizer import gguf_tokenizer
from refimpl.loading.model_folder import load_model

pytestmark = pytest.mark.skipif(
    os.environ.get("LORACLE_LIVE") != "1", reason="LORACLE_LIVE=1 runs it, after `loracle engines setup llama_cpp`"
)

SAME = 3.0  # noise units
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9)
LLAMA3 = dataclasses.replace(WIDE, num_hidden_layers=2, rope=Rope(500000.0, "llama3", 8.0))
# What llama.cpp's own kernel for a type adds: it rounds the activations to 8 bits before it multiplies with blocks.
ROUNDED_ACTIVATIONS = 0.1


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_logits_of_a_base_and_of_an_adapter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "base.gguf"
    factors = llama3_factors(8.0, 500000.0, WIDE.head_dim).astype(np.float32)
    write_gguf(path, LLAMA3, model_tensors(LLAMA3), kind, extra={"rope_freqs.weight": factors})
    exact, ours = load_model(path, "float64"), load_model(path, "float32")
    assert exact.config == LLAMA3
    save_adapter(random_adapter(LLAMA3, 1, use_rslora=True), tmp_path / "adapter", "float32")
    adapter = load_adapter(tmp_path / "adapter", LLAMA3)
    write_gguf_adapter(adapter, tmp_path / "adapter.gguf", LLAMA3)
    engine = registry.make("llama_cpp", {})
    engine.start(Settings(path, max_length=32, max_requests=3))
    try:
        engine.load("one", tmp_path / "adapter")
        engine.load("two", tmp_path / "adapter.gguf")
        responses = engine.run([EngineRequest(PROMPT, name, 1) for name in (None, "one", "two")])
    finally:
        engine.close()
    for response, chosen in zip(responses, (None, adapter, adapter), strict=True):
        truth = logits(exact, [Request(PROMPT, chosen)])[0]
        unit = np.sqrt(np.mean((logits(ours, [Request(PROMPT, chosen)])[0] - truth) ** 2))
        error = np.sqrt(np.mean((response.logits[: len(PROMPT)] - truth) ** 2))
        relative = error / np.sqrt(np.mean(truth**2))
        print(f"{kind}: {error / unit:.2f} units, {relative:.2e} of the rms logit")
        assert error <= SAME * unit if kind == "F32" else relative < ROUNDED_ACTIVATIONS


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_against_ggml(kind: str) -> None:
    """A compiler may join a product and a sum (d q - m) into one rounding: that is the last bit."""
    library = ctypes.CDLL(str(folder(LLAMA_CPP) / "build" / "bin" / "libggml-base.so"))
    block, size = next((block, size) for name, block, size in TYPES.values() if name == kind)
    rows = blocks_of(np.random.default_rng(3).standard_normal((64, block)).astype(np.float32), kind)
    expected = np.zeros((64, block), np.float32)
    dequantise = getattr(library, f"dequantize_row_{kind.lower().replace('_k', '_K')}")
    dequantise(
        rows.ctypes.data_as(ctypes.c_void_p), expected.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(64 * block)
    )
    ours = numbers(kind, rows)
    assert rows.nbytes == 64 * size and np.abs(expected).max() > 0
    assert np.all(np.abs(ours - expected) <= np.spacing(np.abs(ours).max(axis=1, keepdims=True)))
    print(f"{kind}: {np.mean(ours != expected):.1%} differ in the last bit")


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "gpt-2", "qwen2", "starcoder", "refact", "phi-3"])
def test_token_ids_of_the_vocabularies_that_it_is_tested_with(name: str) -> None:
    source = next((folder(LLAMA_CPP) / "source").glob("*/vendor/llama.cpp/models"))
    tokenizer = gguf_tokenizer(source / f"ggml-vocab-{name}.gguf")
    with open(source / f"ggml-vocab-{name}.gguf.inp", encoding="utf-8", newline="") as texts:
        inputs = texts.read().split("\n__ggml_vocab_test__\n")
    outputs = (source / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    assert len(outputs) > 40
    inputs = inputs[:-1]  # what follows the last separator
    for text, ids in zip(inputs, outputs, strict=True):
        assert tokenizer.inner.encode(text, add_special_tokens=False).ids == [int(i) for i in ids.split()], repr(text)
