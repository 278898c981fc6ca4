"""TensorRT-LLM's two arrays: the example of its documentation, byte-identical round trips, every error of its own."""

import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats.pairs import DOC_BASE, DOC_ROWS, doc_weights, write
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, LFS_POINTER

from refimpl.arrays import DTYPES
from refimpl.config import LAYER_MODULES
from refimpl.formats.trtllm_modules import MODULES, OF_LLAMA
from refimpl.formats.trtllm_pair import Pair, check_pair, matrices, pack, read_pair, write_pair
from refimpl.loading.diagnostics import Diagnostics

FILES = ("model.lora_weights.npy", "model.lora_config.npy")


def read(folder: Path) -> Pair:
    found = Diagnostics()
    pair = read_pair(folder, found)
    assert not found.problems
    assert pair is not None
    return pair


def test_the_table_of_modules() -> None:
    """As in loraModule.h; gate and up are not what their names say."""
    names = {i: module.name for i, module in MODULES.items()}
    assert list(names) == list(range(26))
    assert [names[i] for i in (0, 4, 5, 6, 7, 12, 16, 18, 21, 25)] == [
        "attn_qkv", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate", "cross_attn_dense", "moe_router",
        "mlp_gate_up", "shared_expert_gate", "moe_latent_fc2",
    ]  # fmt: skip
    assert len(set(names.values())) == 26
    assert (OF_LLAMA["gate_proj"].id, OF_LLAMA["up_proj"].id) == (5, 7)
    assert {module: OF_LLAMA[module].id for module in LAYER_MODULES[:4]} == {
        "q_proj": 1,
        "k_proj": 2,
        "v_proj": 3,
        "o_proj": 4,
    }
    # BASE: hidden 12, mlp 20, 4 heads of 8, 2 of them for keys
    widths = {i: module.widths(BASE) for i, module in MODULES.items() if module.widths(BASE)}
    assert widths == {0: (12, 64), 1: (12, 32), 2: (12, 16), 3: (12, 16), 4: (32, 12), 5: (12, 20), 6: (20, 12),
                      7: (12, 20), 18: (12, 40)}  # fmt: skip
    assert [i for i, module in MODULES.items() if module.split == "in"] == [4, 6, 12, 14, 20, 23]
    assert [i for i, module in MODULES.items() if not module.split] == [16, 17, 24, 25]


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    pair = read(write(tmp_path))
    assert pair.weights.shape == (6, 64)
    rows = list(pair.rows())
    assert [str(row) for row in rows][::5] == ["row 0 (attn_q of layer 0, rank 2)", "row 5 (attn_q of layer 3, rank 8)"]
    assert [row.size(DOC_BASE) for row in rows] == [16, 32, 16, 32, 16, 64]
    k = matrices(pair, rows[1], DOC_BASE)
    assert (k.A.shape, k.B.shape) == ((4, 4), (4, 4))
    assert k.A[0].tolist() == [101, 102, 103, 104]
    assert k.B[0].tolist() == [117, 118, 119, 120]
    wide = matrices(pair, rows[5], DOC_BASE)  # a rank above the hidden size: A is A all the same
    assert (wide.A.shape, wide.B.shape) == ((8, 4), (4, 8))
    assert wide.B[0, 0] == 533
    found = Diagnostics()
    check_pair(pair, tmp_path, found, DOC_BASE, "float16", max_rank=8, modules=("attn_q", "attn_k"))
    assert not found.problems
    again = pack([matrices(pair, row, DOC_BASE) for row in rows])
    assert again.weights.tobytes() == doc_weights().tobytes()
    assert again.config.tolist() == DOC_ROWS


