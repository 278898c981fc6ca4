"""A small multi-LoRA server on transformers and PEFT (float32, CPU): left-padded micro-batches for prefill in chunks, one
joint batch for decode, adapter_names for mixed batches, set_adapter or disable_adapter where a batch is of one kind,
keys and values of finished prompts kept for the next one. BUG=wNN in the environment switches on a mistake.
"""

import os
import re
from collections import OrderedDict

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

torch.set_num_threads(1)
torch.set_grad_enabled(False)

CHUNK = 8  # columns of one prefill step
PREFILL = 3  # requests of one prefill batch
DECODE = 6  # requests of one decode batch
ADAPTERS = 4  # adapters that PEFT holds at once
KEPT = 24  # finished prompts whose keys and values are kept
SHORTEST = 4  # tokens of a prefix that is worth it

BUG = os.environ.get("BUG", "")
BUGS = dict(
    w01={"names_not_sorted"},
    w02={"later_chunks_unnamed"},
    w03={"decode_position_is_column"},
    w04={"hot_swap_scaling"},
    w05={"lora_bias_dropped", "decode_base_head"},
    w06={"unmerge_leaves_v", "scale_of_active"},
    w07={"rank_pattern_scale", "base_prefix_for_all"},
    w08={"decode_mask_ones", "first_row_only"},
    w09={"names_used_up"},
    w10={"prefix_one_too_long", "alpha_pattern_ignored"},
    w11={"bf16_adapters"},
    w12={"saved_head_of_active", "stays_disabled"},
)
if BUG and BUG not in BUGS:
    raise SystemExit(f"no BUG {BUG!r}")
FLAGS = BUGS.get(BUG, set())


def on(flag):
    return flag in FLAGS


def merging():
    return on("unmerge_leaves_v") or bool(os.environ.get("MERGE"))


def mixed_forward(self, x, *args, adapter_names, **kwargs):
    """In place of PEFT's own loop over unique adapters: rows of one adapter are one product."""
    kwargs.pop("alora_offsets", None)
    result = self.base_layer(x, *args, **kwargs)
    groups = OrderedDict()
    for i, name in enumerate(adapter_names):
        groups.setdefault(name, []).append(i)
    for name, index in groups.items():
        if name == "__base__" or name not in self.lora_A:
            continue
        if on("first_row_only"):
            index = [adapter_names.index(name)]
        A, B = self.lora_A[name], self.lora_B[name]
        low = A(x[index])
        delta = low @ B.weight.T
        if B.bias is not None and not on("lora_bias_dropped"):
            delta = delta + B.bias
        scaling = self.scaling[name]
        if on("scale_of_active"):
            scaling = self.scaling.get(self.active_adapters[0], scaling)
        result[index] += (delta * scaling).to(result.dtype)
    return result


LoraLinear._mixed_batch_forward = mixed_forward
passed_on = ModulesToSaveWrapper.forward


def saved_forward(self, x, *args, adapter_names=None, **kwargs):
    """A module that some adapters bring along whole. PEFT's own looks at the active adapter first, and knows no
    adapter of the batch that has none."""
    if adapter_names is None or on("saved_head_of_active"):
        return passed_on(self, x, *args, **kwargs)
    outs = []
    for i, name in enumerate(adapter_names):
        module = self.modules_to_save[name] if name in self.modules_to_save else self.original_module
        outs.append(module(x[i : i + 1], *args, **kwargs))
    return torch.cat(outs)


ModulesToSaveWrapper.forward = saved_forward


def stamp(folder):
    parts = []
    for n in sorted(os.listdir(folder)):
        s = os.stat(os.path.join(folder, n))
        parts.append((n, s.st_size, s.st_mtime_ns, s.st_ino))
    return (str(folder), tuple(parts))


class Job:
    def __init__(self, request):
        self.tokens = [int(t) for t in request["prompt_ids"]]
        self.prompt, self.new = len(self.tokens), max(int(request["max_new_tokens"]), 1)
        self.folder = request["adapter_dir"]
        self.key = None if self.folder is None else stamp(self.folder)
        self.name, self.rows, self.out, self.kv = "__base__", [], [], None

    def take(self, row):
        token = int(row.argmax())
        self.out.append(token)
        self.tokens.append(token)


