"""Logits of mlx-lm for some token ids: PYTHON job_mlx.py MODEL OUT.npy IDS [ADAPTER]; IDS is a JSON list."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model


def main(folder: str, out: str, ids: str, adapter: str = "") -> None:
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(folder))
    if adapter:
        model = load_adapters(model, adapter)
    np.save(out, np.array(model(mx.array([json.loads(ids)]))[0].astype(mx.float32)))


if __name__ == "__main__":
    main(*sys.argv[1:])
