"""Text <-> ids, exactly: what the tokenizer's own post-processor adds, and nothing eaten at the edges."""

from pathlib import Path

import pytest
import tokenizers
from folders import LFS_POINTER, refused, write_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from refimpl.errors import ConfigError, LoracleError
from refimpl.loading.model_folder import load_model
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without merges, with a BOS in front, as in Llama 3."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.save(str(folder / "tokenizer.json"))
    return folder


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_there_and_back(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text)
    if not any(special in text for special in ("<s>", "</s>")):
        assert ids[0] == 0
        assert len(ids) == 1 + len(text.encode())
        assert tokenizer.decode(ids) == text


def test_nothing_is_eaten_at_the_edges(folder: Path) -> None:
    """str.strip("<s>") takes a letter s with it: a published teaching repository prints "he wa walking"."""
    tokenizer = load_tokenizer(folder)
    for text in ("s", "his cats ", " was", "<walks>", "\n", ""):
        assert tokenizer.decode([*tokenizer.encode(text), 1]) == text


def test_ids_out_of_range(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for bad in (-1, 2**31, 2**40):
        with refused(LoracleError, "ids must be in"):
            tokenizer.decode([5, bad])
    assert tokenizer.decode([]) == ""


def test_without_one_ids_still_work(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path))
    assert isinstance(model.tokenizer, Tokenizer)
    with refused(LoracleError, "tokenizer.json is not there"):
        model.tokenizer.encode("text")
    with refused(LoracleError, "tokenizer.json is not there"):
        model.tokenizer.decode([1])


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"", "does not accept it"), (b"{}", "does not accept it"), (b"\xff", "does not accept it"), (LFS_POINTER, "LFS")],
)
def test_a_damaged_one_is_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with refused(ConfigError, f"{tmp_path / 'tokenizer.json'}: ", says):
        load_tokenizer(tmp_path)
    with refused(ConfigError, says):
        load_model(write_model(tmp_path))
