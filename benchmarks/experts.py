"""How fast the NumPy reference is on a base with experts, as ratios against transformers + PEFT in the same run.

    pip install -e '.[peft]' && python benchmarks/experts.py [--threads N] [--json FILE]

A Mixtral of 8 experts, 2 for each token, with random weights. Adapters on attention run in one mixed batch on both
sides. Adapters on experts (PEFT's target_parameters) do so here alone: PEFT refuses such a batch, and runs one pass for
each adapter, in which it merges W + s B A of all experts. Times, agreement before them and limits: as in cpu.py.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cpu import (
    RANK,
    Pair,
    our_decode,
    prefill,
    prepared,
    ratio,
    this_machine,
    torch,
    transformers,
)  # sets the threads first
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DynamicCache, MixtralConfig, MixtralForCausalLM

import refimpl
from refimpl.bench.cost import Step, attention_work, base_work, lora_work
from refimpl.config import ATTENTION_MODULES

SHAPE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
VOCAB, ADAPTERS = 512, 3
CHOICE: list[int | None] = [None, None, 0, 0, 1, 1, 2, 2]  # in the order of Engine.step
LENGTHS = [5, 64, 17, 33, 8, 50, 21, 40]


def build(folder: Path, parameters: list[str]) -> Pair:
    """Random weights, and adapters on attention and on these parameters, written by transformers and PEFT, read back by
    both."""
    torch.manual_seed(0)
    base = folder / "base"
    if not base.exists():
        MixtralForCausalLM(MixtralConfig(**SHAPE, vocab_size=VOCAB, num_local_experts=8)).save_pretrained(base)
    names = [f"a{i}" for i in range(ADAPTERS)]
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(ATTENTION_MODULES), target_parameters=parameters or None
    )
    where = folder / ("experts" if parameters else "attention")
    for name in names:
        peft = get_peft_model(MixtralForCausalLM.from_pretrained(base), lora)
        for key, p in peft.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(p, std=0.02)
        peft.save_pretrained(where / name)
    model = MixtralForCausalLM.from_pretrained(base, attn_implementation="eager")
    peft = PeftModel.from_pretrained(model, where / names[0], adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(where / name, name)
    ours = refimpl.load_model(base)
    adapters = [refimpl.load_adapter(where / name, ours.config, name=name) for name in names]
    return Pair(ours, adapters, peft.eval(), names)


def one_pass_for_each(pair: Pair, prompts: list[list[int]]) -> Callable[[], np.ndarray]:
    """PEFT's decode step of the same requests: those of one adapter at a time, each on top of its own cache."""
    passes = []
    for adapter in dict.fromkeys(CHOICE):
        rows = [i for i, other in enumerate(CHOICE) if other == adapter]
        longest = max(len(prompts[i]) for i in rows)
        padded = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in rows])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        cache = DynamicCache(config=pair.peft.config)
        run(pair, adapter, padded, mask, cache)
        passes.append((rows, adapter, torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], 1), cache))

    def step() -> np.ndarray:
        out = np.empty((len(CHOICE), VOCAB), np.float32)
        for rows, adapter, mask, cache in passes:
            if cache.get_seq_length() >= mask.shape[1]:
                cache.crop(-1)  # forget the step before
            out[rows] = run(pair, adapter, torch.full((len(rows), 1), 7), mask, cache)
        return out

    return step


def run(pair: Pair, adapter: int | None, ids: "torch.Tensor", mask: "torch.Tensor", cache: DynamicCache) -> np.ndarray:
    """The last token's logits of one pass with one adapter, or without any."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        arguments = dict(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        if adapter is None:
            with pair.peft.disable_adapter():
                return pair.peft(**arguments, use_cache=True).logits[:, -1].numpy()
        pair.peft.set_adapter(pair.names[adapter])
        return pair.peft(**arguments, use_cache=True).logits[:, -1].numpy()


def limit_ms(pair: Pair, rows: int, contexts: list[int], tokens: int, adapters: int) -> float:
    """What the bytes and flops of a step need at least, at what this machine does at best."""
    config = pair.ours.config
    ranks = {module: len(lora.A) for module, lora in pair.adapters[0].lora.items()}
    work = base_work(config, Step(rows, tokens, 0, 0), 4) + lora_work(config, ranks, Step(rows, tokens, 0, adapters), 4)
    for context in contexts:
        work = work + attention_work(config, Step(1, tokens, context, 0), 4)
    return 1e3 * this_machine().seconds(work, "float32")


def main() -> None:
    """Build, verify, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1", help="threads of both sides (default 1)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(int(args.threads))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # the adapters' base is a temporary folder, and PEFT says so
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCAB, n).tolist() for n in LENGTHS]
    results: dict[str, dict[str, float]] = {}

    def report(name: str, ours: Callable, theirs: Callable, limit: float, in_a_row: int) -> None:
        differs = float(np.abs(ours() - theirs()).max())
        assert differs <= 1e-3, f"{name}: the two differ by {differs}: nothing is timed"
        figures = ratio(ours, theirs, args.repeats, in_a_row) | {"max_abs_difference": differs, "limit_ms": limit}
        results[name] = figures
        print(
            f"{name:52} {figures['ratio']:6.2f}x   ours {figures['ours_ms']:8.2f} ms  "
            f"other {figures['other_ms']:8.2f} ms   limit {limit:8.2f} ms"
        )

    with tempfile.TemporaryDirectory() as folder:
        attention = build(Path(folder), [])
        contexts = [n + 1 for n in LENGTHS]
        ours, theirs, _ = prepared(attention, prompts, CHOICE)
        report(
            "decode, 8 requests, 3 adapters on attention + base",
            ours,
            theirs,
            limit_ms(attention, 8, contexts, 1, 3),
            5,
        )
        long = [rng.integers(1, VOCAB, 256).tolist() for _ in range(4)]
        ours, theirs, _ = prefill(attention, long, [0, 1, 2, None])
        report("prefill, 4 x 256 tokens, the same", ours, theirs, limit_ms(attention, 4, [256] * 4, 256, 3), 1)
        everywhere = build(Path(folder), EXPERTS)
        ours = our_decode(everywhere, prompts, CHOICE)
        theirs = one_pass_for_each(everywhere, prompts)
        report("decode, adapters on experts, too", ours, theirs, limit_ms(everywhere, 8, contexts, 1, 3), 3)
    if args.json:
        args.json.write_text(json.dumps({"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
