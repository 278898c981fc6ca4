"""loracle demo: several voices answer in one batch, and the proof that none hears another."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from ..request_state import Output, Token
from ..streaming import roomy_engine, stream
from ..tools.merge import merged
from ..weights import Model
from .common import BASE, Adapters, add_device_arguments, backend, default_device
from .demo_figures import Figures, largest, lines_of, rounds, show_figures, simulated

HELP = "the embedded model, its voices in one batch, nothing to download"
EXAMPLE = "  loracle demo --seed 3"

STYLES = {BASE: "white", "pirate": "cyan", "bard": "magenta", "robot": "green", "merchant": "yellow"}
TOKENS, FEW_TOKENS = 112, 8  # per voice; the few are for kernels that run on a CPU, one fiber per thread
TEMPERATURE = 0.8
TIMED_TOKENS = 24  # per voice, of the runs that measure the speed; more: a longer demo, the same figure
SECONDS_PER_STEP = 0.02  # a person reads along; the speed is measured in a run of its own

CLOSING = (
    "One set of base weights answered all five in one batch; each token added scale * B (A x) of its own adapter, the "
    "one in the slot adapter_id (-1: none).",
    "Next: loracle learn",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of demo."""
    parser.add_argument("--seed", type=int, default=0, help="picks the scene and what is said in it (default 0)")
    parser.add_argument(
        "--temperature", type=float, default=TEMPERATURE, metavar="T", help=f"0 is greedy (default {TEMPERATURE})"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"per voice (default {TOKENS}; kernels on a CPU: {FEW_TOKENS})"
    )
    parser.add_argument(
        "--pictures", action="store_true", help="the same scene as a picture in several styles, in one batch as well"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="with --pictures: one page, stories beside pictures (needs Pillow); a file of that name is replaced",
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
    spoken = speak(roomy_engine(model, requests, 0, backend(args.ops), None), requests)
    texts = [output.text for output in spoken.outputs]
    rows = [{"adapter": name, "text": text} for name, text in zip(names, texts, strict=True)]
    figures = measure(model, requests, names, spoken, backend(args.ops), rounds(args))
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
    spoken = show(console, model, requests, names, prompt, backend(args.ops))
    texts = [output.text for output in spoken.outputs]
    console.print()
    figures = measure(model, requests, names, spoken, backend(args.ops), rounds(args))
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


@dataclass(frozen=True)
class Spoken:
    """What the voices said, each a request of the same batch."""

    outputs: list[Output]
    blocks: int  # of the KV cache, in use at the peak
    of_blocks: int


def speak(
    engine: Engine, requests: Sequence[Request], watch: Callable[[Token, list[str]], None] = lambda token, texts: None
) -> Spoken:
    """Serve all requests in one batch; `watch` gets each token, and all that was said so far."""
    ids: list[list[int]] = [[] for _ in requests]
    texts, reasons, blocks = ["" for _ in requests], ["" for _ in requests], 0
    for token in stream(engine.model, requests, engine=engine):
        ids[token.request_id].append(token.token_id)
        texts[token.request_id] += token.text
        reasons[token.request_id] = token.finish_reason or ""
        blocks = max(blocks, engine.cache.in_use)
        watch(token, texts)
    outputs = [Output(*each) for each in zip(ids, texts, reasons, strict=True)]
    return Spoken(outputs, blocks, engine.cache.num_blocks)


def show(
    console: Console, model: Model, requests: Sequence[Request], names: Sequence[str], prompt: str, ops: Ops
) -> Spoken:
    """Print all voices at once, as they speak."""
    engine = roomy_engine(model, requests, 0, ops, None)
    console.print(Text(prompt.strip(), style="bold"))

    def table(texts: Sequence[str]) -> Table:
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

    empty = table(["" for _ in requests])
    with Live(empty, console=console, refresh_per_second=20, auto_refresh=console.is_terminal) as live:
        last = -1

        def watch(token: Token, texts: list[str]) -> None:
            nonlocal last
            if token.request_id <= last and console.is_terminal:  # the next step of the batch has begun
                time.sleep(SECONDS_PER_STEP)
            last = token.request_id
            live.update(table(texts))

        return speak(engine, requests, watch)


def measure(
    model: Model, requests: Sequence[Request], names: Sequence[str], spoken: Spoken, ops: Ops, runs: int
) -> Figures:
    """Return speed (the median of so many runs), memory, and the two proofs."""
    timed = [replace(r, max_new_tokens=min(int(r.max_new_tokens or 0), TIMED_TOKENS)) for r in requests]
    times = [(seconds(model, timed, ops), sum(seconds(model, [r], ops) for r in timed)) for _ in range(runs)]
    tokens = sum(min(len(output.token_ids), TIMED_TOKENS) for output in spoken.outputs)
    together, alone = (statistics.median(each) for each in zip(*times, strict=True))

    # The whole scenes, prompt and answer, read once more: the largest difference of any logit of any token.
    scenes = [
        replace(request, prompt_ids=[*request.prompt_ids, *output.token_ids])
        for request, output in zip(requests, spoken.outputs, strict=True)
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
        kv_blocks_in_use=spoken.blocks,
        kv_blocks=spoken.of_blocks,
        batched_vs_alone_max_abs=largest(batched, one_by_one),
        merged_vs_unmerged_max_abs=largest(batched, alone_and_merged),
        largest_logit=max(float(np.abs(x).max()) for x in batched),
    )


def seconds(model: Model, requests: Sequence[Request], ops: Ops) -> float:
    """Return the seconds until the last of these requests is done."""
    engine = roomy_engine(model, requests, 0, ops, None)
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.busy:
        engine.step()
    return time.perf_counter() - start
