"""Relatives differ from their adapter in what they say, in nothing else, and show what others do not."""

from dataclasses import replace

import numpy as np
import pytest
from faulty_engines import Judge, but, started
from support.testbed import small_testbed

from refimpl import NUMPY, Ops
from refimpl.adapter import Adapter
from refimpl.adapter_slots import BoundAdapter
from refimpl.config import ModelConfig
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases.case import play
from refimpl.oracle.cases.near_duplicates import LOUDER, near_duplicates_of
from refimpl.oracle.cases.scenarios import draw_sequence, variants

NAMES = ("made-0-louder", "made-0-sister")


def test_one_is_louder_and_one_is_a_sister() -> None:
    testbed = small_testbed()
    adapter, louder, sister = (testbed.adapters[key] for key in ("made-0", *NAMES))
    assert louder.config.lora_alpha == pytest.approx(LOUDER * adapter.config.lora_alpha)
    assert sister.config == adapter.config
    for module, w in adapter.lora.items():
        assert np.array_equal(louder.lora[module].A, w.A) and np.array_equal(louder.lora[module].B, w.B)
        other = sister.lora[module]
        for x, y in ((w.A, other.A), (w.B, other.B), (w.bias, other.bias)):
            assert x is not None and y is not None
            assert x.shape == y.shape and not np.array_equal(x, y)
            assert 0.5 < np.linalg.norm(y) / np.linalg.norm(x) < 2


def test_patterns_of_alpha_are_louder_too() -> None:
    patterned = small_testbed().adapters["made-2"]
    louder, _ = near_duplicates_of(patterned, np.random.default_rng(0))
    assert patterned.config.alpha_pattern
    for name, alpha in patterned.config.alpha_pattern.items():
        assert louder.config.alpha_pattern[name] == pytest.approx(LOUDER * alpha)


def keeps_b() -> Ops:
    """Of an adapter that is loaded under a name again, only A is new, where the shapes allow it."""
    known: dict[tuple[str, object], np.ndarray] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: object) -> BoundAdapter:
        bound = NUMPY.bind_adapter(adapter, config, scale)  # type: ignore[arg-type]
        lora = {}
        for module, w in bound.lora.items():
            old = known.setdefault((adapter.name, module), w.B)
            lora[module] = replace(w, B=old) if old.shape == w.B.shape else w
        return replace(bound, lora=lora)

    return but(bind_adapter=bind)


def test_what_stays_behind_where_shapes_agree_is_caught() -> None:
    testbed = small_testbed()
    how = variants(testbed, CAPABILITIES)[0]
    judge, engine = Judge(testbed), started(lambda **known: Ours(keeps_b, **known), testbed, how)
    sequences = (draw_sequence(testbed, CAPABILITIES, 0, i, how, 8) for i in range(100))
    assert any(judge(play(engine, case, testbed), testbed) for case in sequences)
