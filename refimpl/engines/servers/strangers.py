"""Other clients of a server, who keep asking while a batch is served: some bugs need simultaneous strangers.

A prefix cache that forgets which adapter it was filled with, a slot that is given away too early: alone in its batch a
request meets neither. What strangers ask is what such a bug would mix up: the prompts of the batch itself, each for
another adapter. Their responses count for nothing; that the batch's own are right, is what is checked.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count

from ..interface import EngineError, EngineRequest


@contextmanager
def strangers(
    number: int, requests: Sequence[EngineRequest], adapters: Sequence[str], ask: Callable[[EngineRequest], object]
) -> Iterator[None]:
    """Let `number` clients ask, each one request after another, until the block ends; their last ones are waited for.

    requests: the batch whose prompts they ask. adapters: the names that they may take, beside the base's."""
    ended = threading.Event()
    wishes = (one for i in count() for one in _others(requests, adapters, i))
    lock = threading.Lock()

    def keep_asking() -> None:
        while not ended.is_set():
            with lock:
                wish = next(wishes)
            with suppress(EngineError):  # a server that fails them fails the batch as well, and there it is said
                ask(wish)

    threads = [threading.Thread(target=keep_asking, daemon=True) for _ in range(number if requests else 0)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _others(requests: Sequence[EngineRequest], adapters: Sequence[str], turn: int) -> Iterator[EngineRequest]:
    """Yield each request's prompt for the base or an adapter that is not its own: in each turn the next one."""
    names = [None, *adapters]
    for request in requests:
        others = [name for name in names if name != request.adapter] or names
        yield replace(request, adapter=others[turn % len(others)], adapter_weights=(), arrival_step=0)
