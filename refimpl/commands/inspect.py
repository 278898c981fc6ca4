"""loracle inspect: what is in a model or adapter folder, and everything that is wrong with it."""

import argparse
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import tiny
from ..config import ModelConfig, Module, module_name
from ..engines import adapter_limits
from ..engines.adapter_limits import Hit
from ..errors import RequestError
from ..formats.trtllm_report import MAX_RANK
from ..loading.adapter_folder import adapter_folder, load_adapter
from ..loading.config_file import load_config
from ..loading.files_beside import ADDED
from ..loading.model_folder import base_folder, load_model
from ..loading.peft_config import replication_of
from ..loading.tokenizer_file import load_tokenizer
from ..replication import replicated, replicated_config
from ..tools.effect import effect
from ..tools.inspect import Inspection, ModuleReport, inspect
from ..tools.units import human_bytes
from ..weights import Model
from .common import prompt_ids
from .texts import about_tokenizer, own_tokenizer

HELP = "show what is in a model or adapter folder, and everything that is wrong with it"
EXAMPLE = """  loracle inspect ./my-adapter --model ./llama            does it fit this base?
  loracle inspect ./my-adapter --model ./llama --for vllm      will vLLM take it, and all of it?
  loracle inspect pirate --model tiny --effect            is it applied at all, and where?"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of inspect."""
    parser.add_argument(
        "folder", metavar="DIR", help="a model, PEFT or TensorRT-LLM folder, a GGUF file, tiny, or a voice of it"
    )
    parser.add_argument(
        "--model", metavar="DIR|GGUF|tiny", help="the base that the adapter is for: check it against that one"
    )
    parser.add_argument(
        "--effect", action="store_true", help="per module ||scale B A x|| / ||W x|| on the model's own x"
    )
    parser.add_argument(
        "--for",
        dest="engine",
        choices=("trtllm", *adapter_limits.names()),
        help="also what this engine rejects or ignores of an adapter, with the version and how that is known; exit 1 "
        "if there is anything",
    )
    parser.add_argument("--max-rank", type=int, metavar="N", help="its max_lora_rank (default: its own)")
    parser.add_argument("--prompt", metavar="TEXT", help="the text that --effect runs (default: a fixed one)")


def run(args: argparse.Namespace) -> int:
    """Return 0 if the folder can be used, 2 if it cannot, 1 if the engine of --for does not take all of it."""
    model = args.model or ("tiny" if args.folder in tiny.VOICES else None)
    if args.max_rank is not None and args.max_rank < 1:
        raise RequestError(f"--max-rank {args.max_rank}: it must be above 0")
    base = load_config(base_folder(model)) if model else None
    if base and (runs := replication_of(adapter_folder(args.folder))):
        base = replicated_config(base, runs)
    inspection = inspect(args.folder, base, args.engine, args.max_rank or MAX_RANK)
    if model and inspection.kind == "adapter":
        inspection.warnings.extend(about_texts(Path(inspection.path), base_folder(model)))
    hits = limits(args, inspection, base)
    effects: dict[Module, float] | None = None
    if args.effect and inspection.ok:
        effects = measure_effects(args, inspection, model)
    if args.json:
        body = dataclasses.asdict(inspection)
        if effects is not None:
            body["effect"] = {module_name(module): value for module, value in effects.items()}
        if hits is not None:
            body["limits"] = [dataclasses.asdict(hit) for hit in hits]
        print(json.dumps(body))
    else:
        show(Console(), inspection, effects, against_base=model is not None)
        show_limits(Console(), args.engine, hits)
    if not inspection.ok:
        return 2
    return 1 if hits or (args.engine == "trtllm" and any(map(is_limit, inspection.tensorrt_llm))) else 0


def limits(args: argparse.Namespace, inspection: Inspection, base: ModelConfig | None) -> list[Hit] | None:
    """Return what the engine of --for does not take; None where nothing was asked, or of TensorRT-LLM, of which
    `inspect` has said it."""
    if args.engine is None or args.engine == "trtllm":
        return None
    if inspection.kind not in ("adapter", "unknown"):
        raise RequestError(f"--for {args.engine} is about adapters, and {args.folder} is a {inspection.kind}")
    return adapter_limits.limits_of(Path(inspection.path), args.engine, base, args.max_rank)


def is_limit(line: str) -> bool:
    """Whether a line about TensorRT-LLM says that it does not take all of the adapter."""
    return line.removeprefix("(").split(") ")[-1].startswith(("rejects", "ignores", "cuts", "takes", "skips"))


def show_limits(console: Console, engine: str | None, hits: list[Hit] | None) -> None:
    """Print what the engine does not take, or that nothing is known against it."""
    for hit in hits or []:
        colour = "bold red" if hit.does == "rejects" else "yellow"
        words = f"{hit.does} {hit.subject}: {hit.what} "
        source = f"({adapter_limits.EVIDENCE[hit.evidence]}: {hit.versions}; {hit.link})"
        console.print(Text(f"{hit.engine} ", style="cyan") + Text(words, style=colour) + Text(source, style="dim"))
    if hits == [] and engine:
        table = adapter_limits.read_engine(engine)
        console.print(Text(f"{table.name}: nothing of it is in the table ({table.versions})", style="green"))


def about_texts(folder: Path, base: Path) -> list[str]:
    """Return what is remarkable about the tokenizer and the template that an adapter brings along."""
    if not any(os.path.exists(folder / name) for name in ("tokenizer.json", ADDED)):
        return []
    tokenizer = load_tokenizer(base)
    notes = about_tokenizer(folder, own_tokenizer(folder, tokenizer), tokenizer)
    return [f"{folder}: {note}" for note in notes]


