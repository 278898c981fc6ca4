# %% [markdown]
# # 4. Keys and values in pages
#
# You need: chapter 3 (positions, the flat batch). Time: 45 minutes. This chapter opens `refimpl/kv_cache.py`
# (`KVCache`) and `refimpl/attention.py` (`attention_per_token`), and ends with a function of yours inside the engine.
#
# To run it: `python chapters/ch04_pages.py`, in your course's folder.
#
# Attention is the one step in which tokens meet. Each token makes a *query*, a *key* and a *value*; its query is
# compared with the keys of all tokens before it, and takes of their values accordingly. Keys and values of old tokens
# never change. So they are kept: that is the *KV cache*, and where a server's memory goes.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.attention import attention, attention_per_token
from loracle.config import View
from loracle.kv_cache import KVCache
from loracle.plans import AttentionMetadata

model = loracle.load_model("tiny", dtype="float32")
voices = {name: loracle.load_adapter(name, model.config) for name in ("pirate", "merchant")}
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])

# %% [markdown]
# ## 1. What it costs, and what it saves

# %%
cache = KVCache(model.config, num_blocks=4, block_size=4)
per_token = (cache.k.nbytes + cache.v.nbytes) // (cache.num_blocks * cache.block_size)
new = 60
without = sum(len(ids) + i for i in range(new))
print(f"{per_token:,} bytes for each token: a key and a value in each of {model.config.num_hidden_layers} layers")
print(f"a prompt of {len(ids)} tokens and {new} new ones: {len(ids) + new - 1} computed, {without:,} without a cache")
longest = model.config.max_position_embeddings
print(f"with a stretch reserved for the longest answer, {1 - (len(ids) + new) / longest:.0%} of it would stay empty")

# %% [markdown]
# Nobody knows how long an answer will be, so nobody knows how much room to keep for it. The cache is therefore cut into
# *blocks* of a few tokens, as an operating system cuts memory into pages (PagedAttention, Kwon et al. 2023), and a
# request gets another block when its last one is full.
#
# ## 2. A table for each request
# Two requests that grow in turn. Their blocks do not lie together, and need not: each has a *block table* that names
# them in the order of its positions.

# %%
tables = {"pirate": [], "merchant": []}
for _ in range(2):
    for table in tables.values():
        table += cache.allocate(1)
print(tables, cache)

# %%
diagram = diagrams.block_pool(cache.num_blocks, tables, title="Four blocks, two owners")
print(diagram)
diagram

# %% [markdown]
# A position leads to a *slot*, the place of one token in the whole cache, in two steps: the quotient says which entry
# of the table, the remainder where in that block.

# %%
size = cache.block_size
for name, table in tables.items():
    slots = [table[position // size] * size + position % size for position in range(7)]
    print(f"{name:8} positions 0 to 6 are slots {slots}")

# %% [markdown]
# ## 3. Attention through a table
# Seven keys and values of one request, written to the merchant's slots, and the query of the last of them. Then the
# same in blocks that lie side by side. And for comparison attention without any cache, as the formula has it.

# %%
rng = np.random.default_rng(0)
heads, head_dim = 2, 8
q, k, v = (rng.standard_normal((7, heads, head_dim)) for _ in range(3))
view, p = View(), loracle.Precision("model", "float64")


def through(table, step):
    """Attention of the last token, with everything read from the cache through that table."""
    slots = [table[position // size] * size + position % size for position in range(7)]
    k_cache, v_cache = np.zeros((2, 4, size, heads, head_dim))
    k_cache.reshape(-1, heads, head_dim)[slots] = k
    v_cache.reshape(-1, heads, head_dim)[slots] = v
    starts, context = np.array([0, 1], np.int32), np.array([7], np.int32)
    metadata = AttentionMetadata.of(starts, context, np.array([table]), np.array(slots[-1:], np.int32), 4, size)
    return step(q[-1:], k_cache, v_cache, metadata, view, p)[0]


# %%
scores = np.einsum("hd,jhd->hj", q[-1], k) / np.sqrt(head_dim)
shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
formula = np.einsum("hj,jhd->hd", shares, v).ravel()

scattered, in_order = through(tables["merchant"], attention), through([0, 1], attention)
definition = through(tables["merchant"], attention_per_token)
for name, values in (("in order", in_order), ("the definition", definition), ("the formula", formula)):
    print(f"scattered and {name:15} they differ by {np.abs(scattered - values).max():.1e}")
    assert np.abs(scattered - values).max() < 1e-9

# %% [markdown]
# In order or not, it is the same sum: attention adds up over keys in the order of positions, wherever they lie.
# Read `attention_per_token` now: the same formula, one token and one head at a time; each key is at (block, offset).
#
# ## 4. A slot that is somebody else's
# It is tempting to look up the first block and count on from there. That is right until a request has grown while
# another one did, and no short test has that. We put it into the engine.


# %%
def side_by_side(block_tables, positions, query_start_loc, block_size):
    request = np.repeat(np.arange(len(block_tables)), np.diff(query_start_loc))
    return (block_tables[request, 0] * block_size + positions).astype(np.int32)


right, wrong = (
    loracle.generate(model, [loracle.Request(ids, adapter=adapter) for adapter in voices.values()], 40, ops=ops)
    for ops in (loracle.NUMPY, dataclasses.replace(loracle.NUMPY, slot_mapping=side_by_side))
)
for name, expected, output in zip(voices, right, wrong, strict=True):
    same = np.array(expected.token_ids[:30]) == output.token_ids[:30]
    print(f"\n{name}: the first {same.argmin()} new tokens are right")
    print(*(f"    {text.splitlines()[1]}" for text in (expected.text, output.text)), sep="\n")

# %% [markdown]
# `generate` has blocks of 16. The prompts filled two each, and then both grew. Where did the two write?

# %%
pool = KVCache(model.config, num_blocks=6, block_size=16)
tables = {name: pool.allocate(2) for name in voices}
for table in tables.values():
    table += pool.allocate(1)
print("block tables", tables)

written = {name: sorted({(table[0] * 16 + position) // 16 for position in range(40)}) for name, table in tables.items()}
diagram = diagrams.block_pool(6, written, title="Where they wrote, counting on from the first block")
print(diagram)
diagram

# %% [markdown]
# The pirate wrote over the merchant's first words, and the merchant into the pirate's last block.
#
# A wrong slot that is *seen* is a smaller evil. `make_batch` checks each plan on the host before anything is computed,
# because a GPU would not: it writes where it is told to.

# %%
first = dataclasses.replace(loracle.NUMPY, slot_mapping=lambda tables, positions, starts, size: positions)
try:
    loracle.generate(model, [loracle.Request(ids, adapter=adapter) for adapter in voices.values()], ops=first)
except loracle.LoracleError as error:
    print(f"LoracleError: {error}")

# %% [markdown]
# ## 5. Your turn
# `ch04_slots.py`: write `slots`, for all tokens of a flat batch at once: requests that begin, requests that go on,
# blocks in any order. It is the field `slot_mapping` of `Ops`.
#
#     loracle learn check
#     loracle learn engine
