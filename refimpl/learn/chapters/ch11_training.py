# %% [markdown]
# # 11. Where an adapter comes from
#
# So far somebody handed us A and B. Here they are made: a loss says how wrong the answer is, the *backward pass* says
# how the loss would change with every number of A and B, and each step moves them a little the other way. For LoRA that
# is three products. This chapter opens `refimpl/training/lora_gradients.py` and ends with those three, written by you.
#
# You need: chapter 1 (one product and a patch) and chapter 2 (who gets which). Time: 55 minutes.

# %%
import numpy as np

import loracle
from loracle import diagrams, training

rng = np.random.default_rng(11)

# %% [markdown]
# ## 1. Three products
# Forward, in two steps: `u = x A^T`, then `y = scale * u B^T`. Suppose somebody tells us `dy`: how much the loss grows
# with each number of y, an array as large as y. (A *gradient* is written like the array that it belongs to, with a d.)
# Going back through the second step gives dB and du, going back through the first one gives dA and dx.


# %%
def forward(x, A, B, scale):
    return scale * (x @ A.T) @ B.T


def backward(x, A, B, scale, dy):
    low, low_gradient = x @ A.T, scale * (dy @ B)  # u and du
    dB = scale * dy.T @ low  # [d_out, r]: summed over the tokens, because every token used B
    dA = low_gradient.T @ x  # [r, d_in]
    dx = low_gradient @ A  # [tokens, d_in]: what the layers below get to hear
    return dA, dB, dx


tokens, d_in, d_out, r, scale = 5, 8, 6, 2, 2.0
x, dy = rng.standard_normal((tokens, d_in)), rng.standard_normal((tokens, d_out))
A, B = rng.standard_normal((r, d_in)), rng.standard_normal((d_out, r))

# %% [markdown]
# ## 2. Never believe a gradient
# Move one number up and down by a little and look at the loss: `(loss(+h) - loss(-h)) / 2h` is its slope, by
# definition. It takes two forward passes for each number, so nobody trains with it; everybody tests with it.

# %%
dA, dB, dx = backward(x, A, B, scale, dy)
for name, array, formula in (("A", A, dA), ("B", B, dB), ("x", x, dx)):
    before, h = array[1, 0], 1e-4
    array[1, 0] = before + h
    above = (dy * forward(x, A, B, scale)).sum()
    array[1, 0] = before - h
    below = (dy * forward(x, A, B, scale)).sum()
    array[1, 0] = before
    print(f"d{name}[1, 0]: difference {(above - below) / (2 * h):.6f}, formula {formula[1, 0]:.6f}")
    assert np.isclose((above - below) / (2 * h), formula[1, 0])

# %% [markdown]
# ## 3. Why B begins at zero, and A does not
# A new adapter has to be the base, to the bit: so `B A = 0`. PEFT sets B to zero and A to small random numbers. Then
# dA, which goes through B, is zero in the first step, and dB is not: B moves first. Were both zero, both gradients
# would be, and nothing would ever move (people try: microsoft/LoRA issue 98).

# %%
zero_A, zero_B = np.zeros_like(A), np.zeros_like(B)
for who, start in (("A random, B zero", (A, zero_B)), ("both zero", (zero_A, zero_B))):
    dA, dB, _ = backward(x, *start, scale, dy)
    print(f"{who:16}  |dA| = {np.linalg.norm(dA):.2f}  |dB| = {np.linalg.norm(dB):.2f}")

# %% [markdown]
# ## 4. Learn a change
# The world's weight is W plus a change of rank 1, and we have W and some examples. Two hundred steps with a patch of
# rank 2: it has one rank more than it needs. Its *singular values* say how strong each of its ranks is.

# %%
change = 2 * np.outer(rng.standard_normal(d_out), rng.standard_normal(d_in))
x = rng.standard_normal((64, d_in))
A, B, losses = rng.uniform(-1, 1, (r, d_in)) / np.sqrt(d_in), np.zeros((d_out, r)), []
for _ in range(201):
    error = forward(x, A, B, scale) - x @ change.T  # W x stands on both sides, and cancels
    losses.append((error**2).sum() / (2 * len(x)))
    dA, dB, _ = backward(x, A, B, scale, error / len(x))  # the mean is in dy, and nowhere else
    A, B = A - 0.01 * dA, B - 0.01 * dB

print("loss after", ", ".join(f"{n} steps: {losses[n]:.4f}" for n in (0, 10, 50, 200)))
print("singular values of the change", np.linalg.svd(change, compute_uv=False)[:2].round(3) + 0.0)
print("singular values of the patch ", np.linalg.svd(scale * B @ A, compute_uv=False)[:2].round(3) + 0.0)
assert losses[200] < 1e-3

# %%
diagram = diagrams.curves(
    {"loss": list(enumerate(losses[:101]))}, "steps", "loss", "A change of rank 1, learned with rank 2"
)
print(diagram)
diagram  # noqa: B018

# %% [markdown]
# Look at the beginning: it is slow, because dA is nearly zero as long as B is; then both pull together. And the second
# singular value stays near zero: a rank that is not needed is not used. So a rank that is too large costs memory and
# time (chapter 8), and hardly ever the answer.
#
# ## 5. The whole model
# `loracle.training` has the same for every step of the forward pass: `refimpl/training/backward.py` is the page of
# chapter 3 read from the last line to the first. Three scenes, one new line in each, and only that line is learned.

# %%
model = loracle.load_model("tiny", dtype="float32")
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
# `exercises/ch11_backward.py`: write `backward(x, A, B, scale, dy)`, which returns dA, dB and dx. `loracle learn check`
# holds it against differences of whole numbers, where they are exact, and then trains a voice with it. Beware: most
# wrong gradients learn, too. The optimizer (Adam) divides each gradient by its own size, so a forgotten scale only
# makes it worse, and no error message ever comes.