@given(
    rows=st.lists(st.tuples(st.sampled_from([*range(26)]), st.integers(0, 5), st.integers(1, 9)), min_size=1),
    columns=st.sampled_from([3, 4]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    width=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_what_is_read_is_written_back_byte_for_byte(
    rows: list[tuple[int, int, int]], columns: int, dtype: str, width: int, seed: int
) -> None:
    config = np.array([[(*row, 0)[:columns] for row in rows]], np.int32)
    weights = np.random.default_rng(seed).standard_normal((1, len(rows), width)).astype(DTYPES[dtype])
    with tempfile.TemporaryDirectory() as name:
        first, second = write(Path(name) / "first", weights, config), Path(name) / "second"
        second.mkdir()
        pair = read(first)
        assert pair.weights.dtype.name == dtype
        assert pair.weights.tobytes() == weights.tobytes()
        write_pair(pair, second)
        for file in FILES:
            assert (first / file).read_bytes() == (second / file).read_bytes()


def test_dora_has_a_fourth_column_and_a_magnitude(tmp_path: Path) -> None:
    weights = np.arange(1, 21, dtype=np.float32).reshape(1, 1, 20)
    pair = read(write(tmp_path, weights, [[1, 0, 2, 1]]))
    (row,) = pair.rows()
    assert row.size(DOC_BASE) == 20
    m = matrices(pair, row, DOC_BASE)
    assert m.magnitude is not None
    assert m.magnitude.tolist() == [17, 18, 19, 20]
    assert pack([m], columns=4).weights.tolist() == weights[0].tolist()
    with pytest.raises(Exception, match="DoRA needs the fourth column"):
        pack([m], columns=3)


# Each of TensorRT-LLM's own checks (loraUtils.cpp, loraValidateRequestTensors), and what a pair must be to meet it.
ENGINE_ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (write(f), (f / FILES[0]).unlink()), f"has {FILES[1]} but no {FILES[0]}: a request"),
    "no config": (lambda f: (write(f), (f / FILES[1]).unlink()), f"has {FILES[0]} but no {FILES[1]}"),
    "axes of weights": (lambda f: write(f, doc_weights()[0]), f"{FILES[0]}: has shape [6, 64]; it must have 3 axes"),
    "axes of config": (lambda f: write(f, config=np.array(DOC_ROWS, np.int32)), f"{FILES[1]}: has shape [6, 3]; it"),
    "batch": (lambda f: write(f, np.repeat(doc_weights(), 2, 0)), f"{FILES[0]}: has shape [2, 6, 64]; its first axis"),
    "int64": (lambda f: write(f, config=np.array([DOC_ROWS])), f"{FILES[1]}: has dtype '<i8'"),
    "float config": (lambda f: write(f, config=np.array([DOC_ROWS], np.float32)), "dtype float32; it must be int32"),
    "int weights": (lambda f: write(f, doc_weights().astype(np.int32)), "dtype int32; it must be float16, bfloat16"),
    "rows": (lambda f: write(f, doc_weights()[:, :5]), f"{FILES[0]} has 5 rows, {FILES[1]} has 6"),
    "columns": (lambda f: write(f, config=[row[:2] for row in DOC_ROWS]), "has 2 columns; there are 3 (module, layer,"),
    "five columns": (lambda f: write(f, config=[[*row, 0, 0] for row in DOC_ROWS]), "has 5 columns"),
    "empty": (lambda f: write(f, doc_weights()[:, :0], np.zeros((1, 0, 3), np.int32)), "has no rows"),
    "module id": (lambda f: write(f, config=changed(2, 0, 26)), "row 2 [26, 1, 2]: module id 26 is none"),
    "negative id": (lambda f: write(f, config=changed(2, 0, -1)), "row 2 [-1, 1, 2]: module id -1"),
    "layer": (lambda f: write(f, config=changed(4, 1, 4)), "row 4 (attn_q of layer 4, rank 2): the base has 4 layers"),
    "layer below": (lambda f: write(f, config=changed(4, 1, -1)), "row 4 [1, -1, 2]: layer -1 is below 0"),
    "rank 0": (lambda f: write(f, config=changed(3, 2, 0)), "row 3 [2, 1, 0]: rank 0 is not above 0"),
    "dora flag": (lambda f: write(f, config=[[*row, 2] for row in DOC_ROWS]), "row 0 [1, 0, 2, 2]: is_dora is 2"),
    "module": (lambda f: write(f, config=changed(0, 0, 3)), "row 0 (attn_v of layer 0, rank 2): attn_v is not enabled"),
    "too few": (lambda f: write(f, doc_weights()[..., :63]), "row 5 (attn_q of layer 3, rank 8): too few values: rank 8"
                " of [4, 4] needs 64, rows have 63"),
    "max rank": (lambda f: write(f), "row 5 (attn_q of layer 3, rank 8): rank 8 is above max_lora_rank 7"),
    "dtype": (lambda f: write(f, doc_weights("bfloat16")), "has dtype bfloat16, the engine has float16"),
    "no such module": (lambda f: write(f, config=changed(0, 0, 16)), "row 0 (moe_router of layer 0, rank 2): the base "
                       "has no moe_router"),
    # what the engine does not check
    "twice": (lambda f: write(f, config=changed(2, 1, 0)), "rows [0, 2] are all module 1 of layer 0"),
    "leftover": (lambda f: write(f, doc_weights() + np.float16(1)), "row 0 (attn_q of layer 0, rank 2): has 64 values, "
                 "the base makes it 16"),
    "NaN": (lambda f: write(f, doc_weights() * np.float16(np.nan)), "row 0 (attn_q of layer 0, rank 2): holds NaN"),
}  # fmt: skip


