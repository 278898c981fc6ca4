"""vLLM on the requests of a job, in float32 on one thread: PYTHON job_vllm.py job.json out.npz

job.json: {"base": folder, "batches": [[{"ids": [...], "adapter": folder or null}, ...], ...], "max_new_tokens": n,
           "max_loras": how many adapters one batch may have}
out.npz:  "engine" and, for request i, counted through all batches, "tokens_i" and "logprobs_i": a row for every token
          of the prompt and every token produced but the last.

The adapters get their slots in the order in which the requests name them first.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import numpy as np
import vllm
from vllm.lora.request import LoRARequest

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that max_lora_rank may be


def ranks(adapter: str) -> list[int]:
    """All ranks that the adapter's config names."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return [config["r"], *config.get("rank_pattern", {}).values()]


def log_probabilities(positions: Sequence[dict]) -> np.ndarray:
    """From {token id: Logprob} of each position to [position, vocab]."""
    return np.array([[p[token].logprob for token in range(len(p))] for p in positions])


def main(job_path: str, out_path: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    requests = [r for batch in job["batches"] for r in batch]
    adapters = list(dict.fromkeys(r["adapter"] for r in requests if r["adapter"]))
    needed = max(rank for adapter in adapters for rank in ranks(adapter))
    llm = vllm.LLM(
        job["base"],
        enable_lora=True,
        max_loras=job["max_loras"],
        max_lora_rank=min(rank for rank in RANKS if rank >= needed),
        # Without this line prompt_logprobs of two or more requests kill vLLM 0.32.0.
        lora_target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=max(len(batch) for batch in job["batches"]),
        max_num_batched_tokens=256,
        max_logprobs=-1,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2**26,
    )
    loras = {adapter: LoRARequest(Path(adapter).name, i, adapter) for i, adapter in enumerate(adapters, 1)}
    for lora in loras.values():  # else the slots come out of a set: in another order every time
        llm.llm_engine.add_lora(lora)
    greedy = vllm.SamplingParams(
        temperature=0, max_tokens=job["max_new_tokens"], logprobs=-1, prompt_logprobs=-1, ignore_eos=True
    )

    results = {}
    for batch in job["batches"]:
        prompts = [{"prompt_token_ids": r["ids"]} for r in batch]
        outputs = llm.generate(prompts, greedy, use_tqdm=False, lora_request=[loras.get(r["adapter"]) for r in batch])
        for output in outputs:
            i, produced = len(results) // 2, output.outputs[0]
            results[f"tokens_{i}"] = np.array(produced.token_ids)
            # Nothing predicts the first token of a prompt.
            results[f"logprobs_{i}"] = log_probabilities([*output.prompt_logprobs[1:], *produced.logprobs])
    np.savez(out_path, engine=f"vLLM {vllm.__version__}", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
