"""vLLM as its users start it, with prompt_logprobs of two requests: PYTHON job_vllm.py BASE ADAPTER IDS."""

import json
import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(base: str, adapter: str, ids: str) -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    llm = vllm.LLM(
        base,
        skip_tokenizer_init=True,
        enable_lora=True,
        max_loras=2,
        dtype="float32",
        enforce_eager=True,
        max_model_len=48,
        max_num_seqs=2,
        kv_cache_memory_bytes=67108864,
    )
    params = vllm.SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1, detokenize=False)
    prompts = [{"prompt_token_ids": json.loads(ids)}] * 2
    llm.generate(prompts, [params] * 2, lora_request=[LoRARequest("a", 1, adapter), None])


if __name__ == "__main__":
    main(*sys.argv[1:])
