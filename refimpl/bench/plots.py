"""The pictures of a report: PNG and SVG, by matplotlib, which the extra `bench` brings."""

from pathlib import Path
from typing import Any

from ..errors import DeviceError

Result = dict[str, Any]
OURS, OTHERS = "#1f5fbf", ("#d95f02", "#7570b3", "#1b9e77", "#a6761d")
MARKS = {"identical": "s", "uniform": "o", "distinct": "^", "zipf": "v", "skewed": "D"}


def draw(report: Result, folder: Path) -> list[Path]:
    """Both files of this report's picture. DeviceError in one line without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise DeviceError("no picture without matplotlib: pip install 'loracle[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "loracle", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
        if report["benchmark"] == "serving":
            serving(axes, report)
        elif report["benchmark"] == "adapters":
            adapters(axes, report)
        elif "copy_bytes_per_second" in report:
            roofline(axes, report)
        else:
            bytes_picture(axes, report)
        axes.grid(True, which="major", alpha=0.3)
        files = [folder / f"{report['benchmark']}.{kind}" for kind in ("png", "svg")]
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else {})
        pyplot.close(figure)
    return files


def roofline(axes: Any, report: Result) -> None:
    """flop/s over flop per byte: nothing can be above the line that the measured copy bandwidth draws."""
    rows, bandwidth = report["points"], report["copy_bytes_per_second"]
    edges = [min(row["intensity"] for row in rows) / 1.5, max(row["intensity"] for row in rows) * 1.5]
    axes.plot(edges, [x * bandwidth / 1e12 for x in edges], "k-", lw=1, label=f"copy, {bandwidth / 1e12:.2f} TB/s")
    names = list(dict.fromkeys(name for row in rows for name in row.get("others", {})))
    for name, color in zip(names, OTHERS, strict=False):
        times = [
            (row, row["others"][name]["seconds"]) for row in rows if "seconds" in row.get("others", {}).get(name, {})
        ]
        axes.scatter(
            [row["intensity"] for row, _ in times], [row["flops"] / seconds / 1e12 for row, seconds in times],
            s=18, color=color, alpha=0.6, label=name,
        )  # fmt: skip
    for mix, mark in MARKS.items():
        of_mix = [row for row in rows if row["mix"] == mix]
        axes.scatter(
            [row["intensity"] for row in of_mix], [row["flops"] / row["seconds"] / 1e12 for row in of_mix],
            s=34, color=OURS, marker=mark, label=f"loracle, {mix}",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="flop per byte, each byte moved once", ylabel="TFLOP/s")
    axes.set_title(f"Batched LoRA on {report['machine']['gpu']}")
    axes.legend(fontsize=8)


def bytes_picture(axes: Any, report: Result) -> None:
    """Without times: how many flop the kernels do for each byte that they ask for, and could do at best."""
    rows = report["points"]
    edges = [min(row["intensity"] for row in rows) / 1.5, max(row["intensity"] for row in rows) * 1.5]
    axes.plot(edges, edges, "k-", lw=1, label="each byte moved once")
    for mix, mark in MARKS.items():
        of_mix = [row for row in rows if row["mix"] == mix]
        axes.scatter(
            [row["intensity"] for row in of_mix], [row["flops"] / row["asked_bytes"] for row in of_mix],
            s=34, color=OURS, marker=mark, label=mix, alpha=0.8,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="flop per byte of the floor", ylabel="flop per byte asked for")
    axes.set_title("Batched LoRA: bytes counted on the CPU runner, nothing timed")
    axes.legend(fontsize=8)


def serving(axes: Any, report: Result) -> None:
    """Tokens per second of both, over the number of adapters, and the ratio beside each point."""
    rows = report["points"]
    counts = [row["adapters"] for row in rows]
    for key, name, color in (
        ("batched_tokens_per_second", "all adapters in one batch", OURS),
        ("one_after_another_tokens_per_second", "one adapter after another", OTHERS[0]),
    ):
        axes.plot(counts, [row[key] for row in rows], "o-", color=color, label=name)
    on_device = [row for row in rows if "device_ratio" in row]
    for key, name, color in (
        ("device_batched_seconds", "one batch, as a CUDA graph", OURS),
        ("device_one_after_another_seconds", "one after another, as a CUDA graph", OTHERS[0]),
    ):
        if on_device:
            speeds = [row["adapters"] / row[key] for row in on_device]
            axes.plot([row["adapters"] for row in on_device], speeds, "x--", color=color, label=name)
    for row in rows:
        place = (row["adapters"], row["batched_tokens_per_second"])
        axes.annotate(f"{row['ratio']:.1f}x", place, xytext=(0, 7), textcoords="offset points", ha="center")
    axes.set(xscale="log", yscale="log", xlabel="adapters, one request each", ylabel="tokens per second")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    machine, model = report["machine"], report["model"]
    where = machine.get("gpu", machine["cpu"]) if report["device"] == "cuda" else machine["cpu"]
    axes.set_title(
        f"Decode, {model['layers']} layers of width {model['hidden']}, {report['dtype']}, {where}", fontsize=10
    )
    axes.legend(fontsize=8)


def adapters(axes: Any, report: Result) -> None:
    """Tokens per second over the number of adapters, each as a share of the first, and with nothing but more loaded."""
    rows = report["points"]
    counts = [row["adapters"] for row in rows]
    axes.plot(counts, [row["ratio"] for row in rows], "o-", color=OURS, label="so many loaded and asked for")
    for row in rows:
        text = f"{row['adapters_in_a_step']:.1f} in a step"
        axes.annotate(text, (row["adapters"], row["ratio"]), xytext=(0, -14), textcoords="offset points", ha="center")
    if "resident" in report:
        resident = report["resident"]
        label = f"so many loaded, {resident['trace_of']} asked for"
        axes.plot([resident["loaded"]], [resident["ratio"]], "D", color=OTHERS[0], label=label)
    axes.set(xscale="log", xlabel="adapters", ylabel=f"throughput, over that with {counts[0]}", ylim=(0, 1.15))
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_title(
        f"{report['setup']['base']} base, ranks {', '.join(map(str, report['setup']['ranks']))}", fontsize=10
    )
    axes.legend(fontsize=8)
