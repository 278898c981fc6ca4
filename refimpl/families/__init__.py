"""The families of models that load: one file each, a dozen lines of what it does that a Llama does not.

A new one is such a file, its name here, and its config in tests/engines/test_families.py, which compares it with
transformers in float64.
"""

from . import (
    cohere,
    deepseek,
    ernie,
    exaone,
    gemma,
    gemma4,
    glm,
    gpt_oss,
    granite,
    hunyuan,
    llama,
    ministral,
    mixtral,
    nemotron,
    olmo,
    phi,
    qwen,
    qwen_moe,
    seed,
    smollm,
    starcoder,
)
from .family import Family

MODULES = (
    *(llama, qwen, phi, gemma, gemma4, granite, smollm, olmo, ministral, glm, seed, ernie, hunyuan),
    *(mixtral, qwen_moe, deepseek, gpt_oss),
    *(exaone, cohere, starcoder, nemotron),
)
FAMILIES: dict[str, Family] = {family.architecture: family for module in MODULES for family in module.FAMILIES}
MODEL_TYPES = tuple(dict.fromkeys(family.model_type for family in FAMILIES.values()))
DENSE = tuple(dict.fromkeys(family.model_type for family in FAMILIES.values() if family.moe is None))
