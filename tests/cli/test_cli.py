"""The command line on the embedded model: what it prints for machines, and one line for every mistake."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import refimpl
from refimpl import cli, tiny
from refimpl.errors import AdapterError

SCENE = tiny.DEMO_PROMPTS[0].strip()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_demo_json_has_every_figure_and_every_voice(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", "--json", "--max-new-tokens", "72")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["tokens_per_second"] > 0 and found["sequential_tokens_per_second"] > 0
    assert found["speedup"] == pytest.approx(found["tokens_per_second"] / found["sequential_tokens_per_second"])
    assert set(found["adapter_bytes"]) == set(tiny.VOICES)
    assert found["merged_copies_bytes"] == len(tiny.VOICES) * found["base_bytes"]
    assert sum(found["adapter_bytes"].values()) < found["base_bytes"]
    assert 0 < found["batched_vs_alone_max_abs"] < 1e-3 or found["batched_vs_alone_max_abs"] == 0
    assert 0 < found["merged_vs_unmerged_max_abs"] < 1e-3
    assert [text["adapter"] for text in found["texts"]] == ["base", *tiny.VOICES]
    assert len({text["text"] for text in found["texts"]}) == 5


def test_demo_for_people_names_the_adapter_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--max-new-tokens", "8")
    assert code == 0
    for words in ("base", "pirate", "bard", "robot", "merchant", "batched = alone", "unmerged = merged", "KV cache"):
        assert words in out


def test_generate_answers_every_prompt_in_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    rows = [
        {"adapter": "robot", "prompt": SCENE, "max_new_tokens": 3, "temperature": 0.5, "seed": 7},
        {"prompt_ids": [5, 6, 7]},
    ]
    more.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    prompts = ["--prompt", f"pirate:{SCENE}", "--prompt", f"pirate*0.5+bard*0.5:{SCENE}", "--prompts", str(more)]
    code, out, err = run(capsys, "generate", *prompts, "--max-new-tokens", "5", "--json")
    assert (code, err) == (0, "")
    texts = json.loads(out)["texts"]
    assert [t["adapter"] for t in texts] == ["pirate", "pirate*0.5+bard*0.5", "robot", "base"]
    assert [len(t["token_ids"]) for t in texts] == [5, 5, 3, 5]

    model = refimpl.load_model("tiny")
    voice = {name: refimpl.load_adapter(name, model.config) for name in ("pirate", "bard")}
    ids = model.tokenizer.encode(SCENE + "\n")
    mixed = [(voice["pirate"], 0.5), (voice["bard"], 0.5)]
    wanted = refimpl.generate(model, [refimpl.Request(ids, voice["pirate"]), refimpl.Request(ids, mixed)], 5)
    assert [t["token_ids"] for t in texts[:2]] == [output.token_ids for output in wanted]
    assert [t["text"] for t in texts[:2]] == [output.text for output in wanted]


def test_logits_writes_what_the_library_computes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "truth.safetensors"
    args = [
        "--prompt",
        f"merchant:{SCENE}",
        "--dtype",
        "float64",
        "--trace",
        "layers.0.q_proj.*",
        "--output",
        str(file),
    ]
    code, out, _ = run(capsys, "logits", *args)
    assert code == 0 and "1 prompts" in out
    model = refimpl.load_model("tiny", "float64")
    ids = model.tokenizer.encode(SCENE + "\n")
    wanted = refimpl.logits(model, [refimpl.Request(ids, refimpl.load_adapter("merchant", model.config))])[0]
    with safe_open(file, "np") as tensors:
        assert (tensors.get_tensor("0.logits") == wanted).all()
        assert tensors.get_tensor("0.prompt_ids").tolist() == ids
        assert tensors.get_tensor("trace.layers.0.q_proj.lora").shape[0] == len(ids)
        assert tensors.metadata()["dtype"] == "float64"
    assert list(tmp_path.iterdir()) == [file]


def test_inspect_shows_modules_ranks_and_effect(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", "bard", "--model", "tiny", "--effect", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["problems"] == [] and found["kind"] == "adapter"
    assert {m["rank"] for m in found["modules"]} == {found["config"]["r"]}
    assert len(found["effect"]) == len(found["modules"])
    assert all(0 < x < 10 for x in found["effect"].values())
    code, out, _ = run(capsys, "inspect", "tiny")
    assert code == 0 and "can be used" in out and "embed_tokens" in out


def test_effect_is_the_ratio_of_the_two_products(capsys: pytest.CaptureFixture[str]) -> None:
    model = refimpl.load_model("tiny", "float64")
    adapter = refimpl.load_adapter("pirate", model.config)
    ids = model.tokenizer.encode(SCENE + "\n")
    with refimpl.trace("layers.1.v_proj.input") as t:
        refimpl.logits(model, [refimpl.Request(ids)])
    x, w = t["layers.1.v_proj.input"], adapter.lora[(1, "v_proj")]
    scale = refimpl.NUMPY.adapter_scale(adapter.config.lora_alpha, adapter.config.r, adapter.config.use_rslora)
    delta = scale * (x @ w.A.astype(float).T @ w.B.astype(float).T)
    wanted = np.linalg.norm(delta) / np.linalg.norm(x @ model.linear((1, "v_proj")).weight.T)
    from refimpl.tools.effect import effect

    assert effect(model, adapter, ids)[(1, "v_proj")] == pytest.approx(wanted, rel=1e-9)
    steep = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_alpha=3e38))
    with pytest.raises(AdapterError, match=r"pirate: model.layers.*: bfloat16 cannot hold scale B A x, whose scale "):
        effect(refimpl.load_model("tiny", "bfloat16"), steep, ids)


MISTAKES = {
    "no command": ([], "COMMAND"),
    "an unknown option": (["demo", "--voices"], "--voices"),
    "no such model": (["generate", "--model", "nowhere", "--prompt", "base:x"], "nowhere"),
    "an unknown adapter": (["generate", "--prompt", "ninja:x"], "'ninja' is not known; known are base, pirate"),
    "an adapter without a name": (["generate", "--adapter", "dir", "--prompt", "base:x"], "expected NAME=DIR"),
    "a taken name": (["generate", "--adapter", "base=dir", "--prompt", "base:x"], "'base'"),
    "no such adapter folder": (["generate", "--adapter", "a=nowhere", "--prompt", "base:x"], "nowhere"),
    "a prompt without a name": (["generate", "--prompt", "hello"], "expected NAME:TEXT"),
    "a weight that is text": (["generate", "--prompt", "pirate*x:hello"], "'x' is not a number"),
    "a weight that is no number": (["generate", "--prompt", "pirate*nan:hello"], "nan is not a finite number"),
    "nothing to do": (["generate"], "nothing to do"),
    "a dtype that is not there": (["generate", "--dtype", "int8", "--prompt", "base:x"], "'int8'"),
    "a device that is not there": (["generate", "--device", "tpu", "--prompt", "base:x"], "'tpu'"),
    "a negative temperature": (["generate", "--temperature", "-1", "--prompt", "base:x"], "temperature -1.0"),
    "no tokens wanted": (["generate", "--max-new-tokens", "0", "--prompt", "base:x"], "max_new_tokens 0"),
    "a prompt that is too long": (["generate", "--prompt", "base:" + "word " * 2000], "positions"),
    "an output that cannot be written": (
        ["logits", "--prompt", "base:x", "--output", "nowhere/x.safetensors"],
        "nowhere/x.safetensors",
    ),
    "a trace of nothing": (
        ["logits", "--prompt", "base:x", "--output", "x.safetensors", "--trace", "layers.9.*"],
        "'layers.9.*' matches no intermediate",
    ),
    "effect without a base": (["inspect", "tiny", "--effect"], "--effect needs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = MISTAKES[mistake]
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1 and words in err, err
    assert "Traceback" not in err


LINES = {
    "not json": ("{", "not JSON"),
    "not an object": ("[1]", "expected an object"),
    "an unknown key": ('{"prompt": "x", "top_q": 1}', "unknown key 'top_q'"),
    "both prompts": ('{"prompt": "x", "prompt_ids": [1]}', "give one of prompt, prompt_ids, messages"),
    "no prompt": ('{"adapter": "base"}', "give one of prompt, prompt_ids, messages"),
    "a chat with a base that has none": ('{"messages": []}', "messages need a chat template"),
    "ids out of range": ('{"prompt_ids": [99999]}', "holds 99999, outside of the vocabulary"),
    "negative ids": ('{"prompt_ids": [-1]}', "holds -1, outside of the vocabulary"),
    "an empty prompt": ('{"prompt_ids": []}', "prompt_ids is empty"),
    "ids that are text": ('{"prompt_ids": ["a"]}', "flat list of integers"),
    "a seed that is text": ('{"prompt": "x", "seed": "1"}', "seed is '1', not int"),
    "an adapter that is a number": ('{"prompt": "x", "adapter": 3}', "adapter is 3, not str"),
}


@pytest.mark.parametrize("mistake", LINES)
def test_a_mistake_in_a_file_names_the_line(mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line, words = LINES[mistake]
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt_ids": [3]}\n' + line + "\n")
    code, out, err = run(capsys, "generate", "--prompts", str(file))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and words in err and f"{file}:2" in err, err


def test_a_bug_of_ours_is_exit_3_and_the_traceback_is_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("refimpl.commands.generate.generate", broken)
    code, out, err = run(capsys, "generate", "--prompt", "base:x")
    assert (code, out) == (3, "")
    file = Path(err.rsplit("is in ", 1)[1].strip())
    assert "ZeroDivisionError: oh" in file.read_text()
    file.unlink()


@pytest.mark.parametrize("command", [(), ("demo",), ("generate",), ("inspect",), ("logits",)])
def test_help_has_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert not command or "example:\n  loracle" in out
