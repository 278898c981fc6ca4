"""loracle inspect: what is in a model or adapter folder, and everything that is wrong with it."""

import argparse
import dataclasses
import json
import math

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import tiny
from ..config import Module, module_name
from ..errors import RequestError
from ..formats.trtllm_report import MAX_RANK
from ..loading.adapter_folder import load_adapter
from ..loading.config_file import load_config
from ..loading.model_folder import base_folder, load_model
from ..tools.effect import effect
from ..tools.inspect import Inspection, ModuleReport, inspect
from ..weights import Model
from .common import human_bytes, prompt_ids

HELP = "show what is in a model or adapter folder, and everything that is wrong with it"
EXAMPLE = """  loracle inspect ./my-adapter --model ./llama            does it fit this base?
  loracle inspect pirate --model tiny --effect            is it applied at all, and where?"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of inspect."""
    parser.add_argument("folder", metavar="DIR", help="a model, PEFT or TensorRT-LLM folder, tiny, or a voice of it")
    parser.add_argument(
        "--model", metavar="DIR|tiny", help="the base that the adapter is for: check it against that one"
    )
    parser.add_argument(
        "--effect", action="store_true", help="per module ||scale B A x|| / ||W x|| on the model's own x"
    )
    parser.add_argument(
        "--for",
        dest="engine",
        choices=("trtllm",),
        help="also what this engine would reject of a PEFT folder, or ignore (said of its own arrays in any case)",
    )
    parser.add_argument(
        "--max-rank", type=int, default=MAX_RANK, metavar="N", help=f"its max_lora_rank (default {MAX_RANK}, its own)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the text that --effect runs (default: a fixed one)")


def run(args: argparse.Namespace) -> int:
    """0 if the folder can be used, 2 if it cannot."""
    model = args.model or ("tiny" if args.folder in tiny.VOICES else None)
    if args.max_rank < 1:
        raise RequestError(f"--max-rank {args.max_rank}: it must be above 0")
    base = load_config(base_folder(model)) if model else None
    found = inspect(args.folder, base, args.engine, args.max_rank)
    effects: dict[Module, float] | None = None
    if args.effect and found.ok:
        effects = measured(args, found, model)
    if args.json:
        body = dataclasses.asdict(found)
        if effects is not None:
            body["effect"] = {module_name(module): value for module, value in effects.items()}
        print(json.dumps(body))
    else:
        show(Console(), found, effects, against_base=model is not None)
    return 0 if found.ok else 2


def measured(args: argparse.Namespace, found: Inspection, model: str | None) -> dict[Module, float]:
    """The effect of the adapter on a prompt."""
    if found.kind != "adapter" or model is None:
        raise RequestError("--effect needs an adapter folder and the base that it is for: --model DIR")
    base = load_model(model)
    adapter = load_adapter(args.folder, base.config)
    return effect(base, adapter, some_prompt(base, args.prompt))


def some_prompt(model: Model, text: str | None) -> list[int]:
    """The user's text; else a scene of the tiny model, an English sentence, or, without a tokenizer, ids drawn once."""
    if model.tokenizer.inner is None and text is None:
        return np.random.default_rng(0).integers(0, model.config.vocab_size, 64).tolist()
    if text is None and model.tokenizer.file.parent == tiny.base_path():
        text = tiny.DEMO_PROMPTS[0]
    return list(prompt_ids(model, text or "The quick brown fox jumps over the lazy dog, and then it writes some SQL."))


def show(console: Console, found: Inspection, effects: dict[Module, float] | None, against_base: bool) -> None:
    """Tables and findings for people."""
    console.print(Text(f"{found.path}: {found.kind}", style="bold"))
    keys = {key: value for key, value in found.config.items() if value not in (None, {}, (), [], "")}
    console.print(Text("  ".join(f"{key}={value}" for key, value in keys.items()), style="dim"))
    if found.modules:
        console.print(modules_table(found.modules))
        kinds = ", ".join(f"{count:,} in {dtype}" for dtype, count in found.dtypes.items())
        console.print(f"{found.parameters:,} parameters ({kinds}), {human_bytes(found.bytes)}")
    if effects is not None:
        console.print(effect_table(effects))
    for text in found.problems:
        console.print(Text("problem: ", style="bold red") + Text(text))
    for text in found.warnings:
        console.print(Text("warning: ", style="yellow") + Text(text))
    for text in found.tensorrt_llm:
        console.print(Text("TensorRT-LLM ", style="cyan") + Text(text))
    if found.ok:
        unchecked = found.kind in ("adapter", "trtllm") and not against_base
        console.print(
            Text("sound in itself; add --model DIR to check it against its base", style="yellow")
            if unchecked
            else Text("can be used", style="green")
        )


def modules_table(modules: list[ModuleReport]) -> Table:
    """One row for each kind of module: layers that agree in everything are counted, not listed."""
    adapter = any(m.kind != "base" for m in modules)
    known = [name for name in ("rank", "alpha", "scale") if any(getattr(m, name) is not None for m in modules)]
    extra = ["kind", *known] if adapter else []
    table = Table("module", "layers", "shapes", *extra, "dtype", "bytes", box=box.SIMPLE, padding=0, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    groups: dict[tuple, list[ModuleReport]] = {}
    for m in modules:
        shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in m.shapes.items())
        key = (short_name(m.module), m.kind, shapes, m.rank, m.alpha, m.scale, m.dtype)
        groups.setdefault(key, []).append(m)
    for (name, kind, shapes, rank, alpha, scale, dtype), same in groups.items():
        values = {"rank": rank, "alpha": alpha, "scale": scale}
        numbers = [kind, *("" if values[name] is None else f"{values[name]:.3g}" for name in known)] if adapter else []
        layers = str(len(same)) if ".layers." in same[0].module else ""
        table.add_row(name, layers, shapes, *numbers, dtype, human_bytes(sum(m.bytes for m in same)))
    return table


def short_name(module: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> q_proj; model.norm.weight -> norm; of task 7: 7.model ... -> 7: ..."""
    parts = [part for part in module.split(".") if part not in ("weight", "bias")]
    return f"{parts[0]}: {parts[-1]}" if parts[0].isdigit() else parts[-1]


def effect_table(effects: dict[Module, float]) -> Table:
    """Rows are layers, columns are modules."""
    modules = list(dict.fromkeys(module[1] for module in effects))
    table = Table("layer", *modules, title="||scale B A x|| / ||W x||", box=box.SIMPLE)
    for layer in sorted({module[0] for module in effects}):
        cells = [effects.get((layer, name)) for name in modules]
        shown = ["" if x is None else "inf" if math.isinf(x) else f"{x:.3f}" for x in cells]
        table.add_row(str(layer) if layer >= 0 else "", *shown)
    return table
