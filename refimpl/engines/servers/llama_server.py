"""llama-server's own endpoints (llama.cpp's tools/server/README.md): /completion, /lora-adapters, /props.

An adapter is a scale: every request carries a list of {"id", "scale"} with all of the server's adapters in it, those
that it does not name at 0. A request without the list would get what the server was started with, which is every
adapter at 1. Requests of different adapters never share a forward pass.

Rows are shown for produced tokens only, as log(softmax) in float32: below the smallest normal float32 there are no
digits left, which is the floor. A token whose text is not whole UTF-8 has no row (process_token in
server-context.cpp); then the rows are fewer than the tokens, which is an error.

`ignore_eos` would forbid the end of text instead of going on after it. A completion that ends early is therefore
continued by another request, whose prompt has the tokens so far.
"""

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..interface import EngineError, EngineRequest
from .client import Client
from .dialect import field, find, objects
from .reading import Completion, parsed, token


class LlamaServer:
    """A Dialect (dialect.py). An adapter may be named by its id, its file or its file's stem."""

    name = "llama_server"
    mixed = False
    features = frozenset({"rslora", "rank_pattern", "partial", "mixed_ranks", "sums"})
    floor = math.log(2.0**-126)

    def __init__(self, client: Client, model: str, models: list[dict[str, Any]], vocab: int) -> None:
        self.client, self.vocab = client, vocab
        self.ids: dict[str, tuple[int, str]] = {}
        for adapter in objects(client, "/lora-adapters", needs=("id", "path")):
            path, number = str(adapter["path"]), token(adapter["id"])
            file = (PureWindowsPath if "\\" in path else PurePosixPath)(path)
            for name in (file.stem, file.name, path, str(number)):  # an id is unique: it comes last
                self.ids[name] = (number, path)

    def version(self) -> str:
        return field(self.client, "/props", "build_info")

    def served(self) -> Mapping[str, str]:
        return {name: path for name, (_, path) in self.ids.items()}

    def find(self, name: str) -> str:
        return find(self.served(), name)

    def loads(self) -> bool:
        return False

    def load(self, name: str, folder: Path, replace: bool) -> str:
        raise EngineError(f"adapter {name!r}: llama-server loads none while it runs")

    def unload(self, served: str) -> None:
        """Do nothing: the server loaded it by itself."""

    def flush(self) -> None:
        """Do nothing: every request says whether a prefix may be used again."""

    def caches(self) -> bool:
        return True

    def complete(
        self, request: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Completion:
        scales = {number: 0.0 for number, _ in self.ids.values()}
        for name, weight in adapters.items():
            scales[self.ids[name][0]] += weight
        lora = [{"id": number, "scale": scale} for number, scale in scales.items()]
        body = {
            "samplers": ["top_k"],
            "top_k": 1,
            # One more than there should be, so that a greater vocabulary shows.
            "n_probs": width + 1 if width == self.vocab else width,
            "return_tokens": True,
            "cache_prompt": cached,
            **({"lora": lora} if lora else {}),
        }
        ids: list[Any] = []
        rows: list[Mapping[int, Any]] = []
        while True:
            rest = {"prompt": [*request.prompt_ids, *ids], "n_predict": request.max_new_tokens - len(ids)}
            data = self.client.post("/completion", body | rest)
            piece = parsed(data, _completion)
            ids, rows = [*ids, *piece.token_ids], [*rows, *(piece.rows or ())]
            more = data.get("stop_type") == "eos" and piece.token_ids and len(ids) < request.max_new_tokens
            if not more:
                return Completion(ids, rows if width else None, raw=data)


def _completion(data: Any) -> Completion:
    rows = data.get("completion_probabilities") or []
    logprobs = [{token(entry["id"]): entry["logprob"] for entry in row["top_logprobs"]} for row in rows]
    return Completion(list(data["tokens"]), logprobs)
