"""torch_to_numpy, whose bfloat16 is a dtype of two bytes that says in its metadata what it is."""

import numpy as np
import torch

from ._stand_in import undocumented

np_bfloat16 = np.dtype("V2", metadata={"dtype": "bfloat16"})


def torch_to_numpy(x: torch.Tensor) -> np.ndarray:
    """A tensor as the array that TensorRT-LLM saves."""
    if x.dtype != torch.bfloat16:
        return x.cpu().numpy()
    return x.view(torch.int16).cpu().numpy().view(np_bfloat16)


__getattr__ = undocumented("tensorrt_llm._utils")
