"""Batches of an engine, drawn at random."""

from dataclasses import replace

import numpy as np

from refimpl.engines.interface import Computed
from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.schedule import Batch, Schedule, Scheduled

ADAPTERS = [(), (("a", 1.0),), (("b", 1.0),), (("c", 1.0),), (("a", 0.5), ("d", 1.0))]


def made_line(seed: int, count: int) -> Line:
    rng, line = np.random.default_rng(seed), Line()
    for _ in range(count):
        requests = []
        for _ in range(int(rng.integers(3, 8))):
            prompt = int(rng.integers(1, 21))
            requests.append(Scheduled(prompt + int(rng.integers(1, 5)), prompt, ADAPTERS[int(rng.integers(4))]))
        line.batches.append(requests)
    return line


def reported(line: Line, schedule: Schedule) -> list[Batch]:
    """The same batches, each request with its part of the steps of a schedule."""
    batches, number = list[Batch](), 0
    for n, batch in enumerate(line.batches):
        computed: list[list[Computed]] = [[] for _ in batch]
        for step in line.steps(n, schedule):
            number, row = number + 1, 0
            for one in () if step.is_cached else step.rows:
                slot = batch[one.request].slot_in(step.slots)
                computed[one.request].append(Computed(number, row, one.first, one.length, slot))
                row += one.length
        batches.append([replace(one, computed=tuple(of)) for one, of in zip(batch, computed, strict=True)])
    return batches
