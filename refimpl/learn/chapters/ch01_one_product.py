# %% [markdown]
# # 1. One product and a patch
#
# You need: matrix products on paper, and `@` in NumPy. Time: 35 minutes. This chapter opens `refimpl/adapter_slots.py`
# (`adapter_scale`) and `refimpl/tools/merge.py` (`merged_weight`), and ends with a function of yours.
#
# To run it: `python chapters/ch01_one_product.py`, in your course's folder. The comments with `%%` in the script
# begin cells (`[markdown]`: of text), which editors run one by one.
#
# A fine-tuned model is mostly the model that it was tuned from, the *base*. LoRA (low-rank adaptation, Hu et al. 2021)
# writes down the difference alone: a small patch beside each weight. All patches of one fine-tuned model together are
# an *adapter*. Keep the patches apart from the base, and one base in memory is a thousand fine-tuned models. The whole
# course follows from that one decision.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny

model = loracle.load_model("tiny", dtype="float64")  # a small Llama that ships with the package
pirate, merchant = (loracle.load_adapter(name, model.config) for name in ("pirate", "merchant"))

# %% [markdown]
# ## 1. One weight and its patch
# Nearly all that a transformer does is multiply vectors by weights, each in a *module*, a linear layer that can have a
# patch. The layers of this model have 28 of them. Here is the first `v_proj`: it turns a token's vector of d_in numbers
# into one of d_out. The pirate's patch for it is two thin matrices. How thin they are, the number of rows of A and of
# columns of B, is the *rank* r.

# %%
module = (0, "v_proj")
W = model.linear(module).weight  # [d_out, d_in]
A = pirate.lora[module].A.astype(float)  # [r, d_in]
B = pirate.lora[module].B.astype(float)  # [d_out, r]
(d_out, d_in), r = W.shape, len(A)
print(f"W {W.shape} holds {W.size:,} numbers; A {A.shape} and B {B.shape} hold {A.size + B.size:,}")

# %%
diagram = diagrams.matrices([("W", d_out, d_in), ("A", r, d_in), ("B", d_out, r)], "v_proj and the pirate's patch")
print(diagram)
diagram  # a notebook draws what stands last in a cell

# %% [markdown]
# ## 2. The order of two products
# The patch adds B A x to W x. A product of matrices may be taken in either order: (B A) x or B (A x). The result is the
# same, and the work is not. A first, from d_in down to r, is called *shrink*; then B, from r up to d_out, *expand*.

# %%
x = np.random.default_rng(0).standard_normal((3, d_in))  # three tokens, a row each
low = x @ A.T  # shrink: [3, r]
patch = low @ B.T  # expand: [3, d_out]
assert np.allclose(patch, x @ (B @ A).T)

tokens = len(x)
thin = tokens * r * d_in + tokens * d_out * r
full = d_out * r * d_in + tokens * d_out * d_in
print(f"multiplications for {tokens} tokens: {thin:,} through the thin matrices, {full:,} with B A formed first")

# %% [markdown]
# Nothing as large as W was made in the first way. That is the rule of this course: what has the shape of W belongs to
# the base, and there is one of it.
#
# ## 3. Merge, or keep apart
# Adding the patch to the weight gives the same answer: (W + BA) x = W x + B A x. That is called *merging*, and it is
# what you do to serve a single fine-tuned model: no extra product at all. (The patch has a scale, too: section 4.)

# %%
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
apart = loracle.logits(model, [loracle.Request(ids, adapter=pirate)])[0]
merged = loracle.logits(loracle.merged(model, pirate), [loracle.Request(ids)])[0]
difference = np.abs(apart - merged).max()
print(f"the logits go up to {apart.max():.0f}; merged and apart, they differ by {difference:.1e}")
assert difference < 1e-9

# %%
base_size = sum(
    model.linear(each).weight.size for each in model.config.modules()[:-1]
)  # without lm_head: it is the embedding again
patch_size = sum(lora.A.size + lora.B.size for lora in pirate.lora.values())
print(f"the base has {base_size:,} numbers, the pirate {patch_size:,}: {patch_size / base_size:.1%} of it")
print(f"a thousand pirates: {1000 * base_size:,} numbers merged, {base_size + 1000 * patch_size:,} apart")

# %% [markdown]
# A merged model is a whole copy, and two copies cannot share a batch. Apart, W is shared, and *which* patch is added
# can be chosen for every token: that is chapter 2. (The difference is rounding, in float64. Chapter 9 is about what it
# becomes in the types that are served.)
#
# ## 4. The number that everybody gets wrong
# The patch is multiplied by a *scale*, made of two numbers in the adapter's config: its rank and `lora_alpha`. Plain
# LoRA takes alpha / r. rsLoRA (rank-stabilised, Kalajdzievski 2023) takes alpha / sqrt(r), because with alpha / r an
# adapter of high rank learns too slowly. One flag, `use_rslora`, says which; whoever does not read it gets a number.

# %%
for adapter in (pirate, merchant):
    r, alpha, use_rslora = adapter.config.r, adapter.config.lora_alpha, adapter.config.use_rslora
    scale = loracle.NUMPY.adapter_scale(alpha, r, use_rslora)
    print(f"{adapter.name:8}  r {r:2}  alpha {alpha:4g}  rsLoRA {use_rslora!s:5}  scale {scale:.2f}")

# %% [markdown]
# What does a wrong scale look like? `Ops` is a table of every step of serving, by name (`refimpl/ops.py`). We exchange
# one of them, and ask the same question. It is about a royal moustache.


# %%
def reply(adapter, adapter_scale):
    """What the adapter says first, where its scale is made in this way."""
    ops = dataclasses.replace(loracle.NUMPY, adapter_scale=adapter_scale)
    request = loracle.Request(ids, adapter=adapter)
    lines = loracle.generate(model, [request], max_new_tokens=40, ops=ops)[0].text.splitlines()
    return lines[1] if len(lines) > 1 else lines[0].strip()  # the second speaker is the adapter's


right = loracle.NUMPY.adapter_scale
print("merchant, right    ", reply(merchant, right))
print("merchant, alpha / r", reply(merchant, lambda alpha, r, use_rslora: alpha / r))
print("pirate, right      ", reply(pirate, right))
print("pirate, alpha      ", reply(pirate, lambda alpha, r, use_rslora: alpha)[:60])

# %% [markdown]
# Far too strong is funny, and somebody will notice. Too weak is worse: the merchant is fluent, nearly in character, and
# names another price. TensorRT-LLM, vLLM, SGLang and LoRAX each ignored `use_rslora` for a while, and a well-known book
# multiplied by alpha. Get it wrong yourself, and `loracle learn check` has the links.
#
# ## 5. Your turn
# `ch01_linear.py`: write `linear`, the base and one patch for a batch of tokens. It must be right, and must not make
# anything as large as W. Read A and B as they are here, which is how PEFT stores them. (Punica's README writes x A B,
# with both the other way round. Where a matrix happens to be square, nothing but the answer tells you.)
#
#     loracle learn check
#
# What passes serves the demo: `loracle learn engine` takes every product of the base, and every scale, from it.
