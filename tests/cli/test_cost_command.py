"""loracle cost: what it prints for machines, and one line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from refimpl import cli
from refimpl.bench import cost
from refimpl.bench.cost import WAYS, Device, Step
from refimpl.bench.devices import GPUS
from refimpl.loading.config_file import load_config
from refimpl.tiny import base_path
from refimpl.tools.units import human_bytes, human_seconds


def body(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert cli.main(["cost", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_has_what_the_formulas_say(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"adapters": 5, "rank": 8, "requests": 6, "context": 100, "dtype": "float16"}
    options = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    out = body(capsys, *options, "--gpu", "h100", "--gpu", "l4")
    config = load_config(base_path())
    ranks = {module: 8 for module in config.modules()[1:-1]}
    decode, prefill = Step(6, 1, 100, 5), Step(6, 100, 100, 5)
    assert [(row["step"], row["way"]) for row in out["rows"]] == [(s, w) for s in ("decode", "prefill") for w in WAYS]
    for row in out["rows"]:
        step = decode if row["step"] == "decode" else prefill
        work = cost.total(config, ranks, row["way"], step, 2)
        assert (row["bytes"], row["flops"]) == (work.bytes, work.flops)
        assert row["memory_bytes"] == cost.memory(config, ranks, row["way"], 5, 600, 2)
        for name, seconds in row["seconds"].items():
            assert seconds == cost.seconds(config, ranks, row["way"], step, GPUS[name], "float16", 2)
    assert set(out["devices"]) == {"h100", "l4"} and out["devices"]["l4"]["source"] == GPUS["l4"].source
    launched = {way: sum(kernels.values()) for way, kernels in out["launches"].items()}
    assert launched["merged"] < launched["one after another"] and launched["batched"] < launched["merged"]


def test_this_machine_is_measured_unless_a_gpu_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Device("this", 10**9, 1e9, {"bfloat16": 1e9}, "measured just now: a pencil, load 0.0")
    monkeypatch.setattr("refimpl.commands.cost.this_device", lambda dtype: pretended)
    assert cli.main(["cost"]) == 0
    said = capsys.readouterr().out
    assert "1 GB/s" in said and "a pencil" in said and "256 tokens" in said
    decode = next(line for line in said.splitlines() if line.startswith("decode  batched"))
    assert decode.endswith("ms")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (5.2e-4, "0.52 ms"),
        (0.45, "450 ms"),
        (12.34, "12.3 s"),
        (150, "2.5 min"),
        (9e3, "2.5 h"),
        (3e5, "3.5 days"),
    ],
)
def test_times_are_in_units_that_people_read(seconds: float, shown: str) -> None:
    assert human_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (999.9e12, "999.9 TB"),
        (1e15, "1.0 PB"),
        (32_768e12, "32.8 PB"),
        (999.9e15, "999.9 PB"),
        (1e18, "1.0 EB"),
        (5e21, "5000.0 EB"),
    ],
)
def test_bytes_are_in_units_that_people_read(size: float, shown: str) -> None:
    assert human_bytes(size) == shown


def test_what_is_too_large_for_a_device_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Device("this", 10**6, 1e9, {"bfloat16": 1e9}, "measured just now: a pencil, load 0.0")
    monkeypatch.setattr("refimpl.commands.cost.this_device", lambda dtype: pretended)
    assert cli.main(["cost", "--adapters", "2"]) == 0
    assert "beside the keys and values fit no base, or 0 merged copies" in capsys.readouterr().out
    assert cli.main(["cost", "--rank", "1000000", "--adapters", "1000000", "--gpu", "h100"]) == 0
    out = capsys.readouterr().out
    assert "beside the keys and values fit 2 adapters (not 1,000,000) and the base, or " in out
    assert "one adapter is 5.71e+03 times as large as the base" in out


def test_other_modules_make_another_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    everywhere, few = (body(capsys, "--gpu", "h100", *more) for more in ((), ("--targets", "q_proj,lm_head")))
    assert few["adapter"]["modules"] == ["lm_head", "q_proj"]
    assert few["adapter"]["bytes"] < everywhere["adapter"]["bytes"]


def test_a_base_that_the_kernels_do_not_compute_has_no_launches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu", "vocab_size": 99}
    config |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "head_dim": 264, "rms_norm_eps": 1e-6, "max_position_embeddings": 64}
    config |= {"rope_theta": 1e4, "bos_token_id": 2, "eos_token_id": 1, "attention_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["cost", "--model", str(tmp_path), "--gpu", "a100"]) == 0
    assert "launches: none (ops cuda: head_dim 264" in capsys.readouterr().out


MISTAKES = [
    (["--gpu", "h10"], "--gpu h10: known are h100, h200, a100, l40s, l4, rtx4090, this; did you mean 'h100'?"),
    (["--rank", "0"], "--rank 0: it must be above 0"),
    (["--adapters", "0"], "--adapters 0: it must be above 0"),
    (["--requests", "-3"], "--requests -3: it must be above 0"),
    (["--context", "0"], "--context 0: it must be above 0"),
    (["--context", "300"], "--context 300: this model has 256 positions"),
    (["--distinct", "0"], "--distinct 0: it must be above 0"),
    (["--adapters", "4", "--distinct", "5"], "--distinct 5: 16 requests of 4 adapters use 4 at most"),
    (["--dtype", "float61"], "--dtype float61: known are "),
    (["--gpu", "l4", "--dtype", "float64"], "--dtype float64: l4 has float16, bfloat16, float32 here"),
    (["--targets", "q_prj"], "--targets q_prj: this model has q_proj, "),
    (["--model", "no/such/folder"], "no/such/folder"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[" ".join(options) for options, _ in MISTAKES])
def test_a_mistake_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("loracle cost: ") and message in said.err
