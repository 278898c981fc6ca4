"""A base and adapters -> a folder that transformers and Loracle load: the base's own files with some tensors changed.

Every tensor of the base keeps its name, its file (shard) and, unless another is asked for, its type; what the adapters
do not touch is copied, the parts that see images included. So no family needs a writer of its own.
"""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arrays import DTYPES
from ..config import EMBED, ModelConfig, short_name
from ..errors import WeightsError
from ..families import Family
from ..formats.files import new_folder
from ..formats.stream import write_stream
from ..loading.checkpoint import INDEX, folder_tensors, open_checkpoint
from ..loading.config_file import read_config
from ..loading.diagnostics import Diagnostics
from ..loading.families import family_of
from ..loading.gguf_config import gguf_config
from ..loading.gguf_file import is_gguf
from ..loading.gguf_tensors import gguf_tensors
from ..loading.json_file import read_json
from ..loading.tensor import Tensor
from ..loading.wrapped_names import text_name
from .merged_config import bias_flags, merged_json, modules_of
from .merged_tensors import MergedTensors
from .merged_tokenizer import copy_text_files
from .merged_weights import Change, Losses, Terms, changes_of, stay_tied


@dataclass(frozen=True, eq=False)
class Base:
    """A base that was opened to be merged into."""

    path: Path
    config: ModelConfig
    family: Family
    data: Mapping[str, Any]  # its config.json
    tensors: tuple[tuple[str, Tensor], ...]  # name in the file and tensor, in the order of the files

    @property
    def dtype(self) -> str:
        """The type that most of its numbers have: a model in it is a map of the files."""
        sizes: Counter[str] = Counter()
        for _, tensor in self.tensors:
            sizes[tensor.dtype] += tensor.size
        return sizes.most_common(1)[0][0]

    def text_name(self, name: str) -> str | None:
        """The name in the text model alone; None for a part that sees images."""
        return text_name(name) if self.config.wrapped else name


@dataclass
class Merged:
    """What was written, and what its owner should know."""

    base: str
    target: str
    adapters: list[tuple[str, float]]
    dtypes: list[str]
    bytes: int
    changed: int  # tensors with other numbers than the base's, and new ones
    tensors: int
    rounding: float  # rms of what rounding takes / rms of what LoRA adds
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_base(path: Path) -> Base:
    """Open a Hugging Face folder or a GGUF file. ConfigError or WeightsError, one line, as load_model has them."""
    diagnostics = Diagnostics()
    config = read_config(path, diagnostics)
    data = gguf_config(path, diagnostics) if is_gguf(path) else read_json(path / "config.json", diagnostics)
    open_checkpoint(path, config, diagnostics)
    stored = gguf_tensors(path, config, diagnostics) if is_gguf(path) else folder_tensors(path, diagnostics)
    diagnostics.raise_first(WeightsError, path)
    assert config is not None and data is not None  # None comes with a problem
    match = family_of(path / "config.json", data, diagnostics)
    assert match is not None
    for name, tensor in stored:
        if tensor.problem:  # of a part that sees images: the others were looked at
            raise WeightsError(f"{tensor.file}: tensor {name} {tensor.problem}")
    return Base(path, config, match[0], data, tuple(stored))


