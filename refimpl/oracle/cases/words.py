"""A small case in one sentence: "two requests of made-1 in one batch, one token each: the second is wrong"."""

from collections.abc import Collection

from ...engines.interface import EngineRequest
from .case import Case, Load, Run, Unload

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def in_words(case: Case, wrong: Collection[tuple[int, int]]) -> str:
    """Say what is asked, and which of it is answered wrongly. wrong: (run, index in it) of these requests."""
    if case.stateless and len(case.runs) == 1:
        return f"{_batch(case.runs[0])}: {_which(case.runs[0], sorted(index for _, index in wrong))}"
    steps, run = [], -1
    for step in case.steps:
        if isinstance(step, Load):
            steps.append(f"load {step.adapter}" + (f" as {step.name}" if step.name != step.adapter else ""))
        elif isinstance(step, Unload):
            steps.append(f"unload {step.name}")
        else:
            run += 1
            of_run = sorted(index for number, index in wrong if number == run)
            steps.append(_batch(step) + (f" ({_which(step, of_run)})" if of_run else ""))
    return "; then ".join(steps)


def _batch(run: Run) -> str:
    requests = run.requests
    names = list(dict.fromkeys(map(_name, requests)))
    lengths = list(dict.fromkeys(len(request.prompt_ids) for request in requests))
    new_tokens = max(request.max_new_tokens for request in requests)
    produced = f", {new_tokens} produced" if new_tokens > 1 else ""
    if len(requests) == 1:
        return f"one request of {names[0]}, {_tokens(lengths[0])}{produced}"
    if len(names) == len(lengths) == 1:
        return f"{_number(len(requests))} requests of {names[0]} in one batch, {_tokens(lengths[0])} each{produced}"
    each = ", ".join(f"{_name(request)} {_tokens(len(request.prompt_ids))}" for request in requests)
    return f"{_number(len(requests))} requests in one batch ({each}{produced})"


def _which(run: Run, wrong: list[int]) -> str:
    """ "the second is wrong"."""
    count = len(run.requests)
    if not wrong:
        return "wrong once, and right, or too close to call, when it was asked again"
    if count == 1:
        return "it is wrong"
    if len(wrong) == count:
        return "both are wrong" if count == 2 else "all are wrong"
    if count <= len(ORDINALS):
        ordinals = [ORDINALS[index] for index in wrong]
    else:
        ordinals = [f"number {index + 1}" for index in wrong]
    return f"the {_listed(ordinals)} {'is' if len(wrong) == 1 else 'are'} wrong"


def _name(request: EngineRequest) -> str:
    if request.adapter_weights:
        return " + ".join(f"{weight:g} x {name}" for name, weight in request.adapter_weights)
    return request.adapter or "the base"


def _tokens(count: int) -> str:
    return f"{_number(count)} token{'' if count == 1 else 's'}"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
