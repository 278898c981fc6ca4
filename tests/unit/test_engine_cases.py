"""Single cases of the engine that once went wrong, or that no strategy would hit."""

import dataclasses
import gc
import hashlib
import itertools
import weakref

import numpy as np
import pytest
from support.build import random_adapter, random_model
from support.serving import WatchedEngine, assert_as_if_alone, finish

from refimpl import NUMPY, Engine, Request, trace
from refimpl.config import LM_HEAD, ModelConfig
from refimpl.errors import CacheFull, LogitsError, LoracleError, RequestError

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4, max_position_embeddings=64)
WINDOWED = ModelConfig(11, 10, 7, 1, 4, 2, 4, sliding_window=2, max_position_embeddings=64)


def test_a_cached_prefix_longer_than_the_window_does_not_block_the_queue() -> None:
    """All blocks were idle and found again, so that none was left for the rest of the prompt; and so for ever."""
    engine = WatchedEngine(random_model(WINDOWED), NUMPY, num_blocks=3, block_size=2, max_batch_tokens=2)
    requests = [Request([2, 3, 4, 5, 6, 7], stop_ids=()), Request([2, 3, 4, 5, 6, 7, 8, 9], stop_ids=())]
    ids = []
    for request in requests:
        ids.append(engine.add(request, 1))
        finish(engine)
    assert engine.watch.hits > 0
    assert_as_if_alone(engine, ids, requests, 1)


def test_no_new_tokens_are_none_to_serve() -> None:
    engine = Engine(random_model(CONFIG))
    for request, new in ((Request([1], max_new_tokens=0), 4), (Request([1]), 0)):
        with pytest.raises(RequestError, match="max_new_tokens 0 must be 1 or more"):
            engine.add(request, new)
    assert not engine.busy


