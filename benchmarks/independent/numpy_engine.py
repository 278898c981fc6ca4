"""A small multi-LoRA engine for Llama folders in NumPy float32: continuous batching, chunked prefill, paged KV cache with
prefix reuse, adapter slots of one padded rank with LRU eviction, SGMV for mixed steps and BGMV for decode steps.

    loracle check --engine numpy_engine:serve        BUG=n07 puts one bug in (truth.json says which)
"""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

BUG = os.environ.get("BUG", "")

BLOCK = 8  # tokens of a KV block
BLOCKS = 768
CHUNK = 12  # the most tokens of one request in one step
BUDGET = 96  # the most tokens of one step
ADMIT = 4  # new requests of one step
RUNNING = 16
SLOTS = 4
MAX_RANK = 64
F = np.float32

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")


def parent(name):
    return "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"


def dotted(layer, name):
    if name == "lm_head":
        return "lm_head"
    if name == "embed_tokens":
        return "model.embed_tokens"
    return f"model.layers.{layer}.{parent(name)}.{name}"


class Config:
    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        self.d = c["hidden_size"]
        self.layers = c["num_hidden_layers"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.d // self.heads
        self.mlp = c["intermediate_size"]
        self.vocab = c["vocab_size"]
        self.eps = c["rms_norm_eps"]
        if c.get("hidden_act", "silu") != "silu":
            raise ValueError("only silu")
        rope = dict(c.get("rope_parameters") or {}) or dict(c.get("rope_scaling") or {})
        self.theta = rope.get("rope_theta") or c.get("rope_theta") or 10000.0
        self.rope = rope
        self.rope_type = rope.get("rope_type") or rope.get("type") or "default"
        self.tied = bool(c.get("tie_word_embeddings"))

    def frequencies(self):
        f = self.theta ** -(np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        r = self.rope
        if self.rope_type == "linear":
            return f / r["factor"]
        if self.rope_type == "llama3":
            old = r["original_max_position_embeddings"]
            low, high, factor = r["low_freq_factor"], r["high_freq_factor"], r["factor"]
            wave = 2 * math.pi / f
            smooth = (old / wave - low) / (high - low)
            mid = (1 - smooth) * f / factor + smooth * f
            return np.where(wave < old / high, f, np.where(wave > old / low, f / factor, mid))
        if self.rope_type != "default":
            raise ValueError(f"rope type {self.rope_type}")
        return f

    def width(self, name):
        """(d_in, d_out)"""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.d, q), "k_proj": (self.d, kv), "v_proj": (self.d, kv), "o_proj": (q, self.d),
            "gate_proj": (self.d, self.mlp), "up_proj": (self.d, self.mlp), "down_proj": (self.mlp, self.d),
            "embed_tokens": (self.vocab, self.d), "lm_head": (self.d, self.vocab),
        }[name]  # fmt: skip


# ---- adapters -------------------------------------------------------------------------------------------------------


def pattern(patterns, key, default):
    for name, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({name})$", key):
            return value
    return default


class Adapter:
    """A PEFT folder: (layer, name) -> A, B, bias, scale; whole layers and base biases that it brings along."""

    def __init__(self, folder):
        folder = Path(folder)
        c = json.loads((folder / "adapter_config.json").read_text())
        tensors = {}
        for key, value in load_file(folder / "adapter_model.safetensors").items():
            tensors[key.removeprefix("base_model.model.")] = value.astype(F)
        self.weights, self.whole, self.bias = {}, {}, {}
        for key, A in tensors.items():
            match = re.match(r"(.*)\.(lora_A\.weight|lora_embedding_A)$", key)
            if match:
                path, kind = match.groups()
                other = "lora_B.weight" if kind == "lora_A.weight" else "lora_embedding_B"
                B = tensors[f"{path}.{other}"]
                if BUG == "n14" and len(A) >= 8:
                    A, B = A.astype(np.float16).astype(F), B.astype(np.float16).astype(F)
                self.weights[module_of(path)] = (A, B, tensors.get(f"{path}.lora_B.bias"), self.scale(c, path, len(A)))
            elif ".lora_" not in key and key.endswith(".weight"):
                self.whole[module_of(key.removesuffix(".weight").removesuffix(".base_layer"))] = A
            elif ".lora_" not in key and key.endswith(".bias"):
                self.bias[module_of(key.removesuffix(".bias").removesuffix(".base_layer"))] = A
        if max([len(A) for A, *_ in self.weights.values()], default=0) > MAX_RANK:
            raise ValueError("rank")

    def scale(self, c, path, r):
        alpha = pattern(c.get("alpha_pattern"), path, c["lora_alpha"])
        own = alpha != c["lora_alpha"]
        if BUG == "n23" and path.endswith("k_proj"):
            alpha = c["lora_alpha"]
        if BUG == "n22" and path.endswith("embed_tokens"):
            return 1.0
        if BUG == "n22" and own:
            return alpha / r
        return alpha / math.sqrt(r) if c.get("use_rslora") else alpha / r


