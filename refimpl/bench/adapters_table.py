"""The report of `loracle bench adapters` for people."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..tools.units import human_bytes, human_seconds

Result = dict[str, Any]
ROWS = (
    *("tokens/s", "of the first", "  products alone", "  these added", "adapters in a step", "weights read", "misses"),
    *("ttft p50", "ttft p99", "tpot p50", "e2el p50", "e2el p99", "sum of adapters", "over base + sum"),
)
WORDS = (
    "tokens/s: all requests at once, medians over the rounds",
    "of the first: the median of each round's own ratio",
    "products alone: that ratio of the products of these steps in a plain loop; these added: of a step that takes",
    "as much longer as they do",
    "adapters in a step: different ones in one batch, the mean; weights read: by one step; misses: all at once",
    "ttft, tpot, e2el: latencies at the rate below; over base + sum: what the process has beyond these in memory",
)


def table(report: Result) -> Table:
    """Return one column for each number of adapters, so that it is no wider than a terminal."""
    columns = [cells(report, row) for row in report["points"]]
    result = Table(pad_edge=False)
    result.add_column("adapters", justify="left", no_wrap=True)
    for row in report["points"]:
        result.add_column(f"{row['adapters']:,}", justify="right", no_wrap=True)
    for name, *values in zip(ROWS, *columns, strict=True):
        result.add_row(name, *values)
    return result


def cells(report: Result, row: Result) -> list[str]:
    """Return what was measured with one number of adapters, in the order of ROWS."""
    latencies = row.get("latency_seconds", {})
    shown = [("ttft", 50), ("ttft", 99), ("tpot", 50), ("e2el", 50), ("e2el", 99)]
    return [
        f"{row['tokens_per_second']:,.0f}",
        *(f"{row[name]:.3f}" if name in row else "-" for name in ("ratio", "bare_ratio", "limit_ratio")),
        f"{row['adapters_in_a_step']:.1f}",
        human_bytes(row["step_bytes"]),
        f"{row['misses']:g}",
        *(human_seconds(latencies[name][f"p{p}"]) if name in latencies else "-" for name, p in shown),
        human_bytes(row["adapter_bytes"]),
        "-" if row["grown_bytes"] is None else f"{100 * overhead(report, row):+.1f} %",
    ]


def overhead(report: Result, row: Result) -> float:
    """Return how much more than base + adapters there is in memory, as a share of that."""
    parts = report["base_bytes"] + row["adapter_bytes"]
    return (report["base_bytes"] + row["grown_bytes"]) / parts - 1


def lines(report: Result) -> Iterator[str]:
    """Yield what the rows mean, what was run, and what it comes to."""
    setup = report["setup"]
    yield from WORDS
    yield (
        f"base {setup['base']} ({human_bytes(report['base_bytes'])}), ranks {', '.join(map(str, setup['ranks']))} on "
        f"{', '.join(setup['modules'])}"
    )
    yield (
        f"at most {setup['max_running']} requests in a step; {setup['pool']} pool; ops {setup['ops']} on "
        f"{setup['device']}; seconds of the {setup['clock']} clock"
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
