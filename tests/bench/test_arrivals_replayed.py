"""Replaying a trace: all get what they would get alone, at times that follow from the steps; misses are counted."""

import collections
import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from support.testbed import CONFIG

from refimpl import NUMPY, Engine, generate
from refimpl.adapter import Adapter, PeftConfig
from refimpl.backends import BACKENDS
from refimpl.bench.arrivals import Arrival, Workload, draw, read_arrivals, write_arrivals
from refimpl.bench.replay import Replay, Served, preload, replay, requests_of
from refimpl.cuda import runner
from refimpl.errors import CacheFull, LogitsError, RequestError
from refimpl.synthetic.adapters import random_adapter
from refimpl.synthetic.models import random_model
from refimpl.unified_pool import UnifiedPool

MODEL = random_model(CONFIG, np.random.default_rng(3), "float32")
MODULES = ("q_proj", "v_proj", "down_proj")
POOLS = pytest.mark.parametrize("pool", [None, UnifiedPool], ids=["separate", "unified"])
WORKLOAD = Workload(requests=12, rate=0.4, process="gamma", cv=2.0, prompt_tokens=(1, 9), max_new_tokens=(1, 6))


def random_adapters(ranks: tuple[int, ...]) -> list[Adapter]:
    rng = np.random.default_rng(4)
    return [
        random_adapter(CONFIG, PeftConfig(rank, 2 * rank, target_modules=MODULES), f"adapter-{i}", rng)
        for i, rank in enumerate(ranks)
    ]


ADAPTERS = random_adapters((1, 2, 4, 8, 3))


SECONDS = itertools.count()


def one_second_a_step() -> float:
    """A timer that is read before and after each step, one second later each time."""
    return float(next(SECONDS))


def engine(**options: object) -> Engine:
    return Engine(MODEL, **{"num_blocks": 64, "block_size": 8, "max_running": 4, "prefix_caching": False, **options})


@POOLS
@pytest.mark.parametrize("capacity", [None, 2])
def test_everyone_gets_what_they_would_get_alone(pool: type[UnifiedPool] | None, capacity: int | None) -> None:
    arrivals = draw(WORKLOAD, len(ADAPTERS))
    result = replay(engine(pool=pool, max_adapters=capacity), arrivals, ADAPTERS, one_second_a_step)
    for served, arrival, request in zip(
        result.served, arrivals, requests_of(arrivals, ADAPTERS, CONFIG.vocab_size), strict=True
    ):
        assert served.token_ids == generate(MODEL, [request], ops=NUMPY)[0].token_ids
        assert len(served.token_ids) == len(served.times) == arrival.max_new_tokens
        assert served.times == sorted(served.times) and served.times[0] >= arrival.arrival + 1
    assert result.tokens == sum(arrival.max_new_tokens for arrival in arrivals)


def test_times_follow_from_the_steps() -> None:
    """Steps of one second, and prompts that take one each: every time can be told by hand."""
    arrivals = [Arrival(0.5, 0, 3, 3), Arrival(1.0, None, 2, 2), Arrival(40.0, 1, 2, 1)]
    result = replay(engine(), arrivals, ADAPTERS, one_second_a_step)
    # At 0.5 the first step begins; the second request is there when it ends; then it is quiet until 40.
    assert [served.times for served in result.served] == [[1.5, 2.5, 3.5], [2.5, 3.5], [41.0]]
    assert [served.time_to_first_token for served in result.served] == [1.0, 1.5, 1.0]
    assert [served.time_per_output_token for served in result.served] == [1.0, 1.0, None]
    assert [served.end_to_end for served in result.served] == [3.0, 2.5, 1.0]
    assert result.step_seconds == [1.0] * 4 and result.distinct == [1, 1, 1, 1]
    assert result.tokens == 6 and result.tokens_per_second == 1.5
    assert result.latencies()["ttft"] == {"p50": 1.0, "p90": pytest.approx(1.4), "p99": pytest.approx(1.49)}


def test_a_replay_is_the_same_every_time_and_from_a_file(tmp_path: Path) -> None:
    arrivals = draw(WORKLOAD, len(ADAPTERS))
    write_arrivals(tmp_path / "trace.jsonl", arrivals)
    runs = [
        replay(engine(max_adapters=2), trace, ADAPTERS, one_second_a_step)
        for trace in (arrivals, arrivals, read_arrivals(tmp_path / "trace.jsonl"))
    ]
    assert dataclasses.asdict(runs[0]) == dataclasses.asdict(runs[1]) == dataclasses.asdict(runs[2])


@pytest.mark.skipif(runner.device() != "cpu", reason="the kernels on the CPU runner")
def test_the_kernels_serve_the_same_trace() -> None:
    arrivals = draw(dataclasses.replace(WORKLOAD, requests=4, max_new_tokens=(1, 3)), 3)
    ours, theirs = (
        replay(Engine(MODEL, ops, num_blocks=64, prefix_caching=False), arrivals, ADAPTERS, one_second_a_step)
        for ops in (NUMPY, BACKENDS["cuda"])
    )
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)


