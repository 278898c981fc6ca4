"""SGLang at the end of a pipe, on a CPU: PYTHON sglang_worker.py, with sglang_stand_ins/ on PYTHONPATH.

Its own engine, unmodified: the loader of adapters, their memory pool, the scheduler, the batch's segments and the torch
backend of its LoRA layers. For the rows of a prompt it computes all of it, whatever is cached; so with prefix caching
the rows of produced tokens alone are asked for.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from serve_pipe import Reply, Settings, serve_engine

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Server:
    """One engine with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model; return the size of its vocabulary."""
        import sglang

        config = json.loads((Path(settings.model) / "config.json").read_text("utf-8"))
        self.vocab_size, self.cached = int(config["vocab_size"]), settings.prefix_caching
        self.engine = sglang.Engine(
            model_path=settings.model,
            skip_tokenizer_init=True,
            device="cpu",
            dtype=settings.dtype,
            attention_backend="torch_native",
            sampling_backend="pytorch",
            grammar_backend="none",
            disable_cuda_graph=True,
            disable_overlap_schedule=True,
            disable_radix_cache=not self.cached,
            skip_server_warmup=True,
            max_total_tokens=settings.kv_tokens or (settings.max_length + 1) * settings.max_requests,
            mem_fraction_static=0.5,  # what it would compute on a CPU is negative; max_total_tokens counts
            max_running_requests=settings.max_requests,
            chunked_prefill_size=settings.chunk or -1,
            enable_lora=True,
            max_lora_rank=settings.max_rank,
            max_loras_per_batch=settings.max_adapters + 1,  # the base is one of them
            lora_target_modules=list(MODULES),
            lora_backend="torch_native",
            log_level="error",
        )
        self.names: set[str] = set()
        return self.vocab_size, {}

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder under the name, in place of what had the name before."""
        if name in self.names:
            self.unload(name)
        checked(self.engine.load_lora_adapter(name, folder))
        self.names.add(name)
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name."""
        checked(self.engine.unload_lora_adapter(name))
        self.names.discard(name)
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters and prefixes."""
        for name in list(self.names):
            self.unload(name)
        self.engine.flush_cache()
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Send all as one batch; return the token ids of each, and as rows_i its log-probabilities [rows, vocab]."""
        adapters = [[name for name, _ in request["adapters"]] for request in requests]
        answers = self.engine.generate(
            input_ids=[request["prompt_ids"] for request in requests],
            sampling_params=[
                {"temperature": 0.0, "max_new_tokens": request["max_new_tokens"], "ignore_eos": True}
                for request in requests
            ],
            lora_path=[names[0] if names else None for names in adapters],
            return_logprob=True,
            logprob_start_len=-1 if self.cached else 0,
            top_logprobs_num=self.vocab_size,
        )
        arrays = {f"rows_{i}": self.rows(answer["meta_info"]) for i, answer in enumerate(answers)}
        return {"responses": [{"token_ids": list(answer["output_ids"])} for answer in answers]}, arrays

    def rows(self, shown: Mapping[str, Any]) -> np.ndarray:
        """Return [rows, vocab]: of the prompt's tokens but the first, which nothing comes before, and the produced."""
        of_prompt = [] if self.cached else shown["input_top_logprobs"][1:]
        tops = [*of_prompt, *shown["output_top_logprobs"]]
        rows = np.full((len(tops), self.vocab_size), np.nan)
        for row, top in zip(rows, tops, strict=True):
            for logprob, token, _ in top:
                row[token] = logprob
        return rows

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("sglang", "torch", "transformers")}
        return {"python": platform.python_version(), **packages}, {}


def checked(result: Any) -> None:
    """Raise what SGLang says, if it has not done it."""
    if not result.success:
        raise ValueError(result.error_message)


if __name__ == "__main__":
    serve_engine(Server())
