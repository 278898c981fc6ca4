"""Every engine by its name, imported when it is used.

make("vllm", {}), make("mutant:rslora_ignored", {}), make("my_module:my_function", {})

The modules stand here as text: what lies above this folder (the oracle's mutants and recordings, the course) is
imported only when somebody names such an engine.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..loading.suggestion import did_you_mean
from .interface import Engine, EngineError, Entry

# One engine each: entry() and make(options).
MODULES = {
    "peft": ".peft",
    "vllm": ".vllm",
    "llama_cpp": ".llama_cpp",
    "llama_cpp_prebuilt": ".llama_cpp_prebuilt",
    "mistralrs": ".mistralrs",
    "mlx_lm": ".mlx_lm",
    "mlx_lm_server": ".mlx_lm_server",
    "openvino_genai": ".openvino_genai",
    "onnxruntime_genai": ".onnxruntime_genai",
    "sglang": ".sglang",
    "openai_http": ".openai_http",
    "tensorrt_llm": ".tensorrt_llm",
    "recorded": "..oracle.recordings.recorded",
    "learn": "..learn.your_engine",
    "module:function": ".function",  # the user's own; its make() gets the name as the option "function"
}
# Several engines without options each: entries() and make(name).
BACKENDS, MUTANTS = ".our_backends", "..oracle.bugs.engine"
MUTANT = "mutant:"  # what the names of the second ones begin with
# The mutants again, under code names: whoever names one is not told which it is.
BLIND_MUTANTS, BLIND = "..oracle.bugs.blind", "blind:"


def is_blind(name: str) -> bool:
    """Is this engine one whose bug is to be found out?"""
    return name.startswith(BLIND)


def entries() -> list[Entry]:
    """Return everything that can be driven, what is not installed too; our own backends and the mutants last."""
    listed = [_module(path).entry() for path in MODULES.values() if _exists(path)]
    return listed + [entry for path in (BACKENDS, MUTANTS) if _exists(path) for entry in _module(path).entries()]


def make(name: str, options: Mapping[str, str]) -> Engine:
    """Return an engine that is not started yet.

    EngineError for a name or an option that does not exist, or where the engine's packages are missing."""
    if name in MODULES and name != "module:function" and _exists(MODULES[name]):
        return _module(MODULES[name]).make(options)
    if is_blind(name) and not options:
        return _module(BLIND_MUTANTS).make(name)
    several = MUTANTS if name.startswith(MUTANT) else BACKENDS
    names = [entry.name for entry in _module(several).entries()] if _exists(several) else []
    if name in names:
        if options:
            raise EngineError(f"{name} has no option {next(iter(options))!r}")
        return _module(several).make(name)
    if name.startswith(MUTANT):
        meant = did_you_mean(name, names).replace(MUTANT, "")
        raise EngineError(
            f"there is no mutant {name.removeprefix(MUTANT)!r}: `loracle engines --mutants` has them{meant}"
        )
    if ":" in name:
        return _module(MODULES["module:function"]).make({**options, "function": name})
    if name.endswith(".py"):
        raise EngineError(f"{name} is a file: --engine names a function in it, {name.removesuffix('.py')}:FUNCTION")
    if Path(f"{name.replace('.', '/')}.py").is_file():
        raise EngineError(f"{name} is a module: --engine names a function in it, {name}:FUNCTION")
    names = [*(key for key, path in MODULES.items() if _exists(path)), *names]
    meant = did_you_mean(name, names)
    raise EngineError(
        f"there is no engine {name!r}; there is {', '.join([*names, f'{MUTANT}NAME', f'{BLIND}KEY'])}{meant}"
    )


def _exists(path: str) -> bool:
    return importlib.util.find_spec(path, __package__) is not None


def _module(path: str) -> Any:
    return importlib.import_module(path, __package__)
