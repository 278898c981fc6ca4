"""A multi-LoRA engine in NumPy, to be asked through `serve(model_dir, requests)`.

Continuous batching over a Llama: a paged KV cache with a prefix cache, chunked prefill, a prefill pass (rows sorted by
adapter, segments) and a decode pass (one gathered product a row), fused qkv and gate_up with a LoRA for each slice, and
a few adapter slots with padded ranks that loads use again.

BUG=m01 ... m40 in the environment switches one mistake on (truth.json says which).
"""

import json
import math
import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

BUG = os.environ.get("BUG", "")
PARTS = {  # compounds: two mistakes at once
    "m35": {"m35", "head_last_row", "decode_mlp_unscaled"},
    "m36": {"m36", "prefix_without_adapter", "o_scale_half"},
    "m37": {"m37", "v_takes_A_of_k", "first_decode_no_down"},
    "m38": {"m38", "decode_qkv_x_bfloat16", "up_twice"},
    "m39": {"m39", "decode_layer_bias", "lora_bias_unscaled"},
    "m40": {"m40", "last_request_no_q", "base_rows_down"},
}
ACTIVE = PARTS.get(BUG, {BUG})


def bug(name):
    return name in ACTIVE


N_SLOTS = 3  # adapters on the device at once
RANK_STEP = 16  # slots are padded to a multiple of it
MAX_RUNNING = 8
CHUNK = 8  # prompt tokens of one request in a step
STEP_TOKENS = 40  # prompt tokens of all requests in a step
BLOCK = 4  # tokens in a block of the KV cache
MAX_CACHED = 256  # blocks of finished requests that are kept for their prefixes
TILE = 8

GROUPS = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
GROUP_OF = {module: (group, i) for group, modules in GROUPS.items() for i, module in enumerate(modules)}
PARENT = {module: ("mlp" if group in ("gate_up", "down") else "self_attn") for group, modules in GROUPS.items() for module in modules}


# ---------------------------------------------------------------- files


