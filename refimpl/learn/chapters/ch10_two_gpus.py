# %% [markdown]
# # 10. Two GPUs
#
# A model that is too large for one GPU is cut: each GPU, called a *rank*, holds a part of every W and computes a part
# of every product. (The word is unlucky: the rank r of an adapter is another thing.) What becomes of A and B then? One
# of the two is cut, and which one depends on the layer. Engines have cut the wrong one. This chapter opens
# `refimpl/learn/two_ranks.py`, which plays two ranks in one process, and ends with the function that cuts.
#
# You need: chapter 1 (one product and a patch) and chapter 2. Time: 40 minutes.
#
# To run it: `python chapters/ch10_two_gpus.py`, in your course's folder.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams
from loracle.learn.two_ranks import SPLITS, Ranks

model = loracle.load_model("tiny", dtype="float64")
robot = loracle.load_adapter("robot", model.config)
ids = model.tokenizer.encode(loracle.tiny.DEMO_PROMPTS[0])
x = np.random.default_rng(10).standard_normal((3, 512))


def weights(name):
    """W of the first layer's module, the robot's A and B there, and his scale."""
    lora = robot.lora[0, name]
    scale = loracle.NUMPY.adapter_scale(robot.config.lora_alpha, len(lora.A), robot.config.use_rslora)
    return model.linear((0, name)).weight, lora.A.astype(float), lora.B.astype(float), scale


# %% [markdown]
# ## 1. Column-parallel: B is cut
# `q_proj` makes outputs that nobody mixes: the heads. So each rank computes half of the outputs from all of x. W loses
# half of its rows, and so does B, which has a row for each output, too. A stays whole, on both ranks.

# %%
W, A, B, scale = weights("q_proj")
x_q, half = x[:, : A.shape[1]], len(W) // 2
one_gpu = x_q @ W.T + scale * (x_q @ A.T) @ B.T
ranks = [x_q @ W[rows].T + scale * (x_q @ A.T) @ B[rows].T for rows in (slice(half), slice(half, None))]
print(f"q_proj: two ranks side by side are off by {np.abs(np.hstack(ranks) - one_gpu).max():.1e}")
assert np.allclose(np.hstack(ranks), one_gpu, atol=1e-12)

# %% [markdown]
# ## 2. Row-parallel: A is cut
# `down_proj` reads what the ranks have computed, and each has only its half of it. So W loses half of its *columns*,
# and so does A, which has a column for each input. Each rank gets all outputs, of half a sum; an *all-reduce* adds the
# halves up, and every rank has the whole. The delta is linear, so that its halves go into the same sum.

# %%
W, A, B, scale = weights("down_proj")
one_gpu, half = x @ W.T + scale * (x @ A.T) @ B.T, x.shape[1] // 2
columns = (slice(half), slice(half, None))
ranks = [x[:, part] @ W[:, part].T + scale * (x[:, part] @ A[:, part].T) @ B.T for part in columns]
print(f"down_proj: the sum of two ranks is off by {np.abs(sum(ranks) - one_gpu).max():.1e}")
assert np.allclose(sum(ranks), one_gpu)

# %% [markdown]
# What if each rank adds the *whole* delta, because the adapter is small and "everybody has it"? Then it is in the sum
# once for each rank.

# %%
delta = scale * (x @ A.T) @ B.T
wrong = sum(x[:, part] @ W[:, part].T + delta for part in columns)
off = np.abs(wrong - one_gpu).max()
print(f"the delta on every rank: off by {off:.2f}; the delta itself: {np.abs(delta).max():.2f}")
assert np.allclose(wrong - one_gpu, delta)

# %%
r, (d_out, d_in) = len(A), W.shape
n = d_in // 2
diagram = diagrams.matrices(
    [("W rank 0", d_out, n), ("W rank 1", d_out, n, -1), ("A rank 0", r, n, 0), ("A rank 1", r, n, 1),
     ("B on both", d_out, r, 2)],
    "down_proj on two ranks: A is cut with the columns of W, B is whole",
)  # fmt: skip
print(diagram)
diagram

# %% [markdown]
# ## 3. All layers
# `Ranks` does that to every layer of the model: q, k, v, gate and up are cut into outputs, o and down into inputs. It
# counts what has to be sent. Two all-reduces for each layer are what the base costs; the adapter adds none, because its
# delta is in the partial sums before they are sent, as in vLLM and TensorRT-LLM.

# %%
print("cut:", "  ".join(f"{name} {split}" for name, split in SPLITS.items()))
alone = loracle.logits(model, [loracle.Request(ids, adapter=robot)])[0]
for who, adapter in (("base", None), ("robot", robot)):
    two = Ranks(model)
    ops = dataclasses.replace(loracle.NUMPY, **two.steps)
    rows = loracle.logits(model, [loracle.Request(ids, adapter=adapter)], ops)
    print(f"{who:5} {two.collectives['all-reduce']} all-reduces in one forward pass")
difference = np.abs(rows[0] - alone).max()
print(f"the robot on two ranks against one: {difference:.1e}, on logits up to {np.abs(alone).max():.0f}")

# %% [markdown]
# ## 4. Three layers in one matrix
# Many engines keep q, k and v as one matrix and their adapter as one B of 256 + 128 + 128 rows. Cut *that* in two runs
# of 256, and the first rank gets all of q and nothing else. It has to be cut part by part (TensorRT-LLM pull request
# 8063).

# %%
q, k, v = model.config.head_widths()
rows = np.array(["q"] * q + ["k"] * k + ["v"] * v)
by_part = [np.split(rows[rows == name], 2) for name in "qkv"]
for how, ranks in (
    ("in one piece", np.split(rows, 2)),
    ("part by part", [np.concatenate(of_rank) for of_rank in zip(*by_part, strict=True)]),
):
    shares = (", ".join(f"{(rank == name).sum()} of {name}" for name in "qkv") for rank in ranks)
    print(f"{how}:  rank 0 gets {next(shares)};  rank 1 gets {next(shares)}")

# %% [markdown]
# ## 5. What it saves, and what it does not
# Llama 3.1 8B, `q_proj` [4096, 4096], rank 16, two bytes a number, eight GPUs. Half of the adapter is on all of them.

# %%
width, r, gpus = 4096, 16, 8
kB = 2 * width * r / 1e3  # of A, and of B, which is as large here
print(f"A {kB:.0f} kB on every rank, B {kB / gpus:.0f} kB of {kB:.0f} kB")
print(f"all eight ranks together: {(gpus + 1) * kB:.0f} kB, for an adapter of {2 * kB:.0f} kB")

# %% [markdown]
# That is why vLLM has `fully_sharded_loras` (S-LoRA's way, Sheng et al. 2023): it cuts A along its rank as well, and
# pays with one more collective (an *all-gather*, of r numbers a token) in each layer. Cheap at a large rank and many
# GPUs, dear at a small one.
#
# ## 6. Your turn
# `ch10_shard.py`: write `shard(A, B, split, ranks)`, for any number of ranks. Nothing of x and W is at hand
# there: the shapes of A and B say enough. `loracle learn check` joins what your parts compute, and lets the robot talk
# on two GPUs. Then read how `two_ranks.py` does it, and how TensorRT-LLM's way looks
# (`refimpl/formats/tensor_parallel.py`): the same, and the fused layers. `refimpl/parallel/` does it with
# real processes: `mpirun -n 2 loracle generate ...` (docs/parallel.md).
