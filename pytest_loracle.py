"""The pytest plugin: `def test_my_engine(loracle_check): loracle_check(my_engine, cases=20)`; and for Hypothesis,

    asked = loracle_questions(my_engine)

    @given(asked.batches())  # or asked.sequences()
    def test_my_engine(case):
        asked.check(case)

It is a file of its own, that imports nothing of Loracle before a test asks for the fixture: pytest reads it at every
start, in projects that never check an engine, too.
"""

import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


def maker(engine: Callable[..., Any] | str, without: tuple[str, ...]) -> Callable[[], Any]:
    """Return what makes the engine, not started, that is asked for nothing of `without`."""
    from refimpl.engines import registry
    from refimpl.engines.function import Function
    from refimpl.oracle.check import narrowed

    return lambda: narrowed(registry.make(engine, {}) if isinstance(engine, str) else Function(engine), without)


def loracle_questions(
    engine: Callable[..., Any] | str,
    *,
    model: str = "random",
    adapters: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    precision: str = "float32",
    without: tuple[str, ...] = (),
) -> Any:
    """Return refimpl.oracle.questions.Questions: strategies of cases for this engine, and a check of each.

    The arguments are those of loracle_check. Its folders are temporary, and go when Python ends."""
    from refimpl.oracle.cases.testbed import build
    from refimpl.oracle.questions import Questions

    folder = tempfile.TemporaryDirectory()
    work, make = Path(folder.name), maker(engine, without)
    paths = {key: Path(path) for key, path in (adapters or {}).items()}
    questions = Questions(make, build(model, precision, seed, work, make().capabilities, paths), work)
    questions.folder = folder  # type: ignore[attr-defined]  # which lives as long as they do
    return questions


@pytest.fixture
def loracle_check(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that holds an engine against the reference, and fails the test with what `loracle check` prints."""

    def check(
        engine: Callable[..., Any] | str,
        *,
        model: str = "random",
        adapters: Mapping[str, str | Path] | None = None,
        cases: int = 20,
        sequences: int = 0,
        seed: int = 0,
        precision: str = "float32",
        without: tuple[str, ...] = (),
        power: bool = False,
        budget: float | None = None,
    ) -> dict[str, Any]:
        """Ask `cases` batches and `sequences` sequences; return the JSON of docs/check.md if all of them are right.

        engine: a function (refimpl/engines/function.py says which), or a name of `loracle engines`. The other arguments
        are the options of `loracle check`; budget: seconds, after which the test fails with what is known. What fails
        is kept in the test's tmp_path."""
        from rich.console import Console

        from refimpl.commands.check_screen import show
        from refimpl.oracle import check as checking
        from refimpl.oracle.keep import keep
        from refimpl.oracle.reports.result import CampaignSettings
        from refimpl.oracle.reports.summary import summary
        from refimpl.oracle.watchdog import BUDGET, SIGNAL, Watchdog

        make = maker(engine, without)
        name = engine if isinstance(engine, str) else f"{engine.__module__}:{engine.__qualname__}"
        settings = CampaignSettings(cases, sequences, seed, budget, precision, below=power)
        folders = {key: Path(path) for key, path in (adapters or {}).items()}
        repro = ""
        try:
            with Watchdog(budget) as watch:
                result = checking.check(make, model, folders, settings, tmp_path / "check", watch=watch)
                if result.explanation.smallest is not None:
                    repro = str(keep(result, tmp_path / "repro", name, {}, seed, make, watch))
        except KeyboardInterrupt:
            if watch.stopped_by != BUDGET:
                raise
            pytest.fail(watch.why(), pytrace=False)
        if result.stopped_by == SIGNAL:
            raise KeyboardInterrupt
        report = summary(result, name, repro)
        if result.verdict != "pass":
            screen = io.StringIO()
            show(Console(file=screen, width=110), report, None, in_pytest=True)
            pytest.fail("\n".join(line.rstrip() for line in screen.getvalue().splitlines()), pytrace=False)
        return report

    return check
