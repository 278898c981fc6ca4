"""vLLM's own additions to the completions of OpenAI (vllm/entrypoints/openai/completion/protocol.py, 0.32.0).

An adapter is a model. `logprobs` and `prompt_logprobs` may be -1, all of the vocabulary, if the server was started with
--max-logprobs -1 (else 20 at most); `return_tokens_as_token_ids` names tokens "token_id:5" where OpenAI has their text,
and `return_token_ids` adds the ids. Sampling parameters that a request leaves out come from the model's
generation_config.json: therefore every one of them is sent. What is -inf comes as -9999 (completion/serving.py). A
server that would write NaN into JSON responds with 500.

/v1/load_lora_adapter and /v1/unload_lora_adapter exist with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, /reset_prefix_cache
with VLLM_SERVER_DEV_MODE=1. A request with prompt_logprobs never reads the prefix cache (vllm/v1/request.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..interface import EngineRequest
from .client import BadResponse, Client, Refused
from .dialect import base, field, find, served_models
from .reading import Completion, parsed, token

LOAD = "/v1/load_lora_adapter"

# Greedy, and nothing of what a generation_config.json may set.
NEUTRAL = {
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


class VLLM:
    """A Dialect (dialect.py)."""

    name = "vllm"
    mixed = True
    features = frozenset({"rslora", "partial", "mixed_ranks"})  # of every version; the largest rank is not reported
    floor = -9999.0

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        self.client, self.vocab, self.model = client, vocab, base(models, model)

    def version(self) -> str:
        return field(self.client, "/version", "version")

    def served(self) -> Mapping[str, str]:
        return served_models(self.client)

    def find(self, name: str) -> str:
        return find(self.served(), name)

    def loads(self) -> bool:
        """Send a request without a name: it is refused where loading exists, and 404 where it does not."""
        try:
            self.client.post(LOAD, {}, text=True)
        except Refused as error:
            return error.status not in (404, 405)
        raise BadResponse("/v1/load_lora_adapter accepts an adapter without a name")

    def load(self, name: str, folder: Path, replace: bool) -> str:
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self.client.post(LOAD, body | ({"load_inplace": True} if replace else {}), text=True)
        except Refused:
            if not replace:
                raise
            self.unload(name)  # a version without load_inplace says that the name is taken
            self.client.post(LOAD, body, text=True)
        return name

    def unload(self, served: str) -> None:
        self.client.post("/v1/unload_lora_adapter", {"lora_name": served}, text=True)

    def flush(self) -> None:
        try:
            self.client.post("/reset_prefix_cache", {}, text=True)
        except Refused as error:
            if error.status != 404:
                raise

    def caches(self) -> bool:
        """Read it from the labels of vllm:cache_config_info in /metrics."""
        try:
            return 'enable_prefix_caching="True"' in self.client.get("/metrics", text=True)
        except Refused:
            return False

    def complete(
        self, request: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Completion:
        body: dict[str, Any] = {
            "model": next(iter(adapters), self.model),
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_new_tokens,
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **NEUTRAL,
        }
        if width:
            body["logprobs"] = -1 if width == self.vocab else width
        if width and prompt_rows:
            body["prompt_logprobs"] = body["logprobs"]
        return parsed(self.client.post("/v1/completions", body), _completion)


def _completion(data: Any) -> Completion:
    choice = data["choices"][0]
    logprobs = choice.get("logprobs")
    ids = choice.get("token_ids")  # which an older version leaves out
    rows = None
    if logprobs:
        rows = [*_prompt(choice.get("prompt_logprobs")), *_produced(logprobs["top_logprobs"])]
    return Completion(logprobs["tokens"] if ids is None else ids, rows, echo=choice.get("prompt_token_ids"))


def _prompt(rows: Any) -> list[dict[int, Any]]:
    """The rows from the second token on: nothing predicts the first one, which has null."""
    return [{token(t): x["logprob"] for t, x in row.items()} for row in (rows or [None])[1:]]


def _produced(rows: Any) -> list[dict[int, Any]]:
    return [{token(t): x for t, x in row.items()} for row in rows]
