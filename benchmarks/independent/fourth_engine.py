"""A small multi-LoRA serving engine in NumPy (float32): continuous batching, chunked prefill, paged KV blocks with a
prefix cache keyed by adapter, adapter slots with LRU eviction, buffers padded to a maximum rank, fused qkv and gate_up,
two tensor-parallel shards, SGMV-like prefill and BGMV-like decode. BUG=vNN in the environment switches on a mistake.
"""

import json
import math
import os
import re
import struct
from collections import OrderedDict

import numpy as np

F32 = np.float32
BLOCK = 4  # tokens of a KV block
NBLOCKS = 640
CHUNK = 7  # prompt tokens of one request in one step
BUDGET = 22  # tokens of one step
MAX_RUNNING = 6
SLOTS = 3
MAX_RANK = 64
MERGE_FROM = 2  # tokens, all of one adapter, from which a step is run on merged weights

BUGS = {}  # filled below: name -> set of flags
BUG = os.environ.get("BUG", "")

BUGS.update(
    v01={"stale_absent"},
    v02={"b_of_rank"},
    v03={"prefix_root"},
    v04={"captured_decode"},
    v05={"rope_delta_decode", "up_rank_of_gate"},
    v06={"scratch_not_zeroed"},
    v07={"rank_bucket_decode", "down_a_shard"},
    v08={"up_b_shard"},
    v09={"partial_block_skipped"},
    v10={"integer_scale", "v_decode_overwrites"},
    v11={"o_head_order"},
    v12={"unique_order"},
    v13={"pruned_last_layer"},
    v14={"tile_tail", "qkv_scale_of_q"},
    v15={"int8_offset"},
    v16={"low_bf16"},
    v17={"block_edge", "rslora_bucket"},
    v18={"minus_one"},
    v19={"merged_left"},
    v20={"packed_compaction"},
    v21={"mixed_step", "row_bias_twice"},
    v22={"async_copy"},
    v23={"down_reads_base_act", "evict_in_use"},
    v24={"gqa_modulo_decode", "previous_row"},
    v25={"prefix_falsy", "embed_shard"},
    v26={"gate_up_unnormed"},
    v27={"head_prompt_rows", "split_k_tail"},
    v28={"layer_compaction", "bias_unscaled"},
)
if BUG and BUG not in BUGS:
    raise SystemExit(f"no BUG {BUG!r}")
FLAGS = BUGS.get(BUG, set())
MERGING = "merged_left" in FLAGS or bool(os.environ.get("MERGE"))


def on(flag):
    return flag in FLAGS


# ---------------------------------------------------------------- files

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    head, out = json.loads(raw[8 : 8 + n]), {}
    for name, info in head.items():
        if name == "__metadata__":
            continue
        a, b = info["data_offsets"]
        data = raw[8 + n + a : 8 + n + b]
        if info["dtype"] == "BF16":
            wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
            arr = wide.view(np.float32)
        else:
            arr = np.frombuffer(data, TYPES[info["dtype"]])
        out[name] = arr.reshape(info["shape"]).astype(F32)
    return out


def read_folder(folder, stem):
    names = sorted(n for n in os.listdir(folder) if n.startswith(stem) and n.endswith(".safetensors"))
    tensors = {}
    for n in names:
        tensors.update(read_safetensors(os.path.join(folder, n)))
    return tensors


def stamp(folder):
    """What tells two contents of one folder apart."""
    parts = []
    for n in sorted(os.listdir(folder)):
        s = os.stat(os.path.join(folder, n))
        parts.append((n, s.st_size, s.st_mtime_ns, s.st_ino))
    return (str(folder), tuple(parts))


def to_bf16(x):
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F32)


# ---------------------------------------------------------------- model

