"""Repro folders: what is written comes back and plays again; no secret is in it; and damage is one clear line."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_engines import Judge, KeyByName, started
from support.testbed import BLOCK, small_testbed

from refimpl import LoracleError
from refimpl.engines.interface import Engine, EngineRequest, EngineResponse
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Case, Exchange, Load, Run, Unload, play, prepare, truth
from refimpl.oracle.cases.case_json import from_json, to_json
from refimpl.oracle.cases.scenarios import draw_sequence, variants
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.cases.testbed import settings as engine_settings
from refimpl.oracle.keep import keep
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.noise.verdict import judge, learn_thresholds
from refimpl.oracle.reports import repro_write
from refimpl.oracle.reports.redact import clean, is_secret, without_secrets
from refimpl.oracle.reports.repro import ReproError, load_repro, replay
from refimpl.oracle.reports.repro_write import Repro
from refimpl.oracle.reports.result import Explanation, Result

SEQUENCE = Case(
    "by name",
    (
        Load("one", "made-0"),
        Run((EngineRequest(tuple(range(BLOCK)), "one", 2),)),
        Unload("one"),
        Load("one", "made-3"),
        Run(
            (
                EngineRequest((*range(BLOCK), 9), "one", 3),
                EngineRequest((4,), None),
                EngineRequest((5, 6), None, 2, adapter_weights=(("one", 0.5),)),
            )
        ),
    ),
    stateless=False,
)


def save(folder: Path, testbed: Testbed, case: Case, engine: Ours, **more: object) -> list[Exchange]:
    exchanges = play(engine, case, testbed)
    expected = {
        (exchange.run, exchange.index): x for exchange, x in zip(exchanges, truth(exchanges, testbed), strict=True)
    }
    Repro(testbed, case, exchanges, expected, {}, "wrong by 9 x noise", engine.settings, "ours", **more).save(folder)
    return exchanges


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sequence above, as KeyByName answered it."""
    testbed = small_testbed()
    engine = started(KeyByName, testbed, variants(testbed, CAPABILITIES)[0])
    save(tmp_path / "repro", testbed, SEQUENCE, engine, options={"url": "http://h"}, versions={"ours": "7"}, seed=3)
    return tmp_path / "repro"


def makes(engine: type[Ours]) -> Callable[[str, Mapping[str, str]], Engine]:
    def make(name: str, options: Mapping[str, str]) -> Engine:
        assert name == "ours" and options == {"url": "http://h"}
        return engine()

    return make


def assert_same(loaded: list[Exchange], expected: list[Exchange]) -> None:
    assert len(loaded) == len(expected)
    for one, other in zip(loaded, expected, strict=True):
        assert (one.request, one.adapters, one.run, one.index) == (
            other.request,
            other.adapters,
            other.run,
            other.index,
        )
        assert (one.response.token_ids, one.response.first_position, one.response.error) == (
            other.response.token_ids,
            other.response.first_position,
            other.response.error,
        )
        for name in ("logits", "logprobs"):
            np.testing.assert_array_equal(getattr(one.response, name), getattr(other.response, name))


def test_what_is_written_comes_back(folder: Path) -> None:
    testbed = small_testbed()
    exchanges = play(started(KeyByName, testbed, variants(testbed, CAPABILITIES)[0]), SEQUENCE, testbed)
    loaded = load_repro(folder)
    assert loaded.case == SEQUENCE
    assert_same(loaded.exchanges, exchanges)
    for exchange, exact in zip(exchanges, truth(exchanges, testbed), strict=True):
        np.testing.assert_array_equal(loaded.expected[exchange.run, exchange.index], exact)
    assert list(loaded.testbed.paths) == ["made-0", "made-3"]  # no more than the case needs
    pairs = zip(loaded.testbed.model.arrays(), testbed.model.arrays(), strict=True)
    assert all(before.tobytes() == after.tobytes() for before, after in pairs)
    assert (loaded.why, loaded.engine, loaded.seed) == ("wrong by 9 x noise", "ours", 3)
    assert loaded.options == {"url": "http://h"} and loaded.versions["ours"] == "7" and "loracle" in loaded.versions
    expected = replace(variants(testbed, CAPABILITIES)[0], model=folder / "model", options={"url": "http://h"})
    assert loaded.settings == expected


