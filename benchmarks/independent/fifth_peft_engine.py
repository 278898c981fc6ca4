"""A multi-LoRA server on transformers and PEFT, as a function for `loracle check`: static batches, left-padded, sorted by
length; one prefill of each different prompt; decode with compaction of finished rows; mixed batches by adapter_names.

BUG=g01 ... g12 in the environment switches one frozen bug on.
"""

import contextlib
import hashlib
import math
import os
import warnings
from pathlib import Path

import torch

BUGS = [f"g{i:02d}" for i in range(1, 13)]
BUG = os.environ.get("BUG", "")
if BUG and BUG not in BUGS:
    raise ImportError(f"unknown BUG {BUG!r}")

warnings.filterwarnings("ignore")
import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
BATCH, LOADED, BASE = 6, 3, "__base__"


class Server:
    """One base with the adapters that are loaded."""

    def __init__(self, folder):
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.layers = self.base.config.num_hidden_layers
        self.model = None
        self.loaded = {}  # key -> name, least recently used first
        self.count = 0

    # ---- adapters

    def lora_layers(self, name):
        """(dotted name, layer) of every module that an adapter is on."""
        found = []
        for path, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                found.append((path, module))
        return found

    def ensure(self, folder, wanted):
        """The name of a folder's adapter, loaded if need be."""
        key = stamp(folder)
        if BUG == "g08":
            key = hashlib.sha256((Path(folder) / "adapter_config.json").read_bytes()).hexdigest()
        if key in self.loaded:
            self.loaded[key] = self.loaded.pop(key)
            wanted.add(self.loaded[key])
            return self.loaded[key]
        inherited = {}
        if len(self.loaded) >= LOADED:
            idle = [k for k, n in self.loaded.items() if n not in wanted]
            if idle:
                old = self.loaded.pop(idle[0])
                inherited = {path: module.scaling[old] for path, module in self.lora_layers(old)}
                if len(self.loaded):
                    self.model.set_adapter(next(iter(self.loaded.values())))
                self.model.delete_adapter(old)
        name = f"adapter{self.count}"
        self.count += 1
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.base, folder, adapter_name=name).eval()
        else:
            self.model.load_adapter(folder, adapter_name=name)
        self.model.eval()
        self.loaded[key] = name
        wanted.add(name)
        self.prepare(name, inherited)
        return name

    def prepare(self, name, inherited):
        """What is done to an adapter once it is loaded."""
        config = self.model.peft_config[name]
        layers = self.lora_layers(name)
        by_path = dict(layers)
        for path, module in layers:
            last = path.rsplit(".", 1)[-1]
            if BUG == "g01" and config.use_rslora and last in (config.rank_pattern or {}):
                module.scaling[name] /= math.sqrt(module.r[name])
            if BUG == "g04" and f"layers.{self.layers - 1}.mlp." in path:
                module.scaling[name] = 0.0
            if BUG == "g05" and name in module.lora_A:
                weight = module.lora_A[name].weight
                weight.data = weight.data.bfloat16().float()
                bias = module.lora_B[name].bias
                if bias is not None:
                    bias.data = bias.data / module.scaling[name]
            if BUG == "g12" and path in inherited:
                module.scaling[name] = inherited[path]
        if BUG == "g10":
            for path, module in layers:
                head, _, last = path.rpartition(".")
                if last in ("k_proj", "v_proj") and f"{head}.q_proj" in by_path:
                    module.scaling[name] = by_path[f"{head}.q_proj"].scaling[name]

    # ---- one step

    def forward(self, names, decode=False, **inputs):
        """Logits of one step: base alone, one adapter for all rows, or a mixed batch."""
        kinds = set(names)
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if self.model is None:
                return self.base(**inputs).logits
            if BUG == "g10" and decode:
                stack.enter_context(self.without("o_proj"))
            if kinds == {BASE}:
                if BUG != "g07":
                    stack.enter_context(self.model.disable_adapter())
                return self.model(**inputs).logits
            if len(kinds) == 1:
                self.model.set_adapter(names[0])
                return self.model(**inputs).logits
            return self.model(**inputs, adapter_names=list(names)).logits

    @contextlib.contextmanager
    def without(self, last):
        """No LoRA on modules of this name meanwhile."""
        kept = []
        for path, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and path.endswith("." + last):
                kept.append((module, dict(module.scaling)))
                for name in module.scaling:
                    module.scaling[name] = 0.0
        try:
            yield
        finally:
            for module, scaling in kept:
                module.scaling.update(scaling)

    # ---- a batch

    def batch(self, items):
        """items: [(prompt, name, new)]. Returns [(logits, tokens)]."""
        unique, where = {}, []
        for prompt, name, _ in items:
            key = (tuple(prompt), name)
            if BUG == "g09":
                key = tuple(prompt)
            unique.setdefault(key, (len(unique), prompt, name))
            where.append(unique[key][0])
        prompts = [prompt for _, prompt, _ in unique.values()]
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        logits = self.forward(
            [name for _, _, name in unique.values()],
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(torch.tensor(where))
        mask = mask[where]
        rows = [[*logits[where[i], width - len(prompt) :]] for i, (prompt, _, _) in enumerate(items)]
        tokens = [[int(r[-1].argmax())] for r in rows]
        active, names = list(range(len(items))), [name for _, name, _ in items]
        step = 0
        while True:
            keep = [j for j, i in enumerate(active) if len(tokens[i]) < items[i][2]]
            if not keep:
                break
            if len(keep) < len(active):
                cache.batch_select_indices(torch.tensor(keep))
                mask = mask[keep]
                active = [active[j] for j in keep]
                names = names[: len(keep)] if BUG == "g06" else [names[j] for j in keep]
            mask = torch.cat([mask, torch.ones(len(active), 1, dtype=torch.long)], 1)
            positions = mask.sum(1, keepdim=True) - 1
            if BUG == "g03":
                positions = torch.full((len(active), 1), width + step)
            now = names
            if BUG == "g11":
                now = [name if name not in names[:j] else BASE for j, name in enumerate(names)]
            logits = self.forward(
                now,
                decode=True,
                input_ids=torch.tensor([[tokens[i][-1]] for i in active]),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            for j, i in enumerate(active):
                rows[i].append(logits[j, -1])
                tokens[i].append(int(logits[j, -1].argmax()))
            step += 1
        return [(torch.stack(r).numpy(), t) for r, t in zip(rows, tokens)]


SERVERS = {}


def stamp(folder):
    """What a folder holds, by its content."""
    digest = hashlib.sha256(str(folder).encode())
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors"):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def serve(model_dir, requests):
    """Answer all requests, in batches of similar length."""
    if os.environ.get("RECORD"):
        _record("serve", model_dir, requests)
    key = stamp(model_dir)
    if key not in SERVERS:
        SERVERS.clear()
        SERVERS[key] = Server(model_dir)
    server = SERVERS[key]
    order = sorted(range(len(requests)), key=lambda i: len(requests[i]["prompt_ids"]))
    folders = [r["adapter_dir"] for r in requests]
    by_row = folders if BUG == "g02" else [folders[i] for i in order]
    out = [None] * len(requests)
    for start in range(0, len(order), BATCH):
        chosen, wanted, items = order[start : start + BATCH], set(), []
        for j, i in enumerate(chosen):
            folder = by_row[start + j]
            name = BASE if folder is None else server.ensure(folder, wanted)
            items.append((requests[i]["prompt_ids"], name, requests[i]["max_new_tokens"]))
        for i, (logits, tokens) in zip(chosen, server.batch(items)):
            out[i] = {"logits": logits, "token_ids": tokens}
    return out


def reset():
    """Forget base and adapters."""
    if os.environ.get("RECORD"):
        _record("reset", None, None)
    SERVERS.clear()


def _record(what, model_dir, requests):
    """For development: keep the call, and copies of its folders."""
    import pickle
    import shutil

    base = Path(os.environ["RECORD"])
    kept = {}
    if requests is not None:
        for folder in {str(model_dir), *(r["adapter_dir"] for r in requests if r["adapter_dir"])}:
            kept[folder] = str(base / "store" / stamp(folder)[:16] / Path(folder).name)
            if not Path(kept[folder]).exists():
                shutil.copytree(folder, kept[folder])
    with open(base / "calls.pkl", "ab") as file:
        pickle.dump((what, model_dir, requests, kept), file)


serve.capabilities = {
    "dtypes": ["float32"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"],
    "operations": ["load", "unload", "reload", "evict"],
}
serve.reset = reset
