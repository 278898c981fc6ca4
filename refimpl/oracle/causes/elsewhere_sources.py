"""The own delta of something else: another token, module, layer or input; or in another place of the computation."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...ops import NUMPY
from ...rope import apply_rope
from .mix_up import EXACT, GATE, GATE_BEFORE, PARTNERS, RESIDUAL, UP, Delta, Point, Source, blended, full_delta


def token_sources(key: str) -> Iterator[Source]:
    """Yield the deltas of other tokens."""

    def shifted(shift: Callable[[int], Array]) -> Delta:
        def delta(point: Point) -> Array | None:
            lora = point.of(key)
            if lora is None:
                return None
            own_delta, rows = full_delta(point.x, lora), shift(len(point.x))
            return np.where(rows[:, None] < 0, 0.0, own_delta[rows]) - own_delta

        return delta

    def mean(point: Point) -> Array | None:
        lora = point.of(key)
        return None if lora is None else full_delta(point.x, lora).mean(axis=0) - full_delta(point.x, lora)

    shifts: dict[str, Callable[[int], Array]] = {
        "the token before": lambda n: np.arange(n) - 1,
        "the token after": lambda n: np.where(np.arange(n) + 1 < n, np.arange(n) + 1, -1),
        "the first token": lambda n: np.zeros(n, int),
        "the last token": lambda n: np.full(n, n - 1),
        "the mirrored token": lambda n: np.arange(n)[::-1],
    }
    for name, shift in shifts.items():
        yield Source(f"of {name}", f"its own delta of {name}", shifted(shift), "instead", 4)
    yield Source("of the mean token", "the mean of its own deltas over the tokens", mean, "instead", 6)


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

    def layer_zero(point: Point) -> LoraWeights | None:
        return point.of(key, (0, point.module[1])) if point.module[0] > 0 else None

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

    words = "its own delta of A x to which that of the slices before it is added"
    yield Source("A x of the slices before", words, of_those_before, "instead", 4)
    for words, order in SLICES.items():
        of_slice = slice_of(order)
        exchanged = partial(is_exchanged, order)
        swapped = mixed(of_slice, of_slice, of_slice, instead_of=exchanged)
        yield Source(words, f"the delta of {words}", swapped, "instead", 4)
        for part, (A_of, B_of) in {"A": (of_slice, here), "B": (here, of_slice)}.items():
            half_swapped = mixed(A_of, B_of, here, instead_of=exchanged)
            yield Source(f"{part} of {words}", f"its own delta with the {part} of {words}", half_swapped, "instead", 5)
    for words, of in (
        ("the layer before", layer(-1)),
        ("the layer after", layer(1)),
        ("layer 0", layer_zero),
        ("the layer of its number modulo 2", modulo(2)),
        ("the layer before, of the first the last", around(-1)),
        ("the layer after, of the last the first", around(1)),
    ):
        bits = 4.5 if "first" in words else 4.0
        yield Source(f"delta of {words}", f"the delta of {words}", mixed(of, of, of), "instead", bits)
        yield Source(f"A of {words}", f"its own delta with the A of {words}", mixed(of, here, here), "instead", 5)
        yield Source(f"B of {words}", f"its own delta with the B of {words}", mixed(here, of, here), "instead", 5)


def is_beside(name: str, point: Point) -> bool:
    """Is it another module that has the inputs of this name's, in a layer?"""
    return point.module[0] >= 0 and any({name, point.module[1]} <= set(names) for names in PARTNERS)


def is_exchanged(order: Mapping[str, str], point: Point) -> bool:
    """Is its slice another one's?"""
    return point.module[1] in order


