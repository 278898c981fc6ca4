"""Verdicts: what is wrong fails, whatever is wrong with it; and what is damaged is never judged at all."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import cli
from refimpl.engines.interface import Capabilities
from refimpl.engines.ours import CAPABILITIES
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.noise.readout import log_softmax
from refimpl.oracle.vectors import contents
from refimpl.oracle.vectors.read import read_set, read_vector
from refimpl.oracle.vectors.systems import EngineUnderTest, OpsUnderTest, lacking
from refimpl.oracle.vectors.vector import EXPECTED, INPUTS, MANIFEST, Vector, VectorError, sha256
from refimpl.oracle.vectors.verify import judge

SET = Path(__file__).parents[1] / "vectors" / "v1"
VECTORS = {v.id: v for v in read_set(SET)}
RANK_1 = VECTORS["lora/rank_1"]


def right(v: Vector) -> dict[str, np.ndarray]:
    return {name: out.value.copy() for name, out in v.outputs.items()}


def verdict(v: Vector, found: object) -> tuple[str, str]:
    outcome = judge(v, lambda *call: found, "float32")  # type: ignore[arg-type, return-value]
    return outcome.verdict, outcome.why


# ---- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [v.id for v in VECTORS.values() if v.outputs])
def test_the_right_numbers_pass_and_one_wrong_number_fails(name: str) -> None:
    v = VECTORS[name]
    found = right(v)
    assert verdict(v, found) == ("pass", "")
    for key, out in v.outputs.items():
        if out.value.dtype.kind != "i":
            off = found[key] = out.value.astype(np.float64)
            at = tuple(n - 1 for n in off.shape)
            off[at] += 1.01 * np.broadcast_to(out.bound["float32"], off.shape)[at] + 1e-30 * (off[at] == 0) + 1e-12
            word, why = verdict(v, found)
            assert word == "fail" and why.startswith(key)
            off[at] = np.nan
            assert verdict(v, found)[0] == "fail"
            off[at] = np.inf
            assert verdict(v, found)[0] == "fail"
            off[at] = out.value[at]
            assert verdict(v, found)[0] == "pass"


def test_many_small_errors_fail_although_each_is_within_its_bound() -> None:
    out = RANK_1.outputs["y"]
    off = out.value + 0.9 * out.bound["float32"]
    word, why = verdict(RANK_1, {"y": off})
    assert word == "fail" and "rms error" in why


def test_rows_without_adapter_have_to_be_the_very_same() -> None:
    v = VECTORS["lora/all_base"]
    y = v.inputs["y"].copy()
    assert verdict(v, {"y": y})[0] == "pass"
    y[0, 0] = np.nextafter(y[0, 0], np.float32(9))
    assert verdict(v, {"y": y})[0] == "fail"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({}, "missing"),
        ({"y": np.zeros((2, 2))}, "shape [2, 2], not [6, 24]"),
        ({"y": np.full((6, 24), np.nan)}, "nan"),
        ({"y": np.zeros((6, 24))}, "off by"),
    ],
)
def test_what_is_wrong_with_it_is_said(found: dict[str, np.ndarray], word: str) -> None:
    answer, why = verdict(RANK_1, found)
    assert answer == "fail" and word in why


@pytest.mark.parametrize("slip", [KeyError("nothing"), TypeError("vector() takes 1 argument"), IndexError(7)])
def test_a_crash_by_accident_is_no_refusal(slip: Exception) -> None:
    def crashes(*call: object) -> None:
        raise slip

    for result in ("valid", "invalid", "acceptable"):
        v = next(v for v in VECTORS.values() if v.result == result)
        outcome = judge(v, crashes, "float32")
        assert outcome.verdict == "fail" and "which is no refusal" in outcome.why, result


def test_an_output_under_another_name_is_reported_by_both_names() -> None:
    assert verdict(RANK_1, {"out": right(RANK_1)["y"]}) == ("fail", "y is missing; the answer has out")


def test_refusing_and_answering() -> None:
    def refuses(*call: object) -> None:
        raise ValueError("no")

    answers: dict[str, tuple[str, str]] = {}
    for result, name in (("valid", "mixed_ranks"), ("invalid", "id_too_large"), ("acceptable", "id_below_none")):
        v = VECTORS[f"lora/{name}"]
        answers[result] = (judge(v, refuses, "float32").verdict, verdict(v, right(v) or {"y": np.zeros(1)})[0])
    assert answers == {"valid": ("fail", "pass"), "invalid": ("pass", "fail"), "acceptable": ("pass", "pass")}
    wrong = {"y": VECTORS["lora/id_below_none"].inputs["y"]}
    assert verdict(VECTORS["lora/id_below_none"], wrong)[0] == "fail"  # acceptable is not: anything goes


def test_the_last_rows_of_logits_are_enough_and_other_tokens_are_not() -> None:
    v = VECTORS["logits/decode"]
    found = right(v)
    last = {key: x[-4:] if key.endswith("logits") else x for key, x in found.items()}
    assert verdict(v, last)[0] == "pass"
    assert verdict(v, {**last, "0.0.logits": found["0.0.logits"][-3:]})[0] == "fail"
    assert verdict(v, {**found, "0.0.token_ids": found["0.0.token_ids"] + 1})[0] == "fail"
    assert verdict(v, {key: x for key, x in found.items() if key != "0.1.token_ids"})[0] == "fail"


def test_log_probabilities_are_as_good() -> None:
    v = VECTORS["logits/decode"]
    logits = {key: x for key, x in right(v).items() if key.endswith("logits")}
    tokens = {key: x for key, x in right(v).items() if key.endswith("token_ids")}
    rng = np.random.default_rng(3)

    def shown(error: float) -> dict[str, np.ndarray]:
        """log_softmax of logits that are off by so many of their bounds, either way."""
        off = {k: x + error * v.outputs[k].bound["float32"] * rng.choice([-1, 1], x.shape) for k, x in logits.items()}
        return tokens | {k.replace("logits", "logprobs"): log_softmax(x) for k, x in off.items()}

    assert verdict(v, shown(0.0)) == ("pass", "") == verdict(v, shown(0.3))
    word, why = verdict(v, shown(4.0))
    assert word == "fail" and ".logprobs at" in why
    assert verdict(v, tokens | {key.replace("logits", "logprobs"): x for key, x in logits.items()})[0] == "fail"


def test_an_engine_is_not_asked_for_what_it_does_not_offer() -> None:
    modest = Capabilities(features=frozenset(("lora_bias",)))
    needs = {
        "logits/mixed": [],
        "logits/bias": [],
        "logits/sums": ["sums"],
        "logits/base_biases": ["base_biases"],
        "logits/head": ["lm_head"],
        "logits/window": ["window"],
        "sequence/prefix_chunked": ["chunked_prefill", "prefix_cache"],
        "sequence/evict": ["evict"],
    }
    assert {name: lacking(VECTORS[name], "float32", modest) for name in needs} == needs
    assert lacking(VECTORS["logits/mixed"], "float16", modest) == ["float16"]
    assert lacking(VECTORS["logits/mixed"], "float32", Capabilities(readout="text")) == ["logits or logprobs"]
    assert not any(lacking(v, "float16", CAPABILITIES) for v in VECTORS.values() if v.kind in ("logits", "sequence"))


def test_an_engine_has_nothing_to_say_about_single_steps() -> None:
    def never() -> Any:
        raise AssertionError("started")

    assert judge(RANK_1, EngineUnderTest(never), "float32").verdict == "skipped"


# One mutant of each class, and a vector that is made against it.
KILLED = [
    ("rslora_ignored", "lora/rslora"),
    ("no_adapter_is_the_last_one", "lora/mixed_ranks"),
    ("last_slot_skipped", "lora/one_token"),
    ("reload_keeps_B", "sequence/reload_same_shape"),
    ("key_without_adapter", "sequence/prefix_across_adapters"),
    ("gate_and_up_swapped", "logits/mixed"),
    ("not_applied_to[o_proj]", "logits/one_token"),
    ("odd_rank_cut", "lora/mixed_ranks"),
    ("window_off_by[1]", "attention/window_decode"),
    ("slots_off_by_one_block", "kv_write/prefill"),
    ("merged_and_never_unmerged", "logits/mixed"),
]


@pytest.mark.parametrize(("mutant", "vector"), KILLED)
def test_mutants_fail(mutant: str, vector: str) -> None:
    outcome = judge(VECTORS[vector], OpsUnderTest(all_mutants()[mutant].make), "float32")
    assert outcome.verdict == "fail" and outcome.why


# ---- damaged sets ---------------------------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The manifest, changed."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        change(data)
        (folder / MANIFEST).write_text(json.dumps(data))

    return damage


def expected(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    """The expected numbers, changed, with a checksum that fits: only the content is wrong."""

    def damage(folder: Path) -> None:
        tensors = {name: x.copy() for name, x in load_file(folder / EXPECTED).items()}
        change(tensors)
        save_file(tensors, folder / EXPECTED)
        manifest(lambda m: m["sha256"].update({EXPECTED: sha256(folder / EXPECTED)}))(folder)

    return damage


def flip(folder: Path) -> None:
    """One bit of one number."""
    raw = bytearray((folder / INPUTS).read_bytes())
    raw[-1] ^= 1
    (folder / INPUTS).write_bytes(raw)


def cut(folder: Path) -> None:
    """A file that ends too early, with a checksum that fits."""
    (folder / EXPECTED).write_bytes((folder / EXPECTED).read_bytes()[:-5])
    manifest(lambda m: m["sha256"].update({EXPECTED: sha256(folder / EXPECTED)}))(folder)


def put(name: str, at: tuple[int, ...], value: float) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors[name].__setitem__(at, value)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no"),
    "no numbers": (lambda f: (f / INPUTS).unlink(), "inputs.safetensors: cannot be read"),
    "flipped bit": (flip, "inputs.safetensors: sha256 is"),
    "cut": (cut, "truncated"),
    "not JSON": (lambda f: (f / MANIFEST).write_text("{"), "not valid JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "not a JSON object"),
    "version": (manifest(lambda m: m.update(version=2)), "version is 2; this loracle reads version 1"),
    "format": (manifest(lambda m: m.update(format="other")), "format is 'other'"),
    "no key": (manifest(lambda m: m.pop("about")), "about is None"),
    "wrong type": (manifest(lambda m: m.update(bugs={})), "bugs is {}"),
    "kind": (manifest(lambda m: m.update(kind="loras")), "kind is 'loras'"),
    "result": (manifest(lambda m: m.update(result="maybe")), "result is 'maybe'"),
    "no checksum": (manifest(lambda m: m["sha256"].pop(INPUTS)), "sha256 does not name inputs.safetensors"),
    "nothing expected": (manifest(lambda m: m.update(expected={})), "not in the manifest"),
    "unknown tensor": (manifest(lambda m: m["inputs"].pop("x")), "tensor x is not in the manifest"),
    "missing tensor": (expected(lambda t: t.pop("y")), "tensor y is in the manifest alone"),
    "no bound": (expected(lambda t: t.pop("y.bound.float16")), "y.bound.float16 is missing"),
    "shape": (manifest(lambda m: m["inputs"]["x"].update(shape=[40, 6])), "the manifest says"),
    "no noise": (manifest(lambda m: m["expected"]["y"]["noise"].pop("float16")), "noise must have"),
    "NaN limit": (manifest(lambda m: m["expected"]["y"]["noise"]["float32"].update(limit=float("nan"))), "noise of"),
    "no limit": (manifest(lambda m: m["expected"]["y"]["noise"]["float32"].pop("limit")), "noise of float32"),
    "no d_in": (manifest(lambda m: m["about"].pop("d_in")), "d_in, d_out and slots must be"),
    "no alpha": (
        manifest(lambda m: m["about"]["slots"][0].pop("lora_alpha")),
        "lora_alpha, use_rslora and bias wanted",
    ),
    "no such slot": (manifest(lambda m: m["about"]["slots"][0].update(slot=7)), "inputs has no A.7"),
    "another kind": (manifest(lambda m: m.update(kind="attention")), "inputs has no q"),
    "NaN expected": (expected(put("y", (0, 0), np.nan)), "tensor y holds NaN"),
    "NaN bound": (expected(put("y.bound.float32", (0, 0), np.nan)), "y.bound.float32 holds NaN"),
    "infinite bound": (expected(put("y.bound.float32", (0, 0), np.inf)), "y.bound.float32 holds NaN, infinity"),
    "negative bound": (expected(put("y.bound.float32", (0, 0), -1)), "y.bound.float32 holds NaN, infinity"),
    "bound shape": (
        expected(lambda t: t.update({"y.bound.float32": np.ones((5, 1), np.float32)})),
        "[5, 1], which does not fit [6, 24]",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_vector_is_one_line_and_exit_2(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    for name in ("rank_1", "one_token"):
        shutil.copytree(SET / "lora" / name, root / "lora" / name)
    index = json.loads((SET / "set.json").read_text()) | {"vectors": ["lora/rank_1", "lora/one_token"]}
    (root / "set.json").write_text(json.dumps(index))
    assert cli.main(["vectors", "verify", str(root), "--json"]) == 0
    capsys.readouterr()
    damage, word = DAMAGES[what]
    damage(root / "lora" / "rank_1")
    assert cli.main(["vectors", "verify", str(root)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and word in err and ("rank_1" in err)


def test_a_set_has_what_its_index_says(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(SET / "lora" / "rank_1", root / "lora" / "rank_1")
    index = {"format": "loracle-vectors", "version": 1, "vectors": ["lora/rank_1"]}

    def problem(**changes: object) -> str:
        (root / "set.json").write_text(json.dumps(index | changes))
        with pytest.raises(VectorError) as error:
            read_set(root)
        return str(error.value)

    assert "lora/other has no folder" in problem(vectors=["lora/rank_1", "lora/other"])
    assert "vectors is []" in problem(vectors=[])
    assert "version is '1'" in problem(version="1")
    shutil.copytree(root / "lora" / "rank_1", root / "lora" / "again")
    assert "lora/again is not in vectors" in problem()
    assert "it says it is lora/rank_1" in problem(vectors=["lora/rank_1", "lora/again"])
    (root / "set.json").unlink()
    with pytest.raises(VectorError, match=r"set\.json"):
        read_set(root)
    assert read_vector(root / "lora" / "again").name == "rank_1"  # a vector alone needs no index


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.pop("model"), "model is None"),
        (lambda a: a.update(model="../../models/other/base"), "no folder of a model"),
        (lambda a: a["adapters"].update(six="../nowhere"), "'six' is '../nowhere': no folder of an adapter"),
        (lambda a: a.update(adapters=[]), "adapters is []"),
        (lambda a: a["settings"].pop("chunk"), "it must have max_adapters"),
        (lambda a: a.update(steps=a["steps"][:1]), "at least one run"),
        (lambda a: a["steps"].insert(0, {"do": "jump"}), "a step is {'do': 'jump'}"),
        (lambda a: a["steps"].insert(0, {"do": "load", "name": "x", "adapter": "nobody"}), "a step is"),
        (lambda a: a["steps"][-1]["requests"][0].pop("mix"), "a request is"),
        (lambda a: a["steps"][-1]["requests"][0].update(id="9.9"), "inputs has no 9.9.prompt_ids"),
    ],
)
def test_a_manifest_that_leaves_something_out(change: Callable[[Any], object], word: str, tmp_path: Path) -> None:
    """Else a gap in it would look like an engine that refuses."""
    folder = tmp_path / "logits" / "unknown_adapter"
    shutil.copytree(SET / "logits" / "unknown_adapter", folder)
    shutil.copytree(SET / "models" / "llama", tmp_path / "models" / "llama")
    assert read_vector(folder).result == "invalid"
    manifest(lambda m: change(m["about"]))(folder)
    with pytest.raises(VectorError, match=re.escape(word)):
        read_vector(folder)


def test_requests_are_named_after_their_place() -> None:
    """Else the responses of two requests could be held against each other's truth."""
    v = read_vector(SET / "logits" / "mixed")
    assert list(contents.problems(v.kind, v.about, v.inputs, v.folder)) == []
    about = json.loads(json.dumps(v.about))
    first, second = about["steps"][-1]["requests"][:2]
    first["id"], second["id"] = second["id"], first["id"]
    assert [line.partition(": ")[2] for line in contents.problems(v.kind, about, v.inputs, v.folder)] == [
        "request 0 of run 0 has the id '0.1': it must be RUN.PLACE",
        "request 1 of run 0 has the id '0.0': it must be RUN.PLACE",
    ]


def test_weights_that_were_changed_are_noticed(tmp_path: Path) -> None:
    shutil.copytree(SET / "logits" / "one_token", tmp_path / "logits" / "one_token")
    shutil.copytree(SET / "models" / "llama", tmp_path / "models" / "llama")
    assert read_vector(tmp_path / "logits" / "one_token").result == "valid"
    shutil.copy(
        tmp_path / "models/llama/adapters/three/adapter_model.safetensors",
        tmp_path / "models/llama/adapters/six/adapter_model.safetensors",
    )
    with pytest.raises(VectorError, match=r"six/adapter_model\.safetensors: sha256"):
        read_vector(tmp_path / "logits" / "one_token")
