"""TensorRT-LLM, in this process: needs an NVIDIA GPU and its package. The calls are those of its recorder.

Where there is no GPU, a recording stands in for it: `loracle record --engine tensorrt_llm`, and the engine `recorded`.
What is declared is what its documentation promises of LoRA together with logits. No mixed ranks, because an adapter of
rank 5 makes its neighbours' batch fail (refimpl/tensorrt_llm/rank_alignment.py); no alpha_pattern, which it ignores.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import LAYER_MODULES
from ..errors import LoracleError
from ..formats.trtllm_modules import OF_LLAMA
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings
from .record_tensorrt_llm import Session, said, versions

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
    """For `loracle engines`."""
    found = importlib.util.find_spec("tensorrt_llm")
    there = found is not None and found.origin is not None  # a folder that happens to have the name is no package
    return Entry("tensorrt_llm", "NVIDIA TensorRT-LLM, in this process", CAPABILITIES, "" if there else HOW)


def make(options: Mapping[str, str]) -> "TensorrtLlm":
    """EngineError without its package, or for an option that it does not have."""
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
        self.notes: list[tuple[str, object]] = []  # what was found where, and which arguments were rejected
        try:
            self.session = Session(
                str(settings.model),
                settings.dtype,
                [OF_LLAMA[module].name for module in settings.modules],
                max_rank=settings.max_rank,
                max_adapters=settings.max_adapters,
                max_requests=settings.max_requests,
                max_length=settings.max_length,
                cuda_graphs=self.cuda_graphs,
                noted=lambda key, value: self.notes.append((key, value)),
            )
        except LoracleError:
            raise
        except Exception as error:  # whatever it is that the package cannot do here
            raise EngineError(f"TensorRT-LLM cannot be started: {_one_line(said(error))}") from None
        self.ids, self.known = 0, dict[str, tuple[str, int, Path]]()

    def load(self, name: str, folder: Path) -> None:
        """Under an id that no other weights have had: its caches would go on with the old ones."""
        self.ids += 1
        self.known[name] = (name, self.ids, folder)

    def unload(self, name: str) -> None:
        """Forget the name."""
        if name not in self.known:
            raise EngineError(f"no adapter {name!r} is loaded")
        del self.known[name]

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """One batch; an error of it is every request's error."""
        from ..oracle.recordings.tensorrt_llm_recording import answer_of

        if unknown := next((a.adapter for a in asks if a.adapter is not None and a.adapter not in self.known), None):
            raise EngineError(f"no adapter {unknown!r} is loaded")
        assert self.session is not None
        adapters = [None if a.adapter is None else self.known[a.adapter] for a in asks]
        most = max(a.max_new_tokens for a in asks)
        try:
            found = self.session.ask([a.prompt_ids for a in asks], adapters, most)
        except Exception as error:
            return [EngineResponse(error=said(error))] * len(asks)
        answers = []
        for a, one in zip(asks, found, strict=True):
            new, rows = a.max_new_tokens, one["rows"]
            short = len(one["token_ids"]) - len(rows.get("generation", one["token_ids"]))
            told = {**one, "token_ids": one["token_ids"][:new], "top": one.get("top", [])[:new] or None}
            generation = rows["generation"][: new - short] if "generation" in rows else None
            answers.append(answer_of(len(a.prompt_ids), told, rows.get("context"), generation))
        return answers

    def reset(self) -> None:
        """Forget all names. Ids are not used again."""
        self.known.clear()

    def versions(self) -> dict[str, str]:
        """Of the package, of torch and CUDA, and the GPU."""
        return versions()

    def close(self) -> None:
        """Give the GPU back."""
        if self.session is not None:
            self.session.close()
            self.session = None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
