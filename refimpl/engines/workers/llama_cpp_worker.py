"""libllama at the end of a pipe: PYTHON llama_cpp_worker.py, with LLAMA_CPP_LIB_PATH where the library is.

One llama_decode has one set of adapters, so that the requests of each step are grouped by theirs, as in llama-server,
and the context is switched from one group to the next. All of them live in one KV cache, a sequence for each.
"""

import ctypes
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from serve_pipe import Reply, serve

Adapters = tuple[tuple[str, float], ...]  # names and weights of what one forward pass sums


@dataclass
class Request:
    """One that is running."""

    ask: Mapping[str, Any]
    sequence: int  # of the KV cache
    tokens: list[int]  # the prompt's and those produced
    computed: int = 0
    rows: list[np.ndarray] = field(default_factory=list)

    @property
    def adapters(self) -> Adapters:
        return tuple((name, weight) for name, weight in self.ask["adapters"])

    @property
    def produced(self) -> list[int]:
        return self.tokens[len(self.ask["prompt_ids"]) :]

    @property
    def done(self) -> bool:
        limit = self.ask["cancel_after"]
        return len(self.produced) >= (self.ask["max_new_tokens"] if limit is None else limit)


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
        """The size of the vocabulary. Any number of adapters of any rank can be loaded; no prefix is cached."""
        import llama_cpp
        from gguf_files import write_base

        self.api, self.base, self.chunk = llama_cpp, Path(model), chunk or max_length
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:  # the file stays mapped into memory
            file = Path(folder) / "base.gguf"
            write_base(self.base, file)
            self.model = llama_cpp.llama_model_load_from_file(bytes(file), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx = max_requests, max_requests * max_length
        params.n_batch = max_requests * max_length
        params.n_threads = params.n_threads_batch = int(options.get("threads", "1"))
        kinds = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}
        params.type_k = params.type_v = kinds[options.get("kv", "f32")]  # llama.cpp's own default is f16
        flash = {
            "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
            "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,  # llama.cpp's own default
        }
        params.flash_attn_type = flash[options.get("flash", "off")]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError("llama.cpp makes no context with these options")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.adapters: dict[str, Any] = {}
        self.sequences = range(max_requests)
        return self.vocab_size, {}

    def load(self, name: str, folder: str) -> Reply:
        """What had the name before is freed."""
        from gguf_files import write_adapter

        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "adapter.gguf"
            write_adapter(Path(folder), self.base, file)
            adapter = self.api.llama_adapter_lora_init(self.model, bytes(file))
        if not adapter:
            raise ValueError(f"llama.cpp cannot load {folder}")
        if name in self.adapters:
            self.unload(name)
        self.adapters[name] = adapter
        return None, {}

    def unload(self, name: str) -> Reply:
        """The context must not hold it any more when it is freed."""
        adapter = self.adapters.pop(name)
        self.use(())
        self.api.llama_adapter_lora_free(adapter)
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters and the KV cache."""
        for name in list(self.adapters):
            self.unload(name)
        self.api.llama_memory_clear(self.memory, True)
        return None, {}

    def run(self, asks: Sequence[Mapping[str, Any]]) -> Reply:
        """Per request its token ids; rows_i: [rows, vocab]."""
        waiting = sorted(range(len(asks)), key=lambda i: asks[i]["arrival_step"])
        running: dict[int, Request] = {}
        finished: dict[int, Request] = {}
        step = 0
        try:
            while waiting or running:
                while waiting and (asks[waiting[0]]["arrival_step"] <= step or not running):
                    free = [s for s in self.sequences if s not in {r.sequence for r in running.values()}]
                    if not free:
                        break
                    i = waiting.pop(0)
                    running[i] = Request(asks[i], free[0], list(asks[i]["prompt_ids"]))
                for adapters in dict.fromkeys(r.adapters for r in running.values()):
                    self.decode(adapters, [r for r in running.values() if r.adapters == adapters])
                for i in [i for i, r in running.items() if r.done]:
                    finished[i] = running.pop(i)
                    self.api.llama_memory_seq_rm(self.memory, finished[i].sequence, -1, -1)
                step += 1
        except BaseException:
            self.api.llama_memory_clear(self.memory, True)
            raise
        arrays = {f"rows_{i}": np.array(finished[i].rows) for i in range(len(asks))}
        return {"answers": [{"token_ids": finished[i].produced} for i in range(len(asks))]}, arrays

    def decode(self, adapters: Adapters, requests: Sequence[Request]) -> None:
        """The next tokens of each: a piece of its prompt, or the token that it produced last."""
        self.use(adapters)
        places = [(r, n) for r in requests for n in range(r.computed, min(r.computed + self.chunk, len(r.tokens)))]
        batch = self.api.llama_batch_init(len(places), 0, 1)
        batch.n_tokens = len(places)
        for i, (r, n) in enumerate(places):
            batch.token[i], batch.pos[i], batch.logits[i] = r.tokens[n], n, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, r.sequence
        code = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        for i, (r, n) in enumerate(places):
            row = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.vocab_size,)).copy()
            r.rows.append(row)
            r.computed = n + 1
            if r.computed == len(r.tokens):
                r.tokens.append(int(row.argmax()))

    def use(self, adapters: Adapters) -> None:
        """Make them the adapters of the context; none is the base."""
        handles = (self.api.llama_adapter_lora_p_ctypes * len(adapters))(*(self.adapters[name] for name, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(weight for _, weight in adapters))
        if code := self.api.llama_set_adapters_lora(self.context, handles, len(adapters), scales):
            raise RuntimeError(f"llama_set_adapters_lora: {code}")

    def versions(self) -> Reply:
        """Of what its numbers depend on; what llama.cpp was compiled to use."""
        found = {"python": platform.python_version()} | {p: version(p) for p in ("llama_cpp_python", "gguf")}
        return found | {"llama.cpp": self.api.llama_print_system_info().decode().strip()}, {}


if __name__ == "__main__":
    server = Server()
    serve({name: getattr(server, name) for name in ("start", "load", "unload", "run", "reset", "versions")})
