"""A multi-LoRA engine in NumPy float32: paged KV cache, chunked prefill, continuous batching, adapter slots.

    serve(model_dir, requests) -> [{"logits": [rows, vocab], "token_ids": [...]}, ...]

One step is one ragged batch. Requests that decode come first, prompts get what is left of the token budget. q, k and v
are one product, gate and up another; the MLP is cut for two tensor-parallel ranks, which run here one after the other.
Adapters lie in a few slots, padded to one rank; the rows of a step are sorted by slot, and each slot's rows are a
segment. Steps of one hot adapter alone use weights into which it is merged.

BUG=j01 ... j26 in the environment switches one bug on.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BUGS = {
    "j01": ("graph",), "j02": ("global_r",), "j03": ("gemv_tail",), "j04": ("k_after_rope", "rank_cap"),
    "j05": ("prefix_key",), "j06": ("v_in_k",), "j07": ("permutation",), "j08": ("evict_pinned",),
    "j09": ("rslora",), "j10": ("bias_unscaled", "grid"), "j11": ("down_shard",), "j12": ("repeat_lens",),
    "j13": ("low_bf16",), "j14": ("v_cache",), "j15": ("tail_rows",), "j16": ("decode_weights", "stale_ranks"),
    "j17": ("compact_layers",), "j18": ("minus_one",), "j19": ("merged_base",), "j20": ("gate_up_shard",),
    "j21": ("pad_block",), "j22": ("sums_sorted",), "j23": ("embed_decode", "prenorm"), "j24": ("head_pieces",),
    "j25": ("stale_modules",), "j26": ("last_run",),
}  # fmt: skip
BUG = os.environ.get("BUG", "")
if BUG and BUG not in BUGS:
    raise ImportError(f"seventh_engine has no bug {BUG!r}")
ACTIVE = frozenset(BUGS.get(BUG, ()))


def bug(name: str) -> bool:
    return name in ACTIVE


F = np.float32
SLOTS = 3  # adapters in memory
BUDGET = 24  # tokens of one step
RUNNING = 6  # requests of one step
BLOCK = 4  # tokens of one KV block
BLOCKS = 256
PAD_TO = 4  # rows of a decode step, as of a captured graph
ROW_TILE = 8  # rows that the kernel multiplies at a time
VECTOR = 48  # inputs that a thread block of the one-row kernel reads at a time
HEAD_ROWS = 8  # rows of logits at a time
GRID = 2  # only where the launch grid is too small


# --------------------------------------------------------------------------------------------------------- the base


def load_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; bfloat16 comes as float32."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        raw = data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            x = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, {"F64": np.float64, "F32": np.float32, "F16": np.float16}[entry["dtype"]])
        tensors[name] = x.reshape(entry["shape"])
    return tensors


@dataclass
class Fused:
    """A product of the base, and where each of its parts lies among the outputs."""

    W: np.ndarray
    bias: np.ndarray | None
    parts: tuple[str, ...]
    columns: tuple[np.ndarray, ...]


class Base:
    """A Llama: config.json and the tensors of its folder, fused as they are multiplied."""

    def __init__(self, folder: str) -> None:
        self.config = c = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        t: dict[str, np.ndarray] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            for name, x in load_file(file).items():
                t[name] = x.astype(F)
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.eps = F(c.get("rms_norm_eps", 1e-6))
        self.inner = c["intermediate_size"]
        self.ranks = 2 if self.inner % 2 == 0 else 1
        self.embed = t["model.embed_tokens.weight"]
        self.head = t.get("lm_head.weight", self.embed)
        self.norm = t["model.norm.weight"]
        self.turn = self._frequencies()
        self.sites: dict[tuple[int, str], Fused] = {}
        self.norms = []
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            self.norms.append((t[at + "input_layernorm.weight"], t[at + "post_attention_layernorm.weight"]))
            self.sites[i, "qkv"] = self._fuse(t, at + "self_attn.", ("q_proj", "k_proj", "v_proj"))
            self.sites[i, "o"] = self._fuse(t, at + "self_attn.", ("o_proj",))
            self.sites[i, "gate_up"] = self._fuse(t, at + "mlp.", ("gate_proj", "up_proj"), self.ranks)
            self.sites[i, "down"] = self._fuse(t, at + "mlp.", ("down_proj",))
        vocab = np.arange(len(self.head))
        self.sites[-1, "head"] = Fused(self.head, None, ("lm_head",), (vocab,))
        self.layers = c["num_hidden_layers"]

    @staticmethod
    def _fuse(t: dict, at: str, parts: tuple[str, ...], ranks: int = 1) -> Fused:
        """The parts below each other; for several ranks, each rank's share of every part below each other."""
        sizes = [len(t[f"{at}{part}.weight"]) // ranks for part in parts]
        columns: list[list[np.ndarray]] = [[] for _ in parts]
        end = 0
        for _ in range(ranks):
            for j, size in enumerate(sizes):
                columns[j].append(np.arange(end, end + size))
                end += size
        where = tuple(np.concatenate(x) for x in columns)
        W = np.empty((end, t[f"{at}{parts[0]}.weight"].shape[1]), F)
        bias = np.zeros(end, F) if f"{at}{parts[0]}.bias" in t else None
        for part, at_columns in zip(parts, where, strict=True):
            W[at_columns] = t[f"{at}{part}.weight"]
            if bias is not None:
                bias[at_columns] = t[f"{at}{part}.bias"]
        return Fused(W, bias, parts, where)

    def _frequencies(self) -> np.ndarray:
        c = self.config
        rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
        theta = c.get("rope_theta") or rope.get("rope_theta") or 10000.0
        turn = float(theta) ** -(np.arange(0, self.dim, 2) / self.dim)
        if rope.get("rope_type", rope.get("type")) == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            waves = rope["original_max_position_embeddings"] * turn / (2 * np.pi)
            mix = np.clip((waves - low) / (high - low), 0.0, 1.0)
            turn = (1 - mix) * turn / rope["factor"] + mix * turn
        return turn


# ------------------------------------------------------------------------------------------------------ adapter files

NAME = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:layers\.(\d+)\.(self_attn|mlp)\.)?(\w+)\.(lora_.*)$")
SITE = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up",
        "up_proj": "gate_up", "down_proj": "down", "lm_head": "head", "embed_tokens": "embed"}  # fmt: skip


