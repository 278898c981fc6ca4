"""A schedule: how many tokens of each request every step computes, of its prompt (prefill) or one by one (decode)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import LoracleError
from .canvas import FAINT, MARGIN, SIZE, SOLID, Box, Canvas, Diagram, at_most, colour, text_width
from .inputs import equal_lengths, whole_number
from .letters import NAME, shorten, table, titled, wrapped

HEIGHT = 26  # of a request's row


@dataclass(frozen=True)
class Cell:
    """What one step computes of one request."""

    tokens: int
    prefill: bool
    preempted: bool

    @property
    def words(self) -> str:
        """12p: prefill, 1: decode, x: preempted before it."""
        count = f"{self.tokens}{'p' if self.prefill else ''}" if self.tokens else ""
        return f"x{count}" if self.preempted else count


def gantt(
    steps: Mapping[str, Sequence[int]],
    prompts: Mapping[str, int] | None = None,
    title: str = "",
    budget: int | None = None,
    preempted: Mapping[str, Sequence[int]] | None = None,
) -> Diagram:
    """Return a row per request and a column per step, with the tokens that the step computes of it.

    steps: request -> tokens in every step, 0 where it waits. prompts: request -> tokens of its prompt: until they are
    computed it is prefill (dark, "p" in letters), then decode (pale); without prompts all is drawn pale. budget: the
    most tokens of a step (max_num_batched_tokens). preempted: request -> steps before which it lost its blocks, so that
    prompt and output are computed again.
    Marked with "!" and hatching: a step above its budget. LoracleError for rows of different lengths, negative counts,
    a prompt or a preemption of no request.
    """
    rows = {str(who): [whole_number(f"tokens of {who}", n, 0) for n in tokens] for who, tokens in steps.items()}
    count = equal_lengths(rows)
    for kind, names in (("prompt", prompts or {}), ("preemption", preempted or {})):
        for who in names:
            if who not in rows:
                raise LoracleError(f"there is a {kind} of {who}, and no request of that name")
    cells = {who: _cells(rows[who], (prompts or {}).get(who, 0), (preempted or {}).get(who, ())) for who in rows}
    totals = [sum(tokens[i] for tokens in rows.values()) for i in range(count)]
    limit = None if budget is None else whole_number("budget", budget, 0)
    notes = [] if limit is None else [
        f"step {i} computes {n} tokens, and the budget is {limit}" for i, n in enumerate(totals) if n > limit
    ]  # fmt: skip
    lines = _lines(cells, totals, limit, notes, prompts is not None)
    return Diagram(_svg(cells, totals, limit, notes, title), titled(title, lines))


def _cells(tokens: Sequence[int], prompt: int, preempted: Sequence[int]) -> list[Cell]:
    prompt = whole_number("a prompt's tokens", prompt, 0)
    steps = {whole_number("a step of a preemption", step, 0) for step in preempted}
    cells, computed, prefill = [], 0, prompt
    for i, n in enumerate(tokens):
        if i in steps:  # all of it again: the prompt, what was computed after it, and the token that came last
            prefill, computed = max(prefill, computed + 1 if computed >= prefill else 0), 0
        cells.append(Cell(n, computed < prefill, i in steps))
        computed += n
    return cells


def _lines(
    cells: Mapping[str, Sequence[Cell]], totals: Sequence[int], limit: int | None, notes: Sequence[str], prefill: bool
) -> list[str]:
    rows = [("step", [str(i) for i in range(len(totals))])]
    rows += [(who, [cell.words or "." for cell in row]) for who, row in cells.items()]
    sums = [("!" if limit is not None and n > limit else "") + str(n) for n in totals]
    lines = table([*rows, (_sum_name(limit), sums)] if cells else [])
    if prefill and cells:
        lines.append("p: of the prompt (prefill)   a number alone: decode   .: nothing")
    if any(cell.preempted for row in cells.values() for cell in row):
        lines.append("x: preempted, its blocks are computed again")
    for note in at_most(notes):
        lines += wrapped(f"! {note}")
    return lines


def _sum_name(limit: int | None) -> str:
    return "all" if limit is None else f"all, of {limit}"


def _svg(
    cells: Mapping[str, Sequence[Cell]], totals: Sequence[int], limit: int | None, notes: Sequence[str], title: str
) -> str:
    canvas = Canvas(title)
    if not cells:
        return canvas.svg()
    names = {who: shorten(who, NAME) for who in cells}
    begin = MARGIN + max(text_width(name, SIZE) for name in [*names.values(), _sum_name(limit), "step"]) + 12
    wide = max(30.0, *(text_width(f"! {n}", SIZE) + 8 for n in (*totals, len(totals))))
    top = canvas.height + 2
    canvas.text((MARGIN, top + 12), "step")
    for i in range(len(totals)):
        canvas.text((begin + (i + 0.5) * wide, top + 12), str(i), "middle")
    for j, (who, row) in enumerate(cells.items()):
        y = top + 20 + j * (HEIGHT + 4)
        canvas.text((MARGIN, y + 17), names[who])
        for i, cell in enumerate(row):
            box = Box(begin + i * wide + 1, y, wide - 2, HEIGHT)
            if cell.tokens:
                canvas.box(box, colour(j), SOLID if cell.prefill else FAINT / 2)
                canvas.label(box, str(cell.tokens))
            else:
                canvas.label(box, "·")
            if cell.preempted:
                canvas.path([(box.x - 1, y - 3), (box.x - 1, y + HEIGHT + 3)], thick=3)
    y = top + 24 + len(cells) * (HEIGHT + 4)
    canvas.text((MARGIN, y + 17), _sum_name(limit))
    for i, n in enumerate(totals):
        wrong = limit is not None and n > limit
        box = Box(begin + i * wide + 1, y, wide - 2, HEIGHT)
        canvas.box(box, wrong=wrong)
        canvas.label(box, f"{'! ' if wrong else ''}{n}")
    if any(cell.prefill for row in cells.values() for cell in row):
        canvas.legend([("prefill", colour(0), SOLID), ("decode", colour(0), FAINT / 2)])
    if any(cell.preempted for row in cells.values() for cell in row):
        canvas.text((MARGIN, canvas.height + 18), "thick line: preempted, its blocks are computed again")
    canvas.notes(notes)
    return canvas.svg()
