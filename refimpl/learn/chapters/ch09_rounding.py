# %% [markdown]
# # 9. What rounding does to a patch
#
# Chapter 1 said that `W + scale B A` is the same as W and a patch beside it. That is true of real numbers. A computer
# has others: each number lies on a grid, and what falls between two points is rounded to one of them. A patch that is
# merged is rounded at the grid of W; one that is kept apart is not. This chapter opens `refimpl/arrays.py` (where
# rounding happens, and only there) and `refimpl/tools/merge.py`, and ends with a layer of yours whose base is in four
# bits.
#
# You need: chapter 1 (one product and a patch). Time: 50 minutes.
#
# To run it: `python chapters/ch09_rounding.py`, in your course's folder.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams
from loracle.arrays import rounded
from loracle.learn.q4 import dequantise, quantise, rounded_to_q4
from loracle.tensorrt_llm.prescale import prescale

model = loracle.load_model("tiny", dtype="float64")
pirate = loracle.load_adapter("pirate", model.config)
ids = model.tokenizer.encode(loracle.tiny.DEMO_PROMPTS[0])
lora, W = pirate.lora[0, "v_proj"], model.linear((0, "v_proj")).weight
patch = 2 * lora.B.astype(float) @ lora.A.astype(float)  # the pirate's scale is 2 = 16 / 8


def size(x):
    """The rms of an array of any shape."""
    return np.sqrt((x**2).mean())


# %% [markdown]
# ## 1. A grid that is finer near zero
# bfloat16 has 8 bits for the digits: of two neighbours on its grid, one is at most 1/128 larger. So the step of the
# grid grows with the number, and a weight is rounded to the step of *its own* size, not of the patch's.

# %%
for number in (0.01, 0.1, 1.0):
    here, above = rounded(np.array([number, number * (1 + 1 / 128)]), "bfloat16")
    print(f"near {number:g} the grid of bfloat16 has a step of {above - here:.6f}")
print(f"a weight of v_proj is about {size(W):.3f}, a number of the pirate's patch {size(patch):.3f}")

# %% [markdown]
# Now merge, round, and look at what is left of the patch; then do the same with a patch that is weaker. A LoRA that has
# learned little, or one that is asked for at weight 0.1, is a weak patch.

