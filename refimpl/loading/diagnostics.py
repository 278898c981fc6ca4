"""What is wrong with a folder: collected in full, so that `loracle inspect` shows all and a loader the first."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LoracleError


@dataclass
class Diagnostics:
    """Problems (the folder cannot be used) and warnings (it can, but its owner should know), one line each."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, where: Path | str, what: str) -> None:
        """Note a reason to refuse. `where` is the file, `what` names the key or tensor and both values."""
        self.problems.append(one_line(f"{where}: {what}"))

    def warn(self, where: Path | str, what: str) -> None:
        """Note something that is honoured, but odd."""
        self.warnings.append(one_line(f"{where}: {what}"))

    def raise_first(self, error: type[LoracleError], folder: Path | None = None, against: str = "") -> None:
        """Raise the first problem, if there is one, and say how to see the others: of a folder that inspect knows."""
        if self.problems:
            others = len(self.problems) - 1
            how = f": loracle inspect {folder}{against}" if folder else ""
            more = f" (and {others} more{how})" if others else ""
            raise error(self.problems[0] + more)


def one_line(text: str) -> str:
    """The text with everything escaped that would break the line, or talk to a terminal: names are other people's."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def shown(value: object) -> str:
    """A value as it is quoted in a message: its repr, shortened. A number of 5000 digits has no repr."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
