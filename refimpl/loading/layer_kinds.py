"""What differs from layer to layer, out of config.json: windows, which rope, if any, turns a layer, and
which layers have experts."""

from typing import Any

from ..config import LayerKind
from ..families import Family
from .diagnostics import shown
from .json_file import Keys
from .rope_scaling import read_ropes

TYPES = ("full_attention", "sliding_attention")


def read_layers(keys: Keys, family: Family, count: int) -> dict[str, Any]:
    """The fields `rope`, `sliding_window`, `layers` and `moe` of a ModelConfig; problems are noted.

    Where all layers are alike, the others say it, and `layers` is empty."""
    slides = read_slides(keys, family, count)
    window = keys.integer("sliding_window") if any(slides) else None
    full, local = read_ropes(keys, family)
    turns = [family.turns(keys, layer) for layer in range(count)]
    sparse = [family.moe is not None and family.sparse(keys, layer) for layer in range(count)]
    layers = tuple(
        LayerKind(window if sliding else None, (local if sliding else full) if turning else None, sparse=experts)
        for sliding, turning, experts in zip(slides, turns, sparse, strict=True)
    )
    moe = {"moe": family.moe(keys)} if family.moe and any(sparse) else {}
    layers = family.kinds(keys, layers)
    first = layers[0]
    if set(layers) == {LayerKind(first.window, first.rope, sparse=first.sparse)} and first.rope is not None:
        return {"rope": first.rope, "sliding_window": first.window, **moe}
    return {"rope": full, "sliding_window": None, "layers": layers, **moe}


def read_slides(keys: Keys, family: Family, count: int) -> list[bool]:
    """Whether each layer has the window: by layer_types where the class obeys it, else by the class's own rule."""
    given = None if family.understands("layer_types") else keys.data.get("layer_types")
    if family.slides is None:
        alike = family.windowed and keys.given("sliding_window")
        if given is not None and given != [TYPES[alike]] * count:
            keys.problem(f"layer_types is {shown(given)}: every layer must be {TYPES[alike]!r}")
        return [alike] * count
    if given is None:
        return [family.slides(keys, layer) for layer in range(count)]
    if not isinstance(given, list) or len(given) != count or any(kind not in TYPES for kind in given):
        keys.problem(f"layer_types is {shown(given)}: it must be a list of {count} of {', '.join(TYPES)}")
        return [False] * count
    return [kind == TYPES[True] for kind in given]
