"""The flat batch: a column for each token of a step, coloured by the adapter that its request asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LoracleError
from .canvas import FAINT, MARGIN, SIZE, Box, Canvas, Diagram, at_most, colour, text_width
from .inputs import equal_lengths, parts, whole_number
from .letters import CELL, NAME, Span, shorten, table, titled, wrapped

UNIQUE = ("slot", "slots", "slot_mapping")  # two tokens in one KV slot overwrite each other
INDICES = ("position", "positions", *UNIQUE)  # never below 0
LINE_OF_TOKENS = 900  # pixels; the tokens that do not fit go on in another line
HEIGHT, BRACKET = 24, 30  # of a row, and of the requests' names above

Wrong = dict[tuple[str, int], str]  # (name of the row, column) -> what is wrong there


def flat_batch(
    columns: Mapping[str, Sequence[Any]],
    adapter_ids: Sequence[int],
    requests: Sequence[Span] = (),
    title: str = "",
    limits: Mapping[str, int] | None = None,
    expected: Mapping[str, Sequence[Any]] | None = None,
) -> Diagram:
    """Return a batch as a table: one column per token, one row per name, the requests as brackets above.

    columns: name -> one value per token (numbers, or the tokens' text). adapter_ids: of each token, -1 is none; they
    choose the colours. requests: (name, start, stop) of each, the half-open range of its tokens.
    limits: name of a row -> how many of it there are, for example {"slot": 64, "adapter_ids": 2}. expected: name of a
    row -> its right values, where the row shows somebody's answer.
    Marked with "!" and hatching: a value that is not the expected one, a number that is not below its limit, a negative
    position or slot, an adapter id below -1, two tokens in one KV slot. LoracleError for rows of different lengths, and
    requests outside of the batch.
    """
    values = {str(name): list(column) for name, column in columns.items()}
    count = equal_lengths({**values, "adapter_ids": adapter_ids} if values or len(adapter_ids) else {})
    ids = [whole_number(f"adapter_ids[{i}]", adapter_id) for i, adapter_id in enumerate(adapter_ids)]
    spans = _spans(requests, count)
    for kind, rows_of in (("a limit", limits or {}), ("an expected value", expected or {})):
        for name in rows_of:
            if name not in values:
                raise LoracleError(f"there is {kind} of {name}, and no row of that name")
    wrong = _wrong(values, limits or {}) | _unexpected(values, expected or {})
    notes = list(wrong.values())
    rows = [
        (name, [("!" if (name, i) in wrong else "") + str(value) for i, value in enumerate(column)])
        for name, column in values.items()
    ]
    empty = [f"{name} has no token in this batch" for name, start, stop in spans if start == stop]
    lines = table(rows, spans, "request") if rows else []
    for note in [*(f"! {note}" for note in at_most(notes)), *empty]:
        lines += wrapped(note)
    canvas = Canvas(title)
    _draw(canvas, rows, ids, spans, wrong)
    _legend(canvas, ids, empty)
    canvas.notes(notes)
    return Diagram(canvas.svg(), titled(title, lines))


def _spans(requests: Sequence[Span], count: int) -> list[Span]:
    spans, before = [], 0
    for i, request in enumerate(requests):
        name, start, stop = parts(f"request {i}", request, 3)
        start, stop = whole_number(f"start of {name}", start, 0), whole_number(f"stop of {name}", stop, 0)
        if not before <= start <= stop <= count:
            raise LoracleError(
                f"request {name}: tokens {start} to {stop} of a batch of {count}, after a request that ends at {before}"
            )
        spans.append((str(name), start, stop))
        before = stop
    return spans


def _wrong(values: Mapping[str, Sequence[Any]], limits: Mapping[str, int]) -> Wrong:
    """Return the numbers that cannot be right, whatever the batch is."""
    wrong: Wrong = {}
    for name, column in values.items():
        first: dict[Any, int] = {}
        least = -1 if name == "adapter_ids" else 0
        for i, value in enumerate(column):
            if not _is_number(value):
                continue
            if name in limits and not least <= value < limits[name]:
                wrong[name, i] = f"{name} {value} of token {i} is not within {least}..{limits[name] - 1}"
            elif value < least and name in (*INDICES, "adapter_ids"):
                wrong[name, i] = f"{name} {value} of token {i} is below {least}"
            elif name in UNIQUE and first.setdefault(value, i) != i:
                wrong[name, i] = f"{name} {value} is written by tokens {first[value]} and {i}"
    return wrong


def _unexpected(values: Mapping[str, Sequence[Any]], expected: Mapping[str, Sequence[Any]]) -> Wrong:
    """Return the values that are others than the expected ones."""
    wrong: Wrong = {}
    for name, column in expected.items():
        equal_lengths({name: values[name], f"expected {name}": column})
        for i, (value, right) in enumerate(zip(values[name], column, strict=True)):
            if value != right:
                wrong[name, i] = f"{name} of token {i} is {value}, expected {right}"
    return wrong


def _is_number(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _draw(
    canvas: Canvas, rows: Sequence[tuple[str, Sequence[str]]], ids: Sequence[int], spans: Sequence[Span], wrong: Wrong
) -> None:
    names = [shorten(name, NAME) for name, _ in rows]
    begin = MARGIN + max([0.0, *(text_width(name, SIZE) for name in names)]) + 12
    cells = [[shorten(cell, CELL) for cell in row] for _, row in rows]
    wide = max([30.0, *(text_width(cell, SIZE) + 10 for row in cells for cell in row)])
    wide = max([wide, *((text_width(name, SIZE) + 10) / (stop - start) for name, start, stop in spans if stop > start)])
    a_line = max(1, int((LINE_OF_TOKENS - begin) // wide))
    for first in range(0, max(1, len(ids)), a_line):
        last = min(first + a_line, len(ids))
        top = canvas.height + (4 if first == 0 else 16)
        for name, start, stop in spans:
            if max(start, first) < min(stop, last):
                ends = (begin + (max(start, first) - first) * wide + 3, begin + (min(stop, last) - first) * wide - 3)
                _bracket(canvas, ends, top, (start >= first, stop <= last), shorten(name, CELL))
        top += BRACKET if spans else 0
        for j, row in enumerate(cells):
            canvas.text((MARGIN, top + j * HEIGHT + 16), names[j])
            for i in range(first, last):
                box = Box(begin + (i - first) * wide, top + j * HEIGHT, wide, HEIGHT)
                canvas.box(box, colour(ids[i]), wrong=(rows[j][0], i) in wrong)
                canvas.label(box, row[i])


def _bracket(canvas: Canvas, ends: tuple[float, float], top: float, closed: tuple[bool, bool], name: str) -> None:
    """Draw a request's bracket; one that goes on in another line is open at that end."""
    start, stop = ends
    corners = [(start, top + 26)] * closed[0] + [(start, top + 19), (stop, top + 19)] + [(stop, top + 26)] * closed[1]
    canvas.path(corners)
    if text_width(name, SIZE) <= stop - start + 6:
        canvas.text(((start + stop) / 2, top + 14), name, "middle")


def _legend(canvas: Canvas, ids: Sequence[int], empty: Sequence[str]) -> None:
    canvas.legend((f"adapter {n}" if n >= 0 else "no adapter (-1)", colour(n), FAINT)
                  for n in sorted({max(n, -1) for n in ids}, key=lambda n: (n < 0, n)))  # fmt: skip
    for line in empty:
        canvas.text((MARGIN, canvas.height + 18), line)
