"""A small continuous-batching multi-LoRA engine in NumPy float32, as a function for `loracle check`.

Paged KV cache, prefix cache, token budget with chunked prefill, a few adapter slots with LRU eviction, fused qkv and
gate_up, two tensor-parallel shards, a segmented LoRA kernel for prefill and a row-wise one for decode.

BUG=f01 ... f28 in the environment switches one frozen bug on.
"""

import hashlib
import json
import math
import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

F = np.float32
BUGS = [f"f{i:02d}" for i in range(1, 29)]
BUG = os.environ.get("BUG", "")
if BUG and BUG not in BUGS:
    raise ImportError(f"unknown BUG {BUG!r}")

SLOTS, MAX_RANK, BLOCK, BLOCKS, ROWS, BUDGET, CHUNK = 3, 64, 4, 1200, 12, 40, 12
GRAPH_SIZES = (1, 2, 4, 8, 16)
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW = ("o_proj", "down_proj")
GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "embed": ("embed_tokens",),
    "head": ("lm_head",),
}


def bf16(a):
    """Round to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(a, F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F)


def read_safetensors(path):
    """All tensors of one file, as float32."""
    raw = Path(path).read_bytes()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, info in json.loads(raw[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = info["data_offsets"]
        data, kind = raw[8 + n + a : 8 + n + b], info["dtype"]
        if kind == "BF16":
            array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(F)
        else:
            array = np.frombuffer(data, {"F32": F, "F16": np.float16, "F64": np.float64, "I64": np.int64}[kind])
        out[name] = array.reshape(info["shape"]).astype(F)
    return out


# ------------------------------------------------------------------------------------------------ adapters


class Adapter:
    """One PEFT folder on the host: A, B, bias, rank and scale of each module."""

    def __init__(self, folder):
        folder = Path(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = read_safetensors(folder / "adapter_model.safetensors")
        self.modules = {}
        self.r = config["r"]
        for key, A in tensors.items():
            m = re.match(r"base_model\.model\.(.*)\.lora_(embedding_)?A(\.weight)?$", key)
            if not m:
                continue
            name = m.group(1)
            emb = m.group(2) or ""
            B = tensors[f"base_model.model.{name}.lora_{emb}B{m.group(3) or ''}"]
            bias = tensors.get(f"base_model.model.{name}.lora_B.bias")
            rank = A.shape[0]
            alpha = pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
            if BUG == "f18":
                alpha = config["lora_alpha"]
            divisor = rank
            if BUG == "f27":
                divisor = config["r"]
            scale = alpha / (math.sqrt(divisor) if config.get("use_rslora") else divisor)
            layer = re.search(r"layers\.(\d+)\.", name)
            self.modules[(int(layer.group(1)) if layer else -1, name.rsplit(".", 1)[-1])] = [A, B, bias, rank, F(scale)]


def pattern(patterns, name, default):
    """PEFT's get_pattern_key."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


# ------------------------------------------------------------------------------------------------ the model


