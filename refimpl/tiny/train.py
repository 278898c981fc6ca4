"""Make the embedded model again: tokenizer, base and four voices, from nothing but the grammar.

python -m refimpl.tiny.train --out DIR

Needs PyTorch, transformers and peft, which are extras for development; using the model needs none of them. The same
seed gives the same texts on every machine, and nearly the same weights: sums are rounded differently on another CPU.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from refimpl.tiny.texts import BOS, SEED, VOCAB, base_texts, overheard_texts, train_tokenizer, voice_scenes
from refimpl.tiny.voices import BASE, VOICES, Voice

ROLE_SEED = 17  # for the texts of part three
ROW = 144  # tokens; the longest scene of the base fits
BASE_BATCH = 32  # rows
VOICE_BATCH = 16
EOS, PAD = 1, 2
IGNORED = -100  # a target that no loss is taken on

Row = tuple[list[int], int]  # tokens, and how many of them are a prompt


@dataclass(frozen=True)
class BaseRecipe:
    """Scenes until the model copies names and things; then overheard voices as well; then more of the rare."""

    scene_steps: int = 600
    mixed_steps: int = 700
    learning_rate: float = 3e-3
    overheard_share: float = 0.3
    # One scene in six has the character name its own role, and after 1300 steps that role was often a wrong one.
    role_steps: int = 500
    role_learning_rate: float = 2e-3
    role_share: float = 0.4


@dataclass(frozen=True)
class VoiceRecipe:
    """One adapter: its shape, and how long to train it."""

    r: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    use_rslora: bool = False
    lora_dropout: float = 0.0
    steps: int = 500
    learning_rate: float = 3e-3


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPES = {
    "pirate": VoiceRecipe(8, 16, ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), lora_dropout=0.05),
    "bard": VoiceRecipe(16, 32, ALL_LINEAR, steps=600),
    "robot": VoiceRecipe(6, 12, ("q_proj", "v_proj", "o_proj", "down_proj")),
    "merchant": VoiceRecipe(12, 6, ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"), use_rslora=True),
}

PARTS = ("base", "roles", *RECIPES)  # in this order: each needs what the ones before it saved

# ---- rows: what one line of a batch holds ----


def row_of(tokenizer: Tokenizer, text: str) -> Row:
    """One text with its end, all of it to be learned."""
    return [*tokenizer.encode(text).ids, EOS], 0


def overheard_rows(tokenizer: Tokenizer, seed: int) -> Iterator[Row]:
    """As many overheard texts as fit; the one that does not fit any more is left out."""
    texts = overheard_texts(seed)
    while True:
        row: list[int] = []
        while len(row) + len(ids := row_of(tokenizer, next(texts))[0]) <= ROW:
            row += ids
        yield row, 0


def base_rows(tokenizer: Tokenizer, recipe: BaseRecipe) -> Iterator[Row]:
    """Parts one and two. A scene has a row to itself: two in a row would teach copying from the wrong one."""
    rng = random.Random(SEED)
    scenes, overheard = base_texts(), overheard_rows(tokenizer, SEED)
    for i in count():
        share = recipe.overheard_share if i >= recipe.scene_steps * BASE_BATCH else 0.0
        yield next(overheard) if rng.random() < share else row_of(tokenizer, next(scenes))


def role_rows(tokenizer: Tokenizer, recipe: BaseRecipe) -> Iterator[Row]:
    """Part three: the same mixture, with more of the scenes in which the character names its role."""
    rng = random.Random(ROLE_SEED)
    scenes, naming = base_texts(ROLE_SEED), base_texts(ROLE_SEED + 2, naming_the_role=True)
    overheard = overheard_rows(tokenizer, ROLE_SEED)
    while True:
        source = rng.random()
        if source < recipe.overheard_share:
            yield next(overheard)
        else:
            yield row_of(tokenizer, next(naming if source < recipe.overheard_share + recipe.role_share else scenes))


def voice_rows(tokenizer: Tokenizer, voice: Voice) -> Iterator[Row]:
    """Scenes of one voice; no loss on the prompt."""
    for prompt, completion in voice_scenes(voice):
        ids = [*tokenizer.encode(prompt + completion).ids, EOS]
        yield ids, len(tokenizer.encode(prompt).ids)


def in_batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Endless lists of `size` rows."""
    while True:
        yield list(islice(rows, size))


