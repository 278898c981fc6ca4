"""One request on its way through the engine, and what comes out of it: tokens one by one, or all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .request import Request


@dataclass(frozen=True)
class Token:
    """One produced token. `finish_reason` is set on a request's last one: "stop" or "length"."""

    request_id: int
    token_id: int
    text: str = ""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Output:
    """What one request produced. A stop id that ended it is the last of `token_ids`, and not part of `text`."""

    token_ids: list[int]
    text: str
    finish_reason: str


@dataclass(eq=False)
class RequestState:
    """One request on its way."""

    id: int
    request: Request
    tokens: list[int]  # the prompt and what was produced so far
    limit: int  # length at which it ends
    computed: int = 0  # how many of the tokens are in the cache
    table: list[int] = field(default_factory=list)  # its blocks; NO_BLOCK where the sliding window has passed
    adapters: Sequence[tuple[int, float]] = ()
    starts: Sequence[int] = ()  # the position from which each adapter acts (alora.py)
    keys: list[bytes] = field(default_factory=list)  # prefix keys of its full blocks
    overtaken: int = 0  # how many later ones were admitted while it waited
    blocks_found: int = 0  # when it was admitted, until the step's record has it (step_record.py)
    evicted: tuple[str, ...] = ()  # the same: adapters that lost their slots to its own

    @property
    def produced(self) -> int:
        """Tokens produced so far."""
        return len(self.tokens) - len(self.request.prompt_ids)
