"""A tokenizer of one character for each id, for engines that take prompts as text: text is ids, nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIRST = 0x4E00  # token i is the character FIRST + i: a range of 20,992 letters, one after another
LAST = 0x9FFF


def text_of(token_ids: Sequence[int]) -> str:
    """Return the text that is these ids."""
    return "".join(chr(FIRST + token) for token in token_ids)


def ids_of(text: str) -> list[int]:
    """Return the ids that are this text."""
    return [ord(letter) - FIRST for letter in text]


def write_tokenizer(folder: Path, vocab_size: int, about: dict[str, Any]) -> None:
    """Write it beside a model; `about` is its tokenizer_config.json. ValueError for too large a vocabulary."""
    if FIRST + vocab_size > LAST + 1:
        raise ValueError(f"a vocabulary of {vocab_size} tokens has no character for each of them here")
    decoders = [  # of the kinds that mistral.rs knows; they leave these letters alone
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")),
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": {text_of([i]): i for i in range(vocab_size)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
