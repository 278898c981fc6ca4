"""loracle train on the embedded base: what it writes, going on where it stopped, and one line for every mistake."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import cli, tiny
from refimpl.commands import common
from refimpl.commands.train import training_arguments
from refimpl.commands.train_hints import outlook
from refimpl.config import LAYER_MODULES
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.config_file import load_config
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.training import LoraConfig, Task, TrainingArguments, checkpoint
from refimpl.training.data import Encoder, encode, read_dataset
from refimpl.training.examples import Example
from refimpl.training.loop import train as train_loop

WORDS = "Well met. My quest needs a moon pearl. Take the soup and the honey."
ROWS = [{"prompt": "Rain drums on the inn.", "completion": " ".join(WORDS.split()[i : i + 4])} for i in range(6)]
SMALL = ("--rank", "2", "--targets", "q_proj,down_proj", "--epochs", "2", "--lr", "0.01", "--batch-tokens", "32")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of one command."""
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The name of a file of six rows."""
    return write(tmp_path / "data.jsonl", *ROWS)


def write(file: Path, *rows: Any) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every number of a PEFT folder for the embedded base."""
    adapter = load_adapter(folder, refimpl.load_model("tiny").config)
    return {f"{module} {part}": getattr(x, part) for module, x in adapter.lora.items() for part in "AB"}


def equal(left: Path, right: Path) -> bool:
    one, other = tensors(left), tensors(right)
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


PEFT = {"adapter_config.json", "adapter_model.safetensors"}


