"""The files beside the weights of a merged model: the base's, and the tokenizer that fits the vocabulary."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..formats.hf import TOKENIZER_FILES, write_tokenizer
from ..loading.gguf_file import is_gguf
from ..loading.tokenizer_file import load_tokenizer

TOKENIZER = TOKENIZER_FILES[0]
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
# What is not copied: written anew, of the weights' old form, or of an adapter.
NOT_COPIED = ("config.json", "quantize_config.json", "hf_quant_config.json")


def copy_text_files(base: Path, adapters: Sequence[tuple[str, Path]], target: Path) -> list[str]:
    """Copy what transformers reads beside the weights; the tokenizer of an adapter that brings another one.

    base: the folder or GGUF file; adapters: name and path of each. Return what to say of it. ConfigError for a
    tokenizer that is damaged."""
    if is_gguf(base):
        tokenizer = load_tokenizer(base)
        if tokenizer.inner is not None:
            write_tokenizer(tokenizer, target)
    else:
        for file in sorted(base.iterdir()):
            if file.suffix in SUFFIXES and is_copied(file.name) and file.is_file():
                shutil.copyfile(file, target / file.name)
        load_tokenizer(base)
    return take_tokenizer(adapters, target)


def is_copied(name: str) -> bool:
    """Whether a file of the base belongs to the merged model as it is."""
    return name not in NOT_COPIED and not name.endswith(".index.json") and not name.startswith("adapter_")


def take_tokenizer(adapters: Sequence[tuple[str, Path]], target: Path) -> list[str]:
    """Put the adapter's tokenizer in the place of the base's, where exactly one other is there."""
    ours = target / TOKENIZER
    base = ours.read_bytes() if ours.is_file() else b""
    others = {
        raw: (name, folder)
        for name, folder in adapters
        if (folder / TOKENIZER).is_file() and (raw := (folder / TOKENIZER).read_bytes()) != base
    }
    if not others:
        return []
    if len(others) > 1:
        names = " and ".join(name for name, _ in others.values())
        return [f"{names} have tokenizers of their own that differ: the base's is kept"]
    name, folder = next(iter(others.values()))
    load_tokenizer(folder)
    for file in TOKENIZER_FILES:
        (target / file).unlink(missing_ok=True)
        if (folder / file).is_file():
            shutil.copyfile(folder / file, target / file)
    return [f"the tokenizer and chat template are those of {name}, which differ from the base's"]
