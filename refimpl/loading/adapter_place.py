"""What lies at a path that is no adapter folder, and what to give instead: a file, a cache, a training, a hub id.

PEFT, mlx-lm, torchtune, mistral-finetune and the Hub's cache each put an adapter one folder deeper, or under another
name; nobody who types a path knows that by heart.
"""

import os
import re
from pathlib import Path

from .embedded import VOICES
from .gguf_file import SUFFIX
from .hub import hub_id, hub_snapshots
from .peft_config import CONFIG_FILE
from .suggestion import did_you_mean

WEIGHTS_FILE = "adapter_model.safetensors"
DEPTH = 3  # how many folders deeper an adapter is looked for: verl has global_step_10/actor/lora_adapter

PICKLE = "is a pickle, which can run code, and is not read"
CONVERT = f"it {PICKLE}; convert it where you trust it: peft.PeftModel.from_pretrained(base, DIR).save_pretrained(NEW)"
CONVERT_MLX = (
    "only adapters.safetensors is read; on a Mac, "
    "mlx.core.save_safetensors('adapters.safetensors', mlx.core.load('adapters.npz')) writes it"
)
CONVERT_TORCHTUNE = (
    f"it {PICKLE}; with checkpointer FullModelHFCheckpointer and safe_serialization: True torchtune writes what PEFT "
    "reads beside it"
)
CONVERT_MISTRAL = (
    "mistral_inference merges it into its base (Transformer.load_lora); as PEFT it needs other names, the rows of q "
    "and k in halves, and lora_alpha = scaling * rank"
)

# A file in a folder without adapter_config.json or without its weights -> what wrote it, and the way out.
SIGNS = {
    "adapters.npz": (" of an old mlx-lm (MLX)", CONVERT_MLX),
    "adapter_*.pt": (" of torchtune", CONVERT_TORCHTUNE),
    "lora.safetensors": (" of mistral-finetune", CONVERT_MISTRAL),
    "lora.*.safetensors": (" of mistral-finetune", CONVERT_MISTRAL),
    "consolidated/lora*.safetensors": (" of mistral-finetune", CONVERT_MISTRAL),
    "adapter_model.bin": ("", CONVERT),
    "*.onnx_adapter": (" of ONNX Runtime", "it keeps no scale; convert the folder that it was made from"),
    f"*{SUFFIX}": ("", "give the file itself, a GGUF is a whole adapter"),
    "pytorch_lora_weights.safetensors": (" of diffusers", "it is for pictures: loracle draw"),
    "consolidated*": (" of Mistral or Meta", "those are the weights of a whole model"),
    "checkpoint_complete": (" of a Tinker checkpoint", "unpack its archive here"),
    "*.tar": ("", "unpack it, and give the folder"),
    "*.tar.gz": ("", "unpack it, and give the folder"),
    "*.zip": ("", "unpack it, and give the folder"),
}
FILE_SIGNS = {
    SUFFIX: "has the name of a GGUF file, and does not begin as one",
    ".bin": CONVERT.removeprefix("it "),
    ".pt": CONVERT_TORCHTUNE.removeprefix("it "),
    ".pth": CONVERT.removeprefix("it "),
    ".npz": f"is of an old mlx-lm (MLX): {CONVERT_MLX}",
    ".onnx_adapter": "is an adapter of ONNX Runtime, which keeps no scale: convert the folder that it was made from",
}


def not_an_adapter(path: Path) -> str | None:
    """Why a path cannot be a PEFT folder, and what to give instead; None if it can be one."""
    if not os.path.isdir(path):
        return _no_folder(path)
    if os.path.exists(path / CONFIG_FILE):
        return _without_weights(path)
    if snapshots := hub_snapshots(path):
        return f"is a folder of the Hub's cache: give the snapshot in it, {snapshots[-1]}"
    if inside := adapters_below(path):
        return f"has no {CONFIG_FILE}, but these folders in it have: {', '.join(inside[:5])}"
    if sign := _sign(path, CONFIG_FILE):
        return sign
    if os.path.exists(path / "config.json") and not os.path.exists(path / WEIGHTS_FILE):
        return f"has no {CONFIG_FILE}: it has a config.json, and is a whole model; a merged adapter is one, too"
    files = [file.name for file in sorted(path.glob("*.safetensors"))]
    if files:
        near = [file.name for file in sorted(path.glob("*config*")) if file.is_file()]
        hint = f" ({near[0]} is there: is it that?)" if near else ""
        return f"has {files[0]} but no {CONFIG_FILE}{hint}: without it the scale (lora_alpha) is unknown"
    if os.path.exists(path / "trainer_state.json"):
        return f"has no {CONFIG_FILE}; trainer_state.json is of a training that has saved no adapter here"
    return f"has no {CONFIG_FILE}"


def _no_folder(path: Path) -> str:
    if os.path.isfile(path):
        if sign := FILE_SIGNS.get(path.suffix):
            return sign
        return f"is a file; give the folder, {path.parent}, because the scale is in the {CONFIG_FILE} beside it"
    if hint := hub_id(path):
        return f"is not there; {hint}"
    return f"is not there; the embedded voices are {', '.join(VOICES)}{did_you_mean(str(path), [*VOICES, 'tiny'])}"


def _without_weights(folder: Path) -> str | None:
    """What a folder has in place of the weights, if they are not there."""
    if os.path.lexists(folder / WEIGHTS_FILE) or os.path.exists(folder / f"{WEIGHTS_FILE}.index.json"):
        return None
    if sign := _sign(folder, WEIGHTS_FILE):
        return sign
    if inside := adapters_below(folder):
        return f"has no {WEIGHTS_FILE}, but these folders in it have: {', '.join(inside[:5])}"
    files = [file.name for file in sorted(folder.glob("*.safetensors"))]
    return f"has no {WEIGHTS_FILE}" + (f", only {files[0]}" if files else "")


def _sign(folder: Path, missing: str) -> str | None:
    for pattern, (origin, way_out) in SIGNS.items():
        if match := next(iter(sorted(folder.glob(pattern))), None):
            return f"has {match.name}{origin} but no {missing}: {way_out}"
    return None


def adapters_below(folder: Path) -> list[str]:
    """The folders up to DEPTH below this one that have an adapter's config, as they would be typed after it."""
    patterns = ("/".join(["*"] * depth) for depth in range(1, DEPTH + 1))
    below = [file.parent for pattern in patterns for file in sorted(folder.glob(f"{pattern}/{CONFIG_FILE}"))]
    return [str(path.relative_to(folder)) for path in sorted(below, key=_by_step)]


def _by_step(path: Path) -> list[tuple[int, str]]:
    """Order for paths: numbers in them by their value, checkpoint-90 before checkpoint-100."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", str(path)[-200:])]