def test_one_adapter_is_the_output_folder_itself(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, printed, err = run(capsys, "train", "--data", data, "--out", str(out), *SMALL)
    assert (code, err) == (0, "")
    assert names(out) == PEFT | {"loss.svg", "training.json"}
    assert {file.name for file in tmp_path.iterdir()} == {"data.jsonl", "out"}  # no checkpoint is left
    assert "default: step 0 of" not in printed and "held-out loss" in printed and "a default (A held out)" in printed
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 4 and config["target_modules"] == ["q_proj", "down_proj"]
    assert config["base_model_name_or_path"] == str(tiny.base_path())  # what AutoPeftModelForCausalLM loads it with
    record = json.loads((out / "training.json").read_text())
    (row,) = record["adapters"]
    assert (row["examples"], row["held_out_examples"]) == (5, 1)
    train, held_out = (record["losses"]["default"][key] for key in ("train", "held_out"))
    assert len(train) == row["steps"] and held_out[0][0] == 0 and len(held_out) == 3
    assert row["held_out_loss"] == [held_out[0][1], held_out[-1][1]] and row["loss"] == train[-1]
    assert train[-1] < train[0]
    assert any(np.abs(x).max() > 0 for name, x in tensors(out).items() if name.endswith("B"))


def test_what_will_be_done_and_how_to_serve_it_is_said(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out put")
    options = (*SMALL[:4], "--epochs", "1", "--held-out", "0", "--batch-tokens", "999")
    code, printed, _ = run(capsys, "train", "--data", f"bard={data}", "--out", out, *options)
    lines = printed.splitlines()
    assert code == 0 and lines[0] == "bard: 6 + 0 rows, 1 step"
    assert lines[1].startswith("note: bard: its one step is warm-up: nothing will be learned; give more --epochs")
    assert lines[-1].startswith("to serve it: loracle generate ")
    command = shlex.split(lines[-1].removeprefix("to serve it: loracle "))
    assert "my-bard:TEXT" in command  # a bard is embedded
    code, _, err = run(capsys, *command, "--max-new-tokens", "1")
    assert code == 0 and "every B is zero: the adapter changes nothing" in err, err


@pytest.mark.parametrize(("ratio", "notes"), [(0.03, 0), (0.9, 1)])
def test_a_warm_up_of_all_steps_is_a_note(ratio: float, notes: int) -> None:
    task = Task("echo", LoraConfig(), [Example([1, 2], [True, True])] * 2)
    lines, printed = outlook([task], TrainingArguments(epochs=2, batch_tokens=2, warmup_ratio=ratio))
    assert lines == ["echo: 2 + 0 rows, 4 steps"] and len(printed) == notes
    assert "all 4 steps are warm-up" in printed[0] if notes else not printed


def test_the_output_may_be_an_empty_folder_with_any_name(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[red]here").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ("--targets", "all-linear", "--rank", "1", "--epochs", "1")
    code, printed, err = run(capsys, "train", "--data", data, "--out", "[red]here", *options)
    assert (code, err) == (0, "") and "[red]here" in printed  # a name, and no colour
    config = json.loads((tmp_path / "[red]here" / "adapter_config.json").read_text())
    assert config["target_modules"] == list(LAYER_MODULES)


def test_several_train_at_once_each_to_where_it_would_have_come_alone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.jsonl", *({"text": row["completion"]} for row in ROWS))
    both = ("--data", f"one={data}", "--data", f"two={other}", "--rank", "3", "--rank", "two=5", "--alpha", "one=4")
    options = SMALL[2:]
    code, printed, _ = run(capsys, "train", *both, "--out", str(tmp_path / "both"), *options, "--json")
    assert code == 0
    assert names(tmp_path / "both") == {f"{n}/{f}" for n in ("one", "two") for f in PEFT} | {
        "loss.svg",
        "training.json",
    }
    report = json.loads(printed)
    assert [row["name"] for row in report["adapters"]] == ["one", "two"]
    configs = [json.loads((Path(row["folder"]) / "adapter_config.json").read_text()) for row in report["adapters"]]
    assert [(c["r"], c["lora_alpha"]) for c in configs] == [(3, 4), (5, 10)]
    alone = ("--data", other, "--adapter-name", "two", "--rank", "5", "--out", str(tmp_path / "alone"))
    assert run(capsys, "train", *alone, *options)[0] == 0
    one, other_tensors = tensors(tmp_path / "both" / "two"), tensors(tmp_path / "alone" / "two")
    for name, x in one.items():
        np.testing.assert_allclose(x, other_tensors[name], rtol=1e-3, atol=1e-5)


def test_after_an_interrupt_it_goes_on_to_the_same_bits(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(out: str, *more: str) -> tuple[int, str, str]:
        options = ("--dropout", "0.2", "--epochs", "3", *SMALL[:4], *SMALL[6:])
        return run(capsys, "train", "--data", data, "--out", str(tmp_path / out), *options, *more)

    assert command("whole")[0] == 0
    monkeypatch.setattr("refimpl.commands.train.train", interrupted_after(2))
    code, _, err = command("out")
    assert code == 130 and "--resume" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists() and names(tmp_path / "out.checkpoint") == {checkpoint.STATE_FILE}
    monkeypatch.undo()

    code, _, err = command("out")
    assert code == 2 and "holds an unfinished run (steps: default 2 of" in err and "--resume" in err
    code, _, err = command("out", "--resume", "--seed", "7")
    assert code == 2 and "is a run of something else: seed was 42 and is now 7" in err
    assert command("out", "--resume")[0] == 0
    assert not (tmp_path / "out.checkpoint").exists()
    assert equal(tmp_path / "out", tmp_path / "whole")
    losses = [json.loads((tmp_path / name / "training.json").read_text())["losses"] for name in ("out", "whole")]
    assert losses[0] == losses[1]


def interrupted_after(count: int) -> Any:
    def stopped(*args: Any, on_step: Any, **more: Any) -> Any:
        def on_step_and_stop(state: Any) -> None:
            on_step(state)
            if state.tasks["default"].step == count:
                raise KeyboardInterrupt

        return train_loop(*args, on_step=on_step_and_stop, **more)

    return stopped


def test_a_loss_that_is_no_number_names_its_step_and_keeps_what_was_good(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, _, err = run(capsys, "train", "--data", f"echo={data}", "--out", str(out), *SMALL, "--lr", "3e38")
    assert code == 2 and len(err.splitlines()) == 1, err
    assert (
        "echo: the loss of step 3 is nan; " in err and "Try a lower --lr: in another --out, or in this one when" in err
    )
    assert not out.exists()
    assert names(tmp_path / "out.checkpoint") == {checkpoint.STATE_FILE, *(f"adapter/echo/{name}" for name in PEFT)}


def test_the_line_break_that_the_embedded_model_needs_is_added_as_it_is_when_it_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": row["prompt"] + "\n", "completion": row["completion"]} for row in ROWS]
    for name, lines in (("with", rows), ("without", ROWS)):
        file = write(tmp_path / f"{name}.jsonl", *lines)
        assert run(capsys, "train", "--data", file, "--out", str(tmp_path / name), *SMALL)[0] == 0
    assert equal(tmp_path / "with", tmp_path / "without")


def test_what_was_trained_is_served_beside_the_shipped_voices(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "train", "--data", data, "--out", str(tmp_path / "echo"), *SMALL)[0] == 0
    prompts = ("--prompt", f"mine:{tiny.DEMO_PROMPTS[0]}", "--prompt", f"pirate:{tiny.DEMO_PROMPTS[0]}")
    code, printed, err = run(
        capsys, "generate", "--adapter", f"mine={tmp_path / 'echo'}", *prompts, "--max-new-tokens", "4", "--json"
    )
    assert (code, err) == (0, "") and [text["adapter"] for text in json.loads(printed)["texts"]] == ["mine", "pirate"]


def test_a_chat_is_trained_by_the_template_in_the_model_s_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.base_path(), base)
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in ROWS
    ]
    command = ("train", "--model", str(base), "--data", write(tmp_path / "chat.jsonl", *chats), *SMALL)
    code, _, err = run(capsys, *command, "--out", str(tmp_path / "out"))
    assert code == 2 and f"messages need a chat template, and {base} has none" in err, err
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}")
    assert run(capsys, *command, "--out", str(tmp_path / "out"))[0] == 0
    # Served, a chat is the tokens that were learned, up to the answer.
    questions = write(tmp_path / "questions.jsonl", {"adapter": "chat", "messages": chats[0]["messages"][:1]})
    serve = ("generate", "--model", str(base), "--adapter", f"chat={tmp_path / 'out'}", "--prompts", questions)
    prompts = read_prompts(serve)
    example = encode(chats[0], encoder_of(base))
    assert list(prompts[0].request.prompt_ids) == list(example.token_ids)[: list(example.loss_mask).index(True)]
    code, printed, err = run(capsys, *serve, "--max-new-tokens", "2", "--json")
    assert (code, err) == (0, "") and json.loads(printed)["texts"][0]["prompt"] == ROWS[0]["prompt"] + "\n"
    # The same tokens and the same losses as of the prompt and the completion, each with a line break, and no end.
    plain = [{"prompt": row["prompt"] + "\n", "completion": row["completion"] + "\n"} for row in ROWS]
    examples = [
        read_dataset(Path(write(tmp_path / "rows.jsonl", *rows)), encoder).examples
        for rows, encoder in ((chats, encoder_of(base)), (plain, encoder_of(base, eos_ids=())))
    ]
    for chat, pair in zip(*examples, strict=True):
        assert list(chat.token_ids) == list(pair.token_ids)[1:] and list(chat.loss_mask) == list(pair.loss_mask)[1:]


def read_prompts(command: Sequence[str]) -> list[common.Prompt]:
    """What a command of generate would serve."""
    args = cli.parse(command)
    return common.read_requests(args, *common.load(args))


def encoder_of(base: Path, **changes: Any) -> Encoder:
    """The encoder of a base that is a folder; its template is the one in there."""
    encoder = Encoder.of(load_tokenizer(base), load_config(base))
    return dataclasses.replace(encoder, **changes)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no data": ([], "nothing to learn: give --data"),
    "no such file": (["--data", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    "two without names": (["--data", "DATA", "--data", "DATA"], "of several, each needs a name"),
    "a name twice": (["--data", "a=DATA", "--data", "a=DATA"], "the name 'a' is taken"),
    "the base's name": (["--data", "base=DATA"], "the name 'base' is taken"),
    "a name that leaves the folder": (["--data", "../up=DATA"], "the name '../up' is not of letters"),
    "one name that leaves the folder": (
        ["--data", "DATA", "--adapter-name", "../up"],
        "--adapter-name ../up: the name",
    ),
    "an address": (
        ["--data", "a=https://host/x.jsonl"],
        "--data a=https://host/x.jsonl: expected a file on this machine",
    ),
    "no targets": (
        ["--data", "DATA", "--targets", ""],
        "target_modules is ('',): it must be names, none of them empty",
    ),
    "two names for one": (["--data", "a=DATA", "--adapter-name", "b"], "has a name already"),
    "no file after the name": (["--data", "a="], "expected a file on this machine"),
    "a rank that is none": (["--data", "DATA", "--rank", "0"], "r is 0: a rank must be"),
    "a rank that is text": (["--data", "DATA", "--rank", "big"], "--rank big: 'big' is no whole number"),
    "a rank of nobody": (["--data", "a=DATA", "--rank", "b=2"], "no --data has the name 'b'; there are a"),
    "a rank twice": (["--data", "a=DATA", "--rank", "2", "--rank", "3"], "--rank 3: is given twice"),
    "an alpha that is no number": (["--data", "DATA", "--alpha", "nan"], "lora_alpha is nan"),
    "a target that is none": (["--data", "DATA", "--targets", "q_proj,qproj"], "'qproj' is no linear layer"),
    "an alpha of nothing": (["--data", "DATA", "--alpha", "0"], "lora_alpha is 0: nothing would be learned"),
    "a learning rate of nothing": (["--data", "DATA", "--lr", "0"], "learning_rate is 0: nothing would be learned"),
    "a dropout of all": (["--data", "DATA", "--dropout", "1"], "lora_dropout is 1.0"),
    "no epochs": (["--data", "DATA", "--epochs", "0"], "epochs is 0"),
    "a learning rate below zero": (["--data", "DATA", "--lr", "-1"], "learning_rate is -1.0"),
    "all held out": (["--data", "DATA", "--held-out", "1"], "the held-out share 1.0"),
    "a length beyond the model": (["--data", "DATA", "--max-length", "999"], "max_length 999"),
    "rows that are too long": (["--data", "DATA", "--max-length", "9"], "data.jsonl:1: has 1"),
    "nothing to go on with": (["--data", "DATA", "--resume"], "there is no run to go on with"),
    "no such model": (["--data", "DATA", "--model", "nowhere"], "nowhere"),
    "an output that is there": (["--data", "DATA", "--out", "THERE"], "is there already"),
    "the folder that one is in": (["--data", "DATA", "--out", "."], "--out .: give a folder by its own name"),
    "an output in a file": (["--data", "DATA", "--out", "DATA/out"], "DATA/out: cannot be made (Not a directory)"),
    "an output that nothing can be made in": (
        ["--data", "DATA", "--out", "/dev/null/out"],
        "/dev/null/out: cannot be made",
    ),
    "an output under a link to nowhere": (["--data", "DATA", "--out", "LINK"], "LINK: is there already"),
    "an output of 300 letters": (["--data", "DATA", "--out", "x" * 300], "cannot be made (File name too long)"),
    "a name of 300 letters": (["--data", f"{'x' * 300}=DATA"], "cannot be made (File name too long)"),
    "the name of the curve": (["--data", "loss.svg=DATA"], "the name 'loss.svg' is taken"),
    "a name that is one with another": (["--data", "a=DATA", "--data", "A=DATA"], "the name 'A' is taken"),
    "half a character": (["--data", "HALF"], "HALF:1: not JSON ('utf-8' codec can't encode"),
    "a device that is not there": (["--data", "DATA", "--device", "cuda"], "device cuda"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    case: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = MISTAKES[case]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    half = write(tmp_path / "half.jsonl", {"text": "a \ud800 b"})
    before = sorted(tmp_path.rglob("*"))
    paths = {"DATA": data, "THERE": str(tmp_path / "there"), "LINK": str(tmp_path / "link"), "HALF": half}

    def filled(text: str) -> str:
        for word, path in paths.items():
            text = text.replace(word, path)
        return text

    code, printed, err = run(capsys, "train", "--out", str(tmp_path / "out"), *map(filled, options))
    assert (code, printed) == (2, ""), err
    assert len(err.splitlines()) == 1 and err.startswith("loracle train: ") and filled(words) in err, err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_written_at_the_end_is_written_when_it_goes_on(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    command = ("train", "--data", data, "--out", str(tmp_path / "out"), *SMALL)
    monkeypatch.setattr("refimpl.training.output.save_adapter", full)
    code, _, err = run(capsys, *command)
    assert code == 2 and "cannot be written (No space left on device)" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr("refimpl.training.loop.one_step", full)  # nothing is left to train
    assert run(capsys, *command, "--resume")[0] == 0
    assert names(tmp_path / "out") >= PEFT and {f.name for f in tmp_path.iterdir()} == {"data.jsonl", "out"}


def test_a_norm_of_0_is_no_clipping_as_in_transformers(tmp_path: Path) -> None:
    args = cli.parse(["train", "--data", "x", "--out", str(tmp_path / "out"), "--max-grad-norm", "0"])
    assert training_arguments(args).max_grad_norm is None


def test_what_is_cut_is_said(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--max-length", "10", "--cut", "--held-out", "0")
    code, printed, _ = run(capsys, "train", "--data", data, "--out", str(tmp_path / "out"), *SMALL, *more)
    assert code == 0 and "rows were too long and lost their end: " in printed
