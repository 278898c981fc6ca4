"""A report for people."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..tools.units import human_bytes

Result = dict[str, Any]
POINT = ("tokens", "mix", "adapters", "rank", "d_in", "d_out", "dtype")


def numeric(*names: str) -> Table:
    """A table whose columns are numbers, but for the words among them."""
    table = Table(pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("mix", "dtype", "kernels") else "right", no_wrap=True)
    return table


def point_cells(row: Result) -> list[str]:
    """What was measured."""
    return [str(row["distinct" if name == "adapters" else name]) for name in POINT]


def kernels_table(report: Result) -> Table:
    """One row for each point: times on a GPU, bytes on the CPU runner."""
    return timed_table(report) if "copy_bytes_per_second" in report else counted_table(report)


def counted_table(report: Result) -> Table:
    """Bytes."""
    table = numeric(*POINT, "kernels", "error/bound", "floor", "asked for", "floor/asked", "weights read")
    for row in report["points"]:
        table.add_row(
            *point_cells(row),
            short(row["kernels"]),
            f"{row['error_over_bound']:.2f}",
            human_bytes(row["floor_bytes"]),
            human_bytes(row["asked_bytes"]),
            f"{row['share_of_floor']:.2f}",
            f"{row['weight_reads']:.1f}x",
        )
    return table


def timed_table(report: Result) -> Table:
    """Microseconds of ours and of the others."""
    others = list(dict.fromkeys(name for row in report["points"] for name in row.get("others", {})))
    table = numeric(*POINT, "kernels", "error/bound", "bytes", "us", "of floor", *others, "best/ours")
    for row in report["points"]:
        theirs = [row.get("others", {}).get(name, {}).get("seconds") for name in others]
        table.add_row(
            *point_cells(row),
            short(row["kernels"]),
            f"{row['error_over_bound']:.2f}",
            human_bytes(row["floor_bytes"]),
            f"{1e6 * row['seconds']:.1f}",
            f"{row['share_of_floor']:.2f}",
            *("-" if seconds is None else f"{1e6 * seconds:.1f}" for seconds in theirs),
            f"{row['speedup']:.2f}x" if "speedup" in row else "-",
        )
    return table


def short(kernels: list[str]) -> str:
    """['bgmv_shrink_v2', 'bgmv_expand_v2'] -> bgmv v2."""
    parts = [name.split("_") for name in kernels]
    return " + ".join(dict.fromkeys(f"{part[0]} {part[-1]}" for part in parts))


def kernels_lines(report: Result) -> Iterator[str]:
    """What the table comes to."""
    summary, layer = report["summary"], report.get("layer")
    if "copy_bytes_per_second" in report:
        yield f"copy on this GPU: {report['copy_bytes_per_second'] / 1e12:.2f} TB/s; the floor is the bytes over that"
        if "speedup_geometric_mean" in summary:
            mean, least = summary["speedup_geometric_mean"], summary["speedup_least"]
            yield f"best of the others / ours: {mean:.2f}x (geometric mean), {least:.2f}x at least"
    else:
        yield (
            "no GPU: these bytes were counted on the CPU runner, one fiber per thread. It has no caches and no "
            "clock of a GPU, so no time here is one of a GPU, and none is printed"
        )
    if layer:
        ops = layer["launches_of_cuda_ops"]
        apart, together = layer["launches_module_by_module"], layer["launches_by_shared_input"]
        yield (
            f"launches of one layer in a decode step with --ops cuda: {sum(ops.values())}, of them {apart} of LoRA; "
            f"{together} of LoRA where modules that share an input (q k v; gate up) share a launch"
        )
        for name in ("module_by_module", "by_shared_input"):
            if f"seconds_{name}" in layer:
                took = layer[f"seconds_{name}"]
                yield (
                    f"  LoRA of one layer, {layer['tokens']} tokens, {name.replace('_', ' ')}: "
                    f"{1e6 * took['graph']:.0f} us as a graph, {1e6 * took['calls']:.0f} us launched from Python"
                )
    for point in report["left_out"]:
        yield f"left out: {point['tokens']} tokens, {point['mix']}, rank {point['rank']}: {point['why']}"


def serving_table(report: Result) -> Table:
    """One row for each number of adapters."""
    on_device = any("device_ratio" in row for row in report["points"])
    names = ("adapters", "in one batch, tokens/s", "one after another, tokens/s", "ratio", "step ms", "differs by")
    table = numeric(*names, *["device step ms", "device ratio"] * on_device)
    table.caption = (
        "medians over the rounds; the ratio is the median of each round's own; differs by: the largest difference of "
        "any logit between the two ways, as a share of the largest logit (0: bit for bit the same)"
    )
    for row in report["points"]:
        table.add_row(
            str(row["adapters"]),
            f"{row['batched_tokens_per_second']:,.1f}",
            f"{row['one_after_another_tokens_per_second']:,.1f}",
            f"{row['ratio']:.2f}x",
            f"{1e3 * row['batched_seconds']:.2f}",
            f"{row['largest_difference']:.0e}",
            *device_cells(row, on_device),
        )
    return table


def device_cells(row: Result, on_device: bool) -> list[str]:
    """What CUDA graphs said, if any ran."""
    if not on_device:
        return []
    if "device_ratio" not in row:
        return ["-", "-"]
    return [f"{1e3 * row['device_batched_seconds']:.2f}", f"{row['device_ratio']:.2f}x"]


def serving_lines(report: Result) -> Iterator[str]:
    """What was run, and what it is not."""
    model = report["model"]
    yield (
        f"decode, {model['layers']} layers of width {model['hidden']} with random weights ({report['dtype']}), rank "
        f"{report['rank']}, {report['context']} tokens before; ops {report['ops']} on {report['device']}"
    )
    if report["ops"] == "cuda" and report["device"] == "cpu":
        yield "no GPU: the kernels ran on this CPU, one fiber per thread: these are not a GPU's tokens per second"
    for point in report["left_out"]:
        yield f"left out: {point['adapters']} adapters: {point['why']}"
