# %% [markdown]
# # 2. Two adapters, one batch
#
# You need: chapter 1 (shrink, expand, scale). Time: 40 minutes. This chapter opens `refimpl/lora.py` (both forms of
# `lora_delta`), and ends with a function of yours.
#
# To run it: `python chapters/ch02_two_adapters.py`, in your course's folder.
#
# To multiply one row by W, a machine reads all of W; to multiply many rows, it reads W once. So a server collects rows:
# tokens of many users, one under the other, a *batch*. If every user has an adapter of their own, can they still share
# one? "A thousand adapters, a thousand requests: how often does the base run?" somebody asked vLLM (issue 8228). Once
# for all of them. This chapter is why.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.oracle.bugs import all_mutants

model = loracle.load_model("tiny", dtype="float64")
names = ("pirate", "merchant")
voices = {name: loracle.load_adapter(name, model.config) for name in names}

# %% [markdown]
# ## 1. An adapter for each token
# Six tokens in one batch. `adapter_ids[t]` says whose patch token t gets; **-1 is none**. The adapters lie in numbered
# *adapter slots*: 0 is the pirate here, 1 the merchant. Their ranks differ, and nothing is padded.

# %%
module = (0, "v_proj")
W = model.linear(module).weight  # [d_out, d_in]: one, for everybody
adapter_ids = np.array([0, 1, -1, 0, 1, 1])

A = [voices[name].lora[module].A.astype(float) for name in names]  # a list: [8, d_in], [12, d_in]
B = [voices[name].lora[module].B.astype(float) for name in names]
configs = [voices[name].config for name in names]
scale = [loracle.NUMPY.adapter_scale(config.lora_alpha, config.r, config.use_rslora) for config in configs]
print("ranks", [len(matrix) for matrix in A], " scales", np.round(scale, 2), " adapter_ids", adapter_ids)

# %% [markdown]
# The base multiplies all rows at once and knows nothing of adapters. Then each token gets its own correction. This loop
# is the *definition*: slow, obvious, and what every fast kernel has to equal.

# %%
x = np.random.default_rng(0).standard_normal((len(adapter_ids), W.shape[1]))
base = x @ W.T

y = base.copy()
for t, slot in enumerate(adapter_ids):
    if slot != -1:
        y[t] += scale[slot] * (B[slot] @ (A[slot] @ x[t]))

assert (y[2] == base[2]).all()  # bit for bit: the row without an adapter was not touched

# %% [markdown]
# ## 2. By adapter instead of by token
# The loop reads the merchant's A and B three times, once for each of its tokens. Tokens that share an adapter can share
# its two products: *gather* their rows, shrink, expand, and add the result where the rows came from. The rows of one
# adapter are a *segment*. (Punica calls it SGMV, segmented gather matrix-vector product; chapter 8 is about its bytes.)

# %%
fast = base.copy()
for slot in range(len(A)):
    rows = np.flatnonzero(adapter_ids == slot)  # gather
    fast[rows] += scale[slot] * (x[rows] @ A[slot].T @ B[slot].T)  # and put back

print(f"by token and by adapter, they differ by {np.abs(fast - y).max():.1e}")
assert np.allclose(fast, y)

# %%
diagram = diagrams.flat_batch({"token": range(6), "adapter_ids": adapter_ids}, adapter_ids, title="As they came")
print(diagram)
diagram

# %%
order = np.argsort(adapter_ids, kind="stable")
in_order = adapter_ids[order]
diagram = diagrams.flat_batch({"token": order, "adapter_ids": in_order}, in_order, title="Sorted into segments")
print(diagram)
diagram

# %% [markdown]
# The way back is easily forgotten. A kernel that writes the sorted rows to y[0], y[1], ... is right for every batch
# that happens to be sorted; and our engine, for one, sorts the requests of a batch by adapter.
#
# ## 3. The whole model
# The same happens in every linear layer. Three requests ask the same question; each gets what it would get alone.

# %%
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
requests = [loracle.Request(ids, adapter=adapter) for adapter in (voices["pirate"], None, voices["merchant"])]
together = loracle.logits(model, requests)
alone = [loracle.logits(model, [request])[0] for request in requests]
difference = max(np.abs(rows - others).max() for rows, others in zip(together, alone, strict=True))
print(f"in one batch and alone, they differ by {difference:.1e}; the logits go up to {alone[0].max():.0f}")
assert difference < 1e-9


# %%
def second_speaker(requests, ops=loracle.NUMPY):
    outputs = loracle.generate(model, requests, max_new_tokens=40, ops=ops)
    return [output.text.splitlines()[1] for output in outputs]


for name, line in zip(("pirate", "base", "merchant"), second_speaker(requests), strict=True):
    print(f"{name:8} {line}")

# %% [markdown]
# And how often did the base run? Every step is a field of `Ops`, so we can count the calls of one.

# %%
shapes = []


def counted(x, weight, bias, p):
    shapes.append(x.shape[0])
    return loracle.NUMPY.linear(x, weight, bias, p)


for batch in (requests, requests[:1]):
    shapes.clear()
    loracle.logits(model, batch, ops=dataclasses.replace(loracle.NUMPY, linear=counted))
    print(f"{len(batch)} request(s): {len(shapes)} products with a weight of the base, of {shapes[0]} rows each")

# %% [markdown]
# As often for three as for one; only the rows become more.
#
# ## 4. What -1 is in Python
# `A[-1]` is not nothing: it is the last one. Whoever indexes with `adapter_ids` and forgets that gives those who asked
# the base somebody's adapter. Loracle keeps the known bugs of engines as *mutants*, `Ops` with one step wrong. Here is
# one, on the same three requests.

# %%
mutant = all_mutants()["no_adapter_is_the_last_one"].make()
for line, wrong in zip(second_speaker(requests), second_speaker(requests, mutant), strict=True):
    print(f"{'same ' if line == wrong else 'OTHER'}  {wrong}")

# %% [markdown]
# Nobody with an adapter notices, and who has none does not think of adapters: they are sold something that the base
# would have kept. TensorRT-LLM's issue 2096 and vLLM's 49063 read like this: base requests change when others use LoRA.
#
# ## 5. Your turn
# `ch02_lora_delta.py`: write `lora_delta` for any number of adapters, **in place**: it adds to `y` and returns nothing,
# as kernels do. Rows with id -1 stay as they are, bit for bit, whatever stands in them. First get it right with the
# loop over tokens, then by adapter.
#
#     loracle learn check
#
# Once the loop has passed, a bare `check` goes on with chapter 3; `loracle learn check 2` grades what you write then.
#
# What passes serves the demo in `loracle learn engine`: the patches of all five voices go through it.
