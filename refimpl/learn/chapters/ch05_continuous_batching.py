# %% [markdown]
# # 5. Continuous batching and chunks
#
# You need: chapters 3 and 4 (a flat batch, pages). Time: 50 minutes. This chapter opens `refimpl/policies.py` and
# `refimpl/scheduler.py`, and ends with a function of yours.
#
# To run it: `python chapters/ch05_continuous_batching.py`, in your course's folder.
#
# Requests do not come together, and do not end together. An engine that collects a batch, and works on it until the
# last one is done, lets those who come in between wait, and those who are done pay for the others. So engines decide
# anew before *every step* who is in it: *continuous batching* (Orca, Yu et al. 2022). A step has a *budget* of tokens.
# Who gets how many of them? And does anybody's answer depend on it?

# %%
import dataclasses

import numpy as np

import loracle
from loracle import diagrams, tiny

model = loracle.load_model("tiny", dtype="float64")
voices = {name: loracle.load_adapter(name, model.config) for name in tiny.VOICES}
ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])

# %% [markdown]
# ## 1. Three requests
# All three have the same prompt, and differ in who answers, in when they come, and in how many tokens they want. The
# tokens of a prompt are computed in the *prefill*; then a request *decodes*: one token a step, each chosen from the
# logits of the one before it.

# %%
arrivals = {"pirate": 0, "robot": 3, "base": 4}  # before which step each one comes
new_tokens = {"pirate": 4, "robot": 3, "base": 2}
prompts = dict.fromkeys(arrivals, len(ids))
print(f"each prompt has {len(ids)} tokens")


# %%
def serve(budget, ops=loracle.NUMPY, most_steps=20):
    """How many tokens each request computed in each step, and the logits from which its tokens were chosen."""
    engine = loracle.Engine(model, ops, max_batch_tokens=budget)
    names, tokens, logits = {}, {name: [] for name in arrivals}, {name: [] for name in arrivals}
    for now in range(most_steps):
        for name in [name for name in arrivals if arrivals[name] == now]:
            names[engine.add(loracle.Request(ids, adapter=voices.get(name)), new_tokens[name])] = name
        produced = {token.request_id for token in engine.step()}
        for name in arrivals:
            tokens[name].append(0)
        for step in engine.last_step:  # what the engine did for each request in its last step
            tokens[names[step.request_id]][-1] = step.tokens
            if step.request_id in produced:
                logits[names[step.request_id]].append(step.logits)
        if not engine.busy:
            break
    return tokens, logits


# %% [markdown]
# ## 2. Plenty of room
# A budget of 64 tokens is more than ever wait at once. Every column is a step. The robot's whole prompt goes into the
# step in which the pirate decodes its last token: 27 rows of one flat batch, and W is read once for all of them.

# %%
tokens, roomy = serve(64)
diagram = diagrams.gantt(tokens, prompts, "A budget of 64 tokens a step", budget=64)
print(diagram)
diagram

# %% [markdown]
# ## 3. A budget of ten
# A step of 27 tokens takes longer than one of one, and the pirate's reader waits for it. Whoever wants an even flow of
# tokens sets a smaller budget, and cuts prompts into *chunks*: chunked prefill. First come, first served: who came
# earlier takes what it needs, the next one what is over.

# %%
tokens, tight = serve(10)
diagram = diagrams.gantt(tokens, prompts, "A budget of 10 tokens a step", budget=10)
print(diagram)
assert max(map(sum, zip(*tokens.values(), strict=True))) <= 10
diagram

# %% [markdown]
# Read the columns: no step has more than ten tokens, and a step has fewer only when nobody is waiting. Read the rows:
# whoever decodes gets its one token in every step, however long the prompts of the others are.
#
# ## 4. Nobody notices
# Chunks or not, neighbours or not: a token looks at the keys and values before it, and they lie in the pages of chapter
# 4, whichever step has written them. So the schedule must change nothing in anybody's logits.

# %%
for name in arrivals:
    alone = []
    engine = loracle.Engine(model)
    engine.add(loracle.Request(ids, adapter=voices.get(name)), new_tokens[name])
    while engine.busy:
        engine.step()
        alone.append(engine.last_step[0].logits)
    difference = max(np.abs(np.subtract(rows, alone)).max() for rows in (roomy[name], tight[name]))
    print(f"{name:7} differs by {difference:.1e} from what it gets alone; the logits go up to {np.max(alone):.0f}")
    assert difference < 1e-9

# %% [markdown]
# That is rounding: sums that are taken in another order. Because of this property an engine can be tested at all; the
# bugs of chapters 6 and 7 break it.
#
# ## 5. A schedule that is not fair
# The schedule is one field of `Ops`: how many tokens does each request lack, in the order in which they came, and what
# does each get now? Here is one that serves the newest first. All answers are right, again; look at the pirate.


# %%
def newest_first(missing, budget):
    return loracle.NUMPY.schedule(missing[::-1], budget)[::-1]


tokens, unfair = serve(10, dataclasses.replace(loracle.NUMPY, schedule=newest_first))
assert all(np.allclose(unfair[name], roomy[name]) for name in arrivals)
diagram = diagrams.gantt(tokens, prompts, "Newest first: the pirate stops in the middle of a sentence", budget=10)
print(diagram)
diagram

# %% [markdown]
# An engine that always prefers the prefill of newcomers to the decoding of those who are there does the same, and under
# load somebody always comes. SGLang's issue 32549 saw one decode step in 24 seconds.
#
# ## 6. Your turn
# `ch05_schedule.py`: write `schedule`. Its promises: never more than the budget; no room is left while somebody lacks a
# token; first come, first served.
#
#     loracle learn check
#
# What passes decides who is in which step of `loracle learn engine`.
