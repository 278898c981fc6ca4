"""Tramline: a small multi-LoRA serving engine in NumPy.

One flat batch per step: prompt chunks first (LoRA by tiles of 8 rows), decode rows behind them (LoRA row by row, through
an index buffer that belongs to the graph of their padded number). Two tensor-parallel shards: qkv and gate_up are fused and cut by outputs,
o and down by inputs. Paged keys and values with a prefix cache (the rows' logits are kept with a block). Two adapter
slots with padded, prescaled A and B, and a clock that finds the victim.

Environment: BUG = u01 ... u26, or empty.
"""

import json
import math
import os
import re
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np

BUG = os.environ.get("BUG", "")
if BUG and BUG not in {f"u{i:02d}" for i in range(1, 27)}:
    raise ValueError(f"unknown BUG {BUG!r}")


def bug(name):
    return BUG == name


SLOTS, MAX_RANK, BUCKETS = 2, 64, (4, 16, 64)
TILE, CHUNK, BUDGET, RUNNING = 8, 12, 32, 5
BLOCK, BLOCKS = 8, 512
GRAPHS = (2, 4, 8)
SHARDS = (0, 1)
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
IN_LAYER = (*QKV, "o_proj", *GATE_UP, "down_proj")
INDEX = {name: i for i, name in enumerate(IN_LAYER)}
F = np.float32


# ---- files ----------------------------------------------------------------------------------------------------------


def read_tensors(path):
    raw = np.memmap(path, np.uint8, "r")
    size = int(raw[:8].view(np.uint64)[0])
    header = json.loads(bytes(raw[8 : 8 + size]))
    out = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        a, b = info["data_offsets"]
        part = np.array(raw[8 + size + a : 8 + size + b])
        kind = info["dtype"]
        if kind == "BF16":
            array = (part.view(np.uint16).astype(np.uint32) << 16).view(F)
        else:
            array = part.view({"F32": F, "F16": np.float16, "F64": np.float64}[kind]).astype(F)
        out[name] = array.reshape(info["shape"])
    return out


def read_folder(folder, stem):
    folder = Path(folder)
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return {k: v for name in names for k, v in read_tensors(folder / name).items()}
    return read_tensors(folder / f"{stem}.safetensors")