def test_it_plays_again_elsewhere(folder: Path, tmp_path: Path) -> None:
    """To the faulty engine, which is as wrong as it was; and to one in which the bug is mended."""
    elsewhere = folder.rename(tmp_path / "sent by mail")
    testbed, case, exchanges = replay(load_repro(elsewhere), makes(KeyByName))
    assert case == SEQUENCE
    assert_same(exchanges, load_repro(elsewhere).exchanges)
    judge = Judge(testbed)
    assert judge(exchanges, testbed)
    testbed, _, exchanges = replay(load_repro(elsewhere), makes(Ours))
    assert not judge(exchanges, testbed)


def test_a_batch_finds_all_adapters_loaded(tmp_path: Path) -> None:
    testbed = small_testbed("bfloat16")
    engine = started(Ours, testbed, engine_settings(testbed))
    prepare(engine, testbed)
    case = draw_batch(testbed, CAPABILITIES, np.random.default_rng(2), "batch 2")
    exchanges = save(tmp_path / "repro", testbed, case, engine, options={"url": "http://h"})
    testbed, again, responses = replay(load_repro(tmp_path / "repro"), makes(Ours))
    assert again == case and testbed.dtype == "bfloat16" and len(testbed.paths) == 7
    assert_same(responses, exchanges)


def test_the_readme_says_what_was_done_and_the_one_command(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    for words in (
        "loracle check --replay .",
        "wrong by 9 x noise",
        "load made-3 under the name one",
        "unload one",
        "ask one for 3 after [0 1 2 3 4 5 6 7 9] (9 tokens); the base for 1 after [4] (1 tokens); one*0.5 for 2",
    ):
        assert words in text


def test_the_embedded_model_is_named_and_a_large_one_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refimpl import load_model, tiny

    model = load_model("tiny")
    case = Case("one", (Run((EngineRequest((5, 6), None),)),))
    embedded = Testbed.load(tiny.base_path(), model, {})
    save(tmp_path / "tiny", embedded, case, started(Ours, embedded, engine_settings(embedded)))
    assert json.loads((tmp_path / "tiny/repro.json").read_text())["model"]["name"] == "tiny"
    assert sum(file.stat().st_size for file in (tmp_path / "tiny").rglob("*")) < 200_000
    assert load_repro(tmp_path / "tiny").testbed.folder == tiny.base_path()

    monkeypatch.setattr(repro_write, "MAX_MODEL", 1000)
    monkeypatch.setattr(repro_write, "MAX_ADAPTER", 1000)
    moved = small_testbed()
    shutil.copytree(moved.folder, tmp_path / "base")
    moved = replace(moved, folder=tmp_path / "base")
    save(tmp_path / "large", moved, SEQUENCE, started(Ours, moved, engine_settings(moved)))
    assert not (tmp_path / "large/model").exists() and not (tmp_path / "large/adapters").exists()
    assert load_repro(tmp_path / "large").testbed.folder == tmp_path / "base"
    file = tmp_path / "base" / "config.json"
    file.write_text(file.read_text("utf-8") + " ", "utf-8")
    with pytest.raises(ReproError, match=r"config.json: is not what it was: SHA-256 .*, then "):
        load_repro(tmp_path / "large")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ReproError, match=r"base/config.json: is missing \(model of "):
        load_repro(tmp_path / "large")


def test_numbers_beyond_the_bound_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro_write, "MAX_NUMBERS", 4000)
    testbed = small_testbed()
    save(tmp_path / "repro", testbed, SEQUENCE, started(Ours, testbed, variants(testbed, CAPABILITIES)[0]))
    loaded = load_repro(tmp_path / "repro")
    assert set(loaded.expected) == {(0, 0), (1, 1)}  # 9 and 1 rows of 40 numbers; the others had 11 and 3
    left_out = json.loads((tmp_path / "repro/repro.json").read_text())["left_out"]
    assert "1.0.logits" in left_out
    assert "1.0.logits" in (tmp_path / "repro/README.md").read_text("utf-8")


