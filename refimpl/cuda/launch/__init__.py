"""One function per kernel: the plan is checked, then grid, block and arguments as they are, on a GPU or on a CPU.

Arrays lie as the kernels read them: contiguous, in the kernel's own type (`stored` makes them so; bfloat16 is the upper
half of a float32, kept as uint16). What a kernel computes, and why in that way, stands at the head of its .cu file; a
GPU checks nothing, so whatever a plan could do wrong is an error here, before the launch.
"""

from .attention import attention, write_kv
from .layers import embed, layer_norm, mlp_activation, rms_norm, rope
from .lora import MAX_RANK, Kernel, LoraLaunch, PackedLora, choose, lora_delta, pack
from .paged_lora import page
from .start import STORED, checked, recorded, stored, widened

__all__ = [
    "MAX_RANK",
    "STORED",
    "Kernel",
    "LoraLaunch",
    "PackedLora",
    "attention",
    "checked",
    "choose",
    "embed",
    "layer_norm",
    "lora_delta",
    "mlp_activation",
    "pack",
    "page",
    "recorded",
    "rms_norm",
    "rope",
    "stored",
    "widened",
    "write_kv",
]
