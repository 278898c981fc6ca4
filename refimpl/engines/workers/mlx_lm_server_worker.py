"""mlx-lm's server at the end of a pipe, on a CPU: PYTHON mlx_lm_server_worker.py.

`mlx_lm server` runs in a process of its own. A request names a folder with an adapter, and when that is another one
than before, the server loads the base anew and the adapter into it; requests of one adapter are a batch. Prompts are
text, so the base has the tokenizer of letters.py. Of each produced token there are the likeliest eleven.
"""

import contextlib
import http.client
import itertools
import json
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from letters import ids_of, text_of, write_tokenizer
from serve_pipe import Reply, Settings, serve_engine

WIDTH = 11  # tokens of a row: it grants no more
READY = 300  # seconds that it may take to start
CACHED = 10  # prompts, with prefix caching: what it keeps unless told otherwise


class Server:
    """One server with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Write the base in float32, and start a server with it; return the size of the vocabulary."""
        base = Path(settings.model)
        config = json.loads((base / "config.json").read_text("utf-8"))
        self.vocab_size = int(config["vocab_size"])
        self.scratch = tempfile.TemporaryDirectory()
        self.base = Path(self.scratch.name) / "base"
        write_base(base, self.base, config)
        self.max_requests, self.options = settings.max_requests, settings.options
        chunk = ["--prefill-step-size", str(settings.chunk)] if settings.chunk else []
        cached = str(CACHED if settings.prefix_caching else 0)
        self.arguments = ["--model", str(self.base), "--prompt-cache-size", cached, "--log-level", "WARNING", *chunk]
        self.counter = itertools.count()
        self.folders: dict[str, Path] = {}
        self.open()
        return self.vocab_size, {}

    def open(self) -> None:
        """Start it, and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "mlx_lm", "server", *self.arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(command)
        end = time.monotonic() + READY
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"the server ended with {self.process.wait()}, before it answered anything")
            time.sleep(0.05)

    def healthy(self) -> bool:
        """Does it answer that it is well?"""
        try:
            with self.response("GET", "/health") as response:
                return response.status == 200
        except OSError:
            return False

    @contextlib.contextmanager
    def response(self, method: str, path: str, body: str | None = None) -> Iterator[http.client.HTTPResponse]:
        """The response to a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body)
            yield connection.getresponse()
        finally:
            connection.close()

    def load(self, name: str, folder: str) -> Reply:
        """Keep the folder, of mlx-lm's own form, under the name: in a place where none was before, as the server knows
        an adapter by its path; with folders=in-place in that of its name."""
        place = name if self.options.get("folders") == "in-place" else f"{name}-{next(self.counter)}"
        target = Path(self.scratch.name) / place
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        write_as_float32(Path(folder), target)
        shutil.copy(Path(folder) / "adapter_config.json", target)
        self.folders[name] = target
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name."""
        del self.folders[name]
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters."""
        self.folders = {}
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Send all at once; return the token ids of each, and as rows_i its log-probabilities [produced, vocab], NaN
        where they are not shown. A server that is not well after that is replaced."""
        with ThreadPoolExecutor(min(len(requests), self.max_requests)) as threads:
            served = list(threads.map(self.serve, requests))
        if not self.healthy():
            self.process.kill()
            self.process.wait()
            self.open()
        arrays = {f"rows_{i}": rows for i, (_, rows) in enumerate(served)}
        return {"responses": [response for response, _ in served]}, arrays

    def serve(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """Send it; return its token ids or what is wrong, and its rows."""
        names, cancelled = [name for name, _ in request["adapters"]], request["cancel_after"] is not None
        body = {
            "prompt": text_of(request["prompt_ids"]),
            "max_tokens": request["max_new_tokens"],
            "temperature": 0.0,
            "top_logprobs": WIDTH,
            "stream": cancelled,
            **({} if self.options.get("model") == "default" else {"model": str(self.base)}),
            **({"adapters": str(self.folders[names[0]])} if names else {}),
        }
        try:
            with self.response("POST", "/v1/completions", json.dumps(body)) as response:
                if response.status != 200:
                    return failure(f"HTTP {response.status}: {json.loads(response.read())['error']}"), np.zeros((0, 0))
                if cancelled:
                    return {"token_ids": first_tokens(response, request["cancel_after"])}, np.zeros(
                        (0, self.vocab_size)
                    )
                shown = json.loads(response.read())["choices"][0]["logprobs"]["content"]
        except (OSError, http.client.HTTPException) as error:
            return failure(f"{type(error).__name__}: {error}"), np.zeros((0, 0))
        rows = np.full((len(shown), self.vocab_size), np.nan)
        for row, token in zip(rows, shown, strict=True):
            for one in token["top_logprobs"]:
                row[one["id"]] = one["logprob"]
        return {"token_ids": [int(np.nanargmax(row)) for row in rows]}, rows

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("mlx", "mlx-lm", "transformers")}
        return {"python": platform.python_version(), **packages}, {}


def failure(what: str) -> dict[str, Any]:
    """A response that is an error."""
    return {"token_ids": [], "error": what}


def first_tokens(response: http.client.HTTPResponse, count: int) -> list[int]:
    """Read so many tokens of a stream: whoever then hangs up has cancelled."""
    ids: list[int] = []
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if len(ids) >= count or data == "[DONE]":
            break
        if line.startswith(b"data: "):
            ids += ids_of(json.loads(data)["choices"][0]["text"])
    return ids[:count]


def write_base(base: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Write the base in float32, without a token that ends a text, and with the tokenizer of letters.py."""
    folder.mkdir()
    write_as_float32(base, folder)
    without = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(without), "utf-8")
    write_tokenizer(folder, config["vocab_size"], {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_as_float32(source: Path, target: Path) -> None:
    """Write the folder's safetensors: mlx-lm computes in the type that a file has."""
    import mlx.core

    mlx.core.set_default_device(mlx.core.cpu)
    for file in source.glob("*.safetensors"):
        tensors = {name: array.astype(mlx.core.float32) for name, array in mlx.core.load(str(file)).items()}
        mlx.core.save_safetensors(str(target / file.name), tensors)


if __name__ == "__main__":
    serve_engine(Server())
