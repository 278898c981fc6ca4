"""Every engine by its name, imported when it is asked for.

make("vllm", {}), make("mutant:rslora_ignored", {}), make("my_module:my_function", {})
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LoracleError
from .interface import Engine, EngineError, Entry

# Each has entry() and make(options).
MODULES = {
    "peft": ".peft",
    "vllm": ".vllm",
    "llama_cpp": ".llama_cpp",
    "openai_http": ".openai_http",
    "tensorrt_llm": ".tensorrt_llm",
    "recorded": "..oracle.recordings.recorded",
    "module:function": ".function",  # the user's own; its make() gets the name as the option "function"
}
OURS = {
    "numpy": "our own engine, vectorised: the default table of steps",
    "reference": "our own engine, by the definition: a loop per token",
    "cuda": "our own engine with the kernels, on a GPU or, thread by thread, on this CPU",
}
MUTANT = "mutant:"


def entries() -> list[Entry]:
    """Everything that can be driven, those that are not installed too; our own and its mutants last."""
    return [*(_module(name).entry() for name in MODULES if _there(name)), *map(_ours, OURS), *_mutants()]


def make(name: str, options: Mapping[str, str]) -> Engine:
    """An engine that is not started yet. EngineError for a name or an option that there is not, or where its packages
    are missing."""
    if name in MODULES and name != "module:function" and _there(name):
        return _module(name).make(options)
    if name in OURS or name.startswith(MUTANT):
        if options:
            raise EngineError(f"{name} has no option {next(iter(options))!r}")
        return _make_ours(name)
    if ":" in name and _there("module:function"):
        return _module("module:function").make({**options, "function": name})
    known = [*(n for n in MODULES if _there(n)), *OURS, f"{MUTANT}NAME"]
    raise EngineError(f"there is no engine {name!r}; there is {', '.join(known)}")


def _there(name: str) -> bool:
    return importlib.util.find_spec(MODULES[name], __package__) is not None


def _module(name: str) -> Any:
    return importlib.import_module(MODULES[name], __package__)


def _ours(name: str) -> Entry:
    from .ours import CAPABILITIES

    missing = ""
    if name == "cuda":
        from ..cuda import runner
        from ..cuda.runner import cpu as runner_cpu

        try:
            if runner.world() == "cpu":
                runner_cpu.compiler()
        except LoracleError as error:
            missing = str(error)
    return Entry(name, OURS[name], CAPABILITIES, missing)


def _mutants() -> list[Entry]:
    from ..oracle.bugs import all_mutants
    from .ours import CAPABILITIES

    return [Entry(MUTANT + name, mutant.what, CAPABILITIES, "") for name, mutant in all_mutants().items()]


def _make_ours(name: str) -> Engine:
    from ..backends import BACKENDS
    from .ours import Ours

    make_ops: Callable[[], Any]
    if name in OURS:
        make_ops = lambda: BACKENDS[name]  # noqa: E731
    else:
        from ..oracle.bugs import all_mutants

        mutants = all_mutants()
        if name.removeprefix(MUTANT) not in mutants:
            raise EngineError(f"there is no mutant {name.removeprefix(MUTANT)!r}: `loracle engines --mutants` has them")
        make_ops = mutants[name.removeprefix(MUTANT)].make
    return Ours(make_ops)
