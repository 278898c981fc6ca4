"""The far end of the pipe of refimpl/engines/worker.py: calls come as JSON, replies go back as JSON and arrays.

This runs in an engine's own environment. It needs Python and NumPy, and nothing of refimpl.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Reply = tuple[Any, dict[str, np.ndarray]]  # a result that JSON can hold, and arrays by name


@dataclass(frozen=True)
class Settings:
    """How the engine is started: the fields of refimpl.engines.interface.Settings that cross the pipe."""

    model: str
    dtype: str
    max_adapters: int
    max_rank: int
    max_length: int
    max_requests: int
    prefix_caching: bool
    chunk: int | None
    kv_tokens: int | None
    options: Mapping[str, str]


def serve_engine(server: Any) -> None:
    """Serve the calls of an engine: start(Settings) and five more methods of the same names."""

    def start(**settings: Any) -> Reply:
        return server.start(Settings(**settings))

    names = ("load", "unload", "run", "reset", "versions")
    serve({"start": start} | {name: getattr(server, name) for name in names})


def serve(calls: Mapping[str, Callable[..., Reply]]) -> None:
    """Serve calls until the pipe is closed. Whatever the engine prints goes to stderr, whoever in it prints it.

    A call is a line: {"call": name, "arguments": {...}}. A reply is a line, {"result": ..., "bytes": n} or {"error":
    text, "bytes": 0}, and then the n bytes of an .npz."""
    commands, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in commands:
        command = json.loads(line)
        body = b""
        try:
            result, arrays = calls[command["call"]](**command["arguments"])
            if arrays:
                file = io.BytesIO()
                np.savez(file, **arrays)  # type: ignore[arg-type]
                body = file.getvalue()
            reply = {"result": result, "bytes": len(body)}
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "bytes": 0}
        replies.write(json.dumps(reply).encode() + b"\n" + body)
        replies.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be saved, and an interpreter with an engine in it takes seconds to end
