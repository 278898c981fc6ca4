"""`loracle bench adapters`: what does it cost to serve 5, 50, 500, 2,000 adapters together?

Every number of adapters serves the same trace (arrivals.py): the same times, prompts and lengths, for other adapters.

    saturated     all requests at once: throughput
    at a rate     requests when the trace has them: latencies, at seven tenths of the throughput by default
    resident      all adapters loaded, the trace of the smallest number: what it costs that the others are there
    memory        what the process grew by, against base + sum of the adapters

More adapters are more of them in one batch, too: more segments, and more weights that a step reads
(`adapters_in_a_step`, `step_bytes`). `resident` is without that. Two limits stand beside each ratio: `bare_ratio`, that
of the products of the same steps alone in a plain loop (bare.py), and `limit_ratio`, that of our steps if each further
adapter cost what it does there.

With a budget of memory, adapters beyond it stay on the host, and are loaded when they are asked for: misses.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..arrays import device_namespace
from ..backends import BACKENDS
from ..engine import Engine
from ..model import logits
from .adapter_testbed import (
    CLOCKS,
    Setup,
    Testbed,
    adapter_bytes,
    adapters_bytes,
    make_testbed,
    process_memory,
    random_adapters,
)
from .devices import copy_rate
from .machine import about
from .replay import in_turn, preload, replay, requests_of
from .serving import TOLERANCE
from .verify import WrongResult

Result = dict[str, Any]
Run = tuple[int, int]  # how many adapters are loaded, and how many the trace asks for
LOAD = 0.7  # of the saturated throughput: the rate of the run whose latencies are reported; nearer to 1, more wait


def bench(setup: Setup) -> Iterator[Result]:
    """Yield the report, complete after each round of all numbers of adapters. WrongResult before anything is timed."""
    begun, beside = time.monotonic(), make_testbed(setup)
    counts = sorted(set(beside.setup.counts))
    memory = dict(grow(beside))
    report: Result = {
        "benchmark": "adapters",
        "machine": about(),
        "setup": described(beside.setup),
        "base_bytes": beside.model.nbytes,
        "largest_difference": verified(beside),
        "bandwidth": copy_rate(device_namespace(setup.device), timer=CLOCKS[setup.clock]),
        "points": [{"adapters": count, **memory[count]} for count in counts],
        "left_out": [],
    }
    runs = [(count, count) for count in counts] + [(counts[-1], counts[0])] * (len(counts) > 1)
    engines = {run: beside.engine(run[0]) for run in runs}
    rounds: dict[Run, list[Result]] = {run: [] for run in runs}
    for turn in range(setup.repeats):
        if turn and time.monotonic() - begun > setup.seconds:
            report["left_out"].append({"rounds": setup.repeats - turn, "why": f"{setup.seconds:g} seconds were over"})
            break
        for run, row in timed(beside, engines, rotated(runs, turn)).items():
            rounds[run].append(row)
        first = rounds[runs[0]]
        for point, run in zip(report["points"], runs, strict=False):
            point |= {**summary(rounds[run], first), **step_bytes(beside, engines[run], rounds[run])}
        if len(counts) > 1:
            loaded, count = runs[-1]
            report["resident"] = {"loaded": loaded, "trace_of": count, **summary(rounds[runs[-1]], first)}
        yield report
    report["rate"] = rate_of(setup, report["points"][0]["requests_per_second"])
    for point in report["points"]:
        count = point["adapters"]
        engine = engines[count, count]
        preload(engine, beside.adapters[:count])
        result = beside.replay(engine, beside.trace_of(count, report["rate"] or 1.0))
        point |= {"latency_seconds": result.latencies(), "misses_at_the_rate": result.misses}
    yield report


def rate_of(setup: Setup, most: float) -> float | None:
    """Return the requests a second of the run for latencies, where `most` could be served; None: the trace's own."""
    return None if setup.trace is not None else setup.rate or LOAD * most


def step_bytes(beside: Testbed, engine: Engine, rows: Sequence[Result]) -> Result:
    """The bytes of weights that a step reads at least: the base once, and each adapter of the batch, of mean size."""
    each = [adapter_bytes(beside.model.config, rank, beside.setup.modules) for rank in beside.setup.ranks]
    adapters = statistics.median(row["adapters_in_a_step"] for row in rows) * statistics.fmean(each)
    return {"slots": engine.adapters.capacity, "step_bytes": beside.model.nbytes + round(adapters)}


def described(setup: Setup) -> Result:
    """The setup as JSON: of a trace only how long it is."""
    parts = asdict(replace(setup, trace=None)) | {"seconds": None}
    return parts | ({"workload": None, "trace_requests": len(setup.trace)} if setup.trace else {})


