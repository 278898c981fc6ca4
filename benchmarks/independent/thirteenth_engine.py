"""A multi-LoRA serving engine in plain NumPy (float32), driven by one function: serve(model_dir, requests).

weights    two tensor-parallel shards where the heads allow it; q, k, v and gate, up are fused; q and k lie rotated
           (pairs of channels side by side), so that rope turns neighbours
adapters   2 slots of padded rank on each shard, B prescaled, filled before the step that needs them, LRU out
keys       paged, blocks of 4 tokens, shared by prefix (a hash chain with the adapter in it), LRU out
steps      at most 20 tokens, at most 10 of one prompt; decoding requests first; the youngest is preempted
kernels    steps with prompts in them: rows sorted by slot, cut in tiles of 8 (SGMV). Steps that only decode: a captured
           graph of 2, 4 or 8 rows with static inputs, an adapter gathered for each row (BGMV)

The environment variable BUG names one of FLAWS and puts it in."""

import collections
import hashlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np

SLOTS, MAX_RANK, TILE = 2, 64, 8
BLOCK, BLOCKS = 4, 20
BUDGET, CHUNK, RUNNING = 20, 10, 5
GRAPHS = (2, 4, 8)

FLAWS = {
    "": (), "e01": ("scale_by_config_rank",), "e02": ("alpha_pattern_last_word",), "e03": ("packed_needs_first",),
    "e04": ("bias_on_each_shard",), "e05": ("k_not_rotated",), "e06": ("down_first_shard", "minus_one"),
    "e07": ("ids_before_sorting",), "e08": ("whole_tiles_only",), "e09": ("tiles_across_segments",),
    "e10": ("padding_writes",), "e11": ("captured_width",), "e12": ("lora_by_first_row", "plain_scale_at_tables"),
    "e13": ("prefix_by_slot",), "e14": ("first_is_falsy",), "e15": ("registered_early",),
    "e16": ("slot_not_cleared", "last_row_left_out"), "e17": ("released_after_prefill",), "e18": ("scaled_again",),
    "e19": ("one_staging_buffer",), "e20": ("launch_rank",), "e21": ("partial_block_unseen",),
    "e22": ("decodes_beside_prompts", "head_first_shard"), "e23": ("recomputed_as_base",),
    "e24": ("prefix_by_last_name", "o_rotated"), "e25": ("decode_position_less_cached",),
    "e26": ("embedding_not_in_graph", "shared_a"),
}  # fmt: skip
BUG = os.environ.get("BUG", "")
if BUG not in FLAWS:
    raise ValueError(f"BUG={BUG!r} is none of {', '.join(FLAWS)}")


def has(flaw):
    return flaw in FLAWS[BUG]


# ---- files

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_tensors(folder, pattern):
    """All tensors of the safetensors files of a folder, as float32."""
    tensors = {}
    for path in sorted(Path(folder).glob(pattern)):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__" or entry["dtype"] not in TYPES:
                continue
            begin, end = (start + offset for offset in entry["data_offsets"])
            x = np.frombuffer(data[begin:end], TYPES[entry["dtype"]])
            if entry["dtype"] == "BF16":
                x = (x.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = np.array(x, np.float32).reshape(entry["shape"])
    return tensors


# ---- the base

GROUPS = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("gate_proj", "up_proj"),
          "down": ("down_proj",)}  # fmt: skip
PARENT = {name: "mlp" if group in ("gate_up", "down") else "self_attn" for group in GROUPS for name in GROUPS[group]}
EMBED, HEAD = (-1, "embed_tokens"), (-1, "lm_head")


