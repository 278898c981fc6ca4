"""One adapter format into another: what lies at a path is recognised; what is new appears whole or not at all.

Every format is read into an Adapter and written from one, so that there are as many readers and writers as formats, not
as pairs of them. What is lost on the way is a note: of the reader, or of the writer.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..adapter import Adapter
from ..config import LAYER_MODULES, ModelConfig
from ..errors import AdapterError
from ..loading.adapter_folder import adapter_folder, read_adapter
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics, one_line
from ..loading.gguf_file import is_gguf
from ..loading.mlx_adapter import is_mlx
from ..loading.nemo_file import find_nemo, is_nemo
from ..loading.torchtune_adapter import holds_torchtune
from ..tensorrt_llm.prescale import cast
from ..weights import Model
from .files import new_folder
from .gguf import write_gguf_adapter
from .mlx import write_mlx_adapter
from .peft import save_adapter
from .trtllm import from_pair, to_pair
from .trtllm_pair import STORED, WEIGHTS_FILE, Pair, check_pair, is_pair, pair_folders, read_pair, write_pair
from .trtllm_report import uneven_layers, uneven_widths

FORMATS = ("trtllm", "peft", "gguf", "mlx")
READ_ONLY = ("nemo", "torchtune")
# Formats in which rows lie by the heads of the base, and what to say without one.
BY_HEADS = {
    "gguf": "rows of q and k are interleaved, and in how many heads",
    "torchtune": "rows of q and k are interleaved, and in how many heads",
    "nemo": "rows of q, k and v lie in one matrix, and in how many heads",
}


@dataclass(frozen=True)
class Options:
    """How an adapter is written. `order` is of TensorRT-LLM's scale (trtllm.py)."""

    dtype: str | None = None
    order: str = "convert"
    base: ModelConfig | None = None
    leave_out: bool = False


@dataclass
class Conversion:
    """What was done, and what its owner should know."""

    source: str
    target: str
    was: str  # one of FORMATS or READ_ONLY
    to: str
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recognise(path: Path) -> str:
    """Which of FORMATS or READ_ONLY lies there. AdapterError for what is none of them, and not read."""
    if is_gguf(path):
        return "gguf"  # its reader says so if it is a base model
    if is_mlx(path):
        return "mlx"
    if is_pair(path):
        return "trtllm"
    if is_nemo(path):
        return "nemo"
    if nemo := find_nemo(path):
        raise AdapterError(one_line(f"{path}: {nemo}"))
    if tasks := pair_folders(path):
        raise AdapterError(
            one_line(f"{path}: has a pair for each of several task ids; give one of them, as {tasks[0]}")
        )
    if holds_torchtune(path):
        return "torchtune"
    return "peft"  # the PEFT reader says what is wrong with anything else


def convert(
    source: Path | str,
    target: Path,
    to: str,
    dtype: str | None = None,
    order: str = "convert",
    base: ModelConfig | Model | None = None,
    leave_out: bool = False,
) -> Conversion:
    """Read source, write the new `target`, a folder or a GGUF file, in the format `to`.

    base: its config is enough, but for adapters that took a part out of it (PiSSA, OLoRA): those need the model.

    LoracleError, one line, and nothing new, if anything would be lost that was not asked to be left out; or where the
    base is missing: TensorRT-LLM's arrays have no widths, and GGUF's rows are ordered by its heads."""
    if to not in FORMATS:
        raise AdapterError(f"format {to!r} is not known; choose one of {', '.join(FORMATS)}")
    model, base = (base, base.config) if isinstance(base, Model) else (None, base)
    source, target, options = adapter_folder(source), Path(target), Options(dtype, order, base, leave_out)
    was = recognise(source)
    done = Conversion(str(source), str(target), was, to)
    if was == to == "trtllm":
        pair = _checked_pair(source, base)
        with new_folder(target) as scratch:
            write_pair(_cast_pair(pair, dtype, done), scratch)
    else:
        adapter, done.notes = _read(source, was, base, model)
        if base is None:
            done.notes += missing_layers(adapter)
        try:
            done.notes += WRITERS[to](adapter, target, options)
        except AdapterError as error:
            raise AdapterError(str(error) if str(target) in str(error) else one_line(f"{source}: {error}")) from None
    done.files = sorted(file.name for file in target.iterdir()) if target.is_dir() else [target.name]
    return done