def test_answers_that_are_none_are_kept_as_they_came(tmp_path: Path) -> None:
    testbed = small_testbed()
    requests = tuple(EngineRequest((i,), None) for i in range(6))
    nan = np.full((1, 40), np.nan, np.float32)
    responses = [
        EngineResponse((1,), logits=nan),
        EngineResponse(error="500 Internal", raw={"detail": "gone", "token": "x"}),
        EngineResponse((2,), top=[{3: -0.5, 7: -1.5}, {4: -0.25}]),
        EngineResponse((), raw=object),
        EngineResponse((3,), logprobs=np.zeros((2, 3, 4), np.float16)),
        EngineResponse((5,), raw="x" * 300_000),
    ]
    exchanges = [
        Exchange(request, (), response, 0, i)
        for i, (request, response) in enumerate(zip(requests, responses, strict=True))
    ]
    case = Case("odd", (Run(requests),))
    Repro(testbed, case, exchanges, {}, {}, "odd", engine_settings(testbed), "ours").save(tmp_path / "repro")
    loaded = [exchange.response for exchange in load_repro(tmp_path / "repro").exchanges]
    np.testing.assert_array_equal(loaded[0].logits, nan)
    assert (loaded[1].error, loaded[1].raw) == ("500 Internal", {"detail": "gone", "token": "x"})
    assert loaded[2].top == responses[2].top
    assert loaded[3].token_ids == () and "object" in loaded[3].raw
    assert loaded[4].logprobs is not None and loaded[4].logprobs.shape == (2, 3, 4)
    assert loaded[5].raw.endswith("(300000 characters)") and len(loaded[5].raw) < 110_000


def test_a_secret_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-1234567890")
    testbed = small_testbed()
    request = EngineRequest((1,), None)
    response = EngineResponse(
        error="401 for sk-1234567890", raw={"api_key": "hunter2hunter2", "url": "http://me:pw@h/v1?key=abc"}
    )
    Repro(
        testbed,
        Case("secret", (Run((request,)),)),
        [Exchange(request, (), response, 0, 0)],
        {},
        {},
        "the server at https://user:pass@host:8000/v1?token=zzz said: Authorization: Bearer abcdefgh",
        engine_settings(testbed),
        "openai_http",
        {"url": "https://user:pass@host:8000/v1?token=zzz", "api-key": "sk-abc", "api-key-env": "SOME_API_KEY"},
        {"url": "http://me:pw@h/v1"},
    ).save(tmp_path / "repro")
    for file in (tmp_path / "repro").rglob("*"):
        raw = file.read_bytes() if file.is_file() else b""
        for secret in (b"sk-", b"hunter2", b"pw@", b"pass@", b"zzz", b"abcdefgh", b"key=abc", b"SOME_API_KEY"):
            assert secret not in raw, f"{secret!r} in {file.name}"
    assert load_repro(tmp_path / "repro").options == {"url": "https://host:8000/v1"}


@pytest.mark.parametrize(
    "name", ["api_key", "api-key-env", "HF_TOKEN", "key", "MY_SECRET", "Authorization", "db_password"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["token", "tokens", "token_ids", "keys", "model-name", "max_new_tokens", "monkey"])
def test_names_of_what_is_none(name: str) -> None:
    assert not is_secret(name)


def test_what_is_no_secret_stays() -> None:
    data = {"a": [1, None, "b", {"token": "x"}], "url": "http://host:1/v1", "key": ""}
    assert without_secrets(data) == data
    assert clean("the bearer of news, basic facts") == "the bearer of news, basic facts"


# Damage.


def change(folder: Path, **values: object) -> None:
    file = folder / "repro.json"
    data = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({k: v for k, v in {**data, **values}.items() if v is not None}), "utf-8")


