"""Lab F, a right answer."""

import math

import numpy as np

NUMBERS = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4, "gate_proj": 5, "down_proj": 6, "up_proj": 7}


def to_pair(lora, lora_alpha, use_rslora):
    config, rows = [], []
    for (layer, name), (A, B) in sorted(lora.items()):
        r = len(A)
        scale = lora_alpha / (math.sqrt(r) if use_rslora else r)
        config.append([NUMBERS[name], layer, r])
        rows.append(np.concatenate([A.ravel(), (scale * B).ravel()]))
    weights = np.zeros((1, len(rows), max(map(len, rows))), np.float32)
    for i, row in enumerate(rows):
        weights[0, i, : len(row)] = row
    return weights, np.array([config], np.int32)
