"""The life of adapters in TensorRT-LLM's cache, beside a second formulation and beside our own cache.

The second formulation has no lists. A clock ticks with every use; what a task is (held, done, on which level) follows
from who asks for it now and from when it was last used or left.
"""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.build import random_adapter, random_model

from refimpl import NUMPY, LoracleError, Precision
from refimpl.adapter_cache import AdapterCache
from refimpl.config import ModelConfig
from refimpl.tensorrt_llm.lora_cache import CheckFailed, LoraCache, LoraCacheFull
from refimpl.tensorrt_llm.peft_cache import PeftCache, PeftTaskNotCached

TASKS = (0, 1, 2, 3)


@dataclass
class Plain:
    """One level: what is stored, and when each task was last put in its place. Nothing is ever moved."""

    pages: int
    stored: dict[int, tuple[str, int]] = field(default_factory=dict)  # task -> weights, pages
    since: dict[int, int] = field(default_factory=dict)  # task -> the tick of its last use, or of its leaving
    held: set[int] = field(default_factory=set)

    def use(self, task: int, now: int) -> None:
        self.held.add(task)
        self.since[task] = now

    def leave(self, task: int, now: int) -> None:
        if task in self.held:
            self.held.discard(task)
            self.since[task] = now

    def put(self, task: int, weights: str, pages: int, now: int) -> str:
        """Empty, or why it was refused."""
        if task not in self.stored:
            idle = sorted(set(self.stored) - self.held, key=lambda t: self.since[t])
            if pages > self.room() and not idle:
                return "no done tasks"
            for select_victim in idle:
                if pages <= self.room():
                    break
                del self.stored[select_victim]
            if pages > self.room():
                return "pageIds"
            self.stored[task] = (weights, pages)
        self.use(task, now)
        return ""

    def room(self) -> int:
        return self.pages - sum(pages for _, pages in self.stored.values())


def assert_agree(level: LoraCache, plain: Plain) -> None:
    by_time = sorted(plain.stored, key=lambda t: -plain.since[t])
    assert level.in_progress == [t for t in by_time if t in plain.held]
    assert level.done == [t for t in by_time if t not in plain.held]
    assert {t: (level[t].weights, level[t].pages) for t in by_time} == plain.stored
    assert level.free_pages == plain.room() >= 0


