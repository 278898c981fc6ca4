# %% [markdown]
# # 12. What engines get wrong
#
# Every chapter ended with mistakes, and most of them had an address: an issue, a pull request, an engine that served
# people with it for weeks. How can that be? Because the text looked fine. This last chapter is about requests that tell
# a right engine from a wrong one, and opens `refimpl/oracle/bugs/README.md`, the list of those bugs. It ends with
# requests of yours, and the score is how many known bugs they expose.
#
# You need: chapters 1 to 3; 5 and 7 help. Time: 55 minutes.
#
# To run it: `python chapters/ch12_engines.py`, in your course's folder.

# %%
from collections import Counter

import numpy as np

import loracle
from loracle import diagrams, tiny
from loracle.learn import exposed
from loracle.oracle.bugs import all_mutants

model = loracle.load_model("tiny", dtype="float64")
merchant = loracle.load_adapter("merchant", model.config)
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
bug = all_mutants()["rslora_ignored"]  # the Ops of chapter 1 with one step wrong: a mutant
print(bug.what, *bug.links, sep="\n  ")

# %% [markdown]
# ## 1. It looks fine
# The merchant, by a right engine and by one with that bug:

# %%
request = loracle.Request(ids, adapter=merchant)
for who, ops in (("right", loracle.NUMPY), ("wrong", bug.make())):
    print(f"{who}: {loracle.generate(model, [request], 40, ops=ops)[0].text.strip()}")

# %% [markdown]
# If you had only the second one, what would you report? There is a scene, a treasure and a price, and a slip of
# grammar, as a small model makes them. People wrote "generates badly" and "looks un-tuned".
#
# ## 2. An answer that is known
# So do not look at text. A request has one right row of logits: computed alone, in float64, by the definition. How far
# off is an honest engine, which rounds to bfloat16 at every step, and how far is the bug?

# %%
exact = loracle.logits(model, [request])[0]
half, p = loracle.load_model("tiny", dtype="bfloat16"), loracle.Precision("model", "bfloat16")
unit = np.sqrt(((loracle.logits(half, [request], precision=p)[0] - exact) ** 2).mean())
print(f"an honest bfloat16 run is off by {unit:.3f} (rms): call it the noise unit")
for name in ("rslora_ignored", "scale_times[1.05]", "scale_times[1.01]"):
    error = loracle.logits(model, [request], all_mutants()[name].make())[0] - exact
    print(f"{name:18} is off by {np.sqrt((error**2).mean()) / unit:5.1f} noise units")

# %% [markdown]
# A scale that is wrong by 1 % is smaller than rounding: one row cannot show it, and many rows together can, because
# they are all off in one direction. That is what `loracle check` computes. Here we stay in float64, where honest is
# 1e-15 and every bug that makes a difference is seen.
#
# ## 3. Requests that notice
# `exposed` has a small random model and 51 known bugs of three classes: A, the scale; B, which row gets which adapter;
# C, adapters in memory. Each bug serves the requests, and every row from which a token was chosen is compared. What do
# the obvious tests expose?


# %%
def one_request(adapter):
    return [[loracle.Request([1, 2, 3], adapter("first"))]]


def two_requests(adapter):
    return [[loracle.Request([1, 2, 3], adapter("first")), loracle.Request([4, 5], adapter("second"))]]


def two_scales(adapter):
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9)
    return [[loracle.Request([1, 2, 3], first), loracle.Request([4, 5], second)]]


def and_the_base(adapter):
    (batch,) = two_scales(adapter)
    return [[batch[0], loracle.Request([7]), batch[1]]]


TESTS = (one_request, two_requests, two_scales, and_the_base)
scores = {test.__name__: exposed.score(test) for test in TESTS}
for name, score in scores.items():
    counts = Counter(all_mutants()[mutant].family for mutant in score.exposed)
    classes = ", ".join(f"{counts[letter]} of class {letter}" for letter in "ABC")
    print(f"{name:13} {score.tokens} tokens expose {len(score.exposed)}: {classes}")
    assert score.clean_error < 1e-12  # the engine without a bug passes

# %%
bars = [(name, len(score.exposed)) for name, score in scores.items()]
diagram = diagrams.bars([*bars, ("all", len(exposed.mutants()))], title="Known bugs that a test exposes")
print(diagram)
diagram

# %% [markdown]
# Three more tokens and another alpha, and the score grows from 10 to 27. None of it took a clever check: comparing rows
# is dull. What counts is what is *in* the batch. And look at what two scales found that two requests did not:

# %%
for name in sorted(set(scores["two_scales"].exposed) - set(scores["two_requests"].exposed)):
    print(f"{name}: {all_mutants()[name].what}")

# %% [markdown]
# A test with alpha = r has a scale of 1, and whoever forgets to multiply by 1 is right. Most tests of LoRA that you
# will meet have alpha = r, or one adapter, or both. A score has a name, by the way: the *power* of a test. A pass is
# worth that much.
#
# ## 4. Which bug is it?
# A wrong row says more than "wrong". Every mutant predicts its own wrong rows; so take an engine, and look whose
# prediction it is. The bug of the engine under test is chosen by a die; guess before you read on.

# %%
die = np.random.default_rng(2)
guilty = die.choice(scores["and_the_base"].exposed)
batches = and_the_base(exposed.AdapterMaker())
clean = exposed.serve(batches, loracle.NUMPY)
answers = [[int(row.argmax()) for row in rows] for rows in clean]
observed = exposed.serve(batches, all_mutants()[guilty].make(), answers)
off = [np.abs(rows - right).max() for rows, right in zip(observed, clean, strict=True)]
print("off by, request for request:", *(f"{error:.2f}" for error in off))

suspects = [
    name
    for name in scores["and_the_base"].exposed
    if exposed.largest_error(exposed.serve(batches, all_mutants()[name].make(), answers), observed) < 1e-9
]
print("who predicts exactly that:", *suspects)
assert guilty in suspects

# %% [markdown]
# You could have seen half of it: a request without an adapter is off, so it is no scale. With rounding in the way this
# becomes a fit and a vote, and needs care (what if two bugs predict nearly the same?), but the idea stays:
# `refimpl/oracle/diagnosis`. `loracle check --engine vllm` sends a real engine such requests, and its report names the
# bug, the module and the issue; `--engine blind:k7` lets you practise on engines whose bug nobody tells you.
#
# ## 5. Your turn
# `ch12_requests.py`: write `requests(adapter)`, batches that expose 40 of the 51 with 60 tokens at most.
# `loracle learn check` says what still passes, and what a tenant gets then.
