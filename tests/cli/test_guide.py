"""loracle guide: the guide's commands for this cast, its six answers, and what TensorRT-LLM would object to."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.build import as_dtype, random_adapter

import refimpl
from refimpl import cli, tiny
from refimpl.published import guide, weights
from refimpl.tensorrt_llm.backend import backend


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.MODELS, raising=False)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of loracle guide."""
    try:
        code = cli.main(["guide", *argv])
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_six_answers_in_one_batch_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--json", "--max-new-tokens", "6", "--seed", "5")
    assert (code, err) == (0, "")
    found = json.loads(out)
    answers = found["answers"]
    assert [a["lora_task_uid"] for a in answers] == [-1, 0, 1, -1, 0, 1]
    assert [a["adapter_id"] for a in answers] == [-1, 0, 1, -1, 0, 1]
    assert [a["adapter"] for a in answers] == [None, "pirate", "bard"] * 2
    assert all(a["alone"] for a in answers)
    assert "llama-7b-hf" in found["instead_of_the_guides_weights"]
    assert not any("printed_in_the_guide" in a for a in answers)
    model = refimpl.load_model("tiny")
    for answer in answers:
        adapter = refimpl.load_adapter(answer["adapter"], model.config) if answer["adapter"] else None
        ids = model.tokenizer.encode(answer["prompt"] + "\n")
        request = refimpl.Request(ids, adapter, temperature=1.0, top_p=0.5, seed=5)
        assert refimpl.generate(model, [request], 6, ops=backend("float32"))[0].token_ids == answer["token_ids"]


def test_the_commands_are_those_of_this_cast(capsys: pytest.CaptureFixture[str]) -> None:
    voices = [f"--adapter={name}={tiny.VOICES[name]}" for name in ("robot", "pirate")]
    args = ["--json", "--max-new-tokens", "2", "--temperature", "0", "--prompt", "Rain drums on the mud palace."]
    found = json.loads(run(capsys, *args, *voices)[1])
    pirate = refimpl.load_adapter("pirate", refimpl.load_model("tiny").config)
    assert found["adapters"][1] == {
        "lora_task_uid": 1,
        "name": "pirate",
        "ranks": [8],
        "scales": [pirate.config.lora_alpha / 8],
        "modules": ["attn_q", "attn_v", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"],
    }
    assert found["commands"]["run"] == "run.py --lora_task_uids -1 0 1 --max_output_len 2 --top_k 1"
    # The robot has an o_proj, neither of the two has a k_proj: q, k and v go together.
    modules = "attn_q attn_k attn_v attn_dense mlp_h_to_4h mlp_4h_to_h mlp_gate"
    assert found["commands"]["build"].endswith(
        f"--lora_dir robot pirate --max_lora_rank 8 --lora_target_modules {modules}"
    )
    (objection,) = found["objections"]
    assert "rank 6 is not a multiple of 4" in objection


def test_what_tensorrt_llm_leaves_out_or_refuses_is_said() -> None:
    model = refimpl.load_model("tiny")
    plain = refimpl.load_adapter("bard", model.config)
    head = as_dtype(random_adapter(model.config, 1, r=8, modules=["lm_head", "q_proj"], name="head"), "float32")
    biased = as_dtype(
        random_adapter(model.config, 2, r=8, modules=["q_proj"], lora_bias=True, name="biased"), "float32"
    )
    scaled = dataclasses.replace(
        plain, name="scaled", config=dataclasses.replace(plain.config, alpha_pattern={"q_proj": 3.0})
    )
    tables = dataclasses.replace(plain, name="tables", lora={}, replaced={(-1, "embed_tokens"): np.zeros((1, 1))})

    def objections(*adapters: refimpl.Adapter) -> list[str]:
        return guide.Cast(model, "tiny", adapters, [], [], 1, 0, 1, 0).objections()

    assert objections(plain) == []
    assert objections(head) == ["the LoRA of head on lm_head is left out, and nothing says so"]
    assert objections(biased) == ["biased is refused, because its lora_B has a bias"]
    assert objections(scaled) == ["the alpha_pattern of scaled is ignored"]
    assert objections(tables)[0].startswith("tables brings tables of its own")


def test_for_people_it_names_both_sides_of_every_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(capsys, "--max-new-tokens", "4", "--adapter", "robot=robot", "--adapter", "bard=bard")
    assert (code, err) == (0, "")
    for words in ("1  convert", "2  build", "3  run", "TensorRT-LLM", "here", "lora_task_uid", "6 of 6 say the same"):
        assert words in out
    assert "There: this batch fails (" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_guides_own_weights_are_taken_where_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded model under the names of the guide: it answers for itself, beside what was printed there."""
    (tmp_path / "llama-7b-hf").symlink_to(tiny.base_path())
    (tmp_path / "luotuo-lora-7b-0.1").symlink_to(tiny.VOICES["bard"])
    (tmp_path / "Japanese-Alpaca-LoRA-7b-v0").symlink_to(tiny.VOICES["pirate"])
    monkeypatch.setenv(weights.MODELS, str(tmp_path))
    found = json.loads(run(capsys, "--json", "--max-new-tokens", "1")[1])
    assert (found["model"], found["dtype"], found["instead_of_the_guides_weights"]) == ("llama-7b-hf", "float16", "")
    rows = guide.published()["rows"]
    assert [a["adapter"] for a in found["answers"]] == [row["adapter"] for row in rows]
    assert [a["prompt"] for a in found["answers"]] == [row["prompt"] for row in rows]
    assert [a["printed_in_the_guide"] for a in found["answers"]] == [row["output"] for row in rows]
    out = run(capsys, "--max-new-tokens", "1")[1]
    assert "printed there" in out and "hf download" not in out


MISTAKES = {
    "a base without adapters": (["--model", str(tiny.base_path())], "--model without --adapter"),
    "a name given twice": (["--adapter", "a=bard", "--adapter", "a=robot"], "the name 'a' is given twice"),
    "no such adapter": (["--adapter", "a=nowhere"], "nowhere: is not there"),
    "no tokens": (["--max-new-tokens", "0"], "max_new_tokens 0"),
    "a hot top_p": (["--top-p", "2"], "top_p 2.0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = MISTAKES[mistake]
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and words in err, err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "example:\n  loracle guide" in out
