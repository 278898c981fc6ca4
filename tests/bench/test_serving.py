"""loracle bench serving, from end to end; and options that do not go together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import cli
from refimpl.backends import BACKENDS
from refimpl.bench import serving
from refimpl.bench.decode import Shape, decoding, model_of
from refimpl.bench.verify import WrongResult
from refimpl.cuda import runner
from refimpl.ops import NUMPY, Ops
from refimpl.plans import LoraMapping

pytestmark = pytest.mark.skipif(runner.device() != "cpu", reason="arrays on the host")

TINY = Shape(hidden=32, heads=4, kv_heads=2, layers=2, vocab=112)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "plan", lambda ops, quick: (TINY, "float32", "cpu", (1, 3), 20))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("ops", ["numpy", "cuda"])
def test_end_to_end(ops: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "serving", "--ops", ops, "--json", "--repeats", "2", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "serving.json").read_text())
    assert report["ops"] == ops and report["model"]["hidden"] == 32 and report["machine"]["cores"]
    assert [point["adapters"] for point in report["points"]] == [1, 3]
    for point in report["points"]:
        assert point["largest_difference"] < 1e-4
        assert point["ratio"] > 0 and point["batched_tokens_per_second"] > 0
        assert point["batched_tokens_per_second"] == pytest.approx(point["adapters"] / point["batched_seconds"])


@pytest.mark.usefixtures("tiny")
def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "serving", "--ops", "numpy", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "one after another" in printed and "random weights" in printed


def wrong(ops: Ops) -> Ops:
    """In a batch of several, everyone gets the adapter of the neighbour."""

    def lora_delta(y: Any, x: Any, module: Any, adapters: Any, plan: Any, p: Any) -> None:
        rolled = LoraMapping.of(np.roll(plan.adapter_ids, 1, axis=0), plan.adapter_weights)
        NUMPY.lora_delta(y, x, module, adapters, rolled, p)

    return dataclasses.replace(ops, lora_delta=lora_delta)


def test_a_batch_that_mixes_adapters_up_is_not_timed() -> None:
    steps = decoding(model_of(TINY, "float32"), 3, 4, 20, wrong(NUMPY))
    with pytest.raises(WrongResult, match="a request's logits change"):
        serving.verified(steps, "float32")


def test_adapters_that_are_ignored_are_not_timed() -> None:
    def all_but_the_last(y: Any, x: Any, module: Any, adapters: Any, plan: Any, p: Any) -> None:
        without = LoraMapping.of(np.where(plan.adapter_ids == 2, -1, plan.adapter_ids), plan.adapter_weights)
        NUMPY.lora_delta(y, x, module, adapters, without, p)

    steps = decoding(model_of(TINY, "float32"), 3, 4, 20, dataclasses.replace(NUMPY, lora_delta=all_but_the_last))
    with pytest.raises(WrongResult, match="changes nothing"):
        serving.verified(steps, "float32")


def test_both_tables_answer_alike() -> None:
    model = model_of(TINY, "float32")
    first, second = (decoding(model, 3, 4, 20, ops).batched() for ops in (NUMPY, BACKENDS["cuda"]))
    assert np.abs(first - second).max() <= 1e-4 * np.abs(first).max()


def test_the_widths_are_those_of_llama_8b() -> None:
    config = Shape.llama_8b().config()
    assert config.shape("q_proj") == (4096, 4096) and config.shape("k_proj") == (1024, 4096)
    assert config.shape("gate_proj") == (14336, 4096) and config.shape("down_proj") == (4096, 14336)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serving", "--full"], "--full and --no-others are for bench kernels"),
        (["kernels", "--ops", "numpy"], "--ops is for bench serving"),
        (["kernels", "--repeats", "0"], "--repeats 0"),
        (["serving", "--seconds", "-1"], "--seconds -1"),
        (["kernels", "--full"], "--full needs a GPU"),
        (["serving", "--output", __file__], "--output"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACLE_KERNELS", "cpu")
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("loracle bench: ") and message in printed.err
    assert printed.err.count("\n") == 1
