"""The picture of the losses: one line per task, dots for what was held out, and nothing where a loss is no number."""

import math
from xml.etree import ElementTree

from refimpl.training.lora_config import LoraConfig
from refimpl.training.output import loss_curve
from refimpl.training.state import TaskState, TrainingState


def task(losses: tuple[float, ...], held_out: tuple[tuple[int, float], ...] = ()) -> TaskState:
    return TaskState(LoraConfig(), len(losses), len(losses), {}, {}, {}, losses, held_out=held_out)


def test_every_loss_is_at_the_number_of_steps_before_it() -> None:
    diagram = loss_curve(TrainingState({"sql": task((4.0, 2.0, 1.0), ((0, 4.0), (3, 1.0))), "chat": task((3.0,))}))
    lines = diagram.text.splitlines()
    assert lines[0] == "Loss of sql, chat" and lines[-1].strip() == "a sql (A held out), b chat"
    assert lines[-2].split() == ["step", "0", "3"]
    rows = [line.partition("|")[2] for line in lines[1:-3]]
    assert rows[0] == "A" and [row.find("a") for row in rows if "a" in row] == [21, 42] and rows[-1].index("A") == 63
    circles = [element for element in ElementTree.fromstring(diagram.svg) if element.tag.endswith("circle")]
    assert len(circles) == 3 + 1 + 2


def test_a_loss_that_is_no_number_is_left_out() -> None:
    lost = task((2.0, math.nan, math.inf, 1.0), ((0, math.nan), (4, math.inf)))
    assert loss_curve(TrainingState({"echo": lost})).svg.count("<circle") == 2
    for empty in (task(()), task((math.nan,))):
        diagram = loss_curve(TrainingState({"echo": empty}))
        assert "<circle" not in diagram.svg and "a echo" in diagram.text
