"""Some rows of what a pass has, cut when they are asked for: most sources look at few of them."""

from collections.abc import Iterator, Mapping

from ...arrays import Array


class Rows(Mapping[str, Array]):
    """Some rows of what a layer's modules were given, cut when they are asked for."""

    def __init__(self, inputs: Mapping[str, Array], rows: Array) -> None:
        self._inputs, self._rows = inputs, rows

    def __getitem__(self, name: str) -> Array:
        return self._inputs[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


class Turns(Mapping[object, tuple[Array, Array]]):
    """cos and sin of some tokens' positions, cut when they are asked for."""

    def __init__(self, turns: Mapping[object, tuple[Array, Array]], tokens: Array) -> None:
        self._turns, self._tokens = turns, tokens

    def __getitem__(self, rope: object) -> tuple[Array, Array]:
        cos, sin = self._turns[rope]
        return cos[self._tokens], sin[self._tokens]

    def __iter__(self) -> Iterator[object]:
        return iter(self._turns)

    def __len__(self) -> int:
        return len(self._turns)
