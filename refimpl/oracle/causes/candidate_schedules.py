"""Which schedules an engine may have: those that a search begins with, and what it changes in one."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .schedule import ORDERS, Schedule

SIMPLE = Schedule()
Change = dict[str, Any]  # fields of a schedule, and what they are then


def _either(**fields: Any) -> list[Change]:
    """Return the changes that switch one field on, with what it brings along, and off."""
    (name, _), *_ = fields.items()
    return [{name: True, **dict(list(fields.items())[1:])}, {name: False}]


def _each(some: Iterable[Any], name: str) -> list[Change]:
    return [{name: one} for one in some]


COUNTS = (1, 2, 3, 4, 5, 6, 8)  # of slots
CHUNKS = _each((None, *range(1, 17), 20, 24, 32), "chunk")
KEPT: Change = {"evicts": False, "one_step": False, "as_started": False}
FLAGS = ((False, False), (False, True), (True, False), (True, True))
STARTED: list[Change] = [{"as_started": True, "at_load": one, "by_slot": two} for one, two in FLAGS]
SLOTS: list[Change] = [{"adapters": None, "overtake": False, **KEPT}]
SLOTS += [{"adapters": n, "overtake": waits, **KEPT} for n in COUNTS for waits in (False, True)]
NOBODY_WAITS: list[Change] = [
    {"adapters": n, "overtake": False, **KEPT, how: True} for how in ("evicts", "one_step") for n in COUNTS
]
BUDGETS = _each((*range(4, 33), *range(36, 65, 4), 80, 96, 128), "budget")
NO_BUDGET: Change = {"budget": None, "counts_decodes": True, "if_room": False}
# One after another: of each the change that fits best is made before the next one is tried.
DIMENSIONS: tuple[list[Change], ...] = (
    [
        *_either(counts_decodes=True),
        *_either(if_room=True),
        *_either(by_slot=True),
        *_either(by_row=True, in_turn=False, by_end=False, prompts_ahead=False),
        *_either(in_turn=True, by_row=False),
        *_either(prompts_first=True),
        *_either(prompts_ahead=True, by_row=False),
        *_either(by_end=True, compacts=False, by_row=False),
        *_either(compacts=True, by_end=False),
    ],
    [*BUDGETS, NO_BUDGET],
    [*SLOTS, *NOBODY_WAITS, {**KEPT, "as_started": True, "adapters": None, "budget": None}],
    CHUNKS,
    [
        *_either(at_load=True),
        *_either(touches=True),
        *_either(at_end=True),
        *_each((None, 4, 8, 16, 32), "block"),
        *_each(ORDERS, "order"),
        {"running": None, "to_the_end": False},
        *({"running": n, "to_the_end": one} for n in (2, 3, 4, 6, 8) for one in (False, True)),
    ],
)
# Who is in a slot is a matter of all batches before: no limit alone says anything of that, so two are tried together.
USUAL = [*_each((None, 4, 8, 12, 16, 24, 32), "chunk"), *_each((8, 16, 24, 32, 48, 64), "budget")]
# vLLM's persistent batch: the last row moves into the place of one that ends.
IN_PLACE: Change = {"by_row": True, "compacts": True}
BEGINNINGS = [
    replace(SIMPLE, **limit, **slots, **kind) for kind in (Change(), IN_PLACE) for limit in USUAL for slots in SLOTS
]
# vLLM's V1 scheduler, and ours.
IN_TURN: Change = {"touches": True, "in_turn": True, "if_room": True}
BLOCKS: list[Change] = [{}, IN_TURN, {**IN_TURN, "block": 8}, {**IN_TURN, "block": 16}]
BEGINNINGS += [replace(SIMPLE, **limits, **kind) for limits in STARTED for kind in BLOCKS]
BEGINNINGS += [
    replace(SIMPLE, budget=budget, adapters=slots, by_slot=by_slot, **IN_TURN)
    for budget in (8, 16, 32, 64)
    for slots in (2, 4, 8)
    for by_slot in (False, True)
]
BEGINNINGS += [replace(SIMPLE, order=one) for one in ORDERS if one]
BEGINNINGS += [replace(SIMPLE, running=n, to_the_end=True) for n in (2, 4, 8)]
BEGINNINGS += [replace(SIMPLE, **chunk) for chunk in CHUNKS if chunk not in USUAL]
BEGINNINGS.sort(key=lambda one: one.cost)
