"""A NeMo adapter -> what PEFT's folder would be for the same numbers.

    peft.lora_tuning              adapter_dim: the rank;  alpha: the scale is alpha / adapter_dim (1 without alpha)
    ...layers.3.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight    A [r, hidden] of q, k and v together
                                                  .linear_out.weight              B [q + k + v, r]
    ...lora_dense_attention_adapter   o_proj;  lora_hto4h_adapter  gate and up, one below the other;  lora_4htoh_adapter

B of q, k and v has the rows of Megatron's linear_qkv, to whose output it is added: for each group of queries theirs,
then its key's, then its value's (NeMo, modules/common/megatron/adapters/mcore_mixins.py: [groups, queries + 2, dim]).
NeMo's own convert_nemo_to_canonical.py cuts it in three runs, which is another adapter where there is more than one
group. The canonical form (lora_unfused_kqv_adapter) has q, k and v apart, as PEFT has.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..adapter import PeftConfig
from ..arrays import Array
from ..config import ModelConfig, Module
from ..families import FAMILIES
from .adapter_pairs import Scaled, checked_pairs, config_and_parts
from .diagnostics import Diagnostics, shown
from .families import families_of
from .json_file import is_integer, is_number
from .nemo_file import CONFIG, open_nemo
from .peft_tensors import Part, Parts
from .safetensors_file import FLOATS

NAME = re.compile(
    r"(?:model\.|module\.)*(?:language_model\.)?(?:decoder\.|encoder\.)?layers\.(\d{1,4})\.(?:self_attention|mlp)\."
    r"(?:adapter_layer\.)?(.+)\.(linear_in|linear_out)\.weight"
)
SINGLE = {  # NeMo 1, NeMo 1 canonical, NeMo 2
    "lora_dense_attention_adapter": "o_proj",
    "lora_4htoh_adapter": "down_proj",
    "lora_unfused_kqv_adapter.q_adapter": "q_proj",
    "lora_unfused_kqv_adapter.k_adapter": "k_proj",
    "lora_unfused_kqv_adapter.v_adapter": "v_proj",
    "lora_unfused_hto4h_adapter.gate_adapter": "gate_proj",
    "lora_unfused_hto4h_adapter.up_adapter": "up_proj",
    "linear_proj.adapter": "o_proj",
    "linear_fc2.adapter": "down_proj",
    "linear_qkv.adapter.adapter_q": "q_proj",
    "linear_qkv.adapter.adapter_k": "k_proj",
    "linear_qkv.adapter.adapter_v": "v_proj",
    "linear_fc1.adapter.adapter_gate": "gate_proj",
    "linear_fc1.adapter.adapter_up": "up_proj",
}
QKV, GATE_UP = ("lora_kqv_adapter", "linear_qkv.adapter"), ("lora_hto4h_adapter", "linear_fc1.adapter")


def read_nemo_adapter(
    path: Path, base: ModelConfig | None, diagnostics: Diagnostics
) -> tuple[PeftConfig | None, Parts]:
    """PEFT's config and parts of the adapter, with every problem noted. The base says how many heads q and k have."""
    before = len(diagnostics.problems)
    opened = open_nemo(path, diagnostics)
    if opened is None:
        return None, {}
    file = opened.tensors
    alpha = _alpha(file.path, opened.config, diagnostics)
    if base is not None and not has_megatrons_rows(base):
        names = ", ".join(sorted({family.model_type for family in FAMILIES.values() if family.megatron}))
        what = f"the base is {base.model_type}" if base.model_type else f"the base has {base.beyond_llama[0]}"
        diagnostics.problem(file.path, f"NeMo's names are known here for {names}; {what}")
    halves: dict[Module, dict[str, Part]] = {}
    for name, kind in file.stored.items() if len(diagnostics.problems) == before else ():
        match = NAME.fullmatch(name)
        if match is None or match[2] not in (*SINGLE, *QKV, *GATE_UP):
            diagnostics.problem(file.path, f"tensor {name} {list(file.shapes[name])} is of no module of a Llama")
        elif kind not in FLOATS:
            diagnostics.problem(file.path, f"tensor {name} has dtype {kind}; supported are {', '.join(FLOATS)}")
        elif file.tensors[name].ndim != 2:
            diagnostics.problem(file.path, f"tensor {name} has shape {list(file.shapes[name])}; it must have 2 axes")
        else:
            half = "A" if match[3] == "linear_in" else "B"
            pieces = _pieces(match[2], half, file.tensors[name], base)
            if isinstance(pieces, str):
                diagnostics.problem(file.path, f"tensor {name} {list(file.shapes[name])}: {pieces}")
                continue
            for part, piece in pieces.items():
                halves.setdefault((int(match[1]), part), {})[half] = Part(name, piece)
    sound = checked_pairs(file.path, halves, base, diagnostics)
    if len(diagnostics.problems) > before:
        return None, {}
    pairs = {}
    for module in sound:
        A, B = halves[module]["A"], halves[module]["B"]
        pairs[module] = Scaled(A, B, A.array.shape[0] if alpha is None else alpha)
    return config_and_parts(pairs, base.num_hidden_layers if base else 1 + max(layer for layer, _ in sound))


