"""A thousand adapters on the embedded base: does memory stay at base + adapters?

    python benchmarks/memory.py [--adapters N] [--json FILE]

Writes N rank-8 PEFT folders (float32, every linear layer), loads them all, runs a request through each, and compares
the memory of the process (RssAnon + RssFile + RssShmem of /proc/self/status; Linux) with the sum of the parts.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import refimpl
from refimpl.config import LAYER_MODULES, ModelConfig, module_name


def write_adapter(folder: Path, config: ModelConfig, seed: int, rank: int = 8) -> int:
    """One random PEFT folder; the bytes of its tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in config.modules():
        if module[1] not in LAYER_MODULES:
            continue
        d_out, d_in = config.shape(module)
        name = f"base_model.model.{module_name(module)}.lora_"
        tensors[name + "A.weight"] = rng.standard_normal((rank, d_in), np.float32) / 16
        tensors[name + "B.weight"] = rng.standard_normal((d_out, rank), np.float32) / 16
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(LAYER_MODULES)}
    about |= {"base_model_name_or_path": "loracle/tiny", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return sum(x.nbytes for x in tensors.values())


def resident() -> int:
    """Bytes of this process that lie in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile", "RssShmem")))


def main() -> None:
    """Measure, and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        model = refimpl.load_model("tiny")
        sizes = [write_adapter(Path(name) / str(i), model.config, i) for i in range(args.adapters)]
        ids = model.tokenizer.encode(refimpl.tiny.DEMO_PROMPTS[0])
        engine = refimpl.Engine(model, num_blocks=8)

        def serve(adapter: refimpl.Adapter | None) -> None:
            engine.add(refimpl.Request(ids, adapter), max_new_tokens=1)
            while engine.busy:
                engine.step()

        serve(refimpl.load_adapter(Path(name) / "0", model.config))  # everything that is not per adapter is there now
        before = resident()
        adapters = [refimpl.load_adapter(Path(name) / str(i), model.config) for i in range(args.adapters)]
        for adapter in adapters:
            serve(adapter)
        grown = resident() - before
    parts = sum(sizes) + model.nbytes
    found = {
        "adapters": args.adapters,
        "base_bytes": model.nbytes,
        "adapter_bytes": sum(sizes),
        "grown_bytes": grown,
        "over_base_and_adapters": (grown + model.nbytes) / parts - 1,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if found["over_base_and_adapters"] <= 0.05 else 1)


if __name__ == "__main__":
    main()
