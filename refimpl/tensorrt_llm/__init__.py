"""TensorRT-LLM's rules for LoRA, each as a page that runs. Nothing here needs, or imports, TensorRT-LLM.

    arithmetic.py      the two GEMM paths of the LoRA product, as tables of steps
    rank_alignment.py  which ranks may share a batch
    pages.py           how an adapter is laid out in the cache's pages
    lora_cache.py      one level of the cache: in progress and done, and who is evicted
    peft_cache.py      the two levels, host and device, and the requests that hold them
    block_key.py       which KV blocks two requests may share

Read from its sources (github.com/NVIDIA/TensorRT-LLM, the files named in each page), not from a run of it.
"""
