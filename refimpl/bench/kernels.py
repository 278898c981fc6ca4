"""`loracle bench kernels`: every point is verified, then timed on a GPU, or its bytes are counted on the CPU runner."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from ..cuda import launch, runner
from .case import Case, make_case
from .floor import work
from .machine import about
from .others import TOLERANCE, agrees, contenders
from .verify import verify
from .workloads import Point, adapter_ids

Result = dict[str, Any]


def bench(
    points: Sequence[Point], repeats: int = 25, compare: bool = True, seconds: float = math.inf
) -> Iterator[Result]:
    """The report, complete after each point: whoever is interrupted keeps what there is.

    After so many `seconds` no further point is begun; how many were left out is in the report."""
    report: Result = {"benchmark": "kernels", "machine": about(), "points": [], "left_out": []}
    on_gpu, begun = runner.device() == "gpu", time.monotonic()
    if on_gpu:
        from .gpu import Stopwatch

        watch = Stopwatch(repeats)
        report["copy_bytes_per_second"] = watch.copy_bandwidth()
    for point in spread(points):
        if time.monotonic() - begun > seconds:
            report["left_out"].append({**vars(point), "why": f"{seconds:g} seconds were over"})
            continue
        row = described(point)
        if on_gpu:
            memory = row["floor_bytes"] + 4 * point.tokens * (point.d_in + point.d_out)
            sets = watch.sets(row["floor_bytes"], memory)
            if sets == 0:
                report["left_out"].append({**vars(point), "why": f"{memory / 1e9:.1f} GB do not fit"})
                continue
            row |= timed(make_case(point, watch.cupy, sets), watch, report["copy_bytes_per_second"], compare)
            watch.free()
        else:
            row |= counted(make_case(point))
        report["points"].append(row)
        report["points"].sort(key=lambda row: points.index(point_of(row)))
        report["summary"] = summary(report["points"])
        yield report
    report["summary"] = summary(report["points"])
    yield report


def spread(points: Sequence[Point]) -> list[Point]:
    """In an order in which the first few are of every kind, should time be up."""
    return [point for start in range(7) for point in points[start::7]]


def point_of(row: Result) -> Point:
    """The point of a row of the report."""
    return Point(**{field.name: row[field.name] for field in fields(Point)})


def described(point: Point) -> Result:
    """What is known before anything runs."""
    todo = work(adapter_ids(point.mix, point.tokens), point.rank, point.d_in, point.d_out)
    return {
        **vars(point),
        "distinct": todo.distinct,
        "floor_bytes": todo.bytes,
        "flops": todo.flops,
        "intensity": todo.intensity,
    }


# ---- on the CPU runner ----------------------------------------------------------------------------------------------


def counted(case: Case) -> Result:
    """Verified under the checker, which finds races and wrong addresses and counts what was moved."""
    begun = time.perf_counter()
    with launch.checked() as launches:
        error = verify(case)
    big = ("x", "y", "weights", "low")
    moved = [traffic for _, arguments in launches for name, traffic in arguments.items() if name in big]
    tables = [
        traffic for _, arguments in launches for name, traffic in arguments.items() if name not in (*big, "shared")
    ]
    requested = sum(traffic.loaded + traffic.stored for traffic in moved)
    touched = sum(traffic.distinct_loaded + traffic.distinct_stored for traffic in moved) + sum(
        traffic.distinct_loaded for traffic in tables
    )
    weights = [arguments["weights"] for _, arguments in launches]
    return {
        "kernels": [name for name, _ in launches],
        "error_over_bound": error,
        "asked_bytes": requested,
        "touched_bytes": touched,
        "share_of_floor": case.work.bytes / requested,
        "weight_reads": sum(traffic.loaded for traffic in weights)
        / sum(traffic.distinct_loaded for traffic in weights),
        "simulated_seconds": time.perf_counter() - begun,
    }


# ---- on a GPU -------------------------------------------------------------------------------------------------------


def timed(case: Case, watch: Any, bandwidth: float, compare: bool) -> Result:
    """Verified, then timed; then the same through everybody else."""
    error = verify(case)
    kernels, runs = [], []
    for i in range(case.sets):
        with launch.recorded() as launches:
            case.run(i)
        kernels = [name for name, _ in launches]
        runs += [again for _, again in launches]
    time_of_one = watch.time(watch.captured(runs), case.sets)
    row: Result = {
        "kernels": kernels,
        "error_over_bound": error,
        "sets": case.sets,
        **seconds_of(time_of_one),
        "floor_seconds": case.work.bytes / bandwidth,
        "share_of_floor": case.work.bytes / bandwidth / time_of_one.median,
        "exceeds_l2": case.work.bytes > watch.l2,
    }
    if compare:
        before = case.y[0].copy()
        ours = case.run(0, before.copy())
        row["others"] = {name: theirs(make, case, watch, before, ours) for name, make in contenders().items()}
        times = [other["seconds"] for other in row["others"].values() if "seconds" in other]
        if times:
            row["speedup"] = min(times) / time_of_one.median
    return row


def theirs(make: Callable[[Case], Any], case: Case, watch: Any, before: Any, ours: Any) -> Result:
    """One contender: its time, or why there is none."""
    replay = entry = None
    try:
        entry = make(case)
        off = agrees(case, entry, before, ours)
        if not off <= TOLERANCE:
            return {"why": f"not timed: its result is off by {off:.3g} of what the adapters add", "off": off}
        replay, by = watch.captured_by_torch(entry.runs)
        return {**seconds_of(watch.time(replay, case.sets, by)), "off": off}
    except Exception as error:  # another package's failure is a gap in the table, not ours
        return {"why": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}
    finally:
        del replay, entry  # what they hold
        watch.free()


def seconds_of(timed: Any) -> Result:
    """A time as it is printed."""
    return {"seconds": timed.median, "quartiles": [timed.low, timed.high], "timed_by": timed.by}


# ---- what it comes to -----------------------------------------------------------------------------------------------


def summary(rows: Sequence[Result]) -> Result:
    """Over all points: how near to the floor, and how much faster than the best of the others."""
    if not rows:
        return {"points": 0}
    result: Result = {
        "points": len(rows),
        "worst_error_over_bound": max(row["error_over_bound"] for row in rows),
        "least_share_of_floor": min(row["share_of_floor"] for row in rows),
    }
    large = [row["share_of_floor"] for row in rows if row.get("exceeds_l2")]
    if large:
        result["least_share_of_floor_beyond_l2"] = min(large)
    speedups = [row["speedup"] for row in rows if "speedup" in row]
    if speedups:
        result["speedup_geometric_mean"] = statistics.geometric_mean(speedups)
        result["speedup_least"] = min(speedups)
    return result
