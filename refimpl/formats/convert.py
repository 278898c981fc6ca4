"""One adapter format into another: what lies at a path is recognised; a new folder appears whole or not at all."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..config import ModelConfig
from ..errors import AdapterError
from ..loading.adapter_folder import adapter_folder, read_adapter
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics, one_line
from ..tensorrt_llm.prescale import cast
from .files import new_folder
from .nemo import find_nemo
from .peft import save_adapter
from .trtllm import from_pair, to_pair
from .trtllm_pair import STORED, WEIGHTS_FILE, Pair, check_pair, is_pair, pair_folders, read_pair, write_pair

FORMATS = ("trtllm", "peft")


@dataclass
class Conversion:
    """What was done, and what its owner should know."""

    source: str
    target: str
    was: str  # one of FORMATS
    to: str
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recognise(path: Path) -> str:
    """Which of FORMATS lies there. AdapterError for what is neither, and for what is known and not read."""
    if is_pair(path):
        return "trtllm"
    if nemo := find_nemo(path):
        raise AdapterError(one_line(f"{path}: {nemo}"))
    if tasks := pair_folders(path):
        raise AdapterError(
            one_line(f"{path}: has a pair for each of several task ids; give one of them, as {tasks[0]}")
        )
    return "peft"  # the PEFT reader says what is wrong with anything else


def convert(
    source: Path | str,
    target: Path,
    to: str,
    dtype: str | None = None,
    order: str = "convert",
    base: ModelConfig | None = None,
    leave_out: bool = False,
) -> Conversion:
    """Read source, write the new folder `target` in the format `to`. A TensorRT-LLM pair needs the base for its widths.

    LoracleError, one line, and no folder, if anything would be lost that was not asked to be left out."""
    if to not in FORMATS:
        raise AdapterError(f"format {to!r} is not known; choose one of {', '.join(FORMATS)}")
    source, target = adapter_folder(source), Path(target)
    was = recognise(source)
    done = Conversion(str(source), str(target), was, to)
    if was == "trtllm":
        _from_trtllm(source, target, to, dtype, base, done)
    else:
        _from_peft(source, target, to, dtype, order, base, leave_out, done)
    done.files = sorted(file.name for file in target.iterdir())
    return done


def _from_trtllm(
    source: Path, target: Path, to: str, dtype: str | None, base: ModelConfig | None, done: Conversion
) -> None:
    diagnostics = Diagnostics()
    pair = read_pair(source, diagnostics)
    if pair:
        check_pair(pair, source, diagnostics, base)
    diagnostics.raise_first(AdapterError, source)
    assert pair is not None  # None comes with a problem
    if to == "trtllm":
        with new_folder(target) as scratch:
            write_pair(_cast_pair(pair, dtype, done), scratch)
        return
    if base is None:
        raise AdapterError(f"{source}: A and B lie in one row, and where A ends, only the base knows: give --model DIR")
    adapter, notes = from_pair(pair, base, source.name)
    save_adapter(adapter, target, dtype)
    done.notes += notes


def _from_peft(
    source: Path,
    target: Path,
    to: str,
    dtype: str | None,
    order: str,
    base: ModelConfig | None,
    leave_out: bool,
    done: Conversion,
) -> None:
    diagnostics = Diagnostics()
    adapter = read_adapter(source, base, os.path.basename(os.path.abspath(source)), diagnostics)
    diagnostics.raise_first(AdapterError, source)
    assert adapter is not None  # None comes with a problem
    done.notes += diagnostics.warnings
    if to == "peft":
        save_adapter(adapter, target, dtype)
        return
    try:
        pair, notes = to_pair(adapter, dtype, order, leave_out)
    except AdapterError as error:
        raise AdapterError(f"{source}: {error}") from None
    check_pair(
        pair, target, diagnostics, base
    )  # LoraManager's rows of zeros are too short where heads * head_dim is large
    diagnostics.raise_first(AdapterError, source)
    with new_folder(target) as scratch:
        write_pair(pair, scratch)
    done.notes += notes


def _cast_pair(pair: Pair, dtype: str | None, done: Conversion) -> Pair:
    """The pair in another type; itself, byte for byte, in its own."""
    was = pair.weights.dtype.name
    if dtype is None or dtype == was:
        return pair
    if dtype not in STORED:
        raise AdapterError(f"dtype {dtype!r} is none of {', '.join(STORED)}, which TensorRT-LLM's arrays can have")
    weights = cast(pair.weights, dtype)
    if not all_finite(weights):
        raise AdapterError(f"{done.source}: {WEIGHTS_FILE} has values too large for {dtype}")
    done.notes.append(f"{was} became {dtype}: B, which has the scale in it, is rounded a second time")
    return Pair(weights, pair.config)
