"""What is true of a request: of its adapter, its place in the batch, the batch, its prompt, and what came before."""

from collections.abc import Iterator, Sequence

from ...adapter import Adapter
from ...config import module_name
from ..cases.case import Case, Exchange, Run, keys_of, loaded_before, replay
from ..cases.testbed import Testbed
from .condition import Fact
from .history import history_facts

COUNTS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)


def facts_of(case: Case, exchange: Exchange, testbed: Testbed, earlier: Sequence[str | None] = ()) -> dict[Fact, bool]:
    """Return what is true of a request, and what is not; each fact and its opposite.

    earlier: the adapters of the requests that the engine had answered before this case, in order, None: the base."""
    facts: dict[Fact, bool] = {}
    for words, opposite, holds, cost in (
        *_facts(case, exchange, testbed),
        *history_facts(case, exchange, testbed, earlier),
    ):
        facts[Fact(words, cost)] = holds
        facts[Fact(opposite, cost + 0.5)] = not holds
    return facts


def _facts(case: Case, exchange: Exchange, testbed: Testbed) -> Iterator[tuple[str, str, bool, float]]:
    runs = [(step, now) for step, now in replay(case.steps, loaded_before(case, testbed)) if isinstance(step, Run)]
    run, meaning = runs[exchange.run]
    keys = [keys_of(request, meaning) for request in run.requests]
    here = exchange.index
    yield from _of_adapter(exchange, testbed)
    yield from _of_place(keys, here)
    yield from _of_batch(keys, here, testbed)
    lengths = [len(request.prompt_ids) for request in run.requests]
    yield from _counted("its prompt has {} tokens or more", "its prompt has fewer than {} tokens", lengths[here])
    yield from _counted("the prompts of the batch have {} tokens or more", "they have fewer than {}", sum(lengths), 5)
    for n in (2, 4, 8, 16):
        words = f"its prompt is of whole {n}s of tokens", f"its prompt is not of whole {n}s of tokens"
        yield *words, lengths[here] % n == 0, 4.5
    yield "its prompt is the longest of the batch", "its prompt is not the longest", lengths[here] == max(lengths), 4
    yield "more than one token is produced", "one token is produced", exchange.request.max_new_tokens > 1, 4
    prompt = run.requests[here].prompt_ids
    same = [i for i, request in enumerate(run.requests) if i != here and request.prompt_ids[:4] == prompt[:4]]
    yield "another request begins with the same tokens", "no other request begins with its tokens", bool(same), 4
    earlier = [request for step, _ in runs[: exchange.run] for request in step.requests]
    words = "its first tokens were asked before", "its first tokens were not asked before"
    yield *words, any(request.prompt_ids[:8] == prompt[:8] for request in earlier), 4
    yield "something was asked before this batch", "it is the first batch", exchange.run > 0, 4
    order = list(dict.fromkeys(meaning.values()))
    if exchange.adapters:
        number = order.index(exchange.adapters[0][0]) + 1
        yield from _counted("its adapter was loaded as number {} or later", "it was loaded before number {}", number)


def _of_adapter(exchange: Exchange, testbed: Testbed) -> Iterator[tuple[str, str, bool, float]]:
    yield "it has an adapter", "it is of the base alone", bool(exchange.adapters), 3
    if not exchange.adapters:
        return
    key = exchange.adapters[0][0]
    for other in testbed.adapters:
        yield f"its adapter is {other}", f"its adapter is not {other}", key == other, 6
    adapter = testbed.adapters[key]
    config = adapter.config
    ranks = [lora.A.shape[0] for lora in adapter.lora.values()]
    yield "its adapter has rsLoRA", "its adapter has no rsLoRA", config.use_rslora, 3
    yield "its ranks differ", "its ranks are the same everywhere", len(set(ranks)) > 1, 3
    yield "its adapter has a rank_pattern", "its adapter has no rank_pattern", bool(config.rank_pattern), 3
    yield "its adapter has an alpha_pattern", "its adapter has no alpha_pattern", bool(config.alpha_pattern), 3
    yield "its adapter has a bias of lora_B", "its adapter has no bias of lora_B", config.lora_bias, 3
    yield "its adapter leaves modules alone", "its adapter is on every module", is_partial(adapter, testbed), 3
    for name in sorted({module[1] for one in testbed.adapters.values() for module in one.lora}):
        has = any(module[1] == name for module in adapter.lora)
        yield f"its adapter leaves {name} alone", f"its adapter is on {name}", not has, 3.5
    layers = {module[0] for module in adapter.lora if module[0] >= 0}
    every = set(range(testbed.exact.config.num_hidden_layers))
    yield "its adapter leaves layers alone", "its adapter is on every layer", layers != every, 3
    yield "its adapter leaves the first layer alone", "its adapter is on the first layer", 0 not in layers, 3.5
    yield "it sums adapters", "it has one adapter", len(exchange.adapters) > 1, 3
    yield "its adapter brings whole layers along", "it brings no whole layer along", bool(adapter.replaced), 3
    for n in (4, 8, 12, 16, 32):
        yield f"its rank is above {n}", f"its rank is {n} or less", max(ranks, default=0) > n, 4
    yield "its rank is odd", "its rank is even", any(r % 2 for r in ranks), 4
    yield "its rank is no multiple of 8", "its rank is a multiple of 8", any(r % 8 for r in ranks), 4