class Model:
    """The weights of a Llama or Mistral, cut, fused and rotated."""

    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        self.layers, self.d, self.inter, self.vocab = (
            c[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        )
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.hd = c.get("head_dim") or self.d // self.heads
        self.eps = c.get("rms_norm_eps", 1e-6)
        theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta") or 10000.0
        self.frequency = 1.0 / theta ** (np.arange(0, self.hd, 2) / self.hd)
        even = self.heads % 2 == 0 and self.inter % 2 == 0 and (self.kv_heads % 2 == 0 or self.kv_heads == 1)
        self.shards = 2 if even else 1
        self.q_local, self.kv_local = self.heads // self.shards, max(1, self.kv_heads // self.shards)
        t = read_tensors(folder, "*.safetensors")
        self.embed = t["model.embed_tokens.weight"]
        self.norm = t["model.norm.weight"]
        head = t["lm_head.weight"] if "lm_head.weight" in t and not c.get("tie_word_embeddings") else self.embed
        self.head = [head[self.out_rows("lm_head", r)] for r in range(self.shards)]
        self.norms, self.weights = [], [[] for _ in range(self.shards)]
        for i in range(self.layers):
            at = f"model.layers.{i}."
            self.norms.append([t[at + n + ".weight"] for n in ("input_layernorm", "post_attention_layernorm")])
            whole = {name: self.rotated(name, t[f"{at}{PARENT[name]}.{name}.weight"]) for name in PARENT}
            for r in range(self.shards):
                fused = {}
                for group, names in GROUPS.items():
                    fused[group] = np.concatenate([self.cut(name, whole[name], r) for name in names])
                self.weights[r].append(fused)

    def rotated(self, name, w):
        """Rows of q or k with each pair of channels side by side; any other weight as it is."""
        if name not in ("q_proj", "k_proj"):
            return w
        order = np.arange(self.hd).reshape(2, -1).T.ravel()
        return w[(np.arange(0, len(w), self.hd)[:, None] + order).ravel()]

    def out_rows(self, name, r):
        """Which rows of a weight [d_out, d_in], or of B, are those of shard r."""
        if name in ("o_proj", "down_proj", "embed_tokens"):
            return slice(None)
        if name in ("k_proj", "v_proj"):
            first = 0 if self.kv_heads == 1 else r * self.kv_local
            return slice(first * self.hd, (first + self.kv_local) * self.hd)
        whole = {"q_proj": self.heads * self.hd, "lm_head": self.vocab}.get(name, self.inter)
        return slice(r * whole // self.shards, (r + 1) * whole // self.shards)

    def in_columns(self, name, r):
        """Which columns of a weight, or of A, are those of shard r."""
        whole = {"o_proj": self.heads * self.hd, "down_proj": self.inter}.get(name)
        return slice(None) if whole is None else slice(r * whole // self.shards, (r + 1) * whole // self.shards)

    def cut(self, name, w, r):
        return w[self.out_rows(name, r)][:, self.in_columns(name, r)]

    def shape(self, name, r):
        """(d_out, d_in) of a module on shard r; of the embedding, of what A and B make."""
        d_in = {"o_proj": self.heads * self.hd, "down_proj": self.inter, "embed_tokens": self.vocab}.get(name, self.d)
        d_out = {"q_proj": self.heads * self.hd, "k_proj": self.kv_heads * self.hd, "v_proj": self.kv_heads * self.hd,
                 "gate_proj": self.inter, "up_proj": self.inter, "lm_head": self.vocab}.get(name, self.d)  # fmt: skip
        return len(range(d_out)[self.out_rows(name, r)]), len(range(d_in)[self.in_columns(name, r)])


# ---- adapters

TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?:model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)|model\.(embed_tokens)|(lm_head))"
    r"\.lora_(?:embedding_)?([AB])(?:\.(weight|bias))?"
)


def from_pattern(pattern, name, default):
    """The value of the first key that matches the end of a module's name, as in PEFT."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


class Adapter:
    """A PEFT folder in host memory: (layer, module) -> A, B, bias and scale, q and k rotated as the base's are."""

    def __init__(self, folder, ordinal, model):
        self.folder, self.ordinal, self.model = folder, ordinal, model
        self.config = json.loads((Path(folder) / "adapter_config.json").read_text())
        self.offloaded = False
        self.modules = collections.defaultdict(dict)
        for name, x in read_tensors(folder, "adapter_model.safetensors").items():
            match = TENSOR.fullmatch(name)
            if match is None:
                raise ValueError(f"{folder}: {name} is not supported")
            layer, module, embed, head, half, kind = match.groups()
            key = (int(layer), module) if layer else (-1, embed or head)
            part = "bias" if kind == "bias" else half
            if part != "A" and not (part == "B" and key[1] == "k_proj" and has("k_not_rotated")):
                x = model.rotated(key[1], x)
            elif key[1] == "o_proj" and has("o_rotated"):
                x = model.rotated("q_proj", x.T).T
            self.modules[key][part] = np.ascontiguousarray(x)
        for key, parts in self.modules.items():
            parts["scale"] = self.scale(key, len(parts["A"]))
            other = self.modules.get((key[0], "gate_proj")) if key[1] == "up_proj" else None
            if other and has("shared_a") and other["A"].shape == parts["A"].shape:
                parts["A"] = other["A"]
        self.rank = max((len(parts["A"]) for parts in self.modules.values()), default=0)

    def scale(self, key, rank):
        c, (layer, module) = self.config, key
        name = f"model.layers.{layer}.{PARENT[module]}.{module}" if layer >= 0 else module
        if has("alpha_pattern_last_word"):
            alpha = (c.get("alpha_pattern") or {}).get(module, c["lora_alpha"])
        else:
            full = f"model.{module}" if key == EMBED else name
            alpha = from_pattern(c.get("alpha_pattern"), full, c["lora_alpha"])
        if has("scale_by_config_rank"):
            rank = c["r"]
        rslora = c.get("use_rslora") and not (has("plain_scale_at_tables") and layer < 0)
        return alpha / (math.sqrt(rank) if rslora else rank)


