# %% [markdown]
# # 6. A prefix cache, keyed by adapter
#
# You need: chapter 4 (blocks and slots) and chapter 5 (the engine); on the short way, chapter 3 and what `handout.md`
# says of *block*, *KV cache* and *step*. Time: 45 minutes. This chapter opens
# `refimpl/kv_cache.py` (`prefix_key`) and `refimpl/scheduler.py`, and ends with a function of yours.
#
# To run it: `python chapters/ch06_prefix_cache.py`, in your course's folder.
#
# Two requests that begin with the same words need the same keys and values for them, so the second can read what the
# first has computed. That is a *prefix cache*: the largest saving that a server has, and the easiest way to hand one
# tenant another tenant's numbers. vLLM, LMCache and xLLM each did. This chapter is about the one line that decides.

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.kv_cache import prefix_key

BLOCK_SIZE = 8
model = loracle.load_model("tiny", dtype="float64")
voices = {name: loracle.load_adapter(name, model.config) for name in tiny.VOICES}
prompts = [model.tokenizer.encode(prompt) for prompt in tiny.DEMO_PROMPTS]
ids = prompts[0]

# %% [markdown]
# ## 1. What do the numbers in a block depend on?
# The same prompt once for the base and once for each voice. How far apart are the keys in the cache, layer by layer?


# %%
def cached_keys(adapter):
    """The keys of every layer for our prompt: [layers, tokens, ...]."""
    engine = loracle.Engine(model, num_blocks=8, block_size=BLOCK_SIZE)
    engine.add(loracle.Request(ids, adapter=adapter), 1)
    engine.step()
    layers, blocks, size, *head = engine.cache.k.shape
    return engine.cache.k.reshape(layers, blocks * size, *head)[:, : len(ids)]


base_keys = cached_keys(None)
print("largest difference to the base's keys, in layers 0 to 3")
for name, voice in voices.items():
    difference = np.abs(cached_keys(voice) - base_keys).max(axis=(1, 2, 3))
    on_keys = any(module == "k_proj" for _, module in voice.lora)
    print(f"{name:9}", "  ".join(f"{off:.1f}" for off in difference), "" if on_keys else "  (no LoRA on k_proj)")
    assert (difference[0] > 0) == on_keys and (difference[1:] > 1).all()

# %% [markdown]
# Two of the voices leave `k_proj` alone. It helps nobody: their keys are the base's in layer 0 and nowhere else, for
# what enters layer 1 has been through the adapter already. So what a block holds depends on its tokens, on every token
# before it, on the base, and on the adapter. Two blocks may be one block exactly if all of these are equal.
#
# ## 2. A chain of keys
# Nobody compares all of that each time. A full block gets a *prefix key*: a SHA-256 over everything that it depends on.
# (Two meanings of "key" meet here. Those of attention lie in the block; this one is the block's name in a dictionary.)
# `parent`, the key of the block before it, stands for all that came earlier, so that keys form a chain. An adapter
# stands in it by its *digest*, the SHA-256 of its weights: names can be used again for other weights. (Other bytes that
# are equal exactly when all of this is would do as well; but a digest has 32 of them, however long the prompt is.)

# %%
adapters = loracle.Engine(model).adapters
digests = {name: adapters.digest(adapters.acquire(voice)) for name, voice in voices.items()}
p = loracle.Precision("model", "float64")
blocks = [ids[i : i + BLOCK_SIZE] for i in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE)]  # the full ones
words = [model.tokenizer.decode(block) for block in blocks]


def chain(key, name):
    """The prefix keys of our prompt's full blocks, if `key` makes them, for the voice of this name."""
    keys = [b""]
    for block in blocks:
        keys.append(key(keys[-1], block, model.identity, p, [(digests[name], 1.0)]))
    return keys[1:]


# %%
order = ("robot", "robot", "merchant")
rows = [(name, words, chain(prefix_key, name)) for name in order]
diagram = diagrams.chains(rows, "The right key: robot, robot again, merchant")
print(diagram)
diagram

# %% [markdown]
# ## 3. The engine finds them
# The same three requests to one engine, one after the other. A block that is found (a *hit*) is not computed again. The
# last token of a prompt always is: its logits are what the request came for. `engine.last_step` is what the engine did
# in its last step, for each request in it.


# %%
def new_engine(ops=loracle.NUMPY):
    """An engine that has cached nothing yet; ops: the steps that it is made of."""
    return loracle.Engine(model, ops, num_blocks=256, block_size=BLOCK_SIZE)


def say(engine, pairs, new_tokens=1):
    """The text that the engine answers to each (name of a voice, or None for the base; prompt as token ids)."""
    requests = [loracle.Request(prompt, adapter=voices.get(name)) for name, prompt in pairs]
    return [output.text for output in loracle.generate(model, requests, new_tokens, engine=engine)]


# %%
engine = new_engine()
for name in order:
    say(engine, [(name, ids)])
    step = engine.last_step[0]
    print(f"{name:9} {step.blocks_found} of {len(blocks)} blocks found, {step.tokens} of {len(ids)} tokens computed")

# %% [markdown]
# ## 4. The bug that three engines had
# Leave the adapter out of the key. Whoever tests with one adapter sees nothing, and the server becomes faster.

# %%
leaky = dataclasses.replace(loracle.NUMPY, prefix_key=lambda *arguments: prefix_key(*arguments[:4], adapters=[]))
rows = [(name, words, chain(leaky.prefix_key, name)) for name in order]
diagram = diagrams.chains(rows, "Without the adapter: the merchant finds the robot's blocks")
print(diagram)
diagram

# %%
engine = new_engine(leaky)
say(engine, [("robot", ids)])
wrong = say(engine, [("merchant", ids)], 40)[0]
right = say(new_engine(), [("merchant", ids)], 40)[0]
print("alone          ", right.splitlines()[1])
print("after the robot", wrong.splitlines()[1])
assert right != wrong

# %% [markdown]
# Read them again. Both are the merchant, both are fluent, and *the price has changed*. That was a lucky case. How often
# does the bug change anything that one can read? The base and the four voices each get a prompt of their own, and then
# each of the others is asked the same.

# %%
names = (None, *voices)  # None: the base
first = list(zip(names, prompts, strict=False))
second = [(name, prompt) for before, prompt in first for name in names if name != before]
alone = say(new_engine(), second, 60)
engine = new_engine(leaky)
say(engine, first)
changed = sum(text != right for text, right in zip(say(engine, second, 60), alone, strict=True))
print(f"{len(second)} requests read another's blocks; {changed} say another word within 60 tokens")

# %% [markdown]
# (Of all 120 that the six prompts make, 78 change and 42 do not.) Where no word changes, the numbers are wrong all the
# same, and nobody who reads the answers will ever report it. Chapter 12 is about how it is found nevertheless.
#
# ## 5. Your turn
# `ch06_prefix_key.py`: write `prefix_key`. Two blocks may get one key exactly when their numbers are the same: too few
# things in the key, and a tenant reads another's; too many, and nothing is ever found. Your function is tried on pairs
# of requests that differ in one thing.
#
#     loracle learn check
#
# What passes goes into the engine as a field of `Ops`; `loracle learn engine` serves the demo with it.
