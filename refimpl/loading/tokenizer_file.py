"""tokenizer.json -> a Tokenizer."""

import os
from pathlib import Path

from ..errors import ConfigError
from ..tokenizer import Tokenizer
from .diagnostics import one_line
from .json_file import lfs_pointer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json. ConfigError if there is one, but it is damaged."""
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
    return Tokenizer(file, inner)
