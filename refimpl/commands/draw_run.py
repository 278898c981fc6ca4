"""What loracle draw does: check everything, run a batch of texts and a batch of pictures, then write or show them."""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from .. import tiny
from ..errors import RequestError
from ..formats.files import new_folder
from ..loading.diagnostics import shown
from ..pictures import draw
from ..request import check_whole
from ..streaming import generate
from . import picture_page
from .common import BASE, default_device
from .picture_output import can_show, import_pillow, png, show_pictures
from .scenes import Scene, check_page, foreign, grouped, open_studio, picture_backend, picture_requests, text_requests

INDEX = "draw.json"  # in --out: which file is what


def run(args: argparse.Namespace) -> int:
    """Return 0. LoracleError for whatever cannot be drawn, before anything is; --out appears when it is complete."""
    console = Console()
    check_arguments(args)
    with new_folder(args.out) if args.out else nullcontext() as folder:
        scenes, seconds = scenes_of(args, visible=not args.json and can_show(console))
        rows = [*described(scenes, args)]
        result = {
            "seed": args.seed,
            "steps": args.steps,
            "seconds": seconds,
            "pictures": [row for row, _ in rows if "text" not in row],
            "texts": [row for row, _ in rows if "text" in row],
        }
        if folder is not None:
            for row, content in rows:
                (folder / row["file"]).write_bytes(content)
            (folder / INDEX).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        if args.html:
            picture_page.write(args.html, picture_page.page("Scenes", scenes))
    if args.json:
        print(json.dumps(result))
    else:
        present(console, args, scenes, seconds)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """RequestError for a command line that draws nothing, or more than anybody waits for."""
    if not args.prompt:
        raise RequestError(f"nothing to draw: give --prompt TEXT, for instance {tiny.DEMO_PROMPTS[0].strip()!r}")
    for prompt in args.prompt:
        if not prompt.strip():
            raise RequestError("--prompt is empty: say what to draw")
    check_whole("--zoom", args.zoom, 1)
    for option, value, most in (("--zoom", args.zoom, 64), ("--steps", args.steps, 1000)):
        if value > most:
            raise RequestError(f"{option} {value}: at most {most}")


def check_output(args: argparse.Namespace, visible: bool) -> None:
    """RequestError for pictures that nobody would see, or that cannot be written; visible: a terminal shows them."""
    if not (args.out or args.html or visible):
        raise RequestError("nobody would see the pictures: give --out DIR or --html FILE (a wide terminal shows them)")
    check_page(args.html)
    if args.out or args.html:
        import_pillow()


def scenes_of(args: argparse.Namespace, visible: bool) -> tuple[list[Scene], float]:
    """Return the scene of every prompt, and how many seconds its pictures took, all of them in one batch."""
    studio, ops = (
        open_studio(args.base, args.adapter, args.device or default_device(args.ops)),
        picture_backend(args.ops),
    )
    styles = args.style or [BASE]
    requests = picture_requests(studio, args.prompt, styles, ops, args.seed, args.steps)
    asks = text_requests(studio, args.prompt, args.voice, args)
    check_output(args, visible)  # behind what is wrong with the requests: that is the user's to mend first
    for prompt in args.prompt:
        if foreign(prompt):
            print(f"loracle draw: warning: {warning(prompt)}", file=sys.stderr)
    texts = [output.text for output in generate(studio.text_model, asks, ops=ops)] if asks else []
    began = time.perf_counter()
    pictures = draw(studio.picture_model, requests, ops)
    seconds = time.perf_counter() - began
    return grouped(args.prompt, args.voice, texts, styles, pictures), seconds


def warning(prompt: str) -> str:
    """Return what is said of a prompt that the models have not learnt to read: it is drawn, as well as it can be."""
    return (
        f"--prompt {shown(prompt)} is not of the one form that the embedded models know, so expect little of it; "
        f"it is: {tiny.DEMO_PROMPTS[0].strip()}"
    )


def described(scenes: Sequence[Scene], args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield what JSON says of every picture and text, and what its file in --out holds."""
    pictures = [(scene.prompt, *picture) for scene in scenes for picture in scene.pictures]
    for i, (prompt, style, pixels) in enumerate(pictures, 1):
        row: dict[str, Any] = {"adapter": style, "prompt": prompt}
        if not args.out:
            yield row, b""
            continue
        about = {"prompt": prompt, "adapter": style, "seed": str(args.seed), "steps": str(args.steps)}
        yield row | {"file": f"{i:02}_{file_name(style)}.png"}, png(pixels, args.zoom, about)
    texts = [(scene.prompt, *text) for scene in scenes for text in scene.texts]
    for i, (prompt, voice, text) in enumerate(texts, 1):
        row = {"adapter": voice, "prompt": prompt, "text": text}
        yield (
            row | ({"file": f"{i:02}_{file_name(voice)}.txt"} if args.out else {}),
            f"{prompt.strip()}\n{text}".encode(),
        )


def file_name(adapter: str) -> str:
    """Return ink-0.7+night-0.3 for ink*0.7+night*0.3: a name on every file system."""
    return re.sub(r"[^\w.+-]+", "-", adapter)[:64]


def present(console: Console, args: argparse.Namespace, scenes: Sequence[Scene], seconds: float) -> None:
    """Print stories and pictures, for people."""
    count = sum(len(scene.pictures) for scene in scenes)
    for scene in scenes:
        console.print(Text(scene.prompt.strip(), style="bold"))
        for voice, text in scene.texts:
            console.print(Rule(Text(voice), align="left"))
            console.print(Text(text.rstrip()))
        if can_show(console):
            show_pictures(console, scene.pictures)
    places = [str(place) for place in (args.out, args.html) if place]
    where = f"; written to {' and '.join(places)}" if places else ""
    console.print(
        f"{count} {'picture' if count == 1 else 'pictures in one batch'}, {args.steps} steps: {seconds:.1f} s{where}",
        highlight=False,
        markup=False,
    )