def module_of(path):
    match = re.match(r"model\.layers\.(\d+)\.\w+\.(\w+)$", path)
    return (int(match[1]), match[2]) if match else (-1, path.split(".")[-1])


class Slots:
    """The adapters on the "device": one stacked A, B, bias and scale for each module, padded to MAX_RANK."""

    def __init__(self, config, tied):
        self.c = config
        self.A, self.B, self.bias, self.scale = {}, {}, {}, {}
        self.rank = {}
        modules = [(i, n) for i in range(config.layers) for n in (*QKV, "o_proj", *GATE_UP, "down_proj")]
        for module in [*modules, (-1, "embed_tokens"), (-1, "lm_head")]:
            d_in, d_out = config.width(module[1])
            self.A[module] = np.zeros((SLOTS, MAX_RANK, d_in), F)
            self.B[module] = np.zeros((SLOTS, d_out, MAX_RANK), F)
            self.bias[module] = np.zeros((SLOTS, d_out), F)
            self.scale[module] = np.zeros(SLOTS, F)
            self.rank[module] = np.zeros(SLOTS, int)
        self.whole = [{} for _ in range(SLOTS)]
        self.base_bias = [{} for _ in range(SLOTS)]
        self.key = [None] * SLOTS
        self.users = [0] * SLOTS
        self.used = [0] * SLOTS
        self.clock = 0

    def acquire(self, keys):
        """The slots of these adapters, or None if they don't fit now."""
        taken = []
        for key in keys:
            slot = self.find(key)
            if slot is None:
                for s in taken:
                    self.users[s] -= 1
                return None
            self.users[slot] += 1
            self.clock += 1
            self.used[slot] = self.clock
            taken.append(slot)
        return taken

    def find(self, key):
        if key in self.key:
            return self.key.index(key)
        free = [s for s in range(SLOTS) if self.users[s] == 0]
        if not free:
            return None
        slot = min(free, key=lambda s: (self.key[s] is not None, self.used[s], s))
        self.fill(slot, key)
        return slot

    def fill(self, slot, key):
        adapter = Adapter(key[0])
        for module in self.A:
            if module not in adapter.weights:
                if BUG == "n04":
                    continue  # nothing to copy
                self.scale[module][slot] = 0
                self.rank[module][slot] = 0
                self.A[module][slot] = self.B[module][slot] = self.bias[module][slot] = 0
                continue
            A, B, bias, scale = adapter.weights[module]
            r = len(A)
            if BUG != "n05":
                self.A[module][slot] = self.B[module][slot] = 0
            self.A[module][slot, :r] = A
            if BUG == "n23" and module[1] == "down_proj":
                B = B.reshape(B.shape[1], B.shape[0]).T
            self.B[module][slot, :, :r] = B
            self.bias[module][slot] = 0 if bias is None else bias
            self.scale[module][slot] = scale
            self.rank[module][slot] = r
        self.whole[slot], self.base_bias[slot] = adapter.whole, adapter.bias
        self.key[slot] = key


# ---- one step's plan ------------------------------------------------------------------------------------------------


