"""loracle check: exit codes, the JSON, a function of the user's own, and what is said when an engine cannot be run."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from support.testbed import small_testbed

from refimpl import cli
from refimpl.commands.check_screen import rounding

# A base so narrow that every bug of the zoo is tried on it in a second.
BASE = ("--model", str(small_testbed().folder))
QUICK = (*BASE, "--cases", "3", "--sequences", "0", "--jobs", "1", "--no-power")
KEYS = (
    *(
        "verdict",
        "cases",
        "passed",
        "failed",
        "undecided",
        "worst_noise_ratio",
        "worst_fails_from",
        "diagnosis",
        "asked",
    ),
    "symptoms",
    *("first_divergence", "findings", "power", "repro", "environment"),
)

# What a user would write: their own engine, here the reference itself, with a fault if one is asked for.
MINE = """
import numpy as np
import refimpl

def right(model_dir, requests, scale=1.0):
    model = refimpl.load_model(model_dir)
    found = []
    for r in requests:
        adapter = refimpl.load_adapter(r["adapter_dir"], model.config) if r["adapter_dir"] else None
        chosen = [(adapter, scale)] if adapter else None
        tokens = []
        for _ in range(r["max_new_tokens"]):
            rows = refimpl.logits(model, [refimpl.Request([*r["prompt_ids"], *tokens], chosen)])[0]
            tokens.append(int(rows[-1].argmax()))
        found.append({"logits": rows, "token_ids": tokens})
    return found

def logprobs(model_dir, requests):
    found = right(model_dir, requests)
    for f in found:
        x = f.pop("logits")[-len(f["token_ids"]):].astype(np.float64)
        f["logprobs"] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return found

def text(model_dir, requests):
    return [{"token_ids": f["token_ids"]} for f in right(model_dir, requests)]

def wrong(model_dir, requests):
    return right(model_dir, requests, 1.5)

def nan(model_dir, requests):
    found = right(model_dir, requests)
    found[0]["logits"][0, 0] = float("nan")
    return found

def fewer(model_dir, requests):
    return right(model_dir, requests)[1:]

def shorter(model_dir, requests):
    return [{"logits": f["logits"][:, :-1], "token_ids": f["token_ids"]} for f in right(model_dir, requests)]

def all_nan(model_dir, requests):
    return [{"logits": f["logits"] * np.nan, "token_ids": f["token_ids"]} for f in right(model_dir, requests)]

def scores(model_dir, requests):
    return [{"logprobs": f["logits"], "token_ids": f["token_ids"]} for f in right(model_dir, requests)]

def none(model_dir, requests):
    for r in requests:
        pass

def one(model_dir, requests):
    return right(model_dir, requests[:1])[0]

def nothing(model_dir, requests):
    return [{} for _ in requests]

def misspelt(model_dir, requests):
    return [{"token_ids": f["token_ids"], "logit": f["logits"]} for f in right(model_dir, requests)]

def leaves(model_dir, requests):
    import os
    os._exit(0)

def raises(model_dir, requests):
    raise MemoryError("out of pages")

