"""Logits of mlx-lm with each of several adapters: PYTHON job_mlx_limits.py MODEL OUT IDS ADAPTER...

IDS is a JSON list. OUT gets NAME.npy of each adapter folder, or NAME.error with what mlx-lm says."""

import json
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model


def main(folder: str, out: str, ids: str, *adapters: str) -> None:
    mx.set_default_device(mx.cpu)
    warnings.simplefilter("ignore")
    for adapter in adapters:
        name = Path(adapter).name
        try:
            model, _ = load_model(Path(folder))
            rows = load_adapters(model, adapter)(mx.array([json.loads(ids)]))[0]
            np.save(Path(out) / f"{name}.npy", np.array(rows.astype(mx.float32)))
        except Exception as error:
            (Path(out) / f"{name}.error").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
