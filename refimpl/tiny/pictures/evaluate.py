"""Measure the embedded picture model: does a picture show its prompt, in its adapter's style?

python -m refimpl.tiny.pictures.evaluate                 base and styles, 100 pictures each
python -m refimpl.tiny.pictures.evaluate --set fresh     on prompts that were looked at only once, when all was done
python -m refimpl.tiny.pictures.evaluate --write         put the figures into quality.json

Every prompt has a pair of place and character that is in no training picture, and a seed of its own for its noise.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open

from refimpl.arrays import Array, Int

from . import HERE, flow
from .corpus import FRESH_SEED, UNSEEN_SEED, draw_scenes, read_captions
from .drawing.scene import Words
from .judge import ALL_STYLES, CHOICES, CONTENT, Verdict, judge
from .pixels import from_patches, to_rgb
from .torch_model import load_base

PROMPT_SEEDS = {"tuned": UNSEEN_SEED, "fresh": FRESH_SEED}
STEPS = 12  # of the sampler

Row = dict[str, float]


def paint(folder: Path, prompts: Sequence[str], style: str, steps: int = STEPS) -> Int[Array, "pictures 48 48 3"]:
    """A picture for every prompt."""
    model = load_base(folder / "base")
    if style != "base":
        with safe_open(folder / style / "pytorch_lora_weights.safetensors", "pt") as file:
            metadata = json.loads(file.metadata()["lora_adapter_metadata"])
            keys = file.keys()
            tensors = {key.removeprefix("transformer."): file.get_tensor(key).float() for key in keys}
        config = {key.removeprefix("transformer."): value for key, value in metadata.items()}
        inject_adapter_in_model(LoraConfig(**config), model, adapter_name=style)
        outcome = set_peft_model_state_dict(model, tensors, adapter_name=style)
        assert not outcome.unexpected_keys
    captions, lengths = read_captions(prompts)
    pictures = []
    for start in range(0, len(prompts), 32):
        part = slice(start, start + 32)
        inputs = torch.from_numpy(captions[part]).float(), torch.from_numpy(lengths[part])
        pictures.append(to_rgb(from_patches(flow.sample(model, *inputs, steps, seed=start))))
    return np.concatenate(pictures)


def figures(verdicts: Sequence[Verdict]) -> Row:
    """Shares of the pictures, and the mean distance to the nearest drawing of the right scene."""
    row: Row = {"pictures": len(verdicts)}
    row |= {word: share(verdicts, word) for word in (*CONTENT, "style")}
    row["content (all three)"] = share(verdicts, *CONTENT)
    row |= {word: share(verdicts, word) for word in CHOICES if word not in CONTENT}
    row["rms distance"] = round(float(np.mean([verdict.distance for verdict in verdicts])), 1)
    return row


def share(verdicts: Sequence[Verdict], *words: str) -> float:
    """The share of the pictures that show all these words."""
    return round(sum(verdict.right(*words) for verdict in verdicts) / len(verdicts), 4)


def mistakes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One line for every picture that shows something else."""
    for i, verdict in enumerate(verdicts):
        wrong = [word for word in (*CONTENT, "style") if not verdict.right(word)]
        if wrong:
            yield f"picture {i}: " + ", ".join(f"{verdict.shown[word]} for {verdict.expected[word]}" for word in wrong)


def evaluate(folder: Path, style: str, prompts: Sequence[str], words: Sequence[Words], steps: int) -> list[Verdict]:
    """Paint and judge."""
    pictures = paint(folder, prompts, style, steps)
    return [judge(rgb, scene_words, style) for rgb, scene_words in zip(pictures, words, strict=True)]


def table(rows: dict[str, Row]) -> str:
    """A column for every style, in Markdown."""
    lines = ["| | " + " | ".join(rows) + " |", "|---|" + "---:|" * len(rows)]
    for name in next(iter(rows.values())):
        values = (row[name] for row in rows.values())
        cells = (f"{value:g}" if name in ("pictures", "rms distance") else f"{value:.1%}" for value in values)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a table, and every mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--styles", nargs="+", choices=ALL_STYLES, default=list(ALL_STYLES))
    parser.add_argument("--set", choices=PROMPT_SEEDS, default="tuned")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    prompts, words = draw_scenes(PROMPT_SEEDS[args.set], args.count, from_held_out=True)
    rows = {}
    for style in args.styles:
        verdicts = evaluate(args.model, style, prompts, words, args.steps)
        rows[style] = figures(verdicts)
        print(f"{style}\n" + "\n".join(mistakes(verdicts)), flush=True)
    print("\n" + table(rows))
    if args.write:
        path = HERE / "quality.json"
        quality = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(quality | {args.set: quality.get(args.set, {}) | rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
