"""How fast the NumPy reference is, as ratios against Hugging Face transformers + PEFT in the same run.

    pip install -e '.[peft]' && python benchmarks/cpu.py [--threads N] [--json FILE]

Same machine, same threads, same weights, same tokens; each figure is a median of pairs taken in turn, ours then PEFT's,
because a shared machine drifts; on one thread it is the processor's time, which others do not take. "5.0x" means that
PEFT takes 5 times as long. Before anything is timed, both must give the same logits.

Beside each figure stands its limit: what the bytes and flops of the step need at least (refimpl/bench/cost.py)
at the bandwidth and the GEMM rate that it had in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = next((sys.argv[i + 1] for i, a in enumerate(sys.argv[:-1]) if a == "--threads"), "1")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS  # before numpy and torch are imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

import refimpl  # noqa: E402
from refimpl.adapter_cache import AdapterCache  # noqa: E402
from refimpl.arrays import Precision  # noqa: E402
from refimpl.batch import ScheduledRequest, make_batch  # noqa: E402
from refimpl.bench.bare import bare_step  # noqa: E402
from refimpl.bench.cost import Device, Step, Work, attention_work, base_work, lora_work  # noqa: E402
from refimpl.bench.devices import COPY_BYTES, GEMM_SIZE, REPEATS  # noqa: E402
from refimpl.config import LAYER_MODULES, ModelConfig  # noqa: E402
from refimpl.kv_cache import KVCache  # noqa: E402
from refimpl.model import forward  # noqa: E402

SMALL = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2)
LARGE = dict(
    hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12
)
RANK = 8


@dataclass
class Pair:
    """The same base and adapters in both."""

    ours: refimpl.Model
    adapters: list[refimpl.Adapter]
    peft: Any
    names: list[str]


def build(shape: dict[str, int], vocab: int, count: int, folder: Path) -> Pair:
    """Random weights, written by transformers and PEFT, read back by both."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=vocab, max_position_embeddings=2048, attn_implementation="eager")
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for i in range(count):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        peft = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LAYER_MODULES)))
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
        peft.save_pretrained(folder / f"a{i}")
    base = LlamaForCausalLM.from_pretrained(folder / "base", attn_implementation="eager")
    names = [f"a{i}" for i in range(count)]
    peft = PeftModel.from_pretrained(base, folder / "a0", adapter_name="a0")
    for name in names[1:]:
        peft.load_adapter(folder / name, name)
    ours = refimpl.load_model(folder / "base")
    return Pair(ours, [refimpl.load_adapter(folder / n, ours.config, name=n) for n in names], peft.eval(), names)


def our_decode(pair: Pair, prompts: list[list[int]], choice: list[int | None]) -> Callable[[], np.ndarray]:
    """Our decode step, after a prefill of the prompts: always the same one, on top of the same cache."""
    model, p = pair.ours, Precision()
    blocks = [-(-(len(ids) + 1) // 16) for ids in prompts]
    cache, adapters = KVCache(model.config, sum(blocks), 16, p), AdapterCache(model, p, refimpl.NUMPY)
    tables = [cache.allocate(n) for n in blocks]
    slots = [[] if c is None else [(adapters.acquire(pair.adapters[c]), 1.0)] for c in choice]
    work = [ScheduledRequest(ids, 0, t, s) for ids, t, s in zip(prompts, tables, slots, strict=True)]
    forward(model, make_batch(work, cache, adapters.slots, refimpl.NUMPY), cache, adapters.slots, refimpl.NUMPY, p)
    step = [ScheduledRequest([7], len(ids), t, s) for ids, t, s in zip(prompts, tables, slots, strict=True)]

    def our_step() -> np.ndarray:
        return forward(
            model, make_batch(step, cache, adapters.slots, refimpl.NUMPY), cache, adapters.slots, refimpl.NUMPY, p
        )

    return our_step


def products(pair: Pair, choice: list[int | None]) -> Callable[[], None]:
    """The products of such a step and nothing else (refimpl/bench/bare.py), of one token of each request."""
    model, p = pair.ours, Precision()
    adapters, rng = AdapterCache(model, p, refimpl.NUMPY), np.random.default_rng(0)
    rows = [(None if c is None else adapters.acquire(pair.adapters[c]), 1) for c in choice]
    widths = {model.config.shape(module)[1] for module in model.config.modules()}
    inputs = {width: rng.standard_normal((len(rows), width), dtype=np.float32) for width in widths}
    return lambda: bare_step(model, adapters.slots, rows, inputs, p)


def prepared(pair: Pair, prompts: list[list[int]], choice: list[int | None]) -> tuple[Callable, Callable, float]:
    """(our decode step, PEFT's decode step, largest difference of their logits), after a prefill of the prompts.

    A step is always the same one, on top of the same cache, so that it can be timed many times."""
    our_step = our_decode(pair, prompts, choice)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    names = ["__base__" if c is None else pair.names[c] for c in choice]
    with torch.no_grad():
        first = pair.peft(
            input_ids=padded,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            adapter_names=names,
            use_cache=True,
        ).past_key_values
    mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], 1)
    positions = mask.sum(1, keepdim=True) - 1
    token = torch.full((len(prompts), 1), 7)

    def their_step() -> np.ndarray:
        if first.get_seq_length() > longest:
            first.crop(longest - first.get_seq_length())  # forget the step before
        with torch.no_grad():
            out = pair.peft(
                input_ids=token,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=first,
                adapter_names=names,
                use_cache=True,
            )
        return out.logits[:, -1].numpy()

    assert isinstance(first, DynamicCache)
    return our_step, their_step, float(np.abs(our_step() - their_step()).max())


