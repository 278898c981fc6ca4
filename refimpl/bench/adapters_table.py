"""The report of `loracle bench adapters` for people."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..tools.units import human_bytes
from .tables import numeric

Result = dict[str, Any]
COLUMNS = (
    *("adapters", "tokens/s", "of the first", "in a step", "weights read", "misses"),
    *("ttft p50", "p99", "tpot p50", "e2el p50", "p99", "sum of adapters", "over base + sum"),
)


def table(report: Result) -> Table:
    """Return one row for each number of adapters."""
    result = numeric(*COLUMNS)
    result.caption = (
        "tokens/s: all requests at once, medians over the rounds; of the first: the median of each round's own ratio; "
        "in a step: different adapters in one batch, the mean; weights read: by one step; misses: all at once; "
        "latencies in milliseconds, at the rate below; over base + sum: what the process has beyond these in memory"
    )
    for row in report["points"]:
        latencies = row.get("latency_seconds", {})
        cells = [(name, p) for name, p in (("ttft", 50), ("ttft", 99), ("tpot", 50), ("e2el", 50), ("e2el", 99))]
        result.add_row(
            str(row["adapters"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.3f}",
            f"{row['adapters_in_a_step']:.1f}",
            human_bytes(row["step_bytes"]),
            f"{row['misses']:g}",
            *(f"{1e3 * latencies[name][f'p{p}']:,.1f}" if name in latencies else "-" for name, p in cells),
            human_bytes(row["adapter_bytes"]),
            "-" if row["grown_bytes"] is None else f"{100 * overhead(report, row):+.1f} %",
        )
    return result


def overhead(report: Result, row: Result) -> float:
    """Return how much more than base + adapters there is in memory, as a share of that."""
    parts = report["base_bytes"] + row["adapter_bytes"]
    return (report["base_bytes"] + row["grown_bytes"]) / parts - 1


def lines(report: Result) -> Iterator[str]:
    """Yield what was run, and what it comes to."""
    setup = report["setup"]
    yield (
        f"base {setup['base']} ({human_bytes(report['base_bytes'])}), ranks {', '.join(map(str, setup['ranks']))} on "
        f"{', '.join(setup['modules'])}; at most {setup['max_running']} requests in a step; {setup['pool']} pool; "
        f"ops {setup['ops']} on {setup['device']}; seconds of the {setup['clock']} clock"
    )
    if report.get("rate"):
        yield f"latencies at {report['rate']:.2f} requests a second"
    if "resident" in report:
        resident = report["resident"]
        yield (
            f"{resident['loaded']} adapters loaded, {resident['trace_of']} of them asked for: "
            f"{resident['ratio']:.3f} of the throughput with {resident['trace_of']} loaded"
        )
    if setup["memory"] is not None:
        yield f"memory for keys, values and adapters: {human_bytes(setup['memory'])}"
    for part in report["left_out"]:
        yield f"left out: {part['rounds']} rounds: {part['why']}"
