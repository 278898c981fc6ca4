"""Wrong pairs of arrays: each is easy to write, or is what a version of TensorRT-LLM did."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exercise import Mistake

Lora = Mapping[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]
IDS = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4, "gate_proj": 5, "up_proj": 7, "down_proj": 6}


def scale_of(alpha: float, r: int, use_rslora: bool) -> float:
    return alpha / math.sqrt(r) if use_rslora else alpha / r


def flat(A: NDArray[Any], B: NDArray[Any], scale: float) -> list[NDArray[Any]]:
    return [A.reshape(-1), (np.float32(scale) * B).reshape(-1)]


def config_row(name: str, layer: int, r: int) -> list[int]:
    return [IDS[name], layer, r]


def pair_by(
    scale: Callable[[float, int, bool], float] = scale_of,
    row: Callable[[NDArray[Any], NDArray[Any], float], list[NDArray[Any]]] = flat,
    config: Callable[[str, int, int], list[int]] = config_row,
    width: Callable[[list[int]], int] = max,
    kind: Any = np.int32,
) -> Callable[[Lora, float, bool], Any]:
    """Return a to_pair of which one part may be wrong."""

    def to_pair(lora: Lora, lora_alpha: float, use_rslora: bool) -> Any:
        rows = [np.concatenate(row(A, B, scale(lora_alpha, len(A), use_rslora))) for A, B in lora.values()]
        weights = np.zeros((1, len(rows), width([len(values) for values in rows])), np.float32)
        for target, values in zip(weights[0], rows, strict=True):
            target[: len(values)] = values[: len(target)]
        numbers = [config(name, layer, len(A)) for (layer, name), (A, _) in lora.items()]
        return weights, np.array([numbers], kind)

    return to_pair


GATE_AND_UP = {"gate_proj": 7, "up_proj": 5}

MISTAKES = (
    Mistake(
        "no_scale",
        "the executor multiplies by B and by nothing else: the scale has to be in it.",
        pair_by(scale=lambda alpha, r, use_rslora: 1.0),
        ("https://github.com/NVIDIA/TensorRT-LLM/issues/2022",),
    ),
    Mistake(
        "rslora_ignored",
        "use_rslora says what the scale is: alpha over the square root of r.",
        pair_by(scale=lambda alpha, r, use_rslora: alpha / r),
        ("https://github.com/NVIDIA/TensorRT-LLM/issues/1668",),
    ),
    Mistake(
        "alpha_for_alpha_over_r",
        "alpha is not the scale: it is divided by r, or by its square root.",
        pair_by(scale=lambda alpha, r, use_rslora: alpha),
    ),
    Mistake(
        "scale_in_A",
        "B A is the same, and the pair is not: hf_lora_convert.py puts the scale into B.",
        pair_by(row=lambda A, B, scale: flat(np.float32(scale) * A, B, 1.0)),
    ),
    Mistake(
        "gate_and_up_by_their_names",
        "mlp_gate is not gate_proj: the branch with the SiLU is mlp_h_to_4h there.",
        pair_by(config=lambda name, layer, r: [GATE_AND_UP.get(name, IDS[name]), layer, r]),
    ),
    Mistake(
        "A_by_columns",
        "A lies row by row: its first d_in numbers are its first row.",
        pair_by(row=lambda A, B, scale: flat(A.T, B, scale)),
    ),
    Mistake(
        "B_by_columns",
        "B lies row by row: its first r numbers are its first row.",
        pair_by(row=lambda A, B, scale: flat(A, B.T, scale)),
    ),
    Mistake(
        "B_first",
        "A comes first in a row.",
        pair_by(row=lambda A, B, scale: flat(A, B, scale)[::-1]),
    ),
    Mistake(
        "cut_to_the_shortest",
        "the width is that of the longest row; shorter ones are filled up.",
        pair_by(width=min),
    ),
    Mistake(
        "rank_before_layer",
        "a row of the config is the module, then the layer, then the rank.",
        pair_by(config=lambda name, layer, r: [IDS[name], r, layer]),
    ),
    Mistake(
        "config_in_int64",
        "the executor reads the config as int32, four bytes a number.",
        pair_by(kind=np.int64),
    ),
)
