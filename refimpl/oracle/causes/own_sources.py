"""The request's own delta, and other factors before it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ...adapter import PeftConfig, lora_alpha_of, pattern_value
from ...adapter_slots import LoraWeights
from ...arrays import DTYPES, Array
from ...config import EMBED, Module, module_name
from .mix_up import PARTNERS, Delta, Point, Source, full_delta, scaled


def own_sources(key: str) -> Iterator[Source]:
    """Yield it, the layer that the adapter brings along, and the bias of lora_B."""

    def own_delta(point: Point) -> Array | None:
        return point.full_delta(key)

    def saved(point: Point) -> Array | None:
        return None if point.module not in point.saved[key] else point.full_delta(key)

    def bias(point: Point) -> Array | None:
        lora = point.of(key)
        if lora is None or lora.bias is None:
            return None
        return np.broadcast_to(lora.bias * lora.scale, (len(point.x), len(lora.bias)))

    def product_alone(point: Point) -> Array | None:
        lora = point.of(key)
        return None if lora is None or lora.bias is None else full_delta(point.x, replace(lora, bias=None))

    def unscaled_bias(point: Point) -> Array | None:
        lora = point.of(key)
        if lora is None or lora.bias is None:
            return None
        return np.broadcast_to(lora.bias * (1 - lora.scale), (len(point.x), len(lora.bias)))

    def base_product(point: Point) -> Array | None:
        return None if point.module == EMBED or point.of(key) is None else point.x @ point.weight.T

    yield Source("own", "its own delta", own_delta, "own", 0)
    yield Source("own saved layer", "the layer that it brings along", saved, "own", 1, is_partial=True)
    yield Source("own bias", "the bias of lora_B", bias, "own", 2, is_partial=True)
    words = "its own delta but for the bias of lora_B"
    yield Source("own product", words, product_alone, "own", 2, is_partial=True)
    yield Source("base product", "the base's product", base_product, "own", 3, is_partial=True)
    yield Source("own bias unscaled", "the bias of lora_B unscaled", unscaled_bias, "instead", 4)


def scale_sources(key: str) -> Iterator[Source]:
    """The own delta at another scale that stands somewhere in the adapter, in the other modules or in the formula."""

    def root(point: Point, lora: LoraWeights) -> float:
        return lora.scale * lora.A.shape[0] ** 0.5

    def alpha(point: Point, lora: LoraWeights) -> float:
        return lora.scale * lora.A.shape[0]

    def alpha_of_root(point: Point, lora: LoraWeights) -> float:
        return lora.scale / lora.A.shape[0] ** 0.5

    def first_scale(point: Point, lora: LoraWeights) -> float:
        return next(iter(point.weights[key].values())).scale

    def partner(names: tuple[str, ...], name: str) -> Callable[[Point, LoraWeights], float | None]:
        def scale(point: Point, lora: LoraWeights) -> float | None:
            other = point.of(key, point.beside(name)) if point.module[1] in names else None
            return None if other is None else other.scale

        return scale

    def constant(point: Point, lora: LoraWeights) -> float:
        return 1.0

    def whole_part(point: Point, lora: LoraWeights) -> float:
        return float(np.floor(lora.scale))

    yield scaled(key, "scale 1", "its own delta without its scale", constant, 3)
    yield scaled(key, "whole scale", "its own delta at the whole part of its scale", whole_part, 4)
    yield scaled(key, "scale squared", "its own delta scaled twice", lambda _, lora: lora.scale**2, 3)
    yield scaled(key, "scale cubed", "its own delta scaled three times", lambda _, lora: lora.scale**3, 3.5)
    yield scaled(key, "scale inverse", "its own delta divided by its scale", lambda _, lora: 1 / lora.scale, 4)
    yield scaled(key, "scale times r", "its own delta times alpha, not alpha / r", alpha, 3)
    yield scaled(key, "scale times root r", "its own delta scaled by alpha / sqrt(r), not alpha / r", root, 3)
    words = "its own delta scaled by alpha / r, not alpha / sqrt(r)"
    yield scaled(key, "scale over root r", words, alpha_of_root, 3)
    yield scaled(key, "scale of first", "its own delta at the scale of its first module", first_scale, 4)
    for names in PARTNERS:
        for name in names:
            yield scaled(key, f"scale of {name}", f"its own delta at the scale of {name}", partner(names, name), 4)


def pattern_sources(key: str, config: PeftConfig) -> Iterator[Source]:
    """The own delta at the scale of its config, at modules to which a pattern gives another alpha or rank."""

    def at(alpha: bool, rank: bool) -> Callable[[Point, LoraWeights], float]:
        def scale(point: Point, lora: LoraWeights) -> float:
            root, r = 0.5 if config.use_rslora else 1.0, len(lora.A)
            own_alpha = config.lora_alpha if alpha else lora.scale * r**root
            return own_alpha / (config.r if rank else r) ** root

        return scale

    def without_root(point: Point, lora: LoraWeights) -> float | None:
        return lora.scale / len(lora.A) ** 0.5 if config.use_rslora and len(lora.A) != config.r else None

    def read_by(pattern: Mapping[str, float]) -> Callable[[Point, LoraWeights], float]:
        def scale(point: Point, lora: LoraWeights) -> float:
            alpha = pattern_value(pattern, module_name(point.module), config.lora_alpha)
            return lora.scale * alpha / lora_alpha_of(config, point.module)

        return scale

    words = "its own delta scaled by alpha / r, not alpha / sqrt(r), at modules of a rank_pattern"
    yield scaled(key, "no root at ranks of a pattern", words, without_root, 4)
    for what, alpha, rank in (("lora_alpha", True, False), ("r", False, True), ("lora_alpha and r", True, True)):
        words = f"its own delta scaled by its config's {what}, whatever its patterns say"
        yield scaled(key, f"scale of the config's {what}", words, at(alpha, rank), 3.5)
    first = config.alpha_pattern
    readings = {
        "the last key of its alpha_pattern that matches": dict(list(first.items())[::-1]),
        "those keys of its alpha_pattern alone that are no paths": {k: v for k, v in first.items() if "." not in k},
    }
    for what, pattern in readings.items():
        words = f"its own delta scaled by {what}, not by the first that matches"
        yield scaled(key, f"alpha by {what}", words, read_by(pattern), 3.5)


class WithoutBiases(Mapping[Module, LoraWeights]):
    """An adapter's weights less the biases, each made when it is asked for: one of dozens is."""

    def __init__(self, weights: Mapping[Module, LoraWeights]) -> None:
        self._weights = weights

    def __getitem__(self, module: Module) -> LoraWeights:
        return replace(self._weights[module], bias=None)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def but_for_its_bias(key: str, source: Source) -> Source:
    """The same done to B A x alone: an engine that keeps biases apart may have them right. An adapter's without any is
    the very same."""

    def delta(point: Point) -> Array | None:
        own_weights = point.weights[key]
        if all(lora.bias is None for lora in own_weights.values()):
            return source.delta(point)
        return source.delta(replace(point, weights={**point.weights, key: WithoutBiases(own_weights)}))

    words = f"{source.words}, its bias as it should be"
    return replace(source, key=f"{source.key}, not its bias", words=words, delta=delta, cost=source.cost + 0.5)


