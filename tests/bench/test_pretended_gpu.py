"""What stands around a GPU, played through on one that is pretended: a cupy that is numpy, kernels on the CPU runner.

Its times mean nothing. It shows that a report comes out, complete, in the form that tables and pictures expect.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refimpl import cli
from refimpl.arrays import device_namespace
from refimpl.bench import kernels, serving, tables, workloads
from refimpl.bench.decode import Shape
from refimpl.bench.gpu import Stopwatch
from refimpl.bench.graph import device_seconds, plans_stay
from refimpl.bench.layer import layer_report
from refimpl.bench.workloads import Point
from refimpl.cuda import runner

pytestmark = pytest.mark.skipif(runner.world() != "cpu", reason="there is a real one")

POINTS = [Point(1, "identical", 8, 64, 96, "float16"), Point(5, "uniform", 8, 64, 96, "bfloat16")]


class Stream:
    """What is asked of it happens at once, so a graph has nothing left to do."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.capturing = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        assert not self.capturing

    def begin_capture(self) -> None:
        self.capturing = True

    def end_capture(self) -> SimpleNamespace:
        self.capturing = False
        return SimpleNamespace(launch=lambda: None)

    def synchronize(self) -> None:
        pass


def pretended_cupy() -> SimpleNamespace:
    """numpy, with as much of cupy.cuda as is used."""
    properties = {"name": b"Pretended GPU", "multiProcessorCount": 4, "l2CacheSize": 1 << 20, "totalGlobalMem": 1 << 28}
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (1 << 22, 1 << 28),
        getDeviceProperties=lambda device: properties,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        Device=lambda: SimpleNamespace(id=0, compute_capability="90", attributes={"L2CacheSize": 1 << 20}),
        Event=lambda: SimpleNamespace(record=lambda: None),
        Stream=Stream,
        get_current_stream=Stream,
        MemoryPool=lambda: SimpleNamespace(malloc=None),
        using_allocator=lambda allocator: nullcontext(),
        get_elapsed_time=lambda begin, end: 0.5,
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    names = ("random", "empty", "zeros", "ones", "asarray", "copyto", "concatenate", "where", "isnan", "full")
    return SimpleNamespace(
        **{name: getattr(np, name) for name in names}, cuda=cuda, get_default_memory_pool=lambda: pool, __name__="cupy"
    )


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real_world, real_load = runner.world, runner.load

    def load(*args: Any, **kwargs: Any) -> runner.Module:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(runner, "world", real_world)
            return real_load(*args, **kwargs)

    monkeypatch.setenv("REFIMPL_KERNELS", "cpu")  # what real_world says
    monkeypatch.setattr(runner, "world", lambda: "gpu")
    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setitem(sys.modules, "cupy", pretended_cupy())
    device_namespace.cache_clear()
    yield
    device_namespace.cache_clear()


@pytest.mark.usefixtures("pretended")
def test_kernels_are_timed_and_drawn(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    *_, report = kernels.bench(POINTS, repeats=3, compare=False)
    report["layer"] = layer_report(rank=2, tokens=1, repeats=2)
    assert report["machine"]["gpu"] == "Pretended GPU" and report["machine"]["compute_capability"] == "9.0"
    assert report["copy_bytes_per_second"] > 0
    for row in report["points"]:
        assert row["sets"] == 8 and row["timed_by"] == "graph"
        assert row["seconds"] == pytest.approx(0.5e-3 / 8) and row["quartiles"] == [row["seconds"]] * 2
    assert [row["tokens"] for row in report["points"]] == [1, 5], "in the order of the grid"
    assert report["layer"]["seconds_by_shared_input"].keys() == {"graph", "calls"}
    assert report["layer"]["launches_of_cuda_ops"]["rope"] == 2
    report["points"][0] |= {"others": {"torch": {"seconds": 1e-3}, "triton": {"why": "no"}}, "speedup": 2.0}
    report["summary"] = kernels.summary(report["points"])
    assert report["summary"]["speedup_least"] == 2.0
    assert tables.kernels_table(report).row_count == 2
    assert any("2.00x (geometric mean)" in line for line in tables.kernels_lines(report))
    pytest.importorskip("matplotlib")
    from refimpl.bench.plots import draw

    assert [file.stat().st_size > 5000 for file in draw(report, tmp_path)] == [True, True]


@pytest.mark.usefixtures("pretended")
def test_a_point_that_does_not_fit_is_left_out_by_name() -> None:
    *_, report = kernels.bench([Point(64, "distinct", 64, 256, 256, "float16")], repeats=2)
    assert report["points"] == [] and "do not fit" in report["left_out"][0]["why"]
    assert any(line.startswith("left out: 64 tokens") for line in tables.kernels_lines(report))


@pytest.mark.usefixtures("pretended")
def test_serving_in_halves(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    shape = Shape(hidden=64, heads=2, kv_heads=1, layers=1, vocab=112)
    monkeypatch.setattr(Shape, "llama_8b", classmethod(lambda cls, layers: shape))
    monkeypatch.setattr(serving, "ADAPTERS", (1, 4))
    *_, report = serving.bench("cuda", repeats=2)
    assert (report["device"], report["dtype"]) == ("cuda", "float16")
    assert [point["adapters"] for point in report["points"]] == [1, 4]
    assert all(point["ratio"] > 0 for point in report["points"])
    assert all(point["device_batched_seconds"] == 0.5e-3 for point in report["points"]), report["points"]
    assert tables.serving_table(report).columns[-1].header == "device ratio"
    pytest.importorskip("matplotlib")
    from refimpl.bench.plots import draw

    assert len(draw(report, tmp_path)) == 2


@pytest.mark.usefixtures("pretended")
def test_a_step_that_cannot_be_captured_says_why() -> None:
    def fails() -> None:
        raise ValueError("not during a capture")

    found = device_seconds(Stopwatch(2), fails, [])
    assert found == {"device_why": "ValueError: not during a capture"}


@pytest.mark.usefixtures("pretended")
def test_a_plan_is_uploaded_once() -> None:
    cupy = sys.modules["cupy"]
    with plans_stay(cupy):
        first, again, other = (cupy.asarray(np.array(ids)) for ids in ([1, 2], [1, 2], [2, 1]))
    assert first is again and first is not other
    assert cupy.asarray is np.asarray


@pytest.mark.usefixtures("pretended")
def test_the_command_times_where_there_is_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "grid", lambda full: POINTS)
    assert cli.main(["bench", "kernels", "--no-others", "--repeats", "2"]) == 0
    printed = capsys.readouterr().out
    assert "of floor" in printed and "copy on this GPU" in printed and "CPU runner" not in printed
