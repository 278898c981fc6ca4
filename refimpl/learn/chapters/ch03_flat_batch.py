# %% [markdown]
# # 3. Requests become one flat batch
#
# You need: chapter 2 (`adapter_ids`). Time: 40 minutes. This chapter opens `refimpl/batch.py` (`make_batch`) and
# `refimpl/model.py` (`forward`), and ends with a function of yours inside the engine.
#
# To run it: `python chapters/ch03_flat_batch.py`, in your course's folder.
#
# A language model reads a prompt and then writes one token after the other. Reading is called *prefill*, writing
# *decode*. A long prompt may be read in pieces, *chunks*, so that nobody else waits for all of it. At any moment a
# server has requests in each of the three states, and a batch that wants one shape for all of them would have to fill
# up the short ones. So there are no shapes: all tokens of all requests stand in **one flat row of tokens**.

# %%
import inspect

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.adapter_cache import AdapterCache
from loracle.batch import ScheduledRequest, make_batch
from loracle.kv_cache import KVCache

model = loracle.load_model("tiny", dtype="float64")
pirate, merchant = (loracle.load_adapter(name, model.config) for name in ("pirate", "merchant"))
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
p = loracle.Precision("model", "float64")  # where numbers are rounded: nowhere

# %% [markdown]
# ## 1. Three requests in one step
# The pirate's request is new: all of its 3 tokens are computed now. The base's has 4 behind it and writes its next. The
# merchant's long prompt is read two tokens at a time, and two are done. The keys and values of what is `computed` lie
# in a cache, in blocks of 4 tokens; `block_table` says which blocks are whose (chapter 4). 1.0 is how much of the
# adapter is added: all of it.

# %%
cache = KVCache(model.config, num_blocks=4, block_size=4, p=p)
adapters = AdapterCache(model, p, loracle.NUMPY)
scheduled = [
    ScheduledRequest(ids[:3], computed=0, block_table=[0], adapters=[(adapters.acquire(pirate), 1.0)]),
    ScheduledRequest(ids[4:5], computed=4, block_table=[2, 1]),
    ScheduledRequest(ids[2:4], computed=2, block_table=[3], adapters=[(adapters.acquire(merchant), 1.0)]),
]
batch = make_batch(scheduled, cache, adapters.slots, loracle.NUMPY)

# %% [markdown]
# The batch is a table with a column for each token. That is all that the forward pass ever sees of requests.

# %%
table = {
    "position": batch.positions,  # of the token in its own request
    "slot": batch.attention.slot_mapping,  # where its key and value will lie
    "adapter_ids": batch.lora.adapter_ids[:, 0],
}
requests = [("pirate", 0, 3), ("base", 3, 4), ("merchant", 4, 6)]
diagram = diagrams.flat_batch(table, table["adapter_ids"], requests=requests, title="One step, one flat batch")
print(diagram)
diagram

# %%
print("logit_rows", batch.logits_indices)

# %% [markdown]
# Read it from left to right. A *position* counts within a request, and goes on where `computed` ended. A *slot* is a
# place in the cache; 4 comes from block 1, and 14 and 15 from block 3. The adapter is the request's, for each of its
# tokens. And only the last token of each request needs *logits*, the scores of all words that could come next; three
# rows here, not six. (The merchant's will not be used, for its prompt goes on. It is cheap.)
#
# Each line of the table is one line of NumPy.

# %%
computed, lengths = [0, 4, 2], [3, 1, 2]
positions = np.concatenate([np.arange(first, first + n) for first, n in zip(computed, lengths, strict=True)])
stops = np.cumsum(lengths)
assert (positions == batch.positions).all()
assert (stops - 1 == batch.logits_indices).all()

# %% [markdown]
# ## 2. One path
# Open `forward` in `refimpl/model.py`: it does not know what a prefill is. How often does its source say these words?

# %%
source = inspect.getsource(loracle.forward)
print({word: source.count(word) for word in ("prefill", "decode", "chunk", "attention")})

# %% [markdown]
# So a prompt can be cut anywhere. We read it whole, in pieces of 7, and token by token, and look at the logits of its
# last token.


# %%
def last_logits(size):
    """Read the prompt in pieces of that size, one step each."""
    cache, adapters = KVCache(model.config, num_blocks=8, block_size=4, p=p), AdapterCache(model, p, loracle.NUMPY)
    blocks, slot = cache.allocate(8), adapters.acquire(pirate)
    for start in range(0, len(ids), size):
        piece = ScheduledRequest(ids[start : start + size], start, blocks, [(slot, 1.0)])
        batch = make_batch([piece], cache, adapters.slots, loracle.NUMPY)
        rows = loracle.forward(model, batch, cache, adapters.slots, loracle.NUMPY, p)
    return rows[-1]


in_one = last_logits(len(ids))
for size in (7, 1):
    difference = np.abs(last_logits(size) - in_one).max()
    print(f"{len(ids)} tokens in pieces of {size}: the logits differ by {difference:.1e}")
    assert difference < 1e-9

# %% [markdown]
# ## 3. From one per request to one per token
# A server knows the adapter of each *request*; the product needs that of each *token*. `np.repeat` is the right way,
# and here are two wrong ones. The first has one number for each request, which is right in a step in which everybody
# decodes. The second repeats the list and not its numbers, which is right in such a step, too.

# %%
per_request = np.array([0, -1, 1])
right = per_request.repeat(lengths)
assert (right == table["adapter_ids"]).all()
attempts = {"np.repeat": right, "One per request": per_request, "The list, repeated": np.resize(per_request, 6)}
for title, rows in attempts.items():
    print(f"{title:20} {rows}")

diagram = diagrams.flat_batch({"adapter_ids": rows}, rows, requests, title, expected={"adapter_ids": right})
print(diagram)
diagram

# %% [markdown]
# LoRAX and vLLM had the first one, when *speculative decoding* came (several tokens are guessed and checked in one
# step): a request that decodes suddenly had more than one token.
#
# A request may also *sum* several adapters, half a pirate and half a merchant. Then `adapter_ids` is [tokens, k]: as
# many columns as the request with the most adapters needs, and -1 where another one has fewer.
#
# ## 4. Your turn
# `ch03_adapter_rows.py`: write `adapter_rows`, from the adapter slots of each request and its number of tokens to
# [tokens, k]. What passes goes into the engine as a field of `Ops`, and the voices have to say what they say alone.
#
#     loracle learn check
#     loracle learn engine
