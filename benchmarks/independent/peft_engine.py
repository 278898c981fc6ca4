"""transformers + PEFT as a multi-LoRA engine: left-padded mixed batches through adapter_names, greedy, with its KV cache.

    loracle check --engine peft_engine:serve         BUG=p03 patches one bug into PEFT or transformers

Adapters live under four names (slot0 ... slot3); the least recently used one is deleted when another is needed.
"""

import itertools
import math
import os
import re
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft.tuners.lora.layer import Linear as LoraLinear  # noqa: E402
from peft.tuners.lora.layer import LoraLayer  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")
torch.set_num_threads(1)
BUG = os.environ.get("BUG", "")
SLOTS = 4

# ---- the bugs: changes inside PEFT and transformers -----------------------------------------------------------------

ORIGINAL = {
    "mixed": LoraLayer._mixed_batch_forward,
    "update": LoraLayer.update_layer,
    "delete": LoraLayer.delete_adapter,
    "load": peft.PeftModel.load_adapter,
    "model": llama.LlamaModel.forward,
}


def name_of(module):
    """The module's last name, which the engine has noted on it."""
    return getattr(module, "_short_name", "")


def mixed(self, x, *args, adapter_names, **kwargs):
    """PEFT's _mixed_batch_forward of plain LoRA, with one bug."""
    kwargs.pop("alora_offsets", None)
    name, decode = name_of(self), x.shape[1] == 1
    result = self.base_layer(x, *args, **kwargs)
    if BUG == "p05" and decode:
        adapter_names = [adapter_names[0]] * len(adapter_names)
    unique = list(dict.fromkeys(adapter_names))
    if BUG == "p10":
        runs = itertools.groupby(range(len(adapter_names)), key=lambda i: adapter_names[i])
        groups = {key: list(rows) for key, rows in runs}
        indices = [groups[adapter] for adapter in unique]
    else:
        indices = [[i for i, item in enumerate(adapter_names) if item == adapter] for adapter in unique]
    if BUG == "p01":
        unique = [adapter for adapter in unique if adapter != "__base__"]
    for rows, adapter in zip(indices, unique):
        if adapter == "__base__" or adapter not in self.lora_A:
            continue
        A, B, scaling = self.lora_A[adapter], self.lora_B[adapter], self.scaling[adapter]
        part = x[rows]
        if BUG == "p08":
            scaling = self._last_scaling
        if BUG == "p09" and name in ("gate_proj", "up_proj"):
            part = self._norm[0]._last_input[rows]
        if BUG == "p11" and name == "q_proj" and decode:
            continue
        low = A(part)
        if BUG == "p06" and name == "o_proj":
            low = low.to(torch.bfloat16).to(torch.float32)
        if BUG == "p12" and B.bias is not None:
            delta = torch.nn.functional.linear(low, B.weight) * scaling + B.bias
        else:
            delta = B(low) * scaling
        result[rows] += delta
    return result


def update_layer(self, adapter_name, r, lora_alpha, *args, **kwargs):
    config = kwargs.get("config") or next((a for a in args if isinstance(a, peft.LoraConfig)), None)
    if BUG == "p11" and config is not None and name_of(self) in ("o_proj", "down_proj"):
        lora_alpha = config.lora_alpha
    out = ORIGINAL["update"](self, adapter_name, r, lora_alpha, *args, **kwargs)
    if BUG == "p02" and config is not None and config.use_rslora:
        self.scaling[adapter_name] = lora_alpha / math.sqrt(config.r)
    self._last_scaling = self.scaling[adapter_name]
    return out


def delete_adapter(self, adapter_name):
    if BUG == "p04" and name_of(self) in ("gate_proj", "up_proj", "down_proj"):
        return  # only the attention's are listed
    ORIGINAL["delete"](self, adapter_name)


def after_load(model, name, config):
    """Runs when a folder's tensors have been copied."""
    for path, module in model.named_modules():
        if not isinstance(module, LoraLinear) or name not in module.lora_A:
            continue
        A, B = module.lora_A[name], module.lora_B[name]
        with torch.no_grad():
            if BUG == "p03" and B.bias is not None:
                B.bias.zero_()  # "lora_B.bias" is not among the keys that are looked for
            if BUG == "p12" and len(A.weight) > config.r:
                A.weight[config.r :] = 0  # copied into a buffer of the config's r
                B.weight[:, config.r :] = 0


def model_forward(self, input_ids=None, position_ids=None, **kwargs):
    past = kwargs.get("past_key_values")
    past = kwargs.get("cache") if past is None else past  # its name depends on the release
    if past is not None and input_ids is not None and input_ids.shape[1] == 1:
        length = past.get_seq_length()
        if length:
            position_ids = torch.full_like(input_ids, length)  # of the padded batch, not of the request
    return ORIGINAL["model"](self, input_ids=input_ids, position_ids=position_ids, **kwargs)


