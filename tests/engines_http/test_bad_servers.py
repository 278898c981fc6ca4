"""Servers that are down, slow, broken or wrong: one clear line each, and never a response that could pass.

What says nothing about the numbers (nobody there, not in time, no permission) is an EngineError: the engine could not
be run. Anything else that came in place of a completion is an EngineResponse with an error, and has it in `raw`.
"""

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import KINDS, PATIENCE, Fake, Handler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refimpl import LoracleError, tiny
from refimpl.config import ModelConfig
from refimpl.engines import openai_http
from refimpl.engines.interface import EngineError, EngineRequest, EngineResponse, Settings
from refimpl.engines.openai_http import OpenAIHTTP
from refimpl.engines.servers import client

REQUEST = EngineRequest((0, 17, 300, 5), None, 3)
SETTINGS = Settings(tiny.base_path())
SECRET = "sk-this-must-not-be-seen"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", 0.001)


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Fake, OpenAIHTTP]]:
    """A server of each kind, and the engine that was started with it."""
    with Fake(request.param) as server:
        yield server, started(server)


@pytest.fixture
def fake(running: tuple[Fake, OpenAIHTTP]) -> Fake:
    running[0].well_behaved()
    return running[0]


@pytest.fixture
def engine(running: tuple[Fake, OpenAIHTTP]) -> Iterator[OpenAIHTTP]:
    before = replace(running[1].client)
    yield running[1]
    running[1].client = running[1].dialect.client = before


def started(fake: Fake, top_k: str = "50", **options: str) -> OpenAIHTTP:
    """50 tokens of each row, for these tests to be quick; "" for all."""
    given = {"url": fake.url, "retries": "1", **({"top-k": top_k} if top_k else {})}
    engine = OpenAIHTTP(given | {k.replace("_", "-"): v for k, v in options.items()})
    engine.start(SETTINGS)
    return engine


def failed(engine: OpenAIHTTP, says: str) -> EngineResponse:
    """Send one request, and return its response, which has an error and no numbers."""
    (response,) = engine.run([REQUEST])
    assert says in response.error and "\n" not in response.error
    assert response.logits is None and response.logprobs is None and response.top is None and response.token_ids == ()
    return response


# In place of JSON: what is sent, and the error that it becomes.
def status_500(handler: Handler, body: bytes) -> None:
    handler.send(500, b'{"error": {"message": "CUDA error: an illegal memory access"}}')


def html(handler: Handler, body: bytes) -> None:
    handler.send(200, b"<html><body>Welcome to nginx!</body></html>", "text/html")


def html_404(handler: Handler, body: bytes) -> None:
    handler.send(404, b"<html>\n<h1>404 Not Found</h1>\n</html>", "text/html")


def nothing(handler: Handler, body: bytes) -> None:
    handler.send(200, b"")


