"""An engine that fails as the first token of a prompt says. test_hosted.py starts it as any worker is started."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "refimpl" / "engines" / "workers"))
from serve_pipe import Reply, serve

VOCAB = 7
WELL, DIE, HANG, CHATTER, NAN, INFINITE, FEW_ROWS, NARROW, FEW_TOKENS, RAISE, NO_IDS, NO_ROWS, FEW_ANSWERS, THINK = (
    range(14)
)


def start(**settings: Any) -> Reply:
    if settings["options"].get("refuses"):
        raise ValueError("this model\nis not for me")
    return VOCAB, {}


def load(name: str, folder: str) -> Reply:
    return None, {}


def unload(name: str) -> Reply:
    return None, {}


def reset() -> Reply:
    return None, {}


def versions() -> Reply:
    return {"fake": "1", "offline": os.environ["HF_HUB_OFFLINE"]}, {}


def run(requests: Sequence[Mapping[str, Any]]) -> Reply:
    responses: list[Any] = []
    arrays = {}
    for i, request in enumerate(requests):
        what, new = request["prompt_ids"][0], request["max_new_tokens"]
        rows = np.full((len(request["prompt_ids"]) + new - 1, VOCAB), 0.5, np.float32)
        if what == DIE:
            print("out of memory, says the engine", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)
        if what == THINK:
            print("thinking", file=sys.stderr, flush=True)
        if what == HANG:
            time.sleep(3600)
        if what == CHATTER:
            print("INFO: a banner on stdout", flush=True)
            os.write(1, b"\x00{ more of it\n")
        if what == NAN:
            rows[1, 3] = np.nan
        if what == INFINITE:
            rows[-1, 0] = np.inf
        if what == FEW_ROWS:
            rows = rows[:-2]
        if what == NARROW:
            rows = rows[:, 1:]
        if what == RAISE:
            raise RuntimeError("CUDA error")
        arrays[f"rows_{i}"] = rows
        responses.append({"token_ids": [0] * (new - 1 if what == FEW_TOKENS else new)})
        if what == NO_IDS:
            responses[-1] = "sorry"
        if what == NO_ROWS:
            del arrays[f"rows_{i}"]
        if what == FEW_ANSWERS:
            responses.pop()
    return {"responses": responses, "adapters": [request["adapters"] for request in requests]}, arrays


if __name__ == "__main__":
    serve({call.__name__: call for call in (start, load, unload, reset, versions, run)})
