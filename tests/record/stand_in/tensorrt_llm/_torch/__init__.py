"""Before 1.0 the PyTorch backend is tensorrt_llm._torch.LLM."""

from .._stand_in import RELEASE, undocumented

if RELEASE < (1, 0):
    from .._llm import TorchLLM as LLM

    __all__ = ["LLM"]

__getattr__ = undocumented("tensorrt_llm._torch")
