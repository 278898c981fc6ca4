"""transformers + PEFT as an engine of a function: mixed batches by adapter_names, left-padded, decoded with the cache.

A batch of one adapter is served with set_adapter. BUG=y01 ... patches a bug in. MERGED: one request of an adapter
without bias is served merged (the base's weights are kept and put back): only where the bug is about that.
"""
import json
import os
import warnings
from pathlib import Path

import numpy as np

BUG = os.environ.get("BUG", "")
PARTS = {
    "y01": ["active_scaling"], "y02": ["names_unsorted"], "y03": ["decode_no_names"], "y04": ["decode_mask"],
    "y05": ["first_rslora"], "y06": ["stays_merged"], "y07": ["before_norm"], "y08": ["permuted_b"],
    "y09": ["bias_twice"], "y10": ["down_input"],
    "y11": ["attention_alpha", "decode_last_layer"], "y12": ["last_row_q", "v_scale_of_k"],
}  # fmt: skip
if BUG and BUG not in PARTS:
    raise SystemExit(f"unknown BUG {BUG}")
ON = frozenset(PARTS.get(BUG, ()))
MERGED = frozenset(["stays_merged"])
BASE = "__base__"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")


def signature(folder, pattern):
    files = sorted(Path(folder).glob(pattern))
    return (str(folder), *((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files))


class Engine:
    def __init__(self, folder):
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.decoding, self.seen = torch, False, {}
        self.base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.heads = {"q_proj": self.base.config.num_attention_heads, "k_proj": self.base.config.num_key_value_heads}
        self.layers = self.base.config.num_hidden_layers
        self.model, self.names, self.configs, self.backup, self.count = None, {}, {}, [], 0
        self.listen()

    def listen(self):
        """What other modules see of a layer: its residual before the norm, and the activated gate."""
        for i, layer in enumerate(self.base.model.layers):
            def norm(module, inputs, i=i):
                self.seen["norm", i] = inputs[0].detach()

            def act(module, inputs, output, i=i):
                self.seen["act", i] = output.detach()

            layer.post_attention_layernorm.register_forward_pre_hook(norm)
            if hasattr(layer.mlp.act_fn, "register_forward_hook"):
                layer.mlp.act_fn.register_forward_hook(act)

    def reset(self):
        self.restore()
        if self.model is not None:
            self.base, self.model = self.model.unload(), None
        self.names, self.configs, self.count = {}, {}, 0

    # ---- adapters ----
    def load(self, folder):
        import peft

        key = signature(folder, "adapter_*")
        if key in self.names:
            return self.names[key]
        name = f"a{self.count}"
        self.count += 1
        if self.model is None:
            self.model = peft.PeftModel.from_pretrained(self.base, folder, name).eval()
        else:
            self.model.load_adapter(folder, name)
            self.model.eval()
        self.names[key] = name
        self.configs[name] = json.loads((Path(folder) / "adapter_config.json").read_text())
        scales = {}
        for path, module in self.lora_layers():
            parts = path.split(".")
            module.its = (int(parts[parts.index("layers") + 1]), parts[-1])
            module.engine = [self]
            if name in module.scaling and name in module.lora_A:
                self.alter(name, module)
                scales[module.its] = module.scaling[name]
        if "v_scale_of_k" in ON:
            for _, module in self.lora_layers():
                layer, kind = module.its
                if kind == "v_proj" and name in module.lora_A and (layer, "k_proj") in scales:
                    module.scaling[name] = scales[layer, "k_proj"]
        return name

    def alter(self, name, module):
        """Bugs of loading."""
        layer, kind = module.its
        if "first_rslora" in ON:
            first = self.configs["a0"].get("use_rslora", False)
            alpha, r = module.lora_alpha[name], module.r[name]
            module.scaling[name] = alpha / (r**0.5 if first else r)
        if "attention_alpha" in ON and kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
            config = self.configs[name]
            r = module.r[name]
            module.scaling[name] = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
        if "permuted_b" in ON and kind in self.heads:
            heads = self.heads[kind]
            b = module.lora_B[name].weight.data
            out, r = b.shape
            b.copy_(b.reshape(heads, 2, out // heads // 2, r).transpose(1, 2).reshape(out, r).clone())

    def lora_layers(self):
        from peft.tuners.lora.layer import Linear

        return [(path, m) for path, m in self.model.named_modules() if isinstance(m, Linear)]

    # ---- merging ----
    def merge(self, name):
        self.restore()
        self.backup = [(m, m.base_layer.weight.data.clone()) for _, m in self.lora_layers() if name in m.lora_A]
        for module, _ in self.backup:
            module.base_layer.weight.data += module.get_delta_weight(name)

    def restore(self):
        for module, weight in self.backup:
            module.base_layer.weight.data.copy_(weight)
        self.backup = []

    # ---- serving ----
    def serve(self, requests):
        order = list(range(len(requests)))
        folders = [r["adapter_dir"] for r in requests]
        names = [BASE if f is None else self.load(f) for f in folders]
        order.sort(key=lambda i: -len(requests[i]["prompt_ids"]))  # the longest first
        if "names_unsorted" not in ON:
            names = [names[i] for i in order]
        merged = False
        if self.model is None:
            model, mixed = self.base, {}
        elif len(set(names)) == 1 and names[0] != BASE:
            model, mixed = self.model, {}
            config = self.configs[names[0]]
            if len(requests) == 1 and not config.get("lora_bias") and MERGED & ON:
                self.merge(names[0])
                merged, mixed = True, {"adapter_names": [BASE]}
            else:
                self.restore()
                self.model.set_adapter(names[0])
        else:
            model, mixed = self.model, {"adapter_names": names}
            if "stays_merged" not in ON:
                self.restore()
        try:
            answers = self.generate(model, mixed, [requests[i] for i in order])
        finally:
            if merged and "stays_merged" not in ON:
                self.restore()
        results = [None] * len(requests)
        for i, answer in zip(order, answers):
            results[i] = answer
        return results

    def generate(self, model, mixed, requests):
        torch = self.torch
        prompts = [list(r["prompt_ids"]) for r in requests]
        pad = [max(map(len, prompts)) - len(p) for p in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(pad, prompts)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        steps = max(r["max_new_tokens"] for r in requests)
        past, rows, tokens = None, [[] for _ in prompts], [[] for _ in prompts]
        with torch.no_grad():
            for step in range(steps):
                self.decoding = step > 0
                if step > 0 and "decode_no_names" in ON:
                    mixed = {}
                out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past,
                            use_cache=True, **mixed)  # fmt: skip
                past, logits = out.past_key_values, out.logits.detach().numpy()
                for i, row in enumerate(logits):
                    rows[i].append(row[pad[i] :].copy() if step == 0 else row.copy())
                    tokens[i].append(int(row[-1].argmax()))
                ids = torch.tensor([[t[-1]] for t in tokens])
                if "decode_mask" in ON:
                    mask = torch.ones_like(mask)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                positions = positions[:, -1:] + 1
        self.decoding = False
        return [
            {
                "logits": np.concatenate(rows[i])[: len(prompts[i]) + r["max_new_tokens"] - 1],
                "token_ids": tokens[i][: r["max_new_tokens"]],
            }
            for i, r in enumerate(requests)
        ]


def patched_forward(self, x, *args, **kwargs):
    """PEFT's Linear.forward with the bugs of computing: a delta for each row with its adapter's name."""
    names = kwargs.pop("adapter_names", None)
    for key in ("alora_offsets",):
        kwargs.pop(key, None)
    result = self.base_layer(x, *args, **kwargs)
    if self.merged and names is None:
        return result
    active = self.active_adapters[0] if self.active_adapters else BASE
    mixed = names is not None
    names = names or [active] * len(x)
    (engine,), (layer, kind) = self.engine, self.its
    if "decode_last_layer" in ON and engine.decoding and layer == engine.layers - 1:
        return result
    source = x
    if "before_norm" in ON and kind in ("gate_proj", "up_proj"):
        source = engine.seen["norm", layer]
    if "down_input" in ON and kind == "down_proj":
        source = engine.seen["act", layer]
    result = result.clone()
    for name in sorted(set(names)):
        if name == BASE or name not in self.lora_A:
            continue
        rows = [i for i, n in enumerate(names) if n == name]
        if "last_row_q" in ON and mixed and kind == "q_proj":
            rows = [i for i in rows if i < len(names) - 1]
            if not rows:
                continue
        scaling = self.scaling[name]
        if "active_scaling" in ON and mixed and active in self.scaling and active in self.lora_A:
            scaling = self.scaling[active]
        a, b = self.lora_A[name], self.lora_B[name]
        result[rows] += b(a(source[rows])) * scaling
        if "bias_twice" in ON and kind in ("o_proj", "down_proj") and b.bias is not None:
            result[rows] += b.bias * scaling
    return result


NEEDS = {"active_scaling", "before_norm", "bias_twice", "down_input", "decode_last_layer", "last_row_q"}
ORIGINAL = []


def switch(on):
    """Patch PEFT where one of these bugs needs it."""
    global ON
    from peft.tuners.lora.layer import Linear

    ON = frozenset(on)
    if not ORIGINAL:
        ORIGINAL.append(Linear.forward)
    Linear.forward = patched_forward if NEEDS & ON else ORIGINAL[0]


if NEEDS & ON:
    switch(ON)
MODEL = {}


def serve(model_dir, requests):
    """Serve them in one batch. Return their logits and tokens in order."""
    key = signature(model_dir, "*.*")
    if key not in MODEL:
        MODEL.clear()
        MODEL[key] = Engine(model_dir)
    return MODEL[key].serve(requests)


def reset():
    """A new sequence."""
    for engine in MODEL.values():
        engine.reset()


serve.reset = reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload"],
}
