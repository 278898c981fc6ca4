"""Makes a whole set: the same seed gives the same bytes (on one machine; elsewhere the last bits may be others)."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...formats.files import new_folder
from . import cases_kv, cases_logits, cases_lora, cases_sequences, step_kv, step_lora, whole_model
from .models import write_models
from .vector import KINDS, Vector
from .write import write_index, write_vector


def make_set(out: Path, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Vector]:
    """Write a new folder with the vectors of these kinds. LoracleError, and no folder, if it cannot be written."""
    with new_folder(Path(out)) as root:
        vectors = []
        for v in make_vectors(root, seed, kinds):
            write_vector(v, root, seed)
            vectors.append(v)
        write_index(root, [v.id for v in vectors], seed)
    return vectors


def make_vectors(root: Path, seed: int, kinds: Sequence[str]) -> Iterator[Vector]:
    """One after another. Each has its own numbers: one more, or less, changes no other."""
    if "lora" in kinds:
        yield from (step_lora.make(spec, draws(seed, "lora", spec.name)) for spec in cases_lora.SPECS)
    if "kv_write" in kinds:
        yield from (step_kv.make_write(spec, draws(seed, "kv_write", spec.name)) for spec in cases_kv.WRITES)
    if "attention" in kinds:
        yield from (step_kv.make_attention(spec, draws(seed, "attention", spec.name)) for spec in cases_kv.READS)
    if "logits" in kinds or "sequence" in kinds:
        written = write_models(root, lambda name: draws(seed, "models", name))
        for kind, specs in (("logits", cases_logits.SPECS), ("sequence", cases_sequences.SPECS)):
            if kind in kinds:
                for spec in specs:
                    yield whole_model.make(spec, kind, written[spec.model], draws(seed, kind, spec.name))


def draws(seed: int, kind: str, name: str) -> np.random.Generator:
    """The chance of one vector."""
    return np.random.default_rng([seed, zlib.crc32(f"{kind}/{name}".encode())])
