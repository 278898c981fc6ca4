"""Chapter 6: when may two blocks have the same key? Exactly when their keys and values would be the same numbers.

A case is a request, and the same one with one thing changed: two requests that have nothing in common prove nothing.
Each change is one that somebody's key did not notice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from ...arrays import Precision
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch06_prefix_key import MISTAKES
from ..numbers import columns

BLOCK_SIZE = 2  # tokens
TOKENS = (1, 2, 11, 12, 44, 300)  # 1|12 and 11|2 read alike without a separator; 44 and 300 are one byte modulo 256
SIXTEEN_BITS_MORE = 2**16 + 44  # another id than 44, for who writes ids in more than two bytes
NAMES = ("pirate", "robot")
WEIGHTS = (1.0, 0.5, 0.25, -1.0, -2.0)  # int(0.5) == int(0.25), hash(-1.0) == hash(-2.0)
ROUNDING = 1e-3  # of logits up to 26, in float32: what is off by less was found rightly

Adapters = tuple[tuple[str, float], ...]  # their names, and how much of each


@dataclass(frozen=True)
class Prompt:
    """What one request is made of: a base, a sum of adapters, and full blocks of tokens."""

    adapters: Adapters
    tokens: tuple[int, ...]
    base: str = "base"
    dtype: str = "float32"

    def __str__(self) -> str:
        names = " + ".join(f"{weight:g} x {name}" if weight != 1 else name for name, weight in self.adapters)
        precision = "" if self.dtype == "float32" else f" in {self.dtype}"
        return f"{self.base}{precision}, {names or 'no adapter'}: " + " | ".join(
            " ".join(map(str, block)) for block in self.blocks()
        )

    def blocks(self) -> list[tuple[int, ...]]:
        return [self.tokens[i : i + BLOCK_SIZE] for i in range(0, len(self.tokens), BLOCK_SIZE)]


Case = tuple[Prompt, Prompt]


@dataclass(frozen=True)
class Block:
    """One full block: where it is, everything that its keys and values are computed from, and the attempt's key."""

    name: str
    computed_from: tuple[str, str, Adapters, tuple[int, ...]]
    key: object


def digest(name: str) -> bytes:
    """In place of the SHA-256 of some weights: 32 bytes, different for different weights."""
    return f"{name:.^32}".encode()  # begins and ends like every other: who cuts it, loses what tells it apart


def keys(attempt: Attempt, prompt: Prompt) -> Iterator[object]:
    """Yield the chain of keys, as scheduler.py makes it; so that a first key is seen where the second raises."""
    key: object = b""
    p = Precision("model", prompt.dtype)
    for block in prompt.blocks():
        adapters = [(digest(name), weight) for name, weight in prompt.adapters]
        key = attempt(key, list(block), digest(prompt.base), p, adapters)
        yield key


def blocks(attempt: Attempt, case: Case) -> Iterator[Block]:
    for number, prompt in enumerate(case, 1):
        for i, key in enumerate(keys(attempt, prompt)):
            computed_from = (prompt.base, prompt.dtype, prompt.adapters, prompt.tokens[: (i + 1) * BLOCK_SIZE])
            yield Block(f"block {i} of request {number}", computed_from, key)


# The cases.

adapter_sums = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(WEIGHTS)), max_size=2, unique_by=lambda adapter: adapter[0]
).map(tuple)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Lists, and not a number and a loop: Hypothesis deletes elements of a list, and not turns of a loop.
    block = st.tuples(*[st.sampled_from(TOKENS)] * BLOCK_SIZE)
    tokens = tuple(token for block in draw(st.lists(block, min_size=1, max_size=3)) for token in block)
    prompt = Prompt(draw(adapter_sums), tokens)
    return prompt, draw(st.sampled_from(CHANGES))(draw, prompt)