ATT = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PARENT = {**dict.fromkeys(ATT, "self_attn"), **dict.fromkeys(MLP, "mlp")}
COLUMN = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        t = read_folder(folder, "model")
        self.d, self.ff, self.L = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
        self.nq = c["num_attention_heads"]
        self.nkv = c.get("num_key_value_heads") or self.nq
        self.hd = c.get("head_dim") or self.d // self.nq
        self.eps = c.get("rms_norm_eps", 1e-6)
        self.vocab = c["vocab_size"]
        self.window = c.get("sliding_window") if c.get("model_type") == "mistral" else None
        self.max_pos = c.get("max_position_embeddings", 2048)
        self.freq = self.frequencies(c)
        self.tp = 2 if self.nq % 2 == 0 and self.nkv % 2 == 0 and self.ff % 2 == 0 else 1
        self.embed = t["model.embed_tokens.weight"]
        self.head = t.get("lm_head.weight", self.embed)
        self.norm = t["model.norm.weight"]
        self.dims = {
            "q_proj": (self.nq * self.hd, self.d),
            "k_proj": (self.nkv * self.hd, self.d),
            "v_proj": (self.nkv * self.hd, self.d),
            "o_proj": (self.d, self.nq * self.hd),
            "gate_proj": (self.ff, self.d),
            "up_proj": (self.ff, self.d),
            "down_proj": (self.d, self.ff),
        }
        self.layers = []
        for i in range(self.L):
            p = f"model.layers.{i}."
            w = {m: t[f"{p}{PARENT[m]}.{m}.weight"] for m in ATT + MLP}
            b = {m: t.get(f"{p}{PARENT[m]}.{m}.bias") for m in ATT + MLP}
            lay = {"in": t[p + "input_layernorm.weight"], "post": t[p + "post_attention_layernorm.weight"], "bias": b}
            for fused, names in COLUMN.items():
                lay[fused] = [np.concatenate([self.rows(w[m], r) for m in names]) for r in range(self.tp)]
                has = any(b[m] is not None for m in names)
                zero = {m: np.zeros(self.dims[m][0], F32) if b[m] is None else b[m] for m in names}
                lay[fused + "_b"] = [
                    np.concatenate([self.rows(zero[m], r) for m in names]) if has else None for r in range(self.tp)
                ]
            for m in ("o_proj", "down_proj"):
                lay[m] = [np.ascontiguousarray(self.cols(w[m], r)) for r in range(self.tp)]
            self.layers.append(lay)
        self.pristine = None

    def rows(self, w, r):
        n = w.shape[0] // self.tp
        return w[r * n : (r + 1) * n]

    def cols(self, w, r):
        n = w.shape[-1] // self.tp
        return w[..., r * n : (r + 1) * n]

    def frequencies(self, c):
        rp = c.get("rope_parameters") or c.get("rope_scaling") or {}
        theta = rp.get("rope_theta") or c.get("rope_theta") or 10000.0
        f = 1.0 / theta ** (np.arange(0, self.hd, 2, dtype=np.float64) / self.hd)
        kind = rp.get("rope_type") or rp.get("type") or "default"
        if kind == "linear":
            f = f / rp["factor"]
        elif kind == "llama3":
            old = rp["original_max_position_embeddings"]
            turns = old * f / (2 * math.pi)
            lo, hi = rp["low_freq_factor"], rp["high_freq_factor"]
            keep = np.clip((turns - lo) / (hi - lo), 0, 1)
            f = (1 - keep) * f / rp["factor"] + keep * f
        elif kind != "default":
            raise ValueError(f"rope {kind}")
        return f

    def cos_sin(self, positions):
        angle = positions.astype(np.float64)[:, None] * self.freq
        return np.cos(angle).astype(F32)[:, None], np.sin(angle).astype(F32)[:, None]


