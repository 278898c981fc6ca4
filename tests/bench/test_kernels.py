"""loracle bench kernels, from end to end on the CPU runner; and what it does when a kernel is wrong."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from refimpl import cli
from refimpl.bench import kernels, workloads
from refimpl.bench.case import make_case
from refimpl.bench.gpu import Timed
from refimpl.bench.kernels import timed
from refimpl.bench.layer import layer_report
from refimpl.bench.verify import WrongResult, verify
from refimpl.bench.workloads import Point
from refimpl.cuda import launch, runner

pytestmark = pytest.mark.skipif(runner.device() != "cpu", reason="bytes are counted by the CPU runner")

POINTS = [Point(1, "identical", 8, 64, 96, "float16"), Point(5, "uniform", 8, 64, 96, "float16")]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "small_grid", lambda quick: POINTS)


@pytest.mark.usefixtures("tiny")
def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "kernels", "--quick", "--json", "--output", str(tmp_path / "new")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "new" / "kernels.json").read_text())
    assert report["benchmark"] == "kernels" and report["machine"]["kernels_run_on"] == "cpu"
    assert "copy_bytes_per_second" not in report, "nothing was timed"
    assert [point["tokens"] for point in report["points"]] == [1, 5]
    for point in report["points"]:
        assert not {"seconds", "speedup"} & point.keys(), "no time of a CPU is a time of a kernel"
        assert 0 < point["error_over_bound"] <= 1
        assert point["asked_bytes"] > point["floor_bytes"] > 0 and point["touched_bytes"] > point["floor_bytes"]
        assert point["share_of_floor"] == point["floor_bytes"] / point["asked_bytes"]
    assert report["points"][0]["weight_reads"] == 1
    assert report["points"][1]["weight_reads"] == pytest.approx(5 / 3), "5 tokens, 3 adapters, one token at a time"
    assert report["summary"]["points"] == 2
    layer = report["layer"]
    assert (layer["launches_module_by_module"], layer["launches_by_shared_input"]) == (14, 8)
    assert layer["launches_of_cuda_ops"]["rope"] == 2 and layer["launches_of_cuda_ops"]["rms_norm"] == 2


@pytest.mark.usefixtures("tiny")
def test_people_are_told_that_nothing_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "kernels"]) == 0
    printed = capsys.readouterr().out
    assert "no time here is one of a GPU" in printed and "launches of one layer" in printed


def broken_kernels(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of kernels/ with one line changed."""
    shutil.copytree(runner.kernels_folder(), folder / "kernels")
    source = (folder / "kernels" / file).read_text()
    assert right in source
    (folder / "kernels" / file).write_text(source.replace(right, wrong))
    return folder / "kernels"


@pytest.mark.usefixtures("tiny")
def test_a_wrong_kernel_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken_kernels(tmp_path, "lora.cuh", "rounded(sum, round_rank)", "rounded(sum * 1.02f, round_rank)")
    monkeypatch.setattr(runner, "kernels_folder", lambda: folder)
    assert cli.main(["bench", "kernels", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "nothing is timed" in printed.err and printed.err.count("\n") == 1


def test_numbers_that_nobody_wrote_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "lora_delta", lambda *args, **kwargs: None)
    with pytest.raises(WrongResult, match="of 480 numbers are further"):
        verify(make_case(POINTS[1]))


def test_a_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(y: Any, *args: Any, **kwargs: Any) -> None:
        y[2, 3] = float("nan")

    case = make_case(POINTS[1])
    right = launch.lora_delta

    def lora_delta(y: Any, *args: Any, **kwargs: Any) -> None:
        right(y, *args, **kwargs)
        poisoned(y)

    monkeypatch.setattr(launch, "lora_delta", lora_delta)
    with pytest.raises(WrongResult, match="1 of 480"):
        verify(case)


class FakeWatch:
    """A stopwatch for a GPU that is not there, so that what stands around it is run before it meets one."""

    l2 = 1000

    def __init__(self) -> None:
        self.replays = 0

    def captured(self, works: Sequence[Callable[[], Any]]) -> Callable[[], None]:
        def replay() -> None:
            self.replays += 1
            for work in works:
                work()

        return replay

    def captured_by_torch(self, works: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], str]:
        return self.captured(works), "stream"

    def time(self, replay: Callable[[], Any], count: int, by: str = "graph") -> Timed:
        begun = time.perf_counter()
        replay()
        seconds = (time.perf_counter() - begun) / count
        return Timed(seconds, seconds, seconds, by)

    def free(self) -> None:
        pass


def test_what_would_be_timed_is_the_same_work_once_for_each_set() -> None:
    case, watch = make_case(POINTS[1], sets=3), FakeWatch()
    before = [y.copy() for y in case.y]
    row = timed(case, watch, bandwidth=1e9, compare=True)
    assert row["sets"] == 3 and row["timed_by"] == "graph" and row["exceeds_l2"]
    assert row["kernels"] == ["bgmv_shrink_v2", "bgmv_expand_v2"]
    assert row["floor_seconds"] == case.work.bytes / 1e9
    assert row["share_of_floor"] == row["floor_seconds"] / row["seconds"]
    for y, y_before in zip(case.y, before, strict=True):
        assert (y != y_before).mean() > 0.9, "every set was used"
    for name, other in row["others"].items():
        assert "seconds" in other or "triton" in name, (name, other)
    summary = kernels.summary([{**row, "error_over_bound": 0.5}])
    assert summary["least_share_of_floor_beyond_l2"] == row["share_of_floor"]
    if row["others"]:
        assert summary["speedup_least"] == row["speedup"] > 0


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, report = kernels.bench(POINTS, seconds=-1.0)
    assert report["points"] == [] and len(report["left_out"]) == 2 and report["summary"] == {"points": 0}


def test_launches_of_a_layer_do_not_depend_on_its_width() -> None:
    assert layer_report(rank=4, tokens=2)["launches_by_shared_input"] == 8


def test_a_case_has_adapters_that_differ_and_lie_where_the_tables_say() -> None:
    case = make_case(POINTS[1], sets=2)
    assert case.packed.adapters == 6 and [ids.min() for ids in case.ids] == [0, 3]
    assert dataclasses.astuple(case.point)[:3] == (5, "uniform", 8)
    for a in range(6):
        offset_a, offset_b, bias = case.packed.offsets[0, a]
        assert bias == -1
        assert (case.packed.weights[offset_a : offset_a + 8 * 64].reshape(8, 64) == case.A[a]).all()
        assert (case.packed.weights[offset_b : offset_b + 96 * 8].reshape(96, 8) == case.B[a]).all()
        assert not any((case.A[a] == case.A[b]).all() for b in range(a))