ROUNDED = {
    "A": "with A rounded",
    "B": "with B rounded",
    "A and B": "with A and B rounded",
    "x": "of an input that is rounded",
    "low": "with A x, between its two products, rounded",
    "delta": "rounded",
    "scale": "with its scale rounded",
    "output": "added to an output that is rounded",
    "sB": "with B times its scale rounded",
    "shards": "with A x, in two shards of the inputs of o_proj and the down projection, rounded",
}


def rounded_sources(key: str) -> Iterator[Source]:
    """The own delta with one of its operands in a type of fewer bits."""

    def rounded(what: str, to: np.dtype) -> Delta:
        def cast(x: Array) -> Array:
            return x.astype(np.float32).astype(to).astype(np.float64)

        def delta(point: Point) -> Array | None:
            lora, x = point.of(key), point.x
            if lora is None or point.module == EMBED:
                return None
            own_delta = full_delta(x, lora)
            if what == "output":
                y = x @ point.weight.T + (0.0 if point.base_bias is None else point.base_bias) + own_delta
                return cast(y) - y if y.shape == own_delta.shape else None
            if what == "delta":
                return cast(own_delta) - own_delta
            if what == "scale":
                return full_delta(x, replace(lora, scale=float(cast(np.array(lora.scale))))) - own_delta
            if what == "sB":
                own_bias = 0.0 if lora.bias is None else lora.bias * lora.scale
                return (x @ lora.A.T) @ cast(lora.B * lora.scale).T + own_bias - own_delta
            if what == "shards":
                half = x.shape[1] // 2 if point.module[1] in ("o_proj", point.config.down) else x.shape[1]
                low = cast(x[:, :half] @ lora.A[:, :half].T) + cast(x[:, half:] @ lora.A[:, half:].T)
                y = low @ lora.B.T
                return (y if lora.bias is None else y + lora.bias) * lora.scale - own_delta
            A, B = (cast(one) if name in what else one for name, one in (("A", lora.A), ("B", lora.B)))
            low = (cast(x) if what == "x" else x) @ A.T
            y = (cast(low) if what == "low" else low) @ B.T
            return (y if lora.bias is None else y + lora.bias) * lora.scale - own_delta

        return delta

    for name, to in (("bfloat16", DTYPES["bfloat16"]), ("float16", DTYPES["float16"])):
        for what, words in ROUNDED.items():
            called, computed = f"its own delta {words} to {name}", what not in ("A", "B", "A and B", "scale", "sB")
            yield Source(f"{what} in {name}", called, rounded(what, to), "instead", 4, rounds=computed)
