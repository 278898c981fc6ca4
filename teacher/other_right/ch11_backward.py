"""Right in another way: these must pass."""

import numpy as np


def token_by_token(x, A, B, scale, dy):
    dA, dB, dx = np.zeros_like(A), np.zeros_like(B), np.zeros_like(x)
    for t in range(len(x)):
        dA += scale * np.outer(B.T @ dy[t], x[t])
        dB += scale * np.outer(dy[t], A @ x[t])
        dx[t] = scale * A.T @ (B.T @ dy[t])
    return dA, dB, dx


def einsum(x, A, B, scale, dy):
    return [
        scale * np.einsum("to,or,ti->ri", dy, B, x),
        scale * np.einsum("to,ri,ti->or", dy, A, x),
        scale * np.einsum("to,or,ri->ti", dy, B, A),
    ]


def through_the_whole_weight(x, A, B, scale, dy):
    dW = scale * dy.T @ x  # of W = B A, if it were one matrix
    return B.T @ dW, dW @ A.T, scale * dy @ (B @ A)


MUST_PASS = [token_by_token, einsum, through_the_whole_weight]
