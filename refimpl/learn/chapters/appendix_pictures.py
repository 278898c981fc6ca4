# %% [markdown]
# # Appendix. The same idea draws pictures
#
# You need: chapters 1 to 3, and Pillow to look at pictures (`pip install 'loracle[pictures]'`). Time: 25 minutes. There
# is nothing to write. This appendix opens `refimpl/pictures/model.py`, a second forward pass on one page.
#
# To run it: `python chapters/appendix_pictures.py`, in your course's folder.
#
# Nothing in y = W x + scale * B (A x) knows about text. Wherever a model has linear layers and a batch has rows, each
# row can have an adapter of its own. The model here is a Z-Image transformer that draws scenes of 48 x 48 pixels; its
# adapters are styles. Put several of them into one batch, and each picture has its own style: the call of diffusers
# has one set of styles for all of its pictures.

# %%
import dataclasses

import numpy as np
from PIL import Image

import loracle
from loracle import pictures, tiny
from loracle.tools.merge import merged_picture_model

text_model = loracle.load_model("tiny", dtype="float64")
model = loracle.load_picture_model("tiny", dtype="float64")
ink, night, watercolour = (
    loracle.load_picture_adapter(style, model.config) for style in ("ink", "night", "watercolour")
)
prompt = tiny.DEMO_PROMPTS[0]
print(prompt)

# %% [markdown]
# ## 1. What the model reads
# A picture is cut into patches, and a patch is a token: a vector. The prompt comes as vectors, too: what the text model
# has made of each of its tokens before its last layer. Patches and caption are one sequence, and every token of a
# picture sees every other one.

# %%
caption = loracle.read_captions(text_model, [prompt])[0]
config = model.config
print(f"caption: {len(caption)} tokens, {caption.shape[1]} wide")
print(f"picture: 48 x 48 pixels of 3 colours are {48 * 48 * 3 // config.d_patch} patches of {config.d_patch} numbers")
print(f"model: {config.n_layers} layers, {config.n_heads} heads, {config.dim} wide")

# %% [markdown]
# ## 2. From noise, in steps
# A text grows by one token at each step. A picture is there from the first step on, as noise, and all of it gets
# clearer at every one. On the straight way from noise to picture, x = (1 - sigma) * picture + sigma * noise, and the
# model is asked where it leads. Twelve questions are enough. Noise comes from a seed, so the picture is a function of
# its request, as a text is of its own.

# %%
requests = [loracle.PictureRequest(caption, style, seed=0) for style in (None, ink, night, watercolour)]
expected = loracle.draw(model, requests)  # one batch
Image.fromarray(np.hstack(expected)).resize((4 * 4 * 48, 4 * 48), Image.Resampling.NEAREST)

# %% [markdown]
# ## 3. Rows are tokens, or pictures
# Chapter 3 had one adapter id for each token. Here most modules see tokens too: patches (64 of each picture, here of
# three), the words of its caption, or both, filled up to a multiple of 32. A few see one row for each *picture*: the
# time, how much noise is left, is the same for all of its tokens. LoRA on such a module needs an id for each picture.
# `lora_delta` is a step of `Ops`, so we can watch what it is called with: the adapter of every row.

# %%
rows_of = {}


def watched(y, x, module, adapters, mapping, p):
    rows_of.setdefault(module, mapping.adapter_ids[:, 0])
    loracle.NUMPY.lora_delta(y, x, module, adapters, mapping, p)


watching = dataclasses.replace(loracle.NUMPY, lora_delta=watched)
mixed = [dataclasses.replace(requests[i], steps=2) for i in (0, 1, 3)]  # no adapter, ink, watercolour
pictures.draw_latents(model, mixed, watching)
for module in ((-1, "all_x_embedder.2-1"), (-1, "cap_embedder.1"), (0, "attention.to_q"), (0, "adaLN_modulation.0")):
    ids = rows_of[module]
    counts = {int(adapter_id): int((ids == adapter_id).sum()) for adapter_id in dict.fromkeys(ids)}
    print(f"{module[1]:20} {len(ids):3} rows; rows of each adapter_id: {counts}")

# %% [markdown]
# -1 is no adapter, as ever. One function has served four kinds of rows. Watercolour has LoRA on `adaLN_modulation`: an
# engine that keeps ids for tokens alone reads those of the first three tokens there, and all pictures get the first's.
#
# ## 4. The same two proofs
# A batch is each picture alone, and a style apart is the style merged into W. Both were said of texts in chapters 1 and
# 2, and both hold here, in float64 to rounding.

# %%
together = pictures.draw_latents(model, mixed)
for name, request, latent in zip(("base", "ink", "watercolour"), mixed, together, strict=True):
    alone = pictures.draw_latents(model, [request])[0]
    dense = merged_picture_model(model, request.adapter) if request.adapter else model
    in_weights = pictures.draw_latents(dense, [dataclasses.replace(request, adapter=None)])[0]
    print(f"{name:11} batched and alone within 1e-9: {np.abs(latent - alone).max() < 1e-9}", end=", ")
    print(f"apart and merged: {np.abs(latent - in_weights).max() < 1e-9}")

# %% [markdown]
# ## 5. The same bugs
# A known bug: every row takes the adapter of the next request. In a text you have to know the answer to see it (chapter
# 12). Here you look.

# %%
right = loracle.NUMPY.lora_mapping
shifted = dataclasses.replace(
    loracle.NUMPY, lora_mapping=lambda adapters, lengths: right([*adapters[1:], *adapters[:1]], lengths)
)
wrong = loracle.draw(model, requests, shifted)
Image.fromarray(np.hstack(wrong)).resize((4 * 4 * 48, 4 * 48), Image.Resampling.NEAREST)

# %%
for name, picture in zip(("no adapter", "ink", "night", "watercolour"), wrong, strict=True):
    distances = [np.abs(picture.astype(int) - other).mean() for other in expected]
    print(f"asked for {name:11} got picture {int(np.argmin(distances))} of the right ones, off by {min(distances):.0f}")

# %% [markdown]
# ## 6. Sums
# A request may sum adapters. In one layer the deltas add up, so their weights are as good as volume knobs; the picture
# behind many layers is no sum of pictures.

# %%
knobs = (0.0, 0.4, 0.8, 1.2)
row = loracle.draw(model, [loracle.PictureRequest(caption, [(ink, 1 - k), (night, k)], seed=0) for k in knobs])
Image.fromarray(np.hstack(row)).resize((4 * 4 * 48, 4 * 48), Image.Resampling.NEAREST)

# %% [markdown]
# ## Where next
# * `loracle draw --style 'ink*0.7+night*0.3' --voice pirate --html page.html --prompt '...'`: one prompt, its story in
#   one voice and its picture in one style, each with an adapter of its own.
# * `loracle demo --pictures`: both batches, with what a batch saves.
# * `refimpl/pictures/model.py`: read it beside `refimpl/model.py`, and count what differs: no causal mask, a norm of
#   every head's queries and keys, a norm behind attention and MLP, and a scale and a gate that come from the time.
