"""What whoever builds an engine meets in `loracle check`: their own exceptions, limits, folders, and Ctrl-C."""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.testbed import small_testbed

from refimpl import cli
from refimpl.engines.declared import declared, left_out, without
from refimpl.engines.function import CAPABILITIES, Function
from refimpl.engines.interface import EngineError, EngineRequest, Settings
from refimpl.oracle.bases import not_asked, shares
from refimpl.oracle.cases.case import Case, Load, Run, Unload
from refimpl.oracle.cases.words import in_words
from refimpl.oracle.diagnosis.localise import Location, where_in_words
from refimpl.oracle.reports.result import CampaignSettings

pytest_plugins = ("pytester",)
BASE = ("--model", str(small_testbed().folder))
QUICK = (*BASE, "--cases", "3", "--sequences", "0", "--jobs", "1", "--no-power")

ENGINE = """
import refimpl

def right(model_dir, requests):
    model = refimpl.load_model(model_dir)
    adapters = [refimpl.load_adapter(r["adapter_dir"], model.config) if r["adapter_dir"] else None for r in requests]
    responses = []
    for request, adapter in zip(requests, adapters):
        tokens = []
        for _ in range(request["max_new_tokens"]):
            rows = refimpl.logits(model, [refimpl.Request([*request["prompt_ids"], *tokens], adapter)])[0]
            tokens.append(int(rows[-1].argmax()))
        responses.append({"logits": rows, "token_ids": tokens})
    return responses

def last_of_two(model_dir, requests):
    responses = right(model_dir, requests)
    folders = [r["adapter_dir"] for r in requests]
    for i, folder in enumerate(folders):
        if folder and folder in folders[:i]:
            responses[i] = right(model_dir, [{**requests[i], "adapter_dir": None}])[0]
    return responses

def raises(model_dir, requests):
    return helper(requests)

def helper(requests):
    return requests[0]["no such key"]

first_of_name = {}

def by_last_part_of_path(model_dir, requests):
    for r in requests:
        if r["adapter_dir"]:
            r["adapter_dir"] = first_of_name.setdefault(r["adapter_dir"].split("/")[-1], r["adapter_dir"])
    return right(model_dir, requests)

def exits(model_dir, requests):
    raise SystemExit(0)

def prints(model_dir, requests):
    print("Loading shards ...")
    return right(model_dir, requests)

def other_tokens(model_dir, requests):
    return [{**one, "token_ids": [(t + 1) % 64 for t in one["token_ids"]]} for one in right(model_dir, requests)]

def other_order(model_dir, requests):
    return right(model_dir, requests)[::-1]

def other_base(model_dir, requests):
    return [{**one, "logits": 1.001 * one["logits"]} for one in right(model_dir, requests)]

def flat(model_dir, requests):
    return [{"logits": [0.0] * 7} for _ in requests]

def never_returns(model_dir, requests):
    import time
    while True:
        try:
            time.sleep(1e6)
        except BaseException:  # neither a signal nor Ctrl-C ends it
            pass

def sleeps(model_dir, requests):
    import time
    time.sleep(1e6)

def without_bias(model_dir, requests):
    import json, pathlib
    for r in requests:
        if r["adapter_dir"]:
            config = json.loads((pathlib.Path(r["adapter_dir"]) / "adapter_config.json").read_text())
            if config.get("lora_bias"):
                raise ValueError("no lora_bias here")
    return right(model_dir, requests)

without_bias.capabilities = {"features": ["rslora", "rank_pattern", "alpha_pattern", "partial", "mixed_ranks"]}
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory; every test has one of its own, for Python keeps what it has imported."""
    name = f"engine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(ENGINE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return name


