"""Which checkpoints are supported: the classes of transformers in families/, and no key that makes another model of
them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families import FAMILIES, Family
from .diagnostics import Diagnostics, shown
from .suggestion import did_you_mean

CLASSIFIER = "ForSequenceClassification"  # the same model with another head
# The classes of models of images and text: their model_type, and the families that their text_config can be of.
WRAPPERS = {name: model_type for family in FAMILIES.values() for name, model_type in family.wrappers}
INSIDE = {name: [family for family in FAMILIES.values() if name in dict(family.wrappers)] for name in WRAPPERS}
WEIGHTS = "supported are weights unquantised, in bitsandbytes' nf4, mxfp4, fp8 blocks, gptq or awq"


def family_of(file: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> tuple[Family, bool] | None:
    """The family of the architecture, of which there must be one that is supported, and whether it is the text part of
    a model of images and text."""
    named, model_type = data.get("architectures"), data.get("model_type")
    if not named and isinstance(model_type, str):  # written by something that did not know the class
        named = [name for name, expected in _model_types().items() if expected == model_type]
    name = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else None
    name = name.replace(CLASSIFIER, "ForCausalLM") if name else None
    if name is None or name not in _model_types():
        named = data.get("architectures")
        what = f"architectures {shown(named)} (model_type {shown(model_type)}) is none of the {len(FAMILIES)} that load"
        diagnostics.problem(file, what + meant(named, model_type))
        return None
    family = _inside(name, data) if name in WRAPPERS else FAMILIES[name]
    if model_type is not None and model_type not in (_model_types()[name], *family.other_types):
        diagnostics.problem(
            file,
            f"architectures {shown(named)} contradicts model_type {shown(model_type)}: it has {_model_types()[name]!r}",
        )
        return None
    return family, name in WRAPPERS


def families_of(model_type: str) -> list[Family]:
    """Return the families of this model_type: of some there are several classes."""
    return [family for family in FAMILIES.values() if family.model_type == model_type]


def meant(named: object, model_type: object) -> str:
    """Return '; did you mean NAME?' for a misspelt class, or model_type: one with another number is another model."""
    given = (named[0] if isinstance(named, list) else None) if named else model_type
    names, cutoff = (_model_types(), 0.93) if named else (set(_model_types().values()), 0.85)
    if not isinstance(given, str):
        return ""
    return did_you_mean(given, [name for name in names if digits(name) == digits(given)], cutoff)


def digits(name: str) -> str:
    """Return the digits of a name."""
    return "".join(filter(str.isdigit, name))


def _model_types() -> dict[str, str]:
    """The model_type of each class that loads."""
    return {name: family.model_type for name, family in FAMILIES.items()} | WRAPPERS


def _inside(name: str, data: Mapping[str, Any]) -> Family:
    """The family of the text_config in a model of images and text: the first that it can be, if it says no other."""
    inner = data.get("text_config")
    model_type = inner.get("model_type") if isinstance(inner, dict) else None
    return next((family for family in INSIDE[name] if family.model_type == model_type), INSIDE[name][0])
