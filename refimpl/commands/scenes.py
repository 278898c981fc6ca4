"""Scenes: one prompt, what each voice tells of it and each style draws of it, each with an adapter of its own.

All texts are one batch of the text model, all pictures one batch of the picture model.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import tiny
from ..arrays import Array, Int
from ..errors import RequestError
from ..loading.embedded import STYLES
from ..loading.model_folder import load_model
from ..ops import Ops
from ..oracle.bugs import all_mutants
from ..oracle.pictures.zoo import cannot_show
from ..pictures import PictureModel, PictureRequest, load_picture_adapter, load_picture_model, read_captions
from ..pictures.pixels import block_side
from ..pictures.request import check_picture_request
from ..request import Request, check_request
from ..tiny.grammar import read_prompt
from ..weights import Model
from .common import Adapters, adapter_folders, backend
from .texts import prompt_text

Pixels = Int[Array, "height width 3"]


@dataclass
class Scene:
    """A prompt, and what came of it; as (adapter as the user wrote it, text or pixels)."""

    prompt: str
    texts: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, Pixels]] = field(default_factory=list)


@dataclass(frozen=True)
class Studio:
    """Both embedded models, or another model of pictures that reads the same captions, and their adapters by name."""

    text_model: Model
    picture_model: PictureModel
    voices: Adapters
    styles: Adapters


def picture_backend(name: str) -> Ops:
    """Return the backend that --ops names. RequestError for a mutant that no picture can show, with the reason."""
    mutant = all_mutants().get(name.removeprefix("mutant:")) if name.startswith("mutant:") else None
    if mutant is not None and (reason := cannot_show(mutant)):
        raise RequestError(f"--ops {name}: no picture shows it: {reason}")
    return backend(name)


def open_studio(base: str = "tiny", adapters: Sequence[str] = (), device: str = "cpu") -> Studio:
    """Return the models of one base of pictures, with the adapters of --adapter NAME=PATH checked.

    LoracleError, one line, for a base that the embedded text model cannot caption or that needs a VAE."""
    text_model, picture_model = load_model("tiny", device=device), load_picture_model(base, device=device)
    width, expected = text_model.config.hidden_size, picture_model.config.cap_feat_dim
    if width != expected:
        raise RequestError(
            f"--base {base}: it reads captions {expected} wide, and those of the embedded text model are {width} wide"
        )
    if block_side(picture_model.config) is None:
        channels = picture_model.config.in_channels
        raise RequestError(f"--base {base}: its {channels} channels are of a VAE, which is not here to decode them")
    embedded = STYLES if base == "tiny" else {}
    folders = adapter_folders(adapters, embedded, "style")
    styles = Adapters({**embedded, **folders}, picture_model, load_picture_adapter)
    for name in folders:  # what was named on the command line is checked even if no picture uses it
        styles[name]
    return Studio(text_model, picture_model, Adapters(tiny.VOICES, text_model), styles)


def picture_requests(
    studio: Studio, prompts: Sequence[str], styles: Sequence[str], ops: Ops, seed: int, steps: int
) -> list[PictureRequest]:
    """Return one checked request for every prompt in every style: those of the first prompt first, from one seed."""
    chosen = [studio.styles.chosen(style) for style in styles]
    captions = read_captions(studio.text_model, [prompt_text(studio.text_model, prompt) for prompt in prompts], ops)
    requests = [PictureRequest(caption, adapter, seed, steps) for caption in captions for adapter in chosen]
    for request in requests:
        check_picture_request(request, studio.picture_model.config)
    return requests


def text_requests(
    studio: Studio, prompts: Sequence[str], voices: Sequence[str], args: argparse.Namespace
) -> list[Request]:
    """Return one checked request for every prompt in every voice, those of the first prompt first."""
    model = studio.text_model
    chosen = [studio.voices.chosen(voice) for voice in voices]
    requests = [
        Request(
            model.tokenizer.encode(prompt_text(model, prompt)),
            adapter,
            args.max_new_tokens,
            args.temperature,
            seed=args.seed,
        )
        for prompt in prompts
        for adapter in chosen
    ]
    for request in requests:
        check_request(request, model.config)
    return requests


def grouped(
    prompts: Sequence[str],
    voices: Sequence[str],
    texts: Sequence[str],
    styles: Sequence[str],
    pictures: Sequence[Pixels],
) -> list[Scene]:
    """Return the scene of each prompt, from texts and pictures in the order of their requests."""
    rows = len(prompts)
    return [
        Scene(
            prompt,
            list(zip(voices, texts[i * len(voices) : (i + 1) * len(voices)], strict=True)),
            list(zip(styles, pictures[i * len(styles) : (i + 1) * len(styles)], strict=True)),
        )
        for i, prompt in zip(range(rows), prompts, strict=True)
    ]


def check_page(file: Path | None) -> None:
    """RequestError for an --html FILE that could not be written, before anything is computed for it."""
    if file is not None and file.is_dir():
        raise RequestError(f"--html {file}: is a folder; give the name of a file")
    if file is not None and not file.absolute().parent.is_dir():
        raise RequestError(f"--html {file}: there is no folder {file.parent}")


def foreign(prompt: str) -> bool:
    """Return whether the embedded models have never learnt from a sentence of this form and these words."""
    return read_prompt(prompt.strip()) is None