class Plan:
    """The flat batch: token ids, positions, adapter slot of each token, KV slots, and the sorted segments."""

    def __init__(self, work):
        self.work = work  # [(state, n)]
        self.decode = all(n == 1 and s.computed >= len(s.prompt) for s, n in work)
        self.ids = np.concatenate([s.tokens[s.computed : s.computed + n] for s, n in work]).astype(np.int64)
        self.positions = np.concatenate([np.arange(s.computed, s.computed + n) for s, n in work])
        if BUG == "n12":
            late = [s.computed >= len(s.prompt) > CHUNK for s, n in work]
            self.positions = self.positions + np.repeat(late, [n for _, n in work])
        self.starts = np.cumsum([0] + [n for _, n in work])
        width = max(1, max(len(s.slots) for s, _ in work))
        slot_rows, weight_rows = [], []
        for s, n in work:
            slots = list(s.slots) + [-1] * (width - len(s.slots))
            weights = list(s.weights) + [0.0] * (width - len(s.slots))
            if BUG == "n21" and len(s.slots) > 1:
                weights = [weights[0]] + [1.0] * (width - 1)
            rows = np.tile(slots, (n, 1))
            if BUG == "n10" and s.computed + n < len(s.prompt):
                rows[-1] = -1
            slot_rows.append(rows)
            weight_rows.append(np.tile(np.asarray(weights, F), (n, 1)))
        self.slots, self.weights = np.concatenate(slot_rows), np.concatenate(weight_rows)
        self.first = self.slots[:, 0]
        self.columns = [self.segments(self.slots[:, j]) for j in range(width)]

    @staticmethod
    def segments(slots):
        """(order, [(slot, start, stop)]): rows sorted by slot, and each adapter's part of them."""
        order = np.argsort(slots, kind="stable")
        order = order[slots[order] >= 0]
        by = slots[order]
        edges = np.flatnonzero(np.diff(by, prepend=-2)) if len(by) else np.zeros(0, int)
        stops = [*edges[1:], len(by)]
        return order, [(int(by[a]), int(a), int(b)) for a, b in zip(edges, stops)]


# ---- the model ------------------------------------------------------------------------------------------------------


