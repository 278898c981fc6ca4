"""Who asks when, for which adapter, and how long: drawn from a distribution, or read from a trace.

    {"arrival": 0.0312, "adapter": 17, "prompt_tokens": 12, "max_new_tokens": 20}

One request a line, in the order of arrival. `arrival` is in seconds from the start of the trace, `adapter` a number
from 0, null for the base alone, and `prompt_ids` may stand in place of `prompt_tokens`, whose ids are drawn. The same
file can be replayed by any backend (replay.py), on a CPU and on a GPU.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, Float
from ..errors import DataError, RequestError
from ..loading.json_file import is_integer, is_number, read_json_lines
from ..loading.suggestion import did_you_mean

PROCESSES = ("poisson", "gamma")
POPULARITIES = ("zipf", "uniform")
ZIPF = 1.0  # the i-th adapter is asked for in proportion to i^-ZIPF; the larger, the fewer adapters have all requests
KEYS = ("arrival", "adapter", "prompt_tokens", "prompt_ids", "max_new_tokens")


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    arrival: float  # seconds from the start of the trace
    adapter: int | None  # None: the base alone
    prompt: int | tuple[int, ...]  # how many tokens, or the tokens themselves
    max_new_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self.prompt if isinstance(self.prompt, int) else len(self.prompt)

    def prompt_ids(self, vocab: int, seed: int) -> list[int]:
        """Return the prompt's own ids, or as many random ones below `vocab`; the same for the same seed."""
        if not isinstance(self.prompt, int):
            return list(self.prompt)
        return np.random.default_rng(seed).integers(vocab, size=self.prompt).tolist()


@dataclass(frozen=True)
class Workload:
    """A distribution of requests. RequestError for one from which nothing can be drawn.

    rate: requests a second. process: the gaps between arrivals are exponential (Poisson), or Gamma with this
    coefficient of variation, standard deviation over mean: 1 is Poisson again, more comes in bursts, less evenly.
    Lengths are uniform between their two bounds, both included."""

    requests: int = 128
    rate: float = 10.0
    process: str = "poisson"
    cv: float = 1.0
    popularity: str = "zipf"
    prompt_tokens: tuple[int, int] = (8, 32)
    max_new_tokens: tuple[int, int] = (8, 32)

    def __post_init__(self) -> None:
        for name, choices in (("process", PROCESSES), ("popularity", POPULARITIES)):
            if getattr(self, name) not in choices:
                raise RequestError(f"{name} {getattr(self, name)!r}: expected {' or '.join(choices)}")
        for name in ("requests", "rate", "cv"):
            if not (is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise RequestError(f"{name} {getattr(self, name)}: it must be a number above 0")
        if self.process == "poisson" and self.cv != 1:
            raise RequestError(f"cv {self.cv}: that of poisson is 1; gamma can have another")
        for name in ("prompt_tokens", "max_new_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise RequestError(f"{name} from {low} to {high}: expected 1 <= low <= high")


def popularity(kind: str, adapters: int) -> Float[np.ndarray, " adapters"]:
    """Return the probability of each adapter: all alike, or Zipf's law, where the first is asked for most."""
    shares = np.ones(adapters) if kind == "uniform" else np.arange(1, adapters + 1) ** -ZIPF
    return shares / shares.sum()


def draw(workload: Workload, adapters: int, seed: int = 0) -> list[Arrival]:
    """Return the requests of one trace, for so many adapters; the same for the same seed.

    Times and lengths are drawn before the adapters, from generators of their own: another number of adapters, or
    another popularity, is the same trace for other adapters."""
    times, lengths, choices = (np.random.default_rng([seed, i]) for i in range(3))
    shape = workload.cv**-2  # a Gamma distribution's cv is 1 / sqrt(shape); with shape 1 it is the exponential one
    arrivals = np.cumsum(times.gamma(shape, 1 / (workload.rate * shape), workload.requests))
    prompts, outputs = (
        lengths.integers(low, high, workload.requests, endpoint=True)
        for low, high in (workload.prompt_tokens, workload.max_new_tokens)
    )
    numbers = choices.choice(adapters, workload.requests, p=popularity(workload.popularity, adapters))
    columns: list[Array] = [arrivals, numbers, prompts, outputs]
    return [Arrival(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def write_arrivals(file: Path, arrivals: Sequence[Arrival]) -> None:
    """Write a trace as JSONL. RequestError if the file cannot be written."""
    lines = []
    for arrival in arrivals:
        row: dict[str, Any] = {"arrival": arrival.arrival, "adapter": arrival.adapter}
        row |= {"prompt_tokens": arrival.prompt} if isinstance(arrival.prompt, int) else {"prompt_ids": arrival.prompt}
        lines.append(json.dumps(row | {"max_new_tokens": arrival.max_new_tokens}) + "\n")
    try:
        file.write_text("".join(lines), "utf-8")
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror or error}") from None


def read_arrivals(file: Path) -> list[Arrival]:
    """Read a trace. DataError, one line with file, line and key, for anything that is not as described above."""
    arrivals: list[Arrival] = []
    for where, row in read_json_lines(file, DataError):
        arrivals.append(_arrival(where, row))
        if len(arrivals) > 1 and arrivals[-1].arrival < arrivals[-2].arrival:
            before, now = arrivals[-2].arrival, arrivals[-1].arrival
            raise DataError(f"{where}: arrival {now} is before {before}, that of the line above: sort by arrival")
    if not arrivals:
        raise DataError(f"{file}: holds no request")
    return arrivals


def _arrival(where: str, row: dict[str, Any]) -> Arrival:
    for key in row:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}; known are {', '.join(KEYS)}{did_you_mean(key, KEYS)}")
    if ("prompt_tokens" in row) == ("prompt_ids" in row):
        raise DataError(f"{where}: give one of prompt_tokens and prompt_ids")
    arrival, adapter, ids = row.get("arrival", "missing"), row.get("adapter"), row.get("prompt_ids")
    if not (is_number(arrival) and float(arrival) >= 0):
        raise DataError(f"{where}: arrival is {arrival!r}: it must be a number of seconds, 0 or more")
    if not ("adapter" in row and (adapter is None or (is_integer(adapter) and int(adapter) >= 0))):
        raise DataError(
            f"{where}: adapter is {row.get('adapter', 'missing')!r}: it must be a number from 0, or null for the base"
        )
    for key in ("max_new_tokens",) if "prompt_ids" in row else ("prompt_tokens", "max_new_tokens"):
        if not (is_integer(row.get(key)) and row[key] >= 1):
            raise DataError(f"{where}: {key} is {row.get(key)!r}: it must be an integer, 1 or more")
    if "prompt_ids" in row and not (isinstance(ids, list) and ids and all(is_integer(i) and i >= 0 for i in ids)):
        raise DataError(f"{where}: prompt_ids must be a list of token ids, with at least one")
    prompt = row["prompt_tokens"] if "prompt_ids" not in row else tuple(row["prompt_ids"])
    return Arrival(float(row["arrival"]), adapter, prompt, row["max_new_tokens"])
