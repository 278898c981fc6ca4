"""Draws the README's pictures: docs/flat_batch.svg, a batch as the forward pass gets it, and docs/demo.svg, the screen.

    python docs/make_picture.py            both; after the embedded model has changed

tests/docs/test_docs_pictures.py holds the first against the file. The demo's screen has times in it, which change.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import io
from pathlib import Path

from rich.console import Console

from refimpl import NUMPY, Precision, diagrams, load_adapter, load_model, tiny
from refimpl.adapter_cache import AdapterCache
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.commands import demo
from refimpl.kv_cache import KVCache

DOCS = Path(__file__).parent
BLOCK_SIZE = 8
# Who, how many tokens the cache holds already, how many are computed now, and the blocks.
SCHEDULE = (("pirate", 0, 4, [0]), ("base", 9, 1, [3, 1]), ("robot", 8, 3, [2, 5]), ("pirate", 15, 1, [4, 6]))


def flat_batch() -> diagrams.Diagram:
    """Return one batch of four requests: two prompts, and two that decode."""
    model, p = load_model("tiny"), Precision()
    adapters = AdapterCache(model, p, NUMPY)
    token_ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
    slots = {who: [(adapters.acquire(load_adapter(who, model.config)), 1.0)] for who in ("pirate", "robot")}
    scheduled = [
        ScheduledRequest(token_ids[computed : computed + count], computed, blocks, slots.get(who, []))
        for who, computed, count, blocks in SCHEDULE
    ]
    batch = make_batch(scheduled, KVCache(model.config, 7, BLOCK_SIZE, p), adapters.slots, NUMPY)
    starts = batch.attention.query_start_loc.tolist()
    adapter_ids = batch.lora.adapter_ids[:, 0]
    columns = {
        "token": [model.tokenizer.decode([n]).strip() or "<s>" for n in batch.token_ids.tolist()],  # <s> begins a text
        "position": batch.positions,
        "slot": batch.attention.slot_mapping,
        "adapter_ids": adapter_ids,
    }
    requests = [(who, start, stop) for (who, *_), start, stop in zip(SCHEDULE, starts, starts[1:], strict=False)]
    return diagrams.flat_batch(columns, adapter_ids, requests, "Four requests, two adapters, one batch")


def demo_screen() -> str:
    """Return what `loracle demo` prints, as SVG."""
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    console = Console(record=True, width=118, file=io.StringIO())
    demo.present(console, parser.parse_args([]))
    console.print()  # what hangs below the last line is cut otherwise
    return console.export_svg(title="loracle demo")


if __name__ == "__main__":
    (DOCS / "flat_batch.svg").write_text(flat_batch().document(), "utf-8")
    (DOCS / "demo.svg").write_text(demo_screen(), "utf-8")
