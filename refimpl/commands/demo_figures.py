"""What the demo measures, and how it says it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..tools.units import human_bytes
from .common import default_device

ROUNDS, FEW_ROUNDS = 2, 1  # of batched, then one after another


@dataclass(frozen=True)
class Figures:
    """What the demo measures, and --json prints."""

    tokens_per_second: float
    sequential_tokens_per_second: float
    speedup: float
    base_bytes: int
    adapter_bytes: dict[str, int]
    merged_copies_bytes: int
    kv_blocks_in_use: int
    kv_blocks: int
    batched_vs_alone_max_abs: float
    merged_vs_unmerged_max_abs: float
    largest_logit: float


def simulated(args: argparse.Namespace) -> bool:
    """Return whether the kernels run on the CPU runner."""
    return args.ops == "cuda" and default_device(args.ops) == "cpu"


def rounds(args: argparse.Namespace) -> int:
    """Return how often everything is timed."""
    return FEW_ROUNDS if simulated(args) else ROUNDS


def largest(left_rows: Sequence[np.ndarray], right_rows: Sequence[np.ndarray]) -> float:
    """Return the largest absolute difference; NaN stays NaN."""
    return float(np.max([np.abs(x - y).max() for x, y in zip(left_rows, right_rows, strict=True)]))


def show_figures(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print (heading, text) of every figure, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for heading, line in lines:
        text = Text(line)
        text.highlight_regex(r"[\d.]+x$", "bold")  # the speed-up
        table.add_row(heading, text)
    console.print(table)


def lines_of(n: Figures, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the figures as (heading, text)."""
    scale = f"(logits up to {n.largest_logit:.0f}; float32)"
    return [
        (
            f"one batch of {len(names)}",
            f"{n.tokens_per_second:,.0f} tokens/s; one after another {n.sequential_tokens_per_second:,.0f} tokens/s: "
            f"{n.speedup:.1f}x",
        ),
        ("memory", memory(n.base_bytes, n.adapter_bytes, n.merged_copies_bytes)),
        ("KV cache", f"{n.kv_blocks_in_use} of {n.kv_blocks} blocks in use at the peak"),
        ("batched = alone", f"largest difference of any logit {n.batched_vs_alone_max_abs:.1e} {scale}"),
        (
            "unmerged = merged",
            f"largest difference of any logit {n.merged_vs_unmerged_max_abs:.1e} (merged: B A added into W)",
        ),
    ]


def memory(base_bytes: int, adapter_bytes: dict[str, int], merged_copies_bytes: int) -> str:
    """Return what a base takes with its adapters beside it, and as merged copies."""
    sizes = ", ".join(f"{name} {human_bytes(size)}" for name, size in adapter_bytes.items())
    total = base_bytes + sum(adapter_bytes.values())
    return (
        f"base {human_bytes(base_bytes)} + adapters ({sizes}) = {human_bytes(total)}; "
        f"{len(adapter_bytes)} merged copies: {human_bytes(merged_copies_bytes)}"
    )
