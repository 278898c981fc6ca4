"""llama.cpp on the requests of a job, in float32 on one thread: PYTHON job_llama_cpp.py job.json out.npz

job.json: {"base": folder, "requests": [{"ids": [...], "adapter": folder or null}], "max_new_tokens": n}
out.npz:  "engine" and, for request i, "tokens_i" and "logprobs_i": a row for every token of the prompt and every token
          produced but the last.

One llama_decode has one adapter. What can go wrong here is the switching, so that all requests live in one context, and
each step goes once around them.
"""

import ctypes
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from gguf_writer import write_adapter, write_base


class Context:
    """A model, its adapters by folder, and a KV cache with one sequence for each request."""

    def __init__(self, base: Path, adapters: Sequence[str], sequences: int, length: int) -> None:
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "base.gguf"
            write_base(base, file)
            self.model = llama_cpp.llama_model_load_from_file(bytes(file), llama_cpp.llama_model_default_params())
            self.adapters = {}
            for i, adapter in enumerate(adapters):
                file = Path(folder) / f"{i}.gguf"  # each its own: they stay mapped into memory
                write_adapter(Path(adapter), base, file)
                self.adapters[adapter] = llama_cpp.llama_adapter_lora_init(self.model, bytes(file))
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx, params.n_batch, params.n_ubatch = sequences, sequences * length, length, length
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32  # the default float16 is 3e-3 off
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # 8e-3 off, even with a float32 cache
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, sequence: int, ids: Sequence[int], start: int, adapter: str | None) -> np.ndarray:
        """Of every one of these tokens, the first of which is number `start` of its sequence."""
        chosen = [self.adapters[adapter]] if adapter else []
        array = (llama_cpp.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*(1.0 for _ in chosen))
        assert llama_cpp.llama_set_adapters_lora(self.context, array, len(chosen), scales) == 0
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        assert llama_cpp.llama_decode(self.context, batch) == 0
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(ids), self.vocab_size))
        llama_cpp.llama_batch_free(batch)
        return found.astype(np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def main(job_path: str, out_path: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    requests, new = job["requests"], job["max_new_tokens"]
    adapters = sorted({r["adapter"] for r in requests if r["adapter"]})
    length = max(len(r["ids"]) for r in requests) + new
    context = Context(Path(job["base"]), adapters, len(requests), length)
    tokens: list[list[int]] = [[] for _ in requests]
    rows: list[list[np.ndarray]] = [[] for _ in requests]
    for step in range(new):
        for i, r in enumerate(requests):
            ids, start = (r["ids"], 0) if step == 0 else (tokens[i][-1:], len(r["ids"]) + step - 1)
            logits = context.logits(i, ids, start, r["adapter"])
            rows[i].extend(log_softmax(logits))
            tokens[i].append(int(logits[-1].argmax()))
    results = {f"tokens_{i}": np.array(t) for i, t in enumerate(tokens)}
    results |= {f"logprobs_{i}": np.array(x) for i, x in enumerate(rows)}
    np.savez(out_path, engine=f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
