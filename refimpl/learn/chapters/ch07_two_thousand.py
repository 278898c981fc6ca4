# %% [markdown]
# # 7. Two thousand adapters
#
# You need: chapters 5 and 6 (the engine, blocks that are kept). Time: 45 minutes. This chapter opens
# `refimpl/adapter_cache.py` and `refimpl/kv_cache.py` (`select_victim`), and ends with a function of yours.
#
# To run it: `python chapters/ch07_two_thousand.py`, in your course's folder.
#
# A company has two thousand customers, and an adapter for each. The GPU has room for some of them. So the memory of the
# GPU becomes a *cache* of adapters: what is used stays, what is needed comes in, and somebody has to go. Whom? The
# answer is four lines long, decides how fast the server is, and has one way to be terribly wrong.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.config import ModelConfig

model = loracle.load_model("tiny", dtype="float32")
voices = {name: loracle.load_adapter(name, model.config) for name in tiny.VOICES}
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])

# %% [markdown]
# ## 1. How large is an adapter?
# Small beside its base, and that is the trap. First our own, loaded into the engine's *adapter slots*.

# %%
adapters = loracle.Engine(model).adapters
modules = model.config.modules()[:-1]  # without lm_head: this model uses its embedding for it
print(f"base      {sum(model.linear(module).weight.nbytes for module in modules):>10,} bytes")
for name, voice in voices.items():
    print(f"{name:9} {adapters.slots.nbytes(adapters.acquire(voice)):>10,} bytes, rank {voice.config.r}")

# %% [markdown]
# Now one that is served: Llama 3 8B, two bytes a number, adapters of rank 8 on all seven modules of each layer. A GPU
# that *pads* every adapter to the largest rank (one array for all, simple kernels) reserves far more than that.

# %%
llama = ModelConfig(128256, 4096, 14336, 32, 32, 8, 128)  # vocab, d_model, d_mlp, layers, heads, kv_heads, head_dim
rows_and_columns = llama.num_hidden_layers * sum(sum(llama.shape(name)) for name in llama.layer_modules)
base = 2 * sum(int(np.prod(llama.shape(name))) for _, name in llama.modules())
rank_8, rank_64 = 2 * 8 * rows_and_columns, 2 * 64 * rows_and_columns
kv = 2 * 2 * llama.num_hidden_layers * llama.num_key_value_heads * llama.head_dim  # keys and values of one token
print(f"base {base / 1e9:.1f} GB; one adapter {rank_8 / 1e6:.0f} MB; keys and values of a token {kv / 1e3:.0f} kB")
print(f"2,000 adapters: {2000 * rank_8 / 1e9:.0f} GB, and {2000 * rank_64 / 1e9:.0f} GB padded to rank 64")

# %%
sizes = [("the card", 80e9), ("base", base), ("KV of 200,000 tokens", 200_000 * kv)]
sizes += [("2,000 adapters of rank 8", 2000 * rank_8), ("the same, padded to 64", 2000 * rank_64)]
diagram = diagrams.bars(sizes, unit="B", title="What competes for the memory of one card")
print(diagram)
diagram

# %% [markdown]
# Every adapter that stays is room that no request's keys and values can have: a thousand tokens of context are worth
# three adapters. (vLLM calls the slots `max_loras`, and keeps more adapters in the host's memory, `max_cpu_loras`.)
#
# ## 2. A few are asked for all the time
# Customers are not equally busy. Here the n-th is asked for 1 / n^1.1 as often as the first (Zipf's law). When all
# slots are full, a *victim* is *evicted*: in LRU the one that was least recently used, in FIFO the one that came first.


# %%
def miss_rate(requests, slots, lru=True):
    """The share of requests whose adapter has to be loaded."""
    times, misses = {}, 0  # of the adapters in a slot: when each was used (LRU), or loaded (FIFO)
    for now, adapter in enumerate(requests):
        if adapter not in times:
            misses += 1
            if len(times) == slots:
                del times[min(times, key=times.get)]
        if lru or adapter not in times:
            times[adapter] = now
    return misses / len(requests)


# %%
frequency = 1 / np.arange(1, 2001) ** 1.1
requests = np.random.default_rng(0).choice(2000, 20_000, p=frequency / frequency.sum()).tolist()
slots = (8, 32, 128, 512)
misses = {name: [(n, miss_rate(requests, n, name == "LRU")) for n in slots] for name in ("LRU", "FIFO")}
for name, points in misses.items():
    print(f"{name:4} misses", "  ".join(f"{rate:.0%} with {n} slots" for n, rate in points))
assert all(lru[1] < fifo[1] for lru, fifo in zip(*misses.values(), strict=True))

# %%
diagram = diagrams.curves(misses, x="adapter slots", y="misses", title="2,000 adapters, 20,000 requests", log_x=True)
print(diagram)
diagram

# %% [markdown]
# LRU is no deep idea, and it is hard to beat: a quarter of all adapters in memory serve four requests of five.
#
# ## 3. What must never be evicted
# An adapter that a running request uses is not a candidate, however long ago that began. The engine counts the users of
# each slot (`ref_counts`); where all are in use, there is no victim, and the newcomer waits. Two slots, three tenants:
# the pirate tells a story, the robot has said one token and is gone, and after twenty tokens the merchant is asked for.


# %%
def pirate_says(select_victim):
    ops = dataclasses.replace(loracle.NUMPY, select_victim=select_victim)
    engine = loracle.Engine(model, ops, max_adapters=2)
    pirate = engine.add(loracle.Request(ids, adapter=voices["pirate"]), 40)
    engine.add(loracle.Request(ids, adapter=voices["robot"]), 1)
    tokens = [token for _ in range(20) for token in engine.step()]
    engine.add(loracle.Request(ids, adapter=voices["merchant"]), 20)
    while engine.busy:
        tokens += engine.step()
    return model.tokenizer.decode([token.token_id for token in tokens if token.request_id == pirate]).splitlines()[1]


# %%
def careless(last_used, ref_counts):
    return min(last_used, key=last_used.get)


print("the robot's slot goes: ", pirate_says(loracle.NUMPY.select_victim))
print("the pirate's slot goes:", pirate_says(careless))

# %% [markdown]
# It says "Arr!", and goes on as a merchant: by time alone the pirate's slot was the older one. Nothing crashed. The
# slot is a valid slot, and it holds a valid adapter, of another tenant. In TensorRT-LLM a race between eviction and use
# ended in "LoRA task not found in cache" (issue 1552): be glad of an engine that stops.
#
# ## 4. Your turn
# `ch07_select_victim.py`: write `select_victim`. The engine asks it about adapters, and about the cached blocks of
# chapter 6 as well: the same question, and the same answer. It is tried on small caches, and in the engine.
#
#     loracle learn check
#
# **For the quick ones.** All slots are in use, the bard waits, and then somebody asks for the pirate again, whose
# adapter is there. May they overtake the bard? How often? `Ops.admit` decides (`refimpl/policies.py`), in order;
# vLLM lets them pass (pull request 15422). S-LoRA, dLoRA and CaraServe are three papers on what comes next.
