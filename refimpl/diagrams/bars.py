"""Bars: sizes side by side, or as the parts of one."""

from collections.abc import Sequence

from .canvas import COLOURS, GREY, LINE, MARGIN, SIZE, Box, Canvas, Diagram, text_width
from .inputs import parts, positive_number
from .letters import CELL, WIDTH, aligned, cell_len, shorten, titled

LONGEST, HIGH = 440, 20  # pixels of the longest bar, and its height
WITH_PREFIX = ("B", "B/s", "flop", "flop/s", "s", "tokens/s")  # units that are written as kB, MB, ...
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))

Item = tuple[str, float]


def bars(items: Sequence[Item], unit: str = "", title: str = "", stacked: bool = False) -> Diagram:
    """Return a bar for each (name, size), to one scale from 0; stacked: the parts of one bar, with their shares.

    unit: of the sizes; bytes are written as kB, MB, GB (powers of 1000). LoracleError for a size that is negative,
    infinite or NaN.
    """
    pairs = [parts(f"bar {i}", item, 2) for i, item in enumerate(items)]
    sizes = [(shorten(name, CELL), positive_number(f"size of {name}", size)) for name, size in pairs]
    if stacked:
        return _stacked(sizes, unit, title)
    longest = max([size for _, size in sizes], default=0.0) or 1.0
    beside = max([0, *(cell_len(name) for name, _ in sizes)])
    amounts = [amount(size, unit) for _, size in sizes]
    room = WIDTH - beside - 4 - max([0, *map(len, amounts)])
    lines = []
    for (name, size), words in zip(sizes, amounts, strict=True):
        row = "#" * _letters(size / longest, room)
        lines.append("  ".join([aligned(name, beside), *([row] if row else []), words]))
    canvas = Canvas(title)
    begin = MARGIN + max([0.0, *(text_width(name, SIZE) for name, _ in sizes)]) + 10
    y = canvas.height + 2
    for (name, size), words in zip(sizes, amounts, strict=True):
        wide = size / longest * LONGEST
        canvas.text((MARGIN, y + 14), name)
        canvas.box(Box(begin, y, wide, HIGH), COLOURS[0])
        canvas.text((begin + wide + 8, y + 14), words)
        y += HIGH + 8
    return Diagram(canvas.svg(), titled(title, lines))


def _stacked(sizes: Sequence[Item], unit: str, title: str) -> Diagram:
    """Return one bar of all parts in their order, each with its letter, size and share of the whole."""
    total = sum(size for _, size in sizes) or 1.0
    key = [
        (_letter(i), name, f"{amount(size, unit)}, {100 * size / total:.3g} %") for i, (name, size) in enumerate(sizes)
    ]
    beside = max([0, *(cell_len(name) for _, name, _ in key)])
    text = "".join(
        letter * round(size / total * (WIDTH - 2)) for (letter, _, _), (_, size) in zip(key, sizes, strict=True)
    )
    lines = [f"[{text[: WIDTH - 2]}]"] if sizes else []
    lines += [f"{letter} {aligned(name, beside)}  {words}" for letter, name, words in key]
    canvas = Canvas(title)
    x, y = float(MARGIN), canvas.height + 2
    for i, (_, size) in enumerate(sizes):
        box = Box(x, y, size / total * (LONGEST + 160), HIGH + 8)
        canvas.box(box, _fill(i))
        if box.width > 16:
            canvas.label(box, key[i][0])
        x += box.width
    y += HIGH + 16
    for i, (letter, name, words) in enumerate(key):
        canvas.box(Box(MARGIN, y + 2, 12, 12), _fill(i))
        canvas.text((MARGIN + 20, y + 12.5), f"{letter}  {name}: {words}")
        y += LINE
    return Diagram(canvas.svg(), titled(title, lines))


def amount(size: float, unit: str) -> str:
    """Return a size with its unit, three or four digits long: 11.5 MB, 42 tokens, 0.8 %."""
    if unit not in WITH_PREFIX or size == 0:
        return f"{size:,.4g} {unit}".rstrip() if size < 1e4 else f"{size:,.0f} {unit}".rstrip()
    factor, prefix = next(((factor, prefix) for factor, prefix in PREFIXES if size >= factor * 0.99995), PREFIXES[-1])
    return f"{size / factor:.4g} {prefix}{unit}"


def _letters(share: float, room: int) -> int:
    """Return how many letters a share is; what is not nothing has one."""
    return max(1, round(share * room)) if share > 0 else 0


def _letter(i: int) -> str:
    return chr(ord("a") + i % 26)


def _fill(i: int) -> str:
    """The first part is grey, as the base model is everywhere."""
    return COLOURS[(i - 1) % len(COLOURS)] if i else GREY
