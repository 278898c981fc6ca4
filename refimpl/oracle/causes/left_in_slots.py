"""What is left in a slot, once it is known how an engine gives its slots away.

a part of the failures -> whose weights those were -> the schedule with which most of them were in its slot before
    -> what all former occupants of its slot left there, in every request
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .asked import Asked
from .families import of_all
from .follow import Followed
from .mistakes import Mistake
from .mix_up import Source
from .schedule import Schedule
from .schedule_search import fitting_schedules
from .scheduled_names import OfWhom
from .scheduled_rule import Scheduler
from .slot_sources import left_behind
from .sources import WHICHEVER
from .traced import Request, Traced

# What one other adapter may have left, by its family -> what all former occupants of a slot did. The latter may have
# been found before, with slots for which no request waits: then who was there last is a guess.
LEFT = {
    "untargeted: ": "in its slot (",
    "added: ": "in its slot (",
    "stale ranks of ": "ranks in its slot (",
    "scaled stale ranks of ": "scaled ranks in its slot (",
    "bias of ": "bias in its slot (",
    f"scale of {WHICHEVER}": "scale in its slot, ",
}
OF_SLOTS = tuple(dict.fromkeys(LEFT.values()))
REGIONS = ("", "every module of the layers")  # embeddings may lie elsewhere
COST = 3.0  # bits of what is left


def left_in_slots(traced: Sequence[Traced], scheduler: Scheduler, limit: float) -> list[Traced]:
    """Return causes that explain more than the best one of these, of what is left in slots; best first."""
    best = traced[0]
    causes: list[Traced] = []
    others = tuple(one for one in best.cause if not one.family.startswith((*LEFT, *OF_SLOTS)))
    for i, mistake in enumerate(best.cause if best.rest else ()):
        kind = next((kind for start, kind in LEFT.items() if mistake.family.startswith((start, kind))), None)
        if kind is None:
            continue
        evidence = [of_whom(request, best.followed[request], i, mistake) for request in best.explained]
        for schedule in fitting_schedules(
            [one for one in evidence if one.possible], scheduler.schedules, scheduler.clock
        ):
            for change in _give(best.followed, schedule, kind):
                if not scheduler.clock.is_late("what is left in slots"):
                    cause = (*others, change)
                    causes.append(Traced(cause, {}).with_others(list(best.followed), limit))
        break
    better = [one for one in causes if len(one.explained) > len(best.explained)]
    return sorted(better, key=lambda one: one.rank)


def of_whom(request: Request, followed: Followed, i: int, mistake: Mistake) -> OfWhom:
    """Return of whose adapter one mistake of a cause may be in each token in which it was made."""
    came = request.as_it_came
    keys = [None, *came.known_line.codes] if came.known_line else []
    possible = {}
    has_slot = bool(came.suspect.exchange.adapters)
    for t in range(request.tokens if has_slot and followed.dead is None else 0):
        sources = followed.sources(i, t)
        some = frozenset(key for key in keys if mistake.family.replace(WHICHEVER, key or "") in sources)
        if mistake.family.startswith(
            OF_SLOTS
        ):  # found with slots of which none waits for: who was there last is a guess
            count = int(mistake.family.partition("(")[2].split()[0])
            history = came.suspect.occupants.get(count, ())
            some = frozenset([one for one in reversed(history) if one != came.suspect.key][:1])
        if some and followed.present(i)[t] == 1:
            possible[t] = some
    return OfWhom(came.known_line, came.number, came.place[2], possible)


def _give(requests: Mapping[Request, Followed], schedule: Schedule, kind: str) -> list[Mistake]:
    """Give each request the sources of what was left in the slots of its adapters; return the mistakes that those of
    one kind make."""
    families = dict[str, None]()
    for request in requests:
        came = request.as_it_came
        adapters, parts = came.suspect.exchange.adapters, dict[str, list[tuple[float, Source]]]()
        slots = "as many as it was started with" if schedule.as_started else f"{_count(came, schedule)} in all"
        for key, weight in adapters:
            history = came.known_line.occupants(came.number, schedule, came.place[2], key) if came.known_line else ()
            sources = left_behind(key, history, slots)
            for source in (one for one in sources if one.key.startswith(kind)):
                parts.setdefault(source.key + schedule.words, []).append((weight, source))
        for family, some in parts.items():
            request.families[family] = [replace(of_all(some), key=family)]
            families[family] = None
    return [Mistake(family, modules, 1.0, COST) for family in families for modules in REGIONS]


def _count(came: Asked, schedule: Schedule) -> int:
    """How many slots there are."""
    return len(came.known_line.steps(came.number, schedule)[0].slots) if came.known_line else 0
