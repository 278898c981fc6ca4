"""What is in a model or adapter folder, and everything that is wrong with it. Prints nothing: the command line does."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adapter import PeftConfig, pattern_value
from ..adapter_slots import adapter_scale
from ..arrays import Array
from ..config import ModelConfig, Module, module_name
from ..errors import ConfigError
from ..formats.trtllm_inspect import look
from ..formats.trtllm_pair import is_pair, pair_folders
from ..formats.trtllm_report import MAX_RANK, about_peft
from ..loading.adapter_folder import WEIGHTS_FILE, adapter_folder, read_parts
from ..loading.adapter_place import not_an_adapter
from ..loading.checkpoint import INDEX, SINGLE, open_checkpoint
from ..loading.config_file import instead, read_config
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics
from ..loading.gguf_adapter import is_gguf_adapter
from ..loading.gguf_file import is_gguf
from ..loading.mlx_adapter import MLX_FILE, is_mlx
from ..loading.model_folder import base_folder
from ..loading.nemo_file import find_nemo, is_nemo
from ..loading.peft_config import CONFIG_FILE
from ..loading.peft_tensors import Parts
from ..loading.tensor import Tensor
from ..loading.tokenizer_file import load_tokenizer
from ..loading.torchtune_adapter import holds_torchtune


@dataclass(frozen=True)
class ModuleReport:
    """One module of the folder. rank, alpha and scale are those of a LoRA; scale is None where they are not known."""

    module: str
    kind: str  # base, lora, dora, replaced (a whole weight that the adapter brings along), bias, tokens (likewise)
    shapes: dict[str, list[int]]  # weight or bias; A and B; row, where the widths of a TensorRT-LLM pair are not known
    dtype: str
    parameters: int
    bytes: int
    rank: int | None = None
    alpha: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Inspection:
    """A folder, looked through to the end. `dataclasses.asdict` of it is what --json prints."""

    path: str
    kind: str  # model, adapter, trtllm (TensorRT-LLM's pair of arrays) or unknown
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    modules: list[ModuleReport] = field(default_factory=list)
    dtypes: dict[str, int] = field(default_factory=dict)  # dtype -> parameters
    parameters: int = 0
    bytes: int = 0
    tensorrt_llm: list[str] = field(default_factory=list)  # what that engine rejects, ignores or does, where asked for
    format: str = ""  # of an adapter, where it is not PEFT's: mlx-lm (MLX), GGUF, NeMo, torchtune

    @property
    def ok(self) -> bool:
        """Whether load_model, load_adapter or `loracle convert` would take it."""
        return not self.problems


def inspect(
    path: str | Path, base: ModelConfig | None = None, engine: str | None = None, max_rank: int = MAX_RANK
) -> Inspection:
    """Look through a model folder, or an adapter folder (against a base, if one is given). Raises nothing.

    engine "trtllm": what TensorRT-LLM would make of a PEFT folder, if its max_lora_rank is max_rank."""
    diagnostics = Diagnostics()
    notes: list[str] = []
    folder, kind = _resolve(path)
    if kind == "adapter":
        peft, parts = read_parts(folder, base, diagnostics)
        config = asdict(peft) if peft else {}
        counted: set[int] = set()
        modules = [report for module in sorted(parts) for report in _adapter_reports(module, parts, peft, counted)]
        if peft and engine == "trtllm" and not diagnostics.problems:
            notes = about_peft(parts, peft, base, max_rank)
    elif kind == "trtllm":
        contents = look(folder, base, diagnostics, max_rank)
        config, notes = contents.config, contents.engine
        modules = [_report(name, "lora", arrays, rank) for name, arrays, rank in contents.modules]
    elif kind == "model":
        of_model = read_config(folder, diagnostics)
        config = asdict(of_model) if of_model else {}
        tensors = open_checkpoint(folder, of_model, diagnostics)
        modules = [_base_report(name, tensor, diagnostics) for name, tensor in tensors.items()]
        try:
            if load_tokenizer(folder).inner is None:
                diagnostics.warn(folder, "has no tokenizer.json: it can be given token ids, not text")
        except ConfigError as error:
            diagnostics.problems.append(str(error))
    else:
        diagnostics.problem(folder, find_nemo(folder) or what_instead(folder))
        config, modules = {}, []
    return Inspection(
        str(folder),
        kind,
        diagnostics.problems,
        diagnostics.warnings,
        config,
        modules,
        {
            dtype: sum(report.parameters for report in modules if report.dtype == dtype)
            for dtype in sorted({report.dtype for report in modules})
        },
        sum(report.parameters for report in modules),
        sum(report.bytes for report in modules),
        notes,
        format_of(folder) if kind == "adapter" else "",
    )


def format_of(folder: Path) -> str:
    """Whose format an adapter is in, if it is not PEFT's."""
    kinds = {"GGUF": is_gguf, "mlx-lm (MLX)": is_mlx, "NeMo": is_nemo, "torchtune": holds_torchtune}
    return next((name for name, is_one in kinds.items() if is_one(folder)), "")


