"""libllama at the end of a pipe: PYTHON llama_cpp_worker.py, with LLAMA_CPP_LIB_PATH where the library is.

One llama_decode has one set of adapters: the requests of each step are grouped by theirs, as in llama-server, and the
context is switched from one group to the next. All of them share one KV cache, with a sequence each.
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
from serve_pipe import Reply, Settings, serve_engine

Adapters = tuple[tuple[str, float], ...]  # names and weights of what one forward pass sums


@dataclass
class RunningRequest:
    """A request that is being served."""

    request: Mapping[str, Any]  # as it came through the pipe
    sequence: int  # of the KV cache
    tokens: list[int]  # the prompt's and those produced
    computed: int = 0
    rows: list[np.ndarray] = field(default_factory=list)

    @property
    def adapters(self) -> Adapters:
        return tuple((name, weight) for name, weight in self.request["adapters"])

    @property
    def produced(self) -> list[int]:
        return self.tokens[len(self.request["prompt_ids"]) :]

    @property
    def done(self) -> bool:
        limit = self.request["cancel_after"]
        return len(self.produced) >= (self.request["max_new_tokens"] if limit is None else limit)


class Server:
    """One model with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model; return the size of its vocabulary.

        Any number of adapters of any rank can be loaded; no prefix is cached."""
        from gguf_files import write_base
        from prebuilt_llama import import_llama_cpp

        llama_cpp = import_llama_cpp()
        self.api, self.base = llama_cpp, Path(settings.model)
        self.chunk = settings.chunk or settings.max_length
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:  # the file stays mapped into memory
            file = self.base
            if self.base.is_dir():
                file = Path(folder) / "base.gguf"
                write_base(self.base, file)
            self.model = llama_cpp.llama_model_load_from_file(bytes(file), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {settings.model}")
        self.context = llama_cpp.llama_init_from_model(self.model, self.context_params(settings))
        if not self.context:
            raise ValueError("llama.cpp makes no context with these options")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.adapters: dict[str, Any] = {}
        self.sequences = range(settings.max_requests)
        return self.vocab_size, {}

    def context_params(self, settings: Settings) -> Any:
        """Return the parameters of a context in which all requests fit at their longest."""
        api, options = self.api, settings.options
        params = api.llama_context_default_params()
        params.n_seq_max, params.n_ctx = settings.max_requests, settings.max_requests * settings.max_length
        params.n_batch = settings.max_requests * settings.max_length
        params.n_threads = params.n_threads_batch = int(options.get("threads", "1"))
        kinds = {"f32": api.GGML_TYPE_F32, "f16": api.GGML_TYPE_F16}
        params.type_k = params.type_v = kinds[options.get("kv", "f32")]  # llama.cpp's own default is f16
        flash = {
            "off": api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            "on": api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
            "auto": api.LLAMA_FLASH_ATTN_TYPE_AUTO,  # llama.cpp's own default
        }
        params.flash_attn_type = flash[options.get("flash", "off")]
        return params

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder or GGUF file under the name, and free what had the name before."""
        from gguf_files import write_adapter

        with tempfile.TemporaryDirectory() as scratch:
            file = Path(folder)
            if file.is_dir():
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
        """Free the adapter, after it was taken out of the context."""
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

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Serve these together; return the token ids of each, and as rows_i its logits [rows, vocab]."""
        waiting = sorted(range(len(requests)), key=lambda i: requests[i]["arrival_step"])
        running: dict[int, RunningRequest] = {}
        finished: dict[int, RunningRequest] = {}
        step = 0
        try:
            while waiting or running:
                while waiting and (requests[waiting[0]]["arrival_step"] <= step or not running):
                    used = {state.sequence for state in running.values()}
                    free = [sequence for sequence in self.sequences if sequence not in used]
                    if not free:
                        break
                    i = waiting.pop(0)
                    running[i] = RunningRequest(requests[i], free[0], list(requests[i]["prompt_ids"]))
                for adapters in dict.fromkeys(state.adapters for state in running.values()):
                    self.decode(adapters, [state for state in running.values() if state.adapters == adapters])
                for i in [i for i, state in running.items() if state.done]:
                    finished[i] = running.pop(i)
                    self.api.llama_memory_seq_rm(self.memory, finished[i].sequence, -1, -1)
                step += 1
        except BaseException:
            self.api.llama_memory_clear(self.memory, True)
            raise
        arrays = {f"rows_{i}": np.array(finished[i].rows) for i in range(len(requests))}
        return {"responses": [{"token_ids": finished[i].produced} for i in range(len(requests))]}, arrays

    def decode(self, adapters: Adapters, group: Sequence[RunningRequest]) -> None:
        """Compute the next tokens of each: a chunk of its prompt, or the token that it produced last."""
        self.use(adapters)
        positions = [
            (state, n)
            for state in group
            for n in range(state.computed, min(state.computed + self.chunk, len(state.tokens)))
        ]
        batch = self.api.llama_batch_init(len(positions), 0, 1)
        batch.n_tokens = len(positions)
        for i, (state, n) in enumerate(positions):
            batch.token[i], batch.pos[i], batch.logits[i] = state.tokens[n], n, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, state.sequence
        code = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        for i, (state, n) in enumerate(positions):
            row = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.vocab_size,)).copy()
            state.rows.append(row)
            state.computed = n + 1
            if state.computed == len(state.tokens):
                state.tokens.append(int(row.argmax()))

    def use(self, adapters: Adapters) -> None:
        """Make these the adapters of the context; none is the base."""
        handles = (self.api.llama_adapter_lora_p_ctypes * len(adapters))(*(self.adapters[name] for name, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(weight for _, weight in adapters))
        if code := self.api.llama_set_adapters_lora(self.context, handles, len(adapters), scales):
            raise RuntimeError(f"llama_set_adapters_lora: {code}")

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on, and what llama.cpp was compiled to use."""
        packages = {"llama_cpp_python": self.api.__version__, "gguf": version("gguf")}
        system = self.api.llama_print_system_info().decode().strip()
        return {"python": platform.python_version(), **packages, "llama.cpp": system}, {}


if __name__ == "__main__":
    serve_engine(Server())
