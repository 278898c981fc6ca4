"""Multi-LoRA serving inside transformers and PEFT: left-padded sub-batches, three adapter slots, greedy.

Requests are taken in order, in sub-batches of at most ROWS requests of at most SLOTS different adapters. A sub-batch
is one padded prefill and then decode steps, from which requests leave when they are done. BUG names what is wrong."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

BUG = os.environ.get("BUG", "")
if BUG not in ("", *(f"c{i:02d}" for i in range(1, 11))):
    raise ValueError(f"no bug {BUG!r}")

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QKV, MLP = MODULES[:3], MODULES[4:]
SLOTS, ROWS = 3, 4
BASE = "__base__"


class Context:
    """What the LoRA layers look at in the forward pass that runs now."""

    names, prefill, pads = None, True, ()
    residual = {}


CTX = Context()


def lora_forward(self, x, *args, **kwargs):
    """The base layer, and what the adapter of each row of the padded batch adds."""
    y = self.base_layer(x)
    if CTX.names is None:
        return y
    layer, module = self.where
    names = list(CTX.names)
    if BUG == "c07" and CTX.prefill:
        some = next((name for name in names if name != BASE), BASE)
        names = [some if name == BASE else name for name in names]
    for name in sorted(set(names)):
        if name == BASE or name not in self.lora_A:
            continue
        rows = [i for i, other in enumerate(names) if other == name]
        part = x[rows]
        A, B = self.lora_A[name], self.lora_B[name]
        if BUG == "c08" and module in ("gate_proj", "up_proj"):
            part = CTX.residual[layer][rows]
        if BUG == "c06" and module == "up_proj":
            gate = self.mates["gate_proj"].lora_A
            if name in gate and gate[name].weight.shape == A.weight.shape:
                A = gate[name]
        low = A(part)
        delta = F.linear(low, B.weight) if BUG == "c02" and module in QKV else B(low)
        delta = delta * self.scaling[name]
        if BUG == "c10":
            if module in ("q_proj", "k_proj"):
                heads = delta.unflatten(-1, (-1, 2, self.head_dim // 2))
                delta = heads.transpose(-1, -2).flatten(-3)
            if CTX.prefill:
                for i, row in enumerate(rows):
                    if CTX.pads[row]:
                        delta[i, CTX.pads[row]] = 0
        y[rows] = y[rows] + delta
    return y


LoraLinear.forward = lora_forward


class Server:
    """One base with its slots."""

    def __init__(self, folder):
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.config = base.config
        self.peft = get_peft_model(base, LoraConfig(r=1, target_modules=MODULES), adapter_name="null").eval()
        self.model = self.peft.base_model.model
        head_dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        for i, block in enumerate(self.model.model.layers):
            mates = {m: getattr(block.self_attn if m in MODULES[:4] else block.mlp, m) for m in MODULES}
            for module, layer in mates.items():
                layer.where, layer.head_dim = (i, module), head_dim
                object.__setattr__(layer, "mates", mates)
            if BUG == "c08":
                block.post_attention_layernorm.register_forward_pre_hook(self._keep(i))
        self.reset()

    @staticmethod
    def _keep(i):
        def hook(module, args):
            CTX.residual[i] = args[0]

        return hook

    @property
    def layers(self):
        return [layer for layer in self.model.modules() if isinstance(layer, LoraLinear)]

    def reset(self):
        for name in [name for name in self.peft.peft_config if name != "null"]:
            self.peft.delete_adapter(name)
        self.slot_of, self.captured = {}, {}  # folder -> slot, least recently used first

    def slot(self, folder, needed):
        """The slot of this adapter, loaded if need be in place of the least recently used that is not needed now."""
        name = self.slot_of.pop(folder, None)
        if name is None:
            free = [f"slot{i}" for i in range(SLOTS) if f"slot{i}" not in self.slot_of.values()]
            if free:
                name = free[0]
            else:
                name = self.slot_of.pop(next(other for other in self.slot_of if other not in needed))
            self.load(folder, name)
        self.slot_of[folder] = name
        return name

    def load(self, folder, name):
        old = {}
        if name in self.peft.peft_config:
            if BUG == "c05":
                old = {n: (n.lora_A[name], n.lora_B[name], n.scaling[name]) for n in self.layers if name in n.lora_A}
            self.peft.delete_adapter(name)
        self.peft.load_adapter(folder, adapter_name=name)
        config = self.peft.peft_config[name]
        for layer, (A, B, scaling) in old.items():
            if name not in layer.lora_A:
                layer.lora_A[name], layer.lora_B[name], layer.scaling[name] = A, B, scaling
        for layer in self.layers:
            if name not in layer.lora_A or layer in old and layer.lora_A[name] is old[layer][0]:
                continue
            alpha = layer.lora_alpha[name]
            if BUG == "c01":
                layer.scaling[name] = alpha / (config.r**0.5 if config.use_rslora else config.r)
            if BUG == "c07" and layer.where[1] in MLP:
                layer.scaling[name] = alpha / layer.lora_A[name].weight.shape[0]
        self.peft.eval()

    @torch.no_grad()
    def run(self, requests):
        folders = [request["adapter_dir"] for request in requests]
        names = [BASE if folder is None else self.slot(folder, set(folders)) for folder in folders]
        texts = [list(request["prompt_ids"]) for request in requests]
        longest = max(map(len, texts))
        pads = [longest - len(text) for text in texts]
        ids = torch.tensor([[0] * pad + text for pad, text in zip(pads, texts)])
        mask = torch.tensor([[0] * pad + [1] * len(text) for pad, text in zip(pads, texts)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.config)
        CTX.names, CTX.prefill, CTX.pads = names, True, pads
        logits = self.forward(ids, mask, positions, cache)
        rows = [[*logits[i, pad:]] for i, pad in enumerate(pads)]
        produced = [[int(row[-1].argmax())] for row in rows]
        alive = list(range(len(requests)))
        while True:
            keep = [i for i, r in enumerate(alive) if len(produced[r]) < requests[r]["max_new_tokens"]]
            if not keep:
                break
            if len(keep) < len(alive):
                cache.batch_select_indices(torch.tensor(keep))
                mask = mask[keep]
                alive = [alive[i] for i in keep]
            mask = torch.cat([mask, torch.ones(len(alive), 1, dtype=mask.dtype)], 1)
            ids = torch.tensor([[produced[r][-1]] for r in alive])
            positions = mask.sum(1, keepdim=True) - 1
            if BUG == "c03":
                positions = torch.full_like(positions, mask.shape[1] - 1)
            now = [names[r] for r in alive]
            if BUG == "c04":
                now = names[: len(alive)]
            if BUG == "c09":
                now = self.captured.setdefault(len(alive), now)
            CTX.names, CTX.prefill, CTX.pads = now, False, [pads[r] for r in alive]
            logits = self.forward(ids, mask, positions, cache)
            for i, r in enumerate(alive):
                rows[r].append(logits[i, -1])
                produced[r].append(int(logits[i, -1].argmax()))
        CTX.names, CTX.residual = None, {}
        return [
            {"logits": torch.stack(own).float().numpy(), "token_ids": ids} for own, ids in zip(rows, produced)
        ]

    def forward(self, ids, mask, positions, cache):
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits


def sub_batches(requests):
    """The requests in order, as many at once as there are rows and slots for."""
    batch, adapters = [], set()
    for request in requests:
        more = adapters | ({request["adapter_dir"]} - {None})
        if batch and (len(batch) == ROWS or len(more) > SLOTS):
            yield batch
            batch, more = [], {request["adapter_dir"]} - {None}
        batch, adapters = [*batch, request], more
    if batch:
        yield batch


SERVERS = {}


def serve(model_dir, requests):
    if model_dir not in SERVERS:
        SERVERS.clear()
        SERVERS[model_dir] = Server(model_dir)
    answers = []
    for batch in sub_batches(requests):
        answers += SERVERS[model_dir].run(batch)
    return answers


def _reset():
    for server in SERVERS.values():
        server.reset()


serve.capabilities = {
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict"],
    "dtypes": ["float32"],
}
serve.reset = _reset