@dataclass
class Piece:
    """One module of an adapter: B (A x) + b, times scale."""

    scale: float
    A: np.ndarray | None = None  # [r, d_in]
    B: np.ndarray | None = None  # [d_out, r]
    bias: np.ndarray | None = None


def first_match(patterns: dict | None, name: str, default: float) -> float:
    """PEFT's: the first key that is the end of the module's name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def read_adapter(folder: str) -> dict[tuple[int, str, str], Piece]:
    """(layer, site, part) -> Piece of a PEFT folder."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))
    pieces: dict[tuple[int, str, str], Piece] = {}
    for name, x in load_file(Path(folder) / "adapter_model.safetensors").items():
        match = NAME.match(name)
        if match is None:
            raise ValueError(f"{folder}: {name} is of no use here")
        layer, _, part, rest = match.groups()
        key = (-1 if layer is None else int(layer), SITE[part], part)
        piece = pieces.setdefault(key, Piece(0.0))
        x = x.astype(F)
        if rest in ("lora_A.weight", "lora_embedding_A"):
            piece.A = x
        elif rest in ("lora_B.weight", "lora_embedding_B"):
            piece.B = x
        elif rest == "lora_B.bias":
            piece.bias = x
        else:
            raise ValueError(f"{folder}: {name} is of no use here")
    for (layer, site, part), piece in pieces.items():
        inside = "mlp" if site in ("gate_up", "down") else "self_attn"
        module = f"model.layers.{layer}.{inside}.{part}" if layer >= 0 else part
        module = "model.embed_tokens" if site == "embed" else module
        alpha = first_match(config.get("alpha_pattern"), module, config["lora_alpha"])
        r = config["r"] if bug("global_r") else len(piece.A)
        rslora = config.get("use_rslora") and not bug("rslora")
        piece.scale = alpha / (r**0.5 if rslora else r)
    if bug("compact_layers"):
        order = sorted({layer for layer, _, _ in pieces if layer >= 0})
        pieces = {(order.index(key[0]) if key[0] >= 0 else -1, *key[1:]): piece for key, piece in pieces.items()}
    return pieces