def hangs_up(handler: Handler, body: bytes) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def half(handler: Handler, body: bytes) -> None:
    """Closes in the middle of an answer of announced length."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def half_a_stream(handler: Handler, body: bytes) -> None:
    """Closes in the middle of a chunked answer."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s" % (len(body), body[: len(body) // 2]))
    handler.close_connection = True


def half_of_unknown_length(handler: Handler, body: bytes) -> None:
    """Closes in the middle of an answer that ends when the connection does."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def elsewhere(handler: Handler, body: bytes) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:9/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


INSTEAD = [
    (status_500, "HTTP 500, 2 times: CUDA error: an illegal memory access"),
    (html, "not JSON: <html><body>Welcome to nginx!"),
    (html_404, "HTTP 404: <html> <h1>404 Not Found</h1> </html>"),
    (nothing, "not JSON"),
    (hangs_up, "the connection broke"),
    (half, "the connection broke"),
    (half_a_stream, "the connection broke"),
    (half_of_unknown_length, "not JSON"),
    (elsewhere, "HTTP 307"),  # not followed: the key would go there, too
]


@pytest.mark.parametrize("instead, says", INSTEAD, ids=[send.__name__ for send, _ in INSTEAD])
def test_what_comes_instead_of_json_is_a_failed_case(
    fake: Fake, engine: OpenAIHTTP, instead: Callable[..., None], says: str
) -> None:
    fake.instead = instead
    response = failed(engine, says)
    assert fake.url in response.error
    if instead in (html, html_404):
        assert "<html>" in response.raw
    if instead in (half, half_of_unknown_length):
        assert response.raw.startswith("{")  # what had come
    if instead is status_500:
        assert response.raw["error"]["message"].startswith("CUDA error")


@pytest.mark.parametrize("instead, says", INSTEAD, ids=[send.__name__ for send, _ in INSTEAD])
def test_a_server_that_is_so_from_the_start_cannot_be_run(instead: Callable[..., None], says: str) -> None:
    with Fake("vllm") as fake:
        fake.instead = instead
        with pytest.raises(EngineError, match=says.split(",")[0].replace("(", r"\(")):
            started(fake)


def test_a_server_that_recovers_is_asked_again(fake: Fake, engine: OpenAIHTTP) -> None:
    engine.client.retries = 2
    bad = iter([status_500, half])

    def recovers(handler: Handler, body: bytes) -> None:
        next(bad, lambda handler, body: handler.send(200, body))(handler, body)

    fake.instead = recovers
    assert engine.run([REQUEST])[0].error == ""


def test_repetitions_are_bounded_and_what_is_refused_is_not_repeated(fake: Fake, engine: OpenAIHTTP) -> None:
    engine.client.retries = 3
    for instead, tries in ((status_500, 4), (hangs_up, 4), (html_404, 1), (html, 1)):
        fake.instead = instead
        fake.requests.clear()
        assert engine.run([REQUEST])[0].error
        assert len(fake.requests) == tries


def test_one_bad_answer_does_not_spoil_the_others(fake: Fake, engine: OpenAIHTTP) -> None:
    many, lock = iter([half, html]), threading.Lock()

    def some(handler: Handler, body: bytes) -> None:
        with lock:
            chosen = next(many, None)
        chosen(handler, body) if chosen else handler.send(200, body)

    fake.instead = some
    responses = engine.run([REQUEST] * 4)
    assert sum(bool(response.error) for response in responses) == 1  # the half one was good the second time
    assert sum(response.top is not None or response.logits is not None for response in responses) == 3


def test_nobody_is_there() -> None:
    with Fake("vllm") as fake:
        engine = started(fake)
    with pytest.raises(EngineError, match="nobody answers there"):  # it is gone
        engine.run([REQUEST])
    with pytest.raises(EngineError, match="nobody answers there"):
        engine.start(SETTINGS)
    engine.close()


def test_a_name_that_is_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(EngineError, match="nobody answers there"):
        OpenAIHTTP({"url": "http://no-such-host.invalid"}).start(SETTINGS)


def test_a_name_that_can_be_no_host() -> None:
    with pytest.raises(EngineError, match=r"GET /v1/models at http://a\.\.b: "):
        OpenAIHTTP({"url": "http://a..b"}).start(SETTINGS)


def test_a_slow_server_is_not_waited_for(fake: Fake, engine: OpenAIHTTP) -> None:
    free = threading.Event()
    engine.client.timeout = 0.05
    fake.instead = lambda handler, body: free.wait(PATIENCE) and None
    try:
        with pytest.raises(EngineError, match=r"no whole answer within 0\.05 s"):
            engine.run([REQUEST])
    finally:
        free.set()


def test_a_server_that_drips_is_not_waited_for_either() -> None:
    def drips(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for i in range(len(body)):
            handler.wfile.write(body[i : i + 1])
            if free.wait(0.005):
                return

    with Fake("vllm") as fake:
        engine, free = started(fake), threading.Event()
        engine.client.timeout = 0.1
        fake.instead = drips
        try:
            with pytest.raises(EngineError, match=r"no whole answer within 0\.1 s"):
                engine.run([REQUEST])
        finally:
            free.set()


def test_a_timeout_of_the_socket_is_no_broken_connection(
    fake: Fake, engine: OpenAIHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it comes before the timer's thread has had its turn: slow is not wrong, and not asked again."""
    requests: list[str] = []

    def times_out(connection: client.HTTPConnection) -> None:
        requests.append(connection.host)
        raise TimeoutError("timed out")

    monkeypatch.setattr(client.HTTPConnection, "getresponse", times_out)
    with pytest.raises(EngineError, match="no whole answer within 120 s"):
        engine.run([REQUEST])
    assert len(requests) == 1


def test_a_body_of_unknown_length_that_was_cut_off_is_no_answer(
    fake: Fake, engine: OpenAIHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def too_late(wire: socket.socket, seconds: float) -> Iterator[threading.Event]:
        late = threading.Event()
        late.set()
        yield late

    monkeypatch.setattr(client, "_cut", too_late)
    fake.instead = half_of_unknown_length
    with pytest.raises(EngineError, match="no whole answer within 120 s"):
        engine.run([REQUEST])


def test_a_huge_answer_is_not_read_to_its_end(fake: Fake, engine: OpenAIHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BODY", 1000)
    failed(engine, "more than 1000 bytes; top-k asks for less")


def test_json_that_is_too_deep(fake: Fake, engine: OpenAIHTTP) -> None:
    fake.instead = lambda handler, body: handler.send(200, b"[" * 200_000)
    failed(engine, "not JSON")


# The parts of an answer, each kind of server having its own words for them.
def tokens(answer: Any) -> list[Any]:
    """The produced ids."""
    if "choices" in answer:
        return answer["choices"][0]["token_ids"]
    return answer["tokens"] if "tokens" in answer else answer["output_ids"]


def put(answer: Any, row: int, value: Any, token: int | None = None) -> None:
    """A number of a row of the produced tokens (of the prompt's logits, for trtllm-serve); or another token for it."""
    if "completion_probabilities" in answer:
        entry = answer["completion_probabilities"][row]["top_logprobs"][7]
        entry.update({"logprob": value} if token is None else {"id": token})
    elif "meta_info" in answer:
        entry = answer["meta_info"]["output_top_logprobs"][row][7]
        entry[0 if token is None else 1] = value if token is None else token
    elif answer["choices"][0].get("context_logits"):
        answer["choices"][0]["context_logits"][row][7] = value
    else:
        logprobs = answer["choices"][0]["logprobs"]["top_logprobs"][row]
        name = list(logprobs)[7]
        if token is None:
            logprobs[name] = value
        else:
            logprobs[f"token_id:{token}"] = logprobs.pop(name)


def rows(answer: Any) -> list[Any]:
    """The list with the rows of the produced tokens (of the prompt, for trtllm-serve)."""
    if "completion_probabilities" in answer:
        return answer["completion_probabilities"]
    if "meta_info" in answer:
        return answer["meta_info"]["output_top_logprobs"]
    choice = answer["choices"][0]
    return choice.get("context_logits") or choice["logprobs"]["top_logprobs"]


@pytest.mark.parametrize("value", [math.nan, None, "nan", "NaN", math.inf, -math.inf, True, [], "-0.5"], ids=repr)
def test_what_is_not_a_number_is_never_one(fake: Fake, engine: OpenAIHTTP, value: object) -> None:
    fake.change = lambda answer: put(answer, 1, value)
    response = failed(engine, f" is {value!r}")
    assert response.raw is not None and json.dumps(response.raw)


def test_fewer_tokens_or_more(fake: Fake, engine: OpenAIHTTP) -> None:
    fake.change = lambda answer: tokens(answer).pop()
    assert len(tokens(failed(engine, "2 tokens, 3 were asked for").raw)) == 2
    fake.change = lambda answer: tokens(answer).append(5)
    failed(engine, "4 tokens, 3 were asked for")


def test_no_tokens_at_all(fake: Fake, engine: OpenAIHTTP) -> None:
    fake.change = lambda answer: tokens(answer).clear()
    failed(engine, "0 tokens, 3 were asked for")


@pytest.mark.parametrize("token", [1984, -1, 10**30])
def test_a_token_that_does_not_exist(fake: Fake, engine: OpenAIHTTP, token: int) -> None:
    fake.change = lambda answer: tokens(answer).__setitem__(1, token)
    failed(engine, f"produced token 1 is {token}, of a vocabulary of 1984")


@pytest.mark.parametrize("token", ["5a", 1.5, None, True, ""])
def test_what_is_no_token(fake: Fake, engine: OpenAIHTTP, token: object) -> None:
    fake.change = lambda answer: tokens(answer).__setitem__(1, token)
    failed(engine, f"a token is {token!r}, which is no id")


@pytest.mark.parametrize("kind", ["vllm", "llama_server", "sglang"])
def test_a_row_of_a_token_that_does_not_exist(kind: str) -> None:
    with Fake(kind) as fake:
        engine = started(fake)
        fake.change = lambda answer: put(answer, 0, None, token=1984)
        failed(engine, "has token 1984, of a vocabulary of 1984")


@pytest.mark.parametrize("kind", ["vllm", "sglang", "trtllm"])
def test_a_prompt_that_comes_back_as_another(kind: str) -> None:
    def other(answer: Any) -> None:
        if kind == "vllm":
            answer["choices"][0]["prompt_token_ids"][2] = 9
        elif kind == "trtllm":
            answer["prompt_token_ids"][0][2] = 9
        else:
            answer["meta_info"]["input_token_logprobs"][2][1] = 9

    with Fake(kind) as fake:
        engine = started(fake)
        fake.change = other
        failed(engine, "the prompt came back as other tokens: [0, 17, 9, 5]")


def test_rows_that_are_missing(fake: Fake, engine: OpenAIHTTP) -> None:
    fake.change = lambda answer: rows(answer).pop()
    failed(
        engine, "rows of logits for 4 tokens" if fake.kind == "trtllm" else "rows for a prompt of 4 tokens and 3 prod"
    )
    fake.change = lambda answer: rows(answer).__setitem__(1, None)
    failed(engine, "an answer of another form")


def test_rows_that_are_shorter_than_they_were(fake: Fake, engine: OpenAIHTTP) -> None:
    """A top-k that is truncated, or a part of the vocabulary."""

    def shorten(answer: Any) -> None:
        row = rows(answer)[1]
        row = row["top_logprobs"] if fake.kind == "llama_server" else row
        row.popitem() if isinstance(row, dict) else row.pop()

    for started_with, has in ((engine, 49), (started(fake, top_k=""), 1983)):
        fake.change = shorten
        of = "1983 logits" if fake.kind == "trtllm" else f"{has} tokens, {has + 1} were asked for"
        failed(started_with, f"has {of}")
        fake.change = lambda answer: None


@pytest.mark.parametrize("size", [100, 2000])
def test_another_vocabulary_is_noticed_at_once(fake: Fake, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's is smaller than the server's, or greater."""
    read = openai_http.load_config

    def other(folder: Path) -> ModelConfig:  # of the model, which is compared with what the server has
        return replace(read(folder), vocab_size=size)

    monkeypatch.setattr(openai_http, "load_config", other)
    with pytest.raises(EngineError, match="another vocabulary: "):
        started(fake, top_k="")


def test_no_right_to_ask_is_no_failed_case(fake: Fake, engine: OpenAIHTTP) -> None:
    fake.instead = lambda handler, body: handler.send(401, b'{"error": "Unauthorized"}')
    with pytest.raises(EngineError, match="HTTP 401: Unauthorized"):
        engine.run([REQUEST])
    with pytest.raises(EngineError, match="HTTP 401: Unauthorized"):
        started(fake)


def test_a_server_that_refuses_everything() -> None:
    with Fake("vllm") as fake:
        fake.instead = lambda handler, body: handler.send(400, b'{"detail": "no"}')
        with pytest.raises(EngineError, match=r"the server answers no request: .*HTTP 400: no"):
            started(fake)


def test_the_key_goes_into_one_header_and_nowhere_else(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    engine = started(fake)
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, _, headers in fake.requests)
    assert SECRET not in json.dumps([body for _, body, _ in fake.requests])
    quoted = f'{{"error": {{"message": "Incorrect API key provided: {SECRET}", "{SECRET}": ["{SECRET}"]}}}}'.encode()
    for status in (200, 400, 500):  # a server that quotes what it was sent
        fake.instead = lambda handler, body, status=status: handler.send(status, quoted)
        response = engine.run([REQUEST])[0]
        assert (
            response.error
            and SECRET not in response.error + json.dumps(response.raw)
            and "***" in json.dumps(response.raw)
        )
    fake.instead = lambda handler, body: handler.send(403, f"no: {SECRET}".encode())
    with pytest.raises(EngineError) as error:
        engine.run([REQUEST])
    assert SECRET not in str(error.value) and error.value.__cause__ is None
    assert SECRET not in json.dumps(engine.versions()) + repr(engine.capabilities) + repr(engine.options) + repr(
        engine.client
    )


def test_a_key_of_ones_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MINE", SECRET)
    with Fake("vllm") as fake:
        started(fake)
        assert all("Authorization" not in headers for _, _, headers in fake.requests)
        fake.requests.clear()
        started(fake, api_key_env="MINE")
        assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, _, headers in fake.requests)


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r\nHost: else", "sk-\u00e9", f" {SECRET}"])
def test_a_key_that_no_header_can_carry(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError, match="the key has characters") as error:
        OpenAIHTTP({"url": "http://127.0.0.1:9"})
    assert key.strip() not in str(error.value)


WRONG_OPTIONS = [
    ({}, "url: where is the server"),
    ({"url": "localhost:8000"}, "is not of the form http://host:port"),
    ({"url": "ftp://a"}, "is not of the form http://host:port"),
    ({"url": "http://a:b"}, "is not of the form"),
    ({"url": "http://[a"}, "is not of the form"),
    ({"url": "http://a#b"}, "is not of the form"),
    ({"url": f"http://a?key={SECRET}"}, "url: no name, password or question"),
    ({"url": f"http://me:{SECRET}@a"}, "url: no name, password or question"),
    ({"url": f"me:{SECRET}@a"}, "url: no name, password or question"),
    ({"url": "http://a", "timeout": "soon"}, "timeout: 'soon' is not a number"),
    ({"url": "http://a", "timeout": "nan"}, "timeout: 'nan' is not a number"),
    ({"url": "http://a", "timeout": "0"}, "timeout: '0' is not a number"),
    ({"url": "http://a", "retries": "-1"}, "retries: '-1' is not a whole number"),
    ({"url": "http://a", "top-k": "1.5"}, "top-k: '1.5' is not a whole number"),
    ({"url": "http://a", "dialect": "klingon"}, "dialect: 'klingon' is none of auto, vllm"),
    ({"url": "http://a", "adapters": "a"}, "adapters: 'a' is not NAME=SERVED"),
    ({"url": "http://a", "adapters": "a=b,a=c"}, "adapters: 'a' is both 'b' and 'c'"),
    ({"url": "http://a", "colour": "red"}, "no option 'colour'; this engine has url"),
    ({"url": "http://a", "api-key-env": SECRET}, "no such environment variable"),
]


@pytest.mark.parametrize("options, says", WRONG_OPTIONS, ids=range(len(WRONG_OPTIONS)))
def test_options_that_are_wrong(options: dict[str, str], says: str) -> None:
    with pytest.raises(EngineError) as error:
        OpenAIHTTP(options)
    assert says in str(error.value) and SECRET not in str(error.value)


def test_a_model_that_the_server_does_not_have() -> None:
    for kind in ("vllm", "trtllm"):
        with (
            Fake(kind) as fake,
            pytest.raises(EngineError, match="model-name: the server has no 'other'; it has the-base"),
        ):
            started(fake, model_name="other")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, where=st.lists(st.integers(0, 20), max_size=6))
def test_an_answer_with_anything_anywhere_is_failed_or_whole(
    running: tuple[Fake, OpenAIHTTP], value: Any, where: list[int]
) -> None:
    """Any part of a good answer is replaced by anything: there is an error, or all that was requested came."""

    def spoil(answer: Any) -> None:
        here, above, key = answer, None, None
        for step in where:
            if isinstance(here, dict | list) and here:
                above, key = here, list(here)[step % len(here)] if isinstance(here, dict) else step % len(here)
                here = above[key]
        if above is not None:
            above[key] = value

    fake, engine = running
    fake.well_behaved()
    fake.change = spoil
    page = json.dumps(value).encode()
    fake.instead = None if where else lambda handler, body: handler.send(200, page)
    response = engine.run([REQUEST])[0]
    if not response.error:
        assert len(response.token_ids) == REQUEST.max_new_tokens and all(type(t) is int for t in response.token_ids)
        shown = [dict(enumerate(row)) for row in response.logits] if response.logits is not None else response.top
        assert shown is not None and len(shown) >= 3
        assert all(len(row) >= 50 and all(math.isfinite(x) for x in row.values()) for row in shown)


@settings(max_examples=50)
@given(value=json_values)
def test_a_server_whose_every_page_is_anything_is_one_clear_line(value: Any) -> None:
    class Anything(Handler):
        def _serve(self, body: Any) -> None:
            self.send(200, json.dumps(value).encode())

    with Fake("vllm") as fake:
        fake.RequestHandlerClass = Anything
        for dialect in ("auto", *KINDS):
            with pytest.raises(LoracleError):
                started(fake, dialect=dialect, retries="0")