def prefill(pair: Pair, prompts: list[list[int]], choice: list[int | None]) -> tuple[Callable, Callable, float]:
    """The same for a whole prefill of prompts of one length, logits of each one's last token."""
    model, p = pair.ours, Precision()
    blocks = [-(-len(ids) // 16) for ids in prompts]
    cache, adapters = KVCache(model.config, sum(blocks), 16, p), AdapterCache(model, p, refimpl.NUMPY)
    work = [
        ScheduledRequest(ids, 0, cache.allocate(n), [] if c is None else [(adapters.acquire(pair.adapters[c]), 1.0)])
        for ids, n, c in zip(prompts, blocks, choice, strict=True)
    ]
    names = ["__base__" if c is None else pair.names[c] for c in choice]
    ids = torch.tensor(prompts)

    def ours() -> np.ndarray:
        return forward(
            model, make_batch(work, cache, adapters.slots, refimpl.NUMPY), cache, adapters.slots, refimpl.NUMPY, p
        )

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return pair.peft(input_ids=ids, adapter_names=names, logits_to_keep=1).logits[:, -1].numpy()

    return ours, theirs, float(np.abs(ours() - theirs()).max())


def ratio(ours: Callable, theirs: Callable, repeats: int, steps: int = 1) -> dict[str, float]:
    """Median milliseconds of each and the median of their ratios: `steps` calls of ours, then as many of the other's,
    in turn. A decode step is one of many that follow each other, and is timed so."""
    pairs = [(seconds(ours, steps), seconds(theirs, steps)) for _ in range(repeats + 1)][1:]  # the first warms up
    return {
        "ours_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "other_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def seconds(f: Callable, steps: int) -> float:
    """Time of one call, the mean of `steps` in a row: of the processor where there is one thread, because others on the
    machine do not change it; else of the clock on the wall."""
    clock = time.process_time if THREADS == "1" else time.perf_counter
    start = clock()
    for _ in range(steps):
        f()
    return (clock() - start) / steps


def this_machine(before: Device | None = None) -> Device:
    """What it does at best, by the clock of the steps: a copy (each number is read and written), a square product.

    `before` is what it did earlier in the run: on a shared machine the faster of the two is nearer to its limit."""
    source, square = np.ones(COPY_BYTES // 4, np.float32), np.ones((GEMM_SIZE, GEMM_SIZE), np.float32)
    target, y = np.empty_like(source), np.empty_like(square)
    copy = min(seconds(lambda: np.copyto(target, source), 1) for _ in range(REPEATS))
    product = min(seconds(lambda: np.matmul(square, square, out=y), 1) for _ in range(REPEATS))
    peak = 2 * GEMM_SIZE**3 / product
    bandwidth = 2 * source.nbytes / copy
    if before is not None:
        bandwidth, peak = max(bandwidth, before.bandwidth), max(peak, before.peaks["float32"])
    return Device("this", 0, bandwidth, {"float32": peak}, "measured in this run")


def step_work(config: ModelConfig, choice: list[int | None], contexts: list[int], tokens: int) -> Work:
    """Bytes and flops of a step: request i computes its last `tokens` of contexts[i] tokens with adapter choice[i]."""
    ranks = {module: RANK for module in config.modules() if module[1] in LAYER_MODULES}
    adapted = [adapter for adapter in choice if adapter is not None]
    base = base_work(config, Step(len(choice), tokens, 0, 0), 4)
    lora = lora_work(config, ranks, Step(len(adapted), tokens, 0, len(set(adapted))), 4)
    return sum((attention_work(config, Step(1, tokens, context, 0), 4) for context in contexts), base + lora)


def main() -> None:
    """Build, verify, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1", help="threads of both sides (default 1)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="only the small model")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(int(args.threads))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # the adapters' base is a temporary folder, and PEFT says so
    rng = np.random.default_rng(0)
    results: dict[str, dict[str, Any]] = {}

    def prompts(lengths: list[int], vocab: int) -> list[list[int]]:
        return [rng.integers(1, vocab, n).tolist() for n in lengths]

    def report(name: str, steps: tuple[Callable, Callable, float], work: Work, repeats: int, in_a_row: int) -> None:
        nonlocal device
        ours, theirs, differs = steps
        assert differs <= 1e-3, f"{name}: the two differ by {differs}: nothing is timed"
        results[name] = {**ratio(ours, theirs, repeats, in_a_row), "max_abs_difference": differs}
        device = this_machine(device)
        limit_ms = 1e3 * device.seconds(work, "float32")
        results[name] |= {"bytes": work.bytes, "flops": work.flops, "limit_ms": limit_ms}
        r = results[name]
        print(
            f"{name:58} {r['ratio']:6.2f}x   ours {r['ours_ms']:8.2f} ms  other {r['other_ms']:8.2f} ms   "
            f"limit {r['limit_ms']:8.2f} ms"
        )

    device = this_machine()
    print(f"{device.source}: {device.bandwidth / 1e9:.1f} GB/s, {device.peaks['float32'] / 1e9:.0f} GFLOP/s")

    with tempfile.TemporaryDirectory() as folder:
        small = build(SMALL, 512, 3, Path(folder) / "small")
        lengths = [5, 64, 17, 33, 8, 50, 21, 40]
        choice: list[int | None] = [None, None, 0, 0, 1, 1, 2, 2]  # in the order of Engine.step
        step = prepared(small, prompts(lengths, 512), choice)
        work = step_work(small.ours.config, choice, [n + 1 for n in lengths], 1)
        report("hidden 256, 4 layers: decode, 8 requests, 3 adapters+base", step, work, args.repeats, 20)

        if args.small:
            return
        large = build(LARGE, 32000, 8, Path(folder) / "large")
        config = large.ours.config
        lengths, choice = [40 + 3 * i for i in range(16)], [i // 2 for i in range(16)]
        ids = prompts(lengths, 32000)
        step = prepared(large, ids, choice)
        work = step_work(config, choice, [n + 1 for n in lengths], 1)
        report("110M: decode, 16 requests, 8 adapters", step, work, args.repeats, 3)
        distinct, _, _ = step
        identical, _, _ = prepared(large, ids, [0] * 16)
        fewer = step_work(config, [0] * 16, [n + 1 for n in lengths], 1)
        results["110M: decode, 1 adapter instead of 8"] = r = ratio(distinct, identical, args.repeats, 3)
        r["limit_ratio"] = device.seconds(fewer, "float32") / device.seconds(work, "float32")
        r["bare"] = ratio(products(large, choice), products(large, [0] * 16), args.repeats, 3)
        print(
            f"{'110M: 8 distinct adapters over 1, batch 16':58} {1 / r['ratio']:6.2f}x   "
            f"bytes {1 / r['limit_ratio']:.2f}x  products alone {1 / r['bare']['ratio']:.2f}x"
        )
        choice = [0, 1, 2, 3]
        step = prefill(large, prompts([512] * 4, 32000), choice)
        work = step_work(config, choice, [512] * 4, 512)
        report("110M: prefill, 4 x 512 tokens, 4 adapters", step, work, max(3, args.repeats // 4), 1)
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": int(args.threads),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bandwidth_gb_s": device.bandwidth / 1e9,
        "gemm_gflop_s": device.peaks["float32"] / 1e9,
    }
    print(about)
    if args.json:
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