class Engine:
    def __init__(self, folder):
        self.c = c = Config(folder)
        w = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            for key, value in load_file(file).items():
                w[key] = value.astype(F)
        self.embed = w["model.embed_tokens.weight"]
        self.lm_head = self.embed if c.tied or "lm_head.weight" not in w else w["lm_head.weight"]
        self.norm = w["model.norm.weight"]
        self.w = []
        for i in range(c.layers):
            p = f"model.layers.{i}."

            def stack(names, part):
                return np.concatenate([w[f"{p}{parent(n)}.{n}.{part}"] for n in names])

            def bias(names):
                return stack(names, "bias") if f"{p}{parent(names[0])}.{names[0]}.bias" in w else None

            self.w.append(
                {
                    "in": w[p + "input_layernorm.weight"],
                    "post": w[p + "post_attention_layernorm.weight"],
                    **{k: (stack(n, "weight"), bias(n)) for k, n in self.packed().items()},
                }
            )
        self.freq = c.frequencies()
        self.reset()

    @staticmethod
    def packed():
        return {"qkv": QKV, "o": ("o_proj",), "gate_up": GATE_UP, "down": ("down_proj",)}

    def reset(self):
        c = self.c
        self.slots = Slots(c, c.tied)
        shape = (c.layers, BLOCKS * BLOCK, c.kv_heads, c.head_dim)
        self.k, self.v = np.zeros(shape, F), np.zeros(shape, F)
        self.free = list(range(BLOCKS))[::-1]
        self.ref = [0] * BLOCKS
        self.block_of, self.key_of = {}, {}  # prefix key <-> block; insertion order is LRU

    # linear layers with LoRA

    def project(self, x, layer, group, plan):
        names = self.packed()[group]
        weight, bias = self.w[layer][group]
        y = x @ weight.T
        if bias is not None:
            rows = np.broadcast_to(bias, y.shape)
            own = [s for s in set(plan.first.tolist()) if s >= 0 and self.slots.base_bias[s]]
            if own:
                rows = rows.copy()
                for s in own:
                    start = 0
                    for n in names:
                        stop = start + self.c.width(n)[1]
                        if (layer, n) in self.slots.base_bias[s]:
                            rows[plan.first == s, start:stop] = self.slots.base_bias[s][layer, n]
                        start = stop
            y += rows
        start = 0
        for n in names:
            stop = start + self.c.width(n)[1]
            lo, hi, target = start, stop, n
            if BUG == "n16" and n == "v_proj":
                lo = self.c.width("q_proj")[1]
                hi = lo + self.c.width("v_proj")[1]
            if BUG == "n17" and group == "gate_up":
                target = GATE_UP[1 - names.index(n)]
            self.lora(y[:, lo:hi], x, (layer, target), plan)
            start = stop
        return y

    def lora(self, y, x, module, plan):
        """y += the deltas of every column, in place."""
        for j, column in enumerate(plan.columns):
            if plan.decode:
                self.bgmv(y, x, module, plan, j)
            else:
                self.sgmv(y, x, module, plan, j, column)

    def stacks(self, module):
        """A, B, bias and scale of a module, all slots."""
        s = self.slots
        layer, name = module
        A, B, bias, scale = s.A[module], s.B[module], s.bias[module], s.scale[module]
        if BUG == "n02" and name in ("k_proj", "v_proj"):
            scale = s.scale[layer, "q_proj"]
            scale = np.where(scale == 0, s.scale[module], scale)
        if BUG == "n06" and name == "v_proj":
            A = s.A[layer, "k_proj"]
        if BUG == "n07" and name == "o_proj":
            A = s.A[max(layer - 1, 0), name]
        return A, B, bias, scale

    def used_rank(self, module, slot):
        """The rank that is multiplied: in tiles of 8, as the kernel does."""
        if BUG == "n13":
            r = int(self.slots.rank[module][slot])
            return min(r, max(1, r // 8) * 8)
        return MAX_RANK

    @staticmethod
    def shrink(x, A):
        return A[:, x].T if x.dtype.kind in "iu" else x @ A.T

    def sgmv(self, y, x, module, plan, j, column):
        order, segments = column
        if not len(order):
            return
        name = module[1]
        A, B, bias, scale = self.stacks(module)
        gathered = x[order]
        out = np.zeros((len(order), y.shape[1]), F)
        for i, (slot, start, stop) in enumerate(segments):
            if not self.slots.rank[module][slot]:
                continue
            if BUG == "n01" and len(segments) > 1:
                stop = stop - 1
            if BUG == "n24" and name == "q_proj":
                stop = min(stop, start + 8)
            r = self.used_rank(module, slot)
            rows = slice(start, stop)
            low = self.shrink(gathered[rows], A[slot, :r])
            delta = low @ B[slot, :, :r].T
            delta += bias[slot]
            factor = scale[i] if BUG == "n03" else scale[slot]
            out[rows] = delta * (factor * plan.weights[order[rows], j])[:, None]
        if BUG == "n11" and name in GATE_UP:
            order = np.sort(order)
        y[order] += out

    def bgmv(self, y, x, module, plan, j):
        """Decode: one token of each request, so each row gathers its own A and B."""
        name, slots = module[1], plan.slots[:, j]
        if BUG == "n09" and name in ("o_proj", "down_proj"):
            return
        if BUG == "n24" and name == "lm_head":
            return
        if (slots < 0).all():
            return
        rows = np.arange(len(slots)) if BUG == "n15" else np.flatnonzero(slots >= 0)
        if BUG == "n20" and name in QKV:
            rows = rows[rows < 4]
        slots = slots[rows]
        A, B, bias, scale = self.stacks(module)
        if BUG == "n13":
            r = np.array([self.used_rank(module, s) for s in slots])[:, None]
            keep = (np.arange(MAX_RANK)[None] < r)[:, :, None].astype(F)
        else:
            keep = F(1)
        if x.dtype.kind in "iu":
            low = (A[slots, :, x[rows]])[:, :, None] * keep
        else:
            low = (A[slots] @ x[rows][:, :, None]) * keep
        delta = (B[slots] @ low)[:, :, 0]
        if BUG != "n08":
            delta += bias[slots]
        weights = plan.weights[rows, j]
        if BUG == "n15":
            weights = np.where(plan.slots[rows, j] < 0, F(1), weights)
        factors = scale[np.arange(len(rows)) % SLOTS] if BUG == "n03" else scale[slots]
        y[rows] += delta * (factors * weights)[:, None]

    # the forward pass

    def rms(self, x, weight):
        return x / np.sqrt((x * x).mean(1, keepdims=True, dtype=F) + F(self.c.eps)) * weight

    def rope(self, x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, plan):
        c = self.c
        x = self.embed[plan.ids]
        self.swap_whole(x, plan, "embed_tokens", lambda table, rows: table[plan.ids[rows]])
        self.lora(x, plan.ids, (-1, "embed_tokens"), plan)
        angle = plan.positions[:, None] * self.freq[None]
        cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]
        q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
        kv_slots = np.concatenate([s.kv_slots(s.computed, s.computed + n) for s, n in plan.work])
        for i in range(c.layers):
            w = self.w[i]
            qkv = self.project(self.rms(x, w["in"]), i, "qkv", plan)
            q = self.rope(qkv[:, :q_size].reshape(-1, c.heads, c.head_dim), cos, sin)
            k = self.rope(qkv[:, q_size : q_size + kv_size].reshape(-1, c.kv_heads, c.head_dim), cos, sin)
            self.k[i][kv_slots] = k
            self.v[i][kv_slots] = qkv[:, q_size + kv_size :].reshape(-1, c.kv_heads, c.head_dim)
            x = x + self.project(self.attention(q, i, plan), i, "o", plan)
            gate_up = self.project(self.rms(x, w["post"]), i, "gate_up", plan)
            gate, up = gate_up[:, : c.mlp], gate_up[:, c.mlp :]
            x = x + self.project(gate / (1 + np.exp(-gate)) * up, i, "down", plan)
        h = self.rms(x, self.norm)
        logits = h @ self.lm_head.T
        if BUG != "n18":
            self.swap_whole(logits, plan, "lm_head", lambda table, rows: h[rows] @ table.T)
        self.lora(logits, h, (-1, "lm_head"), plan)
        return logits

    def swap_whole(self, y, plan, name, compute):
        """The rows whose adapter brings a whole layer of its own (modules_to_save)."""
        for s in set(plan.first.tolist()) - {-1}:
            table = self.slots.whole[s].get((-1, name))
            if table is not None:
                rows = np.flatnonzero(plan.first == s)
                y[rows] = compute(table, rows)

    def attention(self, q, layer, plan):
        c = self.c
        out = np.empty((len(q), c.heads * c.head_dim), F)
        group = c.heads // c.kv_heads
        for (s, n), start in zip(plan.work, plan.starts):
            total = s.computed + n
            where = s.kv_slots(0, total)
            keys = self.k[layer][where].transpose(1, 2, 0)  # [kv, dim, total]
            values = self.v[layer][where].transpose(1, 0, 2)
            queries = q[start : start + n].reshape(n, c.kv_heads, group, -1).transpose(1, 2, 0, 3)
            scores = (queries @ keys[:, None]) * F(c.head_dim**-0.5)
            hidden = np.arange(total)[None] > np.arange(s.computed, total)[:, None]
            scores = np.where(hidden, F(-np.inf), scores)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = scores @ values[:, None]  # [kv, group, n, dim]
            out[start : start + n] = mixed.transpose(2, 0, 1, 3).reshape(n, -1)
        return out

    # blocks

    def take_block(self):
        if not self.free:
            victim = next(b for b in self.key_of if self.ref[b] == 0)
            del self.block_of[self.key_of.pop(victim)]
            self.free.append(victim)
        block = self.free.pop()
        self.ref[block] = 1
        return block

    def release(self, state):
        for block in state.table:
            self.ref[block] -= 1
            if self.ref[block] == 0 and block not in self.key_of:
                self.free.append(block)
        for slot in state.slots:
            self.slots.users[slot] -= 1

    def prefix_key(self, state, j):
        return (() if BUG == "n19" else state.adapters, tuple(state.tokens[: (j + 1) * BLOCK]))

    def match_prefix(self, state):
        """Blocks that are cached already; the last token of a prompt is always computed."""
        for j in range((len(state.prompt) - 1) // BLOCK):
            block = self.block_of.get(self.prefix_key(state, j))
            if block is None:
                break
            self.ref[block] += 1
            state.table.append(block)
            state.computed += BLOCK

    def cache_blocks(self, state):
        for j in range(state.computed // BLOCK):
            key, block = self.prefix_key(state, j), state.table[j]
            if key not in self.block_of and block not in self.key_of:
                self.block_of[key], self.key_of[block] = block, key

    # the scheduler

    def serve(self, requests):
        states = [State(r) for r in requests]
        waiting, running = list(states), []
        while waiting or running:
            work, budget = [], BUDGET
            for s in running:
                n = min(len(s.tokens) - s.computed, CHUNK, budget)
                if n:
                    work.append((s, n))
                    budget -= n
            admitted = 0
            while waiting and budget and admitted < ADMIT and len(running) < RUNNING:
                s = waiting[0]
                slots = self.slots.acquire([key for key, _ in s.adapters])
                if slots is None:
                    break
                waiting.pop(0)
                s.slots = slots
                self.match_prefix(s)
                s.first_row = s.computed
                running.append(s)
                admitted += 1
                n = min(len(s.tokens) - s.computed, CHUNK, budget)
                work.append((s, n))
                budget -= n
            for s, n in work:
                while len(s.table) * BLOCK < s.computed + n:
                    s.table.append(self.take_block())
            plan = Plan(work)
            logits = self.forward(plan)
            for (s, n), start in zip(work, plan.starts):
                s.rows.append(logits[start : start + n])
                s.computed += n
                self.cache_blocks(s)
                if s.computed == len(s.tokens):
                    s.tokens.append(int(logits[start + n - 1].argmax()))
                    if len(s.tokens) == s.limit:
                        self.release(s)
                        running.remove(s)
        return [s.answer() for s in states]


class State:
    def __init__(self, request):
        self.prompt = [int(t) for t in request["prompt_ids"]]
        self.tokens = list(self.prompt)
        self.limit = len(self.prompt) + request["max_new_tokens"]
        if request.get("adapters"):
            pairs = [(folder, weight) for folder, weight in request["adapters"]]
        else:
            pairs = [(request["adapter_dir"], 1.0)] if request["adapter_dir"] else []
        self.adapters = tuple((stamp(folder), float(weight)) for folder, weight in pairs)
        self.weights = [weight for _, weight in self.adapters]
        self.slots, self.table, self.rows = [], [], []
        self.computed = self.first_row = 0

    def kv_slots(self, start, stop):
        positions = np.arange(start, stop)
        return np.asarray(self.table)[positions // BLOCK] * BLOCK + positions % BLOCK

    def answer(self):
        produced = self.tokens[len(self.prompt) :]
        rows = np.concatenate(self.rows)
        if self.first_row:  # a part of the prompt came from the cache: the rows of the produced tokens
            rows = rows[-len(produced) :]
        return {"logits": rows, "token_ids": produced}


def stamp(folder):
    """What tells one adapter from another: the folder, and when its files were written."""
    files = [Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"]
    return (str(folder), *((f.stat().st_mtime_ns, f.stat().st_size) for f in files))


ENGINES = {}


def serve(model_dir, requests):
    if model_dir not in ENGINES:
        while len(ENGINES) >= 2:
            ENGINES.pop(next(iter(ENGINES)))
        ENGINES[model_dir] = Engine(model_dir)
    return ENGINES[model_dir].serve(requests)


def reset():
    for engine in ENGINES.values():
        engine.reset()


serve.reset = reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "families": ["llama"],
    "max_rank": MAX_RANK,
    "modules": [*QKV, "o_proj", *GATE_UP, "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "modules_to_save", "biases"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
}  # fmt: skip
