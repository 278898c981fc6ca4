"""A decode step without the host: captured into a CUDA graph once, then replayed and timed on the device's own clock.

A step of `forward` asks for some thirty launches a layer from Python, which takes longer than they do. What a kernel
costs shows only when nobody waits for Python.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .gpu import Stopwatch

Run = Callable[[], Any]


def captured(watch: Stopwatch, works: Sequence[Run]) -> Run:
    """These steps as one replay, with memory of their own: nobody else may use it between two replays."""
    cupy = watch.cupy
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    keep: list[Any] = [pool]
    with cupy.cuda.using_allocator(pool.malloc), stream:
        for work in works:  # compiles, uploads, allocates
            work()
        stream.synchronize()
        stream.begin_capture()
        try:
            keep += [work() for work in works]
        finally:
            graph = stream.end_capture()
        keep.append(graph)

    def replay(kept: Any = keep) -> None:
        graph.launch()

    return replay


def device_seconds(watch: Stopwatch, together: Run, alone: Sequence[Run]) -> dict[str, Any]:
    """Both ways of serving, timed on the device; or why they could not be."""
    try:
        batched = watch.time(captured(watch, [together]), 1).median
        one_after_another = watch.time(captured(watch, alone), 1).median
    except Exception as error:  # an extra: the wall clock's figures stand without it
        return {"device_why": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
    finally:
        watch.free()
    return {
        "device_batched_seconds": batched,
        "device_one_after_another_seconds": one_after_another,
        "device_ratio": one_after_another / batched,
    }
