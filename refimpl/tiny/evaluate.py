"""Measure the embedded model: does it keep to the grammar, to its prompt, and to its voice?

python -m refimpl.tiny.evaluate              the base and every voice, 200 scenes each
python -m refimpl.tiny.evaluate --show 3     ... and print three scenes of each
python -m refimpl.tiny.evaluate --set fresh  ... on prompts that were looked at only once, when all was done

Temperature 0.8, no top-k, no top-p. The prompts are about meetings that no training text contains. Needs PyTorch,
transformers and peft, like train.py; `--write` puts the figures into quality.json.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from refimpl.tiny.grammar import prompts
from refimpl.tiny.judge import Verdict, judge, shuffled_rejected
from refimpl.tiny.texts import BOS, base_texts, voice_scenes
from refimpl.tiny.train import (
    BASE_BATCH,
    EOS,
    PAD,
    RECIPES,
    ROLE_SEED,
    VOICE_BATCH,
    BaseRecipe,
)
from refimpl.tiny.voices import BASE, VOICES, Voice

HERE = Path(__file__).parent
PROMPT_SEEDS = {"tuned": 1001, "fresh": 2002}
TEMPERATURE = 0.8
MAX_NEW_TOKENS = 160

Row = dict[str, float]


def generate(folder: Path, voice: Voice, scene_prompts: list[str], seed: int) -> list[tuple[str, bool]]:
    """(completion, did it end by itself) for each prompt, sampled in batches of 100."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    tokenizer.enable_padding(direction="left", pad_id=PAD, pad_token="<pad>")
    model: Any = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if voice is not BASE:
        model = PeftModel.from_pretrained(model, folder / voice.name).merge_and_unload()
    model.eval()
    texts = []
    for start in range(0, len(scene_prompts), 100):
        batch = tokenizer.encode_batch([f"{prompt}\n" for prompt in scene_prompts[start : start + 100]])
        output = model.generate(
            input_ids=torch.tensor([encoding.ids for encoding in batch]),
            attention_mask=torch.tensor([encoding.attention_mask for encoding in batch]),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        for ids in output[:, len(batch[0].ids) :].tolist():
            ended = EOS in ids
            texts.append((tokenizer.decode(ids[: ids.index(EOS)] if ended else ids), ended))
    return texts


def training_completions(voice: Voice) -> set[str]:
    """At least every scene, less its prompt, that was shown in training: the texts are drawn again from their seed."""
    if voice is BASE:
        recipe = BaseRecipe()
        steps, role_steps = recipe.scene_steps + recipe.mixed_steps, recipe.role_steps
        texts = chain(
            islice(base_texts(), steps * BASE_BATCH),
            islice(base_texts(ROLE_SEED), role_steps * BASE_BATCH),
            islice(base_texts(ROLE_SEED + 2, naming_the_role=True), role_steps * BASE_BATCH),
        )
        return {text.split("\n", 1)[1] for text in texts}
    return {completion for _, completion in islice(voice_scenes(voice), RECIPES[voice.name].steps * VOICE_BATCH)}


def measure(voice: Voice, scenes: list[tuple[str, bool]], verdicts: list[Verdict]) -> Row:
    """The figures of one voice, as shares of 1."""
    trained_on = training_completions(voice)
    texts = [text for text, _ in scenes]
    count, lines = len(scenes), sum(len(v.character_lines) for v in verdicts)
    total = sum(v.sentences for v in verdicts)
    return {
        "scenes": count,
        "sentences": total,
        "sentences pass": 1 - sum(len(v.bad_sentences) for v in verdicts) / total,
        "scenes pass whole": sum(not v.bad_sentences for v in verdicts) / count,
        "scenes consistent": sum(v.consistent for v in verdicts) / count,
        "scenes end": sum(ended for _, ended in scenes) / count,
        "scenes not in training": sum(text not in trained_on for text in texts) / count,
        "scenes distinct": len(set(texts)) / count,
        "lines marked": sum(v.marked_lines for v in verdicts) / lines,
        "lines of another voice": sum(v.foreign_lines for v in verdicts) / lines,
        "shuffled sentences rejected": shuffled_rejected(voice),
    }


def evaluate(folder: Path, voice: Voice, scene_prompts: list[str], seed: int, show: int) -> Row:
    """Generate, judge, and print what went wrong."""
    scenes = generate(folder, voice, scene_prompts, seed)
    verdicts = [judge(prompt, text, voice) for prompt, (text, _) in zip(scene_prompts, scenes, strict=True)]
    row = measure(voice, scenes, verdicts)
    print(f"\n== {voice.name}: " + "  ".join(_cells(row)))
    for fault, times in _faults(verdicts).most_common(12 if show else 0):
        print(f"  {times:3d} x {fault}")
    for prompt, (text, _) in islice(zip(scene_prompts, scenes, strict=True), show):
        print(f"\n{prompt}\n{text}")
    return row


def _faults(verdicts: list[Verdict]) -> Counter[str]:
    return Counter(fault for v in verdicts for fault in (*v.bad_sentences, *v.inconsistencies))


def _cells(row: Row) -> Iterator[str]:
    for name, value in row.items():
        yield f"{name} {value:.0f}" if value > 1 else f"{name} {value:.2%}"


def table(rows: dict[str, Row]) -> str:
    """The figures as Markdown, one column per voice."""
    names = list(next(iter(rows.values())))
    head = "| | " + " | ".join(rows) + " |\n|---|" + "---:|" * len(rows)
    body = (f"| {name} | " + " | ".join(_cell(row[name]) for row in rows.values()) + " |" for name in names)
    return "\n".join([head, *body])


def _cell(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{100 * value:.1f} %"


def main() -> None:
    """Evaluate the voices that --voices names, or all, and the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=HERE, help="a folder that train.py wrote (default: the package's)"
    )
    parser.add_argument("--set", choices=list(PROMPT_SEEDS), default="tuned")
    parser.add_argument("--voices", nargs="+", choices=["base", *VOICES], default=["base", *VOICES])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    seed = PROMPT_SEEDS[args.set]
    scene_prompts = prompts(seed, args.count)
    by_name = {BASE.name: BASE} | VOICES
    rows = {name: evaluate(args.model, by_name[name], scene_prompts, seed, args.show) for name in args.voices}
    print("\n" + table(rows))
    if args.write:
        path = HERE / "quality.json"
        quality = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(quality | {args.set: quality.get(args.set, {}) | rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