def one_at_a_time(adapters: list[int | None]) -> list[Arrival]:
    """Requests so far apart that each is alone, of one step."""
    return [Arrival(10.0 * i, adapter, 2, 1) for i, adapter in enumerate(adapters)]


@POOLS
@pytest.mark.parametrize(
    ("preloaded", "trace", "misses"),
    [
        (0, [0, 1, 0, None, 1], 2),  # each is loaded once
        (0, [0, 1, 2, 0, 1, 2], 6),  # round and round through two slots: LRU is always wrong
        (0, [0, 1, 0, 2, 0, 1], 4),  # 0 stays, and 1 has to go for 2 and to come again
        (3, [0, 1, 0], 0),  # of three that are preloaded, the first two stay
        (3, [2, 0], 1),  # the third is not there, and takes the slot of 1, which was loaded before 0
    ],
)
def test_misses_are_counted(
    pool: type[UnifiedPool] | None, preloaded: int, trace: list[int | None], misses: int
) -> None:
    one = engine(pool=pool, max_adapters=2)
    preload(one, ADAPTERS[:preloaded])
    result = replay(one, one_at_a_time(trace), ADAPTERS)
    assert (result.misses, result.loads) == (misses, misses)


def test_what_is_prefetched_is_loaded_and_not_missed() -> None:
    """Two running, two waiting: a unified pool loads for those that wait, and nobody waits for a load but the first."""
    arrivals = [Arrival(0.0, adapter, 2, 3) for adapter in range(4)]
    separate, unified = (
        replay(engine(pool=pool, max_running=2), arrivals, ADAPTERS, one_second_a_step) for pool in (None, UnifiedPool)
    )
    assert (separate.loads, separate.misses) == (4, 4)
    assert (unified.loads, unified.misses) == (4, 2)


@pytest.mark.parametrize(
    ("arrival", "error", "message"),
    [
        (Arrival(0.0, 5, 2, 1), RequestError, "request 2 of the trace: adapter 5, and there are 5"),
        (Arrival(0.0, 0, (99,), 1), RequestError, "request 2 of the trace: prompt_ids holds 99"),
        (Arrival(0.0, 0, 161, 1), RequestError, "request 2 of the trace: a prompt of 161 tokens is longer"),
        (Arrival(0.0, 0, 150, 9), CacheFull, "request 2 of the trace: a prompt of 150 tokens"),
    ],
)
def test_a_request_that_cannot_be_served_is_named_before_anything_runs(
    arrival: Arrival, error: type[Exception], message: str
) -> None:
    one = engine(num_blocks=16)
    with pytest.raises(error, match=message):
        replay(one, [Arrival(0.0, 0, 2, 1), arrival], ADAPTERS)
    assert not one.busy and one.adapters.loads == 0


def test_an_engine_is_free_again_whatever_happens() -> None:
    nan = dataclasses.replace(NUMPY, rms_norm=lambda x, weight, eps, p: x * np.float32("nan"))
    one = Engine(MODEL, nan, num_blocks=64)
    with pytest.raises(LogitsError):
        replay(one, [Arrival(0.0, 0, 2, 3), Arrival(0.0, 1, 2, 3)], ADAPTERS)
    assert not one.busy and one.cache.in_use == 0 and not one.adapters.ref_counts
    one.add(requests_of([Arrival(0.0, 0, 2, 1)], ADAPTERS, CONFIG.vocab_size)[0])
    with pytest.raises(RequestError, match="an engine to itself"):
        replay(one, [], ADAPTERS)


def test_latencies_of_single_tokens_have_no_time_between_them() -> None:
    result = Replay([Served(0.0, [1.0], [5])], [1.0])
    assert set(result.latencies()) == {"ttft", "e2el"}


@POOLS
def test_adapters_that_nobody_asks_for_cost_no_call(pool: type[UnifiedPool] | None) -> None:
    """Counted, not timed: the Python calls of one trace for two adapters, with two loaded and with four hundred."""
    trace, adapters = draw(WORKLOAD, 2), random_adapters((1,) * 400)
    counts = []
    for loaded in (2, 400):
        one, calls = engine(num_blocks=1024, pool=pool), collections.Counter()
        preload(one, adapters[:loaded])
        replay(one, trace, adapters, one_second_a_step)  # whatever is computed once is computed now

        def count(frame: object, event: str, argument: object, calls: collections.Counter = calls) -> None:
            calls[event] += 1

        sys.setprofile(count)
        try:
            replay(one, trace, adapters, one_second_a_step)
        finally:
            sys.setprofile(None)
        counts.append(calls["call"] + calls["c_call"])
    assert 0 < counts[1] <= 1.01 * counts[0]
