"""The table of removals is of the kernels as they are, nothing in it is open, and a few rows are what it says.

All of it again: python tests/kernels/removals.py --all
"""

from pathlib import Path

import pytest
import removals
from cases import needs_cpu
from mutations import mutants
from removals import (
    HARMLESS,
    SPLIT_FOR_V1,
    TABLE,
    Workshop,
    all_mutants,
    largest_rank,
    many_steps,
    read_table,
    reason,
)
from test_lora import PAIRS, runnable

from refimpl.cuda.runner import kernels_folder

pytestmark = needs_cpu

NEW = "run python tests/kernels/removals.py and commit what it writes"

SNIPPET = """
// if (a) return;
__device__ inline float sum(const float* v, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s += v[i];  // n numbers
    for (int i = n / 2; i > 0; i /= 2) s += __shfl_xor_sync(FULL_WARP, s, i);
    return n == 0 ? 0.0f : s;
}
extern "C" __global__ void k(float* y, const float* x, const int* ids, int n, int d) {
    const int t = blockIdx.x;
    if (ids[t] < 0 || t >= min(n, d)) return;
    const long long at = (long long)t * d;
    __shared__ float v[32];
    if (threadIdx.x < d && ids) {
        v[threadIdx.x] = x[ids ? at : 3];
    }
    __syncthreads();  // v is complete
    atomicAdd(y + at, sum(v, ceil_div(d, 4)));
}
"""

OF_SNIPPET = """
5 sum: one too many: for (int i = 0; i <= n; i++) s += v[i];
6 sum: one step fewer: for (int i = n / 2; i > 1; i /= 2) s += __shfl_xor_sync(FULL_WARP, s, i);
6 sum: mask swapped: for (int i = n / 2; i > 0; i /= 2) s += __shfl_xor_sync(0x0000ffffu, s, i);
7 sum: test removed: return false ? 0.0f : s;
11 k: test removed: if (false || t >= min(n, d)) return;
11 k: test removed: if (ids[t] < 0 || false) return;
11 k: limit removed: if (ids[t] < 0 || t >= d) return;
11 k: limit removed: if (ids[t] < 0 || t >= n) return;
12 k: offset shifted: const long long at = (long long)t * d + 1;
14 k: test removed: if (true && ids) {
14 k: test removed: if (threadIdx.x < d && true) {
15 k: test removed: v[threadIdx.x] = x[false ? at : 3];
15 k: test removed: v[threadIdx.x] = x[true ? at : 3];
17 k: barrier removed: __syncthreads();  // v is complete
18 k: atomic removed: *(y + at) += sum(v, ceil_div(d, 4));
18 k: tail dropped: atomicAdd(y + at, sum(v, ((d) / (4))));
"""


def test_the_rules(tmp_path: Path) -> None:
    """Each of them, on a kernel that has everything."""
    (tmp_path / "snippet.cu").write_text(SNIPPET)
    found = mutants(tmp_path / "snippet.cu")
    assert [f"{m.line} {m.function}: {m.what}: {m.after or m.before}" for m in found] == OF_SNIPPET.strip().split("\n")
    for m in found:
        lines = [(a, b) for a, b in zip(SNIPPET.split("\n"), m.source.split("\n"), strict=True) if a != b]
        assert len(lines) == 1 and lines[0][0] in SNIPPET.split("\n")[m.line - 1]


def test_mutants_that_are_tried_at_the_same_time_do_not_share_a_file() -> None:
    """As by two processes of pytest-xdist."""
    one, two = Workshop(), Workshop()
    source = one.sources["layers.cu"]
    folders = [one.folder("layers.cu", source + "// a"), two.folder("layers.cu", source + "// b")]
    assert [(folder / "layers.cu").read_text() for folder in folders] == [source + "// a", source + "// b"]
    again = two.folder("layers.cu", source + "// a")
    assert again == folders[0]  # and what was built from it is not built again
    for name, text in one.sources.items():
        assert (kernels_folder() / name).read_text() == text
        assert name == "layers.cu" or (again / name).read_text() == text


def test_the_table_is_of_these_kernels() -> None:
    """Whoever adds a barrier or a test of a bound has it removed, too."""
    now, known = {m.key for m in all_mutants()}, set(read_table())
    assert now == known, f"{sorted(now - known)} are not in {TABLE.name}, {sorted(known - now)} no longer exist: {NEW}"


def test_every_removal_is_caught_or_harmless_for_a_reason() -> None:
    caught, used = read_table(), set()
    for m in all_mutants():
        who, why = caught[m.key], reason(m)
        assert who.partition(":")[0] in ("checker", "test", "crash", "time", "") and bool(who) != bool(why), (
            m,
            who,
            why,
        )
        if why:
            used.add((m.file, m.function, m.before, m.after))
    assert used == set(HARMLESS), "a reason for something that nobody removed"


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("layers.cu", "barrier removed"),
        ("layers.cu", "test removed"),
        ("layers.cu", "one too many"),
        ("kv_write.cu", "offset shifted"),
        ("lora.cu", "tail dropped"),
    ],
)
def test_a_few_of_them(file: str, what: str) -> None:
    """The first of a kind is caught as the table says."""
    table = read_table()
    m = next(m for m in mutants(kernels_folder() / file) if m.what == what and table[m.key])
    found = Workshop().caught(m.file, m.source, m.function)
    assert found.partition(":")[0] == table[m.key].partition(":")[0], (m, found)


def test_what_is_right_is_not_caught() -> None:
    assert Workshop().caught("layers.cu", (kernels_folder() / "layers.cu").read_text(), examples=[2]) == ""


# What the tests of the kernels leave out, and a removal has shown.


every_pair = pytest.mark.parametrize(
    ("dtype", "shrink", "expand"),
    [(d, *pair) for d in ("float32", "float16") for pair in (*PAIRS, SPLIT_FOR_V1) if runnable(*pair, d)],
)


@every_pair
def test_the_largest_rank_fits(dtype: str, shrink: str, expand: str) -> None:
    largest_rank(dtype, shrink, expand)


@every_pair
def test_k_takes_many_steps(dtype: str, shrink: str, expand: str) -> None:
    many_steps(dtype, shrink, expand)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_v1_adds_up_what_was_split(dtype: str) -> None:
    removals.call(removals.test_lora.test_equals_the_definition, (dtype, *SPLIT_FOR_V1), 20)
