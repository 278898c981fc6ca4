"""The project's own engine as a server, with one of its steps exchanged through Ops, every row of logits kept.

    loracle check --engine ninth_ops_engine:serve

A few adapter slots, a budget of tokens per step, requests in the order of arrival. BUG=b01..b08 switches on one defect;
without it the engine is right.
"""

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from refimpl import lora, plans
from refimpl.adapter_slots import LoraWeights, bind_adapter
from refimpl.config import LAYER_MODULES, LM_HEAD
from refimpl.engines.ours import Observed
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.model_folder import load_model
from refimpl.ops import NUMPY
from refimpl.plans import NO_ADAPTER, LoraMapping
from refimpl.request import Request

BUG = os.environ.get("BUG", "")
BUGS = tuple(f"b{i:02d}" for i in range(1, 9))
if BUG and BUG not in BUGS:
    raise ValueError(f"BUG={BUG} is unknown: it is one of {', '.join(BUGS)}")

SLOTS = 2  # adapters in memory at once
STEP_TOKENS = 48  # tokens of one step
MAX_RUNNING = 6
BLOCK_SIZE = 8
MODULES = (*LAYER_MODULES, "lm_head", "embed_tokens")


# ---- b01: B of q_proj and k_proj is brought to the layout of interleaved rotation and back


