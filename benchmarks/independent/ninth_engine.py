"""A small multi-LoRA serving engine in NumPy: `ninth_engine:serve`.

Continuous batching over a persistent table of rows, chunked prefill, a paged KV cache, adapter slots with padded rank
buffers, and two simulated tensor-parallel ranks where the base can be cut in two. Rotation is interleaved: rows of q
and k are permuted when weights are loaded.
"""

import json
import math
import os
import re
from collections import OrderedDict

import numpy as np

F32 = np.float32
ROWS = 8  # requests that run at once
CHUNK = 16  # prompt tokens of one request in one step
BUDGET = 48  # tokens of one step
SLOTS = 3  # adapters resident at once
MAX_RANK = 64
BLOCK = 8  # tokens of one KV block
BLOCKS = 512
BUCKETS = (1, 2, 4, 8)  # batch sizes of decode graphs
LAYER_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

BUG = os.environ.get("BUG", "")
VARIANTS = {
    "": (),
    "z01": ("moved_row_keeps_slot",),
    "z02": ("scale_by_config_rank",),
    "z03": ("decode_cache_without_delta",),
    "z04": ("bias_on_each_rank",),
    "z05": ("mapping_prefill_first",),
    "z06": ("slot_modules_left",),
    "z07": ("kv_shard_by_group",),
    "z08": ("continued_chunk_is_base",),
    "z09": ("prefix_key_is_flag",),
    "z10": ("packed_by_presence",),
    "z11": ("base_wraps_to_last_slot",),
    "z12": ("slot_scale_kept",),
    "z13": ("k_rows_not_permuted",),
    "z14": ("head_delta_at_sampled_only",),
    "z15": ("graph_slots_kept",),
    "z16": ("decode_tail_of_four",),
    "z17": ("tile_has_one_adapter",),
    "z18": ("stale_ranks",),
    "z19": ("mlp_b_bfloat16",),
    "z20": ("decode_delta_after_rope",),
    "z21": ("o_accumulator_kept",),
    "z22": ("late_layers",),
    "z23": ("scale_by_padded_rank", "first_segment_skipped"),
    "z24": ("big_graph_without_lora", "o_second_shard_dropped"),
    "z25": ("segment_ends_early", "packed_without_rslora"),
    "z26": ("base_row_keeps_slot", "up_shares_gate_a"),
}
if BUG not in VARIANTS:
    raise ValueError(f"unknown BUG {BUG!r}")
ON = frozenset(VARIANTS[BUG])
PREFIX_CACHE = os.environ.get("PREFIX_CACHE", "0") == "1" or "prefix_key_is_flag" in ON


# ---------------------------------------------------------------- files


