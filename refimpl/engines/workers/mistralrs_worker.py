"""mistral.rs at the end of a pipe: PYTHON mistralrs_worker.py.

Its Python package takes prompts as text and gives, of each produced token, the log-probabilities of the whole
vocabulary. So the base is loaded with the tokenizer of letters.py.
"""

import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from letters import text_of, write_tokenizer
from serve_pipe import Reply, Settings, serve_engine

FLOOR = math.log(2.0**-126)  # it takes the logarithm of a float32: of one below this digits are missing
ARCHITECTURES = {"LlamaForCausalLM": "Llama", "MistralForCausalLM": "Mistral"}
WHOLE_PROMPT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # nothing around it


class Server:
    """One model with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model in float32, its KV cache too; return the size of its vocabulary."""
        os.environ["MISTRALRS_CPU_KV_F32"] = "1"
        import mistralrs

        self.api, base = mistralrs, Path(settings.model)
        config = json.loads((base / "config.json").read_text("utf-8"))
        self.vocab_size = int(config["vocab_size"])
        architecture = ARCHITECTURES[config["architectures"][0]]
        self.folder = tempfile.TemporaryDirectory()  # mapped into memory as long as it runs
        write_base(base, Path(self.folder.name), self.vocab_size)
        self.runner = mistralrs.Runner(
            which=mistralrs.Which.Lora(
                model_id=self.folder.name,
                adapters=[],
                arch=getattr(mistralrs.Architecture, architecture),
                dtype=mistralrs.ModelDType.F32,
                max_adapters=settings.max_adapters,
                max_rank=settings.max_rank,
            ),
            max_seqs=settings.max_requests,
            prefix_cache_n=settings.max_requests if settings.prefix_caching else 0,
        )
        self.loaded: set[str] = set()
        return self.vocab_size, {}

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder under the name, in place of what had the name before."""
        self.runner.load_lora_adapter(name, folder, load_inplace=name in self.loaded)
        self.loaded.add(name)
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name."""
        self.runner.unload_lora_adapter(name)
        self.loaded.discard(name)
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters."""
        for name in list(self.loaded):
            self.unload(name)
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Send all of them, then read their streams; return the token ids of each, and as rows_i its log-probabilities
        [produced, vocab], NaN where the probability is too small for its type."""
        streams = [self.runner.send_chat_completion_request(self.as_chat(request)) for request in requests]
        responses, arrays = [], {}
        for i, (request, stream) in enumerate(zip(requests, streams, strict=True)):
            rows = self.rows_of(stream, request)
            arrays[f"rows_{i}"] = np.stack(rows) if rows else np.zeros((0, self.vocab_size))
            responses.append({"token_ids": [int(np.nanargmax(row)) for row in rows]})
        return {"responses": responses}, arrays

    def as_chat(self, request: Mapping[str, Any]) -> Any:
        """Return it as a request for a stream of greedy tokens, none of which ends it."""
        names = [name for name, _ in request["adapters"]]
        return self.api.ChatCompletionRequest(
            messages=[{"role": "user", "content": text_of(request["prompt_ids"])}],
            model="default",
            logprobs=True,
            top_logprobs=self.vocab_size,
            max_tokens=request["max_new_tokens"],
            temperature=0.0,
            ignore_eos=True,
            stream=True,
            **({"adapter": names[0]} if names else {}),
        )

    def rows_of(self, stream: Any, request: Mapping[str, Any]) -> list[np.ndarray]:
        """Read a stream to its end, or to where it is cancelled: whoever stops to read has cancelled."""
        rows: list[np.ndarray] = []
        for chunk in stream:
            shown = chunk.choices[0].logprobs
            if shown is None or len(rows) == request["max_new_tokens"]:
                continue
            row = np.full(self.vocab_size, np.nan)
            for top in shown.top_logprobs:
                if top.logprob >= FLOOR:
                    row[top.token] = top.logprob
            rows.append(row)
            if len(rows) == request["cancel_after"]:
                break
        return rows

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        return {"python": platform.python_version(), "mistralrs": version("mistralrs")}, {}


def write_base(base: Path, folder: Path, vocab_size: int) -> None:
    """Write the base beside a tokenizer of one character for each id."""
    for file in (*base.glob("*.safetensors"), *base.glob("*.safetensors.index.json"), base / "config.json"):
        (folder / file.name).symlink_to(file.resolve())
    write_tokenizer(folder, vocab_size, {"chat_template": WHOLE_PROMPT})


if __name__ == "__main__":
    serve_engine(Server())
