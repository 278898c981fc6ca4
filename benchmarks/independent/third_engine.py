"""A small multi-LoRA engine in NumPy: continuous batching, paged KV cache, slots with an LRU, prefix cache.

serve(model_dir, requests) is the function for `loracle check --engine engine:serve`. BUG=x01 ... chooses a bug.
"""
import json
import os
import re
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np

BUG = os.environ.get("BUG", "")
PARTS = {
    "x01": ["up_scale_of_gate"], "x02": ["v_on_k"], "x03": ["captured_map"], "x04": ["segments_first_seen"],
    "x05": ["stale_modules"], "x06": ["stale_bias"], "x07": ["minus_one"], "x08": ["first_row_base"],
    "x09": ["later_chunk_base"], "x10": ["prefix_key"], "x11": ["pad_kv"], "x12": ["layer_shift"],
    "x13": ["gate_up_swapped"], "x14": ["config_r"], "x15": ["many_rows_unscaled"], "x16": ["bias_unscaled"],
    "x17": ["half_shrink"], "x18": ["shrink_buffer"], "x19": ["tile_rest"], "x20": ["shard_b"],
    "x21": ["scaled_again"], "x22": ["first_decode_base"],
    "x23": ["o_not_unsorted", "down_no_rslora"], "x24": ["k_base_slot0", "q_layer0"],
    "x25": ["down_row0", "two_loras"], "x26": ["k_uses_q_a", "int_scale"],
    "x27": ["rank16_decode", "o_duplicate"], "x28": ["chunk_last_v", "gate_up_decode_twice"],
}  # fmt: skip
if BUG and BUG not in PARTS:
    raise SystemExit(f"unknown BUG {BUG}")
ON = frozenset(PARTS.get(BUG, ()))

SLOTS, MAX_RANK, BLOCK, BLOCKS = 4, 64, 4, 2048
MAX_RUNNING, BUDGET, CHUNK, TP, TILE = 8, 24, 8, 2, 4
BUCKETS = (1, 2, 4, 8)
PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
ROW_PARALLEL = ("o_proj", "down_proj")