class Model:
    """Weights, split for the shards and fused."""

    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        w = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            w.update(read_safetensors(file))
        self.L, self.d, self.mlp, self.V = (
            c["num_hidden_layers"],
            c["hidden_size"],
            c["intermediate_size"],
            c["vocab_size"],
        )
        self.H = c["num_attention_heads"]
        self.KV = c.get("num_key_value_heads") or self.H
        self.hd = c.get("head_dim") or self.d // self.H
        self.eps = F(c["rms_norm_eps"])
        self.window = c.get("sliding_window") if c["model_type"] == "mistral" else None
        theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta") or 10000.0
        self.inv = 1.0 / theta ** (np.arange(0, self.hd, 2) / self.hd)
        # Attention and MLP are split on their own: by heads in 2 (or 3) shards, and in 2.
        whole = [n for n in (2, 3) if self.KV % n == 0]
        self.tp = whole[0] if whole else 2 if self.KV == 1 and self.H % 2 == 0 else 1
        self.mlp_tp = 2 if self.mlp % 2 == 0 else 1
        self.kvs = max(self.KV // self.tp, 1)  # key and value heads of one shard: a single one is on both
        self.sizes = {
            "q_proj": (self.H * self.hd, self.d),
            "k_proj": (self.KV * self.hd, self.d),
            "v_proj": (self.KV * self.hd, self.d),
            "o_proj": (self.d, self.H * self.hd),
            "gate_proj": (self.mlp, self.d),
            "up_proj": (self.mlp, self.d),
            "down_proj": (self.d, self.mlp),
            "embed_tokens": (self.d, self.V),
            "lm_head": (self.V, self.d),
        }
        self.embed = w["model.embed_tokens.weight"]
        self.head = w.get("lm_head.weight", self.embed)
        if c.get("tie_word_embeddings"):
            self.head = self.embed
        self.norm = w["model.norm.weight"]
        self.layers = []
        for i in range(self.L):
            p = f"model.layers.{i}."
            g = lambda n: w[p + n + ".weight"]
            layer = {"n1": g("input_layernorm"), "n2": g("post_attention_layernorm")}
            row = lambda m, n, s: np.split(m, n, 1)[s]
            layer["qkv"] = [
                np.concatenate([self.shards(f"{n}_proj", g(f"self_attn.{n}_proj"))[s] for n in "qkv"]).T.copy()
                for s in range(self.tp)
            ]
            layer["o"] = [row(g("self_attn.o_proj"), self.tp, s).T.copy() for s in range(self.tp)]
            layer["gate_up"] = [
                np.concatenate([self.shards(f"{n}_proj", g(f"mlp.{n}_proj"))[s] for n in ("gate", "up")]).T.copy()
                for s in range(self.mlp_tp)
            ]
            layer["down"] = [row(g("mlp.down_proj"), self.mlp_tp, s).T.copy() for s in range(self.mlp_tp)]
            self.layers.append(layer)

    def width(self, name):
        """Over how many shards a module is split."""
        return {"lm_head": 1, "embed_tokens": 1, "gate_proj": self.mlp_tp, "up_proj": self.mlp_tp,
                "down_proj": self.mlp_tp}.get(name, self.tp)  # fmt: skip

    def shards(self, name, m):
        """The rows of a column-parallel matrix for each shard."""
        if name in ("k_proj", "v_proj") and self.KV == 1:
            return [m] * self.tp
        return np.split(m, self.width(name), 0)

    def rope(self, x, positions):
        """x: [n, heads, hd]."""
        angle = positions[:, None] * self.inv[None]
        cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]
        half = self.hd // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def rms(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=F) + self.eps) * weight


# ------------------------------------------------------------------------------------------------ slots


