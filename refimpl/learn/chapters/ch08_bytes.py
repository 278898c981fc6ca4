# %% [markdown]
# # 8. Who reads which byte
#
# You need: chapters 2 and 3 (segments, a flat batch). Time: 60 minutes. This chapter opens `kernels/lora.cu` and
# `refimpl/cuda/launch/lora.py`, and ends with a function of yours.
#
# To run it: `python chapters/ch08_bytes.py`, in your course's folder.
#
# Why is one token at a time slow, on a machine that can multiply so fast? Because it has to *read* what it multiplies
# by. This chapter counts bytes: first those of the base, then those of the adapters, where one kernel reads a matrix
# once for each token, and another once for sixteen.

# %%
import os

import numpy as np

import loracle
from loracle import diagrams
from loracle.adapter_slots import LoraWeights
from loracle.cuda import launch
from loracle.plans import LoraMapping

os.environ["LORACLE_KERNELS"] = "cpu"  # there bytes can be counted; a GPU does not tell

# %% [markdown]
# ## 1. Decode is reading
# One token through W: d_out x d_in numbers are read, and each takes part in one multiplication and one addition. With n
# tokens in the batch the same bytes are read once, and each number is used n times. An H100 (data sheet: 989 TFLOP/s in
# half precision, 3.35 TB/s from memory) multiplies for free until its memory is no longer what it waits for.

# %%
compute, bandwidth = 989e12, 3.35e12  # operations and bytes in a second
weights = 16.1e9  # bytes of Llama 3 8B: chapter 7
for n in (1, 16, 64, 256, 1024):
    reading, computing = weights / bandwidth, n * weights / compute  # 2 bytes a number, 2 operations a number
    print(f"{n:5} tokens: {1e3 * reading:.1f} ms to read the weights, {1e3 * computing:5.2f} ms to multiply")
print(f"multiplying takes longer than reading from {compute / bandwidth:.0f} tokens on")

# %% [markdown]
# So a batch is nearly free, up to some hundred tokens: that is why servers batch at all. It holds for the base, which
# all tokens share. Every adapter is read on top of it, and the question is how often.
#
# ## 2. Two ways to launch the same product
# A kernel is launched as a *grid of blocks*. Each block runs on its own and has some threads; what a block needs, it
# reads from memory. Shrink is A x: `rank` numbers for each token. Two ways to divide that among blocks:
#
# - **BGMV** (batched gather matrix-vector): a block for each token, and four rows of A. Every token reads its adapter.
# - **SGMV** (segmented): a block for up to 16 tokens *of one adapter*, and 16 rows of A. A segment reads it once.
#
# Four tokens of two adapters; "t0 j4-7" is a block for token 0 and the rows 4 to 7 of its adapter's A.

# %%
adapter_ids = [0, 0, 1, 1]  # of four tokens; both adapters have rank 16
blocks = {(t, j): f"t{t} j{4 * j}-{4 * j + 3}" for t in range(4) for j in range(4)}
owner = {(t, j): adapter_ids[t] for t, j in blocks}
diagram = diagrams.launch_grid((4, 4), 128, blocks, "BGMV: grid (tokens, rank / 4)", owner)
print(diagram)
diagram

# %%
blocks = {(0, 0): "t0-1 j0-15", (1, 0): "t2-3 j0-15"}
diagram = diagrams.launch_grid((2, 1), 256, blocks, "SGMV: grid (segments, rank / 16)", {(0, 0): 0, (1, 0): 1})
print(diagram)
diagram

# %% [markdown]
# ## 3. Count
# How many bytes of A does each read? Sixteen tokens, d_in 256, rank 16, four bytes a number. `Ops.segments` sorts the
# tokens by adapter and cuts them into segments of at most 16.

# %%
d_in, rank, tokens = 256, 16, 16
one_A = rank * d_in * 4
batches = {
    "one adapter": [0] * tokens,
    "four adapters": [t // 4 for t in range(tokens)],
    "all different": list(range(tokens)),
}


def bytes_of_A(adapter_ids):
    rows, starts = loracle.NUMPY.segments(np.array(adapter_ids, np.int32), 16)
    return {"BGMV": len(rows) * one_A, "SGMV": (len(starts) - 1) * one_A, "distinct": len(set(adapter_ids)) * one_A}


# %%
sizes = []
for name, adapter_ids in batches.items():
    counts = bytes_of_A(adapter_ids)
    print(f"{name:13}", "  ".join(f"{kernel} {n:>7,}" for kernel, n in counts.items()))
    sizes += [(f"{name}, {kernel}", counts[kernel]) for kernel in ("BGMV", "SGMV")]
diagram = diagrams.bars(sizes, unit="B", title="Bytes of A that sixteen tokens read")
print(diagram)
diagram

# %% [markdown]
# Tokens that share an adapter are worth a segment: a prefill is a run of tokens with one adapter. If all differ, as in
# the decode of sixteen customers, a segment holds one token, and BGMV does the same with less ado.
#
# ## 4. Measure
# Is it true? Our kernels also run on a CPU, block by block, under a *checker* that counts each byte that a thread
# reads. It needs a C++ compiler; `loracle learn doctor` says if there is one.

# %%
A, B = (np.ones(shape, np.float32) for shape in ((rank, d_in), (d_in, rank)))
x, y = (np.zeros((tokens, d_in), np.float32) for _ in range(2))


def measured(adapter_ids, kernel):
    """Bytes of A that shrink reads: all, and how many different ones."""
    packed = launch.pack([{slot: LoraWeights(A, B, scale=1.0) for slot in set(adapter_ids)}], [d_in], "float32")
    mapping = LoraMapping.of(np.array(adapter_ids, np.int32)[:, None], np.ones((tokens, 1)))
    kernels = launch.LoraLaunch(f"{kernel}_shrink_v2", f"{kernel}_expand_v2")
    with launch.checked() as launches:
        launch.lora_delta(y, x, packed, mapping, launch=kernels)
    return launches[0].moved["weights"]


# %%
try:
    for adapter_ids in batches.values():
        counts = bytes_of_A(adapter_ids)
        for kernel in ("BGMV", "SGMV"):
            traffic = measured(adapter_ids, kernel.lower())
            assert (traffic.loaded, traffic.distinct_loaded) == (counts[kernel], counts["distinct"])
    print("the checker counts the same")
except loracle.LoracleError as error:
    print("not measured here:", error)

# %% [markdown]
# With one adapter, BGMV reads 16 KiB of A sixteen times. (Some of that comes from the GPU's caches: lab D measures what
# it costs on your card.) The engine chooses for each launch, and takes SGMV from four tokens an adapter on.

# %%
for name, adapter_ids in batches.items():
    kernels = launch.choose(tokens, len(set(adapter_ids)), rank, d_in, slices=1, dtype="float32", round_rank=False)
    print(f"{name:13} -> {kernels.shrink}")

# %% [markdown]
# ## 5. Your turn
# A block of SGMV believes what the plan says: it takes *the adapter of the segment's first token* for all of them. So
# everything hangs on the plan, a few lines on the host. `ch08_segments.py`: write `segments`. Every token that has an
# adapter is in one segment, a segment is of one adapter and not larger than `size`, and there are no more of them than
# needed: each is one more reading of A and of B.
#
#     loracle learn check
#
# What passes plans every launch of `loracle learn engine`, for the kernels and for NumPy alike. Lab B is the kernel.
