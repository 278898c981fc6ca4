"""TensorRT-LLM's pair of arrays, looked through for `loracle inspect`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..config import ModelConfig
from ..loading.findings import Findings
from .trtllm_modules import MODULES
from .trtllm_pair import Row, check_pair, matrices, read_pair
from .trtllm_report import MAX_RANK, about_pair


@dataclass
class Look:
    """What was seen: `modules` has a name, arrays and a rank for each row that can be read."""

    config: dict[str, Any] = field(default_factory=dict)
    modules: list[tuple[str, dict[str, Array], int]] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)  # what TensorRT-LLM does with it


def look(folder: Path, base: ModelConfig | None, found: Findings, max_rank: int = MAX_RANK) -> Look:
    """Every row, with every problem noted. Without a base, a row's A and B cannot be told apart."""
    pair = read_pair(folder, found)
    if pair is None:
        return Look()
    check_pair(pair, folder, found, base)
    seen = Look({"rows": len(pair.config), "columns": pair.config.shape[1], "width": pair.weights.shape[1]})
    rows = [
        Row(n, MODULES[v[0]], v[1], v[2], v[3:] == [1]) for n, v in enumerate(pair.config.tolist()) if v[0] in MODULES
    ]
    for row in rows:
        size = row.size(base) if base else None
        if base is None or size is None or not 0 < size <= pair.weights.shape[1]:
            arrays = {"row": pair.weights[row.number]}
        else:
            m = matrices(pair, row, base)
            arrays = {"A": m.A, "B": m.B} | ({} if m.magnitude is None else {"magnitude": m.magnitude})
        seen.modules.append((f"model.layers.{row.layer}.{_both_names(row)}", arrays, row.rank))
    seen.config["ranks"] = sorted({row.rank for row in rows})
    seen.config["layers"] = len({row.layer for row in rows})
    seen.engine = about_pair(seen.config["ranks"], any(row.is_dora for row in rows), max_rank)
    return seen


def _both_names(row: Row) -> str:
    """mlp_gate (up_proj): TensorRT-LLM's names mislead."""
    hf = row.module.hf.rpartition(".")[2]
    return f"{row.module.name} ({hf})" if hf else row.module.name
