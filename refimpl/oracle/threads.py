"""One BLAS thread while numbers of a small base are made: to wake a second one costs more than it computes.

The command sets OPENBLAS_NUM_THREADS before numpy is imported (cli.py). In pytest and other people's programs numpy is
there already, with as many threads as there are cores."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from .cases.testbed import Testbed

SMALL = 512  # hidden_size; larger: bases for which several threads are faster on an idle machine get one


@contextmanager
def one_thread(testbed: Testbed) -> Iterator[None]:
    """Let BLAS have one thread in the block if the base is small: in all of this process, the engine with it."""
    if testbed.model.config.hidden_size > SMALL:
        yield
        return
    with threadpool_limits(1, "blas"):
        yield
