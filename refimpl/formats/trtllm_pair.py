"""model.lora_weights.npy and model.lora_config.npy: what TensorRT-LLM's executor takes with a request.

    lora_config    int32 [1, rows, 3 or 4]: module id, layer, rank, and since DoRA whether the row has a magnitude
    lora_weights   float16, bfloat16 or float32 [1, rows, width]: A [rank, d_in] row by row, then B' [d_out, rank] row
                   by row, then the magnitude [d_out] of a DoRA, then zeros up to the longest row

One row is one module of one layer. The widths are in neither file, the base has them. B' has the scale in it.
(docs/source/advanced/lora.md; cpp/tensorrt_llm/runtime/loraUtils.cpp has the checks, which are repeated here.)
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import Array, Float, Int
from ..config import ModelConfig
from ..errors import AdapterError
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics
from .npy import read_npy, write_npy
from .trtllm_modules import MODULES, Module

WEIGHTS_FILE, CONFIG_FILE = "model.lora_weights.npy", "model.lora_config.npy"
STORED = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False)
class Pair:
    """The two arrays, without the leading axis of 1 that both have on disk."""

    weights: Float[Array, "rows width"]
    config: Int[Array, "rows columns"]

    def rows(self) -> Iterator["Row"]:
        """Each row of the config. KeyError for an id that is no module: check_pair finds those."""
        for number, values in enumerate(self.config.tolist()):
            yield Row(number, MODULES[values[0]], values[1], values[2], len(values) > 3 and bool(values[3]))


@dataclass(frozen=True)
class Row:
    """What one row of the config says."""

    number: int
    module: Module
    layer: int
    rank: int
    is_dora: bool = False

    def __str__(self) -> str:
        return f"row {self.number} ({self.module.name} of layer {self.layer}, rank {self.rank})"

    def size(self, config: ModelConfig) -> int | None:
        """Numbers that it takes (LoraModule::flattenedInOutSize); None where a Llama has no such module."""
        widths = self.module.widths(config)
        return widths and self.rank * sum(widths) + (widths[1] if self.is_dora else 0)


@dataclass(frozen=True, eq=False)
class Matrices:
    """One row taken apart."""

    row: Row
    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]  # scaled
    magnitude: Float[Array, " d_out"] | None = None


def is_pair(folder: Path) -> bool:
    """Whether a folder has one of the two files."""
    return any(os.path.exists(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE))


def pair_folders(folder: Path) -> list[Path]:
    """The folders in it that hold a pair: LoraManager and the prefetch directory keep one for each task id."""
    return [inner for inner in sorted(folder.glob("*")) if is_pair(inner)] if os.path.isdir(folder) else []


def read_pair(folder: Path, diagnostics: Diagnostics) -> Pair | None:
    """Both files, or None with every problem noted. Rows are looked at by check_pair."""
    before = len(diagnostics.problems)
    for name, other in ((WEIGHTS_FILE, CONFIG_FILE), (CONFIG_FILE, WEIGHTS_FILE)):
        if not os.path.exists(folder / name):
            diagnostics.problem(folder, f"has {other} but no {name}: a request for LoRA must have both")
            return None
    weights, config = read_npy(folder / WEIGHTS_FILE, diagnostics), read_npy(folder / CONFIG_FILE, diagnostics)
    if weights is None or config is None:
        return None
    for file, x in ((folder / WEIGHTS_FILE, weights), (folder / CONFIG_FILE, config)):
        if x.ndim != 3:
            diagnostics.problem(file, f"has shape {list(x.shape)}; it must have 3 axes: [1, rows, ...]")
        elif x.shape[0] != 1:
            diagnostics.problem(file, f"has shape {list(x.shape)}; its first axis, the batch, must be 1")
    if weights.dtype.name not in STORED:
        diagnostics.problem(folder / WEIGHTS_FILE, f"has dtype {weights.dtype.name}; it must be {', '.join(STORED)}")
    if config.dtype != np.int32:
        diagnostics.problem(folder / CONFIG_FILE, f"has dtype {config.dtype.name}; it must be int32")
    if len(diagnostics.problems) > before:
        return None
    if weights.shape[1] != config.shape[1]:
        diagnostics.problem(folder, f"{WEIGHTS_FILE} has {weights.shape[1]} rows, {CONFIG_FILE} has {config.shape[1]}")
    if config.shape[2] not in (3, 4):
        diagnostics.problem(
            folder / CONFIG_FILE,
            f"has {config.shape[2]} columns; there are 3 (module, layer, rank), or 4 (and is_dora)",
        )
    if not config.shape[1]:
        diagnostics.problem(folder / CONFIG_FILE, "has no rows")
    return Pair(weights[0], config[0]) if len(diagnostics.problems) == before else None


def write_pair(pair: Pair, folder: Path) -> None:
    """Both files into a folder that is there; what read_pair has read is written back byte for byte."""
    write_npy(folder / WEIGHTS_FILE, pair.weights[None])
    write_npy(folder / CONFIG_FILE, pair.config[None])


def check_pair(
    pair: Pair,
    folder: Path,
    diagnostics: Diagnostics,
    config: ModelConfig | None = None,
    dtype: str | None = None,
    max_rank: int | None = None,
    modules: Collection[str] | None = None,
) -> None:
    """What TensorRT-LLM would refuse, and what it would not but should, row by row.

    config: the base; without it, layers and widths are not compared. dtype: what the engine was built for. max_rank:
    its max_lora_rank. modules: its lora_target_modules, in its own names."""
    weights_file, file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    if dtype is not None and pair.weights.dtype.name != dtype:
        diagnostics.problem(
            weights_file, f"has dtype {pair.weights.dtype.name}, the engine has {dtype}: they must be the same"
        )
    for number, values in enumerate(pair.config.tolist()):
        if values[0] not in MODULES:
            diagnostics.problem(
                file, f"row {number} {values}: module id {values[0]} is none; they are 0 to {max(MODULES)}"
            )
        elif values[2] < 1:
            diagnostics.problem(file, f"row {number} {values}: rank {values[2]} is not above 0")
        elif values[1] < 0:
            diagnostics.problem(file, f"row {number} {values}: layer {values[1]} is below 0")
        elif values[3:] not in ([], [0], [1]):
            diagnostics.problem(file, f"row {number} {values}: is_dora is {values[3]}; it must be 0 or 1")
        else:
            row = Row(number, MODULES[values[0]], values[1], values[2], values[3:] == [1])
            _check_row(row, pair.weights[number], folder, diagnostics, config, max_rank, modules)
    twice = [
        key
        for key, count in Counter((module_id, layer) for module_id, layer, *_ in pair.config.tolist()).items()
        if count > 1
    ]
    for module_id, layer in twice:
        numbers = [n for n, values in enumerate(pair.config.tolist()) if values[:2] == [module_id, layer]]
        diagnostics.problem(
            file, f"rows {numbers} are all module {module_id} of layer {layer}: only one of them can count"
        )


def _check_row(
    row: Row,
    values: Float[Array, " width"],
    folder: Path,
    diagnostics: Diagnostics,
    config: ModelConfig | None,
    max_rank: int | None,
    modules: Collection[str] | None,
) -> None:
    file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if modules is not None and row.module.name not in modules:
        diagnostics.problem(file, f"{row}: {row.module.name} is not enabled; enabled are {', '.join(modules)}")
    if max_rank is not None and row.rank > max_rank:
        diagnostics.problem(file, f"{row}: rank {row.rank} is above max_lora_rank {max_rank}")
    if not all_finite(values):
        diagnostics.problem(weights_file, f"{row}: holds NaN or inf")
    if config is None:
        return
    if row.layer >= config.num_hidden_layers:
        diagnostics.problem(file, f"{row}: the base has {config.num_hidden_layers} layers")
    size = row.size(config)
    if size is None:
        of_experts = config.moe and row.module.name.startswith(("moe_", "shared_expert_"))
        why = "LoRA on experts is not read from arrays: give the folder that they were made of" if of_experts else ""
        diagnostics.problem(file, f"{row}: {why or f'the base has no {row.module.name}'}")
    elif size > len(values):
        d_in, d_out = row.module.widths(config) or (0, 0)
        needs = f"rank {row.rank} of [{d_out}, {d_in}] needs {size}"
        diagnostics.problem(weights_file, f"{row}: too few values: {needs}, rows have {len(values)}")
    elif values[size:].any():
        extra = size + int(np.flatnonzero(values[size:])[-1]) + 1
        diagnostics.problem(
            weights_file, f"{row}: has {extra} values, the base makes it {size}: the rest would be ignored"
        )


def matrices(pair: Pair, row: Row, config: ModelConfig) -> Matrices:
    """A row taken apart by the widths of the base. The pair has been checked against that."""
    widths = row.module.widths(config)
    assert widths is not None
    (d_in, d_out), values = widths, pair.weights[row.number]
    end_of_A, end_of_B = row.rank * d_in, row.rank * (d_in + d_out)
    magnitude = values[end_of_B : end_of_B + d_out] if row.is_dora else None
    return Matrices(
        row, values[:end_of_A].reshape(row.rank, d_in), values[end_of_A:end_of_B].reshape(d_out, row.rank), magnitude
    )


def pack(rows: Sequence[Matrices], columns: int = 3) -> Pair:
    """Rows put together, in this order, each filled up with zeros to the longest. All have one dtype."""
    if not rows:
        raise AdapterError("an adapter without LoRA on any linear layer makes no row of a lora_config")
    flat = []
    for matrices in rows:
        parts = [
            matrices.A.reshape(-1),
            matrices.B.reshape(-1),
            *([] if matrices.magnitude is None else [matrices.magnitude]),
        ]
        flat.append(np.concatenate(parts))
    weights = np.zeros((len(rows), max(map(len, flat))), flat[0].dtype)
    for target, values in zip(weights, flat, strict=True):
        target[: len(values)] = values
    config = [
        [matrices.row.module.id, matrices.row.layer, matrices.row.rank, int(matrices.magnitude is not None)]
        for matrices in rows
    ]
    if columns == 3 and (dora := next((row for row in config if row[3]), None)):
        raise AdapterError(f"row {dora}: DoRA needs the fourth column")
    return Pair(weights, np.array(config, np.int32)[:, :columns])
