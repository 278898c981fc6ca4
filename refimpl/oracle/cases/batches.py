"""Batches that are drawn: any adapters beside one another, one beside the base, and sums of some."""

from collections.abc import Iterable, Sequence

import numpy as np

from ...config import EMBED, LM_HEAD
from ...engines.interface import Capabilities, EngineRequest
from ...errors import LoracleError
from .case import Case, Run, vocab_size_of
from .testbed import Testbed, settings

LONG = 64  # tokens, of which kernels make a tile and schedulers a chunk


def draw_batch(
    testbed: Testbed, capabilities: Capabilities, rng: np.random.Generator, name: str, most: int = 6, longest: int = 20
) -> Case:
    """Return a ragged batch in which a base row stands between at least two adapters, one of them asked the same
    prompt as its neighbour; prompts from one token on, one to four new tokens."""
    keys = list(rng.permutation(list(testbed.paths)))
    if not keys:
        raise LoracleError("a campaign needs an adapter: give --adapter NAME=DIR")
    chosen: list[str | None] = [*keys[: max(1, min(most - 2, len(keys)))], None]
    while len(chosen) < most and rng.random() < 0.7:
        pool = [*keys, None] if rng.random() < 0.5 else chosen  # anybody, or one that is there already
        chosen.append(pool[rng.integers(len(pool))])
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    new = int(rng.integers(1, 5))
    requests = _requests(chosen, new, testbed, rng, longest)
    if "sums" in capabilities.features:
        requests += _sums(requests, _summable(keys, testbed), rng, new, testbed)
    return Case(name, (Run(tuple(requests)),))


def draw_pair(testbed: Testbed, rng: np.random.Generator, name: str, longest: int = 20) -> Case:
    """Return a batch of one adapter and the base that produce several tokens side by side: an engine may take the
    adapter for everybody's."""
    key = str(rng.choice(list(testbed.paths)))
    chosen = [key, None, key, None][: int(rng.integers(2, 5))]
    new = int(rng.integers(3, 7))
    requests = _requests([chosen[i] for i in rng.permutation(len(chosen))], new, testbed, rng, longest)
    return Case(name, (Run(tuple(requests)),))


def draw_long(testbed: Testbed, rng: np.random.Generator, name: str) -> Case | None:
    """Return a batch with a prompt of more than LONG tokens beside short ones: a buffer may end there. None where texts
    may not be so long."""
    new = int(rng.integers(2, 5))
    longest = settings(testbed).max_length - new
    if longest <= LONG:
        return None
    keys = [str(key) for key in rng.permutation(list(testbed.paths))[:2]]
    short = _requests([*keys[1:], None], new, testbed, rng, 8)
    prompt = random_prompt(rng, int(rng.integers(LONG + 1, longest + 1)), testbed.model.config.vocab_size, testbed)
    requests = [EngineRequest(prompt, keys[0], new), *short]
    return Case(name, (Run(tuple(requests[i] for i in rng.permutation(len(requests)))),))


def draw_sums(testbed: Testbed, rng: np.random.Generator, name: str, longest: int = 20) -> Case | None:
    """Return a batch of sums, and of the adapters alone that are in them. Of as few features as there are: an engine
    may sum plain adapters in a way that it cannot others. None if fewer than two can be summed."""
    keys = _summable(rng.permutation(list(testbed.paths)).tolist(), testbed)
    keys.sort(key=lambda key: bool({EMBED, LM_HEAD} & set(testbed.adapters[key].lora)))
    keys.sort(key=lambda key: testbed.adapters[key].config.lora_bias)
    if len(keys) < 2:
        return None
    new = int(rng.integers(1, 5))
    alone = _requests([*keys[:2], None], new, testbed, rng, longest)
    summed = [one for some in (keys[:2], keys[:3]) for one in _sums(alone, some, rng, new, testbed, (len(some),))]
    return Case(name, (Run((*summed, *alone)),))


def _requests(
    chosen: Sequence[str | None], new: int, testbed: Testbed, rng: np.random.Generator, longest: int
) -> list[EngineRequest]:
    """Return one for each of these adapters, some of them with the prompt of the one before."""
    requests: list[EngineRequest] = []
    for i, key in enumerate(chosen):
        n = int(rng.choice([1, 2, longest])) if rng.random() < 0.25 else int(rng.integers(3, longest + 1))
        vocab = vocab_size_of([] if key is None else [(key, 1.0)], testbed)
        same = i > 0 and chosen[i - 1] != key and rng.random() < 0.3 and max(requests[-1].prompt_ids) < vocab
        prompt = requests[-1].prompt_ids if same else random_prompt(rng, n, vocab, testbed)
        requests.append(EngineRequest(prompt, None if key is None else str(key), new))
    return requests


def _summable(keys: Iterable[str], testbed: Testbed) -> list[str]:
    return [str(key) for key in keys if testbed.adapters[key].can_be_summed]


def _sums(
    requests: Sequence[EngineRequest],
    keys: Sequence[str],
    rng: np.random.Generator,
    new: int,
    testbed: Testbed,
    counts: Sequence[int] = (1, 2, 2, 3),
) -> list[EngineRequest]:
    """Return a request of one to three weighted adapters, often with the prompt of another one; sometimes a second
    with other weights, which only the weights tell apart. [] where none of the keys can be summed.

    requests: those that the batch has already. counts: of how many adapters, one of these."""
    chosen = keys[: int(rng.choice(counts))]
    if not chosen:
        return []
    vocab = testbed.model.config.vocab_size
    prompts = [request.prompt_ids for request in requests if max(request.prompt_ids) < vocab]
    n = int(rng.integers(3, max(4, max(len(request.prompt_ids) for request in requests) + 1)))
    same = prompts and rng.random() < 0.4
    prompt = prompts[rng.integers(len(prompts))] if same else random_prompt(rng, n, vocab, testbed)
    factors = rng.permutation([0.5, -1.5, 0.75, 2.0])
    weights = [tuple(zip(chosen, factors[start:].tolist(), strict=False)) for start in (0, 1)]
    return [EngineRequest(prompt, None, new, these) for these in weights[: 2 if rng.random() < 0.3 else 1]]


def random_prompt(rng: np.random.Generator, n: int, vocab: int, testbed: Testbed) -> tuple[int, ...]:
    """Return n tokens; where the vocabulary is a grown one, half of the time the last of them is a word of its own."""
    prompt = rng.integers(0, vocab, n)
    extra = range(testbed.model.config.vocab_size, vocab)
    if extra and rng.random() < 0.5:
        prompt[-1] = rng.choice(extra)
    return tuple(int(t) for t in prompt)
