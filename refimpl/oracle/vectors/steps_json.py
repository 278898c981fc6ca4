"""A case as the `steps` of a vector's manifest, version 1 of FORMAT.md, and back. Prompts are tensors beside it."""

from typing import Any

from ...engines.interface import EngineRequest
from ..cases.case import Case, Load, Run, Step, Unload
from .vector import Vector


def request_id(run: int, index: int) -> str:
    """Return what the tensors of a request are named after: the run and the request's place in it."""
    return f"{run}.{index}"


def to_about(case: Case) -> list[dict[str, Any]]:
    """Return the steps of a case as JSON, without the prompts."""
    steps: list[dict[str, Any]] = []
    run = 0
    for step in case.steps:
        if isinstance(step, Load):
            steps.append({"do": "load", "name": step.name, "adapter": step.adapter})
        elif isinstance(step, Unload):
            steps.append({"do": "unload", "name": step.name})
        else:
            requests = [_to_json(request_id(run, i), request) for i, request in enumerate(step.requests)]
            steps.append({"do": "run", "requests": requests})
            run += 1
    return steps


def _to_json(name: str, request: EngineRequest) -> dict[str, Any]:
    return {
        "id": name,
        "adapter": request.adapter,
        "mix": [list(pair) for pair in request.adapter_weights],
        "max_new_tokens": request.max_new_tokens,
        "arrives": request.arrival_step,
        "cancel_after": request.cancel_after,
    }


def from_about(v: Vector) -> Case:
    """Return the case of a vector that was read: contents.py has checked its steps."""
    return Case(v.name, tuple(_step(v, step) for step in v.about["steps"]), stateless=False)


def _step(v: Vector, step: dict[str, Any]) -> Step:
    if step["do"] == "load":
        return Load(step["name"], step["adapter"])
    if step["do"] == "unload":
        return Unload(step["name"])
    return Run(tuple(_request(v, request) for request in step["requests"]))


def _request(v: Vector, request: dict[str, Any]) -> EngineRequest:
    return EngineRequest(
        tuple(v.inputs[f"{request['id']}.prompt_ids"].tolist()),
        request["adapter"],
        request["max_new_tokens"],
        tuple((name, weight) for name, weight in request["mix"]),
        request["arrives"],
        request["cancel_after"],
    )
