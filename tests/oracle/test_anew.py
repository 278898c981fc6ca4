"""The smallest failure fails in a new process as well: what was kept from earlier questions has no part in it."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from support.testbed import small_testbed

from refimpl.engines.function import Function
from refimpl.engines.interface import EngineRequest
from refimpl.oracle import anew
from refimpl.oracle.anew import NotAnew, confirmed, exchanges_anew
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.cases.shrink import Budget, ever_smaller
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.context import Context
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.verdict import learn_thresholds
from refimpl.oracle.observer import Observer
from refimpl.oracle.reports.result import CampaignSettings

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
    small, lines = confirmed(context, cases, how)
    requests = small.runs[0].requests
    assert len(requests) >= 2 and requests[0].prompt_ids == requests[-1].prompt_ids
    assert lines == ["batch 3: smaller cases failed only after what was asked before; this one fails in a new process"]
    assert any(exchange.response.error for exchange in exchanges_anew(context.driver, small, how))


def test_a_failure_that_no_new_process_has_is_said_to_be_one(module: ModuleType, tmp_path: Path) -> None:
    context, how = context_of(module.jealous, tmp_path), settings(small_testbed())
    alone = Case("batch 4", (Run((FIRST,)),))
    assert not context.failures(alone, how) and context.failures(alone, how)
    small, (line,) = confirmed(context, [alone], how)
    assert small == alone and line.startswith("batch 4: it fails only after what was asked before")


def test_a_function_that_no_other_process_can_import_is_not_asked_there(tmp_path: Path) -> None:
    context = context_of(lambda model_dir, requests: [{"token_ids": []} for _ in requests], tmp_path)
    small, (line,) = confirmed(context, [BATCH], settings(small_testbed()))
    assert small == BATCH and "not repeated in a new process: it cannot be imported there" in line


def test_a_server_that_runs_on_is_not_started_anew(tmp_path: Path) -> None:
    class Server(Function):
        lives_here, runs_on = False, True

    driver = EngineDriver(lambda: Server(lambda model_dir, requests: []), small_testbed(), tmp_path)
    with pytest.raises(NotAnew, match="runs on"):
        exchanges_anew(driver, BATCH, settings(small_testbed()))