def to_interleaved(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_halves(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def bind_rotated(adapter, config, scale):
    bound = bind_adapter(adapter, config, scale)
    loras = {}
    for module, part in bound.lora.items():
        if module[1] in ("q_proj", "k_proj"):
            own = config.num_attention_heads if module[1] == "q_proj" else config.num_key_value_heads
            there = config.num_attention_heads
            if part.B.shape[0] // there % 2 == 0:
                turn = lambda x: to_halves(to_interleaved(x, there), own)  # noqa: E731
                part = replace(part, B=turn(part.B), bias=None if part.bias is None else turn(part.bias))
        loras[module] = part
    return replace(bound, lora=loras)


# ---- b02: one packed qkv_proj, its parts one behind the other


def bind_packed(adapter, config, scale):
    bound = bind_adapter(adapter, config, scale)
    loras = {module: part for module, part in bound.lora.items() if module[1] not in config.qkv}
    for layer in range(config.num_hidden_layers):
        present = [name for name in config.qkv if (layer, name) in bound.lora]
        for place, name in zip(config.qkv, present, strict=False):
            part, rows = bound.lora[layer, name], config.shape((layer, place))[0]
            B = np.zeros((rows, part.B.shape[1]), part.B.dtype)
            n = min(rows, len(part.B))
            B[:n] = part.B[:n]
            bias = part.bias
            if bias is not None:
                bias = np.zeros(rows, part.bias.dtype)
                bias[:n] = part.bias[:n]
            loras[layer, place] = LoraWeights(part.A, B, part.scale, bias, part.magnitude)
    return replace(bound, lora=loras)


# ---- b03: tiles of a segment


def segments_in_tiles(adapter_ids, size):
    rows, starts = plans.segments(adapter_ids, size)
    kept, edges = [], [0]
    for slot in sorted(set(adapter_ids.tolist()) - {NO_ADAPTER}):
        mine = [t for t in rows.tolist() if adapter_ids[t] == slot]
        tiles = max(1, len(mine) // size)
        mine = mine[: tiles * size]
        kept += mine
        edges += [*range(edges[-1] + size, len(kept), size), len(kept)]
    return np.asarray(kept, np.int32), np.asarray(edges, np.int32)


# ---- b04: which token gets which adapter in a step with chunks


def make_chunk_mapping():
    seen = {}

    def positions(computed, lengths):
        seen["computed"] = list(computed)
        return plans.positions(computed, lengths)

    def lora_mapping(per_request, lengths):
        total = sum(lengths)
        spans = [n if n == 1 else done + n for done, n in zip(seen["computed"], lengths, strict=True)]
        ids, weights = plans.lora_mapping(per_request, spans)
        return ids[:total], weights[:total]

    return {"positions": positions, "lora_mapping": lora_mapping}


# ---- b05: who leaves


def oldest(last_used, ref_counts):
    return min(last_used, key=lambda item: last_used[item]) if last_used else None


# ---- b06: the scales of all slots in one table


class Shown:
    """Slots as lora_delta reads them, at one module."""

    def __init__(self, resident):
        self.resident = resident

    def at(self, module):
        return self.resident


def make_scale_table():
    table = {}

    def lora_delta(y, x, module, adapters, mapping, p):
        resident = adapters.at(module)
        for slot, part in resident.items():
            table.setdefault((module, slot), part.scale)
        shown = {slot: replace(part, scale=table[module, slot]) for slot, part in resident.items()}
        lora.lora_delta(y, x, module, Shown(shown), mapping, p)

    return {"lora_delta": lora_delta}


# ---- b07: the head, which serves sampled tokens


def make_head_of_sampled():
    seen = {}

    def logits_indices(query_start_loc, every):
        seen["sampled"] = (query_start_loc[1:] - 1).astype(np.int64)
        return plans.logits_indices(query_start_loc, every)

    def lora_delta(y, x, module, adapters, mapping, p):
        if module == LM_HEAD and len(y) == len(mapping.adapter_ids):
            ids = np.full_like(mapping.adapter_ids, NO_ADAPTER)
            ids[seen["sampled"]] = mapping.adapter_ids[seen["sampled"]]
            mapping = LoraMapping.of(ids, mapping.adapter_weights)
        lora.lora_delta(y, x, module, adapters, mapping, p)

    return {"logits_indices": logits_indices, "lora_delta": lora_delta}


# ---- b08: prompts before decodes; and the pool's type


def mapping_prompts_first(per_request, lengths):
    order = sorted(range(len(lengths)), key=lambda r: lengths[r] == 1)
    return plans.lora_mapping([per_request[r] for r in order], [lengths[r] for r in order])


def bfloat16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def bind_in_pool(adapter, config, scale):
    bound = bind_adapter(adapter, config, scale)
    loras = {}
    for module, part in bound.lora.items():  # the scale is multiplied into B when the adapter comes into the pool
        factor = np.float32(part.scale)
        bias = None if part.bias is None else bfloat16(part.bias * factor)
        loras[module] = replace(part, A=bfloat16(part.A), B=bfloat16(part.B * factor), scale=1.0, bias=bias)
    return replace(bound, lora=loras)


def make_ops():
    """The steps of one engine: what they keep begins empty with it."""
    changes = {
        "": dict,
        "b01": lambda: {"bind_adapter": bind_rotated},
        "b02": lambda: {"bind_adapter": bind_packed},
        "b03": lambda: {"segments": segments_in_tiles},
        "b04": make_chunk_mapping,
        "b05": lambda: {"select_victim": oldest},
        "b06": make_scale_table,
        "b07": make_head_of_sampled,
        "b08": lambda: {"lora_mapping": mapping_prompts_first, "bind_adapter": bind_in_pool},
    }
    return replace(NUMPY, **changes[BUG]())


# ---- the server


def stamp(folder, names):
    files = [Path(folder) / name for name in names]
    marks = [(f.name, f.stat().st_mtime_ns, f.stat().st_size, f.stat().st_ino) for f in files if f.exists()]
    return str(folder), tuple(marks)


class Server:
    def __init__(self, model_dir):
        self.model = load_model(Path(model_dir), "float32")
        self.forget()

    def forget(self):
        self.engine = Observed(
            self.model,
            make_ops(),
            num_blocks=512,
            block_size=BLOCK_SIZE,
            max_batch_tokens=STEP_TOKENS,
            max_running=MAX_RUNNING,
            max_adapters=SLOTS,
            prefix_caching=False,
        )
        self.engine.arrival = True
        self.adapters = {}

    def adapter(self, folder):
        key = stamp(folder, ("adapter_config.json", "adapter_model.safetensors"))
        if key not in self.adapters:
            self.adapters[key] = load_adapter(Path(folder), self.model)
        return self.adapters[key]

    def serve(self, requests):
        work = []
        for r in requests:
            adapter = None if r.get("adapter_dir") is None else self.adapter(r["adapter_dir"])
            tokens = max(1, int(r["max_new_tokens"]))
            work.append(Request(tuple(r["prompt_ids"]), adapter, max_new_tokens=tokens, stop_ids=()))
        ids = [self.engine.add(request) for request in work]
        produced = {i: [] for i in ids}
        while self.engine.busy:
            for token in self.engine.step():
                produced[token.request_id].append(token.token_id)
        answers = []
        for i in ids:
            rows = self.engine.rows.pop(i)
            answers.append({"token_ids": produced[i], "logits": np.stack([rows[at] for at in sorted(rows)])})
        return answers


_server = {}


def serve(model_dir, requests):
    """Answer these together: logits of every token of the prompt and of every produced one but the last."""
    key = stamp(model_dir, ("config.json", "model.safetensors", "model.safetensors.index.json"))
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
}
