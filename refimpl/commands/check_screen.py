"""What `loracle check` prints: each thing as it becomes known, and the verdict with everything behind it at the end."""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..engines import registry
from ..engines.ours import OURS, YOURS
from ..loading.diagnostics import one_line
from ..oracle.bugs import CLASSES, all_mutants
from ..oracle.diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from ..oracle.noise.verdict import Thresholds
from ..oracle.observer import Observer
from ..oracle.reports.report import times
from ..oracle.reports.result import PlayedCase, worst_row
from ..oracle.reports.tokens_in_words import by_request, in_words, which_request
from ..tools.units import human_bytes

COLOURS = {"pass": "green", "fail": "bold red", "undecided": "yellow"}
SILENCE = 10.0  # seconds, after which it is said what a cause is looked for in
REQUESTS, PIECES = 3, 4  # whose tokens are printed, and pieces of each; the page has more, the JSON all
SYMPTOMS = 8  # that are printed; the JSON has all


class Screen(Observer):
    """Prints what is known, when it is: beside bars in a terminal; in a file or a pipe, a line for each stage."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.tasks: dict[str, Any] = {}
        self.began = self.said = time.monotonic()
        self.base = ""  # of several, the one that is asked about

    def __enter__(self) -> "Screen":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def begin(self, base: str) -> None:
        self.base = f"{base}: "

    def advance(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total)
            if not self.console.is_terminal:
                self.say(f"{what} ...")
        self.bars.update(self.tasks[what], completed=done, total=total)

    def be_far_off(self, case: str, ratio: float) -> None:
        self.say(f"{self.base}{case} is {times(ratio)} off; the others are asked and measured")

    def judge(self, played: Sequence[PlayedCase], thresholds: Thresholds) -> None:
        failed = sum(one.verdict == "fail" for one in played)
        worst = worst_row(played)
        numbers = (worst.ratio, thresholds.ratio, worst.limit) if worst else (0.0, thresholds.ratio, math.nan)
        count = f"{failed} of {len(played)} cases fail" if failed else f"none of {len(played)} cases fails"
        self.say(f"{self.base}{count}; worst row {beside_limit(*(x if math.isfinite(x) else None for x in numbers))}")

    def look(self, what: str) -> None:
        if not self.console.is_terminal and time.monotonic() > self.said + SILENCE:
            self.say(f"looking for the cause ... {what}")

    def shrink(self, smallest: str) -> None:
        self.say(f"smallest failing case: {smallest}")

    def say(self, line: str) -> None:
        """Print a line with the seconds since the beginning."""
        self.said = time.monotonic()
        self.console.print(Text(f"[{self.said - self.began:5.1f} s] {one_line(line)}"), soft_wrap=True)


def show(console: Console, report: dict[str, Any], page: Path | None, in_pytest: bool = False) -> None:
    """Print the verdict first, then why, for people; report: the JSON. in_pytest: there is no --report."""
    console = Console(file=console.file, stderr=console.stderr, highlight=False)
    verdict = Text(report["verdict"].upper(), style=COLOURS[report["verdict"]])
    left_out = f", with {', '.join(report['left_out'])} left out" if report["left_out"] else ""
    console.print(verdict, Text(f" {report['engine']}, in {report['precision']}{left_out}"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, text, style in rows(report):
        table.add_row(label, Text(one_line(text), style=style))
    console.print(table)
    if report["repro"]:  # in one piece, to be copied
        doubt = "" if report["repeats"] else "it may pass, for it was right when it was asked again: "
        command = f"loracle check --replay {shlex.quote(report['repro'])}"
        console.print(Text(f"repeat it  {doubt}{command}"), soft_wrap=True)
        if page is None:
            size = bytes_of(Path(report["repro"]))
            whose = (
                "in pytest's folder of this test" if in_pytest else "yours to remove; with --report DIR it is in DIR"
            )
            console.print(Text(f"           ({size}, {whose})"), soft_wrap=True)
    if page is not None:
        console.print(Text(f"the page   {page}"), soft_wrap=True)


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, text, style) of each line of the table."""
    counts = (
        f"{report['passed']} of {report['cases']} passed, {report['failed']} failed, {report['undecided']} undecided"
    )
    yield "cases", f"{counts}; {report['unasked']}" if report["unasked"] else counts, ""
    if report["verdict"] == "pass":
        of_all = report["asked"]
        longest = f"of up to {of_all['longest']} tokens, up to {of_all['together']} of them at once"
        yield "asked", f"{of_all['requests']} requests {longest}", ""
    of_engine = report["environment"]
    if YOURS in of_engine:  # a learner's
        yield "yours", of_engine[YOURS] + (f"; ours stands in for {of_engine[OURS]}" if of_engine[OURS] else ""), ""
    if report["smallest_in_words"]:
        yield "smallest", report["smallest_in_words"], "bold"
    if report["cause"]:
        yield from cause_rows(report["cause"], [diagnosis["name"] for diagnosis in report["diagnosis"]])
    if report["worst_noise_ratio"] is not None or report["noise"]["ceiling"] is not None:  # some row had numbers
        limits = report["noise"]["fails_from"], report["worst_fails_from"]
        together = report["verdict"] == "fail" and (limits[0] or 0) > (report["worst_noise_ratio"] or math.inf)
        text = "; no row fails by itself, but all of an answer together" if together else ""
        yield "worst row", beside_limit(report["worst_noise_ratio"], *limits) + text, ""
    has_numbers = report["worst_noise_ratio"] is not None  # what is no number, no rounding makes
    if report["verdict"] == "fail" and has_numbers and report["noise"]["ceiling"] is not None:
        yield "rounding", rounding(report), ""
    for diagnosis in report["diagnosis"]:
        yield from diagnosis_rows(diagnosis)
    for i, symptom in enumerate(report["symptoms"][:SYMPTOMS]):
        yield "" if i else "symptoms", f"{symptom['what']} ({symptom['count']} of {symptom['of']} failed)", ""
    if place := report["first_divergence"]:
        where = f"layer {place['layer']}, " if place["layer"] is not None else ""
        yield "where", f"{where}{place['module']}, {times(place['noise_ratio'])}, by {place['by']}", ""
    if report["where_in_words"]:
        yield "", report["where_in_words"], ""
    if "chapter" in report:
        yield "chapter", report["chapter"], "bold"
    for i, line in enumerate(report["findings"]):
        yield "" if i else "findings", line, ""
    if registry.is_blind(report["engine"]):
        yield "it is", f"for you to find out; then: loracle check --engine {report['engine']} --reveal", ""
    elif report["power"] or report["verdict"] == "pass":
        yield "power", powerful(report["power"]), ""


