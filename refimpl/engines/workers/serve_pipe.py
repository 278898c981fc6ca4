"""The far end of the pipe of refimpl/engines/worker.py: calls come as JSON, answers go back as JSON and arrays.

This runs in an engine's own environment. It needs Python and NumPy, and nothing of refimpl.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Reply = tuple[Any, dict[str, np.ndarray]]  # what can be said in JSON, and arrays by name


def serve(calls: Mapping[str, Callable[..., Reply]]) -> None:
    """Answer calls until the pipe is closed. Whatever the engine prints goes to stderr, whoever in it prints it.

    A call is a line: {"call": name, "arguments": {...}}. An answer is a line, {"result": ..., "bytes": n} or {"error":
    text, "bytes": 0}, and then the n bytes of an .npz."""
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in commands:
        asked = json.loads(line)
        body = b""
        try:
            result, arrays = calls[asked["call"]](**asked["arguments"])
            if arrays:
                file = io.BytesIO()
                np.savez(file, **arrays)  # type: ignore[arg-type]
                body = file.getvalue()
            reply = {"result": result, "bytes": len(body)}
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "bytes": 0}
        answers.write(json.dumps(reply).encode() + b"\n" + body)
        answers.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be saved, and an interpreter with an engine in it takes seconds to end
