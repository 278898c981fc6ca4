"""Both levels of TensorRT-LLM's LoRA cache and the requests that hold them: the life of an adapter in a server.

    add_request    the weights that come with a request go to the host, under its task id
    ensure_batch   before a batch runs, its tasks are copied to the device
    finish         the last request of a task leaves: it is done, on both levels, and may be evicted
    pause          the same on the device only: a paused request keeps its weights on the host

The first request of an id carries the weights, later ones need not; if the id was evicted in between, they fail, and
the client has to send them again. A request without a task id is for the base model; 0 is an id like any other.

Each level knows a task by its id alone. An id that is used again for other weights answers with the old ones as long as
either level has them: the host evicts and takes the new ones, while the device goes on with its own copy.

After batch_manager/peftCacheManager.cpp as of 2026, read without its threads.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import LoracleError, RequestError
from .lora_cache import CheckFailed, LoraCache, LoraCacheFull


class PeftTaskNotCached(RequestError):
    """No weights came with the request, and none are there (PeftTaskNotCachedException)."""


class PeftCache:
    """The host's cache, the device's, and who holds what: task id -> requests, running and paused."""

    def __init__(self, host_pages: int, device_pages: int) -> None:
        self.host, self.device = LoraCache(host_pages), LoraCache(device_pages)
        self.active: dict[int, set[int]] = {}
        self.paused: dict[int, set[int]] = {}
        self._task_of: dict[int, int] = {}
        self._being_put: set[int] = set()  # tasks of requests that no batch has waited for yet

    def add_request(self, request_id: int, task_id: int | None, weights: Any = None, pages: int = 0) -> None:
        """A new request, or a paused one that goes on. `pages` is what the weights take (pages.py).

        PeftTaskNotCached, LoraCacheFull or LoracleError, in TensorRT-LLM's words: the request fails, the others go on.
        """
        if task_id is None:
            if weights is not None:
                raise LoracleError("lora_task_id must be set for LoRA inference")
            return
        if weights is None and task_id not in self.host:
            raise PeftTaskNotCached(f"LoRA task {task_id} not found in cache. Please send LoRA weights with request")
        self._task_of[request_id] = task_id
        self.active.setdefault(task_id, set()).add(request_id)
        _drop(self.paused, task_id, request_id)
        if task_id in self._being_put:
            return
        try:
            if weights is None:
                self.host.bump(task_id)
            else:
                self.host.put(task_id, weights, pages)
        except LoraCacheFull:
            self._leave(request_id, pause=False)
            raise LoraCacheFull(f"PEFT Cache is full. Could not store taskId={task_id}") from None
        except CheckFailed as error:
            self._leave(request_id, pause=False)
            raise CheckFailed(f"Error storing task={task_id} in PEFT cache -- {error}") from None
        self._being_put.add(task_id)

    def ensure_batch(self, request_ids: Sequence[int]) -> dict[int, Any]:
        """The weights on the device of each request of a batch that has a task, in the order of the batch.

        LoracleError if the device has no room: whoever makes the batches has to count pages before."""
        tasks = {r: self._task_of[r] for r in request_ids if r in self._task_of}
        self._being_put -= set(tasks.values())
        table = {task_id: self._on_device(task_id) for task_id in dict.fromkeys(tasks.values())}
        return {request_id: table[task_id] for request_id, task_id in tasks.items()}

    def finish(self, request_id: int) -> None:
        """A request that ended, or was cancelled."""
        self._leave(request_id, pause=False)

    def pause(self, request_id: int) -> None:
        """A request that was preempted; add_request lets it go on."""
        self._leave(request_id, pause=True)

    def _on_device(self, task_id: int) -> Any:
        if task_id not in self.host:
            raise LoracleError(f"Caught exception during copyTask ensure batch -- can't move a missing task{task_id}")
        self.host.bump(task_id)
        task = self.host[task_id]
        try:
            self.device.put(task_id, task.weights, task.pages)  # one that is there already is not copied again
        except (LoraCacheFull, CheckFailed) as error:
            raise LoracleError(
                f"Caught exception during copyTask ensure batch -- Couldn't claim pages during copyTask -- {error}"
            ) from None
        return self.device.get(task_id)

    def _leave(self, request_id: int, pause: bool) -> None:
        task_id = self._task_of.get(request_id)
        if task_id is None:
            return
        _drop(self.active, task_id, request_id)
        if pause:
            self.paused.setdefault(task_id, set()).add(request_id)
        else:
            _drop(self.paused, task_id, request_id)
            del self._task_of[request_id]
        if task_id not in self.active:
            self.device.mark_done(task_id)
            if task_id not in self.paused:
                self._being_put.discard(task_id)
                self.host.mark_done(task_id)


def _drop(holders: dict[int, set[int]], task_id: int, request_id: int) -> None:
    """Take a request out; a task without requests is not listed."""
    holders.get(task_id, set()).discard(request_id)
    if not holders.get(task_id):
        holders.pop(task_id, None)