def bf16_round(x):
    """float32, rounded to bfloat16 (to nearest, ties to even)."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F32)


def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        raw, kind = data[8 + size + start : 8 + size + stop], entry["dtype"]
        if kind == "BF16":
            array = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(F32)
        elif kind in ("F32", "F16", "F64"):
            array = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).astype(F32)
        else:
            raise ValueError(f"{path}: {name} is {kind}")
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def read_folder(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return read_safetensors(os.path.join(folder, "model.safetensors"))
    with open(index) as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    tensors = {}
    for name in names:
        tensors.update(read_safetensors(os.path.join(folder, name)))
    return tensors


# ---------------------------------------------------------------- the base


def rope_of(config, head_dim):
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    freq = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    if kind == "linear":
        freq = freq / scaling["factor"]
    elif kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)
        freq = (1 - keep) * freq / scaling["factor"] + keep * freq
    elif kind != "default":
        raise ValueError(f"rope_type {kind!r} is not supported")
    return freq


def interleave(x, head_dim):
    """Rows of half-split heads, so that each pair of channels lies side by side."""
    heads = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(x.shape)


class Base:
    """The weights, cut for each rank."""

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as file:
            c = json.load(file)
        if c["model_type"] not in ("llama", "mistral", "qwen2", "qwen3"):
            raise ValueError(f"model_type {c['model_type']!r} is not supported")
        w = read_folder(folder)
        self.hidden, self.layers = c["hidden_size"], c["num_hidden_layers"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.inter, self.eps = c["intermediate_size"], F32(c.get("rms_norm_eps", 1e-6))
        self.freq = rope_of(c, self.head_dim)
        self.group = self.heads // self.kv_heads
        self.windows = [self.window(c, i) for i in range(self.layers)]
        whole_kv = self.kv_heads % 2 == 0 or self.kv_heads == 1
        self.tp = 2 if self.heads % 2 == 0 and self.inter % 2 == 0 and whole_kv else 1
        self.q_width = self.heads * self.head_dim // self.tp  # of one rank
        self.kv_rank_heads = max(self.kv_heads // self.tp, 1)
        self.kv_width = self.kv_rank_heads * self.head_dim
        self.mlp_width = self.inter // self.tp
        self.embed = w["model.embed_tokens.weight"]
        self.vocab = len(self.embed)
        tied = c.get("tie_word_embeddings", False) or "lm_head.weight" not in w
        self.head = self.embed if tied else w["lm_head.weight"]
        self.norm = w["model.norm.weight"]
        self.blocks = [self.block(w, f"model.layers.{i}.") for i in range(self.layers)]

    @staticmethod
    def window(c, layer):
        if c["model_type"] == "mistral":
            return c.get("sliding_window")
        if c["model_type"].startswith("qwen") and c.get("use_sliding_window"):
            kinds = c.get("layer_types")
            slides = kinds[layer] == "sliding_attention" if kinds else layer >= c.get("max_window_layers", 28)
            return c.get("sliding_window") if slides else None
        return None

    def kv_rows(self, rank):
        """Rows of k_proj and v_proj that a rank holds: a single KV head is on both."""
        part = rank * self.kv_heads // self.tp if self.kv_heads >= self.tp else 0
        return slice(part * self.head_dim, part * self.head_dim + self.kv_width)

    def rows(self, name, rank):
        if name == "q_proj":
            return slice(rank * self.q_width, (rank + 1) * self.q_width)
        if name in ("k_proj", "v_proj"):
            return self.kv_rows(rank)
        return slice(rank * self.mlp_width, (rank + 1) * self.mlp_width)

    def columns(self, name, rank):
        width = self.q_width if name == "o_proj" else self.mlp_width
        return slice(rank * width, (rank + 1) * width)

    def block(self, w, at):
        def of(name):
            part = "self_attn." if name in LAYER_MODULES[:4] else "mlp."
            weight, bias = w[f"{at}{part}{name}.weight"], w.get(f"{at}{part}{name}.bias")
            if name in ("q_proj", "k_proj"):
                weight = interleave(weight, self.head_dim)
                bias = None if bias is None else interleave(bias, self.head_dim)
            return weight, bias

        def packed(names):
            parts = [of(name) for name in names]
            weights, biases = [], []
            for rank in range(self.tp):
                rows = [self.rows(name, rank) for name in names]
                weights.append(np.concatenate([p[0][r] for p, r in zip(parts, rows)]))
                zeros = [np.zeros(len(p[0]), F32) if p[1] is None else p[1] for p in parts]
                biases.append(np.concatenate([z[r] for z, r in zip(zeros, rows)]))
            return weights, biases

        def by_columns(name):
            weight, bias = of(name)
            return [np.ascontiguousarray(weight[:, self.columns(name, r)]) for r in range(self.tp)], bias

        block = {
            "norm1": w[at + "input_layernorm.weight"],
            "norm2": w[at + "post_attention_layernorm.weight"],
            "qkv": packed(("q_proj", "k_proj", "v_proj")),
            "gate_up": packed(("gate_proj", "up_proj")),
            "o": by_columns("o_proj"),
            "down": by_columns("down_proj"),
        }
        for name in ("q_norm", "k_norm"):
            weight = w.get(f"{at}self_attn.{name}.weight")
            block[name] = None if weight is None else interleave(weight, self.head_dim)
        return block

    def shape(self, module):
        """(d_out, d_in) of a module; of the embedding (hidden, vocab)."""
        name = module[1]
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.inter, self.hidden),
            "up_proj": (self.inter, self.hidden),
            "down_proj": (self.hidden, self.inter),
            "lm_head": (self.vocab, self.hidden),
            "embed_tokens": (self.hidden, self.vocab),
        }[name]

    def modules(self):
        inner = [(i, name) for i in range(self.layers) for name in LAYER_MODULES]
        return [(-1, "embed_tokens"), *inner, (-1, "lm_head")]


def full_name(module):
    layer, name = module
    if name == "lm_head":
        return name
    if name == "embed_tokens":
        return "model.embed_tokens"
    return f"model.layers.{layer}.{'self_attn' if name in LAYER_MODULES[:4] else 'mlp'}.{name}"


# ---------------------------------------------------------------- adapters


class Pair:
    """A, B, bias and scale of one module, as a slot wants them."""

    def __init__(self, A, B, bias, scale):
        self.A, self.B, self.bias, self.scale, self.rank = A, B, bias, scale, len(A)


PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_embedding_A.weight": "A",
    "lora_embedding_B.weight": "B",
}


def load_adapter(folder, base):
    """module -> Pair. ValueError for what this engine does not do."""
    with open(os.path.join(folder, "adapter_config.json")) as file:
        config = json.load(file)
    for key in ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "use_qalora",
                "alora_invocation_tokens", "target_parameters", "use_bdlora"):  # fmt: skip
        if config.get(key):
            raise ValueError(f"{folder}: {key} is not supported")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder}: bias {config['bias']!r} is not supported")
    names = {full_name(module): module for module in base.modules()}
    found = {}
    for name, array in read_safetensors(os.path.join(folder, "adapter_model.safetensors")).items():
        plain = name.removeprefix("base_model.model.")
        ending = next((end for end in PARTS if plain.endswith("." + end)), None)
        module = names.get(plain[: -len(ending) - 1]) if ending else None
        if module is None:
            raise ValueError(f"{folder}: tensor {name} is not supported")
        found.setdefault(module, {})[PARTS[ending]] = array
    return {module: pair_of(config, module, parts, base, folder) for module, parts in found.items()}


def pair_of(config, module, parts, base, folder):
    A, B, bias = parts["A"], parts["B"], parts.get("bias")
    d_out, d_in = base.shape(module)
    rank = len(A)
    if A.shape != (rank, d_in) or B.shape != (d_out, rank) or not 0 < rank <= MAX_RANK:
        raise ValueError(f"{folder}: {full_name(module)} has shapes {A.shape} and {B.shape}")
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", full_name(module)):
            alpha = value
            break
    divisor = rank
    if "scale_by_config_rank" in ON:
        divisor = config["r"]
    if "scale_by_padded_rank" in ON:
        divisor = -(-rank // 8) * 8
    rslora = bool(config.get("use_rslora"))
    if "packed_without_rslora" in ON and module[1] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        rslora = False
    scale = alpha / math.sqrt(divisor) if rslora else alpha / divisor
    if module[1] in ("q_proj", "k_proj") and not ("k_rows_not_permuted" in ON and module[1] == "k_proj"):
        B = interleave(B, base.head_dim)
    if module[1] in ("q_proj", "k_proj") and bias is not None:
        bias = interleave(bias, base.head_dim)
    if "mlp_b_bfloat16" in ON and module[1] in ("gate_proj", "up_proj", "down_proj"):
        B = bf16_round(B)
    return Pair(A, B, bias, scale)


class Buffers:
    """One module's part of all slots: ranks are padded with zeros."""

    def __init__(self, shape):
        d_out, d_in = shape
        self.A = np.zeros((SLOTS, MAX_RANK, d_in), F32)
        self.B = np.zeros((SLOTS, d_out, MAX_RANK), F32)
        self.bias = np.zeros((SLOTS, d_out), F32)
        self.rank = np.zeros(SLOTS, int)
        self.scale = np.zeros(SLOTS, F32)

    def put(self, slot, pair):
        if "stale_ranks" not in ON:
            self.A[slot], self.B[slot] = 0, 0
        self.A[slot, : pair.rank], self.B[slot, :, : pair.rank] = pair.A, pair.B
        self.bias[slot] = 0 if pair.bias is None else pair.bias
        self.rank[slot] = pair.rank
        if not ("slot_scale_kept" in ON and self.scale[slot]):
            self.scale[slot] = pair.scale

    def clear(self, slot):
        if "stale_ranks" not in ON:
            self.A[slot], self.B[slot] = 0, 0
        self.bias[slot], self.rank[slot] = 0, 0
        if "slot_scale_kept" not in ON:
            self.scale[slot] = 0


