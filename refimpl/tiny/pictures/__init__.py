"""The embedded picture model: scenes drawn by code, a transformer that learned to draw them, four styles for it."""

from pathlib import Path

HERE = Path(__file__).parent

BASE = HERE / "base"
"""The diffusers folder of the base: transformer/ and scheduler/."""

STYLES: dict[str, Path] = {name: HERE / name for name in ("ink", "night", "blueprint", "watercolour")}
"""The folder of each style's adapter, `pytorch_lora_weights.safetensors`."""