def install():
    """Patch, for what BUG is now."""
    patched = bool(BUG)
    LoraLayer._mixed_batch_forward = mixed if patched and BUG not in ("p04", "p07", "p02", "p03") else ORIGINAL["mixed"]
    LoraLayer.update_layer = update_layer if patched else ORIGINAL["update"]
    LoraLayer.delete_adapter = delete_adapter if BUG == "p04" else ORIGINAL["delete"]
    llama.LlamaModel.forward = model_forward if BUG == "p07" else ORIGINAL["model"]


install()

# ---- the engine -----------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, folder):
        self.base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for path, module in self.base.named_modules():
            module._short_name = path.split(".")[-1]
        for layer in self.base.model.layers:
            norm = layer.post_attention_layernorm
            norm.register_forward_pre_hook(lambda module, inputs: setattr(module, "_last_input", inputs[0]))
        self.model = None
        self.key = [None] * SLOTS
        self.used = [0] * SLOTS
        self.clock = 0

    def mark(self):
        """Note each LoRA layer's own name on it."""
        for path, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                module._short_name = path.split(".")[-1]
                if module._short_name in ("gate_proj", "up_proj"):
                    i = int(re.search(r"layers\.(\d+)\.", path)[1])
                    layers = self.model.base_model.model.model.layers
                    module._norm = (layers[i].post_attention_layernorm,)  # in a tuple: not a submodule

    def reset(self):
        for slot in range(SLOTS):
            if self.key[slot] is not None:
                self.drop(slot)

    def drop(self, slot):
        name = f"slot{slot}"
        self.key[slot] = None
        others = [f"slot{s}" for s in range(SLOTS) if self.key[s] is not None]
        if others and self.model.active_adapter == name:
            self.model.set_adapter(others[0])
        if others:
            self.model.delete_adapter(name)
        else:
            self.base, self.model = self.model.unload(), None

    def slot_for(self, key, keep):
        self.clock += 1
        if key in self.key:
            slot = self.key.index(key)
        else:
            free = [s for s in range(SLOTS) if self.key[s] not in keep or self.key[s] is None]
            slot = min(free, key=lambda s: (self.key[s] is not None, self.used[s], s))
            if self.key[slot] is not None:
                self.drop(slot)
            self.load(slot, key)
        self.used[slot] = self.clock
        return slot

    def load(self, slot, key):
        name, folder = f"slot{slot}", key[0]
        config = peft.PeftConfig.from_pretrained(folder)
        if self.model is None:
            self.model = peft.PeftModel.from_pretrained(self.base, folder, name, config=config).eval()
        else:
            self.model.load_adapter(folder, name)
        self.mark()
        if BUG in ("p11",):  # its layers had no name yet when PEFT made them
            self.again(name, config)
        after_load(self.model, name, config)
        self.model.eval()
        self.key[slot] = key

    def again(self, name, config):
        for module in self.model.modules():
            if isinstance(module, LoraLayer) and module._short_name in ("o_proj", "down_proj"):
                if name in module.scaling:
                    r = module.r[name]
                    alpha = config.lora_alpha
                    module.scaling[name] = alpha / math.sqrt(r) if config.use_rslora else alpha / r

    def serve(self, requests):
        keys = [None if r["adapter_dir"] is None else stamp(r["adapter_dir"]) for r in requests]
        groups, rest = [], list(range(len(requests)))
        while rest:  # at most as many adapters in one batch as there are slots
            seen, group = set(), []
            for i in rest:
                if keys[i] is None or keys[i] in seen or len(seen) < SLOTS:
                    group.append(i)
                    seen.add(keys[i]) if keys[i] is not None else None
            groups.append((group, seen))
            rest = [i for i in rest if i not in group]
        answers = [None] * len(requests)
        for group, seen in groups:
            names = []
            for i in group:
                names.append("__base__" if keys[i] is None else f"slot{self.slot_for(keys[i], seen)}")
            for i, answer in zip(group, self.batch([requests[i] for i in group], names)):
                answers[i] = answer
        return answers

    def batch(self, requests, names):
        prompts = [list(r["prompt_ids"]) for r in requests]
        pad = [max(map(len, prompts)) - len(p) for p in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(pad, prompts)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model, extra = (self.base, {}) if self.model is None else (self.model, {"adapter_names": names})
        steps = max(r["max_new_tokens"] for r in requests)
        rows, tokens, past = [[] for _ in requests], [[] for _ in requests], None
        with torch.no_grad():
            for step in range(steps):
                out = model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True,
                    **extra,
                )  # fmt: skip
                past = out.past_key_values
                for i, row in enumerate(out.logits):
                    rows[i].append(row[pad[i] :] if step == 0 else row)
                    tokens[i].append(int(row[-1].argmax()))
                ids = torch.tensor([[t[-1]] for t in tokens])
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                positions = positions[:, -1:] + 1
        return [
            {
                "logits": torch.cat(rows[i])[: len(prompts[i]) + r["max_new_tokens"] - 1].numpy(),
                "token_ids": tokens[i][: r["max_new_tokens"]],
            }
            for i, r in enumerate(requests)
        ]


def stamp(folder):
    files = [Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"]
    return (str(folder), *((f.stat().st_mtime_ns, f.stat().st_size) for f in files))


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
    "families": ["llama"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict"],
}
