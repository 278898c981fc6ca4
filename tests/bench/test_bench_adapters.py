"""loracle bench adapters, from end to end; what its budget comes to; and options that do not go together."""

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import cli
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Precision
from refimpl.bench import adapter_testbed, adapters, bare
from refimpl.bench.adapter_testbed import Setup, adapter_bytes, make_testbed, random_adapters
from refimpl.bench.arrivals import Workload, draw, read_arrivals, write_arrivals
from refimpl.bench.cost import Step, base_work
from refimpl.bench.replay import preload
from refimpl.bench.verify import WrongResult
from refimpl.commands.bench_adapters import bytes_of
from refimpl.config import LAYER_MODULES
from refimpl.ops import NUMPY

BASE = small_testbed()
SMALL = Setup(
    base=str(BASE.folder),
    counts=(2, 5),
    ranks=(1, 4),
    modules=("q_proj", "v_proj"),
    workload=Workload(requests=6, popularity="uniform"),
    repeats=2,
)
OPTIONS = ["--base", str(BASE.folder), "--ranks", "1,4", "--modules", "q_proj,v_proj", "--ops", "numpy"]


@pytest.mark.parametrize("pool", ["separate", "unified"])
def test_end_to_end(pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    options = ["--adapters", "2,5", "--requests", "6", "--popularity", "uniform", "--rate", "50", "--repeats", "2"]
    options += ["--pool", pool, "--json", "--output", str(tmp_path), "--save-arrivals", str(trace)]
    assert cli.main(["bench", "adapters", *OPTIONS, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "adapters.json").read_text())
    assert report["setup"]["pool"] == pool and report["rate"] == 50 and report["largest_difference"] < 1e-4
    assert read_arrivals(trace) == draw(replace(SMALL.workload, rate=50.0), 5)
    assert [point["adapters"] for point in report["points"]] == [2, 5]
    assert report["points"][0]["ratio"] == 1 and report["resident"]["loaded"] == 5
    sizes = [adapter_bytes(BASE.model.config, rank, SMALL.modules) for rank in (1, 4, 1, 4, 1)]
    for point in report["points"]:
        assert point["misses"] == point["misses_at_the_rate"] == point["loads"] == 0
        assert 1 <= point["adapters_in_a_step"] <= point["adapters"] and point["tokens_per_second"] > 0
        assert point["latency_seconds"]["e2el"]["p50"] > point["latency_seconds"]["ttft"]["p50"] > 0
        assert point["adapter_bytes"] == sum(sizes[: point["adapters"]])
        assert pool == "separate" or point["grown_bytes"] is None
        assert (point["bare_ms"] is None) == (pool == "unified")
    if pool == "separate":
        first, second = report["points"]
        assert 0 < first["bare_ms"] < first["step_ms"] and first["bare_ratio"] == first["limit_ratio"] == 1
        assert second["bare_ratio"] > 0 and second["limit_ratio"] > 0 and len(second["ratios"]) == 2


def test_bare_products_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer of the base once, for all rows; each adapter once, for its neighbours in the batch."""
    model, shapes = BASE.model, []
    monkeypatch.setattr(bare, "matmul", lambda x, weight, p: shapes.append((len(x), *weight.shape)))
    assert bare.segments_of([(None, 2), (1, 3), (1, 1), (4, 1)]) == [(1, 2, 6), (4, 6, 7)]
    rows = [(None, 3), (2, 3), (2, 3)]
    assert (
        len(list(bare.bare_seconds(model, AdapterSlots(model, Precision()), [rows] * 2, Precision(), time.time))) == 2
    )
    flops = base_work(model.config, Step(requests=3, tokens=3, context=0, adapters=0), 4).flops
    assert sum(2 * math.prod(shape) for shape in shapes) == 2 * flops


def test_people_get_a_table_of_a_trace_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    write_arrivals(trace, draw(SMALL.workload, 3))
    assert cli.main(["bench", "adapters", *OPTIONS, "--arrivals", str(trace), "--repeats", "1", "--clock", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "tokens/s" in printed and "ranks 1, 4 on q_proj, v_proj" in printed and "cpu clock" in printed


def test_the_table_is_no_wider_than_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe, too, with the default four numbers of adapters; and how far it is goes to stderr."""
    monkeypatch.setattr("refimpl.commands.bench.Progress.EVERY", 0.0)
    options = ["--adapters", "2,3,4,5", "--requests", "4", "--repeats", "2", "--rate", "50"]
    assert cli.main(["bench", "adapters", *OPTIONS, *options]) == 0
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith(("│", "┃", "┏", "└"))]
    assert len(table) > 10 and max(map(len, table)) <= 80
    assert max(map(len, captured.out.splitlines())) <= 120
    progress = captured.err.splitlines()
    assert [line.partition(" after ")[0].removeprefix("loracle bench adapters: ") for line in progress] == [
        "round 1 of 2",
        "round 2 of 2",
        "latencies",
    ]


