"""The oracle on bugs inside PEFT, written in torch from what the real ones did: every one fails, most are explained.

Here every fourth bug is tried in one type, in turn, and all of them with LORACLE_ALL=1, which takes a quarter of an
hour. `python benchmarks/peft_bugs.py` tries all in both; benchmarks/results/peft_bugs.md is what it said.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hugging_face as hf
import pytest
from peft_bugs import BUGS, Bug
from peft_campaign import DTYPES, SEQUENCES, Outcome, campaign, examine, half, make_testbed

from refimpl.engines.peft import Peft
from refimpl.oracle.cases.testbed import Testbed

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and PEFT, which are not under test
# Of the bugs, by a known bug of their class or by a cause that leaves nothing: 9 of the 11 below. Larger: the clocks of
# an explanation would have to be right on a slow machine, too.
EXPLAINED = 0.7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = hf.torch.get_num_threads()
    hf.torch.set_num_threads(1)
    yield
    hf.torch.set_num_threads(before)


@pytest.fixture(scope="module")
def testbeds() -> Iterator[dict[str, Testbed]]:
    with tempfile.TemporaryDirectory() as root:
        yield {dtype: make_testbed(dtype, Path(root) / dtype) for dtype in DTYPES}


outcomes: dict[str, Outcome] = {}  # of the tests below, for the one after them


@functools.cache
def tested_pairs() -> list[tuple[Bug, str]]:
    return half()


@pytest.mark.parametrize("dtype", DTYPES)
def test_peft_as_it_is_passes(dtype: str, testbeds: dict[str, Testbed]) -> None:
    result = campaign(Peft, testbeds[dtype], SEQUENCES)
    assert result.verdict == "pass"
    assert not result.explanation.findings and not result.explanation.symptoms


TRIED = list(BUGS)[:: 1 if os.environ.get("LORACLE_ALL") else 4]


@pytest.mark.parametrize("name", TRIED)
def test_a_bug_inside_peft_fails(name: str, testbeds: dict[str, Testbed]) -> None:
    bug, dtype = next(pair for pair in tested_pairs() if pair[0].name == name)
    outcomes[name] = examine(bug, testbeds[dtype])
    assert outcomes[name].verdict == "fail"


def test_most_are_explained() -> None:
    if len(outcomes) < len(TRIED):
        pytest.skip("only together with the tests of all bugs")
    wrong = {
        name: (outcome.family, outcome.named_family, outcome.named, outcome.cause)
        for name, outcome in outcomes.items()
        if not outcome.right
    }
    assert len(wrong) <= (1 - EXPLAINED) * len(outcomes), wrong


def test_there_are_bugs_enough() -> None:
    assert len(BUGS) >= 24
    assert {bug.family for bug in BUGS.values()} >= set("ABCEFGHI")