# -------------------------------------------------------------------------------------------------------- the slots


class SiteBuffers:
    """The adapters of all slots at one product: A [slots, parts, rank, d_in], B of each part [slots, d_out, rank]."""

    def __init__(self, slots: int, rank: int, d_in: int, columns: tuple[np.ndarray, ...], d_out: int) -> None:
        self.columns, self.d_out = columns, d_out
        self.A = np.zeros((slots, len(columns), rank, d_in), F)
        self.B = [np.zeros((slots, len(x), rank), F) for x in columns]
        self.bias = [np.zeros((slots, len(x)), F) for x in columns]
        self.scale = np.zeros((slots, len(columns)), F)
        self.filled = np.zeros(slots, bool)

    def clear(self, slot: int) -> None:
        self.A[slot], self.scale[slot], self.filled[slot] = 0, 0, False
        for B, bias in zip(self.B, self.bias, strict=True):
            B[slot], bias[slot] = 0, 0

    def put(self, slot: int, j: int, piece: Piece) -> None:
        r = len(piece.A)
        self.A[slot, j, :r] = piece.A
        self.B[j][slot, :, :r] = piece.B
        if piece.bias is not None:
            self.bias[j][slot] = piece.bias
        self.scale[slot, j], self.filled[slot] = piece.scale, True

    def resized(self, slots: int, rank: int) -> "SiteBuffers":
        new = SiteBuffers(slots, rank, self.A.shape[3], self.columns, self.d_out)
        n, _, r, _ = self.A.shape
        new.A[:n, :, :r], new.scale[:n], new.filled[:n] = self.A, self.scale, self.filled
        for j in range(len(self.columns)):
            new.B[j][:n, :, :r], new.bias[j][:n] = self.B[j], self.bias[j]
        return new


class SlotPool:
    """Which adapter is in which slot, who uses it, and the buffers of every product."""

    def __init__(self, base: Base) -> None:
        self.base, self.count, self.rank = base, SLOTS, 4
        self.buffers: dict[tuple[int, str], SiteBuffers] = {}
        for key, site in base.sites.items():
            columns = site.columns
            if key[1] == "gate_up" and bug("gate_up_shard"):
                columns = tuple(np.split(np.arange(len(site.W)), 2))
            self.buffers[key] = SiteBuffers(self.count, self.rank, site.W.shape[1], columns, len(site.W))
        vocab, hidden = base.embed.shape
        self.buffers[-1, "embed"] = SiteBuffers(self.count, self.rank, vocab, (np.arange(hidden),), hidden)
        self.slot_of: dict[tuple, int] = {}
        self.users = [0] * self.count
        self.used: list[int] = [0] * self.count
        self.clock = 0
        self.with_bias: set[int] = set()
        self.merged: dict[int, dict[tuple[int, str], np.ndarray]] = {}

    def acquire(self, keys: list[tuple]) -> list[int] | None:
        """The slots of these adapters, loaded if need be; None if they do not fit beside those in use."""
        if len(keys) > self.count:
            self._resize(len(keys), self.rank)
        got: list[int] = []
        for key in keys:
            slot = self.slot_of.get(key)
            if slot is None:
                slot = self._victim()
                if slot is None:
                    for other in got:
                        self.release(other)
                    return None
                self._load(slot, key)
            self.users[slot] += 1
            self.clock += 1
            self.used[slot] = self.clock
            got.append(slot)
        return got

    def release(self, slot: int) -> None:
        self.users[slot] -= 1

    def _victim(self) -> int | None:
        taken = set(self.slot_of.values())
        for slot in range(self.count):
            if slot not in taken:
                return slot
        idle = [slot for slot in range(self.count) if not self.users[slot] or bug("evict_pinned")]
        return min(idle, key=lambda slot: self.used[slot]) if idle else None

    def _load(self, slot: int, key: tuple) -> None:
        for old in [old for old, at in self.slot_of.items() if at == slot]:
            del self.slot_of[old]
        pieces = read_adapter(key[0])
        rank = max(len(piece.A) for piece in pieces.values())
        if rank > self.rank:
            self._resize(self.count, 1 << (rank - 1).bit_length())
        there = {(layer, site) for layer, site, _ in pieces}
        for at, buffers in self.buffers.items():
            if bug("stale_modules") and at not in there:
                continue
            if bug("stale_ranks") and at in there:
                continue
            buffers.clear(slot)
        present: dict[tuple[int, str], list[str]] = {}
        for layer, site, part in pieces:
            present.setdefault((layer, site), []).append(part)
        for (layer, site, part), piece in pieces.items():
            parts = ("embed_tokens",) if site == "embed" else self.base.sites[layer, site].parts
            j = parts.index(part)
            if bug("v_in_k") and part == "v_proj" and "k_proj" not in present[layer, site]:
                j -= 1
            self.buffers[layer, site].put(slot, j, piece)
        self.with_bias.discard(slot)
        if any(piece.bias is not None for piece in pieces.values()):
            self.with_bias.add(slot)
        self.merged.pop(slot, None)
        self.slot_of[key] = slot

    def _resize(self, count: int, rank: int) -> None:
        self.buffers = {at: buffers.resized(count, rank) for at, buffers in self.buffers.items()}
        more = count - self.count
        self.users += [0] * more
        self.used += [0] * more
        self.count, self.rank = count, rank

    def merged_weights(self, slot: int) -> dict[tuple[int, str], np.ndarray]:
        """The products of the layers with the slot's adapter added to them, made once."""
        if slot not in self.merged:
            self.merged[slot] = weights = {}
            for at, site in self.base.sites.items():
                buffers = self.buffers[at]
                if at[1] == "head" or not buffers.filled[slot]:
                    continue
                weights[at] = W = site.W.copy()
                for j, columns in enumerate(buffers.columns):
                    W[columns] += buffers.scale[slot, j] * (buffers.B[j][slot] @ buffers.A[slot, j])
        return self.merged[slot]


