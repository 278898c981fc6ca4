"""transformers + PEFT's adapter folders as a multi-LoRA server: static waves, left padded, adapter slots, a KV cache.

    loracle check --engine ninth_peft_engine:serve

Adapters lie in a fixed number of slots, each as wide as the largest rank; every linear layer has its own stack. A wave
is at most MAX_BATCH requests with at most SLOTS different adapters; requests that have finished leave the batch.
BUG=a01..a10 switches on one defect; without it the engine is right.
"""

import json
import os
from collections import OrderedDict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BUG = os.environ.get("BUG", "")
BUGS = tuple(f"a{i:02d}" for i in range(1, 11))
if BUG and BUG not in BUGS:
    raise ValueError(f"BUG={BUG} is unknown: it is one of {', '.join(BUGS)}")

SLOTS = 2  # adapters that are resident at once
MAX_RANK = 64
MAX_BATCH = 8
BUCKETS = (1, 2, 4, 8)  # batch sizes for which decode is "captured"
RANK_BLOCK = 8
NONE = -1
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens")
ROW_PARALLEL = ("o_proj", "down_proj")


def _stamp(folder, names):
    marks = []
    for name in names:
        file = Path(folder) / name
        if file.exists():
            info = file.stat()
            marks.append((name, info.st_mtime_ns, info.st_size, info.st_ino))
    return str(folder), tuple(marks)


