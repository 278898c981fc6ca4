"""Count the bytes of a shrink kernel under the checker: python measure.py lora_shrink_v1 1   (1 adapter; or 16)"""

import os
import sys

import numpy as np

from loracle.adapter_slots import LoraWeights
from loracle.cuda import launch
from loracle.errors import LoracleError
from loracle.plans import LoraMapping

os.environ["LORACLE_KERNELS"] = "cpu"  # the bytes are counted there, whatever card there is
TOKENS, D_IN, RANK = 16, 256, 16

if len(sys.argv) != 3 or not sys.argv[2].isdecimal() or not 1 <= int(sys.argv[2]) <= TOKENS:
    print(f"python measure.py KERNEL ADAPTERS: for example lora_shrink_v1 1 (up to {TOKENS})", file=sys.stderr)
    sys.exit(2)
kernel, adapters = sys.argv[1], int(sys.argv[2])
A, B = np.ones((RANK, D_IN), np.float32), np.ones((D_IN, RANK), np.float32)
packed = launch.pack([{slot: LoraWeights(A, B, scale=1.0) for slot in range(adapters)}], [D_IN], "float32")
adapter_ids = np.arange(TOKENS, dtype=np.int32)[:, None] % adapters
mapping = LoraMapping.of(adapter_ids, np.ones((TOKENS, 1)))
x, y = np.ones((TOKENS, D_IN), np.float32), np.zeros((TOKENS, D_IN), np.float32)
try:
    with launch.checked() as launches:
        launch.lora_delta(y, x, packed, mapping, launch=launch.LoraLaunch(shrink=kernel))
except LoracleError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
for argument in ("weights", "x", "Ax"):
    moved = launches[0].moved[argument]
    read = f"{moved.loaded:9,} bytes asked for, {moved.distinct_loaded:8,} different ones"
    print(f"{argument:8} {read}; {moved.stored:,} written")