class Slots:
    """Adapters in slots: pinned while a running request uses them, else the least recently used goes first."""

    def __init__(self, base):
        self.buffers = {module: Buffers(base.shape(module)) for module in base.modules()}
        self.free = list(range(SLOTS))
        self.resident = OrderedDict()  # adapter -> slot, the least recently used first
        self.pins = [0] * SLOTS
        self.pending = []

    def acquire(self, key, pairs):
        """The slot of an adapter, pinned; None if all are in use."""
        if key in self.resident:
            slot = self.resident[key]
        else:
            if self.free:
                slot = self.free.pop()
            else:
                victim = next((k for k, s in self.resident.items() if not self.pins[s]), None)
                if victim is None:
                    return None
                slot = self.resident.pop(victim)
            self.fill(slot, pairs)
            self.resident[key] = slot
        self.resident.move_to_end(key)
        self.pins[slot] += 1
        return slot

    def release(self, slot):
        self.pins[slot] -= 1

    def fill(self, slot, pairs):
        self.land(slot)  # nothing of an earlier load may arrive after this one
        for module, buffers in self.buffers.items():
            if "late_layers" in ON and (module[0] > 0 or module[1] == "lm_head"):
                self.pending.append((slot, module, pairs.get(module)))
                continue
            self.write(slot, buffers, pairs.get(module))

    def write(self, slot, buffers, pair):
        if pair is not None:
            buffers.put(slot, pair)
        elif "slot_modules_left" not in ON:
            buffers.clear(slot)

    def land(self, slot=None):
        """Copies that are under way arrive."""
        for at, module, pair in self.pending:
            if slot is None or at == slot:
                self.write(at, self.buffers[module], pair)
        self.pending = [entry for entry in self.pending if slot is not None and entry[0] != slot]


