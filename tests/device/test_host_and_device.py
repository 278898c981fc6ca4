"""What is served on a device is what is served on the host: nothing of one is used as if it lay on the other."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from support import build
from support.device_array import DeviceArray, transfers
from support.device_testbed import CONFIG, model_of, requests_of

from refimpl import Engine, Request, cli, generate, load_adapter, load_model, logits, tiny, trace
from refimpl.backends import BACKENDS
from refimpl.config import Mlp, Moe

pytestmark = pytest.mark.usefixtures("cupy")

# Every backend in every type that it computes in: the kernels know no float64.
every_backend = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (backend, dtype)
        for backend in BACKENDS
        for dtype in ("float32", "float64", "float16", "bfloat16")
        if (backend, dtype) != ("cuda", "float64")
    ],
)


@contextmanager
def kernels_on_the_host() -> Iterator[None]:
    """Inside, the CUDA backend takes arrays of the host, as where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORACLE_KERNELS", "cpu")
        yield


TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}


@every_backend
def test_logits_and_trace(backend: str, dtype: str) -> None:
    """Products on the device are those of the host in another order: BLAS chooses by the layout and by the batch."""
    ops, requests = BACKENDS[backend], requests_of(dtype)
    with trace("layers.*.output", "*.lora") as expected_trace, kernels_on_the_host():
        expected = logits(model_of(dtype), requests, ops)
    with trace("layers.*.output", "*.lora") as actual_trace:
        actual = logits(model_of(dtype, "cuda"), requests, ops)
    for a, b in zip(actual, expected, strict=True):
        assert isinstance(a, np.ndarray) and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(b).max())
    assert list(actual_trace) == list(expected_trace) and len(actual_trace) > 10
    for name, x in expected_trace.items():
        np.testing.assert_allclose(
            actual_trace[name], x, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1, np.abs(x).max())
        )


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")])
def test_experts(backend: str, dtype: str) -> None:
    """The router's choice comes to the host; what it makes of it goes back. DoRA and plain LoRA on all modules."""
    config = replace(CONFIG, moe=Moe(5, 2, 7, bias=True, shared=Mlp(("shared.gate", "shared.up"), "shared.down", 6)))
    model, ops = model_of(dtype, config=config), BACKENDS[backend]
    plain, other = (build.random_adapter(config, seed, modules=config.layer_modules) for seed in (0, 1))
    pool = [build.as_dtype(x, dtype) for x in (plain, build.as_dora(other, build.random_model(config, 5), 1))]
    requests = [Request([1, 5, 2, 7 + i], adapter) for i, adapter in enumerate([None, *pool, pool[0]])]
    with kernels_on_the_host():
        expected = np.concatenate(logits(model, requests, ops))
    actual = np.concatenate(logits(model_of(dtype, "cuda", config), requests, ops))
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(expected).max())


@every_backend
def test_generate_and_a_tight_engine(backend: str, dtype: str) -> None:
    """Blocks of 4 tokens, chunks of 7, two adapter slots: chunked prefill, eviction and preemption on the device."""
    ops, requests = BACKENDS[backend], requests_of(dtype)
    with kernels_on_the_host():
        expected = [output.token_ids for output in generate(model_of(dtype), requests, 4, ops)]
    device = model_of(dtype, "cuda")
    assert [output.token_ids for output in generate(device, requests, 4, ops)] == expected
    tight = Engine(device, ops, num_blocks=16, block_size=4, max_batch_tokens=7, max_running=3, max_adapters=2)
    assert isinstance(tight.cache.k, DeviceArray)
    assert [output.token_ids for output in generate(device, requests, 4, engine=tight)] == expected


@pytest.mark.parametrize("backend", ["numpy", "cuda"])
def test_a_decode_step_uploads_its_plan_once_and_nothing_else(backend: str) -> None:
    """One buffer of plan, cos and sin; one array of logits comes back. Blocks are scattered, adapters summed."""
    requests = [r for r in requests_of("float32") if not any(a.replaced for a, _ in r.adapters)]
    engine = Engine(model_of("float32", "cuda"), BACKENDS[backend], block_size=4, max_running=len(requests))
    for request in requests:
        engine.add(request, 9)
    steps = []
    while engine.busy:
        transfers.clear()
        engine.step()
        steps.append([(t.kind, t.where.split(":")[0]) for t in transfers])
    decode = steps[2:]
    assert len(decode) > 5
    for crossings in decode:
        assert crossings == [("upload", "plan_copy.py"), ("download", "arrays.py")]


@pytest.mark.parametrize("backend", ["numpy", "cuda"])
def test_the_embedded_voices_are_bfloat16(backend: str) -> None:
    """CuPy 13 knows no bfloat16: the adapters become float32 on their way."""
    host, device = (load_model("tiny", device=name) for name in ("cpu", "cuda"))
    requests = [
        Request(host.tokenizer.encode("The king")[:6], load_adapter(path, host.config)) for path in tiny.VOICES.values()
    ]
    assert {w.A.dtype.name for r in requests for a, _ in r.adapters for w in a.lora.values()} == {"bfloat16"}
    for a, b in zip(logits(device, requests, BACKENDS[backend]), logits(host, requests), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "command", [["demo", "--max-new-tokens", "3"], ["guide", "--model", "tiny", "--max-new-tokens", "3"]]
)
def test_the_commands(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On the kernels of a pretended GPU, and on the host: the same words."""
    texts = []
    for backend in (["--ops", "cuda"], []):
        transfers.clear()
        assert cli.main([*command, *backend, "--temperature", "0", "--json"]) == 0
        assert bool(transfers) == bool(backend)
        texts.append(json.loads(capsys.readouterr().out))
    key = "texts" if "texts" in texts[0] else "answers"
    assert texts[0][key] == texts[1][key]
