"""What --pictures adds to the demo: the scene in several styles, one batch, and the proof that none sees another."""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from ..adapter import Adapter
from ..adapter_cache import AdapterCache
from ..arrays import Precision
from ..errors import RequestError
from ..loading.embedded import STYLES
from ..ops import Ops
from ..pictures import PictureModel, PictureRequest, draw, draw_latents
from ..tools.merge import merged_picture_model
from . import picture_page
from .common import BASE, backend, default_device
from .demo_figures import Figures, largest, memory, rounds, show_figures, simulated
from .demo_figures import lines_of as lines_of_texts
from .draw import STEPS
from .picture_output import can_show, import_pillow, show_pictures
from .scenes import Pixels, Scene, check_page, open_studio, picture_backend, picture_requests

CLOSING = (
    "A picture's tokens go through the same lora_delta as a text's: scale * B (A x), by the adapter_id of each token."
)


@dataclass(frozen=True)
class PictureFigures:
    """What is measured of the pictures, and --json prints. Differences are of latents, which go from -1 to 1."""

    steps: int
    seconds_per_picture: float
    sequential_seconds_per_picture: float
    speedup: float
    base_bytes: int
    adapter_bytes: dict[str, int]
    merged_copies_bytes: int
    batched_vs_alone_max_abs: float
    merged_vs_unmerged_max_abs: float


def check_arguments(args: argparse.Namespace) -> None:
    """RequestError for what the demo cannot do with pictures, before it begins."""
    if simulated(args):
        raise RequestError("--pictures with the kernels on this CPU would take hours: give one of the two")
    check_page(args.html)
    if args.html:
        import_pillow()


def as_json(
    args: argparse.Namespace, prompt: str, texts: list[tuple[str, str]], text_figures: Figures
) -> dict[str, object]:
    """Return the figures as JSON prints them; write the page of --html."""
    model, requests, pictures = cast(args, prompt)
    figures = measure(model, requests, backend(args.ops), rounds(args))
    write_page(args, Scene(prompt, texts, pictures), text_figures, figures)
    return {**vars(figures), "adapters": [name for name, _ in pictures]}


def present(
    console: Console, args: argparse.Namespace, prompt: str, texts: list[tuple[str, str]], text_figures: Figures
) -> None:
    """Print the pictures, then their figures, for people; write the page of --html."""
    model, requests, pictures = cast(args, prompt)
    if can_show(console):
        show_pictures(console, pictures)
    else:
        names = ", ".join(name for name, _ in pictures)
        page = "" if args.html else "; --html FILE is a page of them"
        said = (
            f"{len(pictures)} pictures of the scene: {names} (a terminal of 48 columns with colours shows them{page})"
        )
        console.print(said, highlight=False)
    figures = measure(model, requests, backend(args.ops), rounds(args))
    console.print()
    show_figures(console, lines_of(figures))
    console.print()
    if args.html:
        write_page(args, Scene(prompt, texts, pictures), text_figures, figures)
        console.print(f"Stories beside pictures: {args.html}", highlight=False, markup=False)
    console.print(CLOSING, highlight=False)


def cast(args: argparse.Namespace, prompt: str) -> tuple[PictureModel, list[PictureRequest], list[tuple[str, Pixels]]]:
    """Return the model, one request per style for the scene, and the pictures that are one batch of them, by name."""
    studio = open_studio(device=args.device or default_device(args.ops))
    names, ops = [BASE, *STYLES], picture_backend(args.ops)
    requests = picture_requests(studio, [prompt], names, ops, args.seed, STEPS)
    return studio.picture_model, requests, list(zip(names, draw(studio.picture_model, requests, ops), strict=True))


def measure(model: PictureModel, requests: Sequence[PictureRequest], ops: Ops, runs: int) -> PictureFigures:
    """Return speed (the median of so many runs), memory, and the two proofs."""
    together, alone = [], []
    for _ in range(runs):
        start = time.perf_counter()
        batched = draw_latents(model, requests, ops)
        middle = time.perf_counter()
        one_by_one = [draw_latents(model, [request], ops)[0] for request in requests]
        together.append((middle - start) / len(requests))
        alone.append((time.perf_counter() - middle) / len(requests))
    alone_and_merged = [
        draw_latents(
            merged_picture_model(model, request.adapter, ops) if isinstance(request.adapter, Adapter) else model,
            [replace(request, adapter=None)],
            ops,
        )[0]
        for request in requests
    ]
    cache = AdapterCache(model, Precision(ops.precision, model.dtype), ops)
    styles = [request.adapter for request in requests if isinstance(request.adapter, Adapter)]
    seconds, sequential_seconds = statistics.median(together), statistics.median(alone)
    return PictureFigures(
        steps=requests[0].steps,
        seconds_per_picture=seconds,
        sequential_seconds_per_picture=sequential_seconds,
        speedup=sequential_seconds / seconds,
        base_bytes=model.nbytes,
        adapter_bytes={style.name: cache.slots.nbytes(cache.acquire(style)) for style in styles},
        merged_copies_bytes=len(styles) * model.nbytes,
        batched_vs_alone_max_abs=largest(batched, one_by_one),
        merged_vs_unmerged_max_abs=largest(batched, alone_and_merged),
    )


def lines_of(n: PictureFigures) -> list[tuple[str, str]]:
    """Return the figures as (heading, text)."""
    return [
        (
            f"one batch of {len(n.adapter_bytes) + 1} pictures",
            f"{n.seconds_per_picture:.2f} s a picture, {n.steps} steps; one after another "
            f"{n.sequential_seconds_per_picture:.2f} s: {n.speedup:.1f}x",
        ),
        ("memory", memory(n.base_bytes, n.adapter_bytes, n.merged_copies_bytes)),
        (
            "batched = alone",
            f"largest difference of any channel {n.batched_vs_alone_max_abs:.1e} (channels from -1 to 1; float32)",
        ),
        (
            "unmerged = merged",
            f"largest difference of any channel {n.merged_vs_unmerged_max_abs:.1e} (merged: B A added into W)",
        ),
    ]


def write_page(args: argparse.Namespace, scene: Scene, text_figures: Figures, figures: PictureFigures) -> None:
    """Write the page of --html, if it is asked for: the scene, and what was measured of both models."""
    if args.html:
        measured = [
            (f"Texts: {heading}", text)
            for heading, text in lines_of_texts(text_figures, [name for name, _ in scene.texts])
        ]
        measured += [(f"Pictures: {heading}", text) for heading, text in lines_of(figures)]
        picture_page.write(args.html, picture_page.page("One scene, its voices and its styles", [scene], measured))
