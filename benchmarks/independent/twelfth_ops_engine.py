"""Multi-LoRA serving through the package's own engine: chunked prefill, two adapter slots, a prefix cache.

The logits of a token that is found in the prefix cache are those that were computed when its block was filled.
BUG names what is wrong."""

import os
from dataclasses import replace

import numpy as np
import refimpl
from refimpl.adapter_slots import bind_adapter
from refimpl.arrays import to_host
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.engine import Engine
from refimpl.lora import lora_delta
from refimpl.model import forward
from refimpl.ops import NUMPY
from refimpl.plans import NO_ADAPTER, LoraMapping

BUG = os.environ.get("BUG", "")
if BUG not in ("", *(f"d{i:02d}" for i in range(1, 9))):
    raise ValueError(f"no bug {BUG!r}")

BLOCK, STEP_TOKENS, RUNNING, SLOTS = 4, 24, 6, 2
MLP = ("gate_proj", "up_proj", "down_proj")


class Now:
    """What the operations know of the step that runs."""

    mapping = None  # in place of the batch's, at modules of `at`
    at = ()


class Cut:
    """Slots that show other LoRA weights."""

    def __init__(self, weights):
        self.weights = weights

    def at(self, module):
        return self.weights


def delta(y, x, module, adapters, mapping, p):
    if Now.mapping is not None and module[1] in Now.at:
        mapping = Now.mapping
    if BUG == "d04":
        resident = adapters.at(module)
        used = [s.slot for column in mapping.columns for s in column.segments if s.slot in resident]
        if used:
            rank = resident[used[0]].A.shape[0]
            adapters = Cut({s: replace(w, A=w.A[:rank], B=w.B[:, :rank]) for s, w in resident.items()})
    if BUG == "d08" and module[1] in ("q_proj", "k_proj", "v_proj"):
        adapters = Cut({s: w for s, w in adapters.at(module).items() if s})
    lora_delta(y, x, module, adapters, mapping, p)


def bind(adapter, config, scale):
    bound = bind_adapter(adapter, config, scale)
    lora = dict(bound.lora)
    if BUG == "d03":
        for (layer, name), one in bound.lora.items():
            if name in ("k_proj", "v_proj") and (layer, "q_proj") in lora:
                lora[layer, name] = replace(one, scale=lora[layer, "q_proj"].scale)
    if BUG == "d04":
        first = {}
        for (_, name), one in sorted(bound.lora.items(), key=lambda item: item[0]):
            if one.bias is not None:
                first.setdefault(name, one.bias)
        lora = {m: one if one.bias is None else replace(one, bias=first[m[1]]) for m, one in lora.items()}
    if BUG == "d07":
        other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        lora = {(layer, other.get(name, name)): one for (layer, name), one in lora.items()}
    return replace(bound, lora=lora)


def tiles(adapter_ids, size):
    """Rows that have an adapter, sorted by it, and where tiles of them start."""
    ids = adapter_ids.tolist()
    rows = sorted((t for t, slot in enumerate(ids) if slot != NO_ADAPTER), key=lambda t: ids[t])
    starts = [*range(0, len(rows), 4), len(rows)] if rows else [0]
    return np.asarray(rows, np.int32), np.asarray(starts, np.int32)


OPS = replace(NUMPY, lora_delta=delta, bind_adapter=bind)
if BUG == "d01":
    OPS = replace(OPS, keyed_adapters=lambda adapters, starts, end: [])
if BUG == "d02":
    OPS = replace(OPS, admit=lambda waiting, in_use, capacity: range(len(waiting)))
if BUG == "d05":
    OPS = replace(OPS, segments=tiles, check_batch=lambda batch, adapters, window: None)


