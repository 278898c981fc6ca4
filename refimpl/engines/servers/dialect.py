"""What is different from server to server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..interface import EngineError, EngineRequest
from .client import BadAnswer, Client
from .reading import Said


def objects(client: Client, path: str, name: str = "", needs: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The list of objects that is found there, or under a name there, each with what it needs. BadAnswer else."""
    found = client.get(path)
    items = found.get(name) if name and isinstance(found, dict) else found
    if not isinstance(items, list) or not all(isinstance(x, dict) and all(n in x for n in needs) for x in items):
        raise BadAnswer(f"GET {path} at {client.url}: no list of objects with {' and '.join(needs)}", found)
    return items


def models(client: Client) -> list[dict[str, Any]]:
    """The data of /v1/models, which every kind of server has."""
    return objects(client, "/v1/models", "data", ("id",))


def field(client: Client, path: str, name: str) -> str:
    """What the object that is found there says under a name."""
    found = client.get(path)
    if not isinstance(found, dict) or name not in found:
        raise BadAnswer(f"GET {path} at {client.url}: no {name!r}", found)
    return str(found[name])


def served_models(client: Client) -> dict[str, str]:
    """The adapters in /v1/models: they have a parent. Their name, and where they came from."""
    return {str(m["id"]): str(m.get("root") or "") for m in models(client) if m.get("parent")}


def base(models: list[dict[str, Any]], wanted: str) -> str:
    """The name of the model that is no adapter, or of the one that is wanted."""
    names = [str(m["id"]) for m in models if not m.get("parent")]
    if wanted and wanted not in names:
        raise EngineError(f"model-name: the server has no {wanted!r}; it has {', '.join(names) or 'none'}")
    if not wanted and len(names) != 1:
        raise EngineError(f"model-name: which of {', '.join(names) or 'none'} is the base?")
    return wanted or names[0]


def find(served: Mapping[str, str], wanted: str) -> str:
    """The name that is wanted, if it is there."""
    if wanted not in served:
        raise EngineError(f"the server has no adapter {wanted!r}; it has {', '.join(sorted(served)) or 'none'}")
    return wanted


class Dialect(Protocol):
    """How one kind of server is spoken to. An adapter is `served` under what the server calls it."""

    name: str
    mixed: bool  # may one forward pass of it have several adapters?
    features: frozenset[str]  # of adapters, that it honours
    floor: float  # log-probabilities down here are not meant as numbers

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        """model: what the server calls the base, "" if nothing was said; models: the data of /v1/models."""

    def version(self) -> str:
        """Of the server, as far as it tells."""

    def served(self) -> Mapping[str, str]:
        """The adapters that are there: their name, and where they came from ("" if that is not told)."""

    def find(self, wanted: str) -> str:
        """An adapter that is there, by what the user says that it is called; what it is served as."""

    def loads(self) -> bool:
        """Can adapters be loaded and unloaded while it runs?"""

    def load(self, name: str, folder: Path, known: bool) -> str:
        """Load one, or replace the one that is known under the name; what it is served as."""

    def unload(self, served: str) -> None:
        """Forget one."""

    def flush(self) -> None:
        """Empty the prefix cache, if the server lets us."""

    def caches(self) -> bool:
        """Are keys and values of earlier prompts found again?"""

    def ask(
        self, ask: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Said:
        """One request. adapters: the weights of those that are summed (with "sums"; else of one, 1), none for the base;
        width: tokens per row, 0 for none, vocab for all; cached: a prefix may be found again."""
