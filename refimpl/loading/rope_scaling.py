"""How rotary embedding is spelt in a config.json, which has changed twice."""

from typing import Any

from .diagnostics import shown
from .families import is_neutral
from .json_file import Keys

# What each supported kind needs, and what may stand beside it without an effect.
KINDS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
BESIDE = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")


def read_rope(keys: Keys) -> dict[str, Any]:
    """The fields of a Rope, from one of the three spellings; problems are noted.

    transformers 5:     rope_parameters: {rope_type, rope_theta, factor, ...}
    transformers 4:     rope_theta, rope_scaling: {rope_type, factor, ...} or null
    before 4.43:        rope_theta, rope_scaling: {type, factor}
    """
    given = [key for key in ("rope_parameters", "rope_scaling") if keys.given(key)]
    name = given[0] if given else "rope_parameters"
    data = keys.data[name] if given else {}
    if not isinstance(data, dict):
        keys.diagnostics.problem(keys.file, f"{name} is {shown(data)}: it must be an object")
        return {}
    if len(given) == 2 and keys.data["rope_scaling"] != data:
        keys.diagnostics.problem(keys.file, "rope_parameters and rope_scaling are both given and differ")
    spelt = [data[key] for key in ("rope_type", "type") if data.get(key) is not None] or ["default"]
    kind = spelt[0]
    if not isinstance(kind, str) or kind not in KINDS or spelt[-1] != kind:
        both = " and ".join(shown(value) for value in spelt)
        keys.diagnostics.problem(keys.file, f"{name}: rope_type {both} is not supported; {', '.join(KINDS)} are")
        return {}
    inner = Keys(f"{keys.file}: {name}", data, keys.diagnostics)
    for key in data:
        if key not in (*BESIDE, *KINDS[kind]) and not is_neutral(key, data[key]):
            keys.diagnostics.problem(
                keys.file, f"{name}: {key} {shown(data[key])} is not supported with rope_type {kind!r}"
            )
    thetas = [source.positive("rope_theta") for source in (inner, keys) if source.given("rope_theta")] or [10000.0]
    if thetas[0] != thetas[-1]:
        keys.diagnostics.problem(keys.file, f"rope_theta is {thetas[-1]} but {name} says {thetas[0]}")
    values: dict[str, Any] = {key: inner.positive(key) for key in KINDS[kind] if key not in BESIDE}
    if kind == "llama3":
        values["original_max_position_embeddings"] = inner.integer("original_max_position_embeddings")
        if not values["low_freq_factor"] < values["high_freq_factor"]:
            keys.diagnostics.problem(
                keys.file, f"{name}: low_freq_factor must be below high_freq_factor, has {shown(data)}"
            )
    return {"theta": thetas[0], "type": kind, **values}
