"""The base, the adapters, the trace and the memory of `loracle bench adapters`, and the engines made of them.

A budget of memory is for keys, values and adapters together, beside the base. `separate`: the KV cache has what the
longest requests need, and the rest is slots, each as wide as the largest adapter, as vLLM's are. `unified`: one pool of
blocks for both (unified_pool.py).
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig
from ..arrays import DTYPES, Precision, ceil_div
from ..backends import BACKENDS
from ..config import LAYER_MODULES, ModelConfig
from ..engine import Engine
from ..errors import RequestError
from ..loading.model_folder import load_model
from ..synthetic.adapters import gain_of, random_adapter
from ..synthetic.models import Recipe, random_model
from ..tools.units import human_bytes
from ..unified_pool import UnifiedPool
from ..weights import Model
from .arrivals import Arrival, Workload, draw
from .bare import bare_seconds, can_be_bare
from .cost import kv_parameters
from .replay import Replay, replay, replay_in_turn

COUNTS, RANKS = (5, 50, 500, 2000), (8, 16, 32, 64)
BLOCK_SIZE = 16
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# The shape of benchmarks/cpu.py: a Llama of GPT-2's size.
LLAMA_110M = ModelConfig(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
)


@dataclass(frozen=True)
class Setup:
    """What is measured, and on what."""

    base: str = "embedded"  # or 110m, or a folder
    counts: Sequence[int] = COUNTS
    ranks: Sequence[int] = RANKS  # adapter i has the rank i % len(ranks)
    modules: Sequence[str] = LAYER_MODULES
    workload: Workload = field(default_factory=Workload)
    rate: float | None = None  # of the run for latencies, in requests a second; None: a share of the throughput
    trace: Sequence[Arrival] | None = None  # in place of the workload
    memory: int | None = None  # bytes for keys, values and adapters; None: as many as come
    pool: str = "separate"  # or unified
    ops: str = "numpy"
    device: str = "cpu"
    max_running: int = 16
    repeats: int = 5
    seconds: float = math.inf
    clock: str = "wall"  # or cpu: this process's CPU time, which others on the machine hardly change; not for a GPU
    seed: int = 0


def base_model(setup: Setup) -> Model:
    """Return the base. LoracleError for a folder that cannot be loaded."""
    if setup.base == "110m":
        rng = np.random.default_rng(setup.seed)
        return random_model(LLAMA_110M, rng, "float32", Recipe(number=np.float32), device=setup.device)
    return load_model("tiny" if setup.base == "embedded" else setup.base, "float32", setup.device)


def random_adapters(model: Model, setup: Setup) -> Iterator[Adapter]:
    """Yield adapters, no two alike, the ranks taking turns; the i-th is the same whatever comes after it.

    RequestError for a module that the base does not have."""
    absent = set(setup.modules) - set(model.config.layer_modules)
    if absent:
        raise RequestError(f"module {min(absent)}: the base has {', '.join(model.config.layer_modules)}")
    gain = gain_of(model)
    gains = {module: gain(module) for module in model.config.modules() if module[1] in setup.modules}
    for i, rank in enumerate(itertools.cycle(setup.ranks)):
        peft = PeftConfig(rank, 2 * rank, target_modules=tuple(setup.modules))
        rng = np.random.default_rng([setup.seed, i])
        yield in_one_array(random_adapter(model.config, peft, f"adapter-{i}", rng, gains.__getitem__))


def in_one_array(adapter: Adapter) -> Adapter:
    """Return the adapter with A and B of all modules side by side, as a file of tensors has them, and B column by
    column, as a loader does: small arrays that were drawn one by one leave holes in a process's memory."""
    arrays = [x for lora in adapter.lora.values() for x in (lora.A, lora.B.T)]
    numbers = np.concatenate([x.reshape(-1) for x in arrays])
    parts = iter(np.split(numbers, np.cumsum([x.size for x in arrays[:-1]])))
    lora = {
        module: LoraTensors(next(parts).reshape(lora.A.shape), next(parts).reshape(lora.B.T.shape).T)
        for module, lora in adapter.lora.items()
    }
    return replace(adapter, lora=lora)


def adapter_bytes(config: ModelConfig, rank: int, modules: Sequence[str], itemsize: int = 4) -> int:
    """Return the bytes of one adapter's A and B: itemsize * rank * sum of (d_in + d_out) over its modules."""
    return itemsize * rank * sum(sum(config.shape(module)) for module in config.modules() if module[1] in modules)


def adapters_bytes(config: ModelConfig, setup: Setup, count: int) -> int:
    """Return the bytes of the first `count` adapters together."""
    each = [adapter_bytes(config, rank, setup.modules) for rank in setup.ranks]
    return count // len(each) * sum(each) + sum(each[: count % len(each)])


