"""The kernels as an Ops: CUDA, to be used wherever NUMPY is, on a GPU or on the CPU runner.

The model's numbers are float32 arrays that were rounded at the points of a Precision; a kernel is built for one type T.
So each step here asks three things of the Precision: what is stored is of which type (that is T), which roundings
inside the kernel its flags can do, and what remains for the result. What does not fit is refused by the point's name.
A half-precision number that is stored as float32 becomes a half at the kernel's door and loses nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Int, Precision, namespace, rounded, widen
from ..config import EMBED, ClampedGate, Module, View
from ..errors import LoracleError
from ..ops import NUMPY
from ..paged_slots import PagedSlots
from ..plans import AttentionMetadata, LoraMapping
from . import launch
from .launch import PackedLora, stored, widened

# Where the input of a module comes from: the point at which it was rounded.
INPUT = {"o_proj": "attention", "down_proj": "activation"}


def kernel_type(step: str, p: Precision, stored_points: Sequence[str], inner: Sequence[str] = ()) -> str:
    """The T of a step's kernel: the type at `stored_points` (what it reads and writes) if they agree, else float32.

    LoracleError for a rounding at one of the points `inner` to another type: a kernel rounds to T or not at all."""
    if p.compute != "float32":
        raise LoracleError(f"ops cuda: the kernels compute in float32, this precision in {p.compute}; use ops numpy")
    types = {wide(p, point) for point in stored_points}
    dtype = types.pop() if len(types) == 1 else "float32"
    for point in inner:
        if wide(p, point) not in ("float32", dtype):
            raise LoracleError(
                f"ops cuda: {step} cannot round {point} to {wide(p, point)}, because not all of "
                f"{', '.join(stored_points)} are stored in that type; use ops numpy"
            )
    return dtype


def wide(p: Precision, point: str) -> str:
    """The type at a point; a float32 number does not change when it is rounded to float64."""
    return getattr(p, point).replace("float64", "float32")


def rounds(p: Precision, point: str) -> bool:
    """Is the kernel to round here?"""
    return wide(p, point) != "float32"


# ---- LoRA -----------------------------------------------------------------------------------------------------------

# What was packed of each set of slots: (module, T) -> the weights and the number of slots it was made of, and the
# buffers. Packed again when other weights are there; the weights themselves never change.
Groups = list[tuple[frozenset[int], PackedLora]]  # the slots whose weights lie in each buffer
Packings = dict[tuple[Module, str], tuple[Mapping[int, object], int, Groups]]
_packed: WeakKeyDictionary[AdapterSlots, Packings] = WeakKeyDictionary()


def packed_at(adapters: AdapterSlots, module: Module, dtype: str) -> Groups:
    """Return all adapters of one module, packed once per change of the slots."""
    packings = _packed.setdefault(adapters, {})
    weights: Mapping[int, object] = adapters.at(module)
    if isinstance(adapters, PagedSlots):  # compared by where they lie, without reading them
        weights = {slot: adapters.adapters[slot] for slot in weights}
    count = 1 + max(adapters.slots)
    if (module, dtype) not in packings or packings[module, dtype][:2] != (dict(weights), count):
        packings[module, dtype] = (dict(weights), count, _pack(adapters, module, dtype, count))
    return packings[module, dtype][2]


def _pack(adapters: AdapterSlots, module: Module, dtype: str, count: int) -> Groups:
    """Those of one width in one buffer; those that lie in pages stay there, and only their tables are made.

    Nearly always that is one buffer. Adapters that extend the vocabulary are wider at the embedding and the lm_head."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for slot, shape in adapters.shapes(module).items():
        by_shape.setdefault(shape, []).append(slot)
    groups: Groups = []
    for (d_out, _), slots in by_shape.items():
        if isinstance(adapters, PagedSlots):
            packed = launch.page(adapters, [module], [d_out], slots, dtype)
        else:
            group = {slot: adapters.at(module)[slot] for slot in slots}
            packed = launch.pack([group], [d_out], dtype, count, xp=namespace(group[slots[0]].B))
        groups.append((frozenset(slots), packed))
    return groups


