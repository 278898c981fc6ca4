"""From 1.0 on the TensorRT backend is here."""

from ._stand_in import only, undocumented

only((1, 0), (9, 9), __name__)


class LLM:
    """No part of what is recorded."""

    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("the stand-in has no TensorRT backend")


__getattr__ = undocumented("tensorrt_llm._tensorrt_engine")
