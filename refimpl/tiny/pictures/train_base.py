"""Make the embedded picture model's base again, from nothing but the grammar and the embedded text model.

python -m refimpl.tiny.pictures.train_base --out DIR

Needs PyTorch, an extra for development. An interrupted run goes on from its last checkpoint when the same command is
given again. The same seed gives the same corpus on every machine, and nearly the same weights: sums are rounded
differently on another CPU.
"""

import argparse
import json
import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.pictures.pixels import to_latent, to_patches

from . import flow
from .corpus import TRAIN_SCENES, TRAIN_SEED, UNSEEN_SEED, Corpus, make_corpus
from .muon import Muon
from .styles import Redraw, plain
from .torch_model import FOLD, PATCH, PictureModel, new_model, save_base

LOOK_EVERY = 100  # steps between two lines of the log
SAVE_EVERY = 50  # steps that are lost at most when a run is interrupted
TEST_SCENES = 64
FACES = (44, 45, 46)  # patches that the character's face is in, near or far: row 5, columns 4 to 6


@dataclass(frozen=True)
class BaseRecipe:
    """How the base is trained: a constant rate that falls to nothing over the last steps."""

    steps: int = 4500
    falling_steps: int = 1000
    warmup_steps: int = 40
    batch: int = 32  # pictures
    face_from_step: int = (
        2900  # from here on an error in a face counts more: moods are few pixels, and are learned last
    )
    face_weight: float = 8.0
    learning_rate: float = 2e-3  # AdamW: embeddings, norms, everything from the time
    muon_learning_rate: float = 8e-3  # the matrices of attention and MLP


@dataclass
class Progress:
    """Where a run stands. Everything that its next step depends on, beside weights and optimizers."""

    noise: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(2))
    shuffle: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    order: np.ndarray = field(default_factory=lambda: np.array([], int))  # rows of the corpus that come next
    step: int = 0
    cpu_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    def next_rows(self, scenes: int, batch: int) -> np.ndarray:
        """The rows of the next batch: every scene once, in a new order each time."""
        if len(self.order) < batch:
            self.order = np.concatenate([self.order, self.shuffle.permutation(scenes)])
        rows, self.order = self.order[:batch], self.order[batch:]
        return rows


class Training:
    """A model with its optimizers, and how far it has come."""

    def __init__(self, model: PictureModel, recipe: BaseRecipe) -> None:
        self.model, self.recipe, self.progress = model, recipe, Progress()
        matrices = [
            weights
            for name, weights in model.named_parameters()
            if weights.ndim == 2 and name.startswith("layers.") and "adaLN" not in name
        ]
        muon_ids = {id(weights) for weights in matrices}
        self.others = [weights for weights in model.parameters() if id(weights) not in muon_ids]
        self.face_weights = flow.patch_weights(recipe.face_weight, FACES)
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, corpus: Corpus) -> float:
        """Train on the next batch; returns its loss."""
        recipe, progress = self.recipe, self.progress
        rate = min(1, (progress.step + 1) / recipe.warmup_steps)
        rate *= min(1, (recipe.steps - progress.step) / recipe.falling_steps)
        rows = progress.next_rows(len(corpus), recipe.batch)
        weights = self.face_weights if progress.step >= recipe.face_from_step else 1.0
        loss = flow.loss(self.model, *batch_of(corpus, rows), progress.noise, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.adam.param_groups[0]["lr"] = recipe.learning_rate * rate
        self.adam.step()
        self.adam.zero_grad()
        self.muon.step(recipe.muon_learning_rate * rate)
        progress.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write a checkpoint; one that is half-written never takes the place of a good one."""
        parts = {"model": self.model, "adam": self.adam, "muon": self.muon}
        state = {name: part.state_dict() for name, part in parts.items()}
        progress = vars(self.progress) | {"noise": self.progress.noise.get_state()}
        torch.save(state | {"progress": progress}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint was written. It holds pickled objects: only read one that you wrote."""
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
        self.progress = Progress(**state["progress"] | {"noise": torch.Generator()})
        self.progress.noise.set_state(state["progress"]["noise"])


def batch_of(corpus: Corpus, rows: np.ndarray, redraw: Redraw = plain) -> tuple[Tensor, Tensor, Tensor]:
    """Patches [n, 64, 108] of the redrawn pictures, captions [n, 32, 256] and their lengths [n]."""
    patches = [to_patches(to_latent(redraw(picture), FOLD), PATCH) for picture in corpus.pictures[rows]]
    captions, lengths = torch.from_numpy(corpus.captions[rows]).float(), torch.from_numpy(corpus.lengths[rows])
    return torch.from_numpy(np.stack(patches)), captions, lengths


def cpu_seconds() -> float:
    """What this process has used of the CPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def train_base(recipe: BaseRecipe, out: Path) -> list[dict[str, Any]]:
    """Train the base into `out`/base, with a checkpoint beside it; returns the log."""
    checkpoint = out / "base.checkpoint"
    began = cpu_seconds()
    train = make_corpus(TRAIN_SEED, TRAIN_SCENES)
    test = make_corpus(UNSEEN_SEED, TEST_SCENES, from_held_out=True)
    print(f"corpus of {len(train)} scenes: {cpu_seconds() - began:.0f} CPU seconds", flush=True)
    training = Training(new_model(), recipe)
    if checkpoint.exists():
        training.resume(checkpoint)
    progress = training.progress
    began = cpu_seconds() - progress.cpu_seconds
    while progress.step < recipe.steps:
        progress.losses.append(training.step(train))
        progress.cpu_seconds = cpu_seconds() - began
        if progress.step % LOOK_EVERY == 0 or progress.step == recipe.steps:
            errors = flow.errors(training.model, *batch_of(test, np.arange(TEST_SCENES)))
            mean_loss = round(float(np.mean(progress.losses)), 4)
            line = {"step": progress.step, "loss": mean_loss, "errors": errors, "cpu": round(progress.cpu_seconds)}
            print(json.dumps(line), flush=True)
            progress.log.append(line)
            progress.losses.clear()
            save_base(training.model, out / "base")
        if progress.step % SAVE_EVERY == 0 or progress.step == recipe.steps:
            training.save(checkpoint)
    return progress.log


def main() -> None:
    """Train the base into --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=BaseRecipe.steps, help="in all; more than before goes on longer")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps {args.steps} must be 1 or more")
    torch.set_num_threads(1)  # two are slower than one where other programs share the cores
    args.out.mkdir(parents=True, exist_ok=True)
    log = train_base(BaseRecipe(steps=args.steps), args.out)
    (args.out / "training.json").write_text(json.dumps({"base": log}) + "\n")


if __name__ == "__main__":
    main()
