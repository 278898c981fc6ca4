# %% [markdown]
# # Loracle in a browser
# One base, many LoRA adapters, one batch; a function of your own, graded; and a CUDA kernel of your own under a checker
# that names races by line, on the CPU of this machine. Run the cells in order. All that is downloaded is in the first.

# %% tags=["install"]
# %pip install -q loracle==VERSION

# %%
import os
import shutil
from pathlib import Path

import numpy as np

import loracle
from loracle import learn, tiny
from loracle.cuda import runner
from loracle.errors import KernelError
from loracle.learn import check

os.environ["LORACLE_KERNELS"] = "cpu"  # the checker is the CPU runner's, whatever card there is
print("loracle", loracle.__version__)

# %% [markdown]
# ## Three voices, one batch
# Each request names its adapter; one forward pass of the shared base answers all three.

# %%
model = loracle.load_model("tiny")
prompt = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
voices = [loracle.load_adapter(name, model.config) for name in ("pirate", "bard")]
requests = [loracle.Request(prompt, adapter=adapter) for adapter in (*voices, None)]
for output in loracle.generate(model, requests, max_new_tokens=24):
    print(output.text.strip().splitlines()[0])

# %% [markdown]
# ## A function of yours, graded
# `check` knows the exercise by the function's name; `loracle learn list` has them all. This is chapter 6 (a cell with
# `!loracle learn next` makes a folder with all of it). Write the function, run the cell, read the smallest case on
# which it is wrong.


# %%


def prefix_key(parent, token_ids, base, p, adapters):
    """Return bytes that are equal for two blocks exactly when their keys and values are."""
    raise NotImplementedError


check(prefix_key)

# %% [markdown]
# ## A kernel of yours, under the checker
# There is no bounds test in it. Put it right, and run the cell again.

# %%
Path("double.cu").write_text("""
extern "C" __global__ void twice(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = 2 * x[i];
}
""")
x = np.arange(5, dtype=np.float32)
y = np.empty_like(x)
try:
    runner.load("double.cu", "float32", check=True).launch("twice", (1,), (32,), [x, y, 5])
    print(y)
except KernelError as error:
    print(error)

# %% [markdown]
# ## Lab B, in the browser
# `shrink.cu` lies in the folder `lab_b`: open it in the file browser on the left, write step 1, and run the last cell
# again and again. The page of the lab lies beside it.

# %%
lab, folder = learn.load("lab_b_shrink"), Path("lab_b")
package = Path(learn.__file__).parent
folder.mkdir(exist_ok=True)
for file in (lab.page, *(f"labs/{name}" for name in lab.files)):
    if not (folder / Path(file).name).exists():
        shutil.copy(package / file, folder)
print(sorted(path.name for path in folder.iterdir()))

# %%
print(lab.grade(folder).text())