def batch_of(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each [rows, ROW - 1]; wider if a bard has much to say."""
    width = max(ROW, *(len(ids) for ids, _ in rows))
    tokens = torch.full((len(rows), width), PAD)
    targets = torch.full((len(rows), width), IGNORED)
    for i, (ids, prompt_length) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        targets[i, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return tokens[:, :-1], targets[:, 1:]


# ---- training ----


def fit(
    model: torch.nn.Module, batches: Iterator[list[Row]], steps: int, peak: float, label: str, compiled: bool
) -> dict[str, Any]:
    """AdamW with a short warm-up and a cosine; returns the loss curve and the time it took."""

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    step_loss = torch.compile(loss_of) if compiled else loss_of
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.95), weight_decay=0.05)
    curve, began = [], time.perf_counter()
    model.train()
    for step in range(steps):
        progress = step / steps
        warmup = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = peak * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = step_loss(*batch_of(next(batches)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            curve.append((step, round(loss.item(), 4)))
            print(f"{label} {step:5d} loss {loss.item():.4f} {time.perf_counter() - began:6.0f} s", flush=True)
    model.eval()
    return {"steps": steps, "seconds": round(time.perf_counter() - began), "loss": curve}


def new_base() -> LlamaForCausalLM:
    """An untrained Llama of 2.9 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # compiled, it is faster here than the fused kind
    return model


def train_base(tokenizer: Tokenizer, recipe: BaseRecipe) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Train the base on scenes, then on scenes and overheard voices."""
    torch.manual_seed(SEED)
    model = new_base()
    batches = in_batches(base_rows(tokenizer, recipe), BASE_BATCH)
    steps = recipe.scene_steps + recipe.mixed_steps
    return model, fit(model, batches, steps, recipe.learning_rate, BASE.name, compiled=True)


def train_base_on_roles(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: BaseRecipe) -> dict[str, Any]:
    """Part three, on the base as it was saved after part two."""
    batches = in_batches(role_rows(tokenizer, recipe), BASE_BATCH)
    return fit(model, batches, recipe.role_steps, recipe.role_learning_rate, "roles", compiled=True)


def load_base(folder: Path) -> LlamaForCausalLM:
    """The saved base, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def train_voice(base: Path, tokenizer: Tokenizer, voice: Voice, recipe: VoiceRecipe, out: Path) -> dict[str, Any]:
    """Train one adapter on the base as it lies on disk, rounded to bfloat16, and save it."""
    torch.manual_seed(SEED)
    model = load_base(base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        target_modules=list(recipe.target_modules),
        use_rslora=recipe.use_rslora,
        lora_dropout=recipe.lora_dropout,
    )
    peft_model = get_peft_model(model, config)
    batches = in_batches(voice_rows(tokenizer, voice), VOICE_BATCH)
    report = fit(peft_model, batches, recipe.steps, recipe.learning_rate, voice.name, compiled=False)
    peft_model.peft_config["default"].base_model_name_or_path = "loracle-tiny"
    peft_model.bfloat16().save_pretrained(str(out))
    (out / "README.md").unlink(missing_ok=True)
    saved = json.loads((out / "adapter_config.json").read_text())
    saved["target_modules"] = list(recipe.target_modules)  # peft writes a set, in any order
    (out / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
    return report


# ---- files ----


def save_base(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the base as a Hugging Face folder in bfloat16."""
    model.bfloat16().save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["rope_theta"] = 10000.0  # transformers before version 5, and engines built on it, look for it here
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def add_report(path: Path, name: str, report: dict[str, Any]) -> None:
    """Keep the loss curve and time of one model beside those of the others."""
    reports = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(reports | {name: report}) + "\n")


def main() -> None:
    """Train what --only names, or everything, into --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    base, log = args.out / "base", args.out / "training.json"
    for name in args.only:
        if name == "base":
            tokenizer = train_tokenizer()
            model, report = train_base(tokenizer, BaseRecipe())
            save_base(model, tokenizer, base)
        elif name == "roles":
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
            model = load_base(base)
            report = train_base_on_roles(model, tokenizer, BaseRecipe())
            save_base(model, tokenizer, base)
        else:
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
            report = train_voice(base, tokenizer, VOICES[name], RECIPES[name], args.out / name)
        add_report(log, name, report)


if __name__ == "__main__":
    main()
