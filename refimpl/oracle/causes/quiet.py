"""The same adapters, quiet: B and its bias times a small power of two, so that logits are linear in every delta.

A bug stays the bug that it is, and what it does at several modules adds up in the logits.
"""

from dataclasses import replace
from pathlib import Path

from ...adapter import Adapter, LoraTensors
from ..cases.testbed import Testbed, save_adapters


def quiet_adapter(adapter: Adapter, factor: float) -> Adapter:
    """Return the adapter with B and lora_B's bias times a factor: exact for a power of two, in any floating type."""

    def scaled(lora: LoraTensors) -> LoraTensors:
        bias = None if lora.bias is None else lora.bias * lora.bias.dtype.type(factor)
        return LoraTensors(lora.A, lora.B * lora.B.dtype.type(factor), bias, lora.magnitude)

    return replace(adapter, lora={module: scaled(lora) for module, lora in adapter.lora.items()})


def quiet_testbed(testbed: Testbed, factor: float, work: Path) -> Testbed:
    """Return the testbed with every adapter quiet, under its own key; the folders are written below `work`."""
    quiet = [replace(quiet_adapter(adapter, factor), name=key) for key, adapter in testbed.adapters.items()]
    paths = save_adapters(quiet, work / f"times {factor:g}", testbed.dtype)
    return Testbed.load(testbed.folder, testbed.model, paths)