def check(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["check", *argv])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_its_exception_is_quoted_with_file_line_and_function_and_the_check_stops(
    capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    code, out, _ = check(capsys, "--engine", f"{engine}:raises", *QUICK, "--json")
    report = json.loads(out)
    line = 1 + ENGINE.splitlines().index('    return requests[0]["no such key"]')
    assert code == 1 and report["cases"] == 1
    assert f"{engine}.py:{line}, in helper)" in report["symptoms"][0]["what"]
    assert "every answer to the first case was an error: no other was asked" in report["findings"]


def test_an_exit_is_no_pass(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    code, out, _ = check(capsys, "--engine", f"{engine}:exits", *QUICK)
    assert code == 1 and "SystemExit: 0" in out
    assert "base rows are wrong" not in out and "smallest" not in out and "worst row" not in out, "nothing was read"


def test_what_it_prints_is_not_in_the_report(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    code, out, err = check(capsys, "--engine", f"{engine}:prints", *QUICK, "--json")
    assert code == 0 and json.loads(out)["verdict"] == "pass" and "Loading shards" in err


def test_what_is_wrong_without_any_adapter_is_not_laid_at_their_door(
    capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    _, out, _ = check(capsys, "--engine", f"{engine}:other_base", *QUICK, "--json")
    report = json.loads(out)
    assert report["symptoms"][0]["what"] == "wrong without any adapter: look at the base first"
    assert report["first_divergence"] is None and not report["where_in_words"]


@pytest.mark.parametrize(
    "what, said",
    [
        ("by_last_part_of_path", "another adapter answered"),
        ("other_tokens", "is not the largest of its own row"),
        ("other_order", "in the order of the requests?"),
    ],
)
def test_plain_mistakes_are_said(capsys: pytest.CaptureFixture[str], engine: str, what: str, said: str) -> None:
    code, out, _ = check(capsys, "--engine", f"{engine}:{what}", *QUICK, "--json")
    assert code == 1 and any(said in one["what"] for one in json.loads(out)["symptoms"])


def test_a_wider_type_than_the_one_asked_for_is_a_finding(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    """Its function is not told the type: it computes in float32."""
    arguments = ("--engine", f"{engine}:right", *QUICK, "--model", "random", "--cases", "2", "--json")
    _, out, _ = check(capsys, *arguments, "--precision", "bfloat16")
    assert any("computes in a wider type" in line for line in json.loads(out)["findings"])
    _, out, _ = check(capsys, *arguments)
    assert not any("wider" in line for line in json.loads(out)["findings"])


def test_a_family_that_no_case_asked_for_is_said() -> None:
    parts = shares(CampaignSettings(8, 4), ("llama", "qwen3"))
    assert {family for _, family in parts} == {""}
    assert not_asked(parts, ("llama", "qwen3")) == [
        "so few cases are all on Llamas: no base of qwen3 was asked (--families, or more cases)"
    ]
    assert not not_asked(shares(CampaignSettings(50, 30), ("llama", "qwen3")), ("llama", "qwen3"))


def test_a_wrong_shape_says_what_was_expected(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    _, out, _ = check(capsys, "--engine", f"{engine}:flat", *QUICK, "--json")
    assert "logits must be [rows, vocab], got shape [7]" in json.loads(out)["symptoms"][0]["what"]


def test_what_a_function_says_it_cannot_do_is_left_out_and_the_verdict_says_so(
    capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    code, out, _ = check(capsys, "--engine", f"{engine}:without_bias", *QUICK)
    assert code == 0 and "with lora_bias left out" in " ".join(out.split())
    code, out, _ = check(capsys, "--engine", f"{engine}:right", *QUICK, "--without", "lora_bias,q_proj", "--json")
    assert code == 0 and json.loads(out)["left_out"] == ["lora_bias", "q_proj"]
    code, _, err = check(capsys, "--engine", f"{engine}:right", *QUICK, "--without", "lora_bia")
    assert code == 2 and "did you mean 'lora_bias'?" in err


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"feature": []}, "no key 'feature'"),
        ({"features": "rslora"}, "a list of names"),
        ({"features": ["rs_lora"]}, "did you mean 'rslora'?"),
        ({"max_rank": 0}, "max_rank 0"),
        ({"head_dims": []}, "must be a list of even numbers above 0"),
        ({"head_dims": [33]}, "must be a list of even numbers above 0"),
        ({"readout": "logit"}, "'logit'"),
        ([], "is list, not a dict"),
    ],
)
def test_capabilities_that_are_none_are_refused(said: object, problem: str) -> None:
    with pytest.raises(EngineError, match=problem.replace("?", r"\?")):
        declared(said, CAPABILITIES, "f")  # type: ignore[arg-type]


@pytest.mark.parametrize("page", ["docs/check.md", "refimpl/engines/function.py"])
def test_the_capabilities_that_the_pages_show_are_some(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    (shown,) = re.findall(r"my_function\.capabilities = (\{.*\})", text)
    assert declared(ast.literal_eval(shown), CAPABILITIES, "my_function").left_out


def test_without_and_declared_leave_out_the_same() -> None:
    features = sorted(CAPABILITIES.features - {"rslora"})
    first, second = declared({"features": features}, CAPABILITIES, "f"), without(CAPABILITIES, ["rslora"])
    assert first == second and left_out(CAPABILITIES, first) == ("rslora",)


def test_a_function_gets_sums_and_is_reported_to_forget(tmp_path: Path) -> None:
    calls = []

    def summing(model_dir: str, requests: list) -> list:
        calls.append(requests[0]["adapters"])
        return [{"token_ids": [1]}]

    summing.capabilities = {"features": ["sums"]}  # type: ignore[attr-defined]
    summing.reset = lambda: calls.append("reset")  # type: ignore[attr-defined]
    function = Function(summing)
    function.start(Settings(tmp_path))
    function.load("a", Path("x"))
    function.run([EngineRequest((1,), None, 1, (("a", 0.5),))])
    assert calls == ["reset", [("x", 0.5)]]


def test_the_smallest_failure_leads_and_is_replayed_from_anywhere_and_by_another_engine(
    capsys: pytest.CaptureFixture[str], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.oracle.explain.search", lambda work: [])  # which mutant it is like, nobody asks here
    argv = ("--engine", f"{engine}:last_of_two", *BASE, "--cases", "6", "--sequences", "0", "--jobs", "1", "--no-power")
    code, out, err = check(capsys, *argv, "--report", "out", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["smallest_in_words"].endswith("one token each: the second is wrong")
    assert f"smallest failing case: {report['smallest_in_words']}" in err
    assert report["smallest_in_words"] in (tmp_path / "out" / "index.html").read_text("utf-8")
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, engine)
    repro = str(tmp_path / "out" / "repro")
    assert check(capsys, "--replay", repro)[0] == 1
    assert check(capsys, "--replay", repro, "--engine", f"{engine}:right")[0] == 0
    code, out, err = check(capsys, "--replay", repro, "--engine", f"{engine}:right", "--cases", "3")
    assert (code, out) == (2, "") and "--replay asks what was kept, and --cases is for something else" in err


def test_a_case_that_needs_what_an_engine_does_not_declare_is_not_replayed_with_it(
    capsys: pytest.CaptureFixture[str], engine: str, tmp_path: Path
) -> None:
    """It would fail, and that would say nothing."""
    argv = ("--engine", "mutant:rslora_ignored", *BASE, "--cases", "6", "--sequences", "0", "--jobs", "1", "--no-power")
    assert check(capsys, *argv, "--report", "out")[0] == 1
    assert "× noise off; the others are asked" in check(capsys, *argv)[2]  # as soon as it is measured
    module = importlib.import_module(engine)
    module.right.capabilities = {"features": ["partial"]}
    code, out, err = check(capsys, "--replay", "out/repro", "--engine", f"{engine}:right")
    assert (code, out) == (2, "")
    assert "this case needs " in err and "rslora" in err and "does not declare that" in err


def test_a_report_that_cannot_be_written_is_said_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], engine: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = check(capsys, "--engine", f"{engine}:right", *QUICK, "--report", "file")
    assert (code, out) == (2, "") and err == "loracle check: --report file: it is a file, and has to be a folder\n"
    code, _, err = check(capsys, "--engine", f"{engine}:right", *QUICK, "--report", "file/below")
    assert code == 2 and err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("jobs", "number"), [("1", signal.SIGINT), ("2", signal.SIGINT), ("2", signal.SIGTERM)])
def test_a_signal_ends_it_soon_and_prints_what_is_known(jobs: str, number: int, tmp_path: Path) -> None:
    argv = ["check", "--engine", "numpy", *BASE, "--cases", "100000", "--sequences", "0", "--no-power", "--jobs", jobs]
    env = {**os.environ, "TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "refimpl", *argv, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    assert process.stderr is not None and "asking" in process.stderr.readline()
    time.sleep(2)
    if number == signal.SIGINT:  # a terminal sends it to every process of the group
        os.killpg(process.pid, number)
        time.sleep(0.05)  # and the user may press twice
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    report = json.loads(out)
    assert report["verdict"] == "undecided" and any("stopped by " in line for line in report["findings"])


def test_an_engine_that_hangs_ends_with_the_budget_and_leaves_nothing(engine: str, tmp_path: Path) -> None:
    """Nothing breaks off this one: the process ends, and with it those that make the numbers."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    arguments = ["check", "--engine", f"{engine}:never_returns", *QUICK, "--jobs", "2", "--budget", "4", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "refimpl", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(folder), "OPENBLAS_NUM_THREADS": "1"},
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"], report["cases"]) == (1, "undecided", 0)
    assert report["findings"][0] in (
        "the budget of 4 s ended while the engine was asked batch 0: it hangs, or --budget is too small; "
        "0 of 3 cases were measured",
        "the budget ended after 0 of 3 batches",  # a machine on which it takes as long to begin
    )
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr
    assert list(folder.iterdir()) == []


def test_the_pytest_plugin_passes_the_right_one_and_prints_the_cause(pytester: pytest.Pytester, engine: str) -> None:
    file = pytester.makepyfile(
        f"""
        import sys
        sys.path.insert(0, {str(Path.cwd())!r})
        from {engine} import raises, right, sleeps

        def test_right(loracle_check):
            assert loracle_check(right, model={BASE[1]!r}, cases=2)["passed"] == 2

        def test_wrong(loracle_check):
            loracle_check(raises, model={BASE[1]!r}, cases=6)

        def test_hangs(loracle_check):
            loracle_check(sleeps, model={BASE[1]!r}, cases=1, budget=2)
        """
    )
    result = pytester.runpytest_subprocess(file, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*FAIL*raises, in float32", "symptoms *no answer: KeyError*"])
    result.stdout.fnmatch_lines(
        ["*UNDECIDED*sleeps, in float32", "*the budget of 2 s ended while the engine was asked*"]
    )


def test_small_cases_in_words() -> None:
    def request(name: str | None, tokens: int, new_tokens: int = 1) -> EngineRequest:
        return EngineRequest((1,) * tokens, name, new_tokens)

    def batch(*requests: EngineRequest) -> Case:
        return Case("x", (Run(requests),))

    assert in_words(batch(request("a", 1)), [(0, 0)]) == "one request of a, one token: it is wrong"
    assert in_words(batch(request("a", 1), request("a", 1)), [(0, 1)]) == (
        "two requests of a in one batch, one token each: the second is wrong"
    )
    assert in_words(batch(request("a", 2, 3), request(None, 12)), [(0, 0), (0, 1)]) == (
        "two requests in one batch (a two tokens, the base 12 tokens, 3 produced): both are wrong"
    )
    steps = (Load("n", "a"), Run((request("n", 9),)), Unload("n"), Load("n", "b"), Run((request("n", 9),)))
    assert in_words(Case("x", steps, stateless=False), [(1, 0)]) == (
        "load a as n; then one request of n, 9 tokens; then unload n; then load b as n; then one request of n, "
        "9 tokens (it is wrong)"
    )


def test_where_in_words() -> None:
    every = [Location(None, name, 9.0, "ablation") for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert where_in_words(every).startswith("every module alike")
    assert where_in_words(every[:1]).startswith("only q_proj:")
    assert where_in_words([Location(2, "q_proj", 9.0, "ablation")]).startswith("only q_proj, in layer 2 alone")
    layers = [Location(layer, "q_proj", 9.0, "ablation") for layer in (0, 1, 3)]
    assert where_in_words(layers).startswith("only q_proj, in layers 0, 1 and 3 alone:")
    assert where_in_words(every[:2]) == where_in_words([Location(0, "q_proj", 9.0, "intermediates")]) == ""
