"""The delta, or A or B alone, of another module or layer of the same adapter."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from .mix_up import PARTNERS, Delta, Point, Source, blended, full_delta

# The slices of a fused product in another order: a module -> the one whose delta it gets.
SLICES: dict[str, Mapping[str, str]] = {
    "k_proj and v_proj swapped": {"k_proj": "v_proj", "v_proj": "k_proj"},
    "q_proj and k_proj swapped": {"q_proj": "k_proj", "k_proj": "q_proj"},
    "q_proj and v_proj swapped": {"q_proj": "v_proj", "v_proj": "q_proj"},
    "gate_proj and up_proj swapped": {"gate_proj": "up_proj", "up_proj": "gate_proj"},
}


def module_sources(key: str, modules: tuple[str, ...]) -> Iterator[Source]:
    """Yield the deltas, or A or B alone, of other modules and layers of the same adapter. modules: a layer's names."""

    def here(point: Point) -> LoraWeights | None:
        return point.of(key)

    def mixed(
        A_of: Callable[[Point], LoraWeights | None],
        B_of: Callable[[Point], LoraWeights | None],
        scale_of: Callable[[Point], LoraWeights | None],
        subtract: bool = True,
        instead_of: Callable[[Point], bool] = lambda point: False,
    ) -> Delta:
        """instead_of: where nothing is multiplied if the adapter has no such module."""

        def delta(point: Point) -> Array | None:
            own_lora, A_from, B_from, scale_from = point.of(key), A_of(point), B_of(point), scale_of(point)
            if A_from is None or B_from is None or scale_from is None:
                if own_lora is None or not instead_of(point):
                    return None
                bias = own_lora.bias if A_of is here or B_of is here else None
                rest = 0.0 if bias is None else bias * own_lora.scale
                return rest - full_delta(point.x, own_lora)
            if A_from is B_from is scale_from is own_lora:
                return None
            return blended(point, A_from, B_from, scale_from, own_lora if subtract else None)

        return delta

    def at(name: str) -> Callable[[Point], LoraWeights | None]:
        return lambda point: None if point.module[0] < 0 else point.of(key, point.beside(name))

    def slice_of(order: Mapping[str, str]) -> Callable[[Point], LoraWeights | None]:
        def of(point: Point) -> LoraWeights | None:
            name = order.get(point.module[1])
            return None if name is None else point.of(key, point.beside(name))

        return of

    def layer(shift: int) -> Callable[[Point], LoraWeights | None]:
        def of(point: Point) -> LoraWeights | None:
            number, name = point.module
            of_module = number + shift
            return point.of(key, (of_module, name)) if number >= 0 and of_module >= 0 else None

        return of

    def around(shift: int) -> Callable[[Point], LoraWeights | None]:
        """The same, where the first layer follows the last."""

        def of(point: Point) -> LoraWeights | None:
            number, name = point.module
            layers = point.config.num_hidden_layers
            return point.of(key, ((number + shift) % layers, name)) if number >= 0 else None

        return of

    def modulo(count: int) -> Callable[[Point], LoraWeights | None]:
        """Of layer i % count."""

        def of(point: Point) -> LoraWeights | None:
            number, name = point.module
            return point.of(key, (number % count, name)) if number >= count else None

        return of

    def counted(point: Point) -> LoraWeights | None:
        """Of the layer whose place among those that the adapter has is this number."""
        own_layers = sorted({number for number, _ in point.weights[key] if number >= 0})
        number, name = point.module
        if number < 0 or own_layers == list(range(len(own_layers))):
            return None if number < 0 else point.of(key)
        return point.of(key, (own_layers[number], name)) if number < len(own_layers) else None

    def from_the_end(point: Point) -> LoraWeights | None:
        number, name = point.module
        return point.of(key, (point.config.num_hidden_layers - 1 - number, name)) if number >= 0 else None

    def layer_zero(point: Point) -> LoraWeights | None:
        return point.of(key, (0, point.module[1])) if point.module[0] > 0 else None

    def of_one_rank(of: Callable[[Point], LoraWeights | None]) -> Callable[[Point], LoraWeights | None]:
        """The same, if it has the rank of the own one: of others no product can be made."""

        def alike(point: Point) -> LoraWeights | None:
            own_lora, other = point.of(key), of(point)
            is_alike = own_lora is not None and other is not None and len(own_lora.A) == len(other.A)
            return other if is_alike else None

        return alike

    for name in modules:
        of_module = at(name)
        beside = partial(is_beside, name)
        others = mixed(of_module, of_module, of_module, instead_of=beside)
        A, B = mixed(of_module, here, here, instead_of=beside), mixed(here, of_module, here, instead_of=beside)
        yield Source(f"{name}'s", f"{name}'s delta", others, "instead", 5)
        yield Source(f"A of {name}", f"its own delta with {name}'s A", A, "instead", 6)
        yield Source(f"B of {name}", f"its own delta with {name}'s B", B, "instead", 6)
        yield Source(f"added {name}'s", f"{name}'s delta", mixed(of_module, of_module, of_module, False), "added", 6)

    def of_those_before(point: Point) -> Array | None:
        """What A x of the slices before it would add, if the buffer between the two products were not cleared."""
        own_lora = point.of(key)
        names: tuple[str, ...] = next((names for names in PARTNERS if point.module[1] in names), ())
        before = names[: names.index(point.module[1])] if names else ()
        some = [point.of(key, point.beside(name)) for name in before if point.module[0] >= 0]
        deltas = [
            blended(point, one, own_lora, own_lora, None) for one in some if one is not None and own_lora is not None
        ]
        added = [
            one - own_lora.bias * own_lora.scale if own_lora and own_lora.bias is not None else one
            for one in deltas
            if one is not None
        ]
        return sum(added[1:], added[0]) if added else None

    def first_bias(point: Point) -> Array | None:
        """The bias of this module in the first layer that has one, in place of its own."""
        own_lora, name = point.of(key), point.module[1]
        layers = (point.of(key, (layer, name)) for layer in range(point.config.num_hidden_layers))
        first = next((lora.bias for lora in layers if lora is not None and lora.bias is not None), None)
        if own_lora is None or first is None or point.module[0] < 0:
            return None
        own_bias = np.zeros_like(first) if own_lora.bias is None else own_lora.bias
        return np.tile((first - own_bias) * own_lora.scale, (len(point.x), 1))

    words = "its own delta of A x to which that of the slices before it is added"
    yield Source("A x of the slices before", words, of_those_before, "instead", 4)
    for words, order in SLICES.items():
        of_slice = slice_of(order)
        exchanged = partial(is_exchanged, order)
        swapped = mixed(of_slice, of_slice, of_slice, instead_of=exchanged)
        yield Source(words, f"the delta of {words}", swapped, "instead", 4)
        for part, (A_of, B_of) in {"A": (of_slice, here), "B": (here, of_slice)}.items():
            half_swapped = mixed(A_of, B_of, here, instead_of=exchanged)
            called = f"its own delta with the {part} of {words}"
            yield Source(f"{part} of {words}", called, half_swapped, "instead", 5)
            if_alike = mixed(of_one_rank(A_of), of_one_rank(B_of), here)
            yield Source(
                f"{part} of {words}, of one rank", f"{called} where both are of one rank", if_alike, "instead", 5
            )
    for words, of, shift in (  # and how far away a layer must be there: if the adapter has nothing in it, nothing it is
        ("the layer before", layer(-1), -1),
        ("the layer after", layer(1), 1),
        ("layer 0", layer_zero, -1),
        ("the layer of its number modulo 2", modulo(2), -2),
        ("the layer of its number from the end", from_the_end, 0),
        ("the layer before, of the first the last", around(-1), 0),
        ("the layer after, of the last the first", around(1), 0),
    ):
        inner = partial(is_inner, shift)
        bits = 4.5 if "first" in words else 4.0
        delta = mixed(of, of, of, instead_of=inner)
        A, B = mixed(of, here, here, instead_of=inner), mixed(here, of, here, instead_of=inner)
        yield Source(f"delta of {words}", f"the delta of {words}", delta, "instead", bits)
        yield Source(f"A of {words}", f"its own delta with the A of {words}", A, "instead", 5)
        yield Source(f"B of {words}", f"its own delta with the B of {words}", B, "instead", 5)
    yield Source(
        "bias of the first layer", "the bias of lora_B of the first layer that has one", first_bias, "instead", 4
    )
    words = "the layer at its place among those that its adapter is on"
    in_layers = mixed(counted, counted, counted, instead_of=lambda point: point.module[0] >= 0)
    yield Source(f"delta of {words}", f"the delta of {words}", in_layers, "instead", 4)


def is_beside(name: str, point: Point) -> bool:
    """Is it another module that has the inputs of this name's, in a layer?"""
    return point.module[0] >= 0 and any({name, point.module[1]} <= set(names) for names in PARTNERS)


def is_inner(shift: int, point: Point) -> bool:
    """Has it a layer so many further on?"""
    return point.module[0] >= 0 and 0 <= point.module[0] + shift < point.config.num_hidden_layers


def is_exchanged(order: Mapping[str, str], point: Point) -> bool:
    """Is its slice another one's?"""
    return point.module[1] in order