def changed(row: int, column: int, value: int) -> list[list[int]]:
    rows = [list(values) for values in DOC_ROWS]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize("error", ENGINE_ERRORS)
def test_every_error_of_the_engine_names_the_row(tmp_path: Path, error: str) -> None:
    make, says = ENGINE_ERRORS[error]
    make(tmp_path)
    found = Diagnostics()
    pair = read_pair(tmp_path, found)
    if pair:
        check_pair(pair, tmp_path, found, DOC_BASE, "float16", max_rank=7 if error == "max rank" else 8,
                   modules=("attn_q", "attn_k", "moe_router"))  # fmt: skip
    assert any(says in problem for problem in found.problems), found.problems
    assert all(problem.startswith(str(tmp_path)) and len(problem.splitlines()) == 1 for problem in found.problems)


def npy(x: np.ndarray, **header: object) -> bytes:
    """The file, its header's entries replaced."""
    plain = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False, "shape": x.shape}
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, plain | header)
    return raw.getvalue() + x.tobytes()


PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{"a": 1}], object), allow_pickle=True)
ZIPPED = io.BytesIO()
np.savez(ZIPPED, a=np.ones(3))
W = doc_weights()
DAMAGED = {
    "pickle": (pickle.dumps([1, 2]), "is a pickle, which can run code"),
    "object array": (PICKLED.getvalue(), "asks for a pickle (Python objects), which can run code, and is not read"),
    "objects in a struct": (npy(np.zeros(3, [("a", "O")])), "asks for a pickle"),
    "npz": (ZIPPED.getvalue(), "is a .npz or a PyTorch file"),
    "text": (b"hello, this is not an array", "is not a .npy file: it begins with b'hello, t'"),
    "nothing": (b"", "is not a .npy file"),
    "LFS": (LFS_POINTER, "is a Git LFS pointer"),
    "magic alone": (b"\x93NUMPY\x01\x00", "has no .npy header that can be read"),
    "version 3": (b"\x93NUMPY\x03\x00" + npy(W)[8:], "has version (3, 0)"),
    "truncated": (npy(W)[:-1], "is damaged: shape [1, 6, 64] of <f2 takes 768 bytes, it has 767"),
    "longer": (npy(W) + b"\0", "takes 768 bytes, it has 769"),
    "huge": (npy(W, shape=(1, 2**40, 2**40)), "is damaged"),
    "negative": (npy(W, shape=(1, -6, -64)), "has shape [1, -6, -64]"),
    "Fortran order": (npy(W, fortran_order=True), "is in Fortran order"),
    "big-endian": (npy(W.astype(">f2")), "has dtype '>f2'"),
    "float8": (npy(W.view("V1"), shape=(1, 6, 128)), "has dtype float8 (V1)"),
    "complex": (npy(W.astype(np.complex64)), "has dtype '<c8'"),
    "a header of Python 2": (npy(W).replace(b"(1, 6, 64), }  ", b"(1, 6, 64L), } "), "has no .npy header"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("file", FILES)
def test_an_npy_that_is_not_plain_numbers_is_refused(tmp_path: Path, file: str, kind: str) -> None:
    raw, says = DAMAGED[kind]
    write(tmp_path)
    (tmp_path / file).write_bytes(raw)
    found = Diagnostics()
    assert read_pair(tmp_path, found) is None
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{tmp_path / file}: ")
    assert says in found.problems[0]
