"""Training a voice: ours against transformers + PEFT + torch's AdamW, on the same rows, from the same first A.

    pip install -e '.[peft]' && python benchmarks/training.py [--epochs E] [--json FILE]

Both take the same step on the same batch in turn, one thread each, and never see each other's weights again after the
first. Reported: seconds of the CPU for all steps of each and their ratio (those of the wall too, which other programs
lengthen), the loss on the held-out rows at the end, and what share of the lines that the adapter then makes its
character say carries the marker of the voice (tutorials/echo_voice.py), on prompts that no row has.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy and torch are imported

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tutorials")]

from echo_voice import ECHO, PROMPT_SEED, scenes_of, shares  # noqa: E402

from refimpl import NUMPY, Model, load_model, tiny  # noqa: E402
from refimpl.bench.machine import about  # noqa: E402
from refimpl.config import LAYER_MODULES  # noqa: E402
from refimpl.formats.peft import save_adapter  # noqa: E402
from refimpl.tiny.judge import judge  # noqa: E402
from refimpl.training.arguments import TrainingArguments  # noqa: E402
from refimpl.training.data import Encoder, read_dataset, split  # noqa: E402
from refimpl.training.examples import Example, Task, schedule_of  # noqa: E402
from refimpl.training.gradient_ops import GRADIENTS  # noqa: E402
from refimpl.training.loop import Run, evaluate, initial_state, one_step  # noqa: E402
from refimpl.training.lora_config import LoraConfig  # noqa: E402
from refimpl.training.optimizer import learning_rate_at  # noqa: E402
from refimpl.training.state import TrainingState  # noqa: E402

IGNORED = -100  # a target that torch takes no loss on
SCENES = 100


class Peft:
    """The same adapter in PEFT: its step is the loop that transformers' Trainer runs, less its bookkeeping."""

    def __init__(self, task: Task, state: TrainingState, folder: Path, arguments: TrainingArguments) -> None:
        save_adapter(state.adapter(task.name), folder)
        base = transformers.LlamaForCausalLM.from_pretrained(tiny.base_path(), dtype=torch.float32)
        self.model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in self.trained) == sum(x.size for x in state.tasks[task.name].parameters.values())
        self.optimizer = torch.optim.AdamW(self.trained, weight_decay=arguments.weight_decay)
        self.arguments = arguments
        self.model.train()

    def loss(self, examples: Sequence[Example]) -> Any:
        """Mean loss over the targets of a padded batch."""
        width = max(len(example.token_ids) for example in examples)
        ids = torch.zeros((len(examples), width), dtype=torch.long)
        targets = torch.full((len(examples), width), IGNORED)
        attended = torch.zeros((len(examples), width), dtype=torch.long)
        for i, example in enumerate(examples):
            n = len(example.token_ids)
            row, mask = torch.tensor(example.token_ids), torch.tensor(example.loss_mask)
            ids[i, :n], attended[i, :n] = row, 1
            targets[i, :n] = torch.where(mask, row, IGNORED)
        logits = self.model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)

    def step(self, examples: Sequence[Example], learning_rate: float) -> float:
        """Take one step; return the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.loss(examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.arguments.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def evaluate(self, examples: Sequence[Example]) -> float:
        """Mean loss over all targets."""
        self.model.eval()
        with torch.no_grad():
            total = sum(self.loss([example]).item() * example.targets for example in examples)
        return total / sum(example.targets for example in examples)


def timed(function: Callable[[], Any], seconds: list[float]) -> Any:
    """Return the function's result; add its seconds of the CPU, and those of the wall, to `seconds`."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    seconds[0] += time.process_time() - cpu
    seconds[1] += time.perf_counter() - wall
    return result


def compare(model: Model, task: Task, arguments: TrainingArguments, folder: Path) -> tuple[dict[str, Any], Any]:
    """Train both; return the figures, and our adapter."""
    run = Run(model, {task.name: task}, {task.name: schedule_of(task.examples, arguments)}, arguments, NUMPY, GRADIENTS)
    state = initial_state(run)
    theirs = Peft(task, state, folder / "first", arguments)
    ours_seconds, peft_seconds = [0.0, 0.0], [0.0, 0.0]
    losses: list[tuple[float, float]] = []
    steps = run.schedules[task.name].steps
    for i, step in enumerate(steps):
        examples = [task.examples[number] for microbatch in step for number in microbatch]
        state = timed(lambda: one_step(run, state, state), ours_seconds)  # noqa: B023
        rate = learning_rate_at(i, len(steps), arguments)
        losses.append(
            (state.tasks[task.name].losses[-1], timed(lambda: theirs.step(examples, rate), peft_seconds))  # noqa: B023
        )
        if i % 20 == 0 or i == len(steps) - 1:
            print(f"step {i:4d}  ours {losses[-1][0]:.4f}  PEFT {losses[-1][1]:.4f}", flush=True)
    adapter = state.adapter(task.name)
    figures = {
        "steps": len(steps),
        "tokens": sum(len(example.token_ids) for example in task.examples) * arguments.epochs,
        "ours": {"cpu_seconds": round(ours_seconds[0], 1), "wall_seconds": round(ours_seconds[1], 1)},
        "peft": {"cpu_seconds": round(peft_seconds[0], 1), "wall_seconds": round(peft_seconds[1], 1)},
        "ratio_cpu": round(peft_seconds[0] / ours_seconds[0], 2),
        "ratio_wall": round(peft_seconds[1] / ours_seconds[1], 2),
        "largest_loss_difference": max(abs(ours / other - 1) for ours, other in losses),
    }
    return figures, (adapter, theirs)


def main() -> None:
    """Compare, judge, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "tutorials" / "echo.jsonl")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = load_model("tiny")
    arguments = TrainingArguments(epochs=args.epochs, learning_rate=3e-3)
    rows = read_dataset(args.data, Encoder.of(model.tokenizer, model.config)).examples
    examples, held_out = split(rows, 0.1, arguments.seed)
    task = Task("echo", LoraConfig(r=8, lora_alpha=16, target_modules=LAYER_MODULES), examples)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures, (adapter, theirs) = compare(model, task, arguments, folder)
        ours_loss, peft_loss = evaluate(model, adapter, held_out), theirs.evaluate(held_out)
        figures["held_out_loss"] = {"base": evaluate(model, None, held_out), "ours": ours_loss, "peft": peft_loss}
        figures["held_out_difference"] = ours_loss / peft_loss - 1
        save_adapter(adapter, folder / "echo")
        theirs.model.save_pretrained(folder / "peft")
        marked = {}
        for name, path in (("base", None), ("ours", folder / "echo"), ("peft", folder / "peft")):
            scenes = scenes_of(path, args.scenes, PROMPT_SEED)
            marked[name] = shares([judge(prompt, completion, ECHO) for prompt, completion in scenes])
        figures["voice"] = marked
    report = {"machine": about(), **figures}
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main()