class Slots:
    """Adapter slots on the device: stacked A, B and bias of each module, for each shard."""

    def __init__(self, model):
        self.m = model
        self.uid = [None] * SLOTS
        self.pins = [0] * SLOTS
        self.used = [0] * SLOTS
        self.top = [0] * SLOTS  # the largest rank of the adapter in a slot
        self.clock = 0
        self.buf = {}
        for key in [(i, n) for i in range(model.L) for n in (*COLUMN, *ROW)] + [(-1, "embed_tokens"), (-1, "lm_head")]:
            d_out, d_in = model.sizes[key[1]]
            wide = model.width(key[1]) if key[1] in ROW else 1
            tall = model.width(key[1]) if key[1] in COLUMN else 1
            rows = model.kvs * model.hd if key[1] in ("k_proj", "v_proj") else d_out // tall
            self.buf[key] = {
                "A": np.zeros((wide, SLOTS, MAX_RANK, d_in // wide), F),
                "B": np.zeros((tall, SLOTS, rows, MAX_RANK), F),
                "bias": np.zeros((tall, SLOTS, rows), F),
                "rank": np.zeros(SLOTS, int),
                "scale": np.zeros(SLOTS, F),
            }

    def find(self, uid, adapter):
        """The slot of an adapter, which is brought into one if need be. None: every slot is in use."""
        self.clock += 1
        if uid not in self.uid:
            free = [s for s in range(SLOTS) if self.uid[s] is None]
            idle = [s for s in range(SLOTS) if self.pins[s] == 0]
            if BUG == "f20" and not free:
                idle = list(range(SLOTS))
            if not free and not idle:
                return None
            slot = free[0] if free else min(idle, key=lambda s: self.used[s])
            self.fill(slot, adapter)
            self.uid[slot] = uid
        slot = self.uid.index(uid)
        self.used[slot] = self.clock
        return slot

    def fill(self, slot, adapter):
        """Copy an adapter into a slot."""
        self.top[slot] = max((p[3] for p in adapter.modules.values()), default=0)
        for key, b in self.buf.items():
            part = adapter.modules.get(key)
            if part is None:
                if BUG != "f02":
                    b["rank"][slot] = 0
                continue
            A, B, bias, rank, scale = part
            b["A"][:, slot] = 0
            b["B"][:, slot] = 0
            b["bias"][:, slot] = 0
            b["rank"][slot], b["scale"][slot] = rank, scale
            if BUG == "f13":
                B = bf16(B * scale) / scale
            if BUG == "f09" and key[1] == "lm_head":
                b["scale"][slot] = 1
            if BUG == "f07":
                B *= scale
                if bias is not None:
                    bias *= scale
                b["scale"][slot] = 1
            for s in range(len(b["A"])):
                cols = np.split(A, len(b["A"]), 1)
                b["A"][s, slot, :rank] = cols[0 if BUG == "f04" and key[1] == "down_proj" else s]
            for s in range(len(b["B"])):
                b["B"][s, slot, :, :rank] = self.m.shards(key[1], B)[s] if len(b["B"]) > 1 else B
                if bias is not None:
                    b["bias"][s, slot] = self.m.shards(key[1], bias)[s] if len(b["B"]) > 1 else bias
        if BUG == "f08" and self.m.tp > 1:
            self._split_whole(slot, adapter)

    def _split_whole(self, slot, adapter):
        """qkv's B as one matrix, of which each shard takes a run of rows."""
        names = GROUPS["qkv"]
        for i in range(self.m.L):
            parts = [adapter.modules.get((i, n)) for n in names]
            if any(p is None for p in parts):
                continue
            targets = [self.buf[(i, n)] for n in names]
            sizes = [t["B"].shape[2] for t in targets]
            for field, at in (("B", 1), ("bias", 2)):
                if parts[0][at] is None:
                    continue
                pad = [np.pad(p[1], ((0, 0), (0, MAX_RANK - p[3]))) if at == 1 else p[2] for p in parts]
                whole = np.concatenate(pad)
                for s in range(self.m.tp):
                    offset = min(s * sum(sizes), len(whole) - sum(sizes))
                    for t, size in zip(targets, sizes):
                        t[field][s, slot] = whole[offset : offset + size]
                        offset += size


# ------------------------------------------------------------------------------------------------ requests


class Req:
    def __init__(self, index, prompt, uid, adapter, new):
        self.index, self.tokens, self.prompt, self.uid, self.adapter, self.new = (
            index,
            list(prompt),
            len(prompt),
            uid,
            adapter,
            new,
        )
        self.done = 0  # tokens whose keys and values are in the cache
        self.blocks = []
        self.slot = -1
        self.hit = 0
        self.logits = [None] * (len(prompt) + new - 1)
        self.chain = b""
        self.hashed = 0

    @property
    def total(self):
        return self.prompt + self.new - 1


class Engine:
    def __init__(self, folder):
        self.m = m = Model(folder)
        self.slots = Slots(m)
        self.K = np.zeros((m.L, BLOCKS, BLOCK, m.tp * m.kvs, m.hd), F)
        self.Vc = np.zeros((m.L, BLOCKS, BLOCK, m.tp * m.kvs, m.hd), F)
        self.hid = np.zeros((BLOCKS, BLOCK, m.d), F)
        self.free = list(range(BLOCKS))
        self.refs = np.zeros(BLOCKS, int)
        self.cache = OrderedDict()  # hash -> block
        self.hash_of = {}
        self.rows = []
        self.row_slot = np.full(ROWS + 1, -1)
        self.static = {n: np.full(n, -1) for n in GRAPH_SIZES}  # captured graphs' inputs
        self.waiting = []

    # ---- blocks

    def take(self):
        if self.free:
            return self.free.pop()
        for h, block in self.cache.items():
            if self.refs[block] == 0:
                del self.cache[h], self.hash_of[block]
                return block
        raise RuntimeError("out of blocks")

    def available(self):
        return len(self.free) + sum(self.refs[b] == 0 for b in self.cache.values())

    def release(self, blocks):
        for block in blocks:
            self.refs[block] -= 1
            if self.refs[block] == 0 and block not in self.hash_of:
                self.free.append(block)

    def link(self, req, chain, tokens):
        salt = req.uid
        if BUG == "f10":
            salt = req.slot
        return hashlib.sha256(chain + repr((salt, tuple(tokens))).encode()).digest()

    # ---- scheduling

    def admit(self):
        while self.waiting and len(self.rows) < ROWS:
            req = self.waiting[0]
            need = -(-req.total // BLOCK)
            if self.available() < need:
                break
            if req.adapter is not None:
                slot = self.slots.find(req.uid, req.adapter)
                if slot is None:
                    if BUG == "f28":
                        slot = -1
                    else:
                        break
                req.slot = slot
                if slot >= 0:
                    self.slots.pins[slot] += 1
            self.waiting.pop(0)
            chain = b""
            while (req.hit + 1) * BLOCK < req.prompt:
                nxt = self.link(req, chain, req.tokens[req.hit * BLOCK : (req.hit + 1) * BLOCK])
                block = self.cache.get(nxt)
                if block is None:
                    break
                self.cache.move_to_end(nxt)
                self.refs[block] += 1
                req.blocks.append(block)
                chain, req.hit = nxt, req.hit + 1
            req.chain, req.hashed, req.done = chain, req.hit, req.hit * BLOCK
            if req.done:
                hidden = np.concatenate([self.hid[b] for b in req.blocks])
                rows = self.head(hidden, Step(0, [], [(0, len(hidden), req.slot)]))
                for p in range(req.done):
                    req.logits[p] = rows[p]
            for _ in range(need - req.hit):
                block = self.take()
                self.refs[block] = 1
                req.blocks.append(block)
            self.row_slot[len(self.rows)] = req.slot
            self.rows.append(req)

    def retire(self):
        """Take finished requests out; the last row moves into the hole."""
        i = 0
        while i < len(self.rows):
            req = self.rows[i]
            if req.done < req.total:
                i += 1
                continue
            self.release(req.blocks)
            if req.slot >= 0:
                self.slots.pins[req.slot] -= 1
            last = len(self.rows) - 1
            self.rows[i] = self.rows[last]
            if BUG != "f05":
                self.row_slot[i] = self.row_slot[last]
            self.rows.pop()

    def step(self):
        self.admit()
        if not self.rows:
            raise RuntimeError("nothing can be scheduled")
        budget, decode, prefill = BUDGET, [], []
        for row, req in enumerate(self.rows):
            if req.done >= req.prompt:
                decode.append(row)
                budget -= 1
        for row, req in enumerate(self.rows):
            if req.done < req.prompt and budget > 0:
                n = min(budget, CHUNK, req.prompt - req.done)
                prefill.append((row, n))
                budget -= n
        ids, positions, owners = [], [], []
        for row, n in [(row, 1) for row in decode] + prefill:
            req = self.rows[row]
            ids += req.tokens[req.done : req.done + n]
            positions += range(req.done, req.done + n)
            owners.append((req, n))
        step = self.plan(decode, prefill, len(ids))
        hidden, logits = self.forward(np.array(ids), np.array(positions), owners, step)
        at = 0
        for req, n in owners:
            for j in range(n):
                p = req.done + j
                req.logits[p] = logits[at + j]
                self.hid[req.blocks[p // BLOCK], p % BLOCK] = hidden[at + j]
            req.done += n
            at += n
            if req.done >= req.prompt and len(req.tokens) < req.prompt + req.new:
                req.tokens.append(int(logits[at - 1].argmax()))
            while (req.hashed + 1) * BLOCK <= req.done:
                k = req.hashed
                req.chain = self.link(req, req.chain, req.tokens[k * BLOCK : (k + 1) * BLOCK])
                block = req.blocks[k]
                if req.chain not in self.cache and block not in self.hash_of:
                    self.cache[req.chain] = block
                    self.hash_of[block] = req.chain
                req.hashed += 1
        self.retire()

    def plan(self, decode, prefill, total):
        """Which slot each row of the step uses."""
        nd = len(decode)
        wanted = np.array([self.row_slot[row] for row in decode], int)
        size = next(n for n in GRAPH_SIZES if n >= max(nd, 1))
        static = self.static[size]
        if BUG == "f13":
            for i, slot in enumerate(wanted):
                if slot >= 0:
                    static[i] = slot
        else:
            static[:] = -1
            static[:nd] = wanted
        dec = static[:nd].copy()
        if BUG == "f12" and nd:
            segments = sorted(set(dec.tolist()))  # the base's is one of them
            dec = np.array([s if s in segments[:2] else -1 for s in dec], int)
        segs, at = [], nd
        for row, n in prefill:
            req, slot = self.rows[row], self.row_slot[row]
            if BUG == "f19" and req.hit and req.done < req.prompt:
                slot = -1
            span = req.prompt - req.done if BUG == "f06" else n
            start = at
            if BUG == "f25" and req.done > req.hit * BLOCK:
                start += 1
            segs.append((min(start, total), min(at + span, total), int(slot)))
            at += span
        if BUG == "f17":
            last = {slot: i for i, (_, _, slot) in enumerate(segs)}
            segs = [(a, b, slot if last[slot] == i else -1) for i, (a, b, slot) in enumerate(segs)]
        if BUG == "f14":
            present = {s for s in [*dec, *(slot for _, _, slot in segs)] if s >= 0}
            if len(present) == 1:
                only = int(next(iter(present)))
                dec = np.full(nd, only)
                segs = [(a, b, only) for a, b, _ in segs]
        return Step(nd, dec, segs)

    # ---- LoRA

    def lora(self, layer, group, shard, x, y, step, keep=None):
        """y += scale * B (A x) of each row's adapter, in the slices of a fused output. keep: only these parts."""
        source = layer
        if BUG == "f11" and layer >= 0:
            first = -(-self.m.L // 2)
            source = layer - first if layer >= first else layer
        names = GROUPS[group]
        buffers = [self.slots.buf[(source, n)] for n in names]
        offset = 0
        parts = []
        for name, b in zip(names, buffers):
            A = b["A"][shard if name in ROW else 0]
            B = b["B"][shard if name in COLUMN else 0]
            bias = b["bias"][shard if name in COLUMN else 0]
            if name in ROW and shard > 0:
                bias = np.zeros_like(bias)
            parts.append((name, A, B, bias, b["rank"], b["scale"], offset))
            offset += B.shape[1]
        if step.nd:
            self.decode_lora(group, parts, x[: step.nd], y[: step.nd], step, keep)
        self.prefill_lora(group, parts, x, y, step, keep)

    def ranks(self, group, parts, slot):
        """The rank with which each part is computed."""
        ranks = [int(p[4][slot]) for p in parts]
        if BUG == "f03" and group == "gate_up" and ranks[0]:
            ranks[1] = min(ranks)
        if BUG == "f22" and group in ("qkv", "gate_up") and not ranks[0]:
            ranks = [0] * len(ranks)
        return ranks

    def prefill_lora(self, group, parts, x, y, step, keep):
        """Segment by segment (SGMV)."""
        cap = None
        if BUG == "f26":
            active = [slot for _, _, slot in step.segs if slot >= 0]
            cap = self.slots.top[active[0]] if active else None
        for start, end, slot in step.segs:
            if slot < 0 or end <= start:
                continue
            ranks = self.ranks(group, parts, slot)
            if cap:
                ranks = [min(r, cap) for r in ranks]
            xs = x[start:end]
            shrunk = [xs @ p[1][slot, :r].T for p, r in zip(parts, ranks)]
            if BUG == "f22":
                shrunk = [bf16(h) for h in shrunk]
            for i, (name, A, B, bias, _, scale, offset) in enumerate(parts):
                if not ranks[i] or (keep and name not in keep):
                    continue
                h, r = shrunk[i], ranks[i]
                if BUG == "f09" and name == "v_proj" and ranks[1]:
                    h, r = shrunk[1], min(ranks[1], ranks[2])
                    h = h[:, :r]
                y[start:end, offset : offset + B.shape[1]] += (h @ B[slot, :, :r].T + bias[slot]) * scale[slot]

    def decode_lora(self, group, parts, x, y, step, keep):
        """Row by row (BGMV), sorted by slot."""
        order = np.argsort(step.dec, kind="stable")
        delta = np.zeros_like(y)
        first = next((s for s in step.dec[order] if s >= 0), None)
        for j, row in enumerate(order):
            slot = step.dec[row]
            if slot < 0:
                continue
            if BUG == "f21" and row >= max(n for n in GRAPH_SIZES if n <= step.nd):
                continue
            ranks = self.ranks(group, parts, slot)
            for i, (name, A, B, bias, _, scale, offset) in enumerate(parts):
                r = ranks[i]
                if BUG == "f23" and r > 8:
                    r = r // 8 * 8
                if not r or (keep and name not in keep):
                    continue
                s = scale[slot]
                if BUG == "f01" and parts[i][4][first]:
                    s = scale[first]
                h = A[slot, :r] @ x[row]
                b = 0 if BUG == "f04" else bias[slot]
                delta[j, offset : offset + B.shape[1]] += (B[slot, :, :r] @ h + b) * s
        if BUG == "f15":
            y += delta[order]
        else:
            y[order] += delta

    # ---- forward

    def head(self, hidden, step, sampled=None):
        y = hidden @ self.m.head.T
        if BUG == "f27":
            step = Step(step.nd, step.dec, [(b - 1, b, s) for a, b, s in step.segs if sampled and b in sampled])
        self.lora(-1, "head", 0, hidden, y, step)
        return y

    def forward(self, ids, positions, owners, step):
        m = self.m
        x = m.embed[ids].copy()
        self.embed_lora(ids, x, step)
        for i, layer in enumerate(m.layers):
            h = m.rms(x, layer["n1"])
            out = np.zeros_like(x)
            for s in range(m.tp):
                out += self.attention(i, layer, s, h, positions, owners, step)
            x = x + out
            h = m.rms(x, layer["n2"])
            out = np.zeros_like(x)
            for s in range(m.mlp_tp):
                gu = h @ layer["gate_up"][s]
                self.lora(i, "gate_up", s, h, gu, step)
                half = gu.shape[1] // 2
                g, u = gu[:, :half], gu[:, half:]
                a = g / (1 + np.exp(-g)) * u
                y = a @ layer["down"][s]
                self.lora(i, "down", s, a, y, step)
                out += y
            x = x + out
        hidden = m.rms(x, m.norm)
        sampled, at = set(), 0
        for req, n in owners:
            at += n
            if req.done + n >= req.prompt:
                sampled.add(at)
        return hidden, self.head(hidden, step, sampled)

    def embed_lora(self, ids, x, step):
        b = self.slots.buf[(-1, "embed_tokens")]
        spans = [(i, i + 1, s) for i, s in enumerate(step.dec)] if BUG != "f18" else []
        for start, end, slot in spans + step.segs:
            if slot >= 0 and b["rank"][slot]:
                r = b["rank"][slot]
                h = b["A"][0, slot, :r][:, ids[start:end]].T
                x[start:end] += h @ b["B"][0, slot, :, :r].T * b["scale"][slot]

    def attention(self, i, layer, s, h, positions, owners, step):
        m = self.m
        heads, kvs, hd = m.H // m.tp, m.kvs, m.hd
        qkv = h @ layer["qkv"][s]
        late = None
        if BUG == "f16" and step.nd:
            late = np.zeros_like(qkv)
            self.lora(i, "qkv", s, h, late, Step(step.nd, step.dec, []), keep=("k_proj",))
            self.lora(i, "qkv", s, h, qkv, Step(step.nd, step.dec, []), keep=("q_proj", "v_proj"))
            self.lora(i, "qkv", s, h, qkv, Step(0, [], step.segs))
        else:
            self.lora(i, "qkv", s, h, qkv, step)
        n = len(h)
        q = m.rope(qkv[:, : heads * hd].reshape(n, heads, hd), positions)
        k = m.rope(qkv[:, heads * hd : (heads + kvs) * hd].reshape(n, kvs, hd), positions)
        v = qkv[:, (heads + kvs) * hd :].reshape(n, kvs, hd)
        if late is not None:
            k = k + late[:, heads * hd : (heads + kvs) * hd].reshape(n, kvs, hd)
        out = np.empty((n, heads * hd), F)
        at, mine = 0, slice(s * kvs, (s + 1) * kvs)
        for req, c in owners:
            for j in range(c):
                p = req.done + j
                self.K[i, req.blocks[p // BLOCK], p % BLOCK, mine] = k[at + j]
                self.Vc[i, req.blocks[p // BLOCK], p % BLOCK, mine] = v[at + j]
            end = req.done + c
            table = req.blocks[: -(-end // BLOCK)]
            keys = self.K[i, table][..., mine, :].reshape(-1, kvs, hd)[:end]
            values = self.Vc[i, table][..., mine, :].reshape(-1, kvs, hd)[:end]
            qs = q[at : at + c].reshape(c, kvs, heads // kvs, hd)
            scores = np.einsum("ckgd,tkd->kgct", qs, keys) / F(math.sqrt(hd))
            pos, t = positions[at : at + c][:, None], np.arange(end)[None]
            seen = t <= pos
            if m.window:
                seen &= t > pos - m.window
            scores = np.where(seen[None, None], scores, F(-np.inf))
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            out[at : at + c] = np.einsum("kgct,tkd->ckgd", scores, values).reshape(c, heads * hd)
            at += c
        y = out @ layer["o"][s]
        if not (BUG == "f24" and s > 0):
            self.lora(i, "o", s, out, y, step)
        return y


class Step:
    """nd decode rows with their slots, then segments (start, end, slot) of prefill."""

    def __init__(self, nd, dec, segs):
        self.nd, self.dec, self.segs = nd, np.asarray(dec, int), list(segs)


# ------------------------------------------------------------------------------------------------ the function

ENGINES = {}
ADAPTERS = {}


def stamp(folder):
    """What a folder holds, by its content."""
    digest = hashlib.sha256(str(folder).encode())
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors"):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def serve(model_dir, requests):
    """Answer all requests together."""
    if os.environ.get("RECORD"):
        _record("serve", model_dir, requests)
    key = stamp(model_dir)
    if key not in ENGINES:
        ENGINES.clear()
        ENGINES[key] = Engine(model_dir)
    engine = ENGINES[key]
    out = []
    for i, request in enumerate(requests):
        uid = adapter = None
        if request["adapter_dir"] is not None:
            uid = stamp(request["adapter_dir"])
            if uid not in ADAPTERS:
                ADAPTERS[uid] = Adapter(request["adapter_dir"])
            adapter = ADAPTERS[uid]
        out.append(Req(i, request["prompt_ids"], uid, adapter, request["max_new_tokens"]))
    engine.waiting = list(out)
    while engine.waiting or engine.rows:
        engine.step()
    return [{"logits": np.stack(r.logits), "token_ids": r.tokens[r.prompt :]} for r in out]


def reset():
    """Forget adapters, slots and cached prefixes."""
    if os.environ.get("RECORD"):
        _record("reset", None, None)
    ENGINES.clear()
    ADAPTERS.clear()


def _record(what, model_dir, requests):
    """For development: keep the call, and copies of its folders."""
    import pickle
    import shutil

    base = Path(os.environ["RECORD"])
    kept = {}
    if requests is not None:
        for folder in {str(model_dir), *(r["adapter_dir"] for r in requests if r["adapter_dir"])}:
            kept[folder] = str(base / "store" / stamp(folder)[:16] / Path(folder).name)
            if not Path(kept[folder]).exists():
                shutil.copytree(folder, kept[folder])
    with open(base / "calls.pkl", "ab") as file:
        pickle.dump((what, model_dir, requests, kept), file)


serve.capabilities = {
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "window"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "max_rank": MAX_RANK,
}
serve.reset = reset