def lora_delta(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> None:
    """y[t] += weight * scale * B (A x[t]), and what DoRA does with it: one launch for each of the k adapters that a
    request may sum.

    (And for each width, where adapters of the batch differ in theirs.)"""
    if not mapping.slots & adapters.at(module).keys():
        return
    source, before = (["embedding"], []) if module == EMBED else ([], [INPUT.get(module[1], "norm")])
    dtype = kernel_type("lora_delta", p, ["adapter", "linear", *source, *before], ["lora_rank", "lora_delta"])
    groups = [packed for slots, packed in packed_at(adapters, module, dtype) if mapping.slots & slots]
    inputs = x if module == EMBED else stored(x, dtype)
    for j, column in enumerate(mapping.device.columns):
        for packed in groups:
            if packed.gains is not None and packed.gains.biased:  # y less the base's bias is rounded to what y is
                kernel_type("lora_delta", p, ["adapter", "linear", *source, *before], ["linear"])
            result = stored(y, dtype)  # y itself if it is float32 and contiguous
            launch.lora_delta(result, inputs, packed, mapping, j, rounds(p, "lora_rank"), rounds(p, "lora_delta"))
            if result is not y or p.linear != "float32":
                rows = column.sorted_rows
                y[rows, : packed.columns] = rounded(widened(result[rows, : packed.columns], dtype), p.linear)


# ---- the others -----------------------------------------------------------------------------------------------------


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    metadata: AttentionMetadata,
    p: Precision,
) -> None:
    """cache[slot_mapping[t]] = k[t], v[t]. T is the type at p.kv, and the cache itself float32."""
    dtype = kernel_type("write_kv", p, ["kv"])
    launch.write_kv(k_cache, v_cache, stored(k, dtype), stored(v, dtype), metadata, dtype)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*value_dim"]:
    """softmax(scale * q k^T) v, keys and values read from float32 whatever T is."""
    dtype = kernel_type("attention", p, ["rope", "attention"], ["scores", "probabilities"])
    if view.sinks is not None:
        view = dataclasses.replace(view, sinks=widen(view.sinks, "float32"))
    flags = rounds(p, "scores"), rounds(p, "probabilities")
    out = launch.attention(stored(q, dtype), k_cache, v_cache, metadata, view, dtype, *flags)
    return rounded(widened(out, dtype), p.attention)


def rms_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    dtype = kernel_type("rms_norm", p, ["embedding", "linear", "residual", "norm"], ["norm_inner"])
    y = launch.rms_norm(stored(x, dtype), widen(weight, "float32"), eps, dtype, rounds(p, "norm_inner"))
    return rounded(widened(y, dtype), p.norm)


def layer_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, "parts d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias."""
    dtype = kernel_type("layer_norm", p, ["embedding", "linear", "residual", "norm"], ["norm_inner"])
    y = launch.layer_norm(stored(x, dtype), widen(weight, "float32"), eps, dtype, rounds(p, "norm_inner"))
    return rounded(widened(y, dtype), p.norm)


def rope(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """Each pair of channels turned by its angle."""
    dtype = kernel_type("rope", p, ["linear", "rope"], ["rope_product"])
    y = launch.rope(stored(x, dtype), cos, sin, interleaved, dtype, rounds(p, "rope_product"))
    return rounded(widened(y, dtype), p.rope)


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"] | None, kind: str | ClampedGate, p: Precision
) -> Float[Array, "tokens d_mlp"]:
    """act(gate) * up, or act(gate) alone."""
    dtype = kernel_type("mlp_activation", p, ["linear", "activation"], ["activation_inner"])
    up = None if up is None else stored(up, dtype)
    y = launch.mlp_activation(stored(gate, dtype), up, kind, dtype, rounds(p, "activation_inner"))
    return rounded(widened(y, dtype), p.activation)


def embed(
    table: Float[Array, "vocab d_model"], token_ids: Int[Array, " tokens"], p: Precision
) -> Float[Array, "tokens d_model"]:
    """x[t] = table[token_ids[t]]. T is the type of the table as it was loaded."""
    kernel_type("embed", p, ["embedding"])
    dtype = table.dtype.name if table.dtype.name in launch.STORED else "float32"
    rows = launch.embed(as_stored(table, dtype), token_ids, dtype)
    return rounded(widened(rows, dtype), p.embedding)


def as_stored(weight: Array, dtype: str) -> Array:
    """Weights that are of the kernel's type already, as they are; others as float32."""
    if dtype == "float32":
        return widen(weight, "float32")
    return weight.view(launch.STORED[dtype])


CUDA = dataclasses.replace(
    NUMPY,
    lora_delta=lora_delta,
    write_kv=write_kv,
    attention=attention,
    rms_norm=rms_norm,
    layer_norm=layer_norm,
    rope=rope,
    mlp_activation=mlp_activation,
    embed=embed,
    precision="flash",
)
