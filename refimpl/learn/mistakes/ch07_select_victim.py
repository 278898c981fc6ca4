"""Wrong victims: each was seen in an engine, or is easy to write."""

from collections.abc import Mapping

from ..exercise import Mistake

Counts = Mapping[int, int]


def idle(last_used: Counts, ref_counts: Counts) -> dict[int, int]:
    """The slots that nobody uses, and when each was last used."""
    return {slot: time for slot, time in last_used.items() if not ref_counts.get(slot)}


def oldest(slots: Counts) -> int | None:
    return min(slots, key=slots.__getitem__, default=None)


def in_use_or_not(last_used: Counts, ref_counts: Counts) -> int | None:
    return oldest(last_used)


def in_use_if_none_is_idle(last_used: Counts, ref_counts: Counts) -> int | None:
    return oldest(idle(last_used, ref_counts) or last_used)


def fewest_users(last_used: Counts, ref_counts: Counts) -> int | None:
    return min(last_used, key=lambda slot: (ref_counts.get(slot, 0), last_used[slot]), default=None)


def most_recent(last_used: Counts, ref_counts: Counts) -> int | None:
    slots = idle(last_used, ref_counts)
    return max(slots, key=slots.__getitem__, default=None)


def lowest_slot(last_used: Counts, ref_counts: Counts) -> int | None:
    return min(idle(last_used, ref_counts), default=None)


def first_in(last_used: Counts, ref_counts: Counts) -> int | None:
    return next(iter(idle(last_used, ref_counts)), None)


def zero_is_in_use(last_used: Counts, ref_counts: Counts) -> int | None:
    return oldest({slot: time for slot, time in last_used.items() if slot not in ref_counts})


def missing_is_an_error(last_used: Counts, ref_counts: Counts) -> int | None:
    return oldest({slot: time for slot, time in last_used.items() if ref_counts[slot] == 0})


def there_is_always_one(last_used: Counts, ref_counts: Counts) -> int:
    slots = idle(last_used, ref_counts)
    return min(slots, key=slots.__getitem__)


def minus_one_for_nobody(last_used: Counts, ref_counts: Counts) -> int:
    victim = oldest(idle(last_used, ref_counts))
    return -1 if victim is None else victim


def slot_zero_is_nobody(last_used: Counts, ref_counts: Counts) -> int | None:
    return oldest(idle(last_used, ref_counts)) or None


def slot_zero_is_overwritten(last_used: Counts, ref_counts: Counts) -> int | None:
    victim: int | None = None
    for slot, time in idle(last_used, ref_counts).items():
        if not victim or time < last_used[victim]:
            victim = slot
    return victim


def only_the_oldest_is_asked(last_used: Counts, ref_counts: Counts) -> int | None:
    victim = oldest(last_used)
    return None if ref_counts.get(victim) else victim  # type: ignore[arg-type]


def time_for_slot(last_used: Counts, ref_counts: Counts) -> int | None:
    return min(idle(last_used, ref_counts).values(), default=None)


def empties_the_slot_itself(last_used: dict[int, int], ref_counts: Counts) -> int | None:
    victim = oldest(idle(last_used, ref_counts))
    if victim is not None:
        del last_used[victim]
    return victim


RACE = (
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/1552",
)
MISTAKES = (
    Mistake(
        "in_use_or_not",
        "a slot that a running request uses is no candidate, however long ago it was touched.",
        in_use_or_not,
        RACE,
    ),
    Mistake(
        "in_use_if_none_is_idle",
        "when all are in use there is no victim: somebody waits, and nobody talks with another's weights.",
        in_use_if_none_is_idle,
        RACE,
    ),
    Mistake(
        "fewest_users",
        "one user is as good a reason to stay as two: only slots without any may go.",
        fewest_users,
        RACE,
    ),
    Mistake(
        "most_recent",
        "what was used just now is the likeliest to be asked for again.",
        most_recent,
    ),
    Mistake(
        "lowest_slot",
        "the number of a slot says nothing about when it was used.",
        lowest_slot,
    ),
    Mistake(
        "first_in",
        "the order of a dict is when its keys came, not when they were last used.",
        first_in,
        ("https://github.com/sgl-project/sglang/pull/11041",),
    ),
    Mistake(
        "zero_is_in_use",
        "a slot that is counted with 0 users is free: yours stays for ever.",
        zero_is_in_use,
        ("https://github.com/vllm-project/vllm-metal/pull/641",),
    ),
    Mistake(
        "missing_is_an_error",
        "a slot that nobody uses may be missing among the counts.",
        missing_is_an_error,
    ),
    Mistake(
        "there_is_always_one",
        "all slots may be in use, and then the engine wants to hear it, and to go on.",
        there_is_always_one,
        ("https://github.com/sgl-project/sglang/issues/23141",),
    ),
    Mistake(
        "minus_one_for_nobody",
        "nobody is None here: -1 is a number, and Python takes it for the last one.",
        minus_one_for_nobody,
    ),
    Mistake(
        "slot_zero_is_nobody",
        "0 is a slot like any other, although Python takes it for False.",
        slot_zero_is_nobody,
    ),
    Mistake(
        "slot_zero_is_overwritten",
        "`not victim` is true before there is a victim, and also when the victim is slot 0.",
        slot_zero_is_overwritten,
    ),
    Mistake(
        "only_the_oldest_is_asked",
        "if the oldest of all is in use, the next oldest may still be idle.",
        only_the_oldest_is_asked,
    ),
    Mistake(
        "time_for_slot",
        "that is when it was used, and not which one it is.",
        time_for_slot,
    ),
    Mistake(
        "empties_the_slot_itself",
        "you only say which one: whoever asked you empties it, and finds it gone.",
        empties_the_slot_itself,
    ),
)
