"""Contact sheets: what the model paints, above what the drawing program draws of the same scenes.

python -m refimpl.tiny.pictures.sheets --out docs/pictures

Needs Pillow.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from refimpl.arrays import Array, Int

from . import HERE
from .corpus import SHEET_SEED, draw_scenes
from .drawing.scene import draw
from .evaluate import paint
from .judge import ALL_STYLES

COLUMNS, ZOOM, GAP = 8, 3, 4  # pictures in a row; pixels a pixel; pixels between pictures
BACKGROUND = (30, 30, 34)

Rgb = Int[Array, "48 48 3"]
Rgbs = Sequence[Rgb] | Int[Array, "pictures 48 48 3"]


def sheet(rows: Sequence[Rgbs]) -> Int[Array, "height width 3"]:
    """Rows of pictures as one."""
    size = 48 * ZOOM + GAP
    out = np.full((len(rows) * size + GAP, len(rows[0]) * size + GAP, 3), BACKGROUND, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = GAP + i * size, GAP + j * size
            out[y : y + 48 * ZOOM, x : x + 48 * ZOOM] = np.asarray(picture).repeat(ZOOM, 0).repeat(ZOOM, 1)
    return out


def main() -> None:
    """Write a sheet of the base, of every style, and of a few scenes in all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--styles", nargs="+", choices=ALL_STYLES, default=list(ALL_STYLES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prompts, words = draw_scenes(SHEET_SEED, 2 * COLUMNS, from_held_out=True)
    by_style = paint(args.model, prompts, args.styles)
    args.out.mkdir(parents=True, exist_ok=True)
    for style, pictures in by_style.items():
        drawings = [ALL_STYLES[style](draw(scene_words, i)) for i, scene_words in enumerate(words)]
        halves = (slice(COLUMNS), slice(COLUMNS, None))
        save([part[half] for half in halves for part in (pictures, drawings)], args.out / f"{style}.png")
    if len(by_style) > 1:
        save([pictures[:COLUMNS] for pictures in by_style.values()], args.out / "one_scene_in_every_style.png")


def save(rows: Sequence[Rgbs], path: Path) -> None:
    """Write a sheet as a PNG."""
    Image.fromarray(sheet(rows)).save(path, optimize=True)


if __name__ == "__main__":
    main()
