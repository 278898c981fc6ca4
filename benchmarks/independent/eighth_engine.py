"""A small multi-LoRA serving engine in NumPy: continuous batching, chunked prefill, a paged KV cache with prefix
reuse, and a few adapter slots in padded A/B stores (SGMV for steps with prompts, BGMV for pure decode steps)."""

import hashlib
import json
import math
import os
import re
import struct
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np

BUG = os.environ.get("BUG", "")
if BUG and BUG not in {f"q{i:02d}" for i in range(1, 27)}:
    raise ImportError(f"unknown BUG {BUG!r}")

F = np.float32
SLOTS = 2  # adapters in memory at once
BLOCK = 4  # tokens per KV block
BLOCKS = 640
BUDGET = 32  # tokens per step
RUNNING = 6  # requests at once
TILE = 8  # rows that SGMV multiplies at a time
RANKS = 2  # of the (simulated) tensor-parallel group
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = NAMES[:4]


def on(*bugs):
    return BUG in bugs


# ---- files -----------------------------------------------------------------------------------------------------------


def read_safetensors(path):
    data = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    out = {}
    for name, item in json.loads(data[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = item["data_offsets"]
        raw = data[8 + n + a : 8 + n + b]
        kind = item["dtype"]
        if kind == "BF16":
            x = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(F)
        else:
            x = np.frombuffer(raw, {"F32": F, "F16": np.float16, "F64": np.float64}[kind])
        out[name] = x.astype(F).reshape(item["shape"])
    return out


def bf16(x):
    bits = np.ascontiguousarray(x, F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F)


class Model:
    def __init__(self, folder):
        folder = Path(folder)
        c = json.loads((folder / "config.json").read_text())
        w = {}
        for file in sorted(folder.glob("*.safetensors")):
            w.update(read_safetensors(file))
        self.hidden = c["hidden_size"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.dim = c.get("head_dim") or self.hidden // self.heads
        self.mlp = c["intermediate_size"]
        self.depth = c["num_hidden_layers"]
        self.eps = F(c.get("rms_norm_eps", 1e-6))
        rope = c.get("rope_parameters") or {}
        self.theta = float(c.get("rope_theta") or rope.get("rope_theta") or 10000.0)
        self.embed = w["model.embed_tokens.weight"]
        self.norm = w["model.norm.weight"]
        self.head = w.get("lm_head.weight", self.embed)
        if c.get("tie_word_embeddings"):
            self.head = self.embed
        self.layers = []
        for i in range(self.depth):
            p = f"model.layers.{i}."
            bias = {n: w.get(p + f"self_attn.{n}.bias") for n in ATTENTION}
            qkv_bias = None
            if bias["q_proj"] is not None:
                qkv_bias = np.concatenate([bias[n] for n in ATTENTION[:3]])
            self.layers.append(
                {
                    "n1": w[p + "input_layernorm.weight"],
                    "n2": w[p + "post_attention_layernorm.weight"],
                    "qkv": np.concatenate([w[p + f"self_attn.{n}.weight"] for n in ATTENTION[:3]]),
                    "qkv_bias": qkv_bias,
                    "o": w[p + "self_attn.o_proj.weight"],
                    "o_bias": bias["o_proj"],
                    "gate_up": np.concatenate([w[p + "mlp.gate_proj.weight"], w[p + "mlp.up_proj.weight"]]),
                    "down": w[p + "mlp.down_proj.weight"],
                }
            )
        kv = self.kv_heads * self.dim
        q = self.heads * self.dim
        self.shapes = {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.mlp, self.hidden),
            "up_proj": (self.mlp, self.hidden),
            "down_proj": (self.hidden, self.mlp),
        }
        self.inverse = 1.0 / self.theta ** (np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)


def pattern(table, name, default):
    for key, value in (table or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


KEY = re.compile(r"layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])(?:\.default)?\.(weight|bias)$")


class Adapter:
    """An adapter on the host: (layer, module) -> A, B, bias, scale."""

    def __init__(self, folder, digest):
        self.digest = digest
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        found = {}
        for name, x in read_safetensors(Path(folder) / "adapter_model.safetensors").items():
            m = KEY.search(name)
            if not m:
                raise ValueError(f"tensor {name}")
            found.setdefault((int(m[1]), m[2]), {})[m[3] + m[4]] = x
        self.modules = {}
        for (layer, name), t in found.items():
            full = f"model.layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
            r = t["Aweight"].shape[0]
            alpha = pattern(config.get("alpha_pattern"), full, config["lora_alpha"])
            if on("q24"):
                alpha = config["lora_alpha"]
            scale = alpha / (math.sqrt(r) if config.get("use_rslora") and not on("q23") else r)
            self.modules[layer, name] = [t["Aweight"], t["Bweight"], t.get("Bbias"), F(scale)]
        if on("q25"):
            for layer in {key[0] for key in self.modules}:
                k, v = self.modules.get((layer, "k_proj")), self.modules.get((layer, "v_proj"))
                if k and v and k[1].shape == v[1].shape:
                    k[1], v[1] = v[1], k[1]
        self.rank = max((m[0].shape[0] for m in self.modules.values()), default=1)


# ---- adapter slots ---------------------------------------------------------------------------------------------------


class Store:
    """Padded A and B of every module for a few slots."""

    def __init__(self, model):
        self.model = model
        self.width = 16
        self.allocate()
        self.free = list(range(SLOTS))
        self.slot_of = OrderedDict()  # digest -> slot, least recently used first
        self.pins = [0] * SLOTS

    def allocate(self):
        old = getattr(self, "A", None)
        A, B = {}, {}
        for layer in range(self.model.depth):
            for name, (d_out, d_in) in self.model.shapes.items():
                A[layer, name] = np.zeros((SLOTS, self.width, d_in), F)
                B[layer, name] = np.zeros((SLOTS, d_out, self.width), F)
        if old is not None:
            for key in A:
                A[key][:, : old[key].shape[1]] = old[key]
                B[key][:, :, : old[key].shape[1]] = self.B[key]
        else:
            self.bias = {k: np.zeros((SLOTS, b.shape[1]), F) for k, b in B.items()}
            self.scale = {k: np.zeros(SLOTS, F) for k in A}
            self.present = {k: np.zeros(SLOTS, bool) for k in A}
            self.filled = [False] * SLOTS
        self.A, self.B = A, B

    def acquire(self, adapter):
        """(slot, was it loaded just now), or None if all slots are in use."""
        fresh = adapter.digest not in self.slot_of
        if fresh:
            if self.free:
                slot = self.free.pop()
            else:
                idle = [d for d, s in self.slot_of.items() if self.pins[s] == 0]
                if not idle:
                    return None
                slot = self.slot_of.pop(idle[0])
            self.load(slot, adapter)
            self.slot_of[adapter.digest] = slot
        self.slot_of.move_to_end(adapter.digest)
        slot = self.slot_of[adapter.digest]
        self.pins[slot] += 1
        return slot, fresh

    def load(self, slot, adapter):
        if adapter.rank > self.width:
            self.width = -(-adapter.rank // 8) * 8
            self.allocate()
        used = self.filled[slot]
        self.filled[slot] = True
        for key in self.A:
            m = adapter.modules.get(key)
            if m is None:
                if not (on("q10") and used):
                    self.A[key][slot] = 0
                    self.B[key][slot] = 0
                    self.bias[key][slot] = 0
                    self.scale[key][slot] = 0
                    self.present[key][slot] = False
                continue
            A, B, bias, scale = m
            r = A.shape[0]
            if on("q25"):  # fold the scale into B
                m[1] = B = B * scale
            self.A[key][slot] = 0
            self.B[key][slot] = 0
            self.A[key][slot, :r] = A
            self.B[key][slot, :, :r] = B
            if on("q25"):
                self.bias[key][slot] = 0 if bias is None else bias * scale
                self.scale[key][slot] = 1
            else:
                self.bias[key][slot] = 0 if bias is None else bias
                if not (on("q11") and used and self.scale[key][slot]):
                    self.scale[key][slot] = scale
            self.present[key][slot] = True
        if on("q01"):
            for layer in range(self.model.depth):
                for group in (NAMES[:3], NAMES[4:6]):
                    have = [n for n in group if self.present[layer, n][slot]]
                    for n in have[1:]:
                        self.scale[layer, n][slot] = self.scale[layer, have[0]][slot]
        if on("q03"):
            for layer in range(self.model.depth):
                for first, second in (("k_proj", "v_proj"), ("gate_proj", "up_proj")):
                    a, b = (layer, first), (layer, second)
                    if self.present[b][slot] and not self.present[a][slot]:
                        for table in (self.A, self.B, self.bias, self.scale, self.present):
                            table[a][slot] = table[b][slot]
                            table[b][slot] = 0

    def release(self, slot):
        self.pins[slot] -= 1


# ---- KV blocks -------------------------------------------------------------------------------------------------------


class Blocks:
    def __init__(self, model):
        shape = (model.depth, BLOCKS * BLOCK, model.kv_heads, model.dim)
        self.k, self.v = np.zeros(shape, F), np.zeros(shape, F)
        self.free = list(range(BLOCKS))[::-1]
        self.refs = {}
        self.key_of, self.block_of = {}, {}
        self.idle = OrderedDict()  # cached blocks without owners

    @property
    def available(self):
        return len(self.free) + len(self.idle)

    def take(self, n):
        out = []
        for _ in range(n):
            if self.free:
                b = self.free.pop()
            else:
                b, _ = self.idle.popitem(last=False)
                del self.block_of[self.key_of.pop(b)]
            self.refs[b] = 1
            out.append(b)
        return out

    def match(self, keys):
        out = []
        for key in keys:
            b = self.block_of.get(key)
            if b is None:
                break
            self.idle.pop(b, None)
            self.refs[b] = self.refs.get(b, 0) + 1
            out.append(b)
        return out

    def register(self, b, key):
        if key not in self.block_of and b not in self.key_of:
            self.block_of[key], self.key_of[b] = b, key

    def give(self, blocks):
        for b in reversed(blocks):
            self.refs[b] -= 1
            if self.refs[b] == 0:
                del self.refs[b]
                if b in self.key_of:
                    self.idle[b] = None
                else:
                    self.free.append(b)


# ---- the engine ------------------------------------------------------------------------------------------------------


class Req:
    def __init__(self, index, prompt, new, adapter):
        self.index, self.prompt, self.new, self.adapter = index, len(prompt), new, adapter
        self.tokens = [int(t) for t in prompt]
        self.computed = 0
        self.slot = -1
        self.fresh = False
        self.pinned = False
        self.table, self.keys, self.rows = [], [], []
        self.hit = 0

    @property
    def limit(self):
        return self.prompt + self.new


class Step:
    """The plan of one step."""


class Engine:
    def __init__(self, model):
        self.model = model
        self.reset()

    def reset(self):
        self.store = Store(self.model)
        self.blocks = Blocks(self.model)
        self.adapters = {}
        self.plans = {}

    def adapter(self, folder):
        if folder is None:
            return None
        h = hashlib.sha256()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            h.update((Path(folder) / file).read_bytes())
        digest = h.digest()
        if digest not in self.adapters:
            self.adapters[digest] = Adapter(folder, digest)
        return self.adapters[digest]

    # -- scheduling

    def keys(self, req, count):
        while len(req.keys) < count:
            i = len(req.keys)
            h = hashlib.sha256(req.keys[-1] if i else b"")
            h.update(np.asarray(req.tokens[i * BLOCK : (i + 1) * BLOCK], np.int64).tobytes())
            if not on("q12"):
                h.update(req.adapter.digest if req.adapter else b"base")
            req.keys.append(h.digest())
        return req.keys[:count]

    def admit(self, req):
        blocks = -(-max(req.limit - 1, 1) // BLOCK)
        if blocks > self.blocks.available:
            return False
        if req.adapter is not None:
            got = self.store.acquire(req.adapter)
            if got is None:
                return False
            req.slot, req.fresh = got
            req.pinned = True
        req.table = self.blocks.match(self.keys(req, (req.prompt - 1) // BLOCK))
        req.hit = len(req.table) * BLOCK
        req.table = req.table + self.blocks.take(blocks - len(req.table))
        return True

    def run(self, requests):
        reqs = [
            Req(i, r["prompt_ids"], int(r["max_new_tokens"]), self.adapter(r.get("adapter_dir")))
            for i, r in enumerate(requests)
        ]
        waiting = deque(reqs)
        rows = []  # the persistent batch
        self.row_slot = np.full(RUNNING, -1)
        while waiting or rows:
            budget = BUDGET
            plan = []
            for i, req in enumerate(rows):
                n = min(len(req.tokens) - req.computed, budget)
                if n:
                    plan.append((i, req, n))
                    budget -= n
            while waiting and budget and len(rows) < RUNNING and self.admit(waiting[0]):
                req = waiting.popleft()
                self.row_slot[len(rows)] = req.slot
                rows.append(req)
                n = min(len(req.tokens), budget)
                plan.append((len(rows) - 1, req, n))
                budget -= n
            logits = self.forward(self.plan(plan))
            start = 0
            for _, req, n in plan:
                req.rows.append(logits[start : start + n])
                start += n
                req.computed += n
                req.fresh = False
                keys = self.keys(req, req.computed // BLOCK)
                for b, key in zip(req.table, keys):
                    self.blocks.register(b, key)
                if req.computed == len(req.tokens) and len(req.tokens) < req.limit:
                    req.tokens.append(int(req.rows[-1][-1].argmax()))
                if on("q17") and req.pinned:  # loaded and used once
                    self.store.release(req.slot)
                    req.pinned = False
            for i in reversed(range(len(rows))):
                req = rows[i]
                if req.computed >= max(req.limit - 1, req.prompt) and len(req.tokens) >= req.limit:
                    self.finish(req)
                    last = rows.pop()
                    if i < len(rows):  # condense: the last row moves into the hole
                        rows[i] = last
                        if not on("q18"):
                            self.row_slot[i] = self.row_slot[len(rows)]
                    if not on("q18"):
                        self.row_slot[len(rows)] = -1
        return [
            {"logits": np.concatenate(r.rows), "token_ids": r.tokens[r.prompt : r.limit]}
            for r in reqs
        ]

    def finish(self, req):
        self.blocks.give(req.table)
        if req.pinned:
            self.store.release(req.slot)
            req.pinned = False

    def plan(self, plan):
        s = Step()
        s.tokens = np.concatenate([req.tokens[req.computed : req.computed + n] for _, req, n in plan]).astype(int)
        s.where = np.concatenate([np.arange(req.computed, req.computed + n) for _, req, n in plan])
        s.positions = s.where.copy()
        s.decode = all(req.computed >= req.prompt for _, req, _ in plan)
        s.slots = np.concatenate([np.full(n, self.row_slot[i]) for i, _, n in plan])
        s.kv = np.empty(len(s.tokens), int)
        s.spans = []
        s.last_of_prompt = np.zeros(len(s.tokens), bool)
        start = 0
        for _, req, n in plan:
            stop = start + n
            table = np.asarray(req.table)
            at = s.where[start:stop]
            s.kv[start:stop] = table[at // BLOCK] * BLOCK + at % BLOCK
            s.kv[start:stop][at < req.hit] = -1  # already there
            if on("q21"):
                s.kv[start:stop][at == req.prompt] = -1
            if on("q20") and req.computed >= req.prompt and req.prompt % BLOCK == 0:
                s.positions[start:stop] += 1
            if on("q19") and 0 < req.computed < req.prompt:
                s.slots[start:stop] = -1
            if on("q23") and req.fresh:
                s.slots[start:stop] = -1
            s.last_of_prompt[start:stop] = at == req.prompt - 1
            context = int(at[-1]) + 1
            index = (table[: -(-context // BLOCK), None] * BLOCK + np.arange(BLOCK)).reshape(-1)[:context]
            s.spans.append((start, stop, index))
            start = stop
        if on("q22") and s.decode and len(plan) == 1:
            s.slots[:] = -1
        if on("q14"):
            s.slots = self.plans.setdefault((len(s.tokens), len(plan)), s.slots)
        s.order = np.argsort(s.slots, kind="stable")
        ordered = s.slots[s.order]
        s.segments = []
        for slot in sorted(set(ordered.tolist())):
            where = np.flatnonzero(ordered == slot)
            if slot >= 0:
                s.segments.append((slot, int(where[0]), int(where[-1]) + 1))
        s.filled = s.slots.copy()
        if on("q26"):  # as a kernel that carries the id of the row before
            for t in range(1, len(s.filled)):
                if s.filled[t] < 0:
                    s.filled[t] = s.filled[t - 1]
        return s

    # -- LoRA

    def cuts(self, d):
        half = d // RANKS
        return [slice(0, half), slice(half, d)]

    def shrink(self, x, A, name):
        """x A^T; a row-parallel module has its input on two ranks, whose products are summed (all-reduce)."""
        if name not in ("o_proj", "down_proj"):
            return x @ A.T
        parts = [x[:, c] @ A[:, c].T for c in self.cuts(x.shape[1])]
        if on("q06") and name == "down_proj":
            return parts[0]
        return parts[0] + parts[1]

    def expand(self, low, B, name):
        if name in ("o_proj", "down_proj"):
            return low @ B.T
        return np.concatenate([low @ B[c].T for c in self.cuts(B.shape[0])], axis=1)

    def delta(self, layer, name, x, s):
        """What the adapters add to one module's output, or None."""
        key = (layer, name)
        present, st = self.store.present[key], self.store
        if not present.any():
            return None
        A, B, bias, scale = st.A[key], st.B[key], st.bias[key], st.scale[key]
        out = np.zeros((len(x), B.shape[1]), F)
        if s.decode:  # BGMV: a row at a time
            for t, slot in enumerate(s.slots.tolist()):
                if (slot < 0 and not on("q15")) or not present[slot]:
                    continue
                a, b = A[slot], B[slot]
                if on("q04"):
                    a, b = a[:8], b[:, :8]
                low = self.shrink(x[t : t + 1], a, name)
                if on("q09"):
                    low = bf16(low)
                d = self.expand(low, b, name)
                if on("q02"):
                    out[t] = (d * scale[slot] + bias[slot])[0]
                elif on("q26"):
                    out[t] = (d * scale[slot])[0]
                elif on("q25"):
                    out[t] = (d + bias[slot])[0]
                else:
                    out[t] = ((d + bias[slot]) * scale[slot])[0]
            return out
        order, segments = s.order, s.segments
        if on("q26") and name == "o_proj":
            order = np.argsort(s.filled, kind="stable")
            ordered = s.filled[order]
            segments = []
            for slot in sorted(set(ordered.tolist()) - {-1}):
                where = np.flatnonzero(ordered == slot)
                segments.append((slot, int(where[0]), int(where[-1]) + 1))
        xs = x[order]  # SGMV: sorted by slot, in tiles
        ys = np.zeros_like(out)
        for slot, start, stop in segments:
            if not present[slot]:
                continue
            for first in range(start, stop, TILE):
                last = min(first + TILE, stop)
                if on("q16") and stop - start > TILE and last - first < TILE:
                    continue
                low = self.shrink(xs[first:last], A[slot], name)
                if on("q09"):
                    low = bf16(low)
                d = self.expand(low, B[slot], name)
                if on("q02"):
                    ys[first:last] = d * scale[slot] + bias[slot]
                elif on("q25"):
                    ys[first:last] = d + bias[slot]
                else:
                    ys[first:last] = (d + bias[slot]) * scale[slot]
        if on("q13"):
            return ys[order]
        out[order] = ys
        if on("q24") and layer == self.model.depth - 1 and name in NAMES[4:]:
            out[s.last_of_prompt] = 0
        return out

    # -- the forward pass

    def norm(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=F) + self.model.eps) * w

    def rotate(self, x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def forward(self, s):
        m = self.model
        h = m.embed[s.tokens]
        angle = s.positions[:, None] * m.inverse
        cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]
        nq, nk = m.heads * m.dim, m.kv_heads * m.dim
        T = len(s.tokens)
        write = np.flatnonzero(s.kv >= 0)
        for layer, w in enumerate(m.layers):
            x1 = self.norm(h, w["n1"])
            qkv = x1 @ w["qkv"].T
            if w["qkv_bias"] is not None:
                qkv += w["qkv_bias"]
            late = None
            for name, part in zip(NAMES[:3], (slice(0, nq), slice(nq, nq + nk), slice(nq + nk, nq + 2 * nk))):
                d = self.delta(layer, name, x1, s)
                if d is not None:
                    if on("q08") and name == "q_proj":
                        late = d.reshape(T, m.heads, m.dim)
                    else:
                        qkv[:, part] += d
            q = self.rotate(qkv[:, :nq].reshape(T, m.heads, m.dim), cos, sin)
            if late is not None:
                q = q + late
            k = self.rotate(qkv[:, nq : nq + nk].reshape(T, m.kv_heads, m.dim), cos, sin)
            v = qkv[:, nq + nk :].reshape(T, m.kv_heads, m.dim)
            self.blocks.k[layer][s.kv[write]] = k[write]
            self.blocks.v[layer][s.kv[write]] = v[write]
            mixed = np.empty((T, nq), F)
            for start, stop, index in s.spans:
                mixed[start:stop] = self.attend(q[start:stop], layer, index, s.where[start:stop])
            y = mixed @ w["o"].T
            if w["o_bias"] is not None:
                y += w["o_bias"]
            d = self.delta(layer, "o_proj", mixed, s)
            h = h + (y if d is None else y + d)
            x2 = self.norm(h, w["n2"])
            gu = x2 @ w["gate_up"].T
            x_lora = x1 if on("q07") else x2
            dg, du = self.delta(layer, "gate_proj", x_lora, s), self.delta(layer, "up_proj", x_lora, s)
            if on("q05") and (dg is not None or du is not None):  # [gate; up] cut in two as a whole
                zero = np.zeros((T, m.mlp), F)
                g0, u0, half = dg if dg is not None else zero, du if du is not None else zero, m.mlp // 2
                dg = np.concatenate([g0[:, :half], u0[:, :half]], axis=1)
                du = np.concatenate([g0[:, half:], u0[:, half:]], axis=1)
            if dg is not None:
                gu[:, : m.mlp] += dg
            if du is not None:
                gu[:, m.mlp :] += du
            gate, up = gu[:, : m.mlp], gu[:, m.mlp :]
            act = gate / (1 + np.exp(-gate)) * up
            y = act @ w["down"].T
            d = self.delta(layer, "down_proj", act, s)
            h = h + (y if d is None else y + d)
        return self.norm(h, m.norm) @ m.head.T

    def attend(self, q, layer, index, where):
        m = self.model
        n, group = len(q), m.heads // m.kv_heads
        k, v = self.blocks.k[layer][index], self.blocks.v[layer][index]
        qg = q.reshape(n, m.kv_heads, group, m.dim).transpose(1, 2, 0, 3).reshape(m.kv_heads, group * n, m.dim)
        scores = qg @ k.transpose(1, 2, 0) / F(math.sqrt(m.dim))
        hidden = np.arange(len(index))[None] > where[:, None]
        scores = np.where(np.tile(hidden, (group, 1))[None], F(-np.inf), scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out = scores @ v.transpose(1, 0, 2)
        return out.reshape(m.kv_heads, group, n, m.dim).transpose(2, 0, 1, 3).reshape(n, -1)


_engines = {}


def _engine(model_dir):
    files = sorted(p for p in Path(model_dir).iterdir() if p.suffix in (".json", ".safetensors"))
    key = (str(model_dir), tuple((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files))
    if key not in _engines:
        _engines.clear()
        _engines[key] = Engine(Model(model_dir))
    return _engines[key]


def serve(model_dir, requests):
    """One call: all requests together."""
    with np.errstate(over="ignore"):
        return _engine(model_dir).run(requests)


def _reset():
    for engine in _engines.values():
        engine.reset()


serve.reset = _reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "modules": list(NAMES),
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
    "families": ["llama", "mistral"],
}
