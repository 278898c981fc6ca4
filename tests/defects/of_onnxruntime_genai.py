"""Defects of ONNX Runtime GenAI's model builder, driven through its worker."""

import dataclasses
from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from showing import Shown, compared, shows
from support.build import random_model

import refimpl
from refimpl.config import ModelConfig, Rope
from refimpl.engines import registry
from refimpl.engines.environments import missing
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.recipes import ONNXRUNTIME_GENAI
from refimpl.formats.hf import save_model

NARROW = dataclasses.replace(cases.CONFIG, intermediate_size=112)  # no layer is as wide as the vocabulary


def right(config: ModelConfig, folder: Path) -> np.ndarray:
    """Our logits of PROMPT by a base of this config, written into the folder."""
    save_model(random_model(config, 3, "float32"), folder)
    return refimpl.logits(refimpl.load_model(folder, "float64"), [refimpl.Request(cases.PROMPT)])[0]


def built(folder: Path) -> np.ndarray:
    """The engine's. Skips where it is not installed."""
    if why := missing(ONNXRUNTIME_GENAI):
        pytest.skip(why)
    engine = registry.make("onnxruntime_genai", {})
    try:
        engine.start(Settings(folder, max_length=48))
        return engine.run([EngineRequest(tuple(cases.PROMPT), None, 1)])[0].logits
    finally:
        engine.close()


@shows
def onnxruntime_genai_linear_rope_is_not_scaled(root: Path) -> Shown:
    linear = dataclasses.replace(NARROW, rope=Rope(10000.0, "linear", factor=2.5))
    scaled, plain = right(linear, root / "scaled"), right(NARROW, root / "plain")
    return compared("a prompt, of a base with rope_type linear", [built(root / "scaled")], [scaled], [plain])


@shows
def onnxruntime_genai_a_layer_as_wide_as_the_vocabulary(root: Path) -> Shown:
    logits = right(cases.CONFIG, root / "base")
    return compared("a prompt, of a base whose intermediate_size is its vocab_size", [built(root / "base")], [logits])
