"""SGLang's native /generate (docs.sglang.io: sampling_params, lora; python/sglang/srt/managers/io_struct.py).

Its completions in OpenAI's form have the text of a token where we need its id; /generate has [log-probability, id,
text]. The tokens of a row are a torch.topk, which goes up to the whole vocabulary. An adapter is `lora_path`, a name
from --lora-paths or from /load_lora_adapter, which exists in every server that has LoRA enabled. The first token of
a prompt has no row, or None. Rows are shown from logprob_start_len on; what is before that may come from its cache.

Written from its documentation and sources; not run against a live server, which needs a GPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..interface import EngineRequest
from .client import BadResponse, Client, Refused
from .dialect import find, served_models
from .reading import Completion, parsed, token


class SGLang:
    """A Dialect (dialect.py)."""

    name = "sglang"
    mixed = True
    features = frozenset({"rslora", "partial", "mixed_ranks"})
    floor = float("-inf")

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        self.client = client

    def version(self) -> str:
        return str(self._info().get("version", "unknown"))

    def served(self) -> Mapping[str, str]:
        return served_models(self.client)

    def find(self, name: str) -> str:
        return find(self.served(), name)

    def loads(self) -> bool:
        return bool(self._info().get("enable_lora"))

    def load(self, name: str, folder: Path, replace: bool) -> str:
        if replace:
            self.unload(name)
        self._change("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        return name

    def unload(self, served: str) -> None:
        self._change("/unload_lora_adapter", {"lora_name": served})

    def flush(self) -> None:
        self.client.post("/flush_cache", {}, text=True)

    def caches(self) -> bool:
        return not self._info().get("disable_radix_cache", False)

    def complete(
        self, request: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Completion:
        body: dict[str, Any] = {
            "input_ids": list(request.prompt_ids),
            "sampling_params": {"temperature": 0, "max_new_tokens": request.max_new_tokens, "ignore_eos": True},
        }
        if adapters:
            body["lora_path"] = next(iter(adapters))
        if width:
            body |= {"return_logprob": True, "top_logprobs_num": width, "return_text_in_logprobs": False}
            body["logprob_start_len"] = 0 if prompt_rows else len(request.prompt_ids) - 1
        before = len(request.prompt_ids) - 1 if prompt_rows else 0
        return parsed(self.client.post("/generate", body), lambda data: _completion(data, width, before))

    def _info(self) -> dict[str, Any]:
        """What the server was started with. /get_server_info became /server_info."""
        try:
            info = self.client.get("/server_info")
        except Refused as error:
            if error.status != 404:
                raise
            info = self.client.get("/get_server_info")
        if not isinstance(info, dict):
            raise BadResponse(f"GET /server_info at {self.client.url}: no object", info)
        return info

    def _change(self, path: str, body: dict[str, Any]) -> None:
        reply = self.client.post(path, body)
        if not isinstance(reply, dict) or reply.get("success") is not True:
            raise BadResponse(f"POST {path} at {self.client.url}: {reply}", reply)


def _completion(data: Any, width: int, before: int) -> Completion:
    """before: how many rows of the prompt were requested."""
    meta = data["meta_info"]
    ids = data.get("output_ids")  # which an older version leaves out
    if ids is None:
        ids = [entry[1] for entry in meta["output_token_logprobs"]]
    if not width:
        return Completion(ids)
    prompt = (meta.get("input_top_logprobs") or [])[-before:] if before else []
    echo = [entry[1] for entry in meta.get("input_token_logprobs") or []]
    rows = [{token(entry[1]): entry[0] for entry in row} for row in [*prompt, *meta["output_top_logprobs"]]]
    return Completion(ids, rows, echo=echo if before and len(echo) == before + 1 else None)
