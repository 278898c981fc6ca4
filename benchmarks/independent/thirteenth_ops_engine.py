"""A second multi-LoRA engine, of the package's own parts: its Engine and forward pass, fixed adapter slots, and a
backend (Ops) of which some steps are written here. Batches are in the order of arrival; each answer tells its steps.

The environment variable BUG names one of FLAWS and puts it in."""

import os
import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
from refimpl.adapter import Adapter, lora_alpha_of
from refimpl.adapter_cache import AdapterCache
from refimpl.adapter_slots import BoundAdapter, LoraWeights
from refimpl.arrays import to_host
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.config import MLP_MODULES, module_name
from refimpl.engine import Engine
from refimpl.fixed_slots import FixedSlots
from refimpl.kv_cache import KVCache, prefix_key
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.model_folder import load_model
from refimpl.model import forward
from refimpl.ops import NUMPY
from refimpl.plans import lora_mapping, positions
from refimpl.request import Request

BLOCK, BLOCKS, SLOTS, MAX_RANK = 4, 72, 2, 64
BUDGET, RUNNING = 18, 5
ONE_ROW_RANK = 8

FLAWS = {
    "": (),
    "s01": ("bias_unscaled",),
    "s02": ("first_block_for_all",),
    "s03": ("mapping_kept",),
    "s04": ("digest_kept",),
    "s05": ("last_pattern",),
    "s06": ("put_back_in_order",),
    "s07": ("first_token_bare", "v_scaled_as_k"),
    "s08": ("one_row_rank", "plain_scale_of_own_rank"),
}
BUG = os.environ.get("BUG", "")
if BUG not in FLAWS:
    raise ValueError(f"BUG={BUG!r} is none of {', '.join(FLAWS)}")


def has(flaw: str) -> bool:
    return flaw in FLAWS[BUG]


# ---- the steps of the backend that are written here -----------------------------------------------------------------


def alpha_of(adapter: Adapter, module) -> float:
    """The alpha of a module: of the first key of alpha_pattern that matches its name."""
    if not has("last_pattern"):
        return lora_alpha_of(adapter.config, module)
    values = [adapter.config.lora_alpha]
    values += [v for k, v in adapter.config.alpha_pattern.items() if re.match(rf"(.*\.)?({k})$", module_name(module))]
    return values[-1]


def bind(adapter: Adapter, config, scale) -> BoundAdapter:
    """A, B and scale of each module."""
    lora = {}
    for module, tensors in adapter.lora.items():
        source, (layer, name) = module, module
        if name == "v_proj" and (layer, "k_proj") in adapter.lora and has("v_scaled_as_k"):
            source = (layer, "k_proj")
        rank = len(adapter.lora[source].A)
        rslora = adapter.config.use_rslora
        if rank != adapter.config.r and has("plain_scale_of_own_rank"):
            rslora = False
        lora[module] = LoraWeights(tensors.A, tensors.B, scale(alpha_of(adapter, source), rank, rslora), tensors.bias)
    return BoundAdapter(lora, adapter.replaced, adapter.biases, adapter.tokens)


def key_of_block(parent, token_ids, base, p, adapters) -> bytes:
    """The key of a block: of its tokens, of the blocks before it, and of the adapters."""
    return prefix_key(parent, token_ids, base, p, () if not parent and has("first_block_for_all") else adapters)


class Kernels:
    """The steps that know of the batch in which they run."""

    def __init__(self) -> None:
        self.alone = np.zeros(0, bool)  # rows whose request has no other row in this step
        self.mappings = {}

    def positions(self, computed, lengths):
        self.alone = np.repeat(np.asarray(lengths) == 1, lengths)
        return positions(computed, lengths)

    def mapping(self, per_request, lengths):
        made = lora_mapping(per_request, lengths)
        if has("mapping_kept"):
            return self.mappings.setdefault((len(lengths), sum(lengths)), made)
        return made

    def start(self, prompt_ids, invocation) -> int:
        return 1 if has("first_token_bare") else 0

    def delta(self, y, x, module, adapters, mapping, p) -> None:
        """y += scale * B (A x), one slot after another on rows that were gathered."""
        resident = adapters.at(module)
        for column in mapping.columns if resident else ():
            rows, starts = column.sorted_rows, np.arange(len(y))
            x_rows, added = x[rows], np.zeros((len(rows), y.shape[1]), y.dtype)
            for slot in sorted(set(column.adapter_ids[rows].tolist()) & resident.keys()):
                lora, mine = resident[slot], np.flatnonzero(column.adapter_ids[rows] == slot)
                low = lora.A[:, x_rows[mine]].T if x.dtype.kind in "iu" else x_rows[mine] @ lora.A.T
                if module[1] in MLP_MODULES and has("one_row_rank"):
                    low[self.alone[rows[mine]], ONE_ROW_RANK:] = 0
                scale = y.dtype.type(lora.scale)
                added[mine] = low @ lora.B.T * scale
                if lora.bias is not None:
                    added[mine] += lora.bias * (1 if has("bias_unscaled") else scale)
            y[np.sort(rows) if has("put_back_in_order") else starts[rows]] += added


