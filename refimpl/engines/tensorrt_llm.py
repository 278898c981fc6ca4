"""TensorRT-LLM, in this process: needs an NVIDIA GPU and its package. The calls are those of its recorder.

Where there is no GPU, a recording takes its place: `loracle record --engine tensorrt_llm` makes what is needed for one.
What is declared is what its documentation promises of LoRA together with logits. No mixed ranks, because an adapter of
rank 5 makes its neighbours' batch fail (refimpl/tensorrt_llm/rank_alignment.py); no alpha_pattern, which it ignores.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..config import LAYER_MODULES
from ..errors import LoracleError
from ..formats.trtllm_modules import OF_LLAMA
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings
from .record_tensorrt_llm import EngineSettings, Session, error_text, versions

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=True,
    dtypes=("bfloat16", "float16"),
    modules=LAYER_MODULES,
    features=frozenset(("rslora", "partial")),
    operations=frozenset(("load", "unload", "reload")),
    max_rank=64,
)
HOW = "needs an NVIDIA GPU and the package tensorrt_llm, or a recording: loracle record --engine tensorrt_llm --out DIR"


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    spec = importlib.util.find_spec("tensorrt_llm")
    installed = spec is not None and spec.origin is not None  # a folder that happens to have the name is no package
    return Entry("tensorrt_llm", "NVIDIA TensorRT-LLM, in this process", CAPABILITIES, "" if installed else HOW)


def make(options: Mapping[str, str]) -> "TensorrtLlm":
    """Return the engine, not started. EngineError without its package, or for an option that it does not have."""
    if missing := entry().missing:
        raise EngineError(f"tensorrt_llm {missing}")
    graphs = options.get("cuda-graphs", "off")
    if unknown := set(options) - {"cuda-graphs"}:
        raise EngineError(f"tensorrt_llm has no option {sorted(unknown)[0]!r}; it has cuda-graphs=on|off")
    if graphs not in ("on", "off"):
        raise EngineError(f"tensorrt_llm: cuda-graphs is {graphs!r}, not on or off")
    return TensorrtLlm(cuda_graphs=graphs == "on")


class TensorrtLlm:
    """An Engine (interface.py)."""

    capabilities = CAPABILITIES

    def __init__(self, cuda_graphs: bool = False) -> None:
        self.cuda_graphs = cuda_graphs
        self.session: Session | None = None

    def start(self, settings: Settings) -> None:
        """Load the base. Block reuse is off."""
        self.notes: list[tuple[str, object]] = []  # which names were imported from where, which arguments rejected
        try:
            self.session = Session(
                EngineSettings(
                    model=str(settings.model),
                    dtype=settings.dtype,
                    modules=tuple(OF_LLAMA[module].name for module in settings.modules),
                    max_rank=settings.max_rank,
                    max_adapters=settings.max_adapters,
                    max_requests=settings.max_requests,
                    max_length=settings.max_length,
                    cuda_graphs=self.cuda_graphs,
                ),
                note=lambda key, value: self.notes.append((key, value)),
            )
        except LoracleError:
            raise
        except Exception as error:  # whatever it is that the package cannot do here
            raise EngineError(f"TensorRT-LLM cannot be started: {_one_line(error_text(error))}") from None
        self.count, self.adapters = 0, dict[str, tuple[str, int, Path]]()  # by name: the name, an id and the folder

    def load(self, name: str, folder: Path) -> None:
        """Give the folder the name and an id that no other weights have had: TensorRT-LLM's caches go by the id."""
        self.count += 1
        self.adapters[name] = (name, self.count, folder)

    def unload(self, name: str) -> None:
        """Forget the name."""
        if name not in self.adapters:
            raise EngineError(f"no adapter {name!r} is loaded")
        del self.adapters[name]

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve one batch; an error of it is every request's error."""
        names = [request.adapter for request in requests]
        if unknown := next((name for name in names if name is not None and name not in self.adapters), None):
            raise EngineError(f"no adapter {unknown!r} is loaded")
        assert self.session is not None
        adapters = [None if name is None else self.adapters[name] for name in names]
        longest = max(request.max_new_tokens for request in requests)
        try:
            answers = self.session.generate([request.prompt_ids for request in requests], adapters, longest)
        except Exception as error:
            return [EngineResponse(error=error_text(error))] * len(requests)
        return [_cut(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def reset(self) -> None:
        """Forget all names. Ids are never used again."""
        self.adapters.clear()

    def versions(self) -> dict[str, str]:
        """Return the versions of the package, of torch and CUDA, and the GPU's name."""
        return versions()

    def close(self) -> None:
        """Free the GPU."""
        if self.session is not None:
            self.session.close()
            self.session = None


def _cut(request: EngineRequest, answer: Mapping[str, Any]) -> EngineResponse:
    """The first max_new_tokens of an answer: the batch was served for the most that any of its requests wants."""
    new, rows = request.max_new_tokens, answer["rows"]
    short = len(answer["token_ids"]) - len(rows.get("generation", answer["token_ids"]))
    generation = rows["generation"][: new - short] if "generation" in rows else None
    first = {**answer, "token_ids": answer["token_ids"][:new], "top": answer.get("top", [])[:new] or None}
    return response_of(len(request.prompt_ids), first, rows.get("context"), generation)


def response_of(
    prompt: int, answer: Mapping[str, Any], context: Array | None, generation: Array | None
) -> EngineResponse:
    """Return context_logits and generation_logits as one run of rows.

    prompt: its length. answer: "token_ids", and "top" where no logits were to be had. The last row of the context is
    the first of the generation, except where a release leaves that out of the generation logits."""
    token_ids = tuple(int(t) for t in answer["token_ids"])
    if context is None and generation is None:
        top = answer.get("top")
        rows = None if top is None else [{int(t): logprob for t, logprob in row.items()} for row in top]
        return EngineResponse(token_ids, prompt - 1, top=rows)
    first_position = prompt - 1 if context is None else prompt - len(context)
    if generation is None:
        assert context is not None
        return EngineResponse(token_ids, first_position, context.astype(np.float32))
    missing = len(token_ids) - len(generation)
    if missing not in (0, 1) or (missing and context is None):
        wrong = f"{len(generation)} rows of generation logits for {len(token_ids)} tokens"
        return EngineResponse(token_ids, error=wrong)
    logits = generation if context is None else np.concatenate([context, generation[1 - missing :]])
    return EngineResponse(token_ids, first_position, logits.astype(np.float32))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
