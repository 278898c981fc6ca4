"""The own delta of something else: of another token or input; or in another place of the computation."""

from collections.abc import Callable, Iterator

import numpy as np

from ...arrays import Array
from ...ops import NUMPY
from ...rope import apply_rope
from .mix_up import EXACT, GATE, GATE_BEFORE, RESIDUAL, UP, Delta, Point, Source, full_delta


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
        x = point.inputs.get("o_proj")
        return None if x is None else full_delta(x, lora)

    for name in (*modules, RESIDUAL, GATE, UP):
        in_words = {RESIDUAL: f"{RESIDUAL}, not normalised", GATE: f"{GATE} alone", UP: f"{UP}, without it"}
        what = in_words.get(name, f"{name}'s input")
        yield Source(f"input of {name}", f"its own delta of {what}", of(name), "instead", 4)
    yield Source("o_proj late", "o_proj's delta behind the MLP", late, "instead", 5)
