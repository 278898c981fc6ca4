"""Files beside an adapter's weights that would change what it answers, and that PEFT does not read."""

import os
from pathlib import Path

from ..config import EMBED, ModelConfig
from .diagnostics import Diagnostics, shown
from .json_file import is_integer, read_json
from .peft_tensors import Parts

NEW_ROWS = "new_embeddings.safetensors"
ADDED = "added_tokens.json"


def check_new_rows(folder: Path, diagnostics: Diagnostics) -> None:
    """Refuse rows of new words that no reader of PEFT adds."""
    for name in (NEW_ROWS, "new_embeddings.bin"):
        if os.path.exists(folder / name):
            what = "the rows of new tokens, in the form that vLLM once read; no engine reads them today"
            way_out = "resize the base, put them into embed_tokens and lm_head, and save with modules_to_save"
            diagnostics.problem(folder / name, f"has {what}: {way_out}")


def check_files_beside(folder: Path, parts: Parts, base: ModelConfig | None, diagnostics: Diagnostics) -> None:
    """Refuse tokens that have no row at all. A pad token without one is only remarkable: it stands in no prompt."""
    file = folder / ADDED
    data = read_json(file, diagnostics) if os.path.exists(file) else None
    tokens = {token: i for token, i in (data or {}).items() if is_integer(i)}
    rows = rows_of(parts, base)
    if rows is None:
        if tokens:
            first = min(tokens, key=lambda token: tokens[token])
            diagnostics.warn(
                file, f"adds {len(tokens)} tokens, the first {shown(first)} as {tokens[first]}: they need rows"
            )
        return
    outside = {token: i for token, i in tokens.items() if i >= rows}
    padding = {token for token in outside if "pad" in token.lower()}
    for token, i in sorted(outside.items(), key=lambda item: item[1]):
        what = f"adds {shown(token)} as token {i}, and base and adapter have {rows} rows"
        if token in padding:
            diagnostics.warn(file, f"{what}: it can only be padding")
        else:
            diagnostics.problem(file, f"{what}: its row was not saved (modules_to_save, trainable_token_indices)")
            return


def rows_of(parts: Parts, base: ModelConfig | None) -> int | None:
    """How many tokens have a row in the base with the adapter; None without a base and a table of the adapter's own."""
    tables = [part.array for kind, part in parts.get(EMBED, {}).items() if kind in ("saved", "copy")]
    if tables and tables[0].ndim:
        return int(tables[0].shape[0])
    return base.vocab_size if base else None
