"""Serving a trace: requests enter the engine when their time has come, and every token is noted with its own.

The clock is that of the steps. A step takes as long as it takes on the machine; where nobody is there, the clock jumps
to the next arrival. So throughput and latencies are real, those of a server that does nothing else, and an hour of
quiet in a trace costs no hour. (A step that other processes hold up counts as long as it took: look at medians.)

    clock      0.00        0.02        0.04        0.06                    2.10
    step        |---- a ----|--- a, b --|--- b -----|   nobody: it jumps    |--- c ---
    arrival     a      b                                                    c
"""

import collections
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..adapter import Adapter
from ..engine import Engine
from ..errors import LoracleError, RequestError
from ..request import Request
from .arrivals import Arrival
from .bare import Rows

PERCENTILES = (50, 90, 99)
STEPS_IN_TURN = 8  # of traces in turn: few, so that all meet the same machine, and several, so that caches stay warm


@dataclass
class Served:
    """One request of the trace, when it got its tokens, and which."""

    arrival: float  # seconds on the clock, as all times here
    times: list[float] = field(default_factory=list)  # the end of the step that produced each token
    token_ids: list[int] = field(default_factory=list)

    @property
    def time_to_first_token(self) -> float:
        """Seconds from its arrival to its first token: waiting, loading and prefill."""
        return self.times[0] - self.arrival

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds between its tokens after the first; None if it produced one alone."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None

    @property
    def end_to_end(self) -> float:
        """Seconds from its arrival to its last token."""
        return self.times[-1] - self.arrival


@dataclass
class Replay:
    """What serving a trace came to."""

    served: list[Served]
    step_seconds: list[float] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)  # the requests of each step, in the order of its batch
    loads: int = 0  # adapters that were brought into the engine's memory
    misses: int = 0  # of these, those that a request had to wait for: the others were prefetched

    @property
    def distinct(self) -> list[int]:
        """How many adapters there were in the batch of each step."""
        return [len({slot for slot, _ in rows} - {None}) for rows in self.rows]

    @property
    def tokens(self) -> int:
        """How many tokens were produced."""
        return sum(len(served.times) for served in self.served)

    @property
    def tokens_per_second(self) -> float:
        """Produced tokens over the time in which somebody was there."""
        return self.tokens / sum(self.step_seconds)

    def latencies(self) -> dict[str, dict[str, float]]:
        """Return the percentiles of each latency over the requests, in seconds, under vLLM's names."""
        values = {
            "ttft": [served.time_to_first_token for served in self.served],
            "tpot": [x for x in (served.time_per_output_token for served in self.served) if x is not None],
            "e2el": [served.end_to_end for served in self.served],
        }
        return {name: {f"p{n}": float(np.percentile(x, n)) for n in PERCENTILES} for name, x in values.items() if x}


def requests_of(arrivals: Sequence[Arrival], adapters: Sequence[Adapter], vocab: int) -> list[Request]:
    """Return the requests of a trace: greedy, with no stop ids, so that each produces as much as the trace says.

    RequestError for an adapter number that is not there."""
    for i, arrival in enumerate(arrivals, 1):
        if arrival.adapter is not None and arrival.adapter >= len(adapters):
            raise RequestError(f"request {i} of the trace: adapter {arrival.adapter}, and there are {len(adapters)}")
    return [
        Request(
            arrival.prompt_ids(vocab, seed),
            None if arrival.adapter is None else adapters[arrival.adapter],
            arrival.max_new_tokens,
            stop_ids=(),
        )
        for seed, arrival in enumerate(arrivals)
    ]


def replay(
    engine: Engine,
    arrivals: Sequence[Arrival],
    adapters: Sequence[Adapter],
    timer: Callable[[], float] = time.perf_counter,
) -> Replay:
    """Serve a trace and return what it came to. The engine must be idle, and is idle again afterwards.

    arrivals: in the order of time. timer: seconds; read before and after each step. RequestError, before anything is
    computed, for a request that can never be served, by its number in the trace."""
    [report] = replay_in_turn([(engine, arrivals)], adapters, timer)
    return report


def replay_in_turn(
    traces: Sequence[tuple[Engine, Sequence[Arrival]]],
    adapters: Sequence[Adapter],
    timer: Callable[[], float] = time.perf_counter,
) -> list[Replay]:
    """Serve several traces, each by an engine of its own, some steps at a time: a machine that is slow for a while is
    slow for all of them. Otherwise as replay."""
    reports = [Replay([Served(arrival.arrival) for arrival in arrivals]) for _, arrivals in traces]
    servings = [
        _serving(engine, arrivals, adapters, report, timer)
        for (engine, arrivals), report in zip(traces, reports, strict=True)
    ]
    try:
        in_turn(servings)
    finally:
        for serving in servings:
            serving.close()
    return reports


def in_turn(runs: Sequence[Iterator[object]], steps: int = STEPS_IN_TURN) -> None:
    """Advance each of them by so many steps, again and again, until all are over."""
    queue = collections.deque(runs)
    while queue:
        run = queue.popleft()
        if sum(1 for _ in itertools.islice(run, steps)) == steps:
            queue.append(run)


def _serving(
    engine: Engine,
    arrivals: Sequence[Arrival],
    adapters: Sequence[Adapter],
    report: Replay,
    timer: Callable[[], float],
) -> Generator[None, None, None]:
    """Serve a trace, and yield after each step."""
    if engine.busy:
        raise RequestError("replay needs an engine to itself: this one is serving other requests")
    requests = requests_of(arrivals, adapters, engine.model.config.vocab_size)
    for i, request in enumerate(requests, 1):
        try:
            engine.check(request)
        except LoracleError as error:
            raise type(error)(f"request {i} of the trace: {error}") from None
    loads, misses = engine.adapters.loads, engine.adapters.misses
    try:
        yield from _steps(engine, requests, report, timer)
    finally:  # whatever is raised: the engine is free again
        for state in [*engine.running, *engine.waiting]:
            engine.cancel(state.id)
    report.loads, report.misses = engine.adapters.loads - loads, engine.adapters.misses - misses


def _steps(engine: Engine, requests: Sequence[Request], report: Replay, timer: Callable[[], float]) -> Iterator[None]:
    """Step until the trace is over; the clock is the sum of the steps and of the jumps over nothing."""
    queue = collections.deque(zip(requests, report.served, strict=True))
    by_id: dict[int, Served] = {}
    clock = 0.0
    while queue or engine.busy:
        if not engine.busy:
            clock = max(clock, queue[0][1].arrival)
        while queue and queue[0][1].arrival <= clock:
            request, served = queue.popleft()
            by_id[engine.add(request)] = served
        start = timer()
        tokens = engine.step()
        seconds = timer() - start
        clock += seconds
        report.step_seconds.append(seconds)
        computed = [each for each in engine.last_step if each.tokens]  # the others were preempted
        report.rows.append([(next(iter(each.adapter_slots), None), each.tokens) for each in computed])
        for token in tokens:
            by_id[token.request_id].times.append(clock)
            by_id[token.request_id].token_ids.append(token.token_id)
        yield


def preload(engine: Engine, adapters: Sequence[Adapter]) -> None:
    """Load adapters before a trace begins, the last one first, so that where they do not all fit the first ones stay:
    under Zipf's law those that are asked for most."""
    for adapter in reversed(adapters[: engine.adapters.capacity]):
        engine.adapters.release(engine.adapters.acquire(adapter))
