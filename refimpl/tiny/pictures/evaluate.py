"""Measure the embedded picture model: does a picture show its prompt, in its adapter's style?

python -m refimpl.tiny.pictures.evaluate                 base and styles, 100 pictures each
python -m refimpl.tiny.pictures.evaluate --set fresh     on prompts that were looked at only once, when all was done
python -m refimpl.tiny.pictures.evaluate --write         put the figures into quality.json

Every prompt has a pair of place and character that is in no training picture, and a seed of its own for its noise.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from refimpl import load_model
from refimpl.arrays import Array, Int
from refimpl.pictures import PictureRequest, draw, load_picture_adapter, load_picture_model, read_captions
from refimpl.tiny import base_path

from . import HERE
from .corpus import FRESH_SEED, UNSEEN_SEED, draw_scenes
from .judge import ALL_STYLES, CHOICES, CONTENT, Verdict, judge

PROMPT_SEEDS = {"tuned": UNSEEN_SEED, "fresh": FRESH_SEED}
STEPS = 12  # of the sampler
SCENES_AT_ONCE = 4  # in one batch, each in every style

Rgb = Int[Array, "48 48 3"]

Row = dict[str, float]


def paint(folder: Path, prompts: Sequence[str], styles: Sequence[str], steps: int = STEPS) -> dict[str, list[Rgb]]:
    """A picture of every prompt in every style, from the same noise; all styles of a scene are in one batch."""
    model = load_picture_model(folder / "base")
    adapters = {style: load_picture_adapter(folder / style, model.config) for style in styles if style != "base"}
    captions = read_captions(load_model(base_path()), prompts)
    pictures: dict[str, list[Rgb]] = {style: [] for style in styles}
    for start in range(0, len(prompts), SCENES_AT_ONCE):
        batch = [(style, i) for i in range(len(prompts))[start : start + SCENES_AT_ONCE] for style in styles]
        requests = [PictureRequest(captions[i], adapters.get(style), seed=i, steps=steps) for style, i in batch]
        for (style, _), rgb in zip(batch, draw(model, requests), strict=True):
            pictures[style].append(rgb)
    return pictures


def figures(verdicts: Sequence[Verdict]) -> Row:
    """Shares of the pictures, and the mean distance to the nearest drawing of the right scene."""
    row: Row = {"pictures": len(verdicts)}
    row |= {word: share(verdicts, word) for word in (*CONTENT, "style")}
    row["content (all three)"] = share(verdicts, *CONTENT)
    row |= {word: share(verdicts, word) for word in CHOICES if word not in CONTENT}
    row["rms distance"] = round(float(np.mean([verdict.distance for verdict in verdicts])), 1)
    return row


def share(verdicts: Sequence[Verdict], *words: str) -> float:
    """The share of the pictures that show all these words."""
    return round(sum(verdict.right(*words) for verdict in verdicts) / len(verdicts), 4)


def mistakes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One line for every picture that shows something else."""
    for i, verdict in enumerate(verdicts):
        wrong = [word for word in (*CONTENT, "style") if not verdict.right(word)]
        if wrong:
            yield f"picture {i}: " + ", ".join(f"{verdict.shown[word]} for {verdict.expected[word]}" for word in wrong)


def table(rows: dict[str, Row]) -> str:
    """A column for every style, in Markdown."""
    lines = ["| | " + " | ".join(rows) + " |", "|---|" + "---:|" * len(rows)]
    for name in next(iter(rows.values())):
        values = (row[name] for row in rows.values())
        cells = (f"{value:g}" if name in ("pictures", "rms distance") else f"{value:.1%}" for value in values)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a table, and every mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--styles", nargs="+", choices=ALL_STYLES, default=list(ALL_STYLES))
    parser.add_argument("--set", choices=PROMPT_SEEDS, default="tuned")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.count < 1 or args.steps < 1:
        parser.error(f"--count {args.count} and --steps {args.steps} must be 1 or more")
    prompts, words = draw_scenes(PROMPT_SEEDS[args.set], args.count, from_held_out=True)
    began, rows = time.process_time(), {}
    pictures = paint(args.model, prompts, args.styles, args.steps)
    seconds = (time.process_time() - began) / (len(prompts) * len(args.styles))
    for style in args.styles:
        verdicts = [judge(rgb, scene, style) for rgb, scene in zip(pictures[style], words, strict=True)]
        rows[style] = figures(verdicts)
        print(f"{style}\n" + "\n".join(mistakes(verdicts)), flush=True)
    print(f"\n{table(rows)}\n\n{seconds:.2f} CPU seconds a picture")
    if args.write:
        path = HERE / "quality.json"
        quality = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(quality | {args.set: quality.get(args.set, {}) | rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
