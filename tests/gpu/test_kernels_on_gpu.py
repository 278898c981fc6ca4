"""The property tests of tests/kernels, every one of them, with the kernels on a real GPU.

What they check does not change: the same examples, the same bounds. The order of scheduling is the GPU's own, and
"under the checker" means that every launch is waited for. run_all.py also runs them under compute-sanitizer.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from on_gpu import gpu_or_skip, shipped

xp = gpu_or_skip()

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import test_kv_write  # noqa: E402
import test_lora  # noqa: E402
import test_model  # noqa: E402
import test_paged_attention  # noqa: E402
import test_small  # noqa: E402

# Bytes are counted by the CPU runner only.
COUNTING = {
    "test_lora_sgmv_reads_the_weights_once_per_adapter_and_launch",
    "test_kv_write_a_row_is_read_and_written_once",
    "test_paged_attention_each_visible_key_is_read_once_per_head_and_pass",
}


@pytest.fixture(scope="module", autouse=True)
def there_and_back() -> Iterator[None]:
    with shipped(xp):
        yield


for module in (test_lora, test_kv_write, test_paged_attention, test_small, test_model):
    for name, test in list(vars(module).items()):
        if name.startswith("test_") and callable(test):
            globals()[f"{module.__name__}_{name.removeprefix('test_')}"] = test
missing = COUNTING - globals().keys()
assert not missing, f"these tests have another name now: {missing}"
for counting in COUNTING:
    del globals()[counting]
