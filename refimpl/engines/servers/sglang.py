"""SGLang's native /generate (docs.sglang.io: sampling_params, lora; python/sglang/srt/managers/io_struct.py).

Its completions in OpenAI's form have the text of a token where we need its id; /generate has [log-probability, id,
text]. The tokens of a row are a torch.topk, which goes up to the whole vocabulary. An adapter is `lora_path`, a name
from --lora-paths or from /load_lora_adapter, which exists in every server that has LoRA enabled. The first token of
a prompt has no row, or None. Rows are told from logprob_start_len on; what is before that may come from its cache.

Written from its documentation and sources; not run against a live server, which needs a GPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..interface import EngineRequest
from .client import BadAnswer, Client, Refused
from .dialect import find, served_models
from .reading import Said, token, understood


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

    def find(self, wanted: str) -> str:
        return find(self.served(), wanted)

    def loads(self) -> bool:
        return bool(self._info().get("enable_lora"))

    def load(self, name: str, folder: Path, known: bool) -> str:
        if known:
            self.unload(name)
        self._change("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        return name

    def unload(self, served: str) -> None:
        self._change("/unload_lora_adapter", {"lora_name": served})

    def flush(self) -> None:
        self.client.post("/flush_cache", {}, text=True)

    def caches(self) -> bool:
        return not self._info().get("disable_radix_cache", False)

    def ask(
        self, ask: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Said:
        body: dict[str, Any] = {
            "input_ids": list(ask.prompt_ids),
            "sampling_params": {"temperature": 0, "max_new_tokens": ask.max_new_tokens, "ignore_eos": True},
        }
        if adapters:
            body["lora_path"] = next(iter(adapters))
        if width:
            body |= {"return_logprob": True, "top_logprobs_num": width, "return_text_in_logprobs": False}
            body["logprob_start_len"] = 0 if prompt_rows else len(ask.prompt_ids) - 1
        before = len(ask.prompt_ids) - 1 if prompt_rows else 0
        return understood(self.client.post("/generate", body), lambda found: _said(found, width, before))

    def _info(self) -> dict[str, Any]:
        """What the server was started with. /get_server_info became /server_info."""
        try:
            found = self.client.get("/server_info")
        except Refused as error:
            if error.status != 404:
                raise
            found = self.client.get("/get_server_info")
        if not isinstance(found, dict):
            raise BadAnswer(f"GET /server_info at {self.client.url}: no object", found)
        return found

    def _change(self, path: str, body: dict[str, Any]) -> None:
        found = self.client.post(path, body)
        if not isinstance(found, dict) or found.get("success") is not True:
            raise BadAnswer(f"POST {path} at {self.client.url}: {found}", found)


def _said(found: Any, width: int, before: int) -> Said:
    """before: how many rows of the prompt are wanted."""
    meta = found["meta_info"]
    ids = found.get("output_ids")  # which an older version leaves out
    if ids is None:
        ids = [entry[1] for entry in meta["output_token_logprobs"]]
    if not width:
        return Said(ids)
    prompt = (meta.get("input_top_logprobs") or [])[-before:] if before else []
    echo = [entry[1] for entry in meta.get("input_token_logprobs") or []]
    rows = [{token(entry[1]): entry[0] for entry in row} for row in [*prompt, *meta["output_top_logprobs"]]]
    return Said(ids, rows, echo=echo if before and len(echo) == before + 1 else None)
