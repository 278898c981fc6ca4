"""Servers that speak the JSON of vLLM, llama-server, SGLang and trtllm-serve, with the numbers of our own engine.

They live in the process of the test, on a free port of the loopback. A Fake can be made to misbehave: `change` alters
the JSON of a completion, `instead` sends something else altogether.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import tiny
from refimpl.engines.interface import EngineError, EngineRequest, EngineResponse, Settings
from refimpl.engines.ours import Ours

KINDS = ("vllm", "llama_server", "sglang", "trtllm")
OWNERS = {"vllm": "vllm", "llama_server": "llamacpp", "sglang": "sglang", "trtllm": "tensorrt_llm"}
COMPLETIONS = {"vllm": "/v1/completions", "llama_server": "/completion", "sglang": "/generate"}
COMPLETIONS["trtllm"] = "/v1/completions"
PATIENCE = 300  # seconds for what happens at once on an idle machine: it never decides a test


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In float64, row by row."""
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


class Problem(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Fake(ThreadingHTTPServer):
    """One server of one kind, answering from the embedded model."""

    daemon_threads = True

    def __init__(self, kind: str, adapters: dict[str, Path] | None = None, dynamic: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kind, self.dynamic = kind, dynamic
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.engine, self.lock = Ours(), threading.Lock()
        self.engine.start(Settings(tiny.base_path()))
        self.adapters = dict(adapters or {})  # served name -> folder
        for name, folder in self.adapters.items():
            self.engine.load(name, folder)
        self.responses: dict[object, EngineResponse] = {}
        self.well_behaved()

    def well_behaved(self) -> None:
        """Behave well from now on, and forget earlier requests."""
        self.max_width = 10**9  # tokens of a row that it shows; it refuses more, as vLLM does
        self.change: Callable[[Any], object] = lambda answer: None  # in the JSON of a completion
        self.instead: Callable[[Handler, bytes], None] | None = None  # in place of it
        self.together: threading.Barrier | None = None  # so many completions must be there at once
        self.requests: list[tuple[str, Any, dict[str, str]]] = []  # path, body, headers

    def __enter__(self) -> "Fake":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore it: a client that went away is no news."""

    def numbers(
        self, prompt: list[int], adapter: str | None, n: int, adapter_weights: tuple[tuple[str, float], ...] = ()
    ) -> tuple[list[int], np.ndarray]:
        """The tokens, and the logits of every row."""
        request = EngineRequest(tuple(prompt), adapter, n, adapter_weights)
        key = request, self.adapters.get(adapter or "")
        with self.lock:
            if key not in self.responses:
                try:
                    self.responses[key] = self.engine.run([request])[0]
                except EngineError as error:
                    raise Problem(404, f"The model {adapter!r} does not exist. ({error})") from None
            return list(self.responses[key].token_ids), self.responses[key].logits

    def load(self, name: str, folder: str) -> None:
        """Under a new name, or in place of what is there."""
        if not Path(folder).is_dir():
            raise Problem(404, f"No adapter found for {folder}")
        with self.lock:
            self.engine.load(name, Path(folder))
            self.adapters[name] = Path(folder)

    def unload(self, name: str) -> None:
        """Forget it."""
        with self.lock:
            if self.adapters.pop(name, None) is None:
                raise Problem(404, f"The lora adapter '{name}' cannot be found.")
            self.engine.unload(name)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _serve(self, body: Any) -> None:
        fake = self.server
        fake.requests.append((self.path, body, dict(self.headers)))
        try:
            if self.path != COMPLETIONS[fake.kind]:
                other = self._other(body)
                return self.send(200, (other if isinstance(other, str) else json.dumps(other)).encode())
            if fake.together:
                fake.together.wait(timeout=PATIENCE)
            answer = getattr(self, f"_{fake.kind}")(body)
            fake.change(answer)
            if fake.instead:
                return fake.instead(self, json.dumps(answer).encode())
            self.send(200, json.dumps(answer).encode())
        except Problem as problem:
            self.send(problem.status, json.dumps({"error": {"message": str(problem)}}).encode())

    def _other(self, body: Any) -> Any:
        """Everything but completions."""
        fake, path = self.server, self.path
        if path == "/v1/models":
            base = {"id": "the-base", "owned_by": OWNERS[fake.kind], "root": "somewhere"}
            loras = [{"id": n, "owned_by": OWNERS[fake.kind], "root": str(folder), "parent": "the-base"}
                     for n, folder in fake.adapters.items()]  # fmt: skip
            return {"object": "list", "data": [base] + (loras if fake.kind in ("vllm", "sglang") else [])}
        if fake.kind in ("vllm", "trtllm") and path == "/version":
            return {"version": "0.0.fake"}
        if fake.kind == "vllm" and fake.dynamic and path == "/v1/load_lora_adapter":
            if not body.get("lora_name"):
                raise Problem(400, "Both 'lora_name' and 'lora_path' must be provided.")
            if body["lora_name"] in fake.adapters and not body.get("load_inplace"):
                raise Problem(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
            fake.load(body["lora_name"], body["lora_path"])
            return f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if fake.kind == "vllm" and fake.dynamic and path == "/v1/unload_lora_adapter":
            fake.unload(body["lora_name"])
            return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        if fake.kind == "vllm" and path == "/metrics":
            return 'vllm:cache_config_info{block_size="16",enable_prefix_caching="True"} 1.0'
        if fake.kind == "llama_server" and path == "/lora-adapters":
            return [{"id": i, "path": f"some/where/{n}.gguf", "scale": 1.0} for i, n in enumerate(fake.adapters)]
        if fake.kind == "llama_server" and path == "/props":
            return {"build_info": "b0-fake"}
        if fake.kind == "sglang" and path == "/get_server_info":
            return {"version": "0.0.fake", "enable_lora": fake.dynamic, "disable_radix_cache": False}
        if fake.kind == "sglang" and path == "/load_lora_adapter":
            fake.load(body["lora_name"], body["lora_path"])
            return {"success": True}
        if fake.kind == "sglang" and path == "/unload_lora_adapter":
            fake.unload(body["lora_name"])
            return {"success": True}
        if fake.kind == "sglang" and path == "/flush_cache":
            return "Cache flushed."
        raise Problem(404, "Not Found")

    def _width(self, count: int, rows: np.ndarray) -> int:
        width = rows.shape[1] if count == -1 else count
        if width > self.server.max_width:
            raise Problem(400, f"Requested {count} logprobs, which is greater than max allowed")
        return min(width, rows.shape[1])

    def _vllm(self, body: Any) -> Any:
        adapter = None if body["model"] == "the-base" else body["model"]
        ids, logits = self.server.numbers(body["prompt"], adapter, body["max_tokens"])
        rows, n = log_softmax(logits), len(body["prompt"])
        choice: dict[str, Any] = {"index": 0, "text": "", "logprobs": None, "prompt_logprobs": None}
        choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        if "logprobs" in body:
            width = self._width(body["logprobs"], rows)
            shown = [{f"token_id:{t}": float(row[t]) for t in best(row, width)} for row in rows[n - 1 :]]
            choice["logprobs"] = {"tokens": [f"token_id:{t}" for t in ids], "top_logprobs": shown}
        if "prompt_logprobs" in body:
            width = self._width(body["prompt_logprobs"], rows)
            shown = [{str(t): {"logprob": float(row[t]), "rank": 1, "decoded_token": "?"} for t in best(row, width)}
                    for row in rows[: n - 1]]  # fmt: skip
            choice["prompt_logprobs"] = [None, *shown]
        return {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}

    def _llama_server(self, body: Any) -> Any:
        names = list(self.server.adapters)
        scales = (
            {x["id"]: x["scale"] for x in body["lora"]} if "lora" in body else dict.fromkeys(range(len(names)), 1.0)
        )
        adapter_weights = tuple((names[i], scale) for i, scale in scales.items() if scale)
        ids, logits = self.server.numbers(body["prompt"], None, body["n_predict"], adapter_weights)
        rows = log_softmax(logits)[len(body["prompt"]) - 1 :]
        k = body["n_probs"]
        top = [[{"id": t, "logprob": float(row[t])} for t in best(row, k)] for row in rows]
        shown = [{"id": t, "top_logprobs": row} for t, row in zip(ids, top, strict=True)]
        return {"content": "", "tokens": ids, "stop_type": "limit", "completion_probabilities": shown}

    def _sglang(self, body: Any) -> Any:
        prompt, n = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        ids, logits = self.server.numbers(prompt, body.get("lora_path"), n)
        rows, meta = log_softmax(logits), {}
        if body.get("return_logprob"):
            shown = [[[float(row[t]), int(t), None] for t in best(row, body["top_logprobs_num"])] for row in rows]
            start = body["logprob_start_len"]
            meta = {
                "input_token_logprobs": [[None, t, None] for t in prompt[start:]],
                "input_top_logprobs": [None, *shown[start : len(prompt) - 1]],
                "output_top_logprobs": shown[len(prompt) - 1 :],
                "output_token_logprobs": [[0.0, t, None] for t in ids],
            }
        return {"text": "", "output_ids": ids, "meta_info": meta}

    def _trtllm(self, body: Any) -> Any:
        adapter = None
        if request := body.get("lora_request"):
            adapter = request["lora_name"]
            if adapter not in self.server.adapters:
                self.server.load(adapter, request["lora_path"])
        ids, logits = self.server.numbers(body["prompt"], adapter, body["max_tokens"])
        n = len(body["prompt"])
        choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": ids, "logprobs": None, "context_logits": None}
        if body.get("return_context_logits"):
            if self.server.max_width < logits.shape[1]:
                raise Problem(400, "need to build engine with --gather_context_logits")
            choice["context_logits"] = logits[:n].tolist()
        if body.get("logprobs"):
            rows = log_softmax(logits[n - 1 :])
            chosen = [float(row[t]) for t, row in zip(ids, rows, strict=True)]
            choice["logprobs"] = {"tokens": ["?"] * len(ids), "token_logprobs": chosen, "top_logprobs": []}
        return {"choices": [choice], "prompt_token_ids": [body["prompt"]]}


def best(row: np.ndarray, width: int) -> list[int]:
    """The tokens of the greatest numbers."""
    return [int(t) for t in np.argsort(-row, kind="stable")[:width]]
