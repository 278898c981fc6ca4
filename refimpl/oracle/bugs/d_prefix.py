"""D. Prefix cache: keys and values that were computed under one adapter, found by a request for another.

Seen only in a sequence: the first request leaves blocks, a later one finds them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...adapter import Adapter
from ...adapter_slots import BoundAdapter, bind_adapter
from ...arrays import Precision
from ...config import ModelConfig
from ...digest import digest
from ...kv_cache import prefix_key
from ...ops import Ops
from .mutant import Family
from .steps import Scale, but

prefix = Family("D", "prefix cache")
Digests = Sequence[tuple[bytes, float]]


@prefix.bug(
    "the key of a block has its tokens, and no adapter",
    "https://github.com/vllm-project/vllm/issues/3264",
    "https://github.com/vllm-project/vllm/issues/44250",
    "https://github.com/LMCache/LMCache/issues/2961",
    "https://github.com/xLLM-AI/xllm/pull/2047",
    needs="prefix cache",
)
def key_without_adapter() -> Ops:
    return but(prefix_key=lambda parent, ids, base, p, adapters: prefix_key(parent, ids, base, p, ()))


@prefix.bug(
    "the key has the adapter's name: another adapter of the same name finds its blocks",
    "https://github.com/vllm-project/vllm/issues/30931",
    needs="prefix cache",
)
def key_by_name() -> Ops:
    name_of: dict[bytes, bytes] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        name_of[digest(bound)] = adapter.name.encode()
        return bound

    def key(parent: bytes, ids: Sequence[int], base: bytes, p: Precision, adapters: Digests) -> bytes:
        return prefix_key(
            parent, ids, base, p, [(name_of.get(known_by, known_by), weight) for known_by, weight in adapters]
        )

    return but(bind_adapter=bind, prefix_key=key)


@prefix.bug(
    "a request for the base has the key of the adapter that was served last",
    "https://github.com/llm-d/llm-d-kv-cache/pull/243",
    needs="prefix cache",
)
def base_keyed_as_an_adapter() -> Ops:
    last: list[tuple[bytes, float]] = []

    def key(parent: bytes, ids: Sequence[int], base: bytes, p: Precision, adapters: Digests) -> bytes:
        last[:] = adapters or last
        return prefix_key(parent, ids, base, p, last)

    return but(prefix_key=key)


def keyed_without(**part: Any) -> Ops:
    """The key is that of an adapter with this field of its LoraWeights at one value in every module."""
    plain: dict[bytes, bytes] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        alike = {module: dataclasses.replace(lora, **part) for module, lora in bound.lora.items()}
        plain[digest(bound)] = digest(dataclasses.replace(bound, lora=alike))
        return bound

    def key(parent: bytes, ids: Sequence[int], base: bytes, p: Precision, adapters: Digests) -> bytes:
        return prefix_key(
            parent, ids, base, p, [(plain.get(known_by, known_by), weight) for known_by, weight in adapters]
        )

    return but(bind_adapter=bind, prefix_key=key)


@prefix.bug("the key has the adapter's A and B, and not its scale", needs="prefix cache")
def key_without_scale() -> Ops:
    return keyed_without(scale=1.0)


@prefix.bug("the key has the adapters of a request, and not their weights", needs="prefix cache")
def key_without_weight() -> Ops:
    def key(parent: bytes, ids: Sequence[int], base: bytes, p: Precision, adapters: Digests) -> bytes:
        return prefix_key(parent, ids, base, p, [(known_by, 1.0) for known_by, _ in adapters])

    return but(prefix_key=key)


@prefix.bug("of the adapters that a request sums, only the first is in the key", needs="prefix cache")
def key_of_the_first_adapter() -> Ops:
    return but(prefix_key=lambda parent, ids, base, p, adapters: prefix_key(parent, ids, base, p, adapters[:1]))


@prefix.bug("the key has the block's own tokens, and not those before it", needs="prefix cache")
def key_without_parent() -> Ops:
    return but(prefix_key=lambda parent, *rest: prefix_key(b"", *rest))


@prefix.bug(
    "the blocks after the first are hashed from a wrong index: their own tokens are not in the key",
    "https://github.com/inference-sim/inference-sim/issues/196",
    needs="prefix cache",
)
def key_of_the_first_block() -> Ops:
    return but(prefix_key=lambda parent, ids, *rest: prefix_key(parent, () if parent else ids, *rest))


@prefix.bug(
    "a block is published before its last token is known: that token is not in the key",
    "https://github.com/vllm-project/vllm/pull/34587",
    needs="prefix cache",
)
def key_without_the_last_token() -> Ops:
    return but(prefix_key=lambda parent, ids, *rest: prefix_key(parent, ids[:-1], *rest))
