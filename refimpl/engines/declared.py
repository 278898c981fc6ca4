"""What an engine says that it can do, narrowed or widened by its user, and what is thereby left out of a check."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from ..config import LAYER_MODULES
from ..families import MODEL_TYPES
from ..loading.suggestion import did_you_mean
from .interface import FEATURES, OPERATIONS, READOUTS, Capabilities, EngineError

NAMES = {
    "features": FEATURES,
    "operations": OPERATIONS,
    "modules": (*LAYER_MODULES, "embed_tokens", "lm_head"),
    "dtypes": ("float32", "bfloat16", "float16"),
    "families": MODEL_TYPES,
}


def without(capabilities: Capabilities, names: Collection[str]) -> Capabilities:
    """Return the capabilities without these features, operations and modules; EngineError for a name of none."""
    possible = (*NAMES["features"], *NAMES["operations"], *NAMES["modules"])
    for name in names:
        if name not in possible:
            raise EngineError(f"there is nothing called {name!r} to leave out; {hint(name, possible)}")
    kept = replace(
        capabilities,
        features=capabilities.features - set(names),
        operations=capabilities.operations - set(names),
        modules=tuple(name for name in capabilities.modules if name not in names),
    )
    return replace(kept, left_out=left_out(capabilities, kept))


def declared(said: Mapping[str, Any], default: Capabilities, whose: str) -> Capabilities:
    """Return the default with what `said` puts in its place: {"features": [...], "max_rank": 32, ...}.

    EngineError for a key that Capabilities has not, or for a name that is none of features, operations, ..."""
    if not isinstance(said, Mapping):
        raise EngineError(f"{whose}.capabilities is {type(said).__name__}, not a dict")
    keys = [field.name for field in fields(Capabilities) if field.name != "left_out"]
    values: dict[str, Any] = {}
    for key, value in said.items():
        if key not in keys:
            raise EngineError(f"{whose}.capabilities has no key {key!r}; {hint(key, keys)}")
        values[key] = names_in(value, key, whose) if key in NAMES else value
    if values.get("readout", default.readout) not in READOUTS:
        raise EngineError(f"{whose}.capabilities: readout {values['readout']!r}; it is one of {', '.join(READOUTS)}")
    rank = values.get("max_rank")
    if rank is not None and not (isinstance(rank, int) and rank > 0):
        raise EngineError(f"{whose}.capabilities: max_rank {rank!r} must be a whole number above 0")
    dims = values.get("head_dims", default.head_dims)
    if (
        not isinstance(dims, Collection)
        or not dims
        or not all(isinstance(n, int) and n > 0 and n % 2 == 0 for n in dims)
    ):
        raise EngineError(f"{whose}.capabilities: head_dims {dims!r} must be a list of even numbers above 0")
    kept = replace(default, **values | {"head_dims": tuple(dims)})
    return replace(kept, left_out=left_out(default, kept))


def names_in(value: Any, key: str, whose: str) -> Collection[str]:
    """Return the names in the type that Capabilities keeps them in; EngineError for one that is unknown."""
    if isinstance(value, str) or not isinstance(value, Collection):
        raise EngineError(f"{whose}.capabilities: {key} must be a list of names, not {value!r}")
    for name in value:
        if name not in NAMES[key]:
            raise EngineError(f"{whose}.capabilities: unknown in {key}: {name!r}; {hint(str(name), NAMES[key])}")
    return frozenset(value) if key in ("features", "operations") else tuple(value)


def hint(name: str, possible: Collection[str]) -> str:
    """Return what there is, and which of them may have been meant."""
    return f"there is {', '.join(possible)}{did_you_mean(name, possible)}"


def left_out(possible: Capabilities, kept: Capabilities) -> tuple[str, ...]:
    """Return, sorted, what of the possible features, operations and modules is not kept."""
    lost = possible.features - kept.features | possible.operations - kept.operations
    return tuple(sorted(lost | (set(possible.modules) - set(kept.modules)) | set(possible.left_out)))
