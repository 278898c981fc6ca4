"""Right in another way: these must pass."""

import numpy as np


def token_by_token(x, W, A, B, alpha, use_rslora):
    scale = alpha / len(A) ** (0.5 if use_rslora else 1)
    return np.stack([W @ row + scale * (B @ (A @ row)) for row in x])


def scale_in_the_middle(x, W, A, B, alpha, use_rslora):
    y = x @ W.T
    low = (alpha * x) @ A.T / (np.sqrt(B.shape[1]) if use_rslora else B.shape[1])
    y += low @ B.T
    return y


def einsum(x, W, A, B, alpha, use_rslora):
    scale = alpha / (len(A) ** 0.5 if use_rslora else len(A))
    low = np.einsum("ti,ri->tr", x, A)
    return np.einsum("ti,oi->to", x, W) + scale * np.einsum("tr,or->to", low, B)


def python_lists(x, W, A, B, alpha, use_rslora):
    scale = alpha / (len(A) ** 0.5 if use_rslora else len(A))

    def product(matrix, vector):
        return [sum(x * y for x, y in zip(row, vector, strict=True)) for row in matrix]

    return [
        [base + scale * delta for base, delta in zip(product(W, row), product(B, product(A, row)), strict=True)]
        for row in x
    ]


MUST_PASS = [token_by_token, scale_in_the_middle, einsum, python_lists]