def halves(n):
    """What each shard has of n outputs or inputs."""
    return slice(0, n // 2), slice(n // 2, n)


class Base:
    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        t = read_folder(folder, "model")
        self.layers, self.d, self.vocab = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.d // self.heads
        self.eps, self.window = c.get("rms_norm_eps", 1e-6), c.get("sliding_window")
        rope = c.get("rope_parameters") or {}
        theta = c.get("rope_theta") or rope.get("rope_theta") or 10000.0
        self.freq = 1.0 / theta ** (np.arange(0, self.head_dim, 2) / self.head_dim)
        self.embed = t["model.embed_tokens.weight"]
        self.head = self.embed if c.get("tie_word_embeddings", False) else t["lm_head.weight"]
        self.norm = t["model.norm.weight"]
        self.norms, self.w_qkv, self.w_o, self.w_gu, self.w_down = [], [], [], [], []
        self.out = {}
        for i in range(self.layers):
            at = f"model.layers.{i}."
            self.norms.append((t[at + "input_layernorm.weight"], t[at + "post_attention_layernorm.weight"]))
            w = {n: t[f"{at}self_attn.{n}.weight"] for n in (*QKV, "o_proj")}
            w |= {n: t[f"{at}mlp.{n}.weight"] for n in (*GATE_UP, "down_proj")}
            self.w_qkv.append([np.concatenate([w[n][halves(len(w[n]))[s]] for n in QKV]) for s in SHARDS])
            self.w_gu.append([np.concatenate([w[n][halves(len(w[n]))[s]] for n in GATE_UP]) for s in SHARDS])
            self.w_o.append([np.ascontiguousarray(w["o_proj"][:, halves(w["o_proj"].shape[1])[s]]) for s in SHARDS])
            self.w_down.append(
                [np.ascontiguousarray(w["down_proj"][:, halves(w["down_proj"].shape[1])[s]]) for s in SHARDS]
            )
            self.out = {n: w[n].shape for n in w}  # (d_out, d_in)
        self.out["lm_head"], self.out["embed_tokens"] = (self.vocab, self.d), (self.d, self.vocab)


class HostAdapter:
    """A PEFT folder in host memory: by (layer, module), what there is, and the scale of each."""

    def __init__(self, folder, base):
        c = json.loads((Path(folder) / "adapter_config.json").read_text())
        self.modules = {}  # (layer or -1, name) -> {"A", "B", "bias", "scale"}
        for name, array in read_folder(folder, "adapter_model").items():
            name = name.removeprefix("base_model.model.")
            m = re.fullmatch(r"(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.(weight|bias))?", name)
            if m is None:
                raise ValueError(f"{folder}: tensor {name}")
            path, part, kind = m.groups()
            layer = re.search(r"layers\.(\d+)\.", path)
            key = (int(layer.group(1)) if layer else -1, path.rsplit(".", 1)[-1])
            one = self.modules.setdefault(key, {"path": path, "bias": None})
            one["bias" if kind == "bias" else part[-1]] = array
        for (_, name), one in self.modules.items():
            r = len(one["A"])
            alpha = first_match(c.get("alpha_pattern") or {}, one["path"], c["lora_alpha"])
            if bug("u06"):
                r = bucket(r)
            if bug("u16"):
                r = c["r"]
            one["scale"] = alpha / math.sqrt(r) if c.get("use_rslora") else alpha / r
            if bug("u02") and name in QKV[:2]:
                pairs = one["B"].reshape(-1, 2, base.head_dim // 2, one["B"].shape[1])
                one["B"] = pairs.swapaxes(1, 2).reshape(one["B"].shape)


def first_match(pattern, path, default):
    for name, value in pattern.items():
        if bug("u08") and "." in name.replace("\\.", "."):
            continue
        if re.match(rf"(.*\.)?({name})$", path):
            return value
    return default


def bucket(rank):
    return next(b for b in BUCKETS if rank <= b)


# ---- adapters on the device -----------------------------------------------------------------------------------------


class Device:
    """Slots: of each module A [slots, MAX_RANK, d_in], B [slots, d_out, MAX_RANK] with the scale in it, and ranks."""

    def __init__(self, base):
        self.base, self.keys = base, [(i, n) for i in range(base.layers) for n in IN_LAYER]
        self.keys += [(-1, "lm_head"), (-1, "embed_tokens")]
        self.A, self.B, self.bias, self.rank = {}, {}, {}, {}
        for key in self.keys:
            d_out, d_in = base.out[key[1]]
            self.A[key] = np.zeros((SLOTS, MAX_RANK, d_in), F)
            self.B[key] = np.zeros((SLOTS, d_out, MAX_RANK), F)
            self.bias[key] = np.zeros((SLOTS, d_out), F)
            self.rank[key] = [0] * SLOTS
        self.host = {}
        self.owner, self.pins, self.seen = [None] * SLOTS, [0] * SLOTS, [False] * SLOTS
        self.where, self.hand, self.late = {}, 0, []

    def acquire(self, folder):
        """The slot of an adapter, pinned; None if all slots are pinned by others."""
        if folder not in self.where:
            slot = self.victim()
            if slot is None:
                return None
            old = self.owner[slot]
            if old is not None and not bug("u15"):
                del self.where[old]
            self.owner[slot], self.where[folder] = folder, slot
            self.upload(slot, folder)
        slot = self.where[folder]
        self.pins[slot] += 1
        self.seen[slot] = True
        return slot

    def release(self, slot):
        self.pins[slot] -= 1

    def victim(self):
        if None in self.owner:
            return self.owner.index(None)
        for _ in range(2 * SLOTS):
            slot, self.hand = self.hand, (self.hand + 1) % SLOTS
            if self.pins[slot] and not bug("u19"):
                continue
            if self.seen[slot]:
                self.seen[slot] = False
                continue
            return slot
        return None

    def upload(self, slot, folder):
        if folder not in self.host:
            self.host[folder] = HostAdapter(folder, self.base)
        adapter = self.host[folder]
        for key in self.keys:
            if bug("u24") and key[0] >= self.base.layers // 2:
                self.late.append((slot, adapter, key))
                continue
            self.copy(slot, adapter, key)

    def copy(self, slot, adapter, key):
        one = adapter.modules.get(key)
        if one is None:
            if not bug("u03"):
                self.rank[key][slot] = 0
            return
        A, B, bias = self.A[key][slot], self.B[key][slot], self.bias[key][slot]
        if not bug("u05"):
            A[:], B[:] = 0, 0
        r = len(one["A"])
        A[:r] = one["A"]
        scale = F(one["scale"])
        if bug("u12"):
            one["B"] *= scale
            B[:, :r] = one["B"]
        else:
            B[:, :r] = one["B"] * scale
        bias[:] = 0
        if one["bias"] is not None:
            bias[:] = one["bias"] if bug("u12") else one["bias"] * scale
        self.rank[key][slot] = r

    def flush(self):
        for slot, adapter, key in self.late:
            self.copy(slot, adapter, key)
        self.late.clear()


# ---- keys and values ------------------------------------------------------------------------------------------------


class Pages:
    """Blocks of 8 tokens. Full ones stay findable by (adapter, all tokens up to their end) until they are needed."""

    def __init__(self, base):
        shape = (base.layers, BLOCKS * BLOCK, base.kv_heads, base.head_dim)
        self.k, self.v = np.zeros(shape, F), np.zeros(shape, F)
        self.scores = [None] * BLOCKS
        self.free, self.refs = list(range(BLOCKS)), [0] * BLOCKS
        self.idle = OrderedDict()  # block -> key, of no request, oldest first
        self.by_key, self.key_of = {}, {}
        self.vocab = base.vocab

    def key(self, request, end):
        owner = request.folder
        if bug("u10"):
            owner = owner is not None
        return owner, tuple(request.tokens[:end])

    def hit(self, request):
        found = []
        for i in range((request.prompt - 1) // BLOCK):
            block = self.by_key.get(self.key(request, (i + 1) * BLOCK))
            if block is None:
                break
            found.append(block)
        return found

    def take(self, request):
        """Blocks for the whole of a request, its prefix found where it was; None if there are not enough."""
        found = self.hit(request)
        fresh = -(-(request.prompt + request.new) // BLOCK) - len(found)
        idle = sum(1 for block in self.idle if block not in found)
        if fresh > len(self.free) + idle:
            return None
        for block in found:
            self.refs[block] += 1
            self.idle.pop(block, None)
        blocks = list(found)
        for _ in range(fresh):
            if self.free:
                block = self.free.pop()
            else:
                block, _ = self.idle.popitem(last=False)
                self.by_key.pop(self.key_of.pop(block))
            self.refs[block] = 1
            self.scores[block] = np.zeros((BLOCK, self.vocab), F)
            blocks.append(block)
        return blocks, len(found)

    def keep(self, request, computed):
        for i in range(computed // BLOCK):
            block = request.blocks[i]
            if block in self.key_of:
                continue
            key = self.key(request, (i + 1) * BLOCK)
            if key not in self.by_key:
                self.by_key[key], self.key_of[block] = block, key

    def give(self, blocks):
        for block in blocks:
            self.refs[block] -= 1
            if self.refs[block] == 0:
                if block in self.key_of:
                    self.idle[block] = None
                else:
                    self.free.append(block)


# ---- a step ---------------------------------------------------------------------------------------------------------


class Running:
    def __init__(self, index, given):
        self.index, self.folder = index, given["adapter_dir"]
        self.tokens = [int(t) for t in given["prompt_ids"]]
        self.prompt, self.new = len(self.tokens), int(given["max_new_tokens"])
        self.done, self.slot, self.steps, self.hit = 0, -1, [], 0
        self.blocks = []

    @property
    def prefilling(self):
        return self.done < self.prompt

    @property
    def end(self):
        """How many tokens are computed in all: the last one produced is not."""
        return self.prompt + max(self.new - 1, 0)

    def places(self, start, stop):
        at = np.arange(start, stop)
        return np.asarray(self.blocks)[at // BLOCK] * BLOCK + at % BLOCK


class Mapping:
    """Which rows of the flat batch belong to which slot, in the two forms that the kernels take."""

    def __init__(self, tiles, rows, prompt_rows, skip_all=(), skip_qkv=()):
        self.tiles, self.rows, self.prompt_rows = tiles, rows, prompt_rows
        self.skip_all, self.skip_qkv = list(skip_all), list(skip_qkv)

    def jobs(self, name):
        """(first row, one past the last, slot) of each thread block's work."""
        yield from self.tiles
        if bug("u18") and self.prompt_rows and name in (*GATE_UP, "down_proj"):
            return
        yield from self.rows


class Kernels:
    """Batched low-rank products."""

    def __init__(self, device):
        self.device = device

    def shrink(self, key, parts, m):
        """Sum over the shards' inputs of x A^T: [rows, MAX_RANK]. parts: (x of a shard, which of A's columns)."""
        d = self.device
        low = np.zeros((len(parts[0][0]), MAX_RANK), F)
        for a, b, slot in m.jobs(key[1]):
            r = d.rank[key][slot]
            if r == 0:
                continue
            r = bucket(r)
            for x, columns in parts:
                A = d.A[key][slot, :r]
                low[a:b, :r] += A[:, x[a:b]].T if x.dtype.kind == "i" else x[a:b] @ A[:, columns].T
        for row in m.skip_all:
            low[row] = 0
        if key[1] in QKV:
            for row in m.skip_qkv:
                low[row] = 0
        return low

    def expand(self, key, low, y, outputs, m, columns=None, bias=1):
        """y[:, columns] += low B^T + bias, of these outputs of B."""
        d = self.device
        columns = slice(None) if columns is None else columns
        silent = set(m.skip_all) | (set(m.skip_qkv) if key[1] in QKV else set())
        for a, b, slot in m.jobs(key[1]):
            r = d.rank[key][slot]
            if r == 0:
                continue
            r = bucket(r)
            delta = low[a:b, :r] @ d.B[key][slot, outputs, :r].T + bias * d.bias[key][slot, outputs]
            for row in silent:
                if a <= row < b:
                    delta[row - a] = 0
            y[a:b, columns] += delta

    def fused(self, names, layer, x, ys, m):
        """What a fused projection's adapters add to it, on each shard. Rows may differ in which parts they have."""
        out = self.device.base.out
        for j, name in enumerate(names):
            key = (layer, name)
            if not any(self.device.rank[key]):
                continue
            low = self.shrink(key, [(x, slice(None))], m)
            for s in SHARDS:
                if bug("u17") and name == "k_proj" and s == 1:
                    continue
                widths = [len(range(*halves(out[n][0])[s].indices(out[n][0]))) for n in names]
                at = j
                if bug("u09") and name != "q_proj" and names is QKV:
                    at = 3 - j
                start, width = sum(widths[:at]), widths[j]
                outputs = halves(out[name][0])[s]
                if bug("u20"):
                    self.compacted(names, j, layer, low, ys[s], outputs, widths, m)
                    continue
                self.expand(key, low, ys[s], outputs, m, slice(start, start + width))

    def compacted(self, names, j, layer, low, y, outputs, widths, m):
        for a, b, slot in m.jobs(names[j]):
            there = [self.device.rank[layer, n][slot] > 0 for n in names]
            start = sum(w for w, here in zip(widths[:j], there[:j]) if here)
            one = Mapping([(a, b, slot)], [], m.prompt_rows)
            self.expand((layer, names[j]), low, y, outputs, one, slice(start, start + widths[j]))


class Engine:
    def __init__(self, folder):
        self.base = Base(folder)
        self.device, self.pages = Device(self.base), Pages(self.base)
        self.kernels = Kernels(self.device)
        self.graphs, self.plans = {}, {}

    def serve(self, given):
        self.waiting = deque(Running(i, g) for i, g in enumerate(given))
        self.running, self.finished, self.step = [], {}, 0
        self.last_rows, self.ended = [], False
        while self.waiting or self.running:
            work = self.schedule()
            if not work:
                raise RuntimeError("nothing can run")
            self.run(work)
            self.step += 1
        return [self.finished[i] for i in range(len(given))]

    # ---- what runs

    def schedule(self):
        """[(request, tokens)] of this step: all decodes, prompts under way, then new ones as far as there is room."""
        left, work = BUDGET, []
        for r in self.running:
            if not r.prefilling:
                work.append((r, 1))
                left -= 1
        for r in self.running:
            if r.prefilling and left > 0:
                n = min(CHUNK, r.prompt - r.done, left)
                work.append((r, n))
                left -= n
        for r in list(self.waiting):
            if left <= 0 or len(self.running) >= RUNNING:
                break
            slot = -1
            if r.folder is not None:
                slot = self.device.acquire(r.folder)
                if slot is None:
                    continue
            taken = self.pages.take(r)
            if taken is None:
                if slot >= 0:
                    self.device.release(slot)
                break
            r.slot, (r.blocks, found) = slot, taken
            r.hit = r.done = found * BLOCK
            self.waiting.remove(r)
            self.running.append(r)
            n = min(CHUNK, r.prompt - r.done, left)
            work.append((r, n))
            left -= n
        by_slot = lambda one: (one[0].slot < 0, one[0].slot, one[0].index)  # noqa: E731
        prompts = sorted((one for one in work if one[0].prefilling), key=by_slot)
        return prompts + sorted((one for one in work if not one[0].prefilling), key=by_slot)

    def mapping(self, work):
        prompts = [one for one in work if one[0].prefilling]
        decodes = [r for r, _ in work[len(prompts) :]]
        shape = tuple((r.slot, n) for r, n in prompts)
        if shape not in self.plans:
            self.plans[shape] = self.tiles(shape)
        total = sum(n for _, n in prompts)
        slots = [r.slot for r in decodes]
        if bug("u07"):
            slots = [-1 if r.done == r.prompt else r.slot for r in decodes]
        if bug("u22"):
            slots = [r.slot for r in self.running if not r.prefilling]
        if bug("u17") and self.ended:
            slots = (self.last_rows + slots[len(self.last_rows) :])[: len(slots)]
        if bug("u25"):
            slots = slots[: max((g for g in GRAPHS if g <= len(slots)), default=0)]
        self.last_rows = [r.slot for r in decodes]
        rows = []
        if decodes:
            size = next(g for g in GRAPHS if len(decodes) <= g)
            if size not in self.graphs:
                self.graphs[size] = np.full(size, -1, np.int64)
                self.graphs[size][: len(slots)] = slots
            buffer = self.graphs[size]
            if not bug("u01"):
                buffer[:] = -1
                buffer[: len(slots)] = slots
            for i in range(len(decodes)):
                if buffer[i] >= 0 or bug("u14"):
                    rows.append((total + i, total + i + 1, int(buffer[i])))
        skip_all, skip_qkv, row = [], [], 0
        for r, n in prompts:
            if bug("u21") and r.hit and r.done == r.hit:
                skip_all += range(row, row + min(r.hit, n))
            if bug("u26") and r.done:
                skip_qkv.append(row)
            row += n
        return Mapping(self.plans[shape], rows, total, skip_all, skip_qkv)

    @staticmethod
    def tiles(shape):
        """Segments of one slot, cut into tiles of at most 8 rows."""
        segments, row = [], 0
        for slot, n in shape:
            if segments and segments[-1][2] == slot:
                segments[-1][1] = row + n
            else:
                segments.append([row, row + n, slot])
            row += n
        if bug("u11"):
            of_row = [slot for a, b, slot in segments for _ in range(a, b)]
            blocks = [(a, min(a + TILE, row), of_row[a]) for a in range(0, row, TILE)]
            return [one for one in blocks if one[2] >= 0]
        tiles = []
        for a, b, slot in segments:
            count = max(1, (b - a) // TILE) if bug("u04") else -(-(b - a) // TILE)
            tiles += [(a + i * TILE, min(a + (i + 1) * TILE, b), slot) for i in range(count)]
        tiles = [one for one in tiles if one[2] >= 0]
        if bug("u08"):
            tiles = tiles[: -(-row // TILE)]
        return tiles

    # ---- the forward pass

    def run(self, work):
        base, m = self.base, self.mapping(work)
        starts = np.cumsum([0, *(n for _, n in work)])
        ids = np.array([t for r, n in work for t in r.tokens[r.done : r.done + n]])
        at = np.concatenate([np.arange(r.done, r.done + n) for r, n in work])
        places = np.concatenate([r.places(r.done, r.done + n) for r, n in work])
        seen = [r.places(0, r.done + n) for r, n in work]
        angle = at[:, None] * base.freq
        turn = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]

        x = base.embed[ids]
        self.column((-1, "embed_tokens"), ids, x, m)
        for i in range(base.layers):
            x = x + self.attention(i, x, m, turn, places, seen, starts)
            x = x + self.mlp(i, rms(x, base.norms[i][1], base.eps), m)
        x = rms(x, base.norm, base.eps)
        logits = np.concatenate([x @ base.head[part].T for part in halves(base.vocab)], axis=1)
        self.column((-1, "lm_head"), x, logits, m)
        self.device.flush()
        self.after(work, starts, logits)

    def column(self, key, x, y, m):
        if any(self.device.rank[key]):
            low = self.kernels.shrink(key, [(x, slice(None))], m)
            for part in halves(y.shape[1]):
                self.kernels.expand(key, low, y, part, m, part)

    def row(self, key, xs, y, m):
        """What adapters add to a projection whose inputs are cut: A x is reduced over the shards, then B."""
        if not any(self.device.rank[key]):
            return
        columns = halves(self.base.out[key[1]][1])
        if bug("u23") and key[1] == "down_proj":
            columns = columns[0], columns[0]
        low = self.kernels.shrink(key, list(zip(xs, columns)), m)
        self.kernels.expand(key, low, y, slice(None), m, bias=len(SHARDS) if bug("u25") else 1)

    def split(self, ys, names):
        """Each part of a fused projection, the shards side by side."""
        ends = [np.cumsum([halves(self.base.out[n][0])[s].stop - halves(self.base.out[n][0])[s].start for n in names]) for s in SHARDS]
        pieces = [np.split(y, end[:-1], axis=1) for y, end in zip(ys, ends)]
        return [np.concatenate(parts, axis=1) for parts in zip(*pieces)]

    def attention(self, i, x, m, turn, places, seen, starts):
        base, pages = self.base, self.pages
        h = rms(x, base.norms[i][0], base.eps)
        ys = [h @ w.T for w in base.w_qkv[i]]
        if bug("u03"):
            q_late = [np.zeros_like(y) for y in ys]
            self.kernels.fused(QKV[:1], i, h, q_late, m)
            kv = [y[:, halves(base.heads * base.head_dim)[s].stop - halves(base.heads * base.head_dim)[s].start :] for s, y in enumerate(ys)]
            self.kernels.fused(QKV[1:], i, h, kv, m)
        else:
            self.kernels.fused(QKV, i, x if bug("u13") else h, ys, m)
        q, k, v = (part.reshape(len(x), -1, base.head_dim) for part in self.split(ys, QKV))
        q, k = rotate(q, turn), rotate(k, turn)
        if bug("u03"):
            q = q + self.split(q_late, QKV)[0].reshape(q.shape)
        pages.k[i, places], pages.v[i, places] = k, v
        out = np.empty((len(x), base.heads * base.head_dim), F)
        for one, a, b in zip(seen, starts, starts[1:]):
            out[a:b] = attend(q[a:b], pages.k[i, one], pages.v[i, one], base.window)
        xs = [out[:, part] for part in halves(out.shape[1])]
        y = xs[0] @ base.w_o[i][0].T + xs[1] @ base.w_o[i][1].T
        self.row((i, "o_proj"), xs, y, m)
        return y

    def mlp(self, i, h, m):
        ys = [h @ w.T for w in self.base.w_gu[i]]
        plain = [gated(y) for y in ys]
        self.kernels.fused(GATE_UP, i, h, ys, m)
        xs = [gated(y) for y in ys]
        w = self.base.w_down[i]
        y = xs[0] @ w[0].T + xs[1] @ w[1].T
        self.row((i, "down_proj"), plain if bug("u21") else xs, y, m)
        return y

    def after(self, work, starts, logits):
        self.ended = False
        for (r, n), row in zip(work, starts):
            r.steps.append((self.step, int(row), r.done, n, r.slot if r.slot >= 0 else None))
            for j in range(n):
                t = r.done + j
                self.pages.scores[r.blocks[t // BLOCK]][t % BLOCK] = logits[row + j]
            r.done += n
            self.pages.keep(r, r.done)
            if r.prefilling:
                continue
            if len(r.tokens) < r.prompt + r.new:
                r.tokens.append(int(logits[row + n - 1].argmax()))
            if r.done >= r.end:
                self.finish(r)

    def finish(self, r):
        self.ended = True
        rows = np.stack([self.pages.scores[r.blocks[t // BLOCK]][t % BLOCK] for t in range(r.end)])
        self.finished[r.index] = {"logits": rows, "token_ids": r.tokens[r.prompt :], "steps": r.steps}
        self.pages.give(r.blocks)
        if r.slot >= 0:
            self.device.release(r.slot)
        self.running.remove(r)


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + F(eps)) * weight


def rotate(x, turn):
    cos, sin = turn
    a, b = np.split(x, 2, axis=2)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)


def gated(y):
    gate, up = np.split(y, 2, axis=1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def attend(q, k, v, window):
    (n, heads, dim), (keys, kv_heads, _) = q.shape, k.shape
    queries = q.reshape(n, kv_heads, heads // kv_heads, dim).transpose(1, 2, 0, 3)
    scores = queries @ k.transpose(1, 2, 0)[:, None] * F(1 / math.sqrt(dim))
    at, key = np.arange(keys - n, keys)[:, None], np.arange(keys)[None]
    hidden = key > at
    if window is not None:
        hidden |= key <= at - window
    scores[..., hidden] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = scores @ v.transpose(1, 0, 2)[:, None]
    return mixed.transpose(2, 0, 1, 3).reshape(n, heads * dim)


# ---- what is called -------------------------------------------------------------------------------------------------

_engines = {}


def serve(model_dir, requests):
    if model_dir not in _engines:
        _engines.clear()
        _engines[model_dir] = Engine(model_dir)
    try:
        return _engines[model_dir].serve(requests)
    except Exception:
        _engines.clear()
        raise


def _reset():
    """Forget adapters, prefixes, graphs and plans; the base stays."""
    for engine in _engines.values():
        engine.device, engine.pages = Device(engine.base), Pages(engine.base)
        engine.kernels = Kernels(engine.device)
        engine.graphs, engine.plans = {}, {}


serve.capabilities = {
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "modules": [*IN_LAYER, "lm_head", "embed_tokens"],
    "dtypes": ["float32"],
    "max_rank": MAX_RANK,
}
serve.reset = _reset
