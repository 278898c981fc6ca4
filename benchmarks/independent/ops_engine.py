"""An engine over refimpl's own forward pass and scheduler, with fields of its Ops table replaced.

    loracle check --engine ops_engine:serve          BUG=o04 puts one bug in
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from refimpl.arrays import rounded
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.ours import Ours
from refimpl.kv_cache import prefix_key
from refimpl.layers import mlp_activation
from refimpl.lora import expand, lora_delta, shrink
from refimpl.ops import NUMPY
from refimpl.plans import LoraMapping, lora_mapping, segments

BUG = os.environ.get("BUG", "")


def keep(mapping, rows):
    """The mapping in which these rows alone (a mask) have their adapters."""
    ids = np.where(rows[:, None], mapping.adapter_ids, -1)
    return LoraMapping.of(ids, mapping.adapter_weights)


class State:
    """What a step leaves for a later one."""

    batch = None
    gate = None


def make_ops():
    """NUMPY, with one bug."""
    state = State()

    def check_batch(batch, adapters, window):  # the first step that sees the plan
        state.batch = batch
        NUMPY.check_batch(batch, adapters, window)

    def lengths():
        return np.diff(state.batch.attention.query_start_loc)

    def o01_mapping(per_request, lengths):
        ids, weights = lora_mapping(per_request, lengths)
        edges = np.cumsum(lengths)[:-1]
        ids, weights = ids.copy(), weights.copy()
        ids[edges], weights[edges] = ids[edges - 1], weights[edges - 1]
        return ids, weights

    def o02_segments(adapter_ids, size):
        rows, starts = segments(adapter_ids, size)
        kept, edges = [], [0]
        for a, b in zip(starts[:-1], starts[1:]):
            whole = b - a == size
            first = a == 0 or adapter_ids[rows[a - 1]] != adapter_ids[rows[a]]
            if whole or first:
                kept += rows[a:b].tolist()
                edges.append(len(kept))
        return np.asarray(kept, np.int32), np.asarray(edges, np.int32)

    def o03_scale(alpha, r, use_rslora):
        return alpha / math.isqrt(r) if use_rslora else alpha / r

    def o04_delta(y, x, module, adapters, mapping, p, **forms):
        layer, name = module
        if isinstance(layer, int) and layer >= 2 and name in ("gate_proj", "up_proj", "down_proj"):
            module = (layer % 2, name)
        lora_delta(y, x, module, adapters, mapping, p)

    def o05_key(parent, token_ids, base, p, adapters):
        return prefix_key(parent, token_ids, base, p, [(b"lora", 1.0)] if adapters else [])

    def o06_delta(y, x, module, adapters, mapping, p, **forms):
        mapping = LoraMapping.of(mapping.adapter_ids, mapping.adapter_weights**2)
        lora_delta(y, x, module, adapters, mapping, p)

    def o07_delta(y, x, module, adapters, mapping, p, **forms):
        n = lengths()
        if module[1] == "v_proj" and (n == 1).all() and len(n) in (1, 2, 4, 8):
            return
        lora_delta(y, x, module, adapters, mapping, p)

    def o08_delta(y, x, module, adapters, mapping, p, **forms):
        if module[1] in ("o_proj", "down_proj") and len(y) > 32:
            mapping = keep(mapping, np.arange(len(y)) < 32)
        lora_delta(y, x, module, adapters, mapping, p)

    def o09_delta(y, x, module, adapters, mapping, p, **forms):
        def half(x, A):
            return shrink(x, A).astype(np.float16).astype(y.dtype)

        lora_delta(y, x, module, adapters, mapping, p, half if module[1] in ("q_proj", "k_proj") else shrink)

    def o10_delta(y, x, module, adapters, mapping, p, **forms):
        resident = adapters.at(module)
        for column in mapping.columns:
            for segment in column.segments:
                if segment.slot not in resident:
                    continue
                lora, rows = resident[segment.slot], segment.rows
                if not isinstance(rows, slice):
                    rows = slice(int(rows[0]), int(rows[-1]) + 1)
                delta = expand(rounded(shrink(x[rows], lora.A), p.lora_rank), lora.B)
                if lora.bias is not None:
                    delta = delta + lora.bias
                y[rows, : delta.shape[1]] += delta * y.dtype.type(lora.scale * segment.weight)

    def o11_delta(y, x, module, adapters, mapping, p, **forms):
        if module[1] != "gate_proj":
            return lora_delta(y, x, module, adapters, mapping, p)
        state.gate = np.zeros_like(y)
        lora_delta(state.gate, x, module, adapters, mapping, p)

    def o11_activation(gate, up, kind, p):
        out = mlp_activation(gate, up, kind, p)
        if state.gate is not None and state.gate.shape == out.shape and up is not None:
            out = out + state.gate * up
        state.gate = None
        return out

    def o12_delta(y, x, module, adapters, mapping, p, **forms):
        if module[1] == "o_proj":
            n = lengths()
            last = np.zeros(len(y), bool)
            last[state.batch.attention.query_start_loc[1:][n > 1] - 1] = True
            mapping = keep(mapping, ~last)
        lora_delta(y, x, module, adapters, mapping, p)
        if module[1] == "k_proj" and len(lengths()) == 1:
            lora_delta(y, x, module, adapters, mapping, p)

    changes = {
        "o01": {"lora_mapping": o01_mapping},
        "o02": {"segments": o02_segments},
        "o03": {"adapter_scale": o03_scale},
        "o04": {"lora_delta": o04_delta},
        "o05": {"prefix_key": o05_key},
        "o06": {"lora_delta": o06_delta},
        "o07": {"lora_delta": o07_delta},
        "o08": {"lora_delta": o08_delta},
        "o09": {"lora_delta": o09_delta},
        "o10": {"lora_delta": o10_delta},
        "o11": {"lora_delta": o11_delta, "mlp_activation": o11_activation},
        "o12": {"lora_delta": o12_delta},
    }
    return dataclasses.replace(NUMPY, check_batch=check_batch, **changes.get(BUG, {}))


make_ops.arrival = True  # rows in the order of arrival


class Server:
    def __init__(self, folder):
        self.ours = Ours(make_ops)
        self.settings = Settings(Path(folder), prefix_caching=True, max_adapters=4, max_requests=16)
        self.ours.start(self.settings)
        self.reset()

    def reset(self):
        self.ours.reset()
        self.names = {}

    def name(self, folder):
        files = [Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"]
        key = (str(folder), *((f.stat().st_mtime_ns, f.stat().st_size) for f in files))
        if key not in self.names:
            self.names[key] = f"adapter-{len(self.names)}"
            self.ours.loaded.pop(Path(folder), None)  # its files may be others now
            self.ours.load(self.names[key], Path(folder))
        return self.names[key]

    def serve(self, requests):
        asked = []
        for r in requests:
            pairs = r.get("adapters") or ([(r["adapter_dir"], 1.0)] if r["adapter_dir"] else [])
            named = tuple((self.name(folder), weight) for folder, weight in pairs)
            one = named[0][0] if len(named) == 1 and named[0][1] == 1.0 else None
            asked.append(
                EngineRequest(tuple(r["prompt_ids"]), one, r["max_new_tokens"], () if one else named)
            )
        answers = []
        for r, a in zip(requests, self.ours.run(asked)):
            rows = a.logits
            if a.first_position:  # a part of the prompt came from the cache: the rows of the produced tokens
                rows = rows[-len(a.token_ids) :]
            answers.append({"logits": rows, "token_ids": list(a.token_ids)})
        return answers


SERVERS = {}


def serve(model_dir, requests):
    if model_dir not in SERVERS:
        while len(SERVERS) >= 2:
            SERVERS.pop(next(iter(SERVERS)))
        SERVERS[model_dir] = Server(model_dir)
    return SERVERS[model_dir].serve(requests)


def reset():
    for server in SERVERS.values():
        server.reset()


serve.reset = reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "families": ["llama", "qwen3"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "modules_to_save", "biases"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
}  # fmt: skip
