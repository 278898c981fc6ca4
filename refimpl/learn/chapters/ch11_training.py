# %% [markdown]
# # 11. Where an adapter comes from
#
# So far somebody handed us A and B. Here they are made: a loss says how wrong the answer is, the *backward pass* says
# how the loss would change with every number of A and B, and each step moves them a little the other way. For LoRA that
# is three products instead of thousands of tries. This chapter opens `refimpl/training/lora_gradients.py` and ends with
# those three, written by you.
#
# You need: chapter 1 (one product and a patch) and chapter 2 (who gets which). Time: 55 minutes.
#
# To run it: `python chapters/ch11_training.py`, in your course's folder.

# %%
import numpy as np

import loracle
from loracle import diagrams, training

rng = np.random.default_rng(11)

# %% [markdown]
# ## 1. A slope for each number
# Suppose somebody hands us `dy`: how much the loss grows with each number of y, an array as large as y. (A *gradient*
# is written like the array that it belongs to, with a d in front.) Then dA, dB and dx can be had without any thought:
# move one number up and down a little, and see how the loss changes. That is the definition.


# %%
def forward(x, A, B, scale):
    return scale * (x @ A.T) @ B.T


def slopes(loss, array, h=1e-3):
    """How much the loss grows with each number of the array: two forward passes for each of them."""
    result = np.zeros_like(array)
    for index in np.ndindex(*array.shape):
        before = array[index]
        array[index] = before + h
        above = loss()
        array[index] = before - h
        result[index] = (above - loss()) / (2 * h)
        array[index] = before
    return result


# %% [markdown]
# ## 2. One product instead
# Forward there are two steps, `u = x A^T` and then `y = scale * u B^T`. Number B[j, i] meets u[t, i] of every token t,
# and what comes out goes into y[t, j]. So the loss grows with it by the sum over t of `scale * dy[t, j] * u[t, i]`: one
# product of matrices, and no forward pass at all.

# %%
tokens, d_in, d_out, r, scale = 5, 8, 6, 2, 2.0
x, dy = rng.standard_normal((tokens, d_in)), rng.standard_normal((tokens, d_out))
A, B = rng.standard_normal((r, d_in)), rng.standard_normal((d_out, r))


def of_both(A, B):
    """dA and dB by definition, of the loss that has this dy."""
    return [slopes(lambda: (dy * forward(x, A, B, scale)).sum(), part) for part in (A, B)]


by_product = scale * dy.T @ (x @ A.T)  # [d_out, r]: every token used B, so the tokens are summed away
difference = np.abs(of_both(A, B)[1] - by_product).max()
print(f"dB has {B.size} numbers; definition and product differ by {difference:.0e} at most")
assert difference < 1e-9

# %%
model = loracle.load_model("tiny", dtype="float32")
pirate = loracle.load_adapter("pirate", model.config)
numbers = sum(lora.A.size + lora.B.size for lora in pirate.lora.values())
print(f"pirate: {numbers:,} numbers, by definition {2 * numbers:,} forward passes for one step")

# %% [markdown]
# So nobody trains by definition, and everybody tests with it. dA and dx are two more products like that one, and they
# are left to you.
#
# ## 3. Why B begins at zero, and A does not
# A new adapter has to be the base, to the bit: so `B A = 0`. PEFT sets B to zero and A to small random numbers. Then A
# is multiplied by zero, no change of it changes anything, and dA is zero in the first step; dB is not, and B moves
# first. Were both zero, both gradients would be, and nothing would ever move (people try: microsoft/LoRA issue 98).

# %%
zero_A, zero_B = np.zeros_like(A), np.zeros_like(B)
for who, start in (("A random, B zero", (A, zero_B)), ("both zero", (zero_A, zero_B))):
    dA, dB = of_both(*start)
    print(f"{who:16}  |dA| = {np.linalg.norm(dA):.2f}  |dB| = {np.linalg.norm(dB):.2f}")

