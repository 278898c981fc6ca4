"""Whole models in Precision("tensorrt_llm"): as near to the float64 answer as other honest runs in that type.

The noise is that of our own runs with other rounding points. Errors are compared case by case, in logarithms, with
those of the worst of them: in the mean, the emulation may be worse than that one by as much as the honest runs differ
among themselves, and by three standard errors of that mean.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, as_dtype, cases

from refimpl import NUMPY, Model, Ops, Precision, Request, logits
from refimpl.adapter import Adapter
from refimpl.arrays import rounded
from refimpl.tensorrt_llm.arithmetic import AS_BATCHED, GROUPED
from refimpl.tensorrt_llm.backend import backend

Run = tuple[Ops, Precision]


def honest(dtype: str) -> list[Run]:
    """What engines do that are right."""
    model = Precision("model", dtype)
    wider: list[dict[str, str]] = [
        {},
        {"lora_rank": "float32"},
        {"lora_delta": "float32", "activation_inner": "float32"},
        {"norm_inner": "float32", "rope_product": "float32", "scores": "float32"},
    ]
    return [(NUMPY, Precision("transformers", dtype)), *((NUMPY, dataclasses.replace(model, **w)) for w in wider)]


def scaled_by(factor: float) -> Ops:
    """The emulation with a wrong scale."""
    return dataclasses.replace(
        AS_BATCHED, adapter_scale=lambda alpha, r, use_rslora: factor * NUMPY.adapter_scale(alpha, r, use_rslora)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_within_the_honest_noise_and_a_wrong_scale_is_not(dtype: str) -> None:
    emulation = [
        (backend(dtype, "manager", AS_BATCHED), Precision("model", dtype)),
        (backend(dtype, "convert", GROUPED), Precision("model", dtype)),
    ]
    wrong = [(backend(dtype, "manager", scaled_by(1.1)), Precision("model", dtype))]
    runs, errors = [*honest(dtype), *emulation, *wrong], []

    @settings(max_examples=25)
    @given(case=cases(), checkpoint=st.sampled_from(["float32", dtype]))
    def measure(case: Case, checkpoint: str) -> None:
        model, requests = stored(case.model, dtype), with_adapters(case.requests, checkpoint)
        truth = logits(model, requests)
        errors.append([rms(logits(model, requests, *run), truth) for run in runs])

    measure()
    ours = np.log(np.array(errors))
    mine, tested = ours[:, : len(honest(dtype))], ours[:, len(honest(dtype)) :]
    means = mine.mean(axis=0)
    further = tested - mine[:, [means.argmax()]]
    limit = np.ptp(means) + 3 * further.std(axis=0) / np.sqrt(len(further))
    inside = further.mean(axis=0) <= limit
    assert inside.tolist() == [True, True, False]


def stored(model: Model, dtype: str) -> Model:
    """The numbers of the model as a checkpoint of that type has them."""

    def to(x: object) -> object:
        if isinstance(x, np.ndarray):
            return rounded(x, dtype)
        if isinstance(x, dict):
            return {name: to(part) for name, part in x.items()}
        return dataclasses.replace(x, **{f.name: to(getattr(x, f.name)) for f in dataclasses.fields(x)}) if x else None

    return dataclasses.replace(
        model,
        embed_tokens=to(model.embed_tokens),
        layers=tuple(to(layer) for layer in model.layers),
        norm=to(model.norm),
        lm_head=to(model.lm_head),
    )


def with_adapters(requests: Sequence[Request], dtype: str) -> list[Request]:
    """The requests, their adapters stored in a type, each converted once."""
    known: dict[Adapter, Adapter] = {}

    def convert(adapter: Adapter) -> Adapter:
        return known.setdefault(adapter, as_dtype(adapter, dtype))

    return [dataclasses.replace(r, adapter=[(convert(a), w) for a, w in r.adapters] or None) for r in requests]


def rms(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Over all tokens and the whole vocabulary. NaN if there is one."""
    off = np.concatenate([(o - t).ravel() for o, t in zip(ours, theirs, strict=True)])
    return float(np.sqrt(np.mean(np.square(off, dtype=np.float64))))
