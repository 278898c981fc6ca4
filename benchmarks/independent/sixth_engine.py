"""quay: a small multi-LoRA serving engine in NumPy float32.

    serve(model_dir, requests) -> [{"logits": [rows, vocab], "token_ids": [...]}, ...]

Continuous batching with a token budget and chunked prefill; paged KV with a prefix cache (blocks keep the final hidden
state as well, so that rows of a cached prompt can be scored); three adapter slots with LRU eviction and a host cache;
fused qkv and gate_up; two tensor-parallel shards and two pipeline stages, simulated in one process; SGMV over sorted
segments for steps with prefill, BGMV in a padded replayed "graph" for pure decode steps.
"""

import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np

F = np.float32
BLOCK = 8  # tokens of a KV block
NBLOCKS = 640
CHUNK = 24  # most prompt tokens of one request in a step
BUDGET = 56  # most tokens of a step
MAX_RUN = 12
SLOTS = 3
MAXR = 64
TILE = 16
GRAPH_SIZES = (4, 8, 12)
FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
PARENT = {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
          **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp")}

BUGS = {
    "h01": ('stale_missing',),
    "h02": ('id_zero', 'bias_per_rank'),
    "h03": ('chunk_mask', 'head_first_shard'),
    "h04": ('packed_offsets',),
    "h05": ('unique_order',),
    "h06": ('gate_up_shard',),
    "h07": ('stage_offset',),
    "h08": ('stale_rank',),
    "h09": ('graph_one_segment',),
    "h10": ('scale_config_r',),
    "h11": ('pad_writes_block',),
    "h12": ('embed_local_id', 'int_scale'),
    "h13": ('delta_after_rope',),
    "h14": ('rank_shards',),
    "h15": ('fused_scale_first',),
    "h16": ('first_targets',),
    "h17": ('tile_floor',),
    "h18": ('prefix_no_adapter',),
    "h19": ('chunk_full_len',),
    "h20": ('prefix_by_slot', 'no_reduce'),
    "h21": ('head_last_only',),
    "h22": ('h_bf16',),
    "h23": ('rescale_again',),
    "h24": ('kv_before_lora', 'rank_tile'),
}
_which = os.environ.get("BUG", "")
if _which and _which not in BUGS:
    raise ImportError(f"unknown BUG {_which!r}")
ON = frozenset(BUGS.get(_which, ()))


# ---------------------------------------------------------------------------------------------- files

def read_safetensors(path):
    raw = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header, base, out = json.loads(raw[8:8 + n]), 8 + n, {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        a, b = info["data_offsets"]
        data, kind = raw[base + a:base + b], info["dtype"]
        if kind == "BF16":
            arr = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(F)
        else:
            arr = np.frombuffer(data, {"F32": np.float32, "F16": np.float16, "F64": np.float64}[kind])
        out[name] = np.ascontiguousarray(arr.astype(F).reshape(info["shape"]))
    return out


def bf16(x):
    """Round to bfloat16, kept as float32."""
    u = np.ascontiguousarray(x, F).view(np.uint32).astype(np.uint64)
    u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000
    return u.astype(np.uint32).view(F)


# ---------------------------------------------------------------------------------------------- adapters

class Adapter:
    """Host copy of one adapter: module key -> (A, B, bias or None, scale)."""

    def __init__(self, folder, number):
        cfg = json.loads((folder / "adapter_config.json").read_text())
        tensors = read_safetensors(folder / "adapter_model.safetensors")
        self.number = number
        parts = {}
        for name, t in tensors.items():
            m = re.match(r"base_model\.model\.(.*)\.lora_(embedding_)?(A|B)(\.weight|\.bias)?$", name)
            if not m:
                raise ValueError(f"tensor {name}")
            what = "bias" if m.group(4) == ".bias" else m.group(3)
            parts.setdefault(m.group(1), {})[what] = t
        self.modules = {}
        for dotted, p in parts.items():
            m = re.match(r"model\.layers\.(\d+)\.\w+\.(\w+)$", dotted)
            key = (int(m.group(1)), m.group(2)) if m else (-1, dotted.split(".")[-1])
            A, B = p["A"], p["B"]
            self.modules[key] = [A, B.copy(), None if p.get("bias") is None else p["bias"].copy(),
                                 self.scale_of(cfg, dotted, A.shape[0])]
        if "fused_scale_first" in ON:
            for (layer, name) in list(self.modules):
                for group in FUSED.values():
                    if name in group and layer >= 0:
                        first = next(n for n in group if (layer, n) in self.modules)
                        self.modules[layer, name][3] = self.modules[layer, first][3]

    @staticmethod
    def scale_of(cfg, dotted, rank):
        alpha = float(cfg.get("lora_alpha", 8))
        for pattern, value in (cfg.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", dotted):
                alpha = float(value)
                break
        r = rank
        if "scale_config_r" in ON:
            r = cfg["r"]
        if cfg.get("use_rslora"):
            return alpha / math.sqrt(r)
        if "int_scale" in ON:
            return float(int(alpha) // int(r))
        return alpha / r


class Registry:
    """Folders -> adapters, by content. Keeps the most recent ones on the host."""

    def __init__(self, host=16):
        self.host, self.adapters, self.numbers = host, OrderedDict(), {}

    def uid(self, folder):
        folder = Path(folder)
        h = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes())
        h.update((folder / "adapter_config.json").read_bytes())
        return h.hexdigest()

    def get(self, uid, folder):
        if uid not in self.adapters:
            number = self.numbers.setdefault(uid, len(self.numbers))
            self.adapters[uid] = Adapter(Path(folder), number)
        self.adapters.move_to_end(uid)
        return self.adapters[uid]

    def trim(self):
        while len(self.adapters) > self.host:
            self.adapters.popitem(last=False)


class Buffers:
    """Slot buffers of one fused module, on all shards. A: [slots, slices, MAXR, d_in], B: [slots, MAXR, d_out] by slice."""

    def __init__(self, names, d_in, d_outs, row_parallel):
        self.names, self.row_parallel, self.d_outs = names, row_parallel, d_outs
        self.A = np.zeros((SLOTS, len(names), MAXR, d_in), F)
        self.B = [np.zeros((SLOTS, MAXR, d), F) for d in d_outs]
        self.bias = [np.zeros((SLOTS, d), F) for d in d_outs]
        self.bounds = np.cumsum([0, *d_outs])
        self.offset = np.tile(self.bounds[:-1], (SLOTS, 1))  # where each slice begins in the fused output, by slot
        self.used = np.zeros(SLOTS, bool)

    def clear(self, slot):
        self.A[slot] = 0
        for B, b in zip(self.B, self.bias):
            B[slot] = 0
            b[slot] = 0
        self.used[slot] = False

    def load(self, slot, entries, allowed):
        """entries: one [A, B, bias, scale] or None for each slice."""
        names = list(self.names)
        entries = [e if n in allowed else None for n, e in zip(names, entries)]
        if not ("stale_missing" in ON and not any(entries)):
            if "stale_rank" in ON and any(entries):
                for i, e in enumerate(entries):
                    if e is None:
                        self.A[slot, i], self.B[i][slot] = 0, 0
                    self.bias[i][slot] = 0
            else:
                self.clear(slot)
        if not any(entries):
            return
        self.offset[slot] = self.bounds[:-1]
        if "packed_offsets" in ON and None in entries:
            at = 0
            for i, e in enumerate(entries):
                self.offset[slot, i] = at if e is not None else self.bounds[i]
                at += self.d_outs[i] if e is not None else 0
        for i, e in enumerate(entries):
            if e is None:
                continue
            A, B, bias, scale = e
            r = A.shape[0]
            if "rank_shards" in ON and not self.row_parallel and r % 2 == 0:
                half = r // 2
                self.A[slot, i, :half] = A[:half]
                self.A[slot, i, MAXR // 2:MAXR // 2 + half] = A[half:r]
            else:
                self.A[slot, i, :r] = A[:r]
            if "rescale_again" in ON:
                B *= F(scale)
                self.B[i][slot, :r] = B.T[:r]
            else:
                self.B[i][slot, :r] = (B * F(scale)).T[:r]
            if bias is not None:
                self.bias[i][slot] = bias * F(scale)
        self.used[slot] = True


class Plan:
    """Which slot each row of a step has, and how the kernels walk over them."""

    def __init__(self, slots, prefill):
        self.slots, self.prefill = np.asarray(slots, np.int64), prefill
        s = self.slots
        self.live = bool((s >= 0).any())
        self.segments = []
        if prefill:
            order = np.argsort(s, kind="stable")
            present = [int(v) for v in np.unique(s) if v >= 0]
            ids = list(present)
            if "unique_order" in ON:
                ids = [int(v) for v in dict.fromkeys(s.tolist()) if v >= 0]
            for value, slot in zip(present, ids):
                rows = order[s[order] == value]
                if "tile_floor" in ON and len(rows) > TILE:
                    rows = rows[:len(rows) // TILE * TILE]
                for a in range(0, len(rows), TILE):
                    self.segments.append((slot, rows[a:a + TILE]))

    def rows(self):
        """The rows of a decode step that have an adapter."""
        live = np.flatnonzero(self.slots >= 0)
        if "graph_one_segment" in ON and len(live):
            live = np.flatnonzero(self.slots == self.slots[live].min())
        return live

    def shrink(self, buf, x, lo=0, hi=None):
        """x [rows, d_in part] -> [rows, slices, MAXR]."""
        A = buf.A[:, :, :, lo:hi]
        h = np.zeros((len(x), A.shape[1], MAXR), F)
        if self.prefill:
            for slot, rows in self.segments:
                h[rows] = np.einsum("td,srd->tsr", x[rows], A[slot], optimize=True)
        else:
            for i in self.rows():
                h[i] = A[self.slots[i]] @ x[i]
        if "h_bf16" in ON:
            h = bf16(h)
        if "rank_tile" in ON:
            h[:, :, 16:] = 0
        return h

    def expand(self, buf, h, y, times=1):
        """y [rows, sum of d_out] += B h + bias."""
        walk = self.segments if self.prefill else [(self.slots[i], np.array([i])) for i in self.rows()]
        for slot, rows in walk:
            for i, d in enumerate(buf.d_outs):
                a = buf.offset[slot, i]
                y[rows, a:a + d] += h[rows, i] @ buf.B[i][slot] + F(times) * buf.bias[i][slot]


# ---------------------------------------------------------------------------------------------- the model

class Model:
    def __init__(self, folder):
        folder = Path(folder)
        c = self.c = json.loads((folder / "config.json").read_text())
        w = {}
        for path in sorted(folder.glob("*.safetensors")):
            if "adapter" not in path.name:
                w.update(read_safetensors(path))
        self.d, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.kv = c.get("num_key_value_heads") or self.heads
        self.hd = c.get("head_dim") or self.d // self.heads
        self.ff, self.vocab, self.L = c["intermediate_size"], c["vocab_size"], c["num_hidden_layers"]
        self.eps = F(c.get("rms_norm_eps", 1e-6))
        theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta") or 10000.0
        self.freq = 1.0 / theta ** (np.arange(0, self.hd, 2, dtype=np.float64) / self.hd)
        self.tp = 2 if self.heads % 2 == 0 and self.ff % 2 == 0 else 1  # an odd number of KV heads is on both shards
        self.embed = w["model.embed_tokens.weight"]
        self.head = w["lm_head.weight"] if "lm_head.weight" in w and not c.get("tie_word_embeddings") else self.embed
        self.norm = w["model.norm.weight"]
        self.vhalf = -(-self.vocab // 2)
        self.split = -(-self.L // 2)  # layers of the first pipeline stage
        self.layers = []
        for i in range(self.L):
            p = f"model.layers.{i}."
            g = lambda n: w[f"{p}{PARENT[n]}.{n}.weight"]
            self.layers.append({
                "n1": w[p + "input_layernorm.weight"], "n2": w[p + "post_attention_layernorm.weight"],
                "qkv": np.concatenate([g("q_proj"), g("k_proj"), g("v_proj")]),
                "o": g("o_proj"), "gate_up": np.concatenate([g("gate_proj"), g("up_proj")]), "down": g("down_proj")})
        q, k = self.heads * self.hd, self.kv * self.hd
        self.dims = {"qkv": (self.d, (q, k, k), False), "o": (q, (self.d,), True),
                     "gate_up": (self.d, (self.ff, self.ff), False), "down": (self.ff, (self.d,), True)}
        self.qdim, self.kdim = q, k

    def rms(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=F) + self.eps) * w

    def rope(self, x, pos):
        """x [rows, heads, hd]"""
        ang = pos[:, None] * self.freq[None]
        cos, sin = np.cos(ang).astype(F)[:, None], np.sin(ang).astype(F)[:, None]
        a, b = x[..., :self.hd // 2], x[..., self.hd // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Seq:
    def __init__(self, index, ids, new, uid, folder):
        self.index, self.ids, self.prompt, self.new = index, [int(i) for i in ids], len(ids), new
        self.uid, self.folder, self.slot = uid, folder, -1
        self.done, self.blocks, self.keys, self.rows = 0, [], [], []
        self.cached = 0  # tokens whose hidden states still wait to be scored

    @property
    def produced(self):
        return len(self.ids) - self.prompt


class Engine:
    def __init__(self, folder):
        m = self.m = Model(folder)
        self.registry = Registry()
        self.bufs = {}  # (stage, local layer, fused module)
        for i in range(m.L):
            stage, local = (0, i) if i < m.split else (1, i - m.split)
            for name, parts in FUSED.items():
                d_in, d_outs, row = m.dims[name]
                self.bufs[stage, local, name] = Buffers(parts, d_in, d_outs, row)
        self.emb = Buffers(("embed_tokens",), m.vocab, (m.d,), False)
        self.lm = Buffers(("lm_head",), m.d, (m.vocab,), False)
        self.K = np.zeros((m.L, NBLOCKS * BLOCK, m.kv, m.hd), F)
        self.V = np.zeros_like(self.K)
        self.H = np.zeros((NBLOCKS * BLOCK, m.d), F)
        self.slot_of, self.lru = {}, OrderedDict((s, None) for s in range(SLOTS))  # slot -> uid, oldest first
        self.allowed = None
        self.free = list(range(NBLOCKS - 1, 0, -1))  # a stack; block 0 takes what padding writes
        if "pad_writes_block" in ON:
            self.free = list(range(NBLOCKS - 1, -1, -1))
        self.refs = np.zeros(NBLOCKS, np.int64)
        self.by_key, self.key_of, self.idle = {}, {}, OrderedDict()
        self.graphs = {}

    # ------------------------------------------------------------------ slots

    def acquire(self, seq, pinned):
        """Put the adapter of a request into a slot. False if all slots are in use by others."""
        if seq.uid is None:
            seq.slot = -1
            return True
        adapter = self.registry.get(seq.uid, seq.folder)
        slot = self.slot_of.get(seq.uid)
        if slot is None:
            slot = next((s for s in self.lru if s not in pinned), None)
            if slot is None:
                return False
            old = self.lru[slot]
            if old is not None:
                del self.slot_of[old]
            self.load(slot, adapter)
            self.slot_of[seq.uid], self.lru[slot] = slot, seq.uid
        self.lru.move_to_end(slot)
        seq.slot = slot
        if "id_zero" in ON and not adapter.number:
            seq.slot = -1
        return True

    def load(self, slot, adapter):
        m = self.m
        names = {n for _, n in adapter.modules}
        if "first_targets" in ON:
            if self.allowed is None:
                self.allowed = names
            names = self.allowed
        for (stage, local, fused), buf in self.bufs.items():
            layer = local if stage == 0 or "stage_offset" in ON else local + m.split
            entries = [adapter.modules.get((layer, n)) for n in FUSED[fused]]
            buf.load(slot, entries, names)
            if fused == "gate_up" and "gate_up_shard" in ON and m.tp == 2:
                # [gate; up] is cut in the middle, and each shard takes its part for its halves of gate and up
                half = m.ff // 2
                gate, up = buf.B[0][slot].copy(), buf.B[1][slot].copy()
                buf.B[1][slot][:, :half] = gate[:, half:]
                buf.B[0][slot][:, half:] = up[:, :half]
        self.emb.load(slot, [adapter.modules.get((-1, "embed_tokens"))], names)
        self.lm.load(slot, [adapter.modules.get((-1, "lm_head"))], names)

    # ------------------------------------------------------------------ blocks

    def new_block(self):
        if self.free:
            b = self.free.pop()
        else:
            b, _ = self.idle.popitem(last=False)
            del self.by_key[self.key_of.pop(b)]
        self.refs[b] = 1
        return b

    def key(self, parent, tokens, seq):
        uid = seq.uid
        if "prefix_by_slot" in ON:
            uid = seq.slot
        if "prefix_no_adapter" in ON:
            uid = None
        return (hash((parent, tuple(tokens), uid)), tuple(tokens))

    def attach(self, seq):
        """Take blocks of earlier prompts as far as they are the same; the last token is always computed."""
        parent = 0
        while (len(seq.blocks) + 1) * BLOCK <= len(seq.ids) - 1:
            a = len(seq.blocks) * BLOCK
            key = self.key(parent, seq.ids[a:a + BLOCK], seq)
            b = self.by_key.get(key)
            if b is None:
                break
            self.refs[b] += 1
            self.idle.pop(b, None)
            seq.blocks.append(b)
            seq.keys.append(key)
            parent = key
        seq.done = seq.cached = len(seq.blocks) * BLOCK

    def publish(self, seq):
        """Name the blocks that are full by now."""
        while (len(seq.keys) + 1) * BLOCK <= seq.done:
            n = len(seq.keys)
            key = self.key(seq.keys[-1] if n else 0, seq.ids[n * BLOCK:(n + 1) * BLOCK], seq)
            if key not in self.by_key:
                self.by_key[key] = seq.blocks[n]
                self.key_of[seq.blocks[n]] = key
            seq.keys.append(key)

    def release(self, seq):
        for b in seq.blocks:
            self.refs[b] -= 1
            if self.refs[b] == 0:
                if b in self.key_of:
                    self.idle[b] = None
                else:
                    self.free.append(b)

    # ------------------------------------------------------------------ forward

    def linear(self, x, weight, fused, buf, plan):
        """One fused linear layer with its LoRA; x [rows, d_in]."""
        m = self.m
        if not buf.row_parallel:  # columns: each shard has a part of the outputs
            half = weight.shape[0] // m.tp
            y = np.concatenate([x @ weight[r * half:(r + 1) * half].T for r in range(m.tp)], 1) if m.tp > 1 else x @ weight.T
            y = np.ascontiguousarray(y)
            if plan.live:
                plan.expand(buf, plan.shrink(buf, x), y)
            return y
        part = x.shape[1] // m.tp
        y = sum(x[:, r * part:(r + 1) * part] @ weight[:, r * part:(r + 1) * part].T for r in range(m.tp))
        if plan.live:
            hs = [plan.shrink(buf, x[:, r * part:(r + 1) * part], r * part, (r + 1) * part) for r in range(m.tp)]
            h = hs[0] if "no_reduce" in ON and fused == "down" else sum(hs)
            plan.expand(buf, h, y, times=m.tp if "bias_per_rank" in ON else 1)
        return y

    def forward(self, ids, pos, kvslots, plan, groups):
        """groups: [(first row, rows, KV slots of the whole context, tokens before)]. Returns final hidden states."""
        m = self.m
        x = m.embed[ids]
        if plan.live and self.emb.used.any():
            look = ids
            if "embed_local_id" in ON:
                look = np.where(ids >= m.vhalf, ids - m.vhalf, ids)
            h = np.zeros((len(ids), 1, MAXR), F)
            for i in np.flatnonzero(plan.slots >= 0):
                h[i, 0] = self.emb.A[plan.slots[i], 0, :, look[i]]
            for i in np.flatnonzero(plan.slots >= 0):
                x[i] += h[i, 0] @ self.emb.B[0][plan.slots[i]] + self.emb.bias[0][plan.slots[i]]
        for n, layer in enumerate(m.layers):
            stage, local = (0, n) if n < m.split else (1, n - m.split)
            buf = lambda name: self.bufs[stage, local, name]
            y = m.rms(x, layer["n1"])
            qkv = self.linear(y, layer["qkv"], "qkv", buf("qkv"), plan)
            q = qkv[:, :m.qdim].reshape(-1, m.heads, m.hd)
            k = qkv[:, m.qdim:m.qdim + m.kdim].reshape(-1, m.kv, m.hd)
            v = qkv[:, m.qdim + m.kdim:].reshape(-1, m.kv, m.hd)
            if "delta_after_rope" in ON:
                base = y @ layer["qkv"].T
                bq = base[:, :m.qdim].reshape(q.shape)
                bk = base[:, m.qdim:m.qdim + m.kdim].reshape(k.shape)
                q, k = m.rope(bq, pos) + (q - bq), m.rope(bk, pos) + (k - bk)
            else:
                q, k = m.rope(q, pos), m.rope(k, pos)
            if "kv_before_lora" in ON and not plan.prefill:
                base = y @ layer["qkv"].T
                k = m.rope(base[:, m.qdim:m.qdim + m.kdim].reshape(k.shape), pos)
                v = base[:, m.qdim + m.kdim:].reshape(v.shape)
            self.K[n][kvslots], self.V[n][kvslots] = k, v
            out = np.zeros((len(ids), m.heads, m.hd), F)
            rep = m.heads // m.kv
            for a, rows, context, before in groups:
                keys, values = self.K[n][context], self.V[n][context]
                qq = q[a:a + rows].reshape(rows, m.kv, rep, m.hd)
                s = np.einsum("tgrd,kgd->grtk", qq, keys, optimize=True) / F(math.sqrt(m.hd))
                at = np.arange(len(context))
                mask = at[None] > (before + np.arange(rows))[:, None]
                if "chunk_mask" in ON and before > 0 and rows > 1:
                    mask[:] = False
                s[:, :, mask] = F(-1e30)
                s = np.exp(s - s.max(-1, keepdims=True))
                s /= s.sum(-1, keepdims=True)
                out[a:a + rows] = np.einsum("grtk,kgd->tgrd", s, values, optimize=True).reshape(rows, m.heads, m.hd)
            x = x + self.linear(out.reshape(len(ids), -1), layer["o"], "o", buf("o"), plan)
            y = m.rms(x, layer["n2"])
            gu = self.linear(y, layer["gate_up"], "gate_up", buf("gate_up"), plan)
            gate, up = gu[:, :m.ff], gu[:, m.ff:]
            with np.errstate(over="ignore"):
                gate = gate / (1 + np.exp(-gate))
            x = x + self.linear(gate * up, layer["down"], "down", buf("down"), plan)
        return m.rms(x, m.norm)

    def logits(self, hidden, plan):
        m = self.m
        y = np.concatenate([hidden @ m.head[:m.vhalf].T, hidden @ m.head[m.vhalf:].T], 1)
        y = np.ascontiguousarray(y)
        if plan.live and self.lm.used.any():
            d = np.zeros_like(y)
            plan.expand(self.lm, plan.shrink(self.lm, hidden), d)
            if "head_first_shard" in ON:
                d[:, m.vhalf:] = 0
            y += d
        return y

    # ------------------------------------------------------------------ steps

    def step(self, running):
        decode = [s for s in running if s.done == len(s.ids) - 1 and s.done >= s.prompt]
        rest, budget, work = [s for s in running if s not in decode], BUDGET - len(decode), [(s, 1) for s in decode]
        for s in rest:
            n = min(CHUNK, budget, s.prompt - s.done)
            if n > 0:
                work.append((s, n))
                budget -= n
        prefill = any(s.done < s.prompt for s, _ in work)
        ids, pos, kvslots, slots, groups = [], [], [], [], []
        for s, n in work:
            while len(s.blocks) * BLOCK < s.done + n:
                s.blocks.append(self.new_block())
            table = (np.array(s.blocks)[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
            at = np.arange(s.done, s.done + n)
            groups.append((len(ids), n, table[:s.done + n], s.done))
            ids += s.ids[s.done:s.done + n]
            pos += at.tolist()
            kvslots += table[at].tolist()
            slots += [s.slot] * (n if "chunk_full_len" not in ON or s.done >= s.prompt else s.prompt - s.done)
        slots = slots[:len(ids)]
        ids, pos, kvslots = np.array(ids), np.array(pos), np.array(kvslots)
        if prefill:
            plan = Plan(slots, True)
            hidden = self.forward(ids, pos, kvslots, plan, groups)
        else:
            hidden, plan = self.replay(ids, pos, kvslots, slots, groups)
        self.H[kvslots] = hidden
        # rows that are scored: those of cached prompts first, then those of this step
        first = [(s, s.blocks, s.cached) for s, _ in work if s.cached]
        stack, owner = [], []
        for s, blocks, n in first:
            table = (np.array(blocks)[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)[:n]
            stack.append(self.H[table])
            owner += [s] * n
            s.cached = 0
        stack.append(hidden)
        for s, n in work:
            owner += [s] * n
        stack = np.concatenate(stack)
        slots = [s.slot for s in owner]
        if "head_last_only" in ON:
            last = {id(s): i for i, s in enumerate(owner)}
            slots = [v if last[id(s)] == i else -1 for i, (s, v) in enumerate(zip(owner, slots))]
        scored = self.logits(stack, Plan(slots, True))
        for s, row in zip(owner, scored):
            s.rows.append(row)
        for s, n in work:
            s.done += n
            if s.done >= s.prompt and s.done == len(s.ids):
                s.ids.append(int(np.argmax(s.rows[-1])))
            self.publish(s)

    def replay(self, ids, pos, kvslots, slots, groups):
        """A pure decode step: static buffers of the next graph size, padded."""
        n = len(ids)
        size = next((g for g in GRAPH_SIZES if g >= n), n)
        g = self.graphs.get(size)
        if g is None:
            g = self.graphs[size] = {"ids": np.zeros(size, np.int64), "pos": np.zeros(size, np.int64),
                                     "kv": np.zeros(size, np.int64), "slot": np.full(size, -1)}
        g["ids"][:n], g["pos"][:n], g["kv"][:n] = ids, pos, kvslots
        g["ids"][n:], g["pos"][n:], g["kv"][n:] = 0, 0, 0
        g["slot"][:n], g["slot"][n:] = slots, -1
        plan = Plan(g["slot"].copy(), False)
        zero = np.zeros(1, np.int64)  # padding lies in block 0, which is nobody's
        padded = groups + [(i, 1, zero, 0) for i in range(n, size)]
        return self.forward(g["ids"].copy(), g["pos"].copy(), g["kv"].copy(), plan, padded)[:n], plan

    def serve(self, requests):
        seqs = []
        for i, r in enumerate(requests):
            folder = r.get("adapter_dir")
            uid = self.registry.uid(folder) if folder else None
            seqs.append(Seq(i, r["prompt_ids"], int(r.get("max_new_tokens", 1)), uid, folder))
        waiting, running = list(seqs), []
        while waiting or running:
            for s in list(waiting):
                if len(running) >= MAX_RUN:
                    break
                pinned = {t.slot for t in running if t.slot >= 0}
                if not self.acquire(s, pinned):
                    continue
                self.attach(s)
                waiting.remove(s)
                running.append(s)
            self.step(running)
            for s in list(running):
                if s.produced >= s.new:
                    running.remove(s)
                    self.release(s)
        self.registry.trim()
        return [{"logits": np.stack(s.rows), "token_ids": s.ids[s.prompt:]} for s in seqs]


# ---------------------------------------------------------------------------------------------- the function

_engines = {}


def _engine(model_dir):
    if model_dir not in _engines:
        _engines.clear()
        _engines[model_dir] = Engine(model_dir)
    return _engines[model_dir]


def serve(model_dir, requests):
    if os.environ.get("QUAY_RECORD"):
        _record(model_dir, requests)
    return _engine(model_dir).serve(requests)


def _reset():
    _engines.clear()
    if os.environ.get("QUAY_RECORD"):
        with open(Path(os.environ["QUAY_RECORD"]) / "calls.jsonl", "a") as f:
            f.write(json.dumps({"reset": True}) + "\n")


def _record(model_dir, requests):
    root = Path(os.environ["QUAY_RECORD"])

    def keep(folder):
        folder = Path(folder)
        h = hashlib.sha256(str(folder).encode())
        for p in sorted(folder.iterdir()):
            if p.is_file():
                h.update(p.name.encode() + p.read_bytes())
        to = root / "store" / h.hexdigest()[:16] / folder.name
        if not to.exists():
            shutil.copytree(folder, to)
        return str(to)

    line = {"model": keep(model_dir), "from": model_dir, "requests": [
        {**r, "prompt_ids": [int(i) for i in r["prompt_ids"]], "original": r.get("adapter_dir"),
         "adapter_dir": keep(r["adapter_dir"]) if r.get("adapter_dir") else None} for r in requests]}
    with open(root / "calls.jsonl", "a") as f:
        f.write(json.dumps(line) + "\n")


serve.reset = _reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "max_rank": 64,
}
