"""Batches of an engine, drawn at random."""

import numpy as np

from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.schedule import Scheduled

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