def model_gone(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / name
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:50]) and None


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda file: (file / "repro.json").unlink(), "repro.json: cannot be read"),
    "cut json": (cut("repro.json"), "repro.json: is not valid JSON"),
    "another format": (lambda file: change(file, format=2), "format is 2, this version reads 1"),
    "no engine": (lambda file: change(file, engine=None), "engine is None: it must be a text"),
    "no case": (
        lambda file: change(file, case={"name": "x"}),
        "stateless is None: it must be true or false",
    ),
    "case asks a stranger": (
        lambda file: change(file, case={"name": "x", "stateless": False, "steps": [{"unload": "nobody"}]}),
        "step 0 names 'nobody', which is not loaded then",
    ),
    "case loads a stranger": (
        lambda file: change(
            file, case={"name": "x", "stateless": False, "steps": [{"load": "one", "adapter": "made-4"}]}, answers=[]
        ),
        "the case loads adapter 'made-4', which the folder has not",
    ),
    "settings": (lambda file: change(file, settings={"max_adapters": "two"}), "settings: max_adapters is 'two'"),
    "options": (lambda file: change(file, options={"url": 5}), "options: url is 5: it must be a text"),
    "answers": (lambda file: change(file, answers=[{"run": 7}]), "answers is damaged"),
    "dtype": (lambda file: change(file, dtype="int8"), "dtype 'int8' is not supported"),
    "model entry": (lambda file: change(file, model={"copy": "../.."}), "not a folder with the sha256"),
    "a way out": (lambda file: change(file, model={"copy": "../..", "sha256": {}}), "../.. is not in this folder"),
    "model gone": (model_gone, "config.json: is missing"),
    "adapter flipped": (flip("adapters/1-made-3/adapter_model.safetensors"), "is not what it was"),
    "expected cut": (cut("expected.safetensors"), "expected.safetensors: cannot be read"),
    "got gone": (lambda file: (file / "got.safetensors").unlink(), "got.safetensors: cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_one_clear_line(name: str, folder: Path) -> None:
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(LoracleError) as error:
        load_repro(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_there_is_not_written_over(folder: Path) -> None:
    testbed = small_testbed()
    before = (folder / "repro.json").read_bytes()
    with pytest.raises(LoracleError, match="is there already"):
        save(folder, testbed, SEQUENCE, started(Ours, testbed, variants(testbed, CAPABILITIES)[0]))
    assert (folder / "repro.json").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["repro"]  # and nothing half-done beside it


def test_nothing_half_done_stays(tmp_path: Path) -> None:
    testbed = small_testbed()
    lost = replace(testbed, paths={**testbed.paths, "made-3": tmp_path / "gone"})
    engine = started(Ours, testbed, variants(testbed, CAPABILITIES)[0])
    exchanges = play(engine, SEQUENCE, testbed)
    with pytest.raises(LoracleError, match="repro: cannot be written"):
        Repro(lost, SEQUENCE, exchanges, {}, {}, "", engine.settings, "ours").save(tmp_path / "repro")
    assert not list(tmp_path.iterdir())


# Cases as JSON.


def test_any_drawn_case_comes_back_from_json() -> None:
    testbed = small_testbed()
    cases = [
        draw_sequence(testbed, CAPABILITIES, 1, i, how) for i in range(14) for how in variants(testbed, CAPABILITIES)
    ]
    cases += [draw_batch(testbed, CAPABILITIES, np.random.default_rng(i), f"batch {i}") for i in range(10)]
    for case in cases:
        assert from_json(json.loads(json.dumps(to_json(case)))) == case


def request(**changes: object) -> dict[str, object]:
    return {"name": "x", "stateless": True, "steps": [{"run": [{"prompt_ids": [1], **changes}]}]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the case is [], not an object"),
        ({"name": "x", "stateless": True, "steps": [3]}, "step 0 is 3: it must be"),
        ({"name": "x", "stateless": True, "steps": [{"run": []}]}, "step 0 is {'run': []}"),
        (request(prompt_ids=[]), "step 0, request 0: prompt_ids is []"),
        (request(prompt_ids=[1, -2]), "prompt_ids is [1, -2]"),
        (request(temperature=1), "unknown key 'temperature'"),
        (request(adapter=3), "adapter is 3: it must be a name"),
        (request(max_new_tokens=0), "max_new_tokens is 0: it must be a whole number of 1 or more"),
        (request(arrival_step=True), "arrival_step is True"),
        (request(cancel_after=-1), "cancel_after is -1"),
        (request(adapter_weights=[["a"]]), "adapter_weights is [['a']]"),
        (request(adapter_weights=[["a", float("nan")]]), "adapter_weights is [['a', nan]]"),
    ],
)
def test_json_that_is_no_case_is_refused(data: object, words: str) -> None:
    with pytest.raises(LoracleError) as error:
        from_json(data)
    assert words in str(error.value)


@pytest.mark.parametrize("beside", [0, 1])
def test_of_a_batch_no_adapter_is_kept_that_it_goes_wrong_without(beside: int, tmp_path: Path) -> None:
    """beside: how many others the engine must have loaded to go wrong."""

    class Wrong(Ours):
        def run(self, requests, forced=None):
            responses = super().run(requests, forced)
            return (
                responses if len(self.names) <= beside else [replace(one, logits=2 * one.logits) for one in responses]
            )

    testbed = small_testbed()
    case = Case("batch 0", (Run((EngineRequest((1, 2, 3), "made-1"),)),))
    smallest = Explanation(smallest=case, small_settings=engine_settings(testbed))
    learnt = learn_thresholds([])
    result = Result(testbed, "fail", [], learnt, "float32", [], smallest)
    kept = load_repro(keep(result, tmp_path / "repro", "ours", {}, 0, Wrong))
    assert set(kept.testbed.paths) == (set(testbed.paths) if beside else {"made-1"})
    _, _, exchanges = replay(kept, lambda name, options: Wrong())
    assert judge(measure(case, exchanges, kept.testbed, ensemble("float32"))[0][0], learnt).verdict == "fail"
