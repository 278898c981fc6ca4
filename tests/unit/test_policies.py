"""What the engine decides: who computes how many tokens, who may come in, and how rows are cut for the kernels."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import random_adapter, random_model

from refimpl import NUMPY, Engine, Request
from refimpl.config import ModelConfig
from refimpl.errors import LoracleError
from refimpl.plans import segments, segments_per_adapter
from refimpl.policies import admit, schedule

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4, max_position_embeddings=64)
ADAPTERS = [random_adapter(CONFIG, seed) for seed in range(3)]


@given(missing=st.lists(st.integers(0, 9), max_size=6), budget=st.integers(0, 20))
def test_a_schedule_fills_the_budget_first_come_first_served(missing: list[int], budget: int) -> None:
    tokens = schedule(missing, budget)
    assert len(tokens) == len(missing) and all(0 <= n <= most for n, most in zip(tokens, missing, strict=True))
    assert sum(tokens) == min(sum(missing), budget)
    for i in range(len(missing)):  # nobody gets a token while somebody before him lacks one
        assert tokens[i] == missing[i] or not any(tokens[i + 1 :])


WAITING = st.lists(st.lists(st.integers(0, 5), max_size=3, unique=True), max_size=6)


@given(waiting=WAITING, in_use=st.sets(st.integers(0, 5)), room=st.none() | st.integers(0, 3))
def test_whoever_is_let_in_fits_and_overtakes_nobody(
    waiting: list[list[int]], in_use: set[int], room: int | None
) -> None:
    capacity = None if room is None else len(in_use) + room
    order = list(admit(waiting, in_use, capacity))
    assert order == list(range(len(order)))
    for i in range(len(order) + 1):
        used = in_use.union(*waiting[:i])
        assert capacity is None or len(used) <= capacity
    if len(order) < len(waiting):  # and the next one does not fit
        assert capacity is not None and len(in_use.union(*waiting[: len(order) + 1])) > capacity


@given(ids=st.lists(st.integers(-1, 3), max_size=60), size=st.integers(1, 17))
def test_segments_are_their_definition(ids: list[int], size: int) -> None:
    for form in (segments_per_adapter, segments):
        rows, starts = form(np.array(ids, np.int32), size)
        assert rows.dtype == starts.dtype == np.int32
        assert sorted(rows.tolist()) == [t for t, slot in enumerate(ids) if slot >= 0]
        cut = [rows.tolist()[start:stop] for start, stop in itertools.pairwise(starts.tolist())]
        assert starts[0] == 0 and sum(map(len, cut)) == len(rows)
        assert all(1 <= len(segment) <= size and len({ids[t] for t in segment}) == 1 for segment in cut)
        assert len(cut) == sum(-(-ids.count(slot) // size) for slot in set(ids) - {-1})
    for one, other in zip(segments_per_adapter(np.array(ids, np.int32), size), (rows, starts), strict=True):
        assert one.tolist() == other.tolist()


# The same steps as fields of Ops: what somebody else decides.


def run(ops: object, requests: list[Request], **options: object) -> tuple[list[int], Engine]:
    """The requests' ids in the order in which they end, and the engine."""
    engine = Engine(random_model(CONFIG), ops, **options)
    for request in requests:
        engine.add(request, 3)
    ended: list[int] = []
    while engine.busy:
        ended += [token.request_id for token in engine.step() if token.finish_reason]
    return ended, engine


def test_an_engine_may_let_a_loaded_adapter_pass_one_that_is_not() -> None:
    """One adapter slot, three requests: the second one's adapter does not fit, the third's is loaded."""
    requests = [Request([1, 2, i], adapter=ADAPTERS[j], stop_ids=()) for i, j in enumerate((0, 1, 0))]

    def passing(waiting, in_use, capacity):
        return [i for i, adapters in enumerate(waiting) if len(in_use.union(adapters)) <= capacity]

    assert run(NUMPY, requests, max_adapters=1)[0] == [0, 1, 2]
    assert run(dataclasses.replace(NUMPY, admit=passing), requests, max_adapters=1)[0] == [0, 2, 1]


def test_an_engine_may_share_its_budget_otherwise() -> None:
    def youngest_first(missing, budget):
        return schedule(missing[::-1], budget)[::-1]

    for ops, order in ((NUMPY, [0, 1]), (dataclasses.replace(NUMPY, schedule=youngest_first), [1, 0])):
        engine = Engine(random_model(CONFIG), ops, max_batch_tokens=2)
        for i in range(2):
            engine.add(Request([i], stop_ids=()), 3)
        engine.step()
        engine.max_batch_tokens = 1  # both run, and one token is computed in a step
        ended = []
        while engine.busy:
            ended += [token.request_id for token in engine.step() if token.finish_reason]
        assert ended == order


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {"schedule": lambda missing, budget: missing},
            r"schedule returned \[5\] for \[5\] missing tokens and a budget",
        ),
        ({"schedule": lambda missing, budget: [budget + 1 for _ in missing]}, "and a budget of 4"),
        ({"schedule": lambda missing, budget: []}, r"schedule returned \[\]"),
        ({"schedule": lambda missing, budget: [0] * len(missing)}, "nothing was scheduled for 0 running and 1 waiting"),
        ({"admit": lambda *_: []}, "schedule or admit lets none of them go on"),
        ({"admit": lambda *_: [0, 0]}, r"admit returned \[0, 0\]: expected different indices of 1 waiting"),
        ({"admit": lambda *_: [1]}, r"admit returned \[1\]"),
    ],
)
def test_what_a_step_of_somebody_else_gets_wrong_is_said(steps: dict, message: str) -> None:
    engine = Engine(random_model(CONFIG), dataclasses.replace(NUMPY, **steps), max_batch_tokens=4, max_adapters=1)
    engine.add(Request([1, 2, 3, 4, 5], adapter=ADAPTERS[0]), 1)
    for _ in range(2):  # and nothing of it is left: it can be said again
        with pytest.raises(LoracleError, match=message):
            engine.step()
    assert engine.cache.in_use == 0 and not engine.adapters.ref_counts
