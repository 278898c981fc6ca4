"""How rotary embedding is spelt in a config.json, which has changed three times."""

import math
from collections.abc import Mapping
from typing import Any

from ..config import Rope
from ..families import Family
from .diagnostics import shown
from .json_file import Keys, is_number
from .neutral_keys import is_neutral

# What each supported kind needs, and what it may have.
KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}
OPTIONAL = {
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
    "proportional": ("factor", "partial_rotary_factor"),
}
BESIDE = ("rope_type", "type", "rope_theta", "original_max_position_embeddings", "max_position_embeddings")
BY_LAYER_TYPE = ("full_attention", "sliding_attention")


def read_ropes(keys: Keys, family: Family) -> tuple[Rope, Rope]:
    """The rope of the layers that see everything and that of those that slide, from one of the four spellings.

    transformers 5, two ropes:  rope_parameters: {full_attention: {rope_type, ...}, sliding_attention: {...}}
    transformers 5:             rope_parameters: {rope_type, rope_theta, factor, ...}
    transformers 4:             rope_theta, rope_scaling: {rope_type, factor, ...} or null
    before 4.43:                rope_theta, rope_scaling: {type, factor}
    """
    given = [key for key in ("rope_parameters", "rope_scaling") if keys.given(key)]
    name = given[0] if given else "rope_parameters"
    data = keys.data[name] if given else {}
    if not isinstance(data, dict):
        keys.problem(f"{name} is {shown(data)}: it must be an object")
        return Rope(), Rope()
    if len(given) == 2 and keys.data["rope_scaling"] != data:
        keys.problem("rope_parameters and rope_scaling are both given and differ")
    if data.keys() & set(BY_LAYER_TYPE):
        return read_nested(keys, family, name, data)
    full = read_rope(keys, family, name, data)
    return full, family.local_rope(keys, full) if family.local_rope else full


def read_nested(keys: Keys, family: Family, name: str, data: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """One rope for each layer type."""
    wrong = [key for key in data if key not in BY_LAYER_TYPE]
    if family.local_rope is None or wrong:
        what = f"{wrong[0]} stands beside layer types" if wrong else "there is a rope for each layer type"
        keys.problem(f"{name}: {what}, which is not supported for {family.architecture}")
        return Rope(), Rope()
    ropes = []
    for kind in BY_LAYER_TYPE:
        inner = data.get(kind)
        if not isinstance(inner, dict) or not inner.get("rope_theta"):
            keys.problem(f"{name}: {kind} is {shown(inner)}: it must be an object with a rope_theta")
            return Rope(), Rope()
        if inner.get("truncate") is False:
            keys.problem(f"{name}: {kind}: truncate is false, which transformers does not read there")
        ropes.append(read_rope(keys, family, f"{name}: {kind}", inner))
    return ropes[0], ropes[1]


def read_rope(keys: Keys, family: Family, name: str, data: Mapping[str, Any]) -> Rope:
    """One rope, some of whose keys may stand beside it; problems are noted."""
    spelt = [data[key] for key in ("rope_type", "type") if data.get(key) is not None] or ["default"]
    kind = spelt[0]
    if not isinstance(kind, str) or kind not in KINDS or spelt[-1] != kind:
        both = " and ".join(shown(value) for value in spelt)
        keys.problem(f"{name}: rope_type {both} is not supported; {', '.join(KINDS)} are")
        return Rope()
    inner = Keys(f"{keys.file}: {name}", data, keys.diagnostics)
    understood = (*BESIDE, *KINDS[kind], *OPTIONAL.get(kind, ()), *family.rope_numbers)
    for key in data:
        if key not in understood and not family.understands(key) and not is_neutral(key, data[key]):
            keys.problem(f"{name}: {key} {shown(data[key])} is not supported with rope_type {kind!r}")
    values: dict[str, Any] = {"theta": read_theta(keys, inner, family, name), "type": kind, **family.rope}
    values |= family.read_rope(keys) | read_partial(keys, inner, family)
    values |= {field: inner.positive(key) for key, field in family.rope_numbers.items() if inner.data.get(key)}
    if kind == "proportional":
        values |= {key: inner.positive(key, 1.0) for key in OPTIONAL[kind]}
    if kind in ("linear", "llama3"):
        values |= {key: inner.positive(key) for key in KINDS[kind]}
    if kind == "llama3":
        values["original_max_position_embeddings"] = inner.integer("original_max_position_embeddings")
        if not values["low_freq_factor"] < values["high_freq_factor"]:
            keys.problem(f"{name}: low_freq_factor must be below high_freq_factor, has {shown(data)}")
    if kind in ("yarn", "longrope"):
        values |= read_extended(keys, inner, kind)
    return Rope(**values)


def read_theta(keys: Keys, inner: Keys, family: Family, name: str) -> float:
    """rope_theta, which may stand inside the object or beside it: the same, if in both."""
    thetas = [source.positive("rope_theta") for source in (inner, keys) if source.given("rope_theta")]
    if thetas[:-1] and thetas[0] != thetas[-1]:
        keys.problem(f"rope_theta is {thetas[-1]} but {name} says {thetas[0]}")
    return thetas[0] if thetas else family.default_theta


def read_partial(keys: Keys, inner: Keys, family: Family) -> dict[str, float]:
    """partial_rotary_factor, inside the object or beside it, of the families that have one."""
    source = inner if inner.given("partial_rotary_factor") else keys
    return {"partial_rotary_factor": source.positive("partial_rotary_factor", 1.0)} if family.partial else {}


def read_extended(keys: Keys, inner: Keys, kind: str) -> dict[str, Any]:
    """The fields of yarn and longrope, with the defaults of transformers (modeling_rope_utils.py)."""
    key = "original_max_position_embeddings"
    originals = [source.integer(key) for source in (inner, keys) if source.given(key)]
    if originals[:-1] and originals[0] != originals[-1]:
        keys.problem(f"{key} is {originals[-1]} but {inner.file} says {originals[0]}")
    original = originals[0] if originals else keys.integer("max_position_embeddings")
    factor = inner.positive("factor", keys.integer("max_position_embeddings") / original)
    values: dict[str, Any] = {key: original}
    if kind == "longrope":
        given = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
        values |= {name: read_factors(inner, name) for name in KINDS[kind]}
    else:
        given = yarn_attention_factor(inner, factor)
        values |= {"factor": factor, "truncate": inner.flag("truncate", True)}
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            values[name] = inner.positive(name, default) if inner.data.get(name) else default
    return values | {"attention_factor": inner.positive("attention_factor", given)}


def yarn_attention_factor(inner: Keys, factor: float) -> float:
    """g(mscale) / g(mscale_all_dim) if both are given and not 0, else g(1), where g(a) = 0.1 a ln(factor) + 1."""
    scales = [inner.data.get(name) for name in ("mscale", "mscale_all_dim")]
    for name, scale in zip(("mscale", "mscale_all_dim"), scales, strict=True):
        if scale is not None and not is_number(scale):
            inner.problem(f"{name} is {shown(scale)}: it must be a number")
            return 1.0

    def mscale(scale: Any) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    return mscale(scales[0]) / mscale(scales[1]) if all(scales) else mscale(1)


def read_factors(inner: Keys, name: str) -> tuple[float, ...]:
    """A list of numbers above 0."""
    value = inner.data.get(name)
    if not isinstance(value, list) or not all(is_number(number) and number > 0 for number in value):
        inner.problem(f"{name} is {shown(value)}: it must be a list of numbers above 0")
        return ()
    return tuple(map(float, value))
