"""An engine in another environment, behind the interface: its responses are checked before they count."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from workers import fake_engine as fake

from refimpl.engines.hosted import Hosted
from refimpl.engines.interface import Capabilities, EngineError, EngineRequest, Settings
from refimpl.engines.recipes import Recipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="engines in environments of their own need POSIX")

RECIPE = Recipe("fake", "LORACLE_FAKE_PYTHON", "nothing", (), ())
SETTINGS = Settings(Path("model"), max_length=16)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    monkeypatch.setenv("LORACLE_FAKE_PYTHON", sys.executable)
    hosted = Hosted(RECIPE, fake.__file__, Capabilities(readout="logits"), {"timeout": "300"})
    yield hosted
    hosted.close()


def request(what: int, adapter: str | None = None) -> EngineRequest:
    return EngineRequest((what, 5, 6), adapter, max_new_tokens=3)


def test_responses_come_back_in_order_whatever_the_engine_prints(engine: Hosted) -> None:
    engine.start(SETTINGS)
    engine.load("a", Path("a"))
    mixed = EngineRequest((fake.WELL,), max_new_tokens=3, adapter_weights=(("a", 0.5),))
    responses = engine.run([request(fake.CHATTER), request(fake.WELL, "a"), mixed])
    assert [(one.first_position, one.token_ids, one.error) for one in responses] == [(0, (0, 0, 0), "")] * 3
    assert all(one.logits is not None and one.logprobs is None for one in responses)
    assert [one.logits.shape for one in responses if one.logits is not None] == [(5, 7), (5, 7), (3, 7)]
    assert engine.notes["adapters"] == [[], [["a", 1.0]], [["a", 0.5]]]
    assert engine.versions() == {"fake": "1", "offline": "1"}


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (fake.NAN, "1 of 5 rows have values that are not finite, the first is row 1"),
        (fake.INFINITE, "1 of 5 rows have values that are not finite, the first is row 4"),
        (fake.NARROW, r"rows of float32 \[5, 6\] for a vocabulary of 7"),
        (fake.FEW_TOKENS, "2 of 3 tokens"),
        (fake.NO_IDS, "an answer without token ids"),
        (fake.NO_ROWS, "an answer without rows"),
    ],
)
def test_a_wrong_response_is_one_with_an_error_beside_the_right_ones(engine: Hosted, what: int, error: str) -> None:
    engine.start(SETTINGS)
    well, wrong = engine.run([request(fake.WELL), request(what)])
    assert not well.error
    with pytest.raises(EngineError, match=f"^fake: {error}$"):
        raise EngineError(wrong.error)


def test_rows_that_fit_neither_the_prompt_nor_the_answer_are_an_error(engine: Hosted) -> None:
    engine.start(SETTINGS)
    (wrong,) = engine.run([EngineRequest((fake.FEW_ROWS, 5, 6, 5, 6), max_new_tokens=6)])
    assert wrong.error == "fake: 8 rows for a prompt of 5 tokens and 6 produced ones"
    assert np.shape(wrong.raw) == (8, fake.VOCAB)


def test_an_engine_that_refuses_a_batch_answers_with_the_reason_and_goes_on(engine: Hosted) -> None:
    engine.start(SETTINGS)
    refused = engine.run([request(fake.WELL), request(fake.RAISE)])
    assert [response.error for response in refused] == ["fake: RuntimeError: CUDA error"] * 2
    assert engine.run([request(fake.WELL)])[0].error == ""


def test_what_cannot_be_run_at_all_is_one_line(engine: Hosted) -> None:
    with pytest.raises(EngineError, match=r"^fake: was not started$"):
        engine.run([request(fake.WELL)])
    with pytest.raises(EngineError, match=r"^fake: computes in float32, not in float64$"):
        engine.start(Settings(Path("model"), "float64"))
    with pytest.raises(EngineError, match=r"^fake: ValueError: this model is not for me$"):
        engine.start(Settings(Path("model"), options={"refuses": "yes"}))
    engine.start(SETTINGS)
    for broken, message in (
        ([request(fake.WELL, "b")], "no adapter 'b' is loaded"),
        ([EngineRequest((0,) * 14, max_new_tokens=3)], "a request of 17 tokens, and the engine was started for 16"),
        ([request(fake.WELL), request(fake.FEW_ANSWERS)], "fake: 1 answers to 2 requests"),
        ([request(fake.DIE)], "died of signal 9 during 'run'; it said last: out of memory, says the engine"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.run(broken)
    with pytest.raises(EngineError, match="not running"):
        engine.run([request(fake.WELL)])
    engine.start(SETTINGS)  # anew
    assert engine.run([request(fake.WELL)])[0].error == ""


def test_an_engine_that_takes_too_long_is_ended(engine: Hosted) -> None:
    engine.start(SETTINGS)
    engine.run([request(fake.THINK)])  # its last words are there before the time runs
    engine.timeout = 0.3
    with pytest.raises(EngineError, match=r"^fake: no answer to 'run' within 0.3 s; it said last: thinking$"):
        engine.run([request(fake.HANG)])


def test_names_are_known_until_they_are_unloaded_or_all_is_reset(engine: Hosted) -> None:
    engine.start(SETTINGS)
    engine.load("a", Path("a"))
    engine.load("b", Path("b"))
    engine.unload("a")
    for forgotten in ("a", "c"):
        with pytest.raises(EngineError, match=f"no adapter '{forgotten}' is loaded"):
            engine.unload(forgotten)
    engine.reset()
    with pytest.raises(EngineError, match="no adapter 'b' is loaded"):
        engine.run([request(fake.WELL, "b")])


def test_without_an_environment_there_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORACLE_FAKE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(EngineError, match=r"fake: LORACLE_FAKE_PYTHON is .*python, which is no program"):
        Hosted(RECIPE, fake.__file__, Capabilities(), {})
    monkeypatch.setenv("LORACLE_FAKE_PYTHON", sys.executable)
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        with pytest.raises(EngineError, match=f"fake: option timeout={wrong} is not a number of seconds"):
            Hosted(RECIPE, fake.__file__, Capabilities(), {"timeout": wrong})
