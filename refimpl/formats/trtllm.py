"""An Adapter <-> TensorRT-LLM's pair of arrays.

To the pair, the scale goes into B, in one of three ways. They round in two orders (prescale.py) and differ in which
scale it is, because TensorRT-LLM's two loaders read less of the adapter_config.json than PEFT does:

    convert   lora_alpha / r                            examples/hf_lora_convert.py: both patterns are ignored
    manager   lora_alpha / the rank of the tensor       LoraManager.load_from_hf: alpha_pattern is ignored
    peft      PEFT's own, rounded as convert does       no loader's: what both should have computed

(with rsLoRA the square root of the rank). manager also fills up q, k and v: where an adapter has one of them and not
the others, these get rows of zeros, [hidden_size, r] even where k and v are narrower. What the arrays cannot hold at
all, LoRA on the embedding and the head, layers and biases brought along, TensorRT-LLM drops without a word
(embed_tokens, lm_head) or refuses; here it is an error unless it is asked for.

Back from the pair there is no scale: it comes back as 1, lora_alpha = r. Not that of hf_lora_convert: it takes the
longer side of a matrix for the layer's, which is wrong where r is above hidden_size. Here A is A.
"""

import numpy as np

from ..adapter import Adapter, LoraTensors
from ..adapter_slots import adapter_scale
from ..arrays import Array, Float
from ..config import LAYER_MODULES, ModelConfig, Module, module_name
from ..errors import AdapterError
from ..loading.adapter_pairs import config_of
from ..loading.conversion import all_finite
from ..loading.diagnostics import shown
from ..tensorrt_llm.prescale import cast, prescale
from .plain_lora import cannot_hold, peft_scales
from .trtllm_modules import OF_LLAMA
from .trtllm_pair import STORED, Matrices, Pair, Row, matrices, pack

ORDERS = ("convert", "manager", "peft")
QKV = ("q_proj", "k_proj", "v_proj")


def to_pair(
    adapter: Adapter, dtype: str | None = None, order: str = "convert", leave_out: bool = False
) -> tuple[Pair, list[str]]:
    """The pair, and what its owner should know: one line each for whatever cannot be read back from it.

    dtype is that of the engine (default: the adapter's own). leave_out drops what the pair cannot hold; without it,
    that is an AdapterError, as is a number that is too large for the dtype."""
    if order not in ORDERS:
        raise AdapterError(f"scale order {order!r} is not known; choose one of {', '.join(ORDERS)}")
    dtype = dtype or common_dtype(adapter)
    if dtype not in STORED:
        raise AdapterError(f"dtype {dtype!r} is none of {', '.join(STORED)}, which TensorRT-LLM's arrays can have")
    unheld = cannot_hold(adapter, LAYER_MODULES)
    if unheld and not leave_out:
        experts = any(".experts." in what for what in unheld)
        why = "; its LLM API reads experts from the PEFT folder itself, and arrays of them are not written" * experts
        raise AdapterError(
            f"TensorRT-LLM's arrays cannot hold {shown(unheld)}{why}; leave it out only if it may be lost"
        )
    modules = sorted((module for module in adapter.lora if module[1] in LAYER_MODULES), key=in_file_order)
    scales = engine_scales(adapter, order)
    theirs = {module: scales[module] for module in modules}
    rows: list[Matrices] = []
    for module in modules:
        tensors = adapter.lora[module]
        row = Row(len(rows), OF_LLAMA[module[1]], module[0], tensors.A.shape[0])
        rows.append(Matrices(row, cast(tensors.A, dtype), prescaled(tensors.B, theirs[module], dtype, order)))
        for name, x in (("A", rows[-1].A), ("B", rows[-1].B)):
            if not all_finite(x):
                raise AdapterError(f"{row}: {name} with the scale {theirs[module]:g} in it is too large for {dtype}")
    if order == "manager":
        rows = with_missing_qkv(rows, adapter.config.r)
    notes = [f"left out: {item}" for item in unheld]
    notes += scale_notes(adapter, theirs, order) + rounding_notes(adapter, rows, dtype)
    return pack(rows, columns=4 if order == "manager" else 3), notes


def in_file_order(module: Module) -> tuple[int, str]:
    """By layer, and then as the tensors lie in a safetensors file, by name. No engine minds the order of rows."""
    return module[0], module_name(module)


def common_dtype(adapter: Adapter) -> str:
    """The type of all LoRA tensors. AdapterError if there are several."""
    kinds = sorted({x.dtype.name for tensors in adapter.lora.values() for x in (tensors.A, tensors.B)})
    if len(kinds) != 1:
        raise AdapterError(f"the adapter's tensors are {' and '.join(kinds) or 'none'}: say which dtype the engine has")
    return kinds[0]


def engine_scales(adapter: Adapter, order: str) -> dict[Module, float]:
    """The scale of every module, as this way of loading finds it."""
    if order == "peft":
        return peft_scales(adapter)
    config = adapter.config
    return {
        module: adapter_scale(
            config.lora_alpha, config.r if order == "convert" else tensors.A.shape[0], config.use_rslora
        )
        for module, tensors in adapter.lora.items()
    }


