"""Which KV blocks are shared: TensorRT-LLM's keys beside ours, over every way in which two requests can be alike."""

import hashlib
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from refimpl import Precision
from refimpl.kv_cache import prefix_key
from refimpl.tensorrt_llm.block_key import BlockKey, block_keys, matching_tokens, reused_tokens


@dataclass(frozen=True)
class Asked:
    """A prompt, the id that it names, and the weights that are really meant."""

    tokens: tuple[int, ...]
    task_id: int | None
    weights: str
    salt: int | None


# Few tokens and few names, so that requests are often alike. Without an id there are no weights.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)
with_adapter = st.builds(Asked, prompts, st.sampled_from([0, 1]), st.sampled_from(["old", "new"]), st.just(None))
of_the_base = st.builds(Asked, prompts, st.none(), st.just(""), st.just(None))
asked = st.one_of(with_adapter, with_adapter, of_the_base)


def theirs(a: Asked, size: int) -> list[BlockKey]:
    return block_keys(a.tokens, size, a.task_id, a.salt)


def ours(a: Asked, size: int) -> list[bytes]:
    """Keys of the full blocks, each with that of its parent."""
    keys, adapters = [b""], [(hashlib.sha256(a.weights.encode()).digest(), 1.0)] if a.weights else []
    for i in range(0, len(a.tokens) - size + 1, size):
        keys.append(prefix_key(keys[-1], a.tokens[i : i + size], b"base", Precision(), adapters))
    return keys[1:]


def full_tokens(a: Asked, size: int) -> list[tuple[int, ...]]:
    return [a.tokens[i : i + size] for i in range(0, len(a.tokens) - size + 1, size)]


def shared(a: list, b: list) -> int:
    """Blocks from the first on that two requests have in common."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


@given(a=asked, b=asked, size=st.integers(1, 4))
def test_they_differ_from_ours_where_an_id_does_not_tell_the_weights(a: Asked, b: Asked, size: int) -> None:
    """Whole blocks that both have. With an id for each adapter's weights, and one adapter's weights for each id, the
    two rules are one. Else theirs is wrong where the id is the same, and careful where only the weights are."""
    full = [keys[: len(r.tokens) // size] for r, keys in ((a, theirs(a, size)), (b, theirs(b, size)))]
    in_common = shared(full_tokens(a, size), full_tokens(b, size))
    assert shared(*full) == (in_common if a.task_id == b.task_id else 0)
    assert shared(ours(a, size), ours(b, size)) == (in_common if a.weights == b.weights else 0)
    if (a.task_id == b.task_id) == (a.weights == b.weights):
        assert shared(*full) == shared(ours(a, size), ours(b, size))


@given(a=asked, b=asked, size=st.integers(1, 4))
def test_what_is_reused_is_a_common_prefix_of_one_task(a: Asked, b: Asked, size: int) -> None:
    """Whole blocks and then a part: as many tokens as are the same, if it is the same task, and else none."""
    same = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
    same = min(len(a.tokens), len(b.tokens)) if same is None else same
    assert reused_tokens(theirs(a, size), theirs(b, size)) == (same if a.task_id == b.task_id else 0)


def test_no_adapter_is_not_adapter_zero() -> None:
    assert block_keys([1, 2], 2, None) != block_keys([1, 2], 2, 0)
    assert matching_tokens(*block_keys([1, 2], 2, None), *block_keys([1, 2], 2, 0)) == 0


def test_a_salt_keeps_two_tenants_apart() -> None:
    """A recorder that wants no reuse gives every request its own."""
    mine, yours = block_keys([1, 2, 3], 2, 5, cache_salt=1), block_keys([1, 2, 3], 2, 5, cache_salt=2)
    assert reused_tokens(mine, mine) == 3 and reused_tokens(mine, yours) == 0


def test_the_chain_of_parents() -> None:
    """The same block of tokens at another place is another block."""
    assert reused_tokens(block_keys([1, 2, 3, 4], 2), block_keys([9, 9, 3, 4], 2)) == 0
    assert reused_tokens(block_keys([1, 2, 3, 4], 2), block_keys([1, 2, 3, 9], 2)) == 3