class LoadedAdapter:
    """One adapter folder: per module A, B, bias and scale."""

    def __init__(self, folder):
        folder = Path(folder)
        config = PeftConfig.from_pretrained(str(folder))
        raw = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        for key in ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices",
                    "target_parameters", "alora_invocation_tokens", "ensure_weight_tying"):
            if raw.get(key):
                raise ValueError(f"{folder}: {key} is not served here")
        if config.bias != "none":
            raise ValueError(f"{folder}: bias={config.bias!r} is not served here")
        tensors = load_file(str(folder / "adapter_model.safetensors"))
        parts = {}
        for key, value in tensors.items():
            name = key.removeprefix("base_model.model.")
            for ending, part in ((".lora_A.weight", "A"), (".lora_B.weight", "B"), (".lora_B.bias", "bias"),
                                 (".lora_embedding_A", "A"), (".lora_embedding_B", "B")):
                if name.endswith(ending):
                    parts.setdefault(name.removesuffix(ending), {})[part] = value.float()
                    break
            else:
                raise ValueError(f"{folder}: {key} is not understood")
        self.modules = {}
        for name, part in parts.items():
            A, B = part["A"], part["B"]
            r = A.shape[0]
            if r > MAX_RANK:
                raise ValueError(f"{folder}: rank {r} of {name} is above {MAX_RANK}")
            alpha_pattern = config.alpha_pattern or {}
            alpha = alpha_pattern.get(get_pattern_key(alpha_pattern.keys(), name), config.lora_alpha)
            scale_rank = r
            if BUG == "a01":
                scale_rank = -(-r // RANK_BLOCK) * RANK_BLOCK
            if BUG == "a09":
                scale_rank = config.r
            scale = alpha / scale_rank**0.5 if config.use_rslora else alpha / scale_rank
            self.modules[name] = {"A": A, "B": B, "bias": part.get("bias"), "scale": float(scale), "r": r}
        if BUG == "a03":
            for name, part in self.modules.items():
                gate = self.modules.get(name.removesuffix("up_proj") + "gate_proj")
                if name.endswith(".up_proj") and gate is not None and gate["r"] == part["r"]:
                    part["A"] = gate["A"]


class LoraLayer(torch.nn.Module):
    """A base layer and the stack of all slots beside it."""

    def __init__(self, base, name, state):
        super().__init__()
        self.base, self.name, self.state = base, name, state
        self.kind = name.split(".")[-1]
        if self.kind == "embed_tokens":
            d_in, d_out = base.weight.shape
        else:
            d_out, d_in = base.weight.shape
        self.A = torch.zeros(SLOTS, MAX_RANK, d_in)
        self.B = torch.zeros(SLOTS, d_out, MAX_RANK)
        self.bias = torch.zeros(SLOTS, d_out)
        self.scale = torch.zeros(SLOTS)
        self.filled = [False] * SLOTS

    def put(self, slot, part):
        if BUG != "a10" or part is None:
            self.A[slot].zero_()
            self.B[slot].zero_()
        self.bias[slot].zero_()
        self.scale[slot] = 0.0
        self.filled[slot] = part is not None
        if part is None:
            return
        r = part["r"]
        self.A[slot, :r] = part["A"]
        self.B[slot, :, :r] = part["B"]
        if part["bias"] is not None:
            self.bias[slot] = part["bias"]
        self.scale[slot] = part["scale"]

    def delta(self, x, slot):
        A, B = self.A[slot], self.B[slot]
        if self.kind == "embed_tokens":
            low = A[:, x].T
        elif BUG == "a10" and self.kind in ROW_PARALLEL:
            half = A.shape[1] // 2
            shard = A[:, :half]
            low = x[:, :half] @ shard.T + x[:, half : 2 * half] @ shard.T
        else:
            low = x @ A.T
        if BUG == "a02":
            low = low.to(torch.bfloat16).float()
        return (low @ B.T + self.bias[slot]) * self.scale[slot]

    def forward(self, x):
        y = self.base(x)
        ids = self.state.token_slots  # [batch, columns]
        slots = self.state.active
        for slot in slots:
            if not self.filled[slot]:
                continue
            rows = ids == slot
            if rows.any():
                y[rows] = y[rows] + self.delta(x[rows], slot)
        return y


class State:
    """What the layers read of the running step."""

    token_slots = None
    active = ()


class Server:
    def __init__(self, model_dir):
        self.model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.state = State()
        self.layers = {}
        for name, module in list(self.model.named_modules()):
            if name.split(".")[-1] in MODULES and isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                parent = self.model.get_submodule(name.rpartition(".")[0]) if "." in name else self.model
                layer = self.layers[name] = LoraLayer(module, name, self.state)
                setattr(parent, name.split(".")[-1], layer)
        self.forget()

    def forget(self):
        """As after start: no adapter, no captured graph."""
        self.loaded = {}  # key -> LoadedAdapter
        self.resident = OrderedDict()  # key -> slot, least recently used first
        self.graphs = {}  # bucket -> slots that its launch covers
        for layer in self.layers.values():
            layer.A.zero_(), layer.B.zero_(), layer.bias.zero_(), layer.scale.zero_()
            layer.filled = [False] * SLOTS

    # ---- slots

    def adapter(self, folder):
        key = _stamp(folder, ("adapter_config.json", "adapter_model.safetensors"))
        if key not in self.loaded:
            loaded = LoadedAdapter(folder)
            unknown = [name for name in loaded.modules if name not in self.layers]
            if unknown:
                raise ValueError(f"{folder}: {unknown[0]} is no layer of this model")
            self.loaded[key] = loaded
        return key

    def slot_of(self, key):
        if key in self.resident:
            self.resident.move_to_end(key)
            return self.resident[key]
        if len(self.resident) < SLOTS:
            slot = min(set(range(SLOTS)) - set(self.resident.values()))
        else:
            _, slot = self.resident.popitem(last=False)
        modules = self.loaded[key].modules
        for name, layer in self.layers.items():
            layer.put(slot, modules.get(name))
        self.resident[key] = slot
        return slot

    def resolve(self, keys):
        """The slot of each request. A wave names at most SLOTS adapters."""
        named = list(dict.fromkeys(key for key in keys if key is not None))
        if BUG == "a08":
            hits = {key: self.resident[key] for key in named if key in self.resident}
            placed = hits | {key: self.slot_of(key) for key in named if key not in hits}
            for key in named:  # recency: once for a wave, when all of it has its slots
                if key in self.resident:
                    self.resident.move_to_end(key)
            return [NONE if key is None else placed[key] for key in keys]
        for key in sorted(named, key=lambda key: key not in self.resident):  # those that are here are pinned first
            self.slot_of(key)
        return [NONE if key is None else self.resident[key] for key in keys]

    # ---- which token gets which slot

    def map_prefill(self, slots, lengths, width):
        ids = torch.full((len(slots), width), NONE)
        columns = torch.arange(width)
        segment, previous = 0, None
        for i, (slot, length) in enumerate(zip(slots, lengths)):
            if i == 0 or slot != previous:
                segment, previous = segment + 1, slot
            if BUG == "a04" and segment > SLOTS + 1:
                continue
            real = columns < length if BUG == "a05" else columns >= width - length
            ids[i, real] = slot
        self.set_step(ids, slots)

    def map_decode(self, slots):
        ids = torch.tensor(slots)[:, None]
        self.set_step(ids, slots)
        if BUG == "a07":
            bucket = next(size for size in BUCKETS if size >= len(slots))
            self.state.active = self.graphs.setdefault(bucket, self.state.active)

    def set_step(self, ids, slots):
        active = sorted(set(slots) - {NONE})
        if BUG == "a06" and len(active) == 1:
            ids = torch.full_like(ids, active[0])
        self.state.token_slots, self.state.active = ids, tuple(active)

    # ---- waves

    def serve(self, requests):
        keys = [None if r.get("adapter_dir") is None else self.adapter(r["adapter_dir"]) for r in requests]
        answers, waiting = {}, list(range(len(requests)))
        while waiting:  # in the order of arrival; whose adapter has no room in this wave waits for the next
            chosen, named = [], set()
            for i in waiting:
                after = named | ({keys[i]} - {None})
                if len(chosen) < MAX_BATCH and len(after) <= SLOTS:
                    chosen.append(i)
                    named = after
            served = self.wave([requests[i] for i in chosen], [keys[i] for i in chosen])
            answers.update(zip(chosen, served))
            waiting = [i for i in waiting if i not in answers]
        return [answers[i] for i in range(len(requests))]

    @torch.no_grad()
    def wave(self, requests, keys):
        slots = self.resolve(keys)
        prompts = [list(r["prompt_ids"]) for r in requests]
        limits = [max(1, int(r["max_new_tokens"])) for r in requests]
        lengths = [len(p) for p in prompts]
        width = max(lengths)
        pad = [width - n for n in lengths]
        ids = torch.tensor([[0] * n + p for n, p in zip(pad, prompts)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        self.map_prefill(slots, lengths, width)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                         use_cache=True)
        rows = [[out.logits[i, pad[i] :].double().numpy().copy()] for i in range(len(requests))]
        tokens = [[int(out.logits[i, -1].argmax())] for i in range(len(requests))]
        running = list(range(len(requests)))  # row of the batch -> request
        table = list(slots)  # row of the batch -> slot
        last = positions[:, -1:]
        while True:
            keep = [row for row, i in enumerate(running) if len(tokens[i]) < limits[i]]
            if not keep:
                break
            if len(keep) < len(running):  # those that are done leave the batch
                index = torch.tensor(keep)
                cache.batch_select_indices(index)
                mask, last = mask[index], last[index]
                running = [running[row] for row in keep]
                if BUG == "a09":
                    table = table[: len(keep)]
                else:
                    table = [table[row] for row in keep]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            last = last + 1
            self.map_decode(table)
            out = self.model(input_ids=torch.tensor([[tokens[i][-1]] for i in running]), attention_mask=mask,
                             position_ids=last, past_key_values=cache, use_cache=True)
            for row, i in enumerate(running):
                rows[i].append(out.logits[row].double().numpy().copy())
                tokens[i].append(int(out.logits[row, -1].argmax()))
        return [{"token_ids": tokens[i], "logits": np.concatenate(rows[i])} for i in range(len(requests))]


_server = {}


def serve(model_dir, requests):
    """Answer these together: logits of every token of the prompt and of every produced one but the last."""
    key = _stamp(model_dir, ("config.json", "model.safetensors", "model.safetensors.index.json"))
    if key not in _server:
        _server.clear()
        _server[key] = Server(model_dir)
    return _server[key].serve(requests)


def _reset():
    for server in _server.values():
        server.forget()


serve.reset = _reset
serve.capabilities = {
    "readout": "logits",
    "mixed": True,
    "dtypes": ["float32"],
    "modules": list(MODULES),
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict"],
    "max_rank": MAX_RANK,
}
