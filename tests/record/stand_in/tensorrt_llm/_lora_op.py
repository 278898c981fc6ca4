"""torch.ops.trtllm.lora_grouped_gemm, by refimpl/tensorrt_llm/: both paths, and the alignment of ranks."""

import os
from typing import Any

import numpy as np
import torch

from refimpl.arrays import rounded
from refimpl.lora import shrink
from refimpl.tensorrt_llm.arithmetic import split_k_shrink
from refimpl.tensorrt_llm.rank_alignment import check_grouped

from ._stand_in import FAULT


def register() -> None:
    """Register the operator, as importing the package does."""
    if FAULT != "no operator":
        torch.ops.trtllm.lora_grouped_gemm = lora_grouped_gemm


def lora_grouped_gemm(
    x: Any,
    host_request_types: Any,
    lora_ranks: list[Any],
    lora_weights_pointers: list[Any],
    host_context_lengths: Any,
    output_hidden_sizes: list[int],
    trans_a: bool,
    trans_b: bool,
    max_low_rank: int,
    weight_index: int,
    is_remove_input_padding: bool,
) -> list[Any]:
    """Return for each module the delta [tokens, d_out], of the type of x."""
    assert x.device == "cuda" and x.dtype in (torch.float16, torch.bfloat16), "x: float16 or bfloat16, on the GPU"
    for name, t, dtype in [
        ("host_request_types", host_request_types, torch.int32),
        ("host_context_lengths", host_context_lengths, torch.int32),
        *(("lora_ranks", of_module, torch.int32) for of_module in lora_ranks),
        *(("lora_weights_pointers", of_module, torch.int64) for of_module in lora_weights_pointers),
    ]:
        assert t.device == "cpu" and t.dtype is dtype, f"{name}: {dtype} on the CPU"
    assert (trans_a, trans_b, weight_index, is_remove_input_padding) == (False, True, 0, True)
    dtype = x.dtype.name
    rows, lengths = x.numbers(), []
    for kind, n in zip(host_request_types.numpy(), host_context_lengths.numpy(), strict=True):
        lengths.append(int(n) if kind == 0 else 1)
    assert sum(lengths) == len(rows), f"{sum(lengths)} tokens in requests, {len(rows)} rows"
    ranks = [[int(r) for r in of_module.numpy()] for of_module in lora_ranks]
    pointers = [[tuple(map(int, row[:2])) for row in of_module.numpy()] for of_module in lora_weights_pointers]
    assert max(r for of_module in ranks for r in of_module) <= max_low_rank
    modules = [list(zip(*pair, strict=True)) for pair in zip(ranks, pointers, strict=True)]
    unified = os.environ.get("LORA_USE_UNIFIED_GEMM") != "OFF" and all(len(set(requests)) == 1 for requests in modules)
    outputs = []
    for requests, d_out in zip(modules, output_hidden_sizes, strict=True):
        if not unified:
            check_grouped({r for r, _ in requests}, rows.shape[1], [d_out])
        out, start = np.zeros((len(rows), d_out), np.float32), 0
        for (r, addresses), n in zip(requests, lengths, strict=True):
            if r:
                A, B = (torch.MEMORY[address].numbers() for address in addresses)
                assert A.shape == (r, rows.shape[1]) and B.shape == (d_out, r)
                shrunk = rounded((shrink if unified else split_k_shrink)(rows[start : start + n], A), dtype)
                out[start : start + n] = rounded(shrunk @ B.T, dtype)
            start += n
        outputs.append(torch.of_numbers(out, x.dtype))
    return outputs
