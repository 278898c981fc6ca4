"""Right in another way: these must pass."""

import itertools

import numpy as np


def by_sums(missing, budget):
    before = [0, *itertools.accumulate(missing)]
    return [min(n, max(0, budget - start)) for n, start in zip(missing, before, strict=False)]


def with_numpy(missing, budget):
    return np.diff(np.minimum(np.cumsum([0, *missing]), budget))  # an array


def token_by_token(missing, budget):
    tokens = [0] * len(missing)
    for _ in range(budget):
        for i, n in enumerate(missing):
            if tokens[i] < n:
                tokens[i] += 1
                break
    return tuple(tokens)


def takes_it_from_its_argument(missing, budget):
    for i, n in enumerate(missing):
        missing[i] = min(n, budget)
        budget -= missing[i]
    return missing


def yields(missing, budget):
    for n in missing:
        yield min(n, budget)
        budget -= min(n, budget)


MUST_PASS = [by_sums, with_numpy, token_by_token, takes_it_from_its_argument, yields]