def what_instead(path: Path) -> str:
    """What to say of a path that is neither a model nor an adapter: what to give instead, if that can be seen."""
    reason = not_an_adapter(path) or ""
    if not os.path.isdir(path):
        return reason
    model = instead(path) if reason == f"has no {CONFIG_FILE}" else ""
    neither = f"has neither config.json and {SINGLE} nor {CONFIG_FILE} and {WEIGHTS_FILE}"
    return f"{neither}{model or '; ' + reason if model or reason != f'has no {CONFIG_FILE}' else ''}"


def _resolve(path: str | Path) -> tuple[Path, str]:
    """The folder that a path or an embedded name means, and what it seems to be."""
    folder = base_folder(path)
    if not os.path.exists(folder):
        folder = adapter_folder(path)
    names = {file.name for file in folder.glob("*")} if os.path.isdir(folder) else set()
    if names & {
        CONFIG_FILE,
        WEIGHTS_FILE,
        f"{WEIGHTS_FILE}.index.json",
        MLX_FILE,
        "adapter_model.bin",
    } or is_gguf_adapter(folder):
        return folder, "adapter"
    if is_nemo(folder):
        return folder, "adapter"
    if names & {"config.json", SINGLE, INDEX} or is_gguf(folder):
        return folder, "model"
    return folder, "trtllm" if is_pair(folder) or pair_folders(folder) else "unknown"


def _base_report(name: str, tensor: Tensor, diagnostics: Diagnostics) -> ModuleReport:
    """One tensor of a base. A quantised one is read, to see whether all of it is finite."""
    if tensor.quantised and not all_finite(tensor.read()):
        diagnostics.problem(tensor.file, f"tensor {tensor.name} holds NaN or inf")
    shapes = {name.rsplit(".", 1)[-1]: list(tensor.shape)}
    return ModuleReport(name, "base", shapes, tensor.stored, tensor.size, tensor.nbytes)


def _adapter_reports(
    module: Module, parts: Parts, config: PeftConfig | None, counted: set[int]
) -> Iterable[ModuleReport]:
    """A module's LoRA, and what else the adapter brings along for it. Arrays that modules share are counted once."""
    name, tensors = module_name(module), parts[module]
    lora = {part: tensors[part].array for part in tensors if part in ("A", "B", "lora_bias", "magnitude")}
    if lora:
        A = lora.get("A")
        rank = A.shape[-2] if A is not None and A.ndim > 1 else None
        alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha) if config else None
        scale = adapter_scale(alpha, rank, config.use_rslora) if config and alpha is not None and rank else None
        report = _report(name, "dora" if "magnitude" in lora else "lora", lora, rank, alpha, scale)
        again = [x for x in lora.values() if id(x) in counted]
        counted |= {id(x) for x in lora.values()}
        yield replace(
            report,
            parameters=report.parameters - sum(x.size for x in again),
            bytes=report.bytes - sum(x.nbytes for x in again),
        )
    for part, kind in (("saved", "replaced"), ("copy", "replaced"), ("bias", "bias"), ("tokens", "tokens")):
        if part in tensors:
            shown = {"bias": "bias", "tokens": "rows"}.get(kind, "weight")
            yield _report(name, kind, {shown: tensors[part].array})


def _report(
    module: str,
    kind: str,
    arrays: dict[str, Array],
    rank: int | None = None,
    alpha: float | None = None,
    scale: float | None = None,
) -> ModuleReport:
    return ModuleReport(
        module,
        kind,
        {name: list(x.shape) for name, x in arrays.items()},
        " and ".join(sorted({x.dtype.name for x in arrays.values()})),
        sum(x.size for x in arrays.values()),
        sum(x.nbytes for x in arrays.values()),
        rank,
        alpha,
        scale,
    )