def test_adapters_are_all_different_and_the_same_every_time() -> None:
    first, again = (list(itertools.islice(random_adapters(BASE.model, SMALL), 4)) for _ in range(2))
    assert [adapter.config.r for adapter in first] == [1, 4, 1, 4]
    weights = {lora.A.tobytes() + lora.B.tobytes() for adapter in first for lora in adapter.lora.values()}
    assert len(weights) == sum(len(adapter.lora) for adapter in first)
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(one.lora[module].A, other.lora[module].A) for module in one.lora)
        size = sum(lora.A.nbytes + lora.B.nbytes for lora in one.lora.values())
        assert size == adapter_bytes(BASE.model.config, one.config.r, SMALL.modules)


@pytest.mark.parametrize("pool", ["separate", "unified"])
def test_what_is_in_memory_fits_into_the_budget(pool: str) -> None:
    """Slots are as wide as the largest adapter; in one pool, adapters of any rank take what they need."""
    memory = 150_000
    beside = make_testbed(replace(SMALL, counts=(40,), ranks=(1, 16), memory=memory, pool=pool))
    beside.adapters.extend(itertools.islice(random_adapters(beside.model, beside.setup), 40))
    engine = beside.engine(40)
    preload(engine, beside.adapters)
    weights = [adapter_bytes(BASE.model.config, adapter.config.r, SMALL.modules) for adapter in engine.adapters.slot_of]
    kv, largest = beside.kv_blocks * beside.block_bytes, adapter_bytes(BASE.model.config, 16, SMALL.modules)
    assert 0 < len(weights) < 40 and beside.adapters[0] in engine.adapters
    if pool == "separate":
        assert engine.cache.memory.nbytes == kv and kv + sum(weights) <= memory
        assert len(weights) == (memory - kv) // largest
    else:
        assert engine.cache.memory.nbytes == memory // beside.block_bytes * beside.block_bytes
        assert sum(weights) <= engine.cache.memory.nbytes
    result = beside.replay(engine, beside.trace_of(40))
    assert result.tokens == sum(arrival.max_new_tokens for arrival in beside.trace)
    assert result.loads >= result.misses > 0


def test_a_batch_that_mixes_adapters_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone gets the adapter of slot 0."""

    def lora_mapping(adapters: list, lengths: list) -> tuple:
        return NUMPY.lora_mapping([[(0, 1.0)] for _ in adapters], lengths)

    monkeypatch.setattr(adapter_testbed, "BACKENDS", {"numpy": replace(NUMPY, lora_mapping=lora_mapping)})
    with pytest.raises(WrongResult, match="a request's logits change"):
        next(adapters.bench(SMALL))


def test_the_110m_shape_is_that_of_benchmarks_cpu() -> None:
    config = adapter_testbed.LLAMA_110M
    numbers = sum(int(np.prod(config.shape(name))) for _, name in config.modules() if name in LAYER_MODULES)
    assert numbers == 12 * (4 * 768 * 768 + 3 * 768 * 2048)


@pytest.mark.parametrize(
    ("text", "expected"), [("1500", 1500), ("64MB", 64_000_000), ("1.5 GiB", 3 << 29), ("2kb", 2000), ("7B", 7)]
)
def test_bytes_are_read_with_their_unit(text: str, expected: int) -> None:
    assert bytes_of("--memory", text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serving", "--adapters", "5"], "--adapters is for bench adapters"),
        (["kernels", "--save-arrivals", "x"], "--save-arrivals is for bench adapters"),
        (["adapters", "--full"], "--full and --no-others are for bench kernels"),
        (["adapters", "--adapters", "5,x"], "--adapters 5,x: expected whole numbers from 1"),
        (["adapters", "--adapters", "5,5"], "--adapters 5,5: a number is there twice"),
        (["adapters", "--ranks", "0"], "--ranks 0"),
        (["adapters", "--requests", "0"], "requests 0"),
        (["adapters", "--rate", "0"], "--rate 0: more than 0"),
        (["adapters", "--cv", "2"], "--cv is for --arrivals gamma"),
        (["adapters", "--arrivals", "gamma", "--cv", "0"], "cv 0.0"),
        (["adapters", "--arrivals", "absent.jsonl"], "absent.jsonl: neither poisson, nor gamma, nor a file"),
        (["adapters", "--arrivals", "poissn"], "did you mean 'poisson'?"),
        (["adapters", "--arrivals", "absent.jsonl", "--adapters", "5"], "--adapters says how to draw a trace"),
        (["adapters", "--memory", "much"], "--memory much: expected bytes"),
        (["adapters", "--memory", "0"], "--memory 0"),
        (["adapters", "--adapters", "2", "--memory", "1kB"], "memory 1.0 kB: keys and values take"),
        (["adapters", "--adapters", "2", "--modules", "qkv"], "module qkv: the base has q_proj"),
        (["adapters", "--adapters", "99999999"], "99999999 adapters take"),
        (["adapters", "--base", "absent"], "absent"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACLE_KERNELS", "cpu")
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("loracle bench: ") and message in printed.err
    assert printed.err.count("\n") == 1
