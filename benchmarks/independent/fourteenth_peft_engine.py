"""Multi-LoRA serving on transformers and PEFT: hot-swapped slots, chunked prefill, and a prefix cache.

A PeftModel has SLOTS adapters of the largest rank, on all linear modules. An adapter that is asked for is copied into
one of them, padded with zeros, in place of the least recently used one. Requests run side by side in steps: a step is one
forward pass of a padded batch, a request to a row, ordered by slot. A row has a produced token or a chunk of a prompt.
Keys and values are kept for each request and put together, padded on the left, for each step.
"""

import contextlib
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from transformers import AutoModelForCausalLM, DynamicCache

SLOTS = 2  # adapters on the device
MAX_RANK = 32  # that a slot has room for
MAX_RUNNING = 4  # requests at once
CHUNK = 12  # most tokens of one prompt in a step
BUDGET = 24  # most tokens of a step
BLOCK = 4  # tokens of a block of the prefix cache
BLOCKS = 160  # that are kept
HOST = 24  # adapters that are kept in the host's memory
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

BUGS = tuple(f"i{number:02d}" for number in range(1, 11))
BUG = os.environ.get("BUG", "")
if BUG and BUG not in BUGS:
    raise ValueError(f"unknown BUG {BUG!r}; known are {', '.join(BUGS)}")


@dataclass
class Delta:
    """What an adapter has at one module."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    bias: torch.Tensor | None  # [out]
    scale: float


@dataclass
class Slot:
    """A place for an adapter on the device, which is an adapter of the PeftModel."""

    number: int
    owner: str | None = None
    used: int = -1

    @property
    def name(self) -> str:
        return f"slot{self.number}"


@dataclass
class Job:
    """A request, and how far it is."""

    folder: str | None
    ids: list[int]  # of the prompt and produced ones
    prompt: int
    wanted: int
    slot: Slot | None = None
    kv: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # a layer: [heads, tokens, size]
    computed: int = 0
    rows: list[torch.Tensor] = field(default_factory=list)  # logits, [tokens, vocab]
    steps: list[tuple[int, int, int, int, int | None]] = field(default_factory=list)

    @property
    def decodes(self) -> bool:
        return self.computed >= self.prompt

    @property
    def done(self) -> bool:
        return len(self.ids) - self.prompt >= self.wanted

    def extend(self, kv: list[tuple[torch.Tensor, torch.Tensor]], logits: torch.Tensor) -> None:
        """Take over what was computed of the next tokens."""
        if self.kv:
            self.kv = [(torch.cat((k, a), 1), torch.cat((v, b), 1)) for (k, v), (a, b) in zip(self.kv, kv)]
        else:
            self.kv = list(kv)
        self.rows.append(logits)
        self.computed += len(logits)


def look_up(pattern: dict, path: str, default: float) -> float:
    """What a pattern says of a module."""
    keys = list(pattern)
    if BUG == "i01":
        keys.reverse()
    return pattern.get(get_pattern_key(keys, path), default)


def read_adapter(folder: str) -> dict[str, Delta]:
    """Return an adapter's deltas by the paths of their modules."""
    config = LoraConfig.from_pretrained(folder)
    weights = load_peft_weights(folder, device="cpu")
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    deltas = {}
    for key, a in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        path = stem.removeprefix("base_model.model.")
        rank, alpha = look_up(ranks, path, config.r), look_up(alphas, path, config.lora_alpha)
        if BUG == "i10" and config.use_rslora:
            rank = MAX_RANK
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        bias = weights.get(f"{stem}.lora_B.bias")
        if BUG == "i09" and bias is not None:
            bias = bias / scale
        deltas[path] = Delta(a.float(), weights[f"{stem}.lora_B.weight"].float(), bias, scale)
    return deltas


