"""Campaigns over an engine with one bug: it fails, and the bug gets its name, its factor or its symptoms."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.campaign import campaign, named

from refimpl import NUMPY, Ops
from refimpl.adapter_slots import adapter_scale
from refimpl.lora import lora_delta
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.cases.case import Case
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.diagnosis import workers
from refimpl.oracle.diagnosis.diagnose import Graded, _next_best
from refimpl.oracle.diagnosis.projection import projection_terms
from refimpl.oracle.noise.measure import Sample

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("rslora_ignored", "float32"),
        ("none_is_slot_zero", "bfloat16"),
        ("not_applied_to[v_proj]", "float16"),
        ("decode_at_zero", "float32"),
    ],
)
def test_a_bug_is_named(tmp_path: Path, name: str, dtype: str) -> None:
    result = campaign(tmp_path, all_mutants()[name].make, dtype)
    assert result.verdict == "fail"
    (finding,) = [one for one in result.explanation.findings if one.explains]
    assert name in (finding.name, *finding.also)
    assert abs(finding.projection.coefficient - 1) < 0.05 and finding.residual < 3
    assert finding.next_best[1] > 3 * finding.residual


def test_a_bug_of_sequences_is_named_and_made_small(tmp_path: Path) -> None:
    result = campaign(tmp_path, all_mutants()["key_without_adapter"].make, cases=1, sequences=6)
    assert result.verdict == "fail" and "key_without_adapter" in named(result)
    assert result.explanation.smallest is not None and not result.explanation.smallest.stateless
    assert len(result.explanation.smallest.steps) <= 4
    assert any("were asked before, of" in symptom.what for symptom in result.explanation.symptoms)


def test_a_factor_that_nobody_has_foreseen_is_fitted(tmp_path: Path) -> None:
    def scaled() -> Ops:
        return dataclasses.replace(NUMPY, adapter_scale=lambda alpha, r, rs: 1.37 * adapter_scale(alpha, r, rs))

    result = campaign(tmp_path, scaled)
    assert named(result) == ["scale_times[1.37]"]
    assert any("1.37 times" in symptom.what for symptom in result.explanation.symptoms)


def test_three_per_mille_of_scale_are_seen_below_the_noise_of_bfloat16(tmp_path: Path) -> None:
    def scaled() -> Ops:
        return dataclasses.replace(NUMPY, adapter_scale=lambda alpha, r, rs: 1.003 * adapter_scale(alpha, r, rs))

    result = campaign(tmp_path, scaled, "bfloat16", cases=6, sequences=1, below=True)
    assert [p.verdict for p in result.played].count("fail") == 0  # no row is out of the noise
    assert result.verdict == "fail" and any("below the noise: scale_times" in line for line in result.diagnostics)
    assert named(result)[0].startswith("scale_times[1.00")


def test_a_bug_that_no_mutant_has_gets_its_symptoms(tmp_path: Path) -> None:
    """The delta of every adapter has its outputs reversed: nothing in the zoo does that."""

    def reversed_delta() -> Ops:
        def step(y, x, *rest) -> None:
            delta = np.zeros_like(y)
            lora_delta(delta, x, *rest)
            y += delta[:, ::-1]

        return dataclasses.replace(NUMPY, lora_delta=step)

    result = campaign(tmp_path, reversed_delta)
    assert result.verdict == "fail" and named(result) == []
    assert not any("base rows are wrong" in symptom.what for symptom in result.explanation.symptoms)


def test_no_bug_is_run_twice_on_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked for below the noise is not run again to explain the failure, nor from one round to the next."""
    runs: Counter[tuple[Case, Callable[[], Ops]]] = Counter()

    def counted(make: Callable[[], Ops], sample: Sample, testbed: Testbed) -> list:
        runs[sample.case, make] += 1
        return projection_terms(make, sample, testbed)

    monkeypatch.setattr(workers, "projection_terms", counted)
    result = campaign(tmp_path, all_mutants()["rslora_ignored"].make, cases=1, below=True)
    assert named(result) == ["rslora_ignored"]
    assert len(runs) > 100 and set(runs.values()) == {1}


def test_the_next_best_bug_is_another_one() -> None:
    """The same bug, at some adapters only, is no other."""

    def candidate(name: str, residual: float) -> Any:
        return SimpleNamespace(
            mutant=SimpleNamespace(name=name), residual=residual, projection=SimpleNamespace(score=99.0)
        )

    best, confined, other = candidate("a", 1.0), candidate("a", 2.0), candidate("b", 3.0)
    assert _next_best([best, confined, other], [Graded(best, 1.0)], 5.0, 10.0) == ("b", 3.0)
