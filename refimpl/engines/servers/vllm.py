"""vLLM's own additions to the completions of OpenAI (vllm/entrypoints/openai/completion/protocol.py, 0.32.0).

An adapter is a model. `logprobs` and `prompt_logprobs` may be -1, all of the vocabulary, if the server was started with
--max-logprobs -1 (else 20 at most); `return_tokens_as_token_ids` names tokens "token_id:5" where OpenAI has their text,
and `return_token_ids` adds the ids. Sampling that is not asked for comes from the model's generation_config.json, so
that all of it is asked for. What is -inf comes as -9999 (completion/serving.py). A server that writes NaN into JSON
answers 500.

/v1/load_lora_adapter and /v1/unload_lora_adapter exist with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, /reset_prefix_cache
with VLLM_SERVER_DEV_MODE=1. A request with prompt_logprobs never reads the prefix cache (vllm/v1/request.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..interface import EngineRequest
from .client import BadAnswer, Client, Refused
from .dialect import base, field, find, served_models
from .reading import Said, token, understood

LOAD = "/v1/load_lora_adapter"

# Greedy, and nothing of what a generation_config.json may ask for.
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
    features = frozenset({"rslora", "partial", "mixed_ranks"})  # of every version; how large a rank may be is not told
    floor = -9999.0

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        self.client, self.vocab, self.model = client, vocab, base(models, model)

    def version(self) -> str:
        return field(self.client, "/version", "version")

    def served(self) -> Mapping[str, str]:
        return served_models(self.client)

    def find(self, wanted: str) -> str:
        return find(self.served(), wanted)

    def loads(self) -> bool:
        """A request without a name is refused where loading exists, and not found where it does not."""
        try:
            self.client.post(LOAD, {}, text=True)
        except Refused as error:
            return error.status not in (404, 405)
        raise BadAnswer("/v1/load_lora_adapter accepts an adapter without a name")

    def load(self, name: str, folder: Path, known: bool) -> str:
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self.client.post(LOAD, body | ({"load_inplace": True} if known else {}), text=True)
        except Refused:
            if not known:
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
        """/metrics says so in the labels of vllm:cache_config_info."""
        try:
            return 'enable_prefix_caching="True"' in self.client.get("/metrics", text=True)
        except Refused:
            return False

    def ask(
        self, ask: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Said:
        body: dict[str, Any] = {
            "model": next(iter(adapters), self.model),
            "prompt": list(ask.prompt_ids),
            "max_tokens": ask.max_new_tokens,
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **NEUTRAL,
        }
        if width:
            body["logprobs"] = -1 if width == self.vocab else width
        if width and prompt_rows:
            body["prompt_logprobs"] = body["logprobs"]
        return understood(self.client.post("/v1/completions", body), _said)


def _said(found: Any) -> Said:
    choice = found["choices"][0]
    told = choice.get("logprobs")
    ids = choice.get("token_ids")  # which an older version leaves out
    return Said(
        token_ids=told["tokens"] if ids is None else ids,
        rows=[*_prompt(choice.get("prompt_logprobs")), *_produced(told["top_logprobs"])] if told else None,
        echo=choice.get("prompt_token_ids"),
    )


def _prompt(rows: Any) -> list[dict[int, Any]]:
    """From the second token on: nothing predicts the first one, which has null."""
    return [{token(t): x["logprob"] for t, x in row.items()} for row in (rows or [None])[1:]]


def _produced(rows: Any) -> list[dict[int, Any]]:
    return [{token(t): x for t, x in row.items()} for row in rows]
