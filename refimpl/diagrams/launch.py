"""A kernel's launch: the grid of its blocks, what each of them does, and the warps of one."""

from collections.abc import Mapping

from ..errors import LoracleError
from .canvas import COLOURS, GREY, MARGIN, SIZE, Box, Canvas, Diagram, colour, text_width
from .inputs import parts, whole_number
from .letters import CELL, shorten, table, titled

COLUMNS, ROWS = 8, 8  # of the grid that are drawn; of a larger one the last is drawn after a gap
WARP = 32  # threads

Position = tuple[int, int]  # blockIdx.x, blockIdx.y


def launch_grid(
    blocks: Position,
    threads: int,
    labels: Mapping[Position, str] | None = None,
    title: str = "",
    adapter_ids: Mapping[Position, int] | None = None,
) -> Diagram:
    """Return the grid of a launch, blockIdx.x to the right and blockIdx.y down, and the threads of one block in warps.

    blocks: (x, y), gridDim. threads: of a block, blockDim.x. labels: (x, y) -> what this block does. adapter_ids:
    (x, y) -> whose it is: -1 is grey, as are blocks without one. LoracleError for a block that is not in the grid.
    """
    x, y = parts("the grid", blocks, 2)
    size = whole_number("blocks in x", x, 0), whole_number("blocks in y", y, 0)
    threads = whole_number("threads", threads, 1)
    words = {_inside(at, size): str(label) for at, label in (labels or {}).items()}
    whose = {_inside(at, size): whole_number("an adapter id", n, -1) for at, n in (adapter_ids or {}).items()}
    across, down = _shown(size[0], COLUMNS), _shown(size[1], ROWS)
    warps = -(-threads // WARP)
    caption = f"grid ({size[0]}, {size[1]}), threads per block: {threads}, warps of {WARP}: {warps}"
    if threads % WARP:
        caption += f", threads in the last: {threads % WARP}"
    rows = [("block", ["…" if x is None else f"x={x}" for x in across])]
    rows += [("…" if y is None else f"y={y}", [_words(words, x, y) for x in across]) for y in down]
    lines = [caption, *(table(rows) if across and down else [])]
    canvas = Canvas(title)
    canvas.text((MARGIN, canvas.height + 12), caption)
    _draw(canvas, across, down, words, whose)
    _draw_threads(canvas, threads)
    return Diagram(canvas.svg(), titled(title, lines))


def _inside(at: Position, size: Position) -> Position:
    x, y = (whole_number("a block's index", index) for index in parts("a block", at, 2))
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise LoracleError(f"block ({x}, {y}) is not in the grid ({size[0]}, {size[1]})")
    return x, y


def _shown(count: int, limit: int) -> list[int | None]:
    """Return the numbers up to the count; of many the first, None for those left out, and the last."""
    return list(range(count)) if count <= limit else [*range(limit - 2), None, count - 1]


def _words(words: Mapping[Position, str], x: int | None, y: int | None) -> str:
    return "…" if x is None or y is None else shorten(words.get((x, y), "."), CELL)


def _draw(
    canvas: Canvas,
    across: list[int | None],
    down: list[int | None],
    words: Mapping[Position, str],
    whose: Mapping[Position, int],
) -> None:
    labels = {at: shorten(label, CELL) for at, label in words.items() if at[0] in across and at[1] in down}
    wide, high = max([46.0, *(text_width(label, SIZE) + 12 for label in labels.values())]), 30
    begin, top = MARGIN + 50, canvas.height + 26
    for i, x in enumerate(across):
        canvas.text((begin + (i + 0.5) * (wide + 4), top - 6), "…" if x is None else f"x={x}", "middle")
    for j, y in enumerate(down):
        canvas.text((MARGIN, top + j * (high + 4) + 19), "…" if y is None else f"y={y}")
        for i, x in enumerate(across):
            box = Box(begin + i * (wide + 4), top + j * (high + 4), wide, high)
            if x is None or y is None:
                canvas.label(box, "…")
                continue
            fill = colour(whose[x, y]) if (x, y) in whose else GREY if whose or (x, y) not in labels else COLOURS[0]
            canvas.box(box, fill)
            canvas.label(box, labels.get((x, y), ""))


def _draw_threads(canvas: Canvas, threads: int) -> None:
    """Draw one block's threads as strokes, a line of them per warp; of more than 8 warps the first 8."""
    top = canvas.height + 12
    warps = -(-threads // WARP)
    for warp in range(min(warps, 8)):
        count = min(WARP, threads - warp * WARP)
        canvas.text((MARGIN, top + warp * 16 + 12), f"warp {warp}")
        for i in range(count):
            canvas.box(Box(MARGIN + 64 + i * 9, top + warp * 16 + 3, 6, 10), COLOURS[0])
    if warps > 8:
        canvas.text((MARGIN, canvas.height + 18), f"and {warps - 8} more")