def measure_effects(args: argparse.Namespace, inspection: Inspection, model: str | None) -> dict[Module, float]:
    """Return the effect of the adapter on a prompt, per module."""
    if inspection.kind != "adapter" or model is None:
        raise RequestError("--effect needs an adapter folder and the base that it is for: --model DIR")
    base = load_model(model)
    if runs := replication_of(adapter_folder(args.folder)):
        base = replicated(base, runs)
    adapter = load_adapter(args.folder, base)
    return effect(base, adapter, some_prompt(base, args.prompt))


def some_prompt(model: Model, text: str | None) -> list[int]:
    """Return the ids of the text; without one, of a scene (tiny), of an English sentence, or ids drawn once."""
    if model.tokenizer.inner is None and text is None:
        return np.random.default_rng(0).integers(0, model.config.vocab_size, 64).tolist()
    if text is None and model.tokenizer.file.parent == tiny.base_path():
        text = tiny.DEMO_PROMPTS[0]
    return list(prompt_ids(model, text or "The quick brown fox jumps over the lazy dog, and then it writes some SQL."))


def show(console: Console, inspection: Inspection, effects: dict[Module, float] | None, against_base: bool) -> None:
    """Print tables and diagnostics for people."""
    if inspection.kind != "unknown":  # else the first problem says what it is not
        of_format = f" of {inspection.format}" if inspection.format else ""
        console.print(Text(f"{inspection.path}: {inspection.kind}{of_format}", style="bold"))
    keys = {key: value for key, value in inspection.config.items() if value not in (None, {}, (), [], "")}
    if keys:
        console.print(Text("  ".join(f"{key}={value}" for key, value in keys.items()), style="dim"))
    if inspection.modules:
        console.print(modules_table(inspection.modules))
        kinds = ", ".join(f"{count:,} in {dtype}" for dtype, count in inspection.dtypes.items())
        console.print(f"{inspection.parameters:,} parameters ({kinds}), {human_bytes(inspection.bytes)}")
    if effects is not None:
        console.print(effect_table(effects))
    for text in inspection.problems:
        console.print(Text("problem: ", style="bold red") + Text(text))
    for text in inspection.warnings:
        console.print(Text("warning: ", style="yellow") + Text(text))
    for text in inspection.tensorrt_llm:
        console.print(Text("TensorRT-LLM ", style="cyan") + Text(text))
    if inspection.ok:
        unchecked = inspection.kind in ("adapter", "trtllm") and not against_base
        alone = "loads, with what is said above" if inspection.warnings else "sound in itself"
        console.print(
            Text(f"{alone}; add --model DIR to check it against its base", style="yellow")
            if unchecked
            else Text("can be used", style="green")
        )


def modules_table(modules: list[ModuleReport]) -> Table:
    """Return a table with one row for each kind of module: layers that agree in everything are counted, not listed."""
    adapter = any(report.kind != "base" for report in modules)
    shown = ("rank", "alpha", "scale")
    columns = [name for name in shown if any(getattr(report, name) is not None for report in modules)]
    extra = ["kind", *columns] if adapter else []
    table = Table("module", "layers", "shapes", *extra, "dtype", "bytes", box=box.SIMPLE, padding=0, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    groups: dict[tuple, list[ModuleReport]] = {}
    for report in modules:
        listed = {key: shape for key, shape in report.shapes.items() if key != "magnitude"}  # one for each row of B
        shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in listed.items())
        key = (short_name(report.module), report.kind, shapes, report.rank, report.alpha, report.scale, report.dtype)
        groups.setdefault(key, []).append(report)
    for (name, kind, shapes, rank, alpha, scale, dtype), same in groups.items():
        values = {"rank": rank, "alpha": alpha, "scale": scale}
        numbers = (
            [kind, *("" if values[name] is None else f"{values[name]:.3g}" for name in columns)] if adapter else []
        )
        layers = in_layers(same) if ".layers." in same[0].module else ""
        table.add_row(name, layers, shapes, *numbers, dtype, human_bytes(sum(report.bytes for report in same)))
    return table


def in_layers(reports: list[ModuleReport]) -> str:
    """Return in how many layers modules of one name are, and of experts in how many of each: 2 x 8."""
    layers = {report.module.partition(".layers.")[2].partition(".")[0] for report in reports}
    each = len(reports) // len(layers)
    return f"{len(layers)} x {each}" if each > 1 and ".experts." in reports[0].module else str(len(reports))


def short_name(module: str) -> str:
    """Shorten model.layers.3.self_attn.q_proj.weight to q_proj, model.norm.weight to norm; of task 7: 7: q_proj.

    Of experts, and what is beside them: experts.up_proj, shared_expert.up_proj."""
    parts = [part for part in module.split(".") if part not in ("weight", "bias")]
    if around := [part for part in parts if "expert" in part and part != parts[-1]]:
        return f"{around[-1]}.{parts[-1]}"
    return f"{parts[0]}: {parts[-1]}" if parts[0].isdigit() else parts[-1]


def effect_table(effects: dict[Module, float]) -> Table:
    """Return a table whose rows are layers and whose columns are modules; of all experts of a layer the largest."""
    grouped: dict[str, dict[int, float]] = {}
    for (layer, name), value in effects.items():
        of_layers = grouped.setdefault(short_name(name) if "." in name else name, {})
        of_layers[layer] = max(value, of_layers.get(layer, value))
    table = Table("layer", *grouped, title="||scale B A x|| / ||W x||", box=box.SIMPLE)
    for layer in sorted({module[0] for module in effects}):
        cells = [of_layers.get(layer) for of_layers in grouped.values()]
        shown = ["" if x is None else "inf" if math.isinf(x) else f"{x:.3f}" for x in cells]
        table.add_row(str(layer) if layer >= 0 else "", *shown)
    return table
