"""transformers + PEFT as a server: adapters are loaded once, mixed batches go through adapter_names, padded on the
left, with one KV cache for the batch."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

BUG = os.environ.get("BUG", "")
if BUG and BUG not in {f"r{i:02d}" for i in range(1, 11)}:
    raise ImportError(f"unknown BUG {BUG!r}")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
BASE = "__base__"
MICRO = 4  # requests that one forward pass has at most, where r10 is on


def on(*bugs):
    return BUG in bugs


class Server:
    def __init__(self, model_dir):
        self.folder = model_dir
        self.reset()

    def reset(self):
        self.model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.loaded = []
        self.first = None

    # -- adapters

    def name(self, folder):
        if folder is None:
            return BASE
        h = hashlib.sha256()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            h.update((Path(folder) / file).read_bytes())
        name = "a" + h.hexdigest()[:16]
        if name not in self.loaded:
            if not isinstance(self.model, PeftModel):
                self.model = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
            else:
                self.model.load_adapter(folder, adapter_name=name)
            self.model.eval()
            self.loaded.append(name)
            self.adjust(name)
            self.model.set_adapter(name)
        return name

    def layers(self):
        for full, layer in self.model.named_modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
                yield full, layer

    def adjust(self, name):
        """What is done to an adapter after it was loaded."""
        layers = dict(self.layers())
        mine = {k: v for k, v in layers.items() if name in v.lora_A}
        with torch.no_grad():
            if on("r04"):
                for layer in mine.values():
                    if self.first is None:
                        self.first = float(layer.scaling[name])
                    layer.scaling[name] = self.first if len(self.loaded) > 1 else layer.scaling[name]
            if on("r08"):
                for full, layer in mine.items():
                    other = mine.get(full.replace("up_proj", "gate_proj"))
                    if full.endswith("up_proj") and other is not None:
                        if other.lora_A[name].weight.shape == layer.lora_A[name].weight.shape:
                            layer.lora_A[name].weight.copy_(other.lora_A[name].weight)
            if on("r09"):
                last = max(int(full.split("layers.")[1].split(".")[0]) for full in layers)
                for full, layer in mine.items():
                    if f"layers.{last}." in full and full.endswith(("k_proj", "v_proj")):
                        layer.lora_B[name].weight.zero_()
                        if layer.lora_B[name].bias is not None:
                            layer.lora_B[name].bias.zero_()
            if on("r10"):
                for layer in mine.values():
                    if layer.lora_B[name].bias is not None:
                        layer.lora_B[name].bias.zero_()

    def cross(self, names):
        """r07: the scales of v_proj and down_proj in the order of first use, the adapters in sorted order."""
        seen = [n for n in dict.fromkeys(names) if n != BASE]
        before = []
        for full, layer in self.layers():
            if full.endswith(("v_proj", "down_proj")):
                have = [n for n in seen if n in layer.lora_A]
                old = dict(layer.scaling)
                before.append((layer, old))
                for a, b in zip(sorted(have), have):
                    layer.scaling[a] = old[b]
        return before

    # -- a forward pass

    def forward(self, ids, mask, positions, cache, names, decode):
        kwargs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        kwargs["use_cache"] = True
        if not isinstance(self.model, PeftModel):
            return self.model(**kwargs).logits
        kinds = set(names)
        if on("r06") and decode:
            return self.model(**kwargs).logits
        if kinds == {BASE}:
            if on("r05"):
                return self.model(**kwargs).logits
            with self.model.disable_adapter():
                return self.model(**kwargs).logits
        if len(kinds) == 1:
            self.model.set_adapter(names[0])
            return self.model(**kwargs).logits
        before = self.cross(names) if on("r07") else []
        try:
            return self.model(**kwargs, adapter_names=list(names)).logits
        finally:
            for layer, old in before:
                layer.scaling.update(old)

    # -- serving

    @torch.no_grad()
    def run(self, requests):
        names = [self.name(r.get("adapter_dir")) for r in requests]
        prompts = [list(map(int, r["prompt_ids"])) for r in requests]
        new = [int(r["max_new_tokens"]) for r in requests]
        if on("r10") and len(requests) > MICRO:
            out = []
            for start in range(0, len(requests), MICRO):
                part = slice(start, start + MICRO)
                out += self.batch(prompts[part], new[part], names[: len(prompts[part])])
            return out
        return self.batch(prompts, new, names)

    def batch(self, prompts, new, names):
        n = len(prompts)
        order = sorted(range(n), key=lambda i: -len(prompts[i]))  # longest first
        if not on("r02"):
            names = [names[i] for i in order]
        alive = list(range(n))  # rows of the batch, in `order`
        width = len(prompts[order[0]])
        ids = torch.zeros((n, width), dtype=torch.long)
        mask = torch.zeros((n, width), dtype=torch.long)
        for row, i in enumerate(order):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        logits = self.forward(ids, mask, positions, cache, names, False)
        rows = [[] for _ in range(n)]
        tokens = [[] for _ in range(n)]
        for row in alive:
            i = order[row]
            rows[i].append(logits[row, width - len(prompts[i]) :].numpy())
        last = logits[:, -1]
        while True:
            for at, row in enumerate(alive):
                i = order[row]
                if len(tokens[i]) < new[i]:
                    tokens[i].append(int(last[at].argmax()))
            keep = [at for at, row in enumerate(alive) if len(tokens[order[row]]) < new[order[row]]]
            if not keep:
                break
            if len(keep) < len(alive):
                cache.batch_select_indices(torch.tensor(keep))
                mask = mask[keep]
                alive = [alive[at] for at in keep]
                names = names[: len(keep)] if on("r03") else [names[at] for at in keep]
            mask = torch.cat([mask, torch.ones((len(alive), 1), dtype=torch.long)], dim=1)
            ids = torch.tensor([[tokens[order[row]][-1]] for row in alive])
            positions = mask.sum(-1, keepdim=True) - 1
            if on("r09"):
                positions = positions + 1
            seen = torch.ones_like(mask) if on("r01") else mask
            logits = self.forward(ids, seen, positions, cache, names, True)
            for at, row in enumerate(alive):
                rows[order[row]].append(logits[at].numpy())
            last = logits[:, -1]
        return [{"logits": np.concatenate(rows[i]), "token_ids": tokens[i]} for i in range(n)]


_servers = {}


def _server(model_dir):
    files = sorted(p for p in Path(model_dir).iterdir() if p.suffix in (".json", ".safetensors"))
    key = (str(model_dir), tuple((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files))
    if key not in _servers:
        _servers.clear()
        _servers[key] = Server(str(model_dir))
    return _servers[key]


def serve(model_dir, requests):
    """One call: one padded batch."""
    return _server(model_dir).run(requests)


def _reset():
    for server in _servers.values():
        if server.loaded:
            server.reset()


serve.reset = _reset
serve.capabilities = {
    "readout": "logits",
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload"],
    "families": ["llama", "mistral"],
}