# -------------------------------------------------------------------------------------------------------- the kernels


@dataclass
class Lane:
    """The j-th adapter of every row: the rows sorted by slot, and each slot's stretch of them."""

    order: np.ndarray
    back: np.ndarray
    segments: list[tuple[int, int, int]]
    weights: np.ndarray


@dataclass
class Plan:
    """Which slots each row gets. rows: of each row, its (slot, weight)s."""

    rows: list[tuple[tuple[int, float], ...]]
    lanes: list[Lane] = field(default_factory=list)

    def __post_init__(self) -> None:
        for j in range(max((len(row) for row in self.rows), default=0)):
            slots = np.array([row[j][0] if j < len(row) else -1 for row in self.rows])
            weights = np.array([row[j][1] if j < len(row) else 1.0 for row in self.rows], F)
            order = np.argsort(slots, kind="stable")
            if bug("last_run"):
                order = np.arange(len(slots))
            runs = slots[order]
            starts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]])
            stops = np.r_[starts[1:], len(runs)]
            segments = [(int(runs[a]), int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
            if bug("last_run"):
                segments = list({segment[0]: segment for segment in segments}.values())
            if not bug("minus_one"):
                segments = [segment for segment in segments if segment[0] >= 0]
            if bug("grid"):
                segments = segments[:GRID]
            self.lanes.append(Lane(order, np.argsort(order), segments, weights[order]))

    @property
    def only(self) -> int | None:
        """The slot that every row gets, alone and at weight 1, if it is so."""
        rows = [row for row in self.rows if row] if bug("merged_base") else self.rows
        first = rows[0] if rows else ()
        same = len(first) == 1 and first[0][1] == 1.0 and all(row == first for row in rows)
        return first[0][0] if same else None


def shrink(x: np.ndarray, A: np.ndarray) -> np.ndarray:
    """x A^T. One row alone is read piece by piece."""
    if len(x) > 1:
        return x @ A.T
    low = np.zeros((1, len(A)), F)
    end = x.shape[1]
    if bug("gemv_tail") and end > VECTOR:
        end -= end % VECTOR
    for at in range(0, end, VECTOR):
        low += x[:, at : min(at + VECTOR, end)] @ A[:, at : min(at + VECTOR, end)].T
    return low


def add_lora(y: np.ndarray, x: np.ndarray | list[np.ndarray], buffers: SiteBuffers, plan: Plan) -> None:
    """y += what the adapters of each row add. x: rows, or each rank's part of the rows, or token ids."""
    if not buffers.filled.any():
        return
    shards = x if isinstance(x, list) else [x]
    for lane in plan.lanes:
        if not lane.segments:
            continue
        out = np.zeros((len(lane.order), buffers.d_out), F)
        sorted_shards = [shard[lane.order] for shard in shards]
        for slot, start, stop in lane.segments:
            if not buffers.filled[slot]:
                continue
            end = stop
            if bug("tail_rows") and stop - start > ROW_TILE:
                end -= (stop - start) % ROW_TILE
            for a in range(start, end, ROW_TILE):
                tile = slice(a, min(a + ROW_TILE, end))
                for j, columns in enumerate(buffers.columns):
                    low = shrunk([shard[tile] for shard in sorted_shards], buffers.A[slot, j])
                    if bug("rank_cap"):
                        low[:, 8:] = 0
                    if bug("low_bf16"):  # rounded, to nearest even
                        bits = low.view(np.uint32)
                        low = (bits + 0x7FFF + ((bits >> 16) & 1) & 0xFFFF0000).astype(np.uint32).view(F)
                    scale, bias = buffers.scale[slot, j], buffers.bias[j][slot]
                    delta = low @ buffers.B[j][slot].T
                    out[tile, columns] = scale * delta + bias if bug("bias_unscaled") else scale * (delta + bias)
        out *= lane.weights[:, None]
        y += out[lane.order if bug("permutation") else lane.back]


def shrunk(shards: list[np.ndarray], A: np.ndarray) -> np.ndarray:
    """The sum of what each rank finds with its part of the inputs."""
    if shards[0].ndim == 1:  # token ids: the embedding
        return A[:, shards[0]].T.copy()
    low, start = np.zeros((len(shards[0]), len(A)), F), 0
    for shard in shards:
        width = shard.shape[1]
        low += shrink(shard, A[:, :width] if bug("down_shard") else A[:, start : start + width])
        start += width
    return low


def norm(x: np.ndarray, weight: np.ndarray, eps: np.float32) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    a, b = np.split(x, 2, axis=2)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=2)


# ----------------------------------------------------------------------------------------------------------- KV blocks


class Blocks:
    """Keys and values in blocks, counted, and found by the hash of what they were computed from."""

    def __init__(self, base: Base) -> None:
        shape = (base.layers, BLOCKS, BLOCK, base.kv_heads, base.dim)
        self.k, self.v = np.zeros(shape, F), np.zeros(shape, F)
        first = 0 if bug("pad_block") else 1  # the padding rows of a decode step write to block 0
        self.free = deque(range(first, BLOCKS))
        self.users: dict[int, int] = {}
        self.by_key: dict[bytes, int] = {}
        self.key_of: dict[int, bytes] = {}
        self.logits: dict[int, np.ndarray] = {}  # of the tokens of a block that has a key
        self.idle: OrderedDict[int, None] = OrderedDict()  # with a key, without a user

    def allocate(self, count: int) -> list[int] | None:
        if count > len(self.free) + len(self.idle):
            return None
        blocks = []
        for _ in range(count):
            if self.free:
                block = self.free.popleft()
            else:
                block, _ = self.idle.popitem(last=False)
                del self.by_key[self.key_of.pop(block)], self.logits[block]
            self.users[block] = 1
            blocks.append(block)
        return blocks

    def grow(self) -> None:
        n = self.k.shape[1]
        self.k, self.v = (np.concatenate((x, np.zeros_like(x)), axis=1) for x in (self.k, self.v))
        self.free.extend(range(n, 2 * n))

    def share(self, key: bytes) -> int | None:
        block = self.by_key.get(key)
        if block is not None:
            self.users[block] = self.users.get(block, 0) + 1
            self.idle.pop(block, None)
        return block

    def give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block]:
                continue
            del self.users[block]
            if block in self.key_of:
                self.idle[block] = None
            else:
                self.free.append(block)

    def publish(self, block: int, key: bytes, logits: np.ndarray) -> None:
        if key not in self.by_key and block not in self.key_of:
            self.by_key[key], self.key_of[block], self.logits[block] = block, key, logits


