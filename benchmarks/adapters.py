"""How many adapters can PEFT hold, and what does each more cost? Beside ours, in the same process.

    pip install -e '.[peft]' && python benchmarks/adapters.py [--seconds S] [--json FILE]

One random Llama in both (hidden 256, 4 layers), rank-8 adapters on every linear layer, added until there are as many as
ours were asked for or the time is over: where PEFT ends is said, not guessed. At each number of adapters both decode
the same batch of 16 requests for the same adapters, in turn; before that both must give the same logits. Seconds are
this process's CPU time, one thread each, so that others on the machine do not count.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy and torch are imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import refimpl  # noqa: E402
from refimpl.adapter import Adapter, LoraTensors, PeftConfig  # noqa: E402
from refimpl.adapter_cache import AdapterCache  # noqa: E402
from refimpl.arrays import Precision  # noqa: E402
from refimpl.batch import ScheduledRequest, make_batch  # noqa: E402
from refimpl.bench.adapter_testbed import adapter_bytes, process_memory  # noqa: E402
from refimpl.bench.machine import about  # noqa: E402
from refimpl.config import LAYER_MODULES, ModelConfig, module_name  # noqa: E402
from refimpl.kv_cache import KVCache  # noqa: E402
from refimpl.model import forward  # noqa: E402
from refimpl.weights import Layer, Linear, Model  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
RANK, REQUESTS, TOKEN = 8, 16, 7
COUNTS = (5, 50, 100, 200, 500, 1000, 2000)


def base() -> tuple[Model, LlamaForCausalLM]:
    """Return one random base, ours and theirs: the arrays are shared."""
    torch.manual_seed(0)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings")
    theirs = LlamaForCausalLM(LlamaConfig(**{name: getattr(CONFIG, name) for name in names}))
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    layers = tuple(
        Layer(
            {name: arrays[f"model.layers.{i}.{name}.weight"] for name in CONFIG.norms.names},
            {name: Linear(arrays[f"{module_name((i, name))}.weight"]) for name in CONFIG.layer_modules},
        )
        for i in range(CONFIG.num_hidden_layers)
    )
    head = Linear(arrays["lm_head.weight"])
    return Model(CONFIG, arrays["model.embed_tokens.weight"], layers, arrays["model.norm.weight"], head), theirs


class Both:
    """The same adapters in both, one more at a time."""

    def __init__(self) -> None:
        self.model, theirs = base()
        self.peft = get_peft_model(theirs, self.lora_config(), adapter_name="a0").eval()
        self.precision, self.count = Precision(), 0
        self.cache = KVCache(CONFIG, REQUESTS, 16, self.precision)
        self.tables = [self.cache.allocate(1) for _ in range(REQUESTS)]
        self.adapters = AdapterCache(self.model, self.precision, refimpl.NUMPY)

    def lora_config(self) -> LoraConfig:
        """Return a config of its own: PEFT keeps it."""
        return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LAYER_MODULES), init_lora_weights=False)

    def add(self) -> tuple[float, float]:
        """Add one adapter to both: CPU seconds of ours and of PEFT's. PEFT's include drawing its numbers, ours none of
        that: in float32, on a CPU, a slot refers to the adapter's arrays."""
        name, start = f"a{self.count}", time.process_time()
        if self.count:
            self.peft.add_adapter(name, self.lora_config())
        peft_seconds = time.process_time() - start
        modules = dict(self.peft.base_model.model.named_modules())
        lora = {}
        for module in CONFIG.modules():
            if module[1] in LAYER_MODULES:
                layer = modules[module_name(module)]
                A, B = (part[name].weight.detach().numpy().copy() for part in (layer.lora_A, layer.lora_B))
                lora[module] = LoraTensors(A, B)
        start = time.process_time()
        adapter = Adapter(name, PeftConfig(RANK, 2 * RANK, target_modules=LAYER_MODULES), lora)
        self.adapters.release(self.adapters.acquire(adapter))
        self.count += 1
        return time.process_time() - start, peft_seconds

    def ours(self, slots: list[int]) -> np.ndarray:
        """Decode one token of every request."""
        work = [
            ScheduledRequest([TOKEN], 0, table, [(slot, 1.0)]) for table, slot in zip(self.tables, slots, strict=True)
        ]
        batch = make_batch(work, self.cache, self.adapters.slots, refimpl.NUMPY)
        return forward(self.model, batch, self.cache, self.adapters.slots, refimpl.NUMPY, self.precision)

    @torch.no_grad()
    def theirs(self, slots: list[int]) -> np.ndarray:
        """The same with PEFT's mixed batch."""
        ids = torch.full((REQUESTS, 1), TOKEN)
        return self.peft(input_ids=ids, adapter_names=[f"a{slot}" for slot in slots]).logits[:, -1].numpy()


def point(both: Both, loads: list[tuple[float, float]], repeats: int) -> dict[str, Any]:
    """Verify, then time one step of both in turn, for adapters spread over all that are loaded."""
    slots = np.sort(np.arange(REQUESTS) * both.count // REQUESTS).tolist()
    off = float(np.abs(both.ours(slots) - both.theirs(slots)).max())
    assert off <= 1e-3, f"the two differ by {off}: nothing is timed"
    pairs = [(seconds(both.ours, slots), seconds(both.theirs, slots)) for _ in range(repeats)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    our_load, peft_load = (statistics.median(times) for times in zip(*loads[-5:], strict=True))
    return {
        "adapters": both.count,
        "different_in_the_batch": len(set(slots)),
        "ours_step_ms": 1e3 * ours,
        "peft_step_ms": 1e3 * theirs,
        "ratio": statistics.median(b / a for a, b in pairs),
        "ours_load_ms": 1e3 * our_load,
        "peft_load_ms": 1e3 * peft_load,
        "adapter_bytes": both.count * adapter_bytes(CONFIG, RANK, LAYER_MODULES),
        "max_abs_difference": off,
    }


def seconds(step: Any, slots: list[int]) -> float:
    """CPU time of one step, the mean of three."""
    start = time.process_time()
    for _ in range(3):
        step(slots)
    return (time.process_time() - start) / 3


def main() -> None:
    """Add adapters until PEFT has no more time, and measure on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="wall time after which no adapter is added")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    both, loads, begun = Both(), [], time.monotonic()
    report: dict[str, Any] = {"machine": about(), "points": [], "peft_ended_at": None}
    for count in COUNTS:
        while both.count < count and time.monotonic() - begun <= args.seconds:
            loads.append(both.add())
        report["points"].append({**point(both, loads, args.repeats), "process_bytes": process_memory()})
        print(json.dumps(report["points"][-1]), file=sys.stderr)
        if both.count < count:
            report["peft_ended_at"] = both.count
            report["cpu_seconds_of_all_loads"] = {
                name: sum(times) for name, times in zip(("ours", "peft"), zip(*loads, strict=True), strict=True)
            }
            break
    print(json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