# ---- the engine -----------------------------------------------------------------------------------------------------


class Cache(AdapterCache):
    """The slots, least recently used out first."""

    def _assign(self, slot, adapter) -> None:
        digest = self._digests.get(slot)
        super()._assign(slot, adapter)
        self._keep(slot, digest)

    def _evict(self, slot) -> None:
        digest = self._digests.get(slot)
        super()._evict(slot)
        self._keep(slot, digest)

    def _keep(self, slot, digest) -> None:
        if digest is not None and has("digest_kept"):
            self._digests[slot] = digest


class Pool:
    """Blocks of keys and values, and fixed slots beside them."""

    def __init__(self, model, p, ops, num_blocks, block_size, capacity) -> None:
        self.cache = KVCache(model.config, num_blocks, block_size, p, model.device, ops.select_victim)
        self.adapters = Cache(model, p, ops, capacity)
        self.adapters.slots = FixedSlots(model, p, capacity, MAX_RANK)


class Served(Engine):
    """The package's engine that keeps each row of logits, and says which step computed it."""

    def __init__(self, model_dir: str) -> None:
        kernels = Kernels()
        ops = replace(
            NUMPY,
            bind_adapter=bind,
            prefix_key=key_of_block,
            positions=kernels.positions,
            lora_mapping=kernels.mapping,
            activation_start=kernels.start,
            lora_delta=kernels.delta,
        )
        super().__init__(
            load_model(model_dir, "float32"),
            ops,
            num_blocks=BLOCKS,
            block_size=BLOCK,
            max_batch_tokens=BUDGET,
            max_running=RUNNING,
            max_adapters=SLOTS,
            pool=Pool,
        )
        self.folders: dict[str, Adapter] = {}
        self.rows = defaultdict(dict)  # request -> token -> its logits
        self.told = defaultdict(list)  # request -> its steps
        self.number = 0

    def _last_rows(self, scheduled):
        order = sorted(range(len(scheduled)), key=lambda i: scheduled[i][0].id)
        work = [scheduled[i] for i in order]
        requests = [
            ScheduledRequest(
                s.tokens[s.computed : s.computed + n], s.computed, s.table, s.adapters, s.limit - 1, s.starts
            )
            for s, n in work
        ]
        batch = make_batch(requests, self.cache, self.adapters.slots, self.ops, every_row=True)
        rows = to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))
        last, row = {}, 0
        for i, (s, n) in zip(order, work, strict=True):
            slot = s.adapters[0][0] if s.adapters else None
            self.told[s.id].append((self.number, row, s.computed, n, slot))
            self.rows[s.id].update(zip(range(s.computed, s.computed + n), rows[row : row + n], strict=True))
            row += n
            last[i] = rows[row - 1]
        self.number += 1
        return np.stack([last[i] for i in range(len(scheduled))])

    def serve(self, requests):
        self.number, ids = 0, []
        for request in requests:
            folder = request["adapter_dir"]
            if folder is not None and folder not in self.folders:
                self.folders[folder] = load_adapter(folder, self.model)
            adapter = None if folder is None else self.folders[folder]
            new = request["max_new_tokens"]
            ids.append(self.add(Request(request["prompt_ids"], adapter, max_new_tokens=new, stop_ids=())))
        produced = defaultdict(list)
        while self.busy:
            for token in self.step():
                produced[token.request_id].append(token.token_id)
        answers = []
        for i, request in zip(ids, requests, strict=True):
            rows, prompt = self.rows.pop(i), len(request["prompt_ids"])
            end = prompt + request["max_new_tokens"] - 1
            first = 0 if all(place in rows for place in range(end)) else prompt - 1
            logits = np.stack([rows[place] for place in range(first, end)])
            answers.append({"logits": logits, "token_ids": produced[i], "steps": self.told.pop(i)})
        return answers


ENGINES: dict[str, Served] = {}


def serve(model_dir, requests):
    if not requests:
        return []
    if model_dir not in ENGINES:
        ENGINES[model_dir] = Served(model_dir)
    return ENGINES[model_dir].serve(requests)


serve.reset = ENGINES.clear
serve.capabilities = {
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "max_rank": MAX_RANK,
}
