"""LLM, SamplingParams and the outputs, with the arguments of each release; the numbers are refimpl's."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refimpl import Precision
from refimpl.adapter_slots import adapter_scale
from refimpl.config import LAYER_MODULES
from refimpl.engines.interface import EngineRequest, EngineResponse, Settings
from refimpl.engines.ours import Ours
from refimpl.tensorrt_llm.arithmetic import AS_BATCHED, GROUPED
from refimpl.tensorrt_llm.backend import backend
from refimpl.tensorrt_llm.rank_alignment import check_grouped

from ._stand_in import BUG, FAULT, RELEASE, ValidationError, forbid_others, undocumented

# LlmArgs of 0.20 takes anything; from 0.21 on these and no others.
COMMON = frozenset(
    (
        *("lora_config", "kv_cache_config", "disable_overlap_scheduler", "enable_chunked_prefill", "max_batch_size"),
        *("max_num_tokens", "max_seq_len", "gather_generation_logits", "backend"),
    )
)
ARGUMENTS = {
    (0, 21): COMMON | {"use_cuda_graph", "enable_trtllm_sampler", "build_config"},
    (1, 0): COMMON | {"cuda_graph_config", "enable_trtllm_sampler", "build_config"},
    (1, 1): COMMON | {"cuda_graph_config", "sampler_type"},
    (1, 2): COMMON | {"cuda_graph_config", "sampler_type"},
    (1, 3): (COMMON - {"backend"}) | {"cuda_graph_config", "sampler_type"},
}


@dataclass(kw_only=True)
class SamplingParams:
    """Keyword only, and nothing unknown."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True


class Guarded:
    """Logs every use of an attribute that no release documents."""

    def __getattr__(self, name: str) -> Any:
        undocumented(type(self).__name__)(name)


class CompletionOutput(Guarded):
    """One completion."""

    def __init__(self, response: EngineResponse, prompt: int, params: SamplingParams, shown: bool) -> None:
        self.index, self.token_ids, self.logprobs = 0, list(response.token_ids), []
        self.generation_logits = None
        assert response.logits is not None
        if params.return_generation_logits and shown:
            self.generation_logits = torch.of_numbers(response.logits[prompt - 1 :], torch.float32)
        if params.logprobs is not None:
            self.logprobs = [top(row, params.logprobs) for row in response.logits[prompt - 1 :]]


class RequestOutput(Guarded):
    """A request with its completions."""

    def __init__(
        self, prompt: list[int], response: EngineResponse, params: SamplingParams, shown: bool, context: bool
    ) -> None:
        self.prompt_token_ids, self.finished = prompt, True
        self.outputs = [CompletionOutput(response, len(prompt), params, shown)]
        self.context_logits = None
        if params.return_context_logits and context:
            assert response.logits is not None
            self.context_logits = torch.of_numbers(response.logits[: len(prompt)], torch.float32)


@dataclass
class Logprob:
    """Like TensorRT-LLM's."""

    logprob: float
    rank: int


def top(row: Any, k: int) -> dict[int, Logprob]:
    """Return the k best tokens of a row."""
    import numpy as np

    logs = row - row.max() - np.log(np.exp(row - row.max()).sum())
    return {int(t): Logprob(float(logs[t]), i + 1) for i, t in enumerate(np.argsort(-logs)[:k])}


