"""What release this stand-in plays, and what is said when somebody uses what no release documents."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

RELEASE = tuple(int(n) for n in os.environ.get("STAND_IN_RELEASE", "1.2").split("."))
BUG = os.environ.get("STAND_IN_BUG", "")
FAULT = os.environ.get("STAND_IN_FAULT", "")


def undocumented(where: str) -> Callable[[str], NoReturn]:
    """A module's or an object's __getattr__: Python's own names, and those of other releases, are merely missing."""

    def missing(name: str) -> NoReturn:
        if not (name.startswith("__") and name.endswith("__")) and (where, name) not in ELSEWHERE:
            tell(f"{where}.{name}")
        raise AttributeError(f"{where} has no attribute {name!r}")

    return missing


# What another release has there.
ELSEWHERE = {
    ("tensorrt_llm._torch", "LLM"),
    ("tensorrt_llm.llmapi", "CudaGraphConfig"),
    ("tensorrt_llm.lora_manager", "LoraConfig"),
    ("tensorrt_llm.executor", "LoRARequest"),
    ("RequestOutput", "context_logits"),
    ("CompletionOutput", "generation_logits"),
    ("torch.ops.trtllm", "lora_grouped_gemm"),
}


def tell(what: str) -> None:
    """A line in the log."""
    log = os.environ.get("STAND_IN_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(what + "\n")


def only(first: tuple[int, ...], last: tuple[int, ...], name: str) -> None:
    """The module of this name is only in these releases."""
    if not first <= RELEASE <= last:
        sys.modules.pop(name, None)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class ValidationError(ValueError):
    """As pydantic words it."""


def forbid_others(model: str, given: dict[str, Any], known: frozenset[str]) -> None:
    """extra="forbid"."""
    for name in given:
        if name not in known:
            raise ValidationError(
                f"1 validation error for {model}\n{name}\n  Extra inputs are not permitted "
                f"[type=extra_forbidden, input_value={given[name]!r}, input_type={type(given[name]).__name__}]"
            )
