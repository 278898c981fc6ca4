"""TensorRT-LLM's guide to several LoRAs, acted again: one base, two adapters, two prompts, six answers in one batch.

    convert   read the base and the adapters
    build     decide what the engine has room for
    run       give each text the uid of its adapter, -1 for none

Source: NVIDIA/TensorRT-LLM, examples/models/core/llama/README.md, "Run LLaMa with several lora checkpoints".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import Adapter
from ..errors import LoracleError
from ..formats.trtllm_modules import OF_LLAMA
from ..ops import Ops
from ..plans import NO_ADAPTER
from ..request import Request
from ..streaming import roomy_engine, stream
from ..tensorrt_llm.backend import backend
from ..tensorrt_llm.rank_alignment import check_grouped
from ..weights import Model

BASE_UID = -1

THEIR_NAMES = {ours: module.name for ours, module in OF_LLAMA.items()}
"""q_proj -> attn_q, as in --lora_target_modules. Beware: their mlp_gate is up_proj."""

QKV = ("attn_q", "attn_k", "attn_v")


def published() -> dict[str, Any]:
    """The guide's prompts, settings and printed outputs."""
    notes: dict[str, Any] = json.loads((Path(__file__).parent / "guide.json").read_text("utf-8"))
    return notes


@dataclass(frozen=True)
class Cast:
    """Who plays: the base, the adapters in the order of their uids, the texts, and how tokens are drawn."""

    model: Model
    name: str  # of the base, as the user calls it
    adapters: Sequence[Adapter]
    prompts: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    @property
    def uids(self) -> list[int]:
        """--lora_task_uids: every prompt once for the base, and once for each adapter."""
        return [BASE_UID, *range(len(self.adapters))] * len(self.prompts)

    @property
    def requests(self) -> list[Request]:
        """One for each text and its uid."""
        chosen = [None, *self.adapters]
        return [
            Request(ids, adapter, self.max_new_tokens, self.temperature, top_p=self.top_p, seed=self.seed)
            for ids in self.prompt_ids
            for adapter in chosen
        ]

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of any module."""
        return max((rank for adapter in self.adapters for rank in ranks(adapter)), default=0)

    @property
    def target_modules(self) -> list[str]:
        """--lora_target_modules, in their names. q, k and v go together; who has no k gets null pointers for it."""
        named = {name for adapter in self.adapters for name in modules(adapter)}
        if named & set(QKV):
            named |= set(QKV)
        return [name for name in THEIR_NAMES.values() if name in named]

    def commands(self) -> dict[str, str]:
        """What one types there for this cast. Names, not paths."""
        names = " ".join(adapter.name for adapter in self.adapters)
        sampling = f"--top_p {self.top_p:g} --top_k 0" if self.temperature else "--top_k 1"
        warm = f" --temperature {self.temperature:g}" if self.temperature not in (0, 1) else ""
        return {
            "convert": f"convert_checkpoint.py --model_dir {self.name} --dtype {self.model.dtype}",
            "build": f"trtllm-build --lora_plugin auto --lora_dir {names} --max_lora_rank {self.max_lora_rank} "
            f"--lora_target_modules {' '.join(self.target_modules)}",
            "run": f"run.py --lora_task_uids {' '.join(map(str, self.uids))} "
            f"--max_output_len {self.max_new_tokens} {sampling}{warm}",
        }

    def objections(self) -> list[str]:
        """What of this cast TensorRT-LLM would refuse, leave out, or take otherwise."""
        notes = []
        for adapter in self.adapters:
            left_out = sorted({module for _, module in adapter.lora if module not in THEIR_NAMES})
            if left_out:
                notes.append(f"the LoRA of {adapter.name} on {' and '.join(left_out)} is left out, and nothing says so")
            if adapter.replaced:
                notes.append(
                    f"{adapter.name} brings tables of its own, and every request would get them, uid -1 as well"
                )
            if adapter.config.alpha_pattern:
                notes.append(f"the alpha_pattern of {adapter.name} is ignored")
            if any(lora.bias is not None for lora in adapter.lora.values()):
                notes.append(f"{adapter.name} is refused, because its lora_B has a bias")
        together = {rank for adapter in self.adapters for rank in ranks(adapter)}
        try:
            check_grouped(together, self.model.config.hidden_size)
        except LoracleError as error:
            notes.append(f"this batch fails ({error})")
        return notes


def ranks(adapter: Adapter) -> list[int]:
    """Every rank that it has, once."""
    return sorted({len(lora.A) for lora in adapter.lora.values()})


def modules(adapter: Adapter) -> list[str]:
    """Its modules in their names, in the order of THEIR_NAMES; those that have no name there are left out."""
    of_the_adapter = {module for _, module in adapter.lora}
    return [theirs for ours, theirs in THEIR_NAMES.items() if ours in of_the_adapter]


@dataclass(frozen=True)
class GuideAnswer:
    """One row of the batch. adapter_id is the slot that its tokens carry in Batch.adapter_ids."""

    text: int
    prompt: str
    lora_task_uid: int
    adapter: str | None
    adapter_id: int
    output: str
    token_ids: list[int]
    alone: bool  # the same tokens when nobody else is in the batch


def act(cast: Cast, ops: Ops) -> list[GuideAnswer]:
    """All of it in one batch; then each request once more, with nobody beside it."""
    together, slots = _answers(cast, cast.requests, ops)
    notes = []
    for i, (request, (ids, text)) in enumerate(zip(cast.requests, together, strict=True)):
        prompt, uid = cast.prompts[i // (len(cast.adapters) + 1)], cast.uids[i]
        adapter = None if uid == BASE_UID else cast.adapters[uid]
        name, slot = (adapter.name, slots[adapter]) if adapter else (None, NO_ADAPTER)
        alone = _answers(cast, [request], ops)[0][0]
        notes.append(GuideAnswer(i, prompt, uid, name, slot, text, ids, ids == alone[0]))
    return notes


def _answers(
    cast: Cast, requests: Sequence[Request], ops: Ops
) -> tuple[list[tuple[list[int], str]], dict[Adapter, int]]:
    """(ids, text) of each request, and the slot that each adapter had."""
    engine = roomy_engine(cast.model, requests, cast.max_new_tokens, backend(cast.model.dtype, ops=ops), None)
    ids: list[list[int]] = [[] for _ in requests]
    texts = ["" for _ in requests]
    for token in stream(cast.model, requests, cast.max_new_tokens, engine=engine):
        ids[token.request_id].append(token.token_id)
        texts[token.request_id] += token.text
    return list(zip(ids, texts, strict=True)), engine.adapters.slot_of
