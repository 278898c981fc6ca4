"""loracle learn engine: the demo, served by an engine of the learner's own steps."""

import argparse
import json

from rich.console import Console
from rich.text import Text

from .. import tiny
from ..errors import LoracleError
from ..learn.folder import course_folder
from ..learn.your_engine import Step, ops_of, passed_steps, remaining
from ..loading.model_folder import load_model
from ..request import Request
from ..streaming import generate
from .common import BASE, Adapters
from .demo import TEMPERATURE, TOKENS, show


def engine(args: argparse.Namespace) -> int:
    """Say which steps are the learner's, and serve the demo's first scene with them. Return 0."""
    if args.names:
        raise LoracleError(f"engine takes no NAME ({args.names[0]})")
    folder = course_folder(args.folder)
    steps = passed_steps(folder)
    model = load_model("tiny")
    adapters = Adapters(dict(tiny.VOICES), model)
    names, prompt = [BASE, *tiny.VOICES], tiny.DEMO_PROMPTS[0]
    ids = model.tokenizer.encode(prompt)
    # As `loracle demo` has them, with its seed: the same story, unless a step rounds so that a draw falls otherwise.
    requests = [Request(ids, adapters.chosen(name), TOKENS, TEMPERATURE, seed=0) for name in names]
    ops = ops_of(steps)
    if args.json:
        outputs = generate(model, requests, ops=ops)
        texts = [{"adapter": name, "text": output.text} for name, output in zip(names, outputs, strict=True)]
        print(
            json.dumps(
                {"yours": fields_by_exercise(steps), "ours": [one.name for one in remaining(steps)], "texts": texts}
            )
        )
        return 0
    console = Console()
    for line in whose(steps):
        console.print(Text(line))
    show(console, model, requests, names, prompt, ops)
    console.print()
    if steps:
        option = f" --option folder={args.folder}" if args.folder else ""
        line = f"Judge it: loracle check --engine learn{option} --model random --cases 10 --sequences 5 --no-power"
        console.print(Text(line), soft_wrap=True)
    return 0


def whose(steps: list[Step]) -> list[str]:
    """Return which steps are the learner's, and which exercises would make more of them theirs."""
    lines = [f"yours  {', '.join(each.fields)} ({each.exercise.name})" for each in steps]
    if not steps:
        lines = ["No step is yours yet: this is Loracle's own engine."]
    ours = ", ".join(one.name for one in remaining(steps))
    return [*lines, f"ours   everything else; not passed yet: {ours}"] if ours else lines


def fields_by_exercise(steps: list[Step]) -> dict[str, list[str]]:
    """Return the fields of Ops that each exercise fills."""
    return {each.exercise.name: list(each.fields) for each in steps}
