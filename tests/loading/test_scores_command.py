"""loracle scores: heads of several adapters and the base's in one batch, as refimpl.scores computes them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import BASE, lora_tensors, model_tensors, random, write_adapter, write_model
from safetensors import safe_open

import refimpl
from refimpl import cli

HEAD = "base_model.model.score.weight"
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base that writes text, one that has a head of three labels, and adapters with heads of 2, 4 and no labels."""
    labels = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"1": "dull", "0": "bad", "2": "good"}}
    return {
        "base": write_model(tmp_path / "base", model_tensors(BASE)),
        "judge": write_model(tmp_path / "judge", model_tensors(replace(BASE, labels=3)), **labels),
        "two": write_adapter(tmp_path / "two", lora_tensors() | {HEAD: random((2, 12))}, task_type="SEQ_CLS"),
        "four": write_adapter(tmp_path / "four", lora_tensors() | {HEAD: random((4, 12))}, task_type="SEQ_CLS"),
        "plain": write_adapter(tmp_path / "plain", lora_tensors()),
    }


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = cli.main([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def prompts_file(folder: Path, *adapters: str) -> Path:
    """One line for each adapter, prompts of 2, 3, ... tokens."""
    rows = [{"adapter": name, "prompt_ids": PROMPT[: i + 2]} for i, name in enumerate(adapters)]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
def test_a_mixed_batch_of_heads(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = ["--adapter", f"two={folders['two']}", "--adapter", f"four={folders['four']}"]
    file, output = prompts_file(tmp_path, "four", "two", "four"), tmp_path / "scores.safetensors"
    command = ["scores", "--model", folders["base"], *adapters, "--prompts", file, "--dtype", "float64"]
    code, out, errors = run(capsys, *command, "--json", "--output", output, "--trace", "norm")
    assert (code, errors) == (0, "")
    model = refimpl.load_model(folders["base"], "float64")
    loaded = {name: refimpl.load_adapter(folders[name], model) for name in ("two", "four")}
    names = ["four", "two", "four"]
    requests = [refimpl.Request(PROMPT[: i + 2], loaded[name]) for i, name in enumerate(names)]
    expected = refimpl.scores(model, requests)
    rows = json.loads(out)["scores"]
    assert [row["adapter"] for row in rows] == names
    assert [row["scores"] for row in rows] == [row.tolist() for row in expected]
    assert [row["labels"] for row in rows] == [list("0123"), list("01"), list("0123")]
    with safe_open(output, "np") as tensors:
        assert np.array_equal(tensors.get_tensor("1.scores"), expected[1])
        assert tensors.get_tensor("trace.norm").shape[1] == BASE.hidden_size
    code, out, _ = run(capsys, *command)
    assert code == 0 and all(f"{value:.4f}" in out for row in expected for value in row)


@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
def test_the_base_s_head_has_names(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter without a head is read by the base's."""
    command = ["scores", "--model", folders["judge"], "--adapter", f"plain={folders['plain']}", "--json"]
    code, out, _ = run(capsys, *command, "--prompts", prompts_file(tmp_path, "base", "plain"))
    rows = json.loads(out)["scores"]
    assert code == 0 and [row["labels"] for row in rows] == 2 * [["bad", "dull", "good"]]
    assert rows[0]["scores"] != rows[1]["scores"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapter", "two={two}"], "prompts.jsonl:2: neither the base nor an adapter of the request has a"),
        (["--output", "scores.txt"], "let its name end in .safetensors"),
        (["--trace", "norm"], "--trace: give --output FILE"),
        (["--adapter", "two={two}", "--adapter", "three={two}/absent"], "absent"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
def test_mistakes(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    given = [option.format(**folders) for option in options]
    file = prompts_file(tmp_path, "two", "base")
    code, out, errors = run(capsys, "scores", "--model", folders["base"], *given, "--prompts", file)
    assert (code, out) == (2, "") and errors.count("\n") == 1 and says in errors


def test_text_is_not_asked_of_a_head(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", folders["base"], "--adapter", f"two={folders['two']}"]
    code, _, errors = run(capsys, *command, "--prompts", prompts_file(tmp_path, "two"))
    assert code == 2 and "loracle scores" in errors
