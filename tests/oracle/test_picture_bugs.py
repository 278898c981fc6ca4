"""Known bugs of LoRA in engines that draw: each shows, is named from velocities alone, and is in the table."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.picture_bugs import batch

from benchmarks import picture_bugs
from refimpl import NUMPY, PictureRequest, draw
from refimpl.oracle.bugs import all_mutants, llama_mutants, mutants_for
from refimpl.oracle.pictures import all_picture_bugs, judge_pictures, known_bugs, velocities
from refimpl.oracle.pictures.bugs import NEEDS, with_lora, without
from refimpl.oracle.pictures.verdict import TIMES_THE_NOISE, Velocities, distance
from refimpl.oracle.pictures.zoo import TEXT_MODULES, cannot_show, zoo_mutants

MODEL, _, REQUESTS = batch()
RIGHT = velocities(MODEL, REQUESTS)
BUGS = all_picture_bugs()
README = Path(__file__).parents[2] / "refimpl" / "oracle" / "pictures" / "README.md"


@pytest.fixture(scope="module")
def wrong() -> dict[str, Velocities]:
    """Every known bug's velocities of the batch, computed once."""
    return known_bugs(MODEL, REQUESTS)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_shows_and_is_named_when_an_engine_in_float32_has_it(name: str, wrong: dict[str, Velocities]) -> None:
    model, requests, ops = BUGS[name].make(MODEL, REQUESTS)
    verdict = judge_pictures(MODEL, REQUESTS, velocities(model, requests, ops, "float32"), wrong)
    assert not verdict.passed and verdict.error > 100 * verdict.noise
    assert name in (verdict.bug, *verdict.same_here) and len(verdict.same_here) <= 1, str(verdict)
    assert verdict.residual <= TIMES_THE_NOISE * verdict.noise
    assert name in str(verdict)


@pytest.mark.parametrize("name", ["rslora_ignored", "weights_ignored", "last_of_a_sum", "rank_cut[8]"])
def test_a_mutant_of_the_text_model_is_named_from_pictures(name: str, wrong: dict[str, Velocities]) -> None:
    observed = velocities(MODEL, REQUESTS, all_mutants()[name].make(), "float32")
    verdict = judge_pictures(MODEL, REQUESTS, observed, wrong)
    assert name in (verdict.bug, *verdict.same_here), str(verdict)


def test_an_engine_that_is_right_passes_in_both_types(wrong: dict[str, Velocities]) -> None:
    for dtype in ("float32", "float64"):
        verdict = judge_pictures(MODEL, REQUESTS, velocities(MODEL, REQUESTS, dtype=dtype), wrong)
        assert verdict.passed and verdict.bug is None and str(verdict).startswith("pass: ")


def test_what_no_bug_explains_is_not_named(wrong: dict[str, Velocities]) -> None:
    """Two bugs at once, and a number that no engine would have: the nearest is said, and that it is not it."""
    both = with_lora(with_lora(REQUESTS, without(r"\.w2$")), without(r"to_v$"))
    verdict = judge_pictures(MODEL, REQUESTS, velocities(MODEL, both), wrong)
    assert not verdict.passed and verdict.bug is None and verdict.nearest in wrong
    assert "no known bug; the nearest is" in str(verdict)
    broken = [*RIGHT[:-1], np.full_like(RIGHT[-1], np.nan)]
    verdict = judge_pictures(MODEL, REQUESTS, broken, wrong)
    assert not verdict.passed and verdict.bug is None and verdict.error == float("inf")


def test_a_batch_without_what_a_bug_needs_does_not_show_it() -> None:
    """So that `needs` is no decoration: base pictures show no bug of adapters, and a full caption none of captions."""
    rng = np.random.default_rng(0)
    width = MODEL.config.cap_feat_dim
    requests = [PictureRequest(rng.normal(size=(32, width)), None, i, 1, 3, 3) for i in range(2)]
    right = velocities(MODEL, requests)
    for bug in BUGS.values():
        assert distance(velocities(*bug.make(MODEL, requests)), right, right) == 0, bug.name


def test_pixels_show_what_velocities_show() -> None:
    right = draw(MODEL, REQUESTS)
    for name in ("out_not_loaded", "never_unmerged", "caption_filled_with_zeros"):
        model, requests, ops = BUGS[name].make(MODEL, REQUESTS)
        pictures = draw(model, requests, ops)
        assert any((one != another).any() for one, another in zip(pictures, right, strict=True)), name