def test_a_request_that_could_never_fit_is_refused_when_it_comes() -> None:
    """The last token that it produces is never computed: 3 + 4 tokens need room for 6."""
    engine = Engine(random_model(CONFIG), num_blocks=3, block_size=2)
    with pytest.raises(CacheFull, match="need 4 KV blocks of 2 tokens; the cache has 3"):
        engine.add(Request([1, 2, 3]), 5)
    engine.add(Request([1, 2, 3], stop_ids=()), 4)
    assert sum(len(engine.step()) for _ in range(4)) == 4 and not engine.busy


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_whatever_is_admitted_ends_and_whatever_is_refused_could_not_have(window: int | None, budget: int) -> None:
    model = random_model(dataclasses.replace(CONFIG, sliding_window=window))
    for prompt, new, blocks in itertools.product((1, 2, 5, 8), (1, 2, 4), range(1, 7)):
        size = 2
        engine = Engine(model, num_blocks=blocks, block_size=size, max_batch_tokens=budget)
        request = Request([1 + i % 9 for i in range(prompt)], stop_ids=())
        try:
            engine.add(request, new)
        except CacheFull:
            computed = range(prompt + new - 1)  # somewhere on its way it would have held more than there are
            chunks = [(c, min(budget, prompt + new - 1 - c)) for c in computed]
            first = [0 if window is None else max(0, c - window + 1) // size for c, _ in chunks]
            held = [-(-(c + n) // size) - f for (c, n), f in zip(chunks, first, strict=True)]
            assert max(held) > blocks
            continue
        for _ in range(100):
            engine.step()
        assert not engine.busy


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    engine = WatchedEngine(random_model(CONFIG), NUMPY, num_blocks=20, block_size=2, max_running=1)
    ids = [engine.add(Request([1, 2, 3, n], stop_ids=())) for n in range(3)]
    engine.step()
    for i in (ids[0], ids[2], ids[2], 99):
        engine.cancel(i)
    engine.check_counts()
    finish(engine)
    assert list(engine.watch.reasons) == [ids[1]]
    assert engine.cache.in_use == 0


def test_a_stop_id_ends_a_request_and_is_its_last_token() -> None:
    model = random_model(CONFIG)
    free = WatchedEngine(model, NUMPY)
    i = free.add(Request([1, 2, 3], stop_ids=()), 6)
    finish(free)
    stop = free.watch.tokens[i][2]
    engine = WatchedEngine(model, NUMPY)
    j = engine.add(Request([1, 2, 3], stop_ids=[stop]), 6)
    finish(engine)
    first = free.watch.tokens[i].index(stop)
    assert engine.watch.tokens[j] == free.watch.tokens[i][: first + 1]
    assert (free.watch.reasons[i], engine.watch.reasons[j]) == ("length", "stop")


def test_a_trace_of_several_steps_stands_in_one_array() -> None:
    engine = Engine(random_model(CONFIG))
    engine.add(Request([1, 2, 3], stop_ids=()), 3)
    with trace("layers.0.q_proj.input", "layers.0.output", "logits") as t:
        finish(engine)
    assert sorted(t) == ["layers.0.output", "layers.0.q_proj.input", "logits"]
    assert t["layers.0.q_proj.input"].shape == (5, 10)  # three tokens of the prompt, and two that were produced
    assert (t["layers.0.output"].shape, t["logits"].shape) == (
        (3, 10),
        (3, 11),
    )  # in the last layer: those that get logits
    with trace("logits") as later:
        pass
    assert len(later) == 0
    engine.add(Request([1, 2], stop_ids=()), 1)
    with pytest.raises(RequestError, match=r"'layers\.9\.\*' matches no intermediate"), trace("logits", "layers.9.*"):
        finish(engine)


def test_the_first_request_reads_no_weights_for_its_prefix_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing a base of 16 GB takes a minute. A key is of tokens, names and adapters: a few hundred bytes."""
    hashed: list[int] = []

    class Counting:
        def __init__(self, data: bytes = b"") -> None:
            self.inner = hashlib.new("sha256", data)
            hashed.append(len(data))

        def update(self, data: bytes) -> None:
            hashed.append(len(data))
            self.inner.update(data)

        def digest(self) -> bytes:
            return self.inner.digest()

    model = random_model(CONFIG)
    monkeypatch.setattr(hashlib, "sha256", Counting)
    engine = Engine(model, block_size=4)
    engine.add(Request([1, 2, 3, 4, 5, 6, 7, 8, 9]), 1)
    engine.step()
    assert 0 < sum(hashed) < 10_000


def test_an_adapter_is_hashed_for_a_full_block_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest reads all of an adapter, and a request that is shorter than a block has no key that it could be in."""
    engine, digests = Engine(random_model(CONFIG), block_size=4), []
    digest = engine.adapters.digest
    monkeypatch.setattr(engine.adapters, "digest", lambda slot: digests.append(slot) or digest(slot))
    engine.add(Request([1, 2], random_adapter(CONFIG, 1), stop_ids=()), 2)
    finish(engine)
    assert digests == []
    engine.add(Request([1, 2, 3, 4, 5], random_adapter(CONFIG, 2), stop_ids=()), 1)
    finish(engine)
    assert digests == [1]


def test_two_models_never_share_an_identity() -> None:
    model = random_model(CONFIG)
    assert (
        len({model.identity, random_model(CONFIG).identity, dataclasses.replace(model, dtype="float32").identity}) == 3
    )


def test_an_adapter_that_is_unloaded_is_gone() -> None:
    engine = Engine(random_model(CONFIG), block_size=4)
    adapter = random_adapter(CONFIG, 1)
    with pytest.raises(LoracleError, match="adapter adapter-1 is not loaded"):
        engine.unload(adapter)
    engine.add(Request([1, 2, 3, 4, 5], adapter, stop_ids=()), 2)
    with pytest.raises(RequestError, match="adapter adapter-1 is used by request 0: it cannot be unloaded"):
        engine.unload(adapter)
    engine.step()
    with pytest.raises(RequestError, match="is used by request 0"):
        engine.unload(adapter)
    engine.step()
    assert not engine.busy and engine.adapters.slot_of == {adapter: 0}
    engine.unload(adapter)
    assert engine.adapters.slot_of == {} and engine.adapters.slots.slots == set()
    gone = weakref.ref(adapter.lora[(0, "q_proj")].A)
    del adapter
    gc.collect()
    assert gone() is None
    other = random_adapter(CONFIG, 2)
    engine.add(Request([1, 2, 3, 4, 5], other, stop_ids=()), 1)
    engine.step()
    assert engine.adapters.slot_of == {other: 0}


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_choice_are_an_error_that_names_the_request(value: float, temperature: float) -> None:
    """And the others go on: their tokens are what they would have been."""
    model, broken = random_model(CONFIG), random_adapter(CONFIG, 1, modules=("lm_head",))
    broken.lora[(-1, "lm_head")].B[...] = value if np.isnan(value) else 0
    if np.isinf(value):
        broken = dataclasses.replace(
            broken, lora={}, replaced={LM_HEAD: np.full((11, 10), 0.0)}, biases={LM_HEAD: np.full(11, value)}
        )
    right = Request([1, 2, 3], stop_ids=())
    alone = Engine(model)
    alone.add(right, 3)
    expected = [token.token_id for _ in range(3) for token in alone.step()]
    engine = Engine(model)
    engine.add(right, 3)
    engine.add(Request([1, 2, 3], broken, temperature=temperature, stop_ids=()), 3)
    with pytest.raises(LogitsError, match="request 1: its logits hold NaN, or nothing above -inf"):
        engine.step()
    assert [t.token_id for _ in range(3) for t in engine.step()] == expected
    assert not engine.busy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_blocks": 0}, "num_blocks 0 must be 1 or more"),
        ({"block_size": 0}, "block_size 0 must be 1 or more"),
        ({"max_batch_tokens": 0}, "max_batch_tokens 0 must be 1 or more"),
        ({"max_running": 0}, "max_running 0 must be 1 or more"),
        ({"max_adapters": 0}, "max_adapters 0 must be 1 or more"),
        ({"block_size": 2.5}, "block_size 2.5 is not a whole number"),
        ({"max_running": True}, "max_running True is not a whole number"),
        ({"precision": "nonsense"}, "precision must be a Precision, not str"),
    ],
)
def test_an_engine_that_could_serve_nobody_is_not_made(wrong: dict, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        Engine(random_model(CONFIG), **wrong)