def nothing(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    return prompt


def one_adapter_less(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    return replace(prompt, adapters=prompt.adapters[:-1])


def other_adapters(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    return replace(prompt, adapters=draw(adapter_sums))


def other_weight(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    if not prompt.adapters:
        return prompt
    i = draw(st.integers(0, len(prompt.adapters) - 1))
    changed = (prompt.adapters[i][0], draw(st.sampled_from(WEIGHTS)))
    return replace(prompt, adapters=(*prompt.adapters[:i], changed, *prompt.adapters[i + 1 :]))


def other_token(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    i = len(prompt.tokens) - 1 - draw(st.integers(0, len(prompt.tokens) - 1))  # from the end: it shrinks to one block
    return replace(prompt, tokens=(*prompt.tokens[:i], draw(st.sampled_from(TOKENS)), *prompt.tokens[i + 1 :]))


def two_other_tokens(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    last = len(prompt.tokens) // BLOCK_SIZE - 1
    i = (last - draw(st.integers(0, last))) * BLOCK_SIZE
    block = prompt.tokens[i : i + BLOCK_SIZE]
    changed = draw(st.permutations(block) | st.tuples(*[st.sampled_from(TOKENS)] * BLOCK_SIZE))
    return replace(prompt, tokens=(*prompt.tokens[:i], *changed, *prompt.tokens[i + BLOCK_SIZE :]))


def other_base(draw: st.DrawFn, prompt: Prompt) -> Prompt:
    return replace(prompt, base="another base")


Change = Callable[[st.DrawFn, Prompt], Prompt]
CHANGES: list[Change] = [
    *(nothing, one_adapter_less, other_adapters, other_weight),
    *(other_token, two_other_tokens, other_base),
]

PIRATE: Adapters = (("pirate", 1.0),)
BOTH: Adapters = (("pirate", 1.0), ("robot", 1.0))
THREE: Adapters = (*BOTH, ("merchant", 1.0))
FIXED: Sequence[Case] = [
    (Prompt(PIRATE, (1, 2)), Prompt(PIRATE, (1, 2))),
    (Prompt(PIRATE, (1, 2)), Prompt((), (1, 2))),
    (Prompt(PIRATE, (1, 2)), Prompt((("robot", 1.0),), (1, 2))),
    (Prompt(PIRATE, (1, 2)), Prompt((("pirate", -1.0),), (1, 2))),
    (Prompt((("pirate", -1.0),), (1, 2)), Prompt((("pirate", -2.0),), (1, 2))),
    (Prompt((("pirate", 0.5),), (1, 2)), Prompt((("pirate", 0.501),), (1, 2))),
    (Prompt(BOTH, (1, 2)), Prompt(PIRATE, (1, 2))),
    (Prompt(BOTH, (1, 2)), Prompt((("pirate", 1.0), ("robot", -1.0)), (1, 2))),
    (Prompt(PIRATE, (1, 2)), Prompt(PIRATE, (2, 1))),
    (Prompt(PIRATE, (1, 1, 1, 1)), Prompt(PIRATE, (1, 1, 1, 1))),
    (Prompt(PIRATE, (1, 1, 2, 2)), Prompt(PIRATE, (1, 2, 2, 2))),
    (Prompt(PIRATE, (1, 12)), Prompt(PIRATE, (11, 2))),
    (Prompt(PIRATE, (1, 44)), Prompt(PIRATE, (1, 300))),
    (Prompt(PIRATE, (1, 2)), Prompt(PIRATE, (1, 11))),
    (Prompt(PIRATE, (1, 2, 1, 2)), Prompt(PIRATE, (1, 2, 1, 11))),
    (Prompt(PIRATE, (1, 2)), Prompt(PIRATE, (1, 2), "another base")),
    (Prompt(PIRATE, (1, 2)), Prompt(PIRATE, (1, 2), dtype="bfloat16")),  # here alone: others are to be seen before it
    (Prompt((("pirate", 0.5),), (1, 2)), Prompt((("pirate", 0.25),), (1, 2))),
    (Prompt((("pirate", 0.25),), (1, 2)), Prompt((("pirate", 0.2501),), (1, 2))),
    (Prompt((("pirate", 1.0), ("robot", -1.0)), (1, 2)), Prompt((("pirate", -1.0), ("robot", 1.0)), (1, 2))),
    (Prompt(THREE, (1, 2)), Prompt(BOTH, (1, 2))),
    (Prompt(PIRATE, (1, 44)), Prompt(PIRATE, (1, SIXTEEN_BITS_MORE))),
]

# What is said of a case.


def difference(attempt: Attempt, case: Case) -> str:
    earlier: list[Block] = []
    for block in blocks(attempt, case):
        if isinstance(block.key, str):
            return f"{block.name}: your key is text, and bytes are expected."
        if not isinstance(block.key, bytes):
            kind = "None" if block.key is None else f"of type {type(block.key).__name__}"
            return f"{block.name}: your key is {kind}, and bytes are expected."
        for other in earlier:
            same = block.computed_from == other.computed_from
            if same and block.key != other.key:
                return (
                    f"{other.name} and {block.name} hold the same numbers, and your keys differ: nobody finds it again."
                )
            if not same and block.key == other.key and not reordered(block, other):
                return (
                    f"{other.name} and {block.name} hold different numbers, and your keys are equal: the one is read "
                    "for the other."
                )
        earlier.append(block)
    return ""


def reordered(block: Block, other: Block) -> bool:
    """The same adapters in another order: the sums agree to rounding, so either answer is right."""
    (*rest, adapters, tokens), (*other_rest, other_adapters, other_tokens) = block.computed_from, other.computed_from
    return (rest, sorted(adapters), tokens) == (other_rest, sorted(other_adapters), other_tokens)


def describe(attempt: Attempt, case: Case) -> list[str]:
    return columns(
        [
            {"": f"request {n}", "prompt": prompt, "keys": "your keys: " + shown_keys(attempt, prompt)}
            for n, prompt in enumerate(case, 1)
        ]
    )


def shown_keys(attempt: Attempt, prompt: Prompt) -> str:
    try:
        return " | ".join(map(short, keys(attempt, prompt)))
    except Exception:
        return "(raises)"


def short(key: object) -> str:
    text = key.hex() if isinstance(key, bytes) else repr(key)
    return text if len(text) <= 8 else text[:6] + ".."


def behaviour(attempt: Attempt, case: Case) -> tuple[bool, ...]:
    """Which blocks would be shared: the bytes of a key are nobody's business."""
    all_keys = [block.key for block in blocks(attempt, case)]
    return tuple(key == other for i, key in enumerate(all_keys) for other in all_keys[:i])


def consequence(attempt: Attempt, case: Case) -> str:
    """Both requests to the real engine, one after the other, with this key in it; the second one alone without."""
    if (case[0].base, case[0].dtype) != (case[1].base, case[1].dtype):
        return ""
    requests = [
        Request([*prompt.tokens, 7], adapter=[(voices.voice(name), weight) for name, weight in prompt.adapters] or None)
        for prompt in case
    ]
    answer = voices.one_after_another(requests, as_ops(attempt), BLOCK_SIZE)[1]
    alone = voices.one_after_another(requests[1:], block_size=BLOCK_SIZE)[0]
    off = float(np.abs(answer.logits - alone.logits).max())
    if not answer.blocks_found or off < ROUNDING:
        return ""
    blocks_found = f"{answer.blocks_found} of {len(case[1].blocks())} blocks"
    return f"request 2 finds {blocks_found}, and its logits are off by {off:.2g}."


def as_ops(attempt: Attempt) -> dict[str, Attempt]:
    return {"prefix_key": attempt}


EXERCISE = Exercise(
    name="ch06_prefix_key",
    title="A prefix cache, keyed by adapter",
    chapter="ch06_prefix_cache",
    opens=("refimpl/kv_cache.py", "refimpl/scheduler.py"),
    minutes=45,
    hints=(
        "Write down everything that the numbers in the block were computed from. What of that is not in your key yet?",
        "The keys and values of token t depend on tokens 0 to t. `parent` already names all the blocks before.",
        "A SHA-256 of bytes will do, if nothing runs together: numpy's int64 has the same width for each id.",
    ),
    function="prefix_key",
    cases=cases(),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
