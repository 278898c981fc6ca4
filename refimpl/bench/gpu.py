"""Time on a GPU: by events on the device's own clock, with cold caches, without the host.

Whatever is timed is captured into a CUDA graph first, one copy of the work for each set of inputs, so that neither
Python nor a launch call stands between two kernels. Before each replay a buffer four times as large as the L2 is
written; while that runs, the host is done asking for everything that follows.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..arrays import device_namespace
from ..cuda.runner.gpu import wait

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Seconds of one piece of work."""

    median: float
    low: float  # a quarter of the repeats was faster
    high: float  # a quarter was slower
    by: str  # "graph", or "stream" where it could not be captured


class Stopwatch:
    """One GPU, its L2, its events."""

    def __init__(self, repeats: int = 25) -> None:
        self.cupy, self.repeats = device_namespace("cuda"), max(2, repeats)
        self.device = self.cupy.cuda.Device()
        self.l2 = int(self.device.attributes["L2CacheSize"])
        self._filler = self.cupy.zeros(max(4 * self.l2, 64 << 20) // 4, "float32")

    def flush(self) -> None:
        """Nothing that was used before is in the L2 any more."""
        self._filler.fill(1)

    def captured(self, works: Sequence[Run]) -> Run:
        """These launches, one after another, as one replay."""
        stream = self.cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            try:
                for work in works:
                    work()
            finally:
                graph = stream.end_capture()
        return graph.launch

    def captured_by_torch(self, works: Sequence[Run]) -> tuple[Run, str]:
        """The same for work that torch asks for; where it cannot be captured, one after another on the stream."""
        import torch

        def all_of_them() -> None:
            for work in works:
                work()

        all_of_them()  # the first call compiles, chooses and allocates
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                all_of_them()
        except RuntimeError:
            torch.cuda.synchronize()
            return all_of_them, "stream"
        return graph.replay, "graph"

    def time(self, replay: Run, count: int, by: str = "graph") -> Timed:
        """The median over the repeats, for one of the `count` pieces of work that a replay does."""
        events = self.cupy.cuda.Event
        pairs = [(events(), events()) for _ in range(self.repeats + 3)]
        for begin, end in pairs:
            self.flush()
            begin.record()
            replay()
            end.record()
        wait()
        warm = pairs[3:]
        seconds = sorted(self.cupy.cuda.get_elapsed_time(*pair) / 1e3 / count for pair in warm)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return Timed(median, low, high, by)

    def copy_bandwidth(self) -> float:
        """Bytes a second of a copy on the device, read and written ones counted, in a size that no cache holds."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        size = int(min(4 << 30, free // 8)) // 4
        source, target = self.cupy.ones(size, "float32"), self.cupy.zeros(size, "float32")
        for _ in range(20):
            target[...] = source  # also wakes the clocks up
        seconds = self.time(self.captured([lambda: self.cupy.copyto(target, source)]), 1).median
        del source, target
        self.free()
        return 2 * 4 * size / seconds

    def free(self) -> None:
        """Memory that nobody holds any more goes back to the driver: others want it, too."""
        self.cupy.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def sets(self, bytes_of_one: int, memory_of_one: int) -> int:
        """So many sets of inputs that together they do not fit into the L2; 0 if not even one has room."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        fit = int(free * 0.3) // memory_of_one
        return min(fit, 8, 1 + 2 * self.l2 // bytes_of_one)
