"""transformers + PEFT over the committed test vectors: an engine that nobody here wrote is within the bounds."""

from pathlib import Path

import pytest

from refimpl.engines.peft import Peft
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import EngineUnderTest
from refimpl.oracle.vectors.vector import VECTOR_DTYPES
from refimpl.oracle.vectors.verify import judge

pytest.importorskip("peft", reason="transformers and PEFT are not installed: pip install -e '.[peft]'")

VECTORS = {vector.id: vector for vector in read_set(Path(__file__).parents[1] / "vectors" / "v1")}
ANSWERED = ["logits/mixed", "logits/decode", "logits/bias", "logits/window", "logits/patterns", "sequence/reload"]
REFUSED = ["logits/unknown_adapter", "logits/wrong_base", "logits/wrong_rank", "logits/token_too_large"]


@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
@pytest.mark.parametrize("name", ANSWERED)
def test_peft_is_right(name: str, dtype: str) -> None:
    verdict = judge(VECTORS[name], EngineUnderTest(Peft), dtype)
    assert verdict.verdict == "pass" and not verdict.why, verdict.why
    assert verdict.noise > 0.1, "a result without any noise is our own"


@pytest.mark.parametrize("name", REFUSED)
def test_peft_refuses(name: str) -> None:
    verdict = judge(VECTORS[name], EngineUnderTest(Peft), "float32")
    assert verdict.verdict == "pass" and verdict.why.startswith("refused")
