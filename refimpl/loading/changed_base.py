"""PiSSA and OLoRA: adapters that took a part out of the base before they were trained, and put it into A and B.

    PiSSA (Meng et al. 2024)     scale B0 A0 = the first r singular triples of W:  U_r S_r V_r^T
    OLoRA (Büyükakyüz 2024)      scale B0 A0 = scale Q_r R_r, with W = Q R

What they are trained on is W - scale B0 A0, and that base is on no disk: PEFT takes the part out again whenever it
loads the adapter. Here the base stays as it is for everybody, and the adapter carries the part with the opposite sign,
as a pair of rank 2r (what PEFT's path_initial_model_for_weight_conversion writes):

    W - scale B0 A0 + scale B A  =  W + scale [B, -B0] [A; A0]
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..adapter import Adapter, PeftConfig
from ..adapter_slots import scale_of
from ..arrays import Array, Float, to_host, widen
from ..config import EMBED, LM_HEAD, module_name
from ..errors import AdapterError
from ..weights import Base

Pair = tuple[Array, Array]
NEEDS_BASE = (
    "a part of the base went into A and B, and its weights are needed to tell which: --model DIR, in Python "
    "load_adapter(path, model), not model.config; or save it with PEFT's path_initial_model_for_weight_conversion, "
    "which makes plain LoRA of it"
)


def with_base_restored(adapter: Adapter, model: Base) -> Adapter:
    """Return the adapter for the base as it is: every pair of rank 2r, r and alpha scaled so that the scale stays.

    AdapterError for a scale of 0, and for an lm_head whose table is the embedding's, too."""
    config = adapter.config
    taken_out = TAKEN_OUT[config.init_lora_weights or ""]
    lora = {}
    for module, tensors in adapter.lora.items():
        r = len(tensors.A)
        scale = scale_of(config, module, r)
        name = f"{module_name(module)}: init_lora_weights is {config.init_lora_weights!r}"
        if scale == 0:
            raise AdapterError(f"adapter {adapter.name}: {name}, and its scale 0: PEFT divides by it")
        if module == LM_HEAD and model.config.tie_word_embeddings:
            raise AdapterError(
                f"adapter {adapter.name}: {name}, and the base ties it to the embedding, which then changed with it"
            )
        A, B = widen(tensors.A, "float64"), widen(tensors.B, "float64")
        if module == EMBED:  # PEFT takes nothing out of it
            A0, B0 = np.zeros_like(A), np.zeros_like(B)
        else:
            A0, B0 = padded(taken_out(widen(to_host(model.linear(module).weight), "float64"), r, scale), r)
        pair = np.concatenate([A, A0]), np.concatenate([B, -B0], axis=1)
        for x in pair:
            x.flags.writeable = False
        lora[module] = replace(tensors, A=pair[0], B=pair[1])
    return replace(adapter, config=doubled(config), lora=lora)


def pissa(W: Float[Array, "d_out d_in"], r: int, scale: float) -> Pair:
    """Return A0 and B0 with scale B0 A0 = the first r singular triples of W (peft/tuners/lora/layer.py, pissa_init)."""
    outputs, values, inputs = np.linalg.svd(W, full_matrices=False)
    return inputs[:r], outputs[:, :r] * (values[:r] / scale)


def olora(W: Float[Array, "d_out d_in"], r: int, scale: float) -> Pair:
    """Return A0 = R_r and B0 = Q_r with W = Q R, whatever the scale (peft/tuners/lora/layer.py, olora_init)."""
    orthonormal, triangular = np.linalg.qr(W)
    return triangular[:r], orthonormal[:, :r]


TAKEN_OUT: dict[str, Callable[[Array, int, float], Pair]] = {"pissa": pissa, "olora": olora}


def padded(pair: Pair, r: int) -> Pair:
    """Return the pair at rank r: a narrow layer has fewer triples."""
    missing = r - len(pair[0])
    return np.pad(pair[0], ((0, missing), (0, 0))), np.pad(pair[1], ((0, 0), (0, missing)))


def doubled(config: PeftConfig) -> PeftConfig:
    """Return the config with every rank doubled and the alphas that keep the scale what it was."""
    factor = math.sqrt(2) if config.use_rslora else 2.0
    return replace(
        config,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: factor * alpha for name, alpha in config.alpha_pattern.items()},
        init_lora_weights=None,
    )
