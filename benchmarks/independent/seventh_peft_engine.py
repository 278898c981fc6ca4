"""transformers + PEFT as an engine: left-padded batches with adapter_names, a KV cache, one forward pass per token.

A call whose requests all want the same adapter runs on weights into which it is merged. A request that sums several
runs alone, with all of them active. BUG=k01 ... k10 in the environment switches one bug on.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BUGS = {
    "k01": ("mask",), "k02": ("leak",), "k03": ("decode_names",), "k04": ("alpha_padded", "position"),
    "k05": ("unmerge",), "k06": ("random_A",), "k07": ("cross_terms",), "k08": ("base_rows",), "k09": ("half_base",),
    "k10": ("sorted_names", "no_alpha_pattern"),
}  # fmt: skip
BUG = os.environ.get("BUG", "")
if BUG and BUG not in BUGS:
    raise ImportError(f"seventh_peft_engine has no bug {BUG!r}")
ACTIVE = frozenset(BUGS.get(BUG, ()))
BATCH = 6
PADDED_RANK = 16
torch.set_num_threads(1)
torch.set_grad_enabled(False)


class Engine:
    def __init__(self, folder: str) -> None:
        dtype = torch.bfloat16 if "half_base" in ACTIVE else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        self.base = model.float().eval()
        self.peft: PeftModel | None = None
        self.names: dict[tuple, str] = {}

    # ---- adapters

    def name(self, folder: str) -> str:
        """The name under which PEFT has the folder's adapter, loaded if need be."""
        stats = [(Path(folder) / file).stat() for file in ("adapter_config.json", "adapter_model.safetensors")]
        key = (folder, *((s.st_mtime_ns, s.st_size) for s in stats))
        if key not in self.names:
            name = self.names[key] = f"adapter{len(self.names)}"
            torch.manual_seed(len(self.names))
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                self.peft.load_adapter(folder, adapter_name=name)
            self.peft.eval()
            self._after_load(name)
        return self.names[key]

    def _after_load(self, name: str) -> None:
        """What goes wrong with an adapter when it is loaded, if something is to."""
        for at, layer in self.layers(name):
            if "random_A" in ACTIVE and at.endswith("o_proj"):
                layer.reset_lora_parameters(name, True)  # A and B as they are made; of the file, B alone arrives
                B = self._tensors(name)[f"base_model.model.{at.removeprefix('base_model.model.')}.lora_B.weight"]
                layer.lora_B[name].weight.data.copy_(B)
            if "no_alpha_pattern" in ACTIVE:
                config = self.peft.peft_config[name]
                layer.scaling[name] = config.lora_alpha / (layer.r[name] ** (0.5 if config.use_rslora else 1))
            if "alpha_padded" in ACTIVE and layer.r[name] < PADDED_RANK:
                layer.scaling[name] *= layer.r[name] / PADDED_RANK

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        folder = next(key[0] for key, value in self.names.items() if value == name)
        return load_file(Path(folder) / "adapter_model.safetensors")

    def layers(self, name: str) -> list[tuple[str, LoraLayer]]:
        """The modules in which the adapter has something."""
        return [
            (at, module)
            for at, module in self.peft.named_modules()
            if isinstance(module, LoraLayer) and (name in module.lora_A or name in module.lora_embedding_A)
        ]

    def _plain(self, name: str) -> bool:
        """Neither biases nor the tables: an adapter that can be merged here."""
        config = self.peft.peft_config[name]
        tables = {at.rsplit(".", 1)[1] for at, _ in self.layers(name)} & {"embed_tokens", "lm_head"}
        return not config.lora_bias and not tables

    @contextlib.contextmanager
    def merged(self, name: str):  # noqa: ANN201
        """The base's weights with the adapter in them; put back from a copy afterwards."""
        kept = {}
        for at, layer in self.layers(name):
            weight = layer.get_base_layer().weight
            kept[at] = (weight, weight.data.clone())
            weight.data += layer.get_delta_weight(name)
        yield
        if "unmerge" not in ACTIVE:
            for weight, before in kept.values():
                weight.data.copy_(before)

    @contextlib.contextmanager
    def summed(self, pairs: list[tuple[str, float]]):  # noqa: ANN201
        """All of these active at once, each scaled by its weight."""
        names = [name for name, _ in pairs]
        kept = [(layer, name, layer.scaling[name]) for name in names for _, layer in self.layers(name)]
        for name, weight in pairs:
            for _, layer in self.layers(name):
                layer.scaling[name] *= weight
        before = self.peft.base_model.active_adapters
        self.peft.base_model.set_adapter(names, inference_mode=True)
        yield
        self.peft.base_model.set_adapter(before, inference_mode=True)
        if "leak" not in ACTIVE:
            for layer, name, scaling in kept:
                layer.scaling[name] = scaling

    @contextlib.contextmanager
    def combined(self, pairs: list[tuple[str, float]]):  # noqa: ANN201
        """One adapter made of several: A and B summed, each with the square root of its factor (as combination_type
        "linear" does), padded to one rank."""
        rank = max(max(layer.r[name] for _, layer in self.layers(name)) for name, _ in pairs)
        modules = sorted({at.rsplit(".", 1)[1] for name, _ in pairs for at, _ in self.layers(name)})
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, task_type="CAUSAL_LM", inference_mode=True)
        before = self.peft.base_model.active_adapters
        self.peft.add_adapter("combined", config)
        for _, layer in self.layers("combined"):
            A, B = layer.lora_A["combined"].weight.data, layer.lora_B["combined"].weight.data
            A.zero_(), B.zero_()
            for name, weight in pairs:
                if name not in layer.lora_A:
                    continue
                factor, r = weight * layer.scaling[name], layer.r[name]
                root = abs(factor) ** 0.5
                A[:r] += root * layer.lora_A[name].weight
                B[:, :r] += root * (-1 if factor < 0 else 1) * layer.lora_B[name].weight
        self.peft.base_model.set_adapter(["combined"], inference_mode=True)
        self.peft.eval()
        yield
        self.peft.base_model.set_adapter(before, inference_mode=True)
        self.peft.delete_adapter("combined")

    # ---- requests

    def batch(self, requests: list[dict], names: list[str] | None) -> list[dict]:
        """Prefill and decode these together. names: of each row its adapter; None: whatever is active, or the base."""
        width, longest = max(len(r["prompt_ids"]) for r in requests), max(r["max_new_tokens"] for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        order = list(range(len(requests)))
        if "sorted_names" in ACTIVE and names is not None:  # the prompts are sorted by length, their names are not
            order.sort(key=lambda i: -len(requests[i]["prompt_ids"]))
        pads = []
        for row, i in enumerate(order):
            prompt = requests[i]["prompt_ids"]
            pads.append(width - len(prompt))
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model = self.base if self.peft is None else self.peft
        options = {} if names is None else {"adapter_names": names}
        cache, rows, tokens = None, [[] for _ in order], [[] for _ in order]
        for step in range(longest):
            masks = {} if "mask" in ACTIVE else {"attention_mask": mask}
            out = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **masks, **options)
            cache, logits = out.past_key_values, out.logits.numpy()
            for row in range(len(order)):
                rows[row].append(logits[row, pads[row] :] if step == 0 else logits[row])
                tokens[row].append(int(logits[row, -1].argmax()))
            ids = torch.tensor([[t[-1]] for t in tokens])
            mask = torch.cat((mask, torch.ones(len(order), 1, dtype=mask.dtype)), 1)
            positions = mask.sum(1, keepdim=True) - 1
            if "position" in ACTIVE:
                positions = torch.full_like(positions, width + step)
            if "decode_names" in ACTIVE:
                options = {}
        answers: list[dict] = [{}] * len(requests)
        for row, i in enumerate(order):
            n = requests[i]["max_new_tokens"]
            logits = np.concatenate(rows[row])[: len(requests[i]["prompt_ids"]) + n - 1]
            answers[i] = {"logits": logits, "token_ids": tokens[row][:n]}
        return answers

    def run(self, requests: list[dict]) -> list[dict]:
        pairs = []
        for r in requests:
            given = r.get("adapters") or ([(r["adapter_dir"], 1.0)] if r.get("adapter_dir") else [])
            pairs.append([(self.name(folder), float(weight)) for folder, weight in given])
        if self.peft is None:
            return self.batch(requests, None)
        answers: list[dict] = [{}] * len(requests)
        single = [i for i, p in enumerate(pairs) if not p or (len(p) == 1 and p[0][1] == 1.0)]
        for i in sorted(set(range(len(requests))) - set(single)):
            names = [name for name, _ in pairs[i]]
            linear = "cross_terms" in ACTIVE and all(self._plain(name) for name in names)
            with (self.combined if linear else self.summed)(pairs[i]):
                answers[i] = self.batch([requests[i]], None)[0]
        for start in range(0, len(single), BATCH):
            some = single[start : start + BATCH]
            names = [pairs[i][0][0] if pairs[i] else "__base__" for i in some]
            if len(set(names)) == 1 and names[0] != "__base__" and self._plain(names[0]):
                with self.merged(names[0]):
                    done = self.batch([requests[i] for i in some], ["__base__"] * len(some))
            else:
                if "base_rows" in ACTIVE:
                    first = next((name for name in names if name != "__base__"), "__base__")
                    names = [first if name == "__base__" else name for name in names]
                done = self.batch([requests[i] for i in some], names)
            for i, answer in zip(some, done, strict=True):
                answers[i] = answer
        return answers


ENGINES: dict[tuple, Engine] = {}


def serve(model_dir: str, requests: list[dict]) -> list[dict]:
    """Answer all requests, greedily."""
    key = (str(model_dir), (Path(model_dir) / "config.json").stat().st_mtime_ns)
    if key not in ENGINES:
        ENGINES.clear()
        ENGINES[key] = Engine(str(model_dir))
    return ENGINES[key].run(requests)


serve.capabilities = {  # type: ignore[attr-defined]
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "rope_scaling"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
    "operations": ["load", "unload", "reload"],
}  # fmt: skip
serve.reset = ENGINES.clear  # type: ignore[attr-defined]
