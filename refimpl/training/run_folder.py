"""The folder of a run's checkpoints. Whatever could keep the run from writing at its end is tried before it begins."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import LoracleError
from ..formats.files import new_folder, scratch_folder
from ..loading.diagnostics import one_line
from .output import adapter_folder

LOCK_FILE = "lock"  # locked while a run is at work; the lock of one that was killed is gone with it


@contextmanager
def run_folder(out: Path, names: Iterable[str]) -> Iterator[Path]:
    """OUT.checkpoint, for one run at a time: this one. It vanishes at the end if there is no state in it.

    names: of the adapters; their folders are made in OUT, and removed. LoracleError, one line, if there is something
    under the name OUT, if it cannot be written, or if another run is at work on it."""
    folder = out.with_name(f"{out.name}.checkpoint")
    with scratch_folder(out) as scratch:
        for name in names:
            with new_folder(adapter_folder(scratch, name)):
                pass
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise LoracleError(one_line(f"{folder}: cannot be written ({error.strerror})")) from None
    with lock:
        try:
            take(lock)
        except OSError:
            raise LoracleError(one_line(f"{out}: another run is at work on it; give another --out")) from None
        try:
            yield folder
        finally:
            lock.close()
            with suppress(OSError):
                (folder / LOCK_FILE).unlink(missing_ok=True)
                folder.rmdir()


def take(lock: IO[str]) -> None:
    """Lock an open file until it is closed; OSError if another process has it. On Windows nothing is locked."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
