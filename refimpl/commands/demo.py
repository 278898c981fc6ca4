"""loracle demo: several voices answer in one batch, and the proof that none hears another."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import tiny
from ..adapter import Adapter
from ..adapter_cache import AdapterCache
from ..arrays import Precision
from ..cuda.launch import checked
from ..engine import Engine
from ..errors import RequestError
from ..loading.model_folder import load_model
from ..model import logits
from ..ops import Ops
from ..request import Request
from ..streaming import generate, roomy_engine, stream
from ..tools.merge import merged
from ..weights import Model
from .common import BASE, Adapters, add_device_arguments, backend, default_device
from .demo_figures import Figures, largest, lines_of, rounds, show_figures, simulated

HELP = "the embedded model, its voices in one batch, nothing to download"
EXAMPLE = "  loracle demo --seed 3"

STYLES = {BASE: "white", "pirate": "cyan", "bard": "magenta", "robot": "green", "merchant": "yellow"}
TOKENS, FEW_TOKENS = 112, 8  # per voice; the few are for kernels that run on a CPU, one fiber per thread
SECONDS_PER_STEP = 0.02  # a person reads along; the speed is measured in a run of its own

CLOSING = (
    "One set of base weights answered all five in one batch; each token added scale * B (A x) of its own adapter, the "
    "one in the slot adapter_id (-1: none).",
    "Next: loracle learn",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of demo."""
    parser.add_argument("--seed", type=int, default=0, help="picks the scene and what is said in it (default 0)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default 0.8)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"per voice (default {TOKENS}; kernels on a CPU: {FEW_TOKENS})"
    )
    parser.add_argument(
        "--pictures", action="store_true", help="the same scene as a picture in several styles, in one batch as well"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="with --pictures: one page, stories beside pictures (needs Pillow)"
    )
    add_device_arguments(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --ops cuda: every launch under the checker, which names overruns and races",
    )


def run(args: argparse.Namespace) -> int:
    """Stream, measure, prove."""
    if args.check and args.ops != "cuda":
        raise RequestError("--check watches the kernels: give --ops cuda as well")
    if args.html and not args.pictures:
        raise RequestError("--html is a page of stories and pictures: give --pictures as well")
    if args.pictures:
        from . import demo_pictures  # the models of pictures, which no other command should wait for

        demo_pictures.check_arguments(args)
    with checked() if args.check else nullcontext():
        return play(args)


def play(args: argparse.Namespace) -> int:
    """Run the demo for people, or as JSON."""
    if not args.json:
        present(Console(), args)
        return 0
    model, requests, names, prompt = cast(args)
    texts = [output.text for output in generate(model, requests, ops=backend(args.ops))]
    rows = [{"adapter": name, "text": text} for name, text in zip(names, texts, strict=True)]
    figures = measure(model, requests, names, backend(args.ops), rounds(args))
    result = {**vars(figures), "prompt": prompt, "texts": rows}
    if args.pictures:
        from . import demo_pictures

        result["pictures"] = demo_pictures.as_json(args, prompt, list(zip(names, texts, strict=True)), figures)
    print(json.dumps(result))
    return 0


def present(console: Console, args: argparse.Namespace) -> None:
    """Print the scene as it is written, then the figures, for people."""
    model, requests, names, prompt = cast(args)
    if simulated(args):
        limit = requests[0].max_new_tokens
        console.print(f"No GPU here: the kernels run on this CPU, thread by thread, so {limit} tokens a voice.")
    texts = show(console, model, requests, names, prompt, backend(args.ops))
    console.print()
    figures = measure(model, requests, names, backend(args.ops), rounds(args))
    show_figures(console, lines_of(figures, names))
    console.print()
    if args.pictures:
        from . import demo_pictures

        demo_pictures.present(console, args, prompt, list(zip(names, texts, strict=True)), figures)
    for line in CLOSING:
        console.print(line, highlight=False)


def cast(args: argparse.Namespace) -> tuple[Model, list[Request], list[str], str]:
    """Return the model, one request per voice for the same scene, their names, and the scene."""
    model = load_model("tiny", device=args.device or default_device(args.ops))
    adapters = Adapters(dict(tiny.VOICES), model)
    names = [BASE, *tiny.VOICES]
    prompt = tiny.DEMO_PROMPTS[args.seed % len(tiny.DEMO_PROMPTS)]
    ids = model.tokenizer.encode(prompt)
    limit = args.max_new_tokens if args.max_new_tokens is not None else FEW_TOKENS if simulated(args) else TOKENS
    requests = [Request(ids, adapters.chosen(name), limit, args.temperature, seed=args.seed) for name in names]
    return model, requests, names, prompt


