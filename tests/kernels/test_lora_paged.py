"""lora_paged.cu: the bits of lora.cu, whatever the pages are and wherever they lie."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cases import needs_cpu, orders, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import mapping
from test_lora import PATTERNS, Case, assert_right, cases, make_case

from refimpl.cuda import launch
from refimpl.cuda.launch import LoraLaunch, PackedLora, stored
from refimpl.cuda.launch.lora import PageTable
from refimpl.errors import LoracleError

pytestmark = needs_cpu

DTYPES = ("float32", "float16", "bfloat16")
FORMS = ("bgmv", "sgmv")
WIDTHS = (1, 3, 4, 8, 12, 16, 33, 64)
every_form = pytest.mark.parametrize(("dtype", "form"), [(dtype, form) for dtype in DTYPES for form in FORMS])


def paged(packed: PackedLora, dtype: str, width: int, used: Sequence[int], rng: np.random.Generator) -> PackedLora:
    """The same adapters, each cut into pages that lie anywhere; what no adapter of `used` has there is NaN.

    Each has numbers of its own here, from the first of its arrays to the last."""
    numbers = launch.widened(packed.weights, dtype)
    rows, starts, pieces, offsets = [], np.zeros(packed.adapters, np.int32), [], packed.offsets.copy()
    for slot in range(packed.adapters):
        parts, size = [], 0
        for index in range(packed.slices):
            rank, d_out = int(packed.ranks[index, slot]), int(np.diff(packed.slice_starts)[index])
            for i, count in enumerate((rank * packed.d_in, d_out * rank, d_out)):
                if offsets[index, slot, i] >= 0:
                    begin = packed.offsets[index, slot, i]
                    parts += [numbers[begin : begin + count], np.full(-count % 8, np.nan, np.float32)]
                    offsets[index, slot, i] = size
                    size += count + len(parts[-1])
        of_slot = np.concatenate([*parts, np.full(-size % width, np.nan, np.float32)])
        if slot not in used:
            of_slot[:] = np.nan
        starts[slot] = sum(map(len, rows))
        pieces.append(of_slot.reshape(-1, width))
        rows.append(np.arange(len(of_slot) // width))
    count = sum(map(len, rows))
    places = rng.permutation(count + 3)[:count].astype(np.int32)
    pages = np.full((count + 3, width), np.nan, np.float32)
    pages[places] = np.concatenate(pieces)
    return replace(packed, weights=pages, offsets=offsets, page_table=PageTable(places, starts, width))


def run(case: Case, dtype: str, form: str, width: int | None, order: str | int, check: bool = False, ids: bool = False):
    """What the kernels make of the case: out of one buffer, or out of pages of this width."""
    y, packed = stored(case.y, dtype).copy(), launch.pack(case.slices, case.d_outs, dtype, case.slots)
    if width is not None:
        packed = paged(packed, dtype, width, set(case.adapter_ids.tolist()), np.random.default_rng(width))
    x = case.x.argmax(axis=1).astype(np.int32) if ids else stored(case.x, dtype)
    with scheduled(order, check):
        launch.lora_delta(
            y,
            x,
            packed,
            mapping(case.adapter_ids, case.adapter_weights),
            0,
            case.round_rank,
            case.round_delta,
            LoraLaunch(f"{form}_shrink_v2", f"{form}_expand_v2", case.splits, case.spread),
        )
    return y


@every_form
@given(data=st.data())
@settings(max_examples=12)
def test_pages_change_no_bit(dtype: str, form: str, data: st.DataObject) -> None:
    """Any ranks, slices, splits and pages; clean under the checker."""
    case = data.draw(cases(dtype))
    width, order = data.draw(st.sampled_from(WIDTHS)), data.draw(orders)
    y = run(case, dtype, form, width, order, check=True)
    assert y.tobytes() == run(case, dtype, form, None, "forward").tobytes()
    assert_right(case, dtype, y)


@every_form
@pytest.mark.parametrize("width", [7, 64])
def test_all_ranks_in_one_launch(dtype: str, form: str, width: int) -> None:
    """Ranks 1 to 256, d_in beyond two steps, the last one no whole one."""
    rng = np.random.default_rng(width)
    for pattern in PATTERNS:
        ranks = (1, 3, 8, 17, 64, 256)
        case = make_case(rng, dtype, 131, (130, 33), ranks, 9, pattern, 2, bool(rng.integers(2)), False, 1)
        y = run(case, dtype, form, width, "reverse", check=True)
        assert y.tobytes() == run(case, dtype, form, None, "forward").tobytes()
        assert_right(case, dtype, y)


@every_form
def test_nothing_is_looked_up_beyond_the_last_number(dtype: str, form: str) -> None:
    """One adapter of rank 1 ends one number after its A: the rest of the last step would be beyond the page table."""
    case = make_case(np.random.default_rng(0), dtype, 65, (1,), (1,), 3, "one")
    y = run(case, dtype, form, 1, "forward", check=True)
    assert y.tobytes() == run(case, dtype, form, None, "forward").tobytes()
    assert_right(case, dtype, y)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=8)
def test_a_token_id_is_a_one_hot_row(dtype: str, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    d_in, tokens = case.x.shape[1], len(case.x)
    ids = data.draw(st.lists(st.integers(0, d_in - 1), min_size=tokens, max_size=tokens))
    case = replace(case, x=np.eye(d_in, dtype=np.float32)[np.asarray(ids, int)].reshape(-1, d_in))
    y = run(case, dtype, "bgmv", data.draw(st.sampled_from(WIDTHS)), data.draw(orders), check=True, ids=True)
    assert y.tobytes() == run(case, dtype, "bgmv", None, "forward", ids=True).tobytes()
    assert_right(case, dtype, y)


def test_what_has_no_paged_form_is_refused() -> None:
    case = make_case(np.random.default_rng(0), "float32", 8, (8,), (2,), 3, "one")
    packed = paged(launch.pack(case.slices, case.d_outs, "float32"), "float32", 8, [0], np.random.default_rng(0))
    y, rows = stored(case.y, "float32").copy(), mapping(case.adapter_ids)
    with pytest.raises(LoracleError, match="lora_shrink_v1 cannot read adapters that lie in pages"):
        launch.lora_delta(y, case.x, packed, rows, launch=LoraLaunch("lora_shrink_v1", "lora_expand_v1"))