def rotated(runs: Sequence[Run], turn: int) -> list[Run]:
    """The same, beginning elsewhere in each round: what a machine does to the first of them, it does to each."""
    start = turn % len(runs)
    return [*runs[start:], *runs[:start]]


def timed(beside: Testbed, engines: Mapping[Run, Engine], runs: Sequence[Run]) -> dict[Run, Result]:
    """Serve all requests of each run's trace at once, the runs in turn; then take the bare products of their steps, in
    turn as well."""
    for run in runs:
        preload(engines[run], beside.adapters[: run[0]])
    served = beside.replay_in_turn([(engines[run], beside.trace_of(run[1])) for run in runs])
    results = dict(zip(runs, served, strict=True))
    bare: dict[Run, list[float]] = {run: [] for run in runs if run[0] == run[1] and beside.can_be_bare}
    in_turn([beside.bare(engines[run], results[run], seconds) for run, seconds in bare.items()])
    return {
        run: {
            "tokens_per_second": result.tokens_per_second,
            "requests_per_second": len(result.served) / sum(result.step_seconds),
            "adapters_in_a_step": statistics.fmean(result.distinct),
            "step_ms": 1e3 * statistics.fmean(result.step_seconds),
            "bare_ms": 1e3 * statistics.fmean(bare[run]) if run in bare else None,
            "loads": result.loads,
            "misses": result.misses,
        }
        for run, result in results.items()
    }


def summary(rows: Sequence[Result], first: Sequence[Result]) -> Result:
    """Medians over the rounds; each ratio is the median of each round's own, against the first number of adapters."""
    pairs = list(zip(rows, first, strict=True))
    medians = {key: None if rows[0][key] is None else statistics.median(row[key] for row in rows) for key in rows[0]}
    ratios = {"ratio": [row["tokens_per_second"] / one["tokens_per_second"] for row, one in pairs]}
    if medians["bare_ms"] is not None:
        ratios["bare_ratio"] = [one["bare_ms"] / row["bare_ms"] for row, one in pairs]
        ratios["limit_ratio"] = [
            one["step_ms"] / (one["step_ms"] + row["bare_ms"] - one["bare_ms"]) for row, one in pairs
        ]
    return medians | {key: statistics.median(values) for key, values in ratios.items()} | {"ratios": ratios["ratio"]}


def verified(beside: Testbed) -> float:
    """Serve the first requests of the trace together, and each alone. WrongResult if first tokens' logits differ by
    more than rounding; otherwise by how much, as a share of the largest logit."""
    count, setup = max(beside.setup.counts), beside.setup
    requests = requests_of(beside.trace_of(count)[: setup.max_running], beside.adapters, beside.model.config.vocab_size)
    engine = beside.engine(count)
    ids = [engine.add(request) for request in requests]
    rows: dict[int, Any] = {}
    while len(rows) < len(ids):
        engine.step()
        for record in engine.last_step:
            done = record.computed_before + record.tokens
            if record.request_id not in rows and done == len(requests[ids.index(record.request_id)].prompt_ids):
                rows[record.request_id] = record.logits
    alone = [logits(beside.model, [request], BACKENDS[setup.ops])[0][-1] for request in requests]
    largest = max(float(np.abs(row).max()) for row in alone)
    off = max(float(np.abs(rows[i] - row).max()) for i, row in zip(ids, alone, strict=True)) / largest
    if not off <= TOLERANCE["float32"]:
        raise WrongResult(f"{count} adapters: a request's logits change by {off:.3g} in a batch: nothing is timed")
    return off


def grow(beside: Testbed) -> Iterator[tuple[int, Result]]:
    """Make the adapters, and yield (count, bytes) at each number of them, loaded into one engine that has served.

    grown_bytes is what the process grew by since the smallest number was there, and the bytes of those: None at the
    smallest, where it cannot be known, and where it says nothing of the adapters (on a GPU; with a budget; with copies
    on the host)."""
    setup, config = beside.setup, beside.model.config
    source, engine = random_adapters(beside.model, setup), beside.engine(max(setup.counts))
    trace = [replace(arrival, adapter=0, arrival=0.0) for arrival in beside.trace[: setup.max_running]]
    alone = setup.device == "cpu" and setup.memory is None and setup.pool == "separate"
    first: int | None = None  # what there was beside the adapters of the smallest number
    for count in sorted(set(setup.counts)):
        while len(beside.adapters) < count:
            beside.adapters.append(next(source))
            preload(engine, beside.adapters[-1:])
        replay(engine, trace, beside.adapters)
        total, now = adapters_bytes(config, setup, count), process_memory()
        grown = now - first if alone and now is not None and first is not None else None
        first = now - total if first is None and now is not None else first
        yield count, {"adapter_bytes": total, "kv_bytes": engine.cache.memory.nbytes, "grown_bytes": grown}
