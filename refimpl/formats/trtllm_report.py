"""What TensorRT-LLM would reject of an adapter, and what it would ignore: for `loracle inspect`.

The checks that need only the arrays are in trtllm_pair.py. These are about what else is in the batch, how the engine
was started, and what its loader reads of a PEFT folder (_torch/peft/lora/loaders.py, manager.py).
"""

from collections.abc import Collection, Mapping

from ..adapter import PeftConfig
from ..config import LAYER_MODULES, ModelConfig, Module, module_name
from ..loading.diagnostics import shown
from ..loading.peft_tensors import Parts
from ..tensorrt_llm.rank_alignment import LOADS, misaligned, runs_beside_any

MAX_RANK = 64  # max_lora_rank, unless the engine is started with another
SAME_ID = "caches are keyed by task id alone: an id that is sent again with other weights keeps the first ones"


def about_ranks(ranks: Collection[int], max_rank: int = MAX_RANK) -> list[str]:
    """One line for each way in which the ranks of one adapter can fail."""
    lines, kinds = [], sorted(set(ranks))
    for r in kinds:
        if r > max_rank:
            lines.append(f"rejects rank {r}: it is above max_lora_rank {max_rank}")
    alone = [r for r in kinds if not runs_beside_any(r)]
    if len(kinds) > 1 and (wrong := misaligned(kinds, max(kinds))):
        lines.append(
            f"rejects the ranks {kinds} together in a mixed batch: its kernels load 8, 4, 2 or 1 numbers at a time, as "
            f"the least rank has it, and {wrong} are no multiples of that"
        )
    elif alone:
        sizes = ", ".join(str(n) for n in reversed(LOADS) if n < 8)
        lines.append(
            f"rejects rank {alone[0]} in a mixed batch unless a smaller one is in it: {sizes} and multiples of 8 run"
        )
    if len(kinds) > 1:
        lines.append(f"takes rank {kinds[0]} to {kinds[-1]} for one rank under CUDA graphs: decoding goes wrong there")
    return lines


def about_dense(modules: Collection[str], base: ModelConfig | None) -> list[str]:
    """Its table of widths has hidden_size for what attn_dense reads, so that it looks for B in the wrong place."""
    reads = base.num_attention_heads * base.head_dim if base else 0
    if base is None or "o_proj" not in modules or reads == base.hidden_size:
        return []
    return [
        f"cuts attn_dense (o_proj) wrongly: it takes hidden_size, {base.hidden_size}, for the {reads} that it reads"
    ]


def about_peft(
    parts: Parts, config: PeftConfig, base: ModelConfig | None = None, max_rank: int = MAX_RANK
) -> list[str]:
    """About a PEFT folder that load_adapter takes."""
    lora = {module: tensors["A"].array.shape[0] for module, tensors in parts.items() if "A" in tensors}
    inner = [module for module in lora if module[1] in LAYER_MODULES]
    lines = (
        about_ranks([lora[module] for module in inner], max_rank)
        if inner
        else ["has no LoRA left in it for this engine"]
    )
    if outer := [module_name(module) for module in lora if module not in inner]:
        lines.append(f"ignores the LoRA on {' and '.join(outer)}, without a word")
    if tables := [module_name(module) for module, tensors in parts.items() if tensors.keys() & {"saved", "copy"}]:
        lines.append(
            f"takes the whole {' and '.join(tables)} for every request, those without adapter too, if this is the "
            "only lora_dir, and ignores it otherwise"
        )
    if biases := [
        part.name for tensors in parts.values() for key, part in tensors.items() if key in ("bias", "lora_bias")
    ]:
        lines.append(f"rejects {biases[0]} ({len(biases)} biases): KeyError, unsupported key")
    if config.use_dora:
        lines.append("ignores the magnitude of DoRA in its PyTorch backend")
    if config.alpha_pattern:
        lines.append(f"ignores alpha_pattern {shown(dict(config.alpha_pattern))}: every module gets lora_alpha")
    if config.rank_pattern:
        lines.append(
            f"ignores rank_pattern {shown(dict(config.rank_pattern))} in hf_lora_convert.py: the scale is alpha/r"
        )
    return [*lines, *missing_qkv(inner), *about_dense([full_name for _, full_name in inner], base), SAME_ID]


def uneven_widths(shapes: Mapping[Module, tuple[int, int]]) -> str:
    """A sentence where a module has not one [d_out, d_in] in all layers, as its table of widths has it; else ""."""
    first: dict[str, Module] = {}
    for module, shape in sorted(shapes.items()):
        usual = first.setdefault(module[1], module)
        if shape != shapes[usual]:
            has = " and ".join(f"{module_name(one)} is {list(shapes[one])}" for one in (usual, module))
            return f"{has}, and TensorRT-LLM has one width of a module for all layers"
    return ""


def uneven_layers(modules: Collection[Module], layers: int | None) -> list[str]:
    """A line where a module has rows in some layers alone; layers: how many the base has, None: up to the last one."""
    last = layers or 1 + max((layer for layer, _ in modules), default=-1)
    missing = [(layer, name) for name in sorted({name for _, name in modules}) for layer in range(last)]
    missing = [module for module in missing if module not in modules]
    if not missing:
        return []
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return [
        f"has no row for {module_name(missing[0])}{more}: TensorRT-LLM adds nothing there, and its CUDA graphs want "
        "adapters with the same layers"
    ]


def missing_qkv(modules: Collection[Module]) -> list[str]:
    """q, k and v come together, the missing ones as zeros."""
    names = ("q_proj", "k_proj", "v_proj")
    missing = [name for name in names if name not in {module for _, module in modules}]
    if not 0 < len(missing) < 3:
        return []
    return [f"fills up {' and '.join(missing)} with zeros: the three are enabled together"]