def bfloat16(x):
    """float32, rounded to what bfloat16 holds."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def float16(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def read_safetensors(path):
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = data[8 + size + start : 8 + size + end]
        if entry["dtype"] == "BF16":
            x = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16, "F64": np.float64}[entry["dtype"]])
        tensors[name] = x.astype(np.float32).reshape(entry["shape"])
    return tensors


def read_folder(folder, stem):
    tensors = {}
    for path in sorted(Path(folder).glob(f"{stem}*.safetensors")):
        tensors |= read_safetensors(path)
    return tensors


# ---------------------------------------------------------------- base


class Base:
    """The base's weights, fused."""

    def __init__(self, folder):
        c = self.config = json.loads((Path(folder) / "config.json").read_text())
        w = read_folder(folder, "model")
        self.d, self.n_layers = c["hidden_size"], c["num_hidden_layers"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.d // self.heads
        self.eps = np.float32(c.get("rms_norm_eps", 1e-6))
        self.window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
        self.embed = w["model.embed_tokens.weight"]
        self.tied = bool(c.get("tie_word_embeddings"))
        self.head = self.embed if self.tied else w["lm_head.weight"]
        self.final_norm = w["model.norm.weight"]
        self.layers, self.widths = [], {}
        for i in range(self.n_layers):
            layer = {}
            for group, modules in GROUPS.items():
                names = [f"model.layers.{i}.{PARENT[m]}.{m}" for m in modules]
                weights = [w[f"{name}.weight"] for name in names]
                self.widths[group] = [len(x) for x in weights]
                biases = [w.get(f"{name}.bias") for name in names]
                whole = None
                if any(b is not None for b in biases):
                    whole = np.concatenate([np.zeros(len(x), np.float32) if b is None else b for b, x in zip(biases, weights)])
                layer[group] = (np.concatenate(weights), whole)
            layer["norm1"] = w[f"model.layers.{i}.input_layernorm.weight"]
            layer["norm2"] = w[f"model.layers.{i}.post_attention_layernorm.weight"]
            self.layers.append(layer)
        self.offsets = {g: np.concatenate([[0], np.cumsum(widths)]) for g, widths in self.widths.items()}
        self.d_in = {"qkv": self.d, "o": self.heads * self.head_dim, "gate_up": self.d, "down": self.widths["gate_up"][0]}
        self.frequency, self.rope_scale = self.rope()

    def rope(self):
        c = self.config
        scaling = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
        theta = scaling.get("rope_theta") or c.get("rope_theta") or 10000.0
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        n = self.head_dim
        f = 1.0 / float(theta) ** (np.arange(0, n, 2) / n)
        scale = 1.0
        if kind == "linear":
            f = f / scaling["factor"]
        elif kind == "llama3":
            turns = scaling["original_max_position_embeddings"] * f / (2 * math.pi)
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            keep = np.clip((turns - low) / (high - low), 0, 1)
            f = (1 - keep) * f / scaling["factor"] + keep * f
        elif kind == "yarn":
            original = scaling.get("original_max_position_embeddings") or c["max_position_embeddings"]
            factor = scaling.get("factor") or c["max_position_embeddings"] / original

            def pair(turns):
                return n * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

            first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
            if scaling.get("truncate", True):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, n - 1)
            stretch = np.clip((np.arange(n // 2) - first) / (last - first or 0.001), 0, 1)
            f = (1 - stretch) * f + stretch * f / factor
            scale = scaling.get("attention_factor") or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        elif kind != "default":
            raise ValueError(f"rope {kind}")
        return f, scale

    def turn(self, x, positions):
        angle = positions[:, None] * self.frequency[None]
        cos = (np.cos(angle) * self.rope_scale).astype(np.float32)[:, None]
        sin = (np.sin(angle) * self.rope_scale).astype(np.float32)[:, None]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps) * weight


# ---------------------------------------------------------------- adapters


def pattern(values, name, default):
    for key, value in (values or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


class Adapter:
    """An adapter's tensors on the host: lora[(layer, module)] = (A, B, bias of B or None, scale)."""

    def __init__(self, folder, tied, capacity):
        c = json.loads((Path(folder) / "adapter_config.json").read_text())
        if c.get("use_dora"):
            raise ValueError("DoRA is not supported")
        halves, self.tables, self.biases, self.lora = {}, {}, {}, {}
        saved = c.get("modules_to_save") or []
        for key, x in read_folder(folder, "adapter_model").items():
            name = key.removeprefix("base_model.model.")
            for end in ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B"):
                if name.endswith("." + end):
                    part = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "b"}.get(end, end[-1])
                    halves.setdefault(name.removesuffix("." + end), {})[part] = x
                    break
            else:
                name = name.replace(".base_layer", "")
                if name.endswith(".bias"):
                    self.biases[place(name.removesuffix(".bias"))] = x
                elif "embed_tokens" in name or "lm_head" in name:
                    self.tables["embed" if "embed_tokens" in name else "head"] = x
                else:
                    raise ValueError(key)
        if tied and len(self.tables) == 1:
            ours = "embed_tokens" if "embed" in self.tables else "lm_head"
            if ours not in saved:
                self.tables = dict.fromkeys(("embed", "head"), next(iter(self.tables.values())))
        for name, parts in halves.items():
            A, B = parts["A"], parts["B"]
            rank, alpha = A.shape[0], pattern(c.get("alpha_pattern"), name, c["lora_alpha"])
            if bug("m13"):
                rank = c["r"]
            if c.get("use_rslora"):
                padded = max(capacity, -(-rank // RANK_STEP) * RANK_STEP)
                scale = alpha / math.sqrt(padded if bug("m14") else rank)
            else:
                scale = alpha / rank
            self.lora[place(name)] = (A, B, parts.get("b"), np.float32(scale))
        self.rank = max([A.shape[0] for A, _, _, _ in self.lora.values()], default=1)


def place(name):
    """model.layers.3.self_attn.q_proj -> (3, "q_proj")"""
    match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)", name)
    return (int(match[1]), match[2]) if match else (-1, name.rsplit(".", 1)[-1])


def identity(folder):
    """What one version of one adapter is known by."""
    stats = [os.stat(Path(folder) / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    return (str(folder), *((s.st_mtime_ns, s.st_size) for s in stats))


class Slots:
    """The adapters on the device: for each layer and group A [slots, slices, R, d_in], and B of each slice
    [slots, d_out, R]. The products always go over all R ranks: what an adapter has not is zero."""

    def __init__(self, base, n):
        self.base, self.n, self.R = base, n, RANK_STEP
        self.host = {}  # identity -> Adapter
        self.A, self.B, self.b, self.layer_bias = [], [], [], []
        for _ in range(base.n_layers):
            self.A.append({g: np.zeros((n, len(m), self.R, base.d_in[g]), np.float32) for g, m in GROUPS.items()})
            self.B.append({g: [np.zeros((n, w, self.R), np.float32) for w in base.widths[g]] for g in GROUPS})
            self.b.append({g: np.zeros((n, base.offsets[g][-1]), np.float32) for g in GROUPS})
            self.layer_bias.append([{} for _ in range(n)])  # a slot's own biases of the base's layers
        shape = (base.n_layers, n)
        self.scale = {g: np.zeros((*shape, len(m)), np.float32) for g, m in GROUPS.items()}
        self.rank = {g: np.zeros((*shape, len(m)), int) for g, m in GROUPS.items()}
        self.embed, self.head = [None] * n, [None] * n  # (A, B, bias, scale)
        self.tables = [{} for _ in range(n)]  # modules_to_save
        self.slot_of, self.key_of = {}, [None] * n
        self.used, self.pins, self.clock = [0] * n, [0] * n, 0
        self.pending = []

    def grow(self, rank):
        R = -(-rank // RANK_STEP) * RANK_STEP
        if R <= self.R:
            return
        for A, B in zip(self.A, self.B):
            for g in GROUPS:
                A[g] = np.pad(A[g], ((0, 0), (0, 0), (0, R - self.R), (0, 0)))
                B[g] = [np.pad(x, ((0, 0), (0, 0), (0, R - self.R))) for x in B[g]]
        self.R = R

    def acquire(self, keys):
        """Slots of these adapters, loaded and pinned; None if there is no room now."""
        new = [key for key in keys if key not in self.slot_of]
        free = [s for s in range(self.n) if not self.pins[s] and self.key_of[s] not in keys]
        if len(new) > len(free):
            return None
        free.sort(key=lambda s: self.used[s])  # the one that was used longest ago goes first
        for key, slot in zip(new, free):
            if self.key_of[slot] is not None and not bug("m07"):
                del self.slot_of[self.key_of[slot]]
            self.key_of[slot], self.slot_of[key] = key, slot
            self.write(slot, key)
        for key in keys:
            self.clock += 1
            self.used[self.slot_of[key]] = self.clock
            self.pins[self.slot_of[key]] += 1
        return [self.slot_of[key] for key in keys]

    def release(self, slots):
        for slot in slots:
            self.pins[slot] -= 1

    def write(self, slot, key):
        if key not in self.host:
            self.host[key] = Adapter(key[0], self.base.tied, self.R)
        adapter = self.host[key]
        self.grow(adapter.rank)
        self.embed[slot] = adapter.lora.get((-1, "embed_tokens"))
        self.head[slot] = adapter.lora.get((-1, "lm_head"))
        self.tables[slot] = adapter.tables
        for layer in range(self.base.n_layers):
            if bug("m12") and layer == self.base.n_layers - 1:
                self.pending.append((slot, layer, adapter))
            else:
                self.write_layer(slot, layer, adapter)

    def flush(self):
        for arguments in self.pending:
            self.write_layer(*arguments)
        self.pending = []

    def write_layer(self, slot, layer, adapter):
        self.layer_bias[layer][slot] = {m: x for (i, m), x in adapter.biases.items() if i == layer}
        for module, (group, i) in GROUP_OF.items():
            lora = adapter.lora.get((layer, module))
            if lora is None and bug("m08"):
                continue
            offset = self.base.offsets[group]
            if not bug("m09") or lora is None:
                self.A[layer][group][slot, i] = 0
                self.B[layer][group][i][slot] = 0
            self.b[layer][group][slot, offset[i] : offset[i + 1]] = 0
            self.scale[group][layer, slot, i] = self.rank[group][layer, slot, i] = 0
            if lora is None:
                continue
            A, B, bias, scale = lora
            if bug("m24") and module == "o_proj":  # the two shards
                A = np.concatenate(np.array_split(A, 2, axis=1)[::-1], axis=1)
            if bug("m22") and module == "down_proj":
                B = float16(B)
            if bug("m21") and group == "gate_up":
                other = adapter.lora.get((layer, GROUPS[group][1 - i]))
                B = np.zeros_like(B) if other is None else other[1]
            r = A.shape[0]
            self.A[layer][group][slot, i, :r] = A
            self.B[layer][group][i][slot, :, : B.shape[1]] = B
            if bias is not None:
                self.b[layer][group][slot, offset[i] : offset[i + 1]] = bias
            if bug("o_scale_half") and module == "o_proj":
                scale = bfloat16(scale).item()
            self.scale[group][layer, slot, i] = scale
            self.rank[group][layer, slot, i] = r


# ---------------------------------------------------------------- which row has which adapter


class Rows:
    """Of a pass: each row's slots and weights [rows, k] (slot -1: none), and the same as segments of sorted rows."""

    def __init__(self, slots, weights):
        k = max([len(s) for s in slots], default=1) or 1
        self.slots = np.full((len(slots), k), -1)
        self.weights = np.zeros((len(slots), k), np.float32)
        for i, (s, w) in enumerate(zip(slots, weights)):
            self.slots[i, : len(s)], self.weights[i, : len(s)] = s, w
        row, column = np.nonzero(self.slots >= 0)
        slot, weight = self.slots[row, column], self.weights[row, column]
        order = np.argsort(slot, kind="stable")
        self.row, self.weight, self.slot = row[order], weight[order], slot[order]
        if bug("m11"):
            self.weight = weight
        ends = np.flatnonzero(np.diff(self.slot)) + 1
        edges = np.concatenate([[0], ends, [len(order)]]) if len(order) else np.zeros(1, int)
        self.segments = [(int(self.slot[a]), int(a), int(b)) for a, b in zip(edges[:-1], edges[1:])]
        if bug("m05"):
            self.tiles = [(int(self.slot[a]), a, min(a + TILE, len(order))) for a in range(0, len(order), TILE)]


class Pass:
    """What the linear layers of one pass need to know."""

    def __init__(self, rows, decode, first=None, last_request=None, chunk_ends=None, new=None):
        self.rows, self.decode = rows, decode
        self.first = first  # prefill: rows that begin a chunk which is not its prompt's first
        self.last_request = last_request  # prefill: the rows of the last request
        self.chunk_ends = chunk_ends
        self.new = new  # decode: rows that decode their first token


def segment_lora(slots, p, layer, group, x, y):
    """Prefill: y[row] += weight * scale * (B A x[row] + bias), segment by segment."""
    rows, offset, n_slices = p.rows, slots.base.offsets[group], len(GROUPS[group])
    source = x[rows.row]
    out = np.zeros((len(rows.row), offset[-1]), np.float32)
    segments = rows.segments
    if bug("m05") and group in ("gate_up", "down"):
        segments = rows.tiles
    for slot, start, end in segments:
        ranks = slots.rank[group][layer, slot]
        if not ranks.any() and not bug("m23"):
            continue
        if bug("m01"):
            end -= 1
        r = slots.R
        if bug("m23") and group == "qkv":
            r = ranks[0]
        if bug("m28"):
            r = slots.rank[group][layer, segments[0][0]].max() or r
        A = slots.A[max(layer - 1, 0) if bug("m20") and group == "down" else layer][group][slot]
        for i in range(n_slices):
            Ai = A[1] if bug("v_takes_A_of_k") and group == "qkv" and i == 2 else A[i]
            low = source[start:end] @ Ai[:r].T
            if bug("m34") and group in ("o", "down"):
                low = bfloat16(low)
            delta = low @ slots.B[layer][group][i][slot][:, :r].T
            bias = slots.b[layer][group][slot, offset[i] : offset[i + 1]]
            scale = slots.scale[group][layer, slot, i]
            if bug("m15") and group == "qkv":
                scale = slots.scale[group][layer, slot, 0] or scale
            if bug("m18") and group == "o":
                scale = slots.scale[group][layer, segments[0][0], i] or scale
            if bug("up_twice") and group == "gate_up" and i == 1:
                scale = scale * scale
            delta = add_bias(delta, bias, scale, p, group)
            out[start:end, offset[i] : offset[i + 1]] = delta * (scale * rows.weight[start:end, None])
    if bug("m04") and group == "qkv":
        out[np.isin(rows.row, p.first)] = 0
    if bug("last_request_no_q") and group == "qkv":
        out[np.isin(rows.row, p.last_request), : offset[1]] = 0
    for slot, start, end in rows.segments:
        target = rows.row[start:end]
        if bug("m02") and group == "o":
            target = np.sort(rows.row)[start:end]
        np.add.at(y, target, out[start:end])
    if bug("base_rows_down") and group == "down":
        base_rows = np.flatnonzero((rows.slots < 0).all(1))
        if len(base_rows) and slots.rank[group][layer, 0, 0]:
            low = x[base_rows] @ slots.A[layer][group][0, 0].T
            y[base_rows] += low @ slots.B[layer][group][0][0].T * slots.scale[group][layer, 0, 0]


def add_bias(delta, bias, scale, p, group):
    """delta + bias, in what is then scaled."""
    if bug("m30") and not p.decode and group in ("qkv", "gate_up"):
        return delta
    if bug("lora_bias_unscaled"):
        return delta + bias / (scale or np.float32(1))
    return delta + bias


def gathered_lora(slots, p, layer, group, x, y):
    """Decode: the same, each row with matrices of its own."""
    rows, offset = p.rows, slots.base.offsets[group]
    n = len(x)
    if bug("m26") and n == 1 and group in ("gate_up", "down"):
        return
    for column in range(rows.slots.shape[1]):
        slot, weight = rows.slots[:, column], rows.weights[:, column]
        hit = np.flatnonzero(slot >= 0)
        if bug("m06") and column == 0:
            hit = np.arange(n)
            weight = np.where(slot < 0, np.float32(1), weight)
        if bug("m27") and group in ("qkv", "o"):
            hit = hit[hit < 4]
        if bug("first_decode_no_down") and group == "down":
            hit = hit[~np.isin(hit, p.new)]
        if not len(hit):
            continue
        s, w = slot[hit], weight[hit]
        if bug("m17"):
            w = np.ones_like(w)
        if bug("m06"):
            s = s % slots.n
        r = min(slots.R, 8) if bug("m25") else slots.R
        A = slots.A[max(layer - 1, 0) if bug("m20") and group == "down" else layer][group][s]  # [rows, slices, R, d_in]
        source = x[hit]
        if bug("decode_qkv_x_bfloat16") and group == "qkv":
            source = bfloat16(source)
        for i in range(len(GROUPS[group])):
            Bs = slots.B[layer][group]
            B = Bs[2 if bug("m19") and group == "qkv" and i == 1 else i][s]
            if bug("m23") and group == "qkv":
                keep = np.arange(slots.R)[None] < slots.rank[group][layer, s, 0][:, None]
                B = B * keep[:, None]
            low = (A[:, i, :r] @ source[:, :, None])[:, :, 0]
            delta = (B[:, :, :r] @ low[:, :, None])[:, :, 0]
            scale = slots.scale[group][layer, s, i][:, None]
            if bug("m15") and group == "qkv":
                first = slots.scale[group][layer, s, 0][:, None]
                scale = np.where(first, first, scale)
            if bug("decode_mlp_unscaled") and group in ("gate_up", "down"):
                scale = np.where(scale, np.float32(1), scale)
            bias = slots.b[layer][group][s, offset[i] : offset[i + 1]]
            if bug("lora_bias_unscaled"):
                delta = delta * scale + bias
            else:
                delta = (delta + bias) * scale
            y[hit, offset[i] : offset[i + 1]] += delta * w[:, None]


def linear(slots, p, layer, group, x):
    """A fused layer: W x + bias, and the LoRA of each slice. Also the output without LoRA."""
    base = slots.base
    weight, bias = base.layers[layer][group]
    y = x @ weight.T
    biases = slots.layer_bias[layer]
    offset = base.offsets[group]
    own = [(slot, biases[slot]) for slot in set(p.rows.slots.ravel()) - {-1} if biases[slot]]
    if bug("decode_layer_bias") and p.decode:
        own = []
    if bias is not None or own:
        full = np.tile(np.zeros(offset[-1], np.float32) if bias is None else bias, (len(x), 1))
        for slot, of_slot in own:
            rows = (p.rows.slots == slot).any(1)
            for i, module in enumerate(GROUPS[group]):
                if module in of_slot:
                    full[rows, offset[i] : offset[i + 1]] = of_slot[module]
        y += full
    plain = y.copy() if bug("m16") and group == "qkv" else y
    (gathered_lora if p.decode else segment_lora)(slots, p, layer, group, x, y)
    return y, plain


# ---------------------------------------------------------------- keys and values


class Cache:
    """Paged keys and values of all layers, and the final hidden states of cached prompts; a block is BLOCK tokens."""

    def __init__(self, base):
        self.base, self.n = base, 0
        self.k = np.zeros((base.n_layers, 0, BLOCK, base.kv_heads, base.head_dim), np.float32)
        self.v = self.k.copy()
        self.hidden = np.zeros((0, BLOCK, base.d), np.float32)
        self.free, self.references, self.known = [], {}, OrderedDict()  # known: prefix key -> block
        self.grow(64)

    def grow(self, more):
        wide = ((0, 0), (0, more), (0, 0), (0, 0), (0, 0))
        self.k, self.v = np.pad(self.k, wide), np.pad(self.v, wide)
        self.hidden = np.pad(self.hidden, ((0, more), (0, 0), (0, 0)))
        self.free += range(self.n, self.n + more)
        self.n += more

    def allocate(self):
        if not self.free:
            self.grow(self.n)
        block = self.free.pop(0)
        self.references[block] = 1
        return block

    def drop(self, block):
        self.references[block] -= 1
        if not self.references[block]:
            self.free.append(block)

    def match(self, prompt, name):
        """The blocks of this prompt that are known, never with its last token."""
        blocks = []
        for end in range(BLOCK, len(prompt), BLOCK):
            key = (name, tuple(prompt[:end]))
            if key not in self.known:
                break
            self.known.move_to_end(key)
            blocks.append(self.known[key])
            self.references[blocks[-1]] += 1
        return blocks

    def remember(self, prompt, name, table):
        for i, end in enumerate(range(BLOCK, len(prompt) + 1, BLOCK)):
            key = (name, tuple(prompt[:end]))
            if key not in self.known:
                self.known[key] = table[i]
                self.references[table[i]] += 1
        while len(self.known) > MAX_CACHED:
            self.drop(self.known.popitem(last=False)[1])


# ---------------------------------------------------------------- the engine


class Request:
    def __init__(self, index, argument):
        self.index, self.prompt = index, list(argument["prompt_ids"])
        self.max_new = argument["max_new_tokens"]
        pairs = argument.get("adapters")
        if not pairs:
            pairs = [(argument["adapter_dir"], 1.0)] if argument.get("adapter_dir") else []
        summed = {}
        for folder, weight in pairs:
            key = identity(folder)
            summed[key] = summed.get(key, 0.0) + weight
        self.keys, self.weights = list(summed), list(summed.values())
        self.produced, self.logits, self.table, self.computed = [], [], [], 0


class Engine:
    def __init__(self, folder):
        self.base = Base(folder)
        self.reset()

    def reset(self, n_slots=N_SLOTS):
        self.slots, self.cache = Slots(self.base, n_slots), Cache(self.base)
        self.graphs = {}

    def serve(self, arguments):
        requests = [Request(i, a) for i, a in enumerate(arguments)]
        most = max([len(r.keys) for r in requests], default=0)
        if most > self.slots.n:
            self.reset(most)
        self.waiting, self.running, self.decoding, self.decode_rows = list(requests), [], [], []
        while self.waiting or self.running:
            self.step()
        return [self.answer(r) for r in requests]

    def answer(self, r):
        return {"token_ids": r.produced, "logits": np.concatenate(r.logits)[: len(r.prompt) + r.max_new - 1]}

    def step(self):
        self.admit()
        decoding = list(self.decoding)
        prefilled = None
        chunks = self.chunks()
        if chunks:
            prefilled = self.prefill(chunks)
        if decoding:
            self.decode(decoding, prefilled)
        for r, _, _ in chunks:
            if r.computed == len(r.prompt):
                self.decoding.append(r)
                self.decode_rows.append((r.slots, r.weights))
        for r in [r for r in self.running if len(r.produced) >= r.max_new]:
            self.finish(r)
        self.slots.flush()

    def admit(self):
        for r in list(self.waiting):
            if len(self.running) == MAX_RUNNING:
                break
            slots = self.slots.acquire(r.keys)
            if slots is None:
                continue  # its adapter waits for a slot; others may pass
            r.slots = slots
            r.name = self.prefix_name(r)
            r.table = self.cache.match(r.prompt, r.name)
            r.computed = len(r.table) * BLOCK
            if r.computed:
                hidden = self.cache.hidden[r.table].reshape(r.computed, -1)
                rows = Rows([r.slots] * r.computed, [r.weights] * r.computed)
                logits = self.head(Pass(rows, False, chunk_ends=np.array([r.computed - 1])), hidden, [r])
                r.logits.append(logits[:, : self.vocabulary(r)])
            self.waiting.remove(r)
            self.running.append(r)

    def prefix_name(self, r):
        if bug("m33"):
            return tuple(zip(r.slots, r.weights))
        if bug("prefix_without_adapter"):
            return ()
        return tuple(zip(r.keys, r.weights))

    def finish(self, r):
        place = self.decoding.index(r)
        del self.decoding[place]
        del self.decode_rows[-1 if bug("m10") else place]
        self.running.remove(r)
        self.slots.release(r.slots)
        self.cache.remember(r.prompt, r.name, r.table)
        for block in r.table:
            self.cache.drop(block)

    def chunks(self):
        """(request, start, end) of the prompts that this step computes."""
        left, chunks = STEP_TOKENS, []
        for r in self.running:
            size = min(CHUNK, left, len(r.prompt) - r.computed)
            if size > 0:
                chunks.append((r, r.computed, r.computed + size))
                left -= size
        return chunks

    def vocabulary(self, r):
        """How many tokens this request's logits are for: an adapter may bring more than the base has."""
        tables = [self.slots.host[key].tables.get("head", ()) for key in r.keys]
        return max(len(self.base.head), *map(len, tables), 0)

    # ---- passes

    def prefill(self, chunks):
        slots, weights, ids, positions, first, edges = [], [], [], [], [], [0]
        for r, start, end in chunks:
            if start:
                first.append(len(ids))
            slots += [r.slots] * (end - start)
            weights += [r.weights] * (end - start)
            ids += r.prompt[start:end]
            positions += range(start, end)
            edges.append(len(ids))
        rows = Rows(slots, weights)
        p = Pass(rows, False, np.array(first, int), np.arange(edges[-2], edges[-1]), np.array(edges[1:]) - 1)
        x = self.forward(p, np.array(ids), np.array(positions), [r for r, _, _ in chunks], edges)
        logits = self.head(p, x, [r for r, _, _ in chunks])
        for (r, start, end), a, b in zip(chunks, edges[:-1], edges[1:]):
            r.computed = end
            r.logits.append(logits[a:b, : self.vocabulary(r)])
            for t in range(start, end):
                self.cache.hidden[r.table[t // BLOCK], t % BLOCK] = x[a + t - start]
            if end == len(r.prompt):
                r.produced.append(int(r.logits[-1][-1].argmax()))
        return rows

    def decode(self, requests, prefilled):
        n = len(requests)
        slots, weights = [s for s, _ in self.decode_rows[:n]], [w for _, w in self.decode_rows[:n]]
        rows = Rows(slots, weights)
        if bug("m29") and prefilled is not None:
            taken, k = min(n, len(prefilled.slots)), prefilled.slots.shape[1]
            rows.slots, rows.weights = np.full((n, k), -1), np.zeros((n, k), np.float32)
            rows.slots[:taken], rows.weights[:taken] = prefilled.slots[:taken], prefilled.weights[:taken]
        if bug("m03"):
            rows = self.graphs.setdefault(n, rows)
        ids = np.array([r.produced[-1] for r in requests])
        positions = np.array([len(r.prompt) + len(r.produced) - 1 for r in requests])
        new = np.array([i for i, r in enumerate(requests) if len(r.produced) == 1], int)
        p = Pass(rows, True, chunk_ends=np.arange(n), new=new)
        x = self.forward(p, ids, positions, requests, list(range(n + 1)))
        logits = self.head(p, x, requests)
        for i, r in enumerate(requests):
            row = logits[i : i + 1, : self.vocabulary(r)]
            r.logits.append(row)
            r.produced.append(int(row[0].argmax()))

    def forward(self, p, ids, positions, requests, edges):
        base, slots = self.base, self.slots
        for r, a, b in zip(requests, edges[:-1], edges[1:]):
            while len(r.table) * BLOCK <= positions[b - 1]:
                r.table.append(self.cache.allocate())
        x = self.embedding(p, ids)
        for layer in range(base.n_layers):
            w = base.layers[layer]
            y, plain = linear(slots, p, layer, "qkv", base.norm(x, w["norm1"]))
            mixed = self.attention(p, layer, y, plain, positions, requests, edges)
            x = x + linear(slots, p, layer, "o", mixed)[0]
            gate, up = np.split(linear(slots, p, layer, "gate_up", base.norm(x, w["norm2"]))[0], 2, axis=1)
            x = x + linear(slots, p, layer, "down", gate / (1 + np.exp(-gate)) * up)[0]
        return base.norm(x, base.final_norm)

    def embedding(self, p, ids):
        base, slots, rows = self.base, self.slots, p.rows
        x = base.embed[np.minimum(ids, len(base.embed) - 1)]
        for slot, start, end in segments_of(p):
            row = rows_of(p, start, end)
            if "embed" in slots.tables[slot]:
                table = slots.tables[slot]["embed"]
                x[row] = table[np.minimum(ids[row], len(table) - 1)]
        for slot, start, end in segments_of(p):
            if slots.embed[slot] is None or (bug("m31") and p.decode):
                continue
            row, (A, B, _, scale) = rows_of(p, start, end), slots.embed[slot]
            weight = weights_of(p, start, end)
            x[row] += A[:, np.minimum(ids[row], A.shape[1] - 1)].T @ B.T * (scale * weight[:, None])
        return x

    def attention(self, p, layer, y, plain, positions, requests, edges):
        base, cache = self.base, self.cache
        q, k, v = self.split(y, positions)
        if bug("m16"):
            _, stored_k, _ = self.split(plain, positions)
        out = np.zeros((len(y), base.heads, base.head_dim), np.float32)
        group = base.heads // base.kv_heads
        for r, a, b in zip(requests, edges[:-1], edges[1:]):
            at = positions[a:b]
            block, inside = np.array(r.table)[at // BLOCK], at % BLOCK
            cache.k[layer, block, inside], cache.v[layer, block, inside] = k[a:b], v[a:b]
            n = at[-1] + 1
            table = r.table[: -(-n // BLOCK)]
            keys = cache.k[layer, table].reshape(-1, base.kv_heads, base.head_dim)[:n]
            values = cache.v[layer, table].reshape(-1, base.kv_heads, base.head_dim)[:n]
            seen = np.arange(n)[None] <= at[:, None]
            if base.window:
                seen &= np.arange(n)[None] > at[:, None] - base.window
            for h in range(base.heads):
                score = q[a:b, h] @ keys[:, h // group].T * np.float32(1 / math.sqrt(base.head_dim))
                score = np.where(seen, score, -np.inf)
                e = np.exp(score - score.max(1, keepdims=True))
                out[a:b, h] = e @ values[:, h // group] / e.sum(1, keepdims=True)
            if bug("m16") and p.decode:  # written before the delta is there
                cache.k[layer, block, inside] = stored_k[a:b]
        return out.reshape(len(y), -1)

    def split(self, y, positions):
        base = self.base
        q, k, v = np.split(y, base.offsets["qkv"][1:3], axis=1)
        q = q.reshape(len(y), base.heads, -1)
        k, v = (x.reshape(len(y), base.kv_heads, -1) for x in (k, v))
        return base.turn(q, positions), base.turn(k, positions), v

    def head(self, p, x, requests):
        base, slots = self.base, self.slots
        logits = np.zeros((len(x), max(self.vocabulary(r) for r in requests)), np.float32)
        logits[:, : len(base.head)] = x @ base.head.T
        for slot, start, end in segments_of(p):
            table = slots.tables[slot].get("head")
            if table is None or (bug("m32") and p.decode):
                continue
            row = rows_of(p, start, end)
            if len(table) > logits.shape[1]:
                logits = np.pad(logits, ((0, 0), (0, len(table) - logits.shape[1])))
            logits[row, : len(table)] = x[row] @ table.T
        for slot, start, end in segments_of(p):
            if slots.head[slot] is None:
                continue
            row, (A, B, bias, scale) = rows_of(p, start, end), slots.head[slot]
            weight = weights_of(p, start, end)
            if bug("head_last_row"):
                kept = np.isin(row, p.chunk_ends)
                row, weight = row[kept], weight[kept]
            delta = x[row] @ A.T @ B.T
            if bias is not None:
                delta = delta + bias
            logits[row, : len(B)] += delta * (scale * weight[:, None])
        return logits


def segments_of(p):
    """(slot, start, end) of the rows sorted by slot; of a decode pass made anew, as its rows may have been set."""
    if not p.decode:
        return p.rows.segments
    return [(int(s), int(s), -1) for s in sorted(set(p.rows.slots.ravel()) - {-1})]


def rows_of(p, start, end):
    return p.rows.row[start:end] if end >= 0 else np.flatnonzero((p.rows.slots == start).any(1))


def weights_of(p, start, end):
    if end >= 0:
        return p.rows.weight[start:end]
    rows = np.flatnonzero((p.rows.slots == start).any(1))
    return np.where(p.rows.slots[rows] == start, p.rows.weights[rows], 0).sum(1)


ENGINES = {}


def serve(model_dir, requests):
    """The function of `loracle check --engine numpy_engine:serve`."""
    config = os.stat(Path(model_dir) / "config.json")
    key = (str(model_dir), config.st_mtime_ns)
    if key not in ENGINES:
        ENGINES.clear()
        ENGINES[key] = Engine(model_dir)
    return ENGINES[key].serve(requests)


def forget():
    for engine in ENGINES.values():
        engine.reset()


serve.reset = forget
serve.capabilities = {
    "modules": [*GROUP_OF, "embed_tokens", "lm_head"],
    "features": [
        *("rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums"),
        *("modules_to_save", "grown_vocabulary", "biases", "window", "rope_scaling"),
    ],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "dtypes": ["float32"],
}