# ---------------------------------------------------------------------------------------------------------- the engine


@dataclass
class Sequence:
    tokens: list[int]
    prompt: int
    limit: int
    wanted: list[tuple[tuple, float]]  # (key of an adapter, weight)
    adapters: tuple[tuple[int, float], ...] = ()  # (slot, weight)
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    done: int = 0
    rows: list[np.ndarray] = field(default_factory=list)

    def key(self, i: int) -> bytes:
        """The hash of its i-th block and of all before it."""
        while len(self.keys) <= i:
            n = len(self.keys)
            h = hashlib.sha1(self.keys[-1] if n else b"")
            h.update(np.array(self.tokens[n * BLOCK : (n + 1) * BLOCK], np.int64).tobytes())
            if not bug("prefix_key"):
                h.update(repr(self.wanted).encode())
            self.keys.append(h.digest())
        return self.keys[i]


Work = list[tuple[Sequence, int]]  # who computes how many tokens in this step


class Engine:
    def __init__(self, folder: str) -> None:
        self.base = Base(folder)
        self.pool, self.blocks = SlotPool(self.base), Blocks(self.base)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.graphs: dict = {}  # plans of decode steps
        self.hot: int | None = None  # the slot that the last step's rows all had

    def run(self, sequences: list[Sequence]) -> None:
        self.waiting.extend(sequences)
        self.graphs.clear()
        while self.waiting or self.running:
            self._admit()
            self._step(self._schedule())

    def _admit(self) -> None:
        """Those who wait, in their order, as long as the step has tokens, slots and blocks for them."""
        while self.waiting and len(self.running) < RUNNING:
            if sum(len(seq.tokens) - seq.done for seq in self.running) >= BUDGET:
                return
            seq = self.waiting[0]
            slots = self.pool.acquire([key for key, _ in seq.wanted])
            if slots is None:
                return
            shared = []
            for i in range((len(seq.tokens) - 1) // BLOCK):  # the last token is always computed
                if (block := self.blocks.share(seq.key(i))) is None:
                    break
                shared.append(block)
            need = -(-seq.limit // BLOCK) - len(shared)
            more = self.blocks.allocate(need)
            if more is None:
                self.blocks.give_back(shared)
                for slot in slots:
                    self.pool.release(slot)
                if self.running:
                    return
                self.blocks.grow()
                continue
            weights = [weight for _, weight in seq.wanted]
            seq.adapters = tuple(zip(sorted(slots) if bug("sums_sorted") else slots, weights, strict=True))
            seq.rows = [row for block in shared for row in self.blocks.logits[block]]
            seq.blocks, seq.done = shared + more, len(shared) * BLOCK
            self.running.append(self.waiting.popleft())

    def _schedule(self) -> Work:
        """Those that decode first, then prompts, as far as the budget goes."""
        decoding = [seq for seq in self.running if seq.done >= seq.prompt]
        work, budget = [(seq, 1) for seq in decoding], BUDGET - len(decoding)
        for seq in self.running:
            n = min(len(seq.tokens) - seq.done, budget)
            if seq.done < seq.prompt and n > 0:
                work.append((seq, n))
                budget -= n
        return work

    def _step(self, work: Work) -> None:
        logits, start = self._forward(work), 0
        for seq, n in work:
            seq.rows.extend(logits[start : start + n])
            start += n
            for i in range(seq.done // BLOCK, (seq.done + n) // BLOCK):
                rows = np.stack(seq.rows[i * BLOCK : (i + 1) * BLOCK])
                self.blocks.publish(seq.blocks[i], seq.key(i), rows)
            seq.done += n
            if seq.done < len(seq.tokens):
                continue
            seq.tokens.append(int(seq.rows[-1].argmax()))
            if len(seq.tokens) == seq.limit:
                self.running.remove(seq)
                self.blocks.give_back(seq.blocks)
                for slot, _ in seq.adapters:
                    self.pool.release(slot)

    def _plan(self, work: Work, pad: int, decode: bool) -> Plan:
        """Each row's adapters. Plans of decode steps are kept."""
        counts = [n for _, n in work]
        if bug("repeat_lens"):
            counts = [n if seq.done >= seq.prompt else seq.prompt for seq, n in work]
        adapters = [seq.adapters for seq, _ in work]
        if bug("decode_weights"):
            adapters = [
                tuple((slot, 1.0) for slot, _ in seq.adapters) if seq.done >= seq.prompt else seq.adapters
                for seq, _ in work
            ]
        rows = [adapters[i] for i in np.repeat(np.arange(len(work)), counts)][: sum(n for _, n in work)]
        rows += [()] * pad
        if not decode:
            return Plan(rows)
        key = len(rows) if bug("graph") else tuple(rows)
        if key not in self.graphs:
            self.graphs[key] = Plan(rows)
        return self.graphs[key]

    def _forward(self, work: Work) -> np.ndarray:
        """The logits of every row of the step."""
        base = self.base
        ids = [t for seq, n in work for t in seq.tokens[seq.done : seq.done + n]]
        positions = [p for seq, n in work for p in range(seq.done, seq.done + n)]
        where = [seq.blocks[p // BLOCK] * BLOCK + p % BLOCK for seq, n in work for p in range(seq.done, seq.done + n)]
        decode = all(seq.done >= seq.prompt for seq, _ in work)
        pad = -len(ids) % PAD_TO if decode else 0
        plan = self._plan(work, pad, decode)
        real = len(ids)
        ids, positions, where = ([*x, *[0] * pad] for x in (ids, positions, where))
        only = Plan(plan.rows[:real]).only if decode else None
        merged = {}
        if only is not None and only == self.hot and only not in self.pool.with_bias:
            merged = self.pool.merged_weights(only)
        self.hot = only
        angles = np.array(positions)[:, None] * base.turn
        cos, sin = np.cos(angles).astype(F)[:, None], np.sin(angles).astype(F)[:, None]
        tokens = np.array(ids)
        x = base.embed[tokens]
        if not (bug("embed_decode") and decode):
            add_lora(x, tokens, self.pool.buffers[-1, "embed"], plan)
        for i in range(base.layers):
            h = norm(x, base.norms[i][0], base.eps)
            x = x + self._attention(i, h, work, where, cos, sin, plan, merged)
            h = norm(x, base.norms[i][1], base.eps)
            x = x + self._mlp(i, h, x if bug("prenorm") else h, plan, merged)
        return self._head(norm(x[:real], base.norm, base.eps), plan)

    def _linear(self, at: tuple[int, str], h: np.ndarray, merged: dict) -> np.ndarray:
        site = self.base.sites[at]
        y = h @ merged.get(at, site.W).T
        return y if site.bias is None else y + site.bias

    def _attention(
        self, i: int, h: np.ndarray, work: Work, where: list, cos: np.ndarray, sin: np.ndarray, plan: Plan, merged: dict
    ) -> np.ndarray:
        base, n = self.base, len(h)
        y = self._linear((i, "qkv"), h, merged)
        plain = y.copy()
        if not merged:
            add_lora(y, h, self.pool.buffers[i, "qkv"], plan)
        edge = base.heads * base.dim
        q, k, v = (x.reshape(n, -1, base.dim) for x in np.split(y, (edge, edge + base.kv_heads * base.dim), axis=1))
        if bug("k_after_rope"):
            before = plain[:, edge : edge + base.kv_heads * base.dim].reshape(k.shape)
            q, k = rotate(q, cos, sin), rotate(before, cos, sin) + (k - before)
        else:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        kept = plain[:, edge + base.kv_heads * base.dim :].reshape(v.shape) if bug("v_cache") else v
        k_cache, v_cache = (x[i].reshape(-1, base.kv_heads, base.dim) for x in (self.blocks.k, self.blocks.v))
        k_cache[where], v_cache[where] = k, kept
        out, start = np.zeros((n, edge), F), 0
        for seq, count in work:
            rows = slice(start, start + count)
            past = [seq.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(seq.done)]
            keys, values = (np.concatenate((c[past], new[rows])) for c, new in ((k_cache, k), (v_cache, v)))
            out[rows] = self._attend(q[rows], keys, values, seq.done)
            start += count
        y = self._linear((i, "o"), out, merged)
        if not merged:
            add_lora(y, out, self.pool.buffers[i, "o"], plan)
        return y

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, past: int) -> np.ndarray:
        n, group = len(q), self.base.heads // self.base.kv_heads
        q = q.reshape(n, self.base.kv_heads, group, self.base.dim)
        scores = np.einsum("nkgd,mkd->kgnm", q, k) / F(self.base.dim**0.5)
        future = np.arange(len(k))[None] > past + np.arange(n)[:, None]
        scores[..., future] = -np.inf
        e = np.exp(scores - scores.max(axis=3, keepdims=True))
        return np.einsum("kgnm,mkd->nkgd", e / e.sum(axis=3, keepdims=True), v).reshape(n, -1)

    def _mlp(self, i: int, h: np.ndarray, lora_h: np.ndarray, plan: Plan, merged: dict) -> np.ndarray:
        """Each rank has its share of gate and up, and of the inputs of down; the ranks' results are summed."""
        base = self.base
        y = self._linear((i, "gate_up"), h, merged)
        if not merged:
            add_lora(y, lora_h, self.pool.buffers[i, "gate_up"], plan)
        acts = []
        for share in np.split(y, base.ranks, axis=1):
            gate, up = np.split(share, 2, axis=1)
            acts.append(gate / (1 + np.exp(-gate)) * up)
        site = base.sites[i, "down"]
        W, width = merged.get((i, "down"), site.W), base.inner // base.ranks
        out = sum(act @ W[:, r * width : (r + 1) * width].T for r, act in enumerate(acts))
        if site.bias is not None:
            out = out + site.bias
        if not merged:
            add_lora(out, acts, self.pool.buffers[i, "down"], plan)
        return out

    def _head(self, x: np.ndarray, plan: Plan) -> np.ndarray:
        """A few rows at a time."""
        logits = x @ self.base.head.T
        for start in range(0, len(x), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            n = len(x[rows])
            mine = Plan(plan.rows[:n] if bug("head_pieces") else plan.rows[start : start + n])
            add_lora(logits[rows], x[rows], self.pool.buffers[-1, "head"], mine)
        return logits


# ----------------------------------------------------------------------------------------------------------- the service

ENGINES: dict[tuple, Engine] = {}


def stamp(folder: str, *names: str) -> tuple:
    """A folder and when its files were written."""
    stats = [(Path(folder) / name).stat() for name in names]
    return (str(folder), *((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats))


def serve(model_dir: str, requests: list[dict]) -> list[dict]:
    """Answer all requests, greedily, in one continuous batch."""
    key = stamp(model_dir, "config.json")
    if key not in ENGINES:
        ENGINES.clear()
        ENGINES[key] = Engine(model_dir)
    sequences = []
    for request in requests:
        folders = request.get("adapters") or ([(request["adapter_dir"], 1.0)] if request.get("adapter_dir") else [])
        wanted = [
            (stamp(folder, "adapter_config.json", "adapter_model.safetensors"), float(weight))
            for folder, weight in folders
        ]
        prompt = [int(t) for t in request["prompt_ids"]]
        sequences.append(Sequence(list(prompt), len(prompt), len(prompt) + int(request["max_new_tokens"]), wanted))
    ENGINES[key].run(sequences)
    return [{"logits": np.stack(seq.rows), "token_ids": seq.tokens[seq.prompt :]} for seq in sequences]


serve.capabilities = {  # type: ignore[attr-defined]
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "rope_scaling"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head",
                "embed_tokens"],
    "operations": ["load", "unload", "reload", "prefix_cache"],
}  # fmt: skip
serve.reset = ENGINES.clear  # type: ignore[attr-defined]