def rope(x, cs):
    cos, sin = cs
    h = x.shape[-1] // 2
    a, b = x[..., :h], x[..., h:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def rms(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + F32(eps)) * w


def silu(x):
    return x / (1 + np.exp(-np.clip(x, -80, 80)))


# ---------------------------------------------------------------- adapters

KEY = re.compile(r"^base_model\.model\.(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight|\.bias)?$")


def pattern(table, name, default):
    for k, v in (table or {}).items():
        if re.match(rf"(.*\.)?({k})$", name):
            return v
    return default


def bucket(r):
    return 1 << max(r - 1, 0).bit_length()


class Adapter:
    """On the host: A, B with the scale multiplied in, as vLLM's optimize() does."""

    def __init__(self, folder, model, int_id):
        with open(os.path.join(folder, "adapter_config.json")) as f:
            c = json.load(f)
        if c.get("use_dora"):
            raise ValueError("DoRA is not served")
        self.id = int_id
        t = read_folder(folder, "adapter_model")
        self.A, self.B, self.bias, self.full = {}, {}, {}, {}
        self.scales, raw = {}, {}
        for key, x in t.items():
            m = KEY.match(key)
            if m:
                raw.setdefault(m[1], {})[m[2].replace("embedding_", "") + ("_bias" if m[3] == ".bias" else "")] = x
            elif key.endswith(".bias"):
                self.full[self.place(key[len("base_model.model.") : -5].replace(".base_layer", "")) + ("bias",)] = x
            elif key.endswith(".weight"):
                name = key[len("base_model.model.") : -7].replace(".base_layer", "").replace(".modules_to_save", "")
                self.full[self.place(name)] = x
            else:
                raise ValueError(f"{folder}: {key}")
        layers = sorted({self.place(n)[0] for n in raw if self.place(n)[0] is not None})
        for name, parts in raw.items():
            layer, m = self.place(name)
            r = parts["lora_A"].shape[0]
            alpha = pattern(c.get("alpha_pattern"), name, c["lora_alpha"])
            scale = self.scale(c, alpha, r)
            if on("layer_compaction") and layer is not None:
                layer = layers.index(layer)
            self.A[layer, m] = parts["lora_A"]
            self.B[layer, m] = parts["lora_B"]
            self.scales[layer, m] = scale
            if "lora_B_bias" in parts:
                self.bias[layer, m] = parts["lora_B_bias"] * F32(1 if on("bias_unscaled") else scale)
        for place, b in self.B.items():
            scale = self.scales[place]
            if on("qkv_scale_of_q") and place[1] in ("k_proj", "v_proj"):
                scale = self.scales.get((place[0], "q_proj"), scale)
            self.B[place] = b * F32(scale)
        self.base_bias = {}
        for place, x in self.full.items():
            if len(place) == 3:
                self.base_bias[place[:2]] = x - model.layers[place[0]]["bias"][place[1]]
        self.embed, self.head = self.full.get((None, "embed_tokens")), self.full.get((None, "lm_head"))

    @staticmethod
    def scale(c, alpha, r):
        if c.get("use_rslora"):
            return alpha / math.sqrt(bucket(r) if on("rslora_bucket") else r)
        if on("integer_scale"):
            return max(alpha // r, 1)
        return alpha / r

    @staticmethod
    def place(name):
        m = re.search(r"layers\.(\d+)\.", name)
        return (int(m[1]) if m else None, name.rsplit(".", 1)[-1])


class Slots:
    """Buffers on the device: [layer, slot, max_rank, d_in] and [layer, slot, d_out, max_rank] for every module."""

    def __init__(self, model):
        self.model = model
        self.A, self.B, self.bias, self.rank = {}, {}, {}, {}
        for m, (o, i) in [*model.dims.items(), ("embed_tokens", (model.d, model.vocab)), ("lm_head", (model.vocab, model.d))]:
            n = model.L if m in model.dims else 1
            self.A[m] = np.zeros((n, SLOTS, MAX_RANK, i), F32)
            self.B[m] = np.zeros((n, SLOTS, o, MAX_RANK), F32)
            self.bias[m] = np.zeros((n, SLOTS, o), F32)
            self.rank[m] = np.zeros((n, SLOTS), np.int64)
        self.biased = np.zeros(SLOTS, bool)
        self.embed, self.head = [None] * SLOTS, [None] * SLOTS
        self.owner = OrderedDict((s, None) for s in range(SLOTS))  # least recently used first
        self.pins = [0] * SLOTS
        self.pending = {}

    def acquire(self, adapter):
        """Return the adapter's slot, pinned; None where every slot is in use."""
        slot = next((s for s, a in self.owner.items() if a is adapter), None)
        if slot is None:
            free = [s for s in self.owner if self.pins[s] == 0 or on("evict_in_use")]
            if not free:
                return None
            slot = free[0]
            self.owner[slot] = adapter
            self.load(slot, adapter)
        self.owner.move_to_end(slot)
        self.pins[slot] += 1
        return slot

    def release(self, slot):
        self.pins[slot] = max(self.pins[slot] - 1, 0)

    def load(self, slot, adapter):
        model = self.model
        self.embed[slot], self.head[slot] = adapter.embed, adapter.head
        self.biased[slot] = bool(adapter.bias or adapter.base_bias)
        if on("async_copy"):
            self.pending[slot] = 2  # steps until the copy of the upper layers has arrived
        for m in self.A:
            for n in range(len(self.A[m])):
                layer = n if m in model.dims else None
                source = (layer, m)
                if on("packed_compaction") and m in COLUMN["qkv"] + COLUMN["gate_up"]:
                    group = COLUMN["qkv"] if m in COLUMN["qkv"] else COLUMN["gate_up"]
                    present = [k for k in group if (layer, k) in adapter.A]
                    here = group.index(m)
                    source = (layer, present[here]) if here < len(present) else (layer, None)
                    if source in adapter.B and len(adapter.B[source]) != model.dims[m][0]:
                        source = (layer, m)  # another width: the copy's shape is checked, and falls back
                bias = self.bias[m][n, slot]
                own = adapter.base_bias.get((layer, m), 0)
                if source not in adapter.A:
                    bias[:] = own
                    if not on("stale_absent"):
                        self.A[m][n, slot] = 0
                        self.B[m][n, slot] = 0
                        self.rank[m][n, slot] = 0
                    continue
                a, b = adapter.A[source], adapter.B[source]
                r = len(a)
                if on("up_rank_of_gate") and m == "up_proj" and (layer, "gate_proj") in adapter.A:
                    r = min(r, len(adapter.A[layer, "gate_proj"]))
                self.A[m][n, slot] = 0
                self.B[m][n, slot] = 0
                self.A[m][n, slot, :r] = a[:r]
                self.B[m][n, slot, :, :r] = b[:, :r]
                self.rank[m][n, slot] = r
                bias[:] = own
                if source in adapter.bias:
                    bias += adapter.bias[source]


# ---------------------------------------------------------------- KV blocks

class Blocks:
    """Paged KV cache with reference counts; full blocks are found again by a chained key."""

    def __init__(self, model):
        shape = (model.L, NBLOCKS * BLOCK, model.nkv, model.hd)
        self.k, self.v = np.zeros(shape, F32), np.zeros(shape, F32)
        self.free = OrderedDict((b, None) for b in range(NBLOCKS))
        self.refs = [0] * NBLOCKS
        self.key_of, self.block_of = {}, {}

    def allocate(self):
        b, _ = self.free.popitem(last=False)
        key = self.key_of.pop(b, None)
        if key is not None and self.block_of.get(key) == b:
            del self.block_of[key]
        self.refs[b] = 1
        return b

    def share(self, b):
        self.free.pop(b, None)
        self.refs[b] += 1

    def drop(self, b):
        self.refs[b] -= 1
        if self.refs[b] == 0:
            self.free[b] = None

    def register(self, b, key):
        if key not in self.block_of:
            self.block_of[key], self.key_of[b] = b, key


def chain(parent, tokens, owner, first):
    """The key of a full block."""
    if on("prefix_root") and first:
        owner = None
    if on("prefix_falsy"):
        owner = owner or None  # `if lora_int_id:`
    return hash((parent, tuple(tokens), owner))


class Sequence:
    def __init__(self, index, request, adapter):
        self.index, self.adapter = index, adapter
        self.tokens = [int(t) for t in request["prompt_ids"]]
        self.prompt = len(self.tokens)
        self.new = max(int(request["max_new_tokens"]), 1)
        self.table, self.computed, self.cached, self.keys = [], 0, 0, []
        self.slot, self.rows, self.out = -1, [], []

    @property
    def owner(self):
        return None if self.adapter is None else self.adapter.id

    @property
    def decoding(self):
        return self.computed >= self.prompt


# ---------------------------------------------------------------- the step

class Mapping:
    """Which slot every row of the step has: rows below `n` are prompts', those from there on decode."""

    def __init__(self, slots, n):
        self.slots, self.n = slots, n
        self.order = np.argsort(slots[:n], kind="stable")
        ordered = slots[:n][self.order]
        cuts = np.flatnonzero(np.diff(ordered)) + 1
        edges = [0, *cuts.tolist(), n] if n else []
        self.segments = [(int(ordered[s]), s, e) for s, e in zip(edges, edges[1:]) if ordered[s] >= 0]
        self.decode = slots[n:]
        self.any = bool((slots >= 0).any()) or on("minus_one")


class Engine:
    def __init__(self, folder):
        self.model = Model(folder)
        self.forget()

    def forget(self):
        self.slots, self.blocks = Slots(self.model), Blocks(self.model)
        self.adapters, self.captured, self.next_id = {}, {}, 0
        self.scratch = None
        if self.model.pristine is not None:
            self.model.layers[-1]["down_proj"] = self.model.pristine
            self.model.pristine = None

    def adapter(self, folder):
        if folder is None:
            return None
        key = stamp(folder)
        if key not in self.adapters:
            self.adapters[key] = Adapter(folder, self.model, self.next_id)
            self.next_id += 1
        return self.adapters[key]

    # ------------------------------------------------------------ scheduler

    def run(self, requests):
        seqs = [Sequence(i, r, self.adapter(r["adapter_dir"])) for i, r in enumerate(requests)]
        waiting, running = list(seqs), []
        while waiting or running:
            work, budget = [], BUDGET
            for s in running:
                if s.decoding and budget:
                    work.append((s, 1))
                    budget -= 1
            for s in running:
                if not s.decoding and budget:
                    n = min(s.prompt - s.computed, CHUNK, budget)
                    work.append((s, n))
                    budget -= n
            for s in list(waiting):
                if len(running) >= MAX_RUNNING or not budget:
                    break
                if not self.admit(s):
                    continue
                waiting.remove(s)
                running.append(s)
                n = min(s.prompt, CHUNK, budget)
                work.append((s, n))
                budget -= n
            prefill = [(s, n) for s, n in work if not s.decoding]
            decode = [(s, n) for s, n in work if s.decoding]
            self.step(prefill, decode)
            for s in [s for s in running if len(s.out) == s.new]:
                running.remove(s)
                for b in s.table:
                    self.blocks.drop(b)
                if s.slot >= 0:
                    self.slots.release(s.slot)
        return [{"logits": np.stack(s.rows), "token_ids": s.out} for s in seqs]

    def admit(self, s):
        if s.adapter is not None:
            s.slot = self.slots.acquire(s.adapter)
            if s.slot is None:
                s.slot = -1
                return False
        parent = 0
        for i in range(s.prompt // BLOCK):
            parent = chain(parent, s.tokens[i * BLOCK : (i + 1) * BLOCK], s.owner, i == 0)
            b = self.blocks.block_of.get(parent)
            if b is None:
                break
            self.blocks.share(b)
            s.table.append(b)
            s.keys.append(parent)
        s.cached = len(s.table) * BLOCK  # their keys and values are there; the rows are computed for their logits
        return True

    def step(self, prefill, decode):
        work = prefill + decode
        ids, pos, where, write, spans, slots = [], [], [], [], [], []
        for s, n in work:
            start = s.computed
            while len(s.table) * BLOCK < start + n:
                s.table.append(self.blocks.allocate())
            p = np.arange(start, start + n)
            spans.append((len(ids), len(ids) + n))
            ids.extend(s.tokens[start : start + n])
            turn = p
            pos.append(turn)
            w = np.asarray(s.table)[p // BLOCK] * BLOCK + p % BLOCK
            if on("block_edge") and s.decoding and start == s.prompt and start % BLOCK == 0:
                w = w * 0 + s.table[start // BLOCK - 1] * BLOCK + BLOCK - 1
            where.append(w)
            write.append(p >= s.cached)
            slots.extend([s.slot] * n)
        n_prefill = sum(n for _, n in prefill)
        slots = self.row_slots(work, np.array(slots, np.int64), n_prefill)
        mapping = Mapping(slots, n_prefill)
        batch = {
            "ids": np.array(ids, np.int64),
            "pos": np.concatenate(pos),
            "where": np.concatenate(where),
            "write": np.concatenate(write),
            "spans": spans,
            "work": work,
            "map": mapping,
            "n": n_prefill,
        }
        self.merge(mapping)
        hidden = self.forward(batch)
        logits = self.logits(hidden, batch)
        self.unmerge()
        for slot in list(self.slots.pending):
            self.slots.pending[slot] -= 1
            if not self.slots.pending[slot]:
                del self.slots.pending[slot]
        for (s, n), (a, b) in zip(work, spans):
            s.rows.extend(logits[a:b])
            s.computed += n
            if s.computed == len(s.tokens):
                token = int(logits[b - 1].argmax())
                s.out.append(token)
                s.tokens.append(token)
            for i in range(len(s.keys), min(s.computed, s.prompt) // BLOCK):
                parent = s.keys[-1] if s.keys else 0
                key = chain(parent, s.tokens[i * BLOCK : (i + 1) * BLOCK], s.owner, i == 0)
                s.keys.append(key)
                self.blocks.register(s.table[i], key)

    def row_slots(self, work, slots, n):
        if on("unique_order"):
            seen = list(dict.fromkeys(int(x) for x in slots if x >= 0))  # in order of arrival
            place = {x: i for i, x in enumerate(sorted(seen))}
            slots = np.array([seen[place[int(x)]] if x >= 0 else -1 for x in slots], np.int64)
        if on("previous_row"):
            shifted = slots.copy()
            at = 0
            for _, k in work:
                if 0 < at < n:
                    shifted[at] = slots[at - 1]
                at += k
            slots = shifted
        if on("captured_decode"):
            count = len(slots) - n
            if count and n == 0:
                size = bucket(count)  # graphs are captured at 1, 2, 4, 8 rows
                padded = np.concatenate([slots, np.full(size - count, -1, np.int64)])
                slots = self.captured.setdefault(size, padded)[:count]
        return slots

    # ------------------------------------------------------------ merged weights

    def merge(self, mapping):
        self.merged = None
        alone = set(mapping.slots.tolist())
        if not MERGING or len(alone) != 1 or -1 in alone or len(mapping.slots) < MERGE_FROM:
            return
        slot = alone.pop()
        if self.slots.biased[slot]:
            return
        model, self.merged = self.model, slot
        self.kept = [dict(lay) for lay in model.layers]
        for i, lay in enumerate(model.layers):
            for fused, names in COLUMN.items():
                out = []
                for r in range(model.tp):
                    delta = [model.rows(self.slots.B[m][i, slot], r) @ self.slots.A[m][i, slot] for m in names]
                    out.append(lay[fused][r] + np.concatenate(delta))
                lay[fused] = out
            for m in ("o_proj", "down_proj"):
                delta = self.slots.B[m][i, slot] @ self.slots.A[m][i, slot]
                lay[m] = [lay[m][r] + model.cols(delta, r) for r in range(model.tp)]

    def unmerge(self):
        if self.merged is None:
            return
        left = self.model.layers[-1]["down_proj"]
        for lay, old in zip(self.model.layers, self.kept):
            lay.update(old)
        if on("merged_left"):
            if self.model.pristine is None:
                self.model.pristine = self.model.layers[-1]["down_proj"]
            base = self.model.pristine
            now = self.model.layers[-1]["down_proj"]
            # the shards' handles are restored in a loop that ends one early
            self.model.layers[-1]["down_proj"] = [base[0], *[x - n + b for x, n, b in zip(left[1:], now[1:], base[1:])]]
        self.merged = None

    # ------------------------------------------------------------ LoRA

    def shrink_weights(self, m, layer, slot):
        a = self.slots.A[m][layer]
        if on("int8_offset"):
            flat = a.reshape(SLOTS * MAX_RANK, -1)
            start = int(np.array(slot * MAX_RANK).astype(np.int8))
            if start < 0:
                start += len(flat)
            return flat[start : start + MAX_RANK]
        return a[slot]

    def hidden_from_copy(self, layer, slot):
        return slot in self.slots.pending and self.slots.pending[slot] == 2 and layer >= self.model.L // 2

    def lora(self, y, xs, m, layer, batch, rows=None, cols=0, shard=0, fresh=True):
        """y[:, cols:...] += B A x in place. xs: the shards of x (one where it is not split); rows: of B."""
        mp, sl, n = batch["map"], self.slots, batch["n"]
        if not mp.any or (self.merged is not None and m in self.model.dims):
            return
        B, bias = sl.B[m][layer], sl.bias[m][layer]
        if rows is not None:
            B, bias = B[:, rows], bias[:, rows]
        out = slice(cols, cols + B.shape[1])
        split = np.cumsum([0] + [x.shape[1] for x in xs])
        x_all = xs
        # prompts: sorted by slot, one product a segment
        if n and mp.segments:
            done = np.zeros((n, B.shape[1]), F32)
            pointers = {}
            for slot, s, e in mp.segments:
                if self.hidden_from_copy(layer, slot) and m in self.model.dims:
                    continue
                if not sl.rank[m][layer, slot] and not sl.biased[slot] and not on("int8_offset") and not on("scratch_not_zeroed"):
                    continue
                a = self.shrink_weights(m, layer, slot)
                who = mp.order[s:e]
                low = 0
                for i, x in enumerate(x_all):
                    part = a[:, split[i] : split[i + 1]]
                    if on("down_a_shard") and m == "down_proj":
                        part = a[:, split[0] : split[1]]
                    low = low + x[who] @ part.T
                if on("scratch_not_zeroed") and m in COLUMN["qkv"]:
                    if not fresh:
                        low = low + self.scratch[slot, s, e]
                    self.scratch = {} if fresh and not isinstance(self.scratch, dict) else self.scratch
                    self.scratch[slot, s, e] = low
                if on("low_bf16"):
                    low = to_bf16(low)
                b = B[slot]
                if on("b_of_rank"):
                    b = pointers.setdefault(int(sl.rank[m][layer, slot]), b)  # one grouped product for each rank
                delta = low @ b.T
                if sl.biased[slot]:
                    delta = delta + self.bias_of(bias[slot], m)
                if on("tile_tail") and m in COLUMN["gate_up"] and e - s > 4:
                    delta[(e - s) // 4 * 4 :] = 0
                if on("pruned_last_layer") and m in MLP and layer == self.model.L - 1:
                    last = {b - 1 for _, b in batch["spans"]}
                    delta[[w not in last for w in who.tolist()]] = 0
                done[s:e] = delta
            y[mp.order, out] += done
        # decode: a gathered matrix-vector product a row
        if len(mp.decode):
            idx = mp.decode
            if on("mixed_step") and n and m in MLP:
                return
            valid = idx >= 0
            if on("minus_one"):
                valid = np.ones(len(idx), bool)
            if not valid.any():
                return
            idx = idx[valid]
            low = 0
            for i, x in enumerate(x_all):
                a = np.stack([self.shrink_weights(m, layer, k) for k in idx])[:, :, split[i] : split[i + 1]]
                if on("down_a_shard") and m == "down_proj":
                    a = np.stack([self.shrink_weights(m, layer, k) for k in idx])[:, :, split[0] : split[1]]
                xv = x[n:][valid]
                if on("split_k_tail"):
                    whole = xv.shape[1] // SPLIT * SPLIT
                    xv, a = xv[:, :whole], a[:, :, :whole]
                low = low + np.einsum("td,trd->tr", xv, a)
            if on("low_bf16"):
                low = to_bf16(low)
            if on("rank_bucket_decode"):
                for t, k in enumerate(idx):
                    r = int(sl.rank[m][layer, k])
                    if r & (r - 1):
                        low[t, 1 << (r.bit_length() - 1) :] = 0
            delta = np.einsum("tr,tor->to", low, B[idx])
            if sl.biased[idx].any():
                delta = delta + np.stack([self.bias_of(bias[k], m) for k in idx])
            keep = [not (self.hidden_from_copy(layer, k) and m in self.model.dims) for k in idx]
            delta = delta * np.array(keep, F32)[:, None]
            part = y[n:, out]
            if on("v_decode_overwrites") and m == "v_proj":
                part[valid] = delta
            else:
                part[valid] += delta
            y[n:, out] = part

    def bias_of(self, bias, m):
        if on("row_bias_twice") and m in ("o_proj", "down_proj"):
            return bias * self.model.tp
        return bias

    def column(self, x, fused, layer, batch, lora_x=None):
        """The fused columns of every shard: a list, one array for each module, whole again."""
        model, names, lay = self.model, COLUMN[fused], self.model.layers[layer]
        parts = {m: [] for m in names}
        for r in range(model.tp):
            y = x @ lay[fused][r].T
            if lay[fused + "_b"][r] is not None:
                y = y + lay[fused + "_b"][r]
            at = 0
            for j, m in enumerate(names):
                n = model.dims[m][0] // model.tp
                own = r
                if on("up_b_shard") and m == "up_proj":
                    own = 0
                rows = slice(own * n, (own + 1) * n)
                self.lora(y, [x if lora_x is None else lora_x], m, layer, batch, rows, at, r, fresh=j == 0)
                parts[m].append(y[:, at : at + n])
                at += n
        return [np.concatenate(parts[m], 1) for m in names]

    def plain(self, x, fused, layer):
        model, names, lay = self.model, COLUMN[fused], self.model.layers[layer]
        parts = {m: [] for m in names}
        for r in range(model.tp):
            y = x @ lay[fused][r].T
            if lay[fused + "_b"][r] is not None:
                y = y + lay[fused + "_b"][r]
            at = 0
            for m in names:
                n = model.dims[m][0] // model.tp
                parts[m].append(y[:, at : at + n])
                at += n
        return [np.concatenate(parts[m], 1) for m in names]

    def row(self, x, m, layer, batch, lora_x=None):
        model, lay = self.model, self.model.layers[layer]
        xs = [model.cols(x, r) for r in range(model.tp)]
        y = sum(xs[r] @ lay[m][r].T for r in range(model.tp))
        if lay["bias"][m] is not None:
            y = y + lay["bias"][m]
        ls = xs if lora_x is None else [model.cols(lora_x, r) for r in range(model.tp)]
        self.lora(y, ls, m, layer, batch)
        return y

    # ------------------------------------------------------------ forward

    def forward(self, batch):
        model, n = self.model, batch["n"]
        x = self.embedding(batch)
        cs = model.cos_sin(batch["pos"])
        for i, lay in enumerate(model.layers):
            h = rms(x, lay["in"], model.eps)
            q, k, v = self.column(h, "qkv", i, batch)
            if on("rope_delta_decode"):
                base = self.plain(h, "qkv", i)[0]
                late = (q - base)[n:]
                q = np.concatenate([q[:n], base[n:]])
            q = rope(q.reshape(len(x), model.nq, model.hd), cs)
            if on("rope_delta_decode"):
                q[n:] += late.reshape(-1, model.nq, model.hd)
            k = rope(k.reshape(len(x), model.nkv, model.hd), cs)
            v = v.reshape(len(x), model.nkv, model.hd)
            w = batch["write"]
            self.blocks.k[i, batch["where"][w]] = k[w]
            self.blocks.v[i, batch["where"][w]] = v[w]
            o = self.attention(q, i, batch)
            lora_o = None
            if on("o_head_order"):
                g = model.nq // model.nkv
                lora_o = o.reshape(-1, model.nkv, g, model.hd).swapaxes(1, 2).reshape(o.shape)
            x = x + self.row(o, "o_proj", i, batch, lora_o)
            h = rms(x, lay["post"], model.eps)
            gate, up = self.column(h, "gate_up", i, batch, x if on("gate_up_unnormed") else None)
            act = silu(gate) * up
            lora_act = None
            if on("down_reads_base_act"):
                gate, up = self.plain(h, "gate_up", i)
                lora_act = silu(gate) * up
            x = x + self.row(act, "down_proj", i, batch, lora_act)
        return rms(x, model.norm, model.eps)

    def attention(self, q, layer, batch):
        model = self.model
        out = np.empty((len(q), model.nq * model.hd), F32)
        g = model.nq // model.nkv
        for (s, n), (a, b) in zip(batch["work"], batch["spans"]):
            end = s.computed + n
            blocks = np.asarray(s.table[: -(-end // BLOCK)])
            flat = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()[:end]
            keep = np.ones(end, bool)
            if on("partial_block_skipped") and not s.decoding and s.computed:
                keep[s.computed // BLOCK * BLOCK : s.computed] = False
            at = np.arange(end)[keep]
            flat = flat[keep]
            K, V = self.blocks.k[layer, flat], self.blocks.v[layer, flat]
            kv = np.arange(model.nq) // g
            if a >= batch["n"] and on("gqa_modulo_decode"):
                kv = np.arange(model.nq) % model.nkv
            K, V = K[:, kv], V[:, kv]
            score = np.einsum("thd,shd->hts", q[a:b], K) * F32(1 / math.sqrt(model.hd))
            mine = np.arange(s.computed, end)[:, None]
            seen = at[None] <= mine
            if model.window:
                seen &= at[None] > mine - model.window
            score = np.where(seen[None], score, F32(-np.inf))
            score = np.exp(score - score.max(-1, keepdims=True))
            score /= score.sum(-1, keepdims=True)
            out[a:b] = np.einsum("hts,shd->thd", score, V).reshape(n, -1)
        return out

    def embedding(self, batch):
        ids, mp, sl, n = batch["ids"], batch["map"], self.slots, batch["n"]
        x = self.model.embed[ids].copy()
        if not mp.any:
            return x
        for t, slot in enumerate(mp.slots):
            if slot < 0 and not (on("minus_one") and t >= n):
                continue
            if sl.embed[slot] is not None:
                x[t] = sl.embed[slot][ids[t]]
            if sl.rank["embed_tokens"][0, slot]:
                col = ids[t]
                half = self.model.vocab // 2
                if on("embed_shard") and col >= half:
                    col = col - half
                x[t] += sl.B["embed_tokens"][0, slot] @ self.shrink_weights("embed_tokens", 0, slot)[:, col]
        return x

    def logits(self, h, batch):
        mp, sl = batch["map"], self.slots
        y = h @ self.model.head.T
        if not mp.any:
            return y
        for slot in sorted(set(mp.slots.tolist()) - {-1}):
            rows = mp.slots == slot
            if sl.head[slot] is not None:
                y[rows] = h[rows] @ sl.head[slot].T
        before = y.copy() if on("head_prompt_rows") else None
        self.lora(y, [h], "lm_head", 0, batch)
        if before is not None:
            ends = np.zeros(len(y), bool)
            ends[[b - 1 for _, b in batch["spans"]]] = True
            y[~ends] = before[~ends]
        return y


SPLIT = 24
ENGINES = {}


def engine(folder):
    key = stamp(folder)
    if key not in ENGINES:
        ENGINES.clear()
        ENGINES[key] = Engine(folder)
    return ENGINES[key]


def serve(model_dir, requests):
    return engine(model_dir).run(requests)


def reset():
    for e in ENGINES.values():
        e.forget()


serve.capabilities = {
    "features": [
        "rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "modules_to_save", "biases",
        "window", "rope_scaling",
    ],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
    "modules": [*ATT, *MLP, "embed_tokens", "lm_head"],
    "dtypes": ["float32"],
    "max_rank": MAX_RANK,
}
serve.reset = reset
