"""The CUDA backend: the kernels as an Ops, their launches, and the runners for a GPU or for this CPU."""
