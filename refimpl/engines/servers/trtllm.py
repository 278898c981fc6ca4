"""trtllm-serve (tensorrt_llm/serve/openai_protocol.py and postprocess_handlers.py at NVIDIA/TensorRT-LLM 0076e93).

An adapter is a `lora_request` in every request: a name, a number, a folder as the server sees it. It is loaded when it
is first asked for, so that loading here is only remembering; and since the server knows it by its number, every load
gets a new one. Fields that it does not know are errors. `detokenize: false` gives ids instead of text.

The rows of produced tokens are no good: their names are decoded text, in which two tokens may be one, so that only
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
from .reading import Said, token, understood


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

    def find(self, wanted: str) -> str:
        """It has no names: what it has is a folder of its own, which is loaded when it is asked for."""
        return self._request(wanted, wanted)

    def loads(self) -> bool:
        return True

    def load(self, name: str, folder: Path, known: bool) -> str:
        return self._request(name, str(folder.resolve()))

    def unload(self, served: str) -> None:
        del self.requests[served]

    def flush(self) -> None:
        """Nothing: there is no endpoint for it."""

    def caches(self) -> bool:
        """Nothing tells. Its cache is on unless it was started otherwise, but a reused block has no context logits."""
        return False

    def ask(
        self, ask: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Said:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(ask.prompt_ids),
            "max_tokens": ask.max_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "detokenize": False,
            "add_special_tokens": False,
        }
        if width:
            body |= {"return_context_logits": True} if prompt_rows else {"logprobs": 1}
        if adapters:
            body["lora_request"] = self.requests[next(iter(adapters))]
        return understood(self.client.post("/v1/completions", body), _said)

    def _request(self, name: str, folder: str) -> str:
        self.count += 1
        served = f"{name}-{self.count}"
        self.requests[served] = {"lora_name": served, "lora_int_id": self.count, "lora_path": folder}
        return served


def _said(found: Any) -> Said:
    choice = found["choices"][0]
    ids, told, logits = choice["token_ids"], choice.get("logprobs"), choice.get("context_logits")
    return Said(
        ids,
        None if told is None else [{token(t): x} for t, x in zip(ids, told["token_logprobs"], strict=True)],
        None if logits is None else [list(row) for row in logits],
        _echo(found.get("prompt_token_ids")),
    )


def _echo(ids: Any) -> list[int] | None:
    """The prompt, of which there may be a list of one."""
    return ids[0] if ids and isinstance(ids[0], list) else ids
