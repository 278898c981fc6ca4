def backward(x, A, B, scale, dy):
    low, low_gradient = x @ A.T, scale * (dy @ B)
    return low_gradient.T @ x, scale * dy.T @ low, low_gradient @ A
