"""When a learner saves. Polled: no notification of a file system is the same on three systems, and some miss saves."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

INTERVAL = 0.3  # seconds between two looks; larger makes a save wait, smaller wakes a laptop for nothing


def changes(files: Sequence[Path], interval: float = INTERVAL) -> Iterator[None]:
    """Yield once at the start and then after every change of the files; while one is missing, wait for it.

    An editor may write in several steps: a change counts when two looks in a row see the same."""
    before = previous = None
    while True:
        now = states(files)
        if now is not None and now != before and (before is None or now == previous):
            before = now
            yield
        previous = now
        time.sleep(interval)


def states(files: Sequence[Path]) -> tuple[tuple[int, int], ...] | None:
    """Return time and size of each file, or None if one of them is not there."""
    try:
        results = [file.stat() for file in files]
    except OSError:
        return None
    return tuple((state.st_mtime_ns, state.st_size) for state in results)