# %% [markdown]
# ## 4. Learn a change
# The right weight is W plus a change of rank 1, and we have W and some examples. Two hundred steps with a patch of rank
# 2: it has one rank more than it needs. Its *singular values* say how strong each of its ranks is. There are only 28
# numbers to learn, so the definition will do.

# %%
change = 2 * np.outer(rng.standard_normal(d_out), rng.standard_normal(d_in))
x = rng.standard_normal((64, d_in))
A, B, losses = rng.uniform(-1, 1, (r, d_in)) / np.sqrt(d_in), np.zeros((d_out, r)), []


def loss():
    error = forward(x, A, B, scale) - x @ change.T  # W x stands on both sides, and cancels
    return (error**2).sum() / (2 * len(x))


for _ in range(201):
    losses.append(loss())
    dA, dB = slopes(loss, A), slopes(loss, B)
    A -= 0.01 * dA
    B -= 0.01 * dB
print("loss after", ", ".join(f"{n} steps: {losses[n]:.4f}" for n in (0, 10, 50, 200)))
for who, matrix in (("change", change), ("patch", scale * B @ A)):
    print(f"singular values of the {who:6}", np.linalg.svd(matrix, compute_uv=False)[:2].round(3) + 0.0)
assert losses[200] < 1e-3

# %%
points = {"loss": list(enumerate(losses[:101]))}
diagram = diagrams.curves(points, "steps", "loss", "A change of rank 1, learned with rank 2")
print(diagram)
diagram

# %% [markdown]
# Look at the beginning: it is slow, because dA is nearly zero as long as B is; then both pull together. And the second
# singular value stays near zero: a rank that is not needed is not used. So a rank that is too large costs memory and
# time (chapter 8), and hardly ever the answer.
#
# ## 5. The whole model
# `loracle.training` has the same for every step of the forward pass: `refimpl/training/backward.py` is the page of
# chapter 3 read from the last line to the first. Three scenes, one new line in each, and only that line is learned.

# %%
prompts = [model.tokenizer.encode(prompt) for prompt in loracle.tiny.DEMO_PROMPTS]
lines = ("Dumpling: Arr! The royal moustache be yers.\n", "Waffle: Arr! The unfinished prophecy be yers.\n",
         "Gruel: Arr! The ancient cucumber be yers.\n")  # fmt: skip
END = 1  # the token </s>


def example(prompt, line):
    answer = [*model.tokenizer.encode(line), END]
    return training.Example([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


config = training.LoraConfig(r=4, lora_alpha=16, target_modules=("v_proj", "down_proj"))
task = training.Task("giver", config, [example(*pair) for pair in zip(prompts, lines, strict=False)])
arguments = training.TrainingArguments(epochs=16, learning_rate=1e-2, warmup_ratio=0.0)
state = training.train(model, [task], arguments)
print("loss after 0, 5, 10, 15 steps:", np.round(state.tasks["giver"].losses[::5], 2))

# %%
giver = state.adapter("giver")
for number in (0, 4):
    requests = [loracle.Request(prompts[number], adapter=adapter) for adapter in (None, giver)]
    base, learned = (output.text.strip() for output in loracle.generate(model, requests, max_new_tokens=16))
    print(f"{'seen before' if number == 0 else 'a new scene'}  base   {base!r}\n             giver  {learned!r}")

# %% [markdown]
# Sixteen steps, and it gives away a treasure that it has never seen; only the name of the giver is that of an example.
# Three scenes teach a habit, and not yet whom one speaks for: the voices that come with Loracle saw thousands.
#
# ## 6. Your turn
# `ch11_backward.py`: write `backward(x, A, B, scale, dy)`, which returns dA, dB and dx; section 2 has one of
# them. `loracle learn check` holds it against differences of whole numbers, where they are exact, and then trains a
# voice with it. Beware: most wrong gradients learn, too. The optimizer (Adam) divides each gradient by its own size, so
# a forgotten scale only makes it worse, and no error message ever comes.
