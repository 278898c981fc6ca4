"""vLLM's server and llama-server, live, through the engine that talks to any of them: refimpl/engines/openai_http.py.

Truth is our float64 result on the tokens that the server produced. Most of what is wrong with a row of
log-probabilities is one number, the logarithm of its sum, which hangs on the greatest logits alone. So every row is
compared less its mean, and nothing else is lost. The unit is the rms error of our own float32 logits, read likewise.
"""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import refimpl
from refimpl import tiny
from refimpl.engines.interface import EngineError, EngineRequest, EngineResponse, Settings
from refimpl.engines.openai_http import OpenAIHTTP

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

HERE = Path(__file__).parent
VOICES = tuple(tiny.VOICES)
SETTINGS = Settings(tiny.base_path(), max_requests=8)
SAME = 3.0  # noise units, at most, from the truth for the adapter that was requested
ANOTHER = 1000.0  # noise units, at least, from the truth for any other
READY = 300  # seconds that a server may take to start


@contextmanager
def serving(command: Sequence[object], folder: Path, ready: str, **environment: str) -> Iterator[str]:
    """Run a server on a free port, which is {port} in its command; yield its URL as soon as it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    words = [str(word).format(port=port) for word in command]
    with log.open("wb") as out:
        server = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment)
    try:
        for _ in range(READY * 5):
            assert server.poll() is None, f"{words[0]} ended with {server.returncode}\n{log.read_text()[-4000:]}"
            try:
                urllib.request.urlopen(url + ready, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            pytest.fail(f"{words[0]} was not ready after {READY} s\n{log.read_text()[-4000:]}")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With one voice from the start, and more room than all these tests fill: as soon as the last slot has been used,
    base rows get the result of the adapter in it (README.md)."""
    if "LORACLE_VLLM_PYTHON" not in os.environ:
        pytest.skip("vLLM is not installed: `loracle engines setup vllm`, set LORACLE_VLLM_PYTHON to its python")
    command = f"-m vllm.entrypoints.openai.api_server --model {tiny.base_path()} --served-model-name the-base "
    command += "--host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 8 "
    command += "--max-num-batched-tokens 256 --max-logprobs -1 --kv-cache-memory-bytes 67108864 "
    command += "--enable-lora --max-loras 16 --max-lora-rank 64 "
    # Without this line prompt_logprobs of two or more requests kill vLLM 0.32.0.
    command += "--lora-target-modules qkv_proj o_proj gate_up_proj down_proj "
    command += f"--lora-modules served-{VOICES[0]}={tiny.VOICES[VOICES[0]]}"
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",
    }
    folder = tmp_path_factory.mktemp("vllm")
    with serving([os.environ["LORACLE_VLLM_PYTHON"], *command.split()], folder, "/health", **environment) as url:
        yield url


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With all voices, float32 keys and values, and no cache of prompts beyond its slots."""
    for variable in ("LORACLE_LLAMA_SERVER", "LORACLE_LLAMA_PYTHON"):
        if variable not in os.environ:
            pytest.skip(
                f"{variable} is not set: `loracle engines setup llama_cpp` has the python; llama-server is the target "
                "of that name, with -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON (tests/engines/README.md)"
            )
    folder = tmp_path_factory.mktemp("llama_server")
    voices = [str(tiny.VOICES[name]) for name in VOICES]
    job = [os.environ["LORACLE_LLAMA_PYTHON"], str(HERE / "job_gguf.py"), str(tiny.base_path()), str(folder), *voices]
    subprocess.run(job, check=True, capture_output=True, timeout=1200)
    loras = ",".join(f"{name}.gguf" for name in VOICES)
    command = f"-m base.gguf --lora {loras} -fa off -ctk f32 -ctv f32 --cache-ram 0 -np 4 -t 1 -c 1024 --no-warmup "
    command += "--host 127.0.0.1 --port {port}"
    with serving([os.environ["LORACLE_LLAMA_SERVER"], *command.split()], folder, "/health") as url:
        yield url


def test_vllm_serves_base_and_voices_together_and_alone(vllm: str) -> None:
    engine = OpenAIHTTP({"url": vllm})
    engine.start(SETTINGS)
    able = engine.capabilities
    assert (able.readout, able.prompt_rows) == ("logprobs", True)
    assert {"load", "unload", "reload"} <= able.operations
    for name in VOICES:
        engine.load(name, tiny.VOICES[name])
    requests = [*requests_for(None, *VOICES, None, VOICES[-1])]
    check("vLLM", engine.run(requests), requests)
    alone = requests[:2]
    check("vLLM alone", [engine.run([request])[0] for request in alone], alone)
    print(engine.versions())
    engine.close()


def test_vllm_as_it_is_deployed_is_asked_for_what_it_serves_and_loads_nothing(vllm: str) -> None:
    engine = OpenAIHTTP({"url": vllm, "adapters": f"{VOICES[0]}=served-{VOICES[0]}"})
    engine.start(SETTINGS)
    assert engine.capabilities.operations <= {"prefix_cache"}
    engine.load(VOICES[0], tiny.VOICES[VOICES[0]])
    with pytest.raises(EngineError, match=f"--adapter-name {VOICES[1]}=SERVED"):
        engine.load(VOICES[1], tiny.VOICES[VOICES[1]])
    requests = requests_for(None, VOICES[0])
    check("vLLM, what it serves", engine.run(requests), requests)
    engine.close()
    assert engine.dialect.served().keys() == {f"served-{VOICES[0]}"}


def test_vllm_forgets_and_replaces(vllm: str) -> None:
    engine = OpenAIHTTP({"url": vllm})
    engine.start(SETTINGS)
    (request,) = requests_for("name")
    engine.load("name", tiny.VOICES["bard"])
    check("vLLM, loaded", engine.run([request]), [request], {"name": "bard"})
    engine.load("name", tiny.VOICES["robot"])
    check("vLLM, replaced", engine.run([request]), [request], {"name": "robot"})
    engine.unload("name")
    engine.names["name"] = "name"  # as if it were still there
    response = engine.run([request])[0]
    assert "HTTP 404" in response.error and response.raw
    del engine.names["name"]
    engine.load("name", tiny.VOICES["merchant"])
    check("vLLM, another of the same name", engine.run([request]), [request], {"name": "merchant"})
    with pytest.raises(EngineError, match=r"HTTP (4|5)"):
        engine.load("nobody", HERE / "no such folder")
    engine.reset()
    assert engine.dialect.served().keys() == {f"served-{VOICES[0]}"}
    engine.close()


def test_vllm_with_a_prefix_cache_tells_the_rows_of_the_answer(vllm: str) -> None:
    """The same prompts for base and voices, twice: the second time its blocks are there, of all of them."""
    engine = OpenAIHTTP({"url": vllm})
    engine.start(Settings(tiny.base_path(), max_requests=8, prefix_caching=True))
    for name in VOICES:
        engine.load(name, tiny.VOICES[name])
    (request,) = requests_for(None)
    requests = [EngineRequest(request.prompt_ids, name, request.max_new_tokens) for name in (None, *VOICES)]
    for time_ in ("first", "second"):
        responses = engine.run(requests)
        assert all(one.first_position == len(request.prompt_ids) - 1 for one in responses)
        check(f"vLLM, the {time_} time", responses, requests)
    engine.close()


def test_vllm_shows_the_greatest_where_that_is_asked_for(vllm: str) -> None:
    engine = OpenAIHTTP({"url": vllm, "top-k": "20", "adapters": f"{VOICES[0]}=served-{VOICES[0]}"})
    engine.start(SETTINGS)
    engine.load(VOICES[0], tiny.VOICES[VOICES[0]])
    assert (engine.capabilities.readout, engine.capabilities.top_k) == ("top", 20)
    requests = requests_for(None, VOICES[0])
    for request, response in zip(requests, engine.run(requests), strict=True):
        assert not response.error and response.top is not None
        true, _ = rows(request.adapter, (*request.prompt_ids, *response.token_ids)[:-1])
        assert len(response.top) == len(true) and all(len(row) >= 20 for row in response.top)
        for row, top in zip(true, response.top, strict=True):
            greatest = set(np.argsort(-row)[:18].tolist())  # two that are all but equal may change places at the end
            assert greatest <= top.keys()
    engine.close()


@pytest.mark.parametrize("caching", [False, True], ids=["anew", "prefixes reused"])
def test_llama_server_switches_between_base_and_voices(llama_server: str, caching: bool) -> None:
    engine = OpenAIHTTP({"url": llama_server, "adapters": ",".join(f"{name}={name}" for name in VOICES)})
    engine.start(Settings(tiny.base_path(), max_requests=8, prefix_caching=caching))
    assert (engine.capabilities.readout, engine.capabilities.prompt_rows) == ("logprobs", False)
    for name in VOICES:
        engine.load(name, tiny.VOICES[name])
    requests = requests_for(None, *VOICES, None, VOICES[0])
    for time_ in ("first", "second"):
        check(f"llama-server, the {time_} time", engine.run(requests), requests)
    print(engine.versions())
    engine.close()


def test_llama_server_sums_voices(llama_server: str) -> None:
    engine = OpenAIHTTP({"url": llama_server, "adapters": "pirate=pirate,bard=bard"})
    engine.start(SETTINGS)
    for name in ("pirate", "bard"):
        engine.load(name, tiny.VOICES[name])
    (request,) = requests_for(None)
    request = EngineRequest(
        request.prompt_ids, None, request.max_new_tokens, adapter_weights=(("pirate", 0.75), ("bard", -0.25))
    )
    response = engine.run([request])[0]
    assert not response.error
    error = distance(response, request, request.adapter_weights)
    others = [distance(response, request, ((name, 1.0),)) for name in ("pirate", "bard")] + [
        distance(response, request, ())
    ]
    print(f"\nllama-server, a sum: {error:.2f} units, the next one {min(others):.1e}")
    assert error <= SAME and min(others) >= ANOTHER
    engine.close()


def requests_for(*names: str | None) -> list[EngineRequest]:
    """Return a request for each name, of different lengths: each lacks the first few words of its prompt."""
    texts = [refimpl.load_model("tiny").tokenizer.encode(text) for text in tiny.DEMO_PROMPTS]
    chosen = [list(texts[i % len(texts)]) for i in range(len(names))]
    return [
        EngineRequest(tuple(ids[:1] + ids[1 + i :]), name, 16)
        for i, (name, ids) in enumerate(zip(names, chosen, strict=True))
    ]


def check(
    what: str,
    responses: Sequence[EngineResponse],
    requests: Sequence[EngineRequest],
    is_really: dict[str, str] | None = None,
) -> None:
    """Every response is the right one, and far from that of every other adapter."""
    for request, response in zip(requests, responses, strict=True):
        assert not response.error, response.error
        assert response.logprobs is not None
        greatest = response.logprobs[-request.max_new_tokens :].argmax(axis=-1)
        assert response.token_ids == tuple(greatest.tolist())
        adapter = (is_really or {}).get(request.adapter or "", request.adapter)
        away = {name: distance(response, request, ((name, 1.0),) if name else ()) for name in (None, *VOICES)}
        error = away.pop(adapter)
        print(f"\n{what}, {adapter}: {error:.2f} units, the next one {min(away.values()):.1e}", end="")
        assert error <= SAME, (what, adapter, error)
        assert min(away.values()) >= ANOTHER, (what, adapter, away)


def distance(response: EngineResponse, request: EngineRequest, adapter_weights: tuple[tuple[str, float], ...]) -> float:
    """Return how far it is from the truth for these voices, in units of our own float32 error."""
    assert response.logprobs is not None
    true, noise = rows(adapter_weights, (*request.prompt_ids, *response.token_ids)[:-1], response.first_position)
    return rms(centred(response.logprobs) - true) / noise


@cache
def rows(
    adapter_weights: tuple[tuple[str, float], ...] | str | None, ids: tuple[int, ...], first: int = 0
) -> tuple[np.ndarray, float]:
    """Return our float64 logits from a position on, less each row's mean, and the rms error of the float32 ones."""
    weights = ((adapter_weights, 1.0),) if isinstance(adapter_weights, str) else adapter_weights or ()
    results = []
    for dtype in ("float64", "float32"):
        model = loaded(dtype)
        adapters = [(refimpl.load_adapter(name, model.config), weight) for name, weight in weights]
        results.append(centred(refimpl.logits(model, [refimpl.Request(ids, adapters or None)])[0][first:]))
    return results[0], rms(results[1] - results[0])


@cache
def loaded(dtype: str) -> refimpl.Model:
    return refimpl.load_model("tiny", dtype)


def centred(x: np.ndarray) -> np.ndarray:
    """Return each row less its mean: what logits and log-probabilities have in common."""
    x = x.astype(np.float64)
    return x - x.mean(axis=-1, keepdims=True)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
