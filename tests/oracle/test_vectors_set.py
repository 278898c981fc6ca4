"""The committed set: what it holds, that the definition and the fast form pass it, and that it can be made again."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refimpl.backends import BACKENDS
from refimpl.oracle.vectors import cases_logits, cases_sequences, whole_model
from refimpl.oracle.vectors.bugs import BUGS
from refimpl.oracle.vectors.make import draws, make_set
from refimpl.oracle.vectors.models import Written, write_models
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import LoadedModels, OpsUnderTest
from refimpl.oracle.vectors.vector import KINDS, RESULTS, VECTOR_DTYPES, Vector
from refimpl.oracle.vectors.verify import verify

SET = Path(__file__).parents[1] / "vectors" / "v1"
STEPS = ("lora", "kv_write", "attention")


@pytest.fixture(scope="module")
def vectors() -> list[Vector]:
    return read_set(SET)


@pytest.fixture(scope="module")
def loaded() -> LoadedModels:
    return LoadedModels()


def test_it_is_small_and_has_something_of_everything(vectors: list[Vector]) -> None:
    assert sum(file.stat().st_size for file in SET.rglob("*") if file.is_file()) < 2_000_000
    assert {v.kind for v in vectors} == set(KINDS) and {v.result for v in vectors} == set(RESULTS)
    assert {bug for v in vectors for bug in v.bugs} == set(BUGS)
    assert all(v.comment and v.bugs for v in vectors)


@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
def test_numpy_passes(vectors: list[Vector], loaded: LoadedModels, dtype: str) -> None:
    verdicts = list(verify(vectors, OpsUnderTest(lambda: BACKENDS["numpy"], loaded), dtype))
    assert {j.vector.id: j.why for j in verdicts if j.verdict != "pass"} == {}
    # What an engine may refuse, this one computes; these two are no feature, but an input that it does not take.
    refused = {j.vector.id for j in verdicts if j.why.startswith("refused") and j.vector.result != "invalid"}
    assert refused == {"lora/id_below_none", "kv_write/padding"}


def test_the_definition_passes(vectors: list[Vector], loaded: LoadedModels) -> None:
    chosen = [v for v in vectors if v.kind in STEPS or v.name in ("mixed", "window_decode", "prefix_chunked", "evict")]
    verdicts = list(verify(chosen, OpsUnderTest(lambda: BACKENDS["reference"], loaded)))
    assert {j.vector.id: j.why for j in verdicts if j.verdict != "pass"} == {}


def test_every_input_is_exact_in_every_type(vectors: list[Vector]) -> None:
    written = [Written(folder) for folder in sorted((SET / "models").iterdir())]
    # scales are alpha / r, whatever that is.
    arrays = [x for v in vectors for name, x in v.inputs.items() if x.dtype.kind == "f" and name != "scales"]
    for w in written:
        arrays += w.models["float32"].arrays()
        arrays += [x.astype(np.float32) for a in w.adapters.values() for t in a.lora.values() for x in (t.A, t.B)]
    for x in arrays:
        for kind in (np.float16, ml_dtypes.bfloat16):
            np.testing.assert_array_equal(x.astype(kind).astype(np.float32), x)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_set(tmp_path / name, seed, ("lora", "kv_write"))
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) > 90 and one == two
    assert [name for name in one if name.endswith("inputs.safetensors") and one[name] == other[name]] == []


def test_the_set_is_what_seed_0_makes(tmp_path: Path, vectors: list[Vector]) -> None:
    """Inputs bit for bit. What is computed from them may end in other bits on another machine."""
    make_set(tmp_path / "steps", 0, STEPS)
    found = {v.id: v for v in read_set(tmp_path / "steps")}
    known = {v.id: v for v in vectors}
    assert list(found) == [v.id for v in vectors if v.kind in STEPS]
    write_models(tmp_path, lambda name: draws(0, "models", name))
    assert contents(tmp_path / "models") == contents(SET / "models")
    written = {folder.name: Written(folder) for folder in (SET / "models").iterdir()}
    for kind, module in (("logits", cases_logits), ("sequence", cases_sequences)):
        assert [spec.name for spec in module.SPECS] == [v.name for v in vectors if v.kind == kind]
        for name in {"logits": ("decode", "wrong_rank"), "sequence": ("reload", "prefix_nearly")}[kind]:
            spec = next(s for s in module.SPECS if s.name == name)
            found[f"{kind}/{name}"] = whole_model.make(spec, kind, written[spec.model], draws(0, kind, name))
    for name, v in found.items():
        assert (v.about, v.bugs, v.comment, v.result) == (
            known[name].about,
            known[name].bugs,
            known[name].comment,
            known[name].result,
        )
        assert v.inputs.keys() == known[name].inputs.keys()
        for key, x in v.inputs.items():
            np.testing.assert_array_equal(x, known[name].inputs[key])
        for key, out in v.outputs.items():
            limit = out.noise["float32"].limit if out.noise else 0.0
            assert np.abs(out.value - known[name].outputs[key].value).max(initial=0) <= limit


def contents(root: Path) -> dict[str, bytes]:
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}