def read_safetensors(path):
    """Return its tensors in float32 by name."""
    data = Path(path).read_bytes()
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + n])
    head.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}
    out = {}
    for name, entry in head.items():
        lo, hi = entry["data_offsets"]
        raw = np.frombuffer(data[8 + n + lo : 8 + n + hi], kinds[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        out[name] = raw.astype(np.float32).reshape(entry["shape"])
    return out


class Adapter:
    """A PEFT folder on the host: {(layer, module): [A, B, bias, scale]}; layer -1 is lm_head."""

    def __init__(self, folder, layers):
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        tensors = read_safetensors(Path(folder) / "adapter_model.safetensors")
        self.parts, found = {}, {}
        for name, tensor in tensors.items():
            match = re.match(r"base_model\.model\.(.*)\.lora_([AB])\.(weight|bias)$", name)
            if not match:
                raise ValueError(f"unknown tensor {name}")
            found.setdefault(match[1], {})[match[2] + match[3]] = tensor
        for path, one in found.items():
            module = path.rsplit(".", 1)[-1]
            layer = re.search(r"layers\.(\d+)\.", path)
            key = (int(layer[1]) if layer else -1, module)
            if "layer_shift" in ON and layer:
                key = (key[0] + 1, module)
                if key[0] >= layers:
                    continue
            a, b = one["Aweight"], one["Bweight"]
            self.parts[key] = [a, b, one.get("Bbias"), self.scale(config, path, module, len(a))]
        if "up_scale_of_gate" in ON:
            for (layer, module), part in self.parts.items():
                if module == "up_proj" and (layer, "gate_proj") in self.parts:
                    part[3] = self.parts[layer, "gate_proj"][3]
        if "gate_up_swapped" in ON:
            names = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
            self.parts = {(layer, names.get(m, m)): part for (layer, m), part in self.parts.items()}
        if "q_layer0" in ON:
            self.parts.pop((0, "q_proj"), None)

    @staticmethod
    def scale(config, path, module, rank):
        def pattern(key, default):
            for name, value in (config.get(key) or {}).items():
                if re.match(rf"(.*\.)?({name})$", path):
                    return value
            return default

        alpha = pattern("alpha_pattern", config["lora_alpha"])
        rslora = bool(config.get("use_rslora"))
        if "config_r" in ON:
            rank = config["r"]
        if "down_no_rslora" in ON and module == "down_proj":
            rslora = False
        if "int_scale" in ON and not rslora:
            return float(alpha // rank)
        return alpha / (rank**0.5 if rslora else rank)


class Slots:
    """Stacked A and B of the adapters that are on the device, and who is where."""

    def __init__(self, model):
        self.model = model
        self.a, self.b, self.bias, self.unscaled = {}, {}, {}, {}
        for layer in range(model.layers):
            for module, (out, inp) in model.shapes.items():
                self.allocate((layer, module), out, inp)
        self.allocate((-1, "lm_head"), model.vocab, model.hidden)
        self.table = OrderedDict()  # adapter key -> slot, least recently used first
        self.pins = {}

    def allocate(self, key, out, inp):
        self.a[key] = np.zeros((SLOTS, MAX_RANK, inp), np.float32)
        self.b[key] = np.zeros((SLOTS, out, MAX_RANK), np.float32)
        self.bias[key] = np.zeros((SLOTS, out), np.float32)
        self.unscaled[key] = np.ones(SLOTS, np.float32)

    def pin(self, key, adapter):
        """Return the adapter's slot, activating it where it has none; None if all are in use."""
        if key not in self.table:
            used = set(self.table.values())
            free = [slot for slot in range(SLOTS) if slot not in used]
            if not free:
                victim = next((k for k in self.table if not self.pins.get(k)), None)
                if victim is None:
                    return None
                free = [self.table.pop(victim)]
            self.activate(free[0], adapter)
            self.table[key] = free[0]
        self.table.move_to_end(key)
        self.pins[key] = self.pins.get(key, 0) + 1
        return self.table[key]

    def unpin(self, key):
        self.pins[key] -= 1

    def activate(self, slot, adapter):
        if "stale_modules" not in ON:
            for key in self.a:
                self.a[key][slot] = 0
                self.b[key][slot] = 0
                if "stale_bias" not in ON:
                    self.bias[key][slot] = 0
        for key, part in adapter.parts.items():
            a, b, bias, scale = part
            rank, out = len(a), len(b)
            if key not in self.a:
                raise ValueError(f"no module {key}")
            scaled = b * np.float32(scale)
            if "scaled_again" in ON:  # the host's copy is scaled in place each time
                part[1] = scaled
            self.a[key][slot], self.b[key][slot] = 0, 0
            self.unscaled[key][slot] = scale
            module = key[1]
            if module in ROW_PARALLEL:  # A is split along the input
                width = a.shape[1] // TP
                for shard in range(TP):
                    cut = slice(shard * width, (shard + 1) * width if shard < TP - 1 else a.shape[1])
                    self.a[key][slot, :rank, cut] = a[:, cut]
                self.b[key][slot, :, :rank] = scaled
            else:  # B is split along the output
                self.a[key][slot, :rank] = a
                width = out // TP
                for shard in range(TP):
                    cut = slice(shard * width, (shard + 1) * width if shard < TP - 1 else out)
                    source = cut
                    if "shard_b" in ON and module in ("gate_proj", "up_proj") and shard > 0:
                        source = slice(0, cut.stop - cut.start)
                        if len(scaled[source]) != cut.stop - cut.start:
                            source = cut
                    self.b[key][slot, cut, :rank] = scaled[source]
            if bias is not None:
                self.bias[key][slot] = bias if "bias_unscaled" in ON else bias * np.float32(scale)
            elif "stale_bias" not in ON:
                self.bias[key][slot] = 0


class Meta:
    """Which rows of a step have which slot: sorted into segments for SGMV, or one by one for BGMV."""

    def __init__(self, slots, decode, requests, chunk_ends):
        self.slots, self.decode, self.requests, self.chunk_ends = np.asarray(slots), decode, requests, chunk_ends
        self.skip = False
        if "two_loras" in ON:
            seen = []
            for slot in self.slots:
                if slot >= 0 and slot not in seen:
                    seen.append(slot)
            if len(seen) > 2:
                self.slots = np.array([seen[min(seen.index(s), 1)] if s >= 0 else -1 for s in self.slots])
        self.order = np.argsort(self.slots, kind="stable")
        values, counts = np.unique(self.slots, return_counts=True)
        ends = np.cumsum(counts)
        if "segments_first_seen" in ON:
            values = list(dict.fromkeys(self.slots.tolist()))
        self.segments = [(int(v), int(e - c), int(e)) for v, c, e in zip(values, counts, ends)]
        if "first_row_base" in ON and self.slots[0] < 0:
            self.skip = True
        self.skip = self.skip or bool((self.slots < 0).all())
        # rows of a second request with the adapter of an earlier one
        first, self.duplicate = {}, np.zeros(len(self.slots), bool)
        for row, (slot, request) in enumerate(zip(self.slots, requests)):
            if slot >= 0 and first.setdefault(int(slot), request) != request:
                self.duplicate[row] = True


class Model:
    """Llama: weights, pages, slots."""

    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        rope = c.get("rope_parameters") or {}
        if c.get("rope_scaling") or rope.get("rope_type", "default") != "default":
            raise ValueError("rope scaling")
        self.theta = c.get("rope_theta") or rope.get("rope_theta") or 10000.0
        self.layers, self.hidden, self.vocab = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c.get("rms_norm_eps", 1e-6)
        w = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            w.update(read_safetensors(file))
        self.embed, self.norm = w["model.embed_tokens.weight"], w["model.norm.weight"]
        self.head = w.get("lm_head.weight", self.embed)
        self.blocks = []
        for i in range(self.layers):
            p = f"model.layers.{i}."
            get = lambda name, p=p: w[p + name + ".weight"]
            self.blocks.append({
                "in": get("input_layernorm"), "post": get("post_attention_layernorm"),
                "qkv_proj": np.concatenate([get(f"self_attn.{n}") for n in PACKED["qkv_proj"]]),
                "o_proj": get("self_attn.o_proj"),
                "gate_up_proj": np.concatenate([get(f"mlp.{n}") for n in PACKED["gate_up_proj"]]),
                "down_proj": get("mlp.down_proj"),
            })  # fmt: skip
        inter = self.blocks[0]["down_proj"].shape[1]
        q, kv, h = self.heads * self.dim, self.kv_heads * self.dim, self.hidden
        self.shapes = {
            "q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q),
            "gate_proj": (inter, h), "up_proj": (inter, h), "down_proj": (h, inter),
        }  # fmt: skip
        self.inter, self.q, self.kv = inter, q, kv
        self.frequencies = 1.0 / self.theta ** (np.arange(0, self.dim, 2) / self.dim)
        shape = (self.layers, BLOCKS * BLOCK, self.kv_heads, self.dim)
        self.k, self.v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.adapters = {}
        self.reset()

    def reset(self):
        self.slots = Slots(self)
        self.free, self.cache, self.refs, self.kept = list(range(BLOCKS))[::-1], OrderedDict(), {}, {}
        self.captured = {}

    # ---- LoRA ----
    def lora(self, x, y, layer, group, meta):
        """Add the deltas of a (packed) module's slices to y, in place."""
        if meta.skip:
            return
        offset, buffer = 0, np.zeros((len(x), MAX_RANK), np.float32)
        for module in PACKED.get(group, (group,)):
            key = (layer, module)
            a, b, bias = self.slots.a[key], self.slots.b[key], self.slots.bias[key]
            width = b.shape[1]
            if module == "k_proj" and "k_uses_q_a" in ON:
                a = self.slots.a[layer, "q_proj"]
            start = offset
            if module == "v_proj" and "v_on_k" in ON:
                start = self.q
            out = np.zeros((len(x), width), np.float32)
            if meta.decode:
                self.bgmv(x, out, a, b, bias, meta, buffer, key)
                if group == "gate_up_proj" and "gate_up_decode_twice" in ON:
                    out *= 2
            else:
                self.sgmv(x, out, a, b, bias, meta, module)
            if module == "o_proj" and "o_duplicate" in ON:
                out[meta.duplicate] = 0
            if module == "v_proj" and "chunk_last_v" in ON:
                out[meta.chunk_ends] = 0
            if module == "down_proj" and "down_row0" in ON:
                out[0] = 0
            y[:, start : start + width] += out
            offset += width

    def sgmv(self, x, out, a, b, bias, meta, module):
        """Rows sorted by slot, a segment at a time, in tiles."""
        gathered, result = x[meta.order], np.zeros_like(out)
        for slot, lo, hi in meta.segments:
            if slot < 0:
                if module == "k_proj" and "k_base_slot0" in ON:
                    slot = 0
                else:
                    continue
            tiles = (hi - lo) // TILE if "tile_rest" in ON else -(-(hi - lo) // TILE)
            for tile in range(tiles):
                rows = slice(lo + tile * TILE, min(hi, lo + (tile + 1) * TILE))
                h = gathered[rows] @ a[slot].T
                if "half_shrink" in ON:
                    h = h.astype(np.float16).astype(np.float32)
                result[rows] = h @ b[slot].T + bias[slot]
        if module == "o_proj" and "o_not_unsorted" in ON:
            out += result
        else:
            out[meta.order] = result

    def bgmv(self, x, out, a, b, bias, meta, buffer, key):
        """Each row with its slot."""
        if "shrink_buffer" not in ON:
            buffer[:] = 0
        rank = 16 if "rank16_decode" in ON else MAX_RANK
        for row, slot in enumerate(meta.slots):
            if slot < 0 and "minus_one" not in ON:
                continue
            buffer[row] += a[slot] @ x[row]
            if "half_shrink" in ON:
                buffer[row] = buffer[row].astype(np.float16)
            out[row] = b[slot][:, :rank] @ buffer[row, :rank] + bias[slot]
        if "many_rows_unscaled" in ON and key[1] == "o_proj" and len(x) > 2:
            scales = self.slots.unscaled[key][meta.slots]
            out /= np.where(meta.slots >= 0, scales, 1)[:, None]

    # ---- forward ----
    def rms(self, x, weight):
        x64 = x.astype(np.float64)
        return (x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + self.eps)).astype(np.float32) * weight

    def rope(self, x, positions):
        angle = positions[:, None] * self.frequencies
        cos, sin = np.cos(angle)[:, None].astype(np.float32), np.sin(angle)[:, None].astype(np.float32)
        half = self.dim // 2
        x1, x2 = x[..., :half], x[..., half:]
        return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

    def forward(self, tokens, positions, kv_slots, spans, meta):
        """spans: (first row, rows, KV slots of the whole text so far) for each request. Return logits [rows, vocab]."""
        x = self.embed[tokens]
        n = len(x)
        for i, w in enumerate(self.blocks):
            h = self.rms(x, w["in"])
            qkv = h @ w["qkv_proj"].T
            self.lora(h, qkv, i, "qkv_proj", meta)
            q = self.rope(qkv[:, : self.q].reshape(n, self.heads, self.dim), positions)
            k = self.rope(qkv[:, self.q : self.q + self.kv].reshape(n, self.kv_heads, self.dim), positions)
            v = qkv[:, self.q + self.kv :].reshape(n, self.kv_heads, self.dim)
            real = kv_slots >= 0
            self.k[i, kv_slots[real]], self.v[i, kv_slots[real]] = k[real], v[real]
            attended = np.zeros((n, self.q), np.float32)
            for first, rows, where in spans:
                attended[first : first + rows] = self.attend(i, q[first : first + rows], where)
            o = attended @ w["o_proj"].T
            self.lora(attended, o, i, "o_proj", meta)
            x = x + o
            h = self.rms(x, w["post"])
            gate_up = h @ w["gate_up_proj"].T
            self.lora(h, gate_up, i, "gate_up_proj", meta)
            gate, up = gate_up[:, : self.inter], gate_up[:, self.inter :]
            act = gate / (1 + np.exp(-gate)) * up
            down = act @ w["down_proj"].T
            self.lora(act, down, i, "down_proj", meta)
            x = x + down
        x = self.rms(x, self.norm)
        logits = x @ self.head.T
        self.lora(x, logits, -1, "lm_head", meta)
        return logits

    def attend(self, layer, q, where):
        rows, total = len(q), len(where)
        group = self.heads // self.kv_heads
        k = np.repeat(self.k[layer, where], group, 1)
        v = np.repeat(self.v[layer, where], group, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(self.dim**0.5)
        last = np.arange(total - rows, total)
        scores = np.where(np.arange(total)[None, None] <= last[None, :, None], scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", p, v).reshape(rows, -1)

    # ---- blocks ----
    def block(self):
        if not self.free:
            key = next((k for k, b in self.cache.items() if not self.refs.get(b)), None)
            if key is None:
                raise MemoryError("no KV blocks")
            block = self.cache.pop(key)
            self.kept.pop(block, None)
            self.free.append(block)
        block = self.free.pop()
        self.refs[block] = 1
        return block

    def release(self, request):
        cached = set(self.cache.values())
        for block in request.table:
            self.refs[block] -= 1
            if not self.refs[block] and block not in cached:
                self.free.append(block)
        request.table = []

    def prefix_key(self, request, blocks):
        adapter = None if "prefix_key" in ON else request.key
        return adapter, tuple(request.tokens[: blocks * BLOCK])

    def reuse(self, request):
        """Take the cached blocks of the longest known prefix."""
        for n in range(1, (request.prompt - 1) // BLOCK + 1):
            block = self.cache.get(self.prefix_key(request, n))
            if block is None:
                break
            self.refs[block] = self.refs.get(block, 0) + 1
            request.table.append(block)
            request.rows.extend(self.kept[block])
            request.done = n * BLOCK
            request.reused = n

    def remember(self, request):
        """Full blocks of a finished prefill become reusable."""
        for n in range(request.reused + 1, request.prompt // BLOCK + 1):
            key, block = self.prefix_key(request, n), request.table[n - 1]
            if key not in self.cache:
                self.cache[key] = block
                self.kept[block] = [row.copy() for row in request.rows[(n - 1) * BLOCK : n * BLOCK]]


class Running:
    def __init__(self, index, request):
        self.index, self.tokens = index, list(request["prompt_ids"])
        self.prompt, self.new = len(self.tokens), request["max_new_tokens"]
        self.folder, self.key, self.slot = request["adapter_dir"], None, -1
        self.done, self.table, self.rows, self.produced, self.reused = 0, [], [], [], 0

    def where(self, total):
        at = np.arange(total)
        return np.asarray(self.table)[at // BLOCK] * BLOCK + at % BLOCK


def signature(folder):
    if folder is None:
        return None
    return tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(Path(folder).glob("adapter_*")))


def step(model, running):
    """One forward pass over the running requests: decodes first, then chunks of prompts. Return nothing."""
    budget, plan = BUDGET, []
    for r in running:
        if r.done >= r.prompt:
            plan.append((r, 1))
            budget -= 1
    for r in running:
        if r.done < r.prompt and budget > 0:
            n = min(CHUNK, r.prompt - r.done, budget)
            plan.append((r, n))
            budget -= n
    decode = all(r.done >= r.prompt for r, _ in plan)
    tokens, positions, kv, slots, spans, ids, ends = [], [], [], [], [], [], []
    for r, n in plan:
        total = r.done + n
        while len(r.table) * BLOCK < total:
            r.table.append(model.block())
        where = r.where(total)
        spans.append((len(tokens), n, where))
        tokens += r.tokens[r.done : total]
        positions += range(r.done, total)
        kv += where[r.done :].tolist()
        slot = r.slot
        if "later_chunk_base" in ON and r.done > 0 and r.done < r.prompt:
            slot = -1
        if "first_decode_base" in ON and r.done == r.prompt:
            slot = -1
        slots += [slot] * n
        ids += [r.index] * n
        if r.done < r.prompt:
            ends.append(len(tokens) - 1)
    real = len(tokens)
    if decode:  # padded to the size of a captured graph
        size = next(b for b in BUCKETS if b >= real)
        pad = size - real
        tokens, positions = tokens + [0] * pad, positions + [0] * pad
        kv += [kv[-1] if "pad_kv" in ON else -1] * pad
        slots, ids = slots + [-1] * pad, ids + [-1] * pad
        if "captured_map" in ON:
            slots = model.captured.setdefault(size, slots)
    meta = Meta(slots, decode, ids, ends)
    logits = model.forward(np.array(tokens), np.array(positions), np.array(kv), spans, meta)
    for (r, n), (first, rows, _) in zip(plan, spans):
        was = r.done
        r.rows.extend(logits[first : first + rows])
        r.done += n
        if was < r.prompt <= r.done:
            model.remember(r)
        if r.done >= r.prompt:
            token = int(logits[first + rows - 1].argmax())
            r.produced.append(token)
            r.tokens.append(token)
    assert real == sum(n for _, n in plan)


MODEL = {}


def serve(model_dir, requests):
    """Serve them, continuously batched. Return their logits and tokens in order."""
    name = (str(model_dir), signature_of_model(model_dir))
    if name not in MODEL:
        MODEL.clear()
        MODEL[name] = Model(model_dir)
    model = MODEL[name]
    dump(model_dir, requests)
    waiting = deque(Running(i, r) for i, r in enumerate(requests))
    running, results = [], [None] * len(requests)
    try:
        while waiting or running:
            while waiting and len(running) < MAX_RUNNING:
                r = waiting[0]
                r.key = signature(r.folder)
                if r.key is not None:
                    if r.key not in model.adapters:
                        model.adapters[r.key] = Adapter(r.folder, model.layers)
                    slot = model.slots.pin(r.key, model.adapters[r.key])
                    if slot is None:
                        break
                    r.slot = slot
                model.reuse(r)
                running.append(waiting.popleft())
            step(model, running)
            for r in [r for r in running if len(r.produced) >= r.new]:
                running.remove(r)
                model.release(r)
                if r.key is not None:
                    model.slots.unpin(r.key)
                results[r.index] = {"logits": np.array(r.rows), "token_ids": r.produced}
    except Exception:
        model.reset()
        raise
    return results


def signature_of_model(folder):
    return tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(Path(folder).glob("*.*")))


def reset():
    """A new sequence."""
    for model in MODEL.values():
        model.reset()
        model.adapters.clear()
    if TRAFFIC:
        TRAFFIC[0].write(json.dumps("reset") + "\n")


TRAFFIC = []


def dump(model_dir, requests):
    """TRAFFIC=FOLDER: keep what was asked (a clean run only)."""
    target = os.environ.get("TRAFFIC")
    if not target or BUG:
        return
    import hashlib
    import shutil

    os.makedirs(target, exist_ok=True)
    if not TRAFFIC:
        TRAFFIC.append(open(os.path.join(target, "calls.jsonl"), "a"))

    def keep(folder):
        if folder is None:
            return None
        name = hashlib.sha1(repr((str(folder), signature_of_model(folder))).encode()).hexdigest()[:12]
        to = os.path.join(target, name)
        if not os.path.exists(to):
            shutil.copytree(folder, to)
        return to

    line = {"model": keep(model_dir), "requests": [{**r, "adapter_dir": keep(r["adapter_dir"])} for r in requests]}
    TRAFFIC[0].write(json.dumps(line) + "\n")
    TRAFFIC[0].flush()


serve.reset = reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "max_rank": 64,
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
