"""Ctrl-C and its like: what they do while a block runs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what `kill` and a cluster's scheduler send


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Call the handler for these signals in the block, but for those that whoever started us ignores (nohup, &).

    A handler that puts another in its place during the block has the last word: that one stays."""
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number, previous in before.items() if previous is not signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) is handler:
                signal.signal(number, before[number])


def stop(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once: until the process ends, nothing disturbs what is then written."""
    for later in STOP:
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt
