import math


def linear(x, W, A, B, alpha, use_rslora):
    r = A.shape[0]
    scale = alpha / math.sqrt(r) if use_rslora else alpha / r
    return x @ W.T + scale * (x @ A.T @ B.T)
