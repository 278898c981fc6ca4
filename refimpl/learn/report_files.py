"""The report on a class as a page and as a table. Whatever a learner named or wrote is escaped in both."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from .report import Report, passed_counts
from .units import short_name

SIGNS: Mapping[str, str] = {  # in a cell, for the eye; beside them every cell has its words
    "passed": "✓",
    "wrong": "✗",
    "raises": "!",
    "too slow": "∞",
    "does not run": "∅",
    "not attempted": "·",
    "no file": "–",
}
COLUMNS = ("who", "unit", "outcome", "mistake", "says", "tries", "hints")
FORMULA = tuple("=+-@|%\t\r\n＝＋－＠")  # what some spreadsheet computes when a cell begins with it


def as_csv(report: Report) -> str:
    """Return one line for each learner and unit, in RFC 4180's form; no cell is a formula to a spreadsheet."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for row in report.rows:
        writer.writerow([plain(getattr(row, column)) for column in COLUMNS])
    return stream.getvalue()


def plain(value: object) -> object:
    """Return a text with an apostrophe before it where a spreadsheet would compute it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA) else value


def as_html(report: Report) -> str:
    """Return one page that stands alone: no script, and nothing is loaded from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["short_name"] = short_name
    return env.get_template("report.html.j2").render(report=report, signs=SIGNS, passed=passed_counts(report.rows))
