"""The pool of KV blocks: whose each is, and in which order a request's positions go through them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .canvas import MARGIN, SIZE, Box, Canvas, Diagram, at_most, colour, text_width
from .inputs import whole_number
from .letters import NAME, aligned, shorten, table, titled, wrapped

WIDE, HIGH, LANE = 38, 34, 34  # of a block, and of the lane of one request's arrows
FREE = 5  # of more free blocks than these in a row, only the first and the last are drawn


def block_pool(num_blocks: int, owners: Mapping[str, Sequence[int]], title: str = "", shared: bool = False) -> Diagram:
    """Return the pool of blocks, each in its owner's colour, and below it a lane per request: its blocks in the order
    of their positions, an arrow from each to the next.

    num_blocks: of the pool. owners: request -> its block table. shared: a block with several owners is right (a prefix
    that was found). Marked with "!" and hatching: a block with several owners, one twice in a table, one that is not
    in the pool. LoracleError for a negative num_blocks, or a block that is no whole number.
    """
    num_blocks = whole_number("num_blocks", num_blocks, 0)
    tables = {
        str(who): [whole_number(f"block table of {who}", block) for block in blocks] for who, blocks in owners.items()
    }
    users: dict[int, list[str]] = {}
    for who, blocks in tables.items():
        for block in blocks:
            users.setdefault(block, []).append(who)
    wrong = _wrong_blocks(num_blocks, users, shared)
    notes = [wrong[block] for block in sorted(wrong)]
    columns = _columns(num_blocks, users)
    cells = [("…" if block is None else ("!" if block in wrong else "") + str(block)) for block in columns]
    whose = ["" if block is None else "+".join(dict.fromkeys(users.get(block, ()))) or "." for block in columns]
    lines = table([("block", cells), ("owner", whose)]) if columns else []
    beside = max([0, *(len(shorten(who, NAME)) for who in tables)])
    for who, blocks in tables.items():
        chain = " -> ".join(("!" if block in wrong else "") + str(block) for block in blocks)
        lines += wrapped(f"{aligned(shorten(who, NAME), beside)}  {chain}".rstrip())
    for note in at_most(notes):
        lines += wrapped(f"! {note}")
    return Diagram(_pool_svg(columns, tables, users, wrong, title), titled(title, lines))


def _wrong_blocks(num_blocks: int, users: Mapping[int, Sequence[str]], shared: bool) -> dict[int, str]:
    wrong = {}
    for block, names in users.items():
        distinct = list(dict.fromkeys(names))
        if not 0 <= block < num_blocks:
            wrong[block] = f"block {block} of {distinct[0]} is not within 0..{num_blocks - 1}"
        elif len(distinct) > 1 and not shared:
            wrong[block] = f"block {block} belongs to {' and '.join(distinct)}"
        elif len(distinct) < len(names) and not shared:
            wrong[block] = f"block {block} is {names.count(distinct[0])} times in the table of {distinct[0]}"
    return wrong


def _columns(num_blocks: int, users: Mapping[int, Sequence[str]]) -> list[int | None]:
    """Return the blocks in order; None where free ones are left out."""
    columns: list[int | None] = [block for block in sorted(users) if block < 0]
    begin = 0
    for block in [*(block for block in sorted(users) if 0 <= block < num_blocks), num_blocks]:
        free = range(begin, block)
        columns += [free[0], None, free[-1]] if len(free) > FREE else free
        columns += [block] if block < num_blocks else []
        begin = block + 1
    return columns + [block for block in sorted(users) if block >= num_blocks]


def _pool_svg(
    columns: Sequence[int | None],
    tables: Mapping[str, Sequence[int]],
    users: Mapping[int, Sequence[str]],
    wrong: Mapping[int, str],
    title: str,
) -> str:
    canvas = Canvas(title)
    if not columns and not tables:
        return canvas.svg()
    names = {who: shorten(who, NAME) for who in tables}
    colours = {who: colour(i) for i, who in enumerate(tables)}
    begin = MARGIN + max([text_width("block", SIZE), *(text_width(name, SIZE) for name in names.values())]) + 12
    top = canvas.height + 4
    canvas.text((MARGIN, top + 21), "block")
    middles = {}
    for i, block in enumerate(columns):
        box = Box(begin + i * (WIDE + 4), top, WIDE, HIGH)
        if block is None:
            canvas.label(box, "…")
            continue
        middles[block] = box.middle[0]
        distinct = list(dict.fromkeys(users.get(block, ())))
        for n, who in enumerate(distinct):
            part = WIDE / len(distinct)
            canvas.fill(Box(box.x + n * part, top, part, HIGH), colours[who])
        canvas.box(box, wrong=block in wrong)
        canvas.label(box, ("!" if block in wrong else "") + str(block))
    for j, (who, blocks) in enumerate(tables.items()):
        _lane(canvas, names[who], colours[who], [middles[block] for block in blocks], top + HIGH + 8 + j * LANE)
    canvas.notes([wrong[block] for block in sorted(wrong)])
    return canvas.svg()


def _lane(canvas: Canvas, name: str, fill: str, stops: Sequence[float], top: float) -> None:
    """Draw one request's blocks as dots below the pool; arrows to the right run above the dots, to the left below."""
    middle = top + LANE / 2
    canvas.text((MARGIN, middle + 4), name)
    for x in stops:
        canvas.dot((x, middle), 4.5, fill)
    for before, x in pairwise(stops):
        side = -1 if x > before else 1
        lift = middle + side * 12
        start, stop = before - 4 * side, x + 4 * side
        canvas.arrow([(start, middle + side * 5), (start, lift), (stop, lift), (stop, middle + side * 6)])