def prescaled(B: Float[Array, "d_out rank"], scale: float, dtype: str, order: str) -> Array:
    """B with its scale in it."""
    return prescale(B, scale, dtype, "manager" if order == "manager" else "convert")


def with_missing_qkv(rows: list[Matrices], r: int) -> list[Matrices]:
    """Rows of zeros for those of q, k and v that the adapter leaves alone, if it has one of the three: at the end of
    each layer's rows, [r, hidden_size] and [hidden_size, r]."""
    modules = {one.row.module.parts[0] for one in rows}
    missing = [name for name in QKV if name not in modules] if modules & {*QKV} else []
    width = next((one.A.shape[1] for one in rows if one.row.module.parts[0] in QKV), 0)
    filled: list[Matrices] = []
    for layer in sorted({one.row.layer for one in rows}):
        used = [one for one in rows if one.row.layer == layer]
        zeros = np.zeros((r, width), rows[0].A.dtype)
        first = len(filled) + len(used)
        added = [Matrices(Row(first + i, OF_LLAMA[n], layer, r), zeros, zeros.T) for i, n in enumerate(missing)]
        filled += [*used, *added]
    return filled


def scale_notes(adapter: Adapter, theirs: dict[Module, float], order: str) -> list[str]:
    """The scale is not in the arrays, and may not be PEFT's either."""
    ours, notes = peft_scales(adapter), []
    wrong = [module for module in theirs if not abs(theirs[module] - ours[module]) <= 1e-12 * abs(ours[module])]
    if wrong:
        pairs = sorted({(f"{ours[module]:g}", f"{theirs[module]:g}") for module in wrong})
        values = ", ".join(f"{mine} became {engine}" for mine, engine in pairs)
        ignored = "rank_pattern and alpha_pattern are" if order == "convert" else "alpha_pattern is"
        where = f"{module_name(wrong[0])}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}"
        notes.append(
            f"{ignored} ignored, as TensorRT-LLM does: the scale of {where}: {values}; the order peft keeps it"
        )
    if any(scale != 1 for scale in theirs.values()):
        values = ", ".join(sorted({f"{scale:g}" for scale in theirs.values()}))
        notes.append(
            f"the scale ({values}) is multiplied into B and cannot be read back: lora_alpha will come back as r"
        )
    return notes


def rounding_notes(adapter: Adapter, rows: list[Matrices], dtype: str) -> list[str]:
    """How many numbers of A the cast has changed (B is another matrix anyway)."""
    kinds = {tensors.A.dtype.name for tensors in adapter.lora.values()} - {dtype}
    if not kinds:
        return []
    changed = total = 0
    for one in rows:
        stored = adapter.lora.get((one.row.layer, one.row.module.parts[0]))
        if stored is not None:
            changed += int(np.sum(one.A.astype(np.float64) != stored.A.astype(np.float64)))
            total += one.A.size
    if not changed:
        return []
    return [f"{' and '.join(sorted(kinds))} became {dtype}: {changed} of {total} numbers of A are rounded"]


def from_pair(pair: Pair, config: ModelConfig, name: str) -> tuple[Adapter, list[str]]:
    """The adapter in a pair that check_pair has passed against this base, and what its owner should know.

    lora_alpha is r, so that the scale is 1: B has it. Fused modules become the layers that they are made of, each with
    the same A. AdapterError for DoRA, whose magnitude is divided by a norm of the base's weights."""
    lora: dict[Module, LoraTensors] = {}
    notes = ["the scale is in B, and lora_alpha is r: what it was before cannot be known"]
    for row in pair.rows():
        read = matrices(pair, row, config)
        if row.is_dora:
            raise AdapterError(f"{row}: is DoRA, and its magnitude fits only the base that it was normalised with")
        cuts = np.cumsum(row.module.part_sizes(config))[:-1]
        for part, B in zip(row.module.parts, np.split(read.B, cuts), strict=True):
            if (row.layer, part) in lora:
                raise AdapterError(f"{row}: another row has {part} of that layer already; PEFT can hold one")
            lora[(row.layer, part)] = LoraTensors(_owned(read.A), _owned(B))
    fused = sorted({row.module.name for row in pair.rows() if len(row.module.parts) > 1})
    if "mlp_gate_up" in fused:
        notes.append("mlp_gate_up: B is read as up's rows and then gate's, as TensorRT-LLM's loaders swap them")
    if fused:
        notes.append(f"{' and '.join(fused)} became the layers that it is made of, each with a copy of A")
    modules, layers = dict(sorted(lora.items())), config.num_hidden_layers
    return Adapter(
        name,
        config_of({module: (len(tensors.A), float(len(tensors.A))) for module, tensors in modules.items()}, layers),
        modules,
    ), notes


def _owned(x: Array) -> Array:
    copy = np.array(x)
    copy.flags.writeable = False
    return copy