@dataclass(frozen=True, eq=False)
class Testbed:
    """The base, the adapters so far, and how an engine for them is made."""

    model: Model
    setup: Setup
    adapters: list[Adapter]
    trace: list[Arrival]  # of the largest number of adapters: its lengths are those of all

    @property
    def kv_blocks(self) -> int:
        """The blocks that as many of the longest requests need as may run at once."""
        longest = max(arrival.prompt_tokens + arrival.max_new_tokens for arrival in self.trace)
        return min(self.setup.max_running, len(self.trace)) * ceil_div(longest, BLOCK_SIZE)

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block: 2 * layers * block_size * kv_heads * head_dim * itemsize."""
        return kv_parameters(self.model.config) * BLOCK_SIZE * np.dtype(DTYPES[self.precision.compute]).itemsize

    @property
    def precision(self) -> Precision:
        """Where this base rounds under these ops."""
        return self.model.precision(Precision(BACKENDS[self.setup.ops].precision, self.model.dtype))

    def sizes(self, count: int) -> tuple[int, int | None]:
        """Return (blocks, adapter slots or None) for so many adapters. RequestError for a budget too small."""
        setup, config = self.setup, self.model.config
        each = [adapter_bytes(config, rank, setup.modules) for rank in setup.ranks]
        if setup.pool == "unified":
            if setup.memory is None:
                adapters = sum(ceil_div(each[i % len(each)], self.block_bytes) + 1 for i in range(count))
                return self.kv_blocks + adapters, None
            return max(1, setup.memory // self.block_bytes), None
        if setup.memory is None:
            return self.kv_blocks, None
        kv = self.kv_blocks * self.block_bytes
        slots = (setup.memory - kv) // max(each)
        if slots < 1:
            raise RequestError(
                f"memory {human_bytes(setup.memory)}: keys and values take {human_bytes(kv)} of it, and the largest "
                f"adapter {human_bytes(max(each))}"
            )
        return self.kv_blocks, min(slots, count)

    def engine(self, count: int) -> Engine:
        """Return an engine for so many adapters, none of them loaded. Without prefix caching: no prompt is repeated."""
        blocks, slots = self.sizes(count)
        return Engine(
            self.model,
            BACKENDS[self.setup.ops],
            num_blocks=blocks,
            block_size=BLOCK_SIZE,
            max_running=self.setup.max_running,
            max_adapters=slots,
            prefix_caching=False,
            pool=UnifiedPool if self.setup.pool == "unified" else None,
        )

    def trace_of(self, count: int, rate: float | None = None) -> list[Arrival]:
        """Return the trace for so many adapters: all requests at once, or at so many a second."""
        trace = trace_for(self.setup, count, rate or 1.0)
        return trace if rate else [replace(arrival, arrival=0.0) for arrival in trace]

    def replay(self, engine: Engine, trace: Sequence[Arrival]) -> Replay:
        """Serve a trace on the setup's clock."""
        return replay(engine, trace, self.adapters, CLOCKS[self.setup.clock])

    def replay_in_turn(self, traces: Sequence[tuple[Engine, Sequence[Arrival]]]) -> list[Replay]:
        """Serve several traces, some steps of each in turn."""
        return replay_in_turn(traces, self.adapters, CLOCKS[self.setup.clock])

    @property
    def can_be_bare(self) -> bool:
        """Whether the products of a step can be taken alone: on a CPU, of adapters that lie in slots and stay there."""
        setup = self.setup
        plain = setup.device == "cpu" and setup.memory is None and setup.pool == "separate"
        return plain and can_be_bare(self.model.config)

    def bare(self, engine: Engine, result: Replay, seconds: list[float]) -> Iterator[None]:
        """Take the products of the steps that were served, and note how long those of each took."""
        steps, timer = result.rows, CLOCKS[self.setup.clock]
        for each in bare_seconds(self.model, engine.adapters.slots, steps, self.precision, timer):
            seconds.append(each)
            yield


def trace_for(setup: Setup, count: int, rate: float) -> list[Arrival]:
    """Return the trace that was given, or one that is drawn for so many adapters and requests a second."""
    return list(setup.trace or draw(replace(setup.workload, rate=rate), count, setup.seed))


def make_testbed(setup: Setup) -> Testbed:
    """Return the base without adapters yet. RequestError for adapters that this machine's memory cannot hold."""
    if setup.trace is not None:
        setup = replace(setup, counts=(1 + max([arrival.adapter or 0 for arrival in setup.trace]),))
    model = base_model(setup)
    needed, available = adapters_bytes(model.config, setup, max(setup.counts)), available_memory()
    if available is not None and needed > available:
        raise RequestError(
            f"{max(setup.counts)} adapters take {human_bytes(needed)}, and this machine has {human_bytes(available)} "
            "left: fewer adapters, smaller ranks, or fewer --modules"
        )
    return Testbed(model, setup, [], trace_for(setup, max(setup.counts), 1.0))


def process_memory() -> int | None:
    """The bytes of this process that lie in memory; None where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile", "RssShmem")))


def available_memory() -> int | None:
    """The bytes that this machine could still give; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
