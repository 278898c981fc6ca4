"""Single cases of the engine that once went wrong, or that no strategy would hit."""

import dataclasses
import hashlib

import pytest
from support.build import random_model
from support.serving import WatchedEngine, assert_as_if_alone, finish

from refimpl import NUMPY, Engine, Request, trace
from refimpl.config import ModelConfig
from refimpl.errors import CacheFull, RequestError

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
    engine = Engine(random_model(CONFIG), num_blocks=3, block_size=2)
    with pytest.raises(CacheFull):
        engine.add(Request([1, 2, 3]), 4)
    engine.add(Request([1, 2, 3]), 3)


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
    with trace("layers.0.output", "logits") as t:
        finish(engine)
    assert sorted(t) == ["layers.0.output", "logits"]
    assert (t["layers.0.output"].shape, t["logits"].shape) == ((5, 10), (3, 11))
    with trace("logits") as later:
        pass
    assert len(later) == 0


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


def test_two_models_never_share_an_identity() -> None:
    model = random_model(CONFIG)
    assert (
        len({model.identity, random_model(CONFIG).identity, dataclasses.replace(model, dtype="float32").identity}) == 3
    )