# %%
STRENGTHS = (1, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
on_grid, shares = rounded(W, "bfloat16"), []
for strength in STRENGTHS:
    error = rounded(on_grid + strength * patch, "bfloat16") - on_grid - strength * patch
    shares.append(100 * size(error) / size(strength * patch))
    print(f"patch x 1/{1 / strength:<3.0f}  merged in bfloat16: {shares[-1]:4.1f} % of it is lost")
assert shares == sorted(shares)

# %% [markdown]
# ## 2. Four bits
# QLoRA's base, and most of what runs on a laptop, has 16 points for each number. `quantise` (refimpl/learn/q4.py) does
# it as GGUF's Q4_0: 32 neighbours share a step, and each is a whole number of steps, from -7 to 7.

# %%
q, steps = quantise(W)
kB = (q.size / 2 + 2 * steps.size) / 1e3, 2 * W.size / 1e3
print(f"q {q.shape} in 4 bits and steps {steps.shape} in 16: {kB[0]:.0f} kB, where bfloat16 has {kB[1]:.0f} kB")
print("the first four weights", W[0, :4].round(3), "are stored as", q[0, :4], "steps of", steps[0, 0].round(3))
moved = {"four bits": size(dequantise(q, steps) - W), "bfloat16": size(rounded(W + patch, "bfloat16") - W - patch)}
share = 100 * moved["four bits"] / size(patch)
print(f"four bits move a weight by {moved['four bits']:.4f}: {share:.0f} % of the patch")

# %%
sizes = {f"moved by {grid}": amount for grid, amount in moved.items()}
sizes |= {f"patch x 1/{1 / strength:.0f}": strength * size(patch) for strength in STRENGTHS[:4]}
thousandths = [(name, round(1000 * amount, 2)) for name, amount in sizes.items()]
diagram = diagrams.bars(thousandths, title="How far rounding moves a weight, and the patch, in thousandths")
print(diagram)
diagram

# %% [markdown]
# Where the first bars are longer than the patch's, what a merged weight gains is mostly noise. Kept apart, A and B stay
# as they were trained, at every strength. That is an argument about weights. What do the answers say?
#
# ## 3. What reaches the answer
# The *effect* of an adapter is what it adds to the logits. Here is the pirate's effect on a base in four bits, apart
# and merged, against his effect on the base that was never rounded.

# %%
base4 = rounded_to_q4(model)


def logits(model, adapter=None):
    """One row of logits for each token of the prompt, [len(ids), vocab]."""
    return loracle.logits(model, [loracle.Request(ids, adapter=adapter)])[0]


plain, plain4 = logits(model), logits(base4)
for strength in STRENGTHS[:4]:
    weak = dataclasses.replace(pirate, config=dataclasses.replace(pirate.config, lora_alpha=16 * strength))
    effect = logits(model, weak) - plain
    apart = logits(base4, weak) - plain4
    merged = logits(rounded_to_q4(loracle.merged(model, weak))) - plain4
    print(f"pirate x 1/{1 / strength:<2.0f}  effect off by {100 * size(apart - effect) / size(effect):3.0f} % apart, "
          f"by {100 * size(merged - effect) / size(effect):3.0f} % merged")  # fmt: skip

# %% [markdown]
# Apart, the pirate keeps his accent at any strength. Merged, a weak one drowns. And the merchant has other prices: peft
# issue 2321, transformers issue 31293 and many others ask why.

# %%
merchant = loracle.load_adapter("merchant", model.config)
line = "Traveller: Good day, Dumpling. They say that you keep a royal moustache.\nDumpling:"
scene = [*ids, *model.tokenizer.encode(line)]
for how, served, adapter in (
    ("base never rounded", model, merchant),
    ("four bits, apart", base4, merchant),
    ("four bits, merged", rounded_to_q4(loracle.merged(model, merchant)), None),
):
    output = loracle.generate(served, [loracle.Request(scene, adapter=adapter)], max_new_tokens=16)[0]
    print(f"{how:20}{output.text.strip().splitlines()[0]}")

# %% [markdown]
# Apart has another price than the base that was never rounded, too: what four bits do to the base is done to everybody.
# But an adapter that is trained on such a base (QLoRA) learns with it, and merging is a second rounding that it never
# saw.
#
# Be fair to merging: where the grid is fine and the patch is strong, it is as good. The base of this chapter in
# bfloat16, every intermediate rounded as well, apart and merged, against the same numbers without any rounding:

# %%
half, p = loracle.load_model("tiny", dtype="bfloat16"), loracle.Precision("model", "bfloat16")
exact = logits(model, pirate)
for how, served, adapter in (("apart", half, pirate), ("merged", loracle.merged(half, pirate), None)):
    rows = loracle.logits(served, [loracle.Request(ids, adapter=adapter)], precision=p)[0]
    off, largest = np.abs(rows - exact).max(), np.abs(exact).max()
    print(f"bfloat16, {how:6}: a logit is off by {off:.1f} at most, of {largest:.0f}")

# %% [markdown]
# ## 4. The patch has a grid, too
# A and B are rounded when they are loaded. TensorRT-LLM multiplies the scale into B at that moment, in one of two
# orders: its converter scales in the checkpoint's type D and then casts to the engine's type T, its LoRA manager casts
# first and scales then. Take one number of B, and float16, whose largest number is 65504:

# %%
number = np.array([[100000.0]], np.float32)
for order, formula in (("convert", "T(D(B s))"), ("manager", "T(T(B) s)")):
    print(f"{order}: {formula} = {prescale(number, 0.1, 'float16', order)[0, 0]:g}, of 100000 * 0.1")

# %% [markdown]
# Both are the formula `s B`. When two engines differ by the last digit and by all of them, ask both times where they
# round.
#
# ## 5. Your turn
# `ch09_linear_q4.py`: write `linear_q4(x, q, steps, A, B, scale)`: the base as four bits have it, the patch
# as it was trained. `loracle learn check` has whole numbers in it, so that every rounding of yours is seen, and then
# lets the merchant quote his prices through your layer.
