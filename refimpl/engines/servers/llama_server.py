"""llama-server's own endpoints (llama.cpp's tools/server/README.md): /completion, /lora-adapters, /props.

An adapter is a scale: every request carries a list of {"id", "scale"} with all of the server's adapters in it, those
that it does not want at 0. A request without the list would get what the server was started with, which is every
adapter at 1. Requests of different adapters never share a forward pass.

Rows are told for produced tokens only, as log(softmax) in float32: below the smallest normal float32 there are no
digits left, which is the floor. A token whose text is not whole UTF-8 has no row (process_token in
server-context.cpp); then the rows are not as many as the tokens, and that is said.

`ignore_eos` would forbid the end of text instead of going on after it, so that an answer that ends early is
continued by asking again with what was said so far.
"""

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..interface import EngineError, EngineRequest
from .client import Client
from .dialect import field, find, objects
from .reading import Said, token, understood


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
            for name in (file.stem, file.name, path, str(number)):  # the surest name last
                self.ids[name] = (number, path)

    def version(self) -> str:
        return field(self.client, "/props", "build_info")

    def served(self) -> Mapping[str, str]:
        return {name: path for name, (_, path) in self.ids.items()}

    def find(self, wanted: str) -> str:
        return find(self.served(), wanted)

    def loads(self) -> bool:
        return False

    def load(self, name: str, folder: Path, known: bool) -> str:
        raise EngineError(f"adapter {name!r}: llama-server loads none while it runs")

    def unload(self, served: str) -> None:
        """Nothing: it is not loaded by us."""

    def flush(self) -> None:
        """Nothing: whether a prefix may be found again is said with every request."""

    def caches(self) -> bool:
        return True

    def ask(
        self, ask: EngineRequest, adapters: Mapping[str, float], width: int, prompt_rows: bool, cached: bool
    ) -> Said:
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
            left = {"prompt": [*ask.prompt_ids, *ids], "n_predict": ask.max_new_tokens - len(ids)}
            found = self.client.post("/completion", body | left)
            said = understood(found, _said)
            ids, rows = [*ids, *said.token_ids], [*rows, *(said.rows or ())]
            more = found.get("stop_type") == "eos" and said.token_ids and len(ids) < ask.max_new_tokens
            if not more:
                return Said(ids, rows if width else None, raw=found)


def _said(found: Any) -> Said:
    told = found.get("completion_probabilities") or []
    return Said(list(found["tokens"]), [{token(x["id"]): x["logprob"] for x in row["top_logprobs"]} for row in told])