# ---- the text model's mutants ---------------------------------------------------------------------------------------


def test_every_mutant_of_the_text_model_shows_or_has_a_reason(wrong: dict[str, Velocities]) -> None:
    """The reasons are held against a run: whoever has one changes nothing, or looks for a module that is not there."""
    acting = zoo_mutants()
    assert len(acting) >= 50
    for name in acting:
        assert distance(wrong[name], RIGHT, RIGHT) > 1e-5, f"{name} does not show, and has no reason"
    for name, mutant in all_mutants().items():
        if name not in acting:
            assert cannot_show(mutant)
            assert changes_nothing(name, REQUESTS), f"{name} shows, and has the reason: {cannot_show(mutant)}"


def changes_nothing(name: str, requests: Sequence[PictureRequest]) -> bool:
    """Whether the pictures are the same to rounding, or the mutant cannot be made for a picture model."""
    try:
        pictures = velocities(MODEL, requests, all_mutants()[name].make())
    except (KeyError, AttributeError) as error:
        return name in TEXT_MODULES and re.search(r"_proj|modules", str(error)) is not None
    return distance(pictures, RIGHT, RIGHT) < 1e-14


# ---- the registry ---------------------------------------------------------------------------------------------------


def test_names_and_texts() -> None:
    assert len(BUGS) >= 12 and {bug.needs for bug in BUGS.values()} == set(NEEDS)
    assert not set(BUGS) & set(all_mutants())
    for name, bug in BUGS.items():
        assert name == bug.name and len(bug.what) > 10 and "\n" not in bug.what
        assert all(re.fullmatch(r"https://github\.com/\S+/\S+", link) for link in bug.links)


def test_no_bug_changes_what_it_was_given() -> None:
    before = velocities(MODEL, REQUESTS)
    for bug in BUGS.values():
        bug.make(MODEL, REQUESTS)
    for one, another in zip(velocities(MODEL, REQUESTS), before, strict=True):
        np.testing.assert_array_equal(one, another)


def test_the_table_names_every_bug_and_only_what_there_is() -> None:
    text = README.read_text("utf-8")
    listed = set(re.findall(r"`([a-z][A-Za-z0-9]*_[A-Za-z0-9_]+)(?:\[[^`]*\])?`", text))
    every = {name.partition("[")[0] for name in mutants_for([])} | set(BUGS)
    assert set(BUGS) <= listed and listed <= every, (set(BUGS) - listed, listed - every)
    for bug in BUGS.values():
        assert all(link in text for link in bug.links), bug.name


def test_an_adapter_is_read_once_for_all_pictures_that_have_it() -> None:
    changed = with_lora(REQUESTS, without("w2"))
    pairs = {(id(old), id(new)) for a, b in zip(REQUESTS, changed, strict=True)
             for (old, _), (new, _) in zip(a.adapters, b.adapters, strict=True)}  # fmt: skip
    assert len(pairs) == len({old for old, _ in pairs}) == 3
    assert velocities(MODEL, [replace(r, adapter=None) for r in changed], NUMPY)


# ---- what was measured ----------------------------------------------------------------------------------------------

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_committed_rows_are_those_of_a_run() -> None:
    """Every known bug has one; of some, and of one that does not show, the figures are measured again."""
    measured = json.loads((RESULTS / "picture_bugs.json").read_text("utf-8"))
    rows = {row["bug"]: row for row in measured["rows"]}
    assert rows.keys() == {*llama_mutants(), *BUGS}
    model, requests = {"embedded": picture_bugs.embedded, "synthetic": picture_bugs.synthetic}[measured["model"]]()
    sample = ("scale_is_one", "adapter_of_the_first_request", "out_not_loaded", "key_without_adapter")
    again = picture_bugs.measure(model, requests, sample)
    assert [row["bug"] for row in again] == [name for name in rows if name in sample]
    for row in again:
        committed = dict(rows[row["bug"]])
        if "velocity" in row:
            assert row.pop("velocity") == pytest.approx(committed.pop("velocity"), rel=0.01)
            assert row.pop("pixels") == pytest.approx(committed.pop("pixels"), abs=0.01)
            assert row.pop("largest") == pytest.approx(committed.pop("largest"), abs=2)
        assert row == committed


def test_the_page_is_that_of_the_rows() -> None:
    measured = json.loads((RESULTS / "picture_bugs.json").read_text("utf-8"))
    page = picture_bugs.page(measured["about"], measured["rows"])
    assert page == (RESULTS / "picture_bugs.md").read_text("utf-8")
