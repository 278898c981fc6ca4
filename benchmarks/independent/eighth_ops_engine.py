"""This package's own engine, with every row of logits kept."""

import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from refimpl.engine import Engine
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.model_folder import load_model
from refimpl.ops import NUMPY
from refimpl.plans import NO_ADAPTER
from refimpl.request import Request

BUG = os.environ.get("BUG", "")
if BUG and BUG not in {f"t{i:02d}" for i in range(1, 9)}:
    raise ImportError(f"unknown BUG {BUG!r}")

OPS = replace(NUMPY, logits_indices=lambda starts, every: np.arange(starts[-1], dtype=np.int32))


# ---- exchanged steps -------------------------------------------------------------------------------------------------


def bind_by_dim(adapter, config, *rest):
    bound = NUMPY.bind_adapter(adapter, config, *rest)
    lora = {}
    for module, w in bound.lora.items():
        if module[1] == "o_proj":
            A = np.asarray(w.A)
            A = A.reshape(len(A), config.num_attention_heads, -1).transpose(0, 2, 1).reshape(A.shape)
            w = replace(w, A=np.ascontiguousarray(A))
        lora[module] = w
    return replace(bound, lora=lora)


def rolled_mapping(per_request, lengths):
    return NUMPY.lora_mapping(per_request, [*lengths[1:], lengths[0]])


def plain_tiles(adapter_ids, size):
    ids = np.asarray(adapter_ids)
    rows = np.argsort(ids, kind="stable")
    rows = rows[ids[rows] != NO_ADAPTER]
    starts = [*range(0, len(rows), size), len(rows)] if len(rows) else [0]
    return rows.astype(np.int32), np.asarray(starts, np.int32)


def shared_key(parent, token_ids, base, p, adapters):
    return NUMPY.prefix_key(parent, token_ids, base, p, [(b"lora", weight) for _, weight in adapters])


_restarted = [None]


def noted_positions(computed, lengths):
    runs = [(0 if i and n > 1 else i, n) for i, n in zip(computed, lengths)]
    _restarted[0] = NUMPY.positions([i for i, _ in runs], lengths)
    return NUMPY.positions(computed, lengths)


def restarted_rope(rope, head_dim, positions, lengths, p):
    return NUMPY.rope_table(rope, head_dim, _restarted[0], lengths, p)


def whole_scale(alpha, r, use_rslora):
    return NUMPY.adapter_scale(alpha, r, True) if use_rslora else float(alpha // r)


def first_layer_delta(y, x, module, adapters, mapping, p):
    NUMPY.lora_delta(y, x, (0, "v_proj") if module[1] == "v_proj" else module, adapters, mapping, p)


def three_only(per_request, lengths):
    return NUMPY.lora_mapping([a if i < 3 else () for i, a in enumerate(per_request)], lengths)


def bind_without_bias(adapter, config, *rest):
    bound = NUMPY.bind_adapter(adapter, config, *rest)
    return replace(bound, lora={m: replace(w, bias=None) for m, w in bound.lora.items()})


CHANGES = {
    "": {},
    "t01": {"bind_adapter": bind_by_dim},
    "t02": {"lora_mapping": rolled_mapping},
    "t03": {"segments": plain_tiles},
    "t04": {"prefix_key": shared_key},
    "t05": {"positions": noted_positions, "rope_table": restarted_rope},
    "t06": {"adapter_scale": whole_scale},
    "t07": {"lora_delta": first_layer_delta},
    "t08": {"lora_mapping": three_only, "bind_adapter": bind_without_bias},
}


# ---- the engine ------------------------------------------------------------------------------------------------------


class Recording(Engine):
    """Keeps every row, and what the rows of a prefix were when it was computed."""

    def __init__(self, model):
        super().__init__(
            model,
            replace(OPS, **CHANGES[BUG]),
            num_blocks=640,
            block_size=4,
            max_batch_tokens=32,
            max_running=6,
            max_adapters=4,
        )
        self.rows, self.owners, self.known = {}, {}, {}

    def _last_rows(self, scheduled):
        rows = super()._last_rows(scheduled)
        stop, last = 0, []
        for state, n in scheduled:
            start, stop = stop, stop + n
            mine, owner = self.rows.setdefault(state.id, {}), self.owners.get(state.request)
            for i in range(state.computed):
                if i not in mine:  # found in the prefix cache
                    key = tuple(state.tokens[: i + 1])
                    mine[i] = self.known.get((owner, key), self.known.get(key))
            for i, row in enumerate(rows[start:stop], state.computed):
                mine[i] = row
                key = tuple(state.tokens[: i + 1])
                self.known[owner, key] = self.known[key] = row
            last.append(rows[stop - 1])
        return np.stack(last)


class Server:
    def __init__(self, folder):
        self.model = load_model(folder, "float32")
        self.reset()

    def reset(self):
        self.engine, self.adapters = Recording(self.model), {}

    def adapter(self, folder):
        if folder is None:
            return None, None
        h = hashlib.sha256()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            h.update((Path(folder) / file).read_bytes())
        digest = h.digest()
        if digest not in self.adapters:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.adapters[digest] = load_adapter(folder, self.model)
        return digest, self.adapters[digest]

    def run(self, requests):
        engine, ids, produced = self.engine, [], {}
        for r in requests:
            digest, adapter = self.adapter(r.get("adapter_dir"))
            new = max(int(r["max_new_tokens"]), 1)
            request = Request(list(r["prompt_ids"]), adapter, new, stop_ids=())
            engine.owners[request] = digest
            ids.append(engine.add(request, new))
            produced[ids[-1]] = []
        while engine.busy:
            for token in engine.step():
                produced[token.request_id].append(token.token_id)
        out = []
        for i, r in zip(ids, requests):
            rows = engine.rows.pop(i)
            out.append({"logits": np.stack([rows[j] for j in sorted(rows)]), "token_ids": produced[i]})
        engine.owners.clear()
        return out


_servers = {}


def _server(model_dir):
    files = sorted(p for p in Path(model_dir).iterdir() if p.suffix in (".json", ".safetensors"))
    key = (str(model_dir), tuple((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files))
    if key not in _servers:
        _servers.clear()
        _servers[key] = Server(str(model_dir))
    return _servers[key]


def serve(model_dir, requests):
    """One call: all requests together."""
    return _server(model_dir).run(requests)


def _reset():
    for server in _servers.values():
        server.reset()


serve.reset = _reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
    "families": ["llama", "mistral"],
}