class Slots:
    """The adapters on the device: for each shard and module A, B and bias of all slots, padded to MAX_RANK."""

    def __init__(self, model):
        self.model = model
        keys = [(i, name) for i in range(model.layers) for name in PARENT] + [EMBED, HEAD]
        self.buffers = []
        for r in range(model.shards):
            self.buffers.append({})
            for key in keys:
                d_out, d_in = model.shape(key[1], r)
                A, B = np.zeros((SLOTS, MAX_RANK, d_in), "f4"), np.zeros((SLOTS, d_out, MAX_RANK), "f4")
                self.buffers[r][key] = (A, B, np.zeros((SLOTS, d_out), "f4"))
        self.ranks = {key: [0] * SLOTS for key in keys}
        self.held = [None] * SLOTS
        self.users = [0] * SLOTS
        self.used = [0] * SLOTS
        self.clock = 0
        self.pending = []

    def acquire(self, adapter):
        """The slot of an adapter, or None while all slots are in use by others."""
        if adapter in self.held:
            slot = self.held.index(adapter)
        else:
            free = [s for s in range(SLOTS) if not self.users[s]]
            if not free:
                return None
            slot = min(free, key=lambda s: (self.held[s] is not None, self.used[s], s))
            if self.held[slot] is not None:
                self.held[slot].offloaded = True
            self.held[slot] = adapter
            self.pending = [(s, a) for s, a in self.pending if s != slot] + [(slot, adapter)]
        self.users[slot] += 1
        self.touch(slot)
        return slot

    def release(self, slot):
        self.users[slot] -= 1
        self.touch(slot)

    def touch(self, slot):
        self.clock += 1
        self.used[slot] = self.clock

    def flush(self):
        """Copy what was acquired since the last step to the device."""
        for slot, adapter in self.pending:
            self.fill(slot, self.pending[-1][1] if has("one_staging_buffer") else adapter)
        self.pending = []

    def fill(self, slot, adapter):
        for key, ranks in self.ranks.items():
            parts = adapter.modules.get(key)
            if parts and key[1] in ("k_proj", "v_proj") and has("packed_needs_first"):
                parts = parts if (key[0], "q_proj") in adapter.modules else None
            if parts is None and has("slot_not_cleared"):
                continue
            ranks[slot] = len(parts["A"]) if parts else 0
            for r in range(self.model.shards):
                for buffer in self.buffers[r][key]:
                    buffer[slot] = 0
                if parts:
                    self.copy(slot, key, r, parts, adapter)

    def copy(self, slot, key, r, parts, adapter):
        """One module of one shard: A as it is, B and the bias times the scale."""
        A, B, bias = self.buffers[r][key]
        name, scale, rank = key[1], parts["scale"], len(parts["A"])
        if has("scaled_again") and adapter.offloaded:
            scale *= scale
        rows, columns = self.model.out_rows(name, r), self.model.in_columns(name, r)
        if name == "down_proj" and has("down_first_shard"):
            columns = self.model.in_columns(name, 0)
        if name == "lm_head" and has("head_first_shard"):
            rows = slice(0, rows.stop - rows.start)
        A[slot, :rank] = parts["A"][:, columns]
        B[slot, :, :rank] = parts["B"][rows] * np.float32(scale)
        whole = name not in ("o_proj", "down_proj") or r == 0 or has("bias_on_each_shard")  # the sum has it once
        if "bias" in parts and whole:
            bias[slot] = parts["bias"][rows] * np.float32(scale)


