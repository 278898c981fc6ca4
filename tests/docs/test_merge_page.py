"""docs/merge.md: every command runs and prints what the page says, and its table is the data."""

import shlex
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.engines.adapter_facts import CONDITIONS
from refimpl.engines.adapter_limits import names, read_engine
from refimpl.tools.combine import HOWS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "merge.md").read_text("utf-8")
COMMANDS = [
    line for line in PAGE.splitlines() if line.startswith("loracle ") and not line.startswith("loracle combine:")
]


def test_every_command_runs_and_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = ""
    for command in [*COMMANDS, "loracle combine pirate bard --how linear --out x"]:
        words = shlex.split(command)[1:]
        assert cli.main(words) == (1 if "--for" in words else 2 if "linear" in words else 0)
        said = capsys.readouterr()
        printed += " ".join((said.out + said.err).split()) + " "
    assert {path.name for path in tmp_path.iterdir()} == {"pirate-base", "half-pirate", "sum", "cat", "svd", "ties"}
    for line in PAGE.splitlines():
        if line.startswith(("note: ", "loracle combine: ", "llama.cpp ignores ", "vLLM rejects ")):
            assert line in printed


def test_every_way_is_on_the_page() -> None:
    assert all(f"`{how}`" in PAGE for how in HOWS if not how.endswith("_svd"))


def test_the_table_is_the_data() -> None:
    tables = [read_engine(name) for name in names()]
    lines = [f"| of the adapter | {' | '.join(table.name for table in tables)} |", "|---" * (len(tables) + 1) + "|"]
    for condition in CONDITIONS:
        rows = [[row for row in table.limits if row.when == condition] for table in tables]
        cells = [
            ", ".join(f"**{row.does}**" if row.evidence == "test" else row.does for row in listed) for listed in rows
        ]
        lines += [f"| `{condition}` | {' | '.join(cells)} |"] if any(cells) else []
    assert PAGE.partition("<!-- limits -->\n")[2].partition("<!-- end -->")[0].splitlines() == lines