class Server:
    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        self.model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.peft = None
        self.names = OrderedDict()  # key -> name, least recently used first
        self.count, self.kept = 0, OrderedDict()
        self.disabled = False

    # ------------------------------------------------------------ adapters

    def ensure(self, key, folder, busy):
        """Load the adapter; another one is deleted where there are too many."""
        if key in self.names:
            self.names.move_to_end(key)
            return self.names[key]
        old = {}
        while len(self.names) >= ADAPTERS:
            victim = next(k for k in self.names if k not in busy)
            gone = self.names.pop(victim)
            old = {n: m.scaling[gone] for n, m in self.lora_modules() if gone in m.scaling}
            self.doomed = gone
            if len(self.names):
                self.remove(gone)
        name = f"a{self.count}"
        self.count += 1
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
        else:
            self.peft.load_adapter(folder, name)
            self.peft.eval()
        self.names[key] = name
        self.settle(name, old)
        return name

    def remove(self, name):
        if name in self.peft.active_adapters:
            self.peft.set_adapter(next(iter(self.names.values())))
        self.peft.delete_adapter(name)

    def lora_modules(self):
        if self.peft is None:
            return []
        return [(n, m) for n, m in self.peft.named_modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")]

    def settle(self, name, old):
        """Set what the server keeps of its own about a new adapter: the scale, and the type of its tensors."""
        config = self.peft.peft_config[name]
        for n, m in self.lora_modules():
            if name not in m.scaling:
                continue
            r = m.r[name]
            if on("rank_pattern_scale") or on("alpha_pattern_ignored"):
                alpha = config.lora_alpha if on("alpha_pattern_ignored") else m.lora_alpha[name]
                rank = config.r if on("rank_pattern_scale") else r
                m.scaling[name] = alpha / (rank**0.5 if config.use_rslora else rank)
            if on("hot_swap_scaling") and n in old:
                m.scaling[name] = old[n]
            if on("bf16_adapters"):
                for table in (m.lora_A, m.lora_B):
                    if name in table:
                        w = table[name].weight
                        w.data = w.data.to(torch.bfloat16).to(torch.float32)

    # ------------------------------------------------------------ one forward pass

    def call(self, names, **kwargs):
        """The logits, [batch, columns, vocab]; names: an adapter's for each row, or None where they are not passed."""
        if self.peft is None:
            return self.model(**kwargs).logits
        kinds = set(names or [])
        if names is None:
            return self.peft(**kwargs).logits
        if kinds == {"__base__"}:
            if on("stays_disabled"):
                self.peft.base_model.disable_adapter_layers()
                self.disabled = True
                return self.peft(**kwargs).logits
            with self.peft.disable_adapter():
                return self.peft(**kwargs).logits
        if len(kinds) == 1:
            (name,) = kinds
            self.activate(name)
            if merging() and self.can_merge(name):
                return self.merged(name, kwargs)
            return self.peft(**kwargs).logits
        return self.peft(adapter_names=names, **kwargs).logits

    def activate(self, name):
        self.peft.set_adapter(name)
        if self.disabled:
            self.peft.base_model.enable_adapter_layers()
            self.disabled = False

    def can_merge(self, name):
        config = self.peft.peft_config[name]
        return not (config.lora_bias or config.modules_to_save)

    def merged(self, name, kwargs):
        saved = {n: m.get_base_layer().weight.data.clone() for n, m in self.lora_modules()}
        left = getattr(self, "left", {})
        self.peft.merge_adapter([name])
        try:
            return self.peft(**kwargs).logits
        finally:
            self.peft.unmerge_adapter()
            for n, m in self.lora_modules():
                weight = m.get_base_layer().weight
                if on("unmerge_leaves_v") and n.endswith("v_proj"):
                    clean = left.setdefault(n, saved[n])  # what it was before the first merge
                    delta = m.get_delta_weight(name) if name in m.lora_A else 0
                    weight.data = clean + delta
                else:
                    weight.data = saved[n]
            self.left = left

    # ------------------------------------------------------------ prefixes

    def find(self, job):
        """The longest kept prefix of the job's prompt: how many tokens, keys and values, and their logits."""
        best, found = 0, None
        for (key, tokens), item in self.kept.items():
            if key != job.key and not (on("base_prefix_for_all") and key is None):
                continue
            n = 0
            while n < min(len(tokens), job.prompt - 1) and tokens[n] == job.tokens[n]:
                n += 1
            if on("prefix_one_too_long") and n >= SHORTEST and n < min(len(tokens), job.prompt - 1):
                n += 1
            if n > best:
                best, found = n, item
        if best < SHORTEST:
            return 0, None
        kv, rows = found
        job.rows = list(rows[:best])
        return best, [(k[:, :best], v[:, :best]) for k, v in kv]

    def keep(self, job):
        key = (job.key, tuple(job.tokens[: job.prompt]))
        self.kept[key] = ([(k[:, : job.prompt], v[:, : job.prompt]) for k, v in job.kv], list(job.rows[: job.prompt]))
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)

    # ------------------------------------------------------------ batches

    def joined(self, kvs):
        """One cache of several requests' keys and values, padded on the left; and its mask."""
        lengths = [0 if kv is None else kv[0][0].shape[1] for kv in kvs]
        width = max(lengths)
        mask = torch.zeros(len(kvs), width, dtype=torch.long)
        for i, n in enumerate(lengths):
            mask[i, width - n :] = 1
        cache = DynamicCache()
        if width:
            like = next(kv for kv in kvs if kv is not None)
            for layer in range(len(like)):
                parts = []
                for which in (0, 1):
                    h, _, d = like[layer][which].shape
                    full = torch.zeros(len(kvs), h, width, d)
                    for i, n in enumerate(lengths):
                        if n:
                            full[i, :, width - n :] = kvs[i][layer][which]
                    parts.append(full)
                cache.update(parts[0], parts[1], layer)
        return cache, mask

    def split(self, cache, mask, jobs):
        """Give each job its keys and values back, without the padding."""
        for i, job in enumerate(jobs):
            seen = mask[i].bool()
            job.kv = [(layer.keys[i][:, seen], layer.values[i][:, seen]) for layer in cache.layers]

    def prefill(self, jobs):
        arrival = [job.name for job in jobs]
        jobs = sorted(jobs, key=lambda job: -job.prompt)  # rows of like lengths lie together
        names = [job.name for job in jobs]
        if on("names_not_sorted"):
            names = arrival
        starts, kvs = zip(*[self.find(job) for job in jobs])
        cache, mask = self.joined(kvs)
        width = max(job.prompt - start for job, start in zip(jobs, starts))
        ids = torch.zeros(len(jobs), width, dtype=torch.long)
        pos = torch.zeros_like(ids)
        new = torch.zeros_like(ids)
        for i, (job, start) in enumerate(zip(jobs, starts)):
            n = job.prompt - start
            ids[i, width - n :] = torch.tensor(job.tokens[start : job.prompt])
            pos[i, width - n :] = torch.arange(start, job.prompt)
            new[i, width - n :] = 1
        for at in range(0, width, CHUNK):
            cut = slice(at, min(at + CHUNK, width))
            mask = torch.cat([mask, new[:, cut]], 1)
            passed = None if on("later_chunks_unnamed") and at else names
            logits = self.call(
                passed,
                input_ids=ids[:, cut],
                attention_mask=mask,
                position_ids=pos[:, cut],
                past_key_values=cache,
                use_cache=True,
            )
            for i, job in enumerate(jobs):
                job.rows.extend(row.numpy().copy() for row in logits[i][new[i, cut].bool()])
        self.split(cache, mask, jobs)
        for job in jobs:
            job.take(job.rows[-1])
            self.keep(job)

    def decode(self, jobs):
        step = 0
        jobs = [job for job in jobs if len(job.out) < job.new]
        if not jobs:
            return
        cache, mask = self.joined([job.kv for job in jobs])
        while jobs:
            names = [job.name for job in jobs]
            if on("names_used_up") and step:
                names = None
            ids = torch.tensor([[job.tokens[-1]] for job in jobs])
            pos = torch.tensor([[len(job.tokens) - 1] for job in jobs])
            mask = torch.cat([mask, torch.ones(len(jobs), 1, dtype=torch.long)], 1)
            if on("decode_position_is_column"):
                pos = torch.full_like(pos, mask.shape[1] - 1)
            seen = torch.ones_like(mask) if on("decode_mask_ones") else mask
            head = on("decode_base_head") and self.peft is not None
            logits = self.call(
                names, input_ids=ids, attention_mask=seen, position_ids=pos, past_key_values=cache, use_cache=True
            ) if not head else self.with_base_head(
                names, input_ids=ids, attention_mask=seen, position_ids=pos, past_key_values=cache, use_cache=True
            )
            for i, job in enumerate(jobs):
                row = logits[i, -1].numpy().copy()
                job.rows.append(row)
                job.take(row)
            going = [i for i, job in enumerate(jobs) if len(job.out) < job.new]
            if len(going) < len(jobs) and going:
                cache.batch_select_indices(torch.tensor(going))
                mask = mask[going]
            jobs = [jobs[i] for i in going]
            step += 1

    def with_base_head(self, names, **kwargs):
        """The hidden states of the last layer, read out by the head that the base was loaded with."""
        kept = []

        def hook(module, args, output):
            kept.append(output)

        handle = self.model.model.norm.register_forward_hook(hook)
        try:
            self.call(names, **kwargs)
        finally:
            handle.remove()
        head = self.model.lm_head
        while not hasattr(head, "weight") or hasattr(head, "base_layer") or hasattr(head, "original_module"):
            head = getattr(head, "base_layer", None) or head.original_module
        return torch.nn.functional.linear(kept[-1], head.weight)

    def run(self, requests):
        jobs = [Job(r) for r in requests]
        waiting = list(jobs)
        while waiting:
            batch, keys = [], []
            for job in list(waiting):
                if len(batch) == DECODE:
                    break
                if job.key is not None and job.key not in keys:
                    if len(keys) == ADAPTERS:
                        continue
                    keys.append(job.key)
                batch.append(job)
                waiting.remove(job)
            for job in batch:
                if job.key in self.names:
                    self.names.move_to_end(job.key)
            for job in batch:
                if job.key is not None:
                    job.name = self.ensure(job.key, job.folder, keys)
            for at in range(0, len(batch), PREFILL):
                self.prefill(batch[at : at + PREFILL])
            self.decode(batch)
        return [{"logits": job.rows, "token_ids": job.out} for job in jobs]


SERVERS = {}


def server(folder):
    key = stamp(folder)
    if key not in SERVERS:
        SERVERS.clear()
        SERVERS[key] = Server(folder)
    return SERVERS[key]


def serve(model_dir, requests):
    return server(model_dir).run(requests)


def reset():
    for s in SERVERS.values():
        s.start()


serve.capabilities = {
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "modules_to_save"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "dtypes": ["float32"],
    "max_rank": 64,
}
serve.reset = reset
