"""One level of TensorRT-LLM's LoRA cache: task ids -> weights in pages, and who makes room for whom.

A task is *in progress* while a request holds it, and *done* after; only done ones are evicted, the one that was longest
so first. The key is the task id and nothing else: what is put under an id that is there already is not looked at, so
that other weights under an old id are served as the old ones, until it happens to be evicted. Compare AdapterCache
(refimpl/adapter_cache.py), which knows an adapter by the object, and the prefix cache, which knows it by a digest.

After runtime/loraCache.cpp as of mid-2024, read without its threads: a put has loaded when it returns.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import CacheFull, LoracleError


class LoraCacheFull(CacheFull):
    """Every task is in progress (LoraCacheFullException)."""


class CheckFailed(LoracleError):
    """A TLLM_CHECK of TensorRT-LLM."""


@dataclass(frozen=True)
class Task:
    """What is held under one id."""

    weights: Any
    pages: int


class LoraCache:
    """`in_progress` and `done` are task ids, the latest to come first."""

    def __init__(self, pages: int) -> None:
        self.free_pages = pages
        self.in_progress: list[int] = []
        self.done: list[int] = []
        self._tasks: dict[int, Task] = {}

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._tasks

    def __getitem__(self, task_id: int) -> Task:
        return self._tasks[task_id]

    def put(self, task_id: int, weights: Any, pages: int) -> None:
        """Store a task, in progress. One that is there is only bumped: its weights stay the old ones.

        LoraCacheFull if no task is done and there is no room: nothing has changed then. CheckFailed if all that are
        done make too little room: they are gone, because it finds out only after it has evicted them."""
        if task_id in self:
            self.bump(task_id)
            return
        self._claim(pages)
        self._tasks[task_id] = Task(weights, pages)
        self.in_progress.insert(0, task_id)

    def get(self, task_id: int) -> Any:
        """The weights under this id, which is in progress from now on. LoracleError if it is not there."""
        if task_id not in self:
            raise LoracleError("taskid not loaded")
        self.bump(task_id)
        return self._tasks[task_id].weights

    def bump(self, task_id: int) -> None:
        """Held again, as the latest. An id that is not there stays so."""
        if task_id in self:
            self._unlist(task_id)
            self.in_progress.insert(0, task_id)

    def mark_done(self, task_id: int) -> None:
        """No longer held: the last to be evicted of those that are done. One that is done already keeps its place."""
        if task_id in self.in_progress:
            self._unlist(task_id)
            self.done.insert(0, task_id)

    def _unlist(self, task_id: int) -> None:
        (self.in_progress if task_id in self.in_progress else self.done).remove(task_id)

    def _claim(self, pages: int) -> None:
        if pages > self.free_pages and not self.done:
            raise LoraCacheFull("Cache is full. There are no done tasks to evict")
        while pages > self.free_pages and self.done:
            self.free_pages += self._tasks.pop(self.done.pop()).pages
        if pages > self.free_pages:
            raise CheckFailed(f"Assertion failed: pageIds.has_value(): {pages} pages wanted, {self.free_pages} free")
        self.free_pages -= pages

    def __repr__(self) -> str:
        return f"LoraCache(in progress {self.in_progress}, done {self.done}; {self.free_pages} pages free)"
