"""Answers that were recorded: --engine recorded --option file=DIR, a folder that --resume or `loracle record` left.

It answers the cases that it has, and no others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...engines.interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings

CAPABILITIES = Capabilities(dtypes=("float32", "bfloat16", "float16"))  # of a recording: those of its engine


def entry() -> Entry:
    """For `loracle engines`."""
    return Entry("recorded", "answers recorded earlier, from any engine: --option file=DIR", CAPABILITIES, "")


def make(options: Mapping[str, str]) -> "Recorded":
    """options["file"]: the folder. EngineError if nothing was recorded there."""
    unknown = sorted(set(options) - {"file"})
    if unknown:
        raise EngineError(f"recorded has no option {unknown[0]!r}; it has file")
    if "file" not in options:
        raise EngineError("recorded needs --option file=DIR, a folder with recorded answers")
    return Recorded(Path(options["file"]))


class Recorded:
    """An Engine (interface.py) that looks its answers up."""

    def __init__(self, folder: Path) -> None:
        from ..cases import archive

        self.about = archive.described(folder)  # with what model, dtype and seed: `check` refuses others
        if self.about is None:
            raise EngineError(f"{folder}: no recorded answers ({archive.ABOUT} is not there)")
        self.capabilities = archive.capabilities_of(self.about)
        self.known: dict[tuple[EngineRequest, ...], list[EngineResponse]] = {}
        for case, exchanges in archive.everything(folder):
            for step in case.runs:
                run = case.runs.index(step)
                self.known[step.asks] = [e.answer for e in exchanges if e.run == run]
        if not self.known:
            raise EngineError(f"{folder}: no recorded answers")
        self.folder = folder

    def start(self, settings: Settings) -> None:
        """Nothing to start."""

    def reset(self) -> None:
        """Nothing to reset."""

    def load(self, name: str, folder: Path) -> None:
        """Whatever was loaded then, was."""

    def unload(self, name: str) -> None:
        """Whatever was unloaded then, was."""

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """EngineError for a batch that was never asked."""
        found = self.known.get(tuple(asks))
        if found is None:
            raise EngineError(
                f"{self.folder}: this batch was not recorded (another seed, model, or number of adapters?)"
            )
        return found

    def versions(self) -> dict[str, str]:
        """Where from."""
        return {"recorded": self.folder.name}

    def close(self) -> None:
        """Nothing is held."""