# ---- which rows of a step get which slot

class Tiles:
    """SGMV: the rows of each slot, in tiles."""

    def __init__(self, ids, slots):
        order = np.argsort(ids, kind="stable")
        order = order[ids[order] >= 0]
        self.tiles, self.cap = [], MAX_RANK
        if has("last_row_left_out"):
            order = order[:-1]
        if has("tiles_across_segments"):
            self.tiles = [(ids[order[i]], order[i : i + TILE]) for i in range(0, len(order), TILE)]
        else:
            for slot in range(SLOTS):
                rows = order[ids[order] == slot]
                if len(rows) > TILE and has("whole_tiles_only"):
                    rows = rows[: len(rows) // TILE * TILE]
                self.tiles += [(slot, rows[i : i + TILE]) for i in range(0, len(rows), TILE)]
        if self.tiles and has("launch_rank"):
            self.cap = slots.held[self.tiles[0][0]].rank

    def add(self, y, x, buffers, ranks):
        A, B, bias = buffers
        for slot, rows in self.tiles:
            rank = min(ranks[slot], self.cap)
            if rank:
                low = A[slot, :rank, x[rows]] if x.ndim == 1 else x[rows] @ A[slot, :rank].T
                y[rows] += low @ B[slot, :, :rank].T + bias[slot]


class Gathered:
    """BGMV: for each row the whole padded matrices of its slot."""

    def __init__(self, ids):
        self.ids = ids

    def add(self, y, x, buffers, ranks):
        ids, (A, B, bias) = self.ids, buffers
        if not any(ranks):
            return
        low = A[ids, :, x] if x.ndim == 1 else np.matmul(A[ids], x[:, :, None])[:, :, 0]
        delta = np.matmul(B[ids], low[:, :, None])[:, :, 0] + bias[ids]
        if not has("minus_one"):
            delta[ids < 0] = 0
        y += delta


# ---- blocks of keys and values

class Blocks:
    """Who uses which block, and which ones can be found by a prefix. Block 0 takes what padded rows write."""

    def __init__(self, count):
        self.users = [0] * count
        self.free = collections.deque(range(1, count))
        self.key = [None] * count
        self.found = {}
        self.idle = collections.OrderedDict()  # blocks that have a key and no user, the least recently used first

    def grow(self, count):
        self.free += range(len(self.users), count)
        self.key += [None] * (count - len(self.users))
        self.users += [0] * (count - len(self.users))

    @property
    def available(self):
        return len(self.free) + len(self.idle)

    def take(self):
        if self.free:
            block = self.free.popleft()
        else:
            block, _ = self.idle.popitem(last=False)
            del self.found[self.key[block]]
            self.key[block] = None
        self.users[block] = 1
        return block

    def match(self, keys):
        blocks = []
        for key in keys:
            if key not in self.found:
                break
            blocks.append(self.found[key])
            self.idle.pop(blocks[-1], None)
            self.users[blocks[-1]] += 1
        return blocks

    def register(self, block, key):
        if key not in self.found and self.key[block] is None:
            self.found[key], self.key[block] = block, key

    def release(self, blocks):
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                if self.key[block] is None:
                    self.free.append(block)
                else:
                    self.idle[block] = None


# ---- requests and steps

class Sequence:
    def __init__(self, prompt, adapter, new_tokens):
        self.prompt, self.adapter, self.limit = len(prompt), adapter, len(prompt) + new_tokens
        self.tokens = [int(t) for t in prompt]
        self.done = self.cached = self.again = 0  # in the cache; found there; to compute again
        self.slot, self.table, self.holds = -1, [], False
        self.rows, self.steps = {}, []

    @property
    def todo(self):
        return len(self.tokens) - self.done

    @property
    def decodes(self):
        return self.todo == 1 and self.done >= self.prompt


class Graph:
    """Static inputs of a decode step of so many rows, and what was fixed when it was captured."""

    def __init__(self, size, width):
        self.width = width
        self.tokens, self.positions, self.writes = (np.zeros(size, np.int64) for _ in range(3))
        self.ids, self.lengths = np.full(size, -1), np.ones(size, np.int64)
        self.tables = np.zeros((size, width), np.int64)


class Engine:
    def __init__(self, folder):
        self.model = Model(folder)
        self.slots = Slots(self.model)
        self.blocks = Blocks(BLOCKS)
        self.kv = [self.empty(BLOCKS) for _ in range(self.model.shards)]
        self.adapters, self.graphs = {}, {}
        self.waiting, self.running = collections.deque(), []

    def empty(self, blocks):
        m = self.model
        return np.zeros((m.layers, 2, blocks * BLOCK, m.kv_local, m.hd), "f4")

    def serve(self, requests):
        sequences = []
        for request in requests:
            folder = request["adapter_dir"]
            if folder is not None and folder not in self.adapters:
                self.adapters[folder] = Adapter(folder, len(self.adapters), self.model)
            adapter = None if folder is None else self.adapters[folder]
            sequences.append(Sequence(request["prompt_ids"], adapter, request["max_new_tokens"]))
        needed = max(-(-s.limit // BLOCK) for s in sequences) + 1
        if needed > len(self.blocks.users):
            more = needed - len(self.blocks.users)
            self.kv = [np.concatenate([kv, self.empty(more)], axis=2) for kv in self.kv]
            self.blocks.grow(needed)
        self.waiting.extend(sequences)
        step = 0
        while self.waiting or self.running:
            self.step(step)
            step += 1
        return [self.answer(s) for s in sequences]

    def answer(self, s):
        last = s.limit - 1
        first = 0 if all(i in s.rows for i in range(last)) else s.prompt - 1
        logits = np.stack([s.rows[i] for i in range(first, last)])
        return {"logits": logits, "token_ids": s.tokens[s.prompt :], "steps": s.steps}

    # -- scheduling

    def schedule(self):
        """(sequence, tokens) of this step: those that decode, then prompts that go on, then new ones."""
        work, budget, preempted = [], BUDGET, False
        for decodes in (True, False):
            for s in list(self.running):
                if s not in self.running or s.decodes != decodes or budget == 0:
                    continue
                n = min(s.todo, CHUNK, budget)
                while s in self.running and -(-(s.done + n) // BLOCK) > len(s.table):
                    if self.blocks.available:
                        s.table.append(self.blocks.take())
                    else:
                        self.preempt(self.running[-1])
                        preempted = True
                if s in self.running:
                    work.append((s, n))
                    budget -= n
        for s in [] if preempted else list(self.waiting):
            if budget == 0 or len(self.running) >= RUNNING:
                break
            fits = self.admit(s)
            if fits is None:
                break
            if fits:
                n = min(s.todo, CHUNK, budget)
                work.append((s, n))
                budget -= n
        return work

    def admit(self, s):
        """A slot, the prefix that is there, blocks for the rest. False: no slot, others may pass; None: no blocks."""
        if s.adapter is not None:
            slot = self.slots.acquire(s.adapter)
            if slot is None:
                return False
            s.slot, s.holds = slot, True
        s.table = self.blocks.match(self.keys(s, (len(s.tokens) - 1) // BLOCK))
        s.done = s.cached = len(s.table) * BLOCK
        missing = -(-len(s.tokens) // BLOCK) - len(s.table)
        if missing > self.blocks.available:
            self.drop(s)
            return None
        s.table += [self.blocks.take() for _ in range(missing)]
        if has("registered_early"):
            self.register(s, len(s.tokens))
        self.waiting.remove(s)
        self.running.append(s)
        return True

    def drop(self, s):
        """Give back what a sequence holds."""
        self.blocks.release(s.table)
        if s.holds:
            self.slots.release(s.slot)
        s.table, s.slot, s.holds, s.done = [], -1, False, 0

    def preempt(self, s):
        s.again = len(s.tokens)
        self.running.remove(s)
        self.drop(s)
        self.waiting.appendleft(s)

    def keys(self, s, count):
        """Prefix keys of the first blocks: all that their keys and values depend on."""
        who = "base" if s.adapter is None else f"adapter {s.adapter.ordinal}"
        if s.adapter is not None and has("first_is_falsy"):
            who = f"adapter {s.adapter.ordinal}" if s.adapter.ordinal else "base"
        if has("prefix_by_slot"):
            who = f"slot {s.slot}"
        if s.adapter is not None and has("prefix_by_last_name"):
            who = f"adapter {Path(s.adapter.folder).name}"
        keys, parent = [], who.encode()
        for i in range(count):
            tokens = np.asarray(s.tokens[i * BLOCK : (i + 1) * BLOCK], np.int64)
            parent = hashlib.sha256(parent + tokens.tobytes()).digest()
            keys.append(parent)
        return keys

    def register(self, s, tokens):
        for block, key in zip(s.table, self.keys(s, tokens // BLOCK)):
            self.blocks.register(block, key)

    # -- one step

    def step(self, number):
        work = self.schedule()
        self.slots.flush()
        if all(s.decodes for s, _ in work) and len(work) <= GRAPHS[-1]:
            arrived = [s for s, _ in work]
            work.sort(key=lambda item: item[0].slot)
            logits = self.decode([s for s, _ in work], arrived)
        else:
            logits = self.mixed(work)
        row = 0
        for s, n in work:
            s.steps.append((number, row, s.done, n, s.slot if s.slot >= 0 else None))
            for j in range(n):
                s.rows.setdefault(s.done + j, logits[row + j])
            s.done += n
            row += n
            self.register(s, s.done)
            if s.todo == 0:
                s.tokens.append(int(logits[row - 1].argmax()))
                if s.holds and has("released_after_prefill"):
                    self.slots.release(s.slot)
                    s.holds = False
                if len(s.tokens) == s.limit:
                    self.running.remove(s)
                    self.drop(s)

    def position(self, s):
        """Of the first token that is computed now."""
        return s.done - s.cached if s.decodes and has("decode_position_less_cached") else s.done

    def mixed(self, work):
        """A step with prompts, or parts of them: rows as they come, LoRA in tiles, attention one by one."""
        tokens, positions, writes, ids, spans = [], [], [], [], []
        for s, n in work:
            first = self.position(s)
            spans.append((len(tokens), n, s))
            tokens += s.tokens[s.done : s.done + n]
            positions += range(first, first + n)
            writes += [s.table[p // BLOCK] * BLOCK + p % BLOCK for p in range(s.done, s.done + n)]
            for p in range(s.done, s.done + n):
                bare = has("decodes_beside_prompts") and s.decodes or has("recomputed_as_base") and p < s.again
                ids.append(-1 if bare else s.slot)

        def attention(q, k, v):
            out = np.empty_like(q)
            for row, n, s in spans:
                seen = s.done + n
                where = (np.asarray(s.table)[: -(-seen // BLOCK), None] * BLOCK + np.arange(BLOCK)).ravel()[:seen]
                hidden = np.arange(seen)[None, :] > np.arange(s.done, seen)[:, None]
                if has("partial_block_unseen") and not s.decodes:
                    hidden[:, s.done // BLOCK * BLOCK : s.done] = True
                group = q.shape[1] // k.shape[1]
                part = q[row : row + n].reshape(n, k.shape[1], group, -1)
                scores = np.einsum("nhgd,shd->hgns", part, k[where]) / np.float32(math.sqrt(q.shape[2]))
                mixed = np.einsum("hgns,shd->nhgd", softmax(np.where(hidden, -np.inf, scores)), v[where])
                out[row : row + n] = mixed.reshape(n, *q.shape[1:])
            return out

        lora = Tiles(np.asarray(ids), self.slots)
        return self.forward(np.asarray(tokens), np.asarray(positions), np.asarray(writes), lora, lora, attention)

    def decode(self, work, arrived):
        """A step in which every row is the one token of a sequence: the graph of the next size, its inputs filled."""
        n, size = len(work), next(size for size in GRAPHS if size >= len(work))
        width = max(len(s.table) for s in work)
        with_lora = work[0].slot >= 0 if has("lora_by_first_row") else any(s.slot >= 0 for s in work)
        g = old = self.graphs.get((size, with_lora))
        if old is None or (old.width < width and not has("captured_width")):
            g = self.graphs[size, with_lora] = Graph(size, -(-width // 2) * 2)
            g.writes = g.writes if old is None else old.writes
        g.tokens[n:], g.positions[n:], g.ids[n:], g.lengths[n:], g.tables[:] = 0, 0, -1, 1, 0
        if not has("padding_writes"):
            g.writes[n:] = 0
        for i, s in enumerate(work):
            width = min(len(s.table), g.width)
            g.tokens[i], g.positions[i] = s.tokens[s.done], self.position(s)
            g.writes[i] = s.table[s.done // BLOCK] * BLOCK + s.done % BLOCK
            g.ids[i] = arrived[i].slot if has("ids_before_sorting") else s.slot
            if has("recomputed_as_base") and s.done < s.again:
                g.ids[i] = -1
            g.tables[i, :width] = s.table[:width]
            g.lengths[i] = min(s.done + 1, g.width * BLOCK)

        def attention(q, k, v):
            where = (g.tables[:, :, None] * BLOCK + np.arange(BLOCK)).reshape(size, -1)
            hidden = np.arange(where.shape[1]) >= g.lengths[:, None]
            part = q.reshape(size, k.shape[1], -1, q.shape[2])
            scores = np.einsum("nhgd,nshd->nhgs", part, k[where]) / np.float32(math.sqrt(q.shape[2]))
            scores[np.broadcast_to(hidden[:, None, None], scores.shape)] = -np.inf
            return np.einsum("nhgs,nshd->nhgd", softmax(scores), v[where]).reshape(q.shape)

        lora = Gathered(g.ids) if with_lora else None
        of_embedding = None if has("embedding_not_in_graph") else lora
        return self.forward(g.tokens, g.positions, g.writes, lora, of_embedding, attention)[:n]

    # -- the numbers

    def forward(self, tokens, positions, writes, lora, lora_of_embedding, attention):
        m = self.model
        angle = positions[:, None] * m.frequency
        cos, sin = np.cos(angle).astype("f4")[:, None], np.sin(angle).astype("f4")[:, None]
        x = m.embed[tokens]
        self.add(x, tokens, EMBED, 0, lora_of_embedding)
        for i in range(m.layers):
            h = rms_norm(x, m.norms[i][0], m.eps)
            total = 0
            for r in range(m.shards):
                q, k, v = self.project(h, i, "qkv", r, lora)
                q, k = (turn(y.reshape(len(x), -1, m.hd), cos, sin) for y in (q, k))
                keys, values = self.kv[r][i]
                keys[writes], values[writes] = k, v.reshape(len(x), -1, m.hd)
                mixed = attention(q, keys, values).reshape(len(x), -1)
                total = total + self.project(mixed, i, "o", r, lora)[0]
            x = x + total
            h = rms_norm(x, m.norms[i][1], m.eps)
            total = 0
            for r in range(m.shards):
                gate, up = self.project(h, i, "gate_up", r, lora)
                total = total + self.project(silu(gate) * up, i, "down", r, lora)[0]
            x = x + total
        h = rms_norm(x, m.norm, m.eps)
        logits = []
        for r in range(m.shards):
            y = h @ m.head[r].T
            self.add(y, h, HEAD, r, lora)
            logits.append(y)
        return np.concatenate(logits, axis=1)

    def project(self, x, layer, group, r, lora):
        """A fused product of one shard, cut in its parts, each with its own delta."""
        y = x @ self.model.weights[r][layer][group].T
        parts, start = [], 0
        for name in GROUPS[group]:
            stop = start + self.model.shape(name, r)[0]
            parts.append(np.ascontiguousarray(y[:, start:stop]))
            self.add(parts[-1], x, (layer, name), r, lora)
            start = stop
        return parts

    def add(self, y, x, key, r, lora):
        if lora is not None:
            lora.add(y, x, self.slots.buffers[r][key], self.slots.ranks[key])


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(eps)) * weight


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def silu(x):
    return x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x * np.float32(0.5)))


def turn(x, cos, sin):
    """Rope on pairs of neighbours."""
    y = np.empty_like(x)
    y[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    y[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return y


ENGINES = {}


def serve(model_dir, requests):
    if not requests:
        return []
    if model_dir not in ENGINES:
        ENGINES[model_dir] = Engine(model_dir)
    return ENGINES[model_dir].serve(requests)


serve.reset = ENGINES.clear
serve.capabilities = {
    "dtypes": ["float32"],
    "modules": [*PARENT, "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill", "preempt"],
    "max_rank": MAX_RANK,
}