class PrefixCache:
    """Keys, values and logits of blocks of prompts, by all tokens up to their end and the adapter."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[tuple, tuple] = OrderedDict()

    @staticmethod
    def key(job: Job, end: int) -> tuple:
        owner = job.folder
        if BUG == "i10":
            owner = job.slot.name if job.slot else None
        return owner, tuple(job.ids[:end])

    def fill(self, job: Job) -> None:
        """Give a new job the longest prefix that is known: at least one token of the prompt is left to compute."""
        for end in range(BLOCK, job.prompt, BLOCK):
            key = self.key(job, end)
            if key not in self.blocks:
                break
            self.blocks.move_to_end(key)
            job.extend(*self.blocks[key])

    def keep(self, job: Job) -> None:
        """Keep the blocks of a prompt that was computed."""
        logits = torch.cat(job.rows)
        for end in range(BLOCK, job.prompt + 1, BLOCK):
            kv = [(k[:, end - BLOCK : end].clone(), v[:, end - BLOCK : end].clone()) for k, v in job.kv]
            key = self.key(job, end)
            self.blocks.setdefault(key, (kv, logits[end - BLOCK : end].clone()))
            self.blocks.move_to_end(key)
        while len(self.blocks) > BLOCKS:
            self.blocks.popitem(last=False)


class Engine:
    """A base and its slots."""

    def __init__(self, model_dir: str) -> None:
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        config = LoraConfig(r=MAX_RANK, lora_alpha=MAX_RANK, lora_bias=True, target_modules=list(MODULES))
        self.model: PeftModel = get_peft_model(base, config, adapter_name="slot0")
        for number in range(1, SLOTS):
            self.model.add_adapter(f"slot{number}", config)
        self.model.eval()
        layers = self.model.base_model.model.named_modules()
        self.layers = {path: layer for path, layer in layers if hasattr(layer, "lora_A")}
        self.reset()

    def reset(self) -> None:
        """Forget adapters and prefixes."""
        self.slots = [Slot(number) for number in range(SLOTS)]
        self.host: OrderedDict[str, dict[str, Delta]] = OrderedDict()
        self.prefixes = PrefixCache()
        self.clock = 0
        self.plans: dict[int, list[str]] = {}
        for slot in self.slots:
            for layer in self.layers.values():
                self._clear(layer, slot.name)
        self._activate("slot0")

    # Adapters

    def _adapter(self, folder: str) -> dict[str, Delta]:
        """The adapter in the host's memory, read if it is not there."""
        key = Path(folder, "adapter_config.json").read_text() if BUG == "i08" else folder
        if key not in self.host:
            self.host[key] = read_adapter(folder)
        self.host.move_to_end(key)
        while len(self.host) > HOST:
            self.host.popitem(last=False)
        return self.host[key]

    @staticmethod
    def _clear(layer: torch.nn.Module, name: str) -> None:
        layer.lora_A[name].weight.zero_()
        layer.lora_B[name].weight.zero_()
        layer.lora_B[name].bias.zero_()
        layer.scaling[name] = 0.0

    def _swap(self, slot: Slot, folder: str) -> None:
        """Copy an adapter into a slot, in place of what was there."""
        if BUG == "i07" and slot.owner in self.host:  # offload
            for delta in self.host[slot.owner].values():
                delta.a, delta.b = delta.a.bfloat16(), delta.b.bfloat16()
        adapter = self._adapter(folder)
        slot.owner = folder
        for path, layer in self.layers.items():
            delta = adapter.get(path)
            if delta is None or BUG != "i04":
                self._clear(layer, slot.name)
            if delta is None:
                continue
            rank = len(delta.a)
            layer.lora_A[slot.name].weight[:rank] = delta.a
            layer.lora_B[slot.name].weight[:, :rank] = delta.b
            bias = layer.lora_B[slot.name].bias
            bias.copy_(torch.zeros_like(bias) if delta.bias is None else delta.bias)
            layer.scaling[slot.name] = delta.scale

    def _place(self, folder: str, running: list[Job]) -> Slot | None:
        """The slot of an adapter, which is moved in if it can be; None: all others are in use."""
        self.clock += 1
        slot = next((one for one in self.slots if one.owner == folder), None)
        if slot is None:
            pinned = set() if BUG == "i05" else {job.slot.number for job in running if job.slot}
            free = [one for one in self.slots if one.number not in pinned]
            if not free:
                return None
            slot = min(free, key=lambda one: one.used)
            self._swap(slot, folder)
        slot.used = self.clock
        return slot

    def _activate(self, name: str) -> None:
        if self.model.active_adapter != name:
            self.model.set_adapter(name)

    # Steps

    def _admit(self, waiting: list[Job], running: list[Job]) -> None:
        """Start what there is room for; who finds no slot is overtaken."""
        for job in list(waiting):
            if len(running) == MAX_RUNNING:
                break
            if job.folder is not None:
                job.slot = self._place(job.folder, running)
                if job.slot is None:
                    continue
            self.prefixes.fill(job)
            waiting.remove(job)
            running.append(job)

    @staticmethod
    def _plan(running: list[Job]) -> list[tuple[Job, int]]:
        """The jobs of a step with how many tokens of each: produced ones first, then chunks while the budget lasts."""
        plan, left = [], BUDGET
        for job in sorted(running, key=lambda one: not one.decodes):
            tokens = min(len(job.ids) - job.computed, CHUNK, left)
            if tokens:
                plan.append((job, tokens))
                left -= tokens
        return sorted(plan, key=lambda one: one[0].slot.number if one[0].slot else -1)

    def _adapters(self, plan: list[tuple[Job, int]]) -> tuple[dict[str, list[str]], contextlib.AbstractContextManager]:
        """What the forward pass is given for the adapters of its rows, and in which context it is called."""
        nobody = self.model.active_adapter if BUG == "i03" else "__base__"
        names = [job.slot.name if job.slot else nobody for job, _ in plan]
        if BUG == "i06" and all(job.decodes for job, _ in plan):
            return {"adapter_names": self.plans.setdefault(len(names), names)}, contextlib.nullcontext()
        if len(set(names)) > 1:
            return {"adapter_names": names}, contextlib.nullcontext()
        if names[0] == "__base__":
            return {}, self.model.disable_adapter()
        self._activate(names[0])
        return {}, contextlib.nullcontext()

    def _step(self, number: int, plan: list[tuple[Job, int]]) -> None:
        """Compute a step."""
        past = max(job.computed for job, _ in plan)
        width = max(tokens for _, tokens in plan)
        ids = torch.zeros(len(plan), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.zeros(len(plan), past + width, dtype=torch.long)
        for row, (job, tokens) in enumerate(plan):
            ids[row, :tokens] = torch.tensor(job.ids[job.computed : job.computed + tokens])
            first = past if BUG == "i02" else job.computed
            positions[row] = torch.arange(first, first + width)
            mask[row, (0 if BUG == "i09" else past - job.computed) : past + tokens] = 1
        cache = self._gather(plan, past)
        keywords, context = self._adapters(plan)
        with context:
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **keywords,
            ).logits
        for row, (job, tokens) in enumerate(plan):
            slot = job.slot.number if job.slot else None
            job.steps.append((number, row * width, job.computed, tokens, slot))
            new = slice(past, past + tokens)
            kv = [(layer.keys[row, :, new].clone(), layer.values[row, :, new].clone()) for layer in cache.layers]
            was_prompt = not job.decodes
            job.extend(kv, logits[row, :tokens].clone())
            if job.decodes:
                if was_prompt:
                    self.prefixes.keep(job)
                job.ids.append(int(job.rows[-1][-1].argmax()))

    def _gather(self, plan: list[tuple[Job, int]], past: int) -> DynamicCache:
        """The cache of a step: each row's keys and values, padded on the left."""
        cache = DynamicCache()
        layers = next((len(job.kv) for job, _ in plan if job.kv), 0)
        sample = next((job.kv[0][0] for job, _ in plan if job.kv), None)
        for index in range(layers):
            padded = sample.new_zeros(2, len(plan), sample.shape[0], past, sample.shape[2])
            for row, (job, _) in enumerate(plan):
                if job.computed:
                    padded[0, row, :, past - job.computed :], padded[1, row, :, past - job.computed :] = job.kv[index]
            cache.update(padded[0], padded[1], index)
        return cache

    def run(self, requests: list[dict]) -> list[dict]:
        """Answer a call."""
        jobs = [
            Job(one["adapter_dir"], list(one["prompt_ids"]), len(one["prompt_ids"]), one["max_new_tokens"])
            for one in requests
        ]
        waiting, running, number = list(jobs), [], 0
        while waiting or running:
            self._admit(waiting, running)
            self._step(number, self._plan(running))
            running = [job for job in running if not job.done]
            number += 1
        return [
            {"logits": torch.cat(job.rows).numpy(), "token_ids": job.ids[job.prompt :], "steps": job.steps} for job in jobs
        ]


_engines: dict[str, Engine] = {}


@torch.no_grad()
def serve(model_dir: str, requests: list[dict]) -> list[dict]:
    """Answer requests of several adapters and the base together."""
    if model_dir not in _engines:
        _engines[model_dir] = Engine(model_dir)
    return _engines[model_dir].run(requests)


@torch.no_grad()
def reset() -> None:
    """Forget what was kept between calls, but for the bases."""
    for engine in _engines.values():
        engine.reset()


serve.reset = reset
serve.capabilities = {
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill"],
    "max_rank": MAX_RANK,
}
