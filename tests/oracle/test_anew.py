"""The smallest failure fails in a new process as well: what was kept from earlier questions has no part in it."""

import importlib
import io
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from support.testbed import small_testbed

from refimpl.commands.check_screen import show
from refimpl.engines.function import Function
from refimpl.engines.interface import EngineRequest
from refimpl.oracle import anew
from refimpl.oracle.anew import NotAnew, confirmed, exchanges_anew
from refimpl.oracle.cases.case import Case, Load, Run
from refimpl.oracle.cases.shrink import Budget, ever_smaller
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.context import Context
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.keep import RIGHT_AGAIN, keep
from refimpl.oracle.location import KEEPS, located
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.verdict import learn_thresholds
from refimpl.oracle.observer import Observer
from refimpl.oracle.reports.result import CampaignSettings, Explanation, PlayedCase, Result
from refimpl.oracle.reports.summary import summary
from refimpl.oracle.smallest import smaller

ENGINE = """
import refimpl

seen = set()

def jealous(model_dir, requests):
    model = refimpl.load_model(model_dir)
    return [answer(model, request) for request in requests]

def answer(model, request):
    prompt = tuple(request["prompt_ids"])
    if prompt in seen:
        raise ValueError("this prompt was another's")
    seen.add(prompt)
    adapter = refimpl.load_adapter(request["adapter_dir"], model.config) if request["adapter_dir"] else None
    rows = refimpl.logits(model, [refimpl.Request(list(prompt), adapter)])[0]
    return {"logits": rows, "token_ids": [int(rows[-1].argmax())]}
"""
FIRST = EngineRequest((5, 6, 7, 8), "made-0")
BATCH = Case("batch 3", (Run((FIRST, EngineRequest((9,), None), EngineRequest((5, 6, 7, 8), "made-1"))),))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = f"engine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(ENGINE, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(anew, "SHRINKING_ANEW", Budget(calls=4, seconds=600))
    return importlib.import_module(name)


def context_of(function: object, work: Path) -> Context:
    testbed = small_testbed()
    driver = EngineDriver(lambda: Function(function), testbed, work)  # type: ignore[arg-type]
    return Context(
        driver,
        testbed,
        ensemble("float32"),
        learn_thresholds([]),
        None,
        CampaignSettings(),
        Observer(),  # type: ignore[arg-type]
    )


def test_a_case_that_only_a_used_engine_fails_gives_way_to_a_larger_one(module: ModuleType, tmp_path: Path) -> None:
    context, how = context_of(module.jealous, tmp_path), settings(small_testbed())
    cases = ever_smaller(BATCH, lambda case: bool(context.failures(case, how)))
    assert len(cases[-1].runs[0].requests) == 1  # asked before: it fails alone
    found = confirmed(context, cases, how)
    small = found.case
    requests = small.runs[0].requests
    assert len(requests) >= 2 and requests[0].prompt_ids == requests[-1].prompt_ids
    assert "what is shown, which fails in a new process" in found.lines[0] and not found.only_after
    assert any(exchange.response.error for exchange in exchanges_anew(context.driver, small, how))


def test_a_failure_that_no_new_process_has_is_said_to_be_one(module: ModuleType, tmp_path: Path) -> None:
    context, how = context_of(module.jealous, tmp_path), settings(small_testbed())
    alone = Case("batch 4", (Run((FIRST,)),))
    assert not context.failures(alone, how) and context.failures(alone, how)
    found = confirmed(context, [alone], how)
    assert found.case == alone and found.only_after
    assert found.lines[0].startswith("batch 4: it fails only after what was asked before")

    # A sequence that failed as well brings along what has to be asked before: it is shown instead.
    twice = Case("sequence 1", (Load("made-0", "made-0"), *[Run((FIRST,))] * 2), stateless=False)
    failed = [PlayedCase(alone, how, []), PlayedCase(twice, how, [])]
    assert context.failures(alone, how)
    other = smaller(context, failed)
    assert other.case is not None and other.case.name == twice.name and len(other.case.runs) == 2
    assert other.only_after and "of sequence 1, fails in a new process" in other.lines[-1]
    # An adapter that is answered well tells nothing where it depends on what was asked before.
    assert located(context, failed, keeps=True) == ([], None, [KEEPS])


def test_what_is_right_when_it_is_kept_is_said_to_be(module: ModuleType, tmp_path: Path) -> None:
    testbed, once = small_testbed(), Case("batch 4", (Run((FIRST,)),))
    result = Result(testbed, "fail", [], learn_thresholds([]), "float32", [])
    result.explanation = Explanation(smallest=once, small_settings=settings(testbed))
    folder = keep(result, tmp_path / "repro", f"{module.__name__}:jealous", {}, 0, lambda: Function(module.jealous))
    assert RIGHT_AGAIN in (folder / "README.md").read_text("utf-8")
    console = Console(file=io.StringIO(), width=100)
    show(console, summary(result, "mine", str(folder)), tmp_path)
    assert "repeat it  it may pass, for it was right when it was asked again: loracle check" in console.file.getvalue()


def test_a_function_that_no_other_process_can_import_is_not_asked_there(tmp_path: Path) -> None:
    context = context_of(lambda model_dir, requests: [{"token_ids": []} for _ in requests], tmp_path)
    found = confirmed(context, [BATCH], settings(small_testbed()))
    assert found.case == BATCH and "not repeated in a new process: it cannot be handed over to one" in found.lines[0]


def test_a_server_that_runs_on_is_not_started_anew(tmp_path: Path) -> None:
    class Server(Function):
        lives_here, runs_on = False, True

    driver = EngineDriver(lambda: Server(lambda model_dir, requests: []), small_testbed(), tmp_path)
    with pytest.raises(NotAnew, match="runs on"):
        exchanges_anew(driver, BATCH, settings(small_testbed()))
