"""trtllm-serve (tensorrt_llm/serve/openai_protocol.py and postprocess_handlers.py at NVIDIA/TensorRT-LLM 0076e93).

An adapter is a `lora_request` in every request: a name, a number, a folder as the server sees it. The server loads it
when a request first names it: `load` here only keeps the folder. Since the server identifies it by its number, every
load gets a new one. Fields that it does not know are errors. `detokenize: false` gives ids instead of text.

The rows of produced tokens are of little use: their keys are decoded text, which two tokens may share, so that only
the chosen token's log-probability can be read. The prompt's rows are whole logits: `return_context_logits`, which the
server grants if it was started with what it needs for them.

Written from its sources; not run against a live server, which needs a GPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..interface import EngineRequest
from .client import Client
from .dialect import base, field
from .reading import Completion, parsed, token


class TensorRTLLM:
    """A Dialect (dialect.py)."""

    name = "trtllm"
    mixed = True
    features = frozenset({"rslora", "partial", "mixed_ranks"})
    floor = -9999.0

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        self.client, self.model = client, base(models, model)
        self.requests: dict[str, dict[str, Any]] = {}
        self.count = 0

    def version(self) -> str:
        return field(self.client, "/version", "version")

    def served(self) -> Mapping[str, str]:
        return {name: request["lora_path"] for name, request in self.requests.items()}

    def find(self, name: str) -> str:
        """Take the name for a folder as the server sees it: it has no names of its own."""
        return self._request(name, name)

    def loads(self) -> bool:
        return True

    def load(self, name: str, folder: Path, replace: bool) -> str:
        return self._request(name, str(folder.resolve()))

    def unload(self, served: str) -> None:
        del self.requests[served]

    def flush(self) -> None:
        """Do nothing: there is no endpoint for it."""

    def caches(self) -> bool:
        """Return False: no endpoint says it. The cache is on by default, but a reused block has no context logits."""
        return False

    def complete(
        self, request: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Completion:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "detokenize": False,
            "add_special_tokens": False,
        }
        if width:
            body |= {"return_context_logits": True} if prompt_rows else {"logprobs": 1}
        if adapters:
            body["lora_request"] = self.requests[next(iter(adapters))]
        return parsed(self.client.post("/v1/completions", body), _completion)

    def _request(self, name: str, folder: str) -> str:
        self.count += 1
        served = f"{name}-{self.count}"
        self.requests[served] = {"lora_name": served, "lora_int_id": self.count, "lora_path": folder}
        return served


def _completion(data: Any) -> Completion:
    choice = data["choices"][0]
    ids, logprobs, logits = choice["token_ids"], choice.get("logprobs"), choice.get("context_logits")
    rows = None
    if logprobs is not None:
        rows = [{token(t): x} for t, x in zip(ids, logprobs["token_logprobs"], strict=True)]
    return Completion(
        ids, rows, None if logits is None else [list(row) for row in logits], _echo(data.get("prompt_token_ids"))
    )


def _echo(ids: Any) -> list[int] | None:
    """The prompt, of which there may be a list of one."""
    return ids[0] if ids and isinstance(ids[0], list) else ids