def place_sources(key: str) -> Iterator[Source]:
    """Yield the own delta of q and k behind the rotation, or turned twice."""

    def not_turned(point: Point) -> Array | None:
        """What is added behind the rotation stands before it turned back."""
        lora = point.of(key)
        layer, name = point.module
        rope = None if layer < 0 else point.config.kind(layer).rope
        if lora is None or name not in ("q_proj", "k_proj") or rope is None:
            return None
        own_delta, (cos, sin) = full_delta(point.x, lora), point.turns[rope]
        heads = own_delta.reshape(len(own_delta), -1, point.config.head_dim)
        return apply_rope(heads, cos, -sin, rope.interleaved, EXACT).reshape(own_delta.shape) - own_delta

    def turned_twice(point: Point) -> Array | None:
        lora = point.of(key)
        layer, name = point.module
        rope = None if layer < 0 else point.config.kind(layer).rope
        if lora is None or name not in ("q_proj", "k_proj") or rope is None:
            return None
        own_delta, (cos, sin) = full_delta(point.x, lora), point.turns[rope]
        heads = own_delta.reshape(len(own_delta), -1, point.config.head_dim)
        return apply_rope(heads, cos, sin, rope.interleaved, EXACT).reshape(own_delta.shape) - own_delta

    yield Source("not turned", "its own delta added behind the rotation, unturned", not_turned, "instead", 4)
    yield Source("turned twice", "its own delta turned twice", turned_twice, "instead", 6)


def late_sources(key: str) -> Iterator[Source]:
    """Yield what the MLP's last module makes of a gate's delta that is added behind the activation, and of that of what
    it multiplies behind the product."""

    def behind(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            lora = point.of(key, point.beside(name)) if point.module[1] == point.config.down else None
            gate, gated, up, x = (point.inputs.get(what) for what in (GATE_BEFORE, GATE, UP, name))
            if lora is None or gate is None or gated is None or up is None or x is None:
                return None
            late = full_delta(x, lora)
            activated = NUMPY.mlp_activation(gate - late, None, point.config.activation, EXACT)
            h = (activated + late) * up if name == "gate_proj" else gated * (up - late) + late
            own_lora = point.of(key)
            change = (h - point.x) @ point.weight.T
            return change if own_lora is None else change + full_delta(h, own_lora) - full_delta(point.x, own_lora)

        return delta

    def of_the_base(point: Point) -> Array | None:
        """The own delta of what gate and up make without theirs."""
        own_lora = point.of(key) if point.module[1] == point.config.down else None
        gate, up, x = (point.inputs.get(what) for what in (GATE_BEFORE, UP, "gate_proj"))
        if own_lora is None or gate is None or up is None or x is None:
            return None
        of_gate, of_up = (point.of(key, point.beside(name)) for name in ("gate_proj", "up_proj"))
        gate = gate if of_gate is None else gate - full_delta(x, of_gate)
        up = up if of_up is None else up - full_delta(x, of_up)
        h = NUMPY.mlp_activation(gate, up, point.config.activation, EXACT)
        return full_delta(h, own_lora) - full_delta(point.x, own_lora) if h.shape == point.x.shape else None

    words = "its own delta of what the base's gate and up alone make"
    yield Source("input of the base", words, of_the_base, "instead", 4)
    words = "the delta of gate_proj added behind the activation"
    yield Source("gate_proj late", words, behind("gate_proj"), "instead", 4)
    words = "the delta of up_proj added behind the product with the gate"
    yield Source("up_proj late", words, behind("up_proj"), "instead", 4)


def input_sources(key: str, modules: tuple[str, ...]) -> Iterator[Source]:
    """The own delta of what another module was given."""

    def of(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            lora, x = point.of(key), point.inputs.get(name)
            if lora is None or x is None or x is point.x or point.module[1] == name or x.shape[1] != lora.A.shape[1]:
                return None
            return full_delta(x, lora) - full_delta(point.x, lora)

        return delta

    def late(point: Point) -> Array | None:
        """Nothing at o_proj, and its delta at the MLP's end."""
        lora = point.of(key, point.beside("o_proj")) if point.module[0] >= 0 else None
        if lora is None or point.module[1] not in ("o_proj", point.config.down):
            return None
        if point.module[1] == "o_proj":
            return -full_delta(point.x, lora)
        return full_delta(point.inputs["o_proj"], lora)

    for name in (*modules, RESIDUAL, GATE, UP):
        in_words = {RESIDUAL: f"{RESIDUAL}, not normalised", GATE: f"{GATE} alone", UP: f"{UP}, without it"}
        what = in_words.get(name, f"{name}'s input")
        yield Source(f"input of {name}", f"its own delta of {what}", of(name), "instead", 4)
    yield Source("o_proj late", "o_proj's delta behind the MLP", late, "instead", 5)
