"""What a vector of each kind must hold. Without it, a gap in a manifest would look like a refusal of what is tested."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...arrays import Array
from ...loading.diagnostics import shown
from ...loading.json_file import is_integer, is_number
from .steps_json import request_id

ARRAYS = {
    "lora": ("x", "y", "adapter_ids", "adapter_weights", "query_starts", "scales"),
    "kv_write": ("k", "v", "k_cache", "v_cache", "slots"),
    "attention": ("q", "k_cache", "v_cache", "query_starts", "context_lens", "block_tables"),
    "logits": (),
    "sequence": (),
}
SETTINGS = ("max_adapters", "max_rank", "max_length", "max_requests", "prefix_caching", "chunk", "kv_tokens")
REQUEST = ("id", "adapter", "mix", "max_new_tokens", "arrives", "cancel_after")


def problems(kind: str, about: Mapping[str, Any], inputs: Mapping[str, Array], folder: Path) -> Iterator[str]:
    """What is missing, or is not what FORMAT.md says, in one line each."""
    for name in ARRAYS[kind]:
        if name not in inputs:
            yield f"inputs has no {name}, which every vector of kind {kind} has"
    if kind == "lora":
        yield from _lora(about, inputs)
    elif kind == "attention":
        window = about.get("window", "missing")
        if window is not None and not is_integer(window):
            yield f"about: window is {shown(window)}: it must be null or an integer"
    elif kind in ("logits", "sequence"):
        yield from _model(about, folder)
        yield from _steps(about, inputs)


def _lora(about: Mapping[str, Any], inputs: Mapping[str, Array]) -> Iterator[str]:
    slots = about.get("slots")
    if not is_integer(about.get("d_in")) or not is_integer(about.get("d_out")) or not isinstance(slots, list):
        yield "about: d_in, d_out and slots must be two integers and a list"
        return
    for slot in slots:
        if not isinstance(slot, dict) or not all(is_integer(slot.get(key)) for key in ("slot", "r")):
            yield f"about: slots holds {shown(slot)}: slot, r, lora_alpha, use_rslora and bias wanted"
        elif not is_number(slot.get("lora_alpha")) or not all(
            isinstance(slot.get(key), bool) for key in ("use_rslora", "bias")
        ):
            yield f"about: slot {slot['slot']} is {shown(slot)}: lora_alpha, use_rslora and bias wanted"
        elif missing := [name for name in (f"A.{slot['slot']}", f"B.{slot['slot']}") if name not in inputs]:
            yield f"inputs has no {missing[0]}, the manifest's about has slot {slot['slot']}"


def _model(about: Mapping[str, Any], folder: Path) -> Iterator[str]:
    model, adapters, settings = (about.get(key) for key in ("model", "adapters", "settings"))
    if not isinstance(model, str) or not (folder / model / "config.json").is_file():
        yield f"about: model is {shown(model)}: no folder of a model"
    if not isinstance(adapters, dict) or not all(isinstance(path, str) for path in adapters.values()):
        yield f"about: adapters is {shown(adapters)}: it must map names to folders"
    else:
        for name, path in adapters.items():
            if not (folder / path / "adapter_config.json").is_file():
                yield f"about: adapter {shown(name)} is {shown(path)}: no folder of an adapter"
    if not isinstance(settings, dict) or set(settings) != set(SETTINGS):
        yield f"about: settings is {shown(settings)}: it must have {', '.join(SETTINGS)}"


def _steps(about: Mapping[str, Any], inputs: Mapping[str, Array]) -> Iterator[str]:
    steps = about.get("steps")
    if not isinstance(steps, list) or not any(isinstance(step, dict) and step.get("do") == "run" for step in steps):
        yield f"about: steps is {shown(steps)}: it must be a list with at least one run"
        return
    adapters = about.get("adapters")
    run = 0
    for step in steps:
        do = step.get("do") if isinstance(step, dict) else None
        if do == "load" and isinstance(adapters, dict) and step.get("adapter") in adapters and "name" in step:
            continue
        if do == "unload" and "name" in step:
            continue
        if do != "run" or not isinstance(step.get("requests"), list):
            yield f"about: a step is {shown(step)}: load, unload or run wanted, with what they need"
            continue
        for i, request in enumerate(step["requests"]):
            if not isinstance(request, dict) or set(request) != set(REQUEST):
                yield f"about: a request is {shown(request)}: it must have {', '.join(REQUEST)}"
            elif f"{request['id']}.prompt_ids" not in inputs:
                yield f"inputs has no {request['id']}.prompt_ids, which a step asks"
            elif request["id"] != request_id(run, i):
                yield f"about: request {i} of run {run} has the id {shown(request['id'])}: it must be RUN.PLACE"
        run += 1
