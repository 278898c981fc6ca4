"""Who computes how many tokens in a step, and who may come in: two steps of `Ops`, on plain numbers.

A step has a budget of tokens. A prompt that is longer than what is left of it is computed in chunks, over several
steps; a request that is decoding lacks one token.
"""

from collections.abc import Collection, Hashable, Sequence


def schedule(missing: Sequence[int], budget: int) -> list[int]:
    """How many tokens each request computes in this step, given how many it lacks. First come, first served.

        missing [3, 9, 4], budget 10  ->  [3, 7, 0]

    No more than `budget` in all, and no room is left while somebody lacks a token."""
    tokens = []
    for n in missing:
        tokens.append(min(n, budget))
        budget -= tokens[-1]
    return tokens


def admit(waiting: Sequence[Collection[Hashable]], in_use: Collection[Hashable], capacity: int | None) -> Sequence[int]:
    """The waiting requests whose adapters fit into the slots now, as indices, in the order in which they may come in.

    waiting holds the adapters of each waiting request, in the order of arrival; in_use are the adapters of the running
    ones, which cannot be evicted; capacity is the number of adapter slots (None: as many as come).

    Strictly in order: the first one that does not fit keeps all behind it waiting, those whose adapter is loaded, too.
    That costs throughput (vLLM lets them pass: pull request 15422), and nobody starves: whoever may be overtaken while
    his adapter is not loaded can be overtaken for ever, by requests that keep the slots in use."""
    if capacity is None:
        return range(len(waiting))
    used = set(in_use)
    for i, adapters in enumerate(waiting):
        used.update(adapters)
        if len(used) > capacity:
            return range(i)
    return range(len(waiting))


def loaded_first(loaded: Sequence[bool], overtaken: Sequence[int], patience: int | None) -> list[int]:
    """The order in which waiting requests are tried, as indices, given in the order of arrival whether their adapters
    are loaded, and how many later ones were admitted before them.

    First those who have been overtaken `patience` times: nobody passes them any more. Then those whose adapters are
    loaded: none of them waits for a load. Then the others. patience 0 is the order of arrival; with None whoever needs
    a load can be overtaken for ever.

        loaded [False, True, False, True], overtaken [2, 0, 0, 0], patience 3  ->  [1, 3, 0, 2]
                                                                   patience 2  ->  [0, 1, 3, 2]
    """

    def rank(i: int) -> int:
        if patience is not None and overtaken[i] >= patience:
            return 0
        return 1 if loaded[i] else 2

    return sorted(range(len(loaded)), key=rank)
