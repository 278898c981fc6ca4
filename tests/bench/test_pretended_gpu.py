"""What stands around a GPU, played through on the strict double of CuPy, with the kernels on the CPU runner.

Its times mean nothing. It shows that a report comes out, complete, in the form that tables and pictures expect.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.cupy_double import installed

from refimpl import cli
from refimpl.bench import kernels, serving, tables, workloads
from refimpl.bench.decode import Shape
from refimpl.bench.gpu import Stopwatch
from refimpl.bench.graph import device_seconds
from refimpl.bench.layer import layer_report
from refimpl.bench.workloads import Point
from refimpl.cuda import runner

pytestmark = pytest.mark.skipif(runner.device() != "cpu", reason="there is a real one")

POINTS = [Point(1, "identical", 8, 64, 96, "float16"), Point(5, "uniform", 8, 64, 96, "bfloat16")]
NARROW = Shape(hidden=64, heads=2, kv_heads=1, layers=1, vocab=112)


@pytest.fixture(params=[13, 14], ids=["cupy13", "cupy14"])
def pretended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LORACLE_KERNELS", raising=False)
    # The widths of Llama-8B are a GPU's: a CPU would spend a minute on them, and make the same launches.
    monkeypatch.setattr(Shape, "llama_8b", classmethod(lambda cls, layers=1: NARROW))
    with installed(request.param):
        yield


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
def test_a_point_that_does_not_fit_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", lambda: (1 << 22, 1 << 28))
    *_, report = kernels.bench([Point(64, "distinct", 64, 256, 256, "float16")], repeats=2)
    assert report["points"] == [] and "do not fit" in report["left_out"][0]["why"]
    assert any(line.startswith("left out: 64 tokens") for line in tables.kernels_lines(report))


@pytest.mark.usefixtures("pretended")
def test_serving_in_halves(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
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

    assert device_seconds(Stopwatch(2), fails, []) == {"device_why": "ValueError: not during a capture"}


@pytest.mark.usefixtures("pretended")
def test_the_command_times_where_there_is_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "grid", lambda full: POINTS)
    assert cli.main(["bench", "kernels", "--no-others", "--repeats", "2"]) == 0
    printed = capsys.readouterr().out
    assert "of floor" in printed and "copy on this GPU" in printed and "CPU runner" not in printed
