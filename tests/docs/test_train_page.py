"""docs/train.md: its commands are ones, its defaults are the code's, and its figures are those that were measured."""

import argparse
import dataclasses
import doctest
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from refimpl import cli, diagrams
from refimpl.commands.common import read_lines
from refimpl.config import LAYER_MODULES
from refimpl.training.arguments import TrainingArguments
from refimpl.training.lora_config import LoraConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "training.json").read_text("utf-8"))
COMMANDS = [line for text in (PAGE, README) for line in text.splitlines() if line.startswith("loracle train ")]


def options(command: str = "loracle train --out x") -> argparse.Namespace:
    return cli.parse(shlex.split(command)[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert options(command).command == "train"


def test_the_example_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tutorials").mkdir()
    shutil.copy(ROOT / "tutorials" / "echo.jsonl", tmp_path / "tutorials")
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(PAGE, {}, "train.md", "train.md", 0)
    assert len(example.examples) >= 12
    runner, printed = doctest.DocTestRunner(), list[str]()
    runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)
    chat = next(line for line in PAGE.splitlines() if line.startswith("echo '"))
    Path("questions.jsonl").write_text(shlex.split(chat)[1])
    ((_, row),) = read_lines(Path("questions.jsonl"))
    assert row["messages"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 3
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert len(links) >= 4 and [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_defaults_are_those_of_the_code_and_stand_in_the_table() -> None:
    args, arguments, config = options(), TrainingArguments(), LoraConfig()
    same = {"epochs": "epochs", "learning_rate": "lr"}
    for field in dataclasses.fields(arguments):
        option = same.get(field.name, field.name)
        if hasattr(args, option):
            assert getattr(args, option) == getattr(arguments, field.name), option
    assert args.targets == ",".join(LAYER_MODULES) and args.dropout == config.lora_dropout == 0
    table = dict(re.findall(r"^\| (`--.*?) \| .*? \| (.*?) \|$", PAGE, re.M))
    assert table["`--rank`, `--alpha`, `--rslora`"] == f"{config.r}, twice the rank"
    assert table["`--epochs`, `--lr`, `--warmup-ratio`"] == f"{args.epochs}, 2e-4, {args.warmup_ratio}"
    assert args.lr == 2e-4
    batches = f"{args.batch_tokens}, {args.gradient_accumulation_steps}"
    assert table["`--batch-tokens`, `--gradient-accumulation-steps`"] == batches
    assert table["`--weight-decay`, `--max-grad-norm`"] == f"{args.weight_decay:g}, {args.max_grad_norm:g}"


def test_the_figures_are_those_that_were_measured() -> None:
    measured = PAGE.partition("<!-- measured: benchmarks/results/training.json -->")[2].partition("<!-- end -->")[0]
    ours, peft, losses = RESULTS["ours"], RESULTS["peft"], RESULTS["held_out_loss"]
    for text in (
        RESULTS["machine"]["date"][:10],
        f"load {RESULTS['machine']['load']}",
        f"{RESULTS['steps']} steps",
        f"{ours['cpu_seconds']:.0f} s",
        f"{peft['cpu_seconds']:.0f} s",
        f"{RESULTS['ratio_cpu']}x",
        f"{losses['base']:.3f}",
        f"{losses['ours']:.6f}",
        f"{losses['peft']:.6f}",
        *(f"{100 * RESULTS['voice'][name]['lines marked']:.0f} %" for name in ("base", "ours", "peft")),
        f"{100 * RESULTS['voice']['ours']['scenes consistent']:.0f} %",
    ):
        assert text in measured, text


def test_what_was_measured_is_what_the_project_set_itself() -> None:
    assert RESULTS["ours"]["cpu_seconds"] < 300
    assert RESULTS["voice"]["ours"]["lines marked"] >= 0.8 and RESULTS["voice"]["base"]["lines marked"] == 0
    assert abs(RESULTS["held_out_difference"]) < 0.01


def test_the_curve_on_the_page_is_one_that_the_code_draws() -> None:
    """Its title, its axes and the key below them, of losses that are as large."""
    points = [(0, 2.3), (276, 0.2)]
    drawing = diagrams.curves(
        {"echo": points}, "step", title="Loss of echo", dots={"echo": points}, dots_are="held out"
    )
    lines = PAGE.partition("Loss of echo\n")[2].splitlines()
    title, *rows, axis, steps, key = drawing.text.splitlines()
    assert title in PAGE and lines[len(rows) : len(rows) + 3] == [axis, steps, key]
    assert [line.partition("|")[0] for line in lines[: len(rows)]] == [row.partition("|")[0] for row in rows]
