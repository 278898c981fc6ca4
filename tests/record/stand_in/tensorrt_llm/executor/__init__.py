"""LoRARequest is here, too; not in 0.20."""

from .._stand_in import FAULT, RELEASE, undocumented

if RELEASE >= (0, 21) and FAULT != "no LoRARequest":
    from .request import LoRARequest as LoRARequest

__getattr__ = undocumented("tensorrt_llm.executor")
