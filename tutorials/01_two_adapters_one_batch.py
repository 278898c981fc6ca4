# %% [markdown]
# # Two adapters, one batch
#
# A fine-tuned model is mostly the model it was tuned from. LoRA (Hu et al. 2021) writes the difference down as a small
# patch: next to each weight W [d_out, d_in] stand two thin matrices, A [r, d_in] and B [d_out, r], and
#
#     y = W x + scale * B (A x)          scale = alpha / r
#
# Serving a thousand fine-tuned models then needs one W and a thousand small patches. This tutorial goes from one
# product to two different patches inside one batch. Steps end with an assert: change something and see what breaks.
#
# Run it as a script (`python tutorials/01_two_adapters_one_batch.py`) or cell by cell in an editor.

# %%
import numpy as np
from grader import grade

import loracle
from loracle import tiny

model = loracle.load_model("tiny", dtype="float64")  # a small Llama that ships with the package
pirate = loracle.load_adapter("pirate", model.config)
robot = loracle.load_adapter("robot", model.config)

# %% [markdown]
# ## 1. One product and a patch
# `v_proj` of the first layer, and what the pirate's adapter holds for it.

# %%
module = (0, "v_proj")
W = model.linear(module).weight  # [d_out, d_in]
A, B = pirate.lora[module].A.astype(float), pirate.lora[module].B.astype(float)
r, alpha = A.shape[0], pirate.config.lora_alpha
scale = alpha / np.sqrt(r) if pirate.config.use_rslora else alpha / r
print(f"W {W.shape}: {W.size:,} numbers.  A {A.shape} and B {B.shape}: {A.size + B.size:,}.  scale = {scale:g}")

rng = np.random.default_rng(0)
x = rng.standard_normal((3, W.shape[1]))  # three tokens
base = x @ W.T
low = x @ A.T  # shrink: d_in -> r
patch = scale * (low @ B.T)  # expand: r -> d_out
y = base + patch

# %% [markdown]
# ## 2. The same as changing the weights
# Adding the patch to W (merging) gives the same y. That is what people serve when they serve one fine-tuned model; but
# a merged W is a whole copy of the model.

# %%
W_pirate = W + scale * (B @ A)
assert np.allclose(y, x @ W_pirate.T)

# %% [markdown]
# ## 3. Not merged, it can be chosen per token
# `adapter_ids[t]` says which patch token t gets; -1 is none. Every row shares the product with W, which is nearly all
# of the work. This loop is the definition that every fast kernel must equal.

# %%
A2, B2 = robot.lora[module].A.astype(float), robot.lora[module].B.astype(float)
scale2 = loracle.NUMPY.adapter_scale(robot.config.lora_alpha, A2.shape[0], robot.config.use_rslora)
slots = [(A, B, scale), (A2, B2, scale2)]  # 0: pirate, 1: robot, at their own ranks: nothing is padded
adapter_ids = np.array([0, -1, 1])

y = x @ W.T
for t, i in enumerate(adapter_ids):
    if i != -1:
        A_t, B_t, scale_t = slots[i]
        y[t] += scale_t * (B_t @ (A_t @ x[t]))

assert np.allclose(y[0], W_pirate @ x[0])
assert (y[1] == base[1]).all()  # bit for bit: the row without an adapter was not touched

# %% [markdown]
# ## 4. By adapter instead of by token
# Tokens that share an adapter can share its two products. Gather them, multiply, put the result back where it came from
# (Punica calls this SGMV; forgetting the way back is a bug that real engines had).

# %%
fast = x @ W.T
for i, (A_i, B_i, scale_i) in enumerate(slots):
    rows = np.flatnonzero(adapter_ids == i)
    fast[rows] += scale_i * (x[rows] @ A_i.T) @ B_i.T
assert np.allclose(fast, y)

# %% [markdown]
# ## 5. The whole model
# The same happens in every linear layer of every transformer layer. `loracle.logits` runs requests for different
# adapters as one batch, and each gets exactly what it would get alone.

# %%
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
requests = [loracle.Request(ids, adapter=adapter) for adapter in (pirate, None, robot)]
together = loracle.logits(model, requests)
alone = [loracle.logits(model, [request])[0] for request in requests]
difference = max(float(np.abs(row - other).max()) for row, other in zip(together, alone, strict=True))
print(f"batched against alone: {difference:.1e}, on logits up to {np.abs(alone[0]).max():.0f}")
assert difference < 1e-9

for request, output in zip(requests, loracle.generate(model, requests, max_new_tokens=48), strict=True):
    name = request.adapter.name if request.adapter else "base"
    print(f"\n--- {name}\n{output.text.strip()}")

# %% [markdown]
# ## 6. Your turn
# Write step 4 for any number of adapters, in place: add to `y`, leave rows with id -1 alone. `A` and `B` are lists, one
# matrix per adapter, of different ranks. The grader tries random batches, and shows a small one on which your answer
# differs from the loop of step 3.


# %%
def my_lora_delta(y, x, A, B, scale, adapter_ids):
    raise NotImplementedError


print("\nYour turn: my_lora_delta, in the last cell.")
grade(my_lora_delta)
