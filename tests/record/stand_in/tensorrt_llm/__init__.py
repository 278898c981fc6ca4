"""A stand-in for TensorRT-LLM: see README.md beside this package. It computes with refimpl, on a CPU."""

from ._llm import LLM as LLM
from ._llm import SamplingParams as SamplingParams
from ._lora_op import register
from ._stand_in import RELEASE, undocumented

__version__ = ".".join(map(str, RELEASE)) + ".0+stand.in"
__getattr__ = undocumented("tensorrt_llm")
register()
