"""Which base an adapter was trained on, as far as its config says so: compared by name, because shapes do not tell a
base from its instruct model, nor a quantised one from the numbers that it came from."""

import re
from pathlib import Path

from ..adapter import PeftConfig
from ..config import ModelConfig
from .diagnostics import Diagnostics, shown

# How quantised checkpoints are called: GPTQ, AWQ, FP8, bnb-4bit, 4bit, int8, w4a16, nf4, 4.0bpw, Q4_K_M, ...
QUANTISED = re.compile(
    r"(?:^|[-_./ ])(?:(?:auto)?gptq\w*|awq\w*|autoround|auto-round|gguf|ggml|bnb\w*|bitsandbytes|exl[23]|eetq|hqq|aqlm|"
    r"quip\w*|squeezellm|spqr|spinquant\w*|torchao|quark|nvfp\d|mxfp\d|fp[468]\w*|nf4|(?:u?int|i)[2-8](?:w[oa]\w*)?|[2-8][-_]?bits?|w\d+a\d+\w*|"
    r"q[2-8](?:_\w+|f\d+_\d)?|iq[1-4]_\w+|[\d.]+bpw|dynamic-fp8|quantized|quantised|qat|marlin)(?=$|[-_./ ])",
    re.IGNORECASE,
)


def quantisation_in(name: str) -> str | None:
    """The piece of a base's name that says it is quantised, if one does: "GPTQ" of "someone/Llama-3-8B-GPTQ"."""
    match = None if "unquanti" in name.lower() else QUANTISED.search(name)
    return match[0].strip("-_./ ") if match else None


def plain_name(name: str) -> str:
    """What of a name tells one base from another: the last piece of a path, in small letters, quantisation aside."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    last = re.sub(r"-unsloth(?=$|-)|-(hf|gguf)$", "", QUANTISED.sub("", last))
    return QUANTISED.sub("", last).strip("-_.")


def check_base_name(config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics) -> None:
    """Warn if the base calls itself otherwise than the adapter calls the one that it was trained on."""
    trained_on, given = config.base_model_name_or_path, base.name_or_path if base else ""
    if trained_on and given and plain_name(trained_on) != plain_name(given):
        names = f"{shown(trained_on)}, and this base calls itself {shown(given)}"
        diagnostics.warn(file, f"base_model_name_or_path is {names}: if its weights differ, so does what it answers")
