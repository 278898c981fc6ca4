"""TensorRT-LLM's pairs of arrays, looked through for `loracle inspect`: one, or a folder of them by task id."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..config import ModelConfig
from ..loading.diagnostics import Diagnostics
from .trtllm_modules import MODULES
from .trtllm_pair import Pair, Row, check_pair, is_pair, matrices, pair_folders, read_pair
from .trtllm_report import MAX_RANK, SAME_ID, about_dense, about_ranks


@dataclass
class Look:
    """What was seen: `modules` has a name, arrays and a rank for each row that can be read."""

    config: dict[str, Any] = field(default_factory=dict)
    modules: list[tuple[str, dict[str, Array], int]] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)  # what TensorRT-LLM does with it


def look(folder: Path, base: ModelConfig | None, diagnostics: Diagnostics, max_rank: int = MAX_RANK) -> Look:
    """Every row, with every problem noted. Without a base, a row's A and B cannot be told apart."""
    if not is_pair(folder):
        return look_at_tasks(folder, base, diagnostics, max_rank)
    pair = read_pair(folder, diagnostics)
    if pair is None:
        return Look()
    check_pair(pair, folder, diagnostics, base)
    rows = readable_rows(pair)
    contents = Look(
        {
            "rows": len(pair.config),
            "columns": pair.config.shape[1],
            "width": pair.weights.shape[1],
            "ranks": sorted({row.rank for row in rows}),
            "layers": len({row.layer for row in rows}),
        }
    )
    contents.modules = [
        (f"model.layers.{row.layer}.{_both_names(row)}", _arrays(pair, row, base), row.rank) for row in rows
    ]
    dora = ["ignores the magnitude of DoRA in its PyTorch backend"] if any(row.is_dora for row in rows) else []
    dense = about_dense([part for row in rows for part in row.module.parts], base)
    contents.engine = [*about_ranks(contents.config["ranks"], max_rank), *dora, *dense, SAME_ID]
    return contents


def look_at_tasks(folder: Path, base: ModelConfig | None, diagnostics: Diagnostics, max_rank: int = MAX_RANK) -> Look:
    """The folders of a prefetch directory, each the task id that its name is, and what becomes of them together."""
    rows = Look({"tasks": {}})
    by_id: dict[int, list[Path]] = {}
    ranks: set[int] = set()
    for inner in pair_folders(folder):
        contents = look(inner, base, diagnostics, max_rank)
        ranks |= {*contents.config.get("ranks", ())}
        rows.config["tasks"][inner.name] = (
            f"{contents.config.get('rows', 0)} rows of ranks {contents.config.get('ranks', [])}"
        )
        rows.modules += [(f"{inner.name}.{name}", arrays, rank) for name, arrays, rank in contents.modules]
        rows.engine += [f"(task {inner.name}) {line}" for line in contents.engine if line != SAME_ID]
        if inner.name.isascii() and inner.name.isdigit():
            by_id.setdefault(int(inner.name), []).append(inner)
        else:
            rows.engine.append(f"skips the folder {inner.name}: only a name of digits is a task id")
    rows.engine += [line for line in about_ranks(ranks, max_rank) if "together" in line]
    for number, folders in by_id.items():
        for one, other in itertools.combinations(folders, 2):
            same = "the same" if _bytes(one) == _bytes(other) else "other"
            rows.engine.append(f"takes {one.name} and {other.name} for one task id, {number}, with {same} weights")
    rows.engine.append(SAME_ID)
    return rows


def readable_rows(pair: Pair) -> list[Row]:
    """The rows whose module is one."""
    rows = enumerate(pair.config.tolist())
    return [Row(n, MODULES[v[0]], v[1], v[2], v[3:] == [1]) for n, v in rows if v[0] in MODULES]


def _arrays(pair: Pair, row: Row, base: ModelConfig | None) -> dict[str, Array]:
    """A row's A and B, where its widths are known and it is long enough for them."""
    size = row.size(base) if base else None
    if base is None or size is None or not 0 < size <= pair.weights.shape[1]:
        return {"row": pair.weights[row.number]}
    module = matrices(pair, row, base)
    return {"A": module.A, "B": module.B} | ({} if module.magnitude is None else {"magnitude": module.magnitude})


def _both_names(row: Row) -> str:
    """mlp_gate (up_proj): TensorRT-LLM's names mislead."""
    hf = row.module.hf.rpartition(".")[2]
    return f"{row.module.name} ({hf})" if hf else row.module.name


def _bytes(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("model.lora_*.npy"))]
