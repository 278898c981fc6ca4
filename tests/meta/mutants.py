"""What only these tests need: numbers that are rounded where they should not be, or are not where they should, and an
engine that falls over. Real bugs are in refimpl/oracle/mutants/. Nothing is patched.
"""

import dataclasses

import numpy as np

from refimpl import NUMPY, Ops, Precision
from refimpl.arrays import Array
from refimpl.attention import attention
from refimpl.config import Module
from refimpl.kv_cache import write_kv
from refimpl.layers import linear
from refimpl.lora import AdapterSlots, lora_delta
from refimpl.oracle.bugs import all_mutants


def table(name: str) -> Ops:
    """A mutant by its name: of the zoo, or one of these."""
    zoo = all_mutants()
    return zoo[name].make() if name in zoo else globals()[name]


def but(**steps: object) -> Ops:
    """NUMPY with these steps replaced."""
    return dataclasses.replace(NUMPY, **steps)


# A block that is in use is handed out again. Blocks are then counted wrongly, and an engine without the watch of
# tests/serving.py falls over before it answers: no mutant of the zoo, whose every table answers.
block_in_use_evicted = but(
    select_victim=lambda last_used, ref_counts: min(last_used, key=last_used.__getitem__, default=None)
)


# Rounding.


def at(p: Precision, **points: str) -> Precision:
    """Some points of p changed, the others kept."""
    return dataclasses.replace(p, **points)


rank_not_rounded = but(lora_delta=lambda *call: lora_delta(*call[:5], at(call[5], lora_rank=call[5].compute)))

kv_not_rounded = but(write_kv=lambda *call: write_kv(*call[:5], at(call[5], kv=call[5].compute)))

probabilities_not_rounded = but(attention=lambda *call: attention(*call[:5], at(call[5], probabilities="float32")))

attention_not_rounded = but(attention=lambda *call: attention(*call[:5], at(call[5], attention=call[5].compute)))

always_bfloat16 = but(linear=lambda x, w, b, p: linear(x, w, b, at(p, linear="bfloat16")))


def _in_float32(y: Array, x: Array, module: Module, adapters: AdapterSlots, *rest) -> None:
    if adapters.at(module):
        narrow = y.astype(np.float32)
        lora_delta(narrow, x, module, adapters, *rest)
        y[:] = narrow


sums_in_float32 = but(lora_delta=_in_float32)


def _wrong_half_type(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
    read = weight.view(np.float16).astype(np.float32) if weight.dtype.itemsize == 2 else weight
    return linear(x, read, bias, p)


bfloat16_read_as_float16 = but(linear=_wrong_half_type)
