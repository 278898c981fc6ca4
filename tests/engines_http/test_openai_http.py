"""Servers of four kinds as engines: what they can show is detected, adapters are chosen, loaded, replaced.

The fake servers answer from our own engine, and JSON keeps every digit: the numbers are equal.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_server import COMPLETIONS, KINDS, OWNERS, Fake, Problem, log_softmax

from refimpl import tiny
from refimpl.engines import openai_http
from refimpl.engines.interface import EngineError, EngineRequest, EngineResponse, Settings
from refimpl.engines.ours import Ours

VOCAB = 1984
PROMPT = (0, 17, 300, 5, 901)
PIRATE, BARD = tiny.VOICES["pirate"], tiny.VOICES["bard"]
SETTINGS = Settings(tiny.base_path())
REQUESTS = [
    EngineRequest(PROMPT, "a", 3),
    EngineRequest(PROMPT[:3], None, 2),
    EngineRequest(PROMPT, "b", 3),
    EngineRequest(PROMPT, None, 3),
    EngineRequest(PROMPT, "a", 1),
]


@pytest.fixture(scope="module")
def ours() -> Ours:
    engine = Ours()
    engine.start(SETTINGS)
    engine.load("a", PIRATE)
    engine.load("b", BARD)
    return engine


@pytest.fixture(params=KINDS)
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with Fake(request.param, {"served-a": PIRATE, "served-b": BARD}) as server:
        yield server


def mapping(fake: Fake) -> str:
    """trtllm-serve has folders where the others have names."""
    return f"a={PIRATE},b={BARD}" if fake.kind == "trtllm" else "a=served-a,b=served-b"


def started(fake: Fake, **options: str) -> openai_http.OpenAIHTTP:
    engine = openai_http.OpenAIHTTP(
        {"url": fake.url, "retries": "0", **{key.replace("_", "-"): value for key, value in options.items()}}
    )
    engine.start(SETTINGS)
    return engine


def with_adapters(fake: Fake, **options: str) -> openai_http.OpenAIHTTP:
    engine = started(fake, adapters=mapping(fake), **options)
    engine.load("a", Path("unused"))
    engine.load("b", Path("unused"))
    return engine


def alone(ours: Ours) -> list[EngineResponse]:
    """As the fake server computes them: another batch has other sums."""
    return [ours.run([request])[0] for request in REQUESTS]


def assert_same(response: EngineResponse, true: EngineResponse, prompt: int) -> None:
    """Every number that the server shows is ours."""
    assert response.error == "" and response.token_ids == true.token_ids
    if response.logits is not None:
        assert response.first_position == 0 and np.array_equal(response.logits, true.logits[:prompt])
        return
    rows = log_softmax(true.logits)[response.first_position :]
    if response.logprobs is not None:
        assert np.array_equal(response.logprobs, rows)
        return
    assert response.top is not None and len(response.top) == len(rows)
    assert all(row[t] == x for top, row in zip(response.top, rows, strict=True) for t, x in top.items())


def test_every_row_of_every_kind_of_server_is_ours(fake: Fake, ours: Ours) -> None:
    engine = with_adapters(fake)
    for request, response, true in zip(REQUESTS, engine.run(REQUESTS), alone(ours), strict=True):
        assert_same(response, true, len(request.prompt_ids))
        assert response.first_position == (len(request.prompt_ids) - 1 if fake.kind == "llama_server" else 0)
        assert response.top is None
    assert engine.capabilities.readout == ("logits" if fake.kind == "trtllm" else "logprobs")
    assert engine.capabilities.prompt_rows is (fake.kind != "llama_server")
    assert engine.capabilities.mixed is (fake.kind != "llama_server")
    assert engine.versions()["server"].startswith(f"{fake.kind} ") and "fake" in engine.versions()["server"]
    engine.close()


def test_top_k_is_taken_where_all_is_refused_or_too_much(fake: Fake, ours: Ours) -> None:
    if fake.kind in ("llama_server", "sglang"):  # they refuse nothing
        engine = with_adapters(fake, top_k="20")
    else:
        fake.max_width = 20  # so that all and 1,000 are refused
        engine = with_adapters(fake)
    k = 1 if fake.kind == "trtllm" else 20
    assert (engine.capabilities.readout, engine.capabilities.top_k) == ("top", k)
    for request, response, true in zip(REQUESTS, engine.run(REQUESTS), alone(ours), strict=True):
        assert_same(response, true, len(request.prompt_ids))
        assert response.top is not None and {len(row) for row in response.top} == {k}


def test_a_server_that_tells_fewer_tokens_than_it_is_asked_for_has_shown_what_it_can() -> None:
    def five(answer: dict) -> None:
        for row in answer["completion_probabilities"]:
            del row["top_logprobs"][5:]

    with Fake("llama_server") as fake:
        fake.change = five
        engine = started(fake)
        assert (engine.capabilities.readout, engine.capabilities.top_k) == ("top", 5)
        assert engine.run([EngineRequest(PROMPT)])[0].error == ""


def test_a_server_that_tells_ids_alone_is_read_as_text(ours: Ours) -> None:
    with Fake("vllm") as fake:
        fake.change = lambda answer: answer["choices"][0].update(logprobs=None, prompt_logprobs=None)
        engine = started(fake)
        assert engine.capabilities.readout == "text"
        response = engine.run([EngineRequest(PROMPT, None, 4)])[0]
        assert response.token_ids == ours.run([EngineRequest(PROMPT, None, 4)])[0].token_ids
        assert response.error == "" and response.logprobs is None and response.top is None


@pytest.mark.parametrize("kind", ["vllm", "sglang", "trtllm"])
def test_adapters_are_loaded_unloaded_and_replaced(kind: str, ours: Ours) -> None:
    with Fake(kind) as fake:
        engine = started(fake)
        assert {"load", "unload", "reload"} <= engine.capabilities.operations
        request = EngineRequest(PROMPT, "a", 2)
        engine.load("a", PIRATE)
        assert_same(engine.run([request])[0], ours.run([request])[0], len(PROMPT))
        engine.load("a", BARD)  # other weights under the same name
        assert_same(engine.run([request])[0], ours.run([EngineRequest(PROMPT, "b", 2)])[0], len(PROMPT))
        engine.unload("a")
        with pytest.raises(EngineError, match="no adapter 'a'"):
            engine.run([request])
        engine.load("a", PIRATE)
        engine.reset()
        assert engine.names == {} and (kind == "trtllm" or fake.adapters == {})
        engine.load("a", PIRATE)
        engine.close()
        assert kind == "trtllm" or fake.adapters == {}


def test_an_older_vllm_replaces_an_adapter_by_unloading_it_first(ours: Ours) -> None:
    with Fake("vllm") as fake:
        engine = started(fake)
        engine.load("a", PIRATE)
        place = fake.load

        def load(name: str, folder: str) -> None:  # load_inplace is unknown to it
            if name in fake.adapters:
                raise Problem(400, "already been loaded")
            place(name, folder)

        fake.load = load
        engine.load("a", BARD)
        request = EngineRequest(PROMPT, "a", 2)
        assert_same(engine.run([request])[0], ours.run([EngineRequest(PROMPT, "b", 2)])[0], len(PROMPT))


def test_without_the_endpoints_nothing_can_be_loaded() -> None:
    for kind in ("vllm", "sglang"):
        with Fake(kind, {"served-a": PIRATE}, dynamic=False) as fake:
            engine = started(fake)
            assert "load" not in engine.capabilities.operations
            with pytest.raises(EngineError, match=r"--adapter-name a=SERVED\. It has served-a"):
                engine.load("a", PIRATE)
    with Fake("llama_server", {"served-a": PIRATE}) as fake, pytest.raises(EngineError, match="loads none while it"):
        started(fake).load("a", PIRATE)


def test_an_adapter_that_the_server_has_is_not_replaced_by_accident() -> None:
    with Fake("vllm", {"a": PIRATE}) as fake:
        with pytest.raises(EngineError, match=r"the server has one of that name, from .*pirate"):
            started(fake).load("a", BARD)
        assert fake.adapters == {"a": PIRATE}


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama_server"])
def test_an_adapter_that_the_server_does_not_have(kind: str) -> None:
    with Fake(kind, {"served-a": PIRATE}) as fake:
        engine = started(fake, adapters="a=other")
        with pytest.raises(EngineError, match=r"no adapter 'other'; it has .*served-a"):
            engine.load("a", PIRATE)


def test_trtllm_serve_looks_at_a_folder_only_when_it_is_asked_for() -> None:
    with Fake("trtllm") as fake:
        engine = started(fake, adapters="a=/nowhere/at/all")
        engine.load("a", PIRATE)
        assert "HTTP 404: No adapter found for /nowhere/at/all" in engine.run([EngineRequest(PROMPT, "a")])[0].error


def test_requests_are_served_together(fake: Fake) -> None:
    engine = with_adapters(fake)
    fake.together = threading.Barrier(len(REQUESTS))  # nobody is answered before all are there
    assert [response.error for response in engine.run(REQUESTS)] == [""] * len(REQUESTS)


def test_a_request_of_the_base_turns_every_adapter_of_llama_server_off() -> None:
    with Fake("llama_server", {"served-a": PIRATE, "served-b": BARD}) as fake:
        engine = with_adapters(fake)
        fake.requests.clear()
        engine.run([EngineRequest(PROMPT)])
        engine.run([EngineRequest(PROMPT, "b")])
        scales = [[x["scale"] for x in body["lora"]] for _, body, _ in fake.requests]
        assert scales == [[0.0, 0.0], [0.0, 1.0]]


def test_llama_server_sums_adapters_and_the_others_say_that_they_do_not(fake: Fake, ours: Ours) -> None:
    engine, request = (
        with_adapters(fake),
        EngineRequest(PROMPT, None, 2, adapter_weights=(("a", 0.5), ("b", -1.5), ("a", 0.25))),
    )
    assert ("sums" in engine.capabilities.features) is (fake.kind == "llama_server")
    if fake.kind == "llama_server":
        true = ours.run([replace(request, adapter_weights=(("a", 0.75), ("b", -1.5)))])[0]
        assert_same(engine.run([request])[0], true, len(PROMPT))
    else:
        with pytest.raises(EngineError, match="no sums of adapters"):
            engine.run([request])


@pytest.mark.parametrize("said", ["served-b", "served-b.gguf", "some/where/served-b.gguf", "1"])
def test_an_adapter_of_llama_server_has_four_names(said: str, ours: Ours) -> None:
    with Fake("llama_server", {"served-a": PIRATE, "served-b": BARD}) as fake:
        engine = started(fake, adapters=f"b={said}")
        engine.load("b", BARD)
        assert_same(
            engine.run([EngineRequest(PROMPT, "b", 2)])[0], ours.run([EngineRequest(PROMPT, "b", 2)])[0], len(PROMPT)
        )


def test_llama_server_goes_on_after_the_end_of_text(ours: Ours) -> None:
    """It stops there, and ignore_eos would forbid the token instead: it is asked again."""

    def one_at_a_time(answer: dict) -> None:
        del answer["tokens"][1:], answer["completion_probabilities"][1:]
        answer["stop_type"] = "eos"

    with Fake("llama_server") as fake:
        engine = started(fake)
        fake.change = one_at_a_time
        request = EngineRequest(PROMPT, None, 4)
        response, true = engine.run([request])[0], ours.run([request])[0]
        assert response.token_ids == true.token_ids and response.logprobs is not None
        assert (
            np.abs(response.logprobs - log_softmax(true.logits)[response.first_position :]).max() < 1e-4
        )  # other sums, same text


def test_what_is_at_the_floor_is_not_told() -> None:
    """vLLM writes -9999 for -inf; llama-server has no digits below the smallest normal float32."""

    def sink(answer: dict) -> None:
        answer["completion_probabilities"][0]["top_logprobs"][-1]["logprob"] = -3.4028235e38

    with Fake("llama_server") as fake:
        engine = started(fake)
        fake.change = sink
        response = engine.run([EngineRequest(PROMPT)])[0]
        assert response.error == "" and response.logprobs is None and [len(row) for row in response.top] == [VOCAB - 1]


def test_prefixes_are_found_again_only_where_that_is_asked_for(ours: Ours) -> None:
    with Fake("llama_server") as fake:
        engine = openai_http.OpenAIHTTP({"url": fake.url})
        for caching in (False, True):
            engine.start(Settings(tiny.base_path(), prefix_caching=caching))
            fake.requests.clear()
            engine.run([EngineRequest(PROMPT)])
            assert fake.requests[0][1]["cache_prompt"] is caching
    with Fake("vllm") as fake:  # which computes anew what has prompt_logprobs
        engine = openai_http.OpenAIHTTP({"url": fake.url})
        engine.start(Settings(tiny.base_path(), prefix_caching=True))
        response = engine.run([EngineRequest(PROMPT, None, 2)])[0]
        assert response.first_position == len(PROMPT) - 1 and not engine.capabilities.prompt_rows
        assert_same(response, ours.run([EngineRequest(PROMPT, None, 2)])[0], len(PROMPT))
    with Fake("trtllm") as fake, pytest.raises(EngineError, match="prefix caching"):
        engine = openai_http.OpenAIHTTP({"url": fake.url})
        engine.start(Settings(tiny.base_path(), prefix_caching=True))


def test_a_great_vocabulary_is_not_asked_for_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "WHOLE", VOCAB - 1)
    with Fake("sglang") as fake:
        assert (started(fake).capabilities.readout, started(fake).capabilities.top_k) == ("top", 1000)
        assert started(fake, top_k="all").capabilities.readout == "logprobs"


def test_the_url_may_end_in_v1(fake: Fake) -> None:
    engine = openai_http.OpenAIHTTP({"url": fake.url + "/v1/"})
    engine.start(SETTINGS)
    assert engine.run([EngineRequest(PROMPT)])[0].error == ""


def test_a_server_of_another_making_needs_the_dialect_and_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWNERS, "vllm", "someone")
    with Fake("vllm") as fake:
        with pytest.raises(EngineError, match=r"cannot tell what .* \(someone\)"):
            started(fake)
        assert started(fake, dialect="vllm").capabilities.readout == "logprobs"


def test_the_entry_needs_nothing_and_make_makes_it() -> None:
    entry = openai_http.entry()
    assert entry.name == "openai_http" and entry.missing == ""
    with Fake("vllm") as fake:
        engine = openai_http.make({"url": fake.url})
        engine.start(SETTINGS)
        assert engine.run([]) == []
        assert COMPLETIONS["vllm"] in {path for path, _, _ in fake.requests}