class Serving(Engine):
    """The engine, with all rows kept, and what each step did."""

    def __init__(self, model):
        super().__init__(model, OPS, None, 512, BLOCK, STEP_TOKENS, RUNNING, SLOTS, True)
        self.row_at = {}  # KV slot -> logits of its token
        self.begin()
        if BUG == "d02":
            oldest = lambda last_used, ref_counts: min(last_used, key=last_used.get)
            self.adapters._ops = replace(OPS, select_victim=oldest)
        if BUG == "d08":
            put, scales = self.adapters.slots.put, {}

            def put_with_first_scale(slot, bound):
                lora = {m: replace(w, scale=scales.setdefault((slot, m), w.scale)) for m, w in bound.lora.items()}
                put(slot, replace(bound, lora=lora))

            self.adapters.slots.put = put_with_first_scale

    def begin(self):
        self.number, self.rows, self.steps = 0, {}, {}

    def _batch(self, scheduled):
        requests = [
            ScheduledRequest(
                state.tokens[state.computed : state.computed + n],
                state.computed,
                state.table,
                state.adapters,
                state.limit - 1,
                state.starts,
            )
            for state, n in scheduled
        ]
        batch = make_batch(requests, self.cache, self.adapters.slots, self.ops, every_row=True)
        Now.mapping, Now.at = None, ()
        decodes = [state.computed >= len(state.request.prompt_ids) for state, _ in scheduled]
        hidden = np.zeros(len(batch.token_ids), bool)
        if BUG == "d06" and any(decodes) and not all(decodes):
            hidden, Now.at = np.repeat(decodes, [n for _, n in scheduled]), MLP
        if BUG == "d07":
            hidden[-1], Now.at = True, ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
        if hidden.any():
            ids, weights = batch.lora.adapter_ids.copy(), batch.lora.adapter_weights.copy()
            ids[hidden], weights[hidden] = NO_ADAPTER, 0
            Now.mapping = LoraMapping.of(ids, weights, segments=self.ops.segments)
        return batch

    def _last_rows(self, scheduled):
        batch = self._batch(scheduled)
        logits = to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))
        start, last = 0, []
        for state, n in scheduled:
            rows, at = self.rows.setdefault(state.id, []), lambda i: state.table[i // BLOCK] * BLOCK + i % BLOCK
            del rows[state.computed :]
            rows += [self.row_at[at(i)] for i in range(len(rows), state.computed)]
            for i in range(n):
                self.row_at[at(state.computed + i)] = logits[start + i].copy()
                rows.append(logits[start + i])
            slot = state.adapters[0][0] if state.adapters else None
            self.steps.setdefault(state.id, []).append((self.number, start, state.computed, n, slot))
            start += n
            last.append(logits[start - 1])
        self.number += 1
        return np.stack(last)


MODELS, ENGINES, ADAPTERS = {}, {}, {}


def serve(model_dir, requests):
    if model_dir not in ENGINES:
        if model_dir not in MODELS:
            MODELS.clear()
            MODELS[model_dir] = refimpl.load_model(model_dir)
        ENGINES.clear()
        ADAPTERS.clear()
        ENGINES[model_dir] = Serving(MODELS[model_dir])
    engine = ENGINES[model_dir]
    engine.begin()
    ids = []
    for request in requests:
        folder = request["adapter_dir"]
        if folder is not None and folder not in ADAPTERS:
            ADAPTERS[folder] = refimpl.load_adapter(folder, engine.model.config)
        adapter = None if folder is None else ADAPTERS[folder]
        new = request["max_new_tokens"]
        ids.append(engine.add(refimpl.Request(request["prompt_ids"], adapter, new, stop_ids=()), new))
    produced = {i: [] for i in ids}
    while engine.busy:
        for token in engine.step():
            produced[token.request_id].append(token.token_id)
    return [
        {
            "logits": np.stack(engine.rows[i]).astype(np.float32),
            "token_ids": produced[i],
            "steps": engine.steps[i],
        }
        for i in ids
    ]


def _reset():
    ENGINES.clear()
    ADAPTERS.clear()


serve.capabilities = {
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "dtypes": ["float32"],
}
serve.reset = _reset
