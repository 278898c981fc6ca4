"""Testbeds of other families and other kinds of adapters, small enough that a case takes milliseconds."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from refimpl import Ops
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.config import EMBED, LM_HEAD
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.ours import Ours
from refimpl.oracle.cases.case import Case, Exchange, Load, Run, play, prepare
from refimpl.oracle.cases.family_base import family_base
from refimpl.oracle.cases.testbed import Testbed, in_float64
from refimpl.oracle.cases.testbed import settings as settings_for
from refimpl.synthetic.adapters import gain_of, random_adapter
from refimpl.weights import Model

INVOCATION = (7, 9)  # of every aLoRA
KINDS = ("plain", "rslora", "dora", "alora")


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def family_testbed(model_type: str, kind: str = "plain") -> Testbed:
    """A base of this family in float32, and two adapters of this kind on all of its modules; the first has no LoRA on
    the two tables, or aLoRA would be refused there."""
    model = _base(model_type)
    adapters = {f"made-{i}": of_kind(model, kind, i) for i in range(2)}
    paths = {key: Path(key) for key in adapters}  # never read: the engine is given what is loaded
    return Testbed(Path(_root().name) / model_type, model, in_float64(model), paths, adapters)


@functools.cache
def _base(model_type: str) -> Model:
    return family_base(model_type, 3, "float32", Path(_root().name) / model_type)


def of_kind(model: Model, kind: str, number: int) -> Adapter:
    """A synthetic adapter that is plain LoRA, rsLoRA, DoRA or aLoRA."""
    config = model.config
    tables = () if number == 0 or kind == "alora" else (EMBED[1], LM_HEAD[1])
    peft = PeftConfig(
        5 - number,
        7.0 + number,
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        alora_invocation_tokens=INVOCATION if kind == "alora" else (),
        target_modules=(*config.layer_modules, *tables),
    )
    rng = np.random.default_rng([number, 8])
    adapter = random_adapter(config, peft, f"made-{number}", rng, gain_of(model))
    if kind != "dora":
        return adapter
    lora = {
        module: LoraTensors(x.A, x.B, x.bias, rng.uniform(0.5, 1.5, len(x.B)).astype(np.float32))
        for module, x in adapter.lora.items()
    }
    return replace(adapter, lora=lora)


def drawn_batch(testbed: Testbed, seed: int) -> Case:
    """A ragged batch: both adapters, the base among them, and an adapter twice. Every prompt of more than seven tokens
    has the invocation of an aLoRA twice."""
    rng = np.random.default_rng([seed, 9])
    names = ["made-0", None, "made-1", None, ["made-0", "made-1"][rng.integers(2)]]
    return Case(f"batch-{seed}", (Run(tuple(EngineRequest(_prompt(testbed, rng), name) for name in names)),))


def one_after_another(testbed: Testbed, seed: int) -> Case:
    """The same prompt for an adapter and then for the base, by one engine that finds prefixes again."""
    ids = _prompt(testbed, np.random.default_rng([seed, 9]), 24)
    runs = (Run((EngineRequest(ids, "made-0"),)), Run((EngineRequest(ids),)))
    return Case(f"sequence-{seed}", (Load("made-0", "made-0"), *runs), stateless=False)


def _prompt(testbed: Testbed, rng: np.random.Generator, length: int | None = None) -> tuple[int, ...]:
    length = length or int(rng.choice([1, 2, *range(3, 21)]))
    ids = rng.integers(10, testbed.model.config.vocab_size, length).tolist()
    if length > 7:
        first, last = sorted(rng.choice(range(0, length - 1, 2), 2, replace=False).tolist())
        ids[first : first + 2] = ids[last : last + 2] = INVOCATION
    return tuple(ids)


def responses(testbed: Testbed, case: Case, make: Callable[[], Ops]) -> list[Exchange]:
    """What our engine with this backend answers to a case."""
    loaded = {testbed.paths[key]: adapter for key, adapter in testbed.adapters.items()}
    engine = Ours(make, model=testbed.model, adapters=loaded)
    settings: Settings = settings_for(testbed, prefix_caching=not case.stateless)
    engine.start(settings)
    if case.stateless:
        prepare(engine, testbed)
    return play(engine, case, testbed)
