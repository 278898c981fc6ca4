"""Look inside a forward pass: `with trace() as t: logits(...)`, then t["layers.3.q_proj.lora"].

embed_tokens.base .lora     the residual stream before the first layer is their sum
layers.N.MODULE.input       x of one linear layer; MODULE is q_proj ... down_proj
layers.N.MODULE.base        x W^T + b
layers.N.MODULE.lora        what the adapters add to it: zero on rows without one
layers.N.q_rope .k_rope     queries and keys after the rotation
layers.N.attention          before o_proj
layers.N.mlp                silu(gate) * up
layers.N.output             the residual stream after the layer
norm, lm_head.input .base .lora, logits

Each row is a token; from o_proj of the last layer on, one that gets logits (of `logits`, every token).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatch

import numpy as np

from .arrays import Array, to_host
from .errors import RequestError


class Trace(Mapping[str, Array]):
    """Name -> the intermediate, [tokens, ...] on the host; the rows of a second pass stand below the first's."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns
        self._unmatched = set(patterns)
        self._offered = False
        self._parts: dict[str, list[Array]] = {}

    def wants(self, name: str) -> bool:
        """Does any of the patterns ask for this name?"""
        matching = {pattern for pattern in self._patterns if fnmatch(name, pattern)}
        self._unmatched -= matching
        self._offered = True
        return bool(matching)

    def check(self) -> None:
        """RequestError for a pattern that matched nothing of what a forward pass had to offer."""
        if self._offered and self._unmatched:
            pattern = min(self._unmatched)
            raise RequestError(
                f"trace {pattern!r} matches no intermediate of this model; there is layers.0.q_proj.input"
            )

    def record(self, name: str, x: Array) -> None:
        """Keep a copy under the name, if it is wanted."""
        if self.wants(name):
            self._parts.setdefault(name, []).append(to_host(x).copy())

    def note(self, scope: str, **values: Array) -> None:
        """Record each value as "scope" followed by its name."""
        for name, x in values.items():
            self.record(scope + name, x)

    def __getitem__(self, name: str) -> Array:
        return np.concatenate(self._parts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


_active: ContextVar[Trace | None] = ContextVar("refimpl_trace", default=None)


def active_trace() -> Trace | None:
    """The trace that is listening now, if any. The forward pass asks once."""
    return _active.get()


@contextmanager
def trace(*patterns: str) -> Iterator[Trace]:
    """Record what matches the patterns (as in a shell: "layers.*.lora") of every forward pass inside the block.

    RequestError at its end where one of them matched nothing."""
    listening = Trace(patterns or ("*",))
    token = _active.set(listening)
    try:
        yield listening
    finally:
        _active.reset(token)
    listening.check()
