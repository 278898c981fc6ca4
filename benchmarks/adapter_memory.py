"""Bytes of adapters and KV blocks in three forms of memory: fixed slots, slots of their own size, one paged pool.

    python benchmarks/adapter_memory.py [--adapters 5,20,100] [--ranks 8,16,32,64]

Loads so many adapters of mixed ranks, in every linear layer of the embedded model, beside 16 requests that have
computed a prompt of 40 tokens, and counts the bytes of the engine's own arrays (refimpl/memory_use.py): nothing here is
a time, and every machine counts the same. Writes results/adapter_memory.json, .md and .svg.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

import refimpl
from refimpl import NUMPY, Engine, Model, Request, diagrams
from refimpl.adapter import Adapter, PeftConfig
from refimpl.arrays import Precision
from refimpl.config import LAYER_MODULES
from refimpl.fixed_slots import FixedPool
from refimpl.kv_cache import KVCache
from refimpl.memory_use import MemoryUse, memory_use
from refimpl.paged_slots import PagedSlots
from refimpl.synthetic.adapters import random_adapter
from refimpl.unified_pool import UnifiedPool

RESULTS = Path(__file__).parent / "results" / "adapter_memory.json"
REQUESTS, PROMPT, NEW, BLOCK_SIZE = 16, 40, 16, 16


def adapters_of(model: Model, count: int, ranks: Sequence[int]) -> list[Adapter]:
    """So many random adapters, of each rank in turn, in every linear layer."""
    return [
        random_adapter(
            model.config,
            PeftConfig(ranks[i % len(ranks)], 16, target_modules=tuple(LAYER_MODULES)),
            f"adapter-{i}",
            np.random.default_rng(i),
        )
        for i in range(count)
    ]


def blocks_of(model: Model, adapters: Sequence[Adapter]) -> int:
    """How many KV blocks they take in a unified pool."""
    p = Precision("model", model.dtype)
    slots = PagedSlots(model, p, KVCache(model.config, 1, BLOCK_SIZE, p))
    bound = (NUMPY.bind_adapter(adapter, model.config, NUMPY.adapter_scale) for adapter in adapters)
    return sum(slots.blocks_for(slots.packed(each)) for each in bound)


def measure(model: Model, adapters: Sequence[Adapter], pool: Callable | None, extra_blocks: int = 0) -> MemoryUse:
    """Load the adapters, compute the prompts, count."""
    kv_blocks = REQUESTS * -(-(PROMPT + NEW) // BLOCK_SIZE)
    engine = Engine(
        model,
        num_blocks=kv_blocks + extra_blocks,
        block_size=BLOCK_SIZE,
        max_batch_tokens=REQUESTS * PROMPT,
        max_adapters=None if pool is UnifiedPool or pool is None else len(adapters),
        prefix_caching=False,
        pool=pool,
    )
    for adapter in adapters:
        engine.adapters.release(engine.adapters.acquire(adapter))
    for i in range(REQUESTS):
        engine.add(Request([(i + j) % 100 + 1 for j in range(PROMPT)], adapters[i % len(adapters)], stop_ids=()), NEW)
    engine.step()
    assert len(engine.adapters.slot_of) == len(adapters) and len(engine.running) == REQUESTS
    return memory_use(engine)


def main() -> None:
    """Count, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", default="5,20,100")
    parser.add_argument("--ranks", default="8,16,32,64")
    args = parser.parse_args()
    ranks = [int(rank) for rank in args.ranks.split(",")]
    model, rows = refimpl.load_model("tiny"), []
    for count in map(int, args.adapters.split(",")):
        adapters = adapters_of(model, count, ranks)
        fixed = partial(FixedPool, max_rank=max(ranks), modules=LAYER_MODULES)
        forms = {
            "fixed slots": measure(model, adapters, fixed),
            "separate pools": measure(model, adapters, None),
            "unified pool": measure(model, adapters, UnifiedPool, blocks_of(model, adapters)),
        }
        for form, use in forms.items():
            sizes = asdict(use)
            sizes["weights"] = sizes.pop("adapters")
            rows.append({"adapters": count, "form": form, **sizes})
        print(*rows[-3:], sep="\n", flush=True)
    RESULTS.write_text(
        json.dumps({"ranks": ranks, "requests": REQUESTS, "prompt": PROMPT, "rows": rows}, indent=1) + "\n"
    )
    RESULTS.with_suffix(".md").write_text(as_markdown(rows, ranks))
    last = [row for row in rows if row["adapters"] == rows[-1]["adapters"]]
    bars = [(row["form"], row["kv"], row["weights"], row["wasted"], row["free"]) for row in last]
    title = f"{rows[-1]['adapters']} adapters of ranks {args.ranks} beside {REQUESTS} requests"
    RESULTS.with_suffix(".svg").write_text(diagrams.memory_bars(bars, title).document())


def as_markdown(rows: Sequence[dict], ranks: Sequence[int]) -> str:
    """The table for people."""
    out = [
        "# Bytes of adapters and KV blocks in three forms of memory",
        "",
        f"Written by `python benchmarks/adapter_memory.py`: adapters of ranks {', '.join(map(str, ranks))} in turn, in",
        f"every linear layer of the embedded model (float32), beside {REQUESTS} requests with {PROMPT} tokens computed",
        f"each, in blocks of {BLOCK_SIZE}. MB are millions of bytes. Wasted: ranks below the slot's, ends of blocks;",
        "its share is of all that is not free. Fixed slots are as large as the greatest rank, as vLLM's are.",
        "",
        "| adapters | form | reserved | KV | LoRA weights | free | wasted | share |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sizes = [f"{row[name] / 1e6:.1f} MB" for name in ("reserved", "kv", "weights", "free", "wasted")]
        share = 100 * row["wasted"] / (row["reserved"] - row["free"])
        out.append(f"| {row['adapters']} | {row['form']} | {' | '.join(sizes)} | {share:.1f} % |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
