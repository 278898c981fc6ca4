"""Which release this stand-in has, and the log of names that no release documents."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

RELEASE = tuple(int(n) for n in os.environ.get("LORACLE_STAND_IN_RELEASE", "1.2").split("."))
BUG = os.environ.get("LORACLE_STAND_IN_BUG", "")
FAULT = os.environ.get("LORACLE_STAND_IN_FAULT", "")


def undocumented(where: str) -> Callable[[str], NoReturn]:
    """Return a __getattr__ that logs every name but Python's own and those of other releases."""

    def missing(name: str) -> NoReturn:
        if not (name.startswith("__") and name.endswith("__")) and (where, name) not in ELSEWHERE:
            log_use(f"{where}.{name}")
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


def log_use(name: str) -> None:
    """Write a line into the log."""
    log = os.environ.get("LORACLE_STAND_IN_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(name + "\n")


def only(first: tuple[int, ...], last: tuple[int, ...], name: str) -> None:
    """The module of this name is only in these releases."""
    if not first <= RELEASE <= last:
        sys.modules.pop(name, None)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class ValidationError(ValueError):
    """As pydantic words it."""


def forbid_others(model: str, arguments: dict[str, Any], allowed: frozenset[str]) -> None:
    """Raise what pydantic raises with extra="forbid"."""
    for name in arguments:
        if name not in allowed:
            raise ValidationError(
                f"1 validation error for {model}\n{name}\n  Extra inputs are not permitted "
                f"[type=extra_forbidden, input_value={arguments[name]!r}, input_type={type(arguments[name]).__name__}]"
            )
