"""A case as JSON, and back. What is as usual is left out.

{"name": "sequence 7", "stateless": false, "steps": [
    {"load": "one", "adapter": "made-0"},
    {"run": [{"prompt_ids": [5, 6, 7], "adapter": "one", "max_new_tokens": 2}]},
    {"unload": "one"}]}
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...engines.interface import EngineRequest
from ...errors import LoracleError
from ...loading.diagnostics import shown
from ...loading.json_file import is_integer, is_number, typed
from .case import Case, Load, Run, Step, Unload, replay


def to_json(case: Case) -> dict[str, Any]:
    """An object that `from_json` reads back as the same case."""
    return {"name": case.name, "stateless": case.stateless, "steps": [_step(step) for step in case.steps]}


def _step(step: Step) -> dict[str, Any]:
    if isinstance(step, Load):
        return {"load": step.name, "adapter": step.adapter}
    return (
        {"unload": step.name} if isinstance(step, Unload) else {"run": [_request(request) for request in step.requests]}
    )


def _request(request: EngineRequest) -> dict[str, Any]:
    data: dict[str, Any] = {"prompt_ids": [int(t) for t in request.prompt_ids]}
    for field in fields(EngineRequest)[1:]:
        value = getattr(request, field.name)
        if value != field.default:
            data[field.name] = (
                [[name, float(weight)] for name, weight in value] if field.name == "adapter_weights" else value
            )
    return data


def from_json(data: Any) -> Case:
    """LoracleError, without the file's name, for anything that is no case; and for one that asks names that are not
    loaded then."""
    name, stateless = typed(data, "name", str, "the case"), typed(data, "stateless", bool, "the case")
    steps = typed(data, "steps", list, "the case")
    case = Case(name, tuple(_read_step(step, f"step {i}") for i, step in enumerate(steps)), stateless)
    if not stateless:
        _check_names(case)
    return case


def _read_step(data: Any, where: str) -> Step:
    if isinstance(data, dict) and set(data) == {"load", "adapter"}:
        return Load(typed(data, "load", str, where), typed(data, "adapter", str, where))
    if isinstance(data, dict) and set(data) == {"unload"}:
        return Unload(typed(data, "unload", str, where))
    if isinstance(data, dict) and set(data) == {"run"} and typed(data, "run", list, where):
        return Run(tuple(_read_request(request, f"{where}, request {j}") for j, request in enumerate(data["run"])))
    raise LoracleError(f"{where} is {shown(data)}: it must be a load with its adapter, an unload, or a run of requests")


def _read_request(data: Any, where: str) -> EngineRequest:
    ids = typed(data, "prompt_ids", list, where)
    if not ids or not all(is_integer(t) and t >= 0 for t in ids):
        raise LoracleError(f"{where}: prompt_ids is {shown(ids)}: it must be a list of token ids")
    keys = {field.name for field in fields(EngineRequest)}
    if unknown := set(data) - keys:
        raise LoracleError(f"{where}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(keys))}")
    adapter_weights = data.get("adapter_weights", [])
    if not isinstance(adapter_weights, list) or not all(map(_is_weighted, adapter_weights)):
        raise LoracleError(f"{where}: adapter_weights is {shown(adapter_weights)}: it must be a list of [name, weight]")
    adapter = data.get("adapter")
    if adapter is not None and not isinstance(adapter, str):
        raise LoracleError(f"{where}: adapter is {shown(adapter)}: it must be a name, or null for the base")
    cancel = data.get("cancel_after")
    return EngineRequest(
        tuple(ids),
        adapter,
        _count(data, where, "max_new_tokens", 1, 1),
        tuple((name, float(weight)) for name, weight in adapter_weights),
        _count(data, where, "arrival_step", 0, 0),
        None if cancel is None else _count(data, where, "cancel_after", 0, 0),
    )


def _is_weighted(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and is_number(pair[1])


def _count(data: Mapping[str, Any], where: str, key: str, default: int, least: int) -> int:
    value = data.get(key, default)
    if not is_integer(value) or value < least:
        raise LoracleError(f"{where}: {key} is {shown(value)}: it must be a whole number of {least} or more")
    return int(value)


def _check_names(case: Case) -> None:
    for i, (step, meaning) in enumerate(replay(case.steps)):
        for name in _names_in(step):
            if name not in meaning:
                raise LoracleError(f"step {i} names {name!r}, which is not loaded then")


def _names_in(step: Step) -> list[str]:
    """Return the names that a step takes to be loaded."""
    if isinstance(step, Unload):
        return [step.name]
    requests = step.requests if isinstance(step, Run) else ()
    names = [name for request in requests for name in (request.adapter, *dict(request.adapter_weights))]
    return [name for name in names if name is not None]