class PeftCacheMachine(RuleBasedStateMachine):
    """Requests come with weights or without, run, are paused, go on, and end."""

    @initialize(host=st.integers(1, 5), device=st.integers(1, 4))
    def start(self, host: int, device: int) -> None:
        self.cache = PeftCache(host, device)
        self.host, self.device = Plain(host), Plain(device)
        self.running: dict[int, int] = {}  # request -> task
        self.paused: dict[int, int] = {}
        self.waited: set[int] = set()  # tasks that a batch has run with since a request last brought or bumped them
        self.clock, self.ids, self.versions = itertools.count(), itertools.count(), itertools.count()

    @rule(task=st.sampled_from(TASKS), sends=st.booleans(), pages=st.integers(1, 3))
    def add(self, task: int, sends: bool, pages: int) -> None:
        """Every time that weights are sent they are others."""
        self.ask(next(self.ids), task, f"weights {next(self.versions)}" if sends else None, pages)

    @precondition(lambda self: self.paused)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.paused)))
        self.ask(request, self.paused[request], None, 0)

    def ask(self, request: int, task: int, weights: str | None, pages: int) -> None:
        if weights is None and task not in self.host.stored:
            with pytest.raises(PeftTaskNotCached, match=f"LoRA task {task} not found in cache. Please send LoRA"):
                self.cache.add_request(request, task)
            return
        asked_for = {*self.running.values(), *self.paused.values()}
        waiting = task in asked_for - self.waited  # then nobody looks at what is sent, nor at who was last
        refused = ""
        if not waiting and weights is None:
            self.host.use(task, next(self.clock))
        elif not waiting:
            refused = self.host.put(task, weights, pages, next(self.clock))
        if refused:
            kind, words = (LoraCacheFull, "PEFT Cache is full") if "done" in refused else (CheckFailed, "Error storing")
            with pytest.raises(kind, match=words):
                self.cache.add_request(request, task, weights, pages)
            return
        self.cache.add_request(request, task, weights, pages)
        self.waited -= set() if waiting else {task}
        self.paused.pop(request, None)
        self.running[request] = task

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def run_a_batch(self, data: st.DataObject) -> None:
        batch = data.draw(st.lists(st.sampled_from(sorted(self.running)), min_size=1, max_size=3, unique=True))
        expected: dict[int, str] = {}
        self.waited |= {self.running[request] for request in batch}
        for task in dict.fromkeys(self.running[request] for request in batch):
            self.host.use(task, next(self.clock))
            if self.device.put(task, *self.host.stored[task], next(self.clock)):
                with pytest.raises(LoracleError, match="Couldn't claim pages during copyTask"):
                    self.cache.ensure_batch(batch)
                return
            expected |= {r: self.device.stored[task][0] for r in batch if self.running[r] == task}
        assert self.cache.ensure_batch(batch) == expected

    @precondition(lambda self: self.running or self.paused)
    @rule(data=st.data(), pauses=st.booleans())
    def leave(self, data: st.DataObject, pauses: bool) -> None:
        request = data.draw(st.sampled_from(sorted({**self.running, **self.paused})))
        pauses = pauses and request in self.running
        task = {**self.running, **self.paused}[request]
        (self.cache.pause if pauses else self.cache.finish)(request)
        self.running.pop(request, None)
        self.paused.pop(request, None)
        if pauses:
            self.paused[request] = task
        if task not in self.running.values():
            self.device.leave(task, next(self.clock))
            if task not in self.paused.values():
                self.waited.discard(task)
                self.host.leave(task, next(self.clock))

    @invariant()
    def both_formulations_agree(self) -> None:
        assert_agree(self.cache.host, self.host)
        assert_agree(self.cache.device, self.device)

    @invariant()
    def requests_are_known_by_their_task(self) -> None:
        for theirs, mine in ((self.cache.active, self.running), (self.cache.paused, self.paused)):
            assert theirs == {task: {r for r, t in mine.items() if t == task} for task in mine.values()}

    @invariant()
    def what_is_asked_for_stays_on_the_host(self) -> None:
        for task in {*self.running.values(), *self.paused.values()}:
            assert task in self.cache.host


TestPeftCache = PeftCacheMachine.TestCase
TestPeftCache.settings = settings(max_examples=60, stateful_step_count=40)

steps = st.tuples(st.sampled_from(["put", "get", "bump", "mark_done"]), st.sampled_from(TASKS), st.integers(1, 3))


@settings(max_examples=200)
@given(pages=st.integers(1, 6), calls=st.lists(steps, max_size=30))
def test_one_level_by_itself(pages: int, calls: list[tuple[str, int, int]]) -> None:
    """Any use in any order, also such that no request can cause."""
    level, plain = LoraCache(pages), Plain(pages)
    for now, (step, task, size) in enumerate(calls):
        if step == "put" and (refused := plain.put(task, str(now), size, now)):
            with pytest.raises(LoracleError, match=refused):
                level.put(task, str(now), size)
        elif step == "put":
            level.put(task, str(now), size)
        elif step == "mark_done":
            plain.leave(task, now)
            level.mark_done(task)
        elif task in plain.stored:
            plain.use(task, now)
            level.bump(task) if step == "bump" else level.get(task)
        elif step == "bump":
            level.bump(task)
        assert_agree(level, plain)


CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4)
MODEL = random_model(CONFIG)
MODULE = (0, "q_proj")
# (the id that is named, the version of its weights)
VERSIONS = {(task, v): random_adapter(CONFIG, 10 * task + v, name=str(task)) for task in (0, 1, 2) for v in (0, 1)}

requests_of_tasks = st.lists(st.sampled_from(sorted(VERSIONS)), min_size=1, max_size=20)


