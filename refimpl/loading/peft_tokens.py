"""trainable_token_indices: the ids in the config, their rows in the file, and whether the two belong together.

The config names one list of ids, of embed_tokens, or one for each table by its name. A base that ties the two tables
has one tensor for both, unless each has ids of its own (peft/utils/other.py, set_additional_trainable_modules).
"""

from pathlib import Path

import numpy as np

from ..adapter import PeftConfig, TokenRows
from ..config import EMBED, LM_HEAD, ModelConfig, Module, module_name
from .diagnostics import Diagnostics
from .peft_tensors import Parts

KEY = "trainable_token_indices"


def ids_of(config: PeftConfig, module: Module) -> tuple[int, ...] | None:
    """The ids of one table, by its name or the end of it from a dot on; None if the config names none."""
    tables = config.trainable_token_indices.items()
    return next((ids for name, ids in tables if f".{module_name(module)}".endswith(f".{name}")), None)


def check_tokens(
    parts: Parts, config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> None:
    """Every table that the config names has its rows, of the base's width, and nothing else replaces or adapts it."""
    for name in config.trainable_token_indices:
        if not any(f".{module_name(module)}".endswith(f".{name}") for module in (EMBED, LM_HEAD)):
            diagnostics.problem(file, f"{KEY} names {name}, which is neither embed_tokens nor lm_head")
    _leave_tied_rows_out(parts, config, base)
    for module in (EMBED, LM_HEAD):
        ids, part = ids_of(config, module), parts.get(module, {}).get("tokens")
        if ids is None or part is None:
            if part is not None:
                diagnostics.problem(
                    file, f"tensor {part.name} is not for use: {KEY} does not name {module_name(module)}"
                )
            elif ids is not None and not _is_shared(module, config, base):
                diagnostics.problem(file, f"{KEY} names {module_name(module)}, but there are no rows for it")
            continue
        width = base.hidden_size if base else part.array.shape[-1]
        if part.array.shape != (len(ids), width):
            expected = f"{len(ids)} tokens and the base make it {[len(ids), width]}"
            diagnostics.problem(file, f"tensor {part.name} has shape {list(part.array.shape)}, {expected}")
        rows = len(table.array) if (table := parts[module].get("copy")) else base.vocab_size if base else None
        if rows is not None and max(ids) >= rows:
            outside = f"{KEY} names token {max(ids)}, outside of the vocabulary of {rows}"
            diagnostics.problem(file, f"{outside}: the base was given more tokens first")
        if others := parts[module].keys() & {"A", "saved"}:
            other = parts[module][min(others)].name
            diagnostics.problem(file, f"{part.name} and {other} are both of one table, which is not supported")


def _leave_tied_rows_out(parts: Parts, config: PeftConfig, base: ModelConfig | None) -> None:
    """Take out the rows of a tied lm_head that the config does not name, where they are those of embed_tokens: PEFT
    writes the one parameter under both names when the vocabulary was resized."""
    embed, head = (parts.get(module, {}).get("tokens") for module in (EMBED, LM_HEAD))
    tied = base is None or base.tie_word_embeddings
    if embed and head and tied and ids_of(config, LM_HEAD) is None and np.array_equal(embed.array, head.array):
        del parts[LM_HEAD]["tokens"]
        if copy := parts[LM_HEAD].pop("copy", None):  # no table of a LoRA, but a whole one that was saved
            parts[LM_HEAD]["saved"] = copy


def token_rows(parts: Parts, config: PeftConfig, base: ModelConfig | None) -> dict[Module, TokenRows]:
    """The checked ids and rows of each table, copied out of the map; of tied tables one for both."""
    tokens = {}
    for module in (EMBED, LM_HEAD):
        ids, part = ids_of(config, module), parts.get(module, {}).get("tokens")
        if ids is not None and part is not None:
            rows = np.array(part.array)
            rows.flags.writeable = False
            tokens[module] = TokenRows(np.array(ids, np.int32), rows)
    if EMBED in tokens and LM_HEAD not in tokens and base and base.tie_word_embeddings:
        tokens[LM_HEAD] = tokens[EMBED]
    return tokens


def _is_shared(module: Module, config: PeftConfig, base: ModelConfig | None) -> bool:
    """Whether the rows of a table are those of the other one. Without a base that cannot be known, and may be."""
    tied = base is None or base.tie_word_embeddings
    return tied and module == LM_HEAD and ids_of(config, LM_HEAD) == ids_of(config, EMBED)