def is_partial(adapter: Adapter, testbed: Testbed) -> bool:
    """Does it leave a module alone that another adapter of the testbed has?"""
    names = {module_name(module).rpartition(".")[2] for one in testbed.adapters.values() for module in one.lora}
    return bool(names - {module_name(module).rpartition(".")[2] for module in adapter.lora})


def _of_place(keys: Sequence[tuple[tuple[str, float], ...]], here: int) -> Iterator[tuple[str, str, bool, float]]:
    own_keys = keys[here]
    yield "it is the first of the batch", "it is not the first of the batch", here == 0, 3
    yield "it is the last of the batch", "it is not the last of the batch", here == len(keys) - 1, 3
    yield "an earlier request has its adapter", "no earlier request has its adapter", own_keys in keys[:here], 3
    yield "a later request has its adapter", "no later request has its adapter", own_keys in keys[here + 1 :], 3
    both = own_keys in keys[:here] or own_keys in keys[here + 1 :]
    yield "another request has its adapter", "no other request has its adapter", both, 3
    before = keys[here - 1] if here else None
    yield "the request before is of the base", "the request before has an adapter", before == (), 4
    yield "the request before has its adapter", "the request before has another adapter", before == own_keys, 4
    used = list(dict.fromkeys(key for weighted in keys for key, _ in weighted))
    if own_keys:
        place = used.index(own_keys[0][0]) + 1
        words = "its adapter is number {} or later in the batch", "its adapter is before number {} in the batch"
        yield from _counted(*words, place)
    yield from _counted("it is number {} or later in the batch", "it is before number {} in the batch", here + 1)


def _of_batch(
    keys: Sequence[tuple[tuple[str, float], ...]], here: int, testbed: Testbed
) -> Iterator[tuple[str, str, bool, float]]:
    n, distinct = len(keys), {key for weighted in keys for key, _ in weighted}
    yield from _counted("the batch has {} requests or more", "the batch has fewer than {} requests", n)
    yield from _counted("the batch has {} adapters or more", "the batch has fewer than {} adapters", len(distinct))
    yield "the number of requests is odd", "the number of requests is even", n % 2 == 1, 5
    words = "the number of requests is no power of two", "the number of requests is a power of two"
    yield *words, bool(n & (n - 1)), 5
    yield "the base is in the batch", "the base is not in the batch", () in keys, 4
    partial = any(is_partial(testbed.adapters[key], testbed) for keys_ in keys for key, _ in keys_)
    yield "an adapter of the batch leaves modules alone", "every adapter of the batch is on every module", partial, 4
    ranks = [max((lora.A.shape[0] for lora in testbed.adapters[k[0][0]].lora.values()), default=0) for k in keys if k]
    yield "adapters of the batch differ in rank", "all adapters of the batch have one rank", len(set(ranks)) > 1, 4
    own_keys = keys[here]
    if own_keys:
        mine = max((lora.A.shape[0] for lora in testbed.adapters[own_keys[0][0]].lora.values()), default=0)
        words = "another adapter of the batch has a higher rank", "no adapter of the batch has a higher rank"
        yield *words, max(ranks) > mine, 4
        others = [rank for rank, k in zip(ranks, [k for k in keys if k], strict=True) if k != own_keys]
        yield (
            "another adapter of the batch has its rank",
            "no other adapter of the batch has its rank",
            mine in others,
            4,
        )
    yield (
        "a request of the batch sums adapters",
        "no request of the batch sums adapters",
        any(len(k) > 1 for k in keys),
        4,
    )


def _counted(words: str, opposite: str, value: int, cost: float = 4.5) -> Iterator[tuple[str, str, bool, float]]:
    for n in COUNTS:
        yield words.format(n), opposite.format(n), value >= n, cost