def served(requests: list[tuple[int, int]], capacity: int) -> tuple[list, list]:
    """One request after the other, each with its weights: those that theirs answers with, and those that ours does."""
    theirs, ours = PeftCache(capacity, capacity), AdapterCache(MODEL, Precision(), NUMPY, capacity)
    by_id, by_object = [], []
    for request, (task, version) in enumerate(requests):
        theirs.add_request(request, task, (task, version), pages=1)
        by_id.append(theirs.ensure_batch([request])[request])
        theirs.finish(request)
        slot = ours.acquire(VERSIONS[task, version])
        held = ours.slots.at(MODULE)[slot].A
        by_object.append(next(v for v, a in VERSIONS.items() if (held == a.lora[MODULE].A.astype("float32")).all()))
        ours.release(slot)
    return by_id, by_object


@given(requests=requests_of_tasks)
def test_an_id_used_again_is_answered_with_its_first_weights(requests: list[tuple[int, int]]) -> None:
    """There is room for all, so that nothing is ever evicted. Ours, which goes by the object, is always right."""
    by_id, by_object = served(requests, capacity=6)
    assert by_object == requests
    first = {task: version for task, version in reversed(requests)}
    assert by_id == [(task, first[task]) for task, _ in requests]


@given(requests=requests_of_tasks, capacity=st.integers(1, 3))
def test_with_one_id_for_each_adapter_both_are_right(requests: list[tuple[int, int]], capacity: int) -> None:
    """However many are evicted. An id is good for one adapter: what a recorder has to keep to."""
    ids = {named: i for i, named in enumerate(sorted(VERSIONS))}
    cache = PeftCache(capacity, capacity)
    for request, named in enumerate(requests):
        cache.add_request(request, ids[named], named, pages=1)
        assert cache.ensure_batch([request]) == {request: named}
        cache.finish(request)


def test_the_device_keeps_the_old_weights_of_an_id_that_the_host_has_got_anew() -> None:
    cache = PeftCache(host_pages=1, device_pages=2)
    for request, (task, weights) in enumerate([(7, "old"), (8, "other"), (7, "new")]):
        cache.add_request(request, task, weights, pages=1)
        answered = cache.ensure_batch([request])[request]
        cache.finish(request)
    assert cache.host[7].weights == "new"
    assert answered == "old"


def test_an_evicted_task_must_be_sent_again() -> None:
    cache = PeftCache(1, 1)
    cache.add_request(0, 7, "seven", 1)
    cache.finish(0)
    cache.add_request(1, 7)  # still there: no weights needed
    cache.finish(1)
    cache.add_request(2, 8, "eight", 1)
    with pytest.raises(
        PeftTaskNotCached, match=r"LoRA task 7 not found in cache\. Please send LoRA weights with request"
    ):
        cache.add_request(3, 7)
    with pytest.raises(LoraCacheFull, match=r"PEFT Cache is full\. Could not store taskId=7"):
        cache.add_request(4, 7, "seven", 1)
    assert cache.ensure_batch([2]) == {2: "eight"}, "those that are there go on"


def test_what_is_too_large_takes_the_others_with_it() -> None:
    """It evicts all that are done before it finds that they were not enough: as read, and perhaps not as meant."""
    cache = LoraCache(3)
    cache.put(0, "in use", 2)
    cache.put(1, "done", 1)
    cache.mark_done(1)
    with pytest.raises(CheckFailed, match="2 pages wanted, 1 free"):
        cache.put(2, "large", 2)
    assert 0 in cache and 1 not in cache and 2 not in cache
    with pytest.raises(LoraCacheFull, match=r"Cache is full\. There are no done tasks to evict"):
        cache.put(2, "large", 2)


def test_the_base_asks_for_nothing() -> None:
    cache = PeftCache(1, 1)
    cache.add_request(0, None)
    assert cache.ensure_batch([0]) == {}
    cache.finish(0)
    with pytest.raises(LoracleError, match="lora_task_id must be set for LoRA inference"):
        cache.add_request(1, None, "weights", 1)
    with pytest.raises(LoracleError, match="taskid not loaded"):
        cache.host.get(3)
