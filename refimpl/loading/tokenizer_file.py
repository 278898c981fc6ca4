"""tokenizer.json, or the vocabulary in a GGUF file -> a Tokenizer."""

import os
from pathlib import Path

from ..errors import ConfigError
from ..tokenizer import Tokenizer
from .diagnostics import Diagnostics, one_line
from .gguf_config import vocabulary
from .gguf_file import is_gguf
from .gguf_parts import open_gguf
from .gguf_tokenizer import gguf_tokenizer
from .json_file import lfs_pointer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json, or what a GGUF file has for one. ConfigError if it is there, but damaged."""
    if is_gguf(folder):
        return _of_gguf(folder)
    file = folder / "tokenizer.json"
    if not os.path.exists(file):
        return Tokenizer(file)
    try:
        with open(file, "rb") as opened:
            pointer = lfs_pointer(opened.read(200))
    except OSError as error:
        raise ConfigError(one_line(f"{file}: cannot be read ({error})")) from None
    if pointer:
        raise ConfigError(f"{file}: {pointer}")
    import tokenizers  # here, because it takes a tenth of a second

    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for anything that is wrong with the file
        raise ConfigError(one_line(f"{file}: the tokenizers library does not accept it ({error})")) from None
    inner.no_truncation()  # what a training left in the file cuts no prompt, as in transformers
    inner.no_padding()
    return Tokenizer(file, inner)


def _of_gguf(path: Path) -> Tokenizer:
    """The file's own; where that cannot be made, a tokenizer.json beside it, if its tokens are the file's."""
    inside, file = gguf_tokenizer(path), path.parent / "tokenizer.json"
    if inside.inner is not None or not os.path.exists(file):
        return inside
    other = load_tokenizer(path.parent)
    opened = open_gguf(path, Diagnostics())
    tokens = vocabulary(opened) if opened else []
    ids = other.inner.get_vocab(with_added_tokens=True)
    if any(ids.get(token) != i for i, token in enumerate(tokens)):
        return Tokenizer(path, reason=f"{inside.reason}; the one there is of another vocabulary")
    return other
