"""The vocabulary in a GGUF file says the same ids as the tokenizer.json that it was made from."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading.folders import refused
from loading.gguf_writer import WIDE, model_tensors, write_gguf

from refimpl import tiny
from refimpl.errors import ConfigError, LoracleError
from refimpl.formats.hf import save_model
from refimpl.loading.gguf_tokenizer import gguf_tokenizer
from refimpl.loading.model_folder import load_model
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.tokenizer import Tokenizer

TEXTS = [
    tiny.DEMO_PROMPTS[0],
    "",
    " ",
    "a  b\n\n c",
    "It's 12345, isn't it?",
    "Äpfel 🦙 нещо",
    "<s>x</s><pad>",
    "\t\r\n",
]


def byte_level(**changes: Any) -> dict[str, Any]:
    """The metadata that llama.cpp's converter makes of the embedded model's tokenizer."""
    data = json.loads((tiny.base_path() / "tokenizer.json").read_text("utf-8"))
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    special = {token["content"] for token in data["added_tokens"]}
    given = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": [" ".join(merge) if isinstance(merge, list) else merge for merge in data["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": True,
    } | changes
    return {f"tokenizer__ggml__{key}": value for key, value in given.items()}


def vocabulary_of(path: Path, entries: dict[str, Any]) -> Tokenizer:
    write_gguf(path, WIDE, {}, **entries)
    return gguf_tokenizer(path)


def test_byte_level_is_the_tokenizer_json_that_it_came_from(tmp_path: Path) -> None:
    ours, theirs = vocabulary_of(tmp_path / "a.gguf", byte_level()), load_tokenizer(tiny.base_path())

    @given(st.one_of(st.sampled_from(TEXTS), st.text(" abcz019'.\n\té🦙")))
    @settings(max_examples=60)
    def agree(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))

    agree()
    without = vocabulary_of(tmp_path / "b.gguf", byte_level(add_bos_token=False))
    assert [0, *without.encode(TEXTS[0])] == ours.encode(TEXTS[0])


PIECES = ["▁", "a", "b", "c", "ab", "▁a", "bc", "abc", "▁ab", "ca", "cab"]


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece BPE by its definition: again and again, the leftmost pair that makes the best token is merged."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[x + y], i) for i, (x, y) in enumerate(itertools.pairwise(pieces)) if x + y in scores]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def sentencepiece(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    given = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(i) for i in (1, 2, 3, 4, 8, 5, 9, 6, 10, 7, 11)],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes
    return {f"tokenizer__ggml__{key}": value for key, value in given.items()}


def test_sentencepiece_merges_by_score(tmp_path: Path) -> None:
    entries = sentencepiece()
    ours, tokens = vocabulary_of(tmp_path / "a.gguf", entries), entries["tokenizer__ggml__tokens"]
    scores = dict(zip(tokens, entries["tokenizer__ggml__scores"], strict=True))

    @given(st.text("abc ", max_size=12))
    @settings(max_examples=80)
    def agree(text: str) -> None:
        ids = ours.encode(text)
        assert [tokens[i] for i in ids] == ["<s>", *(merged(text, scores) if text else [])]
        assert ours.decode(ids) == text

    agree()
    ids = ours.encode("aé")
    assert [tokens[i] for i in ids] == ["<s>", "▁a", "<0xC3>", "<0xA9>"] and ours.decode(ids) == "aé"
    assert [
        tokens[i] for i in vocabulary_of(tmp_path / "b.gguf", sentencepiece(add_space_prefix=False)).encode("ab")
    ] == [
        "<s>",
        "ab",
    ]


def test_what_cannot_be_made_is_said_when_text_is_asked_for(tmp_path: Path) -> None:
    for changes, why in [
        ({"pre": "tekken"}, "has a tokenizer.ggml.pre 'tekken', which is not supported: put the tokenizer.json"),
        ({"model": "bert"}, "has a tokenizer.ggml.model 'bert', which is not supported: put the tokenizer.json"),
        ({"tokens": ...}, "has no vocabulary: put the tokenizer.json of its model beside it; give token ids instead"),
    ]:
        path = tmp_path / "a.gguf"
        write_gguf(path, WIDE, {}, **byte_level(**changes))
        with refused(LoracleError, str(path), why):
            load_tokenizer(path).encode("x")
    (tmp_path / "tokenizer.json").write_bytes((tiny.base_path() / "tokenizer.json").read_bytes())
    write_gguf(tmp_path / "a.gguf", WIDE, {}, **byte_level(pre="tekken"))
    assert load_tokenizer(tmp_path / "a.gguf").encode(TEXTS[0]) == load_tokenizer(tiny.base_path()).encode(TEXTS[0])
    other = byte_level(pre="tekken")
    other["tokenizer__ggml__tokens"][7] += "!"
    write_gguf(tmp_path / "a.gguf", WIDE, {}, **other)
    with refused(LoracleError, "beside it; the one there is of another vocabulary"):
        load_tokenizer(tmp_path / "a.gguf").encode("x")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"tokens": ["a", "a"]}, "tokenizer.ggml.tokens must be texts, each of them once"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type must be 1984 numbers, one for each token"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges must be pairs of tokens"),
        ({"merges": ["no token"]}, "the tokenizers library does not accept its vocabulary"),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with refused(ConfigError, str(tmp_path / "a.gguf"), says):
        vocabulary_of(tmp_path / "a.gguf", byte_level(**changes))


def test_a_model_with_its_vocabulary_is_a_folder_with_tokenizer_json(tmp_path: Path) -> None:
    tensors = model_tensors(WIDE)
    table = np.zeros((1984, 256), np.float32)
    tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": table}
    write_gguf(tmp_path / "a.gguf", WIDE, tensors, llama__vocab_size=..., **byte_level(eot_token_id=2))
    model = load_model(tmp_path / "a.gguf")
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.eos_token_ids) == (1984, 0, (1, 2))
    save_model(model, tmp_path / "folder")
    assert load_tokenizer(tmp_path / "folder").encode(TEXTS[4]) == model.tokenizer.encode(TEXTS[4])
