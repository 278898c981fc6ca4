"""Make the four styles again: LoRA adapters on the base, trained on the same scenes redrawn.

python -m refimpl.tiny.pictures.train_styles --out DIR           DIR/base must be there
python -m refimpl.tiny.pictures.train_styles --out DIR --only ink

Needs PyTorch and PEFT, extras for development.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from . import flow
from .corpus import TRAIN_SEED, UNSEEN_SEED, Corpus, make_corpus
from .styles import STYLES
from .torch_model import LAYERS, load_base
from .train_base import FACES, LOOK_EVERY, TEST_SCENES, BaseRecipe, batch_of, cpu_seconds

STYLE_SCENES = 8_192  # the first of those that the base was trained on; each is seen once or twice
ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
MLP = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
LAST = (
    "all_final_layer.2-1.linear"  # what turns the last layer's vectors into pixels: where a style's colours come from
)


@dataclass(frozen=True)
class StyleRecipe:
    """One adapter: its shape, and how long to train it."""

    r: int
    lora_alpha: int
    modules: tuple[str, ...]  # of every layer
    use_rslora: bool = False
    steps: int = 500
    batch: int = 24  # pictures
    learning_rate: float = 4e-3
    warmup_steps: int = 20
    falling_share: float = 0.6  # of the steps, in which the rate falls to nothing

    @property
    def target_modules(self) -> list[str]:
        """The full names of the linear layers that get LoRA."""
        return [f"layers.{i}.{module}" for i in range(LAYERS) for module in self.modules] + [LAST]


# They differ in everything that an engine has to get right: rank, alpha, rsLoRA, modules. One is on adaLN, whose input
# is not a token's vector but the time's, one for each picture.
RECIPES = {
    "ink": StyleRecipe(8, 16, (*ATTENTION, *MLP)),
    "night": StyleRecipe(4, 8, ("attention.to_v", "attention.to_out.0", *MLP)),
    "blueprint": StyleRecipe(12, 6, (*ATTENTION, *MLP), use_rslora=True),
    "watercolour": StyleRecipe(
        6, 12, ("attention.to_q", "attention.to_v", "attention.to_out.0", "feed_forward.w2", "adaLN_modulation.0")
    ),
}


def train_style(base: Path, style: str, train: Corpus, test: Corpus) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train one adapter on the base as it ships, in float16; returns the model with the adapter, and the log."""
    recipe, redraw = RECIPES[style], STYLES[style]
    torch.manual_seed(7)
    model = load_base(base)
    model.requires_grad_(False)
    inject_adapter_in_model(lora_config(recipe), model, adapter_name=style)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.0)
    noise, shuffle = torch.Generator().manual_seed(3), np.random.default_rng(4)
    face_weights = flow.patch_weights(BaseRecipe.face_weight, FACES)
    began, log, losses = cpu_seconds(), [], []
    for step in range(recipe.steps):
        rows = shuffle.choice(len(train), recipe.batch, replace=False)
        rate = min(1, (step + 1) / recipe.warmup_steps)
        rate *= min(1, (recipe.steps - step) / (recipe.steps * recipe.falling_share))
        loss = flow.loss(model, *batch_of(train, rows, redraw), noise, face_weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.param_groups[0]["lr"] = recipe.learning_rate * rate
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == recipe.steps:
            errors = flow.errors(model, *batch_of(test, np.arange(len(test)), redraw))
            mean_loss, cpu = round(float(np.mean(losses)), 4), round(cpu_seconds() - began)
            log.append({"step": step + 1, "loss": mean_loss, "errors": errors, "cpu": cpu})
            print(style, json.dumps(log[-1]), flush=True)
            losses.clear()
    return model, log


def lora_config(recipe: StyleRecipe) -> LoraConfig:
    """PEFT's form of a recipe."""
    return LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        use_rslora=recipe.use_rslora,
        target_modules=recipe.target_modules,
    )


def save_style(model: nn.Module, style: str, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` as `ZImagePipeline.save_lora_weights` does, in float16.

    The file's metadata has the LoraConfig under the key that diffusers reads it from: without it a loader would have to
    guess alpha and whether the scale is alpha / r or alpha / sqrt(r)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, adapter_name=style)
    config = model.peft_config[style].to_dict()
    config["target_modules"] = sorted(config["target_modules"])  # a set, in any order
    metadata = {
        f"transformer.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    save_file(
        {f"transformer.{key}": tensor.half().contiguous() for key, tensor in tensors.items()},
        folder / "pytorch_lora_weights.safetensors",
        metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)},
    )


def main() -> None:
    """Train what --only names, or every style, into --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    if not (args.out / "base" / "transformer").is_dir():
        parser.error(f"{args.out}: has no base/transformer; train_base writes it")
    torch.set_num_threads(1)
    train = make_corpus(TRAIN_SEED, STYLE_SCENES)
    test = make_corpus(UNSEEN_SEED, TEST_SCENES, from_held_out=True)
    for style in args.only:
        model, log = train_style(args.out / "base", style, train, test)
        save_style(model, style, args.out / style)
        report = args.out / "training.json"
        logs = json.loads(report.read_text()) if report.exists() else {}
        report.write_text(json.dumps(logs | {style: log}) + "\n")


if __name__ == "__main__":
    main()