def merge_folder(
    base: Base, terms: Terms, target: Path, dtype: str | None = None, folders: Mapping[str, Path] | None = None
) -> Merged:
    """Write `target`, a new folder: the base with the weighted sum of adapters in its weights.

    dtype: float64, float32, float16 or bfloat16 for all tensors; None: each as the base has it, those of a quantised
    base as the numbers that they stand for. folders: where each adapter lies, by its name, for its tokenizer.
    LoracleError, one line, and no folder, for what cannot be merged or written."""
    changes = changes_of(terms, base.config)
    tied = base.config.tie_word_embeddings and stay_tied(changes)
    biased = [module for module, change in changes.items() if change.of_bias]
    flags = bias_flags(biased, base.config, base.family, target)
    tensors = MergedTensors(base.tensors, base.text_name, base.config, changes, dtype)
    tensors.add_missing(tied, modules_of(flags, base.family))
    check_room(target, tensors.nbytes)
    vocab_size = changes.get(EMBED, Change(EMBED)).rows(base.config.vocab_size)
    data = merged_json(base.data, vocab_size, tied, dtype or only(tensors.dtypes), flags)
    with new_folder(target) as scratch:
        for file, entries in tensors.files.items():
            write_stream(scratch / file, entries)
        if (base.path / INDEX).exists():
            (scratch / INDEX).write_text(json.dumps(tensors.index(), indent=2) + "\n", "utf-8")
        (scratch / "config.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        notes = copy_text_files(base.path, list((folders or {}).items()), scratch)
        check_reads_back(scratch, target, base.config, vocab_size, tied)
        files = sorted(file.name for file in scratch.iterdir())
    return Merged(
        str(base.path),
        str(target),
        [(adapter.name, weight) for adapter, weight in terms],
        sorted(tensors.dtypes),
        tensors.nbytes,
        tensors.changed,
        len(tensors.index()["weight_map"]),
        tensors.losses.total.share,
        files,
        notes_of(base, terms, tensors, tied, vocab_size, flags) + notes,
    )


def only(names: set[str]) -> str | None:
    """The name, if there is one alone."""
    return next(iter(names)) if len(names) == 1 else None


def check_room(target: Path, nbytes: int) -> None:
    """Refuse before anything is written what the disk cannot hold."""
    folder = next(parent for parent in target.absolute().parents if os.path.isdir(parent))
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        gib = 1 << 30
        raise WeightsError(f"{target}: takes {nbytes / gib:.2f} GiB, and {free / gib:.2f} GiB of the disk are free")


def check_reads_back(scratch: Path, target: Path, config: ModelConfig, vocab_size: int, tied: bool) -> None:
    """What load_model would refuse, or would read as another model, does not get its name."""
    diagnostics = Diagnostics()
    again = read_config(scratch, diagnostics)
    if again:
        open_checkpoint(scratch, again, diagnostics)
    if diagnostics.problems:
        raise WeightsError(diagnostics.problems[0].replace(str(scratch), str(target)))
    assert again is not None
    biases = {key: getattr(again, key) for key in ("attention_bias", "mlp_bias", "biased")}
    expected = dataclasses.replace(config, vocab_size=vocab_size, tie_word_embeddings=tied, **biases)
    if again != expected:
        items = dataclasses.fields(again)
        names = [item.name for item in items if getattr(again, item.name) != getattr(expected, item.name)]
        raise WeightsError(f"{target}: config.json cannot say {', '.join(names)} of the merged model")


def notes_of(
    base: Base, terms: Terms, tensors: MergedTensors, tied: bool, vocab_size: int, flags: set[str]
) -> list[str]:
    """What its owner should know of the weights."""
    notes = []
    if kinds := sorted({tensor.stored for _, tensor in base.tensors if tensor.quantised}):
        notes.append(
            f"the base is quantised ({', '.join(kinds)}): its weights are written as the numbers that they stand for; "
            "quantised again, W + scale B A is rounded to the steps of a block"
        )
    notes += rounding_notes(tensors.losses, tensors.dtypes)
    if base.config.tie_word_embeddings and not tied:
        notes.append("embed_tokens and lm_head were tied and differ now: both are there, tie_word_embeddings is false")
    if vocab_size != base.config.vocab_size:
        notes.append(f"the vocabulary has grown from {base.config.vocab_size} to {vocab_size} rows")
    if flags:
        notes.append(f"{' and '.join(sorted(flags))} is true now: modules of it without a bias have one of zeros")
    return notes + narrowed_tables(terms, tensors)


def rounding_notes(losses: Losses, dtypes: set[str]) -> list[str]:
    """How much of what LoRA adds is lost by rounding the sum: of a half type that may be much."""
    if losses.worst is None or losses.total.share == 0:
        return []
    share, module = losses.worst
    return [
        f"rounding to {' and '.join(sorted(dtypes))} takes {losses.total.share:.2g} of what LoRA adds (rms); "
        f"most in {short_name(module)}: {share:.2g}"
    ]


def narrowed_tables(terms: Terms, tensors: MergedTensors) -> list[str]:
    """Whole tables and rows of the adapter that are rounded because the base has a narrower type."""
    notes = []
    for adapter, _ in terms:
        tables = {**adapter.replaced} | {module: tokens.rows for module, tokens in adapter.tokens.items()}
        for module, table in tables.items():
            written = tensors.dtype_of(module)
            if DTYPES[written].itemsize < table.dtype.itemsize:
                notes.append(f"{short_name(module)} of {adapter.name} is {table.dtype.name}: rounded to {written}")
    return notes
