"""The same drawing for a terminal: aligned columns of letters, at most 100 wide; what is longer goes on below."""

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

WIDTH = 100  # columns of a drawing in letters; more: it does not fit beside a line number in a lecture's terminal
CELL, NAME = 24, 20  # columns of the longest cell, and of the name of a row; what is longer is cut, and ends in ".."

Span = tuple[str, int, int]  # a name over the columns from start to stop


def printable(words: str) -> str:
    """Return the words in one line that can be written as XML: a line break as \\n, a control character as \\x07."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in str(words)
    )


def shorten(words: str, limit: int) -> str:
    """Return the words, printable, and cut to so many columns of a terminal; ".." stands for what was cut."""
    words = printable(words)
    return words if cell_len(words) <= limit else set_cell_size(words, limit - 2).rstrip() + ".."


def aligned(words: str, width: int, right: bool = False) -> str:
    """Return the words with spaces after (or before) them, so that they fill a column."""
    return " " * (width - cell_len(words)) + words if right else set_cell_size(words, width)


def titled(title: str, lines: Sequence[str]) -> str:
    """Return the title and the drawing below it; of an empty one, that it is empty."""
    return "\n".join([*_wrapped(title), *(lines if any(lines) else ["(empty)"])])


def wrapped(words: str) -> list[str]:
    """Return a line as several, the later ones indented, where it is too long."""
    return _wrapped(words, "    ") or [""]


def _wrapped(words: str, indent: str = "") -> list[str]:
    """Return lines of at most WIDTH columns. Of letters that fill two columns (Chinese), half as many surely fit."""
    words = printable(words)
    width = WIDTH if cell_len(words) <= len(words) else WIDTH // 2
    return textwrap.wrap(words, width, subsequent_indent=indent)


def table(rows: Sequence[tuple[str, Sequence[str]]], spans: Sequence[Span] = (), span_name: str = "") -> list[str]:
    """Return lines: of each row its name and its cells, every column as wide as its widest cell.

    spans: what stands over several columns, [name---], in a line of its own above the rows."""
    rows = [(shorten(name, NAME), [shorten(cell, CELL) for cell in cells]) for name, cells in rows]
    spans = [(shorten(name, CELL), start, stop) for name, start, stop in spans if stop > start]
    beside = max([cell_len(name) for name, _ in rows] + [cell_len(span_name)], default=0)
    count = len(rows[0][1]) if rows else 0
    widths = [max([1, *(cell_len(cells[i]) for _, cells in rows)]) for i in range(count)]
    for name, start, stop in spans:
        lack = max(0, cell_len(name) + 2 - _width(widths[start:stop]))
        for i in range(start, stop):
            widths[i] += lack // (stop - start) + (i - start >= stop - start - lack % (stop - start))
    lines: list[str] = []
    for start, stop in _pieces(widths, WIDTH - beside):
        if lines:
            lines.append("")
        if spans:
            lines.append((aligned(span_name, beside) + _brackets(spans, widths, start, stop)).rstrip())
        for name, cells in rows:
            body = "".join("  " + aligned(cells[i], widths[i], right=True) for i in range(start, stop))
            lines.append((aligned(name, beside) + body).rstrip())
    return lines


def _width(widths: Sequence[int]) -> int:
    """Return the columns of neighbouring cells, two spaces between them."""
    return sum(widths) + 2 * (len(widths) - 1)


def _pieces(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Return ranges of columns, each as long as fits into the room."""
    pieces, start = [], 0
    for i in range(len(widths)):
        if sum(widths[start : i + 1]) + 2 * (i + 1 - start) > room and i > start:
            pieces.append((start, i))
            start = i
    return [*pieces, (start, len(widths))]


def _brackets(spans: Sequence[Span], widths: Sequence[int], start: int, stop: int) -> str:
    """Return the line of names over the columns from start to stop; one that goes on is open at that end."""
    line, i = "", start
    while i < stop:
        span = next((span for span in spans if span[1] <= i < span[2]), None)
        if span is None:
            line += "  " + " " * widths[i]
            i += 1
            continue
        end = min(span[2], stop)
        width = _width(widths[i:end])
        name = shorten(span[0], max(3, width - 2))
        name = name if cell_len(name) <= width - 2 else ""  # a narrow piece has only ends
        opening, closing = "[" if span[1] == i else "-", "]" if span[2] == end else "-"
        line += "  " + (opening + name + "-" * (width - 2 - cell_len(name)) + closing)[-width:]
        i = end
    return line