def show(
    console: Console, model: Model, requests: Sequence[Request], names: Sequence[str], prompt: str, ops: Ops
) -> list[str]:
    """Print all voices at once, each a request of the same batch; return what they say."""
    texts = ["" for _ in requests]
    engine = roomy_engine(model, requests, 0, ops, None)
    console.print(Text(prompt.strip(), style="bold"))

    def table() -> Table:
        slots = {id(adapter): slot for adapter, slot in engine.adapters.slot_of.items()}
        view = Table(expand=True, show_lines=True)
        view.add_column("request", justify="right")
        view.add_column("adapter")
        view.add_column("adapter_id", justify="right")
        view.add_column("all of them in one batch", ratio=1)
        for row, (request, name, text) in enumerate(zip(requests, names, texts, strict=True)):
            slot = slots.get(id(request.adapter), -1)
            view.add_row(str(row), Text(name, style=STYLES[name]), str(slot), Text(text.rstrip(), style=STYLES[name]))
        return view

    with Live(table(), console=console, refresh_per_second=20, auto_refresh=console.is_terminal) as live:
        row = -1
        for token in stream(model, requests, ops=ops, engine=engine):
            if token.request_id <= row and console.is_terminal:  # the next step of the batch has begun
                time.sleep(SECONDS_PER_STEP)
            row = token.request_id
            texts[row] += token.text
            live.update(table())
    return texts


def measure(model: Model, requests: Sequence[Request], names: Sequence[str], ops: Ops, runs: int) -> Figures:
    """Return speed (the median of so many runs), memory, and the two proofs."""
    blocks: list[int] = []
    timed = [
        (timed_run(model, requests, ops, blocks), sum(timed_run(model, [r], ops) for r in requests))
        for _ in range(runs)
    ]
    outputs = generate(model, requests, ops=ops)
    tokens = sum(len(output.token_ids) for output in outputs)
    together, alone = (statistics.median(times) for times in zip(*timed, strict=True))

    # The whole scenes, prompt and answer, read once more: the largest difference of any logit of any token.
    scenes = [
        replace(request, prompt_ids=[*request.prompt_ids, *output.token_ids])
        for request, output in zip(requests, outputs, strict=True)
    ]
    batched = logits(model, scenes, ops)
    one_by_one = [logits(model, [scene], ops)[0] for scene in scenes]
    alone_and_merged = [
        logits(
            merged(model, scene.adapter, ops) if isinstance(scene.adapter, Adapter) else model,
            [replace(scene, adapter=None)],
            ops,
        )[0]
        for scene in scenes
    ]
    voices = {name: r.adapter for name, r in zip(names, requests, strict=True) if isinstance(r.adapter, Adapter)}
    cache = AdapterCache(model, Precision(ops.precision, model.dtype), ops)
    base_bytes = model.nbytes
    return Figures(
        tokens_per_second=tokens / together,
        sequential_tokens_per_second=tokens / alone,
        speedup=alone / together,
        base_bytes=base_bytes,
        adapter_bytes={name: cache.slots.nbytes(cache.acquire(adapter)) for name, adapter in voices.items()},
        merged_copies_bytes=len(voices) * base_bytes,
        kv_blocks_in_use=max(blocks),
        kv_blocks=engine_blocks(model, requests, ops),
        batched_vs_alone_max_abs=largest(batched, one_by_one),
        merged_vs_unmerged_max_abs=largest(batched, alone_and_merged),
        largest_logit=max(float(np.abs(x).max()) for x in batched),
    )


def timed_run(model: Model, requests: Sequence[Request], ops: Ops, blocks: list[int] | None = None) -> float:
    """Return the seconds until the last of these requests is done; the blocks in use are noted at every step."""
    engine = roomy_engine(model, requests, 0, ops, None)
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.busy:
        engine.step()
        if blocks is not None:
            blocks.append(engine.cache.in_use)
    return time.perf_counter() - start


def engine_blocks(model: Model, requests: Sequence[Request], ops: Ops) -> int:
    """Return how many blocks the cache of these requests has."""
    engine: Engine = roomy_engine(model, requests, 0, ops, None)
    return engine.cache.num_blocks
