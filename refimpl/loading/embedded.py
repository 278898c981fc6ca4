"""Where the embedded base model and its voices lie in the package: what "tiny" and "pirate" mean as paths."""

from pathlib import Path

TINY = Path(__file__).parent.parent / "tiny"

BASE = TINY / "base"
"""The Hugging Face folder of the base model."""

VOICES: dict[str, Path] = {name: TINY / name for name in ("pirate", "bard", "robot", "merchant")}
"""The PEFT folder of each voice."""

PICTURE_BASE = TINY / "pictures" / "base"
"""The folder of the picture model, as diffusers lays it out."""

STYLES: dict[str, Path] = {name: TINY / "pictures" / name for name in ("ink", "night", "blueprint", "watercolour")}
"""The folder of each of its styles: a LoRA in diffusers' format."""
