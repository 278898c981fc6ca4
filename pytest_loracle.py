"""The pytest plugin: `def test_my_engine(loracle_check): loracle_check(my_engine, cases=20)`.

It is a file of its own, that imports nothing of Loracle before a test asks for the fixture: pytest reads it at every
start, in projects that never check an engine, too.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


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
    ) -> dict[str, Any]:
        """Ask `cases` batches and `sequences` sequences; return the JSON of docs/check.md if all of them are right.

        engine: a function (refimpl/engines/function.py says which), or a name of `loracle engines`. The other arguments
        are the options of `loracle check`. What fails is kept in the test's tmp_path."""
        from rich.console import Console

        from refimpl.commands.check_screen import show
        from refimpl.engines import registry
        from refimpl.engines.function import Function
        from refimpl.oracle import check as checking
        from refimpl.oracle.reports.result import CampaignSettings
        from refimpl.oracle.reports.summary import summary

        def make() -> Any:
            plain = registry.make(engine, {}) if isinstance(engine, str) else Function(engine)
            return checking.narrowed(plain, without)

        name = engine if isinstance(engine, str) else f"{engine.__module__}:{engine.__qualname__}"
        settings = CampaignSettings(cases, sequences, seed, precision=precision, below=power)
        folders = {key: Path(path) for key, path in (adapters or {}).items()}
        result = checking.check(make, model, folders, settings, tmp_path / "check")
        if result.interrupted:
            raise KeyboardInterrupt
        repro = ""
        if result.explanation.smallest is not None:
            repro = str(checking.keep(result, tmp_path / "repro", name, {}, seed, make))
        report = summary(result, name, repro)
        if result.verdict != "pass":
            screen = io.StringIO()
            show(Console(file=screen, width=110), report, None)
            pytest.fail("\n".join(line.rstrip() for line in screen.getvalue().splitlines()), pytrace=False)
        return report

    return check