number = 3
"""


@pytest.fixture(autouse=True)
def _kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are kept in a temporary folder: let it be the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the working directory, as a user has it."""
    (tmp_path / "mine_under_test.py").write_text(MINE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def check(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        code = cli.main(["check", *argv])
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("name", ["right", "logprobs", "text"])
def test_a_function_of_the_users_own_passes(capsys: pytest.CaptureFixture[str], mine: None, name: str) -> None:
    code, out, _ = check(capsys, "--engine", f"mine_under_test:{name}", *QUICK, "--json")
    report = json.loads(out)
    assert (code, report["verdict"], report["passed"], report["cases"]) == (0, "pass", 3, 3)
    assert set(KEYS) <= set(report)


def test_a_wrong_function_fails_and_the_factor_is_named(capsys: pytest.CaptureFixture[str], mine: None) -> None:
    code, out, _ = check(capsys, "--engine", "mine_under_test:wrong", *QUICK, "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (1, "fail")
    (finding,) = report["diagnosis"]
    assert Path(report["repro"], "repro.json").exists()
    assert (
        (finding["name"], finding["class"]) == ("scale_times[1.5]", "A")
        and finding["explains"]
        and abs(finding["coefficient"] - 1) < 1e-3
    )


def test_of_no_number_it_is_not_said_that_rounding_is_not_it(capsys: pytest.CaptureFixture[str], mine: None) -> None:
    code, out, _ = check(capsys, "--engine", "mine_under_test:all_nan", *QUICK)
    assert code == 1 and "every number is nan" in out and "rounding" not in out


def test_what_a_failure_leaves_in_the_temporary_folder_is_said(capsys: pytest.CaptureFixture[str], mine: None) -> None:
    code, out, _ = check(capsys, "--engine", "mine_under_test:nothing", *QUICK)
    folder = re.search(r"repeat it  loracle check --replay (\S+)\n +\((\d[\d.]* [kM]?B), yours to remove", out)
    assert code == 1 and folder is not None and Path(folder[1], "repro.json").exists(), out


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nan", "nan for token 0 in row 0"),
        ("fewer", "answers to"),
        ("shorter", "numbers where the vocabulary has"),
        ("all_nan", "every number is nan"),
        ("scores", "are the logprobs logits?"),
        ("none", "it returned NoneType, not a list of"),
        ("one", "it returned dict, not a list of"),
        ("nothing", "expected a dict with token_ids, logits, logprobs"),
        ("misspelt", "unknown key 'logit'"),
        ("raises", "MemoryError: out of pages"),
        ("leaves", "SystemExit: os._exit(0)"),
    ],
)
def test_an_answer_that_is_none_fails(capsys: pytest.CaptureFixture[str], mine: None, name: str, why: str) -> None:
    code, out, _ = check(capsys, "--engine", f"mine_under_test:{name}", *QUICK, "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (1, "fail")
    assert any(why in r["why"] for batch in report["batches"] for r in batch["requests"])
    assert any(why in symptom["what"] for symptom in report["symptoms"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--engine", "nobody"], "there is no engine 'nobody'"),
        (["--engine", "mutant:nothing"], "there is no mutant 'nothing'"),
        (["--engine", "no_such_module:f"], "No module named 'no_such_module'"),
        (["--engine", "mine_under_test:absent"], "has no absent"),
        (["--engine", "mine_under_test:number"], "not a function"),
        (["--engine", "mine_under_test:right", "--option", "x=1"], "has no option 'x': a function gets none"),
        (["--engine", "mine_under_test:"], "a function is named MODULE:FUNCTION"),
        (["--engine", "mine_under_test"], "is a module: --engine names a function in it, mine_under_test:FUNCTION"),
        (["--engine", "numpy", "--cases", "-1"], "--cases -1 must be 0 or more"),
        (["--engine", "numpy", "--cases", "0", "--sequences", "0"], "nothing would be asked"),
        (["--engine", "numpy", "--budget", "0"], "--budget 0.0"),
        (["--engine", "numpy", "--jobs", "0"], "--jobs 0"),
        (["--engine", "numpy", "--jobs", "100000"], "--jobs 100000: this machine has"),
        (["--engine", "numpy", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--engine", "numpy", "--budget", "0.001"], "--budget 0.001 must be 0.1 seconds or more"),
        (["--engine", ".mine:right"], "importing .mine raises TypeError"),
        (["--engine", "numpy", "--adapter", "x"], "--adapter x: expected NAME=DIR"),
        (["--engine", "numpy", "--adapter", "a=b", "--adapter", "a=c"], "a was given before"),
        (["--engine", "numpy", "--option", "x=1"], "has no option 'x'"),
        (["--engine", "numpy", "--model", "nowhere"], "nowhere"),
        (["--engine", "recorded"], "needs --option file=DIR"),
        (["--engine", "recorded", "--option", "file=nowhere"], "no recorded answers"),
        (["--replay", "nowhere"], "nowhere"),
        ([], "give --engine NAME"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], mine: None, argv: list[str], said: str
) -> None:
    code, out, err = check(capsys, *argv)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_failure_is_kept_and_repeated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = check(
        capsys, "--engine", "mutant:adapters_ignored", *QUICK, "--report", str(tmp_path / "out"), "--json"
    )
    report = json.loads(out)
    assert code == 1 and json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))["verdict"] == "fail"
    code, out, _ = check(capsys, "--replay", report["repro"], "--json")
    again = json.loads(out)
    assert (code, again["verdict"], again["cases"]) == (1, "fail", 1)
    assert again["noise"]["fails_from"] == report["noise"]["fails_from"]  # judged as it was then
    (tmp_path / "out" / "repro" / "repro.json").write_text("{", "utf-8")
    assert check(capsys, "--replay", report["repro"])[0] == 2


def test_answers_are_kept_and_judged_again_without_the_engine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = check(capsys, "--engine", "numpy", *QUICK, "--resume", str(tmp_path), "--json")
    recorded = ("--engine", "recorded", "--option", f"file={tmp_path}", *QUICK, "--json")
    again, replayed, _ = check(capsys, *recorded)
    assert (code, again) == (0, 0)
    assert json.loads(out)["worst_noise_ratio"] == json.loads(replayed)["worst_noise_ratio"]
    code, _, err = check(capsys, *recorded, "--seed", "1")  # other questions
    assert code == 2 and "recorded with seed 0, not 1" in err
    code, _, err = check(capsys, "--engine", "peft", *QUICK, "--resume", str(tmp_path))
    assert code == 2 and err.count("\n") == 1  # another engine's answers, or no PEFT here
    assert check(capsys, "--engine", "numpy", *QUICK, "--resume", str(tmp_path))[0] == 0


def test_what_people_see(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "--engine", "mutant:rslora_ignored", *QUICK)
    text = " ".join(out.split())
    assert code == 1
    assert text.startswith("FAIL") and "rslora_ignored" in text and "residual" in text
    assert "github.com/NVIDIA/TensorRT-LLM/issues/1668" in text
    assert "rounding is not it: with every step at its worst it reaches" in text


@pytest.mark.parametrize(
    ("worst", "precision", "said"),
    [
        (501.0, "bfloat16", "is not it: with every step at its worst it reaches 500 × noise"),
        (499.0, "bfloat16", "in --precision float32 a bug stays and rounding goes"),
        (499.0, "float32", "honest runs never come near that"),
    ],
)
def test_whether_rounding_explains_the_worst_row(worst: float, precision: str, said: str) -> None:
    line = rounding({"worst_noise_ratio": worst, "precision": precision, "noise": {"ceiling": 500.0}})
    assert said in line and ("--precision" in line) == (worst == 499.0 and precision == "bfloat16")