def beside_limit(worst: float | None, fails_from: float | None, own_limit: float | None) -> str:
    """Return the worst row's ratio and from where a row fails; its own limit where that is why it does not."""
    text = f"{times(worst)}; a row fails from {times(fails_from)}"
    if worst is None or fails_from is None or own_limit is None or not fails_from <= worst < own_limit:
        return text
    return f"{text}, and this one, in which honest runs are spread wider, from {times(own_limit)}"


def rounding(report: dict[str, Any]) -> str:
    """Return whether rounding could be all that is behind the worst row, and what to do."""
    worst, most = report["worst_noise_ratio"], times(report["noise"]["ceiling"])
    if worst > report["noise"]["ceiling"]:
        return f"is not it: with every step at its worst it reaches {most}. Look for a bug, not for a finer type"
    text = f"would reach {most} if every step erred as far as it can and the same way; honest runs never come near that"
    finer = "" if report["precision"] == "float32" else "; in --precision float32 a bug stays and rounding goes"
    return text + finer


def cause_rows(cause: dict[str, Any], named: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, text, style) of what a fit has found: it leaves noise, or there is none. named: the bugs whose
    links follow anyway."""
    yield "cause", cause["sentence"], "bold"
    yield "", cause["evidence"], ""
    yield from token_rows(cause)
    for change in cause["changes"]:
        for link in () if change["bug"] in named else change["links"]:
            yield "", f"seen in {link}", "dim"


def token_rows(cause: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, text, style) of a few requests for each change of which no rule says for sure when it is made, and
    of a few that are not explained."""
    label, several = "tokens", len(cause["changes"]) > 1
    for number, change in enumerate(cause["changes"]):
        for some in by_request(cause, number)[:REQUESTS] if change["is_guess"] else ():
            of_change = f"change {number + 1}, " if several else ""
            yield label, f"{of_change}{which_request(some[0])}: {in_words(some, PIECES)}", ""
            label = ""
    for i, some in enumerate(by_request(cause, None)[:REQUESTS]):
        yield "" if i else "not explained", f"{which_request(some[0])}: from {in_words(some, 1)} on", ""


def diagnosis_rows(diagnosis: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, text, style) of what is said about one explanation. Only what leaves noise is in bold."""
    name = f"{diagnosis['name']} (class {diagnosis['class']}, {CLASSES[diagnosis['class']]})"
    if diagnosis["explains"]:
        yield "it is", name, "bold"
    else:
        yield "nearest, not it", name, ""
    yield "", diagnosis["what"], ""
    yield "", diagnosis["evidence"], ""
    if diagnosis["also"]:
        yield "", f"these cases cannot tell it from {', '.join(diagnosis['also'])}", ""
    if diagnosis["separated_by"]:
        yield "", diagnosis["separated_by"], ""
    for link in diagnosis["links"]:
        yield "", f"seen in {link}", "dim"


def bytes_of(folder: Path) -> str:
    """Return the size of everything in a folder, for people."""
    return human_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def powerful(power: dict[str, str]) -> str:
    """Return how much a pass means, in one line."""
    if not power:
        return "not asked for; a pass says little without it"
    shown, faint, absent = (list(power.values()).count(k) for k in (DETECTED, UNDETECTABLE, NOT_EXERCISED))
    of_adapters = sum(name not in all_mutants() for name in power)
    kinds = f"{len(power) - of_adapters}, and {of_adapters} of these adapters"
    return (
        f"of {len(power)} mutants ({kinds}) these cases would have shown {shown}; {faint} are too faint, "
        f"{absent} were not exercised"
    )
