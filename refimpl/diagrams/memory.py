"""Forms of one memory below each other: what keys, values and adapters take of it, what is free, what is wasted."""

from collections.abc import Sequence

from .bars import LONGEST, amount
from .canvas import COLOURS, FAINT, GREY, LINE, MARGIN, SIZE, Box, Canvas, Diagram, text_width
from .inputs import parts, positive_number
from .letters import CELL, WIDTH, aligned, cell_len, shorten, titled

HIGH = 26  # pixels of a bar
# What a bar is made of, in its order: words, letter, colour. Free is an empty box, wasted a hatched one.
PARTS = (
    ("KV", "k", GREY),
    ("adapters", "a", COLOURS[0]),
    ("wasted", "#", "none"),
    ("free", ".", "none"),
)


def memory_bars(forms: Sequence[tuple[str, float, float, float, float]], title: str = "") -> Diagram:
    """Return a bar for each (name, keys and values, adapters, wasted, free), in bytes, to one scale from 0; below it
    the sizes.

    LoracleError for a size that is negative, infinite or NaN."""
    rows: list[tuple[str, list[float]]] = []
    for i, form in enumerate(forms):
        name, *sizes = parts(f"form {i}", form, 1 + len(PARTS))
        words = [f"{part} of {name}" for part, _, _ in PARTS]
        rows.append((shorten(name, CELL), [positive_number(*pair) for pair in zip(words, sizes, strict=True)]))
    longest = max((sum(sizes) for _, sizes in rows), default=0.0) or 1.0
    return Diagram(_svg(rows, longest, title), titled(title, _letters(rows, longest)))


def _letters(rows: Sequence[tuple[str, Sequence[float]]], longest: float) -> list[str]:
    beside = max([0, *(cell_len(name) for name, _ in rows)])
    lines = []
    for name, sizes in rows:
        edges = [round(sum(sizes[:i]) / longest * (WIDTH - beside - 4)) for i in range(len(sizes) + 1)]
        bar = "".join(
            letter * (stop - start) for (_, letter, _), start, stop in zip(PARTS, edges, edges[1:], strict=False)
        )
        lines.append(f"{aligned(name, beside)}  [{bar}]")
        lines.append(f"{' ' * beside}  {_words(sizes)}")
    return lines + (["  ".join(f"{letter} {part}" for part, letter, _ in PARTS)] if rows else [])


def _svg(rows: Sequence[tuple[str, Sequence[float]]], longest: float, title: str) -> str:
    canvas = Canvas(title)
    begin = MARGIN + max([0.0, *(text_width(name, SIZE) for name, _ in rows)]) + 10
    y = canvas.height + 2
    for name, sizes in rows:
        canvas.text((MARGIN, y + 17), name)
        x = begin
        for (part, _, fill), size in zip(PARTS, sizes, strict=True):
            box = Box(x, y, size / longest * LONGEST, HIGH)
            if size:
                canvas.box(box, fill, wrong=part == "wasted", dashed=part == "free")
            x += box.width
        canvas.text((begin, y + HIGH + 14), _words(sizes))
        y += HIGH + LINE + 8
    if rows:
        _key(canvas, y)
    return canvas.svg()


def _key(canvas: Canvas, y: float) -> None:
    """Write what the four kinds of boxes are."""
    x = float(MARGIN)
    for part, _, fill in PARTS:
        canvas.box(Box(x, y + 2, 12, 12), fill, FAINT, dashed=part == "free", wrong=part == "wasted")
        canvas.text((x + 20, y + 12.5), part)
        x += 20 + text_width(part, SIZE) + 14


def _words(sizes: Sequence[float]) -> str:
    return ", ".join(f"{part} {amount(size, 'B')}" for (part, _, _), size in zip(PARTS, sizes, strict=True))
