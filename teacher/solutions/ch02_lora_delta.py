import numpy as np


def lora_delta(y, x, A, B, scale, adapter_ids):
    for i in range(len(A)):
        rows = np.flatnonzero(adapter_ids == i)
        y[rows] += scale[i] * (x[rows] @ A[i].T @ B[i].T)