class Plan:
    """Which slot each token of a step uses, for the two kernels."""

    def __init__(self, slots, decode, sampled=None):
        self.slots, self.decode, self.sampled = slots, decode, sampled
        ids = np.unique(slots)
        if "first_segment_skipped" in ON and not decode:
            ids = ids[1:]
        self.segments = [(s, np.flatnonzero(slots == s)) for s in ids if s >= 0]
        self.off = not len(self.segments)
        if "base_wraps_to_last_slot" in ON and decode:
            self.off = self.off or bool((slots < 0).all())


# ---------------------------------------------------------------- requests


class Request:
    def __init__(self, number, prompt, new, adapter, pairs):
        self.number, self.prompt, self.new, self.adapter, self.pairs = number, prompt, new, adapter, pairs
        self.tokens, self.computed, self.table, self.rows = list(prompt), 0, [], []
        self.slot = -1
        self.keys = []  # of its prompt's whole blocks
        self.cached = 0  # how many of them are in the prefix cache

    @property
    def prefilling(self):
        return self.computed < len(self.prompt)

    @property
    def limit(self):  # tokens that are computed: the last produced one is not
        return len(self.prompt) + self.new - 1


class Pages:
    """KV blocks and the prefix cache over them."""

    def __init__(self, base):
        shape = (base.tp, base.layers, BLOCKS, BLOCK, base.kv_rank_heads, base.head_dim)
        self.k, self.v = np.zeros(shape, F32), np.zeros(shape, F32)
        self.hidden = np.zeros((BLOCKS, BLOCK, base.hidden), F32)  # after the last norm: a reused prompt needs its logits
        self.free = list(range(BLOCKS - 1, -1, -1))
        self.users = [0] * BLOCKS
        self.known = OrderedDict()  # key -> block

    def available(self):
        return len(self.free) + sum(not self.users[b] for b in self.known.values())

    def take(self):
        if not self.free:
            key = next(k for k, b in self.known.items() if not self.users[b])
            self.free.append(self.known.pop(key))
        block = self.free.pop()
        self.users[block] = 1
        return block

    def share(self, key):
        block = self.known[key]
        self.known.move_to_end(key)
        self.users[block] += 1
        return block

    def give(self, block):
        self.users[block] -= 1
        if not self.users[block] and block not in self.known.values():
            self.free.append(block)


# ---------------------------------------------------------------- the engine


