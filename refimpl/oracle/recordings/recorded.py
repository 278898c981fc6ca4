"""Recorded responses as an engine: --engine recorded --option file=DIR, a folder of --resume or `loracle record`.

It serves the batches that were recorded, and no others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...engines.interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings

CAPABILITIES = Capabilities(dtypes=("float32", "bfloat16", "float16"))  # of a recording: those of its engine


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return Entry("recorded", "answers recorded earlier, from any engine: --option file=DIR", CAPABILITIES, "")


def make(options: Mapping[str, str]) -> "Recorded":
    """Return the engine of the folder options["file"]. EngineError if nothing was recorded there."""
    unknown = sorted(set(options) - {"file"})
    if unknown:
        raise EngineError(f"recorded has no option {unknown[0]!r}; it has file")
    if "file" not in options:
        raise EngineError("recorded needs --option file=DIR, a folder with recorded answers")
    return Recorded(Path(options["file"]))


class Recorded:
    """An Engine (refimpl/engines/interface.py) that looks its responses up."""

    def __init__(self, folder: Path) -> None:
        from ..cases import archive

        self.about = archive.described(folder)  # with what model, dtype and seed: `check` refuses others
        if self.about is None:
            raise EngineError(f"{folder}: no recorded answers ({archive.ABOUT} is not there)")
        self.capabilities = archive.capabilities_of(self.about)
        self.responses: dict[tuple[EngineRequest, ...], list[EngineResponse]] = {}
        for case, exchanges in archive.everything(folder):
            for step in case.runs:
                run = case.runs.index(step)
                self.responses[step.requests] = [exchange.response for exchange in exchanges if exchange.run == run]
        if not self.responses:
            raise EngineError(f"{folder}: no recorded answers")
        self.folder = folder

    def start(self, settings: Settings) -> None:
        """Do nothing: no engine runs."""

    def reset(self) -> None:
        """Do nothing: no engine runs."""

    def load(self, name: str, folder: Path) -> None:
        """Do nothing: the adapters were loaded when this was recorded."""

    def unload(self, name: str) -> None:
        """Do nothing: the adapters were unloaded when this was recorded."""

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Return the recorded responses. EngineError for a batch that was not recorded."""
        responses = self.responses.get(tuple(requests))
        if responses is None:
            raise EngineError(
                f"{self.folder}: this batch was not recorded (another seed, model, or number of adapters?)"
            )
        return responses

    def versions(self) -> dict[str, str]:
        """Return the name of the folder."""
        return {"recorded": self.folder.name}

    def close(self) -> None:
        """Do nothing: no resource is held."""
