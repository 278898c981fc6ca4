"""What differs from server to server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..interface import EngineError, EngineRequest
from .client import BadResponse, Client
from .reading import Completion


def objects(client: Client, path: str, name: str = "", needs: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return the list of objects at a path, or under a name there.

    BadResponse if it is no such list, or one of them lacks a key of `needs`."""
    page = client.get(path)
    items = page.get(name) if name and isinstance(page, dict) else page
    if not isinstance(items, list) or not all(isinstance(x, dict) and all(key in x for key in needs) for x in items):
        raise BadResponse(f"GET {path} at {client.url}: no list of objects with {' and '.join(needs)}", page)
    return items


def models(client: Client) -> list[dict[str, Any]]:
    """Return the data of /v1/models, which every kind of server has."""
    return objects(client, "/v1/models", "data", ("id",))


def field(client: Client, path: str, name: str) -> str:
    """Return the value that the object at a path has under a name. BadResponse if it has none."""
    page = client.get(path)
    if not isinstance(page, dict) or name not in page:
        raise BadResponse(f"GET {path} at {client.url}: no {name!r}", page)
    return str(page[name])


def served_models(client: Client) -> dict[str, str]:
    """Return the adapters in /v1/models, which have a parent: served name -> where it came from ("" if not said)."""
    return {str(model["id"]): str(model.get("root") or "") for model in models(client) if model.get("parent")}


def base(models: list[dict[str, Any]], name: str) -> str:
    """Return the name of the model that is no adapter: this one, or with "" the only one. EngineError if it is absent
    or not the only one."""
    names = [str(model["id"]) for model in models if not model.get("parent")]
    if name and name not in names:
        raise EngineError(f"model-name: the server has no {name!r}; it has {', '.join(names) or 'none'}")
    if not name and len(names) != 1:
        raise EngineError(f"model-name: which of {', '.join(names) or 'none'} is the base?")
    return name or names[0]


def find(served: Mapping[str, str], name: str) -> str:
    """Return the name, if an adapter is served under it. EngineError if none is."""
    if name not in served:
        raise EngineError(f"the server has no adapter {name!r}; it has {', '.join(sorted(served)) or 'none'}")
    return name


class Dialect(Protocol):
    """How to talk to one kind of server. A served name is what the server calls an adapter."""

    name: str
    mixed: bool  # may one forward pass of it have several adapters?
    features: frozenset[str]  # of adapters, that it honours
    floor: float  # a log-probability at or below this stands for "nearly nothing" and is no measured number

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        """Keep the client. model: what the server calls the base ("": its only one); models: the data of /v1/models."""

    def version(self) -> str:
        """Return the server's version, as far as it reports one."""

    def served(self) -> Mapping[str, str]:
        """Return the adapters that the server has: served name -> where it came from ("" if not said)."""

    def find(self, name: str) -> str:
        """Return the served name of an adapter that the server has, by what the user calls it."""

    def loads(self) -> bool:
        """Return whether adapters can be loaded and unloaded while it runs."""

    def load(self, name: str, folder: Path, replace: bool) -> str:
        """Load an adapter, or replace the one that has the name; return its served name."""

    def unload(self, served: str) -> None:
        """Unload the adapter of this served name."""

    def flush(self) -> None:
        """Empty the prefix cache, if the server lets us."""

    def caches(self) -> bool:
        """Return whether keys and values of earlier prompts are used again."""

    def complete(
        self, request: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Completion:
        """Send one request, and return the server's completion.

        adapters: served name -> weight, of those that are summed (with "sums"; else one of weight 1), none for the
        base; width: tokens per row, 0 for none, vocab for all; prompt_rows: rows of the prompt's tokens too; cached: a
        prefix may be used again."""