def rms(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):
    """x [tokens, heads, head_dim], pairs side by side."""
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


class Engine:
    def __init__(self, folder):
        self.base = Base(folder)
        self.slots, self.pages = Slots(self.base), Pages(self.base)
        self.adapters = {}
        self.row_request, self.row_slot, self.count = [None] * ROWS, np.full(ROWS, -1), 0
        self.graph_slots, self.graph_size = np.full(BUCKETS[-1], -1), 0
        self.scratch = np.zeros((self.base.tp, BUDGET, MAX_RANK), F32)

    # -------- adapters and kernels

    def adapter(self, folder):
        files = [os.stat(os.path.join(folder, name)) for name in ("adapter_config.json", "adapter_model.safetensors")]
        key = (os.path.abspath(folder), *((s.st_mtime_ns, s.st_size, s.st_ino) for s in files))
        if key not in self.adapters:
            self.adapters[key] = load_adapter(folder, self.base)
        return key, self.adapters[key]

    def delta(self, module, x, plan, rows=slice(None), columns=slice(None), bias=True, shrink_with=None, rank=0):
        """What the adapters add at the rows (and from the columns) of a module that a rank holds."""
        m = self.slots.buffers[module]
        a = m if shrink_with is None else self.slots.buffers[shrink_with]
        ids = x.dtype.kind in "iu"
        out = np.zeros((len(x), m.B[0, rows].shape[0]), F32)
        if plan.off:
            return out
        keep = "o_accumulator_kept" in ON and module[1] == "o_proj"
        if plan.decode and not ids:
            # bgmv: every token gathers its own slot, up to the largest rank that is resident
            top = min(-(-int(m.rank.max()) // 8) * 8, MAX_RANK)
            on = plan.slots >= 0
            if "base_wraps_to_last_slot" in ON:
                on = np.ones(len(x), bool)
            slots = plan.slots[on]
            low = np.einsum("trd,td->tr", a.A[slots, :top][:, :, columns], x[on])
            if "decode_tail_of_four" in ON:
                low = np.where(np.arange(top) < (m.rank[slots] // 4 * 4)[:, None], low, 0)
            if keep:
                self.scratch[rank, np.flatnonzero(on), :top] += low
                low = self.scratch[rank, np.flatnonzero(on), :top]
            d = np.einsum("tor,tr->to", m.B[slots][:, rows, :top], low)
            if bias:
                d += m.bias[slots][:, rows]
            out[on] = d * m.scale[slots][:, None]
            return out
        for slot, at in plan.segments:  # sgmv
            r = m.rank[slot]
            if not r:
                continue
            if ids:
                low = m.A[slot][:r, x[at]].T
            else:
                low = x[at] @ a.A[slot, :r, columns].T
            if keep:
                self.scratch[rank, at, :r] += low
                low = self.scratch[rank, at, :r]
            d = low @ m.B[slot, rows, :r].T
            if bias:
                d += m.bias[slot, rows]
            out[at] = d * m.scale[slot]
        return out

    def rows_of_b(self, name, rank):
        base = self.base
        if "kv_shard_by_group" in ON and name in ("k_proj", "v_proj"):
            return base.kv_rows(rank // base.group)
        return base.rows(name, rank)

    # -------- the forward pass

    def forward(self, ids, positions, spans, plan):
        """The last norm's output of every token. spans: (request, first row, rows)."""
        base = self.base
        angle = positions[:, None] * base.freq[None, :]
        cos, sin = np.cos(angle).astype(F32)[:, None, :], np.sin(angle).astype(F32)[:, None, :]
        if "o_accumulator_kept" in ON:
            self.scratch[:] = 0
        x = base.embed[ids] + self.delta((-1, "embed_tokens"), ids, plan)
        for layer, block in enumerate(base.blocks):
            h = rms(x, block["norm1"], base.eps)
            x = x + self.attention(h, layer, block, cos, sin, spans, plan)
            h = rms(x, block["norm2"], base.eps)
            x = x + self.mlp(h, layer, block, plan)
        return rms(x, base.norm, base.eps)

    def qkv(self, h, layer, block, rank, plan):
        """What the packed layer makes, and what the adapters add to each of its three parts."""
        base = self.base
        y = h @ block["qkv"][0][rank].T + block["qkv"][1][rank]
        d = np.zeros_like(y)
        widths = (base.q_width, base.kv_width, base.kv_width)
        parts = [
            self.delta((layer, name), h, plan, rows=self.rows_of_b(name, rank)) for name in ("q_proj", "k_proj", "v_proj")
        ]
        if "packed_by_presence" not in ON:
            return y, np.concatenate(parts, axis=1)
        for slot, at in plan.segments:
            offset, whole = 0, all(self.slots.buffers[layer, n].rank[slot] for n in ("q_proj", "k_proj", "v_proj"))
            for name, part, width in zip(("q_proj", "k_proj", "v_proj"), parts, widths):
                if self.slots.buffers[layer, name].rank[slot]:
                    # whatever lies in the rows of q and k was permuted with them
                    own = part[at] if whole or name != "v_proj" else interleave(part[at].T, base.head_dim).T
                    d[at, offset : offset + width] += own
                    offset += width
        return y, d

    def attention(self, h, layer, block, cos, sin, spans, plan):
        base, pages = self.base, self.pages
        out = np.zeros((len(h), base.hidden), F32)
        hd, group = base.head_dim, (base.heads // base.tp) // base.kv_rank_heads
        a, b = base.q_width, base.q_width + base.kv_width
        for rank in range(base.tp):
            y, d = self.qkv(h, layer, block, rank, plan)

            def heads(z, rotated=True):
                q, k, v = (t.reshape(len(t), -1, hd) for t in (z[:, :a], z[:, a:b], z[:, b:]))
                if block["q_norm"] is not None:
                    q, k = rms(q, block["q_norm"], base.eps), rms(k, block["k_norm"], base.eps)
                return rotate(q, cos, sin), rotate(k, cos, sin), v

            if "decode_delta_after_rope" in ON and plan.decode:
                q, k, v = heads(y)
                q = q + d[:, :a].reshape(q.shape)
                k = k + d[:, a:b].reshape(k.shape)
                v = v + d[:, b:].reshape(v.shape)
            else:
                q, k, v = heads(y + d)
            k_stored, v_stored = k, v
            if "decode_cache_without_delta" in ON and plan.decode:
                _, k_stored, v_stored = heads(y)
            mixed = np.empty((len(h), base.q_width), F32)
            for request, start, n in spans:
                rows = slice(start, start + n)
                past = request.computed
                table = np.asarray(request.table)
                where = np.arange(past, past + n)
                blocks = table[: -(-past // BLOCK)]
                keys = pages.k[rank, layer, blocks].reshape(-1, *k.shape[1:])[:past]
                values = pages.v[rank, layer, blocks].reshape(-1, *v.shape[1:])[:past]
                pages.k[rank, layer, table[where // BLOCK], where % BLOCK] = k_stored[rows]
                pages.v[rank, layer, table[where // BLOCK], where % BLOCK] = v_stored[rows]
                keys, values = np.concatenate([keys, k[rows]]), np.concatenate([values, v[rows]])
                seen = np.arange(past + n)[None, :] <= where[:, None]
                if base.windows[layer]:
                    seen &= np.arange(past + n)[None, :] > where[:, None] - base.windows[layer]
                queries = q[rows].reshape(n, base.kv_rank_heads, group, hd)
                scores = np.einsum("nkgd,mkd->kgnm", queries, keys) * F32(1 / math.sqrt(hd))
                scores = np.where(seen, scores, F32(-np.inf))
                scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
                scores /= scores.sum(axis=-1, keepdims=True)
                mixed[rows] = np.einsum("kgnm,mkd->nkgd", scores, values).reshape(n, -1)
            out += self.by_columns(mixed, "o_proj", block["o"], layer, rank, plan)
        return out if block["o"][1] is None else out + block["o"][1]

    def by_columns(self, x, name, weights, layer, rank, plan):
        """One rank's part of a layer whose input is cut; the sum over the ranks is the layer's."""
        y = x @ weights[0][rank].T
        if "o_second_shard_dropped" in ON and name == "o_proj" and rank:
            return y
        bias = rank == 0 or "bias_on_each_rank" in ON
        return y + self.delta((layer, name), x, plan, columns=self.base.columns(name, rank), bias=bias, rank=rank)

    def mlp(self, h, layer, block, plan):
        base = self.base
        out = np.zeros((len(h), base.hidden), F32)
        gate_b, up_b = self.slots.buffers[layer, "gate_proj"], self.slots.buffers[layer, "up_proj"]
        for rank in range(base.tp):
            y = h @ block["gate_up"][0][rank].T + block["gate_up"][1][rank]
            rows = base.rows("gate_proj", rank)
            gate = self.delta((layer, "gate_proj"), h, plan, rows=rows)
            up = self.delta((layer, "up_proj"), h, plan, rows=rows)
            if "up_shares_gate_a" in ON:
                one = self.delta((layer, "up_proj"), h, plan, rows=rows, shrink_with=(layer, "gate_proj"))
                for slot, at in plan.segments:
                    if gate_b.rank[slot] == up_b.rank[slot]:
                        up[at] = one[at]
            gate, up = y[:, : base.mlp_width] + gate, y[:, base.mlp_width :] + up
            with np.errstate(over="ignore"):
                h2 = gate / (1 + np.exp(-gate)) * up
            out += self.by_columns(h2, "down_proj", block["down"], layer, rank, plan)
        return out if block["down"][1] is None else out + block["down"][1]

    def logits(self, h, plan):
        d = self.delta((-1, "lm_head"), h, plan)
        if "head_delta_at_sampled_only" in ON and plan.sampled is not None:
            d[~plan.sampled] = 0
        return h @ self.base.head.T + d

    # -------- the scheduler

    def admit(self, waiting):
        for request in list(waiting):
            if self.count == ROWS:
                return
            needed = -(-request.limit // BLOCK)
            if needed > self.pages.available():
                return
            slot = -1
            if request.adapter is not None:
                slot = self.slots.acquire(request.adapter, request.pairs)
                if slot is None:
                    continue  # a later one may have a slot
            waiting.remove(request)
            request.slot = slot
            row = self.count
            self.count += 1
            self.row_request[row] = request
            if slot >= 0 or "base_row_keeps_slot" not in ON:
                self.row_slot[row] = slot
            if PREFIX_CACHE:
                self.reuse(request)
            request.table += [self.pages.take() for _ in range(needed - len(request.table))]

    def reuse(self, request):
        """Take over the longest known prefix of whole blocks: at least one prompt token is computed."""
        chain = request.adapter
        if "prefix_key_is_flag" in ON:
            chain = request.adapter is not None
        for start in range(0, len(request.prompt) // BLOCK * BLOCK, BLOCK):
            chain = (chain, tuple(request.prompt[start : start + BLOCK]))
            request.keys.append(chain)
        for i, key in enumerate(request.keys):
            if key not in self.pages.known or (i + 1) * BLOCK >= len(request.prompt):
                break
            request.table.append(self.pages.share(key))
        request.cached = len(request.table)
        request.computed = request.cached * BLOCK
        if request.table:
            hidden = self.pages.hidden[request.table].reshape(-1, self.base.hidden)
            slots = np.full(len(hidden), request.slot)
            request.rows += list(self.logits(hidden, Plan(slots, False)))

    def schedule(self):
        """(row, tokens): one for each that decodes, then chunks of prompts in the order of arrival."""
        counts, left = {}, BUDGET
        for row in range(self.count):
            if not self.row_request[row].prefilling:
                counts[row], left = 1, left - 1
        for row in sorted(range(self.count), key=lambda r: self.row_request[r].number):
            request = self.row_request[row]
            if request.prefilling and left:
                counts[row] = min(CHUNK, left, len(request.prompt) - request.computed)
                left -= counts[row]
        return sorted(counts.items())

    def plan(self, work):
        """The slot of each token of a step, in the order of the rows."""
        decode = not any(self.row_request[row].prefilling for row, _ in work)
        order = work
        if "mapping_prefill_first" in ON:
            order = sorted(work, key=lambda item: not self.row_request[item[0]].prefilling)
        slots, sampled = [], []
        for row, n in order:
            request = self.row_request[row]
            slot, own = self.row_slot[row], [self.row_slot[row]] * n
            if "continued_chunk_is_base" in ON and request.prefilling and request.computed:
                own = [-1] * n
            if "segment_ends_early" in ON and request.prefilling and n > 1:
                own[-1] = -1
            slots += own
        for row, n in work:
            request = self.row_request[row]
            sampled += [False] * (n - 1) + [request.computed + n >= len(request.prompt)]
        slots = np.array(slots)
        if "tile_has_one_adapter" in ON and not decode:
            slots = slots[np.arange(len(slots)) // 8 * 8]
        if decode:
            bucket = next(size for size in BUCKETS if size >= len(slots))
            if "big_graph_without_lora" in ON and bucket == BUCKETS[-1]:
                slots = np.full(len(slots), -1)
            # the graphs read their slots from one buffer, padded to the size that they were captured with
            if not ("graph_slots_kept" in ON and self.graph_size == bucket):
                self.graph_slots[:] = -1
                self.graph_slots[: len(slots)] = slots
            self.graph_size = bucket
            slots = self.graph_slots[: len(slots)].copy()
        return Plan(slots, decode, np.array(sampled))

    def step(self, waiting):
        self.admit(waiting)
        work = self.schedule()
        if not work:
            raise RuntimeError("a request does not fit")
        ids, positions, spans = [], [], []
        for row, n in work:
            request = self.row_request[row]
            spans.append((request, len(ids), n))
            ids += request.tokens[request.computed : request.computed + n]
            positions += range(request.computed, request.computed + n)
        plan = self.plan(work)
        hidden = self.forward(np.array(ids), np.array(positions), spans, plan)
        logits = self.logits(hidden, plan)
        self.slots.land()
        done = []
        for (row, n), (request, start, _) in zip(work, spans):
            for j in range(n):
                at = request.computed + j
                self.pages.hidden[request.table[at // BLOCK], at % BLOCK] = hidden[start + j]
                request.rows.append(logits[start + j])
            request.computed += n
            if PREFIX_CACHE:
                self.remember(request)
            if not request.prefilling:
                request.tokens.append(int(logits[start + n - 1].argmax()))
                if len(request.tokens) == len(request.prompt) + request.new:
                    done.append(row)
        self.finish(done)

    def remember(self, request):
        whole = min(request.computed, len(request.prompt)) // BLOCK
        for i in range(request.cached, whole):
            if request.keys[i] not in self.pages.known:
                self.pages.known[request.keys[i]] = request.table[i]
        request.cached = max(request.cached, whole)

    def finish(self, done):
        """Take the rows out of the table; the last ones move into the holes."""
        for row in done:
            request = self.row_request[row]
            for block in request.table:
                self.pages.give(block)
            if request.slot >= 0:
                self.slots.release(request.slot)
            self.row_request[row] = None
        for hole in sorted(done):
            while self.count and self.row_request[self.count - 1] is None:
                self.count -= 1
            if hole >= self.count:
                break
            last = self.count - 1
            self.row_request[hole], self.row_request[last] = self.row_request[last], None
            if "moved_row_keeps_slot" not in ON:
                self.row_slot[hole] = self.row_slot[last]
        while self.count and self.row_request[self.count - 1] is None:
            self.count -= 1

    def run(self, asked):
        requests = []
        for i, one in enumerate(asked):
            key, pairs = (None, {}) if one["adapter_dir"] is None else self.adapter(one["adapter_dir"])
            requests.append(Request(i, [int(t) for t in one["prompt_ids"]], int(one["max_new_tokens"]), key, pairs))
        waiting = list(requests)
        while waiting or self.count:
            self.step(waiting)
        return [{"logits": np.stack(r.rows), "token_ids": r.tokens[len(r.prompt) :]} for r in requests]


_engines = {}


def serve(model_dir, requests):
    """The interface's function: one engine for the base that was asked last, with all that it has kept."""
    stat = os.stat(os.path.join(model_dir, "config.json"))
    key = (os.path.abspath(model_dir), stat.st_mtime_ns, stat.st_ino)
    if key not in _engines:
        _engines.clear()
        _engines[key] = Engine(model_dir)
    try:
        return _engines[key].run(requests)
    except BaseException:
        _engines.clear()  # nothing half done is left behind
        raise


serve.reset = _engines.clear
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "modules": [*LAYER_MODULES, "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "rope_scaling"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "families": ["llama", "mistral", "qwen2", "qwen3"],
    "max_rank": MAX_RANK,
}
