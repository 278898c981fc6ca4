"""Every mix-up that is looked for in a request. A new one is a generator of Sources, and a line here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .adapter_sources import adapter_sources
from .elsewhere_sources import input_sources, late_sources, place_sources, token_sources
from .fused_sources import fused_sources
from .mix_up import Source
from .module_sources import module_sources
from .own_sources import own_sources, rounded_sources, scale_sources
from .rank_sources import rank_sources
from .row_sources import row_sources

WHICHEVER = "another adapter"
THE_BASE = "the base"
CHOICE = 3.5  # bits, about: which adapter it is in a request, where nothing says which


def sources_of(
    key: str | None, others: Mapping[str, str | None], modules: tuple[str, ...], by_root: bool = False
) -> Iterator[Source]:
    """Yield what could be mixed up in a request of this adapter (None: of the base).

    others: what they are called here ("the request before") -> key, None: the base. modules: the names of a layer's
    modules. by_root: has the adapter rsLoRA?"""
    if key is not None:
        yield from own_sources(key)
        yield from scale_sources(key)
        yield from rounded_sources(key)
        yield from rank_sources(key, by_root)
        yield from row_sources(key)
        yield from token_sources(key)
        yield from module_sources(key, modules)
        yield from fused_sources(key)
        yield from place_sources(key)
        yield from late_sources(key)
        yield from input_sources(key, modules)
    for called, other in others.items():
        if other != key:
            for one in adapter_sources(key, other, called):
                yield replace(one, same_as=one.key.removesuffix(called) + (other or THE_BASE))


def whichever(key: str | None, adapters: Sequence[str]) -> Iterator[Source]:
    """Yield each mix-up with another adapter, where it may be another one in each request: an engine that takes one by
    a rule that is not known here takes it in the same way each time."""
    others = [other for other in adapters if other != key]
    for kind in adapter_sources(key, others[0], WHICHEVER) if len(others) > 1 else ():
        base = [THE_BASE] if kind.kind == "instead" and kind.key.startswith("instead") else []
        members = tuple(kind.key.removesuffix(WHICHEVER) + other for other in (*others, *base))
        yield replace(kind, cost=kind.cost + CHOICE, members=members)
    if key is not None:
        yield next(one for one in adapter_sources(key, None, THE_BASE) if one.kind == "instead")