def has_megatrons_rows(base: ModelConfig) -> bool:
    """Whether linear_qkv of this base is known: Megatron-Bridge's QKVMapping is one for all of these families. A base
    that does not say of which it is, is a Llama where it is like one."""
    families = families_of(base.model_type)
    alike = families[0].megatron if families else not base.beyond_llama
    return alike and not base.moe and not base.wrapped


def _alpha(file: Path, config: dict[str, Any], diagnostics: Diagnostics) -> float | None:
    """The alpha of every module; None where it is each one's rank. What cannot be honoured is noted."""
    peft = config.get("peft")
    tuning = peft.get("lora_tuning") if isinstance(peft, dict) else config.get("lora_tuning")
    if not isinstance(tuning, dict):
        diagnostics.problem(file, f"{CONFIG} has no peft.lora_tuning: the scale is unknown")
        return None
    for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        if config.get(key, 1) not in (1, None):
            diagnostics.problem(file, f"{CONFIG}: {key} is {shown(config[key])}; its parts must be joined to one first")
    if tuning.get("weight_tying"):
        diagnostics.problem(file, f"{CONFIG}: weight_tying is {shown(tuning['weight_tying'])}, which is not supported")
    alpha, rank = tuning.get("alpha"), tuning.get("adapter_dim")
    if not is_integer(rank) or (alpha is not None and not is_number(alpha)):
        diagnostics.problem(
            file, f"{CONFIG}: adapter_dim is {shown(rank)} and alpha {shown(alpha)}: they must be numbers"
        )
        return None
    return None if alpha is None else float(alpha)


def _pieces(adapter: str, half: str, x: Array, base: ModelConfig | None) -> dict[str, Array] | str:
    """The matrices of PEFT's modules in one of NeMo's, or why it cannot be cut."""
    if adapter in SINGLE:
        return {SINGLE[adapter]: x}
    modules = ("q_proj", "k_proj", "v_proj") if adapter in QKV else ("gate_proj", "up_proj")
    if half == "A":
        return dict.fromkeys(modules, x)
    if adapter in GATE_UP:
        middle, odd = divmod(len(x), 2)
        return "gate and up are half of its rows each" if odd else {"gate_proj": x[:middle], "up_proj": x[middle:]}
    if base is None:
        return "q, k and v lie in one matrix, and how many heads they have, only the base knows: give --model DIR"
    groups, queries = base.num_key_value_heads, base.num_attention_heads // base.num_key_value_heads
    rows = groups * (queries + 2) * base.head_dim
    if len(x) != rows:
        return f"q, k and v of the base have {rows} rows"
    split = x.reshape(groups, queries + 2, base.head_dim, x.shape[1])
    parts = split[:, :queries], split[:, queries], split[:, queries + 1]
    return {name: np.ascontiguousarray(part).reshape(-1, x.shape[1]) for name, part in zip(modules, parts, strict=True)}
