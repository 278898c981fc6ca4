"""The zoo: each mutant shows where it says that it shows, and gives numbers for any other batch as well."""

import ast
import doctest
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.test_reuse import reuses
from properties.test_whole_layers import replacing_cases
from support.build import Case, as_dtype, cases, random_model

import refimpl.oracle.bugs
from refimpl import NUMPY, Engine, Ops, Precision, Request, logits
from refimpl.adapter_cache import AdapterCache
from refimpl.oracle.bugs import NEEDS, NEEDS_OF_FAMILIES, Mutant, all_mutants, mutants_for

MUTANTS = all_mutants()
FOLDER = Path(refimpl.oracle.bugs.__file__).parent

each_mutant = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)


@each_mutant
def test_shows_where_it_says_that_it_shows(mutant: Mutant) -> None:
    assert zoo.differ(zoo.case(mutant.needs).responses(mutant.make()), zoo.truth(mutant.needs))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS.values() if m.needs != "batch"], ids=lambda m: m.name)
def test_needs_no_less(mutant: Mutant) -> None:
    assert not zoo.differ(zoo.case("batch").responses(mutant.make()), zoo.truth("batch"))


def test_no_two_are_the_same() -> None:
    """Two that agree in the case that both name are told apart by some other case."""
    for needs in NEEDS:
        responses = {name: zoo.case(needs).responses(m.make()) for name, m in MUTANTS.items() if m.needs == needs}
        for a, b in itertools.combinations(responses, 2):
            if not zoo.differ(responses[a], responses[b]):
                assert any(
                    zoo.differ(zoo.case(c).responses(MUTANTS[a].make()), zoo.case(c).responses(MUTANTS[b].make()))
                    for c in NEEDS
                ), f"{a} is {b}"


def test_every_need_has_a_case_and_a_mutant() -> None:
    assert set(NEEDS) == set(zoo.CASES) == {m.needs for m in MUTANTS.values()}


@each_mutant
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gives_the_same_kind_of_answer_in_every_type(mutant: Mutant, dtype: str) -> None:
    got, expected = in_type(dtype, mutant.make()), in_type(dtype, NUMPY)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in expected]


def in_type(dtype: str, ops: Ops) -> list[np.ndarray]:
    case = zoo.case("batch")
    adapter = functools.cache(lambda a: as_dtype(a, dtype))
    requests = [replace(r, adapter=[(adapter(a), weight) for a, weight in r.adapters]) for r in case.rounds[0]]
    with np.errstate(all="ignore"):
        return logits(random_model(case.model.config, 1, dtype), requests, ops)


# No batch is too odd for a mutant: where it is wrong, it is wrong with numbers.


def under_every_mutant(case: Case, run: Callable[[Case, Ops], None]) -> None:
    """Those of other families meet their own cases, and each other's, in test_family_bugs.py."""
    mutants = mutants_for([adapter.name for adapter in case.pool]).values()
    for mutant in (mutant for mutant in mutants if mutant.needs not in NEEDS_OF_FAMILIES):
        try:
            with np.errstate(all="ignore"):
                run(case, mutant.make())
        except Exception as error:
            raise AssertionError(f"{mutant.name}: {error}") from error


def whole_prompts(case: Case, ops: Ops) -> None:
    rows = logits(case.model, case.requests, ops)
    assert [len(x) for x in rows] == [len(r.prompt_ids) for r in case.requests]


class Unchecked(Engine):
    """An engine that serves a NaN, as those with the bugs do."""

    def _check_logits(self, *call: object) -> None:
        pass


def serve(case: Case, ops: Ops) -> None:
    """Twice through one engine with small blocks, small batches, and slots for two adapters."""
    engine = Unchecked(case.model, ops, num_blocks=40, block_size=3, max_batch_tokens=11, max_adapters=2)
    ids = [engine.add(replace(r, stop_ids=()), 3) for r in [*case.requests, *case.requests]]
    produced = dict.fromkeys(ids, 0)
    for _ in range(500):
        for token in engine.step():
            produced[token.request_id] += 1
    assert set(produced.values()) == {3}


@settings(max_examples=12)
@given(case=st.one_of(cases(), replacing_cases()))
def test_answers_any_batch(case: Case) -> None:
    under_every_mutant(case, whole_prompts)


@settings(max_examples=3)
@given(case=st.one_of(reuses(), replacing_cases()))
def test_serves_any_requests(case: Case) -> None:
    under_every_mutant(case, serve)


# The parameters, the links and the text.


def test_an_adapter_by_its_name() -> None:
    case = zoo.case("batch")
    first, second = case.pool
    asked = [Request([1, 2, 3], first), Request([4, 5], second), Request([6, 7])]
    mutants = mutants_for([a.name for a in case.pool])

    def responses(name: str) -> Sequence[np.ndarray]:
        return logits(case.model, asked, mutants[name].make())

    everyone = logits(case.model, [replace(r, adapter=second if r.adapter else None) for r in asked])
    assert not zoo.differ(responses(f"another_adapter[{second.name}]"), everyone)
    without = logits(case.model, [replace(r, adapter=None if r.adapter is second else r.adapter) for r in asked])
    assert not zoo.differ(responses(f"base_for[{second.name}]"), without)


def test_names_and_texts() -> None:
    classes = [mutant.family for mutant in MUTANTS.values()]
    assert classes == sorted(classes)
    assert set(classes) == set("ABCDEFGHI")
    for name, mutant in MUTANTS.items():
        assert name == mutant.name
        assert "\n" not in mutant.what and "{" not in mutant.what and len(mutant.what) > 10
        assert all(re.fullmatch(r"https://github\.com/\S+/\S+", link) for link in mutant.links)
        assert len(set(mutant.links)) == len(mutant.links)


def test_what_one_engine_with_a_bug_remembers_is_unknown_to_the_next() -> None:
    """Some bugs remember: which name was bound first, which slot held what. make() must begin without any of it."""
    case = zoo.case("batch")
    first, second = (replace(adapter, name="one") for adapter in case.pool[:2])  # another adapter under the same name
    forgetful = []
    for name, mutant in MUTANTS.items():
        dirty = mutant.make()
        used = AdapterCache(case.model, Precision("model", "float64"), dirty)
        used.acquire(first)
        expected, fresh = (
            AdapterCache(case.model, Precision("model", "float64"), ops) for ops in (mutant.make(), mutant.make())
        )
        expected.acquire(second)
        fresh.acquire(second)
        assert fresh.digest(0) == expected.digest(0), name
        used.release(0)
        used.unload(first)
        used.acquire(second)
        forgetful.append(used.digest(0) == expected.digest(0))
    assert not all(forgetful)  # some of them do remember, so that a table that is kept would show


def test_nothing_is_patched() -> None:
    """No file of the zoo sets an attribute of anything but self."""
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
                assert isinstance(node.value, ast.Name) and node.value.id == "self", f"{file.name}:{node.lineno}"
            assert not (isinstance(node, ast.Name) and node.id in ("setattr", "vars", "globals")), file.name


def test_the_example_in_the_readme() -> None:
    assert doctest.testfile(str(FOLDER / "README.md"), module_relative=False, encoding="utf-8") == (0, 2)


def test_the_table_of_bugs_names_every_mutant_and_no_other() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([A-Za-z0-9_]+)(?:\[[^`]*\])?`", text))
    assert listed == {name.partition("[")[0] for name in mutants_for(["any"])}
    for mutant in MUTANTS.values():
        assert all(link in text for link in mutant.links), mutant.name