class _TorchLLM(Guarded):
    """What the PyTorch backend is derived from, from 1.0 on."""

    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        if RELEASE >= (0, 21):
            forbid_others("TorchLlmArgs", kwargs, ARGUMENTS[RELEASE])
        if FAULT == "hang":
            time.sleep(600)
        if FAULT == "crash":
            os._exit(139)
        lora, cache = kwargs["lora_config"], kwargs["kv_cache_config"]
        assert not cache.enable_block_reuse, "the recorder must turn block reuse off"
        assert skip_tokenizer_init, "ids, not text"
        most = getattr(lora, "max_loras", None) or 8
        self._limits = (kwargs["max_batch_size"], kwargs["max_num_tokens"], kwargs["max_seq_len"], lora.max_lora_rank)
        self._gathers = bool(kwargs.get("gather_generation_logits")) or RELEASE > (1, 0)
        self._gives_context = RELEASE >= (1, 0) or bool(kwargs.get("enable_trtllm_sampler"))
        grouped = os.environ.get("LORA_USE_UNIFIED_GEMM") == "OFF"
        self._grouped = grouped
        ops = GROUPED if grouped else AS_BATCHED
        if BUG == "scale":
            ops = dataclasses.replace(ops, adapter_scale=lambda *args: 1.05 * adapter_scale(*args))
        ops = backend(dtype, "manager", ops)
        self._engine = Ours(lambda: ops, Precision("model", dtype))
        settings = Settings(Path(model), dtype, max_adapters=most, max_length=self._limits[2], modules=LAYER_MODULES)
        self._engine.start(settings)
        self._paths: dict[int, Path] = {}  # id -> what was first sent under it

    def generate(
        self,
        inputs: list[list[int]],
        sampling_params: SamplingParams | None = None,
        use_tqdm: bool = True,
        lora_request: Sequence[Any] | None = None,
    ) -> list[RequestOutput]:
        """Serve one batch."""
        params = sampling_params or SamplingParams()
        if params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None, or you can explicitly specify it")
        if FAULT == "no logits" and (params.return_context_logits or params.return_generation_logits):
            raise ValueError("logits are not supported")
        assert isinstance(inputs, list) and (lora_request is None or isinstance(lora_request, list)), "lists"
        assert len(inputs) <= self._limits[0] and sum(map(len, inputs)) <= self._limits[1]
        requests = []
        for ids, lora in zip(inputs, lora_request or [None] * len(inputs), strict=True):
            requests.append(EngineRequest(tuple(ids), self._name(lora), params.max_tokens))
        self._check_ranks(requests)
        responses = self._engine.run(requests)
        shown, context = self._gathers, self._gives_context
        return [
            RequestOutput(list(request.prompt_ids), response, params, shown, context)
            for request, response in zip(requests, responses, strict=True)
        ]

    def shutdown(self) -> None:
        """Do nothing."""

    def _name(self, lora: Any) -> str | None:
        """Return the adapter's name, and load it. The cache is keyed by id: what was first sent under an id stays."""
        if lora is None:
            return None
        if lora.lora_int_id not in self._paths:
            before = list(self._paths.values())[-1:]
            path = before[0] if BUG == "tenant" and before else Path(lora.lora_path)
            self._paths[lora.lora_int_id] = Path(lora.lora_path)
            self._engine.load(str(lora.lora_int_id), path)
        return str(lora.lora_int_id)

    def _check_ranks(self, requests: Sequence[EngineRequest]) -> None:
        """A batch of one adapter alone is unified; in any other the ranks must go together, layer by layer."""
        names = {request.adapter for request in requests}
        assert self._engine.model is not None
        config = self._engine.model.config
        for module in LAYER_MODULES:
            adapters = [None if name is None else self._engine.names[name] for name in sorted(names, key=str)]
            loras = [None if adapter is None else adapter.lora.get((0, module)) for adapter in adapters]
            ranks = [0 if lora is None else lora.A.shape[0] for lora in loras]
            if max(ranks) > self._limits[3]:
                raise ValueError(f"Invalid low_rank ({max(ranks)})")
            if len(names) > 1 or self._grouped:
                check_grouped(ranks, config.shape(module)[1])


class LLM(_TorchLLM):
    """The PyTorch backend from 1.0 on; before, the TensorRT backend unless an argument says otherwise."""

    def __init__(self, model: str, *args: Any, **kwargs: Any) -> None:
        if RELEASE < (1, 0) and kwargs.get("backend") != "pytorch":
            raise NotImplementedError("the stand-in has no TensorRT backend")
        super().__init__(model, *args, **kwargs)


class TorchLLM(_TorchLLM):
    """tensorrt_llm._torch.LLM, before 1.0."""

    def __init__(self, model: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **{**kwargs, "backend": "pytorch"})


__all__ = ["LLM", "SamplingParams", "TorchLLM", "ValidationError"]