def missing_layers(adapter: Adapter) -> list[str]:
    """Return one line about layers without LoRA, as far as the file shows them: layers_to_transform may say which it
    means. Else a gap is seen; whether the file's last layer is the base's, nobody knows without the base."""
    layers = {layer for layer, _ in adapter.lora if layer >= 0}
    if not layers:
        return []
    meant = adapter.config.layers_to_transform
    if missing := sorted(set(range(max(layers)) if meant is None else meant) - layers):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        why = f"the file goes up to layer {max(layers)}" if meant is None else "layers_to_transform names it"
        return [f"has no LoRA in layer {missing[0]}{more}, although {why}: is the file whole?"]
    if meant is not None:
        return []
    return [f"its last layer is {max(layers)}: whether the base has more only the base says; --model DIR looks"]


def _read(source: Path, was: str, base: ModelConfig | None, model: Model | None) -> tuple[Adapter, list[str]]:
    """The adapter, and what its owner should know of how it was read."""
    if was == "trtllm":
        pair = _checked_pair(source, base)
        if base is None:
            raise AdapterError(
                f"{source}: A and B lie in one row, and where A ends, only the base knows: give --model DIR"
            )
        return from_pair(pair, base, source.name)
    if was in BY_HEADS and base is None:
        raise AdapterError(f"{source}: {BY_HEADS[was]}, only the base knows: give --model DIR")
    diagnostics = Diagnostics()
    adapter = read_adapter(source, base, os.path.basename(os.path.abspath(source)), diagnostics, model)
    diagnostics.raise_first(AdapterError, source)
    assert adapter is not None  # None comes with a problem
    return adapter, diagnostics.warnings


def _checked_pair(source: Path, base: ModelConfig | None) -> Pair:
    diagnostics = Diagnostics()
    pair = read_pair(source, diagnostics)
    if pair:
        check_pair(pair, source, diagnostics, base)
    diagnostics.raise_first(AdapterError, source)
    assert pair is not None  # None comes with a problem
    return pair


def _to_peft(adapter: Adapter, target: Path, options: Options) -> list[str]:
    save_adapter(adapter, target, options.dtype, config=options.base)
    return []


def _to_trtllm(adapter: Adapter, target: Path, options: Options) -> list[str]:
    pair, notes = to_pair(adapter, options.dtype, options.order, options.leave_out)
    diagnostics = Diagnostics()
    # LoraManager's rows of zeros are too short where heads * head_dim is large.
    check_pair(pair, target, diagnostics, options.base)
    if diagnostics.problems:
        raise AdapterError(diagnostics.problems[0])
    inner = {module: lora for module, lora in adapter.lora.items() if module[1] in LAYER_MODULES}
    if uneven := uneven_widths({module: (len(lora.B), lora.A.shape[1]) for module, lora in inner.items()}):
        if options.base is None:  # else it is the base's own shape
            raise AdapterError(f"{uneven}: is one of them damaged? --model DIR checks it against the base")
        notes.append(uneven)
    notes += uneven_layers(inner, options.base.num_hidden_layers if options.base else None)
    with new_folder(target) as scratch:
        write_pair(pair, scratch)
    return notes


def _to_gguf(adapter: Adapter, target: Path, options: Options) -> list[str]:
    if options.base is None:
        raise AdapterError("GGUF has rows of q and k interleaved, by the heads of the base: give --model DIR")
    return write_gguf_adapter(adapter, target, options.base, options.dtype, options.leave_out)


def _to_mlx(adapter: Adapter, target: Path, options: Options) -> list[str]:
    return write_mlx_adapter(adapter, target, options.base, options.dtype, options.leave_out)


WRITERS: dict[str, Callable[[Adapter, Path, Options], list[str]]] = {
    "peft": _to_peft,
    "trtllm": _to_trtllm,
    "gguf": _to_gguf,
    "mlx": _to_mlx,
}


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
