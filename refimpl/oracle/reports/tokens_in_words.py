"""The tokens in which a cause's changes were made, in words: `cause.tokens` of the JSON, read request by request."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Some = Mapping[str, Any]  # tokens that follow one another, as in the JSON


def by_request(cause: Mapping[str, Any], change: int | None) -> list[list[Some]]:
    """Return the tokens that have a change, those of each request together; requests of few such pieces first. None:
    the first token of each request that nothing explains."""
    tokens = [one for one in cause["tokens"] if one["change"] == change]
    requests = [list(some) for _, some in groupby(tokens, key=lambda one: (one["case"], one["run"], one["request"]))]
    return sorted(requests, key=lambda some: (len(some), some[-1]["last"]))


def which_request(tokens: Some) -> str:
    """Return which request they are of: "batch 3, request 1 (made-2)"."""
    run = f", run {tokens['run']}" if tokens["run"] or "sequence" in tokens["case"] else ""
    return f"{tokens['case']}{run}, request {tokens['request']} ({tokens['adapter'] or 'the base'})"


def in_words(some: Sequence[Some], most: int) -> str:
    """Return "tokens 4 to 6 (of made-2; step 7, slot 1), 9". most: pieces that are said."""
    is_one = len(some) == 1 and some[0]["first"] == some[0]["last"]
    more = [f"and {len(some) - most} pieces more"] if len(some) > most else []
    what = "keys and values of " if some[0]["keys_and_values"] else ""
    return f"{what}token{'' if is_one else 's'} {', '.join([*map(_piece, some[:most]), *more])}"


def _piece(tokens: Some) -> str:
    first, last = tokens["first"], tokens["last"]
    places = f"{first}" if first == last else f"{first} to {last}"
    how = "found in a cache" if tokens["is_cached"] else _steps(tokens["steps"])
    beside = "; ".join(filter(None, [f"of {tokens['of']}" if tokens["of"] else "", how]))
    return f"{places} ({beside})" if beside else places


def _steps(steps: Sequence[Sequence[int]]) -> str:
    """Return in which steps of its engine they were computed, and from which slots."""
    if not steps:
        return ""
    numbers = sorted({step for step, *_ in steps})
    slots = sorted({slot for *_, slot in steps if slot >= 0})
    is_range = len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1
    text = f"{numbers[0]} to {numbers[-1]}" if is_range else ", ".join(map(str, numbers))
    text = f"step{'s' if len(numbers) > 1 else ''} {text}"
    return f"{text}, slot {' and '.join(map(str, slots))}" if slots else text
