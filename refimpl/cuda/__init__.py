"""The CUDA backend: the kernels as a table of steps, their launches, and the runners for a GPU or for this CPU."""
